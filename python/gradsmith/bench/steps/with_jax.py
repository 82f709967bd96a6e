"""JAX's side of the comparison: jit, the whole state donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .nets import Net

VARIANTS = ("jit",)


class Ops:
    """Over a dictionary of weights; batch norm notes its new running statistics in ``self.moved``."""

    def __init__(self, p: dict[str, Any], training: bool):
        self.p, self.training = p, training
        self.moved: dict[str, Any] = {}

    def weight(self, name: str) -> Any:
        return self.p[f"{name}.weight"]

    def linear(self, x: Any, name: str) -> Any:
        return x @ self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def conv(self, x: Any, stride: int, padding: int, name: str) -> Any:
        y = lax.conv_general_dilated(
            x,
            self.p[f"{name}.weight"],
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        bias = self.p.get(f"{name}.bias")
        return y if bias is None else y + bias

    def batch_norm(self, x: Any, name: str) -> Any:
        mean, var = self.p[f"{name}.running_mean"], self.p[f"{name}.running_var"]
        if self.training:
            n = x.size // x.shape[-1]
            m = x.mean((0, 1, 2))
            v = jnp.square(x).mean((0, 1, 2)) - m * m
            self.moved[f"{name}.running_mean"] = 0.9 * mean + 0.1 * lax.stop_gradient(m)
            unbiased = lax.stop_gradient(v) * (n / (n - 1))
            self.moved[f"{name}.running_var"] = 0.9 * var + 0.1 * unbiased
            mean, var = m, v
        scale = self.p[f"{name}.weight"] * lax.rsqrt(var + 1e-5)
        return x * scale + (self.p[f"{name}.bias"] - mean * scale)

    def layer_norm(self, x: Any, name: str) -> Any:
        m = x.mean(-1, keepdims=True)
        v = jnp.square(x - m).mean(-1, keepdims=True)
        return (x - m) * lax.rsqrt(v + 1e-5) * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def relu(self, x: Any) -> Any:
        return jnp.maximum(x, 0)

    def gelu(self, x: Any) -> Any:
        return jax.nn.gelu(x, approximate=True)

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def max_pool(self, x: Any) -> Any:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def mean_pool(self, x: Any) -> Any:
        return x.mean((1, 2))

    def flatten(self, x: Any) -> Any:
        return x.reshape(x.shape[0], -1)

    def embedding(self, x: Any, name: str) -> Any:
        return self.p[f"{name}.weight"][x]

    def attention(self, qkv: Any, heads: int) -> Any:
        n, t, width = qkv.shape
        q, k, v = (a.reshape(n, t, heads, width // 3 // heads) for a in jnp.split(qkv, 3, axis=-1))
        return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(n, t, width // 3)

    def lstm(self, x: Any, name: str) -> Any:
        p = self.p
        hidden = p[f"{name}.weight_hh"].shape[0]
        gates = x @ p[f"{name}.weight_ih"] + (p[f"{name}.bias_ih"] + p[f"{name}.bias_hh"])

        def cell(state: Any, g: Any) -> Any:
            h, c = state
            i, f, a, o = jnp.split(g + h @ p[f"{name}.weight_hh"], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(a)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((x.shape[0], hidden), x.dtype)
        _, ys = lax.scan(cell, (zero, zero), gates.swapaxes(0, 1))
        return ys.swapaxes(0, 1)

    def last(self, x: Any) -> Any:
        return x[:, -1]


def _weights(net: Net) -> dict[str, Any]:
    """Turned once: convolutions to (kh, kw, in, out), products to (in, out)."""
    turned = {}
    for name, w in net.weights().items():
        if w.ndim == 4:
            w = w.transpose(1, 2, 3, 0)
        elif w.ndim == 2 and name not in ("token.weight", "position.weight"):
            w = w.T
        turned[name] = jnp.asarray(np.ascontiguousarray(w))
    return turned


def build(net: Net, batch: int, training: bool, variant: str, threads: int) -> Callable[[], Any]:
    """As in with_torch.py."""
    x, y = net.data(batch)
    jx, jy = jnp.asarray(x), jnp.asarray(y)
    weights = _weights(net)
    if not training:
        run = jax.jit(lambda p, a: net.forward(Ops(p, False), a))
        return lambda: np.asarray(run(weights, jx))

    trained = {n: w for n, w in weights.items() if net.trained(n)}
    running = {n: w for n, w in weights.items() if not net.trained(n)}

    def loss_of(p: Any, running: Any, a: Any, target: Any) -> Any:
        b = Ops({**p, **running}, True)
        logits = net.forward(b, a).reshape(-1, net.classes)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), target.reshape(-1, 1), 1)
        return -chosen.mean(), b.moved

    def update(state: Any, a: Any, target: Any) -> Any:
        p, running, m, v, t = state
        (loss, moved), g = jax.value_and_grad(loss_of, has_aux=True)(p, running, a, target)
        t = t + 1
        tree = jax.tree_util.tree_map
        m = tree(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = tree(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        c1, c2 = 1 - 0.9**t, 1 - 0.999**t
        p = tree(
            lambda p, m, v: p * (1 - 1e-5) - 1e-3 * (m / c1) / (jnp.sqrt(v / c2) + 1e-8), p, m, v
        )
        return (p, moved, m, v, t), loss

    zeros = {n: jnp.zeros_like(w) for n, w in trained.items()}
    state: Any = (trained, running, zeros, jax.tree_util.tree_map(jnp.copy, zeros), jnp.zeros(()))
    run = jax.jit(update, donate_argnums=0)

    def step() -> float:
        nonlocal state
        state, loss = run(state, jx, jy)
        jax.block_until_ready(state)
        return float(loss)

    return step
