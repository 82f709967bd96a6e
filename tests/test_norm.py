"""Batch, layer, group, instance and RMS norm against float64 NumPy, PyTorch and central differences."""

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F

RNG = np.random.default_rng(20240611)
CHANNELS = [1, 3, 15, 16, 17, 31, 64, 65, 130]


def tol(dtype):
    return 3e-6 if dtype == np.float32 else 1e-12


def grads(y, g, *inputs):
    for t in inputs:
        t.grad = None
    y.backward(gs.tensor(g))
    return [t.grad.numpy() for t in inputs]


def leaf(a):
    return gs.tensor(a, requires_grad=True)


# ---- references in float64
def normalise(x, axes, eps):
    x = x.astype(np.float64)
    mean = x.mean(axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + eps), 1 / np.sqrt(var + eps)


def normalise_grad(xhat, rstd, axes, dxhat):
    return rstd * (
        dxhat - dxhat.mean(axes, keepdims=True) - xhat * (dxhat * xhat).mean(axes, keepdims=True)
    )


def close(a, b, dtype, size=1.0):
    """Equal up to rounding; size: of the terms that b is the difference of."""
    b = np.asarray(b)
    assert a.shape == b.shape and a.dtype == dtype
    bound = tol(dtype) * max(1.0, size, np.abs(b).max(initial=0))
    assert np.abs(a - b).max(initial=0) <= bound


def close_sum(a, terms, axes, dtype, size=None):
    """a is the sum of the terms up to eps * (4 + log2 n) * sum |size|; size: how large their parts are."""
    n = terms.size // max(a.size, 1)
    assert a.dtype == dtype
    bound = (
        np.finfo(dtype).eps * (4 + np.log2(n)) * np.abs(terms if size is None else size).sum(axes)
    )
    assert (np.abs(a - terms.sum(axes, dtype=np.float64)) <= bound).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", CHANNELS)
@pytest.mark.parametrize("rows", [(5,), (9, 7), (3, 10, 9), (2100,), (600,)])
def test_batch_norm(dtype, c, rows):
    x = (RNG.standard_normal((*rows, c)) * 2 + 1).astype(dtype)
    w, b = RNG.standard_normal(c).astype(dtype), RNG.standard_normal(c).astype(dtype)
    g = RNG.standard_normal(x.shape).astype(dtype)
    axes = tuple(range(x.ndim - 1))
    X, W, B = leaf(x), leaf(w), leaf(b)
    mean, var = gs.zeros(c, dtype=dtype), gs.ones(c, dtype=dtype)
    y = F.batch_norm(X, mean, var, W, B, training=True, momentum=0.3, eps=1e-5)
    xhat, rstd = normalise(x, axes, 1e-5)
    close(y.detach().numpy(), xhat * w + b, dtype)
    n = x.size // c
    close(mean.numpy(), 0.3 * x.mean(axes, dtype=np.float64), dtype)
    close(var.numpy(), 0.7 + 0.3 * x.var(axes, dtype=np.float64) * n / (n - 1), dtype)
    dx, dw, db = grads(y, g, X, W, B)
    g64 = g.astype(np.float64)
    close(dx, normalise_grad(xhat, rstd, axes, g64 * w), dtype, np.abs(rstd * g64 * w).max())
    close_sum(dw, g64 * xhat, axes, dtype, np.abs(g64) * (1 + np.abs(xhat)))
    close_sum(db, g64, axes, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [1, 3, 16, 65])
def test_batch_norm_evaluation(dtype, c):
    x = RNG.standard_normal((4, 5, 3, c)).astype(dtype)
    mean, var = RNG.standard_normal(c).astype(dtype), (RNG.random(c) + 0.5).astype(dtype)
    w, b = RNG.standard_normal(c).astype(dtype), RNG.standard_normal(c).astype(dtype)
    g = RNG.standard_normal(x.shape).astype(dtype)
    X, W, B, M, S = leaf(x), leaf(w), leaf(b), gs.tensor(mean), gs.tensor(var)
    y = F.batch_norm(X, M, S, W, B)
    rstd = 1 / np.sqrt(var.astype(np.float64) + 1e-5)
    xhat = (x - mean.astype(np.float64)) * rstd
    close(y.detach().numpy(), xhat * w + b, dtype)
    dx, dw, db = grads(y, g, X, W, B)
    close(dx, g * w * rstd, dtype)
    close_sum(dw, g * xhat, (0, 1, 2), dtype, np.abs(g) * (1 + np.abs(xhat)))
    close_sum(db, g, (0, 1, 2), dtype)
    assert np.array_equal(M.numpy(), mean) and np.array_equal(S.numpy(), var)


@pytest.mark.parametrize("c", [1, 5, 16, 64, 200])
def test_batch_norm_far_from_zero(c):
    """mean / std = 1e4 in float32: statistics to 1e-6, the output to a few ulps of its own size."""
    x = (RNG.standard_normal((4000, c)) * 0.5 + 5000).astype(np.float32)
    x64 = x.astype(np.float64)
    mean, var = gs.zeros(c), gs.ones(c)
    y = F.batch_norm(leaf(x), mean, var, training=True, momentum=1.0, eps=0.0)
    assert np.allclose(mean.numpy(), x64.mean(0), rtol=1e-7, atol=0)
    assert np.allclose(var.numpy(), x64.var(0, ddof=1), rtol=1e-6, atol=0)
    ref = (x64 - x64.mean(0)) / x64.std(0)
    assert np.abs(y.detach().numpy() - ref).max() < 3e-6
    # an outlier in the first rows, which choose the shift: at most 1 + 256 / 8 times the rounding
    x[0] = 5e6
    x64 = x.astype(np.float64)
    F.batch_norm(gs.tensor(x), mean, var, training=True, momentum=1.0, eps=0.0)
    assert np.allclose(var.numpy(), x64.var(0, ddof=1), rtol=4e-6, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("with_residual", [False, True])
def test_batch_norm_fused(dtype, with_residual):
    for c in (3, 16, 70):
        x = RNG.standard_normal((40, 3, c)).astype(dtype)
        r = RNG.standard_normal(x.shape).astype(dtype)
        w, b = RNG.standard_normal(c).astype(dtype), RNG.standard_normal(c).astype(dtype)
        g = RNG.standard_normal(x.shape).astype(dtype)
        X, W, B, R = leaf(x), leaf(w), leaf(b), leaf(r)
        y = F.batch_norm(
            X, None, None, W, B, True, residual=R if with_residual else None, relu=True
        )
        xhat, rstd = normalise(x, (0, 1), 1e-5)
        z = xhat * w + b + (r if with_residual else 0)
        close(y.detach().numpy(), np.maximum(z, 0), dtype)
        gz = np.where(y.detach().numpy() > 0, g, 0).astype(np.float64)
        y.backward(gs.tensor(g))
        close(
            X.grad.numpy(),
            normalise_grad(xhat, rstd, (0, 1), gz * w),
            dtype,
            np.abs(rstd * gz * w).max(),
        )
        close_sum(W.grad.numpy(), gz * xhat, (0, 1), dtype, np.abs(gz) * (1 + np.abs(xhat)))
        close_sum(B.grad.numpy(), gz, (0, 1), dtype)
        if with_residual:
            assert np.array_equal(R.grad.numpy(), gz.astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape",
    [(3, 6), (32, 64), (5, 90), (3, 1100), (2, 4100), (2, 5, 12), (1, 9, 8, 64), (3, 4, 4, 48), (4, 3, 3, 200),
     (2, 40, 40, 6)],
)  # fmt: skip
def test_group_norm(dtype, shape):
    c = shape[-1]
    for groups in {1, 2, c // 2, c}:
        if groups < 1 or c % groups:
            continue
        x = (RNG.standard_normal(shape) + 0.5).astype(dtype)
        w, b = RNG.standard_normal(c).astype(dtype), RNG.standard_normal(c).astype(dtype)
        g = RNG.standard_normal(shape).astype(dtype)
        X, W, B = leaf(x), leaf(w), leaf(b)
        y = F.group_norm(X, groups, W, B)
        split = (shape[0], -1, groups, c // groups)
        xhat, rstd = normalise(x.reshape(split), (1, 3), 1e-5)
        flat = xhat.reshape(shape)
        close(y.detach().numpy(), flat * w + b, dtype)
        dx, dw, db = grads(y, g, X, W, B)
        ref = normalise_grad(xhat, rstd, (1, 3), (g.astype(np.float64) * w).reshape(split))
        if x.size // shape[0] // groups > 1:
            close(dx, ref.reshape(shape), dtype, np.abs(rstd).max() * np.abs(g * w).max())
        axes = tuple(range(len(shape) - 1))
        close_sum(dw, g * flat, axes, dtype, np.abs(g) * (1 + np.abs(flat)))
        close_sum(db, g, axes, dtype)


@pytest.mark.parametrize("groups,channels", [(8, 64), (3, 21), (70, 350)])
def test_group_norm_of_one_row_a_sample(groups, channels):
    """The kernel for many small groups: far from zero, NaN in one group, parts of the gradients, same bits."""
    x = (RNG.standard_normal((9, channels)) * 0.5 + 5000).astype(np.float32)
    y = F.group_norm(gs.tensor(x), groups, eps=0.0).numpy()
    ref, _ = normalise(x.reshape(9, groups, -1), 2, 0.0)
    assert np.abs(y - ref.reshape(x.shape)).max() < 3e-6
    x = RNG.standard_normal((9, channels)).astype(np.float32)
    w = RNG.standard_normal(channels).astype(np.float32)
    g = RNG.standard_normal(x.shape).astype(np.float32)
    X, W, B = leaf(x), leaf(w), leaf(w[::-1].copy())
    y = F.group_norm(X, groups, W, B)
    dx, dw, db = grads(y, g, X, W, B)
    before = gs.get_num_threads()
    for n in (1, 2, 3):
        gs.set_num_threads(n)
        again = F.group_norm(X, groups, W, B)
        assert np.array_equal(again.detach().numpy(), y.detach().numpy())
        for a, b in zip(grads(again, g, X, W, B), (dx, dw, db), strict=True):
            assert np.array_equal(a, b)
    gs.set_num_threads(before)
    (only,) = grads(F.group_norm(X, groups, gs.tensor(w), gs.tensor(w)), g, X)
    assert np.array_equal(only, dx)
    weights = grads(F.group_norm(gs.tensor(x), groups, W, B), g, W, B)
    assert np.array_equal(weights[0], dw) and np.array_equal(weights[1], db)
    x[4, 1] = np.nan
    y = F.group_norm(gs.tensor(x), groups, W, B).detach().numpy()
    bad = np.isnan(y)
    assert bad[4, : channels // groups].all() and bad.sum() == channels // groups


@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 6, 5, 17), (1, 2, 2, 64)])
def test_instance_norm(shape):
    x = RNG.standard_normal(shape)
    g = RNG.standard_normal(shape)
    axes = tuple(range(1, len(shape) - 1))
    X = leaf(x)
    y = F.instance_norm(X)
    xhat, rstd = normalise(x, axes, 1e-5)
    close(y.detach().numpy(), xhat, np.float64)
    close(grads(y, g, X)[0], normalise_grad(xhat, rstd, axes, g), np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(
    "shape,dims",
    [((7, 1), 1), ((5, 3), 1), ((300, 17), 1), ((9, 64), 1), ((2, 65, 100), 1), ((3, 4, 5, 6), 2), ((70, 1000), 1), ((1, 9000), 1), ((3, 2, 2049), 2)],
)  # fmt: skip
def test_layer_norm(dtype, rms, shape, dims):
    x = (RNG.standard_normal(shape) + 0.5).astype(dtype)
    tail = shape[-dims:]
    w, b = RNG.standard_normal(tail).astype(dtype), RNG.standard_normal(tail).astype(dtype)
    g = RNG.standard_normal(shape).astype(dtype)
    g64, axes = g.astype(np.float64), tuple(range(len(shape) - dims, len(shape)))
    rest = tuple(range(len(shape) - dims))
    X, W, B = leaf(x), leaf(w), leaf(b)
    if rms:
        x64 = x.astype(np.float64)
        rstd = 1 / np.sqrt((x64**2).mean(axes, keepdims=True) + 1e-3)
        xhat = x64 * rstd
        y = F.rms_norm(X, tail, W, 1e-3)
        ref = xhat * w
        dref = rstd * (g64 * w - xhat * (g64 * w * xhat).mean(axes, keepdims=True))
    else:
        xhat, rstd = normalise(x, axes, 1e-3)
        y = F.layer_norm(X, tail, W, B, 1e-3)
        ref = xhat * w + b
        dref = normalise_grad(xhat, rstd, axes, g64 * w)
    close(y.detach().numpy(), ref, dtype)
    y.backward(gs.tensor(g))
    close(X.grad.numpy(), dref, dtype, np.abs(rstd).max() * np.abs(g64 * w).max())
    close_sum(W.grad.numpy(), g64 * xhat, rest, dtype, np.abs(g64) * (1 + np.abs(xhat)))
    if not rms:
        close_sum(B.grad.numpy(), g64, rest, dtype)
    plain = (
        F.rms_norm(gs.tensor(x), tail, None, 1e-3)
        if rms
        else F.layer_norm(gs.tensor(x), tail, eps=1e-3)
    )
    close(plain.numpy(), xhat, dtype)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("c", [1, 10, 64, 100, 300, 700, 1500, 5000])
def test_rows_do_not_depend_on_their_neighbours(c, dtype, rms):
    """Several rows take each step together: y and dx of a row have the bits that the row has alone."""
    rng = np.random.default_rng(c)
    x = (rng.standard_normal((37, c)) * 3 + rng.standard_normal((37, 1)) * 100).astype(dtype)
    dy = rng.standard_normal((37, c)).astype(dtype)
    w = gs.tensor(rng.standard_normal(c).astype(dtype))

    def run(rows):
        a = gs.tensor(x[rows].copy(), requires_grad=True)
        y = F.rms_norm(a, (c,), w) if rms else F.layer_norm(a, (c,), w)
        y.backward(gs.tensor(dy[rows].copy()))
        return y.detach().numpy(), a.grad.numpy()

    y, dx = run(slice(None))
    for rows in (slice(0, 1), slice(3, 5), slice(5, 9), slice(16, 33), slice(36, 37)):
        some = run(rows)
        assert np.array_equal(some[0], y[rows]) and np.array_equal(some[1], dx[rows])


def test_layer_norm_far_from_zero():
    x = (RNG.standard_normal((50, 300)) * 0.5 + 5000).astype(np.float32)
    y = F.layer_norm(gs.tensor(x), 300, eps=0.0).numpy()
    assert np.abs(y - normalise(x, (1,), 0)[0]).max() < 3e-6


def test_needs_only_some_gradients():
    x = RNG.standard_normal((6, 4))
    w = gs.tensor(RNG.standard_normal(4), requires_grad=True)
    for fn in (
        lambda v: F.batch_norm(gs.tensor(x), None, None, v, training=True),
        lambda v: F.batch_norm(
            gs.tensor(x), gs.zeros(4, dtype="float64"), gs.ones(4, dtype="float64"), v
        ),
        lambda v: F.layer_norm(gs.tensor(x), 4, v),
        lambda v: F.layer_norm(gs.tensor(x), 4, None, v),
        lambda v: F.group_norm(gs.tensor(x), 2, v),
        lambda v: F.rms_norm(gs.tensor(x), 4, v),
    ):
        assert gs.gradcheck(fn, (w,))
    assert gs.gradcheck(lambda v: F.layer_norm(v, 4), (leaf(x),))


@pytest.mark.parametrize("c", [1, 3, 17])
def test_gradcheck(c):
    x, w, b = (leaf(RNG.standard_normal(s)) for s in ((5, 3, c), (c,), (c,)))
    assert gs.gradcheck(lambda *a: F.batch_norm(a[0], None, None, a[1], a[2], True), (x, w, b))
    mean, var = gs.tensor(RNG.standard_normal(c)), gs.tensor(RNG.random(c) + 0.5)
    assert gs.gradcheck(lambda *a: F.batch_norm(a[0], mean, var, a[1], a[2]), (x, w, b))
    assert gs.gradcheck(lambda *a: F.group_norm(a[0], 1, a[1], a[2]), (x, w, b))
    assert gs.gradcheck(lambda *a: F.instance_norm(a[0], weight=a[1], bias=a[2]), (x, w, b))
    assert gs.gradcheck(lambda *a: F.layer_norm(a[0], c, a[1], a[2], 0.1), (x, w, b))
    assert gs.gradcheck(lambda *a: F.rms_norm(a[0], c, a[1], 0.1), (x, w))


# large enough to be split
@pytest.mark.parametrize("shape", [(64, 24, 24, 48), (32, 4, 4, 512), (8, 4, 4, 300)])
def test_same_bits_on_any_number_of_threads(shape):
    c = shape[-1]
    x = RNG.standard_normal(shape).astype(np.float32)
    g = RNG.standard_normal(x.shape).astype(np.float32)
    w, b = RNG.standard_normal(c).astype(np.float32), RNG.standard_normal(c).astype(np.float32)
    before = gs.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            gs.set_num_threads(n)
            out = []
            for fn in (
                lambda *a: F.batch_norm(a[0], None, None, a[1], a[2], True),
                lambda *a: F.group_norm(a[0], 4, a[1], a[2]),
                lambda *a: F.layer_norm(a[0], c, a[1], a[2]),
                lambda *a: F.rms_norm(a[0], c, a[1]),
            ):
                X, W, B = leaf(x), leaf(w), leaf(b)
                y = fn(X, W, B)
                y.backward(gs.tensor(g))
                out += [y.detach().numpy(), X.grad.numpy(), W.grad.numpy()]
            results.append(out)
    finally:
        gs.set_num_threads(before)
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))


def test_strided_input():
    x = RNG.standard_normal((6, 8, 5)).astype(np.float32)
    for view in (x[::2], x[:, ::-1], x.transpose(1, 0, 2), x[..., ::2]):
        for fn in (
            lambda t: F.batch_norm(t, None, None, training=True),
            lambda t: F.layer_norm(t, t.shape[-1]),
            lambda t: F.group_norm(t, 1),
        ):
            a, b = leaf(view), leaf(np.ascontiguousarray(view))
            ya, yb = fn(a), fn(b)
            assert np.array_equal(ya.detach().numpy(), yb.detach().numpy())
            g = RNG.standard_normal(view.shape).astype(np.float32)
            assert np.array_equal(grads(ya, g, a)[0], grads(yb, g, b)[0])


def test_nan_and_infinity_stay_in_their_channel():
    x = RNG.standard_normal((20, 3)).astype(np.float32)
    x[4, 1] = np.nan
    x[0, 2] = np.inf
    y = F.batch_norm(gs.tensor(x), None, None, training=True).numpy()
    assert np.isfinite(y[:, 0]).all() and np.isnan(y[:, 1]).all() and np.isnan(y[:, 2]).all()


# ---- layers
def test_batch_norm_layer():
    bn = nn.BatchNorm2d(4)
    assert list(bn.state_dict()) == [
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    ]
    xs = [RNG.standard_normal((3, 5, 5, 4)).astype(np.float32) for _ in range(3)]
    mean, var = np.zeros(4), np.ones(4)
    for x in xs:
        bn(gs.tensor(x))
        mean = 0.9 * mean + 0.1 * x.mean((0, 1, 2), dtype=np.float64)
        var = 0.9 * var + 0.1 * x.var((0, 1, 2), dtype=np.float64, ddof=1)
    assert np.allclose(bn.running_mean.numpy(), mean, rtol=1e-5, atol=1e-7)
    assert np.allclose(bn.running_var.numpy(), var, rtol=1e-5)
    assert bn.num_batches_tracked.item() == 3
    bn.eval()
    y = bn(gs.tensor(xs[0])).detach().numpy()
    assert np.allclose(y, (xs[0] - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    assert bn.num_batches_tracked.item() == 3
    other = nn.BatchNorm2d(4)
    other.load_state_dict(bn.state_dict())
    other.eval()
    assert np.array_equal(
        other(gs.tensor(xs[1])).detach().numpy(), bn(gs.tensor(xs[1])).detach().numpy()
    )
    bn.reset_running_stats()
    assert bn.num_batches_tracked.item() == 0 and not bn.running_mean.numpy().any()


def test_batch_norm_plain_average():
    bn = nn.BatchNorm1d(2, momentum=None)
    xs = [RNG.standard_normal((6, 2)).astype(np.float32) for _ in range(4)]
    for x in xs:
        bn(gs.tensor(x))
    assert np.allclose(bn.running_mean.numpy(), np.mean([x.mean(0) for x in xs], 0), atol=1e-6)
    assert np.allclose(
        bn.running_var.numpy(), np.mean([x.var(0, ddof=1) for x in xs], 0), atol=1e-6
    )


def test_batch_norm_without_running_statistics_or_parameters():
    bn = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    assert bn.state_dict() == {} and list(bn.parameters()) == []
    x = RNG.standard_normal((7, 3)).astype(np.float32)
    bn.eval()
    close(bn(gs.tensor(x)).numpy(), normalise(x, (0,), 1e-5)[0], np.float32)


def test_layers_round_trip():
    x = gs.tensor(RNG.standard_normal((2, 3, 4, 6)).astype(np.float32))
    for make in (
        lambda: nn.LayerNorm(6),
        lambda: nn.LayerNorm((4, 6), bias=False),
        lambda: nn.GroupNorm(3, 6),
        lambda: nn.RMSNorm(6),
        lambda: nn.InstanceNorm2d(6, affine=True),
        lambda: nn.BatchNorm2d(6),
    ):
        a, b = make(), make()
        for p in a.parameters():
            p.data[...] = RNG.standard_normal(p.shape)
        b.load_state_dict(a.state_dict())
        assert np.array_equal(a(x).detach().numpy(), b(x).detach().numpy())
        repr(a)
    assert [n for n, _ in nn.LayerNorm((4, 6), bias=False).named_parameters()] == ["weight"]
    assert [n for n, _ in nn.RMSNorm(6).named_parameters()] == ["weight"]
    assert not list(nn.LayerNorm(6, elementwise_affine=False).parameters())


# ---- bad input
def test_one_value_a_channel():
    for x in (gs.zeros(1, 64), gs.zeros(0, 64)):
        with pytest.raises(ValueError, match=r"more than one value per channel.*64\).*eval"):
            nn.BatchNorm1d(64)(x)
    bn = nn.BatchNorm1d(64)
    with pytest.raises(ValueError):
        bn(gs.zeros(1, 64))
    assert bn.num_batches_tracked.item() == 0 and not bn.running_mean.numpy().any()
    assert bn.eval()(gs.zeros(1, 64)).shape == (1, 64)
    assert bn(gs.zeros(0, 64)).shape == (0, 64)


def test_bad_input():
    x = gs.zeros(4, 3)
    with pytest.raises(ValueError, match="BatchNorm2d"):
        nn.BatchNorm2d(3)(x)
    with pytest.raises(ValueError, match="C = 4"):
        nn.BatchNorm1d(4)(x)
    with pytest.raises(ValueError, match="weight has shape"):
        F.batch_norm(x, None, None, gs.zeros(4), training=True)
    with pytest.raises(ValueError, match="running_mean"):
        F.batch_norm(x, None, None)
    with pytest.raises(TypeError, match="float64"):
        F.batch_norm(x, None, None, gs.zeros(3, dtype="float64"), training=True)
    with pytest.raises(TypeError):
        F.batch_norm(gs.tensor([[1, 2], [3, 4]]), None, None, training=True)
    with pytest.raises(ValueError, match="num_groups"):
        F.group_norm(x, 2)
    with pytest.raises(ValueError, match="num_groups"):
        nn.GroupNorm(2, 3)
    with pytest.raises(ValueError, match="normalized_shape"):
        F.layer_norm(x, 4)
    with pytest.raises(ValueError, match="normalized_shape"):
        F.layer_norm(x, (5, 4, 3))
    with pytest.raises(ValueError, match="weight"):
        F.layer_norm(x, 3, gs.zeros(4))
    with pytest.raises(ValueError, match="momentum"):
        nn.BatchNorm1d(3, momentum=1.5)
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError):
            nn.BatchNorm1d(n)
        with pytest.raises(ValueError):
            nn.LayerNorm(n)
    assert F.layer_norm(gs.zeros(0, 3), 3).shape == (0, 3)


def test_modified_in_place():
    x = leaf(RNG.standard_normal((4, 3)))
    w = gs.tensor(np.ones(3))
    y = F.batch_norm(x, None, None, w, training=True)
    w.copy_(np.zeros(3))
    with pytest.raises(RuntimeError, match="in place"):
        y.backward(gs.tensor(np.ones((4, 3))))


# ---- PyTorch
def test_against_torch():
    torch = pytest.importorskip("torch")
    tf = torch.nn.functional
    for _ in range(60):
        c = int(RNG.choice(CHANNELS))
        shape = (int(RNG.integers(2, 6)), int(RNG.integers(1, 9)), int(RNG.integers(1, 9)), c)
        x = RNG.standard_normal(shape)
        w, b, g = RNG.standard_normal(c), RNG.standard_normal(c), RNG.standard_normal(shape)
        X, W, B = leaf(x), leaf(w), leaf(b)
        tx, tw, tb = (
            torch.tensor(a, requires_grad=True) for a in (np.moveaxis(x, -1, 1).copy(), w, b)
        )
        mean, var = RNG.standard_normal(c), RNG.random(c) + 0.5
        kind, training = RNG.choice(["bn", "gn"]), bool(RNG.random() < 0.6)
        if kind == "bn":
            m, v = gs.tensor(mean), gs.tensor(var)
            tm, tv = torch.tensor(mean), torch.tensor(var)
            y = F.batch_norm(X, m, v, W, B, training, 0.2, 1e-3)
            ty = tf.batch_norm(tx, tm, tv, tw, tb, training, 0.2, 1e-3)
            assert np.allclose(m.numpy(), tm.numpy(), rtol=1e-12)
            assert np.allclose(v.numpy(), tv.numpy(), rtol=1e-12)
        else:
            groups = int(RNG.choice([d for d in range(1, c + 1) if c % d == 0]))
            y, ty = F.group_norm(X, groups, W, B, 1e-3), tf.group_norm(tx, groups, tw, tb, 1e-3)
        y.backward(gs.tensor(g))
        ty.backward(torch.tensor(np.moveaxis(g, -1, 1).copy()))
        for ours, theirs in ((y.detach(), ty.detach()), (X.grad, tx.grad)):
            assert np.allclose(
                ours.numpy(), np.moveaxis(theirs.numpy(), 1, -1), rtol=1e-9, atol=1e-10
            )
        assert np.allclose(W.grad.numpy(), tw.grad.numpy(), rtol=1e-9, atol=1e-9)
        assert np.allclose(B.grad.numpy(), tb.grad.numpy(), rtol=1e-9, atol=1e-9)
    x = RNG.standard_normal((5, 7, 33))
    for dims in ((33,), (7, 33)):
        w = RNG.standard_normal(dims)
        ours = F.layer_norm(gs.tensor(x), dims, gs.tensor(w)).numpy()
        theirs = tf.layer_norm(torch.tensor(x), dims, torch.tensor(w)).numpy()
        assert np.allclose(ours, theirs, rtol=1e-12)
        ours = F.rms_norm(gs.tensor(x), dims, gs.tensor(w)).numpy()
        assert np.allclose(
            ours, tf.rms_norm(torch.tensor(x), dims, torch.tensor(w)).numpy(), rtol=1e-12
        )
