"""Dropout layers: active in training, identity in evaluation."""

from __future__ import annotations

from typing import Any

from ..core.arguments import number
from ..core.tensor import Tensor
from ..ops.dropout import (
    alpha_dropout,
    dropout,
    dropout1d,
    dropout2d,
    feature_alpha_dropout,
)
from .module import Module

__all__ = ["AlphaDropout", "Dropout", "Dropout1d", "Dropout2d", "FeatureAlphaDropout"]


class _Dropout(Module):
    _fn: Any

    def __init__(self, p: float = 0.5, inplace: bool = False):
        super().__init__()
        if not 0.0 <= number(type(self).__name__, "p", p) <= 1.0:
            raise ValueError(f"{type(self).__name__}: p must lie in [0, 1], got {p}")
        self.p = p
        self.inplace = bool(inplace)

    def forward(self, input: Tensor) -> Tensor:
        return self._fn(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}" + (", inplace=True" if self.inplace else "")


class Dropout(_Dropout):
    """Zeroes elements with probability p in training and scales the rest by 1 / (1 - p).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Dropout(0.5).eval()(gs.ones(2)).tolist()
    [1.0, 1.0]
    """

    _fn = staticmethod(dropout)


class Dropout1d(_Dropout):
    """Dropout of whole channels of (N, T, C) or (T, C).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Dropout1d(0.5)(gs.ones(2, 3, 4)).shape
    (2, 3, 4)
    """

    _fn = staticmethod(dropout1d)


class Dropout2d(_Dropout):
    """Dropout of whole channels of (N, H, W, C) or (H, W, C).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Dropout2d(0.5)(gs.ones(2, 3, 3, 4)).shape
    (2, 3, 3, 4)
    """

    _fn = staticmethod(dropout2d)


class AlphaDropout(_Dropout):
    """Dropout that keeps mean and variance, for networks of SELU.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.AlphaDropout(0.1)(gs.ones(4)).shape
    (4,)
    """

    _fn = staticmethod(alpha_dropout)


class FeatureAlphaDropout(_Dropout):
    """`AlphaDropout` of whole channels, (N, ..., C).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.FeatureAlphaDropout(0.1)(gs.ones(2, 5, 3)).shape
    (2, 5, 3)
    """

    _fn = staticmethod(feature_alpha_dropout)
