"""Matrix products: matmul and its special cases, linear maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.autograd import Node, apply
from ..core.tensor import Tensor, as_tensor
from ._arguments import REFUSED, not_tensors, number, renamed

__all__ = ["addmm", "bilinear", "bmm", "dot", "linear", "matmul", "mm", "mv", "outer"]


def _sum_to(k: Any, g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """g summed over the leading and broadcast axes that `shape` does not have."""
    lead = g.ndim - len(shape)
    summed = [i for i in range(g.ndim) if i < lead or (shape[i - lead] == 1 and g.shape[i] != 1)]
    if not summed:
        return g
    kept = [i for i in range(g.ndim) if i not in summed]
    turned = k.contiguous(g.transpose(summed + kept))
    rows = 1
    for i in summed:
        rows *= g.shape[i]
    size = 1
    for n in shape:
        size *= n
    return k.colsum(turned.reshape(rows, size)).reshape(shape)


def _rows(k: Any, a: np.ndarray) -> np.ndarray:
    """(..., n) as (rows, n)."""
    if a.ndim == 2:
        return a
    if not a.flags.c_contiguous:
        a = k.contiguous(a)
    n = a.shape[-1]
    return a.reshape(a.size // n if n else int(np.prod(a.shape[:-1])), n)


class MatmulBackward(Node):
    """dA = dC B^T, dB = A^T dC, summed over broadcast batch dimensions."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        a, b = self.saved
        k = self.k
        need_a, need_b = self.needs
        da = db = None
        if a.ndim == 2 and b.ndim == 2:
            if need_a:
                da = k.matmul(grad, b, tb=True)
            if need_b:
                db = k.matmul(a, grad, ta=True)
            return da, db
        a2 = a.reshape(1, -1) if a.ndim == 1 else a
        b2 = b.reshape(-1, 1) if b.ndim == 1 else b
        g = grad
        if b.ndim == 1:
            g = g[..., None]
        if a.ndim == 1:
            g = g[..., None, :]
        if need_a:
            da = _sum_to(k, k.matmul(g, b2, tb=True), a2.shape).reshape(a.shape)
        if need_b:
            if b2.ndim == 2:  # one B for the whole batch: one product over all rows
                db = k.matmul(_rows(k, a2), _rows(k, g), ta=True).reshape(b.shape)
            else:
                db = _sum_to(k, k.matmul(a2, g, ta=True), b2.shape).reshape(b.shape)
        return da, db


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product: c[..., i, j] = sum over k of a[..., i, k] * b[..., k, j].

    a: (..., m, k) or (k,). b: (..., k, n) or (k,). Leading dimensions broadcast; a vector is a row on
    the left and a column on the right, and its axis is dropped from the result (as numpy.matmul).
    float32 or float64, one dtype, any strides. Raises ValueError when the sizes of k differ or the
    batch dimensions do not broadcast, TypeError for other dtypes.

    >>> import gradsmith as gs
    >>> a = gs.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> (a @ gs.tensor([1.0, 1.0])).tolist()
    [3.0, 7.0]
    """
    if not isinstance(a, Tensor):
        a = as_tensor(a, b if isinstance(b, Tensor) else None, "matmul", "a")
    if not isinstance(b, Tensor):
        b = as_tensor(b, a, "matmul", "b")
    k = a._k
    return apply(MatmulBackward, k, k.matmul(a.data, b.data), (a, b), (a, b))


def _dims(op: str, name: str, x: Tensor, ndim: int, layout: str) -> None:
    if not isinstance(x, Tensor):
        raise not_tensors(op, None, **{name: x})
    if x.data.ndim != ndim:
        raise ValueError(
            f"{op}: {name} has shape {x.shape}; expected {ndim} dimensions {layout}. "
            "Use matmul for other numbers of dimensions"
        )


def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """Product of two matrices: (m, k) times (k, n). ValueError unless both have 2 dimensions.

    >>> import gradsmith as gs
    >>> gs.mm(gs.ones(2, 3), gs.ones(3, 4)).shape
    (2, 4)
    """
    _dims("mm", "input", input, 2, "(m, k)")
    _dims("mm", "mat2", mat2, 2, "(k, n)")
    try:
        return matmul(input, mat2)
    except REFUSED as error:
        raise renamed("mm", error) from None


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """Products of stacks of matrices: (b, m, k) times (b, k, n), the batches equal, not broadcast.

    ValueError for shapes that do not fit, TypeError for dtypes that differ.

    >>> import gradsmith as gs
    >>> gs.bmm(gs.ones(5, 2, 3), gs.ones(5, 3, 4)).shape
    (5, 2, 4)
    """
    _dims("bmm", "input", input, 3, "(b, m, k)")
    _dims("bmm", "mat2", mat2, 3, "(b, k, n)")
    if input.shape[0] != mat2.shape[0]:
        raise ValueError(
            f"bmm: input has shape {input.shape} and mat2 {mat2.shape}; their batch sizes must be equal"
        )
    try:
        return matmul(input, mat2)
    except REFUSED as error:
        raise renamed("bmm", error) from None


def mv(input: Tensor, vec: Tensor) -> Tensor:
    """Matrix times vector: (m, k) times (k,).

    ValueError for shapes that do not fit.

    >>> import gradsmith as gs
    >>> gs.mv(gs.ones(2, 3), gs.ones(3)).tolist()
    [3.0, 3.0]
    """
    _dims("mv", "input", input, 2, "(m, k)")
    _dims("mv", "vec", vec, 1, "(k,)")
    try:
        return matmul(input, vec)
    except REFUSED as error:
        raise renamed("mv", error) from None


def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """Sum of products of two vectors of one length.

    ValueError for other shapes or lengths that differ.

    >>> import gradsmith as gs
    >>> gs.dot(gs.tensor([1.0, 2.0]), gs.tensor([3.0, 4.0])).item()
    11.0
    """
    _dims("dot", "input", input, 1, "(k,)")
    _dims("dot", "tensor", tensor, 1, "(k,)")
    try:
        return matmul(input, tensor)
    except REFUSED as error:
        raise renamed("dot", error) from None


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """Outer product: c[i, j] = input[i] * vec2[j]; (n,) and (m,) give (n, m).

    ValueError unless both are vectors.

    >>> import gradsmith as gs
    >>> gs.outer(gs.tensor([1.0, 2.0]), gs.tensor([3.0, 4.0])).tolist()
    [[3.0, 4.0], [6.0, 8.0]]
    """
    _dims("outer", "input", input, 1, "(n,)")
    _dims("outer", "vec2", vec2, 1, "(m,)")
    k = input._k
    out = k.matmul(input.data[:, None], vec2.data[None, :])
    return apply(OuterBackward, k, out, (input, vec2), (input, vec2))


class OuterBackward(Node):
    """dx = dC y, dy = dC^T x."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        x, y = self.saved
        return (
            self.k.matmul(grad, y) if self.needs[0] else None,
            self.k.matmul(x, grad) if self.needs[1] else None,
        )


class LinearBackward(Node):
    """dx = dy W, dW = dy^T x, db = column sums of dy."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        x, w = self.saved
        k = self.k
        need_x, need_w, need_b = self.needs
        if grad.ndim == 1:
            grad2, x2 = grad.reshape(1, -1), x.reshape(1, -1)
        elif grad.ndim == 2:
            grad2, x2 = grad, x
        else:
            grad2 = _rows(k, grad)
            x2 = _rows(k, x) if need_w else x
        dx = dw = db = None
        if need_x:
            dx = k.matmul(grad2, w)
            if dx.shape != x.shape:
                dx = dx.reshape(x.shape)
        if need_w:
            dw = k.matmul(grad2, x2, ta=True)
        if need_b:
            db = k.colsum(grad2)
        return dx, dw, db


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear map of the last axis: y = input @ weight^T + bias.

    input: (..., in). weight: (out, in). bias: (out,) or None. Returns (..., out). Raises ValueError when
    the last axis of input is not `in`, TypeError when the dtypes differ.

    >>> import gradsmith as gs
    >>> gs.linear(gs.ones(4, 3), gs.ones(2, 3), gs.ones(2)).tolist()[0]
    [4.0, 4.0]
    """
    try:
        return input._k.apply_linear(LinearBackward, input, weight, bias)
    except (AttributeError, TypeError) as error:
        raise not_tensors("linear", error, input=input, weight=weight, bias=bias) from None


def addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """beta * input + alpha * (mat1 @ mat2); mat1 (m, k), mat2 (k, n), input broadcasts to (m, n).

    ValueError for shapes that do not fit, TypeError for dtypes that differ or a beta or alpha that is no number.

    >>> import gradsmith as gs
    >>> gs.addmm(gs.ones(2), gs.ones(2, 3), gs.ones(3, 2)).tolist()
    [[4.0, 4.0], [4.0, 4.0]]
    """
    if not isinstance(input, Tensor):
        raise not_tensors("addmm", None, input=input)
    if type(alpha) is not float or type(beta) is not float:
        alpha, beta = number("addmm", "alpha", alpha), number("addmm", "beta", beta)
    if not (isinstance(mat1, Tensor) and mat1.data.ndim == 2):
        _dims("addmm", "mat1", mat1, 2, "(m, k)")
    if not (isinstance(mat2, Tensor) and mat2.data.ndim == 2):
        _dims("addmm", "mat2", mat2, 2, "(k, n)")
    k, left, right, wide = mat1._k, mat1.data, mat2.data, input.data
    m, n = left.shape[0], right.shape[1]
    if wide.shape != (m, n):
        try:
            wide = np.broadcast_to(wide, (m, n))
        except ValueError:
            raise ValueError(
                f"addmm: input has shape {input.shape}; it must broadcast to ({m}, {n})"
            ) from None
    try:
        if beta == 0:
            out = k.matmul(left, right, alpha=alpha)
        elif beta == 1 and input.data.shape == (n,):
            out = k.matmul(left, right, input.data, alpha=alpha)
        elif beta == 1 and left.dtype is wide.dtype:
            out = k.copy(wide)
            k.matmul_out(out, left, right, None, False, False, 0, alpha, True)
        else:
            # out = beta * (input + alpha / beta * product) needs the sum scaled once more; a rank-one
            # product with beta keeps it in one kernel: out = beta * input first, then accumulate.
            out = k.matmul(
                k.contiguous(wide).reshape(-1, 1),
                np.full((1, 1), beta, left.dtype),
                exact=True,
            ).reshape(m, n)
            k.matmul_out(out, left, right, alpha=alpha, accumulate=True)
    except REFUSED as error:
        raise renamed("addmm", error) from None
    return apply(
        AddmmBackward, k, out, (input, mat1, mat2), (input, mat1, mat2), alpha=alpha, beta=beta
    )


class AddmmBackward(Node):
    """dinput = beta * dC summed over what was broadcast, dA = alpha dC B^T, dB = alpha A^T dC."""

    __slots__ = ("alpha", "beta")
    alpha: float
    beta: float

    def backward(self, grad: Any) -> tuple:
        x, a, b = self.saved
        k = self.k
        dx = da = db = None
        if self.needs[0]:
            dx = _sum_to(k, grad, x.shape)
            if self.beta != 1:
                flat = k.contiguous(dx).reshape(-1, 1)
                dx = k.matmul(
                    flat, np.ones((1, 1), dx.dtype), alpha=float(self.beta), exact=True
                ).reshape(x.shape)
        if self.needs[1]:
            da = k.matmul(grad, b, tb=True, alpha=float(self.alpha))
        if self.needs[2]:
            db = k.matmul(a, grad, ta=True, alpha=float(self.alpha))
        return dx, da, db


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y[..., o] = sum over i, j of input1[..., i] * weight[o, i, j] * input2[..., j] + bias[o].

    input1: (..., in1). input2: (..., in2), the same leading dimensions. weight: (out, in1, in2).
    bias: (out,) or None. ValueError when the shapes do not fit.

    >>> import gradsmith as gs
    >>> gs.bilinear(gs.ones(4, 2), gs.ones(4, 3), gs.ones(5, 2, 3)).tolist()[0][0]
    6.0
    """
    if not (
        isinstance(input1, Tensor)
        and isinstance(input2, Tensor)
        and isinstance(weight, Tensor)
        and (bias is None or isinstance(bias, Tensor))
    ):
        raise not_tensors("bilinear", None, input1=input1, input2=input2, weight=weight, bias=bias)
    k, w = input1._k, weight.data
    x1, x2 = input1.data, input2.data
    if w.ndim != 3:
        raise ValueError(
            f"bilinear: weight has shape {weight.shape}; expected 3 dimensions (out, in1, in2)"
        )
    n, i, j = w.shape
    shape = x1.shape
    if not shape or (*shape[:-1], j) != x2.shape or shape[-1] != i:
        raise ValueError(
            f"bilinear: input1 has shape {input1.shape} and input2 {input2.shape}; they must be (..., {i}) and "
            f"(..., {j}) with equal leading dimensions (weight is {weight.shape})"
        )
    if len(shape) != 2:
        x1, x2 = _rows(k, np.atleast_2d(x1)), _rows(k, np.atleast_2d(x2))
    # outer products of the rows, then one product with the weight as (in1 * in2, out)
    out, pairs = k.bilinear(x1, x2, w, None if bias is None else bias.data)
    if len(shape) != 2:
        out = out.reshape(*shape[:-1], n)
    return apply(
        BilinearBackward, k, out, (input1, input2, weight, bias), (input1, input2, weight, pairs)
    )


class BilinearBackward(Node):
    """With P = outer(x1, x2) flattened: dP = dy W, dW = dy^T P, dx1 = dP x2, dx2 = x1 dP."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        input1, input2, weight, pairs = self.saved
        k = self.k
        n, i, j = weight.shape
        g = _rows(k, np.atleast_2d(grad))
        x1, x2 = _rows(k, np.atleast_2d(input1)), _rows(k, np.atleast_2d(input2))
        d1 = d2 = dw = db = None
        if self.needs[0] or self.needs[1]:
            dp = k.matmul(g, k.contiguous(weight).reshape(n, i * j)).reshape(-1, i, j)
            if self.needs[0]:
                d1 = k.matmul(dp, x2[:, :, None]).reshape(input1.shape)
            if self.needs[1]:
                d2 = k.matmul(x1[:, None, :], dp).reshape(input2.shape)
        if self.needs[2]:
            dw = k.matmul(g, pairs, ta=True).reshape(weight.shape)
        if self.needs[3]:
            db = k.colsum(g)
        return d1, d2, dw, db


def _rmatmul(self: Tensor, other: Any) -> Tensor:
    return matmul(as_tensor(other, like=self), self)


Tensor._method("__matmul__", matmul)
Tensor._method("__rmatmul__", _rmatmul)
Tensor._method("matmul", matmul)
Tensor._method("mm", mm)
Tensor._method("bmm", bmm)
Tensor._method("mv", mv)
Tensor._method("dot", dot)
Tensor._method("outer", outer)
