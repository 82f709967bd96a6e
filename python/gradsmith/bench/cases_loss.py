"""Losses, forward and backward to the input, on 2 million float32 elements (8 MB) and on a small batch.

Bytes: forward reads input and target, backward reads both again and writes the gradient: 20 an element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case

# our function, its options, input and target in (0, 1)
LOSSES: list[tuple[str, dict[str, Any], bool]] = [
    ("mse_loss", {}, False),
    ("l1_loss", {}, False),
    ("smooth_l1_loss", {}, False),
    ("huber_loss", {}, False),
    ("binary_cross_entropy", {}, True),
    ("binary_cross_entropy_with_logits", {}, True),
    ("kl_div", {}, True),
]


def _loss(name: str, options: dict[str, Any], unit: bool, shape: tuple[int, ...]) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        rng = np.random.default_rng(0)
        x, t = rng.random(shape, np.float32), rng.random(shape, np.float32)
        if not unit:
            x, t = 4 * x - 2, 4 * t - 2
        a, b = gs.tensor(x, requires_grad=True), gs.tensor(t)
        ours = getattr(gs.nn.functional, name)

        def run() -> Any:
            a.grad = None
            loss = ours(a, b, **options)
            loss.backward()
            return loss.data, a.grad.numpy()  # type: ignore[attr-defined]

        runs: dict[str, Callable[[], Any]] = {"gradsmith": run}
        if "torch" in peers:
            import torch

            c, d = torch.tensor(x, requires_grad=True), torch.tensor(t)
            theirs = getattr(torch.nn.functional, name)

            def run_torch() -> Any:
                c.grad = None
                loss = theirs(c, d, **options)
                loss.backward()
                return loss, c.grad

            runs["torch"] = run_torch
        if "jax" in peers and name == "mse_loss":
            import jax
            import jax.numpy as jnp

            fast = jax.jit(jax.value_and_grad(lambda u, v: jnp.mean((u - v) ** 2)))
            e, f = jnp.array(x), jnp.array(t)
            runs["jax"] = lambda: jax.block_until_ready(fast(e, f))
        return runs

    return setup


def _nll(rows: int, classes: int) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        rng = np.random.default_rng(0)
        x = np.log(rng.random((rows, classes), np.float32) + 0.01)
        t = rng.integers(0, classes, rows)
        a, b = gs.tensor(x, requires_grad=True), gs.tensor(t)

        def run() -> Any:
            a.grad = None
            loss = gs.nn.functional.nll_loss(a, b)
            loss.backward()
            return loss.data, a.grad.numpy()  # type: ignore[attr-defined]

        runs: dict[str, Callable[[], Any]] = {"gradsmith": run}
        if "torch" in peers:
            import torch

            c, d = torch.tensor(x, requires_grad=True), torch.tensor(t)

            def run_torch() -> Any:
                c.grad = None
                loss = torch.nn.functional.nll_loss(c, d)
                loss.backward()
                return loss, c.grad

            runs["torch"] = run_torch
        return runs

    return setup


def cases(quick: bool = False) -> list[Case]:
    """Every loss on 8 MB and on a batch of 128 x 10; nll_loss on 2048 x 1024."""
    found = []
    for name, options, unit in LOSSES[:1] if quick else LOSSES:
        for shape in ((2048, 1024), (128, 10)):
            n = shape[0] * shape[1]
            found.append(
                Case(
                    f"{name} forward+backward {shape[0]}x{shape[1]}",
                    _loss(name, options, unit, shape),
                    bytes=20 * n,
                    rtol=1e-4,
                )
            )
    n = 2048 * 1024
    found.append(
        Case("nll_loss forward+backward 2048x1024", _nll(2048, 1024), bytes=4 * n, rtol=1e-4)
    )
    return found
