"""Batch, layer, group, instance and RMS normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.autograd import Node, apply
from ..core.tensor import Tensor
from ._arguments import integers, kernels, not_tensors, number

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]


def _array(t: Tensor | None, op: str, name: str) -> Any:
    if t is not None and not isinstance(t, Tensor):
        raise not_tensors(op, None, **{name: t})
    return None if t is None else t.data


class BatchNormBackward(Node):
    """dx = weight * rstd * (dy - mean(dy) - xhat * mean(dy * xhat)); in evaluation weight * rstd * dy."""

    __slots__ = ("relu", "training")
    training: bool
    relu: bool

    def backward(self, grad: Any) -> tuple:
        x, weight, bias, stats, y = self.saved
        needs = self.needs
        dx, dw, db, dres = self.k.channel_norm_backward(
            grad, x, stats, weight, bias, y, self.training, self.relu,
            needs[0], needs[1], needs[2], needs[3] and self.relu,
        )  # fmt: skip
        if needs[3] and not self.relu:
            dres = grad
        return dx, dw, db, dres


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    num_batches_tracked: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Batch normalisation: y = (x - mean) / sqrt(var + eps) * weight + bias, a channel at a time.

    input: (N, C), (N, T, C) or (N, H, W, C), any rank from 2 on; channels are the last axis. weight,
    bias, running_mean, running_var: (C,) or None. training: mean and (biased) variance of the batch are
    used, and running_mean, running_var are updated in place, running = (1 - momentum) * running +
    momentum * batch, with the unbiased variance; otherwise the running values are used.
    momentum None: the plain average over the num_batches_tracked calls so far. residual (of input's
    shape) is added to y and relu clamps the sum at zero, in the same pass over memory.

    ValueError: shapes that do not fit; one value a channel in training.
    Ioffe and Szegedy, Batch Normalization, 2015.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> x = gs.tensor([[1.0], [3.0]])
    >>> F.batch_norm(x, None, None, training=True, eps=0.0).tolist()
    [[-1.0], [1.0]]
    """
    try:
        return input._k.apply_batch_norm(
            BatchNormBackward, input, weight, bias, running_mean, running_var, num_batches_tracked,
            training, momentum, eps, residual, relu,
        )  # fmt: skip
    except (AttributeError, TypeError) as error:
        wrong = not_tensors(
            "batch_norm", error, input=input, running_mean=running_mean, running_var=running_var,
            weight=weight, bias=bias, num_batches_tracked=num_batches_tracked, residual=residual,
        )  # fmt: skip
        if wrong is error:
            number("batch_norm", "eps", eps)
            if momentum is not None:
                number("batch_norm", "momentum", momentum)
        raise wrong from None


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance normalisation: each channel of each sample by its own mean and variance.

    input: (N, ..., C), channels last. weight, bias: (C,) or None. Running statistics are not kept:
    running_mean and running_var are used only with use_input_stats False, as in batch_norm.
    Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.instance_norm(gs.tensor([[[1.0], [3.0]]]), eps=0.0).tolist()
    [[[-1.0], [1.0]]]
    """
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None or running_var is not None:
        raise ValueError(
            "instance_norm: running statistics are not kept; pass running_mean=None, running_var=None"
        )
    k = kernels("instance_norm", input)
    if type(eps) is not float:
        eps = number("instance_norm", "eps", eps)
    y, stats = k.batch_norm(
        input.data, _array(weight, "instance_norm", "weight"),
        _array(bias, "instance_norm", "bias"), None, None, None, True, 0.0, eps,
        None, False, True,
    )  # fmt: skip
    return apply(
        BatchNormBackward, k, y, (input, weight, bias, None),
        (input, weight, None, stats, None), training=True, relu=False,
    )  # fmt: skip


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group normalisation: each sample's channels in num_groups runs, each by its mean and variance.

    input: (N, ..., C), channels last; C must be a multiple of num_groups. weight, bias: (C,) or None.
    ValueError: shapes that do not fit. Wu and He, Group Normalization, 2018.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.group_norm(gs.tensor([[1.0, 3.0, 5.0, 9.0]]), 2, eps=0.0).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """
    k = kernels("group_norm", input)
    w, b = _array(weight, "group_norm", "weight"), _array(bias, "group_norm", "bias")
    y, stats = k.group_norm(input.data, num_groups, w, b, eps)
    return apply(
        BatchNormBackward, k, y, (input, weight, bias, None),
        (input, weight, None, stats, None), training=True, relu=False,
    )  # fmt: skip


class LayerNormBackward(Node):
    """dx = rstd * (dy w - mean(dy w) - xhat * mean(dy w xhat)), each row by itself (RMS: without the first mean)."""

    __slots__ = ("dims", "rms")
    dims: int
    rms: bool

    def backward(self, grad: Any) -> tuple:
        x, weight, stats = self.saved
        return self.k.row_norm_backward(grad, x, stats, weight, self.dims, self.rms, *self.needs)


def _trailing(input: Tensor, normalized_shape: Any, op: str) -> int:
    shape = normalized_shape
    if type(shape) is int:
        shape = (shape,)
    elif type(shape) is not tuple:
        one = isinstance(shape, (int, np.integer))
        shape = (int(shape),) if one else integers(op, "normalized_shape", shape)
    n = len(shape)
    if n == 0 or input.data.shape[-n:] != shape:
        raise ValueError(
            f"{op}: input has shape {input.shape}; its last {n} axes must be normalized_shape = {shape}"
        )
    return n


def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation: y = (x - mean) / sqrt(var + eps) * weight + bias over the trailing axes.

    normalized_shape: those axes, an integer or a tuple; weight and bias have that shape or are None.
    ValueError: shapes that do not fit. Ba, Kiros and Hinton, Layer Normalization, 2016.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.layer_norm(gs.tensor([[1.0, 3.0]]), 2, eps=0.0).tolist()
    [[-1.0, 1.0]]
    """
    k = input._k if isinstance(input, Tensor) else kernels("layer_norm", input)
    shape = input.data.shape
    if shape and shape[-1:] == normalized_shape:
        dims = 1
    else:
        dims = _trailing(input, normalized_shape, "layer_norm")
    try:
        w = None if weight is None else weight.data
        b = None if bias is None else bias.data
        y, stats = k.layer_norm(input.data, dims, w, b, eps, False)
    except (AttributeError, TypeError) as error:
        raise not_tensors("layer_norm", error, weight=weight, bias=bias) from None
    return apply(
        LayerNormBackward, k, y, (input, weight, bias),
        (input, weight, stats), dims=dims, rms=False,
    )  # fmt: skip


def rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Root mean square normalisation: y = x / sqrt(mean(x^2) + eps) * weight over the trailing axes.

    Arguments as in layer_norm; eps None is the smallest step of the dtype at 1 (1.2e-7 in float32).
    Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.rms_norm(gs.tensor([[1.0, -1.0]]), 2, eps=0.0).tolist()
    [[1.0, -1.0]]
    """
    k = kernels("rms_norm", input)
    dims = _trailing(input, normalized_shape, "rms_norm")
    if eps is not None:
        eps = eps if type(eps) is float else number("rms_norm", "eps", eps)
    else:
        eps = 2.0**-23 if input.dtype.itemsize == 4 else 2.0**-52
    y, stats = k.layer_norm(input.data, dims, _array(weight, "rms_norm", "weight"), None, eps, True)
    return apply(
        LayerNormBackward, k, y, (input, weight, None),
        (input, weight, stats), dims=dims, rms=True,
    )  # fmt: skip
