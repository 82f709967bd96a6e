"""Accuracy of the vector functions, in units in the last place of the exact result, over wide sweeps.

The functions are reached through the activations whose kernel is the bare function. Bounds are those
that csrc/cpu/simd/vmath.h states; the instruction set without fused multiply-add has its own.
"""

import math

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn.functional as F
from gradsmith import _cpu

FUSED = _cpu.isa() != "base"
TINY = 2.0**-126


def sweep(rng, n=400_000):
    """Every exponent and sign, dense near the origin, and the special points."""
    bits = rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = np.concatenate([rng.standard_normal(n) * s for s in (0.05, 1, 8, 40)]).astype(np.float32)
    special = [0.0, -0.0, 1, -1, 88.72283, -88.72284, -103.97, -104, -87.4, 17.4, -17.4, 9.01, 16.0, 1e-45, -1e-45,
               1.1754944e-38, 3.4028235e38, -3.4028235e38, np.inf, -np.inf, np.nan]  # fmt: skip
    return np.concatenate([bits, near, np.array(special, np.float32)])


def ulps(y, exact):
    """|y - exact| in units of the last place of exact (of the smallest normal number below it)."""
    exponent = np.floor(np.log2(np.maximum(np.abs(exact), TINY)))
    return np.abs(y.astype(np.float64) - exact) / 2.0 ** (exponent - 23)


def check(fn, exact_fn, bound, x):
    y = fn(gs.tensor(x)).numpy()
    with np.errstate(all="ignore"):
        exact = exact_fn(x.astype(np.float64))
        rounded = exact.astype(np.float32)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(y[~finite], rounded[~finite])
    error = ulps(y[finite], exact[finite])
    worst = error.argmax()
    assert error[worst] <= bound, f"{error[worst]:.3f} at x = {x[finite][worst]!r}"
    # the sign of zero, where the exact result is zero
    zero = exact == 0
    np.testing.assert_array_equal(np.signbit(y[zero]), np.signbit(exact[zero]))
    return error[worst]


def sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def test_sigmoid(rng):
    x = sweep(rng)
    check(F.sigmoid, sigmoid, 2.5, x[~np.isinf(x)])
    assert F.sigmoid(gs.tensor([np.inf, -np.inf])).tolist() == [1.0, 0.0]


def test_tanh(rng):
    check(F.tanh, np.tanh, 2.0 if FUSED else 2.5, sweep(rng))


def test_expm1(rng):
    x = sweep(rng)
    x = x[~(x > 0)]
    check(F.elu, np.expm1, 1.5 if FUSED else 2.0, x)


def test_exp_and_log1p_through_softplus(rng):
    x = sweep(rng)
    exact = lambda v: np.maximum(v, 0) + np.log1p(np.exp(-np.abs(v)))  # noqa: E731
    check(lambda t: F.softplus(t, 1.0, math.inf), exact, 2.0 if FUSED else 2.5, x)


def test_exp_through_softmax(rng):
    """With a maximum of exactly 0 far above the rest, the numerators are exp(x)."""
    x = -np.abs(sweep(rng))
    x = x[(x < -17.4) & np.isfinite(x)]
    rows = np.stack([np.zeros_like(x), x], 1)
    y = F.softmax(gs.tensor(rows)).numpy()[:, 1]
    exact = np.exp(x.astype(np.float64))
    assert ulps(y, exact).max() <= 1.0 + 0.51
    assert (y[x < -104] == 0).all()


def test_normal_distribution_through_gelu(rng):
    """The lower tail keeps its relative accuracy, unlike 1 + erf."""
    # results just below a power of two, where a relative error is the most units
    first = np.float32(rng.uniform(-1.86, -1.8)).view(np.uint32)
    worst = np.arange(first, first + 40_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([(rng.standard_normal(60_000) * 4).astype(np.float32), worst])
    y = F.gelu(gs.tensor(x)).numpy()
    cdf = np.array([0.5 * math.erfc(-float(v) / math.sqrt(2)) for v in x])
    exact = x.astype(np.float64) * cdf
    error, tail = ulps(y, exact), np.abs(exact) < 1e-3
    assert error[~tail].max() <= (4.0 if FUSED else 6.0)
    assert error.max() <= (8.0 if FUSED else 12.0)
    assert np.abs(y - exact)[tail].max() <= 1e-9


@pytest.mark.slow
def test_wide_sweep_of_tanh_and_sigmoid(rng):
    """Every 16th of all 2^32 arguments, from a random start."""
    first = int(rng.integers(16))
    for start in range(first, 2**32, 2**26):
        x = np.arange(start, min(start + 2**26, 2**32), 16, dtype=np.uint64)
        x = x.astype(np.uint32).view(np.float32)
        check(F.tanh, np.tanh, 2.0 if FUSED else 2.5, x)
        check(F.sigmoid, sigmoid, 2.5, x[~np.isinf(x)])
