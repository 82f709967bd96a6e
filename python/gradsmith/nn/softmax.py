"""Softmax layers and the softmax cross-entropy as a module."""

from __future__ import annotations

from ..core.arguments import number
from ..core.tensor import Tensor
from ..ops.softmax import cross_entropy, log_softmax, softmax, softmin
from .module import Module

__all__ = ["CrossEntropyLoss", "LogSoftmax", "Softmax", "Softmin"]


class _Softmax(Module):
    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Softmax(_Softmax):
    """y_i = exp(x_i) / sum_j exp(x_j) along `dim`, the last axis unless told otherwise.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Softmax()(gs.tensor([[0.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """

    def forward(self, input: Tensor) -> Tensor:
        return softmax(input, self.dim)


class LogSoftmax(_Softmax):
    """y_i = x_i - log(sum_j exp(x_j)) along `dim`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> round(nn.LogSoftmax()(gs.tensor([0.0, 0.0])).numpy()[0].item(), 4)
    -0.6931
    """

    def forward(self, input: Tensor) -> Tensor:
        return log_softmax(input, self.dim)


class Softmin(_Softmax):
    """Softmax of -x along `dim`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Softmin()(gs.tensor([0.0, 0.0])).tolist()
    [0.5, 0.5]
    """

    def forward(self, input: Tensor) -> Tensor:
        return softmin(input, self.dim)


class CrossEntropyLoss(Module):
    """Softmax cross-entropy of logits (..., C), classes last; arguments as `functional.cross_entropy`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> loss = nn.CrossEntropyLoss()(gs.tensor([[0.0, 0.0]]), gs.tensor([1]))
    >>> round(loss.item(), 4)
    0.6931
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(
                f"CrossEntropyLoss: reduction must be 'none', 'mean' or 'sum', got {reduction!r}"
            )
        if not 0 <= number("CrossEntropyLoss", "label_smoothing", label_smoothing) <= 1:
            raise ValueError(
                f"CrossEntropyLoss: label_smoothing must lie in [0, 1], got {label_smoothing}"
            )
        self.register_buffer("weight", weight if weight is None else Tensor(weight))
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing
        )

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"
