"""Copies that Tensor itself makes, and their backward rules."""

from __future__ import annotations

from typing import Any

import numpy as np

from .autograd import Node, apply
from .tensor import Tensor, wrap


class CloneBackward(Node):
    """dx = dy."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        return (grad,)


class CastBackward(Node):
    """dx = dy in the dtype of x."""

    __slots__ = ("source",)
    source: np.dtype

    def backward(self, grad: Any) -> tuple:
        return (self.k.cast(grad, self.source),)


class CopyBackward(Node):
    """target <- source: nothing for the old target, dy for the source."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        return (np.zeros_like(grad) if self.needs[0] else None, grad if self.needs[1] else None)


def contiguous(self: Tensor) -> Tensor:
    """Itself when in C order, else a copy that is."""
    if self.data.flags.c_contiguous:
        return self
    k = self._k
    return apply(CloneBackward, k, k.contiguous(self.data), (self,))


def clone(self: Tensor) -> Tensor:
    """A copy with its own memory; gradients flow through."""
    k = self._k
    return apply(CloneBackward, k, k.copy(self.data), (self,))


def _cast(self: Tensor, dtype: np.dtype) -> Tensor:
    """In another dtype; to integers without a gradient."""
    k, source = self._k, self.data.dtype
    out = k.cast(self.data, dtype)
    if dtype.kind != "f":
        return wrap(out, k)
    return apply(CastBackward, k, out, (self,), source=source)


Tensor._method("_cast", _cast)
Tensor._method("contiguous", contiguous)
Tensor._method("clone", clone)
