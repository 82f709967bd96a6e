"""Convolution and transposed convolution in one and two dimensions, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.autograd import Node
from ..core.tensor import Tensor
from ._arguments import not_tensors

__all__ = ["conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"]


class ConvBackward(Node):
    """dx = transposed convolution of dy; dw[k,i,j,c] = sum_p dy[p,k] x[p*s - pad + (i,j)*d, c]; db = sum_p dy."""

    __slots__ = ("window",)
    window: tuple  # stride, padding, dilation, groups

    def backward(self, grad: Any) -> tuple:
        x, w = self.saved[:2]
        return self.k.conv_backward(w.ndim - 2, x, grad, w, *self.window, *self.needs)


class ConvReluBackward(ConvBackward):
    """As ConvBackward, of dy * (y > 0)."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        k = self.k
        return super().backward(k.activation_backward(k.ACTIVATIONS["relu"], grad, self.saved[2]))


class ConvTransposeBackward(Node):
    """dx = convolution of dy; dw as of that convolution with x and dy exchanged; db = sum of dy."""

    __slots__ = ("window",)
    window: tuple  # stride, padding, output_padding, dilation, groups

    def backward(self, grad: Any) -> tuple:
        x, w = self.saved
        needs = self.needs
        k = self.k
        nd = w.ndim - 2
        dx = dw = db = None
        if needs[0]:
            dx = k.conv_transpose_backward_data(nd, grad, w, x.shape, *self.window)
        if needs[1] or needs[2]:
            dw, db = k.conv_transpose_backward_weight(
                nd, x, grad, w.shape, *self.window, needs[1], needs[2]
            )
        return dx, dw, db


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[Any] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    relu: bool = False,
) -> Tensor:
    """Convolution over sequences: y[n,t,k] = b[k] + sum_ic x[n, t*stride - padding + i*dilation, c] w[k,i,c].

    input: (N, T, in) or (T, in), channels last. weight: (out, kernel, in/groups); PyTorch's
    (out, in/groups, kernel) is this with `permute(0, 2, 1)`. bias: (out,) or None. padding: zeros put
    before and after: an int, a pair ((before, after),), 'valid' or 'same' (stride 1). groups: channels fall
    into groups that are convolved apart; groups = in = out is depthwise. relu clamps y at zero in the
    same pass. Output: (N, L, out) with L = (T + padding - dilation * (kernel - 1) - 1) // stride + 1.

    ValueError: shapes that do not fit, a kernel longer than the padded input. TypeError: dtypes.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> x = gs.tensor([[[1.0], [2.0], [3.0]]])
    >>> F.conv1d(x, gs.ones(1, 2, 1)).tolist()
    [[[3.0], [5.0]]]
    """
    try:
        return input._k.apply_conv(
            ConvReluBackward if relu else ConvBackward, 1, input, weight, bias, stride, padding,
            dilation, groups, relu,
        )  # fmt: skip
    except (AttributeError, TypeError) as error:
        raise not_tensors("conv1d", error, input=input, weight=weight, bias=bias) from None


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[Any] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    relu: bool = False,
) -> Tensor:
    """Convolution over images: y[n,p,q,k] = b[k] + sum_ijc x[n, p*s - pad + i*d, q*s - pad + j*d, c] w[k,i,j,c].

    input: (N, H, W, in) or (H, W, in), channels last. weight: (out, kh, kw, in/groups); PyTorch's
    (out, in/groups, kh, kw) is this with `permute(0, 2, 3, 1)`. bias: (out,) or None. stride, dilation:
    an int or (h, w). padding: zeros around: an int, (h, w), ((top, bottom), (left, right)), 'valid' or
    'same' (stride 1). groups: channels fall into groups that are convolved apart; groups = in = out is
    depthwise. relu clamps y at zero in the same pass. Output: (N, P, Q, out) with
    P = (H + padding - dilation * (kh - 1) - 1) // stride + 1 and Q alike. Float32 convolutions of 3x3 and
    stride 1 take Winograd's form where it is faster; `gs.set_conv_precision` limits its rounding.

    ValueError: shapes that do not fit, a kernel larger than the padded input. TypeError: dtypes.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> x, w = gs.ones(1, 3, 3, 1), gs.ones(1, 3, 3, 1)
    >>> F.conv2d(x, w, padding=1).numpy()[0, :, :, 0].tolist()
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    try:
        return input._k.apply_conv(
            ConvReluBackward if relu else ConvBackward, 2, input, weight, bias, stride, padding,
            dilation, groups, relu,
        )  # fmt: skip
    except (AttributeError, TypeError) as error:
        raise not_tensors("conv2d", error, input=input, weight=weight, bias=bias) from None


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[Any] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Transposed convolution over sequences: y[n, t*stride - padding + i*dilation, c] += x[n,t,k] w[k,i,c].

    The gradient of `conv1d` with respect to its input, as a layer. input: (N, T, in) or (T, in).
    weight: (in, kernel, out/groups), channels last; PyTorch's (in, out/groups, kernel) is this with
    `permute(0, 2, 1)`. bias: (out,) or None. Output: (N, L, out) with
    L = (T - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.

    ValueError: shapes that do not fit, an output_padding that is not below stride or dilation.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.conv_transpose1d(gs.ones(1, 2, 1), gs.ones(1, 2, 1), stride=2).tolist()
    [[[1.0], [1.0], [1.0], [1.0]]]
    """
    try:
        return input._k.apply_conv_transpose(
            ConvTransposeBackward, 1, input, weight, bias, stride, padding, output_padding, dilation,
            groups,
        )  # fmt: skip
    except (AttributeError, TypeError) as error:
        op = "conv_transpose1d"
        raise not_tensors(op, error, input=input, weight=weight, bias=bias) from None


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[Any] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Transposed convolution over images: y[n, p*s - pad + i*d, q*s - pad + j*d, c] += x[n,p,q,k] w[k,i,j,c].

    The gradient of `conv2d` with respect to its input, as a layer. input: (N, H, W, in) or (H, W, in).
    weight: (in, kh, kw, out/groups), channels last; PyTorch's (in, out/groups, kh, kw) is this with
    `permute(0, 2, 3, 1)`. bias: (out,) or None. Output: (N, P, Q, out) with
    P = (H - 1) * stride - 2 * padding + dilation * (kh - 1) + output_padding + 1 and Q alike.

    ValueError: shapes that do not fit, an output_padding that is not below stride or dilation.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.conv_transpose2d(gs.ones(1, 2, 2, 3), gs.ones(3, 2, 2, 5), stride=2).shape
    (1, 4, 4, 5)
    """
    try:
        return input._k.apply_conv_transpose(
            ConvTransposeBackward, 2, input, weight, bias, stride, padding, output_padding, dilation,
            groups,
        )  # fmt: skip
    except (AttributeError, TypeError) as error:
        op = "conv_transpose2d"
        raise not_tensors(op, error, input=input, weight=weight, bias=bias) from None
