"""Convolutions against a naive float64 loop and PyTorch, gradients, adjoints, threads, bad input."""

import itertools

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F
from gradsmith import _cpu as k


def torch_alone():
    """PyTorch on one thread: its team of threads is slow to wake for small problems."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def naive(x, w, b, stride, pad, dilation, groups):
    """y of conv2d in float64, one output pixel and tap at a time. pad: ((top, bottom), (left, right))."""
    x = np.pad(x.astype(np.float64), ((0, 0), *pad, (0, 0)))
    _, h, wd, _ = x.shape
    out, kh, kw, ci = w.shape
    sh, sw = stride
    dh, dw = dilation
    p = (h - dh * (kh - 1) - 1) // sh + 1
    q = (wd - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((len(x), p, q, out))
    co = out // groups
    for g in range(groups):
        for i in range(kh):
            for j in range(kw):
                xs = x[:, i * dh : i * dh + (p - 1) * sh + 1 : sh]
                xs = xs[:, :, j * dw : j * dw + (q - 1) * sw + 1 : sw, g * ci : (g + 1) * ci]
                y[..., g * co : (g + 1) * co] += xs @ w[g * co : (g + 1) * co, i, j].T.astype(float)
    return y + (0 if b is None else b.astype(np.float64))


def naive_grads(x, w, dy, stride, pad, dilation, groups):
    """dx, dw, db of conv2d in float64."""
    (t, _), (le, _) = pad
    xp = np.pad(x.astype(np.float64), ((0, 0), *pad, (0, 0)))
    dxp, dw_ = np.zeros_like(xp), np.zeros(w.shape)
    out, kh, kw, ci = w.shape
    co = out // groups
    _, p, q, _ = dy.shape
    for g, i, j in itertools.product(range(groups), range(kh), range(kw)):
        rows = slice(i * dilation[0], i * dilation[0] + (p - 1) * stride[0] + 1, stride[0])
        cols = slice(j * dilation[1], j * dilation[1] + (q - 1) * stride[1] + 1, stride[1])
        d = dy[..., g * co : (g + 1) * co].astype(np.float64)
        dw_[g * co : (g + 1) * co, i, j] = np.einsum(
            "npqk,npqc->kc", d, xp[:, rows, cols, g * ci : (g + 1) * ci]
        )
        dxp[:, rows, cols, g * ci : (g + 1) * ci] += d @ w[g * co : (g + 1) * co, i, j]
    h, wd = x.shape[1:3]
    return dxp[:, t : t + h, le : le + wd], dw_, dy.sum((0, 1, 2), dtype=np.float64)


CHANNELS = [1, 3, 5, 16, 17, 33, 64, 65]


def random_case(rng):
    while True:
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        ci, co = (int(v) for v in rng.choice(CHANNELS, 2))
        if rng.random() < 0.2:
            groups, ci, co = int(rng.choice([3, 16, 17, 33, 64])), 1, 1
        elif groups > 1:
            ci, co = min(ci, 17), min(co, 17)
        kernel = tuple(int(v) for v in rng.integers(1, 6, 2))
        stride = tuple(int(v) for v in rng.integers(1, 4, 2))
        dilation = tuple(int(v) for v in rng.integers(1, 4, 2))
        pad = tuple((int(a), int(b)) for a, b in rng.integers(0, 4, (2, 2)))
        n = int(rng.choice([1, 2, 7, 12, 14]))
        h, w = (int(v) for v in rng.integers(1, 12, 2))
        if all(
            s + sum(p) >= d * (kk - 1) + 1
            for s, p, d, kk in zip((h, w), pad, dilation, kernel, strict=True)
        ):
            return n, h, w, ci * groups, co * groups, groups, kernel, stride, pad, dilation


def close(a, ref, dtype, terms):
    """Within a few rounding steps of a sum of `terms` products of values of order one."""
    eps = np.finfo(dtype).eps
    assert a.dtype == dtype and a.shape == ref.shape
    bound = 8 * eps * (8 + np.sqrt(terms)) * max(1.0, np.sqrt(terms))
    assert np.abs(a - ref).max(initial=0) <= bound, (np.abs(a - ref).max(), bound)


@pytest.mark.parametrize("seed", range(12))
def test_against_naive_loop(seed):
    rng = np.random.default_rng(100 + seed)
    for _ in range(8):
        n, h, w, cin, cout, groups, kernel, stride, pad, dilation = random_case(rng)
        x = rng.standard_normal((n, h, w, cin))
        wt = rng.standard_normal((cout, *kernel, cin // groups))
        b = rng.standard_normal(cout) if rng.random() < 0.7 else None
        y = naive(x, wt, b, stride, pad, dilation, groups)
        dy = rng.standard_normal(y.shape)
        for dtype in (np.float32, np.float64):
            x_, w_, dy_ = x.astype(dtype), wt.astype(dtype), dy.astype(dtype)
            b_ = None if b is None else b.astype(dtype)
            ref = naive(x_, w_, b_, stride, pad, dilation, groups)
            dx, dw, db = naive_grads(x_, w_, dy_, stride, pad, dilation, groups)
            a = gs.tensor(x_, requires_grad=True)
            f = gs.tensor(w_, requires_grad=True)
            c = None if b is None else gs.tensor(b_, requires_grad=True)
            out = F.conv2d(a, f, c, stride, pad, dilation, groups)
            close(out.detach().numpy(), ref, dtype, kernel[0] * kernel[1] * cin // groups)
            out.backward(gs.tensor(dy_))
            close(a.grad.numpy(), dx, dtype, kernel[0] * kernel[1] * cout // groups)
            close(f.grad.numpy(), dw, dtype, dy.size // cout)
            if c is not None:
                close(c.grad.numpy(), db, dtype, dy.size // cout)


@pytest.fixture
def strict():
    gs.set_conv_precision("strict")
    yield
    gs.set_conv_precision("default")


@pytest.mark.parametrize("seed", range(6))
def test_exact_on_integers(seed, strict):
    """Small integers: every partial sum is exact, so equality holds to the last bit, larger shapes too.

    Strict, for Winograd's F(4x4) multiplies by square roots; test_winograd.py bounds its error.
    """
    rng = np.random.default_rng(seed)
    cases = [
        (13, 9, 9, 32, 64, 1, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        (2, 28, 28, 1, 32, 1, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)),
        (3, 17, 16, 3, 48, 1, (7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1)),
        (14, 4, 4, 129, 70, 1, (3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1)),
        (2, 12, 40, 64, 64, 64, (3, 3), (1, 2), ((1, 1), (1, 1)), (1, 1)),
        (1, 1, 700, 8, 24, 1, (1, 130), (1, 1), ((0, 0), (65, 64)), (1, 1)),
        (2, 5, 6, 1500, 20, 1, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
        (4, 20, 20, 40, 40, 4, (3, 3), (1, 1), ((1, 1), (1, 1)), (2, 2)),
        (2, 16, 16, 3, 32, 1, (4, 4), (4, 4), ((0, 0), (0, 0)), (1, 1)),
    ]
    cases += [random_case(rng) for _ in range(4)]
    for n, h, w, cin, cout, groups, kernel, stride, pad, dilation in cases:
        x = rng.integers(-3, 4, (n, h, w, cin)).astype(np.float32)
        wt = rng.integers(-3, 4, (cout, *kernel, cin // groups)).astype(np.float32)
        b = rng.integers(-3, 4, cout).astype(np.float32)
        y = naive(x, wt, b, stride, pad, dilation, groups)
        dy = rng.integers(-3, 4, y.shape).astype(np.float32)
        dx, dw, db = naive_grads(x, wt, dy, stride, pad, dilation, groups)
        args = (stride, pad, dilation, groups)
        np.testing.assert_array_equal(k.conv(2, x, wt, b, *args, False), y)
        np.testing.assert_array_equal(k.conv(2, x, wt, b, *args, True), np.maximum(y, 0))
        np.testing.assert_array_equal(k.conv_backward_data(2, dy, wt, x.shape, *args), dx)
        gw, gb = k.conv_backward_weight(2, x, dy, wt.shape, *args, True)
        np.testing.assert_array_equal(gw, dw)
        np.testing.assert_array_equal(gb, db)
        gw, gb = k.conv_backward_weight(2, x, dy, wt.shape, *args, False)
        np.testing.assert_array_equal(gw, dw)
        assert gb is None


def test_one_dimension_is_two_with_height_one():
    rng = np.random.default_rng(5)
    for stride, pad, dilation, groups in (
        (1, 0, 1, 1),
        (2, 3, 1, 2),
        (3, 2, 2, 1),
        (1, "same", 2, 4),
    ):
        x = rng.standard_normal((3, 19, 8)).astype(np.float32)
        w = rng.standard_normal((12, 4, 8 // groups)).astype(np.float32)
        b = rng.standard_normal(12).astype(np.float32)
        y = F.conv1d(gs.tensor(x), gs.tensor(w), gs.tensor(b), stride, pad, dilation, groups)
        pad2 = "same" if pad == "same" else (0, pad)
        y2 = F.conv2d(
            gs.tensor(x[:, None]), gs.tensor(w[:, None]), gs.tensor(b),
            (1, stride), pad2, (1, dilation), groups,
        )  # fmt: skip
        np.testing.assert_array_equal(y.numpy(), y2.numpy()[:, 0])


@pytest.mark.parametrize("seed", range(6))
def test_against_torch(seed):
    torch = torch_alone()
    rng = np.random.default_rng(1000 + seed)
    for _ in range(8):
        n, h, w, cin, cout, groups, kernel, stride, pad, dilation = random_case(rng)
        pad = tuple(p[0] for p in pad)
        if any(
            s + 2 * p < d * (kk - 1) + 1
            for s, p, d, kk in zip((h, w), pad, dilation, kernel, strict=True)
        ):
            continue
        x = rng.standard_normal((n, h, w, cin))
        wt = rng.standard_normal((cout, *kernel, cin // groups))
        b = rng.standard_normal(cout)
        tx, tw = (torch.tensor(a).permute(0, 3, 1, 2).requires_grad_() for a in (x, wt))
        tb = torch.tensor(b).requires_grad_()
        ty = torch.nn.functional.conv2d(tx, tw, tb, stride, pad, dilation, groups)
        a, f, c = (gs.tensor(v, requires_grad=True) for v in (x, wt, b))
        y = F.conv2d(a, f, c, stride, pad, dilation, groups)
        dy = rng.standard_normal(y.shape)
        ty.backward(torch.tensor(dy).permute(0, 3, 1, 2))
        y.backward(gs.tensor(dy))
        back = (0, 2, 3, 1)
        for ours, theirs in ((y.detach(), ty), (a.grad, tx.grad), (f.grad, tw.grad)):
            ref = theirs.detach().permute(*back).numpy()
            np.testing.assert_allclose(ours.numpy(), ref, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(c.grad.numpy(), tb.grad.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("seed", range(6))
def test_transposed_against_torch(seed):
    torch = torch_alone()
    rng = np.random.default_rng(2000 + seed)
    for _ in range(8):
        nd = int(rng.integers(1, 3))
        groups = int(rng.choice([1, 1, 2, 5]))
        ci, co = int(rng.choice([1, 3, 16, 17])), int(rng.choice([1, 3, 5, 16, 33]))
        size = tuple(int(v) for v in rng.integers(1, 8, nd))
        kernel = tuple(int(v) for v in rng.integers(1, 6, nd))
        stride = tuple(int(v) for v in rng.integers(1, 4, nd))
        dilation = tuple(int(v) for v in rng.integers(1, 3, nd))
        pad = tuple(int(v) for v in rng.integers(0, 3, nd))
        extra = tuple(
            int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True)
        )
        out = [
            (z - 1) * s - 2 * p + d * (kk - 1) + e + 1
            for z, s, p, d, kk, e in zip(size, stride, pad, dilation, kernel, extra, strict=True)
        ]
        if min(out) < 1:
            continue
        x = rng.standard_normal((int(rng.choice([1, 3, 13])), *size, ci * groups))
        w = rng.standard_normal((ci * groups, *kernel, co))
        b = rng.standard_normal(co * groups)
        last = (0, nd + 1, *range(1, nd + 1))
        tx, tw = (torch.tensor(a).permute(*last).requires_grad_() for a in (x, w))
        tb = torch.tensor(b).requires_grad_()
        fn = getattr(torch.nn.functional, f"conv_transpose{nd}d")
        ty = fn(tx, tw, tb, stride, pad, extra, groups, dilation)
        a, f, c = (gs.tensor(v, requires_grad=True) for v in (x, w, b))
        y = getattr(F, f"conv_transpose{nd}d")(a, f, c, stride, pad, extra, groups, dilation)
        dy = rng.standard_normal(y.shape)
        ty.backward(torch.tensor(dy).permute(*last))
        y.backward(gs.tensor(dy))
        back = (0, *range(2, nd + 2), 1)
        for ours, theirs in ((y.detach(), ty), (a.grad, tx.grad), (f.grad, tw.grad)):
            ref = theirs.detach().permute(*back).numpy()
            np.testing.assert_allclose(ours.numpy(), ref, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(c.grad.numpy(), tb.grad.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("seed", range(8))
def test_adjoint(seed):
    """<conv(x), y> = <x, conv_transpose(y)> with one weight, for every window."""
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 2, 4]))
    size = tuple(int(v) for v in rng.integers(3, 12, 2))
    kernel = tuple(int(v) for v in rng.integers(1, 4, 2))
    stride = tuple(int(v) for v in rng.integers(1, 4, 2))
    pad = tuple(int(v) for v in rng.integers(0, 2, 2))
    x = rng.standard_normal((2, *size, 8))
    w = rng.standard_normal((12, *kernel, 8 // groups))
    cx = F.conv2d(gs.tensor(x), gs.tensor(w), None, stride, pad, 1, groups).numpy()
    y = rng.standard_normal(cx.shape)
    extra = tuple(
        z + 2 * p - kk - (c - 1) * s
        for z, p, kk, c, s in zip(size, pad, kernel, cx.shape[1:3], stride, strict=True)
    )
    ty = F.conv_transpose2d(gs.tensor(y), gs.tensor(w), None, stride, pad, extra, groups).numpy()
    assert ty.shape == x.shape
    np.testing.assert_allclose((cx * y).sum(), (x * ty).sum(), rtol=1e-10)


@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck(relu):
    rng = np.random.default_rng(0)

    def t(*shape):
        return gs.tensor(rng.standard_normal(shape), requires_grad=True)

    for stride, pad, dilation, groups in (
        (1, 1, 1, 1),
        (2, (1, 0), 1, 2),
        ((1, 2), 2, 2, 1),
        (1, 1, 1, 4),
    ):
        assert gs.gradcheck(
            lambda x, w, b, a=(stride, pad, dilation, groups): F.conv2d(x, w, b, *a, relu=relu),
            (t(2, 5, 4, 4), t(4, 3, 2, 4 // groups), t(4)),
        )
    assert gs.gradcheck(
        lambda x, w, b: F.conv1d(x, w, b, 2, 1, relu=relu), (t(2, 7, 3), t(4, 3, 3), t(4))
    )
    if not relu:
        for stride, groups in ((1, 1), (2, 2), (3, 1)):
            assert gs.gradcheck(
                lambda x, w, b, a=(stride, 1, 0, groups): F.conv_transpose2d(x, w, b, *a),
                (t(2, 4, 3, 4), t(4, 3, 2, 6 // groups), t(6)),
            )
        assert gs.gradcheck(
            lambda x, w, b: F.conv_transpose1d(x, w, b, 2, 1, 1), (t(2, 4, 3), t(3, 3, 2), t(2))
        )


def test_gradients_that_nobody_wants_are_not_computed():
    x, w, b = gs.ones(1, 4, 4, 2), gs.ones(3, 3, 3, 2), gs.ones(3)
    for needs in itertools.product((False, True), repeat=3):
        if not any(needs):
            continue
        for t, n in zip((x, w, b), needs, strict=True):
            t.requires_grad_(n)
            t.grad = None
        y = F.conv2d(x, w, b)
        y.backward(gs.ones(*y.shape))
        for t, n in zip((x, w, b), needs, strict=True):
            assert (t.grad is not None) == n


def poisoned(a, rng):
    """A view equal to `a` inside a buffer of NaN, with strides that are not dense."""
    big = np.full(
        (a.shape[0] + 2, *(2 * s + 3 for s in a.shape[1:-1]), a.shape[-1] + 7), np.nan, a.dtype
    )
    inner = [slice(1, 1 + a.shape[0])]
    inner += [slice(2, 2 + 2 * s, 2) for s in a.shape[1:-1]]
    inner += [slice(3, 3 + a.shape[-1])]
    view = big[tuple(inner)]
    view[...] = a
    return view


def guarded(a):
    """A dense copy of `a` with NaN directly before and behind it."""
    big = np.full(a.size + 128, np.nan, a.dtype)
    big[64 : 64 + a.size] = a.reshape(-1)
    return big[64 : 64 + a.size].reshape(a.shape)


def test_nothing_outside_of_the_arguments_is_read():
    rng = np.random.default_rng(3)
    for _ in range(25):
        n, h, w, cin, cout, groups, kernel, stride, pad, dilation = random_case(rng)
        x = rng.standard_normal((n, h, w, cin)).astype(np.float32)
        wt = rng.standard_normal((cout, *kernel, cin // groups)).astype(np.float32)
        b = rng.standard_normal(cout).astype(np.float32)
        args = (stride, pad, dilation, groups)
        y = k.conv(2, x, wt, b, *args, False)
        dy = rng.standard_normal(y.shape).astype(np.float32)
        dx = k.conv_backward_data(2, dy, wt, x.shape, *args)
        dw, db = k.conv_backward_weight(2, x, dy, wt.shape, *args, True)
        for make in (guarded, lambda a: poisoned(a, rng)):
            x_, w_, dy_ = make(x), make(wt), make(dy)
            b_ = guarded(b)
            np.testing.assert_array_equal(k.conv(2, x_, w_, b_, *args, False), y)
            np.testing.assert_array_equal(k.conv_backward_data(2, dy_, w_, x.shape, *args), dx)
            gw, gb = k.conv_backward_weight(2, x_, dy_, wt.shape, *args, True)
            np.testing.assert_array_equal(gw, dw)
            np.testing.assert_array_equal(gb, db)


def test_nan_goes_where_the_formula_takes_it():
    x = np.ones((1, 5, 5, 2), np.float32)
    x[0, 2, 2, 1] = np.nan
    w = np.ones((3, 3, 3, 2), np.float32)
    y = k.conv(2, x, w, None, 1, 1, 1, 1, True)
    assert np.isnan(y[0, 1:4, 1:4]).all() and np.isfinite(y[0, 0]).all()
    assert np.isfinite(y[0, 4]).all() and np.isfinite(y[0, :, [0, 4]]).all()


def test_threads_give_the_same_bits():
    rng = np.random.default_rng(9)
    before = gs.get_num_threads()
    cases = [random_case(rng) for _ in range(6)] + [
        (16, 14, 14, 32, 64, 1, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)),
        (8, 28, 28, 1, 32, 1, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)),
        (4, 16, 16, 96, 200, 1, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
        (4, 32, 32, 48, 48, 48, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ]
    try:
        for n, h, w, cin, cout, groups, kernel, stride, pad, dilation in cases:
            x = rng.standard_normal((n, h, w, cin)).astype(np.float32)
            wt = rng.standard_normal((cout, *kernel, cin // groups)).astype(np.float32)
            args = (stride, pad, dilation, groups)
            results = []
            for threads in (1, 2, 3):
                gs.set_num_threads(threads)
                y = k.conv(2, x, wt, None, *args, False)
                results.append(
                    (
                        y,
                        k.conv_backward_data(2, y, wt, x.shape, *args),
                        *k.conv_backward_weight(2, x, y, wt.shape, *args, True),
                    )
                )
            for other in results[1:]:
                for a, b in zip(results[0], other, strict=True):
                    assert a.tobytes() == b.tobytes()
    finally:
        gs.set_num_threads(before)


def test_empty_batch_and_unbatched():
    x, w, b = (
        np.ones((0, 6, 6, 3), np.float32),
        np.ones((4, 3, 3, 3), np.float32),
        np.ones(4, np.float32),
    )
    y = k.conv(2, x, w, b, 1, 1, 1, 1, False)
    assert y.shape == (0, 6, 6, 4)
    assert k.conv_backward_data(2, y, w, x.shape, 1, 1, 1, 1).shape == x.shape
    dw, db = k.conv_backward_weight(2, x, y, w.shape, 1, 1, 1, 1, True)
    assert not dw.any() and not db.any()
    assert k.conv_transpose(2, x, np.ones((3, 2, 2, 5), np.float32), None, 2, 0, 0, 1, 1).shape == (
        0,
        12,
        12,
        5,
    )
    one = gs.tensor(np.random.default_rng(0).standard_normal((6, 6, 3)), requires_grad=True)
    f = gs.tensor(np.random.default_rng(1).standard_normal((4, 3, 3, 3)))
    y1 = F.conv2d(one, f, padding=1)
    y2 = F.conv2d(gs.tensor(one.detach().numpy()[None]), f, padding=1)
    assert y1.shape == (6, 6, 4)
    np.testing.assert_array_equal(y1.detach().numpy(), y2.numpy()[0])
    y1.backward(gs.ones(6, 6, 4, dtype="float64"))
    assert one.grad.shape == (6, 6, 3)


BAD = [
    (dict(x=(2, 5, 5, 4)), "last axis must be 3"),
    (dict(x=(5, 3)), r"expected \(N, H, W, C\)"),
    (dict(w=(4, 3, 3)), "expected 4 dimensions"),
    (dict(w=(4, 6, 3, 3)), "kernel reaches over 6"),
    (dict(w=(4, 3, 3, 3), dilation=3), "smaller kernel or more padding"),
    (dict(b=(5,)), "one value an output channel"),
    (dict(groups=2), "groups"),
    (dict(groups=0), "groups must be 1 or more"),
    (dict(stride=0), "stride must be 1 or more"),
    (dict(stride=(1, 2, 3)), "stride"),
    (dict(dilation=0), "dilation"),
    (dict(padding=-1), "padding"),
    (dict(padding="full"), "'same', 'valid'"),
    (dict(padding="same", stride=2), "needs stride 1"),
    (dict(padding=((1, 1), (1,))), "pair"),
    (dict(padding=2**40), "padding"),
    (dict(x=(2, 0, 5, 3)), "only the batch may be empty"),
]


@pytest.mark.parametrize("case,message", BAD)
def test_bad_input(case, message):
    x = gs.zeros(*case.pop("x", (2, 5, 5, 3)))
    w = gs.zeros(*case.pop("w", (4, 3, 3, 3)))
    b = gs.zeros(*case.pop("b", (4,)))
    with pytest.raises(ValueError, match="conv2d: .*" + message):
        F.conv2d(x, w, b, **case)


def test_bad_types():
    x, w = gs.zeros(1, 5, 5, 3), gs.zeros(4, 3, 3, 3)
    with pytest.raises(TypeError, match="conv2d: stride"):
        F.conv2d(x, w, stride=1.5)
    with pytest.raises(TypeError, match="one dtype"):
        F.conv2d(x, w.double())
    with pytest.raises(TypeError, match="float32 or float64"):
        F.conv2d(gs.zeros(1, 5, 5, 3, dtype="int64"), w)
    with pytest.raises(ValueError, match="conv_transpose2d: output_padding"):
        F.conv_transpose2d(x, gs.zeros(3, 3, 3, 2), stride=2, output_padding=2)
    with pytest.raises(ValueError, match="conv_transpose2d: .*last axis must be 4"):
        F.conv_transpose2d(x, gs.zeros(4, 3, 3, 2))
    with pytest.raises(ValueError, match="conv_transpose2d: the output would have size"):
        F.conv_transpose2d(x, gs.zeros(3, 1, 1, 2), padding=3)
    with pytest.raises(ValueError, match="conv1d: .*channels last"):
        F.conv1d(x, gs.zeros(4, 3, 3))
    with pytest.raises(MemoryError):
        F.conv2d(gs.zeros(1, 1, 1, 1), gs.zeros(4, 1, 1, 1), padding=2**28)
    with pytest.raises(ValueError, match="not that of the output"):
        k.conv_backward_data(
            2, np.zeros((1, 5, 5, 4), np.float32), w.numpy(), (1, 5, 5, 3), 1, 0, 1, 1
        )


def test_layers():
    gs.manual_seed(0)
    c = nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 2), groups=2)
    assert c.weight.shape == (8, 3, 5, 3) and c.bias.shape == (8,)
    bound = 1 / np.sqrt(3 * 15)
    for p in (c.weight, c.bias):
        a = p.detach().numpy()
        assert np.abs(a).max() <= bound and np.abs(a).max() > 0.6 * bound
    x = gs.randn(2, 9, 9, 6)
    np.testing.assert_array_equal(
        c(x).detach().numpy(), F.conv2d(x, c.weight, c.bias, (2, 1), (1, 2), 1, 2).detach().numpy()
    )
    assert "groups=2" in repr(c) and "kernel_size=(3, 5)" in repr(c)
    assert nn.Conv2d(6, 8, 3, bias=False).bias is None
    assert nn.Conv2d(6, 8, 3, padding="same", dilation=2)(x).shape == (2, 9, 9, 8)
    assert nn.Conv1d(6, 8, 4, padding="same")(gs.randn(2, 9, 6)).shape == (2, 9, 8)
    t = nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1)
    assert t.weight.shape == (6, 3, 3, 8)
    assert t(x).shape == (2, 17, 17, 8) and t(x, output_size=(18, 17)).shape == (2, 18, 17, 8)
    assert nn.ConvTranspose1d(6, 8, 3, stride=3, output_padding=2)(gs.randn(2, 9, 6)).shape == (
        2,
        29,
        8,
    )
    for args, message in (
        ((0, 8, 3), "in_channels"),
        ((6, 8, 0), "kernel_size"),
        ((6, 8, 3, 1, 0, 1, 4), "divisible"),
        ((6, 8, 3, 2, "same"), "needs stride 1"),
        ((6, 8, 3, 1, 0, 1, 1, True, "mirror"), "padding_mode"),
    ):
        with pytest.raises(ValueError, match="Conv2d: .*" + message):
            nn.Conv2d(*args)
    with pytest.raises(ValueError, match="output_size"):
        t(x, output_size=(30, 17))


def test_init_matches_torch_bounds_when_transposed():
    torch = torch_alone()
    ref = torch.nn.ConvTranspose2d(6, 10, 3)
    a = nn.ConvTranspose2d(6, 10, 3).weight.detach().numpy()
    bound = 1 / np.sqrt(10 * 9)
    assert np.abs(a).max() <= bound and ref.weight.abs().max().item() <= bound


def test_init_fits_the_activation():
    gs.manual_seed(0)
    he = nn.Conv2d(64, 32, 3, activation="relu")
    fan = 64 * 9
    assert abs(he.weight.detach().numpy().std() / np.sqrt(2 / fan) - 1) < 0.02
    assert not he.bias.detach().numpy().any()
    lecun = nn.Conv1d(64, 128, 5, activation="selu")
    assert abs(lecun.weight.detach().numpy().std() / np.sqrt(1 / (64 * 5)) - 1) < 0.02
    with pytest.raises(ValueError, match="unknown nonlinearity 'step'"):
        nn.ConvTranspose2d(4, 4, 3, activation="step")


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode, rng):
    """Borders that are not zeros: the plain convolution of an image that NumPy has padded."""
    name = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    for padding, kernel, stride, dilation, borders in (
        (2, 3, 1, 1, ((2, 2), (2, 2))),
        ((1, 0), (3, 2), (2, 1), 1, ((1, 1), (0, 0))),
        ("same", (4, 3), 1, (1, 2), ((1, 2), (2, 2))),
        ("valid", 3, 2, 1, ((0, 0), (0, 0))),
        (((0, 3), (1, 2)), 3, 1, 1, ((0, 3), (1, 2))),
    ):
        layer = nn.Conv2d(4, 6, kernel, stride, padding, dilation, 2, True, mode, "float64")
        x = gs.tensor(rng.normal(size=(2, 6, 7, 4)), requires_grad=True)
        padded = gs.tensor(np.pad(x.detach().numpy(), ((0, 0), *borders, (0, 0)), name))
        want = F.conv2d(padded, layer.weight, layer.bias, stride, 0, dilation, 2)
        np.testing.assert_allclose(layer(x).detach().numpy(), want.detach().numpy(), rtol=1e-12)
        assert gs.gradcheck(layer, [x])
    one = nn.Conv1d(2, 3, 3, padding=1, padding_mode=mode, dtype="float64")
    x = rng.normal(size=(2, 5, 2))
    want = F.conv1d(gs.tensor(np.pad(x, ((0, 0), (1, 1), (0, 0)), name)), one.weight, one.bias)
    np.testing.assert_allclose(
        one(gs.tensor(x)).detach().numpy(), want.detach().numpy(), rtol=1e-12
    )
    assert f"padding_mode={mode}" in repr(one)
    two = nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode, dtype="float64")
    for layer, x in ((one, rng.normal(size=(2, 5, 2))), (two, rng.normal(size=(2, 5, 6, 4)))):
        batch = layer(gs.tensor(x)).detach().numpy()
        alone = layer(gs.tensor(x[1])).detach().numpy()  # without a batch, as with zeros
        np.testing.assert_allclose(alone, batch[1], rtol=1e-12)


def test_padding_modes_bad_input():
    with pytest.raises(ValueError, match=r"Conv2d: padding \(3, 3\) of axis 1 .* which is 2"):
        nn.Conv2d(2, 3, 3, padding=3, padding_mode="reflect")(gs.ones(1, 3, 8, 2))
    with pytest.raises(ValueError, match="Conv2d: input has shape"):
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")(gs.ones(8, 2))
    with pytest.raises(ValueError, match="ConvTranspose2d: padding_mode must be 'zeros'"):
        nn.ConvTranspose2d(2, 3, 3, padding_mode="reflect")


def test_a_choice_made_before_follows_precision_and_autocast(rng):
    """The kernel that was chosen for a shape is remembered, with what else it depends on."""
    x = gs.tensor(rng.standard_normal((2, 16, 16, 32)).astype(np.float32))
    w = gs.tensor(rng.standard_normal((32, 3, 3, 32)).astype(np.float32))

    def run():
        return F.conv2d(x, w, padding=1).numpy()

    default = run()
    gs.set_conv_precision("strict")
    strict = run()
    gs.set_conv_precision("default")
    with gs.autocast():
        rounded = run()
    k.conv_force("direct")
    direct = run()
    k.conv_force("")
    for _ in range(2):
        np.testing.assert_array_equal(run(), default)
        gs.set_conv_precision("strict")
        np.testing.assert_array_equal(run(), strict)
        gs.set_conv_precision("default")
        with gs.autocast():
            np.testing.assert_array_equal(run(), rounded)
        k.conv_force("direct")
        np.testing.assert_array_equal(run(), direct)
        k.conv_force("")
    for y in (strict, direct):
        np.testing.assert_allclose(default, y, rtol=1e-3, atol=1e-3)
