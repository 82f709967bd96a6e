"""Activations, forward and backward, on 2 million float32 elements (8 MB).

Bytes: forward reads x and writes y, backward reads the gradient and x or y and writes a gradient: 20 an
element; 16.25 where the derivative has two values, because a bit an element says which. Those with an
exponential are bound by arithmetic, 6 to 20 cycles a vector each way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case

# the name in torch.nn.functional and jax.nn, where they have it
ACTIVATIONS: list[tuple[str, str | None, str | None]] = [
    ("relu", "relu", "relu"),
    ("relu6", "relu6", "relu6"),
    ("leaky_relu", "leaky_relu", "leaky_relu"),
    ("hardtanh", "hardtanh", "hard_tanh"),
    ("hardswish", "hardswish", "hard_swish"),
    ("sigmoid", "sigmoid", "sigmoid"),
    ("tanh", "tanh", "tanh"),
    ("elu", "elu", "elu"),
    ("selu", "selu", "selu"),
    ("gelu", "gelu", None),
    ("silu", "silu", "silu"),
    ("softplus", "softplus", "softplus"),
    ("mish", "mish", "mish"),
    ("logsigmoid", "logsigmoid", "log_sigmoid"),
]


# the derivative has two values: backward reads a bit an element in place of x or y
TWO_SLOPES = ("relu", "relu6", "leaky_relu", "hardtanh")


def _activation(
    name: str, torch_name: str | None, jax_name: str | None, n: int, backward: bool
) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        rng = np.random.default_rng(0)
        x = 2 * rng.standard_normal(n, np.float32)
        dy = rng.standard_normal(n, np.float32)
        a, g = gs.tensor(x, requires_grad=backward), gs.tensor(dy)
        ours = getattr(gs.nn.functional, name)

        def run() -> Any:
            if not backward:
                return ours(a).data
            a.grad = None
            y = ours(a)
            y.backward(g)
            return y.data, a.grad.numpy()  # type: ignore[attr-defined]

        runs: dict[str, Callable[[], Any]] = {"gradsmith": run}
        if "numpy" in peers and name == "relu" and not backward:
            runs["numpy"] = lambda: np.maximum(x, np.float32(0))
        if "torch" in peers and torch_name:
            import torch

            c, h = torch.tensor(x, requires_grad=backward), torch.tensor(dy)
            theirs = getattr(torch.nn.functional, torch_name)

            def run_torch() -> Any:
                if not backward:
                    return theirs(c)
                c.grad = None
                y = theirs(c)
                y.backward(h)
                return y.detach(), c.grad

            runs["torch"] = run_torch
        if "jax" in peers and jax_name:
            import jax
            import jax.numpy as jnp

            fn = jnp.tanh if name == "tanh" else getattr(jax.nn, jax_name)

            def both(u: Any, v: Any) -> Any:
                y, pull = jax.vjp(fn, u)
                return y, pull(v)[0]

            fast = jax.jit(both if backward else fn)
            args = (jnp.array(x), jnp.array(dy))[: 2 if backward else 1]
            runs["jax"] = lambda: jax.block_until_ready(fast(*args))
        return runs

    return setup


def cases(quick: bool = False) -> list[Case]:
    """Forward + backward of each on 8 MB; ReLU forward alone; a small ReLU for the cost of a call."""
    n = 2**21
    chosen = [a for a in ACTIVATIONS if not quick or a[0] in ("relu", "tanh", "gelu")]
    made = [
        Case(
            f"{name} 8MB fwd+bwd",
            _activation(name, t, j, n, True),
            bytes=(16.25 if name in TWO_SLOPES else 20.0) * n,
        )
        for name, t, j in chosen
    ]
    made.append(Case("relu 8MB fwd", _activation("relu", "relu", "relu", n, False), bytes=8.0 * n))
    made.append(
        Case(
            "relu 128x256 fwd", _activation("relu", "relu", "relu", 32768, False), bytes=8.0 * 32768
        )
    )
    return made
