"""One op on a tiny tensor, called from Python: binding, checks, allocation and the node of the graph.

Inputs are (32, 64) float32 and require a gradient, so every call records. "backward" cases are a chain of 16
ops and its backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case

CHAIN = 16


def _ops(lib: Any, F: Any, t: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The ops that gradsmith and PyTorch call alike."""
    x, y, w, b, ids, p = t["x"], t["y"], t["w"], t["b"], t["ids"], t["p"]
    return {
        "add": lambda: x + y,
        "mul": lambda: x * y,
        "add number": lambda: x + 1.0,
        "exp": lambda: lib.exp(x),
        "sum": lambda: x.sum(),
        "mean axis 1": lambda: x.mean(1),
        "reshape": lambda: x.reshape(64, 32),
        "slice": lambda: x[:, 2:5],
        "relu": lambda: F.relu(x),
        "gelu": lambda: F.gelu(x),
        "softmax": lambda: F.softmax(x, -1),
        "matmul": lambda: x @ w,
        "linear": lambda: F.linear(x, w, b),
        "layer_norm": lambda: F.layer_norm(x, (64,), b, b),
        "batch_norm": lambda: F.batch_norm(x, None, None, b, b, True),
        "mse_loss": lambda: F.mse_loss(x, p),
        "cross_entropy": lambda: F.cross_entropy(x, ids),
    }


def _chains(F: Any, t: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    x, y, w, b, ones = t["x"], t["y"], t["w"], t["b"], t["ones"]

    def chain(op: Callable[[Any], Any]) -> Callable[[], Any]:
        def run() -> Any:
            x.grad = w.grad = b.grad = y.grad = None
            z = x
            for _ in range(CHAIN):
                z = op(z)
            z.backward(ones)
            return x.grad

        return run

    return {
        "relu": chain(lambda z: F.relu(z)),
        "mul": chain(lambda z: z * y),
        "linear": chain(lambda z: F.linear(z, w, b)),
    }


def _tensors(make: Callable[[np.ndarray, bool], Any]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    f = np.float32
    return {
        "x": make(rng.standard_normal((32, 64)).astype(f), True),
        "y": make(rng.standard_normal((32, 64)).astype(f), True),
        "p": make(rng.random((32, 64)).astype(f), False),
        "w": make((rng.standard_normal((64, 64)) / 8).astype(f), True),
        "b": make(rng.standard_normal(64).astype(f), True),
        "ids": make(rng.integers(0, 64, 32), False),
        "ones": make(np.ones((32, 64), f), False),
    }


def _both(pick: Callable[[Any, Any, dict[str, Any]], Callable[[], Any]]) -> Any:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs
        from gradsmith.nn import functional as F

        def ours(a: np.ndarray, grad: bool) -> Any:
            return gs.tensor(a, requires_grad=grad)

        runs = {"gradsmith": pick(gs, F, _tensors(ours))}
        if "torch" in peers:
            import torch

            def theirs(a: np.ndarray, grad: bool) -> Any:
                return torch.tensor(a, requires_grad=grad)

            runs["torch"] = pick(torch, torch.nn.functional, _tensors(theirs))
        return runs

    return setup


def _op(name: str) -> Case:
    return Case(f"{name} (32, 64)", _both(lambda lib, F, t: _ops(lib, F, t)[name]), rtol=1e-3)


def _chain(name: str) -> Case:
    setup = _both(lambda lib, F, t: _chains(F, t)[name])
    return Case(f"{CHAIN} x {name}, forward + backward", setup, rtol=1e-3)


def cases(quick: bool = False) -> list[Case]:
    """Single ops, and chains with their backward pass."""
    nothing: dict[str, Any] = dict.fromkeys(("x", "y", "w", "b", "ids", "p", "ones"))
    names, chains = list(_ops(None, None, nothing)), list(_chains(None, nothing))
    if quick:
        names, chains = names[:2], chains[:1]
    return [*map(_op, names), *map(_chain, chains)]
