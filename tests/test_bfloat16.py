"""Mixed precision: products with operands rounded to bfloat16, autocast, the Trainer's precision."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from test_capture import update_of

import gradsmith as gs
import gradsmith.nn.functional as F
from gradsmith import _cpu as k

ISAS = k.supported_isas()


def rounded(x: np.ndarray) -> np.ndarray:
    """To bfloat16, nearest, ties to even; as float64."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def rms(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square error relative to the root mean square of what is wanted."""
    scale = np.sqrt(np.mean(np.square(want))) if want.size else 1.0
    return float(np.sqrt(np.mean(np.square(got - want))) / (scale or 1.0)) if want.size else 0.0


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


SIZES = [(1, 1, 1), (1, 7, 300), (3, 1, 65), (2, 2, 33), (16, 16, 32), (17, 15, 31), (32, 33, 64), (33, 65, 641), (100, 70, 1300), (64, 1000, 256), (5, 40, 2), (70, 300, 1300), (300, 1100, 512), (700, 96, 1024), (330, 260, 288)]  # fmt: skip


# ---- matmul
@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
@pytest.mark.parametrize("m,n,depth", SIZES)
def test_product_of_rounded_operands(m, n, depth, ta, tb):
    rng = np.random.default_rng()
    a = normal(rng, *((depth, m) if ta else (m, depth)))
    b = normal(rng, *((n, depth) if tb else (depth, n)))
    bias = normal(rng, n)
    want = (rounded(a).T if ta else rounded(a)) @ (rounded(b).T if tb else rounded(b))
    results = []
    for threads in (1, 2, 3):
        with gs.threads(threads), gs.autocast():
            results.append(k.matmul(a, b, ta=ta, tb=tb))
    assert results[0].dtype == np.float32 and rms(results[0], want) <= 1e-6
    assert all(np.array_equal(results[0], r) for r in results)
    with gs.autocast():
        full = k.matmul(a, b, bias, ta=ta, tb=tb, act=1, alpha=-0.5)
        out = np.full((m, n), 2.0, np.float32)
        k.matmul_out(out, a, b, bias, ta=ta, tb=tb, alpha=3.0, accumulate=True)
    assert np.abs(full - np.maximum(-0.5 * want + bias, 0)).max() <= 2e-5 * np.sqrt(depth)
    assert np.abs(out - (3 * want + bias + 2)).max() <= 1e-4 * np.sqrt(depth)


def test_nothing_is_rounded_outside_or_exact_or_float64():
    rng = np.random.default_rng()
    a, b = normal(rng, 40, 50), normal(rng, 50, 30)
    plain = k.matmul(a, b)
    with gs.autocast():
        assert np.array_equal(k.matmul(a, b, exact=True), plain)
        assert not np.array_equal(k.matmul(a, b), plain)
        wide = k.matmul(a.astype(np.float64), b.astype(np.float64))
    assert np.array_equal(k.matmul(a, b), plain)
    assert np.allclose(wide, a.astype(np.float64) @ b, rtol=1e-13, atol=1e-12)


def test_batches_views_and_empty_products():
    rng = np.random.default_rng()
    a, b = normal(rng, 3, 1, 9, 20), normal(rng, 5, 20, 37)
    with gs.autocast():
        got = k.matmul(a, b)
        view = k.matmul(a[..., ::-2], b[:, ::2, ::3])
        lead = k.matmul(np.broadcast_to(a, (3, 5, 9, 20)), b)
        vector = k.matmul(a[0, 0, 0], b)
        outer = k.matmul(a[0, 0, :, :1], b[0, :1])
        nothing = k.matmul(a[..., :0], b[:, :0])
    assert rms(got, rounded(a) @ rounded(b)) <= 1e-6
    assert np.array_equal(lead, got)
    assert rms(view, rounded(a[..., ::-2]) @ rounded(b[:, ::2, ::3])) <= 1e-6
    assert rms(vector, rounded(a[0, 0, 0]) @ rounded(b)) <= 1e-6
    assert rms(outer, rounded(a[0, 0, :, :1]) @ rounded(b[0, :1])) <= 1e-6
    assert nothing.shape == (3, 5, 9, 37) and not nothing.any()


def test_rounding_is_to_nearest_even_and_keeps_what_is_not_finite():
    # 1 + 2^-8 lies halfway and goes to 1; 1 + 3 * 2^-8 goes to 1 + 2^-6
    x = np.array([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3e38, np.inf, -np.inf]], np.float32)
    one = np.ones((1, 1), np.float32)
    with gs.autocast():
        got = k.matmul(x.T.copy(), one).ravel()
        nan = k.matmul(np.full((40, 40), np.nan, np.float32), np.ones((40, 40), np.float32))
        zero_times = k.matmul(np.zeros((3, 5), np.float32), np.full((5, 7), np.inf, np.float32))
    assert got.tolist() == rounded(x).ravel().tolist()
    assert np.isnan(nan).all() and np.isnan(zero_times).all()


def test_linear_beside_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng()
    x, w, b, g = normal(rng, 24, 50), normal(rng, 70, 50), normal(rng, 70), normal(rng, 24, 70)
    tx, tw, tb = (torch.tensor(v, requires_grad=True) for v in (x, w, b))
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.nn.functional.linear(tx, tw, tb)
    y.backward(torch.tensor(g).bfloat16())
    ours = [gs.tensor(v, requires_grad=True) for v in (x, w, b)]
    with gs.autocast():
        out = F.linear(*ours)
    out.backward(gs.tensor(g))
    # PyTorch rounds results to bfloat16 too: 8 bits
    for got, want in [(out, y)] + [
        (o.grad, t.grad) for o, t in zip(ours, (tx, tw, tb), strict=True)
    ]:
        want = want.detach().float().numpy()
        assert rms(got.data, want) <= 6e-3


def test_linear_gradients_and_the_precision_of_backward():
    rng = np.random.default_rng()
    x, w, g = normal(rng, 6, 9, 50), normal(rng, 70, 50), normal(rng, 6, 9, 70)
    tx, tw, tb = (gs.tensor(v, requires_grad=True) for v in (x, w, normal(rng, 70)))
    with gs.autocast():
        y = F.linear(tx, tw, tb)
    y.backward(gs.tensor(g))  # outside: as the forward pass was
    rx, rw, rg = rounded(x).reshape(-1, 50), rounded(w), rounded(g).reshape(-1, 70)
    assert rms(tx.grad.data.reshape(-1, 50), rg @ rw) <= 1e-6
    assert rms(tw.grad.data, rg.T @ rx) <= 1e-6
    assert rms(tb.grad.data, g.astype(np.float64).sum((0, 1))) <= 1e-6
    assert not gs.is_autocast_enabled()
    plain = [gs.tensor(v, requires_grad=True) for v in (x, w)]
    y = F.linear(*plain)
    with gs.autocast():
        y.backward(gs.tensor(g))  # float32 forward, float32 backward
        assert gs.is_autocast_enabled()
    assert (
        rms(plain[1].grad.data, g.reshape(-1, 70).T.astype(np.float64) @ x.reshape(-1, 50)) <= 1e-6
    )


# ---- convolution
def conv_reference(x, w, stride, pad, dil, groups, g):
    """y, dx, dw in float64 by sums over taps."""
    n, h, v, c = x.shape
    f, kh, kw, ci = w.shape
    xp = np.zeros((n, h + 2 * pad, v + 2 * pad, c))
    xp[:, pad : pad + h, pad : pad + v] = x
    p = (h + 2 * pad - dil * (kh - 1) - 1) // stride + 1
    q = (v + 2 * pad - dil * (kw - 1) - 1) // stride + 1
    y, dxp, dw = np.zeros((n, p, q, f)), np.zeros_like(xp), np.zeros(w.shape)
    fo = f // groups
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dil, i * dil + (p - 1) * stride + 1, stride)
            cols = slice(j * dil, j * dil + (q - 1) * stride + 1, stride)
            for r in range(groups):
                cs, fs = slice(r * ci, (r + 1) * ci), slice(r * fo, (r + 1) * fo)
                patch = xp[:, rows, cols, cs]
                y[..., fs] += patch @ w[fs, i, j].T
                if g is not None:
                    dxp[:, rows, cols, cs] += g[..., fs] @ w[fs, i, j]
                    dw[fs, i, j] = np.einsum("npqf,npqc->fc", g[..., fs], patch)
    return y, dxp[:, pad : pad + h, pad : pad + v], dw


CONVS = [  # n, h, w, c, f, kernel, stride, padding, dilation, groups
    (2, 9, 7, 16, 32, 3, 1, 1, 1, 1),
    (1, 5, 5, 8, 8, 3, 1, 0, 1, 1),
    (2, 8, 8, 64, 64, 3, 1, 1, 1, 1),
    (3, 9, 11, 24, 40, 3, 2, 1, 1, 1),
    (2, 7, 6, 33, 17, 3, 1, 2, 2, 1),
    (2, 8, 9, 32, 48, 1, 2, 0, 1, 1),
    (1, 12, 10, 11, 9, 5, 3, 2, 1, 1),
    (2, 6, 6, 48, 32, 3, 1, 1, 1, 2),
    (2, 7, 7, 27, 33, 3, 2, 1, 2, 3),
    (1, 4, 4, 700, 12, 3, 1, 1, 1, 1),
    (9, 13, 11, 8, 65, 1, 1, 0, 1, 1),
    (1, 11, 11, 9, 10, 9, 1, 4, 1, 1),
]


# Images enough for a tile's rows: with tiles another kernel
IMAGES = [
    (32, 4, 4, 64, 64, 3, 1, 1, 1, 1),
    (24, 4, 4, 320, 40, 3, 1, 1, 1, 1),  # sums of several chains
    (64, 3, 25, 64, 33, 3, 1, 1, 1, 1),  # two rounds of images, rows in two strips
    (50, 5, 4, 128, 160, 3, 1, 1, 2, 1),  # the last round is part filled
    (25, 5, 6, 40, 17, 3, 2, 1, 1, 1),
    (32, 9, 7, 32, 48, 3, 1, 2, 1, 1),
    (32, 6, 6, 64, 128, 1, 2, 0, 1, 1),
    (32, 6, 5, 96, 64, 3, 1, 2, 1, 2),
    (32, 7, 7, 32, 64, 5, 3, 2, 1, 1),
    (32, 1, 70, 32, 32, 3, 1, 1, 1, 1),
]


@pytest.fixture
def rounding():
    """Autocast rounds the operands of convolutions even where float32 is faster."""
    k.conv_force("bfloat16")
    yield
    k.conv_force("")


@pytest.mark.parametrize("case", CONVS + IMAGES)
def test_convolution_and_gradients(case, rounding):
    n, h, w, c, f, kernel, stride, pad, dil, groups = case
    rng = np.random.default_rng()
    x, wt, bias = (
        normal(rng, n, h, w, c),
        normal(rng, f, kernel, kernel, c // groups),
        normal(rng, f),
    )
    results = []
    for threads in (1, 2, 3):
        tx, tw, tb = (gs.tensor(v, requires_grad=True) for v in (x, wt, bias))
        with gs.threads(threads):
            with gs.autocast():
                y = F.conv2d(tx, tw, tb, stride, pad, dil, groups)
            if not results:
                g = normal(rng, *y.shape)
            y.backward(gs.tensor(g))
        results.append([t.data for t in (y, tx.grad, tw.grad, tb.grad)])
    want_y, _, _ = conv_reference(rounded(x), rounded(wt), stride, pad, dil, groups, None)
    _, dx, dw = conv_reference(rounded(x), rounded(wt), stride, pad, dil, groups, rounded(g))
    got = results[0]
    assert rms(got[0] - bias, want_y) <= 1e-6
    assert rms(got[1], dx) <= 1e-6
    assert rms(got[2], dw) <= 1e-6
    assert rms(got[3], g.astype(np.float64).sum((0, 1, 2))) <= 1e-6
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(got, other, strict=True))


@pytest.mark.parametrize("n,size,c", [(2, 8, 40), (40, 8, 96), (64, 4, 64)])
def test_small_caches_take_many_blocks(n, size, c, rounding):
    rng = np.random.default_rng()
    x, w = normal(rng, n, size, size, c), normal(rng, 96, 3, 3, c)
    g = normal(rng, n, size, size, 96)
    both = []
    for l2 in (0, 1 << 14):
        k.conv_force("bfloat16", l2)
        with gs.autocast():
            y = k.conv(2, x, w, None, 1, 1, 1, 1, True)
            both.append((y, *k.conv_backward(2, x, g, w, 1, 1, 1, 1, True, True, True)))
    assert (both[0][0] >= 0).all()
    assert all(np.array_equal(a, b) for a, b in zip(*both, strict=True))


def test_few_channels_stay_float32(rounding):
    rng = np.random.default_rng()
    x, w = normal(rng, 2, 8, 8, 3), normal(rng, 16, 3, 3, 3)
    deep = normal(rng, 12, 3, 3, 1)
    y, d = k.conv(2, x, w, None, 1, 1, 1, 1, False), k.conv(2, normal(rng, 1, 8, 8, 12) * 0 + 1.01, deep, None, 1, 1, 1, 12, False)  # fmt: skip
    with gs.autocast():
        assert np.array_equal(k.conv(2, x, w, None, 1, 1, 1, 1, False), y)
        ones = np.full((1, 8, 8, 12), 1.01, np.float32)
        assert np.array_equal(k.conv(2, ones, deep, None, 1, 1, 1, 12, False), d)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_round_only_where_that_is_faster(stride):
    rng = np.random.default_rng()
    x, w = normal(rng, 8, 16, 16, 64), normal(rng, 64, 3, 3, 64)
    plain = k.conv(2, x, w, None, stride, 1, 1, 1, False)
    want = conv_reference(x, w, stride, 1, 1, 1, None)[0]
    with gs.autocast():
        y = k.conv(2, x, w, None, stride, 1, 1, 1, False)
    if k.isa() == "amx":
        assert 1e-4 < rms(y, want) < 1e-2
    elif k.isa() != "avx512bf16":  # there it depends on who made the processor
        assert np.array_equal(y, plain) and rms(y, want) < 2e-6
    else:  # stride 1 may be Winograd's of rounded planes: test_winograd_bfloat16.py
        assert rms(y, want) < (1.35e-2 if stride == 1 else 1e-2)
    wide = k.conv(2, x.astype(np.float64), w.astype(np.float64), None, stride, 1, 1, 1, False)
    k.conv_force("bfloat16")
    try:  # without autocast, and for float64, it has no say
        assert np.array_equal(k.conv(2, x, w, None, stride, 1, 1, 1, False), plain)
        with gs.autocast():
            f64 = k.conv(
                2, x.astype(np.float64), w.astype(np.float64), None, stride, 1, 1, 1, False
            )
        assert np.array_equal(f64, wide)
    finally:
        k.conv_force("")


def test_transposed_and_one_dimensional_convolutions(rounding):
    rng = np.random.default_rng()
    x, w, b = normal(rng, 2, 5, 5, 16), normal(rng, 16, 3, 3, 24), normal(rng, 24)
    with gs.autocast():
        y = F.conv_transpose2d(gs.tensor(x), gs.tensor(w), gs.tensor(b), 2, 1, 1).data
        s, v = normal(rng, 2, 30, 16), normal(rng, 32, 4, 16)
        line = F.conv1d(gs.tensor(s), gs.tensor(v), None, 2, 1).data
    shape = np.zeros((2, 10, 10, 24))
    _, dx, _ = conv_reference(shape, rounded(w), 2, 1, 1, 1, rounded(x))
    assert rms(y - b, dx) <= 1e-6
    sp = np.pad(rounded(s), ((0, 0), (1, 1), (0, 0)))
    want = sum(
        sp[:, i : i + 2 * (line.shape[1] - 1) + 1 : 2] @ rounded(v)[:, i].T for i in range(4)
    )
    assert rms(line, want) <= 1e-6


# ---- the switch
def test_autocast_nests_decorates_and_puts_back():
    assert not gs.is_autocast_enabled()
    with gs.autocast():
        assert gs.is_autocast_enabled()
        with gs.autocast(enabled=False):
            assert not gs.is_autocast_enabled()
            with gs.autocast("bfloat16"):
                assert gs.is_autocast_enabled()
        with gs.autocast("float32"):
            assert not gs.is_autocast_enabled()
        assert gs.is_autocast_enabled()
    with pytest.raises(RuntimeError, match="inside"), gs.autocast():
        raise RuntimeError("inside")
    assert not gs.is_autocast_enabled()

    @gs.autocast()
    def inside(x):
        """Doc."""
        return gs.is_autocast_enabled(), x

    assert inside(3) == (True, 3) and inside.__doc__ == "Doc." and not gs.is_autocast_enabled()


def test_autocast_is_of_its_thread():
    seen = []
    entered, leave = threading.Event(), threading.Event()

    def other():
        with gs.autocast():
            entered.set()
            leave.wait(10)
            seen.append(gs.is_autocast_enabled())

    t = threading.Thread(target=other)
    t.start()
    assert entered.wait(10)
    assert not gs.is_autocast_enabled()
    leave.set()
    t.join()
    assert seen == [True] and not gs.is_autocast_enabled()


def test_errors():
    with pytest.raises(
        ValueError, match=r"autocast: dtype must be one of .*got 'float16'.*scaling"
    ):
        gs.autocast("float16")
    with pytest.raises(ValueError, match="got 'bf16'"):
        gs.autocast("bf16")
    with pytest.raises(TypeError, match="autocast: dtype must be a string"):
        gs.autocast(np.float32)
    with pytest.raises(TypeError, match="enabled must be a bool"):
        gs.autocast(enabled="yes")
    with pytest.raises(TypeError, match="generator"):

        @gs.autocast()
        def items():
            yield 1

    model = gs.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Trainer: precision must be one of"):
        gs.train.Trainer(model, "mse", gs.optim.SGD(model.parameters(), lr=0.1), precision="half")
    with gs.autocast(), pytest.raises(ValueError, match="axes that are summed over"):
        gs.ones(2, 3) @ gs.ones(2, 3)


def test_norms_losses_and_attention_stay_float32():
    rng = np.random.default_rng()
    x = gs.tensor(normal(rng, 4, 6, 16))
    fns = [
        lambda: F.layer_norm(x, (16,)),
        lambda: F.softmax(x, -1),
        lambda: F.mse_loss(x, x * 0.5),
        lambda: F.scaled_dot_product_attention(x, x, x),
        lambda: F.scaled_dot_product_attention(x, x, x, attn_mask=gs.zeros(6, 6, requires_grad=True)),
        lambda: gs.addmm(x[0], gs.zeros(6, 4), gs.zeros(4, 16), beta=1.5),
    ]  # fmt: skip
    for fn in fns:
        plain = fn().data
        with gs.autocast():
            assert np.array_equal(fn().data, plain)


def test_recurrent_and_attention_layers_round_their_projections():
    gs.manual_seed(0)
    rng = np.random.default_rng(3)
    x = gs.tensor(normal(rng, 5, 3, 16))
    for layer, run in (
        (gs.nn.LSTM(16, 16), lambda m: m(x)[0]),
        (gs.nn.GRU(16, 16), lambda m: m(x)[0]),
        (gs.nn.MultiheadAttention(16, 2), lambda m: m(x, x, x)[0]),
    ):
        plain = run(layer)
        with gs.autocast():
            y = run(layer)
        difference = rms(y.data, plain.data)
        assert 1e-5 < difference < 2e-2
        y.sum().backward()
        grads = [p.grad.data.copy() for p in layer.parameters()]
        for p in layer.parameters():
            p.grad = None
        run(layer).sum().backward()
        for p, g in zip(layer.parameters(), grads, strict=True):
            assert rms(g, p.grad.data) < 5e-2


# ---- captured steps
def net():
    gs.manual_seed(1)
    return gs.nn.Sequential(
        gs.nn.Conv2d(8, 16, 3, padding=1), gs.nn.ReLU(), gs.nn.Flatten(), gs.nn.Linear(16 * 36, 10)
    )


def test_captured_steps_have_the_bits_of_eager_ones():
    rng = np.random.default_rng()
    x, y = normal(rng, 8, 6, 6, 8), rng.integers(0, 10, 8)
    losses = {}
    for captured in (False, True):
        model = net()
        step = update_of(model, gs.optim.AdamW(model.parameters(), lr=1e-2))
        fn = gs.capture(step) if captured else step
        values = []
        for i in range(24):
            with gs.autocast(enabled=i % 12 < 6):  # each precision is recorded and comes again
                values.append(fn(gs.tensor(x), gs.tensor(y)).item())
        losses[captured] = values
        if captured:
            assert len(fn.programs) == 2 and all(p["replays"] > 0 for p in fn.programs)
    assert losses[False] == losses[True]


def test_autocast_inside_a_captured_function():
    model = net()

    @gs.capture
    def predict(x):
        with gs.no_grad(), gs.autocast():
            return model(x)

    x = gs.tensor(normal(np.random.default_rng(), 4, 6, 6, 8))
    first = predict(x).data.copy()
    for _ in range(5):
        assert np.array_equal(predict(x).data, first)
    with gs.autocast():
        assert np.array_equal(model(x).data, first)
    assert not np.array_equal(model(x).data, first)


# ---- training
def digits(count: int) -> tuple:
    """The first training images, and the test set."""
    train, test = gs.data.digits()
    (x, y), rest = (np.asarray(a) for a in train.arrays), tuple(np.asarray(a) for a in test.arrays)
    return (x[:count], y[:count]), rest


@pytest.mark.parametrize("kind", ["mlp", "lenet"])
def test_trains_as_well_as_float32(kind):
    train, test = digits(1500)
    accuracy = {}
    for precision in ("float32", "bfloat16"):
        gs.manual_seed(0)
        if kind == "mlp":
            model = gs.nn.Sequential(
                gs.nn.Flatten(), gs.nn.Linear(64, 64), gs.nn.ReLU(), gs.nn.Linear(64, 10)
            )
        else:
            model = gs.nn.Sequential(
                gs.nn.Conv2d(1, 16, 3, padding=1), gs.nn.ReLU(), gs.nn.MaxPool2d(2),
                gs.nn.Conv2d(16, 32, 3, padding=1), gs.nn.ReLU(), gs.nn.MaxPool2d(2),
                gs.nn.Flatten(), gs.nn.Linear(128, 64), gs.nn.ReLU(), gs.nn.Linear(64, 10),
            )  # fmt: skip
        optimizer = gs.optim.Adam(model.parameters(), lr=3e-3)
        trainer = gs.train.Trainer(
            model, "cross_entropy", optimizer, metrics=["accuracy"], precision=precision
        )
        trainer.fit(train, epochs=8, batch_size=50, progress=False)
        assert all(p.data.dtype == np.float32 for p in model.parameters())
        assert not gs.is_autocast_enabled()
        accuracy[precision] = trainer.evaluate(test)["accuracy"]
    assert accuracy["float32"] > 0.9
    assert abs(accuracy["float32"] - accuracy["bfloat16"]) <= 0.02


@pytest.mark.parametrize("capture", [False, True])
def test_trainer_resumes_to_the_same_bits(tmp_path, capture):
    (x, y), _ = digits(200)

    def make():
        gs.manual_seed(3)
        model = gs.nn.Sequential(
            gs.nn.Flatten(), gs.nn.Linear(64, 32), gs.nn.ReLU(), gs.nn.Linear(32, 10)
        )
        optimizer = gs.optim.AdamW(model.parameters(), lr=1e-2)
        return model, gs.train.Trainer(
            model, "cross_entropy", optimizer, capture=capture, precision="bfloat16"
        )

    whole, trainer = make()
    trainer.fit((x, y), epochs=4, progress=False)
    _, first = make()
    first.fit((x, y), epochs=2, progress=False)
    path = tmp_path / "state.safetensors"
    first.save(path)
    state = gs.load(path)
    assert {v.data.dtype for n, v in state.items() if "weight" in n and hasattr(v, "data")} <= {
        np.dtype(np.float32)
    }
    model, second = make()
    second.fit((x, y), epochs=4, progress=False, resume=path)
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        assert np.array_equal(a.data, b.data)


# ---- every instruction set
@pytest.mark.skipif(bool(os.environ.get("GRADSMITH_ISA")), reason="one was asked for")
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_products_on_other_instruction_sets(isa):
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", __file__]
    command += [
        "-k",
        "product_of_rounded or convolution or batches or rounding or caches or captured",
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "GRADSMITH_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
