"""A recorded program as Python sees it: what it is called with and how its results are made."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .. import _cpu
from . import trees
from .tensor import Tensor, wrap


class Program:
    """A native program and what Python does around its replay."""

    def __init__(self, native: Any, tree: Any, mode: tuple):
        self.native = native
        self.tree = tree  # of the arguments
        self.mode = mode
        self.key: Any = None  # of the calls that it was recorded for
        self.actions: list[Any] = []
        self.grads: list[tuple[Tensor, int]] = []  # parameter, index of the output
        self.cleared: list[Tensor] = []  # parameters that have no gradient afterwards
        self.results: list[tuple[str, Any]] = []  # how to get each leaf of the result
        self.result_tree: Any = None
        self.draws = 0
        self.checks = False
        self.names = ""
        self.watch: Any = None
        self.arguments: list[Any] = []  # (shape, dtype, which earlier one it is) or a constant
        self.direct = self.single = False
        self.shares: set[int] = set()  # arguments that it changes, or whose memory it returns
        self.turned: dict[
            int, Any
        ] = {}  # arguments that are bound with their axes in another order
        self.call: Any = None  # the whole call in C++, where it can be done there

    def fresh(self) -> bool:
        return self.native.stats()["replays"] < 3

    def ready(self) -> bool:
        return all([a.ready() for a in self.actions])


@dataclasses.dataclass
class Kind:
    """An array argument: its shape and dtype, or which earlier argument it is."""

    shape: tuple[int, ...]
    dtype: Any
    same: int | None


def kinds_of(leaves: list[Any]) -> list[Any]:
    first: dict[tuple, int] = {}
    kinds: list[Any] = []
    for i, x in enumerate(leaves):
        if isinstance(x, Tensor):
            at = (x.data.__array_interface__["data"][0], x.data.shape)
            same = first.setdefault(at, i) if x.data.size else i
            kinds.append(Kind(x.data.shape, x.data.dtype, None if same == i else same))
        else:
            kinds.append(x)
    return kinds


def results_of(p: Program, arrays: tuple, leaves: tuple) -> Any:
    made: list[Any] = []
    of: dict[int, Tensor] = {}
    for kind, value in p.results:
        if kind == "array":
            t = of.get(value)
            if t is None:
                t = of[value] = wrap(arrays[value], _cpu)
            made.append(t)
        elif kind == "input":
            made.append(leaves[value])
        elif kind == "gradient":
            made.append(value._grad)
        elif kind == "view":
            home, which, dtype, shape, offset, strides = value
            if home == "array":
                base = of.get(which)
                if base is None:
                    base = of[which] = wrap(arrays[which], _cpu)
            else:
                base = leaves[which] if home == "input" else which
            a = base.data  # an argument may have its axes in another order
            flat = a if a.flags.c_contiguous else a.ravel(order="K")
            made.append(view_of(base, np.ndarray(shape, dtype, flat, offset, strides)))
        else:
            made.append(value)
    return made[0] if p.result_tree is None else trees.unflatten(p.result_tree, made)


def view_of(base: Tensor, a: np.ndarray) -> Tensor:
    """A view of a tensor's memory, without a gradient."""
    t = wrap(a, base._k)
    t._ver = base._ver
    t._at = base._ver[0]
    t._view = True
    return t


def _span(a: np.ndarray) -> tuple[int, int]:
    """The addresses of the first byte that an array covers, and of the one behind the last."""
    low = high = a.__array_interface__["data"][0]
    for n, stride in zip(a.shape, a.strides):
        if stride < 0:
            low += (n - 1) * stride
        else:
            high += (n - 1) * stride
    return low, high + a.itemsize


def within(a: np.ndarray, base: np.ndarray) -> tuple | None:
    """How to make `a` as a view of `base`; None when it is none."""
    if not a.size or not base.size or not base.flags.c_contiguous:
        return None
    (low, high), (first, last) = _span(a), _span(base)
    if low < first or last < high:
        return None
    return (a.dtype, a.shape, a.__array_interface__["data"][0] - first, a.strides)


def axes_of(a: np.ndarray) -> tuple[int, ...] | None:
    """The order of axes in which an array is contiguous; None when there is none."""
    axes = tuple(sorted(range(a.ndim), key=lambda k: -a.strides[k]))
    return axes if a.transpose(axes).flags.c_contiguous else None


def root_of(a: np.ndarray) -> np.ndarray:
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a
