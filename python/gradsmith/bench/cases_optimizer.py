"""Optimizer steps and gradient clipping over the tensors of real networks.

Bytes: what one step has to move, 4 for every float32 read or written: Adam reads parameter, gradient
and two moments and writes three of them, 28 bytes a parameter. PyTorch runs its fused kernels where
it has them, else foreach; JAX a jitted update that donates its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case


def resnet18() -> list[tuple[int, ...]]:
    """The 62 parameters of ResNet-18 with 1000 classes: 11.7 million."""
    shapes: list[tuple[int, ...]] = [(64, 7, 7, 3), (64,), (64,)]
    before = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(width, 3, 3, before if block == 0 else width), (width,), (width,)]
            shapes += [(width, 3, 3, width), (width,), (width,)]
            if block == 0 and before != width:
                shapes += [(width, 1, 1, before), (width,), (width,)]
        before = width
    return [*shapes, (1000, 512), (1000,)]


MLP: list[tuple[int, ...]] = [(512, 784), (512,), (256, 512), (256,), (10, 256), (10,)]

# name, options, bytes a parameter, whether PyTorch has a fused kernel
RULES: list[tuple[str, dict[str, Any], int, bool]] = [
    ("AdamW", {}, 28, True),
    ("Adam", {"amsgrad": True}, 36, True),
    ("SGD", {}, 12, True),
    ("SGD", {"momentum": 0.9}, 20, True),
    ("Adagrad", {}, 20, True),
    ("RMSprop", {}, 20, False),
    ("Adadelta", {}, 28, False),
    ("NAdam", {}, 28, False),
    ("Adamax", {}, 28, False),
    ("RAdam", {}, 28, False),
]


def _arrays(shapes: list[tuple[int, ...]]) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (rng.standard_normal(s, np.float32), rng.standard_normal(s, np.float32)) for s in shapes
    ]


def _jax_adamw(arrays: list) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    def step(p: list, g: list, m: list, v: list, t: Any) -> Any:
        c1, c2 = 1 - 0.9**t, 1 - 0.999**t
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g)]
        v = [0.999 * a + 0.001 * b * b for a, b in zip(v, g)]
        p = [
            a * (1 - 1e-3 * 1e-2) - 1e-3 / c1 * x / (jnp.sqrt(y / c2) + 1e-8)
            for a, x, y in zip(p, m, v)
        ]
        return p, m, v, t + 1

    fast = jax.jit(step, donate_argnums=(0, 2, 3))
    g = [jnp.array(b) for _, b in arrays]
    state = [[jnp.array(a) for a, _ in arrays], [jnp.zeros_like(b) for b in g]]
    held: list[Any] = [state[0], state[1], [jnp.zeros_like(b) for b in g], jnp.array(1.0)]

    def run() -> Any:
        held[:] = fast(held[0], g, held[1], held[2], held[3])
        jax.block_until_ready(held)
        return held[0][0]

    return run


def _step(rule: str, options: dict[str, Any], fused: bool, shapes: list, clip: bool) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        arrays = _arrays(shapes)
        ours = [gs.nn.Parameter(gs.tensor(a).clone()) for a, _ in arrays]
        for p, (_, g) in zip(ours, arrays):
            p.grad = gs.tensor(g)
        more = {"max_grad_norm": 1.0} if clip else {}
        opt = getattr(gs.optim, rule)(ours, lr=1e-3, **options, **more)

        def run() -> Any:
            opt.step()
            return ours[0].data

        runs: dict[str, Callable[[], Any]] = {"gradsmith": run}
        if "torch" in peers:
            import torch

            theirs = [torch.tensor(a, requires_grad=True) for a, _ in arrays]
            grads = [torch.tensor(g) for _, g in arrays]
            kind = {"fused": True} if fused else {"foreach": True}
            other = getattr(torch.optim, rule)(theirs, lr=1e-3, **options, **kind)
            for q, tg in zip(theirs, grads):
                q.grad = tg

            def run_torch() -> Any:
                if clip:
                    torch.nn.utils.clip_grad_norm_(theirs, 1.0, foreach=True)
                other.step()
                return theirs[0]

            runs["torch"] = run_torch
        if "jax" in peers and rule == "AdamW" and not clip:
            runs["jax"] = _jax_adamw(arrays)
        return runs

    return setup


def cases(quick: bool = False) -> list[Case]:
    """Steps of every rule over ResNet-18's tensors, AdamW over an MLP's, AdamW with clipping."""
    big = resnet18()
    count = sum(int(np.prod(s)) for s in big)
    small = sum(int(np.prod(s)) for s in MLP)
    found = []
    for rule, options, per, fused in RULES[:1] if quick else RULES:
        label = "".join(f" {k}" for k in options)
        found.append(
            Case(
                f"{rule}{label} step, ResNet-18 (62 tensors, {count / 1e6:.1f} M)",
                _step(rule, options, fused, big, False),
                bytes=per * count,
                rtol=1e-5,
            )
        )
    found.append(
        Case(
            "AdamW step, MLP 784-512-256-10",
            _step("AdamW", {}, True, MLP, False),
            bytes=28 * small,
            rtol=1e-5,
        )
    )
    found.append(
        Case(
            "AdamW step clipped to norm 1, ResNet-18",
            _step("AdamW", {}, True, big, True),
            bytes=32 * count,
            rtol=1e-5,
        )
    )
    return found
