"""Losses: mean squared and absolute error and their kin, cross-entropies, divergences.

Losses never broadcast: input and target have one shape. All take `reduction`: "mean" over the elements
(the default; ValueError when there are none, where PyTorch gives NaN), "sum", or "none" (a Tensor of the
input's shape). Sums run in float64 in a fixed order.
"""

from __future__ import annotations

from typing import Any

from ..core.autograd import Node, apply
from ..core.tensor import Tensor, as_tensor
from ._arguments import REFUSED, integer, number, renamed

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "nll_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
]


class ElementwiseLossBackward(Node):
    """dx = grad * scale * weight * d loss / d input, and the same for the target."""

    __slots__ = ("kind", "options")
    kind: str
    options: tuple  # option, flag, reduce, scale

    def backward(self, grad: Any) -> tuple:
        x, t, weight, pos_weight = self.saved
        return self.k.loss_backward(
            self.kind, grad, x, t, weight, pos_weight, *self.options, *self.needs
        )


class NllLossBackward(Node):
    """dx[i, target[i]] = -grad weight[target[i]], over the sum of the weights for the mean."""

    __slots__ = ("ignore_index", "reduce")
    ignore_index: int
    reduce: int

    def backward(self, grad: Any) -> tuple:
        x, t, weight, total = self.saved
        return (
            self.k.nll_loss_backward(grad, x, t, weight, total, self.ignore_index, self.reduce),
        )


def _tensor(op: str, name: str, x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(x).__name__}")
    return x


def _reduction(op: str, reduction: str, more: tuple[str, ...] = ()) -> str:
    if reduction == "mean":
        return reduction
    if reduction not in ("mean", "sum", "none", *more):
        names = ", ".join(repr(r) for r in ("mean", "sum", "none", *more))
        raise ValueError(f"{op}: reduction is {reduction!r}; it must be one of {names}")
    return reduction


def _constant(op: str, name: str, w: Any) -> Any:
    if _tensor(op, name, w).requires_grad:
        raise ValueError(f"{op}: {name} has no gradient here; pass {name}.detach()")
    return w.data


def _no_mean(op: str, data: Any) -> int:
    raise ValueError(
        f"{op}: input has shape {tuple(data.shape)}: the mean over an empty batch is not defined; leave the "
        "batch out or use reduction='sum'"
    )


def _loss(
    kind: str,
    input: Tensor,
    target: Any,
    reduction: str,
    option: float = 0.0,
    flag: bool = False,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
) -> Tensor:
    x = input if isinstance(input, Tensor) else _tensor(kind, "input", input)
    t = target if isinstance(target, Tensor) else as_tensor(target, x, kind, "target")
    data, k = x.data, x._k
    reduce, scale = True, 1.0
    if reduction == "mean":
        scale = 1.0 / (data.size or _no_mean(kind, data))
    elif reduction == "none":
        reduce = False
    elif reduction == "batchmean":
        scale = 1.0 / ((data.shape[0] if data.ndim else 1) or _no_mean(kind, data))
    w = None if weight is None else _constant(kind, "weight", weight)
    q = None if pos_weight is None else _constant(kind, "pos_weight", pos_weight)
    out = k.loss_forward(kind, data, t.data, w, q, option, flag, reduce, scale)
    return apply(
        ElementwiseLossBackward, k, out, (x, t), (x, t, w, q),
        kind=kind, options=(option, flag, reduce, scale),
    )  # fmt: skip


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Squared error: (input - target)^2.

    input, target: float Tensors of one shape. ValueError when the shapes differ, TypeError when the
    dtypes do.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.mse_loss(gs.tensor([1.0, 2.0]), gs.tensor([1.0, 4.0])).item()
    2.0
    """
    return _loss("mse_loss", input, target, _reduction("mse_loss", reduction))


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Absolute error: |input - target|; the gradient at 0 is 0.

    input, target: float Tensors of one shape. ValueError when the shapes differ.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.l1_loss(gs.tensor([1.0, 2.0]), gs.tensor([1.0, 4.0])).item()
    1.0
    """
    return _loss("l1_loss", input, target, _reduction("l1_loss", reduction))


def smooth_l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """d^2 / (2 beta) for |d| < beta, else |d| - beta / 2, with d = input - target.

    huber_loss(delta=beta) / beta; with beta = 0 the L1 loss. ValueError for a negative beta or shapes
    that differ. (Girshick, "Fast R-CNN", ICCV 2015)

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.smooth_l1_loss(gs.tensor([0.5, 3.0]), gs.tensor([0.0, 0.0]), reduction="none").tolist()
    [0.125, 2.5]
    """
    _reduction("smooth_l1_loss", reduction)
    if type(beta) is not float:
        beta = number("smooth_l1_loss", "beta", beta)
    if not beta >= 0:
        raise ValueError(f"smooth_l1_loss: beta is {beta}; it must be at least 0")
    if beta == 0:
        try:
            return _loss("l1_loss", input, target, reduction)
        except REFUSED as error:
            raise renamed("smooth_l1_loss", error) from None
    return _loss("smooth_l1_loss", input, target, reduction, float(beta))


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """d^2 / 2 for |d| <= delta, else delta (|d| - delta / 2), with d = input - target.

    ValueError for delta <= 0 or shapes that differ. (Huber, 1964)

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.huber_loss(gs.tensor([0.5, 3.0]), gs.tensor([0.0, 0.0]), "none", 2.0).tolist()
    [0.125, 4.0]
    """
    _reduction("huber_loss", reduction)
    if type(delta) is not float:
        delta = number("huber_loss", "delta", delta)
    if not delta > 0:
        raise ValueError(f"huber_loss: delta is {delta}; it must be greater than 0")
    return _loss("huber_loss", input, target, reduction, float(delta))


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """-weight (target log(input) + (1 - target) log(1 - input)), logarithms no less than -100.

    input: probabilities in [0, 1]; target: of the same shape, usually 0 or 1; weight: any shape that
    broadcasts to the input's. ValueError for an input outside [0, 1] (or NaN) and shapes that differ.
    Prefer `binary_cross_entropy_with_logits`, which loses no accuracy near 0 and 1.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> round(F.binary_cross_entropy(gs.tensor([0.5]), gs.tensor([1.0])).item(), 4)
    0.6931
    """
    op = "binary_cross_entropy"
    if reduction != "mean":
        _reduction(op, reduction)
    return _loss(op, input, target, reduction, 0.0, False, weight)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-weight (pos_weight target log s(x) + (1 - target) log(1 - s(x))), s the logistic function.

    Computed as (1 - t) x + (1 + (pos_weight - 1) t) (log(1 + exp(-|x|)) + max(-x, 0)), which neither
    overflows nor cancels. input: any logits; target: of the same shape; weight, pos_weight: any shape
    that broadcasts to the input's, for instance (classes,). ValueError when shapes do not fit.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> round(F.binary_cross_entropy_with_logits(gs.tensor([0.0]), gs.tensor([1.0])).item(), 4)
    0.6931
    """
    op = "binary_cross_entropy_with_logits"
    if reduction != "mean":
        _reduction(op, reduction)
    return _loss(op, input, target, reduction, 0.0, False, weight, pos_weight)


def kl_div(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """Kullback-Leibler divergence: target (log(target) - input), 0 where the target is 0.

    input: log-probabilities; target: probabilities of the same shape, or with log_target their
    logarithms: exp(target) (target - input). reduction "batchmean", the sum over the first axis'
    length, is the divergence as it is defined; "mean" divides by the number of elements.
    ValueError when the shapes differ. (Kullback & Leibler, 1951)

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> p = gs.tensor([[0.5, 0.5]])
    >>> round(F.kl_div(gs.tensor([[0.0, 0.0]]), p, reduction="batchmean").item(), 4)
    -0.6931
    """
    return _loss(
        "kl_div",
        input,
        target,
        _reduction("kl_div", reduction, ("batchmean",)),
        flag=bool(log_target),
    )


def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    eps: float = 1e-8,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood of Poisson counts: exp(input) - target input.

    With log_input=False input is the rate itself: input - target log(input + eps). The constant
    log(target!) is left out; full=True (Stirling's approximation of it) is not supported.
    ValueError when the shapes differ.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.poisson_nll_loss(gs.tensor([0.0]), gs.tensor([3.0])).item()
    1.0
    """
    op = "poisson_nll_loss"
    if full:
        raise ValueError(f"{op}: full=True is not supported; it adds a constant to the loss")
    if type(eps) is not float:
        eps = number(op, "eps", eps)
    return _loss(op, input, target, _reduction(op, reduction), eps, bool(log_input))


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood: -weight[target] input[..., target].

    input: log-probabilities (..., classes), the class axis last; target: int32 or int64 class indices of
    the shape (...); weight: (classes,). Targets equal to ignore_index count nothing. "mean" divides by
    the sum of the weights of the targets. IndexError for a target out of range; ValueError when shapes
    do not fit.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.nll_loss(gs.tensor([[-1.0, -3.0], [-2.0, -4.0]]), gs.tensor([0, 1])).item()
    2.5
    """
    op = "nll_loss"
    x = _tensor(op, "input", input)
    t = target if isinstance(target, Tensor) else as_tensor(target, op=op, name="target")
    reduce = {"none": 0, "sum": 1, "mean": 2}[_reduction(op, reduction)]
    k = x._k
    w = None if weight is None else _constant(op, "weight", weight)
    ignore = ignore_index
    if type(ignore) is not int:
        ignore = integer(op, "ignore_index", ignore_index)
    out, total = k.nll_loss_forward(x.data, t.data, w, ignore, reduce)
    return apply(
        NllLossBackward, k, out, (x,), (x, t, w, total), ignore_index=ignore, reduce=reduce
    )
