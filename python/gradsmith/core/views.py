"""Copies that Tensor itself makes, and their backward rules."""

from __future__ import annotations

from typing import Any

import numpy as np

from .autograd import Node, apply
from .tensor import Tensor


class CloneBackward(Node):
    """dx = dy."""

    __slots__ = ()

    def backward(self, grad: Any) -> tuple:
        return (grad,)


class CastBackward(Node):
    """dx = dy in the dtype of x."""

    source: str

    def backward(self, grad: Any) -> tuple:
        return (self.k.cast(grad, self.source),)


class CopyBackward(Node):
    """target <- source: nothing for the old target, dy for the source."""

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


Tensor._method("contiguous", contiguous)
Tensor._method("clone", clone)
