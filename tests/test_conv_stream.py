"""The convolution that reads its weights where they lie: few pixels, every ISA, threads, choice."""

import os
import subprocess
import sys

import numpy as np
import pytest
from test_conv import guarded, naive

import gradsmith as gs
from gradsmith import _cpu as k

pytestmark = pytest.mark.usefixtures("conv_choice")


def cases(rng, count):
    """(n, h, w, channels, filters, kernel, stride, pad, dilation, groups): maps from one pixel on, whole
    chunks of pixels and rests of every size, channels and filters about the vectors."""
    two = (2, 2)
    found = [
        (1, 4, 4, 512, 512, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
        (1, 8, 8, 64, 48, (3, 3), two, ((1, 1), (1, 1)), (1, 1), 1),
        (4, 1, 1, 33, 20, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
        (3, 7, 7, 40, 6, (3, 3), two, ((2, 0), (0, 2)), two, 2),
        (4, 8, 8, 17, 9, (1, 1), two, ((0, 0), (0, 0)), (1, 1), 1),
    ]
    while len(found) < count:
        n, h, w = int(rng.integers(1, 5)), int(rng.integers(1, 9)), int(rng.integers(1, 9))
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        c = groups * int(rng.choice([1, 3, 7, 8, 15, 16, 17, 33, 64, 100]))
        f = groups * int(rng.choice([1, 2, 3, 4, 5, 8, 15, 16, 17, 33]))
        kernel, stride, dilation = (
            tuple(int(v) for v in rng.integers(1, top, 2)) for top in (4, 4, 3)
        )
        pad = tuple((int(a), int(b)) for a, b in rng.integers(0, 3, (2, 2)))
        if all(
            s + sum(q) >= d * (m - 1) + 1
            for s, q, d, m in zip((h, w), pad, dilation, kernel, strict=True)
        ):
            found.append((n, h, w, c, f, kernel, stride, pad, dilation, groups))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_against_float64(seed):
    k.conv_force("stream")
    rng = np.random.default_rng(seed)
    for n, h, w, c, f, kernel, stride, pad, dilation, groups in cases(rng, 25):
        x, wt, b = (rng.standard_normal(s) for s in ((n, h, w, c), (f, *kernel, c // groups), (f,)))
        args = (stride, pad, dilation, groups)
        for dtype, bound in ((np.float64, 1e-14), (np.float32, 1e-6)):
            x_, w_, b_ = (v.astype(dtype) for v in (x, wt, b))
            for bias in (None, b_):
                y = naive(x_, w_, bias, *args)
                got = k.conv(2, x_, w_, bias, *args, False)
                assert got.dtype == dtype and got.shape == y.shape
                # terms of order one: the error of a sum grows with the root of their number
                size = np.sqrt(wt[0].size + 1)
                np.testing.assert_allclose(got, y, rtol=0, atol=8 * bound * size)
                relu = k.conv(2, x_, w_, bias, *args, True)
                np.testing.assert_array_equal(relu, np.maximum(got, 0))


def test_exact_on_integers(rng):
    k.conv_force("stream")
    for n, h, w, c, f, kernel, stride, pad, dilation, groups in cases(rng, 30):
        x, wt, b = (
            rng.integers(-3, 4, s).astype(np.float32)
            for s in ((n, h, w, c), (f, *kernel, c // groups), (f,))
        )
        args = (stride, pad, dilation, groups)
        np.testing.assert_array_equal(k.conv(2, x, wt, b, *args, False), naive(x, wt, b, *args))


def test_threads_and_the_batch_change_no_bit(rng):
    k.conv_force("stream")
    for n, h, w, c, f, kernel, stride, pad, dilation, groups in cases(rng, 12):
        x = rng.standard_normal((n, h, w, c), dtype=np.float32)
        wt = rng.standard_normal((f, *kernel, c // groups), dtype=np.float32)
        args = (stride, pad, dilation, groups)
        found = set()
        for threads in (1, 2, 3):
            gs.set_num_threads(threads)
            found.add(k.conv(2, x, wt, None, *args, False).tobytes())
        found.add(b"".join(k.conv(2, v[None], wt, None, *args, False).tobytes() for v in x))
        assert len(found) == 1


def test_nothing_outside_of_the_arguments_is_read(rng):
    k.conv_force("stream")
    for n, h, w, c, f, kernel, stride, pad, dilation, groups in cases(rng, 12):
        x, wt, b = (
            guarded(rng.standard_normal(s, dtype=np.float32))
            for s in ((n, h, w, c), (f, *kernel, c // groups), (f,))
        )
        y = k.conv(2, x, wt, b, stride, pad, dilation, groups, False)
        assert np.isfinite(y).all()


def test_nan_and_infinity_reach_their_pixels_only(rng):
    k.conv_force("stream")
    x = rng.standard_normal((1, 4, 4, 20), dtype=np.float32)
    wt = rng.standard_normal((5, 3, 3, 20), dtype=np.float32)
    x[0, 0, 0, 7], x[0, 3, 3, 2] = np.nan, np.inf
    y = k.conv(2, x, wt, None, 1, 1, 1, 1, True)
    reached = np.isnan(y).all(-1)
    expected = np.zeros((1, 4, 4), bool)
    expected[0, :2, :2] = True
    np.testing.assert_array_equal(reached, expected)
    assert not np.isfinite(y[0, 2:, 2:]).all() and np.isfinite(y[0, 2:, :2]).all()


def test_gradients_do_not_use_it(rng):
    """Forced, a backward pass takes what it takes otherwise."""
    x, dy = (rng.standard_normal((1, 4, 4, 24), dtype=np.float32) for _ in range(2))
    w = rng.standard_normal((24, 3, 3, 24), dtype=np.float32)
    free = k.conv_backward(2, x, dy, w, 1, 1, 1, 1, True, True, True)
    k.conv_force("stream")
    forced = k.conv_backward(2, x, dy, w, 1, 1, 1, 1, True, True, True)
    for a, b in zip(free, forced, strict=True):
        np.testing.assert_array_equal(a, b)


CHOICES = """
import numpy as np
from gradsmith import _cpu as k
def run(n, size, c, f, kernel=3, stride=1):
    x, w = np.ones((n, size, size, c), "float32"), np.ones((f, kernel, kernel, c), "float32")
    k.conv(2, x, w, None, stride, kernel // 2, 1, 1, False)
run(1, 4, 512, 512)
run(1, 8, 256, 512, 3, 2)
run(1, 2, 256, 256)
run(1, 32, 64, 64)
run(32, 4, 512, 512)
run(8, 4, 512, 512)
"""


@pytest.mark.skipif(k.isa() in ("base", "neon"), reason="the estimate is for wide vectors")
def test_few_pixels_of_many_channels_take_it():
    env = {**os.environ, "GRADSMITH_VERBOSE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", CHOICES], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    lines = [line for line in out.stderr.splitlines() if line.startswith("gradsmith: conv ")]
    taken = [line.split(" forward: ")[1].split(" ")[0] for line in lines]
    assert taken[0] == taken[2] == "stream" and taken[1] in ("stream", "direct")
    assert "stream" not in taken[3:]
    assert "(stream" in lines[0] and "next" in lines[0]


def test_captured_inference_sees_changed_weights(rng):
    """Nothing of the weights is kept between calls; the ReLU behind goes into the kernel."""
    conv = gs.nn.Conv2d(512, 64, 3, padding=1)
    x = gs.tensor(rng.standard_normal((1, 2, 2, 512), dtype=np.float32))

    def forward(a):
        with gs.no_grad():
            return gs.relu(conv(a))

    step = gs.capture(forward)
    for i in range(5):
        conv.weight.data[...] = rng.standard_normal(conv.weight.shape, dtype=np.float32) * (i + 1)
        expected = np.asarray(forward(x).data).copy()
        np.testing.assert_array_equal(np.asarray(step(x).data), expected)
        ref = naive(x.data, conv.weight.data, conv.bias.data, (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
        np.testing.assert_allclose(expected, np.maximum(ref, 0), rtol=1e-4, atol=1e-3 * (i + 1))
    if k.isa() not in ("base", "neon"):
        assert "conv_stream_forward" in step.report(1)
        assert "with the ReLU behind it" in step.report(1)
