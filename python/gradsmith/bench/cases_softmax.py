"""Softmax and softmax cross-entropy, forward and backward, on logits of about 8 MB and on a small batch.

Bytes: softmax 20 an element (forward x, y; backward the gradient, y, dx). Cross-entropy makes the gradient
in its forward pass: 8 an element (logits read, gradient written).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case


def _softmax(shape: tuple[int, ...], axis: int, log: bool) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        rng = np.random.default_rng(0)
        x = 3 * rng.standard_normal(shape, np.float32)
        dy = rng.standard_normal(shape, np.float32)
        name = "log_softmax" if log else "softmax"
        a, g = gs.tensor(x, requires_grad=True), gs.tensor(dy)
        ours = getattr(gs.nn.functional, name)

        def run() -> Any:
            a.grad = None
            y = ours(a, axis)
            y.backward(g)
            return y.data, a.grad.numpy()  # type: ignore[attr-defined]

        runs: dict[str, Callable[[], Any]] = {"gradsmith": run}
        if "torch" in peers:
            import torch

            c, h = torch.tensor(x, requires_grad=True), torch.tensor(dy)
            theirs = getattr(torch.nn.functional, name)

            def run_torch() -> Any:
                c.grad = None
                y = theirs(c, axis)
                y.backward(h)
                return y.detach(), c.grad

            runs["torch"] = run_torch
        if "jax" in peers:
            import jax
            import jax.numpy as jnp

            fn = jax.nn.log_softmax if log else jax.nn.softmax

            def both(u: Any, v: Any) -> Any:
                y, pull = jax.vjp(lambda t: fn(t, axis=axis), u)
                return y, pull(v)[0]

            fast, e, f = jax.jit(both), jnp.array(x), jnp.array(dy)
            runs["jax"] = lambda: jax.block_until_ready(fast(e, f))
        return runs

    return setup


def _cross_entropy(rows: int, classes: int, smoothing: float = 0.0) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        rng = np.random.default_rng(0)
        x = 3 * rng.standard_normal((rows, classes), np.float32)
        t = rng.integers(0, classes, rows)
        a, b = gs.tensor(x, requires_grad=True), gs.tensor(t)
        ours = gs.nn.functional.cross_entropy

        def run() -> Any:
            a.grad = None
            loss = ours(a, b, label_smoothing=smoothing)
            loss.backward()
            return loss.data, a.grad.numpy()  # type: ignore[attr-defined]

        runs: dict[str, Callable[[], Any]] = {"gradsmith": run}
        if "torch" in peers:
            import torch

            c, d = torch.tensor(x, requires_grad=True), torch.tensor(t)

            def run_torch() -> Any:
                c.grad = None
                loss = torch.nn.functional.cross_entropy(c, d, label_smoothing=smoothing)
                loss.backward()
                return loss.detach(), c.grad

            runs["torch"] = run_torch
        if "jax" in peers and not smoothing:
            import jax
            import jax.numpy as jnp

            def loss_of(u: Any, v: Any) -> Any:
                logp = jax.nn.log_softmax(u)
                return -jnp.take_along_axis(logp, v[:, None], 1).mean()

            fast, e, f = jax.jit(jax.value_and_grad(loss_of)), jnp.array(x), jnp.array(t)
            runs["jax"] = lambda: jax.block_until_ready(fast(e, f))
        return runs

    return setup


def cases(quick: bool = False) -> list[Case]:
    """Cross-entropy over 10 to 50,000 classes; softmax along the last and a middle axis."""
    made = [
        Case(
            f"cross_entropy {rows}x{classes} fwd+bwd",
            _cross_entropy(rows, classes),
            bytes=8.0 * rows * classes,
        )
        for rows, classes in ((2048, 1000), (209_715, 10), (42, 50_000), (128, 10))
    ]
    if quick:
        return made[:2]
    made.append(
        Case(
            "cross_entropy 2048x1000 smoothed fwd+bwd",
            _cross_entropy(2048, 1000, 0.1),
            bytes=8.0 * 2048 * 1000,
        )
    )
    for log in (False, True):
        name = "log_softmax" if log else "softmax"
        for shape, axis in (((2048, 1000), -1), ((32, 512, 128), 1), ((32768, 64), -1)):
            n = int(np.prod(shape))
            made.append(
                Case(
                    f"{name} {'x'.join(map(str, shape))} axis {axis} fwd+bwd",
                    _softmax(shape, axis, log),
                    bytes=20.0 * n,
                )
            )
    return made
