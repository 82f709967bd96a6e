"""Changes in place and Python's operators on Tensors. A change in place is right or an error at backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.autograd import apply_, is_grad_enabled, written
from ..core.tensor import Tensor
from ._arguments import number
from .compare import eq, ge, gt, le, logical_and, logical_not, logical_or, logical_xor, lt, ne
from .elementwise import (
    NUMBERS,
    UNARY,
    AddBackward,
    ClampBackward,
    DivBackward,
    MulBackward,
    PowBackward,
    SubBackward,
    ZeroBackward,
    abs,
    add,
    div,
    floor_divide,
    mul,
    neg,
    operand,
    pow,
    remainder,
    scaled,
    sub,
)
from .shape import expand

__all__: list[str] = []


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
        b = operand(other, kernel, self)
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
        if not isinstance(alpha, (Tensor, int, float)):
            number("add_", "alpha", alpha)
        other = scaled("add_", self, other, alpha)
    return _add_plain_(self, other)


def _sub_(self: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """In-place self - alpha * other."""
    if alpha != 1:
        return _add_(self, other, alpha=-alpha)
    return _sub_plain_(self, other)


def _unary_in_place(name: str) -> Callable[[Tensor], Tensor]:
    node, save = UNARY[name]
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
    for name, bound in (("min", min), ("max", max)):
        if bound is not None and not isinstance(bound, NUMBERS):
            raise TypeError(
                f"clamp_: {name} must be a number, got {type(bound).__name__}. clamp() takes Tensors"
            )
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
    """In-place: every element becomes `value`, a number or a Tensor without axes."""
    if not isinstance(value, NUMBERS):
        if isinstance(value, Tensor) and value.data.ndim == 0:
            return self.copy_(expand(value, self.data.shape))
        raise TypeError(f"fill_: value must be a number, got {type(value).__name__}")
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

    known = (Tensor, *NUMBERS, np.ndarray, list, tuple)

    def method(self: Tensor, other: Any) -> Any:
        if isinstance(other, known):
            return fn(self, other)
        return NotImplemented

    return method


def _equals(self: Tensor, other: Any) -> Any:
    if isinstance(other, (Tensor, *NUMBERS, np.ndarray)):
        return eq(self, other)
    return NotImplemented


def _differs(self: Tensor, other: Any) -> Any:
    if isinstance(other, (Tensor, *NUMBERS, np.ndarray)):
        return ne(self, other)
    return NotImplemented


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
    Tensor.__eq__ = _equals  # type: ignore[method-assign]
    Tensor.__ne__ = _differs  # type: ignore[method-assign]
    m("__neg__", neg)
    m("__abs__", abs)
    m("__invert__", logical_not)
    m("__pos__", lambda self: self)
    m("add_", _add_)
    m("sub_", _sub_)
    m("mul_", _mul_)
    m("div_", _div_)
    m("pow_", _pow_)
    m("clamp_", _clamp_)
    m("fill_", _fill_)
    m("zero_", _zero_)
    for name in UNARY:
        m(name + "_", _unary_in_place(name))


_attach()
