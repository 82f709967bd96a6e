"""Elementwise kernels on 2 million float32 elements (8 MB an array), and the cost of one small op.

Bytes: 4 for every float32 that is read or written, each operand once; a broadcast row is not counted.
"forward+backward" runs the op and its gradients with respect to both operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case

N = 1 << 21
ROWS, COLUMNS = 2048, 1024

UNARY = ["neg", "sqrt", "exp", "log", "log1p", "sin", "square", "reciprocal", "abs"]


def _torch(runs: dict, peers: set[str], make: Callable[[Any], Callable[[], Any]]) -> None:
    if "torch" in peers:
        import torch

        runs["torch"] = make(torch)


def _jax(
    runs: dict, peers: set[str], fn: Callable[[Any], Callable], arrays: list[np.ndarray]
) -> None:
    if "jax" in peers:
        import jax
        import jax.numpy as jnp

        fast = jax.jit(fn(jnp))
        given = [jnp.asarray(a) for a in arrays]
        runs["jax"] = lambda: jax.block_until_ready(fast(*given))


def _binary(name: str, shape_a: tuple, shape_b: tuple) -> Callable:
    symbol = {"add": "__add__", "sub": "__sub__", "mul": "__mul__", "div": "__truediv__"}[name]

    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        rng = np.random.default_rng(0)
        a, b = rng.random(shape_a, np.float32) + 1, rng.random(shape_b, np.float32) + 1
        x, y = gs.tensor(a), gs.tensor(b)
        ours = getattr(gs, name)
        runs: dict[str, Callable[[], Any]] = {"gradsmith": lambda: ours(x, y).data}
        if "numpy" in peers:
            theirs = getattr(a, symbol)
            runs["numpy"] = lambda: theirs(b)
        _torch(runs, peers, lambda t: _bound(getattr(t, name), t.tensor(a), t.tensor(b)))
        _jax(runs, peers, lambda _: lambda u, v: getattr(u, symbol)(v), [a, b])
        return runs

    return setup


def _bound(fn: Callable, *args: Any) -> Callable[[], Any]:
    return lambda: fn(*args)


def _trained(name: str) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        rng = np.random.default_rng(0)
        a, b, g = (rng.random(N, np.float32) + 1 for _ in range(3))

        def make(lib: Any, x: Any, y: Any, seed: Any) -> Callable[[], Any]:
            op = getattr(lib, name)

            def run() -> Any:
                x.grad = y.grad = None
                op(x, y).backward(seed)
                return x.grad.detach().numpy(), y.grad.detach().numpy()

            return run

        runs = {
            "gradsmith": make(
                gs,
                gs.tensor(a, requires_grad=True),
                gs.tensor(b, requires_grad=True),
                gs.tensor(g),
            )
        }
        _torch(
            runs,
            peers,
            lambda t: make(
                t,
                t.tensor(a, requires_grad=True),
                t.tensor(b, requires_grad=True),
                t.tensor(g),
            ),
        )
        return runs

    return setup


def _unary(name: str) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        a = np.random.default_rng(0).random(N, np.float32) + np.float32(0.1)
        x = gs.tensor(a)
        ours = getattr(gs, name)
        runs: dict[str, Callable[[], Any]] = {"gradsmith": lambda: ours(x).data}
        plain = {"neg": "negative"}.get(name, name)
        if "numpy" in peers:
            runs["numpy"] = _bound(getattr(np, plain), a)
        _torch(runs, peers, lambda t: _bound(getattr(t, name), t.tensor(a)))
        _jax(runs, peers, lambda jnp: getattr(jnp, plain), [a])
        return runs

    return setup


def _other(what: str) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        k = gs._cpu
        rng = np.random.default_rng(0)
        a, b = rng.random((ROWS, COLUMNS), np.float32), rng.random((ROWS, COLUMNS), np.float32)
        c = a > b
        runs: dict[str, Callable[[], Any]] = {}
        if what == "where":
            runs["gradsmith"] = lambda: k.where(c, a, b)
            runs["numpy"] = lambda: np.where(c, a, b)
            _torch(runs, peers, lambda t: _bound(t.where, t.tensor(c), t.tensor(a), t.tensor(b)))
        elif what == "less than":
            runs["gradsmith"] = lambda: k.lt(a, b)
            runs["numpy"] = lambda: a < b
            _torch(runs, peers, lambda t: _bound(t.lt, t.tensor(a), t.tensor(b)))
        elif what == "copy":
            runs["gradsmith"] = lambda: k.copy(a)
            runs["numpy"] = lambda: a.copy()
            _torch(runs, peers, lambda t: _bound(t.clone, t.tensor(a)))
        elif what == "copy of the transpose":
            runs["gradsmith"] = lambda: k.copy(a.T)
            runs["numpy"] = lambda: np.ascontiguousarray(a.T)
            _torch(runs, peers, lambda t: t.tensor(a).t().contiguous)
        elif what == "add in place":
            x, y = gs.tensor(a), gs.tensor(b * 1e-9)
            runs["gradsmith"] = lambda: x.add_(y).data
            _torch(runs, peers, lambda t: _bound(t.tensor(a).add_, t.tensor(b * 1e-9)))
        elif what == "multiply by a number":
            runs["gradsmith"] = lambda: k.mul(a, 1.5)
            runs["numpy"] = lambda: a * np.float32(1.5)
            _torch(runs, peers, lambda t: _bound(t.mul, t.tensor(a), 1.5))
        elif what == "pow":
            runs["gradsmith"] = lambda: k.pow(a, b)
            runs["numpy"] = lambda: a**b
            _torch(runs, peers, lambda t: _bound(t.pow, t.tensor(a), t.tensor(b)))
        if "numpy" not in peers:
            runs.pop("numpy", None)
        return runs

    return setup


def _random(name: str) -> Callable:
    """Streams differ, so the peers return their time's worth of zeros to compare."""

    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        k = gs._cpu
        nothing = np.zeros(1, np.float32)

        def only_time(fn: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                fn()
                return nothing

            return run

        ours = k.uniform if name == "rand" else k.normal
        runs = {"gradsmith": only_time(lambda: ours([N], "float32", 0.0, 1.0, 1, 1))}
        generator = np.random.default_rng(0)
        if "numpy" in peers:
            draw = generator.random if name == "rand" else generator.standard_normal
            runs["numpy"] = only_time(lambda: draw(N, np.float32))
        _torch(runs, peers, lambda t: only_time(_bound(getattr(t, name), N)))
        return runs

    return setup


def _small(name: str) -> Callable:
    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        a = np.random.default_rng(0).random((8, 16), np.float32)

        def make(lib: Any) -> Callable[[], Any]:
            x, y = lib.tensor(a, requires_grad=True), lib.tensor(a, requires_grad=True)
            fn = getattr(lib, name)
            args = (x, y) if name in ("add", "mul") else (x,)
            return lambda: fn(*args)

        runs = {"gradsmith": make(gs)}
        _torch(runs, peers, make)
        return runs

    return setup


def cases(quick: bool = False) -> list[Case]:
    """Arithmetic, broadcasting, functions, copies, random numbers on 8 MB arrays; one op on 8 x 16."""
    found = [
        Case(f"{op} 8 MB", _binary(op, (N,), (N,)), bytes=12 * N)
        for op in (["add"] if quick else ["add", "sub", "mul", "div"])
    ]
    whole = (ROWS, COLUMNS)
    found += [
        Case("add row (2048, 1024) + (1024,)", _binary("add", whole, (COLUMNS,)), bytes=8 * N),
        Case("mul column (2048, 1024) * (2048, 1)", _binary("mul", whole, (ROWS, 1)), bytes=8 * N),
        Case("add channels (65536, 32) + (32,)", _binary("add", (N // 32, 32), (32,)), bytes=8 * N),
        # forward 12 bytes; backward of mul reads g twice, a and b, writes two
        Case("add forward+backward 8 MB", _trained("add"), bytes=28 * N),
        Case("mul forward+backward 8 MB", _trained("mul"), bytes=36 * N),
    ]
    found += [
        Case(f"{op} 8 MB", _unary(op), bytes=8 * N, rtol=1e-5)
        for op in (UNARY[:1] if quick else UNARY)
    ]
    sizes = {
        "where": 13, "less than": 9, "copy": 8, "copy of the transpose": 8, "add in place": 12,
        "multiply by a number": 8, "pow": 12,
    }  # fmt: skip
    found += [Case(f"{w} 8 MB", _other(w), bytes=s * N) for w, s in sizes.items()]
    found += [Case(f"{w} 8 MB", _random(w), bytes=4 * N) for w in ("rand", "randn")]
    found += [
        Case(f"one op: {w} (8, 16), recorded", _small(w))
        for w in ("add", "mul", "relu", "exp", "sum")
    ]
    return found
