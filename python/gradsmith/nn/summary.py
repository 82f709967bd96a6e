"""A table of a network's layers: output shapes, parameters, multiply-adds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core import random
from ..core.autograd import no_grad
from ..core.tensor import Tensor
from .attention import LearnedPositionalEncoding, MultiheadAttention
from .conv import _Transposed
from .embedding import Embedding
from .module import Module
from .norm import LayerNorm, RMSNorm
from .recurrent import _Cell, _Recurrent
from .utils.rnn import PackedSequence

__all__ = ["Summary", "summary"]


# Plain classes: this is read at import, and dataclasses would take a tenth of it.
class Row:
    """One layer: its dotted name, class, output shape, own parameters and multiply-adds of one call."""

    __slots__ = ("kind", "multiply_adds", "name", "output_shape", "parameters", "trainable")

    def __init__(
        self,
        name: str,
        kind: str,
        output_shape: tuple,
        parameters: int,
        trainable: int,
        multiply_adds: int,
    ):
        self.name, self.kind, self.output_shape = name, kind, output_shape
        self.parameters, self.trainable, self.multiply_adds = parameters, trainable, multiply_adds


class Summary:
    """What `summary` returns; printing it shows the table.

    rows: one a layer, with name, kind (its class), output_shape, parameters, trainable and multiply_adds (of one
    call); parameters, trainable and multiply_adds of the Summary itself are those of the whole network.

    >>> import gradsmith.nn as nn
    >>> found = nn.summary(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), (1, 8))
    >>> [(row.name, row.kind, row.parameters) for row in found.rows], found.multiply_adds
    ([('0', 'Linear', 36), ('1', 'ReLU', 0)], 32)
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.parameters = self.trainable = self.multiply_adds = 0

    def __str__(self) -> str:
        head = ("layer", "output shape", "parameters", "multiply-adds")
        body = [
            (
                f"{r.name} ({r.kind})" if r.name else r.kind,
                str(r.output_shape),
                f"{r.parameters:,}",
                f"{r.multiply_adds:,}",
            )
            for r in self.rows
        ]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(4)]

        def fmt(line: tuple) -> str:
            left = "  ".join(line[i].ljust(widths[i]) for i in (0, 1))
            return left + "  " + "  ".join(line[i].rjust(widths[i]) for i in (2, 3))

        rule = "-" * (sum(widths) + 6)
        lines = [fmt(head), rule, *[fmt(b) for b in body], rule]
        lines.append(
            f"parameters {self.parameters:,} ({self.trainable:,} trained), multiply-adds {self.multiply_adds:,}"
        )
        return "\n".join(lines)

    __repr__ = __str__


def _multiply_adds(m: Module, args: tuple, out: Any) -> int:
    """Multiplications that are added up in one call of a layer with weight matrices or filters; else 0."""
    first = args[0] if args else None
    if isinstance(m, (_Recurrent, _Cell)):
        x: Any = first.data if isinstance(first, PackedSequence) else first
        if not isinstance(x, (Tensor, np.ndarray)):
            return 0
        # every step of every sequence meets all matrices
        matrices = [p for name, p in m.named_parameters(recurse=False) if name.startswith("weight")]
        return x.size // m.input_size * sum(p.size for p in matrices)
    if isinstance(m, MultiheadAttention):
        if len(args) < 3:  # by keyword, which hooks do not see
            return 0
        query, key, value = args[:3]
        keys = key.shape[1 if m.batch_first and key.ndim == 3 else 0]
        # the projections of all three, then every query's products with all keys and all values
        projected = (query.size + key.size + value.size) * m.embed_dim
        return projected + 2 * query.size * keys
    weight = getattr(m, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or not isinstance(out, Tensor):
        return 0
    if isinstance(m, (Embedding, LayerNorm, LearnedPositionalEncoding, RMSNorm)):
        return 0
    taps = math.prod(weight.shape[1:])
    if isinstance(m, _Transposed):  # every input element meets all taps of its filter
        return first.size * taps if isinstance(first, (Tensor, np.ndarray)) else 0
    # Linear (out, in), Bilinear (out, in, in) and convolutions (out, ..., in/groups): every output is one sum
    return out.size * taps


def summary(model: Module, input_shape: Any, dtype: Any = np.float32) -> Summary:
    """Runs `model` once on zeros and lists its layers.

    input_shape: the shape of one input with its batch axis, (N, H, W, C) or (N, features); or a list of
    shapes for several inputs. Modes, running statistics and the random stream are left as they were.
    Multiply-adds are counted for one call on that shape: of weight matrices and filters, and of attention's products.

    >>> import gradsmith.nn as nn
    >>> nn.summary(nn.Sequential(nn.Flatten()), (1, 4, 4, 1)).rows[0].output_shape
    (1, 16)
    """
    shapes = (
        list(input_shape)
        if input_shape and isinstance(input_shape[0], (tuple, list))
        else [input_shape]
    )
    dtypes = dtype if isinstance(dtype, (tuple, list)) else [dtype] * len(shapes)
    result = Summary()
    handles = []
    counted: set[int] = set()

    def watch(name: str, m: Module) -> None:
        def hook(module: Module, args: tuple, out: Any) -> None:
            own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
            counted.update(id(p) for p in own)
            first = out[0] if isinstance(out, (tuple, list)) else out
            result.rows.append(
                Row(
                    name,
                    type(module).__name__,
                    tuple(first.shape) if isinstance(first, Tensor) else (),
                    sum(p.size for p in own),
                    sum(p.size for p in own if p.requires_grad),
                    _multiply_adds(module, args, first),
                )
            )

        handles.append(m.register_forward_hook(hook))

    for name, m in model.named_modules():
        if not any(True for _ in m.children()) or any(True for _ in m.parameters(recurse=False)):
            watch(name, m)
    modes = [(m, m.training) for m in model.modules()]
    before = random.state()
    try:
        model.eval()
        with no_grad():
            model(*[Tensor(np.zeros(tuple(s), d)) for s, d in zip(shapes, dtypes)])
    finally:
        for h in handles:
            h.remove()
        for m, mode in modes:
            m.__dict__["training"] = mode
        random.set_state(before)
    result.parameters = sum(p.size for p in model.parameters())
    result.trainable = sum(p.size for p in model.parameters() if p.requires_grad)
    result.multiply_adds = sum(r.multiply_adds for r in result.rows)
    return result
