"""Sequences of different lengths: padded and packed batches, under PyTorch's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...core import recording
from ...core.creation import full
from ...core.tensor import Tensor, as_tensor
from ...ops.indexing import index_select
from ...ops.joining import cat, pad, stack

__all__ = [
    "PackedSequence",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "unpack_sequence",
    "unpad_sequence",
]


class PackedSequence(NamedTuple):
    """A batch of sequences, step after step without padding; made by the functions of this file.

    data: (sum of lengths, ...). batch_sizes: int64 (T,), how many sequences have a step t.
    sorted_indices, unsorted_indices: the order by falling length and its inverse, or None.

    >>> import gradsmith as gs
    >>> from gradsmith.nn.utils.rnn import pack_sequence
    >>> packed = pack_sequence([gs.tensor([1.0, 2.0, 3.0]), gs.tensor([7.0])])
    >>> packed.data.tolist(), packed.batch_sizes.tolist()
    ([1.0, 7.0, 2.0, 3.0], [2, 1, 1])
    """

    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None


def _lengths(lengths: Any, op: str) -> np.ndarray:
    n = np.asarray(lengths.numpy() if isinstance(lengths, Tensor) else lengths)
    if n.ndim != 1 or n.dtype.kind not in "iu":
        raise TypeError(f"{op}: lengths must be a 1-d sequence of integers")
    return n.astype(np.int64)


def pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Packs a padded batch: (T, B, ...), or (B, T, ...) when batch_first, and B lengths of 1 .. T.

    enforce_sorted: lengths must not rise (ValueError); otherwise they are sorted here, and layers
    put their results back in order. ValueError: lengths of 0, beyond T, or not one a sequence.

    >>> import gradsmith as gs
    >>> from gradsmith.nn.utils.rnn import pack_padded_sequence
    >>> packed = pack_padded_sequence(gs.ones(3, 2, 4), [3, 1])
    >>> packed.data.shape, packed.batch_sizes.tolist()
    ((4, 4), [2, 1, 1])
    """
    op = "pack_padded_sequence"
    n = _lengths(lengths, op)
    if input.ndim < 2:
        raise ValueError(f"{op}: input has shape {input.shape}; expected at least 2 axes")
    B, T = input.shape[:2] if batch_first else (input.shape[1], input.shape[0])
    if len(n) != B:
        raise ValueError(f"{op}: {len(n)} lengths for a batch of {B} (input is {input.shape})")
    if B == 0 or n.min() < 1 or n.max() > T:
        raise ValueError(
            f"{op}: lengths must lie in 1 .. {T} and there must be some, got {n.tolist()}"
        )
    order = np.argsort(-n, kind="stable")
    if enforce_sorted and (np.diff(n) > 0).any():
        raise ValueError(
            f"{op}: lengths {n.tolist()} rise; sort the batch by falling length or pass enforce_sorted=False"
        )
    steps = int(n.max())
    sizes = (n[:, None] > np.arange(steps)).sum(0)
    t = np.repeat(np.arange(steps), sizes)
    b = order[np.concatenate([np.arange(s) for s in sizes])]
    rows = b * T + t if batch_first else t * B + b
    data = index_select(input.reshape(B * T, *input.shape[2:]), 0, Tensor(rows))
    if enforce_sorted:
        return PackedSequence(data, recording.constant(Tensor(sizes)))
    return PackedSequence(
        data, *[recording.constant(Tensor(x)) for x in (sizes, order, np.argsort(order))]
    )


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(padded, lengths) of a packed batch; padded is (T, B, ...), or (B, T, ...) when batch_first.

    total_length: T, at least the longest length (ValueError). TypeError for what is not packed.

    >>> import gradsmith as gs
    >>> from gradsmith.nn.utils.rnn import pack_sequence, pad_packed_sequence
    >>> packed = pack_sequence([gs.ones(3), gs.ones(1)])
    >>> padded, lengths = pad_packed_sequence(packed, batch_first=True)
    >>> padded.tolist(), lengths.tolist()
    ([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], [3, 1])
    """
    if not isinstance(sequence, PackedSequence):
        raise TypeError(
            f"pad_packed_sequence: sequence must be a PackedSequence, got {type(sequence).__name__}"
        )
    sizes = recording.host_array(sequence.batch_sizes)
    steps, B = len(sizes), int(sizes[0])
    T = steps if total_length is None else int(total_length)
    if steps > T:
        raise ValueError(
            f"pad_packed_sequence: total_length {T} is below the longest length {steps}"
        )
    lengths = (sizes[:, None] > np.arange(B)).sum(0)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rows = np.full((T, B), starts[-1])  # the row of padding
    for t in range(steps):
        rows[t, : sizes[t]] = np.arange(starts[t], starts[t + 1])
    if sequence.unsorted_indices is not None:
        back = recording.host_array(sequence.unsorted_indices)
        rows, lengths = rows[:, back], lengths[back]
    if batch_first:
        rows = rows.T
    data = sequence.data
    padding = full((1, *data.shape[1:]), padding_value, dtype=data.dtype)
    flat = index_select(cat([data, padding], 0), 0, Tensor(np.ascontiguousarray(rows.ravel())))
    return flat.reshape(*rows.shape, *data.shape[1:]), Tensor(lengths)


def pad_sequence(
    sequences: Sequence[Tensor],
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: str = "right",
) -> Tensor:
    """Sequences (T_i, ...) side by side: (T, B, ...), or (B, T, ...) when batch_first, T the longest.

    padding_value fills what is missing, at the end or, with padding_side="left", at the start. ValueError: no
    sequences, another side.

    >>> import gradsmith as gs
    >>> from gradsmith.nn.utils.rnn import pad_sequence
    >>> pad_sequence([gs.ones(3), gs.ones(1)], batch_first=True).tolist()
    [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    """
    items = [s if isinstance(s, Tensor) else as_tensor(s) for s in sequences]
    if not items:
        raise ValueError("pad_sequence: there are no sequences")
    if padding_side not in ("left", "right"):
        raise ValueError(
            f"pad_sequence: padding_side must be 'left' or 'right', got {padding_side!r}"
        )
    longest = max(s.shape[0] for s in items)
    padded = []
    for s in items:
        gap = longest - s.shape[0]
        if gap:
            both = (gap, 0) if padding_side == "left" else (0, gap)
            s = pad(s, (0, 0) * (s.ndim - 1) + both, value=padding_value)
        padded.append(s)
    return stack(padded, 0 if batch_first else 1)


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Packs a list of sequences (T_i, ...). enforce_sorted and errors as in `pack_padded_sequence`.

    >>> import gradsmith as gs
    >>> from gradsmith.nn.utils.rnn import pack_sequence
    >>> pack_sequence([gs.ones(1), gs.ones(3)], enforce_sorted=False).sorted_indices.tolist()
    [1, 0]
    """
    lengths = [s.shape[0] for s in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


def unpad_sequence(padded: Tensor, lengths: Any, batch_first: bool = False) -> list[Tensor]:
    """The sequences (T_i, ...) of a padded batch (T, B, ...), or (B, T, ...) when batch_first: views of it.

    lengths: B integers (TypeError for others).

    >>> import gradsmith as gs
    >>> from gradsmith.nn.utils.rnn import unpad_sequence
    >>> [s.tolist() for s in unpad_sequence(gs.ones(2, 3), [3, 1], batch_first=True)]
    [[1.0, 1.0, 1.0], [1.0]]
    """
    n = _lengths(lengths, "unpad_sequence")
    return [padded[i, :m] if batch_first else padded[:m, i] for i, m in enumerate(n.tolist())]


def unpack_sequence(packed: PackedSequence) -> list[Tensor]:
    """The sequences (T_i, ...) of a packed batch, in the order in which they came. TypeError for what is not packed.

    >>> import gradsmith as gs
    >>> from gradsmith.nn.utils.rnn import pack_sequence, unpack_sequence
    >>> [s.tolist() for s in unpack_sequence(pack_sequence([gs.ones(2), gs.ones(1)]))]
    [[1.0, 1.0], [1.0]]
    """
    return unpad_sequence(*pad_packed_sequence(packed, batch_first=True), batch_first=True)
