"""Pooling against plain loops in float64, central differences and PyTorch."""

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F

RNG = np.random.default_rng(4711)
CHANNELS = [1, 2, 3, 7, 8, 16, 17, 64, 65]


def reseed(seed):
    RNG.bit_generator.state = np.random.default_rng(seed).bit_generator.state


# ---- references: one window at a time
def out_size(n, k, s, p, d, ceil):
    rest = n + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil else 0)
    out = rest // s + 1
    if ceil and (out - 1) * s >= n + p:
        out -= 1
    return out


def windows(n, k, s, p, d, ceil):
    """For every window: the indices inside, and its length in the padded axis (dilation 1)."""
    r = []
    for o in range(out_size(n, k, s, p, d, ceil)):
        b = o * s - p
        r.append(([t for t in range(b, b + k * d, d) if 0 <= t < n], min(b + k, n + p) - b))
    return r


def adaptive_windows(n, out):
    return [
        (list(range(i * n // out, -(-(i + 1) * n // out))), -(-(i + 1) * n // out) - i * n // out)
        for i in range(out)
    ]


def max_reference(x, rows, cols, g):
    n, _, _, c = x.shape
    y = np.full((n, len(rows), len(cols), c), -np.inf)
    dx = np.zeros(x.shape)
    for i, (hs, _) in enumerate(rows):
        for j, (ws, _) in enumerate(cols):
            if not hs or not ws:
                continue
            taps = x[:, hs][:, :, ws].reshape(n, len(hs) * len(ws), c).astype(np.float64)
            at = taps.argmax(1)  # the first maximum, the first NaN
            nan = np.isnan(taps)
            last_nan = taps.shape[1] - 1 - nan[:, ::-1].argmax(1)
            at = np.where(nan.any(1), last_nan, at)
            y[:, i, j] = np.take_along_axis(taps, at[:, None], 1)[:, 0]
            a, b = np.array(hs)[at // len(ws)], np.array(ws)[at % len(ws)]
            np.add.at(dx, (np.arange(n)[:, None], a, b, np.arange(c)), g[:, i, j])
    return y, dx


def avg_reference(x, rows, cols, g, include_pad=True, divisor=None):
    y = np.zeros((x.shape[0], len(rows), len(cols), x.shape[3]))
    dx = np.zeros(x.shape)
    for i, (hs, hn) in enumerate(rows):
        for j, (ws, wn) in enumerate(cols):
            d = divisor or (hn * wn if include_pad else len(hs) * len(ws))
            y[:, i, j] = x[:, hs][:, :, ws].sum((1, 2), dtype=np.float64) / d
            for a in hs:
                for b in ws:
                    dx[:, a, b] += g[:, i, j].astype(np.float64) / d
    return y, dx


def check(fn, x, args, reference, rest, exact):
    X = gs.tensor(x, requires_grad=True)
    y = fn(X, *args)
    g = RNG.standard_normal(y.shape).astype(x.dtype)
    ry, rdx = reference(x, *rest[:2], g, *rest[2:])
    y.backward(gs.tensor(g))
    tol = 1e-5 if x.dtype == np.float32 else 1e-13
    assert y.shape == ry.shape and y.dtype == x.dtype
    if exact:
        assert np.array_equal(y.detach().numpy(), ry, equal_nan=True)
    else:
        assert np.allclose(y.detach().numpy(), ry, rtol=tol, atol=tol)
    assert np.allclose(X.grad.numpy(), rdx, rtol=tol, atol=tol)
    assert np.array_equal(fn(gs.tensor(x), *args).numpy(), y.detach().numpy(), equal_nan=True)


def draw():
    dtype = RNG.choice([np.float32, np.float64])
    c, h, w = int(RNG.choice(CHANNELS)), int(RNG.integers(1, 12)), int(RNG.integers(1, 12))
    x = RNG.standard_normal((int(RNG.integers(1, 3)), h, w, c)).astype(dtype)
    if RNG.random() < 0.4:
        x = np.round(x)  # ties
    return x


def draw_window(dilate):
    k = (int(RNG.integers(1, 6)), int(RNG.integers(1, 6)))
    if RNG.random() < 0.4:
        k = (2, 2) if RNG.random() < 0.5 else (3, 3)
    s = k if RNG.random() < 0.4 else (int(RNG.integers(1, 4)), int(RNG.integers(1, 4)))
    p = tuple(int(RNG.integers(0, v // 2 + 1)) for v in k)
    d = (
        (int(RNG.integers(1, 3)), int(RNG.integers(1, 3)))
        if dilate and RNG.random() < 0.4
        else (1, 1)
    )
    return k, s, p, d, bool(RNG.random() < 0.3)


@pytest.mark.parametrize("seed", range(8))
def test_max_pool2d(seed):
    reseed(seed)
    done = 0
    while done < 25:
        x, (k, s, p, d, ceil) = draw(), draw_window(True)
        if RNG.random() < 0.2:
            x[RNG.random(x.shape) < 0.2] = RNG.choice([-np.inf, np.nan, np.inf])
        if min(out_size(x.shape[1 + i], k[i], s[i], p[i], d[i], ceil) for i in (0, 1)) < 1:
            with pytest.raises(ValueError, match="larger than the input"):
                F.max_pool2d(gs.tensor(x), k, s, p, d, ceil)
            continue
        rows, cols = (windows(x.shape[1 + i], k[i], s[i], p[i], d[i], ceil) for i in (0, 1))
        check(
            F.max_pool2d,
            x,
            (
                k,
                s,
                p,
                d,
                ceil,
            ),
            max_reference,
            (
                rows,
                cols,
            ),
            True,
        )
        done += 1


@pytest.mark.parametrize("k, p", [(2, 0), (3, 0), (3, 1)])
@pytest.mark.parametrize("c", [1, 3, 8, 12, 24])
def test_max_pool2d_one_nan(c, k, p):
    # at the ends of rows, where vectors do, and once in between
    torch = pytest.importorskip("torch")
    reseed(c)
    for width in (8, 9, 17, 33):
        for col in (0, width // 2, width - 2, width - 1):
            x = RNG.standard_normal((3, 9, width, c)).astype(np.float32)
            for n, row in enumerate((3, 4, 6)):
                x[n, row, col, RNG.integers(c)] = np.nan
            t = torch.nn.functional.max_pool2d(torch.tensor(np.moveaxis(x, -1, 1)), k, 2, p)
            y = F.max_pool2d(gs.tensor(x), k, 2, p)
            assert np.array_equal(y.numpy(), np.moveaxis(t.numpy(), 1, -1), equal_nan=True)


@pytest.mark.parametrize("seed", range(6))
def test_avg_pool2d(seed):
    reseed(100 + seed)
    done = 0
    while done < 25:
        x, (k, s, p, _, ceil) = draw(), draw_window(False)
        pad, div = bool(RNG.random() < 0.5), None if RNG.random() < 0.7 else 3
        if min(out_size(x.shape[1 + i], k[i], s[i], p[i], 1, ceil) for i in (0, 1)) < 1:
            with pytest.raises(ValueError, match="larger than the input"):
                F.avg_pool2d(gs.tensor(x), k, s, p, ceil, pad, div)
            continue
        rows, cols = (windows(x.shape[1 + i], k[i], s[i], p[i], 1, ceil) for i in (0, 1))
        check(
            F.avg_pool2d,
            x,
            (
                k,
                s,
                p,
                ceil,
                pad,
                div,
            ),
            avg_reference,
            (
                rows,
                cols,
                pad,
                div,
            ),
            False,
        )
        done += 1


@pytest.mark.parametrize("seed", range(4))
def test_adaptive(seed):
    reseed(200 + seed)
    for _ in range(20):
        x, out = draw(), (int(RNG.integers(1, 14)), int(RNG.integers(1, 14)))
        rows, cols = (adaptive_windows(x.shape[1 + i], out[i]) for i in (0, 1))
        check(
            F.adaptive_max_pool2d,
            x,
            (out,),
            max_reference,
            (
                rows,
                cols,
            ),
            True,
        )
        check(
            F.adaptive_avg_pool2d,
            x,
            (out,),
            avg_reference,
            (
                rows,
                cols,
            ),
            False,
        )


def test_one_dimension():
    for c in CHANNELS:
        x = RNG.standard_normal((2, 13, c))
        cases = (
            (F.max_pool1d(gs.tensor(x), 3, 2, 1), max_reference, windows(13, 3, 2, 1, 1, False)),
            (
                F.avg_pool1d(gs.tensor(x), 3, 2, 1, True, True),
                avg_reference,
                windows(13, 3, 2, 1, 1, True),
            ),
            (F.adaptive_max_pool1d(gs.tensor(x), 5), max_reference, adaptive_windows(13, 5)),
            (F.adaptive_avg_pool1d(gs.tensor(x), 5), avg_reference, adaptive_windows(13, 5)),
        )
        for y, reference, cols in cases:
            ref = reference(x[:, None], [([0], 1)], cols, np.zeros((2, 1, len(cols), c)))[0][:, 0]
            assert np.allclose(y.numpy(), ref, rtol=1e-13)


def test_large_windows():
    # more than 255 taps: a wider index; global pooling
    for dtype, c in ((np.float32, 3), (np.float32, 70), (np.float64, 20)):
        x = RNG.standard_normal((2, 20, 23, c)).astype(dtype)
        rows, cols = windows(20, 17, 2, 3, 1, False), windows(23, 17, 3, 1, 1, False)
        check(
            F.max_pool2d,
            x,
            (
                17,
                (2, 3),
                (3, 1),
            ),
            max_reference,
            (
                rows,
                cols,
            ),
            True,
        )
        one = [(list(range(20)), 20)], [(list(range(23)), 23)]
        check(F.adaptive_max_pool2d, x, (1,), max_reference, (*one,), True)
        check(F.adaptive_avg_pool2d, x, (1,), avg_reference, (*one,), False)
    x = (RNG.standard_normal((1, 200, 200, 4)) + 100).astype(np.float32)
    mean = F.adaptive_avg_pool2d(gs.tensor(x), 1).numpy().reshape(4)
    assert np.allclose(mean, x.mean((0, 1, 2), dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("c", [1, 5, 17])
def test_gradcheck(c):
    x = gs.tensor(RNG.permutation(2 * 5 * 6 * c).reshape(2, 5, 6, c) * 0.01, requires_grad=True)
    for fn in (
        lambda t: F.max_pool2d(t, 2),
        lambda t: F.max_pool2d(t, 3, 2, 1),
        lambda t: F.max_pool2d(t, 2, 1, 0, 2),
        lambda t: F.avg_pool2d(t, 2),
        lambda t: F.avg_pool2d(t, 3, 2, 1, True, False),
        lambda t: F.adaptive_avg_pool2d(t, (2, 4)),
        lambda t: F.adaptive_max_pool2d(t, (3, 2)),
    ):
        assert gs.gradcheck(fn, (x,))


@pytest.mark.parametrize("c", [1, 2, 3, 5, 6, 7, 8])
def test_few_channels_in_wide_rows(c):
    """Rows of several blocks of pixels: whole blocks, one that overlaps, edges, the array's end."""
    reseed(300 + c)
    for k, s, p, d in (
        (2, 2, 0, 1),
        (2, 2, 1, 1),
        (2, 1, 0, 1),
        (3, 2, 1, 1),
        (3, 3, 0, 1),
        (4, 4, 1, 1),
        (5, 5, 0, 1),
        (3, 1, 1, 2),
        (2, 3, 0, 1),
    ):
        for dtype in (np.float32, np.float64):
            h, w = int(RNG.integers(7, 12)), int(RNG.integers(20, 75))
            x = RNG.standard_normal((2, h, w, c)).astype(dtype)
            if RNG.random() < 0.5:
                x = np.round(x)  # ties
                x[RNG.random(x.shape) < 0.05] = RNG.choice([-np.inf, np.nan, np.inf])
            ceil = bool(RNG.random() < 0.3)
            rows, cols = windows(h, k, s, p, d, ceil), windows(w, k, s, p, d, ceil)
            check(F.max_pool2d, x, (k, s, p, d, ceil), max_reference, (rows, cols), True)
            if d > 1:
                continue
            x = np.where(np.isfinite(x), x, dtype(1))
            pad, div = bool(RNG.random() < 0.5), None if RNG.random() < 0.7 else 3
            rest = (rows, cols, pad, div)
            check(F.avg_pool2d, x, (k, s, p, ceil, pad, div), avg_reference, rest, False)


@pytest.mark.parametrize("shape", [(8, 128, 128, 16), (8, 256, 340, 3), (2, 1024, 1024, 1)])
def test_larger_than_the_caches(shape):
    """Results that go past the caches: tiles, sliding sums, one window for the whole image."""
    n, h, w, c = shape
    x = RNG.standard_normal(shape, dtype=np.float32)
    g = RNG.standard_normal((n, h // 2, w // 2, c), dtype=np.float32)
    tiles, spread = (
        x.reshape(n, h // 2, 2, w // 2, 2, c),
        np.broadcast_to(g[:, :, None, :, None], (n, h // 2, 2, w // 2, 2, c)),
    )
    y = tiles.max((2, 4))
    X = gs.tensor(x, requires_grad=True)
    got = F.max_pool2d(X, 2)
    got.backward(gs.tensor(g))
    assert np.array_equal(got.detach().numpy(), y)
    hit = tiles == y[:, :, None, :, None]
    assert np.array_equal(X.grad.numpy().reshape(tiles.shape), np.where(hit, spread, 0))

    X = gs.tensor(x, requires_grad=True)
    got = F.avg_pool2d(X, 2)
    got.backward(gs.tensor(g))
    assert np.allclose(got.detach().numpy(), tiles.mean((2, 4)), rtol=1e-5, atol=1e-6)
    assert np.array_equal(X.grad.numpy().reshape(tiles.shape), spread / 4)

    def box(a):  # zero outside, sums of 3 x 3 neighbours
        a = np.pad(a.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
        a = a[:, :-2] + a[:, 1:-1] + a[:, 2:]
        return a[:, :, :-2] + a[:, :, 1:-1] + a[:, :, 2:]

    X = gs.tensor(x, requires_grad=True)
    got = F.avg_pool2d(X, 3, 1, 1)
    g = RNG.standard_normal(shape, dtype=np.float32)
    got.backward(gs.tensor(g))
    assert np.allclose(got.detach().numpy(), box(x) / 9, rtol=1e-5, atol=1e-6)
    assert np.allclose(X.grad.numpy(), box(g) / 9, rtol=1e-5, atol=1e-6)

    X = gs.tensor(x, requires_grad=True)
    g = RNG.standard_normal((n, 1, 1, c), dtype=np.float32)
    F.adaptive_avg_pool2d(X, 1).backward(gs.tensor(g))
    assert np.allclose(X.grad.numpy(), np.broadcast_to(g / (h * w), shape), rtol=1e-6)


def test_same_bits_on_any_number_of_threads():
    before = gs.get_num_threads()
    for c in (1, 3, 6, 12, 24, 48):
        x = RNG.standard_normal((16, 64, 64, c)).astype(np.float32)
        for fn in (
            lambda t: F.max_pool2d(t, 2),
            lambda t: F.max_pool2d(t, 3, 2, 1),
            lambda t: F.avg_pool2d(t, 3, 2, 1),
            lambda t: F.avg_pool2d(t, 3, 1, 1),
            lambda t: F.adaptive_avg_pool2d(t, 5),
        ):
            results = []
            try:
                for n in (1, 2, 3):
                    gs.set_num_threads(n)
                    X = gs.tensor(x, requires_grad=True)
                    y = fn(X)
                    y.backward(
                        gs.tensor(np.cos(np.arange(y.size)).astype(np.float32).reshape(y.shape))
                    )
                    results.append((y.detach().numpy(), X.grad.numpy()))
            finally:
                gs.set_num_threads(before)
            for a, b in results[1:]:
                assert np.array_equal(a, results[0][0]) and np.array_equal(b, results[0][1])


def test_strided_input():
    x = RNG.standard_normal((4, 9, 10, 6)).astype(np.float32)
    for view in (x[:, ::-1], x[..., ::2], x.transpose(0, 2, 1, 3)):
        a = F.max_pool2d(gs.tensor(view), 3, 2, 1).numpy()
        assert np.array_equal(
            a, F.max_pool2d(gs.tensor(np.ascontiguousarray(view)), 3, 2, 1).numpy()
        )


def test_layers():
    x = gs.tensor(RNG.standard_normal((2, 9, 8, 5)).astype(np.float32))
    pairs = (
        (nn.MaxPool2d(2), F.max_pool2d(x, 2)),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), F.avg_pool2d(x, 3, 2, 1, False, False)),
        (nn.AdaptiveAvgPool2d((2, None)), F.adaptive_avg_pool2d(x, (2, 8))),
        (nn.AdaptiveMaxPool2d(3), F.adaptive_max_pool2d(x, (3, 3))),
    )
    for layer, y in pairs:
        assert np.array_equal(layer(x).numpy(), y.numpy())
        assert layer.state_dict() == {} and "size" in repr(layer)
    s = gs.tensor(RNG.standard_normal((2, 9, 5)).astype(np.float32))
    assert nn.MaxPool1d(2)(s).shape == (2, 4, 5) and nn.AvgPool1d(2)(s).shape == (2, 4, 5)
    assert nn.AdaptiveAvgPool1d(3)(s).shape == nn.AdaptiveMaxPool1d(3)(s).shape == (2, 3, 5)
    assert F.max_pool2d(gs.zeros(0, 4, 4, 3), 2).shape == (0, 2, 2, 3)


def test_bad_input():
    x = gs.zeros(2, 4, 4, 3)
    with pytest.raises(
        ValueError, match=r"max_pool2d: the window is larger than the input.*\(2, 4, 4, 3\)"
    ):
        F.max_pool2d(x, 5)
    with pytest.raises(ValueError, match="larger than the input"):
        F.avg_pool2d(x, 5)
    with pytest.raises(ValueError, match="half of the window"):
        F.max_pool2d(x, 2, padding=2)
    for bad in (0, -1):
        with pytest.raises(ValueError, match=rf"must lie between 1 and 2\^24, got .*{bad}"):
            F.max_pool2d(x, bad)
        with pytest.raises(ValueError, match=rf"must lie between 1 and 2\^24, got .*{bad}"):
            F.max_pool2d(x, 2, bad)
        with pytest.raises(ValueError, match=rf"must lie between 1 and 2\^24, got .*{bad}"):
            F.adaptive_avg_pool2d(x, bad)
    with pytest.raises(ValueError, match="divisor"):
        F.avg_pool2d(x, 2, divisor_override=0)
    with pytest.raises(ValueError, match="kernel_size"):
        F.max_pool2d(x, (2, 2, 2))
    with pytest.raises(TypeError, match="integers"):
        F.max_pool2d(x, (2.5, 2))
    with pytest.raises(ValueError, match=r"\(N, H, W, C\)"):
        F.max_pool2d(gs.zeros(4, 4, 3), 2)
    with pytest.raises(ValueError, match=r"\(N, T, C\)"):
        F.avg_pool1d(x, 2)
    with pytest.raises(ValueError, match="must not be 0"):
        F.max_pool2d(gs.zeros(2, 4, 4, 0), 2)
    with pytest.raises(TypeError):
        F.max_pool2d(gs.tensor(np.zeros((1, 4, 4, 1), np.int32)), 2)
    with pytest.raises(ValueError):
        F.max_pool2d(x, 10**18)


def test_against_torch():
    torch = pytest.importorskip("torch")
    tf = torch.nn.functional
    for _ in range(150):
        x, (k, s, p, d, ceil) = draw(), draw_window(True)
        if any(b != 1 and a % b for a, b in zip(p, d)):
            continue  # PyTorch writes outside its memory for windows without a tap in the image
        pad, out = bool(RNG.random() < 0.5), (int(RNG.integers(1, 9)), int(RNG.integers(1, 9)))
        for ours, theirs, args in (
            (F.max_pool2d, tf.max_pool2d, (k, s, p, d, ceil)),
            (F.avg_pool2d, tf.avg_pool2d, (k, s, p, ceil, pad)),
            (F.adaptive_avg_pool2d, tf.adaptive_avg_pool2d, (out,)),
            (F.adaptive_max_pool2d, tf.adaptive_max_pool2d, (out,)),
        ):
            X = gs.tensor(x, requires_grad=True)
            T = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
            try:
                t = theirs(T, *args)
            except RuntimeError:
                with pytest.raises(ValueError):
                    ours(X, *args)
                continue
            y = ours(X, *args)
            g = RNG.standard_normal(y.shape).astype(x.dtype)
            y.backward(gs.tensor(g))
            t.backward(torch.tensor(np.moveaxis(g, -1, 1).copy()))
            for a, b in ((y.detach(), t.detach()), (X.grad, T.grad)):
                tol = 1e-5 if x.dtype == np.float32 else 1e-13
                assert np.allclose(a.numpy(), np.moveaxis(b.numpy(), 1, -1), rtol=tol, atol=tol)


def test_indices_of_the_maxima(rng):
    """return_indices: where in the image each maximum stands."""
    for shape, args in (
        ((2, 7, 9, 3), (2,)),
        ((2, 7, 9, 3), ((3, 2), (2, 1), 1, 1, True)),
        ((1, 8, 8, 2), (3, 1, 1, 2)),
        ((1, 40, 40, 2), ((18, 17), (3, 2))),
        ((0, 4, 4, 2), (2,)),
    ):
        x = gs.tensor(rng.permutation(int(np.prod(shape))).reshape(shape).astype("f"))
        y, at = F.max_pool2d(x, *args, return_indices=True)
        assert at.dtype == np.int64 and at.shape == y.shape
        flat = x.numpy().reshape(shape[0], shape[1] * shape[2], shape[-1])
        rows = at.numpy().reshape(shape[0], at.shape[1] * at.shape[2], shape[-1])
        found = np.take_along_axis(flat, rows, 1)
        np.testing.assert_array_equal(found.reshape(y.shape), y.numpy())
        np.testing.assert_array_equal(y.numpy(), F.max_pool2d(x, *args).numpy())
    x = gs.randn(2, 9, 3, requires_grad=True)
    y, at = nn.MaxPool1d(3, 2, 1, 1, True, True)(x)  # PyTorch's order: return_indices, ceil_mode
    np.testing.assert_array_equal(
        np.take_along_axis(x.detach().numpy(), at.numpy(), 1), y.detach().numpy()
    )
    y.sum().backward()
    assert x.grad.numpy().sum() == y.numel()


def test_indices_of_adaptive_maxima(rng):
    """return_indices of adaptive pooling: windows of different sizes, ties, NaN; the layers; the gradient."""
    torch = pytest.importorskip("torch")
    for shape, out in (
        ((2, 7, 9, 3), (3, 4)),
        ((1, 5, 6, 17), (7, 2)),
        ((2, 40, 37, 2), 1),
        ((1, 33, 20, 16), (2, 20)),
        ((2, 8, 8, 1), (None, 3)),
    ):
        for kind in ("plain", "ties", "nan"):
            x = rng.standard_normal(shape)
            if kind != "plain":
                x = np.round(x)
            if kind == "nan":
                x[rng.random(shape) < 0.1] = np.nan
            X = gs.tensor(x, requires_grad=True)
            T = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
            y, at = F.adaptive_max_pool2d(X, out, return_indices=True)
            t, where = torch.nn.functional.adaptive_max_pool2d(T, out, return_indices=True)
            assert at.dtype == np.int64 and not at.requires_grad
            assert np.array_equal(at.numpy(), np.moveaxis(where.numpy(), 1, -1))
            assert np.array_equal(
                y.detach().numpy(), np.moveaxis(t.detach().numpy(), 1, -1), equal_nan=True
            )
            g = rng.standard_normal(y.shape)
            y.backward(gs.tensor(g))
            t.backward(torch.tensor(np.moveaxis(g, -1, 1).copy()))
            assert np.allclose(X.grad.numpy(), np.moveaxis(T.grad.numpy(), 1, -1), rtol=1e-13)
            layer = nn.AdaptiveMaxPool2d(out, True)(gs.tensor(x))
            assert np.array_equal(layer[1].numpy(), at.numpy())
    x = rng.standard_normal((3, 29, 5))
    y, at = nn.AdaptiveMaxPool1d(4, return_indices=True)(gs.tensor(x))
    t, where = torch.nn.AdaptiveMaxPool1d(4, return_indices=True)(
        torch.tensor(x.transpose(0, 2, 1))
    )
    assert np.array_equal(at.numpy(), where.numpy().transpose(0, 2, 1))
    assert np.array_equal(y.numpy(), t.numpy().transpose(0, 2, 1))
    alone = nn.AdaptiveMaxPool1d(4)(gs.tensor(x))
    assert np.array_equal(alone.numpy(), y.numpy())


@pytest.mark.parametrize("c", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 33])
def test_overlapping_and_wide_windows(c):
    """Every form of windows that has a path of its own: strides of 1 to 4 below the window, wide windows."""
    reseed(500 + c)
    for k, s, p in (
        (2, 1, 0),
        (3, 1, 1),
        (3, 2, 0),
        (3, 2, 1),
        ((2, 3), 2, 1),
        ((3, 2), (2, 1), 1),
        (4, 2, 1),
        (5, 2, 2),
        (5, 3, 1),
        (7, 2, 3),
        (3, 3, 0),
        (4, 4, 0),
        ((6, 5), (2, 4), 0),
        ((9, 40), (5, 20), (0, 7)),
    ):
        for dtype in (np.float32, np.float64):
            h, w = int(RNG.integers(9, 14)), int(RNG.integers(34, 90))
            x = RNG.standard_normal((2, h, w, c)).astype(dtype)
            if RNG.random() < 0.5:
                x = np.round(x)  # ties
                x[RNG.random(x.shape) < 0.02] = RNG.choice([-np.inf, np.nan, np.inf])
            k2, s2, p2 = ((v, v) if isinstance(v, int) else v for v in (k, s, p))
            ceil = bool(RNG.random() < 0.3)
            rows, cols = (windows((h, w)[i], k2[i], s2[i], p2[i], 1, ceil) for i in (0, 1))
            check(F.max_pool2d, x, (k, s, p, 1, ceil), max_reference, (rows, cols), True)
            x = np.where(np.isfinite(x), x, dtype(1))
            pad, div = bool(RNG.random() < 0.5), None if RNG.random() < 0.7 else 3
            check(
                F.avg_pool2d,
                x,
                (k, s, p, ceil, pad, div),
                avg_reference,
                (rows, cols, pad, div),
                False,
            )


@pytest.mark.parametrize("c", [1, 3, 6, 11, 15, 16, 24, 64])
def test_windows_two_apart(c):
    """Windows of 2 x 2 and 3 x 3, two apart: rows of any length, also of several blocks of columns; what lies behind
    a row or a window has no part in it."""
    reseed(900 + c)
    wide = {1: 4150, 3: 1400, 6: 560}.get(c, 290 if c < 17 else 150)
    for k, p in ((2, 0), (3, 0), (3, 1)):
        for h, w in ((2, 2), (3, 7), (6, 8), (7, 33), (12, 64), (5, wide)):
            if min(h, w) < k:
                continue
            for ceil in (False, True):
                dtype = np.float32 if w % 2 or ceil else np.float64
                x = RNG.standard_normal((2, h, w, c)).astype(dtype)
                kind = RNG.integers(3)
                if kind:
                    x = np.round(x)
                if kind == 2:
                    x[RNG.random(x.shape) < 0.01] = RNG.choice([-np.inf, np.nan, np.inf])
                    x[:, h // 2] = -np.inf
                rows, cols = (windows(n, k, 2, p, 1, ceil) for n in (h, w))
                check(F.max_pool2d, x, (k, 2, p, 1, ceil), max_reference, (rows, cols), True)
                x = np.where(np.isfinite(x), x, dtype(1))
                check(F.avg_pool2d, x, (k, 2, p, ceil), avg_reference, (rows, cols), False)


@pytest.mark.parametrize("c", [1, 3, 6, 24])
def test_same_bits_wherever_an_image_lies(c):
    """Results do not depend on where in an array an image lies, nor on what lies behind it."""
    x = RNG.standard_normal((9, 17, 38, c)).astype(np.float32)
    for fn in (
        lambda t: F.max_pool2d(t, 3, 2, 1),
        lambda t: F.max_pool2d(t, 2),
        lambda t: F.max_pool2d(t, 3, 1, 1),
        lambda t: F.adaptive_max_pool2d(t, 1),
        lambda t: F.avg_pool2d(t, 2),
        lambda t: F.avg_pool2d(t, 3, 2),
        lambda t: F.avg_pool2d(t, 3, 1, 1),
        lambda t: F.adaptive_avg_pool2d(t, 3),
    ):
        X = gs.tensor(x, requires_grad=True)
        y = fn(X)
        g = RNG.standard_normal(y.shape).astype(np.float32)
        y.backward(gs.tensor(g))
        for i in (0, 4, 8):
            one = gs.tensor(x[i : i + 1].copy(), requires_grad=True)
            z = fn(one)
            z.backward(gs.tensor(g[i : i + 1].copy()))
            assert np.array_equal(z.detach().numpy()[0], y.detach().numpy()[i])
            assert np.array_equal(one.grad.numpy()[0], X.grad.numpy()[i])
