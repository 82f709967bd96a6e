"""Pooling, forward and forward with backward, on 8 MB inputs.

Bytes of a forward pass: the input read, the output and (for a later backward pass) one index byte an output
element written; backward: those read, the input's gradient written. The share of "the same mix" is that of loops
that read and write as much, four lines read for each written, say. PyTorch runs channels_last.
"""

from __future__ import annotations

from typing import Any

from .case import Case
from .cases_norm import our_layout, torch_layout


def _case(name: str, kind: str, args: tuple, shape: tuple, shrink: float, backward: bool) -> Case:
    def setup(peers: set[str]) -> dict:
        import numpy as np

        import gradsmith as gs
        import gradsmith.nn.functional as F

        rng = np.random.default_rng(0)
        data = rng.standard_normal(shape, dtype=np.float32)
        fn = getattr(F, kind)
        x = gs.tensor(data, requires_grad=backward)
        seed = rng.standard_normal(fn(x, *args).shape, dtype=np.float32)
        g = gs.tensor(seed)

        def ours() -> Any:
            if not backward:
                return fn(x, *args).data
            x.grad = None
            y = fn(x, *args)
            y.backward(g)
            return y.detach(), x.grad

        runs = {"gradsmith": ours}
        if "torch" in peers:
            import torch

            theirs = getattr(torch.nn.functional, kind)
            tx, tg = torch_layout(data), torch_layout(seed)
            tx.requires_grad_(backward)

            def run_torch() -> Any:
                if not backward:
                    return our_layout(theirs(tx, *args))
                tx.grad = None
                y = theirs(tx, *args)
                y.backward(tg)
                return our_layout(y.detach()), our_layout(tx.grad)

            runs["torch"] = run_torch
        return runs

    size = 4.0
    for n in shape:
        size *= n
    index = 0.25 if kind.startswith("max") else 0.0
    work = size * (1 + shrink) + (size * (1 + shrink + 2 * shrink * index) if backward else 0)
    small = size * shrink * (1 + index)
    passes = ((size, small), (small, size)) if backward else ((size, size * shrink),)
    way = "fwd+bwd" if backward else "forward"
    title = f"{name} {way} {'x'.join(map(str, shape))}"
    return Case(title, setup, bytes=work, rtol=1e-5, passes=passes)


def cases(quick: bool = False) -> list[Case]:
    """Max, average and global average pooling."""
    image, few = (32, 32, 32, 64), (32, 256, 256, 1)
    result = [
        _case("max pool 2x2", "max_pool2d", (2,), image, 0.25, True),
        _case("max pool 3x3/2", "max_pool2d", (3, 2, 1), image, 0.25, True),
        _case("avg pool 2x2", "avg_pool2d", (2,), image, 0.25, True),
    ]
    if not quick:
        result += [
            _case("max pool 2x2", "max_pool2d", (2,), image, 0.25, False),
            _case("max pool 3x3/2", "max_pool2d", (3, 2, 1), image, 0.25, False),
            _case("max pool 2x2", "max_pool2d", (2,), (256, 28, 28, 6), 0.25, True),
            _case("max pool 2x2", "max_pool2d", (2,), few, 0.25, True),
            _case("avg pool 3x3/2", "avg_pool2d", (3, 2, 1), image, 0.25, True),
            _case("avg pool 3x3/1", "avg_pool2d", (3, 1, 1), image, 1.0, True),
            _case("global avg pool", "adaptive_avg_pool2d", (1,), image, 0.001, True),
            _case("global avg pool", "adaptive_avg_pool2d", (1,), (32, 84, 256, 3), 0.0001, True),
            _case("avg pool 2x2", "avg_pool2d", (2,), (256, 28, 28, 6), 0.25, True),
            _case("max pool 3x3/2", "max_pool2d", (3, 2, 1), (84, 32, 32, 24), 0.25, True),
            _case("max pool 3x3/2", "max_pool2d", (3, 2, 1), (32, 256, 84, 3), 0.25, True),
            _case("max pool 3x3/1", "max_pool2d", (3, 1, 1), image, 1.0, True),
            _case("max pool 4x4", "max_pool2d", (4,), image, 1 / 16, True),
            _case("adaptive max 7x7", "adaptive_max_pool2d", (7,), image, 0.048, True),
            _case("adaptive avg 7x7", "adaptive_avg_pool2d", (7,), image, 0.048, True),
        ]
    return result
