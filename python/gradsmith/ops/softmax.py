"""Softmax, log-softmax and the softmax cross-entropy, whose gradient is made in the forward pass."""

from __future__ import annotations

from typing import Any

from ..core import recording
from ..core.autograd import Node, apply, is_grad_enabled
from ..core.tensor import Tensor, as_tensor
from ._arguments import REFUSED, renamed

__all__ = ["cross_entropy", "log_softmax", "softmax", "softmin"]

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


class SoftmaxBackward(Node):
    """dx = y (dy - sum(dy y)), or for the logarithm dy - exp(y) sum(dy); sums along dim."""

    __slots__ = ("dim", "log")
    dim: int
    log: bool

    def backward(self, grad: Any) -> tuple:
        return (self.k.softmax_backward(grad, self.saved[0], self.dim, self.log),)


def _softmax(input: Tensor, dim: int, dtype: Any, log: bool) -> Tensor:
    if not isinstance(input, Tensor):
        input = as_tensor(input, op="log_softmax" if log else "softmax")
    if dtype is not None:
        input = input.to(dtype=dtype)
    k = input._k
    try:
        y = k.softmax(input.data, dim, log)
    except REFUSED as error:
        raise renamed("log_softmax" if log else "softmax", error) from None
    return apply(SoftmaxBackward, k, y, (input,), (), True, dim=dim, log=log)


def softmax(input: Tensor, dim: int = -1, dtype: Any = None) -> Tensor:
    """y_i = exp(x_i) / sum_j exp(x_j) along `dim`, stable for inputs of any size.

    input: any shape, float. dtype: converted to it first. A slice of only -inf, or with +inf or NaN,
    gives NaN. IndexError when dim is out of range.

    >>> import gradsmith as gs
    >>> gs.softmax(gs.tensor([0.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    return _softmax(input, dim, dtype, False)


def log_softmax(input: Tensor, dim: int = -1, dtype: Any = None) -> Tensor:
    """y_i = x_i - log(sum_j exp(x_j)) along `dim`, stable for inputs of any size.

    input: any shape, float. dtype: converted to it first. IndexError when dim is out of range.

    >>> import gradsmith as gs
    >>> round(gs.log_softmax(gs.tensor([0.0, 0.0]))[0].item(), 4)
    -0.6931
    """
    return _softmax(input, dim, dtype, True)


def softmin(input: Tensor, dim: int = -1, dtype: Any = None) -> Tensor:
    """`softmax` of -x.

    >>> import gradsmith as gs
    >>> gs.softmin(gs.tensor([0.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    if not isinstance(input, Tensor):
        input = as_tensor(input, op="softmin")
    try:
        return _softmax(-input, dim, dtype, False)
    except REFUSED as error:
        raise renamed("softmin", error) from None


class CrossEntropyBackward(Node):
    """dx = dlogits times the incoming gradient: dlogits was made in the forward pass.

    The first backward gives its own array away; a second one (retain_graph) makes it again.
    """

    __slots__ = ("dlogits", "options")
    dlogits: Any
    options: tuple  # ignore_index, reduction, label_smoothing

    def backward(self, grad: Any) -> tuple:
        x, target, weight = self.saved
        d = self.dlogits
        self.dlogits = None
        if d is None:
            d = self.k.cross_entropy(x, target, weight, *self.options, True)[1]
        if grad.ndim == 0 and recording.known(grad) and grad.item() == 1.0:
            return d, None
        return self.k.scale_rows(d, grad), None


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy of logits: loss = -sum_c q_c log softmax(x)_c, q the targets.

    input: (..., C) logits, classes on the LAST axis (PyTorch: axis 1). target: class indices (...), int32
    or int64, then q_c = weight_t [c = t]; or probabilities (..., C), then q_c = weight_c target_c.
    label_smoothing s: q = (1 - s) q + s / C weight. weight: (C,). ignore_index: rows that count nothing.
    reduction: "none" gives (...); "sum" one value; "mean" the sum divided by the weights of the targets
    that count (for probabilities: by the number of rows), NaN when none does.
    The gradient is made in the same pass as the loss. Targets get no gradient.

    IndexError: a class index outside 0 .. C - 1. ValueError: shapes, reduction or smoothing, the mean over an
    empty batch. TypeError: dtypes.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> round(F.cross_entropy(gs.tensor([[0.0, 0.0]]), gs.tensor([1])).item(), 4)
    0.6931
    """
    if not isinstance(input, Tensor):
        input = as_tensor(input, op="cross_entropy")
    if not isinstance(target, Tensor):
        target = as_tensor(target, op="cross_entropy", name="target")
    try:
        code = _REDUCTIONS.get(reduction)
    except TypeError:  # a list or dict cannot be looked up
        code = None
    if code is None:
        raise ValueError(
            f"cross_entropy: reduction must be 'none', 'mean' or 'sum', got {reduction!r}"
        )
    grad = is_grad_enabled()
    if target._rg and grad:
        raise ValueError(
            "cross_entropy: target requires a gradient, which is not computed. Pass target.detach(), or write "
            "the loss with log_softmax"
        )
    w = None
    if weight is not None:
        if not isinstance(weight, Tensor):
            weight = as_tensor(weight, op="cross_entropy", name="weight")
        if weight._rg and grad:
            raise ValueError(
                "cross_entropy: weight requires a gradient, which is not computed. Pass weight.detach()"
            )
        w = weight.data
    k = input._k
    loss, d = k.cross_entropy(
        input.data, target.data, w, ignore_index, code, label_smoothing, grad and input._rg
    )
    return apply(
        CrossEntropyBackward, k, loss, (input, None), (input, target, w),
        dlogits=d, options=(ignore_index, code, label_smoothing),
    )  # fmt: skip


def _attach() -> None:
    for fn in (softmax, log_softmax):
        Tensor._method(fn.__name__, fn)


_attach()
