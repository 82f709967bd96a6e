"""What functions say of arguments that are no numbers: the op, the argument, what was expected, what came."""

from __future__ import annotations

from operator import index
from typing import Any

__all__ = ["integer", "integers", "number"]


def number(op: str, name: str, value: Any) -> float:
    """A scalar argument as a float; TypeError when it is none. Ops ask where its type is not float."""
    if not isinstance(value, (str, bytes)):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TypeError(
        f"{op}: {name} must be a number, got {type(value).__name__} {value!r:.40}"
    ) from None


def integer(op: str, name: str, value: Any) -> int:
    """An integer argument as an int; TypeError when it is none. Ops ask where its type is not int."""
    try:
        return index(value)
    except TypeError:
        raise TypeError(
            f"{op}: {name} must be an integer, got {type(value).__name__} {value!r:.40}"
        ) from None


def integers(op: str, name: str, values: Any) -> tuple[int, ...]:
    """Several integers as a tuple; TypeError when they are none."""
    try:
        return tuple([index(v) for v in values])
    except TypeError:
        raise TypeError(
            f"{op}: {name} must be integers, got {type(values).__name__} {values!r:.40}"
        ) from None
