"""Dropout: Philox known answers, masks, statistics, gradients, determinism, bad input."""

import math

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F
from gradsmith import _cpu

M32 = 0xFFFFFFFF


def philox(counter, key):
    """Philox4x32-10 on Python integers, from the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & M32, (a >> 32) ^ c[3] ^ k[1], a & M32]
        k = [(k[0] + 0x9E3779B9) & M32, (k[1] + 0xBB67AE85) & M32]
    return c


def words(seed, op, first, n):
    out = []
    for block in range(first // 4, (first + n + 3) // 4):
        out += philox((block & M32, block >> 32, op & M32, op >> 32), (seed & M32, seed >> 32))
    return np.array(out[:n], np.uint64)


def test_known_answers_of_the_generator():
    # Random123, kat_vectors: philox4x32 10
    assert philox((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox((M32,) * 4, (M32,) * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert philox((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)) == [
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
    ]  # fmt: skip
    np.testing.assert_array_equal(
        _cpu.philox(0, 0, 0, 4).view(np.uint32), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    )


@pytest.mark.parametrize("n", [0, 1, 4, 15, 64, 131])
def test_kernel_words(n, rng):
    for _ in range(4):
        seed, op = (int(v) for v in rng.integers(0, 2**63, 2))
        first = int(rng.integers(0, 2**40)) * 4
        np.testing.assert_array_equal(
            _cpu.philox(seed, op, first, n).view(np.uint32), words(seed, op, first, n)
        )
    # the block index carries into its high word inside a vector
    for back in range(1, 12):
        first = (2**32 - back) * 4
        got = _cpu.philox(2**64 - 1, 2**64 - 1, first, n).view(np.uint32)
        np.testing.assert_array_equal(got, words(2**64 - 1, 2**64 - 1, first, n))


SHAPES = [(), (0,), (1,), (3,), (63,), (64,), (65,), (7, 11), (3, 0, 2), (40_001,)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_mask_is_the_documented_function(shape, dtype, rng):
    x = rng.standard_normal(shape).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    n = x.size
    for p in (0.1, 0.5, 0.9):
        gs.manual_seed(77)
        F.dropout(gs.ones(1), p)  # draw 0
        t = gs.tensor(x, requires_grad=True)
        y = F.dropout(t, p)  # draw 1
        y.backward(gs.tensor(dy))
        keep = (words(77, 1, 0, n) >= round(p * 2**32)).reshape(shape)
        scale = dtype(1 / (1 - p))
        np.testing.assert_array_equal(y.detach().numpy(), np.where(keep, x * scale, 0))
        np.testing.assert_array_equal(t.grad.numpy(), np.where(keep, dy * scale, 0))


def test_statistics():
    gs.manual_seed(1)
    n = 2_000_000
    for p in (0.02, 0.3, 0.5, 0.8):
        kept = F.dropout(gs.ones(n), p).numpy() != 0
        sd = math.sqrt(p * (1 - p))
        assert abs(kept.mean() - (1 - p)) < 5 * sd / math.sqrt(n)
        # neighbours at several distances are independent
        z = (kept - (1 - p)) / sd
        for lag in (1, 2, 3, 4, 16, 64, 1024):
            assert abs((z[lag:] * z[:-lag]).mean()) < 5 / math.sqrt(n)
        # the mean is kept
        assert abs(F.dropout(gs.ones(n), p).numpy().mean(dtype=np.float64) - 1) < 5 * sd / (
            1 - p
        ) / math.sqrt(n)
    a = F.dropout(gs.ones(n), 0.5).numpy() != 0
    b = F.dropout(gs.ones(n), 0.5).numpy() != 0
    assert abs((a == b).mean() - 0.5) < 5 * 0.5 / math.sqrt(n)


def test_same_bits_for_threads_and_dtype(rng):
    x = rng.standard_normal((130, 17, 33)).astype(np.float32)
    before = gs.get_num_threads()
    results = []
    for n in (1, 2, 3):
        gs.set_num_threads(n)
        gs.manual_seed(9)
        results.append(
            [
                F.dropout(gs.tensor(x), 0.4).numpy(),
                F.dropout1d(gs.tensor(x), 0.4).numpy(),
                F.alpha_dropout(gs.tensor(x), 0.4, True).numpy(),
            ]
        )
    gs.set_num_threads(before)
    for row in results[1:]:
        for a, b in zip(row, results[0]):
            np.testing.assert_array_equal(a, b)
    gs.manual_seed(9)
    wide = F.dropout(gs.tensor(x.astype(np.float64)), 0.4).numpy()
    np.testing.assert_array_equal(wide != 0, results[0][0] != 0)


def test_state_resumes_the_stream():
    from gradsmith.core import random

    gs.manual_seed(4)
    F.dropout(gs.ones(10))
    state = random.state()
    a = F.dropout(gs.ones(100)).numpy()
    gs.manual_seed(123)
    random.set_state(state)
    np.testing.assert_array_equal(F.dropout(gs.ones(100)).numpy(), a)


def test_edges_of_p(rng):
    x = rng.standard_normal(100).astype(np.float32)
    t = gs.tensor(x, requires_grad=True)
    for fn in (F.dropout, F.alpha_dropout):
        assert fn(t, 0.0, True) is t
        assert fn(t, 0.7, False) is t
        y = fn(t, 1.0, True)
        assert (y.detach().numpy() == 0).all()
        t.grad = None
        y.backward(gs.ones(100))
        assert (t.grad.numpy() == 0).all()
    # dropped elements are zero whatever they were
    z = F.dropout(gs.tensor(np.full(1000, np.nan, np.float32)), 0.5).numpy()
    assert set(np.isnan(z)) == {True, False} and (z[~np.isnan(z)] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 3, 5), (5, 7), (1, 1, 1), (3, 4, 33), (0, 2, 3), (2, 0, 3)])
def test_dropout1d(shape, dtype, rng):
    x = (rng.random(shape) + 0.5).astype(dtype)
    gs.manual_seed(21)
    t = gs.tensor(x, requires_grad=True)
    y = F.dropout1d(t, 0.4)
    y.backward(gs.tensor(np.ones(shape, dtype)))
    n, c = (shape[0] if len(shape) == 3 else 1), shape[-1]
    keep = (words(21, 0, 0, n * c) >= round(0.4 * 2**32)).reshape(n, 1, c)
    keep = np.broadcast_to(keep if len(shape) == 3 else keep[0], shape)
    np.testing.assert_array_equal(y.detach().numpy(), np.where(keep, x * dtype(1 / 0.6), 0))
    np.testing.assert_array_equal(t.grad.numpy(), np.where(keep, dtype(1 / 0.6), 0))


def test_dropout2d(rng):
    x = rng.random((6, 5, 4, 40)).astype(np.float32) + 1
    gs.manual_seed(2)
    y = F.dropout2d(gs.tensor(x), 0.5).numpy()
    kept = y != 0
    assert (kept.all((1, 2)) | (~kept).all((1, 2))).all() and 60 < kept.any((1, 2)).sum() < 180
    np.testing.assert_array_equal(y[kept], x[kept] * 2)
    single = F.dropout2d(gs.tensor(x[0]), 0.5).numpy() != 0
    assert (single.all((0, 1)) | (~single).all((0, 1))).all()
    assert (F.dropout2d(gs.tensor(x), 1.0).numpy() == 0).all()


def test_alpha_dropout_keeps_moments(rng):
    gs.manual_seed(6)
    x = rng.standard_normal(1_000_000).astype(np.float32)
    for p in (0.1, 0.5):
        y = F.alpha_dropout(gs.tensor(x), p, True).numpy().astype(np.float64)
        assert abs(y.mean()) < 0.006 and abs(y.var() - 1) < 0.01
    z = F.feature_alpha_dropout(gs.tensor(x.reshape(50, 200, 100)), 0.5, True).numpy()
    flat = z.max(1) == z.min(1)
    assert 0.45 < flat.mean() < 0.55


def test_alpha_dropout_values(rng):
    x = rng.standard_normal(5000)
    p = 0.3
    gs.manual_seed(8)
    y = F.alpha_dropout(gs.tensor(x), p, True).numpy()
    keep = words(8, 0, 0, x.size) >= round(p * 2**32)
    low = -1.0507009873554805 * 1.6732632423543772
    a = ((1 - p) * (1 + p * low**2)) ** -0.5
    np.testing.assert_allclose(y, a * np.where(keep, x, low) - a * low * p, rtol=1e-12, atol=1e-12)


def test_gradcheck(rng):
    x = gs.tensor(rng.standard_normal((3, 2, 5)), requires_grad=True)

    def seeded(fn, *args):
        def run(t):
            gs.manual_seed(3)
            return fn(t, *args)

        return run

    for fn in (F.dropout, F.dropout1d):
        gs.gradcheck(seeded(fn, 0.4), x)
    for fn in (F.alpha_dropout, F.feature_alpha_dropout):
        gs.gradcheck(seeded(fn, 0.4, True), x)


def test_inplace(rng):
    x = rng.standard_normal((4, 9)).astype(np.float32)
    gs.manual_seed(5)
    want = F.dropout(gs.tensor(x), 0.5).numpy()
    gs.manual_seed(5)
    t = gs.tensor(x)
    assert F.dropout(t, 0.5, inplace=True) is t
    np.testing.assert_array_equal(t.numpy(), want)
    gs.manual_seed(5)
    leaf = gs.tensor(x, requires_grad=True)
    mid = F.threshold(leaf, -1e9, 0.0)
    nn.Dropout(0.5, inplace=True)(mid).backward(gs.ones(4, 9))
    np.testing.assert_array_equal(leaf.grad.numpy() != 0, want != 0)
    with pytest.raises(RuntimeError, match="leaf"):
        F.dropout(gs.tensor(x, requires_grad=True), inplace=True)


def test_layers(rng):
    x = gs.tensor(rng.random((3, 4, 5, 6)).astype(np.float32))
    for layer, arg in (
        (nn.Dropout(0.3), x), (nn.Dropout2d(0.3), x), (nn.Dropout1d(0.3), gs.tensor(x.numpy()[0])), (nn.AlphaDropout(0.3), x),
        (nn.FeatureAlphaDropout(0.3), x),
    ):  # fmt: skip
        assert "p=0.3" in repr(layer)
        assert layer.eval()(arg) is arg
        assert (layer.train()(arg).numpy() != arg.numpy()).any()
        assert list(layer.state_dict()) == []


def test_bad_input():
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="p must lie"):
            F.dropout(gs.ones(2), p)
        with pytest.raises(ValueError, match="p must lie"):
            F.alpha_dropout(gs.ones(2), p, True)
        with pytest.raises(ValueError, match="p must lie"):
            nn.Dropout(p)
    with pytest.raises(TypeError, match="input has dtype int64"):
        F.dropout(gs.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"dropout2d: input has shape \(2, 3\)"):
        F.dropout2d(gs.ones(2, 3))
    with pytest.raises(ValueError, match=r"dropout1d"):
        F.dropout1d(gs.ones(2))
    with pytest.raises(ValueError, match=r"feature_alpha_dropout"):
        F.feature_alpha_dropout(gs.ones(2), 0.5, True)
    with pytest.raises(ValueError, match="channel dropout"):
        _cpu.dropout(np.ones(3, np.float32), 0.5, 0, 0, 1.0, 0.0, 0.0, 2)
