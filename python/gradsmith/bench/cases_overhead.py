"""One op on a tiny tensor, called from Python: binding, checks, allocation and the node of the graph.

Inputs are (32, 64) float32 and require a gradient, so every call records. "backward" cases are a chain of 16
ops and its backward pass. "replay" cases give what a captured op costs over its kernel: the whole call, from
Python and back, less the time of the kernels run in a row by themselves, divided by the ops. "Trainer" cases
give what an epoch of ``Trainer.fit`` takes over a loop that calls a captured step on the same loader and adds
up the losses; the two take turns.
"""

from __future__ import annotations

import statistics
import time
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


def _replay(ops: int, size: int) -> Case:
    """A captured chain of `ops` additions of `size` numbers, on one thread."""
    made: dict[str, Any] = {}

    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith

        gs: Any = gradsmith
        x = gs.ones(size)

        def chain(a: Any) -> Any:
            for _ in range(ops):
                a = a + 1.0
            return a

        step = gs.capture(chain, passes=["side_by_side", "barriers", "memory"])

        def run() -> Any:
            with gs.no_grad(), gs.threads(1):
                return step(x)

        for _ in range(4):
            run()
        made.update(step=step, x=x)
        return {"gradsmith": run}

    def extra() -> dict[str, float]:
        import gradsmith

        gs: Any = gradsmith
        step, x, best, kernels = made["step"], made["x"], [], []
        count = max(20, 40_000 // ops)
        with gs.no_grad(), gs.threads(1):
            native = step._programs[0].native
            assert native.stats()["steps"] == ops
            for _ in range(9):
                start = time.perf_counter()
                for _ in range(count):
                    step(x)
                best.append((time.perf_counter() - start) / count)
                kernels.append(sum(native.kernel_seconds(1, 50)))
        call, own = min(best), min(kernels)
        return {
            "us a call": call * 1e6,
            "us of kernels": own * 1e6,
            "us an op over the kernels": (call - own) / ops * 1e6,
        }

    return Case(f"replay of {ops} x add ({size},)", setup, extra=extra)


def _trainer(name: str, batch: int, batches: int) -> Case:
    """Epochs of Trainer.fit and of a bare captured loop over the same data."""
    made: dict[str, Callable[[], float]] = {}

    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith
        from gradsmith.nn import functional as F

        gs: Any = gradsmith
        rng = np.random.default_rng(0)
        shape = {"mlp": (784,), "lenet": (28, 28, 1)}[name]
        x = rng.standard_normal((batch * batches, *shape)).astype(np.float32)
        y = rng.integers(0, 10, batch * batches)

        def parts() -> tuple[Any, Any, Any]:
            gs.manual_seed(0)
            model = gs.models.mlp(784, 512, 256, 10) if name == "mlp" else gs.models.lenet()
            optimizer = gs.optim.AdamW(model.parameters(), lr=1e-3)
            return model, optimizer, gs.data.Loader((x, y), batch, shuffle=True, seed=0)

        model, optimizer, loader = parts()
        trainer = gs.train.Trainer(model, "cross_entropy", optimizer)

        def fit() -> float:
            return trainer.fit(loader, epochs=1, progress=False)[-1]["loss"]

        bare_model, bare_optimizer, bare_loader = parts()

        @gs.capture
        def step(a: Any, b: Any) -> Any:
            bare_optimizer.zero_grad()
            loss = F.cross_entropy(bare_model(a), b)
            loss.backward()
            bare_optimizer.step()
            return loss

        def loop() -> float:
            total = 0.0
            for a, b in bare_loader:
                total += step(gs.tensor(a), gs.tensor(b)).item() * len(a)
            return total / len(x)

        made.update(fit=fit, loop=loop)
        return {"gradsmith": fit}

    def extra() -> dict[str, float]:
        fit, loop = made["fit"], made["loop"]
        loop()
        pairs = []
        for i in range(15):
            took = {}
            for run in (fit, loop) if i % 2 else (loop, fit):
                start = time.perf_counter()
                run()
                took[run] = time.perf_counter() - start
            pairs.append((took[fit], took[loop]))
        mine, bare = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        return {
            "ms an epoch": mine * 1e3,
            "ms of the bare loop": bare * 1e3,
            "percent over the bare loop": 100 * (mine / bare - 1),
        }

    return Case(f"Trainer, {name} batch {batch}, epoch of {batches}", setup, extra=extra)


def cases(quick: bool = False) -> list[Case]:
    """Single ops, chains with their backward pass, captured chains, epochs of the Trainer."""
    nothing: dict[str, Any] = dict.fromkeys(("x", "y", "w", "b", "ids", "p", "ones"))
    names, chains = list(_ops(None, None, nothing)), list(_chains(None, nothing))
    if quick:
        names, chains = names[:2], chains[:1]
    captured = [_replay(64, 16)] if quick else [_replay(64, 16), _replay(1024, 16)]
    trained = [] if quick else [_trainer("mlp", 128, 60), _trainer("lenet", 64, 12)]
    return [*map(_op, names), *map(_chain, chains), *captured, *trained]
