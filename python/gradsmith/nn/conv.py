"""Convolution layers, channels last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.creation import filled
from ..core.tensor import Parameter, Tensor, resolve_dtype
from ..ops.conv import conv1d, conv2d, conv_transpose1d, conv_transpose2d
from ..ops.joining import pad
from . import init
from .module import Module

__all__ = ["Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d"]


def _tuple(value: Any, n: int, layer: str, name: str, low: int) -> tuple[int, ...]:
    items = tuple(value) if isinstance(value, (tuple, list)) else (value,) * n
    if len(items) != n or not all(isinstance(v, (int, np.integer)) and v >= low for v in items):
        raise ValueError(
            f"{layer}: {name} must be an integer or {n} integers, each {low} or more, got {value!r}"
        )
    return tuple(int(v) for v in items)


class _Conv(Module):
    _nd = 2
    _transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        padding_mode: str,
        dtype: Any,
        activation: str | None,
    ):
        super().__init__()
        layer, n = type(self).__name__, self._nd
        for name, v in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("groups", groups),
        ):
            if not isinstance(v, (int, np.integer)) or v < 1:
                raise ValueError(f"{layer}: {name} must be a positive integer, got {v!r}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{layer}: in_channels={in_channels} and out_channels={out_channels} must both be divisible "
                f"by groups={groups}"
            )
        modes = ("zeros",) if self._transposed else ("zeros", "reflect", "replicate", "circular")
        if padding_mode not in modes:
            raise ValueError(
                f"{layer}: padding_mode must be {' or '.join(map(repr, modes))}, got {padding_mode!r}"
            )
        self.in_channels = int(in_channels)
        self.out_channels = int(out_channels)
        self.kernel_size = _tuple(kernel_size, n, layer, "kernel_size", 1)
        self.stride = _tuple(stride, n, layer, "stride", 1)
        self.dilation = _tuple(dilation, n, layer, "dilation", 1)
        self.groups = int(groups)
        self.padding_mode = padding_mode
        if isinstance(padding, str):
            if padding not in ("same", "valid") or self._transposed:
                raise ValueError(
                    f"{layer}: padding must be a number{'' if self._transposed else chr(44) + ' same or valid'}"
                    f", got {padding!r}"
                )
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError(f"{layer}: padding='same' needs stride 1, got stride={stride!r}")
            self.padding: Any = padding
        elif isinstance(padding, (tuple, list)) and any(
            isinstance(v, (tuple, list)) for v in padding
        ):
            if len(padding) != n:
                raise ValueError(
                    f"{layer}: padding must have {n} pairs (before, after), got {padding!r}"
                )
            self.padding = tuple(_tuple(v, 2, layer, "padding", 0) for v in padding)
        else:
            self.padding = _tuple(padding, n, layer, "padding", 0)
        d = np.dtype(np.float32) if dtype is None else resolve_dtype(dtype, layer)
        if d.kind != "f":
            raise TypeError(f"{layer}: dtype must be float32 or float64, got {d}")
        first, last = (
            (self.in_channels, self.out_channels)
            if self._transposed
            else (self.out_channels, self.in_channels)
        )
        self.weight = Parameter(filled((first, *self.kernel_size, last // self.groups), d))
        self.register_parameter("bias", Parameter(filled(out_channels, d)) if bias else None)
        self.activation = activation
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """weight and bias to U(-b, b), b = 1 / sqrt(fan_in): PyTorch's default (kaiming_uniform, a = sqrt 5).

        With `activation`, the weight as fits it (`init.activation_init_`) and no bias.
        """
        if self.activation is not None:
            fans = None
            if self._transposed:
                # Each output gathers what the stride and the groups leave of a kernel.
                area = math.prod(self.kernel_size)
                inputs = self.in_channels // self.groups
                fans = (inputs * area / math.prod(self.stride), self.out_channels * area)
            init.activation_init_(self.weight, self.activation, fans=fans)
            if self.bias is not None:
                init.zeros_(self.bias)
            return
        # fan_in counts the last axis and the kernel, also where the layer is transposed, as PyTorch does
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in = math.prod(self.weight.shape[1:])
            bound = 1 / math.sqrt(fan_in)
            init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        s = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding not in ((0,) * self._nd, "valid"):
            s += f", padding={self.padding!r}"
        if self.dilation != (1,) * self._nd:
            s += f", dilation={self.dilation}"
        if self.groups != 1:
            s += f", groups={self.groups}"
        if self.bias is None:
            s += ", bias=False"
        if self.padding_mode != "zeros":
            s += f", padding_mode={self.padding_mode}"
        return s


class _Plain(_Conv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[Any] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        dtype: Any = None,
        activation: str | None = None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, dtype, activation,
        )  # fmt: skip

    def _padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """The input with borders that are not zeros, and the padding that is left to the kernel."""
        layer, n, shape = type(self).__name__, self._nd, input.data.shape
        first = len(shape) - n - 1  # axis of the sizes: 1 after a batch, 0 without
        if first not in (0, 1):
            raise ValueError(
                f"{layer}: input has shape {shape}; expected {n + 2} axes, batch first (or {n + 1} without), "
                "channels last"
            )
        borders = [0, 0]  # of the channels
        for i in reversed(range(n)):
            v = self.padding if isinstance(self.padding, str) else self.padding[i]
            if v == "same":
                total = self.dilation[i] * (self.kernel_size[i] - 1)
                v = (total // 2, total - total // 2)
            elif v == "valid":
                v = 0
            before, after = v if isinstance(v, tuple) else (v, v)
            size = shape[first + i]
            most = {"reflect": size - 1, "circular": size}.get(self.padding_mode)
            if most is not None and max(before, after) > most:
                raise ValueError(
                    f"{layer}: padding {(before, after)} of axis {first + i} of an input of shape {shape} is "
                    f"more than padding_mode={self.padding_mode!r} has to take from, which is {most}"
                )
            borders += [before, after]
        return pad(input, borders, self.padding_mode), 0


class Conv1d(_Plain):
    """Convolution over sequences (N, T, in_channels) -> (N, L, out_channels); see `F.conv1d`.

    L = (T + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1. weight: (out_channels,
    kernel_size, in_channels/groups), bias: (out_channels,), both U(-b, b) with b = 1 / sqrt(in_channels /
    groups * kernel_size). padding: an int, 'same' or 'valid'. padding_mode: what the borders hold: 'zeros',
    'reflect', 'replicate' or 'circular'. activation: as in Conv2d.

    ValueError: arguments out of range, an input that does not fit.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Conv1d(4, 8, 3, padding="same")(gs.ones(2, 10, 4)).shape
    (2, 10, 8)
    """

    _nd = 1

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._padded(input)
        return conv1d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class Conv2d(_Plain):
    """Convolution over images (N, H, W, in_channels) -> (N, P, Q, out_channels); see `F.conv2d`.

    P = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1. weight: (out_channels, kh, kw,
    in_channels/groups), bias: (out_channels,), both U(-b, b) with b = 1 / sqrt(in_channels / groups * kh *
    kw). padding: an int, (h, w), ((top, bottom), (left, right)), 'same' or 'valid'. padding_mode: what the
    borders hold: 'zeros', 'reflect', 'replicate' or 'circular'. activation: the name of the activation that follows
    chooses the fitting initialiser (`nn.init.activation_init_`, zero bias).

    ValueError: arguments out of range, an input that does not fit.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Conv2d(3, 8, 3, stride=2, padding=1)(gs.ones(2, 32, 32, 3)).shape
    (2, 16, 16, 8)
    """

    _nd = 2

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._padded(input)
        return conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class _Transposed(_Conv):
    _transposed = True
    _op: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[Any] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        dtype: Any = None,
        activation: str | None = None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, dtype, activation,
        )  # fmt: skip
        layer = type(self).__name__
        self.output_padding = _tuple(output_padding, self._nd, layer, "output_padding", 0)

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        extra = self.output_padding
        if output_size is not None and isinstance(input, Tensor) and input.ndim > self._nd:
            extra = self._extra(input, output_size)  # what is no image is refused by the op
        return self._op(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups,
            self.dilation,
        )  # fmt: skip

    def _extra(self, input: Tensor, output_size: Any) -> tuple[int, ...]:
        """output_padding that gives output_size (the spatial sizes)."""
        n, layer = self._nd, type(self).__name__
        size = _tuple(output_size, n, layer, "output_size", 1)
        pads = [v if isinstance(v, tuple) else (v, v) for v in self.padding]
        extra = []
        for i in range(n):
            least = (
                (input.shape[i - n - 1] - 1) * self.stride[i]
                - sum(pads[i])
                + self.dilation[i] * (self.kernel_size[i] - 1)
                + 1
            )
            most = least + max(self.stride[i], self.dilation[i]) - 1
            if not least <= size[i] <= most:
                raise ValueError(
                    f"{layer}: output_size {size[i]} along axis {i} cannot be reached; it must lie in "
                    f"[{least}, {most}] for an input of shape {input.shape}"
                )
            extra.append(size[i] - least)
        return tuple(extra)

    def extra_repr(self) -> str:
        s = super().extra_repr()
        if any(self.output_padding):
            s += f", output_padding={self.output_padding}"
        return s


class ConvTranspose1d(_Transposed):
    """Transposed convolution over sequences (N, T, in) -> (N, L, out); see `F.conv_transpose1d`.

    L = (T - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1. weight:
    (in_channels, kernel_size, out_channels/groups), bias: (out_channels,), initialised as PyTorch does.
    `layer(x, output_size=L)` picks the output_padding. activation: as in Conv2d.

    ValueError: arguments out of range, an input that does not fit.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.ConvTranspose1d(4, 8, 2, stride=2)(gs.ones(2, 10, 4)).shape
    (2, 20, 8)
    """

    _nd = 1
    _op = staticmethod(conv_transpose1d)


class ConvTranspose2d(_Transposed):
    """Transposed convolution over images (N, H, W, in) -> (N, P, Q, out); see `F.conv_transpose2d`.

    P = (H - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1. weight:
    (in_channels, kh, kw, out_channels/groups), bias: (out_channels,), initialised as PyTorch does.
    `layer(x, output_size=(P, Q))` picks the output_padding. activation: as in Conv2d.

    ValueError: arguments out of range, an input that does not fit.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1, output_padding=1)(gs.ones(2, 5, 5, 4)).shape
    (2, 10, 10, 8)
    """

    _nd = 2
    _op = staticmethod(conv_transpose2d)
