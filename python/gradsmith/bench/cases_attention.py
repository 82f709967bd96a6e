"""Self-attention from a fused projection (B, T, 3 H D), forward and backward, and a training step of the small GPT.

Operations: 4 B H T^2 D forward, 2.5 times that backward, half of it when causal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case


def _attention(B: int, H: int, T: int, D: int, causal: bool) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs
        from gradsmith.nn import functional as F

        rng = np.random.default_rng(0)
        x = rng.standard_normal((B, T, 3 * H * D), np.float32)
        dy = rng.standard_normal((B, T, H * D), np.float32)
        a, g = gs.tensor(x, requires_grad=True), gs.tensor(dy)

        def run() -> Any:
            a.grad = None
            y = F.attention_qkv(a, H, is_causal=causal)
            y.backward(g)
            return y.data, a.grad.numpy()  # type: ignore[attr-defined]

        runs: dict[str, Callable[[], Any]] = {"gradsmith": run}
        if "torch" in peers:
            import torch

            c, h = torch.tensor(x, requires_grad=True), torch.tensor(dy)
            attend = torch.nn.functional.scaled_dot_product_attention

            def run_torch() -> Any:
                c.grad = None
                q, k, v = (t.transpose(1, 2) for t in c.view(B, T, 3, H, D).unbind(2))
                y = attend(q, k, v, is_causal=causal).transpose(1, 2).reshape(B, T, H * D)
                y.backward(h)
                return y.detach(), c.grad

            runs["torch"] = run_torch
        if "jax" in peers:
            import jax
            import jax.numpy as jnp

            def forward(u: Any) -> Any:
                q, k, v = (u.reshape(B, T, 3, H, D)[:, :, i] for i in range(3))
                y = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
                return y.reshape(B, T, H * D)

            def both(u: Any, w: Any) -> Any:
                y, pull = jax.vjp(forward, u)
                return y, pull(w)[0]

            fast, e, f = jax.jit(both), jnp.array(x), jnp.array(dy)
            runs["jax"] = lambda: jax.block_until_ready(fast(e, f))
        return runs

    return setup


def cases(quick: bool = False) -> list[Case]:
    """The heads of the small GPT, longer contexts, wide heads, no mask."""
    shapes = [(2, 2, 64, 32, True)]
    if not quick:
        shapes = [
            (16, 8, 64, 32, True),
            (16, 8, 64, 32, False),
            (8, 12, 128, 64, True),
            (4, 8, 512, 64, True),
            (1, 8, 2048, 64, False),
            (1, 4, 1024, 128, True),
        ]
    out = []
    for B, H, T, D, causal in shapes:
        name = f"attention {B}x{H} heads, {T} x {D}{', causal' if causal else ''}"
        flops = 14.0 * B * H * T * T * D / (2 if causal else 1)
        nbytes = 4.0 * 2 * 4 * B * T * H * D
        out.append(Case(name, _attention(B, H, T, D, causal), flops=flops, bytes=nbytes))
    return out
