"""Lengths and angles of vectors along one axis, composed of other ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.autograd import Node, apply
from ..core.tensor import Tensor, as_tensor
from . import reduce as _reduce
from ._arguments import REFUSED, integer, number, renamed
from .elementwise import clamp, div
from .shape import expand

__all__ = ["cosine_similarity", "normalize"]


def _float(x: Any, op: str) -> Tensor:
    if not isinstance(x, Tensor):
        x = as_tensor(x, op=op)
    if x.data.dtype.kind != "f":
        raise TypeError(f"{op}: expected a float tensor, got {x.dtype}. Convert it with .float().")
    return x


def _eps(eps: Any, op: str) -> float:
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not eps >= 0:
        raise ValueError(f"{op}: eps must be a number >= 0, got {eps!r}")
    return float(eps)


def normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """y = x / max(norm(x, p), eps) along dim; the gradient of the norm is 0 where it is below eps.

    Raises TypeError unless input is a float tensor, IndexError when dim is no axis of it.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.normalize(gs.tensor([[3.0, 4.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    x = input if type(input) is Tensor else _float(input, "normalize")
    data = x.data
    if data.dtype.kind != "f":
        _float(x, "normalize")
    if type(eps) is not float or not eps >= 0:
        eps = _eps(eps, "normalize")
    if p != 2.0 or type(dim) is not int:
        p = p if p in ("fro", None) else number("normalize", "p", p)
        try:
            return div(x, clamp(_reduce.norm(x, p, dim, True), min=eps))
        except REFUSED as error:
            raise renamed("normalize", error) from None
    k = x._k
    try:
        length = k.norm2(data, dim, True)
    except REFUSED as error:
        raise renamed("normalize", error) from None
    most = k.clamp(length, eps, None)
    return apply(
        NormalizeBackward, k, k.div(data, most), (x,), (length, most), True, dim=dim, eps=eps
    )


class NormalizeBackward(Node):
    """dx = (dy - y sum(dy y)) / norm, dy / eps where the norm is below eps."""

    __slots__ = ("dim", "eps")
    dim: int
    eps: float

    def backward(self, grad: Any) -> tuple:
        length, most, y = self.saved
        k = self.k
        along = k.sum(k.mul(grad, y), self.dim, True)
        along = k.where(k.lt(length, self.eps), 0.0, along)
        return (k.div(k.sub(grad, k.mul(y, along)), most),)


def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """sum(x1 x2) / (max(norm(x1), eps) max(norm(x2), eps)) along dim; the inputs broadcast.

    Raises TypeError unless both are float tensors, IndexError when dim is no axis of them.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.cosine_similarity(gs.tensor([[1.0, 0.0]]), gs.tensor([[0.0, 2.0]])).tolist()
    [0.0]
    """
    a, b = _float(x1, "cosine_similarity"), _float(x2, "cosine_similarity")
    eps = eps if type(eps) is float and eps >= 0 else _eps(eps, "cosine_similarity")
    if a.data.shape != b.data.shape:
        try:
            shape = np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise ValueError(
                f"cosine_similarity: x1 {a.shape} and x2 {b.shape} do not broadcast. Expected equal sizes, or 1."
            ) from None
        a, b = (x if x.shape == shape else expand(x, shape) for x in (a, b))
    if type(dim) is not int:
        dim = integer("cosine_similarity", "dim", dim)
    k = a._k
    x, y = a.data, b.data
    try:
        dot = k.sum(k.mul(x, y), dim, False)
    except REFUSED as error:
        raise renamed("cosine_similarity", error) from None
    na, nb = k.norm2(x, dim, False), k.norm2(y, dim, False)
    la, lb = k.clamp(na, eps, None), k.clamp(nb, eps, None)
    out = k.div(dot, k.mul(la, lb))
    axis = dim % (x.ndim or 1)
    return apply(CosineBackward, k, out, (a, b), (a, b, na, nb, la, lb), True, dim=axis, eps=eps)


class CosineBackward(Node):
    """da = dy (b / (|a| |b|) - y a / |a|^2), db alike; without the second term where a norm is below eps."""

    __slots__ = ("dim", "eps")
    dim: int
    eps: float

    def backward(self, grad: Any) -> tuple:
        a, b, na, nb, la, lb, y = self.saved
        k = self.k
        wide: Any = (*(slice(None),) * self.dim, None) if a.ndim else ...
        both = k.div(grad, k.mul(la, lb))[wide]
        turn = k.mul(grad, y)
        grads: list[Any] = []
        for need, own, other, norm, length in zip(
            self.needs, (a, b), (b, a), (na, nb), (la, lb), strict=True
        ):
            if not need:
                grads.append(None)
                continue
            along = k.where(k.lt(norm, self.eps), 0.0, k.div(turn, k.mul(length, length)))[wide]
            grads.append(k.sub(k.mul(other, both), k.mul(own, along)))
        return tuple(grads)
