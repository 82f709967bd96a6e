"""Winograd convolutions: against float64, as an adjoint, threads, bounds, the choice of implementation."""

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
    """(n, h, w, channels, filters, pad): maps from one pixel on, channels about the vectors."""
    found = [(2, 8, 8, 64, 64, ONE), (1, 30, 41, 17, 33, ONE), (33, 4, 4, 70, 130, ONE)]
    # so many tiles that blocks of them are taken; the last of an image have one or two outputs
    found += [(64, 14, 13, 16, 20, ONE), (1030, 2, 2, 3, 17, ONE)]
    while len(found) < count:
        n = int(rng.choice([1, 2, 3, 34]))
        h, w = (int(v) for v in rng.integers(1, 7 if n == 34 else 19, 2))
        c, f = (int(v) for v in rng.choice([1, 3, 8, 16, 17, 32, 33, 64, 65, 100], 2))
        pad = tuple((int(a), int(b)) for a, b in rng.integers(0, 3, (2, 2)))
        if h + sum(pad[0]) >= 3 and w + sum(pad[1]) >= 3:
            found.append((n, h, w, c, f, pad))
    return found


def rms(a, ref):
    return np.sqrt(np.mean((a - ref) ** 2) / max(np.mean(ref**2), 1e-30))


@pytest.mark.parametrize("l2", [0, 1 << 14, 1 << 18])
@pytest.mark.parametrize("name", ["winograd4", "winograd2"])
def test_against_float64(name, l2, rng):
    """Every result in both dtypes; small pretended caches give many blocks, slices and rounds."""
    k.conv_force(name, l2)
    for n, h, w, c, f, pad in shapes(rng, 11):
        x, wt, b = (rng.standard_normal(s) for s in ((n, h, w, c), (f, 3, 3, c), (f,)))
        args = ((1, 1), pad, (1, 1), 1)
        dy = rng.standard_normal(naive(x, wt, b, *args).shape)
        for dtype, bound in (
            (np.float64, 1e-13),
            (np.float32, 3e-6 if name[-1] == "4" else 1.5e-6),
        ):
            x_, w_, b_, d_ = (v.astype(dtype) for v in (x, wt, b, dy))
            y = naive(x_, w_, b_, *args)
            dx, dw, db = naive_grads(x_, w_, d_, *args)
            # (result, reference, products of order one in a sum): a result that cancels is no measure
            sx, sw, sd = 9 * f, dy.size / f, 9 * c
            results = [
                (k.conv(2, x_, w_, b_, *args, False), y, sd),
                (k.conv(2, x_, w_, b_, *args, True), np.maximum(y, 0), sd),
                (k.conv(2, x_, w_, None, *args, False), y - b_.astype(np.float64), sd),
                (k.conv_backward_data(2, d_, w_, x_.shape, *args), dx, sx),
                *zip(k.conv_backward_weight(2, x_, d_, w_.shape, *args, True), (dw, db), (sw, sw)),
                *zip(
                    k.conv_backward(2, x_, d_, w_, *args, True, True, True),
                    (dx, dw, db),
                    (sx, sw, sw),
                ),
            ]
            for i, (ours, ref, terms) in enumerate(results):
                assert ours.shape == ref.shape and ours.dtype == dtype
                error = np.sqrt(np.mean((ours - ref) ** 2)) / np.sqrt(terms)
                assert error <= bound, (i, error, n, h, w, c, f, pad, dtype)


def test_f2_is_exact_on_integers(rng):
    k.conv_force("winograd2")
    for n, h, w, c, f, pad in shapes(rng, 8):
        x, wt, b = (
            rng.integers(-3, 4, s).astype(np.float32) for s in ((n, h, w, c), (f, 3, 3, c), (f,))
        )
        args = ((1, 1), pad, (1, 1), 1)
        y = naive(x, wt, b, *args)
        dy = rng.integers(-3, 4, y.shape).astype(np.float32)
        np.testing.assert_array_equal(k.conv(2, x, wt, b, *args, False), y)
        for ours, ref in zip(
            k.conv_backward(2, x, dy, wt, *args, True, True, True), naive_grads(x, wt, dy, *args)
        ):
            np.testing.assert_array_equal(ours, ref)


@pytest.mark.parametrize("name", ["winograd4", "winograd2"])
def test_adjoint(name, rng):
    """<dy, conv(x, w)> = <dx, x> = <dw, w> in float64."""
    k.conv_force(name, 1 << 16)
    for n, h, w, c, f, pad in shapes(rng, 10):
        x, wt = rng.standard_normal((n, h, w, c)), rng.standard_normal((f, 3, 3, c))
        args = ((1, 1), pad, (1, 1), 1)
        y = k.conv(2, x, wt, None, *args, False)
        dy = rng.standard_normal(y.shape)
        dx, dw, _ = k.conv_backward(2, x, dy, wt, *args, True, True, False)
        size = np.sqrt((y**2).sum() * (dy**2).sum())
        assert abs((dy * y).sum() - (dx * x).sum()) <= 1e-12 * size
        assert abs((dy * y).sum() - (dw * wt).sum()) <= 1e-12 * size


@pytest.mark.parametrize("name", ["winograd4", "winograd2"])
def test_gradcheck(name, rng):
    k.conv_force(name)

    def t(*shape):
        return gs.tensor(rng.standard_normal(shape), requires_grad=True)

    for pad in (0, 1, ((2, 1), (0, 2))):
        assert gs.gradcheck(
            lambda x, w, b, pad=pad: F.conv2d(x, w, b, 1, pad), (t(2, 6, 5, 3), t(2, 3, 3, 3), t(2))
        )
    assert gs.gradcheck(
        lambda x, w, b: F.conv_transpose2d(x, w, b, 1, 1), (t(1, 6, 5, 2), t(2, 3, 3, 3), t(3))
    )


@pytest.mark.parametrize("name", ["winograd4", "winograd2"])
def test_transposed(name, rng):
    """The bias and the three passes of conv_transpose2d as its direct form has them."""
    x, w = rng.standard_normal((3, 9, 10, 18)), rng.standard_normal((18, 3, 3, 33))
    b, results = rng.standard_normal(33), []
    for force in ("direct", name):
        k.conv_force(force)
        ts = [gs.tensor(v, requires_grad=True) for v in (x, w, b)]
        y = F.conv_transpose2d(*ts, padding=1)
        (y * y).sum().backward()
        results.append([y.detach().numpy(), *(t.grad.numpy() for t in ts)])
    for a, ref in zip(*results):
        np.testing.assert_allclose(a, ref, rtol=1e-11, atol=1e-11 * np.abs(ref).max())


@pytest.mark.parametrize("name", ["winograd4", "winograd2"])
def test_threads_give_the_same_bits(name, rng):
    for l2 in (0, 1 << 15, 1 << 18):
        k.conv_force(name, l2)
        for n, h, w, c, f, pad in [
            *shapes(rng, 6),
            (20, 16, 16, 32, 48, ONE),
            (3, 60, 60, 16, 20, ONE),
        ]:
            x = rng.standard_normal((n, h, w, c), dtype=np.float32)
            wt = rng.standard_normal((f, 3, 3, c), dtype=np.float32)
            args = ((1, 1), pad, (1, 1), 1)
            results = []
            for threads in (1, 2, 3):
                gs.set_num_threads(threads)
                y = k.conv(2, x, wt, None, *args, False)
                both = k.conv_backward(2, x, y, wt, *args, True, True, True)
                results.append([a.tobytes() for a in (y, *both)])
            assert results[0] == results[1] == results[2], (l2, n, h, w, c, f, pad)


@pytest.mark.parametrize("name", ["winograd4", "winograd2"])
def test_nothing_outside_of_the_arguments_is_read(name, rng):
    k.conv_force(name)
    for n, h, w, c, f, pad in shapes(rng, 10):
        x = rng.standard_normal((n, h, w, c), dtype=np.float32)
        wt = rng.standard_normal((f, 3, 3, c), dtype=np.float32)
        b = rng.standard_normal(f, dtype=np.float32)
        args = ((1, 1), pad, (1, 1), 1)
        y = k.conv(2, x, wt, b, *args, False)
        both = k.conv_backward(2, x, y, wt, *args, True, True, True)
        x_, w_, b_, y_ = (guarded(a) for a in (x, wt, b, y))
        np.testing.assert_array_equal(k.conv(2, x_, w_, b_, *args, False), y)
        for a, ref in zip(k.conv_backward(2, x_, y_, w_, *args, True, True, True), both):
            np.testing.assert_array_equal(a, ref)


@pytest.mark.parametrize("channels,size", [(64, 16), (512, 4)])
def test_error_of_the_default(channels, size, rng):
    """He weights and ReLU inputs: at most 2e-6 of the root mean square, F(2x2) 6e-7."""
    x = np.maximum(rng.standard_normal((8, size, size, channels), dtype=np.float32), 0)
    w = rng.standard_normal((channels, 3, 3, channels), dtype=np.float32)
    w *= np.float32(np.sqrt(2 / (9 * channels)))
    dy = rng.standard_normal(x.shape, dtype=np.float32)
    args = ((1, 1), ONE, (1, 1), 1)
    ref = [naive(x, w, None, *args), *naive_grads(x, w, dy, *args)[:2]]
    for name, bound in (("winograd4", 2e-6), ("winograd2", 6e-7)):
        k.conv_force(name)
        ours = [
            k.conv(2, x, w, None, *args, False),
            *k.conv_backward(2, x, dy, w, *args, True, True, False)[:2],
        ]
        for a, r in zip(ours, ref):
            assert rms(a, r) <= bound


def test_strict_is_direct_or_f2(rng):
    x = rng.standard_normal((4, 16, 16, 64), dtype=np.float32)
    w = rng.standard_normal((64, 3, 3, 64), dtype=np.float32)
    args = (1, 1, 1, 1)
    by_name = {}
    for name in ("winograd4", "winograd2", "direct"):
        k.conv_force(name)
        by_name[name] = k.conv(2, x, w, None, *args, False).tobytes()
    k.conv_force("")
    assert len(set(by_name.values())) == 3
    assert k.conv(2, x, w, None, *args, False).tobytes() == by_name["winograd4"]
    gs.set_conv_precision("strict")
    assert gs.get_conv_precision() == "strict"
    strict = k.conv(2, x, w, None, *args, False).tobytes()
    assert strict in (by_name["winograd2"], by_name["direct"])
    gs.set_conv_precision("default")
    assert gs.get_conv_precision() == "default"
    # float64 is direct unless a test asks otherwise
    x64, w64 = x.astype(np.float64), w.astype(np.float64)
    y = k.conv(2, x64, w64, None, *args, False)
    k.conv_force("direct")
    np.testing.assert_array_equal(k.conv(2, x64, w64, None, *args, False), y)


def test_precision_by_a_wrong_name():
    with pytest.raises(ValueError, match="set_conv_precision: expected 'default' or 'strict', got"):
        gs.set_conv_precision("high")
    with pytest.raises(TypeError, match="must be a string"):
        gs.set_conv_precision(2)
    assert gs.get_conv_precision() == "default"


CHOICES = """
import numpy as np
from gradsmith import _cpu as k
import gradsmith as gs
def run(n, size, c, f, kernel=3, stride=1, groups=1, dtype="float32"):
    x, w = np.ones((n, size, size, c), dtype), np.ones((f, kernel, kernel, c // groups), dtype)
    k.conv(2, x, w, None, stride, kernel // 2, 1, groups, False)
run(8, 16, 64, 64)
run(32, 4, 256, 256)
run(8, 6, 128, 128)
run(8, 2, 128, 128)
run(8, 16, 3, 64)
run(8, 16, 64, 64, 1)
run(8, 16, 64, 64, 3, 2)
run(8, 16, 64, 64, 3, 1, 64)
run(8, 16, 64, 64, dtype="float64")
gs.set_conv_precision("strict")
run(8, 16, 128, 128)
"""


def test_choices_are_sensible_and_explained():
    env = {**os.environ, "GRADSMITH_VERBOSE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", CHOICES], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    lines = [line for line in out.stderr.splitlines() if line.startswith("gradsmith: conv ")]
    taken = [line.split(" forward: ")[1].split(" ")[0] for line in lines]
    assert taken[:3] == ["winograd4", "winograd4", "winograd2"]
    assert taken[3:9] == ["direct", "direct", "direct", "polyphase", "depthwise", "direct"]
    assert taken[9] in ("winograd2", "direct") and "strict" in lines[9]
    assert "cycles, direct" in lines[0]


@pytest.mark.parametrize("name,stride", [("winograd4", 1), ("polyphase", 2)])
def test_empty_batch_and_one_image(rng, name, stride):
    k.conv_force(name)
    args = (stride, 1, 1, 1)
    w = np.ones((20, 3, 3, 17), np.float32)
    x = np.ones((0, 8, 8, 17), np.float32)
    y = k.conv(2, x, w, None, *args, False)
    assert y.shape == (0, 8 // stride, 8 // stride, 20)
    dx, dw, db = k.conv_backward(2, x, y, w, *args, True, True, True)
    assert dx.shape == x.shape and not dw.any() and not db.any()
    one = rng.standard_normal((8, 8, 17), dtype=np.float32)
    y = k.conv(2, one, w, None, *args, False)
    np.testing.assert_array_equal(y, k.conv(2, one[None], w, None, *args, False)[0])
    with pytest.raises(ValueError, match="conv2d_backward: grad has shape"):
        k.conv_backward(2, one, y[:-1], w, *args, True, True, True)


def test_only_the_gradients_that_are_wanted(rng):
    x = rng.standard_normal((2, 9, 9, 32), dtype=np.float32)
    w = rng.standard_normal((32, 3, 3, 32), dtype=np.float32)
    dy = rng.standard_normal((2, 9, 9, 32), dtype=np.float32)
    for name in ("winograd4", "direct"):
        k.conv_force(name)
        full = k.conv_backward(2, x, dy, w, 1, 1, 1, 1, True, True, True)
        for wanted in np.ndindex(2, 2, 2):
            got = k.conv_backward(2, x, dy, w, 1, 1, 1, 1, *(bool(v) for v in wanted))
            for a, ref, want in zip(got, full, wanted):
                assert (a is not None) == bool(want)
                if want:
                    np.testing.assert_allclose(a, ref, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8, 12, 24])
def test_both_gradients_where_each_takes_its_own_implementation(channels, rng):
    """With few channels the direct kernel may win for both together and Winograd for one of them."""
    for filters in (4, 8, 16, 32, 64):
        for size, pad in ((6, 0), (12, 0), (12, 1)):
            x = rng.standard_normal((8, size, size, channels), dtype=np.float32)
            w = rng.standard_normal((filters, 3, 3, channels), dtype=np.float32)
            out = size + 2 * pad - 2
            dy = rng.standard_normal((8, out, out, filters), dtype=np.float32)
            args = ((1, 1), ((pad, pad), (pad, pad)), (1, 1), 1)
            dx, dw, db = naive_grads(x, w, dy, *args)
            for bias in (False, True):
                got = k.conv_backward(2, x, dy, w, *args, True, True, bias)
                assert rms(got[0], dx) < 2e-6 and rms(got[1], dw) < 2e-6
                assert rms(got[2], db) < 2e-6 if bias else got[2] is None
