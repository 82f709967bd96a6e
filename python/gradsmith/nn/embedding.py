"""Embedding layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.arguments import integer
from ..core.creation import filled
from ..core.tensor import Parameter, Tensor, resolve_dtype
from ..ops.embedding import embedding
from . import init
from .module import Module

__all__ = ["Embedding"]


class Embedding(Module):
    """A table of num_embeddings vectors of embedding_dim numbers, looked up by index.

    weight: (num_embeddings, embedding_dim), drawn from a standard normal; the row padding_idx is zero
    and gets no gradient. input: int32 or int64 indices of any shape. IndexError: an index out of range.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.Embedding(10, 4)(gs.tensor([[1, 2, 3]])).shape
    (1, 3, 4)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        dtype: Any = None,
    ):
        super().__init__()
        for name, n in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
            if not isinstance(n, (int, np.integer)) or n < 1:
                raise ValueError(f"Embedding: {name} must be a positive integer, got {n!r}")
        self.num_embeddings = int(num_embeddings)
        self.embedding_dim = int(embedding_dim)
        if padding_idx is not None:
            if (
                not -num_embeddings
                <= integer("Embedding", "padding_idx", padding_idx)
                < num_embeddings
            ):
                raise ValueError(
                    f"Embedding: padding_idx {padding_idx} is out of range for num_embeddings = {num_embeddings}"
                )
            padding_idx = int(padding_idx) % int(num_embeddings)
        self.padding_idx = padding_idx
        d = np.dtype(np.float32) if dtype is None else resolve_dtype(dtype, "Embedding")
        if d.kind != "f":
            raise TypeError(f"Embedding: dtype must be float32 or float64, got {d}")
        self.weight = Parameter(filled((self.num_embeddings, self.embedding_dim), d))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Standard normal values, zeros in the padding row."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            self.weight.data[self.padding_idx] = 0
            self.weight._ver[0] += 1

    @classmethod
    def from_pretrained(
        cls, embeddings: Any, freeze: bool = True, padding_idx: int | None = None
    ) -> Embedding:
        """A layer that holds a copy of `embeddings`, (num_embeddings, embedding_dim); freeze: not trained.

        >>> import gradsmith as gs, gradsmith.nn as nn
        >>> nn.Embedding.from_pretrained(gs.ones(3, 2))(gs.tensor([1])).tolist()
        [[1.0, 1.0]]
        """
        data = (
            embeddings.detach().data if isinstance(embeddings, Tensor) else np.asarray(embeddings)
        )
        if data.ndim != 2 or data.dtype.kind != "f":
            raise ValueError(
                "Embedding.from_pretrained: embeddings must be floating-point and of shape "
                f"(num_embeddings, embedding_dim), got {data.dtype} {data.shape}"
            )
        layer = cls.__new__(cls)
        Module.__init__(layer)
        rows, cols = data.shape
        if padding_idx is not None and not -rows <= padding_idx < rows:
            raise ValueError(
                f"Embedding.from_pretrained: padding_idx {padding_idx} is out of range for {rows} rows"
            )
        layer.num_embeddings, layer.embedding_dim = rows, cols
        layer.padding_idx = None if padding_idx is None else padding_idx % rows
        layer.weight = Parameter(np.array(data), requires_grad=not freeze)
        return layer

    def forward(self, input: Any) -> Tensor:
        return embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        pad = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{pad}"
