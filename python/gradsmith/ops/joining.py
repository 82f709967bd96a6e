"""Splitting, joining, repeating and padding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import index as _integer
from typing import Any

import numpy as np

from ..core import recording
from ..core.arguments import integer, integers, number
from ..core.autograd import Node, apply, apply_views
from ..core.tensor import Tensor, wrap
from ._axes import ALL, BEFORE, at_axis, axis_of, ints_of, tensor_of
from .indexing import TakeBackward, index_array, index_select, narrow
from .shape import ReshapeBackward, ravel, reshape

__all__ = [
    "cat", "chunk", "concat", "concatenate", "pad", "repeat_interleave", "roll", "split", "stack", "tile",
    "unbind",
]  # fmt: skip


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
    data, before = x.data, (ALL,) * d
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
    x = tensor_of(input, "split")
    d = axis_of(dim, x.data.ndim, "split")
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
    x = tensor_of(input, "chunk")
    if type(chunks) is not int:
        chunks = integer("chunk", "chunks", chunks)
    if chunks < 1:
        raise ValueError(f"chunk: chunks must be at least 1, got {chunks}")
    d = axis_of(dim, x.data.ndim, "chunk")
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
    x = tensor_of(input, "unbind")
    if x.data.ndim == 0:
        raise ValueError("unbind: a 0-d tensor has no axis")
    d = axis_of(dim, x.data.ndim, "unbind")
    return _parts(x, [1] * x.data.shape[d], d, True)


class CatBackward(Node):
    """Each input gets its part of dy."""

    __slots__ = ("dim", "sizes")
    sizes: tuple
    dim: int

    def backward(self, grad: Any) -> tuple:
        at = 0
        results = []
        for need, s in zip(self.needs, self.sizes):
            results.append(grad[at_axis(self.dim, slice(at, at + s))] if need else None)
            at += s
        return tuple(results)


def _tensors(tensors: Any, op: str) -> tuple[Tensor, ...]:
    if isinstance(tensors, Tensor) or not isinstance(tensors, (tuple, list)):
        raise TypeError(f"{op}: expected a tuple or list of Tensors, got {type(tensors).__name__}")
    if not tensors:
        raise ValueError(f"{op}: at least one tensor is needed")
    return tuple([t if isinstance(t, Tensor) else tensor_of(t, op) for t in tensors])


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
    d = axis_of(dim, out.ndim, "cat")
    return apply(CatBackward, k, out, xs, sizes=tuple([t.data.shape[d] for t in xs]), dim=d)


concat = concatenate = cat


class StackBackward(Node):
    """Each input gets its slice of dy."""

    __slots__ = ("dim",)
    dim: int

    def backward(self, grad: Any) -> tuple:
        return tuple(
            [grad[at_axis(self.dim, i, ...)] if n else None for i, n in enumerate(self.needs)]
        )


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
    d = axis_of(dim, len(shape) + 1, "stack")
    index = BEFORE[d]
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
    return tile(self, sizes) if len(ints_of(sizes, "repeat")) >= self.data.ndim else _too_few(self)


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
    out = k.copy(k.expand(data[BEFORE[d]], long)).reshape(*shape[:d], c * shape[d], *shape[d + 1 :])
    return apply(RepeatBackward, k, out, (x,), shape=shape, long=long, axes=(d,))


def tile(input: Any, *dims: Any) -> Tensor:
    """The tensor repeated dims[i] times along axis i, aligned to the last axes, as a copy.

    ValueError for a negative count.

    >>> import gradsmith as gs
    >>> gs.tile(gs.tensor([1.0, 2.0]), (2,)).tolist()
    [1.0, 2.0, 1.0, 2.0]
    """
    x = input if isinstance(input, Tensor) else tensor_of(input, "tile")
    if len(dims) == 1 and type(dims[0]) is tuple:
        out = _tiled(x, dims[0])
        if out is not None:
            return out
    counts = ints_of(dims, "tile") if not (len(dims) == 1 and isinstance(dims[0], tuple)
                                         and len(dims[0]) == 1) else ints_of(dims[0], "tile")  # fmt: skip
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
    x = tensor_of(input, "repeat_interleave")
    if dim is None:
        x, dim = ravel(x), 0
    d = axis_of(dim, x.data.ndim, "repeat_interleave")
    if isinstance(repeats, (Tensor, np.ndarray, list, tuple)):
        recording.host_read(
            "repeat_interleave(repeats=Tensor)", "Call it outside, or give a number"
        )
        counts, slices = index_array(repeats, "repeat_interleave"), x.data.shape[d]
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
    wide = k.expand(x.data[BEFORE[d + 1]], long)
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
            first, last = at_axis(d, slice(0, cut)), at_axis(d, slice(cut, None))
            a = k.cat((a[last], a[first]), d)
    return a


def roll(input: Any, shifts: Any, dims: Any = None) -> Tensor:
    """Elements shifted along axes, what leaves at one end entering at the other.

    IndexError for a dim that input lacks.

    >>> import gradsmith as gs
    >>> gs.roll(gs.tensor([1.0, 2.0, 3.0]), 1).tolist()
    [3.0, 1.0, 2.0]
    """
    x = input if isinstance(input, Tensor) else tensor_of(input, "roll")
    if type(shifts) is int and type(dims) is int:
        one, at = (shifts,), (axis_of(dims, x.data.ndim, "roll"),)
        return apply(RollBackward, x._k, _rolled(x._k, x.data, one, at), (x,), shifts=one, dims=at)
    s = ints_of((shifts,), "roll")
    if dims is None:
        if len(s) != 1:
            raise ValueError("roll: several shifts need as many dims")
        return reshape(roll(ravel(x), s[0], 0), x.data.shape)
    d = tuple([axis_of(i, x.data.ndim, "roll") for i in ints_of((dims,), "roll")])
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


def pad(
    input: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Borders added to the last axes.

    pad: (before, after) of the last axis, then of the one before it, and so on; for images (N, H, W, C)
    that is (0, 0, left, right, top, bottom). Negative numbers crop (mode "constant"). mode: "constant",
    "reflect" (the edge is not repeated), "replicate" or "circular". value: what a constant border holds, else 0.
    Raises ValueError when a border is larger than the mode allows.

    >>> import gradsmith as gs
    >>> gs.pad(gs.tensor([1.0, 2.0]), (1, 2)).tolist()
    [0.0, 1.0, 2.0, 0.0, 0.0]
    """
    x = tensor_of(input, "pad")
    try:
        widths = tuple([_integer(p) for p in pad])
    except TypeError:
        integers("pad", "pad", pad)
        raise
    n = x.data.ndim
    shape = x.data.shape
    k = x._k
    if mode == "constant":
        value = 0 if value is None else value
        if not isinstance(value, (int, float)) or x.data.dtype.kind != "f":
            whole = number("pad", "value", value)
            value = int(value) if whole.is_integer() and x.data.dtype.kind != "f" else value
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


def _attach() -> None:
    m = Tensor._method
    for name in __all__:
        if name not in {"cat", "concat", "concatenate", "pad", "stack"}:
            m(name, globals()[name])
    m("repeat", _repeat)


_attach()
