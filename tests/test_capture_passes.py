"""Rewrites of a captured step: each finds its pattern, leaves the others alone, and keeps the bits."""

import copy
import itertools
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F

RULES = [
    "relu_pool", "conv_pool", "norm_relu", "norm_stats", "bias_relu", "bias_activation",
    "activation_gradient", "gradient_sum", "conv_gradient", "norm_gradient", "residual", "norm_sum",
    "pieces", "last_step", "optimizer", "gradient_update", "transposed", "prepared_weights", "prepared_updates",
]  # fmt: skip
LARGE = 1 << 16  # more elements than this: the ReLU keeps bits instead of its output


def bits(arrays):
    return [None if a is None else (a.dtype.str, a.shape, a.tobytes()) for a in arrays]


def awkward(rng, shape):
    """Normal numbers with zeros of both signs and ties among them."""
    x = np.round(rng.normal(size=shape), 1).astype(np.float32)
    x[rng.random(shape) < 0.1] = -0.0
    return x


def compare(
    make,
    shape,
    rule,
    notes,
    *,
    loss=None,
    threads=2,
    optimizer=None,
    steps=6,
    training=True,
    half=False,
):
    """Trains eagerly, with `rule` alone (or a list of them, of which the last one is tested) and with all
    passes: equal bits. notes: what the report of `rule` says how often. half: products of bfloat16."""
    rules = [rule] if isinstance(rule, str) else rule
    rng = np.random.default_rng(5)
    xs = [awkward(rng, shape) for _ in range(steps)]
    optimizer = optimizer or (lambda p: gs.optim.AdamW(p, lr=1e-2, weight_decay=0.1))

    def run(passes, n):
        with gs.threads(n), gs.autocast(enabled=half):
            gs.manual_seed(1)
            model = make()
            model.train(training)
            opt = optimizer(list(model.parameters()))

            def step(x):
                opt.zero_grad()
                y = model(x)
                value = (y * y).mean() if loss is None else loss(model, x, y)
                value.backward()
                opt.step()
                return value

            f = step if passes == "eager" else gs.capture(step, passes=passes)
            out = [f(gs.tensor(x)).data.copy() for x in xs]
            out += [t.data.copy() for t in [*model.parameters(), *model.buffers()]]
            out += [None if p.grad is None else p.grad.data.copy() for p in model.parameters()]
            report = ""
            if f is not step:
                assert f.reason is None and f.programs[0]["replays"] == steps - 3
                f.verify(gs.tensor(xs[0]))
                report = f.report(1)
            return bits(out), report

    expected, _ = run("eager", 1)
    for n in (1, threads, 3):
        for passes in (rules, True, {rules[-1]: False}):
            got, report = run(passes, n)
            assert got == expected, (n, passes)
            if passes == rules:
                lines = report.split("\n")
                for note, count in notes.items():
                    assert sum(line.endswith(note) for line in lines) == count, report
            if passes == {rules[-1]: False}:
                assert not any(line.endswith(note) for note in notes for line in report.split("\n"))


@pytest.fixture
def force():
    k = gs._cpu
    yield k.conv_force
    k.conv_force("")


class Pooled(nn.Module):
    def __init__(self, channels, **pool):
        super().__init__()
        self.conv = nn.Conv2d(2, channels, 3, padding=1)
        self.pool = nn.MaxPool2d(**pool)
        self.last = nn.Conv2d(channels, 2, 1)

    def forward(self, x):
        return self.last(self.pool(self.conv(x).relu()))


@pytest.mark.parametrize("channels", [1, 3, 8, 17, 32])
@pytest.mark.parametrize(
    "pool",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": 1, "dilation": 2},
        {"kernel_size": 17, "stride": 2, "padding": 8},
    ],
    ids=["2", "overlap", "dilated", "wide"],
)
def test_relu_pool(channels, pool):
    notes = {"with the ReLU before it": 1, "with the ReLU before the pool": 1}
    compare(lambda: Pooled(channels, **pool), (2, 9, 11, 2), "relu_pool", notes)


def test_relu_pool_large():
    notes = {"with the ReLU before it": 1, "with the ReLU before the pool": 1}
    compare(lambda: Pooled(32, kernel_size=2), (3, 32, 32, 2), "relu_pool", notes, steps=5)


@pytest.mark.parametrize("channels,width", [(8, 6), (1, 70), (3, 40)])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, -0.0])
def test_relu_pool_of_special_values(special, channels, width):
    rng = np.random.default_rng(0)
    w = gs.tensor(np.ones((1, 1, 1, channels), np.float32), requires_grad=True)

    def step(x):
        w.grad = None
        y = F.max_pool2d((x * w).relu(), 2)
        y.sum().backward()
        return y, w.grad

    f = gs.capture(step, passes=["relu_pool"])
    for i in range(6):
        x = awkward(rng, (2, 6, width, channels))
        x[rng.random(x.shape) < 0.3] = special
        got = [t.data.copy() for t in f(gs.tensor(x))]
        assert bits(got) == bits([t.data for t in step(gs.tensor(x))]), i
    assert f.reason is None and "with the ReLU before it" in f.report(1)


def test_relu_pool_not_where_the_relu_is_read_elsewhere():
    class Twice(Pooled):
        def forward(self, x):
            h = self.conv(x).relu()
            return self.last(self.pool(h)).sum() + h

    notes = {"with the ReLU before it": 0, "with the ReLU before the pool": 0}
    compare(lambda: Twice(8, kernel_size=2), (2, 8, 8, 2), "relu_pool", notes)


class Stem(nn.Module):
    def __init__(self, relu=True, **conv):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(**conv), relu
        self.last = nn.Conv2d(conv["out_channels"], 2, 1)

    def forward(self, x):
        y = self.conv(x)
        return self.last(F.max_pool2d(y.relu() if self.relu else y, 2))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("size", "conv"),
    [
        ((2, 9, 11), {"in_channels": 1, "out_channels": 32, "kernel_size": 3, "padding": 1}),
        ((3, 8, 8), {"in_channels": 3, "out_channels": 5, "kernel_size": (5, 2), "bias": False}),
        (
            (2, 6, 30),
            {"in_channels": 4, "out_channels": 70, "kernel_size": (1, 7), "padding": (1, 3)},
        ),
        ((9, 4, 4), {"in_channels": 2, "out_channels": 17, "kernel_size": 3, "padding": 2}),
        ((1, 2, 2), {"in_channels": 1, "out_channels": 1, "kernel_size": 1}),
        ((3, 28, 28), {"in_channels": 8, "out_channels": 130, "kernel_size": 3, "stride": 2}),
        ((20, 7, 5), {"in_channels": 3, "out_channels": 40, "kernel_size": 3, "padding": 1}),
        ((3, 14, 14), {"in_channels": 32, "out_channels": 64, "kernel_size": 3, "padding": 1}),
        ((2, 13, 15), {"in_channels": 36, "out_channels": 41, "kernel_size": 3, "padding": 0}),
        ((70, 4, 4), {"in_channels": 130, "out_channels": 70, "kernel_size": 3, "padding": 1}),
        ((64, 15, 14), {"in_channels": 32, "out_channels": 64, "kernel_size": 3, "padding": 1}),
        ((5, 6, 6), {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1}),
        ((66, 13, 14), {"in_channels": 32, "out_channels": 40, "kernel_size": 3, "padding": 1}),
        ((3, 9, 31), {"in_channels": 3, "out_channels": 41, "kernel_size": 3, "padding": 1}),
    ],
    ids=[
        *("3x3", "5x2", "1x7", "border", "tiny", "strided", "images", "winograd", "tails"),
        *("by filters", "slices", "winograd2", "short tiles", "odd"),
    ],
)
def test_conv_pool(size, conv, relu):
    few = conv["in_channels"] < 16
    stem = conv["in_channels"] <= 4
    rng = np.random.default_rng(3)
    gs.manual_seed(2)
    model = Stem(relu, **conv)

    def step(x):
        for p in model.parameters():
            p.grad = None
        y = model(x)
        (y * y).sum().backward()
        return (y, *[p.grad for p in model.parameters()])

    def forward(x):
        with gs.no_grad():
            return (model(x),)

    note = "with the ReLU and the pool behind it" if relu else "with the pool behind it"
    for f in (step, forward):
        for n in (1, 2, 3):
            with gs.threads(n):
                g = gs.capture(f, passes=["relu_pool", "conv_pool"])
                for i in range(6):
                    x = awkward(rng, (*size, conv["in_channels"]))
                    if i > 2:  # finite, but sums are not; then values that are not
                        x[rng.random(x.shape) < 0.05] = (1e38, np.inf, np.nan)[i - 3]
                    got = bits([t.data.copy() for t in g(gs.tensor(x))])
                    assert got == bits([t.data for t in f(gs.tensor(x))]), (n, i)
                report = g.report(1)
                assert g.reason is None
                assert sum(note in s for s in report.split("\n")) == (stem or not few)
                assert ("conv_stem_pool" in report) == stem
                if f is step:
                    assert "from the pool's gradient" in report
                    assert ("conv_pool_backward_weight" in report) == few
                compare_off = gs.capture(f, passes={"conv_pool": False})
                for _ in range(4):
                    compare_off(gs.tensor(x))
                assert " with the pool" not in compare_off.report(1)
                assert "pool's gradient" not in compare_off.report(1)


def test_conv_pool_not_where_the_convolution_is_read_elsewhere():
    class Twice(Stem):
        def forward(self, x):
            y = self.conv(x)
            return F.max_pool2d(y, 2).sum() + y

    def make():
        return Twice(in_channels=1, out_channels=8, kernel_size=3)

    compare(make, (2, 8, 8, 1), "conv_pool", {"with the pool behind it": 0})


class Block(nn.Module):
    def __init__(self, cin, cout, affine=True, zero=False):
        super().__init__()
        self.c0, self.c1 = nn.Conv2d(cin, cout, 3, padding=1), nn.Conv2d(cout, cout, 3, padding=1)
        self.n0, self.n1 = (nn.BatchNorm2d(cout, affine=affine) for _ in range(2))
        self.short = nn.Conv2d(cin, cout, 1) if cin != cout else None
        self.ns = nn.BatchNorm2d(cout, affine=affine) if cin != cout else None
        if zero:
            nn.init.zeros_(self.n1.weight)

    def forward(self, x):
        y = self.n1(self.c1(self.n0(self.c0(x)).relu()))
        s = x if self.short is None else self.ns(self.short(x))
        return (s + y if self.short is None else y + s).relu()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("width", [3, 64])
def test_norm_relu(width, affine, training):
    notes = {
        "with the ReLU behind it": 2,
        "with the sum and the ReLU behind it": 2,
        "with the ReLU's": 2,
        "with the sum's and the ReLU's": 2,
    }
    compare(
        lambda: nn.Sequential(Block(2, width, affine), Block(width, width, affine)),
        (2, 6, 5, 2), "norm_relu", notes, training=training,
    )  # fmt: skip


def test_norm_relu_large_and_zero_gamma():
    notes = {"with the ReLU behind it": 1, "with the sum and the ReLU behind it": 1}
    make = lambda: Block(2, 64, zero=True)  # noqa: E731
    compare(make, (4, 18, 17, 2), "norm_relu", notes, steps=5)


def test_norm_relu_not_behind_a_group_norm_of_one_row_a_sample():
    """That norm has a way of its own, with other roundings and no ReLU."""

    def make():
        layers = [nn.Linear(6, 16), nn.GroupNorm(4, 16), nn.ReLU(), nn.Linear(16, 3)]
        return nn.Sequential(*layers)

    note = "with the ReLU behind it"
    compare(make, (8, 6), "norm_relu", {note: 0})


def test_norm_relu_without_backward():
    gs.manual_seed(0)
    model = nn.Sequential(Block(2, 8), Block(8, 8)).eval()

    def forward(x):
        with gs.no_grad():
            return model(x)

    f = gs.capture(forward, passes=["norm_relu"])
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = gs.tensor(awkward(rng, (2, 7, 7, 2)))
        assert bits([f(x).data]) == bits([forward(x).data])
    assert f.report(1).count("with the sum and the ReLU behind it") == 2


def test_norm_relu_not_where_its_output_is_read_elsewhere():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x):
            y = self.norm(self.conv(x))
            return y.relu() * y

    notes = {"with the ReLU behind it": 0, "with the ReLU's": 0}
    compare(Twice, (2, 6, 6, 2), "norm_relu", notes)


class Normed(nn.Module):
    """A batch norm behind a convolution; both gradients of the convolution are wanted."""

    def __init__(self, norm=None, **conv):
        super().__init__()
        self.first = nn.Conv2d(2, conv["in_channels"], 1)
        self.conv = nn.Conv2d(**conv)
        self.norm = nn.BatchNorm2d(conv["out_channels"], **(norm or {}))

    def forward(self, x):
        return self.norm(self.conv(self.first(x)))


def conv(cin, cout, kernel=3, **more):
    return {"in_channels": cin, "out_channels": cout, "kernel_size": kernel, **more}


NORM_STATS = {
    # batch and size, convolution
    "winograd": ((4, 16, 16), conv(64, 64, padding=1)),
    "winograd, rows cut": ((3, 13, 15), conv(36, 70, padding=1)),
    "winograd, folded": ((5, 18, 14), conv(32, 24, padding=1)),
    "winograd, last chunk": ((9, 12, 12), conv(64, 96)),
    "by filters": ((32, 4, 4), conv(160, 200, padding=1)),
    "by filters, folded": ((40, 4, 4), conv(320, 40, padding=1)),
    "many columns": ((5, 6, 6), conv(24, 1100, padding=1)),
    "few channels": ((3, 20, 21), conv(3, 64, padding=1)),
    "strided": ((20, 16, 16), conv(16, 128, stride=2, padding=1)),
    "strided, folded": ((19, 9, 10), conv(16, 20, stride=2, padding=1)),
    "1x1": ((6, 13, 9), conv(40, 72, 1)),
    "1x1, strided": ((15, 8, 8), conv(64, 160, 1, stride=2)),
    "few rows": ((2, 2, 1), conv(8, 3, 1)),
    "dilated": ((7, 12, 11), conv(16, 66, padding=2, dilation=2)),
}


@pytest.mark.parametrize("name", NORM_STATS)
def test_norm_stats(name):
    (n, h, w), layer = NORM_STATS[name]
    note = {"with the statistics of its output": 1}
    compare(lambda: Normed(**layer), (n, h, w, 2), "norm_stats", note, steps=5)


@pytest.mark.parametrize("l2", [1 << 14, 1 << 18])
@pytest.mark.parametrize("kernel", ["winograd4", "winograd2", "direct"])
def test_norm_stats_of_small_caches(kernel, l2, force):
    """Many blocks, rounds of images, panels."""
    force(kernel, l2)
    note = {"with the statistics of its output": 1}
    for shape, filters in (((3, 16, 16, 2), 70), ((5, 9, 11, 2), 130), ((8, 8, 8, 2), 9)):
        layer = conv(24, filters, padding=1)
        compare(lambda layer=layer: Normed(**layer), shape, "norm_stats", note, steps=5)


@pytest.mark.parametrize("l2", [0, 1 << 14, 1 << 18])
def test_norm_stats_of_phases(l2, force):
    force("polyphase", l2)
    note = {"with the statistics of its output": 1}
    for shape, filters in (((3, 16, 16, 2), 70), ((5, 9, 11, 2), 130), ((33, 8, 8, 2), 9)):
        layer = conv(24, filters, stride=2, padding=1)
        compare(lambda layer=layer: Normed(**layer), shape, "norm_stats", note, steps=5)


@pytest.mark.parametrize("name", ["winograd", "by filters", "strided, folded"])
def test_norm_stats_of_special_values(name):
    """Statistics as they are taken from memory, whatever the data; running ones and their average, too."""
    (n, h, w), layer = NORM_STATS[name]
    rng = np.random.default_rng(4)
    for norm in ({"momentum": None}, {"affine": False}, {"track_running_stats": False}):
        out = {}
        for kind in ("eager", 1, 2, 3):
            gs.manual_seed(0)
            model = Normed(norm, **layer)

            def step(x, model=model):
                with gs.no_grad():
                    return model(x)

            f = step if kind == "eager" else gs.capture(step, passes=["norm_stats"])
            rng = np.random.default_rng(4)
            got = []
            with gs.threads(1 if kind == "eager" else kind):
                for i in range(8):
                    x = awkward(rng, (n, h, w, 2)) + np.float32(1000 * (i > 4))
                    if i == 6:
                        x[0, 0, 0, 0] = np.inf
                    got += [f(gs.tensor(x)).data.copy(), *[b.data.copy() for b in model.buffers()]]
            if f is not step:
                assert f.reason is None and f.programs[0]["replays"] == 5
                assert f.report(1).count("with the statistics of its output") == 1
            got = [np.nan_to_num(g, nan=7) for g in got]  # a NaN is a NaN, whatever its sign
            out[kind] = bits(got)
        assert all(v == out["eager"] for v in out.values())


def test_norm_stats_not_behind_a_group_norm_of_one_sample():
    def make():
        return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())

    compare(make, (1, 8, 8, 3), "norm_stats", {"with the statistics of its output": 0})


def test_norm_stats_behind_a_residual_block():
    make = lambda: nn.Sequential(Block(2, 64), Block(64, 64))  # noqa: E731
    note = {"with the statistics of its output": 5}
    compare(make, (4, 8, 8, 2), "norm_stats", note, steps=5)


@pytest.mark.parametrize("other", ["eval", "group", "between", "depthwise", "partly"])
def test_norm_stats_not_where_the_norm_sees_something_else(other):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            groups = 16 if other == "depthwise" else 1
            self.conv = nn.Conv2d(16, 16, 3, padding=1, groups=groups)
            self.norm = nn.GroupNorm(4, 16) if other == "group" else nn.BatchNorm2d(16)

        def forward(self, x):
            y = self.conv(x)
            if other == "between":
                y = y * 2
            return self.norm(y[:, 1:] if other == "partly" else y)

    note = {"with the statistics of its output": 0}
    compare(Other, (3, 6, 6, 16), "norm_stats", note, training=other != "eval")


def test_norm_stats_of_one_output_for_two_norms():
    """The second norm takes its own; both see the same array."""

    class Two(Normed):
        def __init__(self):
            super().__init__(**conv(64, 64, padding=1))
            self.other = nn.BatchNorm2d(64)

        def forward(self, x):
            y = self.conv(self.first(x))
            return self.norm(y) * self.other(y)

    compare(Two, (3, 8, 8, 2), "norm_stats", {"with the statistics of its output": 1}, steps=5)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "bias"),
    [
        (1, 7, 5, True),
        (4, 33, 3, False),
        (64, 40, 48, True),
        (128, 300, 640, True),
        (200, 9, 512, False),
    ],
)
def test_bias_relu_linear(rows, inputs, outputs, bias):
    def make():
        return nn.Sequential(
            nn.Linear(inputs, outputs, bias=bias), nn.ReLU(), nn.Linear(outputs, 3)
        )

    notes = {"with the ReLU behind it": 1, "from the output": int(rows * outputs >= LARGE)}
    compare(make, (rows, inputs), "bias_relu", notes, steps=5)


@pytest.mark.parametrize(
    ("shape", "conv"),
    [
        ((2, 7, 9, 3), {"in_channels": 3, "out_channels": 5, "kernel_size": 3}),
        ((2, 16, 16, 32), {"in_channels": 32, "out_channels": 48, "kernel_size": 3, "padding": 1}),
        ((3, 32, 32, 4), {"in_channels": 4, "out_channels": 32, "kernel_size": 3, "padding": 1}),
        ((2, 8, 8, 16), {"in_channels": 16, "out_channels": 16, "kernel_size": 3, "groups": 16}),
        ((2, 8, 8, 16), {"in_channels": 16, "out_channels": 8, "kernel_size": 1, "stride": 2}),
    ],
    ids=["direct", "winograd", "large", "depthwise", "strided"],
)
def test_bias_relu_conv(shape, conv):
    def make():
        return nn.Sequential(nn.Conv2d(**conv), nn.ReLU(), nn.Conv2d(conv["out_channels"], 2, 1))

    compare(make, shape, "bias_relu", {"with the ReLU behind it": 1}, steps=5)


def test_bias_relu_not_where_the_product_is_read_elsewhere():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 9)

        def forward(self, x):
            y = self.first(x)
            return y.relu() * y.sigmoid()

    compare(Twice, (5, 6), "bias_relu", {"with the ReLU behind it": 0})


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "leaky_relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
    "elu": F.elu,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "hardswish": F.hardswish,
    "softsign": F.softsign,
}
SIZES = [(9, 20, 33), (37, 64, 70), (128, 300, 640), (520, 40, 131), (17, 6600, 19), (300, 5, 257)]


class Activated(nn.Module):
    """Two layers, so that the second one's input gradient passes through the activation."""

    def __init__(self, f, inputs, hidden, outputs=12, bias=True):
        super().__init__()
        self.f = f
        self.first = nn.Linear(inputs, hidden, bias=bias)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.last(self.f(self.first(x)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_bias_activation(name):
    for rows, inputs, hidden in SIZES[1:3] if name != "gelu" else SIZES:
        compare(
            lambda i=inputs, h=hidden: Activated(ACTIVATIONS[name], i, h, bias=h != 70),
            (rows, inputs), "bias_activation", {"with the activation behind it": 1}, steps=5,
        )  # fmt: skip


@pytest.mark.parametrize("name", [*ACTIVATIONS, "relu"])
def test_activation_gradient(name):
    f = ACTIVATIONS.get(name, F.relu)
    for rows, inputs, hidden in SIZES[1:2] if name != "gelu" else SIZES:
        compare(
            lambda i=inputs, h=hidden: Activated(f, i, h),
            (rows, inputs), "activation_gradient", {"with the gradient of the activation": 1},
            steps=5,
        )  # fmt: skip


class Hidden(nn.Module):
    """A convolution behind an activation: its input gradient passes through that."""

    def __init__(self, f, pool=False, **layer):
        super().__init__()
        self.f, self.pool = f, pool
        self.first = nn.Conv2d(2, layer["in_channels"], 1)
        self.last = nn.Conv2d(**layer)

    def forward(self, x):
        y = self.last(self.f(self.first(x)))
        return F.max_pool2d(y, 2) if self.pool else y


CONV_GRADIENT = {
    # batch and size, convolution, kernel and cache that are asked for
    "winograd": ((3, 13, 15), conv(36, 40, padding=1), "winograd4", 0),
    "winograd, seams": ((35, 15, 16), conv(20, 17, padding=1), "winograd4", 0),
    "winograd, seams, no padding": ((70, 15, 11), conv(16, 16), "winograd4", 0),
    "winograd, small cache": ((9, 12, 12), conv(64, 96, padding=2), "winograd4", 1 << 16),
    "winograd, by channels": ((20, 4, 5), conv(160, 200, padding=1), "winograd4", 0),
    "winograd2": ((3, 9, 8), conv(24, 40, padding=1), "winograd2", 0),
    "winograd2, seams": ((35, 9, 8), conv(20, 17, padding=2), "winograd2", 0),
    "direct": ((3, 9, 10), conv(70, 33, padding=1), "direct", 0),
    "images": ((13, 6, 5), conv(20, 70, padding=1), "direct", 0),
    "blocks": ((2, 6, 5), conv(20, 300, padding=1), "direct", 1 << 12),
    "strided": ((20, 15, 16), conv(16, 48, stride=2, padding=1), "direct", 0),
    "phases": ((3, 25, 26), conv(36, 40, stride=2, padding=1), "polyphase", 0),
    "phases, no padding": ((5, 10, 12), conv(70, 24, stride=2), "polyphase", 0),
    "phases, by filters": ((20, 8, 8), conv(160, 200, stride=2, padding=1), "polyphase", 1 << 16),
    "no taps": ((5, 9, 9), conv(24, 16, 1, stride=3), "direct", 0),
    "1x1": ((6, 13, 9), conv(40, 72, 1), "direct", 0),
    "groups": ((3, 8, 9), conv(24, 32, groups=4, dilation=2), "direct", 0),
    "few channels": ((4, 9, 9), conv(3, 16, padding=1), "direct", 0),
    "half": ((3, 9, 10), conv(40, 33, padding=1), "bfloat16", 0),
    "half, images": ((35, 7, 6), conv(40, 33, padding=1), "bfloat16", 0),  # of tiles
    "half, strided": ((20, 15, 16), conv(16, 48, stride=2, padding=1), "bfloat16", 1 << 14),
    "half, no taps": ((5, 9, 9), conv(24, 16, 1, stride=3), "bfloat16", 0),
    "half, no taps, images": ((33, 8, 9), conv(21, 16, 1, stride=2), "bfloat16", 0),
    "half, groups": ((3, 8, 9), conv(32, 48, groups=4, dilation=2), "bfloat16", 0),
}


@pytest.mark.parametrize("name", CONV_GRADIENT)
def test_conv_gradient(name, force):
    (n, h, w), layer, kernel, l2 = CONV_GRADIENT[name]
    force(kernel, l2)
    half = kernel == "bfloat16"  # there only with a sum
    note = {"with the ReLU's gradient": 0 if half else 1}
    shape = (n, h, w, 2)
    compare(lambda: Hidden(F.relu, **layer), shape, "conv_gradient", note, steps=5, half=half)
    if "winograd" in name:  # with a pool behind the convolution, whose gradient it takes
        compare(lambda: Hidden(F.relu, True, **layer), shape, "conv_gradient", note, steps=5)


@pytest.mark.parametrize("layer", [conv(32, 40, padding=1), conv(32, 20, stride=2)])
def test_conv_gradient_without_bits(layer):
    """Large arrays: the bits that the ReLU saves are not made when its output tells as much."""
    note = {"with the ReLU's gradient": 1}
    compare(lambda: Hidden(F.relu, **layer), (6, 20, 20, 2), "conv_gradient", note, steps=5)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, -0.0])
def test_conv_gradient_of_special_values(special, force):
    """The ReLU's output and the gradient that comes to it."""
    rng = np.random.default_rng(0)
    x = gs.tensor(awkward(rng, (35, 9, 8, 20)), requires_grad=True)
    layer = nn.Conv2d(20, 17, 3, padding=1)

    def step(g):
        x.grad = None
        (layer(x.relu()) * g).sum().backward()
        return x.grad

    for kernel in ("winograd4", "winograd2", "direct"):
        force(kernel, 0)
        f = gs.capture(step, passes=["conv_gradient"])
        for _ in range(6):
            x.data[...] = awkward(rng, x.shape)
            x.data[rng.random(x.shape) < 0.01] = special
            g = awkward(rng, (35, 9, 8, 17))
            g[rng.random(g.shape) < 0.001] = special
            got, expected = (np.nan_to_num(h(gs.tensor(g)).data, nan=9) for h in (f, step))
            assert bits([got]) == bits([expected])  # a NaN is a NaN, whatever its sign
        assert f.reason is None and f.report(1).count("with the ReLU's gradient") == 1


def test_conv_gradient_in_a_net():
    """With all passes: behind a convolution's own ReLU, and with a pool behind the next one."""
    gs.manual_seed(0)
    c0, c1, c2 = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((2, 32), (32, 32), (32, 8)))
    parameters = [p for c in (c0, c1, c2) for p in c.parameters()]

    def step(x):
        for p in parameters:
            p.grad = None
        y = F.max_pool2d(c1(c0(x).relu()).relu(), 2)
        (c2(y) ** 2).sum().backward()
        return [p.grad for p in parameters]

    rng = np.random.default_rng(0)
    for n in (1, 2, 3):
        with gs.threads(n):
            f = gs.capture(step)
            for _ in range(5):
                x = gs.tensor(awkward(rng, (6, 20, 20, 2)))
                got = bits([g.data.copy() for g in f(x)])
                assert got == bits([g.data for g in step(x)])
            lines = [s for s in f.report(1).split("\n") if s.endswith("the ReLU's gradient")]
            assert [s.split()[0] for s in lines] == ["conv_winograd4_pool_backward"]
            assert "activation" not in [s.split(" ")[0] for s in f.report(1).split("\n")]


class Around(Hidden):
    """A convolution and a way around it: the gradient of its input is a sum. order: which of the two
    gradients comes first, and whether the first one may be written over."""

    def __init__(self, order, pool=False, **layer):
        super().__init__(F.relu, pool, **layer)
        self.order = order
        self.short = nn.Conv2d(layer["in_channels"], 5, 2) if "conv" in order else None

    def forward(self, x):
        x = self.first(x)
        short = (lambda: self.short(x)) if self.short else lambda: x * x
        first = short() if self.order.startswith("last") else None
        y = self.last(x)
        y = F.max_pool2d(y, 2) if self.pool else y
        return (y * y).mean() + ((short() if first is None else first) ** 2).mean()


ORDERS = ["last", "first, conv", "last, conv"]
SUMMED = [(name, "first") for name in CONV_GRADIENT if "phases" not in name]
SUMMED += [(n, order) for n in ("winograd, seams", "no taps", "half, no taps") for order in ORDERS]


@pytest.mark.parametrize(("name", "order"), SUMMED)
def test_gradient_sum(name, order, force):
    (n, h, w), layer, kernel, l2 = CONV_GRADIENT[name]
    force(kernel, l2)
    note = {"with the other gradient": 1}
    half = kernel == "bfloat16"
    compare(lambda: Around(order, **layer), (n, h, w, 2), "gradient_sum", note, steps=5, half=half)
    if "winograd" in name and order == "first":  # with a pool behind the convolution
        compare(lambda: Around(order, True, **layer), (n, h, w, 2), "gradient_sum", note, steps=5)


@pytest.mark.parametrize(
    "name", ["winograd, seams", "winograd, by channels", "direct", "half", "half, no taps"]
)
def test_gradient_sum_behind_a_relu(name, force):
    """The sum is the gradient of a ReLU's output, whose zeros the convolution writes as well."""
    (n, h, w), layer, kernel, l2 = CONV_GRADIENT[name]
    force(kernel, l2)

    class Model(Around):
        def forward(self, x):
            y = self.first(x).relu()
            return (self.last(y) ** 2).mean() + (y * y * y).mean()

    rules = ["gradient_sum", "conv_gradient"]
    note = {"with the ReLU's gradient": 1}
    half = kernel == "bfloat16"
    compare(lambda: Model("first", **layer), (n, h, w, 2), rules, note, steps=5, half=half)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, -0.0])
def test_gradient_sum_of_special_values(special, force):
    rng = np.random.default_rng(0)
    x = gs.tensor(awkward(rng, (35, 9, 8, 20)), requires_grad=True)
    layers = {3: nn.Conv2d(20, 17, 3, padding=1), 1: nn.Conv2d(20, 17, 1, stride=2)}

    def step(g, h):
        x.grad = None
        y = x * 1.0
        ((layers[side](y) * g).sum() + (y * h).sum()).backward()
        return x.grad

    for kernel, side in (
        *(("winograd4", 3), ("winograd2", 3), ("direct", 3), ("direct", 1)),
        *(("bfloat16", 3), ("bfloat16", 1)),
    ):
        force(kernel, 0)
        with gs.autocast(enabled=kernel == "bfloat16"):
            f = gs.capture(step, passes=["gradient_sum"])
            for _ in range(6):
                g, h = awkward(rng, layers[side](x).shape), awkward(rng, x.shape)
                h[rng.random(h.shape) < 0.01] = special
                g[rng.random(g.shape) < 0.001] = special
                a, b = gs.tensor(g), gs.tensor(h)
                got, expected = (np.nan_to_num(q(a, b).data, nan=9) for q in (f, step))
                assert bits([got]) == bits([expected])  # a NaN is a NaN, whatever its sign
            assert f.reason is None and f.report(1).count("with the other gradient") == 1


def test_gradient_sum_not_where_it_may_not_be():
    class Depthwise(Around):
        def __init__(self):
            super().__init__("first", **conv(16, 16, padding=1, groups=16))

    class Before(Around):  # what is added is not there yet
        def forward(self, x):
            y = self.first(x)
            z = self.last(y)
            return (z * z).mean() + ((y * y).exp() * z).mean()

    note = {"with the other gradient": 0}
    compare(Depthwise, (3, 6, 6, 2), "gradient_sum", note)
    note = {"with the other gradient": 1}  # the call moves
    compare(lambda: Before("first", **conv(16, 16, padding=1)), (3, 6, 6, 2), "gradient_sum", note)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", [3, 16, 64])
@pytest.mark.parametrize("kernel", ["winograd4", "winograd2", "direct", "bfloat16"])
def test_norm_gradient(kernel, width, training, force):
    """Residual blocks: the zeros of the ReLU behind one are written by the next one's convolution."""
    force(kernel, 0)
    half = kernel == "bfloat16"
    rules = ["norm_relu", "gradient_sum", "norm_gradient"]
    notes = {"with the other gradient and the ReLU's": 1, "without the ReLU's, which is there": 1}
    make = lambda: nn.Sequential(Block(2, width), Block(width, width))  # noqa: E731
    compare(make, (5, 9, 10, 2), rules, notes, training=training, steps=5, half=half)
    # the way around has a convolution of its own
    make = lambda: nn.Sequential(Block(2, width), Block(width, width + 1))  # noqa: E731
    compare(make, (5, 9, 10, 2), rules, notes, training=training, steps=5, half=half)


def test_conv_gradient_not_where_it_is_read_elsewhere():
    class Double(Hidden):
        def forward(self, x):  # the gradient of the activation has two parts
            y = self.f(self.first(x))
            return self.last(y) + y

    class Depthwise(Hidden):
        def __init__(self, f):
            super().__init__(f, **conv(16, 16, padding=1, groups=16))

    note = {"with the ReLU's gradient": 0}
    make = lambda: Double(F.relu, **conv(16, 16, padding=1))  # noqa: E731
    compare(make, (3, 6, 6, 2), "conv_gradient", note)
    compare(lambda: Depthwise(F.relu), (3, 6, 6, 2), "conv_gradient", note)
    for f in (F.tanh, F.leaky_relu, F.gelu):  # other activations
        make = lambda f=f: Hidden(f, **conv(16, 16, padding=1))  # noqa: E731
        compare(make, (3, 6, 6, 2), "conv_gradient", note)


def test_bias_activation_not_where_it_may_not_be():
    class Twice(Activated):
        def forward(self, x):  # the product is read between itself and the activation
            y = self.first(x)
            z = y * y
            return self.last(self.f(y)).sum() + z

    for f in (F.gelu, F.sigmoid):
        note = {"with the activation behind it": 0}
        compare(lambda f=f: Twice(f, 6, 20), (5, 6), "bias_activation", note)
        compare(lambda f=f: Twice(f, 6, 300), (300, 6), "bias_activation", note, steps=5)

    class After(Activated):
        def forward(self, x):  # ... or behind it: then it is written too
            y = self.first(x)
            return self.last(self.f(y)).sum() + y.exp()

    for f in (F.gelu, F.sigmoid):
        note = {"with the activation behind it": 1}
        compare(lambda f=f: After(f, 6, 20), (9, 6), "bias_activation", note)

    class Double(Activated):
        def forward(self, x):  # the gradient of the activation has two parts
            y = self.f(self.first(x))
            return self.last(y) * self.last(y * 2)

    note = {"with the gradient of the activation": 0}
    compare(lambda: Double(F.tanh, 6, 20), (9, 6), "activation_gradient", note)


def test_bias_activation_without_backward():
    gs.manual_seed(0)
    models = [Activated(f, 40, 130) for f in ACTIVATIONS.values()]

    def forward(x):
        with gs.no_grad():
            return [m(x) for m in models]

    rng = np.random.default_rng(0)
    for n in (1, 2, 3):
        with gs.threads(n):
            f = gs.capture(forward, passes=["bias_activation"])
            for i in range(5):
                x = awkward(rng, (70, 40))
                if i == 4:
                    x[rng.random(x.shape) < 0.01] = np.nan
                got = [y.data.copy() for y in f(gs.tensor(x))]
                expected = [y.data for y in forward(gs.tensor(x))]
                if i == 4:  # a NaN is a NaN, whatever its sign
                    assert all(np.isnan(y).any() for y in expected[:4])
                    got, expected = ([np.nan_to_num(y, nan=9) for y in z] for z in (got, expected))
                assert bits(got) == bits(expected), i
            assert f.report(1).count("with the activation behind it") == len(ACTIVATIONS)


class PreNorm(nn.Module):
    """Residual blocks of a layer norm and two layers."""

    def __init__(self, width, blocks=2, norm=nn.LayerNorm):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.norms = nn.ModuleList([norm(width) for _ in range(blocks)])
        self.up = nn.ModuleList([nn.Linear(width, 2 * width) for _ in range(blocks)])
        self.down = nn.ModuleList([nn.Linear(2 * width, width) for _ in range(blocks)])

    def forward(self, x):
        x = self.first(x)
        for norm, up, down in zip(self.norms, self.up, self.down):
            x = x + down(F.gelu(up(norm(x))))
        return x


@pytest.mark.parametrize(("rows", "width"), [(9, 20), (50, 64), (300, 129), (70, 400)])
def test_residual(rows, width):
    note = {"with the sum behind it": 2}
    compare(lambda: PreNorm(width), (rows, 3), "residual", note, steps=5)


@pytest.mark.parametrize(("rows", "inputs", "hidden"), [*SIZES, (1300, 9, 290)])
def test_products_that_round_take_along_what_follows(rows, inputs, hidden):
    with gs.autocast():
        for f, rule, note in (
            (F.relu, "bias_relu", "with the ReLU behind it"),
            (F.gelu, "bias_activation", "with the activation behind it"),
            (F.sigmoid, "activation_gradient", "with the gradient of the activation"),
        ):
            compare(
                lambda f=f: Activated(f, inputs, hidden), (rows, inputs), rule, {note: 1}, steps=5
            )
        if inputs < 1000:
            note = {"with the sum behind it": 2}
            compare(lambda: PreNorm(hidden // 2), (rows, 3), "residual", note, steps=5)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize(("rows", "width"), [(9, 20), (50, 64), (301, 129)])
def test_norm_sum(rows, width, norm):
    note = {"with the other gradient": 2}
    compare(lambda: PreNorm(width, norm=norm), (rows, 3), "norm_sum", note, steps=5)


def test_residual_not_where_the_product_is_read_elsewhere():
    gs.manual_seed(0)
    first, second, scale = nn.Linear(3, 20), nn.Linear(20, 20), gs.ones(20)

    def twice(x):
        with gs.no_grad():
            x = first(x)
            y = second(x)
            return (x + y) * y

    def broadcast(x):
        with gs.no_grad():
            return second(first(x)) + scale

    def itself(x):
        with gs.no_grad():
            y = second(first(x))
            return y + y

    for fn in (twice, broadcast, itself):
        f = gs.capture(fn, passes=["residual"])
        for i in range(5):
            x = gs.tensor(awkward(np.random.default_rng(i), (9, 3)))
            assert bits([f(x).data]) == bits([fn(x).data])
        assert f.programs[0]["replays"] == 2 and "with the sum behind it" not in f.report(1)


def test_norm_sum_not_where_the_gradient_is_read_elsewhere():
    class Plain(PreNorm):
        def forward(self, x):
            return self.norms[0](self.first(x))

    compare(lambda: Plain(20, 1), (9, 3), "norm_sum", {"with the other gradient": 0})


def test_in_place():
    """A chain of elementwise kernels takes one array; what is read again keeps its own."""
    rng = np.random.default_rng(0)

    def chain(x):
        with gs.no_grad():
            y = (x * 2 + 1).exp().sigmoid() - x
            z = y.tanh() * y  # y is read twice: only the second reader may take its place
            w = z.reshape(-1, 4) + z.reshape(-1, 4)[:, :1]  # other elements of z are read
            return F.relu(w) * w.sum(0) + F.dropout(w, 0.5)

    for n in (1, 2, 3):
        with gs.threads(n):
            stats = {}
            for on in (True, False):
                f = gs.capture(chain, passes={"in_place": on})
                for i in range(6):
                    x = gs.tensor(awkward(rng, (300, 200)))
                    gs.manual_seed(i)
                    got = f(x).data.copy()
                    gs.manual_seed(i)
                    assert bits([got]) == bits([chain(x).data]), (n, on, i)
                assert f.reason is None and f.programs[0]["replays"] == 3
                stats[on] = f.programs[0]
            assert stats[True]["in_place"] >= 4 and stats[False]["in_place"] == 0
            assert stats[True]["arena_bytes"] <= stats[False]["arena_bytes"]


def test_in_place_halves_a_chain():
    def chain(x):
        with gs.no_grad():
            return (x * 2 + 1).exp().sigmoid().tanh().abs()

    size = {}
    for on in (True, False):
        f = gs.capture(chain, passes={"in_place": on})
        for i in range(5):
            x = gs.tensor(awkward(np.random.default_rng(i), (100, 64)))
            assert bits([f(x).data]) == bits([chain(x).data])
        size[on] = f.programs[0]["arena_bytes"]
    assert size[False] == 2 * size[True] == 2 * 4 * 6400


def test_in_place_spares_what_backward_reads():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 40)

        def forward(self, x):
            y = self.first(x)
            return (y.sigmoid() * y.tanh() + y.exp().relu()).abs().sqrt() - (y * y)[:, :1]

    compare(Chain, (30, 6), "in_place", {})


@pytest.mark.parametrize("width", [3, 64, 70])
def test_in_place_norms(width, force):
    """Batch norms and their gradients; the way around a block still needs what comes in."""
    force("direct", 0)
    make = lambda: nn.Sequential(Block(2, width), Block(width, width))  # noqa: E731
    for training in (True, False):
        compare(make, (5, 9, 10, 2), "in_place", {}, training=training, steps=5)
    x = gs.tensor(awkward(np.random.default_rng(0), (5, 9, 10, 2)))
    for rules, least in (({}, 3), ({"in_place": False}, 0)):
        model = make()

        def step(model=model):
            model.zero_grad()
            (model(x) ** 2).mean().backward()

        f = gs.capture(step, passes=rules)
        for _ in range(4):
            f()
        found = f.programs[0]["in_place"]
        assert f.reason is None and (found >= least if least else found == 0), found


@pytest.mark.parametrize("norm", ["group", "instance", "one row"])
def test_in_place_norms_of_samples(norm):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 40), nn.Linear(40, 6)
            self.norm = nn.InstanceNorm1d(40) if norm == "instance" else nn.GroupNorm(4, 40)

        def forward(self, x):
            y = self.first(x)
            return self.last(self.norm(y))

    shape = (30, 6) if norm == "one row" else (5, 17, 6)
    compare(Net, shape, "in_place", {}, steps=5)


def test_dropout_keeps_no_mask():
    """Backward draws the mask again: it is in no array of the program."""
    n = 1 << 12
    w = gs.ones(n)
    w.requires_grad = True

    def step(x):
        w.grad = None
        F.dropout(x * w, 0.5).sum().backward()
        return w.grad

    f = gs.capture(step, passes=["memory"])
    for i in range(6):
        x = gs.tensor(awkward(np.random.default_rng(i), (n,)))
        gs.manual_seed(i)
        got = f(x).data.copy()
        gs.manual_seed(i)
        assert bits([got]) == bits([step(x).data])
        assert 0.4 < np.mean(got != 0) < 0.6
    assert f.reason is None and f.report(1).count("\ndropout") == 2
    # x * w, its dropout, the gradients of both and one of the sum
    assert f.programs[0]["unshared_bytes"] <= 4 * 4 * n + 1024


class Pieces(nn.Module):
    def __init__(self, take):
        super().__init__()
        self.first, self.take = nn.Linear(6, 12), take

    def forward(self, x):
        return self.take(self.first(x))


@pytest.mark.parametrize(
    ("take", "count"),
    [
        (lambda y: y[:, :4].sigmoid() * y[:, 4:8].relu() * y[:, 8:], 3),
        (lambda y: y[:, 1:5].relu() * y[:, 6:10], 2),  # zeros remain
        (lambda y: y[:, ::2] * y[:, 1::2].relu(), 2),
        (lambda y: y[:, :7].sigmoid() * y[:, 5:], 0),  # overlap: the sum is one
        (lambda y: y[:2, :4] * y[2:4, 8:], 2),
    ],
    ids=["thirds", "gaps", "strided", "overlapping", "rows"],
)
def test_pieces(take, count):
    notes = {"a piece of a sum, written in place": count}
    compare(lambda: Pieces(take), (8, 6), "pieces", notes)


class LastStep(nn.Module):
    def __init__(self, kind, take, **options):
        super().__init__()
        self.layer, self.take = kind(3, 20, **options), take
        self.head = nn.Linear(20 * (2 if options.get("bidirectional") else 1), 4)

    def forward(self, x):
        return self.take(self.head, *self.layer(x))


def last(head, y, _):
    return head(y[:, -1].relu())  # (zeros of both signs)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch", [1, 9])
def test_last_step(kind, batch):
    notes = {"takes the gradient of the last step": 1}
    first = {"batch_first": True}
    compare(lambda: LastStep(kind, last, **first), (batch, 6, 3), "last_step", notes)
    compare(
        lambda: LastStep(kind, lambda head, y, _: head(y[-1])), (6, batch, 3), "last_step", notes
    )


@pytest.mark.parametrize(
    ("take", "options"),
    [
        (lambda head, y, _: head(y[:, -2]), {}),
        (lambda head, y, _: head(y[:, 1:]), {}),
        (lambda head, y, _: head(y[:, -1]) * head(y[:, 0]), {}),
        (lambda head, y, state: head(y[:, -1] + state[0][0]), {}),
        (lambda head, y, _: head(y[:-1, -1]), {}),
        (lambda head, y, _: head(y[:, -1].detach()) + y[:, -1, :4], {}),
        (last, {"bidirectional": True}),
    ],
    ids=["before", "several", "first", "state", "batch", "columns", "directions"],
)
def test_last_step_not_elsewhere(take, options):
    notes = {"takes the gradient of the last step": 0}
    compare(
        lambda: LastStep(nn.LSTM, take, batch_first=True, **options), (9, 6, 3), "last_step", notes
    )


WIDE = 256  # 256 x 256: a layer that is worth an update of its own


def wide():
    return nn.Sequential(
        nn.Linear(16, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, 4)
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: gs.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: gs.optim.SGD(p, lr=0.1, momentum=0.9, l1=0.01, clip_value=0.01),
        lambda p: gs.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
        lambda p: gs.optim.Adam([{"params": p[:3], "lr": 0.1}, {"params": p[3:]}], lr=0.01),
    ],
    ids=["adamw", "sgd", "rmsprop", "groups"],
)
def test_optimizer(optimizer):
    compare(wide, (9, 16), "optimizer", {}, optimizer=optimizer, steps=7)


def test_optimizer_stands_behind_the_gradient():
    compare(wide, (9, 16), "optimizer", {"right after its gradients": 2})
    model = wide()
    opt = gs.optim.AdamW(model.parameters())

    def step(x):
        opt.zero_grad()
        model(x).sum().backward()
        opt.step()

    f = gs.capture(step, passes=["optimizer"])
    x = gs.tensor(awkward(np.random.default_rng(0), (9, 16)))
    for _ in range(4):
        f(x)
    names = [line.split()[0] for line in f.report(1).split("\n")[2:-1]]
    first = names.index("adam")
    assert names[-1] == "adam" and "matmul" in "".join(names[first:-1])


def test_optimizer_waits_for_a_global_norm():
    def clipped(p):
        return gs.optim.AdamW(p, lr=0.01, max_grad_norm=0.1)

    compare(wide, (9, 16), "optimizer", {"right after its gradients": 0}, optimizer=clipped)


def test_optimizer_waits_for_readers_after_backward():
    """The weights are read between backward and the update, and changed behind it."""
    x = awkward(np.random.default_rng(0), (9, 16))

    def run(captured):
        gs.manual_seed(1)
        model = wide()
        opt = gs.optim.AdamW(model.parameters(), lr=0.01)

        def step(a):
            opt.zero_grad()
            loss = (model(a) ** 2).mean()
            loss.backward()
            with gs.no_grad():
                size = model[2].weight.abs().sum()
            opt.step()
            with gs.no_grad():
                model[2].weight.mul_(0.5)
                after = model[0].weight.abs().sum()
            return loss, size, after

        f = gs.capture(step, passes=["optimizer"]) if captured else step
        out = []
        for _ in range(7):
            out += [t.data.copy() for t in f(gs.tensor(x))]
        assert not captured or f.reason is None
        return bits(out + [p.data for p in model.parameters()])

    assert run(True) == run(False)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 3)

    def forward(self, x):
        return self.last(self.first(self.first(x).relu()).relu())


def test_tied_weights():
    compare(Tied, (5, WIDE), "optimizer", {})


def test_nothing_is_updated_when_a_check_inside_the_program_fails():
    gs.manual_seed(0)
    model = wide()
    opt = gs.optim.AdamW(model.parameters(), lr=0.01)
    x = gs.tensor(awkward(np.random.default_rng(0), (9, 16)))

    def step(a, target, index):
        opt.zero_grad()
        F.cross_entropy(model(a), target).backward()
        extra = F.embedding(index + 0, model[2].weight.detach()).sum()  # checked in the program
        opt.step()
        return extra

    f = gs.capture(step)
    target = gs.tensor(np.arange(9) % 4)
    for _ in range(5):
        f(x, target, gs.tensor(np.array([1, 2])))
    assert f.reason is None and f.programs[0]["replays"] == 2
    before = bits([p.data for p in model.parameters()])
    with pytest.raises((IndexError, ValueError)):
        f(x, target, gs.tensor(np.array([1, WIDE])))
    assert bits([p.data for p in model.parameters()]) == before


MERGED = "with the update of its parameter"
ALL_OPTIMIZERS = {
    "sgd": lambda p: gs.optim.SGD(p, lr=0.1),
    "momentum": lambda p: gs.optim.SGD(p, lr=0.1, momentum=0.9, l1=0.01, clip_value=0.01),
    "nesterov": lambda p: gs.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adagrad": lambda p: gs.optim.Adagrad(p, lr=0.1, lr_decay=0.01),
    "rmsprop": lambda p: gs.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "adadelta": lambda p: gs.optim.Adadelta(p, lr=1.0),
    "adam": lambda p: gs.optim.Adam(p, lr=0.01, weight_decay=0.1, maximize=True),
    "amsgrad": lambda p: gs.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: gs.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "nadam": lambda p: gs.optim.NAdam(p, lr=0.01),
    "adamax": lambda p: gs.optim.Adamax(p, lr=0.01),
    "radam": lambda p: gs.optim.RAdam(p, lr=0.01),
    "asgd": lambda p: gs.optim.ASGD(p, lr=0.05, t0=5, lambd=0.1),
    "groups": lambda p: gs.optim.Adam([{"params": p[:3], "lr": 0.1}, {"params": p[3:]}], lr=0.01),
}


@pytest.mark.parametrize("name", ALL_OPTIMIZERS)
def test_gradient_update(name):
    compare(wide, (9, 16), "gradient_update", {MERGED: 1}, optimizer=ALL_OPTIMIZERS[name], steps=7)


@pytest.mark.parametrize(
    ("batch", "inputs", "outputs", "count"),
    [
        (5, 183, 181, 1),
        (3, 1, 40000, None),  # not a product of matrices
        (2, 4101, 9, 1),
        (17, 33, 1000, 1),
        (130, 513, 67, 1),
        (600, 129, 300, 1),  # summed in two blocks
        (1030, 70, 500, 1),  # in three
        (64, 784, 512, 1),
        (9, 180, 182, 0),  # too small
    ],
)
def test_gradient_update_of_any_shape(batch, inputs, outputs, count):
    """Rows, columns and depths that are no multiples of tiles, panels and blocks."""
    compare(
        lambda: nn.Linear(inputs, outputs), (batch, inputs), "gradient_update",
        {} if count is None else {MERGED: count},
    )  # fmt: skip


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: gs.optim.AdamW(p, lr=0.01, max_grad_norm=0.1),
        lambda p: gs.optim.AdamW(p, lr=0.01, skip_nonfinite=True),
    ],
    ids=["norm", "finite"],
)
def test_gradient_update_waits_for_a_global_norm(optimizer):
    compare(wide, (9, 16), "gradient_update", {MERGED: 0}, optimizer=optimizer)


CHOICE = f"""
import gradsmith as gs, numpy as np
from gradsmith import nn
model = nn.Sequential(nn.Linear(16, {WIDE}), nn.ReLU(), nn.Linear({WIDE}, {WIDE}), nn.ReLU(), nn.Linear({WIDE}, 4))
opt = gs.optim.AdamW(model.parameters())
def step(x):
    opt.zero_grad()
    model(x).square().mean().backward()
    opt.step()
for passes in (None, {{"pieces": True}}, {{"gradient_update": True}}, {{"gradient_update": None}}):
    f = gs.capture(step, passes=passes)
    for _ in range(4):
        f(gs.tensor(np.ones((9, 16), np.float32)))
    print(f.report(1).count("{MERGED}"))
"""


@pytest.mark.parametrize("kept", [0, 1 << 40])
def test_gradient_update_where_it_pays(kept):
    """A fast third cache that holds all that the update touches: off, unless it is asked for."""
    env = {**os.environ, "GRADSMITH_STREAM_BYTES": str(kept)}
    out = subprocess.run(
        [sys.executable, "-c", CHOICE], env=env, capture_output=True, text=True, check=True
    )
    left_alone = kept and gs._cpu.machine()["near"]
    assert out.stdout.split() == (["0", "0", "1", "0"] if left_alone else ["1"] * 4)


def updated(body, x, *, count, steps=7, threads=2, optimizer=None):
    """A wide model whose step is `body(model, opt, x)`: the same bits with the rule and without, and how many
    products update."""

    def run(captured):
        with gs.threads(threads):
            gs.manual_seed(1)
            model = wide()
            opt = (optimizer or (lambda p: gs.optim.AdamW(p, lr=0.01)))(list(model.parameters()))

            def step(a):
                return body(model, opt, a)

            f = gs.capture(step, passes=["gradient_update"]) if captured else step
            out = []
            for i in range(steps):
                out += [t.data.copy() for t in f(gs.tensor(x + np.float32(i)))]
            if captured:
                assert f.reason is None and f.programs[0]["replays"] >= 2
                assert f.report(1).count(MERGED) == count
            grads = [None if p.grad is None else p.grad.data.copy() for p in model.parameters()]
            return bits(out + grads + [p.data for p in model.parameters()])

    assert run(True) == run(False)


X = awkward(np.random.default_rng(0), (9, 16))


def test_gradient_update_with_readers_of_weights_and_gradients():
    """Before the update others read weights and gradients, behind it the weights change."""

    def body(model, opt, a):
        opt.zero_grad()
        loss = (model(a) ** 2).mean()
        loss.backward()
        with gs.no_grad():
            size, slope = model[2].weight.abs().sum(), model[2].weight.grad.abs().sum()
        opt.step()
        with gs.no_grad():
            model[2].weight.mul_(0.5)
        return loss, size, slope

    updated(body, X, count=1)


def test_gradient_update_when_nobody_sees_the_gradient():
    def body(model, opt, a):
        loss = (model(a) ** 2).mean()
        loss.backward()
        opt.step()
        opt.zero_grad()
        return (loss,)

    updated(body, X, count=1)


@pytest.mark.parametrize("what", ["clip", "scale", "twice"])
def test_gradient_update_leaves_changed_gradients_alone(what):
    """Clipped or scaled before the update, or the sum of two backward passes."""

    def body(model, opt, a):
        opt.zero_grad()
        loss = (model(a) ** 2).mean()
        loss.backward()
        if what == "twice":
            (model(a * 2) ** 2).mean().backward()
        elif what == "clip":
            gs.optim.clip_grad_value_(model.parameters(), 0.01)
        else:
            with gs.no_grad():
                model[2].weight.grad.mul_(0.125)
        opt.step()
        return (loss,)

    updated(body, X, count=0)


def test_gradient_update_of_tied_weights():
    compare(Tied, (5, WIDE), "gradient_update", {MERGED: 0})


def test_gradient_update_with_a_product_that_reads_the_parameter():
    """The gradient of sum(W W) is made of W itself, which the update may not change meanwhile."""
    gs.manual_seed(0)
    start = gs.randn(WIDE, WIDE).data

    def run(passes):
        w = gs.tensor(start.copy(), requires_grad=True)
        opt = gs.optim.SGD([w], lr=1e-4)

        def step(x):
            opt.zero_grad()
            loss = ((w @ w) * x).sum()
            loss.backward()
            opt.step()
            return loss

        f = gs.capture(step, passes=passes) if passes is not None else step
        x = gs.tensor(start[::-1].copy())
        out = [f(x).data.copy() for _ in range(6)]
        return bits([*out, w.data])

    expected = run(None)
    for n in (1, 2):
        with gs.threads(n):
            assert run(["gradient_update"]) == expected == run(True)


def test_gradient_update_follows_the_learning_rate():
    """Rates, decay and momentum change between replays, from outside and by a scheduler inside."""
    x = gs.tensor(X)

    def run(captured):
        gs.manual_seed(1)
        model = wide()
        opt = gs.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=0.01)
        sched = gs.optim.lr_scheduler.ExponentialLR(opt, 0.9)

        def step(a):
            opt.zero_grad()
            loss = (model(a) ** 2).mean()
            loss.backward()
            opt.step()
            sched.step()
            return loss

        f = gs.capture(step, passes={"gradient_update": True}) if captured else step
        out = []
        for i in range(9):
            if i == 6:
                opt.param_groups[0]["momentum"] = 0.9
                opt.param_groups[0]["weight_decay"] = 0.2
            out.append(f(x).data.copy())
        assert not captured or (f.reason is None and MERGED in f.report(1))
        return bits(out + [p.data for p in model.parameters()])

    assert run(True) == run(False)


def test_gradient_update_leaves_bfloat16_products_alone():
    def body(model, opt, a):
        opt.zero_grad()
        with gs.autocast():
            loss = (model(a) ** 2).mean()
        loss.backward()
        opt.step()
        return (loss,)

    updated(body, X, count=0)


# ---- weights that stay transformed or packed

L2 = 1 << 21  # whether filters are kept whole follows from it
UPDATES = "with what the next step multiplies by"
LOOKS = "compared with what was prepared"


def dense(widths, activation=nn.ReLU, bias=True):
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


STORED = ("stored transposed", "with the ReLU behind it, stored transposed")


def compare_transposed(forward, x, count, weights=()):
    """A captured forward pass with and without the rewrite, and eagerly: equal bits, also after the weights change."""

    def run():
        with gs.no_grad():
            y = forward(x)
        return y if isinstance(y, tuple) else (y,)

    off = {"transposed": False}
    for threads in (1, 2, 3):
        with gs.threads(threads):
            for passes in (["transposed"], ["transposed", "bias_relu"], {}, off):
                f = gs.capture(run, passes=passes)
                for turn in range(5):
                    expected = run()
                    got = f()
                    for a, b in zip(expected, got, strict=True):
                        np.testing.assert_array_equal(a.data, b.data)
                    if turn == 3:
                        for w in weights:
                            w.data[...] = -w.data
                assert f.reason is None and f.programs[0]["replays"] >= 2
                lines = f.report(1).split("\n")
                found = sum(line.endswith(STORED) for line in lines)
                assert found == (0 if passes is off else count), f.report(1)


@pytest.mark.parametrize(
    ("batch", "widths", "count"),
    [
        (128, (784, 512, 256, 10), 2),
        (64, (300, 200, 100, 7), 2),  # whole panels
        (48, (400, 300, 90), 1),  # one narrower panel
        (80, (500, 333, 251, 17), 2),  # no whole panels
        (33, (257, 129, 131, 5), 2),
        (96, (1500, 700, 300, 40), 2),  # several blocks of steps
        (64, (300, 1100, 400, 10), 1),  # too many rows for one block of the next product
        (64, (300, 200, 64), 1),
        (64, (200, 600, 64), 0),  # the last product has too many steps for other layouts
        (96, (300, 200, 100, 7), 2),  # panels of other widths
        (72, (300, 200, 100, 7), 2),
        (144, (500, 256, 300), 1),
        (24, (160, 256, 600), 1),  # rows at odd places
        (4, (784, 512, 10), 0),
        (300, (100, 200, 50), 0),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_transposed(batch, widths, count, bias):
    rng = np.random.default_rng(batch)
    model = dense(widths, bias=bias)
    compare_transposed(
        model, gs.tensor(awkward(rng, (batch, widths[0]))), count, list(model.parameters())
    )


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Tanh, nn.LeakyReLU, nn.Identity])
def test_transposed_behind_activations(activation):
    rng = np.random.default_rng(7)
    model = dense((300, 200, 130, 10), activation)
    compare_transposed(model, gs.tensor(awkward(rng, (64, 300))), 2)


def test_transposed_where_others_read():
    """A result that is returned, added to, or read by something else stays as it is."""
    rng = np.random.default_rng(8)
    a, b, c = nn.Linear(300, 200), nn.Linear(200, 200), nn.Linear(200, 10)
    x = gs.tensor(awkward(rng, (64, 300)))

    def returned(x):
        h = a(x).relu()
        return h, c(b(h).relu())

    def residual(x):
        h = a(x)
        return c(h + b(h))

    def two(x):  # two products read it
        h = a(x).relu()
        return b(h), c(h)

    def summed(x):
        h = a(x)
        return h.sum(0), b(h)

    def columns(x):  # a part of it
        return b(a(x))[:, :3], c(a(x)[:, :200])

    compare_transposed(returned, x, 1)
    compare_transposed(residual, x, 0)
    compare_transposed(two, x, 1)
    compare_transposed(summed, x, 0)
    compare_transposed(columns, x, 2)


def test_transposed_in_a_block():
    """A transformer's dense layers: GELU between them, and a sum behind the second, which the product adds."""
    rng = np.random.default_rng(9)
    a, b = nn.Linear(128, 512), nn.Linear(512, 128)
    x = gs.tensor(awkward(rng, (2, 32, 128)))
    compare_transposed(lambda x: b(F.gelu(a(x))) + x, x, 1)


def test_transposed_frozen_layers():
    """Layers without gradients in front of one that is trained, whose gradient needs its input as it is."""

    def make():
        model = dense((300, 200, 100, 10))
        for p in model[:4].parameters():
            p.requires_grad_(False)
        return model

    compare(make, (64, 300), "transposed", {"stored transposed": 1})


PREPARED = ["prepared_weights", "prepared_updates"]


class Convs(nn.Module):
    """Two convolutions by tiles, forward and backward; a pool and a ReLU between them."""

    def __init__(self, c=17, k=35, pool=True, last=20):
        super().__init__()
        self.first = nn.Conv2d(2, c, 1)
        self.a, self.b = nn.Conv2d(c, k, 3, padding=1), nn.Conv2d(k, last, 3, padding=1, bias=False)
        self.pool = pool

    def forward(self, x):
        y = self.a(self.first(x)).relu()
        return self.b(F.max_pool2d(y, 2) if self.pool else y)


def packed_linear():
    """Every product packs its weights: (65, 300), and (400, 300), which the product behind it updates."""
    return nn.Sequential(nn.Linear(300, 400), nn.Tanh(), nn.Linear(400, 300), nn.Linear(300, 65))


@pytest.mark.parametrize(
    ("kernel", "shape", "layers"),
    [
        ("winograd4", (33, 14, 14, 2), {}),
        ("winograd4", (9, 30, 31, 2), {"c": 32, "k": 68, "pool": False}),
        ("winograd2", (33, 14, 13, 2), {"c": 8, "k": 16, "last": 3}),
        ("winograd4", (2, 9, 9, 2), {"c": 5, "k": 130}),  # no backward by tiles
    ],
)
def test_prepared_updates_of_convolutions(kernel, shape, layers, force):
    force(kernel, L2)
    notes = {LOOKS: 1} if shape[0] == 2 else {UPDATES: 2, LOOKS: 1}
    compare(lambda: Convs(**layers), shape, "prepared_updates", notes, steps=5)


@pytest.mark.parametrize("name", ALL_OPTIMIZERS)
def test_prepared_updates_by_any_rule(name, force):
    force("winograd4", L2)
    notes = {UPDATES: 2, LOOKS: 1}
    compare(
        lambda: Convs(4, 19, last=33), (33, 8, 9, 2), "prepared_updates", notes,
        optimizer=ALL_OPTIMIZERS[name],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [(270, (270, 300, 260)), (600, (700, 280, 257)), (290, (260, 1030, 40)), (300, (70, 520))],
)
def test_prepared_updates_of_products(batch, sizes):
    """Panels of rows and columns, blocks of k and of columns, tails of all."""
    layers = [nn.Linear(*s) for s in itertools.pairwise(sizes)]
    compare(
        lambda: nn.Sequential(*[nn.Linear(m.in_features, m.out_features) for m in layers]),
        (batch, sizes[0]), "prepared_updates", {LOOKS: 1}, steps=5,
    )  # fmt: skip


@pytest.mark.parametrize("sizes", [(32, 64, 64, 10), (33, 65, 17), (7, 31, 130, 1)])
def test_prepared_updates_of_small_products(sizes):
    def make():
        layers = [x for s in itertools.pairwise(sizes) for x in (nn.Linear(*s), nn.ReLU())]
        return nn.Sequential(*layers[:-1])

    for batch in (32, 45):
        compare(make, (batch, sizes[0]), "prepared_updates", {}, threads=2)


def trained(make, shape, passes, *, threads=2, between=None, steps=9, optimizer=None, note=None):
    """The bits of losses and weights; `between(i, model, step)` before step i."""
    with gs.threads(threads):
        gs.manual_seed(1)
        model = make()
        opt = (optimizer or (lambda p: gs.optim.AdamW(p, lr=0.01)))(list(model.parameters()))
        rng = np.random.default_rng(3)

        def step(x):
            opt.zero_grad()
            loss = (model(x) ** 2).mean()
            loss.backward()
            opt.step()
            return loss

        f = step if passes is None else gs.capture(step, passes=passes)
        out = []
        for i in range(steps):
            if between is not None:
                between(i, model, step, f)
            out.append(f(gs.tensor(awkward(rng, shape))).data.copy())
        if passes is not None:
            assert f.reason is None and f.programs[0]["replays"] > 0
            f.verify(gs.tensor(awkward(rng, shape)))
            report = f.report(2)
            assert (note is None or note in report) and LOOKS in report
            assert "a replay: 0 pool allocations" in report
        return bits(out + [p.data for p in model.parameters()])


@pytest.mark.parametrize("sizes", [(300, 400, 300), (40, 1000), (2100, 20), (257, 260), (1, 40000)])
def test_prepared_updates_within_the_product_that_makes_the_gradient(sizes):
    """Its pieces are then whole units of rows, on any number of threads."""

    def make():
        return nn.Sequential(*[nn.Linear(*s) for s in itertools.pairwise(sizes)])

    shape, note = (300, sizes[0]), "with the update of its parameter, which is prepared"
    if sizes[0] == 1:  # no product packs it
        compare(make, (3, 1), "prepared_updates", {LOOKS: 0, UPDATES: 0}, steps=5)
        return
    expected = trained(make, shape, None, threads=1)
    for n in (1, 2, 3):
        for passes in (["prepared_updates", "gradient_update"], True):
            assert trained(make, shape, passes, threads=n, note=note) == expected, (n, passes)


def from_outside(kind, i, model, step, f):
    """Changes weights behind the program's back at some steps."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    if kind == "view" and i in (5, 7):
        for p in weights:
            p.detach().numpy().reshape(-1)[-1] += np.float32(0.5)
    elif kind == "sign" and i == 6:  # -0 is not 0, and a NaN is itself
        for p in weights:
            p.detach().numpy().reshape(-1)[0] = -0.0
    elif kind == "load" and i in (5, 6, 8):
        model.load_state_dict({n: t.data * np.float32(0.9) for n, t in model.state_dict().items()})
    elif kind == "replace" and i == 6:
        for p in weights:
            p.data = p.data * np.float32(0.5)
    elif kind == "eager" and i in (5, 8):
        shape = (33, 9, 8, 2) if isinstance(model, Convs) else (300, 300)
        step(gs.ones(*shape))
    elif kind == "program" and i in (4, 5, 6, 8):
        shape = (40, 9, 8, 2) if isinstance(model, Convs) else (280, 300)
        for _ in range(4):
            f(gs.ones(*shape))
    elif kind == "threads" and i in (4, 7):
        with gs.threads(3):
            for _ in range(4):
                f(gs.ones(*((33, 9, 8, 2) if isinstance(model, Convs) else (300, 300))))


@pytest.mark.parametrize("kind", ["view", "sign", "load", "replace", "eager", "program", "threads"])
@pytest.mark.parametrize("make", [lambda: Convs(4, 19), packed_linear], ids=["conv", "linear"])
def test_prepared_updates_see_weights_changed_elsewhere(make, kind, force):
    force("winograd4", L2)
    shape = (33, 9, 8, 2) if isinstance(make(), Convs) else (300, 300)

    def between(*args):
        from_outside(kind, *args)

    expected = trained(make, shape, None, between=between)
    for passes in (["prepared_updates"], True):
        for n in (1, 2):
            assert trained(make, shape, passes, between=between, threads=n) == expected, (passes, n)


@pytest.mark.parametrize("make", [lambda: Convs(4, 19), packed_linear], ids=["conv", "linear"])
def test_prepared_updates_leave_others_alone(make, force):
    """With a norm of all gradients, with weights that something else changes too, and in bfloat16."""
    force("winograd4", L2)
    shape = (33, 9, 8, 2) if isinstance(make(), Convs) else (300, 300)

    def run(kind, captured):
        gs.manual_seed(1)
        model = make()
        norm = 0.1 if kind == "norm" else None
        opt = gs.optim.AdamW(model.parameters(), lr=0.01, max_grad_norm=norm)
        rng = np.random.default_rng(3)

        def step(x):
            opt.zero_grad()
            with gs.autocast("bfloat16" if kind == "bfloat16" else "float32"):
                loss = (model(x) ** 2).mean()
            loss.backward()
            opt.step()
            if kind == "changed":
                with gs.no_grad():
                    for p in model.parameters():
                        p.mul_(0.5)
            return loss

        f = gs.capture(step, passes=PREPARED) if captured else step
        out = [f(gs.tensor(awkward(rng, shape))).data.copy() for _ in range(6)]
        if captured:
            # this convolution, being forced, multiplies float32 under autocast, too
            forced = kind == "bfloat16" and isinstance(model, Convs)
            assert f.reason is None and (UPDATES in f.report(1)) == forced
        return bits(out + [p.data for p in model.parameters()])

    for kind in ("norm", "changed", "bfloat16"):
        assert run(kind, True) == run(kind, False), kind


def test_prepared_updates_of_a_weight_that_is_used_twice(force):
    """On maps of two sizes; a third reader of another kind."""
    force("winograd4", L2)

    class Twice(Convs):
        def forward(self, x):
            y = self.a(self.first(x))
            return (
                self.b(y).sum((1, 2))
                + self.b(F.max_pool2d(y, 2)).sum((1, 2)) * self.b.weight[0, 0, 0, 0]
            )

    compare(Twice, (33, 12, 13, 2), "prepared_updates", {UPDATES: 2}, steps=5)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("make", [lambda: Convs(4, 19), packed_linear], ids=["conv", "linear"])
def test_prepared_weights(make, n, force):
    """Inference: prepared at the second replay without a change, and made anew whoever changes them."""
    force("winograd4", L2)
    shape = (33, 9, 8, 2) if isinstance(make(), Convs) else (300, 300)
    gs.manual_seed(0)
    model = make()
    rng = np.random.default_rng(1)
    x = gs.tensor(awkward(rng, shape))

    def forward(x):
        with gs.no_grad():
            return model(x)

    with gs.threads(n):
        for passes in (["prepared_weights"], None):
            f = gs.capture(forward, passes=passes)
            for i in range(16):
                if i in (6, 7, 11):
                    for p in model.parameters():
                        p.detach().numpy().reshape(-1)[-1] += np.float32(0.5)
                elif i == 8:
                    model.load_state_dict({k: t.data * -1 for k, t in model.state_dict().items()})
                elif i == 13:
                    for p in model.parameters():
                        p.data = p.data[::-1].copy()
                assert bits([f(x).data]) == bits([forward(x).data]), i
            assert f.reason is None and LOOKS in f.report(1)
            assert "a replay: 0 pool allocations" in f.report(1)
            f = gs.capture(forward, passes=["prepared_updates"])
            for _ in range(4):
                f(x)
            assert LOOKS not in f.report(1)


def test_prepared_weights_of_frozen_layers(force):
    """A part of a network that is not trained, in front of one that is."""
    force("winograd4", L2)

    def make():
        model = Convs(4, 19)
        model.a.weight.requires_grad_(False)
        return model

    compare(
        make, (33, 9, 8, 2), "prepared_weights", {UPDATES: 0, LOOKS: 1},
        optimizer=lambda p: gs.optim.AdamW([q for q in p if q.requires_grad], lr=0.01),
    )  # fmt: skip


def test_prepared_weights_that_are_trained_by_another_program(force):
    """Two networks in turn, each a constant in the other's step."""
    force("winograd4", L2)
    rng = np.random.default_rng(2)
    xs = [awkward(rng, (33, 9, 8, 2)) for _ in range(9)]

    def run(captured):
        gs.manual_seed(3)
        nets = [Convs(4, 19, False, 2), Convs(2, 18, False, 2)]
        steps = []
        for i in (0, 1):
            opt = gs.optim.AdamW(nets[i].parameters(), lr=0.01)
            order = nets if i == 0 else nets[::-1]

            def step(x, first=order[0], last=order[1], opt=opt):
                for q in (*first.parameters(), *last.parameters()):
                    q.grad = None
                loss = (last(first(x)) ** 2).mean()
                loss.backward()
                opt.step()
                return loss

            steps.append(gs.capture(step, passes=PREPARED) if captured else step)
        out = [f(gs.tensor(x)).data.copy() for x in xs for f in steps]
        if captured:
            assert all(f.reason is None and f.report(1).count(UPDATES) == 2 for f in steps)
        return bits(out + [p.data for net in nets for p in net.parameters()])

    assert run(True) == run(False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_prepared_updates_after_a_fork(force):
    force("winograd4", L2)
    children = []

    def between(i, model, step, f):
        if i == 6 and f is not step:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                children.append(os.fork())

    make = lambda: Convs(4, 19)  # noqa: E731
    expected = trained(make, (33, 9, 8, 2), None)
    try:
        right = trained(make, (33, 9, 8, 2), True, between=between) == expected
    except BaseException:
        right = False
    if children == [0]:
        os._exit(0 if right else 1)
    assert right and os.waitpid(children[0], 0)[1] == 0


def test_prepared_updates_of_a_copied_module(force):
    force("winograd4", L2)

    class Trained(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Convs(4, 19)
            self.opt = gs.optim.AdamW(self.net.parameters(), lr=0.01)
            self.step = gs.capture(self.update, passes=True)

        def update(self, x):
            self.opt.zero_grad()
            loss = (self.net(x) ** 2).mean()
            loss.backward()
            self.opt.step()
            return loss

    gs.manual_seed(0)
    one = Trained()
    rng = np.random.default_rng(6)
    xs = [gs.tensor(awkward(rng, (33, 9, 8, 2))) for _ in range(6)]
    for x in xs:
        one.step(x)
    two = copy.deepcopy(one)
    before = bits([p.data for p in two.net.parameters()])
    first = [two.step(x).data.copy() for x in xs]
    second = [one.step(x).data.copy() for x in xs]
    assert bits(first) == bits(second) and before != bits([p.data for p in two.net.parameters()])
    eager = [two.update(x).data.copy() for x in xs]
    assert bits(eager) == bits([one.step(x).data.copy() for x in xs])


@pytest.mark.parametrize("kind", ["packed", "transformed"])
def test_prepared_weights_have_a_limit(kind, force):
    """What does not fit into 8 MB, or 0.5 MB of filters, with what comes before is made as ever."""
    force("winograd4", L2)
    gs.manual_seed(0)
    if kind == "packed":
        model, x = nn.Sequential(*[nn.Linear(700, 700) for _ in range(4)]), gs.randn(300, 700)
    else:
        layers = [nn.Conv2d(32, 32, 3, padding=1) for _ in range(4)]
        model, x = nn.Sequential(*layers), gs.randn(33, 8, 8, 32)

    def forward(x):
        with gs.no_grad():
            return model(x)

    f = gs.capture(forward)
    for _ in range(7):
        assert bits([f(x).data]) == bits([forward(x).data])
    report = f.report(1)
    assert sum(line.endswith("with prepared weights") for line in report.split("\n")) == 2
    limit = 8 << 20 if kind == "packed" else 1 << 19
    assert 0 < f.programs[0]["constant_bytes"] <= limit


def test_every_rule_has_a_switch():
    chosen = gs.capture(lambda x: x).passes
    assert set(RULES) <= set(chosen)
    unpaid = {"bias_activation", "activation_gradient", "prepared_updates"}
    assert chosen["gradient_update"] is None  # by the machine
    assert {n for n, on in chosen.items() if on is False} == unpaid
    assert all(gs.capture(lambda x: x, passes=True).passes.values())
    assert not any(gs.capture(lambda x: x, passes=False).passes.values())
