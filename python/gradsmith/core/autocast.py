"""Mixed precision: which products round their operands to bfloat16."""

from __future__ import annotations

import functools
import inspect
from _thread import _local as Local
from collections.abc import Callable
from typing import Any, TypeVar, cast

from .. import _cpu

__all__ = ["autocast", "is_autocast_enabled"]

PRECISIONS = ("float32", "bfloat16")
_local = Local()  # .stack: what each `with` of this thread has to put back


def checked_precision(op: str, name: str, precision: Any) -> bool:
    """Whether `precision` is bfloat16; an error when it is neither that nor float32."""
    if not isinstance(precision, str):
        raise TypeError(
            f"{op}: {name} must be a string, one of {PRECISIONS}, got {type(precision).__name__}"
        )
    if precision not in PRECISIONS:
        hint = ""
        if precision in ("float16", "fp16", "half"):
            hint = ". float16 needs loss scaling and no processor here multiplies it faster"
        raise ValueError(f"{op}: {name} must be one of {PRECISIONS}, got {precision!r}{hint}")
    return precision == "bfloat16"


F = TypeVar("F", bound=Callable)


class autocast:
    """Products inside round float32 operands to bfloat16 and sum in float32: a context or a decorator.

    c[i, j] = sum over k of round(a[i, k]) * round(b[k, j]), where round is to nearest, ties to even. It
    holds for matmul and linear (so for the projections of attention and the input products of recurrent
    layers), for convolutions with at least 8 channels on either side of a group where the processor
    multiplies bfloat16 faster (elsewhere they stay float32), and for their gradients: a backward pass takes
    the precision that its forward pass was recorded with. Arrays stay float32, as do parameters, gradients,
    norms, softmax, losses, reductions and optimizers; no loss scaling is needed, because bfloat16 has
    float32's range. float64 is left alone. The switch is the calling thread's own, nests, and is part of
    the key of captured programs.

    dtype: "bfloat16", or "float32" for none. enabled: False switches it off inside.

    ValueError: another dtype. TypeError: not a string, enabled not a bool, a generator function decorated.
    Source: Kalamkar et al., A Study of BFLOAT16 for Deep Learning Training, 2019.

    >>> import gradsmith as gs
    >>> x = gs.tensor([[1.001]])
    >>> with gs.autocast():
    ...     y = x @ x
    >>> y.item(), (x @ x).item() > 1
    (1.0, True)
    """

    def __init__(self, dtype: str = "bfloat16", enabled: bool = True):
        rounds = checked_precision("autocast", "dtype", dtype)
        if not isinstance(enabled, bool):
            raise TypeError(f"autocast: enabled must be a bool, got {type(enabled).__name__}")
        self.dtype, self.enabled = dtype, enabled
        self._on = rounds and enabled

    def __enter__(self) -> autocast:
        if not hasattr(_local, "stack"):
            _local.stack = []
        _local.stack.append(_cpu.set_autocast(self._on))
        return self

    def __exit__(self, *exc: Any) -> None:
        _cpu.set_autocast(_local.stack.pop())

    def __call__(self, fn: F) -> F:
        if not callable(fn):
            raise TypeError(f"autocast: can decorate a function, got {type(fn).__name__}")
        if inspect.isgeneratorfunction(fn) or inspect.iscoroutinefunction(fn):
            raise TypeError(
                "autocast: a generator runs after the call that makes it has ended; "
                "use `with autocast():` inside"
            )
        on = self._on

        @functools.wraps(fn)
        def inner(*args: Any, **kwargs: Any) -> Any:
            before = _cpu.set_autocast(on)
            try:
                return fn(*args, **kwargs)
            finally:
                _cpu.set_autocast(before)

        return cast(F, inner)


def is_autocast_enabled() -> bool:
    """Whether products that this thread starts round their operands to bfloat16, see `autocast`.

    >>> import gradsmith as gs
    >>> with gs.autocast():
    ...     gs.is_autocast_enabled()
    True
    """
    return bool(_cpu.autocast())
