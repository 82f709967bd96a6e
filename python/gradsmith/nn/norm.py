"""Normalisation layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.arguments import number
from ..core.autograd import no_grad
from ..core.creation import filled
from ..core.tensor import Parameter, Tensor, resolve_dtype
from ..ops._arguments import not_tensors
from ..ops.norm import (  # `ops.norm` is also a function
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from .module import Module

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "LayerNorm",
    "RMSNorm",
]


def _float(dtype: Any, layer: str) -> np.dtype:
    d = np.dtype(np.float32) if dtype is None else resolve_dtype(dtype, layer)
    if d.kind != "f":
        raise TypeError(f"{layer}: dtype must be float32 or float64, got {d}")
    return d


def _size(n: Any, layer: str, name: str) -> int:
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"{layer}: {name} must be a positive integer, got {n!r}")
    return int(n)


def _shape(shape: Any, layer: str) -> tuple[int, ...]:
    dims = shape if isinstance(shape, (tuple, list)) else (shape,)
    if not dims:
        raise ValueError(f"{layer}: normalized_shape must have at least one axis")
    return tuple(_size(n, layer, "normalized_shape") for n in dims)


class _Affine(Module):
    """weight (ones) and bias (zeros) of shape `shape`, or None."""

    def _make(self, shape: Any, weight: bool, bias: bool, dtype: Any) -> None:
        d = _float(dtype, type(self).__name__)
        self.register_parameter("weight", Parameter(filled(shape, d, 1.0)) if weight else None)
        self.register_parameter("bias", Parameter(filled(shape, d)) if bias else None)

    def reset_parameters(self) -> None:
        """weight to one, bias to zero."""
        with no_grad():
            for p, value in ((self.weight, 1.0), (self.bias, 0.0)):
                if p is not None:
                    p.copy_(np.full(p.shape, value, p.dtype))


class _BatchNorm(_Affine):
    _ranks: tuple[int, ...] = ()
    _layout = ""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        dtype: Any = None,
    ):
        super().__init__()
        name = type(self).__name__
        self.num_features = n = _size(num_features, name, "num_features")
        if momentum is not None and not 0 <= number(name, "momentum", momentum) <= 1:
            raise ValueError(f"{name}: momentum must lie in [0, 1] or be None, got {momentum}")
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self._make((n,), affine, affine, dtype)
        d = _float(dtype, name)
        track = track_running_stats
        self.register_buffer("running_mean", Tensor(filled(n, d)) if track else None)
        self.register_buffer("running_var", Tensor(filled(n, d, 1.0)) if track else None)
        self.register_buffer(
            "num_batches_tracked", Tensor(np.zeros((), np.int64)) if track else None
        )

    def reset_parameters(self) -> None:
        """weight to one, bias to zero, and the running statistics to their start."""
        self.reset_running_stats()
        super().reset_parameters()

    def reset_running_stats(self) -> None:
        """Running mean to zero, variance to one, the count of batches to zero."""
        if self.track_running_stats:
            n = self.num_features
            self.running_mean.copy_(np.zeros(n, self.running_mean.dtype))
            self.running_var.copy_(np.ones(n, self.running_var.dtype))
            self.num_batches_tracked.copy_(np.zeros((), np.int64))

    def forward(self, input: Tensor) -> Tensor:
        try:
            shape = input.data.shape
        except AttributeError:
            raise not_tensors(type(self).__name__, None, input=input) from None
        if len(shape) not in self._ranks or shape[-1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: input has shape {shape}; expected {self._layout} with "
                f"C = {self.num_features} channels in the last axis"
            )
        return batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum,
            self.eps,
            num_batches_tracked=self.num_batches_tracked,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, T, C): y = (x - mean) / sqrt(var + eps) * weight + bias.

    num_features: C. momentum has PyTorch's meaning, running = (1 - momentum) * running + momentum *
    batch, so 0.1 changes slowly; Keras and TensorFlow call 1 - momentum by that name: their 0.99 is
    0.01 here. None: the plain average of all batches. affine: learn weight and bias (C,).
    track_running_stats: keep running_mean, running_var (unbiased) and num_batches_tracked for
    evaluation. In training each channel needs more than one value, else ValueError.
    Ioffe and Szegedy, Batch Normalization, 2015.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.BatchNorm1d(3)(gs.randn(8, 3)).shape
    (8, 3)
    """

    _ranks = (2, 3)
    _layout = "(N, C) or (N, T, C)"


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of images (N, H, W, C): y = (x - mean) / sqrt(var + eps) * weight + bias.

    Arguments, errors and the meaning of momentum (running = (1 - momentum) * running + momentum *
    batch; what Keras calls 0.99 is 0.01 here) as in BatchNorm1d.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.BatchNorm2d(3)(gs.randn(2, 4, 4, 3)).shape
    (2, 4, 4, 3)
    """

    _ranks = (4,)
    _layout = "(N, H, W, C)"


class GroupNorm(_Affine):
    """Group normalisation of (N, ..., C): each sample's channels in num_groups runs.

    weight and bias are (C,) when affine. ValueError when num_channels is not a multiple of num_groups.
    Wu and He, Group Normalization, 2018.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.GroupNorm(2, 6)(gs.randn(2, 4, 4, 6)).shape
    (2, 4, 4, 6)
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        dtype: Any = None,
    ):
        super().__init__()
        self.num_groups = _size(num_groups, "GroupNorm", "num_groups")
        self.num_channels = _size(num_channels, "GroupNorm", "num_channels")
        if num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: num_channels = {num_channels} must be a multiple of num_groups = {num_groups}"
            )
        self.eps = eps
        self.affine = affine
        self._make((num_channels,), affine, affine, dtype)

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor):
            raise not_tensors("GroupNorm", None, input=input)
        if input.data.ndim < 2 or input.data.shape[-1] != self.num_channels:
            raise ValueError(
                f"GroupNorm: input has shape {input.shape}; expected (N, ..., C) with "
                f"C = {self.num_channels} channels in the last axis"
            )
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class _InstanceNorm(_Affine):
    _rank = 0
    _layout = ""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        dtype: Any = None,
    ):
        super().__init__()
        name = type(self).__name__
        if track_running_stats:
            raise ValueError(f"{name}: track_running_stats is not supported; pass False")
        self.num_features = _size(num_features, name, "num_features")
        self.eps = eps
        self.affine = affine
        self._make((num_features,), affine, affine, dtype)

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor):
            raise not_tensors(type(self).__name__, None, input=input)
        if input.data.ndim != self._rank or input.data.shape[-1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: input has shape {input.shape}; expected {self._layout} with "
                f"C = {self.num_features} channels in the last axis"
            )
        return instance_norm(input, None, None, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


class InstanceNorm1d(_InstanceNorm):
    """Each channel of each sample of (N, T, C) by its own mean and variance.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.InstanceNorm1d(3)(gs.randn(2, 5, 3)).shape
    (2, 5, 3)
    """

    _rank = 3
    _layout = "(N, T, C)"


class InstanceNorm2d(_InstanceNorm):
    """Each channel of each sample of (N, H, W, C) by its own mean and variance.

    Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.InstanceNorm2d(3)(gs.randn(2, 4, 4, 3)).shape
    (2, 4, 4, 3)
    """

    _rank = 4
    _layout = "(N, H, W, C)"


class LayerNorm(_Affine):
    """Layer normalisation over the trailing axes: y = (x - mean) / sqrt(var + eps) * weight + bias.

    normalized_shape: an integer or a tuple of those axes, the shape of weight (ones) and bias (zeros).
    elementwise_affine False: neither; bias False: no bias. Ba, Kiros and Hinton, 2016.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.LayerNorm(8)(gs.randn(2, 5, 8)).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: Any = None,
    ):
        super().__init__()
        self.normalized_shape = _shape(normalized_shape, "LayerNorm")
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self._make(self.normalized_shape, elementwise_affine, elementwise_affine and bias, dtype)

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )


class RMSNorm(_Affine):
    """Root mean square normalisation over the trailing axes: y = x / sqrt(mean(x^2) + eps) * weight.

    Arguments as in LayerNorm; eps None is the smallest step of the dtype at 1. Zhang and Sennrich, 2019.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.RMSNorm(8)(gs.randn(2, 5, 8)).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        normalized_shape: Any,
        eps: float | None = None,
        elementwise_affine: bool = True,
        dtype: Any = None,
    ):
        super().__init__()
        self.normalized_shape = _shape(normalized_shape, "RMSNorm")
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self._make(self.normalized_shape, elementwise_affine, False, dtype)
        del self.bias

    def reset_parameters(self) -> None:
        """weight to one."""
        if self.weight is not None:
            with no_grad():
                self.weight.copy_(np.ones(self.weight.shape, self.weight.dtype))

    def forward(self, input: Tensor) -> Tensor:
        return rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )
