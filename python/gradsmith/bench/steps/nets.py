"""The networks of the comparison, each written once over a small set of ops that every library provides.

A library's adapter (``with_torch.py`` and its neighbours) has a method per op; the first argument is the
tensor, the last the name under which the op's weights lie in ``self.p``. So all libraries run the same
network from the same weights on the same batch. Layouts are gradsmith's: images (N, H, W, C), convolution
weights (out, kh, kw, in), linear weights (out, in); adapters turn them once, before anything is timed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["NETS", "Floor", "Net"]


def mlp_forward(sizes: tuple[int, ...]) -> Callable[[Any, Any], Any]:
    def forward(b: Any, x: Any) -> Any:
        for i in range(len(sizes) - 1):
            x = b.linear(x, f"fc{i}")
            if i < len(sizes) - 2:
                x = b.relu(x)
        return x

    return forward


def lenet(b: Any, x: Any) -> Any:
    x = b.max_pool(b.relu(b.conv(x, 1, 1, "conv0")))
    x = b.max_pool(b.relu(b.conv(x, 1, 1, "conv1")))
    return b.linear(b.relu(b.linear(b.flatten(x), "fc0")), "fc1")


RESNET = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels and stride of each stage of two blocks


def resnet18(b: Any, x: Any) -> Any:
    x = b.relu(b.batch_norm(b.conv(x, 1, 1, "stem"), "stem.bn"))
    for s, (_, stride) in enumerate(RESNET):
        for i in range(2):
            name, step = f"s{s}b{i}", stride if i == 0 else 1
            y = b.relu(b.batch_norm(b.conv(x, step, 1, f"{name}.c0"), f"{name}.n0"))
            y = b.batch_norm(b.conv(y, 1, 1, f"{name}.c1"), f"{name}.n1")
            if step != 1:
                x = b.batch_norm(b.conv(x, step, 0, f"{name}.short"), f"{name}.ns")
            x = b.relu(b.add(y, x))
    return b.linear(b.mean_pool(x), "fc")


WIDTH, LAYERS, HEADS, TOKENS, VOCABULARY = 256, 4, 8, 64, 1000


def gpt(b: Any, x: Any) -> Any:
    x = b.add(b.embedding(x, "token"), b.weight("position"))
    for i in range(LAYERS):
        qkv = b.linear(b.layer_norm(x, f"h{i}.n0"), f"h{i}.qkv")
        x = b.add(x, b.linear(b.attention(qkv, HEADS), f"h{i}.out"))
        y = b.gelu(b.linear(b.layer_norm(x, f"h{i}.n1"), f"h{i}.up"))
        x = b.add(x, b.linear(y, f"h{i}.down"))
    return b.linear(b.layer_norm(x, "norm"), "head")


def lstm(b: Any, x: Any) -> Any:
    return b.linear(b.last(b.lstm(x, "lstm")), "fc")


class _Weights(dict):
    """Makes weights by name; the same numbers on every machine."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def normal(self, name: str, shape: tuple[int, ...], std: float) -> None:
        self[name] = (self.rng.standard_normal(shape) * std).astype(np.float32)

    def linear(self, name: str, inputs: int, outputs: int) -> None:
        self.normal(f"{name}.weight", (outputs, inputs), math.sqrt(1 / inputs))
        self[f"{name}.bias"] = np.zeros(outputs, np.float32)

    def conv(self, name: str, inputs: int, outputs: int, k: int = 3, bias: bool = False) -> None:
        self.normal(f"{name}.weight", (outputs, k, k, inputs), math.sqrt(2 / (k * k * inputs)))
        if bias:
            self[f"{name}.bias"] = np.zeros(outputs, np.float32)

    def norm(self, name: str, channels: int, running: bool) -> None:
        self[f"{name}.weight"] = np.ones(channels, np.float32)
        self[f"{name}.bias"] = np.zeros(channels, np.float32)
        if running:  # no gradient: `Net.trained` leaves them out
            self[f"{name}.running_mean"] = np.zeros(channels, np.float32)
            self[f"{name}.running_var"] = np.ones(channels, np.float32)


def mlp_weights(sizes: tuple[int, ...]) -> Callable[[], dict[str, np.ndarray]]:
    def make() -> dict[str, np.ndarray]:
        w = _Weights()
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            w.linear(f"fc{i}", a, b)
        return w

    return make


def lenet_weights() -> dict[str, np.ndarray]:
    w = _Weights()
    w.conv("conv0", 1, 32, bias=True)
    w.conv("conv1", 32, 64, bias=True)
    w.linear("fc0", 7 * 7 * 64, 128)
    w.linear("fc1", 128, 10)
    return w


def resnet_weights() -> dict[str, np.ndarray]:
    w = _Weights()
    w.conv("stem", 3, 64)
    w.norm("stem.bn", 64, True)
    before = 64
    for s, (channels, stride) in enumerate(RESNET):
        for i in range(2):
            name = f"s{s}b{i}"
            w.conv(f"{name}.c0", before, channels)
            w.norm(f"{name}.n0", channels, True)
            w.conv(f"{name}.c1", channels, channels)
            w.norm(f"{name}.n1", channels, True)
            if i == 0 and stride != 1:
                w.conv(f"{name}.short", before, channels, 1)
                w.norm(f"{name}.ns", channels, True)
            before = channels
    w.linear("fc", 512, 10)
    return w


def gpt_weights() -> dict[str, np.ndarray]:
    w = _Weights()
    w.normal("token.weight", (VOCABULARY, WIDTH), 0.02)
    w.normal("position.weight", (TOKENS, WIDTH), 0.02)
    for i in range(LAYERS):
        w.norm(f"h{i}.n0", WIDTH, False)
        w.linear(f"h{i}.qkv", WIDTH, 3 * WIDTH)
        w.linear(f"h{i}.out", WIDTH, WIDTH)
        w.norm(f"h{i}.n1", WIDTH, False)
        w.linear(f"h{i}.up", WIDTH, 4 * WIDTH)
        w.linear(f"h{i}.down", 4 * WIDTH, WIDTH)
    w.norm("norm", WIDTH, False)
    w.linear("head", WIDTH, VOCABULARY)
    return w


def lstm_weights() -> dict[str, np.ndarray]:
    w = _Weights()
    w.normal("lstm.weight_ih", (4 * 256, 64), 1 / 16)
    w.normal("lstm.weight_hh", (4 * 256, 256), 1 / 16)
    w["lstm.bias_ih"] = np.zeros(4 * 256, np.float32)
    w["lstm.bias_hh"] = np.zeros(4 * 256, np.float32)
    w.linear("fc", 256, 10)
    return w


@dataclass(frozen=True)
class Net:
    """A network: its forward function over an adapter, its weights, the shape of a sample, the batch."""

    name: str
    forward: Callable[[Any, Any], Any]
    weights: Callable[[], dict[str, np.ndarray]]
    sample: tuple[int, ...]
    classes: int
    batch: int
    tokens: bool = False  # the inputs are ids, and every position has a target

    def data(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """One batch: inputs and integer targets."""
        rng = np.random.default_rng(1)
        if self.tokens:
            ids = rng.integers(0, self.classes, (batch, self.sample[0] + 1))
            return ids[:, :-1].copy(), ids[:, 1:].copy()
        x = rng.standard_normal((batch, *self.sample)).astype(np.float32)
        return x, rng.integers(0, self.classes, batch)

    @staticmethod
    def trained(name: str) -> bool:
        """Whether the weight of this name has a gradient."""
        return ".running_" not in name


NETS = {
    n.name: n
    for n in (
        Net("mlp-tiny", mlp_forward((32, 64, 64, 10)), mlp_weights((32, 64, 64, 10)), (32,), 10, 32),
        Net("mlp", mlp_forward((784, 512, 256, 10)), mlp_weights((784, 512, 256, 10)), (784,), 10, 128),
        Net("lenet", lenet, lenet_weights, (28, 28, 1), 10, 64),
        Net("resnet18", resnet18, resnet_weights, (32, 32, 3), 10, 32),
        Net("gpt", gpt, gpt_weights, (TOKENS,), VOCABULARY, 16, tokens=True),
        Net("lstm", lstm, lstm_weights, (64, 64), 10, 32),
    )
}  # fmt: skip


class Floor:
    """An adapter that computes shapes only, and notes the operations and bytes of every op.

    A tensor is its shape. Bytes are those of reading the inputs and weights and writing the output
    once; ``flops`` counts a multiply-add as two. Both are of the forward pass; ``step_flops`` adds
    the two products of the backward pass, without the gradient of the network's input.
    """

    def __init__(self, net: Net, batch: int):
        self.p = {name: w.shape for name, w in net.weights().items()}
        self.rows: list[tuple[str, float, float]] = []
        self.first: float | None = None
        self.parameters = sum(math.prod(s) for n, s in self.p.items() if net.trained(n))
        x, _ = net.data(batch)
        self.out = net.forward(self, x.shape)

    @property
    def flops(self) -> float:
        return sum(f for _, f, _ in self.rows)

    @property
    def step_flops(self) -> float:
        return 3 * self.flops - (self.first or 0.0)

    def _note(self, op: str, flops: float, *shapes: tuple[int, ...]) -> None:
        if flops and self.first is None:
            self.first = flops if op != "embedding" else 0.0
        self.rows.append((op, flops, 4.0 * sum(math.prod(s) for s in shapes)))

    def weight(self, name: str) -> tuple[int, ...]:
        return self.p[f"{name}.weight"]

    def linear(self, x: tuple[int, ...], name: str) -> tuple[int, ...]:
        w = self.weight(name)
        y = (*x[:-1], w[0])
        self._note(f"linear {name}", 2.0 * math.prod(x) * w[0], x, w, y)
        return y

    def conv(self, x: tuple[int, ...], stride: int, padding: int, name: str) -> tuple[int, ...]:
        w = self.weight(name)
        h, v = ((n + 2 * padding - w[1]) // stride + 1 for n in x[1:3])
        y = (x[0], h, v, w[0])
        self._note(f"conv {name}", 2.0 * math.prod(y) * math.prod(w[1:]), x, w, y)
        return y

    def _same(self, op: str) -> Callable[..., tuple[int, ...]]:
        def run(x: tuple[int, ...], *_: Any) -> tuple[int, ...]:
            self._note(op, 0.0, x, x)
            return x

        return run

    def __getattr__(self, op: str) -> Callable[..., tuple[int, ...]]:
        if op in ("relu", "gelu", "add", "batch_norm", "layer_norm"):
            return self._same(op)
        raise AttributeError(op)

    def max_pool(self, x: tuple[int, ...]) -> tuple[int, ...]:
        y = (x[0], x[1] // 2, x[2] // 2, x[3])
        self._note("max_pool", 0.0, x, y)
        return y

    def mean_pool(self, x: tuple[int, ...]) -> tuple[int, ...]:
        self._note("mean_pool", 0.0, x)
        return (x[0], x[3])

    def flatten(self, x: tuple[int, ...]) -> tuple[int, ...]:
        return (x[0], math.prod(x[1:]))

    def embedding(self, x: tuple[int, ...], name: str) -> tuple[int, ...]:
        y = (*x, self.weight(name)[1])
        self._note("embedding", 0.0, y, y)
        return y

    def attention(self, qkv: tuple[int, ...], heads: int) -> tuple[int, ...]:
        n, t, width = qkv[0], qkv[1], qkv[2] // 3
        # two products over the lower triangle
        self._note("attention", 2.0 * n * t * (t + 1) * width, qkv, (n, t, width))
        return (n, t, width)

    def lstm(self, x: tuple[int, ...], name: str) -> tuple[int, ...]:
        hidden = self.p[f"{name}.weight_hh"][1]
        y = (*x[:2], hidden)
        flops = 2.0 * x[0] * x[1] * 4 * hidden * (x[2] + hidden)
        self._note("lstm", flops, x, y)
        return y

    def last(self, x: tuple[int, ...]) -> tuple[int, ...]:
        return (x[0], x[2])
