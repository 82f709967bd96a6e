"""Shapes, joining, splitting and indexing. What can share memory is a view, as in NumPy.

Views know the tensor that they look at: changing either in place after a gradient was recorded through
them is an error at backward, never a wrong gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from operator import index as _integer
from typing import Any

import numpy as np

from ..core import recording
from ..core.arguments import integer, integers, number
from ..core.autograd import Node, apply, apply_, apply_view, apply_views, is_grad_enabled, written
from ..core.tensor import Tensor, as_tensor, wrap
from ._arguments import REFUSED, renamed

__all__ = [
    "broadcast_to", "cat", "chunk", "concat", "concatenate", "diagonal", "expand", "flatten", "flip", "gather",
    "index_add", "index_select", "masked_select", "moveaxis", "movedim", "narrow", "one_hot", "pad", "permute",
    "ravel", "repeat_interleave", "reshape", "roll", "scatter", "scatter_add", "select", "split", "squeeze",
    "stack", "swapaxes", "take_along_dim", "tile", "transpose", "tril", "triu", "unbind", "unflatten",
    "unsqueeze",
]  # fmt: skip


def _input(x: Any, op: str) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.ndarray):
        return as_tensor(x, op=op)
    raise TypeError(f"{op}: expected a Tensor, got {type(x).__name__}")


def _axis(dim: Any, ndim: int, op: str) -> int:
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


def _ints(sizes: tuple, op: str) -> tuple[int, ...]:
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    try:
        return tuple([_integer(s) for s in sizes])
    except TypeError:
        raise TypeError(f"{op}: expected integers, got {sizes!r}") from None


_ALL = slice(None)
_BEFORE = [(*(_ALL,) * d, None) for d in range(65)]  # indices that put a new axis at d


def _at(d: int, *rest: Any) -> tuple:
    """The index `rest` from axis d on, everything before."""
    return (*(_ALL,) * d, *rest)


def _is_view(a: np.ndarray, of: np.ndarray) -> bool:
    return np.may_share_memory(a, of)


# ---- views
class ReshapeBackward(Node):
    """dx = dy in the shape of x."""

    __slots__ = ("shape",)
    shape: tuple

    def backward(self, grad: Any) -> tuple:
        return (self.k.contiguous(grad).reshape(self.shape),)


def _reshaped(x: Tensor, shape: tuple, op: str) -> Tensor:
    data = x.data
    copied = not data.flags.c_contiguous
    source = x._k.contiguous(data) if copied else data
    try:
        out = source.reshape(shape)
    except (ValueError, TypeError):
        raise ValueError(
            f"{op}: a tensor of shape {data.shape} ({data.size} elements) does not fit into shape {shape}"
        ) from None
    if copied:
        return apply(ReshapeBackward, x._k, out, (x,), shape=data.shape)
    return apply_view(ReshapeBackward, x, out, shape=data.shape)


def reshape(input: Any, *shape: Any) -> Tensor:
    """The elements in row-major order in a new shape; one size may be -1. A view when memory allows it.

    Raises ValueError when the elements do not fit.

    >>> import gradsmith as gs
    >>> gs.reshape(gs.zeros(2, 6), (3, -1)).shape
    (3, 4)
    """
    x = input if isinstance(input, Tensor) else _input(input, "reshape")
    data = x.data
    if data.flags.c_contiguous:
        try:
            out = data.reshape(*shape)
        except (ValueError, TypeError):
            pass  # _reshaped says what is wrong
        else:
            return apply_view(ReshapeBackward, x, out, shape=data.shape)
    return _reshaped(x, _ints(shape, "reshape"), "reshape")


def _view(self: Tensor, *shape: Any) -> Tensor:
    """As reshape, but never a copy: ValueError when the memory order does not allow it."""
    if len(shape) == 1 and not isinstance(shape[0], (int, tuple, list, np.integer)):
        return self.to(dtype=shape[0])
    sizes = _ints(shape, "view")
    if self.data.flags.c_contiguous:
        return _reshaped(self, sizes, "view")
    try:
        out = self.data.reshape(sizes)
    except ValueError:
        return _reshaped(self, sizes, "view")
    if not _is_view(out, self.data):
        raise ValueError(
            f"view: the memory of a tensor of shape {self.data.shape} is not in order for shape {sizes}; "
            "use reshape()"
        )
    return apply_view(ReshapeBackward, self, out, shape=self.data.shape)


def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes start_dim .. end_dim merged into one.

    IndexError for a dim that input lacks, ValueError when start_dim comes after end_dim.

    >>> import gradsmith as gs
    >>> gs.flatten(gs.zeros(2, 3, 4), 1).shape
    (2, 12)
    """
    x = _input(input, "flatten")
    shape = x.data.shape
    n = len(shape)
    if n == 0:
        return _reshaped(x, (1,), "flatten")
    a, b = _axis(start_dim, n, "flatten"), _axis(end_dim, n, "flatten")
    if a > b:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    merged = 1
    for s in shape[a : b + 1]:
        merged *= s
    return _reshaped(x, (*shape[:a], merged, *shape[b + 1 :]), "flatten")


def ravel(input: Any) -> Tensor:
    """All elements in one axis.

    >>> import gradsmith as gs
    >>> gs.ravel(gs.zeros(2, 3)).shape
    (6,)
    """
    x = _input(input, "ravel")
    return _reshaped(x, (x.data.size,), "ravel")


def unflatten(input: Any, dim: int, sizes: Sequence[int]) -> Tensor:
    """One axis split into several; one size may be -1.

    ValueError when the sizes do not multiply to the axis' size, TypeError when they are no integers.

    >>> import gradsmith as gs
    >>> gs.unflatten(gs.zeros(2, 12), 1, (3, -1)).shape
    (2, 3, 4)
    """
    x = _input(input, "unflatten")
    d = _axis(dim, x.data.ndim, "unflatten")
    shape = x.data.shape
    size = shape[d]
    try:
        parts = [_integer(s) for s in sizes]
    except TypeError:
        integers("unflatten", "sizes", sizes)
        raise
    if parts.count(-1) == 1:
        known = 1
        for s in parts:
            known *= 1 if s == -1 else s
        if known > 0 and size % known == 0:
            parts[parts.index(-1)] = size // known
    product = 1
    for s in parts:
        product *= s
    if product != size or min(parts, default=0) < 0:
        raise ValueError(
            f"unflatten: sizes {tuple(sizes)} do not multiply to {size}, axis {d}'s size"
        )
    shape = x.data.shape
    return _reshaped(x, (*shape[:d], *parts, *shape[d + 1 :]), "unflatten")


class PermuteBackward(Node):
    """dx = dy with the axes back in place."""

    __slots__ = ("order",)
    order: tuple

    def backward(self, grad: Any) -> tuple:
        inverse = list(self.order)
        for i, d in enumerate(self.order):
            inverse[d] = i
        return (grad.transpose(inverse),)


def permute(input: Any, *dims: Any) -> Tensor:
    """The axes in another order, as a view.

    ValueError unless dims names each axis once.

    >>> import gradsmith as gs
    >>> gs.permute(gs.zeros(2, 3, 4), (2, 0, 1)).shape
    (4, 2, 3)
    """
    x = input if isinstance(input, Tensor) else _input(input, "permute")
    data = x.data
    order = _ints(dims, "permute")
    try:
        out = data.transpose(order)
    except ValueError:
        n = data.ndim
        order = tuple([_axis(d, n, "permute") for d in order])
        raise ValueError(f"permute: dims {order} must name each of the {n} axes once") from None
    return apply_view(PermuteBackward, x, out, order=order)


def transpose(input: Any, dim0: int, dim1: int) -> Tensor:
    """Two axes exchanged, as a view.

    IndexError for a dim that input lacks.

    >>> import gradsmith as gs
    >>> gs.transpose(gs.zeros(2, 3), 0, 1).shape
    (3, 2)
    """
    x = _input(input, "transpose")
    n = x.data.ndim
    order = list(range(n))
    a, b = _axis(dim0, n, "transpose"), _axis(dim1, n, "transpose")
    if n == 0:
        return x
    order[a], order[b] = b, a
    dims = tuple(order)
    return apply_view(PermuteBackward, x, x.data.transpose(dims), order=dims)


swapaxes = transpose


def movedim(input: Any, source: Any, destination: Any) -> Tensor:
    """Axes moved to other places, the rest keeping their order, as a view.

    IndexError for a dim that input lacks.

    >>> import gradsmith as gs
    >>> gs.movedim(gs.zeros(2, 3, 4), 0, -1).shape
    (3, 4, 2)
    """
    x = _input(input, "movedim")
    n = x.data.ndim
    if type(source) is int and type(destination) is int:
        order = list(range(n))
        if n:
            order.insert(_axis(destination, n, "movedim"), order.pop(_axis(source, n, "movedim")))
        dims = tuple(order)
        return apply_view(PermuteBackward, x, x.data.transpose(dims), order=dims)
    src = [_axis(d, n, "movedim") for d in _ints((source,), "movedim")]
    dst = [_axis(d, n, "movedim") for d in _ints((destination,), "movedim")]
    if len(src) != len(dst) or len(set(src)) != len(src) or len(set(dst)) != len(dst):
        raise ValueError("movedim: source and destination must be equally many different axes")
    order = [d for d in range(n) if d not in src]
    for d, s in sorted(zip(dst, src)):
        order.insert(d, s)
    return permute(x, order)


moveaxis = movedim


def squeeze(input: Any, dim: Any = None) -> Tensor:
    """Without axes of size 1: all of them, or those in `dim` that have size 1.

    IndexError for a dim that input lacks.

    >>> import gradsmith as gs
    >>> gs.squeeze(gs.zeros(1, 3, 1), 0).shape
    (3, 1)
    """
    x = _input(input, "squeeze")
    shape = x.data.shape
    n = len(shape)
    if dim is None:
        out = tuple([s for s in shape if s != 1])
    else:
        dims = {_axis(d, n, "squeeze") for d in _ints((dim,), "squeeze")}
        out = tuple([s for i, s in enumerate(shape) if not (i in dims and s == 1)])
    if len(out) == n:
        return x
    return apply_view(ReshapeBackward, x, x.data.reshape(out), shape=shape)


def unsqueeze(input: Any, dim: int) -> Tensor:
    """A new axis of size 1 at `dim`.

    IndexError for a dim that input lacks.

    >>> import gradsmith as gs
    >>> gs.unsqueeze(gs.zeros(3), 0).shape
    (1, 3)
    """
    x = _input(input, "unsqueeze")
    d = _axis(dim, x.data.ndim + 1, "unsqueeze")
    data = x.data
    return apply_view(ReshapeBackward, x, data[_BEFORE[d]], shape=data.shape)


class ExpandBackward(Node):
    """dx = dy summed to the shape of x."""

    __slots__ = ("shape",)
    shape: tuple

    def backward(self, grad: Any) -> tuple:
        return (self.k.sum_to(grad, self.shape),)


def expand(input: Any, *sizes: Any) -> Tensor:
    """A view of a larger shape in which axes of size 1 repeat; -1 keeps a size.

    Raises ValueError when the shape does not broadcast.

    >>> import gradsmith as gs
    >>> gs.expand(gs.zeros(3, 1), (3, 4)).shape
    (3, 4)
    """
    x = _input(input, "expand")
    shape = list(_ints(sizes, "expand"))
    lead = len(shape) - x.data.ndim
    for i, s in enumerate(shape):
        if s == -1:
            if i < lead:
                raise ValueError("expand: -1 is not allowed for a new leading axis")
            shape[i] = x.data.shape[i - lead]
    return apply_view(ExpandBackward, x, x._k.expand(x.data, tuple(shape)), shape=x.data.shape)


def broadcast_to(input: Any, size: Sequence[int]) -> Tensor:
    """As expand.

    ValueError when the shape does not broadcast, TypeError when size has no integers.

    >>> import gradsmith as gs
    >>> gs.broadcast_to(gs.zeros(3), (2, 3)).shape
    (2, 3)
    """
    try:
        return expand(input, *size)
    except REFUSED as error:
        _input(input, "broadcast_to"), integers("broadcast_to", "size", size)
        raise renamed("broadcast_to", error) from None


class FlipBackward(Node):
    """dx = dy flipped back."""

    __slots__ = ("index",)
    index: tuple

    def backward(self, grad: Any) -> tuple:
        return (grad[self.index],)


def flip(input: Any, *dims: Any) -> Tensor:
    """The order along the axes `dims` reversed, as a view.

    IndexError for a dim that input lacks, ValueError for one that is named twice.

    >>> import gradsmith as gs
    >>> gs.flip(gs.tensor([1.0, 2.0]), 0).tolist()
    [2.0, 1.0]
    """
    x = _input(input, "flip")
    n = x.data.ndim
    given = _ints(dims, "flip")
    axes = {_axis(d, n, "flip") for d in given}
    if len(axes) != len(given):
        raise ValueError(f"flip: dims {given} name an axis twice")
    # The Ellipsis keeps an array of no axes an array: NumPy makes a number of it otherwise.
    index: tuple[Any, ...] = (
        *[slice(None, None, -1 if i in axes else 1) for i in range(n)],
        ...,
    )
    return apply_view(FlipBackward, x, x.data[index], index=index)


class DiagonalBackward(Node):
    """dx is 0 but for the diagonal."""

    __slots__ = ("args", "shape")
    shape: tuple
    args: tuple

    def backward(self, grad: Any) -> tuple:
        out = self.k.full(self.shape, 0.0, grad.dtype)
        view = np.diagonal(out, *self.args)
        view.flags.writeable = True
        self.k.copy_(view, grad)
        return (out,)


def diagonal(input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The diagonal of two axes, as the last axis of a view.

    ValueError unless dim1 and dim2 differ, IndexError for one that input lacks.

    >>> import gradsmith as gs
    >>> gs.diagonal(gs.eye(3)).tolist()
    [1.0, 1.0, 1.0]
    """
    x = _input(input, "diagonal")
    n = x.data.ndim
    if type(offset) is not int:
        offset = integer("diagonal", "offset", offset)
    shape, a, b = x.data.shape, _axis(dim1, n, "diagonal"), _axis(dim2, n, "diagonal")
    if n < 2 or a == b:
        raise ValueError(f"diagonal: two different axes are needed, input has shape {shape}")
    # beyond the axes it is empty, wherever; NumPy's offsets have 32 bits
    args = (min(max(offset, -shape[a]), shape[b]), a, b)
    return apply_view(
        DiagonalBackward, x, np.diagonal(x.data, *args), shape=x.data.shape, args=args
    )


# ---- indexing
class SliceBackward(Node):
    """dx is 0 but for the part that was taken."""

    __slots__ = ("index", "shape")
    shape: tuple
    index: Any

    def backward(self, grad: Any) -> tuple:
        out = self.k.full(self.shape, 0.0, grad.dtype)
        self.k.copy_(_basic_view(out, self.index), grad)
        return (out,)


class TakeBackward(Node):
    """dx = dy added up at the indices, in their order."""

    __slots__ = ("axis", "flat", "shape")
    shape: tuple
    flat: tuple  # the shape in which the indexed axes are one
    axis: int

    def backward(self, grad: Any) -> tuple:
        (index,) = self.saved
        k = self.k
        out = k.full(self.flat, 0.0, grad.dtype)
        k.take_add_(out, index, self.axis, grad)
        return (out.reshape(self.shape),)


_BASIC = (int, slice, type(None), type(Ellipsis), np.integer)
_PLAIN = frozenset({int, slice, type(None), type(Ellipsis), np.int64})


def _index_parts(index: Any) -> tuple:
    """The index as a tuple, with Tensors and lists made arrays."""
    items = index if isinstance(index, tuple) else (index,)
    parts: list[Any] = []
    for i in items:
        if isinstance(i, (bool, np.bool_)):
            parts.append(np.asarray(i))
        elif isinstance(i, _BASIC):
            parts.append(i)
        else:
            if isinstance(i, Tensor):
                recording.host_read(*_READS_INDEX)
            a = i.data if isinstance(i, Tensor) else np.asarray(i)
            if a.size == 0 and not isinstance(i, (Tensor, np.ndarray)):
                a = a.astype(np.int64)
            if a.dtype.kind not in "iub":
                raise IndexError(
                    f"index: tensors used as indices must be integer or bool, got {a.dtype}"
                )
            if a.dtype == np.uint8:
                raise IndexError("index: uint8 is ambiguous as an index; use .bool() or .long()")
            parts.append(a)
    return tuple(parts)


def _basic_view(data: np.ndarray, parts: tuple) -> np.ndarray:
    if Ellipsis not in parts:
        parts = (*parts, Ellipsis)  # so that a single element is a 0-d view, not a scalar
    return data[parts]


def _is_basic(parts: tuple) -> bool:
    return all(isinstance(p, _BASIC) for p in parts)


def _advanced(x: Tensor, parts: tuple) -> tuple[np.ndarray, tuple, int, np.ndarray | None]:
    """(index, flat shape, axis, None): the indexed axes merged into one, or, where slices and arrays mix,
    linear indices into all elements."""
    shape = x.data.shape
    items: list[Any] = []
    for p in parts:  # bool masks become integers
        if isinstance(p, np.ndarray) and p.dtype == np.bool_:
            at = sum(1 for q in items if q is not None)
            if p.ndim == 0 or Ellipsis in [q for q in items if not isinstance(q, np.ndarray)]:
                items = []
                break
            if p.shape != shape[at : at + p.ndim]:
                raise IndexError(
                    f"index: a bool mask of shape {p.shape} does not match the axes {shape[at : at + p.ndim]}"
                )
            if len(parts) == 1 and p.ndim == len(shape):
                return np.flatnonzero(p), (x.data.size,), 0, None
            items.extend(p.nonzero())
        else:
            items.append(p)
    arrays = [isinstance(p, (np.ndarray, int, np.integer)) for p in items]
    full = [isinstance(p, slice) and p == slice(None) for p in items]
    if items and len(items) <= len(shape) and all(a or f for a, f in zip(arrays, full)):
        first = arrays.index(True)
        last = len(arrays) - 1 - arrays[::-1].index(True)
        if all(arrays[first : last + 1]):  # one run of arrays
            dims = shape[first : last + 1]
            wrapped = []
            for p, size in zip(items[first : last + 1], dims):
                a = np.asarray(p, np.int64)
                if a.size and int(a.view(np.uint64).max()) < size:  # neither negative nor too large
                    wrapped.append(a)
                    continue
                if a.size and (a.min() < -size or a.max() >= size):
                    bad = int(a.min()) if a.min() < -size else int(a.max())
                    raise IndexError(f"index {bad} is out of range for an axis of size {size}")
                wrapped.append(np.where(a < 0, a + size, a))
            try:
                same = all(w.shape == wrapped[0].shape for w in wrapped)
                linear = wrapped if same else np.broadcast_arrays(*wrapped)
            except ValueError:
                raise IndexError(
                    f"index: arrays of shapes {[w.shape for w in wrapped]} do not broadcast"
                ) from None
            total = linear[0]
            for a, size in zip(linear[1:], dims[1:]):
                total = total * size + a
            merged = 1
            for s in dims:
                merged *= s
            flat = (*shape[:first], merged, *shape[last + 1 :])
            return np.asarray(total, order="C"), flat, first, None
    # any mixture: let NumPy index the positions
    positions = np.arange(x.data.size).reshape(shape)[parts]
    return np.asarray(positions, order="C"), (x.data.size,), 0, None


_INT64, _BOOL = np.dtype(np.int64), np.dtype(np.bool_)
_READS_INDEX = ("indexing with a tensor", "Use gs.index_select, gs.gather or an embedding")


def _take_rows(x: Tensor, index: np.ndarray) -> Tensor:
    """x[index] for one array of integers."""
    data, k = x.data, x._k
    if data.ndim == 0:
        raise IndexError("index of a tensor of shape (): too many indices")
    try:
        out = k.take(data, index, 0)
    except IndexError as e:
        raise IndexError(str(e).removeprefix("take: ")) from None
    shape = data.shape
    return apply(TakeBackward, k, out, (x,), (index,), shape=shape, flat=shape, axis=0)


def _take_places(x: Tensor, where: np.ndarray, flat: tuple[int, ...]) -> Tensor:
    """The places `where` of the first axis of x seen in the shape `flat`."""
    data, k = x.data, x._k
    shape = data.shape
    out = k.take(data.reshape(flat), where, 0)
    return apply(TakeBackward, k, out, (x,), (where,), shape=shape, flat=flat, axis=0)


def _all_places(index: tuple) -> bool:
    """Whether all parts of an index are int64 Tensors, two or more."""
    for p in index:
        if type(p) is not Tensor or p.data.dtype is not _INT64:
            return False
    return len(index) > 1


def _getitem(self: Tensor, index: Any) -> Tensor:
    """x[index]: integers, slices, None and ... give views; integer and bool tensors give copies."""
    kind = type(index)
    data = self.data
    if kind is tuple:
        for part in index:
            if type(part) not in _PLAIN:
                if _all_places(index):
                    recording.host_read(*_READS_INDEX)
                    shape, n = data.shape, len(index)
                    where = self._k.linear_places(tuple([p.data for p in index]), shape)
                    if where is not None:
                        flat = (math.prod(shape[:n]), *shape[n:])
                        return _take_places(self, where, flat)
                parts = _index_parts(index)
                basic = _is_basic(parts)
                break
        else:
            parts, basic = index, True
    elif kind is Tensor:
        if recording.thread is not None:
            recording.host_read(*_READS_INDEX)
        places = index.data
        kind = places.dtype
        if kind is _INT64:
            return _take_rows(self, places)
        shape = data.shape
        if kind is _BOOL and places.shape == shape:
            k, flat = self._k, (data.size,)
            where = k.mask_places(places)
            out = k.take(data.reshape(flat), where, 0)
            return apply(TakeBackward, k, out, (self,), (where,), shape=shape, flat=flat, axis=0)
        parts = _index_parts(index)
        basic = _is_basic(parts)
    elif kind in _PLAIN:
        parts, basic = (index,), True
    else:
        parts = _index_parts(index)
        basic = _is_basic(parts)
    if basic:
        try:
            view = data[parts]
            if type(view) is not np.ndarray:  # a single element: a 0-d view, not a scalar
                view = _basic_view(data, parts)
        except IndexError as e:
            raise IndexError(f"index of a tensor of shape {data.shape}: {e}") from None
        return apply_view(SliceBackward, self, view, shape=data.shape, index=parts)
    if len(parts) == 1 and parts[0].dtype is _INT64:
        return _take_rows(self, parts[0])
    k = self._k
    where, flat, axis, _ = _advanced(self, parts)
    out = k.take(k.contiguous(self.data).reshape(flat), where, axis)
    return apply(
        TakeBackward, k, out, (self,), (where,), shape=self.data.shape, flat=flat, axis=axis
    )


class SetItemBackward(Node):
    """dx = dy with 0 where values were written; dvalue = dy there."""

    __slots__ = ("index", "value_shape")
    index: tuple
    value_shape: tuple

    def backward(self, grad: Any) -> tuple:
        k = self.k
        dx = dv = None
        if self.needs[0]:
            dx = k.copy(grad)
            if _is_basic(self.index):
                k.fill_(_basic_view(dx, self.index), 0.0)
            else:
                dx[self.index] = 0
        if self.needs[1]:
            part = _basic_view(grad, self.index) if _is_basic(self.index) else grad[self.index]
            lead = part.ndim - len(self.value_shape)
            if lead < 0:
                dv = k.contiguous(part).reshape(self.value_shape)
            else:
                dv = k.sum_to(part, self.value_shape)
        return dx, dv


def _setitem(self: Tensor, index: Any, value: Any) -> None:
    """x[index] = value, in place; value broadcasts."""
    parts = index if type(index) is tuple else (index,)
    basic = all([type(p) in _PLAIN for p in parts])
    if not basic:
        parts = _index_parts(index)
        basic = _is_basic(parts)
    k, data = self._k, self.data
    source = value if isinstance(value, Tensor) else None
    if source is not None and source.data.dtype != data.dtype:
        source = value = source.to(dtype=data.dtype)
    if basic:
        try:
            view = _basic_view(data, parts)
        except IndexError as e:
            raise IndexError(f"index of a tensor of shape {data.shape}: {e}") from None
        if isinstance(value, (int, float, np.number, np.bool_)):
            if not (self._rg and is_grad_enabled()):
                k.fill_(view, value)
                written(self)
                return

            def write() -> None:
                k.fill_(view, value)
        else:
            array = source.data if source is not None else np.asarray(value, data.dtype)
            while array.ndim > view.ndim and array.shape[0] == 1:
                array = array[0]
            filled = array
            if array.shape != view.shape:
                filled = k.expand(array, view.shape)  # checks the shape before anything is written
            if np.may_share_memory(filled, data):
                filled = k.copy(filled)
            if not ((self._rg or (source is not None and source._rg)) and is_grad_enabled()):
                k.copy_(view, filled)
                written(self)
                return

            def write() -> None:
                k.copy_(view, filled)
    else:
        recording.host_read("assignment through an index array", "Use gs.scatter or gs.where")
        if not data.flags.writeable:
            raise ValueError("index assignment: the tensor is read-only; clone() it first")
        array = source.data if source is not None else np.asarray(value, data.dtype)
        spot = np.empty(data.shape, np.bool_)[parts].shape
        try:
            np.broadcast_to(array, spot)
        except ValueError:
            raise ValueError(
                f"index assignment: a value of shape {array.shape} does not broadcast to {spot}"
            ) from None

        def write() -> None:
            data[parts] = array

    apply_(
        SetItemBackward,
        self,
        write,
        (self, source),
        name="index assignment",
        index=parts,
        value_shape=() if source is None else source.data.shape,
    )


def select(input: Any, dim: int, index: int) -> Tensor:
    """The slice at `index` along one axis, without that axis, as a view.

    IndexError for a dim or an index out of range.

    >>> import gradsmith as gs
    >>> gs.select(gs.zeros(2, 3), 1, 0).shape
    (2,)
    """
    x = _input(input, "select")
    d = _axis(dim, x.data.ndim, "select")
    return _getitem(x, (*(_ALL,) * d, index))


def narrow(input: Any, dim: int, start: int, length: int) -> Tensor:
    """`length` slices from `start` along one axis, as a view.

    IndexError when they exceed the axis, TypeError when start or length is no integer.

    >>> import gradsmith as gs
    >>> gs.narrow(gs.zeros(5, 3), 0, 1, 2).shape
    (2, 3)
    """
    x = _input(input, "narrow")
    d = _axis(dim, x.data.ndim, "narrow")
    size = x.data.shape[d]
    try:
        begin = start + size if start < 0 else start
        if begin < 0 or length < 0 or begin + length > size:
            raise IndexError(f"narrow: {length} slices from {start} exceed axis {d} of size {size}")
        parts = (*(_ALL,) * d, slice(begin, begin + length))
        view = x.data[parts]
    except (IndexError, TypeError):
        integer("narrow", "start", start), integer("narrow", "length", length)
        raise
    return apply_view(SliceBackward, x, view, shape=x.data.shape, index=parts)


class SplitBackward(Node):
    """dx = the gradients of the parts side by side, 0 for parts that were not used."""

    __slots__ = ("dim", "shape", "sizes", "squeezed")
    shape: tuple
    sizes: Sequence[int]
    dim: int
    squeezed: bool

    def backward(self, *grads: Any) -> tuple:
        k, d, shape = self.k, self.dim, self.shape
        dtype = next(g for g in grads if g is not None).dtype
        parts = [
            k.full((*shape[:d], s, *shape[d + 1 :]), 0.0, dtype)
            if g is None
            else (np.expand_dims(g, d) if self.squeezed else g)
            for g, s in zip(grads, self.sizes)
        ]
        return (k.cat(parts, d),)


def _parts(x: Tensor, sizes: Sequence[int], d: int, squeezed: bool) -> tuple:
    data, before = x.data, (_ALL,) * d
    views = []
    at = 0
    for s in sizes:
        index: Any = (*before, at, ...) if squeezed else (*before, slice(at, at + s))
        views.append(data[index])
        at += s
    if not views:
        return ()
    return apply_views(
        SplitBackward, x, tuple(views), shape=data.shape, sizes=sizes, dim=d, squeezed=squeezed
    )


def split(input: Any, split_size_or_sections: Any, dim: int = 0) -> tuple:
    """Views of equal size (the last may be smaller), or of the given sizes, along one axis.

    ValueError for a size below 1 or sizes that do not add up to the axis, TypeError for no integers.

    >>> import gradsmith as gs
    >>> [t.shape for t in gs.split(gs.zeros(5), 2)]
    [(2,), (2,), (1,)]
    """
    x = _input(input, "split")
    d = _axis(dim, x.data.ndim, "split")
    if x.data.ndim == 0:
        raise ValueError("split: a 0-d tensor cannot be split")
    size = x.data.shape[d]
    if isinstance(split_size_or_sections, (int, np.integer)):
        step = int(split_size_or_sections)
        if step < 1:
            raise ValueError(f"split: split_size must be at least 1, got {step}")
        sizes = [min(step, size - i) for i in range(0, size, step)] or [0]
    else:
        try:
            sizes = [_integer(s) for s in split_size_or_sections]
        except TypeError:
            integers("split", "split_size_or_sections", split_size_or_sections)
            raise
        if sum(sizes) != size or min(sizes, default=0) < 0:
            raise ValueError(
                f"split: sections {sizes} do not add up to {size}, the size of axis {d}"
            )
    return _parts(x, sizes, d, False)


def chunk(input: Any, chunks: int, dim: int = 0) -> tuple:
    """At most `chunks` views of equal size (the last may be smaller) along one axis.

    ValueError for chunks below 1, TypeError when it is no integer.

    >>> import gradsmith as gs
    >>> [t.shape for t in gs.chunk(gs.zeros(5), 2)]
    [(3,), (2,)]
    """
    x = _input(input, "chunk")
    if type(chunks) is not int:
        chunks = integer("chunk", "chunks", chunks)
    if chunks < 1:
        raise ValueError(f"chunk: chunks must be at least 1, got {chunks}")
    d = _axis(dim, x.data.ndim, "chunk")
    size = x.data.shape[d] if x.data.ndim else 0
    if x.data.ndim == 0:
        return split(x, 1, d)
    if size == 0:
        return _parts(x, [0] * chunks, d, False)
    step = -(-size // chunks)
    sizes = [step] * (size // step)
    if size % step:
        sizes.append(size % step)
    return _parts(x, sizes, d, False)


def unbind(input: Any, dim: int = 0) -> tuple:
    """The slices along one axis, as views.

    ValueError for a tensor without axes.

    >>> import gradsmith as gs
    >>> len(gs.unbind(gs.zeros(3, 2)))
    3
    """
    x = _input(input, "unbind")
    if x.data.ndim == 0:
        raise ValueError("unbind: a 0-d tensor has no axis")
    d = _axis(dim, x.data.ndim, "unbind")
    return _parts(x, [1] * x.data.shape[d], d, True)


# ---- joining
class CatBackward(Node):
    """Each input gets its part of dy."""

    __slots__ = ("dim", "sizes")
    sizes: tuple
    dim: int

    def backward(self, grad: Any) -> tuple:
        at = 0
        results = []
        for need, s in zip(self.needs, self.sizes):
            results.append(grad[_at(self.dim, slice(at, at + s))] if need else None)
            at += s
        return tuple(results)


def _tensors(tensors: Any, op: str) -> tuple[Tensor, ...]:
    if isinstance(tensors, Tensor) or not isinstance(tensors, (tuple, list)):
        raise TypeError(f"{op}: expected a tuple or list of Tensors, got {type(tensors).__name__}")
    if not tensors:
        raise ValueError(f"{op}: at least one tensor is needed")
    return tuple([t if isinstance(t, Tensor) else _input(t, op) for t in tensors])


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors joined along an axis they have; the other sizes and the dtypes must be equal.

    Raises ValueError for other sizes or no tensors, TypeError for other dtypes.

    >>> import gradsmith as gs
    >>> gs.cat([gs.zeros(2, 3), gs.ones(1, 3)]).shape
    (3, 3)
    """
    xs = _tensors(tensors, "cat")
    k = xs[0]._k
    out = k.cat([t.data for t in xs], dim)
    d = _axis(dim, out.ndim, "cat")
    return apply(CatBackward, k, out, xs, sizes=tuple([t.data.shape[d] for t in xs]), dim=d)


concat = concatenate = cat


class StackBackward(Node):
    """Each input gets its slice of dy."""

    __slots__ = ("dim",)
    dim: int

    def backward(self, grad: Any) -> tuple:
        return tuple([grad[_at(self.dim, i, ...)] if n else None for i, n in enumerate(self.needs)])


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis.

    Raises ValueError for other shapes or no tensors, TypeError for other dtypes.

    >>> import gradsmith as gs
    >>> gs.stack([gs.zeros(3), gs.ones(3)], dim=1).shape
    (3, 2)
    """
    xs = _tensors(tensors, "stack")
    k = xs[0]._k
    shape = xs[0].data.shape
    for t in xs:
        if t.data.shape != shape:
            raise ValueError(f"stack: shapes {shape} and {t.data.shape} differ; they must be equal")
    d = _axis(dim, len(shape) + 1, "stack")
    index = _BEFORE[d]
    out = k.cat([t.data[index] for t in xs], d)
    return apply(StackBackward, k, out, xs, dim=d)


# ---- repeating and padding
class RepeatBackward(Node):
    """dx = dy summed over the repetitions."""

    __slots__ = ("axes", "long", "shape")
    shape: tuple
    long: tuple
    axes: tuple

    def backward(self, grad: Any) -> tuple:
        k = self.k
        g = k.contiguous(grad).reshape(self.long)
        return (k.sum(g, self.axes, False).reshape(self.shape),)


def _repeat(self: Tensor, *sizes: Any) -> Tensor:
    """The tensor repeated sizes[i] times along axis i (new axes come first), as a copy."""
    return tile(self, sizes) if len(_ints(sizes, "repeat")) >= self.data.ndim else _too_few(self)


def _too_few(x: Tensor) -> Tensor:
    raise ValueError(f"repeat: a count for each of the {x.data.ndim} axes is needed")


def _tiled(x: Tensor, counts: tuple) -> Tensor | None:
    """`tile` where one axis alone is repeated and counts has one for each axis; None for anything else."""
    data = x.data
    shape = data.shape
    n = len(shape)
    if len(counts) != n:
        return None
    d = -1
    for i, c in enumerate(counts):
        if type(c) is not int or c < 1 or (c > 1 and d >= 0):
            return None
        if c > 1:
            d = i
    if d < 0 or n > 7:
        return None
    k, c = x._k, counts[d]
    long = (*shape[:d], c, *shape[d:])
    out = k.copy(k.expand(data[_BEFORE[d]], long)).reshape(
        *shape[:d], c * shape[d], *shape[d + 1 :]
    )
    return apply(RepeatBackward, k, out, (x,), shape=shape, long=long, axes=(d,))


def tile(input: Any, *dims: Any) -> Tensor:
    """The tensor repeated dims[i] times along axis i, aligned to the last axes, as a copy.

    ValueError for a negative count.

    >>> import gradsmith as gs
    >>> gs.tile(gs.tensor([1.0, 2.0]), (2,)).tolist()
    [1.0, 2.0, 1.0, 2.0]
    """
    x = input if isinstance(input, Tensor) else _input(input, "tile")
    if len(dims) == 1 and type(dims[0]) is tuple:
        out = _tiled(x, dims[0])
        if out is not None:
            return out
    counts = _ints(dims, "tile") if not (len(dims) == 1 and isinstance(dims[0], tuple)
                                         and len(dims[0]) == 1) else _ints(dims[0], "tile")  # fmt: skip
    if min(counts, default=1) < 0:
        raise ValueError(f"tile: negative count in {counts}")
    shape = x.data.shape
    n = max(len(shape), len(counts))
    counts = (1,) * (n - len(counts)) + counts
    full = (1,) * (n - len(shape)) + shape
    k = x._k
    if n == 0:
        return x.clone()
    split_shape: list[int] = []
    long: list[int] = []
    kept: list[int] = []  # axes of the repetitions
    for c, s in zip(counts, full):
        if c != 1:
            kept.append(len(long))
            split_shape += [1, s]
            long += [c, s]
        else:
            split_shape.append(s)
            long.append(s)
    if len(long) > 8:
        out = x
        for i, c in enumerate(counts):  # too many axes for one pass
            if c != 1:
                base = out if out.ndim == n else reshape(out, full)
                out = cat([base] * c, i) if c else narrow(base, i, 0, 0).clone()
        return out
    source = k.contiguous(x.data).reshape(split_shape)
    out = k.copy(k.expand(source, tuple(long))).reshape(tuple(c * s for c, s in zip(counts, full)))
    if not kept:
        return apply(ReshapeBackward, k, out, (x,), shape=shape)
    return apply(RepeatBackward, k, out, (x,), shape=shape, long=tuple(long), axes=tuple(kept))


def repeat_interleave(input: Any, repeats: Any, dim: int | None = None) -> Tensor:
    """Each slice along one axis repeated `repeats` times in place (of the flattened tensor for dim None).

    repeats: a number, or a Tensor of int64 or int32 with one number for each slice.

    >>> import gradsmith as gs
    >>> gs.repeat_interleave(gs.tensor([1.0, 2.0]), 2).tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    x = _input(input, "repeat_interleave")
    if dim is None:
        x, dim = ravel(x), 0
    d = _axis(dim, x.data.ndim, "repeat_interleave")
    if isinstance(repeats, (Tensor, np.ndarray, list, tuple)):
        recording.host_read(
            "repeat_interleave(repeats=Tensor)", "Call it outside, or give a number"
        )
        counts, slices = _index_array(repeats, "repeat_interleave"), x.data.shape[d]
        if counts.size == 1:
            counts = np.broadcast_to(counts.reshape(-1), (slices,))
        if counts.shape != (slices,) or (counts < 0).any():
            raise ValueError(
                f"repeat_interleave: repeats must be {slices} numbers, none negative, for axis {d} of an input of "
                f"shape {x.data.shape}; got {counts.tolist()}"
            )
        return index_select(x, d, wrap(np.repeat(np.arange(slices), counts), x._k))
    if type(repeats) is not int:
        repeats = integer("repeat_interleave", "repeats", repeats)
    if repeats < 0:
        raise ValueError(f"repeat_interleave: repeats must not be negative, got {repeats}")
    shape = x.data.shape
    k = x._k
    long = (*shape[: d + 1], repeats, *shape[d + 1 :])
    wide = k.expand(x.data[_BEFORE[d + 1]], long)
    out = k.copy(wide).reshape(*shape[:d], shape[d] * repeats, *shape[d + 1 :])
    return apply(RepeatBackward, k, out, (x,), shape=shape, long=long, axes=(d + 1,))


class RollBackward(Node):
    """dx = dy rolled back."""

    __slots__ = ("dims", "shifts")
    shifts: tuple
    dims: tuple

    def backward(self, grad: Any) -> tuple:
        return (_rolled(self.k, grad, tuple([-s for s in self.shifts]), self.dims),)


def _rolled(k: Any, a: np.ndarray, shifts: tuple, dims: tuple) -> np.ndarray:
    for s, d in zip(shifts, dims):
        n = a.shape[d]
        cut = (-s) % n if n else 0
        if d == 0:
            a = k.cat((a[cut:], a[:cut]), 0)
        elif d == 1:
            a = k.cat((a[:, cut:], a[:, :cut]), 1)
        else:
            first, last = _at(d, slice(0, cut)), _at(d, slice(cut, None))
            a = k.cat((a[last], a[first]), d)
    return a


def roll(input: Any, shifts: Any, dims: Any = None) -> Tensor:
    """Elements shifted along axes, what leaves at one end entering at the other.

    IndexError for a dim that input lacks.

    >>> import gradsmith as gs
    >>> gs.roll(gs.tensor([1.0, 2.0, 3.0]), 1).tolist()
    [3.0, 1.0, 2.0]
    """
    x = input if isinstance(input, Tensor) else _input(input, "roll")
    if type(shifts) is int and type(dims) is int:
        one, at = (shifts,), (_axis(dims, x.data.ndim, "roll"),)
        return apply(RollBackward, x._k, _rolled(x._k, x.data, one, at), (x,), shifts=one, dims=at)
    s = _ints((shifts,), "roll")
    if dims is None:
        if len(s) != 1:
            raise ValueError("roll: several shifts need as many dims")
        return reshape(roll(ravel(x), s[0], 0), x.data.shape)
    d = tuple([_axis(i, x.data.ndim, "roll") for i in _ints((dims,), "roll")])
    if len(s) != len(d):
        raise ValueError(f"roll: {len(s)} shifts for {len(d)} dims; they must be equally many")
    if not d:
        return x
    return apply(RollBackward, x._k, _rolled(x._k, x.data, s, d), (x,), shifts=s, dims=d)


class PadBackward(Node):
    """dx = the part of dy inside the border."""

    __slots__ = ("widths",)
    widths: tuple

    def backward(self, grad: Any) -> tuple:
        return (self.k.pad(grad, tuple([-w for w in self.widths]), 0.0),)


@lru_cache(maxsize=64)
def _pad_index(n: int, before: int, after: int, mode: str) -> np.ndarray:
    """Where each element of a padded axis comes from. Nobody writes into it."""
    i = np.arange(-before, n + after)
    if mode == "replicate":
        return np.clip(i, 0, n - 1)
    if mode == "circular":
        return i % n
    i = np.abs(i)
    return np.where(i >= n, 2 * (n - 1) - i, i)


_MOST = 2**46  # elements: no array is larger


def pad(input: Any, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Borders added to the last axes.

    pad: (before, after) of the last axis, then of the one before it, and so on; for images (N, H, W, C)
    that is (0, 0, left, right, top, bottom). Negative numbers crop (mode "constant"). mode: "constant",
    "reflect" (the edge is not repeated), "replicate" or "circular".
    Raises ValueError when a border is larger than the mode allows.

    >>> import gradsmith as gs
    >>> gs.pad(gs.tensor([1.0, 2.0]), (1, 2)).tolist()
    [0.0, 1.0, 2.0, 0.0, 0.0]
    """
    x = _input(input, "pad")
    try:
        widths = tuple([_integer(p) for p in pad])
    except TypeError:
        integers("pad", "pad", pad)
        raise
    n = x.data.ndim
    shape = x.data.shape
    k = x._k
    if mode == "constant":
        if x.data.dtype.kind != "f" and number("pad", "value", value).is_integer():
            value = int(value)
        return apply(PadBackward, k, k.pad(x.data, widths, value), (x,), widths=widths)
    if len(widths) % 2 or len(widths) // 2 > n:
        raise ValueError(
            f"pad: {len(widths)} numbers for {n} axes; two for each of the last axes are needed"
        )
    if mode not in ("reflect", "replicate", "circular"):
        raise ValueError(
            f"pad: mode must be 'constant', 'reflect', 'replicate' or 'circular', got {mode!r}"
        )
    result = x
    for i in reversed(range(len(widths) // 2)):  # from the first of these axes to the last
        d, a, b = n - 1 - i, widths[2 * i], widths[2 * i + 1]
        if a == 0 and b == 0:
            continue
        s = shape[d]
        limit = s - 1 if mode == "reflect" else s if mode == "circular" else _MOST
        if a < 0 or b < 0 or s == 0 or a > limit or b > limit:
            raise ValueError(
                f"pad: border {(a, b)} of axis {d} with {s} elements is outside what mode {mode!r} allows"
            )
        data, index = result.data, _pad_index(s, a, b, mode)
        was = data.shape
        result = apply(
            TakeBackward,
            k,
            k.take(data, index, d),
            (result,),
            (index,),
            shape=was,
            flat=was,
            axis=d,
        )
    return result if result is not x else x.clone()


# ---- elements by index
def _index_array(index: Any, op: str) -> np.ndarray:
    a = index.data if isinstance(index, Tensor) else np.asarray(index)
    if a.dtype is _INT64:
        return a
    if a.dtype.kind not in "iu" or a.dtype == np.uint8:
        raise TypeError(f"{op}: index has dtype {a.dtype}; int64 or int32 is needed")
    return a


def index_select(input: Any, dim: int, index: Any) -> Tensor:
    """The slices at `index` (1-d, int64 or int32) along one axis.

    Raises IndexError for an index out of range. The gradient adds up in the order of the index.

    >>> import gradsmith as gs
    >>> gs.index_select(gs.tensor([[1.0], [2.0]]), 0, gs.tensor([1, 1])).tolist()
    [[2.0], [2.0]]
    """
    x = _input(input, "index_select")
    i = _index_array(index, "index_select")
    if i.ndim > 1:
        raise ValueError(f"index_select: index must have one axis, has shape {i.shape}")
    i = i.reshape(-1)
    d = _axis(dim, x.data.ndim, "index_select")
    try:
        out = x._k.take(x.data, i, d)
    except IndexError as e:
        raise IndexError(str(e).replace("take:", "index_select:", 1)) from None
    shape = x.data.shape
    return apply(TakeBackward, x._k, out, (x,), (i,), shape=shape, flat=shape, axis=d)


def masked_select(input: Any, mask: Any) -> Tensor:
    """The elements where the bool mask is true, in row-major order.

    TypeError unless mask is bool, ValueError when it does not broadcast with input.

    >>> import gradsmith as gs
    >>> gs.masked_select(gs.tensor([1.0, 2.0]), gs.tensor([False, True])).tolist()
    [2.0]
    """
    x, m = _input(input, "masked_select"), _input(mask, "masked_select")
    recording.host_read("masked_select", "Use gs.where, whose result has a fixed shape")
    if m.data.dtype != np.bool_:
        raise TypeError(f"masked_select: mask has dtype {m.data.dtype}; bool is needed")
    try:
        shape = np.broadcast_shapes(x.data.shape, m.data.shape)
    except ValueError:
        raise ValueError(
            f"masked_select: mask of shape {m.data.shape} does not broadcast with input of shape {x.data.shape}"
        ) from None
    return expand(x, shape)[wrap(x._k.expand(m.data, shape), x._k)]


class GatherBackward(Node):
    """dx = dy added up at the indices."""

    __slots__ = ("dim", "shape")
    shape: tuple
    dim: int

    def backward(self, grad: Any) -> tuple:
        (index,) = self.saved
        k = self.k
        out = k.full(self.shape, 0.0, grad.dtype)
        k.scatter_add_(out, self.dim, index, grad)
        return (out,)


def gather(input: Any, dim: int, index: Any) -> Tensor:
    """out[i][j] = input[index[i][j]][j] for dim 0, and so on; index has as many axes as input.

    IndexError for an index out of range.

    >>> import gradsmith as gs
    >>> gs.gather(gs.tensor([[1.0, 2.0]]), 1, gs.tensor([[1, 0]])).tolist()
    [[2.0, 1.0]]
    """
    x = _input(input, "gather")
    i = _index_array(index, "gather")
    out = x._k.gather(x.data, dim, i)
    return apply(GatherBackward, x._k, out, (x,), (i,), shape=x.data.shape, dim=dim)


def take_along_dim(input: Any, indices: Any, dim: int | None = None) -> Tensor:
    """As gather, with the other axes broadcast; dim None: out of the flattened input.

    IndexError for an index out of range.

    >>> import gradsmith as gs
    >>> gs.take_along_dim(gs.tensor([[3.0, 1.0]]), gs.tensor([[1]]), 1).tolist()
    [[1.0]]
    """
    x = input if isinstance(input, Tensor) else _input(input, "take_along_dim")
    i = _index_array(indices, "take_along_dim")
    try:
        return _taken_along(x, i, dim)
    except REFUSED as error:
        raise renamed("take_along_dim", error) from None


def _taken_along(x: Tensor, i: np.ndarray, dim: int | None) -> Tensor:
    if dim is None:
        return gather(ravel(x), 0, wrap(i.reshape(-1), x._k))
    data, k = x.data, x._k
    a, b = data.shape, i.shape
    d = _axis(dim, len(a), "take_along_dim")
    if len(a) != len(b):
        raise ValueError(f"take_along_dim: input has shape {a} and indices {b}")
    if a == b or (a[:d] == b[:d] and a[d + 1 :] == b[d + 1 :]):
        return apply(GatherBackward, k, k.gather(data, d, i), (x,), (i,), shape=a, dim=d)
    both = [(1, 1) if j == d else (a, b) for j, (a, b) in enumerate(zip(x.data.shape, i.shape))]
    common = [np.broadcast_shapes((a,), (b,))[0] for a, b in both]
    xs = tuple([x.data.shape[d] if j == d else s for j, s in enumerate(common)])
    ns = tuple([i.shape[d] if j == d else s for j, s in enumerate(common)])
    return gather(expand(x, xs), d, wrap(x._k.contiguous(x._k.expand(i, ns)), x._k))


class ScatterAddBackward(Node):
    """dinput = dy, dsrc = dy at the indices."""

    __slots__ = ("dim", "src_shape")
    dim: int
    src_shape: tuple

    def backward(self, grad: Any) -> tuple:
        (index,) = self.saved
        k = self.k
        ds = None
        if self.needs[1]:
            ds = k.gather(grad, self.dim, index)
            if ds.shape != self.src_shape:
                full = k.full(self.src_shape, 0.0, grad.dtype)
                k.copy_(full[tuple([slice(0, s) for s in ds.shape])], ds)
                ds = full
        return (grad if self.needs[0] else None, ds)


def scatter_add(input: Any, dim: int, index: Any, src: Any) -> Tensor:
    """A copy of input with src[i][j] added at [index[i][j]][j] for dim 0, and so on, in a fixed order.

    IndexError for an index out of range.

    >>> import gradsmith as gs
    >>> gs.scatter_add(gs.zeros(2), 0, gs.tensor([1, 1]), gs.tensor([1.0, 2.0])).tolist()
    [0.0, 3.0]
    """
    x = input if isinstance(input, Tensor) else _input(input, "scatter_add")
    s = src if isinstance(src, Tensor) else _input(src, "scatter_add")
    i = _index_array(index, "scatter_add")
    k, data = x._k, s.data
    out = k.copy(x.data)
    k.scatter_add_(out, dim, i, data)
    return apply(ScatterAddBackward, k, out, (x, s), (i,), dim=dim, src_shape=data.shape)


def scatter(input: Any, dim: int, index: Any, src: Any = None, *, value: Any = None) -> Tensor:
    """A copy of input with src (a Tensor or a number) written at the indices; of several at one place, one stays.

    value: the number, by PyTorch's other name.

    >>> import gradsmith as gs
    >>> gs.scatter(gs.zeros(3), 0, gs.tensor([1]), 5.0).tolist()
    [0.0, 5.0, 0.0]
    """
    x = _input(input, "scatter")
    if (src is None) == (value is None):
        raise TypeError("scatter: give src (a Tensor or a number) or value (a number)")
    src = value if src is None else src
    i = _index_array(index, "scatter")
    k = x._k
    s = src if isinstance(src, Tensor) else None
    values = k.expand(k.full((), src, x.data.dtype), i.shape) if s is None else s.data
    out = k.copy(x.data)
    k.scatter_(out, dim, i, values)
    inputs = (x,) if s is None else (x, s)
    return apply(ScatterBackward, k, out, inputs, (i,), dim=dim, src_shape=values.shape)


class ScatterBackward(Node):
    """dinput = dy, 0 where something was written; dsrc = dy at the indices, 0 for what was written over."""

    __slots__ = ("dim", "src_shape")
    dim: int
    src_shape: tuple

    def backward(self, grad: Any) -> tuple:
        (index,) = self.saved
        k = self.k
        dx = None
        if self.needs[0]:
            dx = k.copy(grad)
            k.scatter_(dx, self.dim, index, k.expand(k.full((), 0.0, grad.dtype), index.shape))
        if len(self.needs) == 1:
            return (dx,)
        ds = None
        if self.needs[1]:
            # scattered the same way, its own number comes back to what stayed
            own = np.arange(index.size).reshape(index.shape)
            last = k.full(grad.shape, -1, own.dtype)
            k.scatter_(last, self.dim, index, own)
            stayed = k.eq(k.gather(last, self.dim, index), own)
            ds = k.where(stayed, k.gather(grad, self.dim, index), 0.0)
            if ds.shape != self.src_shape:
                full = k.full(self.src_shape, 0.0, grad.dtype)
                k.copy_(full[tuple([slice(0, n) for n in ds.shape])], ds)
                ds = full
        return (dx, ds)


class IndexAddBackward(Node):
    """dinput = dy, dsource = alpha dy at the indices."""

    __slots__ = ("alpha", "dim")
    dim: int
    alpha: float

    def backward(self, grad: Any) -> tuple:
        (index,) = self.saved
        k = self.k
        ds = None
        if self.needs[1]:
            ds = k.take(grad, index, self.dim)
            if self.alpha != 1:
                ds = k.mul(ds, self.alpha)
        return (grad if self.needs[0] else None, ds)


def index_add(input: Any, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Tensor:
    """A copy of input with alpha * source[i] added to slice index[i] along one axis, in the order of i.

    IndexError for an index out of range, TypeError when alpha is no number.

    >>> import gradsmith as gs
    >>> gs.index_add(gs.zeros(2), 0, gs.tensor([1, 1]), gs.tensor([1.0, 2.0])).tolist()
    [0.0, 3.0]
    """
    x, s = _input(input, "index_add"), _input(source, "index_add")
    i = _index_array(index, "index_add").reshape(-1)
    d = _axis(dim, x.data.ndim, "index_add")
    k = x._k
    added = s.data
    if alpha != 1:
        number("index_add", "alpha", alpha)
        added = k.mul(added, alpha)
    out = k.copy(x.data)
    k.take_add_(out, i, d, added)
    return apply(IndexAddBackward, k, out, (x, s), (i,), dim=d, alpha=alpha)


# ---- triangles, one-hot
class TriangleBackward(Node):
    """dx = the same triangle of dy."""

    __slots__ = ("diagonal", "upper")
    diagonal: int
    upper: bool

    def backward(self, grad: Any) -> tuple:
        return (self.k.triangle(grad, self.diagonal, self.upper),)


def tril(input: Any, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two axes, 0 above the diagonal.

    ValueError for fewer than 2 axes, TypeError when diagonal is no integer.

    >>> import gradsmith as gs
    >>> gs.tril(gs.ones(2, 2)).tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    x = _input(input, "tril")
    if type(diagonal) is not int:
        diagonal = integer("tril", "diagonal", diagonal)
    out = x._k.triangle(x.data, diagonal, False)
    return apply(TriangleBackward, x._k, out, (x,), diagonal=diagonal, upper=False)


def triu(input: Any, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two axes, 0 below the diagonal.

    ValueError for fewer than 2 axes, TypeError when diagonal is no integer.

    >>> import gradsmith as gs
    >>> gs.triu(gs.ones(2, 2)).tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    x = _input(input, "triu")
    if type(diagonal) is not int:
        diagonal = integer("triu", "diagonal", diagonal)
    out = x._k.triangle(x.data, diagonal, True)
    return apply(TriangleBackward, x._k, out, (x,), diagonal=diagonal, upper=True)


def one_hot(tensor: Any, num_classes: int = -1) -> Tensor:
    """int64 rows that are 1 at the class: (...) -> (..., num_classes); -1: the largest class + 1.

    Raises IndexError for a class out of range.

    >>> import gradsmith as gs
    >>> gs.one_hot(gs.tensor([0, 2])).tolist()
    [[1, 0, 0], [0, 0, 1]]
    """
    x = _input(tensor, "one_hot")
    i = _index_array(x, "one_hot")
    if num_classes == -1:
        if i.size == 0:
            raise ValueError("one_hot: num_classes is needed for an empty tensor")
        recording.host_read("one_hot without num_classes", "Pass num_classes")
        num_classes = max(int(x._k.amax(i)) + 1, 1)  # below 0: the kernel's check names the index
    return wrap(x._k.one_hot(i, num_classes), x._k)


def _t(self: Tensor) -> Tensor:
    """The axes reversed, as a view."""
    return apply_view(ReversedBackward, self, self.data.T)


class ReversedBackward(Node):
    """dx = dy with the axes reversed again."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        return (grad.T,)


def _mt(self: Tensor) -> Tensor:
    """The last two axes exchanged, as a view."""
    return transpose(self, -1, -2)


def _attach() -> None:
    m = Tensor._method
    skip = {"broadcast_to", "cat", "concat", "concatenate", "stack", "one_hot", "pad"}
    for name in __all__:
        if name not in skip:
            m(name, globals()[name])
    m("broadcast_to", broadcast_to)
    m("view", _view)
    m("view_as", lambda self, other: _view(self, _input(other, "view_as").shape))
    m("reshape_as", lambda self, other: reshape(self, _input(other, "reshape_as").shape))
    m("expand_as", lambda self, other: expand(self, _input(other, "expand_as").shape))
    m("repeat", _repeat)
    m("t", _t)
    m("T", property(_t))  # type: ignore[arg-type]
    m("mT", property(_mt))  # type: ignore[arg-type]
    m("__getitem__", _getitem)
    m("__setitem__", _setitem)


_attach()
