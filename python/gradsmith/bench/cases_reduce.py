"""Reductions of 2 million float32 elements (8 MB): over all, over rows, over columns.

Bytes: each element is read once, 4 bytes (variance reads twice).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case

N = 1 << 21


def _reduce(name: str, shape: tuple[int, ...], axis: int | tuple | None) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        a = np.random.default_rng(0).random(shape, np.float32)
        x = gs.tensor(a)
        ours = getattr(gs, name)
        runs: dict[str, Callable[[], Any]] = {"gradsmith": lambda: ours(x, axis).data}
        if "numpy" in peers and name not in ("norm", "logsumexp"):
            plain = getattr(np, name)
            more = {"ddof": 1} if name == "var" else {}
            runs["numpy"] = lambda: plain(a, axis=axis, **more)
        if "torch" in peers:
            import torch

            t = torch.tensor(a)
            if name == "norm":
                runs["torch"] = lambda: torch.linalg.vector_norm(t, 2, axis)
            elif axis is None and name in ("amax", "sum", "mean", "var", "argmax"):
                theirs = getattr(torch, name)
                runs["torch"] = lambda: theirs(t)
            else:
                theirs = getattr(torch, name)
                runs["torch"] = lambda: theirs(t, axis)
        if "jax" in peers and name in ("sum", "mean", "var"):
            import jax
            import jax.numpy as jnp

            more = {"ddof": 1} if name == "var" else {}
            fast = jax.jit(lambda v: getattr(jnp, name)(v, axis=axis, **more))
            u = jnp.asarray(a)
            runs["jax"] = lambda: jax.block_until_ready(fast(u))
        return runs

    return setup


def cases(quick: bool = False) -> list[Case]:
    """sum, mean, amax, argmax, var, norm, logsumexp over the usual axes."""
    wide, narrow = (2048, 1024), (N // 64, 64)
    images = (32, 32, 32, 64)
    table = [
        ("sum", (N,), None, 4),
        ("sum", wide, 0, 4),
        ("sum", wide, 1, 4),
        ("sum", narrow, 0, 4),
        ("sum", narrow, 1, 4),
        ("mean", images, (0, 1, 2), 4),
        ("mean", images, (1, 2), 4),
        ("amax", wide, 1, 4),
        ("argmax", wide, 1, 4),
        ("argmax", wide, 0, 4),
        ("var", wide, 0, 8),
        ("norm", (N,), None, 4),
        ("logsumexp", wide, 1, 8),
    ]
    return [
        Case(f"{name} {shape} over {'all' if axis is None else axis}", _reduce(name, shape, axis), bytes=b * N)
        for name, shape, axis, b in (table[:2] if quick else table)
    ]  # fmt: skip
