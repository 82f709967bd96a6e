"""Max, average and adaptive pooling of channels-last sequences (N, T, C) and images (N, H, W, C)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..core import recording
from ..core.autograd import Node, apply, is_grad_enabled
from ..core.tensor import Tensor, wrap
from ._arguments import kernels, number

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "max_pool1d",
    "max_pool2d",
]


class MaxPoolBackward(Node):
    """dx collects dy from the windows whose maximum it was."""

    __slots__ = ("geometry", "shape")
    shape: tuple
    geometry: tuple

    def backward(self, grad: Any) -> tuple:
        return (self.k.pool_backward(grad, self.saved[0], self.shape, self.geometry, 0.0),)


class AvgPoolBackward(Node):
    """dx collects dy / divisor from the windows that hold it."""

    __slots__ = ("divisor", "geometry", "shape")
    shape: tuple
    geometry: tuple
    divisor: float

    def backward(self, grad: Any) -> tuple:
        return (self.k.pool_backward(grad, None, self.shape, self.geometry, self.divisor),)


def _two(v: Any, op: str, name: str) -> tuple:
    pair = tuple(v) if isinstance(v, (tuple, list)) else (v,)
    if len(pair) in (1, 2):
        if all([isinstance(e, (int, np.integer)) for e in pair]):
            return (int(pair[0]), int(pair[-1]))
        if isinstance(v, (tuple, list)):
            raise TypeError(f"{op}: {name} must be integers, got {v!r}")
    raise ValueError(f"{op}: {name} must be an integer or a pair (height, width), got {v!r}")


@functools.lru_cache(maxsize=512)
def _window2(
    op: str, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: Any, include_pad: Any = 0
) -> tuple:
    k = _two(kernel, op, "kernel_size")
    s = k if stride is None or stride == () else _two(stride, op, "stride")
    p, d = _two(padding, op, "padding"), _two(dilation, op, "dilation")
    return (*k, *s, *p, *d, bool(ceil), bool(include_pad))


def _one(v: Any, op: str, name: str) -> Any:
    if isinstance(v, (tuple, list)):
        if len(v) != 1:
            raise ValueError(f"{op}: {name} must be one integer, got {v!r}")
        v = v[0]
    return int(v) if isinstance(v, np.integer) else v


def _max(x: Tensor, geometry: tuple, dims: int, op: str, indices: bool = False) -> Any:
    k = kernels(op, x)
    record = indices or (x._rg and is_grad_enabled())
    y, index = k.max_pool(x.data, geometry, record, dims)
    out = apply(MaxPoolBackward, k, y, (x,), (index,), shape=x.data.shape, geometry=geometry)
    return (out, wrap(_places(index, x.data.shape, geometry), k)) if indices else out


def _places(index: np.ndarray, shape: tuple, geometry: tuple) -> np.ndarray:
    """Where the maxima stand in their image, row by row, from where they stand in their windows."""
    recording.host_read("max_pool(return_indices=True)", "Call it outside")
    inside = index.astype(np.int64)
    if inside.ndim == 3:
        inside = inside[:, None]
    rows, columns = np.ogrid[: inside.shape[1], : inside.shape[2]]
    if len(geometry) == 2:
        # windows begin at floor(i * H / O); a place within is counted in the widest window
        h, w, (oh, ow) = (shape[-3] if len(shape) == 4 else 1), shape[-2], geometry
        kw = max(-(-(j + 1) * w // ow) - j * w // ow for j in range(ow))
        y = (rows * h // oh)[..., None] + inside // kw
        x = (columns * w // ow)[..., None] + inside % kw
    else:
        _, kw, sh, sw, ph, pw, dh, dw = geometry[:8]
        y = (rows * sh - ph)[..., None] + inside // kw * dh
        x = (columns * sw - pw)[..., None] + inside % kw * dw
    return (y * shape[-2] + x).reshape(index.shape)


def _avg(x: Tensor, geometry: tuple, divisor: float, dims: int, op: str) -> Tensor:
    k = kernels(op, x)
    y = k.avg_pool(x.data, geometry, divisor, dims)
    return apply(
        AvgPoolBackward, k, y, (x,), shape=x.data.shape, geometry=geometry, divisor=divisor
    )


def max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum over windows of a sequence (N, T, C); arguments as in max_pool2d.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.max_pool1d(gs.tensor([[[1.0], [4.0], [2.0], [3.0]]]), 2).tolist()
    [[[4.0], [3.0]]]
    """
    op = "max_pool1d"
    k = _one(kernel_size, op, "kernel_size")
    s = k if stride is None else _one(stride, op, "stride")
    p, d = _one(padding, op, "padding"), _one(dilation, op, "dilation")
    return _max(input, (1, k, 1, s, 0, p, 1, d, ceil_mode, 0), 1, "max_pool1d", return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum over windows of images: y[n, i, j, c] = max over a, b of x[n, i s + a d - p, j s + b d - p, c].

    input: (N, H, W, C). Sizes are integers or pairs (height, width), in pixels; stride defaults to
    kernel_size. The output height is floor((H + 2 p - d (k - 1) - 1) / s) + 1, ceil with ceil_mode (a last
    window that would begin in the right padding is dropped). Padding never wins; the gradient goes to
    the first maximum; NaN is passed on. return_indices: a pair, the second int64 with the place of each maximum
    in its image, row * W + column.
    ValueError: rank other than 4, sizes below 1, padding beyond half the window, window larger than the input.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.max_pool2d(gs.arange(16.0).reshape(1, 4, 4, 1), 2).reshape(4).tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    try:
        geometry = _window2("max_pool2d", kernel_size, stride, padding, dilation, ceil_mode)
    except TypeError:  # a list cannot be looked up
        geometry = _window2.__wrapped__(
            "max_pool2d", kernel_size, stride, padding, dilation, ceil_mode
        )
    return _max(input, geometry, 2, "max_pool2d", return_indices)


def avg_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean over windows of a sequence (N, T, C); arguments as in avg_pool2d.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.avg_pool1d(gs.tensor([[[1.0], [4.0], [2.0], [3.0]]]), 2).tolist()
    [[[2.5], [2.5]]]
    """
    op = "avg_pool1d"
    k = _one(kernel_size, op, "kernel_size")
    s = k if stride is None else _one(stride, op, "stride")
    p = _one(padding, op, "padding")
    return _avg(input, (1, k, 1, s, 0, p, 1, 1, ceil_mode, count_include_pad), 0.0, 1, "avg_pool1d")


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean over windows of images (N, H, W, C): the sum over the window divided by its size.

    Sizes as in max_pool2d. count_include_pad: zeros of the padding count towards the size.
    divisor_override: divide by this instead. ValueError as in max_pool2d, or for a divisor of 0.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.avg_pool2d(gs.arange(16.0).reshape(1, 4, 4, 1), 2).reshape(4).tolist()
    [2.5, 4.5, 10.5, 12.5]
    """
    op = "avg_pool2d"
    try:
        geometry = _window2(op, kernel_size, stride, padding, 1, ceil_mode, count_include_pad)
    except TypeError:  # a list cannot be looked up
        geometry = _window2.__wrapped__(
            op, kernel_size, stride, padding, 1, ceil_mode, count_include_pad
        )
    if divisor_override is None:
        divisor = 0.0
    elif divisor_override == 0:
        raise ValueError(f"{op}: divisor_override must not be 0")
    else:
        divisor = number(op, "divisor_override", divisor_override)
    return _avg(input, geometry, divisor, 2, "avg_pool2d")


def _out_two(x: Tensor, v: Any, op: str) -> tuple:
    if isinstance(v, int):
        return (v, v)
    if isinstance(v, (tuple, list)) and len(v) == 2 and None in v:
        kernels(op, x)
        sizes = x.shape[1:3] if x.ndim == 4 else (1, 1)  # other shapes are an error below
        v = [size if e is None else e for e, size in zip(v, sizes)]
    return _two(v, op, "output_size")


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Mean over output_size windows that divide a sequence (N, T, C) evenly; see adaptive_avg_pool2d.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.adaptive_avg_pool1d(gs.tensor([[[1.0], [4.0], [1.0]]]), 1).tolist()
    [[[2.0]]]
    """
    return _avg(
        input,
        (1, _one(output_size, "adaptive_avg_pool1d", "output_size")),
        0.0,
        1,
        "adaptive_avg_pool1d",
    )


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Mean over windows that divide images (N, H, W, C) evenly into output_size = (height, width).

    Window i of O over H pixels is floor(i H / O) .. ceil((i + 1) H / O). None keeps that axis's size; 1 is the
    global average. ValueError: rank other than 4 or a size below 1.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.adaptive_avg_pool2d(gs.arange(16.0).reshape(1, 4, 4, 1), 1).item()
    7.5
    """
    return _avg(
        input, _out_two(input, output_size, "adaptive_avg_pool2d"), 0.0, 2, "adaptive_avg_pool2d"
    )


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maximum over output_size windows that divide a sequence (N, T, C) evenly; see adaptive_max_pool2d.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.adaptive_max_pool1d(gs.tensor([[[1.0], [4.0], [1.0]]]), 1).tolist()
    [[[4.0]]]
    """
    op = "adaptive_max_pool1d"
    return _max(input, (1, _one(output_size, op, "output_size")), 1, op, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maximum over windows that divide images (N, H, W, C) evenly into output_size = (height, width).

    Windows as in adaptive_avg_pool2d; None keeps that axis's size. The gradient goes to the first maximum; NaN is
    passed on. return_indices: a pair, the second int64 with the place of each maximum in its image, row * W + column.
    ValueError: rank other than 4 or a size below 1.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> y, at = F.adaptive_max_pool2d(gs.arange(16.0).reshape(1, 4, 4, 1), 1, return_indices=True)
    >>> y.item(), at.item()
    (15.0, 15)
    """
    op = "adaptive_max_pool2d"
    return _max(input, _out_two(input, output_size, op), 2, op, return_indices)
