"""Matrix products: squares in all transposes, the shapes of small networks, vectors, batches.

Operations: 2 m n k. For products with a vector the bytes of the matrix, read once. Peers write into an
array made beforehand where they can (NumPy, PyTorch); ours takes a fresh one from its pool each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case

SQUARES = (512, 1024, 2048, 4096)
TRANSPOSES = ("nn", "nt", "tn", "tt")  # which operands are stored transposed
# (m, n, k): C (m, n) = A (m, k) B (k, n)
SMALL = (
    (64, 64, 64),
    (128, 128, 128),
    (256, 256, 256),
    (64, 512, 784),
    (64, 4096, 1024),
    (4096, 64, 1024),
    (64, 1024, 4096),
    (4096, 1024, 64),
)
ODD = ((37, 151, 229), (1000, 1000, 1000), (777, 333, 555))
VECTORS = ((1, 4096, 4096), (4096, 1, 4096), (1, 1, 1 << 20), (8, 4096, 4096))
BATCHES: tuple = (((64, 64, 64, 64), "nn"), ((96, 128, 128, 64), "nt"), ((32, 197, 64, 197), "nn"))


def _product(shape: tuple[int, ...], mode: str) -> Callable:
    """shape: (m, n, k) or (batch, m, n, k)."""

    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        *batch, m, n, k = shape
        ta, tb = mode[0] == "t", mode[1] == "t"
        rng = np.random.default_rng(0)
        a = rng.standard_normal((*batch, k, m) if ta else (*batch, m, k), np.float32)
        b = rng.standard_normal((*batch, n, k) if tb else (*batch, k, n), np.float32)
        # memory of our pool: large arrays on huge pages for every library alike
        a, b = gs.tensor(a).clone().numpy(), gs.tensor(b).clone().numpy()
        x, y = (a.swapaxes(-1, -2) if ta else a), (b.swapaxes(-1, -2) if tb else b)
        out = np.empty((*batch, m, n), np.float32)
        p, q = gs.tensor(x), gs.tensor(y)
        runs: dict[str, Callable[[], Any]] = {"gradsmith": lambda: gs.matmul(p, q).data}
        if "numpy" in peers:
            runs["numpy"] = lambda: np.matmul(x, y, out=out)
        if "torch" in peers:
            import torch

            u, v, w = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(out.copy())

            def run_torch() -> Any:
                with torch.inference_mode():
                    return torch.matmul(u, v, out=w)

            runs["torch"] = run_torch
        if "jax" in peers:
            import jax
            import jax.numpy as jnp

            @jax.jit
            def product(s: Any, t: Any) -> Any:
                s = jnp.swapaxes(s, -1, -2) if ta else s
                t = jnp.swapaxes(t, -1, -2) if tb else t
                return jnp.matmul(s, t, precision="highest")

            ja, jb = jnp.array(a), jnp.array(b)
            runs["jax"] = lambda: product(ja, jb).block_until_ready()
        if "tensorflow" in peers:
            import tensorflow as tf

            tfa, tfb = tf.constant(a), tf.constant(b)
            runs["tensorflow"] = lambda: tf.linalg.matmul(
                tfa, tfb, transpose_a=ta, transpose_b=tb
            ).numpy()
        return runs

    return setup


def _linear(rows: int, inputs: int, outputs: int) -> Callable:
    """Forward and backward of a linear layer with bias; all three gradients."""

    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        rng = np.random.default_rng(0)
        x = rng.standard_normal((rows, inputs), np.float32)
        w = rng.standard_normal((outputs, inputs), np.float32) / np.float32(inputs) ** 0.5
        b = rng.standard_normal(outputs, np.float32)
        g = rng.standard_normal((rows, outputs), np.float32)
        ours = [gs.tensor(t, requires_grad=True) for t in (x, w, b)]
        seed = gs.tensor(g)

        def run() -> Any:
            for t in ours:
                t.grad = None
            gs.nn.functional.linear(*ours).backward(seed)
            return tuple(t.grad.data for t in ours)  # type: ignore[union-attr]

        runs: dict[str, Callable[[], Any]] = {"gradsmith": run}
        if "torch" in peers:
            import torch

            theirs = [torch.tensor(t, requires_grad=True) for t in (x, w, b)]
            tg = torch.tensor(g)

            def run_torch() -> Any:
                for t in theirs:
                    t.grad = None
                torch.nn.functional.linear(*theirs).backward(tg)
                return tuple(t.grad for t in theirs)

            runs["torch"] = run_torch
        if "jax" in peers:
            import jax
            import jax.numpy as jnp

            @jax.jit
            def grads(x: Any, w: Any, b: Any, g: Any) -> Any:
                _, back = jax.vjp(lambda x, w, b: x @ w.T + b, x, w, b)
                return back(g)

            arrays = [jnp.array(t) for t in (x, w, b, g)]
            runs["jax"] = lambda: jax.block_until_ready(grads(*arrays))
        return runs

    return setup


def _rounded(rows: int, inputs: int, outputs: int) -> Callable:
    """Forward and backward of a linear layer under autocast; PyTorch's arrays are bfloat16 throughout."""

    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        import gradsmith as gs

        run = gs.autocast()(_linear(rows, inputs, outputs)(set())["gradsmith"])
        runs: dict[str, Callable[[], Any]] = {"gradsmith": run}
        if "torch" in peers:
            import torch

            rng = np.random.default_rng(0)  # as in _linear
            x = rng.standard_normal((rows, inputs), np.float32)
            w = rng.standard_normal((outputs, inputs), np.float32) / np.float32(inputs) ** 0.5
            b = rng.standard_normal(outputs, np.float32)
            g = rng.standard_normal((rows, outputs), np.float32)
            theirs: list[Any] = [torch.from_numpy(t).bfloat16().requires_grad_() for t in (x, w, b)]
            seed = torch.from_numpy(g).bfloat16()

            def run_torch() -> Any:
                for t in theirs:
                    t.grad = None
                torch.nn.functional.linear(*theirs).backward(seed)
                return tuple(t.grad.float().numpy() for t in theirs)

            runs["torch"] = run_torch
        return runs

    return setup


def _name(shape: tuple[int, ...], mode: str) -> str:
    return f"matmul {'x'.join(map(str, shape))} {mode}"


def cases(quick: bool = False) -> list[Case]:
    """Every shape; `quick`: one or two of a kind."""
    r: list[Case] = []

    def add(shape: tuple[int, ...], mode: str, nbytes: float = 0.0) -> None:
        flops = 2.0 * float(np.prod(np.array(shape, np.float64)))
        # relative to the largest element: the sums of different orders differ by about sqrt(k) roundings
        r.append(
            Case(_name(shape, mode), _product(shape, mode), flops=flops, bytes=nbytes, rtol=2e-5)
        )

    for n in SQUARES[:2] if quick else SQUARES:
        for mode in TRANSPOSES[:2] if quick else TRANSPOSES:
            add((n, n, n), mode)
    for shape in SMALL[:4] if quick else SMALL:
        for mode in TRANSPOSES[:1] if quick else TRANSPOSES[:3]:
            add(shape, mode)
    for shape in ODD[:1] if quick else ODD:
        add(shape, "nn")
    for shape in VECTORS[:2] if quick else VECTORS:
        add(shape, "nn", 4.0 * (shape[0] * shape[2] + shape[1] * shape[2]))
    if not quick:
        add((1, 4096, 4096), "nt", 4.0 * 4096 * 4097)
    for shape, mode in BATCHES[:1] if quick else BATCHES:
        add(shape, mode)
    for rows, inputs, outputs in ((128, 784, 512), (1024, 1024, 1024))[: 1 if quick else 2]:
        r.append(
            Case(
                f"linear {rows}x{inputs}->{outputs} forward+backward",
                _linear(rows, inputs, outputs),
                flops=6.0 * rows * inputs * outputs,
                rtol=2e-5,
            )
        )
    for rows, inputs, outputs in ((1024, 256, 1024), (1024, 1024, 256))[: 1 if quick else 2]:
        r.append(
            Case(
                f"linear {rows}x{inputs}->{outputs} forward+backward, bfloat16",
                _rounded(rows, inputs, outputs),
                flops=6.0 * rows * inputs * outputs,
                rtol=2e-2,  # PyTorch rounds its results, too
            )
        )
    return r
