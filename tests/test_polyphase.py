"""Convolutions of stride 2 by Winograd products of their phases: against float64, threads, bounds, the choice."""

import os
import subprocess
import sys

import numpy as np
import pytest
from test_conv import guarded, naive, naive_grads

import gradsmith as gs
import gradsmith.nn.functional as F
from gradsmith import _cpu as k

ONE = ((1, 1), (1, 1))

pytestmark = pytest.mark.usefixtures("conv_choice")


def shapes(rng, count):
    """(n, h, w, channels, filters, pad): maps from one output on, channels about the vectors and groups."""
    found = [(2, 16, 16, 64, 64, ONE), (1, 30, 41, 17, 33, ONE), (33, 8, 8, 70, 130, ONE)]
    # one output; a last row and column that no tap meets; many tiles; several rounds of images
    found += [(3, 1, 1, 20, 16, ONE), (2, 10, 12, 16, 20, ((0, 0), (0, 0)))]
    found += [(130, 3, 5, 3, 17, ONE), (9, 33, 32, 24, 65, ((2, 1), (1, 2)))]
    while len(found) < count:
        n = int(rng.choice([1, 2, 3, 34]))
        h, w = (int(v) for v in rng.integers(1, 9 if n == 34 else 26, 2))
        c, f = (int(v) for v in rng.choice([1, 3, 8, 16, 17, 32, 33, 64, 65, 100, 129], 2))
        pad = tuple((int(a), int(b)) for a, b in rng.integers(0, 3, (2, 2)))
        if h + sum(pad[0]) >= 3 and w + sum(pad[1]) >= 3:
            found.append((n, h, w, c, f, pad))
    return found


def rms(a, ref):
    return np.sqrt(np.mean((a - ref) ** 2) / max(np.mean(ref**2), 1e-30))


def passes(x, dy, w, b, args):
    return [
        k.conv(2, x, w, b, *args, False),
        k.conv(2, x, w, b, *args, True),
        k.conv(2, x, w, None, *args, False),
        k.conv_backward_data(2, dy, w, x.shape, *args),
        *k.conv_backward_weight(2, x, dy, w.shape, *args, True),
        *k.conv_backward(2, x, dy, w, *args, True, True, True),
    ]


@pytest.mark.parametrize("l2", [0, 1 << 14, 1 << 18])
def test_against_float64(l2, rng):
    """Every result; small pretended caches give many blocks, slices and rounds."""
    k.conv_force("polyphase", l2)
    for n, h, w, c, f, pad in shapes(rng, 17):
        x, wt, b = (
            rng.standard_normal(s, dtype=np.float32) for s in ((n, h, w, c), (f, 3, 3, c), (f,))
        )
        args = ((2, 2), pad, (1, 1), 1)
        y = naive(x, wt, b, *args)
        dy = rng.standard_normal(y.shape, dtype=np.float32)
        dx, dw, db = naive_grads(x, wt, dy, *args)
        refs = [y, np.maximum(y, 0), y - b.astype(np.float64), dx, dw, db, dx, dw, db]
        sx, sw, sd = 9 * f, dy.size / f, 9 * c  # products of order one in a sum
        for i, (ours, ref, terms) in enumerate(
            zip(passes(x, dy, wt, b, args), refs, [sd] * 3 + [sx, sw, sw] * 2)
        ):
            assert ours.shape == ref.shape and ours.dtype == np.float32
            error = np.sqrt(np.mean((ours - ref) ** 2)) / np.sqrt(terms)
            assert error <= 1.5e-6, (i, error, n, h, w, c, f, pad)


def test_float64_and_other_problems_are_left_to_direct(rng):
    w = rng.standard_normal((20, 3, 3, 24))
    for stride, dilation, dtype in (
        (2, 1, np.float64),
        (1, 2, np.float32),
        ((2, 1), 1, np.float32),
    ):
        x = rng.standard_normal((3, 11, 12, 24)).astype(dtype)
        results = []
        for name in ("direct", "polyphase"):
            k.conv_force(name)
            results.append(k.conv(2, x, w.astype(dtype), None, stride, 1, dilation, 1, False))
        np.testing.assert_array_equal(*results)


def test_transposed(rng):
    """The bias and the three passes of conv_transpose2d as its direct form has them."""
    x, w, b = (
        rng.standard_normal(s, dtype=np.float32) for s in ((3, 9, 10, 18), (18, 3, 3, 33), (33,))
    )
    for padding, more in ((1, 0), (1, 1), (0, 1), (2, 0)):
        results = []
        for force in ("direct", "polyphase"):
            k.conv_force(force)
            ts = [gs.tensor(v, requires_grad=True) for v in (x, w, b)]
            y = F.conv_transpose2d(*ts, stride=2, padding=padding, output_padding=more)
            (y * y).sum().backward()
            results.append([y.detach().numpy(), *(t.grad.numpy() for t in ts)])
        for a, ref in zip(*results):
            assert rms(a, ref) <= 3e-6


def test_threads_give_the_same_bits(rng):
    for l2 in (0, 1 << 15, 1 << 18):
        k.conv_force("polyphase", l2)
        for n, h, w, c, f, pad in [*shapes(rng, 9), (20, 32, 32, 32, 48, ONE)]:
            x, wt, b = (
                rng.standard_normal(s, dtype=np.float32) for s in ((n, h, w, c), (f, 3, 3, c), (f,))
            )
            args = ((2, 2), pad, (1, 1), 1)
            dy = k.conv(2, x, wt, b, *args, False)
            results = []
            for threads in (1, 2, 3):
                gs.set_num_threads(threads)
                results.append([a.tobytes() for a in passes(x, dy, wt, b, args)])
            assert results[0] == results[1] == results[2], (l2, n, h, w, c, f, pad)


def test_nothing_outside_of_the_arguments_is_read(rng):
    k.conv_force("polyphase")
    for n, h, w, c, f, pad in shapes(rng, 12):
        x, wt, b = (
            rng.standard_normal(s, dtype=np.float32) for s in ((n, h, w, c), (f, 3, 3, c), (f,))
        )
        args = ((2, 2), pad, (1, 1), 1)
        dy = k.conv(2, x, wt, b, *args, False)
        ours = passes(*(guarded(a) for a in (x, dy, wt, b)), args)
        for a, ref in zip(ours, passes(x, dy, wt, b, args)):
            np.testing.assert_array_equal(a, ref)


@pytest.mark.parametrize("channels,size", [(64, 32), (512, 8)])
def test_error_of_the_default(channels, size, rng):
    """He weights and ReLU inputs: at most 1.2e-6 of the root mean square."""
    x = np.maximum(rng.standard_normal((8, size, size, channels), dtype=np.float32), 0)
    w = rng.standard_normal((channels, 3, 3, channels), dtype=np.float32)
    w *= np.float32(np.sqrt(2 / (9 * channels)))
    dy = rng.standard_normal((8, size // 2, size // 2, channels), dtype=np.float32)
    args = ((2, 2), ONE, (1, 1), 1)
    ref = [naive(x, w, None, *args), *naive_grads(x, w, dy, *args)[:2]]
    k.conv_force("polyphase")
    ours = [
        k.conv(2, x, w, None, *args, False),
        *k.conv_backward(2, x, dy, w, *args, True, True, False)[:2],
    ]
    for a, r in zip(ours, ref):
        assert rms(a, r) <= 1.2e-6


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values_come_through(special, rng):
    """What sums them is not finite; tiles that do not see them are as without."""
    k.conv_force("polyphase")
    x, w = (rng.standard_normal(s, dtype=np.float32) for s in ((2, 24, 24, 20), (18, 3, 3, 20)))
    args = ((2, 2), ONE, (1, 1), 1)
    dy = rng.standard_normal((2, 12, 12, 18), dtype=np.float32)
    before = k.conv(2, x, w, None, *args, False), k.conv_backward_data(2, dy, w, x.shape, *args)
    x[1, 11, 11, 3] = special
    y = k.conv(2, x, w, None, *args, False)
    assert not np.isfinite(y[1, 5:7, 5:7]).any()
    y[1, 4:8, 4:8] = before[0][1, 4:8, 4:8]
    np.testing.assert_array_equal(y, before[0])
    dw, _ = k.conv_backward_weight(2, x, dy, w.shape, *args, False)
    # at odd rows and columns the middle taps do not see it
    assert not np.isfinite(dw[:, ::2, ::2, 3]).any() and np.isfinite(dw[..., :3]).all()
    assert np.isfinite(dw[:, 1, :, 3]).all() and np.isfinite(dw[:, :, 1, 3]).all()
    dy[1, 5, 5, 3] = special
    dx = k.conv_backward_data(2, dy, w, x.shape, *args)
    assert not np.isfinite(dx[1, 9:12, 9:12]).any()
    dx[1, 7:16, 7:16] = before[1][1, 7:16, 7:16]
    np.testing.assert_array_equal(dx, before[1])


CHOICES = """
import numpy as np
from gradsmith import _cpu as k
import gradsmith as gs
def run(n, size, c, f, stride=2, dtype="float32"):
    x, w = np.ones((n, size, size, c), dtype), np.ones((f, 3, 3, c), dtype)
    y = k.conv(2, x, w, None, stride, 1, 1, 1, False)
    k.conv_backward(2, x, y, w, stride, 1, 1, 1, True, True, False)
run(32, 32, 64, 128)
run(32, 8, 256, 512)
run(8, 32, 3, 64)
run(32, 32, 64, 128, dtype="float64")
run(32, 2, 64, 64)
gs.set_conv_precision("strict")
run(32, 32, 64, 128)
"""


def test_choices_are_sensible_and_explained():
    env = {**os.environ, "GRADSMITH_VERBOSE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", CHOICES], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    lines = [line for line in out.stderr.splitlines() if line.startswith("gradsmith: conv ")]
    one = [line for line in lines if " backward: " not in line]
    taken = [line.split(": ")[2].split(" ")[0] for line in one]
    assert taken == ["polyphase"] * 6 + ["direct"] * 12
    assert "winograd" in one[0] and "cycles, direct" in one[0] and "strict" in one[-1]
