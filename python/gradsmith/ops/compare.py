"""Comparisons, tests and logic, element by element with NumPy's broadcasting: bool results, nothing to differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import recording
from ..core.tensor import Tensor, wrap
from ._arguments import REFUSED, renamed
from ._axes import tensor_of
from .elementwise import general, operand

__all__ = [
    "allclose", "eq", "ge", "greater", "greater_equal", "gt", "isclose", "isfinite", "isinf", "isnan",
    "le", "less", "less_equal", "logical_and", "logical_not", "logical_or", "logical_xor", "lt", "ne",
    "not_equal",
]  # fmt: skip


def _compare(name: str, sign: str) -> Callable[[Any, Any], Tensor]:
    def fn(input: Any, other: Any) -> Tensor:
        return general(name, None, "", input, other)

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
        x = tensor_of(input, name)
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
    return general("logical_and", None, "", input, other)


def logical_or(input: Any, other: Any) -> Tensor:
    """Either of two bool tensors, broadcast.

    TypeError unless both are bool.

    >>> import gradsmith as gs
    >>> gs.logical_or(gs.tensor([True, False]), False).tolist()
    [True, False]
    """
    return general("logical_or", None, "", input, other)


def logical_xor(input: Any, other: Any) -> Tensor:
    """One, but not both, of two bool tensors, broadcast.

    TypeError unless both are bool.

    >>> import gradsmith as gs
    >>> gs.logical_xor(gs.tensor([True, False]), True).tolist()
    [False, True]
    """
    return general("logical_xor", None, "", input, other)


def logical_not(input: Any) -> Tensor:
    """The opposite of a bool tensor.

    >>> import gradsmith as gs
    >>> gs.logical_not(gs.tensor([True, False])).tolist()
    [False, True]
    """
    x = tensor_of(input, "logical_not")
    return wrap(x._k.logical_not(x.data), x._k)


def isclose(
    input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    """|input - other| <= atol + rtol |other|, element by element; infinities are close when equal.

    >>> import gradsmith as gs
    >>> gs.isclose(gs.tensor([1.0, 2.0]), gs.tensor([1.0, 2.1])).tolist()
    [True, False]
    """
    a = input if isinstance(input, Tensor) else tensor_of(input, "isclose")
    b = other if isinstance(other, Tensor) else operand(other, "isclose", a)
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


def _attach() -> None:
    for name in __all__:
        Tensor._method(name, globals()[name])


_attach()
