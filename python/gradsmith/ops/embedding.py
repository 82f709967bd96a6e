"""Rows of a table by index."""

from __future__ import annotations

from typing import Any

from ..core.autograd import Node, apply
from ..core.tensor import Tensor, as_tensor
from ._arguments import integer, kernels

__all__ = ["embedding"]


class EmbeddingBackward(Node):
    """dweight[v] = sum of dy over the positions whose index is v; the padding row gets none."""

    __slots__ = ("padding", "rows")
    rows: int
    padding: int

    def backward(self, grad: Any) -> tuple:
        return (self.k.embedding_backward(grad, self.saved[0], self.rows, self.padding),)


def embedding(
    input: Any,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of a table: y[..., :] = weight[input[...]].

    input: int32 or int64 indices of any shape. weight: (num_embeddings, embedding_dim).
    padding_idx: this row gets no gradient (negative: from the end). The gradient is summed in a fixed
    order, the same bits on any number of threads. max_norm, scale_grad_by_freq and sparse must keep
    their defaults.
    IndexError: an index out of range, naming it and its position. TypeError: indices that are not integers.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.embedding(gs.tensor([2, 0]), gs.tensor([[1.0], [2.0], [3.0]])).tolist()
    [[3.0], [1.0]]
    """
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise ValueError(
            "embedding: max_norm, scale_grad_by_freq and sparse are not supported; leave them at their defaults"
        )
    k = kernels("embedding", weight, "weight")
    if not isinstance(input, Tensor):
        input = as_tensor(input, op="embedding")
    y = k.embedding(weight.data, input.data)
    rows = weight.shape[0]
    if padding_idx is None:
        padding = -1
    else:
        if type(padding_idx) is not int:
            padding_idx = integer("embedding", "padding_idx", padding_idx)
        if not -rows <= padding_idx < rows:
            raise IndexError(
                f"embedding: padding_idx {padding_idx} is out of range for num_embeddings = {rows}"
            )
        padding = padding_idx % rows
    return apply(EmbeddingBackward, k, y, (weight,), (input,), rows=rows, padding=padding)
