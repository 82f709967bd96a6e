"""Scaled dot-product attention, on separate or fused projections; only the log-sum-exp of a row is saved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core.arguments import number
from ..core.autocast import autocast
from ..core.autograd import Node, apply, is_grad_enabled
from ..core.random import next_counter
from ..core.tensor import Tensor, as_tensor

__all__ = ["attention_qkv", "scaled_dot_product_attention"]

_NONE = (0.0, 0, 0)  # dropout: probability, seed, counter


class AttentionBackward(Node):
    """dv = P^T do, dS = P (do v^T - rowsum(do o)), dq = scale dS k, dk = scale dS^T q."""

    __slots__ = ("causal", "draw", "mask", "scale")
    mask: Any
    causal: bool
    scale: float
    draw: tuple

    def backward(self, grad: Any) -> tuple:
        q, k, v, lse, out = self.saved
        need_q, need_k, need_v = self.needs
        dq, dk, dv = self.k.attention_backward(
            grad, q, k, v, self.mask, out, lse, self.causal, self.scale, *self.draw
        )
        return dq if need_q else None, dk if need_k else None, dv if need_v else None


class AttentionQkvBackward(Node):
    """The same for q, k and v in one array."""

    __slots__ = ("causal", "draw", "heads", "mask", "scale", "time_first")
    heads: int
    time_first: bool
    mask: Any
    causal: bool
    scale: float
    draw: tuple

    def backward(self, grad: Any) -> tuple:
        x, lse, out = self.saved
        return (
            self.k.attention_qkv_backward(
                grad, x, self.heads, self.time_first, self.mask, out, lse, self.causal, self.scale,
                *self.draw,
            ),
        )  # fmt: skip


def _draw(p: float, op: str) -> tuple:
    if type(p) is not float:
        p = number(op, "dropout_p", p)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{op}: dropout_p must lie in [0, 1], got {p}")
    return (p, *next_counter()) if p > 0 else _NONE


def _mask_of(mask: Any, like: Tensor) -> Tensor | None:
    if mask is None:
        return None
    m = as_tensor(mask, op="scaled_dot_product_attention", name="attn_mask")
    if m.data.dtype.kind == "f" and m.data.dtype != like.data.dtype:
        m = m.to(dtype=like.data.dtype)
    return m


def _by_parts(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, causal: bool, scale: float, p: float
) -> Tensor:
    """From matmul and softmax: for an additive mask that wants a gradient."""
    from .dropout import dropout
    from .elementwise import where
    from .matmul import matmul
    from .softmax import softmax

    with autocast(enabled=False):  # as the kernels of attention, which stay float32
        scores = matmul(q, k.transpose(-2, -1)) * scale + mask
        if causal:
            seen = np.tri(q.shape[-2], k.shape[-2], dtype=bool)
            scores = where(as_tensor(seen), scores, float("-inf"))
        return matmul(dropout(softmax(scores, -1), p), v)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention: out_i = sum over j of p_ij value_j, p_i = softmax over j of scale * query_i . key_j + mask_ij.

    query: (..., H, T, D), key: (..., H, S, D), value: (..., H, S, E); 2 to 8 axes, any strides, float32
    or float64. attn_mask: broadcastable to (..., H, T, S); bool (True: the key takes part) or float
    (added to the scores). is_causal: row i sees the keys j <= i. scale: 1 / sqrt(D) when None.
    dropout_p: probability that a p_ij is zeroed, the rest scaled by 1 / (1 - dropout_p); always active,
    pass 0 in evaluation. enable_gqa: key and value may have fewer heads, a divisor of H; each serves
    H / heads consecutive heads of query. A row that sees no key gives zeros. Returns (..., H, T, E).

    ValueError: shapes that do not fit, attn_mask together with is_causal, dropout_p outside [0, 1].
    TypeError: dtypes that differ. Vaswani et al., 2017; tiled with a running maximum as Milakov and
    Gimelshein, 2018, and Dao et al., 2022.

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> q = gs.ones(1, 2, 3, 4)
    >>> F.scaled_dot_product_attention(q, q, q, is_causal=True).shape
    (1, 2, 3, 4)
    """
    op = "scaled_dot_product_attention"
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        for name, t in (("query", query), ("key", key), ("value", value)):
            if not isinstance(t, Tensor):
                raise TypeError(f"{op}: {name} must be a Tensor, got {type(t).__name__}")
    if is_causal and attn_mask is not None:
        raise ValueError(
            f"{op}: attn_mask must be None when is_causal is set; put both into one mask"
        )
    a_shape, b_shape = query.data.shape, key.data.shape
    nd = len(a_shape)
    if not nd == len(b_shape) == value.data.ndim or nd < 2:
        raise ValueError(
            f"{op}: query has shape {query.shape}, key {key.shape} and value {value.shape}; all must have the "
            "same number of axes, at least 2: (..., length, size)"
        )
    if not enable_gqa and nd > 2 and a_shape[-3] != b_shape[-3]:
        raise ValueError(
            f"{op}: query has {query.shape[-3]} heads and key {key.shape[-3]}; pass enable_gqa=True to share keys"
        )
    mask = None if attn_mask is None else _mask_of(attn_mask, query)
    if nd != 4:
        lead = query.shape[:-2]
        if nd > 4 and not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
            raise ValueError(
                f"{op}: query has shape {query.shape}, key {key.shape} and value {value.shape}; "
                "their leading axes must be equal"
            )
        if mask is not None and mask.data.ndim > 2:
            if nd < 4:
                mask = mask.reshape(*((1,) * (4 - mask.data.ndim)), *mask.shape)
            elif nd > 4:
                mask = mask.expand(*lead, *mask.shape[-2:])
                mask = mask.reshape(math.prod(lead[:-1]), lead[-1], *mask.shape[-2:])
        if nd > 4:
            n = math.prod(lead[:-1])
            a, b, c = (t.reshape(n, *t.shape[-3:]) for t in (query, key, value))
        else:
            a, b, c = (t.reshape(*((1,) * (4 - nd)), *t.shape) for t in (query, key, value))
        out = scaled_dot_product_attention(a, b, c, mask, dropout_p, is_causal, scale, enable_gqa)
        return out.reshape(*lead, *out.shape[-2:])
    s = float("nan") if scale is None else scale
    if type(s) is not float:
        s = number(op, "scale", scale)
    if mask is not None and mask._rg and is_grad_enabled():
        if query.shape[1] != key.shape[1]:
            raise ValueError(
                f"{op}: an attn_mask that requires a gradient needs equal numbers of heads"
            )
        return _by_parts(
            query, key, value, mask, is_causal,
            1.0 / math.sqrt(max(query.shape[-1], 1)) if scale is None else s, dropout_p,
        )  # fmt: skip
    draw = _NONE if dropout_p == 0.0 else _draw(dropout_p, op)
    k = query._k
    train = (query._rg or key._rg or value._rg) and is_grad_enabled()
    m = None if mask is None else mask.data
    causal = bool(is_causal)
    out, lse = k.attention(query.data, key.data, value.data, m, causal, s, *draw, train)
    return apply(
        AttentionBackward, k, out, (query, key, value), (query, key, value, lse), True,
        mask=m, causal=causal, scale=s, draw=draw,
    )  # fmt: skip


def attention_qkv(
    qkv: Tensor,
    num_heads: int,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    batch_first: bool = True,
) -> Tensor:
    """Self-attention straight from a fused projection, without taking it apart or transposing it.

    qkv: (B, T, 3 * E), or (T, B, 3 * E) when not batch_first: query, key and value of E = num_heads * D
    each, heads side by side. The other arguments are those of `scaled_dot_product_attention`, the mask
    broadcastable to (B, num_heads, T, T). Returns (B, T, E), or (T, B, E).

    >>> import gradsmith as gs, gradsmith.nn.functional as F
    >>> F.attention_qkv(gs.ones(2, 5, 24), num_heads=4, is_causal=True).shape
    (2, 5, 8)
    """
    op = "attention_qkv"
    if not isinstance(qkv, Tensor):
        raise TypeError(f"{op}: qkv must be a Tensor, got {type(qkv).__name__}")
    if is_causal and attn_mask is not None:
        raise ValueError(
            f"{op}: attn_mask must be None when is_causal is set; put both into one mask"
        )
    mask = None if attn_mask is None else _mask_of(attn_mask, qkv)
    if mask is not None and mask._rg and is_grad_enabled():
        raise ValueError(
            f"{op}: an attn_mask that requires a gradient is not supported here; "
            "use scaled_dot_product_attention"
        )
    draw = _NONE if dropout_p == 0.0 else _draw(dropout_p, op)
    k = qkv._k
    s = float("nan") if scale is None else scale
    if type(s) is not float:
        s = number(op, "scale", scale)
    m = None if mask is None else mask.data
    causal, time_first = bool(is_causal), not batch_first
    train = is_grad_enabled() and qkv._rg
    out, lse = k.attention_qkv(qkv.data, num_heads, time_first, m, causal, s, *draw, train)
    return apply(
        AttentionQkvBackward, k, out, (qkv,), (qkv, lse), True,
        heads=num_heads, time_first=time_first, mask=m, causal=causal, scale=s, draw=draw,
    )  # fmt: skip
