"""Winograd products of the phases of a 3 x 3 convolution of stride 2, with operands rounded to bfloat16
in its own domain. The reference does the same in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from test_bfloat16 import conv_reference, normal, rms, rounded
from test_conv import guarded

import gradsmith as gs
import gradsmith.nn.functional as F
from gradsmith import _cpu as k

NAME = "bfloat16_polyphase"
needs_pairs = pytest.mark.skipif(
    k.isa() not in ("avx512bf16", "amx"), reason="no instruction for pairs of bfloat16"
)
pytestmark = pytest.mark.usefixtures("conv_choice")

# The rounding of the direct sum, rms, and this one's beside it for white noise, as in
# test_winograd_bfloat16.py: a plane that is not transformed adds nothing to the direct sum's.
DIRECT = 2.4e-3
FACTOR = 2.35

# Nine planes in one direction: five of F(4, 2) on the even inputs, four of the odd ones as they are.
a, b = 0.5, 1.25
c = 1 / (2 * (b * b - a * a))
INPUT, OUTPUT, FILTER = np.zeros((9, 9)), np.zeros((4, 9)), np.zeros((9, 3))
INPUT[:5, ::2] = [[-a * b * b, -b * b, a, 1, 0], [a * b * b, -b * b, -a, 1, 0], [-b * a * a, -a * a, b, 1, 0], [b * a * a, -a * a, -b, 1, 0], [a * a * b * b, 0, -a * a - b * b, 0, 1]]  # fmt: skip
OUTPUT[:, :5] = [[1, 1, 1, 1, 0], [a, -a, b, -b, 0], [a * a, a * a, b * b, b * b, 0], [a**3, -(a**3), b**3, -(b**3), 1]]  # fmt: skip
FILTER[:5, ::2] = [[-c / a, -c], [c / a, -c], [c / b, c], [-c / b, c], [0, 1]]
INPUT[5:, 1::2] = OUTPUT[:, 5:] = np.eye(4)
FILTER[5:, 1] = 1


def reference(x, w, g, pad):
    """y, dx, dw in float64 with the operands of all products of planes rounded."""
    n, h, v, c = x.shape
    p, q, f = g.shape[1:]
    rows, cols = -(-p // 4), -(-q // 4)
    xp = np.zeros((n, max(h + pad, rows * 8 + 1), max(v + pad, cols * 8 + 1), c))
    inside = (slice(None), slice(pad, pad + h), slice(pad, pad + v))
    xp[inside] = x
    gp = np.zeros((n, rows * 4, cols * 4, f))
    gp[:, :p, :q] = g
    u = rounded(np.einsum("ia,kabc,jb->ijck", FILTER, w.astype(np.float64), FILTER))
    y, dxp, du = np.zeros_like(gp), np.zeros_like(xp), np.zeros((9, 9, f, c))
    for i in range(rows):
        for j in range(cols):
            tile = (slice(None), slice(8 * i, 8 * i + 9), slice(8 * j, 8 * j + 9))
            out = (slice(None), slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4))
            dv = rounded(np.einsum("ia,tabc,jb->ijtc", INPUT, xp[tile], INPUT))
            dm = rounded(np.einsum("ai,tabk,bj->ijtk", OUTPUT, gp[out], OUTPUT))
            y[out] = np.einsum("ai,ijtk,bj->tabk", OUTPUT, dv @ u, OUTPUT)
            dxp[tile] += np.einsum("ia,ijtc,jb->tabc", INPUT, dm @ u.transpose(0, 1, 3, 2), INPUT)
            du += dm.transpose(0, 1, 3, 2) @ dv
    dw = np.einsum("ia,ijkc,jb->kabc", FILTER, du, FILTER)
    return y[:, :p, :q], dxp[inside], dw


def ours(x, w, g, pad):
    args = (2, pad, 1, 1)
    with gs.autocast():
        y = k.conv(2, x, w, None, *args, False)
        return y, *k.conv_backward(2, x, g, w, *args, True, True, True)


def problem(rng, n, h, v, c, f, pad):
    g = normal(rng, n, (h + 2 * pad - 3) // 2 + 1, (v + 2 * pad - 3) // 2 + 1, f)
    return normal(rng, n, h, v, c), normal(rng, f, 3, 3, c), g


CASES = [  # n, h, w, channels, filters, padding
    (2, 16, 16, 64, 64, 1),
    (5, 17, 14, 64, 80, 1),
    (3, 13, 10, 100, 200, 1),  # several panels, no whole groups
    (1, 7, 7, 33, 17, 1),  # odd channels and filters: half a pair
    (1, 5, 6, 9, 8, 2),
    (2, 9, 12, 24, 40, 0),  # a last column that no tap meets
    (33, 8, 8, 136, 264, 1),  # more than a group of channels, by filters
    (1, 1, 1, 16, 16, 1),  # one output
    (1, 3, 30, 8, 100, 1),
    (40, 6, 6, 48, 72, 1),
    (2, 10, 10, 400, 16, 1),  # sums in several chains
    (12, 32, 31, 32, 24, 0),  # tiles that are interleaved in several parts
]


@needs_pairs
@pytest.mark.parametrize("l2", [0, 1 << 14, 1 << 18])
@pytest.mark.parametrize("case", CASES)
def test_products_of_rounded_planes(case, l2):
    x, w, g = problem(np.random.default_rng(), *case)
    k.conv_force(NAME, l2)
    results = []
    for threads in (1, 2, 3):
        with gs.threads(threads):
            results.append(ours(x, w, g, case[-1]))
    for other in results[1:]:
        assert all(np.array_equal(p, q) for p, q in zip(results[0], other, strict=True))
    # What float32 computes on the other side of a tie, as in test_winograd_bfloat16.py.
    n, p, q, f = g.shape
    values = 81 * n * -(-p // 4) * -(-q // 4) * min(x.shape[-1], f)
    bound = max(1e-3, FACTOR * DIRECT * np.sqrt(12 * 4 / values))
    for got, want in zip(results[0], reference(x, w, g, case[-1])):
        assert rms(got, want) <= bound
    assert rms(results[0][3], g.astype(np.float64).sum((0, 1, 2))) <= 1e-6


@needs_pairs
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("n,size,c", [(16, 32, 64), (16, 16, 128), (16, 8, 256)])
def test_error_against_float64(n, size, c, relu):
    k.conv_force(NAME)
    x, w, g = problem(np.random.default_rng(), n, size, size, c, c, 1)
    if relu:
        x = np.maximum(x, 0)
    w *= np.float32(np.sqrt(2 / (9 * c)))
    want = conv_reference(x, w, 2, 1, 1, 1, g)
    # Taps outside of the image add nothing to the result, but their tiles are rounded as others.
    seen = np.sqrt(3 * size / (3 * size - 2)) ** 2
    for got, r in zip(ours(x, w, g, 1), want):
        assert rms(got, r) <= 1.05 * DIRECT * FACTOR * seen


@needs_pairs
def test_nothing_outside_of_the_arguments_is_read():
    rng = np.random.default_rng()
    for l2 in (0, 1 << 14):
        k.conv_force(NAME, l2)
        for case in CASES:
            arrays = problem(rng, *case)
            want = ours(*arrays, case[-1])
            got = ours(*(guarded(t) for t in arrays), case[-1])
            assert all(np.array_equal(p, q) for p, q in zip(got, want, strict=True))


@needs_pairs
def test_empty_batch_and_one_image():
    k.conv_force(NAME)
    w = np.ones((20, 3, 3, 17), np.float32)
    x = np.ones((0, 8, 8, 17), np.float32)
    y, dx, dw, db = ours(x, w, np.ones((0, 4, 4, 20), np.float32), 1)
    assert y.shape == (0, 4, 4, 20) and dx.shape == x.shape and not dw.any() and not db.any()


@needs_pairs
def test_what_is_not_finite_stays_so():
    k.conv_force(NAME)
    rng = np.random.default_rng()
    for bad in (np.nan, np.inf, -np.inf):
        x, w, g = problem(rng, 3, 24, 24, 33, 40, 1)
        clean = ours(x, w, g, 1)
        x[1, 11, 11, 32] = bad
        y, dx, dw, db = ours(x, w, g, 1)
        assert not np.isfinite(y[1, 5:7, 5:7]).any()
        y[1, 4:8, 4:8] = clean[0][1, 4:8, 4:8]
        assert np.array_equal(y, clean[0]) and np.array_equal(dx, clean[1])
        # at odd rows and columns the middle taps do not see it
        assert not np.isfinite(dw[:, ::2, ::2, 32]).any() and np.isfinite(dw[..., :32]).all()
        assert np.array_equal(db, clean[3])


@needs_pairs
def test_bias_relu_and_what_is_wanted():
    k.conv_force(NAME)
    rng = np.random.default_rng()
    x, w, g = problem(rng, 3, 10, 9, 24, 33, 1)
    bias = normal(rng, 33)
    y, dx, dw, db = ours(x, w, g, 1)
    with gs.autocast():
        full = k.conv(2, x, w, bias, 2, 1, 1, 1, True)
        assert np.array_equal(full, np.maximum(y + bias, 0))
        for want in ((True, False, False), (False, True, False), (False, True, True)):
            got = k.conv_backward(2, x, g, w, 2, 1, 1, 1, *want)
            for wanted, part, whole in zip(want, got, (dx, dw, db), strict=True):
                assert not wanted or np.array_equal(part, whole)


@needs_pairs
def test_captured_as_eager():
    """With the statistics of a norm behind it, the ReLU's gradient before it, and as it is."""
    k.conv_force(NAME)
    rng = np.random.default_rng()
    x, g = normal(rng, 4, 16, 16, 32), normal(rng, 4, 4, 4, 48)
    w, v = normal(rng, 40, 3, 3, 32) * 0.1, normal(rng, 48, 3, 3, 40) * 0.1

    def run(threads, capture):
        arrays = (x, w, v, np.ones(40, np.float32), np.zeros(40, np.float32))
        leaves = [gs.tensor(t, requires_grad=True) for t in arrays]

        def step(g):
            for leaf in leaves:
                leaf.grad = None
            x, w, v, scale, shift = leaves
            y = F.conv2d(F.relu(x), w, None, 2, 1)
            y = F.relu(F.batch_norm(y, None, None, scale, shift, True))
            y = F.relu(F.conv2d(y, v, None, 2, 1))
            y.backward(g)
            return [y, *(leaf.grad for leaf in leaves)]

        f = gs.capture(step) if capture else step
        with gs.autocast(), gs.threads(threads):
            for _ in range(6):
                out = [t.data.copy() for t in f(gs.tensor(g))]
        return out, f.report(1) if capture else ""

    results, reports = zip(run(2, False), *(run(threads, True) for threads in (1, 2, 3)))
    for other in results[1:]:
        assert all(np.array_equal(p, q) for p, q in zip(results[0], other, strict=True))
    for report in reports[1:]:
        assert "conv_bf16_polyphase_forward" in report and "with the statistics" in report
        assert "conv_bf16_polyphase_backward_data" in report and "the ReLU's gradient" in report


CHOICES = """
import numpy as np
from gradsmith import _cpu as k
import gradsmith as gs
def run(n, size, c, f):
    x, w = np.ones((n, size, size, c), "float32"), np.ones((f, 3, 3, c), "float32")
    with gs.autocast():
        y = k.conv(2, x, w, None, 2, 1, 1, 1, False)
        k.conv_backward(2, x, y, w, 2, 1, 1, 1, True, True, False)
run(32, 16, 128, 256)
run(32, 8, 256, 512)
run(2, 8, 32, 32)
gs.set_conv_precision("strict")
run(32, 16, 128, 256)
"""


def twice_as_fast():
    if k.isa() != "avx512bf16" or not os.path.exists("/proc/cpuinfo"):
        return False
    with open("/proc/cpuinfo") as f:
        return "AuthenticAMD" in f.read()


@pytest.mark.skipif(not twice_as_fast(), reason="pairs are no faster than float32")
def test_choices_are_sensible():
    env = {**os.environ, "GRADSMITH_VERBOSE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", CHOICES], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    lines = [line for line in out.stderr.splitlines() if line.startswith("gradsmith: conv ")]
    taken = [s.split(": ")[2].split(" ")[0] for s in lines if " backward: " not in s]
    assert taken == [NAME] * 6 + ["bfloat16"] * 6
