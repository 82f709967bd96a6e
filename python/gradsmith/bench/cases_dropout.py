"""Dropout, forward and backward, on 2 million float32 elements (8 MB).

Bytes: forward reads x and writes y, backward reads a gradient and writes one: 16 an element; the mask is
drawn twice and stored nowhere. Libraries draw different masks, so only the fraction kept is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case


def _dropout(shape: tuple[int, ...], channels: bool) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        x = np.ones(shape, np.float32)
        a, g = gs.tensor(x, requires_grad=True), gs.tensor(x)
        ours = gs.nn.functional.dropout2d if channels else gs.nn.functional.dropout
        expected = np.float32(0.5)

        def run() -> Any:
            a.grad = None
            ours(a, 0.5).backward(g)
            return expected

        runs: dict[str, Callable[[], Any]] = {"gradsmith": run}
        if "torch" in peers:
            import torch

            layout = x.transpose(0, 3, 1, 2) if channels else x
            c = torch.tensor(layout)
            h = torch.tensor(layout)
            if channels:
                c = c.contiguous(memory_format=torch.channels_last)
                h = h.contiguous(memory_format=torch.channels_last)
            c.requires_grad_()
            theirs = torch.nn.functional.dropout2d if channels else torch.nn.functional.dropout

            def run_torch() -> Any:
                c.grad = None
                theirs(c, 0.5).backward(h)
                return torch.tensor(expected)

            runs["torch"] = run_torch
        return runs

    return setup


def cases(quick: bool = False) -> list[Case]:
    """By element and by channel."""
    n = 2**21
    made = [Case("dropout 8MB fwd+bwd", _dropout((n,), False), bytes=16.0 * n)]
    if not quick:
        made.append(
            Case("dropout2d 32x32x32x64 fwd+bwd", _dropout((32, 32, 32, 64), True), bytes=16.0 * n)
        )
    return made
