"""Pooling layers."""

from __future__ import annotations

from typing import Any

from ..core.tensor import Tensor
from ..ops import pool as ops
from .module import Module

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "MaxPool1d",
    "MaxPool2d",
]


class _MaxPool(Module):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    """Maximum over windows of a sequence (N, T, C); see functional.max_pool1d.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.MaxPool1d(2)(gs.zeros(1, 6, 3)).shape
    (1, 3, 3)
    """

    def forward(self, input: Tensor) -> Any:
        return ops.max_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
            self.return_indices,
        )  # fmt: skip


class MaxPool2d(_MaxPool):
    """Maximum over windows of images (N, H, W, C); see functional.max_pool2d.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.MaxPool2d(3, stride=2, padding=1)(gs.zeros(1, 8, 8, 4)).shape
    (1, 4, 4, 4)
    """

    def forward(self, input: Tensor) -> Any:
        return ops.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
            self.return_indices,
        )  # fmt: skip


class AvgPool1d(Module):
    """Mean over windows of a sequence (N, T, C); see functional.avg_pool1d.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.AvgPool1d(2)(gs.zeros(1, 6, 3)).shape
    (1, 3, 3)
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        return ops.avg_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(AvgPool1d):
    """Mean over windows of images (N, H, W, C); see functional.avg_pool2d.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.AvgPool2d(2)(gs.zeros(1, 8, 8, 4)).shape
    (1, 4, 4, 4)
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ):
        super().__init__(kernel_size, stride, padding, ceil_mode, count_include_pad)
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        return ops.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class _Adaptive(Module):
    def __init__(self, output_size: Any):
        super().__init__()
        self.output_size = output_size

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_Adaptive):
    """Mean over output_size even windows of a sequence (N, T, C).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.AdaptiveAvgPool1d(2)(gs.zeros(1, 7, 3)).shape
    (1, 2, 3)
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(_Adaptive):
    """Mean over output_size (height, width) even windows of images (N, H, W, C); 1: the global average.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.AdaptiveAvgPool2d(1)(gs.zeros(1, 7, 7, 3)).shape
    (1, 1, 1, 3)
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.adaptive_avg_pool2d(input, self.output_size)


class _AdaptiveMax(_Adaptive):
    def __init__(self, output_size: Any, return_indices: bool = False):
        super().__init__(output_size)
        self.return_indices = return_indices


class AdaptiveMaxPool1d(_AdaptiveMax):
    """Maximum over output_size even windows of a sequence (N, T, C); see functional.adaptive_max_pool1d.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.AdaptiveMaxPool1d(2)(gs.zeros(1, 7, 3)).shape
    (1, 2, 3)
    """

    def forward(self, input: Tensor) -> Any:
        return ops.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(_AdaptiveMax):
    """Maximum over output_size (height, width) even windows of images (N, H, W, C); see functional.adaptive_max_pool2d.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.AdaptiveMaxPool2d((2, 2))(gs.zeros(1, 7, 7, 3)).shape
    (1, 2, 2, 3)
    """

    def forward(self, input: Tensor) -> Any:
        return ops.adaptive_max_pool2d(input, self.output_size, self.return_indices)
