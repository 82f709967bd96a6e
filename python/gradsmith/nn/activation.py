"""Activation layers; the functions stand in `gradsmith.nn.functional`."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np

from ..core.arguments import integer, number
from ..core.autograd import no_grad
from ..core.creation import filled
from ..core.tensor import Parameter, Tensor
from ..ops import activation as ops
from .module import Module

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "SELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "PReLU",
    "RReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
    "Threshold",
]


class _Activation(Module):
    """Stores its arguments as attributes and calls `_fn(x, *arguments)`."""

    _fn: Any
    _args: tuple[str, ...] = ()
    _values: tuple = ()  # reads the arguments

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # attrgetter gives one value, or a tuple of several
        if len(cls._args) < 2:
            cls._values = tuple(map(attrgetter, cls._args))
        else:
            cls._values = (attrgetter(*cls._args),)

    def forward(self, input: Tensor) -> Tensor:
        values = self._values
        if not values:
            return self._fn(input)
        if len(self._args) == 1:
            return self._fn(input, values[0](self))
        return self._fn(input, *values[0](self))

    def extra_repr(self) -> str:
        shown = [(a, getattr(self, a)) for a in self._args]
        return ", ".join(f"{a}={v}" for a, v in shown if a != "inplace" or v)


class Sigmoid(_Activation):
    """y = 1 / (1 + exp(-x)).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Sigmoid()(gs.tensor([0.0])).tolist()
    [0.5]
    """

    _fn = staticmethod(ops.sigmoid)


class Tanh(_Activation):
    """Hyperbolic tangent.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Tanh()(gs.tensor([0.0])).tolist()
    [0.0]
    """

    _fn = staticmethod(ops.tanh)


class LogSigmoid(_Activation):
    """y = log(1 / (1 + exp(-x))).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> round(nn.LogSigmoid()(gs.tensor([0.0])).item(), 4)
    -0.6931
    """

    _fn = staticmethod(ops.logsigmoid)


class Softsign(_Activation):
    """y = x / (1 + |x|).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Softsign()(gs.tensor([1.0])).tolist()
    [0.5]
    """

    _fn = staticmethod(ops.softsign)


class _InPlace(_Activation):
    """An activation without arguments but `inplace`."""

    _args = ("inplace",)

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.inplace = bool(inplace)


class ReLU(_InPlace):
    """y = max(0, x).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.ReLU()(gs.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    _fn = staticmethod(ops.relu)


class ReLU6(_InPlace):
    """y = min(max(0, x), 6).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.ReLU6()(gs.tensor([-1.0, 9.0])).tolist()
    [0.0, 6.0]
    """

    _fn = staticmethod(ops.relu6)


class SELU(_InPlace):
    """Self-normalising ELU: scale 1.0507, alpha 1.6733; wants LeCun normal weights and AlphaDropout.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> round(nn.SELU()(gs.tensor([1.0])).item(), 4)
    1.0507
    """

    _fn = staticmethod(ops.selu)


class Mish(_InPlace):
    """y = x tanh(log(1 + exp(x))).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Mish()(gs.tensor([0.0])).tolist()
    [0.0]
    """

    _fn = staticmethod(ops.mish)


class Hardswish(_InPlace):
    """y = x min(max(x + 3, 0), 6) / 6.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Hardswish()(gs.tensor([4.0])).tolist()
    [4.0]
    """

    _fn = staticmethod(ops.hardswish)


class Hardsigmoid(_InPlace):
    """y = min(max(x + 3, 0), 6) / 6.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Hardsigmoid()(gs.tensor([0.0])).tolist()
    [0.5]
    """

    _fn = staticmethod(ops.hardsigmoid)


class SiLU(_Activation):
    """y = x / (1 + exp(-beta x)), also called Swish.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.SiLU()(gs.tensor([0.0])).tolist()
    [0.0]
    """

    _fn = staticmethod(ops.silu)
    _args = ("inplace", "beta")

    def __init__(self, inplace: bool = False, beta: float = 1.0):
        super().__init__()
        self.inplace = bool(inplace)
        self.beta = beta


class LeakyReLU(_Activation):
    """y = x where x > 0, else negative_slope * x.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.LeakyReLU(0.5)(gs.tensor([-2.0])).tolist()
    [-1.0]
    """

    _fn = staticmethod(ops.leaky_relu)
    _args = ("negative_slope", "inplace")

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False):
        super().__init__()
        self.negative_slope = negative_slope
        self.inplace = bool(inplace)


class RReLU(_Activation):
    """Leaky ReLU with a slope drawn from [lower, upper) for each element in training, its mean otherwise.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.RReLU(0.25, 0.75).eval()(gs.tensor([-2.0])).tolist()
    [-1.0]
    """

    _fn = staticmethod(ops.rrelu)
    _args = ("lower", "upper", "training", "inplace")

    def __init__(self, lower: float = 1.0 / 8, upper: float = 1.0 / 3, inplace: bool = False):
        super().__init__()
        if not number("RReLU", "lower", lower) <= number("RReLU", "upper", upper):
            raise ValueError(f"RReLU: lower {lower} must not exceed upper {upper}")
        self.lower = lower
        self.upper = upper
        self.inplace = bool(inplace)

    def extra_repr(self) -> str:
        return f"lower={self.lower:.4g}, upper={self.upper:.4g}"


class PReLU(Module):
    """y = x where x > 0, else weight * x; weight is learned: (1,) or (C,), C the last axis of the input.

    num_parameters: 1 or the number of channels. init: first value of the slopes. Best without weight decay.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.PReLU()(gs.tensor([-2.0])).tolist()
    [-0.5]
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25, dtype: Any = np.float32):
        super().__init__()
        if integer("PReLU", "num_parameters", num_parameters) < 1:
            raise ValueError(f"PReLU: num_parameters must be at least 1, got {num_parameters}")
        self.num_parameters = int(num_parameters)
        self.init = init
        self.weight = Parameter(filled(self.num_parameters, dtype or np.float32, init))

    def reset_parameters(self) -> None:
        """All slopes to `init`."""
        with no_grad():
            self.weight.copy_(np.full(self.num_parameters, self.init, self.weight.dtype))

    def forward(self, input: Tensor) -> Tensor:
        return ops.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class ELU(_Activation):
    """y = x where x > 0, else alpha (exp(x) - 1).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.ELU()(gs.tensor([2.0])).tolist()
    [2.0]
    """

    _fn = staticmethod(ops.elu)
    _args = ("alpha", "inplace")

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__()
        self.alpha = alpha
        self.inplace = bool(inplace)


class CELU(_Activation):
    """y = max(0, x) + min(0, alpha (exp(x / alpha) - 1)).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.CELU()(gs.tensor([2.0])).tolist()
    [2.0]
    """

    _fn = staticmethod(ops.celu)
    _args = ("alpha", "inplace")

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__()
        if alpha == 0:
            raise ValueError("CELU: alpha must not be 0")
        self.alpha = alpha
        self.inplace = bool(inplace)


class GELU(_Activation):
    """y = x P(X < x), X standard normal; approximate="tanh" for the tanh form.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.GELU()(gs.tensor([0.0])).tolist()
    [0.0]
    """

    _fn = staticmethod(ops.gelu)
    _args = ("approximate",)

    def __init__(self, approximate: str = "none"):
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Softplus(_Activation):
    """y = log(1 + exp(beta x)) / beta; x itself where beta x > threshold.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Softplus()(gs.tensor([30.0])).tolist()
    [30.0]
    """

    _fn = staticmethod(ops.softplus)
    _args = ("beta", "threshold")

    def __init__(self, beta: float = 1.0, threshold: float = 20.0):
        super().__init__()
        if beta == 0:
            raise ValueError("Softplus: beta must not be 0")
        self.beta = beta
        self.threshold = threshold


class Hardtanh(_Activation):
    """y = min(max(x, min_val), max_val).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Hardtanh()(gs.tensor([-3.0, 0.5])).tolist()
    [-1.0, 0.5]
    """

    _fn = staticmethod(ops.hardtanh)
    _args = ("min_val", "max_val", "inplace")

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False):
        super().__init__()
        if not number("Hardtanh", "min_val", min_val) <= number("Hardtanh", "max_val", max_val):
            raise ValueError(f"Hardtanh: min_val {min_val} must not exceed max_val {max_val}")
        self.min_val = min_val
        self.max_val = max_val
        self.inplace = bool(inplace)


class Threshold(_Activation):
    """y = x where x > threshold, else value.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Threshold(1.0, -1.0)(gs.tensor([0.5, 2.0])).tolist()
    [-1.0, 2.0]
    """

    _fn = staticmethod(ops.threshold)
    _args = ("threshold", "value", "inplace")

    def __init__(self, threshold: float, value: float, inplace: bool = False):
        super().__init__()
        self.threshold = threshold
        self.value = value
        self.inplace = bool(inplace)


class GLU(_Activation):
    """Gated linear unit: a * sigmoid(b), a and b the halves of the input along `dim`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.GLU()(gs.tensor([3.0, 0.0])).tolist()
    [1.5]
    """

    _fn = staticmethod(ops.glu)
    _args = ("dim",)

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim
