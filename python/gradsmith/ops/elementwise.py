"""Arithmetic, comparisons and elementary functions, element by element with NumPy's broadcasting.

Shapes broadcast from the last axis; a Python number adopts the dtype of the tensor; two tensors must
have one dtype (TypeError otherwise: convert with .astype). Gradients of broadcast operands are summed
back to their shape.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import recording
from ..core.arguments import integer, number
from ..core.autograd import Node, apply, apply_, apply_pair, is_grad_enabled, written
from ..core.tensor import Tensor, as_tensor, wrap
from ._arguments import REFUSED, renamed

__all__ = [
    "abs", "add", "addcdiv", "addcmul", "allclose", "ceil", "clamp", "clip", "cos", "div", "divide", "eq", "exp",
    "expm1", "floor", "floor_divide", "ge", "greater", "greater_equal", "gt", "isclose", "isfinite", "isinf",
    "isnan", "le", "lerp", "less", "less_equal", "log", "log1p", "log2", "log10", "logical_and", "logical_not",
    "logical_or", "logical_xor", "lt", "masked_fill", "maximum", "minimum", "mul", "multiply", "ne", "neg",
    "negative", "not_equal", "pow", "reciprocal", "remainder", "round", "rsqrt", "sign", "sin", "sqrt", "square",
    "sub", "subtract", "tan", "true_divide", "trunc", "where",
]  # fmt: skip

_NUMBERS = (int, float, np.number, np.bool_)


def _operand(x: Any, op: str, like: Any = None) -> Any:
    """A Tensor, or a number as it is; arrays and lists become Tensors."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, _NUMBERS):
        return x
    if isinstance(x, np.ndarray):
        return as_tensor(x, op=op)
    if isinstance(x, (list, tuple)):
        return as_tensor(x, like if isinstance(like, Tensor) else None, op)
    raise TypeError(f"{op}: expected a Tensor or a number, got {type(x).__name__}")


def _input(x: Any, op: str) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.ndarray):
        return as_tensor(x, op=op)
    raise TypeError(f"{op}: expected a Tensor, got {type(x).__name__}")


# ---- two operands
class _Binary(Node):
    """saved: what the gradient needs of a and b (Tensors or numbers; None where it is not needed)."""

    # Shapes of the operands where they were broadcast; None: both have the shape of the result.
    a_shape: tuple | None = None
    b_shape: tuple | None = None

    def to_a(self, grad: Any) -> Any:
        """Sums a gradient of the result's shape to that of a."""
        return grad if self.a_shape is None else self.k.sum_to(grad, self.a_shape)

    def to_b(self, grad: Any) -> Any:
        return grad if self.b_shape is None else self.k.sum_to(grad, self.b_shape)


class AddBackward(_Binary):
    """da = dy, db = dy, summed to the operands' shapes."""

    def backward(self, grad: Any) -> tuple:
        n = self.needs
        return (self.to_a(grad) if n[0] else None, self.to_b(grad) if n[1] else None)


class SubBackward(_Binary):
    """da = dy, db = -dy."""

    def backward(self, grad: Any) -> tuple:
        n = self.needs
        k = self.k
        return (
            self.to_a(grad) if n[0] else None,
            k.neg(self.to_b(grad)) if n[1] else None,
        )


class MulBackward(_Binary):
    """da = dy b, db = dy a."""

    def backward(self, grad: Any) -> tuple:
        a, b = self.saved
        n = self.needs
        k = self.k
        return (
            self.to_a(k.mul(grad, b)) if n[0] else None,
            self.to_b(k.mul(grad, a)) if n[1] else None,
        )


class DivBackward(_Binary):
    """y = a / b: da = dy / b, db = -dy y / b."""

    def backward(self, grad: Any) -> tuple:
        a, b = self.saved
        n = self.needs
        k = self.k
        return (
            self.to_a(k.div(grad, b)) if n[0] else None,
            self.to_b(k.div_backward_b(grad, k.div(a, b), b)) if n[1] else None,
        )


class PowBackward(_Binary):
    """y = a^b: da = dy b a^(b - 1), db = dy y ln a."""

    def backward(self, grad: Any) -> tuple:
        a, b = self.saved
        n = self.needs
        k = self.k
        da = db = None
        if n[0]:
            if isinstance(b, np.ndarray):
                da = k.pow_backward_base(grad, a, b)
            elif b == 2:
                da = k.mul_scaled(grad, a, 2.0)
            elif b == 0:
                da = k.mul(grad, 0.0)
            else:
                da = k.pow_scalar_backward(grad, a, float(b))
            da = self.to_a(da)
        if n[1]:
            db = self.to_b(k.pow_backward_exp(grad, a, k.pow(a, b)))
        return da, db


class MaximumBackward(_Binary):
    """The gradient goes to the larger operand; each gets half where they are equal."""

    def backward(self, grad: Any) -> tuple:
        a, b = self.saved
        n = self.needs
        k = self.k
        return (
            self.to_a(k.maximum_backward(grad, a, b)) if n[0] else None,
            self.to_b(k.maximum_backward(grad, b, a)) if n[1] else None,
        )


class MinimumBackward(_Binary):
    """The gradient goes to the smaller operand; each gets half where they are equal."""

    def backward(self, grad: Any) -> tuple:
        a, b = self.saved
        n = self.needs
        k = self.k
        return (
            self.to_a(k.minimum_backward(grad, a, b)) if n[0] else None,
            self.to_b(k.minimum_backward(grad, b, a)) if n[1] else None,
        )


class RemainderBackward(_Binary):
    """y = a - floor(a / b) b: da = dy, db = -dy floor(a / b)."""

    def backward(self, grad: Any) -> tuple:
        a, b = self.saved
        n = self.needs
        k = self.k
        return (
            self.to_a(grad) if n[0] else None,
            self.to_b(k.remainder_backward_b(grad, a, b)) if n[1] else None,
        )


class FloorDivideBackward(_Binary):
    """Piecewise constant: zeros."""

    def backward(self, grad: Any) -> tuple:
        zero = self.k.full(grad.shape, 0.0, grad.dtype)
        return self.to_a(zero), self.to_b(zero)


class PlusNumberBackward(Node):
    """y = x + c: dx = dy."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        return (grad,)


class TimesNumberBackward(Node):
    """y = c x: dx = c dy."""

    __slots__ = ("number",)
    number: float

    def backward(self, grad: Any) -> tuple:
        return (self.k.mul(grad, self.number),)


def _general(
    name: str, node: type | None, keep: str, a: Any, b: Any, kernel: str | None = None
) -> Tensor:
    """The op on any operands. keep: which of "ab" the gradients need: "" none, "x" the other one, "ab" both."""
    a = _operand(a, name, b)
    b = _operand(b, name, a)
    ta = a if isinstance(a, Tensor) else None
    tb = b if isinstance(b, Tensor) else None
    if ta is not None:
        k = ta._k
    elif tb is not None:
        k = tb._k
    else:
        raise TypeError(f"{name}: at least one operand must be a Tensor")
    out = getattr(k, kernel or name)(a if ta is None else ta.data, b if tb is None else tb.data)
    if node is None or not is_grad_enabled():
        return wrap(out, k)
    need_a = ta is not None and ta._rg
    need_b = tb is not None and tb._rg
    if not (need_a or need_b):
        return wrap(out, k)
    if keep == "":
        saved: tuple = ()
    elif keep == "x":
        saved = (a if need_b else None, b if need_a else None)
    else:
        saved = (a, b)
    shape = out.shape
    if (ta is None or ta.data.shape == shape) and (tb is None or tb.data.shape == shape):
        return apply(node, k, out, (ta, tb), saved)
    return apply(
        node,
        k,
        out,
        (ta, tb),
        saved,
        a_shape=() if ta is None else ta.data.shape,
        b_shape=() if tb is None else tb.data.shape,
    )


def add(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """input + alpha * other, broadcast.

    Raises ValueError when the shapes do not broadcast, TypeError when the dtypes differ.

    >>> import gradsmith as gs
    >>> gs.add(gs.tensor([1.0, 2.0]), 10).tolist()
    [11.0, 12.0]
    """
    if alpha != 1:
        if not isinstance(alpha, (Tensor, int, float)):
            number("add", "alpha", alpha)
        return add(input, mul(other, alpha))
    if isinstance(input, Tensor):
        k = input._k
        if isinstance(other, Tensor):
            return apply_pair(AddBackward, k, k.add(input.data, other.data), input, other, 0)
        if isinstance(other, (float, int)):
            return apply(PlusNumberBackward, k, k.add(input.data, other), (input,))
    return _general("add", AddBackward, "", input, other)


def sub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """input - alpha * other, broadcast.

    Errors as in `add`.

    >>> import gradsmith as gs
    >>> gs.sub(gs.tensor([1.0, 2.0]), 1).tolist()
    [0.0, 1.0]
    """
    if alpha != 1:
        if not isinstance(alpha, (Tensor, int, float)):
            number("sub", "alpha", alpha)
        return sub(input, mul(other, alpha))
    if isinstance(input, Tensor):
        k = input._k
        if isinstance(other, Tensor):
            return apply_pair(SubBackward, k, k.sub(input.data, other.data), input, other, 0)
        if isinstance(other, (float, int)):
            return apply(PlusNumberBackward, k, k.sub(input.data, other), (input,))
    return _general("sub", SubBackward, "", input, other)


def mul(input: Any, other: Any) -> Tensor:
    """input * other, broadcast.

    Errors as in `add`.

    >>> import gradsmith as gs
    >>> gs.mul(gs.tensor([1.0, 2.0]), 3).tolist()
    [3.0, 6.0]
    """
    if isinstance(input, Tensor):
        k = input._k
        if isinstance(other, Tensor):
            return apply_pair(MulBackward, k, k.mul(input.data, other.data), input, other, 1)
        if isinstance(other, (float, int)):
            return apply(TimesNumberBackward, k, k.mul(input.data, other), (input,), number=other)
    return _general("mul", MulBackward, "x", input, other)


def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """input / other of float tensors, broadcast; rounding_mode None, "floor" or "trunc".

    Errors as in `add`; TypeError for integers, ValueError for another rounding_mode.

    >>> import gradsmith as gs
    >>> gs.div(gs.tensor([1.0, 2.0]), 4).tolist()
    [0.25, 0.5]
    """
    if rounding_mode is None:
        if isinstance(input, Tensor) and isinstance(other, Tensor):
            k = input._k
            return apply_pair(DivBackward, k, k.div(input.data, other.data), input, other, 3)
        need_b = isinstance(other, Tensor) and other._rg
        return _general("div", DivBackward, "ab" if need_b else "x", input, other)
    if rounding_mode == "floor":
        return floor_divide(input, other)
    if rounding_mode == "trunc":
        return trunc(div(input, other))
    raise ValueError(f"div: rounding_mode must be None, 'floor' or 'trunc', got {rounding_mode!r}")


def maximum(input: Any, other: Any) -> Tensor:
    """The larger of input and other, broadcast; NaN where either is NaN.

    Where both are equal each operand gets half of the gradient.
    Errors as in `add`.

    >>> import gradsmith as gs
    >>> gs.maximum(gs.tensor([1.0, 5.0]), 3).tolist()
    [3.0, 5.0]
    """
    return _general("maximum", MaximumBackward, "ab", input, other)


def minimum(input: Any, other: Any) -> Tensor:
    """The smaller of input and other, broadcast; NaN where either is NaN.

    Errors as in `add`.

    >>> import gradsmith as gs
    >>> gs.minimum(gs.tensor([1.0, 5.0]), 3).tolist()
    [1.0, 3.0]
    """
    return _general("minimum", MinimumBackward, "ab", input, other)


def _check_zero(op: str, input: Any, other: Any) -> None:
    integer = getattr(input, "dtype", np.dtype(np.int64)).kind in "iu"
    if integer and isinstance(other, (int, np.integer)) and other == 0:
        raise ZeroDivisionError(f"{op}: division of an integer tensor by zero")


def remainder(input: Any, other: Any) -> Tensor:
    """input - floor(input / other) * other: the remainder with the sign of other. Integers by 0 give 0.

    Errors as in `add`.

    >>> import gradsmith as gs
    >>> gs.remainder(gs.tensor([-1.0, 5.0]), 3).tolist()
    [2.0, 2.0]
    """
    _check_zero("remainder", input, other)
    return _general("remainder", RemainderBackward, "ab", input, other)


def floor_divide(input: Any, other: Any) -> Tensor:
    """floor(input / other). Integer tensors divided by an element 0 give 0 there.

    Errors as in `add`.

    >>> import gradsmith as gs
    >>> gs.floor_divide(gs.tensor([-1.0, 5.0]), 3).tolist()
    [-1.0, 1.0]
    """
    _check_zero("floor_divide", input, other)
    return _general("floor_divide", FloorDivideBackward, "", input, other)


def pow(input: Any, exponent: Any) -> Tensor:
    """input ** exponent, broadcast; NaN for a negative base with a fractional exponent.

    Errors as in `add`; TypeError for integers.

    >>> import gradsmith as gs
    >>> gs.pow(gs.tensor([2.0, 3.0]), 2).tolist()
    [4.0, 9.0]
    """
    if isinstance(input, Tensor) and isinstance(exponent, _NUMBERS):
        if exponent == 2:
            return square(input)
        if input.data.dtype.kind == "f":
            if exponent == 3:
                return _cube(input)
            if exponent == 1:
                return mul(input, 1.0)
            if exponent == 0.5:
                return sqrt(input)
            if exponent == -1:
                return reciprocal(input)
        elif isinstance(exponent, (int, np.integer)) and 0 <= exponent < 64:
            result = as_tensor(np.ones_like(input.data))
            for _ in range(int(exponent)):
                result = mul(result, input)
            return result
    return _general("pow", PowBackward, "ab", input, exponent)


# ---- one operand
class NegBackward(Node):
    """dx = -dy."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        return (self.k.neg(grad),)


class _OfSaved(Node):
    """dx = kernel(dy, saved), saved being x or y."""

    __slots__ = ()

    kernel = ""

    def backward(self, grad: Any) -> tuple:
        return (getattr(self.k, self.kernel)(grad, self.saved[0]),)


class ZeroBackward(Node):
    """Piecewise constant: zeros."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        return (self.k.full(grad.shape, 0.0, grad.dtype),)


class SquareBackward(Node):
    """dx = 2 dy x."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        return (self.k.mul_scaled(grad, self.saved[0], 2.0),)


class CubeBackward(Node):
    """dx = 3 dy x^2."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        k = self.k
        return (k.mul_scaled(grad, k.square(self.saved[0]), 3.0),)


def _cube(x: Tensor) -> Tensor:
    k = x._k
    return apply(CubeBackward, k, k.cube(x.data), (x,), (x,))


def _rule(name: str, kernel: str, doc: str) -> type:
    return type(name, (_OfSaved,), {"kernel": kernel, "__doc__": doc, "__slots__": ()})


AbsBackward = _rule("AbsBackward", "abs_backward", "dx = dy sign(x).")
ExpBackward = _rule("ExpBackward", "mul", "dx = dy y.")
Expm1Backward = _rule("Expm1Backward", "expm1_backward", "dx = dy (y + 1).")
LogBackward = _rule("LogBackward", "div", "dx = dy / x.")
Log1pBackward = _rule("Log1pBackward", "log1p_backward", "dx = dy / (1 + x).")
SqrtBackward = _rule("SqrtBackward", "sqrt_backward", "dx = dy / (2 y).")
RsqrtBackward = _rule("RsqrtBackward", "rsqrt_backward", "dx = -dy y^3 / 2.")
ReciprocalBackward = _rule("ReciprocalBackward", "reciprocal_backward", "dx = -dy y^2.")
SinBackward = _rule("SinBackward", "sin_backward", "dx = dy cos(x).")
CosBackward = _rule("CosBackward", "cos_backward", "dx = -dy sin(x).")
TanBackward = _rule("TanBackward", "tan_backward", "dx = dy (1 + y^2).")


class Log2Backward(Node):
    """dx = dy / (x ln 2)."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        return (self.k.div(self.k.mul(grad, 1.0 / math.log(2.0)), self.saved[0]),)


_UNARY: dict[str, tuple[type, str]] = {}


def _unary(name: str, node: type, save: str, doc: str) -> Callable[[Any], Tensor]:
    """save: "x", "y" or "" for what the gradient needs."""
    keep_x, keep_y = save == "x", save == "y"
    _UNARY[name] = (node, save)

    def fn(input: Any) -> Tensor:
        x = input if isinstance(input, Tensor) else _input(input, name)
        k = x._k
        out = getattr(k, name)(x.data)
        if x._rg and is_grad_enabled():
            return apply(node, k, out, (x,), (x,) if keep_x else (), keep_y)
        return wrap(out, k)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = doc
    return fn


def _doc(formula: str, name: str, x: str, y: str, note: str = "") -> str:
    return f"""{formula} of each element.

    input: any shape, float32 or float64{note}.

    >>> import gradsmith as gs
    >>> gs.{name}(gs.tensor({x})).tolist()
    {y}
    """


neg = _unary(
    "neg", NegBackward, "", _doc("-x", "neg", "[1.0]", "[-1.0]", ", or integers (which wrap)")
)
abs = _unary("abs", AbsBackward, "x", _doc("|x|", "abs", "[-1.0]", "[1.0]", ", or integers"))
sign = _unary(
    "sign",
    ZeroBackward,
    "",
    _doc("-1, 0 or 1, the sign", "sign", "[-3.0]", "[-1.0]", ", or integers"),
)
square = _unary(
    "square", SquareBackward, "x", _doc("x * x", "square", "[3.0]", "[9.0]", ", or integers")
)
exp = _unary("exp", ExpBackward, "y", _doc("exp(x)", "exp", "[0.0]", "[1.0]"))
expm1 = _unary(
    "expm1", Expm1Backward, "y", _doc("exp(x) - 1, exact near 0,", "expm1", "[0.0]", "[0.0]")
)
log = _unary("log", LogBackward, "x", _doc("The natural logarithm", "log", "[1.0]", "[0.0]"))
log1p = _unary(
    "log1p", Log1pBackward, "x", _doc("log(1 + x), exact near 0,", "log1p", "[0.0]", "[0.0]")
)
log2 = _unary("log2", Log2Backward, "x", _doc("The logarithm to base 2", "log2", "[8.0]", "[3.0]"))
sqrt = _unary("sqrt", SqrtBackward, "y", _doc("The square root", "sqrt", "[4.0]", "[2.0]"))
rsqrt = _unary("rsqrt", RsqrtBackward, "y", _doc("1 / sqrt(x)", "rsqrt", "[4.0]", "[0.5]"))
reciprocal = _unary(
    "reciprocal", ReciprocalBackward, "y", _doc("1 / x", "reciprocal", "[4.0]", "[0.25]")
)
sin = _unary("sin", SinBackward, "x", _doc("The sine (radians)", "sin", "[0.0]", "[0.0]"))
cos = _unary("cos", CosBackward, "x", _doc("The cosine (radians)", "cos", "[0.0]", "[1.0]"))
tan = _unary("tan", TanBackward, "y", _doc("The tangent (radians)", "tan", "[0.0]", "[0.0]"))
floor = _unary("floor", ZeroBackward, "", _doc("The integer below", "floor", "[-1.5]", "[-2.0]"))
ceil = _unary("ceil", ZeroBackward, "", _doc("The integer above", "ceil", "[1.5]", "[2.0]"))
_nearest = _unary("round", ZeroBackward, "", "")


def round(input: Any, *, decimals: int = 0) -> Tensor:
    """The nearest integer, halves to even, of each element, or the nearest multiple of 10^-decimals.

    input: any shape, float32 or float64.
    TypeError when decimals is no integer.

    >>> import gradsmith as gs
    >>> gs.round(gs.tensor([2.5])).tolist()
    [2.0]
    """
    if decimals == 0:
        return _nearest(input)
    decimals = integer("round", "decimals", decimals)
    scale = 10.0 ** builtins.abs(decimals)
    if decimals > 0:
        return div(_nearest(mul(input, scale)), scale)
    return mul(_nearest(div(input, scale)), scale)


trunc = _unary("trunc", ZeroBackward, "", _doc("The integer part", "trunc", "[-1.5]", "[-1.0]"))


def log10(input: Any) -> Tensor:
    """The logarithm to base 10 of each element.

    >>> import gradsmith as gs
    >>> gs.log10(gs.tensor([1.0])).tolist()
    [0.0]
    """
    try:
        return mul(log(input), 1.0 / math.log(10.0))
    except REFUSED as error:
        raise renamed("log10", error) from None


class ClampBackward(Node):
    """dx = dy where min <= x <= max, else 0."""

    __slots__ = ("high", "low")
    low: Any
    high: Any

    def backward(self, grad: Any) -> tuple:
        return (self.k.clamp_backward(grad, self.saved[0], self.low, self.high),)


class ClampToBackward(Node):
    """Bounds that are Tensors: dy goes to x where low <= x <= high, to the bound that y is elsewhere.

    At a tie x has it all, as with bounds that are numbers; where low > high, high does.
    """

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        x, low, high = self.saved
        k = self.k
        below = None if low is None else k.lt(x, low)
        above = None if high is None else k.gt(x, high)
        if below is not None and above is not None:
            crossed = k.gt(low, high)
            above = k.logical_or(above, crossed)
            below = k.logical_and(below, k.logical_not(crossed))
        dx, dlow, dhigh = grad, None, None
        if below is not None:
            dx, dlow = k.where(below, 0.0, dx), k.where(below, grad, 0.0)
        if above is not None:
            dx, dhigh = k.where(above, 0.0, dx), k.where(above, grad, 0.0)
        return tuple(
            k.sum_to(d, of.shape) if need else None
            for need, d, of in zip(self.needs, (dx, dlow, dhigh), self.saved, strict=True)
        )


def clamp(input: Any, min: Any = None, max: Any = None) -> Tensor:
    """Each element limited to min <= y <= max; NaN stays. Bounds: numbers, Tensors or None.

    Raises ValueError when both bounds are None.

    >>> import gradsmith as gs
    >>> gs.clamp(gs.tensor([-1.0, 0.5, 2.0]), 0, 1).tolist()
    [0.0, 0.5, 1.0]
    """
    x = _input(input, "clamp")
    k = x._k
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        low = None if min is None else _operand(min, "clamp", x)
        high = None if max is None else _operand(max, "clamp", x)
        bounds = [b.data if isinstance(b, Tensor) else b for b in (low, high)]
        out = x.data
        try:
            out = out if low is None else k.maximum(out, bounds[0])
            out = out if high is None else k.minimum(out, bounds[1])
        except REFUSED as error:
            raise renamed("clamp", error) from None
        tensors = (x, *[b if isinstance(b, Tensor) else None for b in (low, high)])
        return apply(ClampToBackward, k, out, tensors, (x, low, high))
    return apply(ClampBackward, k, k.clamp(x.data, min, max), (x,), (x,), low=min, high=max)


# ---- three operands
class WhereBackward(Node):
    """da = dy where cond, db = dy where not cond."""

    __slots__ = ("a_shape", "b_shape")
    a_shape: tuple
    b_shape: tuple

    def backward(self, grad: Any) -> tuple:
        (c,) = self.saved
        n = self.needs
        k = self.k
        return (
            None,
            k.sum_to(k.where(c, grad, 0.0), self.a_shape) if n[1] else None,
            k.sum_to(k.where(c, 0.0, grad), self.b_shape) if n[2] else None,
        )


def where(condition: Any, input: Any, other: Any) -> Tensor:
    """input where condition is true, else other; all three broadcast. condition: bool.

    TypeError unless condition is bool, ValueError when the shapes do not broadcast.

    >>> import gradsmith as gs
    >>> x = gs.tensor([-1.0, 2.0])
    >>> gs.where(x > 0, x, 0.0).tolist()
    [0.0, 2.0]
    """
    c = _input(condition, "where")
    a = _operand(input, "where", other)
    b = _operand(other, "where", a)
    ta = a if isinstance(a, Tensor) else None
    tb = b if isinstance(b, Tensor) else None
    out = c._k.where(c.data, a if ta is None else ta.data, b if tb is None else tb.data)
    return apply(
        WhereBackward,
        c._k,
        out,
        (None, ta, tb),
        (c,),
        a_shape=() if ta is None else ta.data.shape,
        b_shape=() if tb is None else tb.data.shape,
    )


def masked_fill(input: Tensor, mask: Any, value: Any) -> Tensor:
    """input with `value` where mask is true; mask broadcasts to the shape of input.

    TypeError unless mask is bool, ValueError when it does not broadcast to that shape.

    >>> import gradsmith as gs
    >>> x = gs.tensor([1.0, 2.0])
    >>> gs.masked_fill(x, x > 1, 0.0).tolist()
    [1.0, 0.0]
    """
    m = _input(mask, "masked_fill")
    try:
        out = where(m, value, input)
        fits = out.data.shape == input.data.shape
    except (AttributeError, TypeError, ValueError) as error:
        _input(input, "masked_fill"), _operand(value, "masked_fill")
        if isinstance(error, AttributeError):
            raise
        raise renamed("masked_fill", error) from None
    if not fits:
        raise ValueError(
            f"masked_fill: mask of shape {m.shape} does not broadcast to the input's shape {input.shape}"
        )
    return out


class LerpBackward(Node):
    """y = a + w (b - a): da = dy (1 - w), db = dy w, dw = dy (b - a)."""

    __slots__ = ("shapes",)
    shapes: tuple

    def backward(self, grad: Any) -> tuple:
        a, b, w = self.saved
        n = self.needs
        k = self.k
        return (
            k.sum_to(k.mul_one_minus(grad, w), self.shapes[0]) if n[0] else None,
            k.sum_to(k.mul(grad, w), self.shapes[1]) if n[1] else None,
            k.sum_to(k.mul_diff(grad, b, a), self.shapes[2]) if n[2] else None,
        )


def lerp(input: Any, end: Any, weight: Any) -> Tensor:
    """input + weight * (end - input), broadcast; exact at weight 0 and 1.

    >>> import gradsmith as gs
    >>> gs.lerp(gs.tensor([0.0]), gs.tensor([10.0]), 0.25).tolist()
    [2.5]
    """
    a, b = _input(input, "lerp"), _input(end, "lerp")
    w = _operand(weight, "lerp", a)
    k = a._k
    if isinstance(w, Tensor):
        out, tw = k.lerp(a.data, b.data, w.data), w
    else:
        try:
            out, tw = k.lerp_scalar(a.data, b.data, float(w)), None
        except REFUSED as error:
            raise renamed("lerp", error) from None
    shapes = (a.data.shape, b.data.shape, () if tw is None else tw.data.shape)
    return apply(LerpBackward, k, out, (a, b, tw), (a, b, w), shapes=shapes)


def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """input + value * tensor1 * tensor2, broadcast.

    Errors as in `add`; TypeError when value is no number.

    >>> import gradsmith as gs
    >>> gs.addcmul(gs.tensor([1.0]), gs.tensor([2.0]), gs.tensor([3.0])).tolist()
    [7.0]
    """
    a, b, c = _input(input, "addcmul"), _input(tensor1, "addcmul"), _input(tensor2, "addcmul")
    k = a._k
    scale = 1.0 if value == 1 else number("addcmul", "value", value)
    out = k.addcmul(a.data, b.data, c.data, scale)
    return apply(AddcmulBackward, k, out, (a, b, c), (b, c), shape=a.data.shape, value=value)


class AddcmulBackward(Node):
    """da = dy, db = value dy c, dc = value dy b, summed to the operands' shapes."""

    __slots__ = ("shape", "value")
    shape: tuple
    value: float

    def backward(self, grad: Any) -> tuple:
        b, c = self.saved
        n = self.needs
        k = self.k
        value = float(self.value)
        return (
            k.sum_to(grad, self.shape) if n[0] else None,
            k.sum_to(k.mul_scaled(grad, c, value), b.shape) if n[1] else None,
            k.sum_to(k.mul_scaled(grad, b, value), c.shape) if n[2] else None,
        )


def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """input + value * tensor1 / tensor2, broadcast.

    Errors as in `add`; TypeError for integers or a value that is no number.

    >>> import gradsmith as gs
    >>> gs.addcdiv(gs.tensor([1.0]), gs.tensor([6.0]), gs.tensor([3.0])).tolist()
    [3.0]
    """
    a, b, c = _input(input, "addcdiv"), _input(tensor1, "addcdiv"), _input(tensor2, "addcdiv")
    k = a._k
    scale = 1.0 if value == 1 else number("addcdiv", "value", value)
    out = k.addcdiv(a.data, b.data, c.data, scale)
    return apply(AddcdivBackward, k, out, (a, b, c), (b, c), shape=a.data.shape, value=value)


class AddcdivBackward(Node):
    """da = dy, db = value dy / c, dc = -value dy b / c^2, summed to the operands' shapes."""

    __slots__ = ("shape", "value")
    shape: tuple
    value: float

    def backward(self, grad: Any) -> tuple:
        b, c = self.saved
        n = self.needs
        k = self.k
        g = grad if self.value == 1 else k.mul(grad, self.value)
        return (
            k.sum_to(grad, self.shape) if n[0] else None,
            k.sum_to(k.div(g, c), b.shape) if n[1] else None,
            k.sum_to(k.div_backward_b(g, k.div(b, c), c), c.shape) if n[2] else None,
        )


# ---- bool results: nothing to differentiate
def _compare(name: str, sign: str) -> Callable[[Any, Any], Tensor]:
    def fn(input: Any, other: Any) -> Tensor:
        return _general(name, None, "", input, other)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"""input {sign} other, broadcast, as a bool tensor.

    >>> import gradsmith as gs
    >>> gs.{name}(gs.tensor([1, 2]), 2).dtype.name
    'bool'
    """
    return fn


eq = _compare("eq", "==")
ne = not_equal = _compare("ne", "!=")
lt = less = _compare("lt", "<")
le = less_equal = _compare("le", "<=")
gt = greater = _compare("gt", ">")
ge = greater_equal = _compare("ge", ">=")


def _test(name: str, what: str) -> Callable[[Any], Tensor]:
    def fn(input: Any) -> Tensor:
        x = _input(input, name)
        return wrap(getattr(x._k, name)(x.data), x._k)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"""Whether each element of a float tensor is {what}.

    >>> import gradsmith as gs
    >>> gs.{name}(gs.tensor([1.0])).dtype.name
    'bool'
    """
    return fn


isnan = _test("isnan", "NaN")
isfinite = _test("isfinite", "neither infinite nor NaN")
isinf = _test("isinf", "infinite")


def logical_and(input: Any, other: Any) -> Tensor:
    """Both of two bool tensors, broadcast.

    TypeError unless both are bool.

    >>> import gradsmith as gs
    >>> gs.logical_and(gs.tensor([True, False]), True).tolist()
    [True, False]
    """
    return _general("logical_and", None, "", input, other)


def logical_or(input: Any, other: Any) -> Tensor:
    """Either of two bool tensors, broadcast.

    TypeError unless both are bool.

    >>> import gradsmith as gs
    >>> gs.logical_or(gs.tensor([True, False]), False).tolist()
    [True, False]
    """
    return _general("logical_or", None, "", input, other)


def logical_xor(input: Any, other: Any) -> Tensor:
    """One, but not both, of two bool tensors, broadcast.

    TypeError unless both are bool.

    >>> import gradsmith as gs
    >>> gs.logical_xor(gs.tensor([True, False]), True).tolist()
    [False, True]
    """
    return _general("logical_xor", None, "", input, other)


def logical_not(input: Any) -> Tensor:
    """The opposite of a bool tensor.

    >>> import gradsmith as gs
    >>> gs.logical_not(gs.tensor([True, False])).tolist()
    [False, True]
    """
    x = _input(input, "logical_not")
    return wrap(x._k.logical_not(x.data), x._k)


def isclose(
    input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    """|input - other| <= atol + rtol |other|, element by element; infinities are close when equal.

    >>> import gradsmith as gs
    >>> gs.isclose(gs.tensor([1.0, 2.0]), gs.tensor([1.0, 2.1])).tolist()
    [True, False]
    """
    a = input if isinstance(input, Tensor) else _input(input, "isclose")
    b = other if isinstance(other, Tensor) else _operand(other, "isclose", a)
    k, x = a._k, a.data
    y = b.data if isinstance(b, Tensor) else k.full((), b, x.dtype)
    if x.dtype.kind == "f":
        return wrap(k.isclose(x, y, rtol, atol, equal_nan), k)
    try:
        same = k.eq(x, y)
        if not (rtol or atol):
            return wrap(same, k)
        wide = np.dtype(np.float64)  # integers and bools: the tolerances are fractions
        return wrap(k.isclose(k.cast(x, wide), k.cast(y, wide), rtol, atol, equal_nan), k)
    except REFUSED as error:
        raise renamed("isclose", error) from None


def allclose(
    input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """Whether all elements are close (see isclose).

    >>> import gradsmith as gs
    >>> gs.allclose(gs.tensor([1.0]), gs.tensor([1.0 + 1e-7]))
    True
    """
    recording.host_read("allclose")
    try:
        t = isclose(input, other, rtol, atol, equal_nan)
    except REFUSED as error:
        raise renamed("allclose", error) from None
    return bool(t._k.any_(t.data, None, False, True))


negative, multiply, subtract, divide, true_divide, clip = neg, mul, sub, div, div, clamp


# ---- in place
def _fits(op: str, target: Tensor, b: Any) -> None:
    if not isinstance(b, Tensor):
        return
    if b.data.shape != target.data.shape:
        try:
            ok = np.broadcast_shapes(target.data.shape, b.data.shape) == target.data.shape
        except ValueError:
            ok = False
        if not ok:
            raise ValueError(
                f"{op}: other of shape {b.data.shape} does not broadcast to the shape {target.data.shape} of "
                "the tensor that is changed in place"
            )
    if b.data.dtype is not target.data.dtype and b.data.dtype != target.data.dtype:
        raise TypeError(
            f"{op}: the tensor is {target.data.dtype} and other is {b.data.dtype}; convert it with "
            f".astype('{target.data.dtype}')"
        )


def _in_place(name: str, node: type, keep: str) -> Callable[..., Tensor]:
    kernel = name + "_"

    def fn(self: Tensor, other: Any) -> Tensor:
        b = _operand(other, kernel, self)
        tb = b if isinstance(b, Tensor) else None
        _fits(kernel, self, b)
        k, data = self._k, self.data
        db = b if tb is None else tb.data
        wants_b = tb is not None and tb._rg and is_grad_enabled()
        old: Any = None
        if wants_b and keep in ("x", "ab"):
            old = k.copy(data)  # the value before, which the gradient of other needs
        elif keep == "ab" and self._rg and is_grad_enabled():
            old = k.copy(data)
        kept: Any = b
        if tb is self and keep:
            kept = k.copy(data)
        saved = () if keep == "" else (old, kept)
        return apply_(
            node,
            self,
            lambda: getattr(k, kernel)(data, db),
            (self, tb),
            saved,
            name=kernel,
            a_shape=data.shape,
            b_shape=() if tb is None else tb.data.shape,
        )

    fn.__name__ = fn.__qualname__ = kernel
    fn.__doc__ = f"In-place {name}: other broadcasts to the shape of the tensor."
    return fn


_mul_ = _in_place("mul", MulBackward, "x")
_div_ = _in_place("div", DivBackward, "x")
_pow_ = _in_place("pow", PowBackward, "ab")
_add_plain_ = _in_place("add", AddBackward, "")
_sub_plain_ = _in_place("sub", SubBackward, "")


def _add_(self: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """In-place self + alpha * other."""
    if alpha != 1:
        if isinstance(other, Tensor) and not (is_grad_enabled() and (self._rg or other._rg)):
            _fits("add_", self, other)
            self._k.add_scaled_(self.data, other.data, float(alpha))
            written(self)
            return self
        other = mul(other, alpha) if isinstance(other, Tensor) else other * alpha
    return _add_plain_(self, other)


def _sub_(self: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """In-place self - alpha * other."""
    if alpha != 1:
        return _add_(self, other, alpha=-alpha)
    return _sub_plain_(self, other)


def _unary_in_place(name: str) -> Callable[[Tensor], Tensor]:
    node, save = _UNARY[name]
    kernel = name + "_"

    def fn(self: Tensor) -> Tensor:
        k, data = self._k, self.data
        recorded = self._rg and is_grad_enabled()
        saved = (k.copy(data),) if save == "x" and recorded else ()
        return apply_(
            node,
            self,
            lambda: getattr(k, kernel)(data),
            (self,),
            saved,
            save_output=save == "y",
            name=kernel,
        )

    fn.__name__ = fn.__qualname__ = kernel
    fn.__doc__ = f"In-place {name}."
    return fn


def _clamp_(self: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """In-place clamp to numbers."""
    k, data = self._k, self.data
    saved = (k.copy(data),) if self._rg and is_grad_enabled() else ()
    return apply_(
        ClampBackward,
        self,
        lambda: k.clamp_(data, min, max),
        (self,),
        saved,
        name="clamp_",
        low=min,
        high=max,
    )


def _fill_(self: Tensor, value: Any) -> Tensor:
    """In-place: every element becomes `value`."""
    k, data = self._k, self.data
    return apply_(ZeroBackward, self, lambda: k.fill_(data, value), (self,), name="fill_")


def _zero_(self: Tensor) -> Tensor:
    """In-place: every element becomes 0."""
    return _fill_(self, 0)


def _reflected(fn: Callable) -> Callable:
    def reflected(self: Tensor, other: Any) -> Any:
        return fn(other, self)

    return reflected


def _operator(fn: Callable) -> Callable:
    """Gives NotImplemented for operands of foreign types, so that Python can try the other side."""

    known = (Tensor, *_NUMBERS, np.ndarray, list, tuple)

    def method(self: Tensor, other: Any) -> Any:
        if isinstance(other, known):
            return fn(self, other)
        return NotImplemented

    return method


def _equals(self: Tensor, other: Any) -> Any:
    if isinstance(other, (Tensor, *_NUMBERS, np.ndarray)):
        return eq(self, other)
    return NotImplemented


def _differs(self: Tensor, other: Any) -> Any:
    if isinstance(other, (Tensor, *_NUMBERS, np.ndarray)):
        return ne(self, other)
    return NotImplemented


def _bool_only(fn: Callable) -> Callable:
    return _operator(fn)


def _attach() -> None:
    m = Tensor._method
    for symbol, fn in (
        ("add", add),
        ("sub", sub),
        ("mul", mul),
        ("truediv", div),
        ("floordiv", floor_divide),
        ("mod", remainder),
        ("pow", pow),
    ):
        m(f"__{symbol}__", fn if symbol in ("add", "mul") else _operator(fn))
        m(f"__r{symbol}__", _operator(_reflected(fn)))
    in_place: tuple[tuple[str, Callable], ...] = (
        ("add", _add_),
        ("sub", _sub_),
        ("mul", _mul_),
        ("truediv", _div_),
        ("pow", _pow_),
    )
    for symbol, change in in_place:
        m(f"__i{symbol}__", change)
    for symbol, test in (("lt", lt), ("le", le), ("gt", gt), ("ge", ge)):
        m(f"__{symbol}__", _operator(test))
    for symbol, logic in (("and", logical_and), ("or", logical_or), ("xor", logical_xor)):
        m(f"__{symbol}__", _operator(logic))
        m(f"__r{symbol}__", _operator(logic))
    Tensor.__eq__ = _equals  # type: ignore[method-assign, assignment]
    Tensor.__ne__ = _differs  # type: ignore[method-assign, assignment]
    m("__neg__", neg)
    m("__abs__", abs)
    m("__invert__", logical_not)
    m("__pos__", lambda self: self)
    skip = {"where", "allclose"}
    for name in __all__:
        if name not in skip:
            m(name, globals()[name])
    m("allclose", allclose)
    m("where", lambda self, condition, other: where(condition, self, other))
    m("add_", _add_)
    m("sub_", _sub_)
    m("mul_", _mul_)
    m("div_", _div_)
    m("pow_", _pow_)
    m("clamp_", _clamp_)
    m("fill_", _fill_)
    m("zero_", _zero_)
    for name in _UNARY:
        m(name + "_", _unary_in_place(name))


_attach()
