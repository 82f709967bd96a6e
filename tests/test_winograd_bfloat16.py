"""Winograd with operands rounded to bfloat16 in its own domain: autocast's 3 x 3 convolutions where
a pair of them multiplies at twice the rate. The reference does the same in float64."""

from __future__ import annotations

import numpy as np
import pytest
from test_bfloat16 import conv_reference, normal, rms, rounded

import gradsmith as gs
import gradsmith.nn.functional as F
from gradsmith import _cpu as k

NAME = "bfloat16_winograd4"
needs_pairs = pytest.mark.skipif(
    k.isa() not in ("avx512bf16", "amx"), reason="no instruction for pairs of bfloat16"
)

# The rounding of the direct sum, rms: two factors, each of a uniform error in half a unit of 8 bits.
DIRECT = 2.4e-3
# Winograd's beside it for white noise: sum over planes of (A^T B^T G)^2 in one direction, the root
# of its square in two.
FACTOR = 5.03

a, b = np.sqrt(0.5), np.sqrt(2.0)
ZERO = [0.0] * 6
INPUT = np.array([[1, 0, -2.5, 0, 1, 0], [0, -2 * a, -2, a, 1, 0], [0, 2 * a, -2, -a, 1, 0], [0, -b / 2, -0.5, b, 1, 0], [0, b / 2, -0.5, -b, 1, 0], [0, 1, 0, -2.5, 0, 1]])  # fmt: skip
OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, a, -a, b, -b, 0], [0, 0.5, 0.5, 2, 2, 0], [0, a / 2, -a / 2, 2 * b, -2 * b, 1]])  # fmt: skip
FILTER = np.array([[1, 0, 0], [-2 / 3, -2 / 3 * a, -1 / 3], [-2 / 3, 2 / 3 * a, -1 / 3], [1 / 6, b / 6, 1 / 3], [1 / 6, -b / 6, 1 / 3], [0, 0, 1]])  # fmt: skip
# of a last row or column of two outputs: without planes 3 and 4
SHORT_INPUT = np.array([[1, 0, -2, 0, 0, 0], [0, -1.5 * a, -1.5, 0, 0, 0], [0, 1.5 * a, -1.5, 0, 0, 0], ZERO, ZERO, [0, -0.5, 0, 1, 0, 0]])  # fmt: skip
SHORT_OUTPUT = np.array([[1, 1, 1, 0, 0, 0], [0, a, -a, 0, 0, 1], ZERO, ZERO])


def reference(x, w, g, pad, short):
    """y, dx, dw in float64 with the operands of all products of planes rounded."""
    n, h, v, c = x.shape
    f, p, q = w.shape[0], h + 2 * pad - 2, v + 2 * pad - 2
    rows, cols = -(-p // 4), -(-q // 4)
    xp = np.zeros((n, rows * 4 + 2, cols * 4 + 2, c))
    inside = (slice(None), slice(pad, pad + h), slice(pad, pad + v))
    xp[:, pad : pad + min(h, rows * 4 + 2 - pad), pad : pad + min(v, cols * 4 + 2 - pad)] = x[:, : rows * 4 + 2 - pad, : cols * 4 + 2 - pad]  # fmt: skip
    gp = np.zeros((n, rows * 4, cols * 4, f))
    gp[:, :p, :q] = g
    u = rounded(np.einsum("ia,kabc,jb->ijck", FILTER, w.astype(np.float64), FILTER))
    y, dxp, du = np.zeros_like(gp), np.zeros_like(xp), np.zeros((6, 6, f, c))
    for i in range(rows):
        few = short and i == rows - 1 and (p - 1) % 4 < 2
        bi, ai = (SHORT_INPUT, SHORT_OUTPUT) if few else (INPUT, OUTPUT)
        for j in range(cols):
            few = short and j == cols - 1 and (q - 1) % 4 < 2
            bj, aj = (SHORT_INPUT, SHORT_OUTPUT) if few else (INPUT, OUTPUT)
            tile = (slice(None), slice(4 * i, 4 * i + 6), slice(4 * j, 4 * j + 6))
            out = (slice(None), slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4))
            dv = rounded(np.einsum("ia,tabc,jb->ijtc", bi, xp[tile], bj))
            dm = rounded(np.einsum("ai,tabk,bj->ijtk", ai, gp[out], aj))
            y[out] = np.einsum("ai,ijtk,bj->tabk", ai, dv @ u, aj)
            dxp[tile] += np.einsum("ia,ijtc,jb->tabc", bi, dm @ u.transpose(0, 1, 3, 2), bj)
            du += dm.transpose(0, 1, 3, 2) @ dv
    dw = np.einsum("ia,ijkc,jb->kabc", FILTER, du, FILTER)
    wide = np.zeros((n, max(h + pad, rows * 4 + 2), max(v + pad, cols * 4 + 2), c))
    wide[:, : rows * 4 + 2, : cols * 4 + 2] = dxp
    return y[:, :p, :q], wide[inside], dw


def ours(x, w, g, pad):
    args = (1, pad, 1, 1)
    with gs.autocast():
        y = k.conv(2, x, w, None, *args, False)
        return y, *k.conv_backward(2, x, g, w, *args, True, True, True)


@pytest.fixture
def forced():
    k.conv_force(NAME)
    yield
    k.conv_force("")
    gs.set_num_threads(gs.get_num_threads())


CASES = [  # n, h, w, channels, filters, padding
    (2, 16, 16, 64, 64, 1),
    (5, 14, 14, 64, 80, 1),  # a last row and column of two
    (3, 13, 10, 100, 200, 1),  # several panels, no whole groups
    (1, 7, 7, 33, 17, 1),  # odd channels and filters: half a pair
    (1, 5, 6, 9, 8, 2),
    (2, 9, 11, 24, 40, 0),
    (6, 4, 4, 136, 264, 1),  # more than a group of channels
    (1, 1, 1, 16, 16, 1),
    (1, 3, 30, 8, 100, 1),
    (11, 6, 6, 48, 72, 1),
    (2, 10, 10, 400, 16, 1),  # sums in several chains
]


@needs_pairs
@pytest.mark.parametrize("l2", [0, 1 << 14, 1 << 17])
@pytest.mark.parametrize("case", CASES)
def test_products_of_rounded_planes(case, l2, forced):
    n, h, v, c, f, pad = case
    rng = np.random.default_rng()
    x, w = normal(rng, n, h, v, c), normal(rng, f, 3, 3, c)
    g = normal(rng, n, h + 2 * pad - 2, v + 2 * pad - 2, f)
    k.conv_force(NAME, l2)
    results = []
    for threads in (1, 2, 3):
        with gs.threads(threads):
            results.append(ours(x, w, g, pad))
    for other in results[1:]:
        assert all(np.array_equal(p, q) for p, q in zip(results[0], other, strict=True))
    # A value that float32 computes on the other side of a tie is rounded away by a unit of 8 bits:
    # some 1e-4 of them, the root of which is what remains. Where there are few, that is up to four: an
    # error of a unit has 12 times the square of one that is uniform in half a unit either way.
    values = 36 * n * -(-g.shape[1] // 4) * -(-g.shape[2] // 4) * min(c, f)
    bound = max(1e-3, FACTOR * DIRECT * np.sqrt(12 * 4 / values))
    both = [reference(x, w, g, pad, short) for short in (True, False)]
    for got, *want in zip(results[0], *both):
        assert min(rms(got, r) for r in want) <= bound
    assert rms(results[0][3], g.astype(np.float64).sum((0, 1, 2))) <= 1e-6


@needs_pairs
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("n,size,c", [(16, 32, 64), (16, 8, 128), (16, 4, 256)])
def test_error_against_float64(n, size, c, relu, forced):
    rng = np.random.default_rng()
    x, g = normal(rng, n, size, size, c), normal(rng, n, size, size, c)
    if relu:
        x = np.maximum(x, 0)
    w = normal(rng, c, 3, 3, c) * np.float32(np.sqrt(2 / (9 * c)))
    want = conv_reference(x, w, 1, 1, 1, 1, g)
    # Taps outside of the image add nothing to the result, but their tiles are rounded as others.
    seen = np.sqrt(3 * size * 3 * size) / (3 * size - 2)
    for i, (got, r) in enumerate(zip(ours(x, w, g, 1), want)):
        # the mean of what a ReLU leaves is in few planes
        factor = FACTOR * (0.85 if relu and i != 1 else 1)
        assert rms(got, r) <= 1.05 * DIRECT * factor * seen


@needs_pairs
def test_what_is_not_finite_stays_so(forced):
    rng = np.random.default_rng()
    for bad in (np.nan, np.inf, -np.inf):
        x, w, g = normal(rng, 3, 12, 12, 33), normal(rng, 40, 3, 3, 33), normal(rng, 3, 12, 12, 40)
        clean = ours(x, w, g, 1)
        x[1, 5, 6, 32] = bad
        y, dx, dw, db = ours(x, w, g, 1)
        assert not np.isfinite(y[1, 4:7, 5:8]).any() and not np.isfinite(dw[:, :, :, 32]).any()
        for i in (0, 2):
            assert np.array_equal(y[i], clean[0][i])
        assert np.array_equal(dx, clean[1]) and np.isfinite(dw[:, :, :, :32]).all()
        assert np.array_equal(db, clean[3])


@needs_pairs
def test_bias_relu_and_what_is_wanted(forced):
    rng = np.random.default_rng()
    x, w, bias = normal(rng, 3, 10, 9, 24), normal(rng, 33, 3, 3, 24), normal(rng, 33)
    g = normal(rng, 3, 10, 9, 33)
    y, dx, dw, db = ours(x, w, g, 1)
    with gs.autocast():
        full = k.conv(2, x, w, bias, 1, 1, 1, 1, True)
        assert np.array_equal(full, np.maximum(y + bias, 0))
        for want in ((True, False, False), (False, True, False), (False, True, True)):
            got = k.conv_backward(2, x, g, w, 1, 1, 1, 1, *want)
            for wanted, part, whole in zip(want, got, (dx, dw, db), strict=True):
                assert not wanted or np.array_equal(part, whole)


@needs_pairs
def test_captured_as_eager(forced):
    rng = np.random.default_rng()
    x, g = normal(rng, 4, 8, 8, 32), normal(rng, 4, 4, 4, 48)
    w, v = normal(rng, 32, 3, 3, 32) * 0.1, normal(rng, 48, 3, 3, 32) * 0.1

    def run(capture):
        scale, shift = np.ones(32, np.float32), np.zeros(32, np.float32)
        leaves = [gs.tensor(t, requires_grad=True) for t in (x, w, v, scale, shift)]

        def step(g):  # leaves are no arguments: with such there would be no program
            for leaf in leaves:
                leaf.grad = None
            x, w, v, scale, shift = leaves
            y = F.relu(F.conv2d(x, w, None, 1, 1))
            y = F.conv2d(F.relu(F.batch_norm(y, None, None, scale, shift, True)), v, None, 1, 1)
            y = F.max_pool2d(F.relu(y), 2)
            y.backward(g)
            return [y, *(leaf.grad for leaf in leaves)]

        f = gs.capture(step) if capture else step
        with gs.autocast():
            for _ in range(4):
                out = [t.data.copy() for t in f(gs.tensor(g))]
        if capture:
            assert "conv_bf16_winograd4_pool_backward" in f.report(1)
        return out

    results = [run(False), run(True), run(True)]
    for other in results[1:]:
        assert all(np.array_equal(p, q) for p, q in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("name", "stride"), [(NAME, 1), ("bfloat16_polyphase", 2)])
def test_strict_float32_and_float64_have_no_part_in_it(name, stride):
    rng = np.random.default_rng()
    x, w = normal(rng, 32, 16, 16, 64), normal(rng, 64, 3, 3, 64)
    args = (stride, 1, 1, 1)
    plain = k.conv(2, x, w, None, *args, False)
    wide = k.conv(2, x.astype(np.float64), w.astype(np.float64), None, *args, False)
    k.conv_force(name)
    try:
        assert np.array_equal(k.conv(2, x, w, None, *args, False), plain)
        with gs.autocast():
            double = k.conv(2, x.astype(np.float64), w.astype(np.float64), None, *args, False)
        assert np.array_equal(double, wide)
        k.conv_force("")
        gs.set_conv_precision("strict")
        with gs.autocast():
            y = k.conv(2, x, w, None, *args, False)
        want = conv_reference(x, w, stride, 1, 1, 1, None)[0]
        assert rms(y, want) <= 1.05 * DIRECT
    finally:
        k.conv_force("")
        gs.set_conv_precision("default")
