"""PyTorch's side of the comparison: channels last, fused AdamW, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .functional import Functional
from .nets import Net

VARIANTS = ("eager", "compile", "eager+malloc", "compile+malloc")


class Ops(Functional):
    F = F

    def __init__(self, net: Net, training: bool):
        self.training = training
        self.p = {}
        for name, w in net.weights().items():
            t = torch.from_numpy(w)
            if t.ndim == 4:
                t = t.permute(0, 3, 1, 2)  # (out, in, kh, kw) with channels last in memory
            self.p[name] = t.requires_grad_(training and net.trained(name))

    def mean_pool(self, x: Any) -> Any:
        return x.mean((2, 3))

    def flatten(self, x: Any) -> Any:
        return x.permute(0, 2, 3, 1).flatten(1)

    def attention(self, qkv: Any, heads: int) -> Any:
        n, t, width = qkv.shape
        q, k, v = qkv.view(n, t, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).reshape(n, t, width // 3)

    def lstm(self, x: Any, name: str) -> Any:
        p = self.p
        zero = x.new_zeros(1, x.shape[0], p[f"{name}.weight_hh"].shape[1])
        weights = [p[f"{name}.{n}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        return torch.lstm(x, (zero, zero), weights, True, 1, 0.0, self.training, False, True)[0]


def _input(x: np.ndarray) -> Any:
    t = torch.from_numpy(x)
    return t.permute(0, 3, 1, 2) if t.ndim == 4 else t


def build(net: Net, batch: int, training: bool, variant: str, threads: int) -> Callable[[], Any]:
    """A function that does one step and returns the loss, or one inference and returns the output."""
    torch.set_num_threads(threads)
    x, y = net.data(batch)
    tx, ty = _input(x), torch.from_numpy(y)
    b = Ops(net, training)

    def forward(a: Any) -> Any:
        return net.forward(b, a)

    def loss_of(a: Any, target: Any) -> Any:
        return F.cross_entropy(forward(a).reshape(-1, net.classes), target.reshape(-1))

    if variant.startswith("compile"):
        forward, loss_of = torch.compile(forward), torch.compile(loss_of)
    if not training:

        def infer() -> Any:
            with torch.inference_mode():
                return forward(tx).numpy()

        return infer
    optimizer = torch.optim.AdamW([t for t in b.p.values() if t.requires_grad], 1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(tx, ty)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step
