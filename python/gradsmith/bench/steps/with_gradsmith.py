"""Our side of the comparison: the functional ops, eager or captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import gradsmith as gs
import gradsmith.nn.functional as F
from gradsmith import optim

from .functional import Functional
from .nets import Net

VARIANTS = ("captured", "eager", "captured bf16", "eager bf16")


class Ops(Functional):
    F = F

    def __init__(self, net: Net, training: bool):
        self.training = training
        self.p = {
            name: gs.tensor(w, requires_grad=training and net.trained(name))
            for name, w in net.weights().items()
        }
        self._lstm: Any = None

    def mean_pool(self, x: Any) -> Any:
        return x.mean((1, 2))

    def flatten(self, x: Any) -> Any:
        return x.flatten(1)

    def attention(self, qkv: Any, heads: int) -> Any:
        return F.attention_qkv(qkv, heads, is_causal=True)

    def lstm(self, x: Any, name: str) -> Any:
        if self._lstm is None:
            w = {n.removeprefix(f"{name}."): t for n, t in self.p.items() if n.startswith(name)}
            hidden = w["weight_hh"].shape[1]
            self._lstm = gs.nn.LSTM(x.shape[-1], hidden, batch_first=True)
            self._lstm.load_state_dict({f"{n}_l0": t.data for n, t in w.items()})
            for n in w:  # the optimizer and the module share the parameters
                self.p[f"{name}.{n}"] = getattr(self._lstm, f"{n}_l0")
        return self._lstm(x)[0]


def build(net: Net, batch: int, training: bool, variant: str, threads: int) -> Callable[[], Any]:
    """As in with_torch.py."""
    gs.set_num_threads(threads)
    x, y = net.data(batch)
    tx, ty = gs.from_numpy(x), gs.from_numpy(y)
    b = Ops(net, training)
    capture: Any = gs.capture if variant.startswith("captured") else lambda f: f
    cast: Any = gs.autocast() if variant.endswith("bf16") else lambda f: f
    if not training:

        def forward(a: Any) -> Any:
            with gs.no_grad():
                return net.forward(b, a)

        run = capture(forward)
        return cast(lambda: np.asarray(run(tx).data))

    with gs.no_grad():
        net.forward(b, tx[:1] if net.name == "lstm" else tx[:2])  # makes the modules
    for name, w in net.weights().items():
        if ".running_" in name:
            b.p[name].data[...] = w
    optimizer = optim.AdamW([t for n, t in b.p.items() if net.trained(n)], lr=1e-3)

    def update(a: Any, target: Any) -> Any:
        optimizer.zero_grad()
        logits = net.forward(b, a).reshape(-1, net.classes)
        loss = F.cross_entropy(logits, target.reshape(-1))
        loss.backward()
        optimizer.step()
        return loss

    step = capture(update)

    once: Any = cast(lambda: step(tx, ty).item())
    once.captured = step  # for where.py
    return once
