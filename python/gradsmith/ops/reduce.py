"""Reductions over any axes. Sums have a fixed order: the same bits with any number of threads.

dim: None (all axes), an axis or a tuple of axes; keepdim keeps them with size 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..core.autograd import Node, apply, is_grad_enabled
from ..core.tensor import Tensor, resolve_dtype, wrap
from . import elementwise as _ew
from ._arguments import REFUSED, integers, number, renamed
from ._axes import tensor_of

__all__ = [
    "all", "amax", "amin", "any", "argmax", "argmin", "count_nonzero", "cumsum", "logsumexp", "max", "mean",
    "min", "norm", "prod", "std", "sum", "sum_to", "var", "var_mean",
]  # fmt: skip

Axes = int | Sequence[int] | None


class MinMax(NamedTuple):
    """What max and min along one axis return."""

    values: Tensor
    indices: Tensor


def _named(op: str, kernel: Callable, *args: Any) -> Any:
    """kernel(*args), its errors under the name of the op that was called."""
    try:
        return kernel(*args)
    except REFUSED as error:
        raise renamed(op, error) from None


def _kept(shape: tuple, dim: Axes) -> tuple:
    """The shape with the reduced axes kept as 1."""
    if dim is None or (isinstance(dim, (tuple, list)) and len(dim) == 0):
        return (1,) * len(shape)
    n = len(shape)
    if type(dim) is int and n:
        at = dim % n
        return (*shape[:at], 1, *shape[at + 1 :])
    axes = {d % n for d in ((dim,) if not isinstance(dim, (tuple, list)) else dim)} if n else set()
    return tuple([1 if i in axes else s for i, s in enumerate(shape)])


def _count(shape: tuple, kept: tuple) -> int:
    n = 1
    for s, t in zip(shape, kept):
        if t == 1:
            n *= s
    return n


class _Reduce(Node):
    __slots__ = ("axes", "shape")
    shape: tuple
    axes: Any  # dim, as it was given (a list as a tuple)

    @property
    def kept(self) -> tuple:
        return _kept(self.shape, self.axes)


class SumBackward(_Reduce):
    """dx = dy, broadcast."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        if self.axes is not None:  # over all axes dy broadcasts as it is
            grad = grad.reshape(self.kept)
        return (self.k.expand(grad, self.shape),)


class MeanBackward(_Reduce):
    """dx = dy / n, broadcast."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        k, kept = self.k, self.kept
        n = _count(self.shape, kept)
        g = k.mul(grad, 1.0 / n) if n else grad
        return (k.expand(g.reshape(kept), self.shape),)


def _in_dtype(op: str, fn: Callable, dtype: Any, input: Any, *args: Any) -> Tensor:
    """fn(input, *args) of the input in dtype, as dtype (sums of small integers are int64 by themselves)."""
    d = resolve_dtype(dtype, op)
    return fn(tensor_of(input, op).to(dtype=d), *args).to(dtype=d)


def sum(input: Any, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Sum over the axes `dim`; integers and bools give int64; 0 for no elements.

    Order is fixed by the shape; error at most eps (4 + log2 n) sum |x|. dtype: converted to that first.
    IndexError for a dim that input lacks, ValueError for one that occurs twice.

    >>> import gradsmith as gs
    >>> gs.sum(gs.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=0).tolist()
    [4.0, 6.0]
    """
    if dtype is not None:
        return _in_dtype("sum", sum, dtype, input, dim, keepdim)
    x = input if isinstance(input, Tensor) else tensor_of(input, "sum")
    k = x._k
    out = k.sum(x.data, dim, keepdim)
    if x._rg and is_grad_enabled():
        shape = x.data.shape
        return apply(
            SumBackward, k, out, (x,), shape=shape, axes=tuple(dim) if type(dim) is list else dim
        )
    return wrap(out, k)


def mean(input: Any, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Mean over the axes `dim` of a float tensor; NaN for no elements. dtype: converted to that first.

    Raises TypeError for integers, IndexError and ValueError as `sum` does.

    >>> import gradsmith as gs
    >>> gs.mean(gs.tensor([1.0, 3.0])).item()
    2.0
    """
    if dtype is not None:
        return _in_dtype("mean", mean, dtype, input, dim, keepdim)
    x = input if isinstance(input, Tensor) else tensor_of(input, "mean")
    k = x._k
    out = k.mean(x.data, dim, keepdim)
    if x._rg and is_grad_enabled():
        shape = x.data.shape
        return apply(
            MeanBackward, k, out, (x,), shape=shape, axes=tuple(dim) if type(dim) is list else dim
        )
    return wrap(out, k)


class ProdBackward(_Reduce):
    """dx_i = dy prod_{j != i} x_j; exact also where elements are 0."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        (x,) = self.saved
        k, kept = self.k, self.kept
        axes = tuple(i for i, (s, t) in enumerate(zip(self.shape, kept)) if t == 1 and s != 1)
        g = grad.reshape(kept)
        zero = k.eq(x, 0.0)
        zeros = k.sum(zero, axes, True) if axes else k.cast(zero, "int64")
        filled = k.where(zero, 1.0, x)
        others = k.prod(filled, axes, True) if axes else filled  # the product of what is not 0
        plain = k.mul(g, k.div(others, filled))
        only = k.mul(k.cast(zero, x.dtype), k.mul(g, others))
        result = k.where(k.eq(zeros, 0), plain, k.where(k.eq(zeros, 1), only, 0.0))
        return (result,)


def prod(input: Any, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Product over the axes `dim`; integers and bools give int64; 1 for no elements. dtype: converted to that first.

    Errors as in `sum`.

    >>> import gradsmith as gs
    >>> gs.prod(gs.tensor([2.0, 3.0])).item()
    6.0
    """
    if dtype is not None:
        return _in_dtype("prod", prod, dtype, input, dim, keepdim)
    x = tensor_of(input, "prod")
    k = x._k
    shape = x.data.shape
    out = k.prod(x.data, dim, keepdim)
    if not x._rg:
        return wrap(out, k)
    return apply(
        ProdBackward, k, out, (x,), (x,), shape=shape, axes=tuple(dim) if type(dim) is list else dim
    )


class ExtremeBackward(_Reduce):
    """The gradient is shared equally among the elements that attain the extreme."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        x, y = self.saved
        k, kept = self.k, self.kept
        axes = tuple(i for i, (s, t) in enumerate(zip(self.shape, kept)) if t == 1 and s != 1)
        y = y.reshape(kept)
        g = grad.reshape(kept)
        ties = k.eq(x, y)
        if axes:
            g = k.div(g, k.cast(k.sum(ties, axes, True), x.dtype))
        return (k.where(ties, g, 0.0),)


def amax(input: Any, dim: Axes = None, keepdim: bool = False) -> Tensor:
    """Largest value over the axes `dim`, NaN if there is one; ties share the gradient equally.

    Raises ValueError when there are no elements.

    >>> import gradsmith as gs
    >>> gs.amax(gs.tensor([1.0, 3.0, 2.0])).item()
    3.0
    """
    x = tensor_of(input, "amax")
    return _extreme(x, x._k.amax(x.data, dim, keepdim), dim)


def amin(input: Any, dim: Axes = None, keepdim: bool = False) -> Tensor:
    """Smallest value over the axes `dim`, NaN if there is one; ties share the gradient equally.

    Raises ValueError when there are no elements.

    >>> import gradsmith as gs
    >>> gs.amin(gs.tensor([1.0, 3.0, 2.0])).item()
    1.0
    """
    x = tensor_of(input, "amin")
    return _extreme(x, x._k.amin(x.data, dim, keepdim), dim)


def _extreme(x: Tensor, out: np.ndarray, dim: Axes) -> Tensor:
    if not x._rg:
        return wrap(out, x._k)
    shape = x.data.shape
    return apply(
        ExtremeBackward,
        x._k,
        out,
        (x,),
        (x,),
        True,
        shape=shape,
        axes=tuple(dim) if type(dim) is list else dim,
    )


class SelectBackward(Node):
    """The gradient goes to the element that was chosen along the axis."""

    __slots__ = ("dim", "keepdim", "shape")
    shape: tuple
    dim: int
    keepdim: bool

    def backward(self, grad: Any, _: Any = None) -> tuple:
        index = self.saved[0]
        if grad is None:
            return (None,)
        k = self.k
        if self.shape == ():
            return (grad,)
        d = self.dim % len(self.shape)
        if not self.keepdim:
            grad = np.expand_dims(grad, d)
            index = np.expand_dims(index, d)
        out = k.full(self.shape, 0.0, grad.dtype)
        k.scatter_add_(out, d, index, grad)
        return (out,)


def _along(name: str, input: Any, dim: int, keepdim: bool) -> MinMax:
    x = input if isinstance(input, Tensor) else tensor_of(input, name)
    k, data = x._k, x.data
    out = (k.max_along if name == "max" else k.min_along)(data, dim, keepdim)
    return MinMax._make(
        apply(
            SelectBackward, k, out, (x,), (out[1],),
            shape=data.shape, dim=dim, keepdim=keepdim,
        )
    )  # fmt: skip


def max(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest element (dim None), (values, indices) along an axis, or maximum with another Tensor.

    The first of equal elements is taken; NaN is larger than all. Raises ValueError for no elements.

    >>> import gradsmith as gs
    >>> gs.max(gs.tensor([[1.0, 3.0], [5.0, 2.0]]), dim=1).values.tolist()
    [3.0, 5.0]
    """
    try:
        if isinstance(dim, Tensor):
            return _ew.maximum(input, dim)
        return amax(input) if dim is None else _along("max", input, dim, keepdim)
    except REFUSED as error:
        raise renamed("max", error) from None


def min(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest element (dim None), (values, indices) along an axis, or minimum with another Tensor.

    The first of equal elements is taken; NaN is smaller than all. Raises ValueError for no elements.

    >>> import gradsmith as gs
    >>> gs.min(gs.tensor([[1.0, 3.0], [5.0, 2.0]]), dim=1).values.tolist()
    [1.0, 2.0]
    """
    try:
        if isinstance(dim, Tensor):
            return _ew.minimum(input, dim)
        return amin(input) if dim is None else _along("min", input, dim, keepdim)
    except REFUSED as error:
        raise renamed("min", error) from None


def argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Index (int64) of the largest element, of the flattened tensor for dim None; the first of equal ones.

    A NaN counts as larger than all. Raises ValueError when there are no elements.

    >>> import gradsmith as gs
    >>> gs.argmax(gs.tensor([1.0, 3.0, 2.0])).item()
    1
    """
    x = tensor_of(input, "argmax")
    return wrap(x._k.argmax(x.data, dim, keepdim), x._k)


def argmin(input: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Index (int64) of the smallest element, of the flattened tensor for dim None; the first of equal ones.

    >>> import gradsmith as gs
    >>> gs.argmin(gs.tensor([1.0, 3.0, 2.0])).item()
    0
    """
    x = tensor_of(input, "argmin")
    return wrap(x._k.argmin(x.data, dim, keepdim), x._k)


class VarBackward(_Reduce):
    """y = var: dx = dy 2 (x - mean) / (n - correction); the root: dx = dy (x - mean) / (y (n - correction)),
    0 where y = 0."""

    __slots__ = ("correction", "root")
    correction: float
    root: bool

    def backward(self, grad: Any, grad_mean: Any = None) -> tuple:
        saved = self.saved
        x, mean = saved[0], saved[1]
        k, kept = self.k, self.kept
        n = _count(self.shape, kept)
        m = n - self.correction
        dx = None
        if grad is not None:
            g = grad.reshape(kept)
            if self.root:
                y = saved[2].reshape(kept)
                g = k.where(k.eq(y, 0.0), 0.0, k.div(g, y))
            g = k.mul(g, (1.0 if self.root else 2.0) / m if m > 0 else float("nan"))
            dx = k.mul_diff(g, x, mean)
        if grad_mean is not None:
            g = k.mul(grad_mean.reshape(kept), 1.0 / n if n else 0.0)
            dx = k.expand(g, self.shape) if dx is None else k.add(dx, g)
        return (dx,)


def _correction(op: str, dim: Any, correction: Any, unbiased: bool | None) -> float:
    if isinstance(dim, bool):  # PyTorch's older x.var(False); as an axis it would be 0
        raise TypeError(
            f"{op}: dim is {dim}; an axis is needed. For the divisor pass unbiased={dim}"
        )
    if unbiased is None:
        return 1.0 if correction == 1 else number(op, "correction", correction)
    if correction != 1:
        raise ValueError(f"{op}: give correction or unbiased, not both")
    return 1.0 if unbiased else 0.0


def _var(
    input: Any,
    dim: Axes,
    correction: float,
    keepdim: bool,
    unbiased: bool | None,
    root: bool,
    op: str,
) -> Tensor:
    x = input if isinstance(input, Tensor) else tensor_of(input, op)
    k, data = x._k, x.data
    correction = _correction(op, dim, correction, unbiased)
    try:
        out, mean = k.var(data, dim, correction, keepdim, root)
    except (IndexError, TypeError, ValueError) as error:
        raise renamed(op, error) from None
    if not x._rg:
        return wrap(out, k)
    return apply(
        VarBackward, k, out, (x,), (x, mean), root,
        shape=data.shape, axes=tuple(dim) if type(dim) is list else dim, correction=correction, root=root,
    )  # fmt: skip


def var(
    input: Any,
    dim: Axes = None,
    *,
    correction: float = 1,
    keepdim: bool = False,
    unbiased: bool | None = None,
) -> Tensor:
    """Variance sum (x - mean)^2 / (n - correction) over the axes `dim`, in two passes.

    unbiased: True for correction 1, False for 0.
    TypeError for integers or a correction that is no number, ValueError for both correction and unbiased.

    >>> import gradsmith as gs
    >>> gs.var(gs.tensor([1.0, 2.0, 3.0])).item()
    1.0
    """
    return _var(input, dim, correction, keepdim, unbiased, False, "var")


def std(
    input: Any,
    dim: Axes = None,
    *,
    correction: float = 1,
    keepdim: bool = False,
    unbiased: bool | None = None,
) -> Tensor:
    """Standard deviation, the root of `var`, with its arguments.

    >>> import gradsmith as gs
    >>> gs.std(gs.tensor([1.0, 2.0, 3.0])).item()
    1.0
    """
    return _var(input, dim, correction, keepdim, unbiased, True, "std")


def var_mean(
    input: Any,
    dim: Axes = None,
    *,
    correction: float = 1,
    keepdim: bool = False,
    unbiased: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """(variance, mean) over the axes `dim`; arguments as in `var`.

    >>> import gradsmith as gs
    >>> [t.item() for t in gs.var_mean(gs.tensor([1.0, 2.0, 3.0]))]
    [1.0, 2.0]
    """
    x = input if isinstance(input, Tensor) else tensor_of(input, "var_mean")
    k, data = x._k, x.data
    correction = _correction("var_mean", dim, correction, unbiased)
    try:
        out, mean = k.var(data, dim, correction, keepdim, False)
    except (IndexError, TypeError, ValueError) as error:
        raise renamed("var_mean", error) from None
    shape = data.shape
    return apply(
        VarBackward, k, (out, mean if keepdim else mean.reshape(out.shape)), (x,), (x, mean),
        shape=shape, axes=tuple(dim) if type(dim) is list else dim, correction=correction, root=False,
    )  # fmt: skip


class NormBackward(_Reduce):
    """y = (sum |x|^p)^(1/p): dx = dy sign(x) (|x| / y)^(p - 1), 0 where x = 0 or y = 0."""

    __slots__ = ("p",)
    p: float

    def backward(self, grad: Any) -> tuple:
        x, y = self.saved
        k, kept = self.k, self.kept
        y = y.reshape(kept)
        g = grad.reshape(kept)
        if self.p == 2:
            return (k.mul(x, k.where(k.eq(y, 0.0), 0.0, k.div(g, y))),)
        if self.p == 1:
            return (k.mul(g, k.sign(x)),)
        ratio = k.where(k.eq(y, 0.0), 0.0, k.div(k.abs(x), y))
        power = k.pow(ratio, self.p - 1)
        if self.p < 1:  # infinite at 0, where the sign is 0
            power = k.where(k.eq(ratio, 0.0), 0.0, power)
        return (k.mul(k.mul(g, k.sign(x)), power),)


def norm(input: Any, p: Any = 2, dim: Axes = None, keepdim: bool = False) -> Tensor:
    """Vector norm (sum |x|^p)^(1/p) over the axes `dim`; p a number, "fro", inf or -inf.

    TypeError for integers or a p that is no number, ValueError for another word.

    >>> import gradsmith as gs
    >>> gs.norm(gs.tensor([3.0, 4.0])).item()
    5.0
    """
    x = tensor_of(input, "norm")
    k = x._k
    if p in ("fro", None):
        p = 2
    if isinstance(p, str):
        raise ValueError(f"norm: p must be a number or 'fro', got {p!r}")
    if p == float("inf"):
        return _named("norm", amax, _ew.abs(x), dim, keepdim)
    if p == float("-inf"):
        return _named("norm", amin, _ew.abs(x), dim, keepdim)
    if p == 0:
        return wrap(_named("norm", k.sum, k.cast(k.ne(x.data, 0), x.data.dtype), dim, keepdim), k)
    if p == 2:
        try:
            out = k.norm2(x.data, dim, keepdim)
        except (IndexError, TypeError, ValueError) as error:
            raise renamed("norm", error) from None
    elif p == 1:
        out = _named("norm", k.sum_abs, x.data, dim, keepdim)
    else:
        p = number("norm", "p", p)
        powers = _named("norm", k.pow, k.abs(x.data), p)
        out = k.pow(_named("norm", k.sum, powers, dim, keepdim), 1.0 / p)
    if not x._rg:
        return wrap(out, k)
    shape = x.data.shape
    return apply(
        NormBackward,
        k,
        out,
        (x,),
        (x,),
        True,
        shape=shape,
        axes=tuple(dim) if type(dim) is list else dim,
        p=float(p),
    )


class LogSumExpBackward(_Reduce):
    """dx = dy exp(x - y), 0 where y = -inf."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        x, y = self.saved
        k, kept = self.k, self.kept
        y = y.reshape(kept)
        y = k.where(k.eq(y, float("-inf")), 0.0, y)
        return (k.mul(k.exp(k.sub(x, y)), grad.reshape(kept)),)


def logsumexp(input: Any, dim: Axes = None, keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))) over the axes `dim`, without overflow; -inf for no elements.

    Errors as in `mean`.

    >>> import gradsmith as gs
    >>> gs.logsumexp(gs.tensor([1000.0, 1000.0])).item() > 1000
    True
    """
    x = input if isinstance(input, Tensor) else tensor_of(input, "logsumexp")
    k, data = x._k, x.data
    shape = data.shape
    out = k.logsumexp(data, None, dim, keepdim)
    if not x._rg:
        return wrap(out, k)
    return apply(
        LogSumExpBackward,
        k,
        out,
        (x,),
        (x,),
        True,
        shape=shape,
        axes=tuple(dim) if type(dim) is list else dim,
    )


def _truth(op: str, x: Tensor) -> np.ndarray:
    return x.data if x.data.dtype == np.bool_ else _named(op, x._k.ne, x.data, 0)


def any(input: Any, dim: Axes = None, keepdim: bool = False) -> Tensor:
    """Whether some element is not 0, over the axes `dim`.

    Errors as in `sum`.

    >>> import gradsmith as gs
    >>> gs.any(gs.tensor([False, True])).item()
    True
    """
    x = tensor_of(input, "any")
    return wrap(x._k.any_(_truth("any", x), dim, keepdim, False), x._k)


def all(input: Any, dim: Axes = None, keepdim: bool = False) -> Tensor:
    """Whether every element is not 0, over the axes `dim`.

    Errors as in `sum`.

    >>> import gradsmith as gs
    >>> gs.all(gs.tensor([False, True])).item()
    False
    """
    x = tensor_of(input, "all")
    return wrap(x._k.any_(_truth("all", x), dim, keepdim, True), x._k)


def count_nonzero(input: Any, dim: Axes = None) -> Tensor:
    """How many elements are not 0 (int64), over the axes `dim`.

    Errors as in `sum`.

    >>> import gradsmith as gs
    >>> gs.count_nonzero(gs.tensor([0.0, 2.0, 3.0])).item()
    2
    """
    x = tensor_of(input, "count_nonzero")
    return wrap(_named("count_nonzero", x._k.sum, _truth("count_nonzero", x), dim, False), x._k)


class CumsumBackward(Node):
    """dx = cumsum of dy from the end."""

    __slots__ = ("dim",)
    dim: int

    def backward(self, grad: Any) -> tuple:
        return (self.k.cumsum(grad, self.dim, True),)


def cumsum(input: Any, dim: int, *, dtype: Any = None) -> Tensor:
    """Running sum along one axis, in order; integers and bools give int64. dtype: converted to that first.

    IndexError for a dim that input lacks.

    >>> import gradsmith as gs
    >>> gs.cumsum(gs.tensor([1.0, 2.0, 3.0]), 0).tolist()
    [1.0, 3.0, 6.0]
    """
    if dtype is not None:
        return _in_dtype("cumsum", cumsum, dtype, input, dim)
    x = tensor_of(input, "cumsum")
    return apply(CumsumBackward, x._k, x._k.cumsum(x.data, dim), (x,), dim=dim)


class SumToBackward(Node):
    """dx = dy, broadcast."""

    __slots__ = ("shape",)
    shape: tuple

    def backward(self, grad: Any) -> tuple:
        return (self.k.expand(grad, self.shape),)


def sum_to(input: Any, shape: tuple) -> Tensor:
    """Sums to a shape that broadcasts to the input's: the inverse of expand, in one pass.

    >>> import gradsmith as gs
    >>> gs.sum_to(gs.ones(4, 3), (3,)).tolist()
    [4.0, 4.0, 4.0]
    """
    x = tensor_of(input, "sum_to")
    if type(shape) is not tuple:
        shape = integers("sum_to", "shape", shape)
    out = x._k.sum_to(x.data, shape)
    if out is x.data:
        return x
    return apply(SumToBackward, x._k, out, (x,), shape=x.data.shape)


def _attach() -> None:
    for name in __all__:
        if name not in ("sum_to", "var_mean"):
            Tensor._method(name, globals()[name])


_attach()
