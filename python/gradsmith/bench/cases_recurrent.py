"""LSTM, GRU and RNN layers: forward alone (batch 1 and more), forward and backward.

Operations: 2 T B G H (I + H) forward, the same again for the gates of backward (without dx) and for the
gradients of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case


def _weights(rng: np.random.Generator, G: int, I: int, H: int) -> dict[str, np.ndarray]:
    shapes = {
        "weight_ih_l0": (G * H, I),
        "weight_hh_l0": (G * H, H),
        "bias_ih_l0": (G * H,),
        "bias_hh_l0": (G * H,),
    }
    return {n: (rng.uniform(-1, 1, s) / np.sqrt(H)).astype(np.float32) for n, s in shapes.items()}


def _layer(kind: str, T: int, B: int, I: int, H: int, train: bool) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs
        from gradsmith import nn

        rng = np.random.default_rng(0)
        G = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
        x = rng.standard_normal((T, B, I), np.float32)
        dy = rng.standard_normal((T, B, H), np.float32)
        weights = _weights(rng, G, I, H)
        layer = getattr(nn, kind)(I, H)
        layer.load_state_dict(weights)
        a, g = gs.tensor(x), gs.tensor(dy)

        def run() -> Any:
            if not train:
                with gs.no_grad():
                    return layer(a)[0].data
            layer.zero_grad()
            y, _ = layer(a)
            y.backward(g)
            return (y.data, *[p.grad.data for p in layer.parameters()])

        runs: dict[str, Callable[[], Any]] = {"gradsmith": run}
        if "torch" in peers:
            import torch

            theirs = getattr(torch.nn, kind)(I, H)
            theirs.load_state_dict({n: torch.tensor(w) for n, w in weights.items()})
            b, h = torch.tensor(x), torch.tensor(dy)

            def run_torch() -> Any:
                if not train:
                    with torch.no_grad():
                        return theirs(b)[0]
                theirs.zero_grad()
                y, _ = theirs(b)
                y.backward(h)
                return (y.detach(), *[p.grad for p in theirs.parameters()])

            runs["torch"] = run_torch
        if "jax" in peers and kind == "LSTM":
            import jax
            import jax.numpy as jnp

            def forward(p: Any, u: Any) -> Any:
                pre = u @ p[0].T + p[2] + p[3]

                def step(state: Any, z: Any) -> Any:
                    h, c = state
                    i, f, gg, o = jnp.split(z + h @ p[1].T, 4, -1)
                    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(gg)
                    h = jax.nn.sigmoid(o) * jnp.tanh(c)
                    return (h, c), h

                zero = jnp.zeros((B, H), jnp.float32)
                return jax.lax.scan(step, (zero, zero), pre)[1]

            def both(p: Any, u: Any, w: Any) -> Any:
                y, pull = jax.vjp(lambda q: forward(q, u), p)
                return (y, *pull(w)[0])

            p = [jnp.array(w) for w in weights.values()]
            e, f = jnp.array(x), jnp.array(dy)
            if train:
                fast = jax.jit(both)
                runs["jax"] = lambda: jax.block_until_ready(fast(p, e, f))
            else:
                once = jax.jit(forward)
                runs["jax"] = lambda: jax.block_until_ready(once(p, e))
        return runs

    return setup


def cases(quick: bool = False) -> list[Case]:
    """The layer of the headline table, a wider and a small one, GRU and RNN, inference at batch 1."""
    shapes = [("LSTM", 8, 4, 8, 16, True)]
    if not quick:
        shapes = [
            ("LSTM", 64, 32, 64, 256, True),
            ("LSTM", 64, 32, 64, 256, False),
            ("LSTM", 64, 1, 64, 256, False),
            ("LSTM", 32, 64, 256, 512, True),
            ("LSTM", 32, 16, 32, 64, True),
            ("GRU", 64, 32, 64, 256, True),
            ("RNN", 64, 32, 64, 256, True),
        ]
    out = []
    for kind, T, B, I, H, train in shapes:
        G = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
        flops = 2.0 * T * B * G * H * ((2 * I + 3 * H) if train else I + H)
        name = f"{kind} {I} to {H}, {T} steps, batch {B}, {'training' if train else 'inference'}"
        out.append(Case(name, _layer(kind, T, B, I, H, train), flops=flops, rtol=3e-4))
    return out
