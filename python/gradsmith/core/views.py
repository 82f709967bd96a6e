"""Backward rules of the copies and casts that Tensor itself makes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .autograd import Node


class CloneBackward(Node):
    """dx = dy."""

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
