"""Axes and sizes as arguments of the ops on shapes, and indices that name an axis."""

from __future__ import annotations

from operator import index as _integer
from typing import Any

import numpy as np

from ..core.tensor import Tensor, as_tensor

__all__ = ["ALL", "BEFORE", "at_axis", "axis_of", "ints_of", "is_view", "tensor_of"]


def tensor_of(x: Any, op: str) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.ndarray):
        return as_tensor(x, op=op)
    raise TypeError(f"{op}: expected a Tensor, got {type(x).__name__}")


def axis_of(dim: Any, ndim: int, op: str) -> int:
    """dim in 0 .. ndim - 1; IndexError outside."""
    n = ndim or 1
    if type(dim) is int and -n <= dim < n:
        return dim if dim >= 0 else dim + n
    try:
        d = _integer(dim)
    except (TypeError, ValueError):
        raise TypeError(f"{op}: dim must be an integer, got {dim!r}") from None
    if not -n <= d < n:
        raise IndexError(f"{op}: dim {d} is out of range for {ndim} dimensions")
    return d % n


def ints_of(sizes: tuple, op: str) -> tuple[int, ...]:
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    try:
        return tuple([_integer(s) for s in sizes])
    except TypeError:
        raise TypeError(f"{op}: expected integers, got {sizes!r}") from None


ALL = slice(None)
BEFORE = [(*(ALL,) * d, None) for d in range(65)]  # indices that put a new axis at d


def at_axis(d: int, *rest: Any) -> tuple:
    """The index `rest` from axis d on, everything before."""
    return (*(ALL,) * d, *rest)


def is_view(a: np.ndarray, of: np.ndarray) -> bool:
    return np.may_share_memory(a, of)
