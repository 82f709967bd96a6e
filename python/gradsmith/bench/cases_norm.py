"""Normalisation: forward and forward with backward, on 8 MB tensors and on the shapes of small networks.

Bytes are the passes that the algorithm needs: batch norm forward 2 reads + 1 write, backward 4 reads +
1 write; layer norm forward 1 + 1, backward 2 + 1. PyTorch runs channels_last. With ReLU the
gradients are not compared: an output of almost zero may round to either side.
"""

from __future__ import annotations

from typing import Any

from .case import Case


def _arrays(shape: tuple, seed: int = 0) -> tuple:
    import numpy as np

    rng = np.random.default_rng(seed)
    c = shape[-1]
    return tuple(rng.standard_normal(s, dtype=np.float32) for s in (shape, shape, (c,), (c,)))


def _ours(fn: Any, arrays: tuple, backward: bool, only_y: bool) -> Any:
    import gradsmith as gs

    x, g, w, b = (gs.tensor(a) for a in arrays)
    if not backward:

        def forward() -> Any:
            with gs.no_grad():
                return fn(x, w, b).data

        return forward
    for t in (x, w, b):
        t.requires_grad_()

    def both() -> Any:
        x.grad = w.grad = b.grad = None
        y = fn(x, w, b)
        y.backward(g)
        return y.detach() if only_y else (y.detach(), x.grad, w.grad, b.grad)

    return both


def torch_layout(a: Any) -> Any:
    """A channels-last array as a torch tensor in torch's axis order, memory unchanged."""
    import torch

    t = torch.from_numpy(a.copy())
    return t.permute(0, 3, 1, 2) if a.ndim == 4 else t


def our_layout(t: Any) -> Any:
    return t.permute(0, 2, 3, 1) if t.ndim == 4 else t


def _torch(fn: Any, arrays: tuple, backward: bool, only_y: bool) -> Any:
    import torch

    x, g = torch_layout(arrays[0]), torch_layout(arrays[1])
    w, b = (torch.from_numpy(a.copy()) for a in arrays[2:])
    if not backward:

        def forward() -> Any:
            with torch.no_grad():
                return our_layout(fn(x, w, b))

        return forward
    for t in (x, w, b):
        t.requires_grad_()

    def both() -> Any:
        x.grad = w.grad = b.grad = None
        y = fn(x, w, b)
        y.backward(g)
        out = our_layout(y.detach())
        return out if only_y else (out, our_layout(x.grad), w.grad, b.grad)

    return both


def _case(name: str, kind: str, shape: tuple, backward: bool, passes: int) -> Case:
    def setup(peers: set[str]) -> dict:
        import gradsmith.nn.functional as F

        arrays, c = _arrays(shape), shape[-1]
        ours = {
            "batch": lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
            "relu": lambda x, w, b: F.batch_norm(x, None, None, w, b, True, relu=True),
            "layer": lambda x, w, b: F.layer_norm(x, c, w, b),
            "group": lambda x, w, b: F.group_norm(x, 8, w, b),
        }[kind]
        runs = {"gradsmith": _ours(ours, arrays, backward, kind == "relu")}
        if "torch" in peers:
            from torch.nn import functional as tf

            theirs = {
                "batch": lambda x, w, b: tf.batch_norm(x, None, None, w, b, True),
                "relu": lambda x, w, b: tf.batch_norm(x, None, None, w, b, True).relu_(),
                "layer": lambda x, w, b: tf.layer_norm(x, (c,), w, b),
                "group": lambda x, w, b: tf.group_norm(x, 8, w, b),
            }[kind]
            runs["torch"] = _torch(theirs, arrays, backward, kind == "relu")
        return runs

    size = 4.0
    for n in shape:
        size *= n
    # over many rows PyTorch's own sums are off by 1e-4 and more (ours, against float64: 1e-6)
    rtol = 5e-3 if size > 4e5 * shape[-1] * 4 else 2e-5
    return Case(f"{name} {'x'.join(map(str, shape))}", setup, bytes=passes * size, rtol=rtol)


def cases(quick: bool = False) -> list[Case]:
    """Batch, layer, group norm; 8 MB unless the shape says otherwise."""
    image = (32, 32, 32, 64)
    result = [
        _case("batch norm forward", "batch", image, False, 3),
        _case("batch norm fwd+bwd", "batch", image, True, 8),
        _case("layer norm fwd+bwd", "layer", (4096, 512), True, 5),
    ]
    if not quick:
        result += [
            _case("batch norm + ReLU fwd+bwd", "relu", image, True, 8),
            _case("batch norm fwd+bwd", "batch", (8, 128, 128, 16), True, 8),
            _case("batch norm fwd+bwd", "batch", (128, 8, 8, 256), True, 8),
            _case("batch norm fwd+bwd", "batch", (200, 59, 59, 3), True, 8),
            _case("batch norm fwd+bwd", "batch", (128, 256), True, 8),
            _case("layer norm forward", "layer", (4096, 512), False, 2),
            _case("layer norm fwd+bwd", "layer", (32768, 64), True, 5),
            _case("layer norm fwd+bwd", "layer", (1024, 768), True, 5),
            _case("group norm fwd+bwd", "group", image, True, 8),
        ]
    return result
