"""Activation functions. The gradient is taken from the output where it is a function of it."""

from __future__ import annotations

from typing import Any

from .. import _cpu
from ..core.autograd import Node, apply, apply_, is_grad_enabled
from ..core.random import next_counter
from ..core.tensor import Tensor, as_tensor
from ._arguments import REFUSED, integer, not_tensors, number, renamed

__all__ = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "logsigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "relu_",
    "rrelu",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "tanh",
    "threshold",
]

_CODES: dict[str, int] = _cpu.ACTIVATIONS  # the kernels' numbers of the functions
_NAMES = {code: name for name, code in _CODES.items()}
_MASKED = frozenset(_CODES[n] for n in ("relu", "leaky_relu", "hardtanh", "threshold"))
_GELU = _CODES["gelu"]
_LEAKY, _PRODUCT = _CODES["leaky_relu"], _CODES["product"]
_LARGE = 65536  # elements from which a second saved array costs less than it saves
# Elements from which computing GELU's derivative again costs less than saving it. With AVX-512, where function
# and derivative each come from a table of their own, that is always so.
_HUGE = 0 if _cpu.isa()[:6] == "avx512" or _cpu.isa() == "amx" else 2 << 20
_RELU = _CODES["relu"]
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


class ActivationBackward(Node):
    """dx = dy * f'(.), from the saved input or output."""

    __slots__ = ("args", "op")
    op: int
    args: tuple

    @property
    def name(self) -> str:
        return _NAMES[self.op].title().replace("_", "") + "Backward"

    def backward(self, grad: Any) -> tuple:
        return (self.k.activation_backward(self.op, grad, self.saved[0], *self.args),)


class MaskBackward(ActivationBackward):
    """dx = dy where the saved bit is set, else slope * dy."""

    __slots__ = ("slope",)
    slope: float

    def backward(self, grad: Any) -> tuple:
        return (self.k.activation_mask_backward(grad, self.saved[0], self.slope),)


class SlopeBackward(ActivationBackward):
    """dx = dy * the saved derivative."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        return (self.k.activation_backward(_PRODUCT, grad, self.saved[0]),)


def _save_less(x: Tensor, op: int, args: tuple) -> Tensor:
    """Large float32 arrays that will be differentiated: forward saves a bit an element where the derivative
    has two values, and the derivative itself where that costs as much as the function."""
    k = x._k
    if op in _MASKED:
        y, bits = k.activation_mask(op, x.data, *args)
        slope = args[0] if op == _LEAKY else 0.0
        return apply(MaskBackward, k, y, (x,), (bits,), op=op, slope=slope)
    y, d = k.activation_slope(op, x.data, *args)
    return apply(SlopeBackward, k, y, (x,), (d,), op=op)


def _large(x: Tensor) -> bool:
    data = x.data
    return data.size >= _LARGE and data.dtype.itemsize == 4 and x._rg and is_grad_enabled()


def _from_output(
    x: Tensor, name: str, args: tuple = (), inplace: bool = False, called: str | None = None
) -> Tensor:
    """An op whose gradient needs its output only. called: what errors say where it is not `name`."""
    if not isinstance(x, Tensor):
        x = as_tensor(x, op=called or name)
    op = _CODES[name]
    k = x._k
    if inplace:
        try:
            return apply_(
                ActivationBackward, x, lambda: k.activation_(op, x.data, *args), (x,),
                save_output=True, name=called or name, op=op, args=args,
            )  # fmt: skip
        except REFUSED as error:
            raise renamed(called or name, error) from None
    if op in _MASKED and _large(x):
        return _save_less(x, op, args)
    try:
        y = k.activation(op, x.data, *args) if args else k.activation(op, x.data)
    except REFUSED as error:
        raise renamed(called or name, error) from None
    return apply(ActivationBackward, k, y, (x,), (), True, op=op, args=args)


def _from_input(
    x: Tensor, name: str, args: tuple = (), inplace: bool = False, called: str | None = None
) -> Tensor:
    """An op whose gradient needs its input: in place only where no gradient is recorded."""
    if not isinstance(x, Tensor):
        x = as_tensor(x, op=called or name)
    op = _CODES[name]
    k = x._k
    if inplace:
        name = called or name
        if x._rg and is_grad_enabled():
            raise RuntimeError(
                f"{name}: inplace=True would overwrite the input that the gradient needs. "
                "Use inplace=False, or run under no_grad()"
            )
        return apply_(
            ActivationBackward, x, lambda: k.activation_(op, x.data, *args), (x,), name=name
        )
    if (op in _MASKED or (op == _GELU and x.data.size < _HUGE)) and _large(x):
        return _save_less(x, op, args)
    try:
        y = k.activation(op, x.data, *args) if args else k.activation(op, x.data)
    except REFUSED as error:
        raise renamed(called or name, error) from None
    return apply(ActivationBackward, k, y, (x,), (x,), op=op, args=args)


def sigmoid(input: Tensor) -> Tensor:
    """y = 1 / (1 + exp(-x)), elementwise, accurate for every x.

    >>> import gradsmith as gs
    >>> gs.sigmoid(gs.tensor([0.0])).tolist()
    [0.5]
    """
    return _from_output(input, "sigmoid")


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent, elementwise.

    >>> import gradsmith as gs
    >>> gs.tanh(gs.tensor([0.0, 20.0])).tolist()
    [0.0, 1.0]
    """
    return _from_output(input, "tanh")


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """y = max(0, x); NaN stays NaN, the gradient at 0 is 0.

    inplace: overwrites the input (an error where autograd forbids it).

    >>> import gradsmith as gs
    >>> gs.relu(gs.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    if inplace or not isinstance(input, Tensor):
        return _from_output(input, "relu", (), inplace)
    k, data = input._k, input.data
    if data.size >= _LARGE and _large(input):
        return _save_less(input, _RELU, ())
    return apply(
        ActivationBackward, k, k.activation(_RELU, data), (input,), (), True, op=_RELU, args=()
    )


def relu_(input: Tensor) -> Tensor:
    """`relu` in place.

    >>> import gradsmith as gs
    >>> gs.relu_(gs.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    return _from_output(input, "relu", (), True, "relu_")


def hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    """y = min(max(x, min_val), max_val); the gradient is 0 at and beyond the bounds.

    ValueError when min_val > max_val.

    >>> import gradsmith as gs
    >>> gs.hardtanh(gs.tensor([-3.0, 0.5, 3.0])).tolist()
    [-1.0, 0.5, 1.0]
    """
    min_val, max_val = (
        number("hardtanh", "min_val", min_val),
        number("hardtanh", "max_val", max_val),
    )
    if not min_val <= max_val:
        raise ValueError(f"hardtanh: min_val {min_val} must not exceed max_val {max_val}")
    return _from_output(input, "hardtanh", (min_val, max_val), inplace)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """y = min(max(0, x), 6).

    >>> import gradsmith as gs
    >>> gs.relu6(gs.tensor([-1.0, 2.0, 9.0])).tolist()
    [0.0, 2.0, 6.0]
    """
    return _from_output(input, "hardtanh", (0.0, 6.0), inplace, "relu6")


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """y = x where x > 0, else negative_slope * x. Maas, Hannun and Ng, 2013.

    >>> import gradsmith as gs
    >>> gs.leaky_relu(gs.tensor([-2.0, 2.0]), 0.5).tolist()
    [-1.0, 2.0]
    """
    if type(negative_slope) is not float:
        negative_slope = number("leaky_relu", "negative_slope", negative_slope)
    if negative_slope >= 0:
        return _from_output(input, "leaky_relu", (negative_slope,), inplace)
    return _from_input(input, "leaky_relu", (negative_slope,), inplace)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """y = x where x > 0, else alpha (exp(x) - 1). Clevert, Unterthiner and Hochreiter, 2016.

    >>> import gradsmith as gs
    >>> gs.elu(gs.tensor([0.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    if type(alpha) is not float:
        alpha = number("elu", "alpha", alpha)
    if alpha >= 0:
        return _from_output(input, "elu", (alpha, 1.0, 1.0), inplace)
    return _from_input(input, "elu_input", (alpha, 1.0, 1.0), inplace, "elu")


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """y = scale * (x where x > 0, else alpha (exp(x) - 1)), scale 1.0507, alpha 1.6733.

    Keeps mean 0 and variance 1 with LeCun normal weights and alpha dropout.
    Klambauer, Unterthiner, Mayr and Hochreiter, 2017.

    >>> import gradsmith as gs
    >>> round(gs.selu(gs.tensor([1.0])).item(), 4)
    1.0507
    """
    return _from_output(
        input, "elu", (_SELU_ALPHA * _SELU_SCALE, _SELU_SCALE, 1.0), inplace, "selu"
    )


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """y = max(0, x) + min(0, alpha (exp(x / alpha) - 1)). Barron, 2017.

    ValueError when alpha is 0.

    >>> import gradsmith as gs
    >>> gs.celu(gs.tensor([0.0, 2.0]), 0.5).tolist()
    [0.0, 2.0]
    """
    if type(alpha) is not float:
        alpha = number("celu", "alpha", alpha)
    if alpha == 0:
        raise ValueError("celu: alpha must not be 0")
    return _from_output(input, "elu", (alpha, 1.0, 1.0 / alpha), inplace, "celu")


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """y = x P(X < x), X standard normal.

    approximate="tanh": y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Hendrycks and Gimpel, 2016.
    ValueError for another word.

    >>> import gradsmith as gs
    >>> round(gs.gelu(gs.tensor([1.0])).item(), 4)
    0.8413
    """
    if approximate == "none":
        return _from_input(input, "gelu")
    if approximate == "tanh":
        return _from_input(input, "gelu_tanh", called="gelu")
    raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")


def silu(input: Tensor, inplace: bool = False, beta: float = 1.0) -> Tensor:
    """y = x / (1 + exp(-beta x)): SiLU, also called Swish. Ramachandran, Zoph and Le, 2017.

    >>> import gradsmith as gs
    >>> round(gs.silu(gs.tensor([1.0])).item(), 4)
    0.7311
    """
    if type(beta) is not float:
        beta = number("silu", "beta", beta)
    return _from_input(input, "silu", (beta,), inplace)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """y = log(1 + exp(beta x)) / beta; x itself where beta x > threshold.

    ValueError when beta is 0.

    >>> import gradsmith as gs
    >>> round(gs.softplus(gs.tensor([0.0])).item(), 4)
    0.6931
    """
    beta, threshold = number("softplus", "beta", beta), number("softplus", "threshold", threshold)
    if beta == 0:
        raise ValueError("softplus: beta must not be 0")
    return _from_input(input, "softplus", (beta, threshold))


def logsigmoid(input: Tensor) -> Tensor:
    """y = log(1 / (1 + exp(-x))).

    >>> import gradsmith as gs
    >>> round(gs.logsigmoid(gs.tensor([0.0])).item(), 4)
    -0.6931
    """
    return _from_input(input, "logsigmoid")


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """y = x tanh(log(1 + exp(x))). Misra, 2019.

    >>> import gradsmith as gs
    >>> round(gs.mish(gs.tensor([1.0])).item(), 4)
    0.8651
    """
    return _from_input(input, "mish", (), inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """y = x min(max(x + 3, 0), 6) / 6. Howard et al., MobileNetV3, 2019.

    >>> import gradsmith as gs
    >>> gs.hardswish(gs.tensor([-4.0, 0.0, 4.0])).tolist()
    [0.0, 0.0, 4.0]
    """
    return _from_input(input, "hardswish", (), inplace)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """y = min(max(x + 3, 0), 6) / 6.

    >>> import gradsmith as gs
    >>> gs.hardsigmoid(gs.tensor([-4.0, 0.0, 4.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return _from_input(input, "hardsigmoid", (), inplace)


def softsign(input: Tensor) -> Tensor:
    """y = x / (1 + |x|).

    >>> import gradsmith as gs
    >>> gs.softsign(gs.tensor([1.0, -3.0])).tolist()
    [0.5, -0.75]
    """
    return _from_input(input, "softsign")


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """y = x where x > threshold, else value.

    >>> import gradsmith as gs
    >>> gs.threshold(gs.tensor([0.5, 2.0]), 1.0, -1.0).tolist()
    [-1.0, 2.0]
    """
    args = number("threshold", "threshold", threshold), number("threshold", "value", value)
    return _from_input(input, "threshold", args, inplace)


_SIGMOID = _CODES["sigmoid"]


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """Gated linear unit: y = a * sigmoid(b), a and b the halves of the input along `dim`.

    ValueError when that axis is odd. Dauphin et al., 2017.

    >>> import gradsmith as gs
    >>> gs.glu(gs.tensor([3.0, 0.0])).tolist()
    [1.5]
    """
    if not isinstance(input, Tensor):
        input = as_tensor(input, op="glu")
    data = input.data
    ndim = data.ndim
    if type(dim) is not int:
        dim = integer("glu", "dim", dim)
    if not -ndim <= dim < ndim:
        raise IndexError(f"glu: dim {dim} is out of range for an input of shape {input.shape}")
    n = data.shape[dim]
    if n % 2:
        raise ValueError(f"glu: axis {dim} of the input {input.shape} must have an even size")
    k = input._k
    at, half = dim % ndim, n // 2
    if at == ndim - 1:
        first, second = data[..., :half], data[..., half:]
    else:
        before = (slice(None),) * at
        low, high = (*before, slice(0, half)), (*before, slice(half, n))
        first, second = data[low], data[high]
    try:
        s = k.activation(_SIGMOID, second)
    except REFUSED as error:
        raise renamed("glu", error) from None
    return apply(GluBackward, k, k.mul(first, s), (input,), (input, s), dim=at)


class GluBackward(Node):
    """da = dy s, db = dy a s (1 - s), with s = sigmoid(b)."""

    __slots__ = ("dim",)
    dim: int

    def backward(self, grad: Any) -> tuple:
        x, s = self.saved
        k = self.k
        da = k.mul(grad, s)
        first = (*(slice(None),) * self.dim, slice(0, s.shape[self.dim]))
        db = k.mul(k.mul_one_minus(da, s), x[first])
        return (k.cat((da, db), self.dim),)


class RReLUBackward(Node):
    """dx = dy where s > 0, else slope * dy; the slopes are drawn again."""

    __slots__ = ("args",)
    args: tuple

    def backward(self, grad: Any) -> tuple:
        return (self.k.rrelu_backward(grad, self.saved[0], *self.args),)


def rrelu(
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """y = x where x > 0, else a x with a drawn uniformly from [lower, upper) for each element.

    Not training: a = (lower + upper) / 2. The slopes are a function of the seed and the count of draws
    (`manual_seed`), not stored. ValueError when lower > upper. Xu, Wang, Chen and Li, 2015.

    >>> import gradsmith as gs
    >>> gs.rrelu(gs.tensor([-2.0, 2.0]), 0.25, 0.75).tolist()
    [-1.0, 2.0]
    """
    lower, upper = number("rrelu", "lower", lower), number("rrelu", "upper", upper)
    if not lower <= upper:
        raise ValueError(f"rrelu: lower {lower} must not exceed upper {upper}")
    x = input if isinstance(input, Tensor) else as_tensor(input, op="rrelu")
    if not training:
        try:
            return leaky_relu(x, (lower + upper) / 2, inplace)
        except REFUSED as error:
            raise renamed("rrelu", error) from None
    k = x._k
    args = (lower, upper, *next_counter())
    if inplace:
        if lower < 0 and x._rg and is_grad_enabled():
            raise RuntimeError(
                "rrelu: inplace=True with lower < 0 would overwrite the signs that the gradient needs. "
                "Use inplace=False"
            )
        return apply_(
            RReLUBackward, x, lambda: k.copy_(x.data, k.rrelu(x.data, *args)), (x,),
            save_output=True, name="rrelu", args=args,
        )  # fmt: skip
    y = k.rrelu(x.data, *args)
    if lower >= 0:
        return apply(RReLUBackward, k, y, (x,), save_output=True, args=args)
    return apply(RReLUBackward, k, y, (x,), (x,), args=args)


class PReLUBackward(Node):
    """dx = dy where x > 0, else weight * dy; dweight = sum of x * dy where x <= 0, by channel."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        x, w = self.saved
        return self.k.prelu_backward(grad, x, w, self.needs[0], self.needs[1])


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """y = x where x > 0, else weight * x.

    weight: one value, or (C,) with C the last axis of the input (channels last; PyTorch: axis 1).
    ValueError for another shape. He, Zhang, Ren and Sun, 2015.

    >>> import gradsmith as gs
    >>> gs.prelu(gs.tensor([[-2.0, -2.0]]), gs.tensor([0.25, 0.5])).tolist()
    [[-0.5, -1.0]]
    """
    if not isinstance(input, Tensor) or not isinstance(weight, Tensor):
        raise not_tensors("prelu", None, input=input, weight=weight)
    k = input._k
    return apply(
        PReLUBackward, k, k.prelu(input.data, weight.data), (input, weight), (input, weight)
    )


def _attach() -> None:
    for fn in (sigmoid, tanh, relu, relu_, prelu):
        Tensor._method(fn.__name__, fn)
    Tensor._method("sigmoid_", lambda self: _from_output(self, "sigmoid", (), True))
    Tensor._method("tanh_", lambda self: _from_output(self, "tanh", (), True))


_attach()
