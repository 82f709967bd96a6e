"""The multilayer perceptron."""

from __future__ import annotations

import itertools
from typing import Any

from .. import nn
from ..core.tensor import Tensor

__all__ = ["MLP", "mlp"]


class MLP(nn.Sequential):
    """Linear layers with ReLU between them; an input with more axes is flattened to (N, features).

    See ``mlp``, which makes the layers. They are numbered as in ``nn.Sequential``: ``0.weight``, ``2.weight``,
    ... (every third with dropout).

    >>> import gradsmith as gs
    >>> net = gs.models.MLP(gs.nn.Linear(12, 4), gs.nn.ReLU(), gs.nn.Linear(4, 3))
    >>> net(gs.zeros(5, 2, 2, 3)).shape
    (5, 3)
    """

    def forward(self, x: Any) -> Tensor:
        return super().forward(x.reshape(x.shape[0], -1) if x.ndim > 2 else x)


def mlp(*sizes: int, dropout: float = 0.0) -> MLP:
    """A multilayer perceptron: ``mlp(784, 512, 256, 10)``.

    x (N, ..., ) with 784 values a sample -> logits (N, 10). ReLU, and dropout where asked for,
    follow every layer but the last. The sizes may also come as one list. Raises ValueError for
    fewer than two.

    >>> import gradsmith as gs
    >>> [tuple(p.shape) for p in gs.models.mlp(4, 8, 3).parameters()]
    [(8, 4), (8,), (3, 8), (3,)]
    """
    if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)):
        sizes = tuple(sizes[0])
    if len(sizes) < 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(
            f"mlp: sizes {sizes} must be at least two positive whole numbers, inputs first: "
            "mlp(784, 256, 10)."
        )
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(n, m))
        if i < len(sizes) - 2:
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
    return MLP(*layers)
