"""Benchmark cases of the convolutions: forward, both gradients, the layers of LeNet and of ResNets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case

__all__ = ["cases"]

# name, batch, size, channels, filters, kernel, stride, groups
_SHAPES = [
    ("3x3 32", 8, 32, 32, 32, 3, 1, 1),
    ("3x3 64", 8, 32, 64, 64, 3, 1, 1),
    ("3x3 64 56x56", 2, 56, 64, 64, 3, 1, 1),
    ("3x3 128", 8, 16, 128, 128, 3, 1, 1),
    ("3x3 256", 8, 8, 256, 256, 3, 1, 1),
    ("3x3 512", 16, 4, 512, 512, 3, 1, 1),
    ("3x3/2 64-128", 8, 32, 64, 128, 3, 2, 1),
    ("1x1 64-256", 4, 28, 64, 256, 1, 1, 1),
    ("5x5 1-32 LeNet", 128, 28, 1, 32, 5, 1, 1),
    ("5x5 32-64 LeNet", 128, 14, 32, 64, 5, 1, 1),
    ("3x3 1-32 digits", 64, 8, 1, 32, 3, 1, 1),
    ("3x3 32-64 digits", 64, 8, 32, 64, 3, 1, 1),
    ("3x3 3-64 stem", 16, 32, 3, 64, 3, 1, 1),
    ("7x7/2 3-64 stem", 1, 224, 3, 64, 7, 2, 1),
    ("3x3 depthwise 128", 4, 28, 128, 128, 3, 1, 128),
    ("3x3 groups 4", 4, 28, 128, 128, 3, 1, 4),
]
# Stride 1, 3x3, padded, batch 32: channels at sizes
_GRID = [(channels, size) for channels in (64, 128, 256, 512) for size in (32, 16, 8, 4)]
_QUICK = {"3x3 32", "3x3 64", "3x3 128", "5x5 1-32 LeNet", "5x5 32-64 LeNet", "3x3 1-32 digits"}


def _torch(x: Any, w: Any, b: Any, dy: Any, window: tuple, what: str) -> Callable[[], Any]:
    import torch

    stride, pad, groups = window

    def image(a: Any) -> Any:
        return torch.from_numpy(a).permute(0, 3, 1, 2)  # NHWC memory: channels_last

    tx, tw, tdy, tb = image(x), image(w), image(dy), torch.from_numpy(b)

    def forward() -> Any:
        with torch.no_grad():
            return torch.nn.functional.conv2d(tx, tw, tb, stride, pad, 1, groups).permute(
                0, 2, 3, 1
            )

    def backward(mask: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            tdy, tx, tw, [len(b)], [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], groups, mask
        )

    if what == "forward":
        return forward
    if what == "backward data":
        return lambda: backward([True, False, False])[0].permute(0, 2, 3, 1)

    def weight() -> Any:
        _, dw, db = backward([False, True, True])
        return dw.permute(0, 2, 3, 1), db

    def step() -> Any:
        y = forward()
        dx, dw, db = backward([True, True, True])
        return y, dx.permute(0, 2, 3, 1), dw.permute(0, 2, 3, 1), db

    return weight if what == "backward weight" else step


def _jax(x: Any, w: Any, b: Any, dy: Any, window: tuple, what: str) -> Callable[[], Any]:
    import jax

    stride, pad, groups = window

    def conv(x: Any, w: Any, b: Any) -> Any:
        return b + jax.lax.conv_general_dilated(
            x, w, (stride, stride), [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "OHWI", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    jx, jw, jb, jdy = (jax.numpy.asarray(a) for a in (x, w, b, dy))
    if what == "forward":
        f = jax.jit(conv)
        return lambda: jax.block_until_ready(f(jx, jw, jb))
    if what == "forward + backward":

        def step(x: Any, w: Any, b: Any, dy: Any) -> Any:
            y, pull = jax.vjp(conv, x, w, b)
            return y, *pull(dy)

        g = jax.jit(step)
    elif what == "backward data":
        g = jax.jit(lambda x, w, b, dy: jax.vjp(lambda x: conv(x, w, b), x)[1](dy)[0])
    else:
        g = jax.jit(lambda x, w, b, dy: jax.vjp(lambda w, b: conv(x, w, b), w, b)[1](dy))
    return lambda: jax.block_until_ready(g(jx, jw, jb, jdy))


def _case(shape: tuple, what: str) -> Case:
    name, n, size, channels, filters, kernel, stride, groups = shape
    pad = kernel // 2
    out = (size + 2 * pad - kernel) // stride + 1

    def setup(peers: set[str]) -> dict[str, Callable[[], Any]]:
        from .. import _cpu as k

        rng = np.random.default_rng(0)

        def array(*s: int) -> Any:
            return k.copy(rng.standard_normal(s, dtype=np.float32))

        x = array(n, size, size, channels)
        w = array(filters, kernel, kernel, channels // groups)
        b, dy = array(filters), array(n, out, out, filters)
        args = (stride, pad, 1, groups)
        runs: dict[str, Callable[[], Any]] = {}
        if what == "forward":
            runs["gradsmith"] = lambda: k.conv(2, x, w, b, *args, False)
        elif what == "forward + backward":
            runs["gradsmith"] = lambda: (
                k.conv(2, x, w, b, *args, False),
                *k.conv_backward(2, x, dy, w, *args, True, True, True),
            )
        elif what == "backward data":
            runs["gradsmith"] = lambda: k.conv_backward_data(2, dy, w, x.shape, *args)
        else:
            runs["gradsmith"] = lambda: k.conv_backward_weight(2, x, dy, w.shape, *args, True)
        window = (stride, pad, groups)
        if "torch" in peers:
            runs["torch"] = _torch(x, w, b, dy, window, what)
        if "jax" in peers:
            runs["jax"] = _jax(x, w, b, dy, window, what)
        return runs

    pixels = n * out * out
    return Case(
        name=f"conv {name}, {n}x{size}x{size}x{channels}, {what}",
        setup=setup,
        # of the direct sum: Winograd's share of the peak can be above 1
        flops=2.0
        * pixels
        * filters
        * kernel
        * kernel
        * channels
        / groups
        * (3 if what == "forward + backward" else 1),
        bytes=4.0 * (n * size * size * channels + pixels * filters),
        rtol=1e-4,
    )


def cases(quick: bool = False) -> list[Case]:
    """Every shape forward and backward; the input's gradient not for the first layers."""
    found = []
    for shape in _SHAPES:
        if quick and shape[0] not in _QUICK:
            continue
        for what in ("forward", "backward data", "backward weight"):
            if what == "backward data" and shape[3] < 8:
                continue
            found.append(_case(shape, what))
    if not quick:
        for channels, size in _GRID:
            shape = (f"3x3 {channels}", 32, size, channels, channels, 3, 1, 1)
            found += [_case(shape, what) for what in ("forward", "forward + backward")]
    return found
