"""Linear maps."""

from __future__ import annotations

import math

import numpy as np

from ..core.creation import filled
from ..core.tensor import Parameter, Tensor
from ..ops.matmul import bilinear, linear
from . import init
from .module import Module

__all__ = ["Bilinear", "Linear"]


def _positive(op: str, **sizes: int) -> None:
    for name, n in sizes.items():
        if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
            raise TypeError(f"{op}: {name} must be an int, got {type(n).__name__}")
        if n < 1:
            raise ValueError(f"{op}: {name} = {n} must be at least 1")


class Linear(Module):
    """y = x @ weight^T + bias over the last axis: (..., in_features) -> (..., out_features).

    weight: (out_features, in_features), bias: (out_features,), both drawn from U(-b, b) with
    b = 1 / sqrt(in_features) (PyTorch's default); `activation` names the activation that follows and
    chooses the fitting initialiser instead (`nn.init.activation_init_`, zero bias).
    TypeError, ValueError: sizes that are no integers of at least 1, an unknown activation.

    >>> import gradsmith as gs
    >>> gs.nn.Linear(3, 2)(gs.ones(4, 3)).shape
    (4, 2)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: object = np.float32,
        activation: str | None = None,
    ):
        super().__init__()
        _positive("Linear", in_features=in_features, out_features=out_features)
        self.in_features = int(in_features)
        self.out_features = int(out_features)
        self.weight = Parameter(filled((self.out_features, self.in_features), dtype))
        self.register_parameter(
            "bias", Parameter(filled(self.out_features, dtype)) if bias else None
        )
        self.activation = activation
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters again."""
        if self.activation is not None:
            init.activation_init_(self.weight, self.activation)
            if self.bias is not None:
                init.zeros_(self.bias)
            return
        bound = 1.0 / math.sqrt(self.in_features)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Bilinear(Module):
    """y[..., o] = x1[..., i] * weight[o, i, j] * x2[..., j] summed over i, j, + bias[o].

    weight: (out_features, in1_features, in2_features), from U(-b, b) with b = 1 / sqrt(in1_features).
    TypeError, ValueError: sizes that are no integers of at least 1.

    >>> import gradsmith as gs
    >>> gs.nn.Bilinear(3, 2, 5)(gs.ones(4, 3), gs.ones(4, 2)).shape
    (4, 5)
    """

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        dtype: object = np.float32,
    ):
        super().__init__()
        _positive(
            "Bilinear",
            in1_features=in1_features,
            in2_features=in2_features,
            out_features=out_features,
        )
        self.in1_features = int(in1_features)
        self.in2_features = int(in2_features)
        self.out_features = int(out_features)
        shape = (self.out_features, self.in1_features, self.in2_features)
        self.weight = Parameter(filled(shape, dtype))
        self.register_parameter(
            "bias", Parameter(filled(self.out_features, dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters again."""
        bound = 1.0 / math.sqrt(self.in1_features)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return bilinear(input1, input2, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in1_features={self.in1_features}, in2_features={self.in2_features}, "
            f"out_features={self.out_features}, bias={self.bias is not None}"
        )
