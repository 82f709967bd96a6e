"""Arithmetic and elementary functions, element by element with NumPy's broadcasting.

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

from ..core.arguments import integer, number
from ..core.autograd import Node, apply, apply_pair, is_grad_enabled
from ..core.tensor import Tensor, as_tensor, wrap
from ._arguments import REFUSED, renamed
from ._axes import tensor_of

__all__ = [
    "abs",
    "add",
    "addcdiv",
    "addcmul",
    "ceil",
    "clamp",
    "clip",
    "cos",
    "div",
    "divide",
    "exp",
    "expm1",
    "floor",
    "floor_divide",
    "lerp",
    "log",
    "log1p",
    "log2",
    "log10",
    "masked_fill",
    "maximum",
    "minimum",
    "mul",
    "multiply",
    "neg",
    "negative",
    "pow",
    "reciprocal",
    "remainder",
    "round",
    "rsqrt",
    "sign",
    "sin",
    "sqrt",
    "square",
    "sub",
    "subtract",
    "tan",
    "true_divide",
    "trunc",
    "where",
]  # fmt: skip

NUMBERS = (int, float, np.number, np.bool_)


def operand(x: Any, op: str, like: Any = None) -> Any:
    """A Tensor, or a number as it is; arrays and lists become Tensors."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, NUMBERS):
        return x
    if isinstance(x, np.ndarray):
        return as_tensor(x, op=op)
    if isinstance(x, (list, tuple)):
        return as_tensor(x, like if isinstance(like, Tensor) else None, op)
    raise TypeError(f"{op}: expected a Tensor or a number, got {type(x).__name__}")


def scaled(op: str, input: Any, other: Any, alpha: Any) -> Any:
    """alpha * other, where other may be a number or a list."""
    other = operand(other, op, input)
    return mul(other, alpha) if isinstance(other, Tensor) else other * alpha


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


def general(
    name: str, node: type | None, keep: str, a: Any, b: Any, kernel: str | None = None
) -> Tensor:
    """The op on any operands. keep: which of "ab" the gradients need: "" none, "x" the other one, "ab" both."""
    a = operand(a, name, b)
    b = operand(b, name, a)
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
        return add(input, scaled("add", input, other, alpha))
    if isinstance(input, Tensor):
        k = input._k
        if isinstance(other, Tensor):
            return apply_pair(AddBackward, k, k.add(input.data, other.data), input, other, 0)
        if isinstance(other, (float, int)):
            return apply(PlusNumberBackward, k, k.add(input.data, other), (input,))
    return general("add", AddBackward, "", input, other)


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
        return sub(input, scaled("sub", input, other, alpha))
    if isinstance(input, Tensor):
        k = input._k
        if isinstance(other, Tensor):
            return apply_pair(SubBackward, k, k.sub(input.data, other.data), input, other, 0)
        if isinstance(other, (float, int)):
            return apply(PlusNumberBackward, k, k.sub(input.data, other), (input,))
    return general("sub", SubBackward, "", input, other)


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
    return general("mul", MulBackward, "x", input, other)


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
        return general("div", DivBackward, "ab" if need_b else "x", input, other)
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
    return general("maximum", MaximumBackward, "ab", input, other)


def minimum(input: Any, other: Any) -> Tensor:
    """The smaller of input and other, broadcast; NaN where either is NaN.

    Errors as in `add`.

    >>> import gradsmith as gs
    >>> gs.minimum(gs.tensor([1.0, 5.0]), 3).tolist()
    [1.0, 3.0]
    """
    return general("minimum", MinimumBackward, "ab", input, other)


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
    return general("remainder", RemainderBackward, "ab", input, other)


def floor_divide(input: Any, other: Any) -> Tensor:
    """floor(input / other). Integer tensors divided by an element 0 give 0 there.

    Errors as in `add`.

    >>> import gradsmith as gs
    >>> gs.floor_divide(gs.tensor([-1.0, 5.0]), 3).tolist()
    [-1.0, 1.0]
    """
    _check_zero("floor_divide", input, other)
    return general("floor_divide", FloorDivideBackward, "", input, other)


def pow(input: Any, exponent: Any) -> Tensor:
    """input ** exponent, broadcast; NaN for a negative base with a fractional exponent.

    Errors as in `add`; TypeError for integers.

    >>> import gradsmith as gs
    >>> gs.pow(gs.tensor([2.0, 3.0]), 2).tolist()
    [4.0, 9.0]
    """
    if isinstance(input, Tensor) and isinstance(exponent, NUMBERS):
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
    return general("pow", PowBackward, "ab", input, exponent)


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


UNARY: dict[str, tuple[type, str]] = {}


def _unary(name: str, node: type, save: str, doc: str) -> Callable[[Any], Tensor]:
    """save: "x", "y" or "" for what the gradient needs."""
    keep_x, keep_y = save == "x", save == "y"
    UNARY[name] = (node, save)

    def fn(input: Any) -> Tensor:
        x = input if isinstance(input, Tensor) else tensor_of(input, name)
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
    x = tensor_of(input, "clamp")
    k = x._k
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        low = None if min is None else operand(min, "clamp", x)
        high = None if max is None else operand(max, "clamp", x)
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
    c = tensor_of(condition, "where")
    a = operand(input, "where", other)
    b = operand(other, "where", a)
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
    m = tensor_of(mask, "masked_fill")
    try:
        out = where(m, value, input)
        fits = out.data.shape == input.data.shape
    except (AttributeError, TypeError, ValueError) as error:
        tensor_of(input, "masked_fill"), operand(value, "masked_fill")
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
    a, b = tensor_of(input, "lerp"), tensor_of(end, "lerp")
    w = operand(weight, "lerp", a)
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
    a, b, c = (
        tensor_of(input, "addcmul"),
        tensor_of(tensor1, "addcmul"),
        tensor_of(tensor2, "addcmul"),
    )
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
    a, b, c = (
        tensor_of(input, "addcdiv"),
        tensor_of(tensor1, "addcdiv"),
        tensor_of(tensor2, "addcdiv"),
    )
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


negative, multiply, subtract, divide, true_divide, clip = neg, mul, sub, div, div, clamp


def _attach() -> None:
    m = Tensor._method
    for name in __all__:
        if name != "where":
            m(name, globals()[name])
    m("where", lambda self, condition, other: where(condition, self, other))


_attach()
