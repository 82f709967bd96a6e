"""Embedding: rows gathered, and the table's gradient.

Bytes: forward reads and writes the rows; backward reads them and writes the whole table.
"""

from __future__ import annotations

from typing import Any

from .case import Case


def _case(rows: int, cols: int, n: int, backward: bool) -> Case:
    def setup(peers: set[str]) -> dict:
        import numpy as np

        import gradsmith as gs
        import gradsmith.nn.functional as F

        rng = np.random.default_rng(0)
        table = rng.standard_normal((rows, cols), dtype=np.float32)
        # frequencies as of words: about 1 / rank
        index = (rows ** rng.random(n)).astype(np.int64) - 1
        seed = rng.standard_normal((n, cols), dtype=np.float32)
        w, i, g = gs.tensor(table, requires_grad=backward), gs.tensor(index), gs.tensor(seed)

        def ours() -> Any:
            if not backward:
                return F.embedding(i, w).data
            w.grad = None
            y = F.embedding(i, w)
            y.backward(g)
            return y.detach(), w.grad

        runs = {"gradsmith": ours}
        if "torch" in peers:
            import torch

            tw = torch.from_numpy(table.copy()).requires_grad_(backward)
            ti, tg = torch.from_numpy(index.copy()), torch.from_numpy(seed.copy())

            def run_torch() -> Any:
                if not backward:
                    return torch.nn.functional.embedding(ti, tw)
                tw.grad = None
                y = torch.nn.functional.embedding(ti, tw)
                y.backward(tg)
                return y.detach(), tw.grad

            runs["torch"] = run_torch
        return runs

    size = 4.0 * n * cols
    work = 2 * size + (size + 4.0 * rows * cols if backward else 0)
    way = "fwd+bwd" if backward else "forward"
    return Case(f"embedding {way} {rows}x{cols}, {n} indices", setup, bytes=work, rtol=1e-5)


def cases(quick: bool = False) -> list[Case]:
    """A character model's table and a word model's."""
    result = [_case(8192, 256, 8192, True)]
    if not quick:
        result += [
            _case(8192, 256, 8192, False),
            _case(128, 256, 8192, True),
            _case(50000, 128, 16384, True),
        ]
    return result
