"""A small decoder-only transformer for sequences of tokens, after GPT-2."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import nn
from ..core.autograd import no_grad
from ..core.random import next_counter
from ..core.tensor import Tensor, as_tensor
from ..nn import functional as F

__all__ = ["GPT", "gpt"]


class CausalSelfAttention(nn.Module):
    """Self-attention in which position t sees 0 .. t: one fused projection, attention, a projection."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.p = dropout
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.proj = nn.Linear(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        p = self.p if self.training else 0.0
        return self.proj(F.attention_qkv(self.qkv(x), self.heads, dropout_p=p, is_causal=True))

    def step(self, x: Tensor, cache: tuple[np.ndarray, np.ndarray], at: int) -> Tensor:
        """x (B, T, C): positions at .. at + T - 1; cache (keys, values), (B, heads, context, D) each."""
        B, T, C = x.shape
        parts = self.qkv(x).data.reshape(B, T, 3, self.heads, C // self.heads)
        q, k, v = (parts[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        keys, values = (c[:, :, : at + T] for c in cache)
        keys[:, :, at:] = k
        values[:, :, at:] = v
        mask = Tensor(np.tri(T, at + T, at, dtype=bool)) if T > 1 else None
        y = F.scaled_dot_product_attention(Tensor(q), Tensor(keys), Tensor(values), mask)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with a hidden layer of 4 widths and GELU."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attn = CausalSelfAttention(width, heads, dropout, bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.fc1 = nn.Linear(width, 4 * width, bias)
        self.fc2 = nn.Linear(4 * width, width, bias)
        self.dropout = nn.Dropout(dropout)

    def _mlp(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self._mlp(x + self.dropout(self.attn(self.norm1(x))))

    def step(self, x: Tensor, cache: tuple[np.ndarray, np.ndarray], at: int) -> Tensor:
        return self._mlp(x + self.attn.step(self.norm1(x), cache, at))


class GPT(nn.Module):
    """Token and position embeddings, blocks, a norm, logits; see ``gpt``, which checks its arguments.

    Tokens (B, T), integers below vocab_size -> logits (B, T, vocab_size). ValueError for more than `context`
    positions. ``generate`` continues a text.

    >>> import gradsmith as gs
    >>> model = gs.models.GPT(50, context=16, width=32, layers=1, heads=4, dropout=0.0, bias=True)
    >>> model([[1, 2, 3]]).shape
    (1, 3, 50)
    """

    def __init__(
        self,
        vocab_size: int,
        context: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        bias: bool,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.context = context
        self.width = width
        self.heads = heads
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(width, heads, dropout, bias) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, bias=bias)
        self.head = nn.Linear(width, vocab_size, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:  # residual branches start smaller, so that depth does not add variance
                last = name.endswith(("proj.weight", "fc2.weight"))
                nn.init.normal_(p, 0.0, 0.02 / math.sqrt(2 * layers) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def _check(self, tokens: Any, longest: int | None = None) -> Tensor:
        x = tokens if isinstance(tokens, Tensor) else as_tensor(tokens)
        if x.ndim != 2 or (longest is not None and x.shape[1] > longest):
            most = "" if longest is None else f" with a length of at most {longest}, the context"
            raise ValueError(f"GPT: tokens have shape {x.shape}; expected (batch, length){most}")
        return x

    def forward(self, tokens: Any) -> Tensor:
        x = self._check(tokens, self.context)
        h = self.dropout(self.token(x) + self.position.weight[: x.shape[1]])
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))

    def _advance(self, tokens: np.ndarray, caches: list, at: int) -> np.ndarray:
        """Logits (B, vocab_size) after the last of tokens (B, T), which stand at `at`."""
        h = self.token(Tensor(tokens)) + self.position.weight[at : at + tokens.shape[1]]
        for block, cache in zip(self.blocks, caches):
            h = block.step(h, cache, at)
        return self.head(self.norm(h[:, -1])).data

    def generate(
        self,
        tokens: Any,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """tokens (B, T) followed by max_new_tokens drawn ones: (B, T + max_new_tokens), int64.

        Each is drawn from softmax(logits / temperature), among the top_k likeliest when given;
        temperature 0 takes the likeliest. Draws depend on ``gs.manual_seed``. Keys and values of past
        positions are kept; beyond the context the window moves on by half of it and is read again.
        ValueError: temperature below 0, top_k below 1, an empty prompt; TypeError: tokens or numbers
        that are no integers. Evaluation mode is used for the call.

        >>> import gradsmith as gs
        >>> model = gs.models.gpt(vocab_size=11, context=8, width=16, layers=1, heads=2)
        >>> model.generate([[1, 2, 3]], 4, temperature=0.0).shape
        (1, 7)
        """
        for name, n in (("top_k", top_k), ("max_new_tokens", max_new_tokens)):
            if n is not None and not hasattr(n, "__index__"):
                raise TypeError(f"generate: {name} must be an integer, got {n!r}")
        if not temperature >= 0 or (top_k is not None and top_k < 1) or max_new_tokens < 0:
            raise ValueError(
                f"generate: temperature {temperature} and max_new_tokens {max_new_tokens} must not be negative, "
                f"top_k {top_k} must be at least 1"
            )
        given = self._check(tokens).data
        B, T = given.shape
        if T == 0:
            raise ValueError("generate: tokens are empty; give at least one to start from")
        if given.dtype.kind not in "iu":
            raise TypeError(f"generate: tokens must be integers, got {given.dtype}")
        x = given.astype(np.int64)
        text = np.empty((B, T + max_new_tokens), np.int64)
        text[:, :T] = x
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        try:
            with no_grad():
                shape = (B, self.heads, self.context, self.width // self.heads)
                dtype = self.head.weight.data.dtype
                caches = [(np.empty(shape, dtype), np.empty(shape, dtype)) for _ in self.blocks]
                start, read = max(0, T - self.context), max(0, T - self.context)
                for n in range(T, T + max_new_tokens):
                    if n - start > self.context:
                        start = read = n - max(1, self.context // 2)
                    logits = self._advance(text[:, read:n], caches, read - start)
                    read = n
                    text[:, n] = _draw(logits, temperature, top_k)
        finally:
            for m, training in modes:
                m.training = training
        return Tensor(text)


def _draw(logits: np.ndarray, temperature: float, top_k: int | None) -> np.ndarray:
    """One index a row."""
    if temperature == 0:
        return logits.argmax(-1)
    z = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < z.shape[1]:
        least = np.partition(z, -top_k, axis=-1)[:, -top_k, None]
        z = np.where(z < least, -np.inf, z)
    p = np.exp(z - z.max(-1, keepdims=True)).cumsum(-1)
    seed, counter = next_counter()
    u = np.random.Generator(np.random.Philox(key=[seed, counter])).random((len(p), 1))
    return np.minimum((p <= u * p[:, -1:]).sum(-1), p.shape[1] - 1)


def gpt(
    vocab_size: int = 256,
    context: int = 256,
    width: int = 256,
    layers: int = 4,
    heads: int = 8,
    dropout: float = 0.0,
    bias: bool = True,
) -> GPT:
    """A small GPT: tokens (B, T), int -> logits (B, T, vocab_size), T at most `context`.

    Pre-norm blocks of causal self-attention and a GELU network of 4 * width; learned positions; weights
    from N(0, 0.02^2), those of the residual branches divided by sqrt(2 * layers).
    ``model.generate(tokens, n)`` continues a text. Raises ValueError unless heads divides width.

    After Radford, Wu, Child, Luan, Amodei & Sutskever 2019, Language Models are Unsupervised Multitask
    Learners.

    >>> import gradsmith as gs
    >>> gs.models.gpt(vocab_size=50, context=16, width=32, layers=1, heads=4)([[1, 2, 3]]).shape
    (1, 3, 50)
    """
    sizes = {"vocab_size": vocab_size, "context": context, "width": width, "layers": layers, "heads": heads}  # fmt: skip
    for name, n in sizes.items():
        if n < 1:
            raise ValueError(f"gpt: {name} = {n} must be at least 1.")
    if width % heads:
        raise ValueError(f"gpt: width {width} must be a multiple of heads {heads}.")
    return GPT(vocab_size, context, width, layers, heads, dropout, bias)
