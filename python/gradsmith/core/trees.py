"""Arguments and results of captured functions as trees: tuples, lists, dicts and dataclasses, and their leaves."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np

from .tensor import Tensor

__all__ = [
    "changed",
    "classes",
    "flatten",
    "give_back",
    "held",
    "put_back",
    "replaced",
    "unflatten",
]


def _fields(x: Any) -> tuple[str, ...] | None:
    """The fields of an object of a dataclass that is no more than them, and holds tensors; else None. One
    without tensors or with parameters (a configuration, a trainer's state) is an argument like other objects."""
    kind = type(x)
    if not hasattr(kind, "__dataclass_fields__") or isinstance(x, (Tensor, type)):
        return None
    names = tuple([f.name for f in dataclasses.fields(kind)])
    if set(getattr(x, "__dict__", names)) != set(names):
        return None
    if not all([hasattr(x, n) for n in names]):  # slots without a value
        return None
    inner: list[Any] = []
    for n in names:
        flatten(getattr(x, n), inner)
    tensors = [v for v in inner if isinstance(v, (Tensor, np.ndarray))]
    learns = any([isinstance(v, Tensor) and v._rg and v._node is None for v in tensors])
    return names if tensors and not learns else None


def _made(kind: type, values: Iterable[tuple[str, Any]]) -> Any:
    """An object of a dataclass with these fields."""
    x: Any = object.__new__(kind)
    for n, v in values:
        object.__setattr__(x, n, v)
    return x


def flatten(x: Any, leaves: list[Any]) -> Any:
    """Appends the leaves of tuples, lists, dicts and dataclasses to `leaves`; returns the structure."""
    kind = type(x)
    if kind is tuple or kind is list:
        return (kind.__name__, tuple([flatten(v, leaves) for v in x]))
    if kind is dict or kind is OrderedDict:
        return (kind.__name__, tuple(x), tuple([flatten(v, leaves) for v in x.values()]))
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return (kind, tuple([flatten(v, leaves) for v in x]))
    names = _fields(x)
    if names is not None:
        return ("dataclass", names, tuple([flatten(getattr(x, n), leaves) for n in names]), kind)
    leaves.append(x)
    return None


def unflatten(tree: Any, leaves: Iterable[Any]) -> Any:
    it = iter(leaves)

    def build(t: Any) -> Any:
        if t is None:
            return next(it)
        if t[0] == "tuple":
            return tuple([build(v) for v in t[1]])
        if t[0] == "list":
            return [build(v) for v in t[1]]
        if t[0] == "dict":
            return {k: build(v) for k, v in zip(t[1], t[2])}
        if t[0] == "OrderedDict":
            return OrderedDict([(k, build(v)) for k, v in zip(t[1], t[2])])
        if t[0] == "dataclass":
            return _made(t[3], [(k, build(v)) for k, v in zip(t[1], t[2])])
        return t[0](*[build(v) for v in t[1]])

    return build(tree)


def classes(tree: Any) -> list[type]:
    """The dataclasses in a structure."""
    if tree is None:
        return []
    found = [tree[3]] if tree[0] == "dataclass" else []
    return found + [c for t in tree[-1 if len(tree) < 4 else 2] for c in classes(t)]


def replaced(x: Any, new: dict[int, Any], of: dict[int, Any]) -> Any:
    """`x` with other leaves (by the old one's id): containers without one stay the same objects.
    `of`: gets what stands for what, by the id of what stands there now."""
    if not new:
        return x
    if id(x) in new:
        y = new[id(x)]
    else:
        leaves: list[Any] = []
        tree = flatten(x, leaves)
        if tree is None or not any([id(v) in new for v in leaves]):
            return x
        if isinstance(x, dict):
            y = type(x)([(k, replaced(v, new, of)) for k, v in x.items()])
        elif tree[0] == "dataclass":
            y = _made(type(x), [(n, replaced(getattr(x, n), new, of)) for n in tree[1]])
        else:
            items = [replaced(v, new, of) for v in x]
            y = type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
        new[id(x)] = y
    of[id(y)] = (y, x)
    return y


def changed(args: Any, tree: Any, leaves: list[Any]) -> bool:
    """Whether containers hold something else than when they were flattened."""
    now: list[Any] = []
    if flatten(args, now) != tree or len(now) != len(leaves):
        return True
    return any([a is not b for a, b in zip(now, leaves)])


def give_back(of: dict[int, Any]) -> None:
    """What a function did to the containers that stood for its caller's is done to those."""

    def old(v: Any) -> Any:
        return of[id(v)][1] if id(v) in of else v

    for y, x in list(of.values()):
        if isinstance(y, dict):
            x.clear()
            x.update([(k, old(v)) for k, v in y.items()])
        elif type(y) is list:
            x[:] = [old(v) for v in y]
        elif not isinstance(y, (tuple, Tensor)):  # of a dataclass
            for n in [f.name for f in dataclasses.fields(y)]:
                if hasattr(y, n):
                    object.__setattr__(x, n, old(getattr(y, n)))


def held(x: Any) -> list[tuple[Any, Any]]:
    """The arrays and containers of arguments, each with a copy of what it holds."""
    if isinstance(x, Tensor):
        x = x.data
    if isinstance(x, np.ndarray):
        return [(x, x.copy())] if x.flags.writeable else []
    inner: list[Any] = []
    tree = flatten(x, inner)
    if tree is None:
        return []
    if tree[0] == "dataclass":
        own: Any = {n: getattr(x, n) for n in tree[1]}
    else:
        own = dict(x) if isinstance(x, dict) else list(x)
    parts = own.values() if isinstance(own, dict) else own
    return [(x, own), *[h for v in parts for h in held(v)]]


def put_back(held: list[tuple[Any, Any]]) -> None:
    for x, own in held:
        if isinstance(x, np.ndarray):
            x[...] = own
        elif isinstance(x, dict):
            x.clear()
            x.update(own)
        elif type(x) is list:
            x[:] = own
        elif isinstance(own, dict):
            for n, v in own.items():
                object.__setattr__(x, n, v)
