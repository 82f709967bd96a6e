"""Multi-head attention, transformer layers, positional encodings."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.arguments import integer, number
from ..core.creation import filled
from ..core.tensor import Parameter, Tensor, as_tensor
from ..ops._arguments import not_tensors
from ..ops.activation import gelu, relu
from ..ops.attention import attention_qkv, scaled_dot_product_attention
from ..ops.dropout import dropout
from ..ops.elementwise import where
from ..ops.matmul import linear, matmul
from ..ops.softmax import softmax
from . import init
from .dropout import Dropout
from .linear import Linear
from .module import Module, ModuleList
from .norm import LayerNorm

__all__ = [
    "LearnedPositionalEncoding",
    "MultiheadAttention",
    "SinusoidalPositionalEncoding",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]


class _Projection(Linear):
    """The output projection: bias zero at the start."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.bias is not None:
            init.zeros_(self.bias)


def _allowed(mask: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """A bool mask of PyTorch's layers (True: keep out) turned round; a float mask as it is."""
    m = mask if isinstance(mask, Tensor) else as_tensor(mask)
    if m.shape != shape:
        raise ValueError(f"MultiheadAttention: {name} has shape {m.shape}; expected {shape}")
    if m.data.dtype == np.bool_:
        return m.logical_not()
    if m.data.dtype.kind != "f":
        raise TypeError(f"MultiheadAttention: {name} has dtype {m.dtype}; it must be bool or float")
    return m


def _merge(a: Tensor | None, b: Tensor | None, dtype: Any) -> Tensor | None:
    """Both masks at once: bool when both are, else a sum."""
    if a is None or b is None:
        return b if a is None else a
    if a.data.dtype == b.data.dtype == np.bool_:
        return a.logical_and(b)
    parts = []
    for m in (a, b):
        if m.data.dtype == np.bool_:
            zero = Tensor(np.zeros((), dtype))
            m = where(m, zero, Tensor(np.full((), -np.inf, dtype)))
        parts.append(m.to(dtype=dtype))
    return parts[0] + parts[1]


class MultiheadAttention(Module):
    """Multi-head attention: concat over heads of softmax(Q_h K_h^T / sqrt(D)) V_h, then a projection.

    embed_dim: E, the size of queries and of the output; num_heads divides it, D = E / num_heads.
    kdim, vdim: sizes of keys and values (E). Parameters are PyTorch's: in_proj_weight (3 E, E), or
    q_proj_weight, k_proj_weight, v_proj_weight when kdim or vdim differ, in_proj_bias (3 E,),
    out_proj. Projections are drawn by Xavier's uniform rule, biases zero. batch_first: inputs are
    (B, T, E) instead of (T, B, E).
    add_bias_kv and add_zero_attn must keep their defaults (ValueError).
    Vaswani et al., 2017.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> layer = nn.MultiheadAttention(8, 2, batch_first=True)
    >>> x = gs.ones(3, 5, 8)
    >>> out, weights = layer(x, x, x)
    >>> out.shape, weights.shape
    ((3, 5, 8), (3, 5, 5))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        dtype: Any = np.float32,
    ):
        super().__init__()
        for name, n in (("embed_dim", embed_dim), ("num_heads", num_heads)):
            integer("MultiheadAttention", name, n)
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"MultiheadAttention: embed_dim {embed_dim} must be a positive multiple of num_heads {num_heads}"
            )
        if not 0.0 <= number("MultiheadAttention", "dropout", dropout) <= 1.0:
            raise ValueError(f"MultiheadAttention: dropout must lie in [0, 1], got {dropout}")
        if add_bias_kv or add_zero_attn:
            raise ValueError(
                "MultiheadAttention: add_bias_kv and add_zero_attn are not supported; leave them False"
            )
        self.embed_dim = int(embed_dim)
        self.num_heads = int(num_heads)
        self.head_dim = self.embed_dim // self.num_heads
        self.dropout = float(dropout)
        self.kdim = self.embed_dim if kdim is None else int(kdim)
        self.vdim = self.embed_dim if vdim is None else int(vdim)
        self.batch_first = bool(batch_first)
        E = self.embed_dim
        self._same = self.kdim == E and self.vdim == E
        if self._same:
            self.in_proj_weight = Parameter(filled((3 * E, E), dtype))
        else:
            self.q_proj_weight = Parameter(filled((E, E), dtype))
            self.k_proj_weight = Parameter(filled((E, self.kdim), dtype))
            self.v_proj_weight = Parameter(filled((E, self.vdim), dtype))
        self.register_parameter("in_proj_bias", Parameter(filled(3 * E, dtype)) if bias else None)
        self.out_proj = _Projection(E, E, bias=bias, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the projections again."""
        if self._same:
            init.xavier_uniform_(self.in_proj_weight)
        else:
            for w in (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
                init.xavier_uniform_(w)
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
        self.out_proj.reset_parameters()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(output, weights or None).

        query: (T, B, E), key: (S, B, kdim), value: (S, B, vdim), batch first when the layer is so; or
        without a batch. key_padding_mask: (B, S), bool (True: this key is padding) or float (added).
        attn_mask: (T, S) or (B * num_heads, T, S), bool (True: keep out) or float (added).
        need_weights: also return the weights (B, T, S), averaged over heads, or (B, num_heads, T, S);
        False is faster. is_causal: row i sees the keys j <= i; attn_mask is then not needed.
        A row that sees no key gives zeros before the projection.
        """
        op = "MultiheadAttention"
        for x in (query, key, value):
            if not isinstance(x, Tensor):
                raise not_tensors(op, None, query=query, key=key, value=value)
        axes = query.data.ndim
        single = axes == 2
        if axes not in (2, 3) or not axes == key.data.ndim == value.data.ndim:
            raise ValueError(
                f"{op}: query has shape {query.shape}, key {key.shape} and value {value.shape}; "
                "all must have 3 axes, or 2 without a batch"
            )
        same = query is key and key is value
        if not (same and self._same and query.data.shape[-1] == self.embed_dim):
            for name, t, n in (
                ("query", query, self.embed_dim),
                ("key", key, self.kdim),
                ("value", value, self.vdim),
            ):
                if t.shape[-1] != n:
                    raise ValueError(f"{op}: {name} has shape {t.shape}; its last axis must be {n}")
        first = self.batch_first or single
        if single:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = as_tensor(key_padding_mask).unsqueeze(0)
        lead, others = query.data.shape[:2], key.data.shape[:2]
        B, T = lead if first else lead[::-1]
        S = others[1 if first else 0]
        if not same and (others != value.data.shape[:2] or others[0 if first else 1] != B):
            raise ValueError(
                f"{op}: query has shape {query.shape}, key {key.shape} and value {value.shape}; "
                "batch sizes, and the lengths of key and value, must be equal"
            )
        H, dtype = self.num_heads, query.data.dtype
        mask = None
        if attn_mask is not None:
            m = attn_mask if isinstance(attn_mask, Tensor) else as_tensor(attn_mask)
            shape: tuple[int, ...] = (T, S) if m.ndim == 2 else (B * H, T, S)
            mask = _allowed(m, "attn_mask", shape)
            if mask.ndim == 3:
                mask = mask.reshape(B, H, T, S)
        if is_causal and mask is None and (key_padding_mask is not None or need_weights):
            mask = Tensor(np.tri(T, S, dtype=bool))
        if key_padding_mask is not None:
            padding = _allowed(key_padding_mask, "key_padding_mask", (B, S)).reshape(B, 1, 1, S)
            mask = _merge(mask, padding, dtype)
        causal = is_causal and mask is None
        p = self.dropout if self.training else 0.0
        b = self.in_proj_bias
        E = self.embed_dim
        if same and self._same and not need_weights and not (mask is not None and mask._rg):
            qkv = linear(query, self.in_proj_weight, b)
            out = attention_qkv(qkv, H, mask, p, causal, batch_first=first)
            weights = None
        else:
            if self._same and same:
                parts = linear(query, self.in_proj_weight, b)
                q, k, v = parts.reshape(*lead, 3, H, self.head_dim).unbind(2)
            else:
                if self._same:
                    w = self.in_proj_weight
                    wq, wk, wv = w[:E], w[E : 2 * E], w[2 * E :]
                else:
                    wq, wk, wv = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
                bq, bk, bv = (None,) * 3 if b is None else (b[:E], b[E : 2 * E], b[2 * E :])
                q, k, v = (
                    linear(x, w, c).reshape(*x.shape[:2], H, self.head_dim)
                    for x, w, c in ((query, wq, bq), (key, wk, bk), (value, wv, bv))
                )
            order = (0, 2, 1, 3) if first else (1, 2, 0, 3)
            q, v = q.permute(*order), v.permute(*order)
            if need_weights:
                turned = k.permute(*((0, 2, 3, 1) if first else (1, 2, 3, 0)))
                heads, weights = _with_weights(q, turned, v, mask, p)
            else:
                heads = scaled_dot_product_attention(q, k.permute(*order), v, mask, p, causal)
                weights = None
            back = (0, 2, 1, 3) if first else (2, 0, 1, 3)
            out = heads.permute(*back).reshape(*lead, E)
        out = self.out_proj(out)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            out = out.squeeze(0)
            weights = None if weights is None else weights.squeeze(0)
        return out, weights

    def extra_repr(self) -> str:
        text = f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"
        if self.dropout:
            text += f", dropout={self.dropout}"
        return text + (", batch_first=True" if self.batch_first else "")


def _with_weights(
    q: Tensor, turned: Tensor, v: Tensor, mask: Tensor | None, p: float
) -> tuple[Tensor, Tensor]:
    """(output, weights) from matmul and softmax; rows without keys have weights 0. turned: the keys, (.., D, S)."""
    scores = matmul(q * (1.0 / math.sqrt(q.data.shape[-1])), turned)
    if mask is not None:
        if mask.data.dtype == np.bool_:
            seen = mask.expand(*scores.shape)
            any_seen = seen.any(-1, True)
            # a row without keys is computed without its mask and then set to zero
            scores = where(seen.logical_or(any_seen.logical_not()), scores, float("-inf"))
            weights = softmax(scores, -1)
            weights = where(any_seen, weights, 0.0)
        else:
            weights = softmax(scores + mask, -1)
    else:
        weights = softmax(scores, -1)
    if p:
        weights = dropout(weights, p)
    return matmul(weights, v), weights


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": gelu}


def _activation(fn: Any, layer: str) -> Callable[[Tensor], Tensor]:
    if callable(fn):
        return fn
    if fn not in _ACTIVATIONS:
        raise ValueError(f"{layer}: activation must be 'relu', 'gelu' or a function, got {fn!r}")
    return _ACTIVATIONS[fn]


class _Layer(Module):
    """What encoder and decoder layers share: the arguments, the parameters, the feed-forward part."""

    _blocks: int  # each with its norm and dropout; the middle one of three is attention to `memory`

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Any = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        dtype: Any = np.float32,
    ):
        super().__init__()
        name = type(self).__name__
        self.activation = _activation(activation, name)
        self.norm_first = bool(norm_first)
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, dtype=dtype
        )
        if self._blocks == 3:
            self.multihead_attn = MultiheadAttention(
                d_model, nhead, dropout, bias, batch_first=batch_first, dtype=dtype
            )
        self.linear1 = Linear(d_model, dim_feedforward, bias, dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, dtype)
        for i in range(1, self._blocks + 1):
            setattr(self, f"norm{i}", LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype))
            setattr(self, f"dropout{i}", Dropout(dropout))

    def _feed_forward(self, x: Tensor, dropout: Module) -> Tensor:
        return dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feed-forward network, each with a residual sum and a layer norm.

    x = norm1(x + attention(x)); x = norm2(x + linear2(activation(linear1(x)))); with norm_first the
    norms come first: x = x + attention(norm1(x)), x = x + ff(norm2(x)). Arguments and parameter names
    are PyTorch's. src: (T, B, d_model), or (B, T, d_model) with batch_first. Vaswani et al., 2017.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.TransformerEncoderLayer(8, 2, 16)(gs.ones(5, 3, 8)).shape
    (5, 3, 8)
    """

    _blocks = 2

    def _attend(self, x: Tensor, mask: Any, padding: Any, causal: bool) -> Tensor:
        y = self.self_attn(x, x, x, padding, need_weights=False, attn_mask=mask, is_causal=causal)[
            0
        ]
        return self.dropout1(y)

    def forward(
        self,
        src: Tensor,
        src_mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool = False,
    ) -> Tensor:
        """The layer's output, of the shape of src; masks as MultiheadAttention's attn_mask and key_padding_mask."""
        x = src
        if self.norm_first:
            x = x + self._attend(self.norm1(x), src_mask, src_key_padding_mask, is_causal)
            return x + self._feed_forward(self.norm2(x), self.dropout2)
        x = self.norm1(x + self._attend(x, src_mask, src_key_padding_mask, is_causal))
        return self.norm2(x + self._feed_forward(x, self.dropout2))


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to `memory` and a feed-forward network, each with residual and norm.

    Arguments and parameter names are PyTorch's. tgt: (T, B, d_model), memory: (S, B, d_model), batch
    first with batch_first.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.TransformerDecoderLayer(8, 2, 16)(gs.ones(5, 3, 8), gs.ones(4, 3, 8)).shape
    (5, 3, 8)
    """

    _blocks = 3

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """The layer's output, of the shape of tgt."""

        def own(x: Tensor) -> Tensor:
            y = self.self_attn(
                x, x, x, tgt_key_padding_mask, False, tgt_mask, is_causal=tgt_is_causal
            )[0]
            return self.dropout1(y)

        def cross(x: Tensor) -> Tensor:
            y = self.multihead_attn(
                x, memory, memory, memory_key_padding_mask, False, memory_mask,
                is_causal=memory_is_causal,
            )[0]  # fmt: skip
            return self.dropout2(y)

        x = tgt
        if self.norm_first:
            x = x + own(self.norm1(x))
            x = x + cross(self.norm2(x))
            return x + self._feed_forward(self.norm3(x), self.dropout3)
        x = self.norm1(x + own(x))
        x = self.norm2(x + cross(x))
        return self.norm3(x + self._feed_forward(x, self.dropout3))


def _copies(layer: Module, n: int, name: str) -> ModuleList:
    if integer(name, "num_layers", n) < 1:
        raise ValueError(f"{name}: num_layers = {n} must be at least 1")
    if not isinstance(layer, Module):
        raise TypeError(f"{name}: the layer must be a Module, got {type(layer).__name__}")
    return ModuleList([copy.deepcopy(layer) for _ in range(n)])


class TransformerEncoder(Module):
    """num_layers copies of an encoder layer (equal parameters at the start), then `norm` when given.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2)(gs.ones(5, 3, 8)).shape
    (5, 3, 8)
    """

    def __init__(self, encoder_layer: Module, num_layers: int, norm: Module | None = None):
        super().__init__()
        self.layers = _copies(encoder_layer, num_layers, "TransformerEncoder")
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        src: Tensor,
        mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool = False,
    ) -> Tensor:
        x = src
        for layer in self.layers:
            x = layer(x, mask, src_key_padding_mask, is_causal)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(Module):
    """num_layers copies of a decoder layer, then `norm` when given.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2)
    >>> decoder(gs.ones(5, 3, 8), gs.ones(4, 3, 8)).shape
    (5, 3, 8)
    """

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None):
        super().__init__()
        self.layers = _copies(decoder_layer, num_layers, "TransformerDecoder")
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        x = tgt
        for layer in self.layers:
            x = layer(
                x, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
                tgt_is_causal, memory_is_causal,
            )  # fmt: skip
        return x if self.norm is None else self.norm(x)


class Transformer(Module):
    """Encoder and decoder; arguments and parameter names are PyTorch's. Matrices are drawn by Xavier's uniform rule.

    src: (S, B, d_model), tgt: (T, B, d_model) -> (T, B, d_model); batch first with batch_first.
    Vaswani et al., 2017.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> model = nn.Transformer(8, 2, 1, 1, 16)
    >>> model(gs.ones(4, 3, 8), gs.ones(5, 3, 8), tgt_is_causal=True).shape
    (5, 3, 8)
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Any = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        dtype: Any = np.float32,
    ):
        super().__init__()
        rest = (dropout, activation, layer_norm_eps, batch_first, norm_first, bias, dtype)
        self.encoder = TransformerEncoder(
            TransformerEncoderLayer(d_model, nhead, dim_feedforward, *rest),
            num_encoder_layers,
            LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype),
        )
        self.decoder = TransformerDecoder(
            TransformerDecoderLayer(d_model, nhead, dim_feedforward, *rest),
            num_decoder_layers,
            LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype),
        )
        self.d_model = d_model
        self.nhead = nhead
        self.batch_first = batch_first
        for p in self.parameters():
            if p.ndim > 1:
                init.xavier_uniform_(p)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Any = None,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        src_key_padding_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        src_is_causal: bool = False,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        if not isinstance(src, Tensor) or not isinstance(tgt, Tensor):
            raise not_tensors("Transformer", None, src=src, tgt=tgt)
        if src.ndim != tgt.ndim or src.shape[-1] != self.d_model or tgt.shape[-1] != self.d_model:
            raise ValueError(
                f"Transformer: src has shape {src.shape} and tgt {tgt.shape}; "
                f"both must end in d_model = {self.d_model}"
            )
        memory = self.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        return self.decoder(
            tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
            tgt_is_causal, memory_is_causal,
        )  # fmt: skip

    @staticmethod
    def generate_square_subsequent_mask(sz: int, dtype: Any = np.float32) -> Tensor:
        """(sz, sz): 0 on and below the diagonal, -inf above."""
        return Tensor(np.triu(np.full((sz, sz), -np.inf, dtype), 1))


class SinusoidalPositionalEncoding(Module):
    """x + PE, PE[t, 2i] = sin(t / 10000^(2i/C)), PE[t, 2i+1] = cos(t / 10000^(2i/C)); then dropout.

    x: (B, T, C), or (T, B, C) when not batch_first; T at most max_len (ValueError). Vaswani et al., 2017.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.SinusoidalPositionalEncoding(4)(gs.zeros(1, 2, 4)).numpy()[0, 0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """

    def __init__(
        self, d_model: int, max_len: int = 5000, dropout: float = 0.0, batch_first: bool = True
    ):
        super().__init__()
        t = np.arange(max_len, dtype=np.float64)[:, None]
        i = np.arange(d_model) // 2
        angle = t / 10000.0 ** (2.0 * i / d_model)
        table = np.where(np.arange(d_model) % 2 == 0, np.sin(angle), np.cos(angle))
        self.register_buffer("table", Tensor(table.astype(np.float32)), persistent=False)
        self.dropout = Dropout(dropout)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(
            x + _positions(self.table, x, self.batch_first, "SinusoidalPositionalEncoding")
        )


class LearnedPositionalEncoding(Module):
    """x + weight[:T]; weight (max_len, d_model) is learned, drawn from N(0, 0.02^2); then dropout.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.LearnedPositionalEncoding(4, 16)(gs.zeros(3, 5, 4)).shape
    (3, 5, 4)
    """

    def __init__(self, d_model: int, max_len: int, dropout: float = 0.0, batch_first: bool = True):
        super().__init__()
        self.weight = Parameter(filled((max_len, d_model), np.float32))
        init.normal_(self.weight, 0.0, 0.02)
        self.dropout = Dropout(dropout)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(
            x + _positions(self.weight, x, self.batch_first, "LearnedPositionalEncoding")
        )


def _positions(table: Tensor, x: Tensor, batch_first: bool, name: str) -> Tensor:
    if not isinstance(x, Tensor):
        raise not_tensors(name, None, input=x)
    axis = -2 if batch_first or x.ndim == 2 else 0
    n = x.shape[axis] if x.ndim in (2, 3) else 0
    if x.ndim not in (2, 3) or x.shape[-1] != table.shape[1] or n > table.shape[0]:
        raise ValueError(
            f"{name}: input has shape {x.shape}; expected (batch, length, {table.shape[1]}) with a length "
            f"of at most {table.shape[0]}"
        )
    part = table[:n]
    return part if axis == -2 else part.reshape(n, 1, table.shape[1])
