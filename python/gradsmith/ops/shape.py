"""Shapes: views of a tensor with other axes. What can share memory is a view, as in NumPy.

Views know the tensor that they look at: changing either in place after a gradient was recorded through
them is an error at backward, never a wrong gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index as _integer
from typing import Any

import numpy as np

from ..core.arguments import integer, integers
from ..core.autograd import Node, apply, apply_view
from ..core.tensor import Tensor
from ._arguments import REFUSED, renamed
from ._axes import BEFORE, axis_of, ints_of, is_view, tensor_of

__all__ = [
    "broadcast_to", "diagonal", "expand", "flatten", "flip", "moveaxis", "movedim", "permute", "ravel",
    "reshape", "squeeze", "swapaxes", "transpose", "unflatten", "unsqueeze",
]  # fmt: skip


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
        hint = "; one size alone may be -1" if shape.count(-1) > 1 else ""
        raise ValueError(
            f"{op}: a tensor of shape {data.shape} ({data.size} elements) does not fit into shape {shape}{hint}"
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
    x = input if isinstance(input, Tensor) else tensor_of(input, "reshape")
    data = x.data
    if data.flags.c_contiguous:
        try:
            out = data.reshape(*shape)
        except (ValueError, TypeError):
            pass  # _reshaped says what is wrong
        else:
            return apply_view(ReshapeBackward, x, out, shape=data.shape)
    return _reshaped(x, ints_of(shape, "reshape"), "reshape")


def _view(self: Tensor, *shape: Any) -> Tensor:
    """As reshape, but never a copy: ValueError when the memory order does not allow it."""
    if len(shape) == 1 and not isinstance(shape[0], (int, tuple, list, np.integer)):
        return self.to(dtype=shape[0])
    sizes = ints_of(shape, "view")
    if self.data.flags.c_contiguous:
        return _reshaped(self, sizes, "view")
    try:
        out = self.data.reshape(sizes)
    except ValueError:
        return _reshaped(self, sizes, "view")
    if not is_view(out, self.data):
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
    x = tensor_of(input, "flatten")
    shape = x.data.shape
    n = len(shape)
    if n == 0:
        return _reshaped(x, (1,), "flatten")
    a, b = axis_of(start_dim, n, "flatten"), axis_of(end_dim, n, "flatten")
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
    x = tensor_of(input, "ravel")
    return _reshaped(x, (x.data.size,), "ravel")


def unflatten(input: Any, dim: int, sizes: Sequence[int]) -> Tensor:
    """One axis split into several; one size may be -1.

    ValueError when the sizes do not multiply to the axis' size, TypeError when they are no integers.

    >>> import gradsmith as gs
    >>> gs.unflatten(gs.zeros(2, 12), 1, (3, -1)).shape
    (2, 3, 4)
    """
    x = tensor_of(input, "unflatten")
    d = axis_of(dim, x.data.ndim, "unflatten")
    shape = x.data.shape
    if not shape:
        raise IndexError("unflatten: a tensor without axes has none to split")
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
    x = input if isinstance(input, Tensor) else tensor_of(input, "permute")
    data = x.data
    order = ints_of(dims, "permute")
    try:
        out = data.transpose(order)
    except ValueError:
        n = data.ndim
        order = tuple([axis_of(d, n, "permute") for d in order])
        raise ValueError(f"permute: dims {order} must name each of the {n} axes once") from None
    return apply_view(PermuteBackward, x, out, order=order)


def transpose(input: Any, dim0: int, dim1: int) -> Tensor:
    """Two axes exchanged, as a view.

    IndexError for a dim that input lacks.

    >>> import gradsmith as gs
    >>> gs.transpose(gs.zeros(2, 3), 0, 1).shape
    (3, 2)
    """
    x = tensor_of(input, "transpose")
    n = x.data.ndim
    order = list(range(n))
    a, b = axis_of(dim0, n, "transpose"), axis_of(dim1, n, "transpose")
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
    x = tensor_of(input, "movedim")
    n = x.data.ndim
    if type(source) is int and type(destination) is int:
        order = list(range(n))
        if n:
            order.insert(
                axis_of(destination, n, "movedim"), order.pop(axis_of(source, n, "movedim"))
            )
        dims = tuple(order)
        return apply_view(PermuteBackward, x, x.data.transpose(dims), order=dims)
    src = [axis_of(d, n, "movedim") for d in ints_of((source,), "movedim")]
    dst = [axis_of(d, n, "movedim") for d in ints_of((destination,), "movedim")]
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
    x = tensor_of(input, "squeeze")
    shape = x.data.shape
    n = len(shape)
    if dim is None:
        out = tuple([s for s in shape if s != 1])
    else:
        dims = {axis_of(d, n, "squeeze") for d in ints_of((dim,), "squeeze")}
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
    x = tensor_of(input, "unsqueeze")
    d = axis_of(dim, x.data.ndim + 1, "unsqueeze")
    data = x.data
    return apply_view(ReshapeBackward, x, data[BEFORE[d]], shape=data.shape)


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
    x = tensor_of(input, "expand")
    shape = list(ints_of(sizes, "expand"))
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
        tensor_of(input, "broadcast_to"), integers("broadcast_to", "size", size)
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
    x = tensor_of(input, "flip")
    n = x.data.ndim
    given = ints_of(dims, "flip")
    axes = {axis_of(d, n, "flip") for d in given}
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
    x = tensor_of(input, "diagonal")
    n = x.data.ndim
    if type(offset) is not int:
        offset = integer("diagonal", "offset", offset)
    shape, a, b = x.data.shape, axis_of(dim1, n, "diagonal"), axis_of(dim2, n, "diagonal")
    if n < 2 or a == b:
        raise ValueError(f"diagonal: two different axes are needed, input has shape {shape}")
    # beyond the axes it is empty, wherever; NumPy's offsets have 32 bits
    args = (min(max(offset, -shape[a]), shape[b]), a, b)
    return apply_view(
        DiagonalBackward, x, np.diagonal(x.data, *args), shape=x.data.shape, args=args
    )


def _t(self: Tensor) -> Tensor:
    """The axes reversed, as a view."""
    return apply_view(ReversedBackward, self, self.data.T)


def _small_t(self: Tensor) -> Tensor:
    """The transpose of a matrix, as a view; what has fewer axes comes back as it is.

    ValueError: more than two axes.
    """
    if self.data.ndim > 2:
        raise ValueError(
            f"t: takes a tensor of at most 2 axes, this one has shape {self.data.shape}. Use mT for its matrices, "
            "T to reverse all axes, or permute()"
        )
    return _t(self)


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
    for name in __all__:
        m(name, globals()[name])
    m("view", _view)
    m("view_as", lambda self, other: _view(self, tensor_of(other, "view_as").shape))
    m("reshape_as", lambda self, other: reshape(self, tensor_of(other, "reshape_as").shape))
    m("expand_as", lambda self, other: expand(self, tensor_of(other, "expand_as").shape))
    m("t", _small_t)
    m("T", property(_t))  # type: ignore[arg-type]
    m("mT", property(_mt))  # type: ignore[arg-type]


_attach()
