"""Indexing: parts of a tensor by slices, integers, arrays and masks; elements by index; triangles; one-hot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core import recording
from ..core.arguments import integer, number
from ..core.autograd import Node, apply, apply_, apply_view, is_grad_enabled, written
from ..core.tensor import Tensor, numbers_of, wrap
from ._arguments import REFUSED, renamed
from ._axes import ALL, axis_of, tensor_of
from .shape import expand, ravel

__all__ = [
    "gather", "index_add", "index_select", "masked_select", "narrow", "one_hot", "scatter", "scatter_add",
    "select", "take_along_dim", "tril", "triu",
]  # fmt: skip


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


def _value(value: Any, dtype: np.dtype) -> np.ndarray:
    try:
        return numbers_of(value, dtype)
    except (OverflowError, TypeError, ValueError) as error:
        text = str(error).removeprefix("Tensor: ")
        raise type(error)(f"index assignment: {text}") from None


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
            array = source.data if source is not None else _value(value, data.dtype)
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
        array = source.data if source is not None else _value(value, data.dtype)
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
    x = tensor_of(input, "select")
    d = axis_of(dim, x.data.ndim, "select")
    return _getitem(x, (*(ALL,) * d, index))


def narrow(input: Any, dim: int, start: int, length: int) -> Tensor:
    """`length` slices from `start` along one axis, as a view.

    IndexError when they exceed the axis, TypeError when start or length is no integer.

    >>> import gradsmith as gs
    >>> gs.narrow(gs.zeros(5, 3), 0, 1, 2).shape
    (2, 3)
    """
    x = tensor_of(input, "narrow")
    d = axis_of(dim, x.data.ndim, "narrow")
    size = x.data.shape[d]
    try:
        begin = start + size if start < 0 else start
        if begin < 0 or length < 0 or begin + length > size:
            raise IndexError(f"narrow: {length} slices from {start} exceed axis {d} of size {size}")
        parts = (*(ALL,) * d, slice(begin, begin + length))
        view = x.data[parts]
    except (IndexError, TypeError):
        integer("narrow", "start", start), integer("narrow", "length", length)
        raise
    return apply_view(SliceBackward, x, view, shape=x.data.shape, index=parts)


# ---- elements by index
def index_array(index: Any, op: str) -> np.ndarray:
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
    x = tensor_of(input, "index_select")
    i = index_array(index, "index_select")
    if i.ndim > 1:
        raise ValueError(f"index_select: index must have one axis, has shape {i.shape}")
    i = i.reshape(-1)
    d = axis_of(dim, x.data.ndim, "index_select")
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
    x, m = tensor_of(input, "masked_select"), tensor_of(mask, "masked_select")
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
    x = tensor_of(input, "gather")
    i = index_array(index, "gather")
    out = x._k.gather(x.data, dim, i)
    return apply(GatherBackward, x._k, out, (x,), (i,), shape=x.data.shape, dim=dim)


def take_along_dim(input: Any, indices: Any, dim: int | None = None) -> Tensor:
    """As gather, with the other axes broadcast; dim None: out of the flattened input.

    IndexError for an index out of range.

    >>> import gradsmith as gs
    >>> gs.take_along_dim(gs.tensor([[3.0, 1.0]]), gs.tensor([[1]]), 1).tolist()
    [[1.0]]
    """
    x = input if isinstance(input, Tensor) else tensor_of(input, "take_along_dim")
    i = index_array(indices, "take_along_dim")
    try:
        return _taken_along(x, i, dim)
    except REFUSED as error:
        raise renamed("take_along_dim", error) from None


def _taken_along(x: Tensor, i: np.ndarray, dim: int | None) -> Tensor:
    if dim is None:
        return gather(ravel(x), 0, wrap(i.reshape(-1), x._k))
    data, k = x.data, x._k
    a, b = data.shape, i.shape
    d = axis_of(dim, len(a), "take_along_dim")
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
    x = input if isinstance(input, Tensor) else tensor_of(input, "scatter_add")
    s = src if isinstance(src, Tensor) else tensor_of(src, "scatter_add")
    i = index_array(index, "scatter_add")
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
    x = tensor_of(input, "scatter")
    if (src is None) == (value is None):
        raise TypeError("scatter: give src (a Tensor or a number) or value (a number)")
    src = value if src is None else src
    i = index_array(index, "scatter")
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
    x, s = tensor_of(input, "index_add"), tensor_of(source, "index_add")
    i = index_array(index, "index_add").reshape(-1)
    d = axis_of(dim, x.data.ndim, "index_add")
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
    x = tensor_of(input, "tril")
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
    x = tensor_of(input, "triu")
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
    x = tensor_of(tensor, "one_hot")
    i = index_array(x, "one_hot")
    if num_classes == -1:
        if i.size == 0:
            raise ValueError("one_hot: num_classes is needed for an empty tensor")
        recording.host_read("one_hot without num_classes", "Pass num_classes")
        num_classes = max(int(x._k.amax(i)) + 1, 1)  # below 0: the kernel's check names the index
    return wrap(x._k.one_hot(i, num_classes), x._k)


def _attach() -> None:
    m = Tensor._method
    for name in __all__:
        if name not in {"one_hot"}:
            m(name, globals()[name])
    m("__getitem__", _getitem)
    m("__setitem__", _setitem)


_attach()
