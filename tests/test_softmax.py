"""Softmax, log-softmax and cross-entropy against float64 NumPy and PyTorch; gradients; hostile input."""

import itertools

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F


def ref_log_softmax(x, axis):
    with np.errstate(invalid="ignore", divide="ignore"):
        z = x - x.max(axis, keepdims=True)
        return z - np.log(np.exp(z).sum(axis, keepdims=True))


def ref_cross_entropy(x, target, weight, ignore, reduction, s):
    """Per the definition: q, then -sum q log p; float64. Returns loss and dlogits."""
    x = x.astype(np.float64)
    C = x.shape[-1]
    logp = ref_log_softmax(x, -1)
    w = np.ones(C) if weight is None else weight.astype(np.float64)
    if target.dtype.kind == "i":
        kept = target != ignore
        safe = np.where(kept, target, 0)
        hot = np.arange(C) == safe[..., None]
        q = hot * w[safe][..., None] * (1 - s) + s / C * w
        q = q * kept[..., None]
        count = (w[safe] * kept).sum()
        counts = kept[..., None]
    else:
        q = w * (target.astype(np.float64) * (1 - s) + s / C)
        count = float(np.prod(x.shape[:-1]))
        counts = True
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = -np.where(q == 0, 0, q * logp).sum(-1)
        d = q.sum(-1, keepdims=True) * np.exp(logp) - q
        if reduction == "none":
            return rows, d
        if reduction == "sum":
            return rows.sum(), d
        # where nothing counts the loss is 0 / 0 and the gradient zero
        return rows.sum() / np.float64(count), np.where(counts, d / np.float64(count), 0)


SHAPES = [
    (1,),
    (7,),
    (3, 1),
    (5, 10),
    (4, 16),
    (3, 17),
    (2, 33),
    (3, 5, 63),
    (2, 1000),
    (1, 2500),
    (0, 4),
    (3, 0),
]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype,tol", [(np.float64, 1e-13), (np.float32, 2e-6)])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_axis(shape, dtype, tol, log, rng):
    x = (rng.standard_normal(shape) * 5).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    for axis in range(-len(shape), len(shape)):
        t = gs.tensor(x, requires_grad=True)
        y = (F.log_softmax if log else F.softmax)(t, axis)
        y.backward(gs.tensor(dy))
        if x.size == 0:
            assert y.shape == shape
            continue
        ref = ref_log_softmax(x.astype(np.float64), axis)
        p, g = np.exp(ref), dy.astype(np.float64)
        want = (
            g - p * g.sum(axis, keepdims=True)
            if log
            else p * (g - (g * p).sum(axis, keepdims=True))
        )
        np.testing.assert_allclose(y.detach().numpy(), ref if log else p, rtol=tol, atol=tol)
        np.testing.assert_allclose(
            t.grad.numpy(), want, rtol=tol, atol=tol * (1 + np.abs(g).sum(axis).max())
        )
        if not log:
            np.testing.assert_allclose(y.detach().numpy().sum(axis, dtype=np.float64), 1, atol=2e-6)


def test_middle_axis_of_images_and_methods(rng):
    x = rng.standard_normal((2, 5, 7, 19)).astype(np.float32)
    for axis in range(4):
        np.testing.assert_allclose(
            gs.tensor(x).softmax(axis).numpy(),
            np.exp(ref_log_softmax(x.astype(float), axis)),
            rtol=2e-6,
            atol=1e-7,
        )
        np.testing.assert_array_equal(
            nn.Softmax(axis)(gs.tensor(x)).numpy(), F.softmax(gs.tensor(x), axis).numpy()
        )
        np.testing.assert_array_equal(
            nn.LogSoftmax(axis)(gs.tensor(x)).numpy(), gs.tensor(x).log_softmax(axis).numpy()
        )
    assert F.softmax(gs.tensor(np.float32(3.0))).item() == 1.0
    assert F.softmax(gs.tensor(x), -1, dtype="float64").dtype == np.float64
    v = x.transpose(3, 0, 2, 1)[::-1]
    np.testing.assert_array_equal(
        F.softmax(gs.tensor(v)).numpy(), F.softmax(gs.tensor(v.copy())).numpy()
    )


def test_softmax_gradcheck(rng):
    x = gs.tensor(rng.standard_normal((2, 3, 4)), requires_grad=True)
    for axis in range(3):
        gs.gradcheck(lambda t, a=axis: F.softmax(t, a), x)
        gs.gradcheck(lambda t, a=axis: F.log_softmax(t, a), x)


def test_extreme_logits():
    for dtype in (np.float32, np.float64):
        x = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [3e38, 3e38, -3e38]], dtype)
        np.testing.assert_array_equal(
            F.softmax(gs.tensor(x)).numpy(),
            np.array([[1, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0]], dtype),
        )
        log = F.log_softmax(gs.tensor(x[:2])).numpy()
        np.testing.assert_allclose(log, [[0, -2e4, -1e4], [-np.log(3)] * 3], rtol=1e-6)
        masked = np.array([[0, -np.inf, 0, -np.inf]] * 2, dtype)
        for axis in (1, 0):
            p = F.softmax(gs.tensor(masked if axis else masked.T), axis).numpy()
            np.testing.assert_array_equal(p if axis else p.T, [[0.5, 0, 0.5, 0]] * 2)
        for row in ([-np.inf] * 3, [np.inf, 0, 1], [np.nan, 0, 1]):
            assert np.isnan(F.softmax(gs.tensor(np.array(row, dtype))).numpy()).all()
            assert np.isnan(F.softmax(gs.tensor(np.array(row, dtype)[:, None]), 0).numpy()).all()
        # the other rows are not touched by a bad one
        assert np.isfinite(
            F.softmax(gs.tensor(np.array([[0, 1], [np.nan, 0]], dtype))).numpy()[0]
        ).all()


# ---- cross-entropy


@pytest.mark.parametrize("dtype,tol", [(np.float64, 1e-12), (np.float32, 2e-6)])
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (6, 2), (5, 10), (4, 16), (3, 17), (2, 3, 5), (3, 1027), (40, 1000), (900, 33)],
)
def test_cross_entropy_values(shape, dtype, tol, rng):
    C = shape[-1]
    x = (rng.standard_normal(shape) * 3).astype(dtype)
    index = rng.integers(0, C, shape[:-1])
    holes = index.copy()
    holes[rng.random(shape[:-1]) < 0.3] = -100
    q = rng.random(shape).astype(dtype)
    q /= q.sum(-1, keepdims=True)
    weight = (rng.random(C) + 0.1).astype(dtype)
    for target, w, reduction, s in itertools.product(
        (index, holes.astype(np.int32), q), (None, weight), ("none", "mean", "sum"), (0.0, 0.1, 1.0)
    ):
        t = gs.tensor(x, requires_grad=True)
        wt = None if w is None else gs.tensor(w)
        loss = F.cross_entropy(t, gs.tensor(target), wt, -100, reduction, s)
        want, d = ref_cross_entropy(x, target, w, -100, reduction, s)
        np.testing.assert_allclose(loss.detach().numpy(), want, rtol=tol, atol=tol)
        assert loss.shape == (shape[:-1] if reduction == "none" else ())
        up = rng.standard_normal(loss.shape).astype(dtype)
        loss.backward(gs.tensor(up))
        np.testing.assert_allclose(
            t.grad.numpy(),
            d * (up[..., None] if reduction == "none" else up),
            rtol=4 * tol,
            atol=tol,
        )
        # without a graph the same loss comes out
        again = F.cross_entropy(gs.tensor(x), gs.tensor(target), wt, -100, reduction, s)
        np.testing.assert_array_equal(again.numpy(), loss.detach().numpy())


def test_cross_entropy_against_pytorch(rng):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((12, 7))
    index = rng.integers(0, 7, 12)
    index[[2, 5]] = 3
    q = rng.random((12, 7))
    weight = rng.random(7)
    for target, w, reduction, s in itertools.product(
        (index, q), (None, weight), ("none", "mean", "sum"), (0.0, 0.2)
    ):
        ignore = 3 if target is index else -100
        t = gs.tensor(x, requires_grad=True)
        loss = F.cross_entropy(
            t, gs.tensor(target), None if w is None else gs.tensor(w), ignore, reduction, s
        )
        tt = torch.tensor(x, requires_grad=True)
        ref = torch.nn.functional.cross_entropy(
            tt, torch.tensor(target), None if w is None else torch.tensor(w), ignore_index=ignore,
            reduction=reduction, label_smoothing=s,
        )  # fmt: skip
        up = rng.standard_normal(ref.shape)
        ref.backward(torch.tensor(up))
        loss.backward(gs.tensor(up))
        np.testing.assert_allclose(loss.detach().numpy(), ref.detach().numpy(), rtol=1e-12)
        np.testing.assert_allclose(t.grad.numpy(), tt.grad.numpy(), rtol=1e-11, atol=1e-14)
    # scalar target: as PyTorch
    one = F.cross_entropy(gs.tensor(x[0]), gs.tensor(4)).item()
    assert one == pytest.approx(
        torch.nn.functional.cross_entropy(torch.tensor(x[0]), torch.tensor(4)).item(), 1e-12
    )


def test_nothing_counts():
    t = gs.tensor(np.ones((3, 4), np.float32), requires_grad=True)
    target = gs.tensor(np.full(3, -100))
    assert np.isnan(F.cross_entropy(t, target).item())
    assert F.cross_entropy(t, target, reduction="sum").item() == 0
    assert F.cross_entropy(t, target, reduction="none").tolist() == [0, 0, 0]
    assert (
        F.cross_entropy(gs.zeros(0, 4), gs.tensor(np.zeros(0, np.int64)), reduction="sum").item()
        == 0
    )


def test_cross_entropy_gradcheck(rng):
    x = gs.tensor(rng.standard_normal((4, 5)), requires_grad=True)
    index = gs.tensor(np.array([0, 4, -100, 2]))
    q = gs.tensor(rng.random((4, 5)))
    w = gs.tensor(rng.random(5) + 0.5)
    for target, weight, reduction, s in itertools.product(
        (index, q), (None, w), ("none", "mean"), (0.0, 0.3)
    ):
        gs.gradcheck(lambda t: F.cross_entropy(t, target, weight, -100, reduction, s), x)  # noqa: B023


def test_extreme_cross_entropy():
    for dtype in (np.float32, np.float64):
        x = np.array([[1e4, -1e4], [-1e4, 1e4], [0, -np.inf], [-np.inf, 0]], dtype)
        loss = F.cross_entropy(gs.tensor(x), gs.tensor([0, 0, 0, 0]), reduction="none").numpy()
        np.testing.assert_array_equal(loss, np.array([0, 2e4, 0, np.inf], dtype))
        t = gs.tensor(x[:3], requires_grad=True)
        F.cross_entropy(t, gs.tensor([0, 0, 0]), reduction="sum").backward()
        np.testing.assert_array_equal(t.grad.numpy(), np.array([[0, 0], [-1, 1], [0, 0]], dtype))
        # a masked class of probability zero is harmless
        q = gs.tensor(np.array([[1, 0]], dtype))
        assert F.cross_entropy(gs.tensor(x[2:3]), q).item() == 0
        dead = np.full((1, 3), -np.inf, dtype)
        assert np.isnan(F.cross_entropy(gs.tensor(dead), gs.tensor([1])).item())


def test_precision_of_large_rows(rng):
    x = (rng.standard_normal((3, 50_000)) * 2).astype(np.float32)
    index = rng.integers(0, 50_000, 3)
    want, d = ref_cross_entropy(x, index, None, -100, "none", 0.0)
    t = gs.tensor(x, requires_grad=True)
    loss = F.cross_entropy(t, gs.tensor(index), reduction="none")
    np.testing.assert_allclose(loss.detach().numpy(), want, rtol=1e-6)
    loss.backward(gs.ones(3))
    np.testing.assert_allclose(t.grad.numpy(), d, rtol=3e-6, atol=1e-9)
    np.testing.assert_allclose(
        F.softmax(gs.tensor(x)).numpy().sum(1, dtype=np.float64), 1, atol=1e-6
    )


def near_gradient(got, want, p):
    """Cross-entropy's gradient of rows with probabilities p and weights of at most 1.

    A row of up to 32 classes is one lane, which adds the exponentials one after the other: half an
    ulp a class is a relative error of p.
    """
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    order = p.shape[1] if p.shape[1] <= 32 else 0
    bound = 5e-6 * np.abs(want) + 4e-7 + p * order * 2.0**-24
    finite = ~np.isnan(want)
    assert np.all(np.abs(got - want)[finite] <= bound[finite])


@pytest.mark.parametrize("classes", [3, 10, 32, 33, 50, 64, 65, 1000, 1001, 4096, 4097, 70_001])
def test_larger_than_the_caches(classes, rng):
    """Every way through a row, with results of more than twice a second-level cache."""
    rows = 6_000_000 // classes
    x = rng.standard_normal((rows, classes), dtype=np.float32) * 3
    x[:, 0] += np.linspace(-50, 50, rows)  # the maximum comes early, late, or in between
    x[0], x[1, classes // 2], x[2, -1] = 1.5, np.nan, -np.inf
    dy = rng.standard_normal((rows, classes), dtype=np.float32)
    index = rng.integers(0, classes, rows)
    index[3], index[4], index[-1] = -100, 0, classes - 1
    some = np.unique(np.r_[:20, rng.integers(0, rows, 200), rows - 20 : rows])
    some = some[(some >= 0) & (some < rows)]
    x64, g64 = x[some].astype(np.float64), dy[some].astype(np.float64)
    ref = ref_log_softmax(x64, 1)
    p = np.exp(ref)
    for log in (False, True):
        t = gs.tensor(x, requires_grad=True)
        y = (F.log_softmax if log else F.softmax)(t)
        y.backward(gs.tensor(dy))
        s = g64.sum(1, keepdims=True) if log else (g64 * p).sum(1, keepdims=True)
        want = g64 - p * s if log else p * (g64 - s)
        np.testing.assert_allclose(
            y.detach().numpy()[some], ref if log else p, rtol=4e-6, atol=4e-6
        )
        scale = np.abs(g64).sum(1).max()
        np.testing.assert_allclose(t.grad.numpy()[some], want, rtol=4e-6, atol=2e-6 * (1 + scale))
    t = gs.tensor(x, requires_grad=True)
    loss = F.cross_entropy(t, gs.tensor(index), reduction="none")
    loss.backward(gs.ones(rows))
    want, d = ref_cross_entropy(x[some], index[some], None, -100, "none", 0.0)
    np.testing.assert_allclose(loss.detach().numpy()[some], want, rtol=2e-6, atol=2e-6)
    near_gradient(t.grad.numpy()[some], d, p)
    without = F.cross_entropy(gs.tensor(x), gs.tensor(index), reduction="none")
    np.testing.assert_array_equal(without.numpy(), loss.detach().numpy())
    t = gs.tensor(x[3:], requires_grad=True)
    w = rng.random(classes).astype(np.float32)
    loss = F.cross_entropy(t, gs.tensor(index[3:]), gs.tensor(w), -100, "none", 0.1)
    loss.backward(gs.ones(rows - 3))
    p, some = p[some >= 3], some[some >= 3]
    want, d = ref_cross_entropy(x[some], index[some], w, -100, "none", 0.1)
    np.testing.assert_allclose(loss.detach().numpy()[some - 3], want, rtol=5e-6, atol=5e-6)
    near_gradient(t.grad.numpy()[some - 3], d, p)


def test_same_bits_on_any_number_of_threads(rng):
    x = rng.standard_normal((700, 130)).astype(np.float32)
    wide = rng.standard_normal((6, 130, 50)).astype(np.float32)
    index = gs.tensor(rng.integers(0, 130, 700))
    q = gs.tensor(rng.random((700, 130)).astype(np.float32))
    weight = gs.tensor(rng.random(130).astype(np.float32))
    before = gs.get_num_threads()
    results = []
    for n in (1, 2, 3):
        gs.set_num_threads(n)
        row = [F.log_softmax(gs.tensor(x)).numpy()]
        for blocks in (wide, wide.reshape(2, 3, 6500), wide.reshape(1, 26, 1500)):
            t = gs.tensor(blocks, requires_grad=True)
            y = F.softmax(t, 1)
            y.backward(gs.tensor(blocks[:, ::-1].copy()))
            row += [y.detach().numpy(), t.grad.numpy()]
        for fn in (F.softmax, F.log_softmax):
            t = gs.tensor(x, requires_grad=True)
            fn(t).backward(gs.tensor(x[::-1].copy()))
            row.append(t.grad.numpy())
        for few in (x[:, :10].copy(), x[:, :60].copy(), x.reshape(7, 13_000)):
            t = gs.tensor(few, requires_grad=True)
            at = gs.tensor(np.arange(len(few)) % 7)
            loss = F.cross_entropy(t, at)
            loss.backward()
            row += [loss.detach().numpy(), t.grad.numpy(), F.softmax(gs.tensor(few)).numpy()]
        for target in (index, q):
            t = gs.tensor(x, requires_grad=True)
            loss = F.cross_entropy(t, target, weight, label_smoothing=0.1)
            loss.backward(gs.tensor(np.float32(0.3)))
            row += [loss.detach().numpy(), t.grad.numpy()]
        results.append(row)
    gs.set_num_threads(before)
    for row in results[1:]:
        for a, b in zip(row, results[0]):
            np.testing.assert_array_equal(a, b)


def test_second_backward_and_shared_gradient(rng):
    """The stored gradient is handed on as it is: nothing may change it."""
    x = rng.standard_normal((3, 4))
    t = gs.tensor(x, requires_grad=True)
    loss = F.cross_entropy(t, gs.tensor([1, 2, 3]))
    loss.backward(retain_graph=True)
    first = t.grad.numpy().copy()
    t.grad.numpy()[...] = 7
    t.grad = None
    loss.backward()
    np.testing.assert_array_equal(t.grad.numpy(), first)


def test_layer(rng):
    w = gs.tensor(rng.random(4).astype(np.float32))
    layer = nn.CrossEntropyLoss(w, ignore_index=2, reduction="sum", label_smoothing=0.2)
    x, y = gs.tensor(rng.standard_normal((3, 4)).astype(np.float32)), gs.tensor([0, 2, 3])
    assert layer(x, y).item() == F.cross_entropy(x, y, w, 2, "sum", 0.2).item()
    assert "label_smoothing=0.2" in repr(layer) and list(layer.state_dict()) == ["weight"]
    for bad in ({"reduction": "avg"}, {"label_smoothing": 1.5}):
        with pytest.raises(ValueError):
            nn.CrossEntropyLoss(**bad)


def test_bad_input(rng):
    x = gs.tensor(rng.standard_normal((2, 3, 4)).astype(np.float32))
    good = gs.tensor(np.zeros((2, 3), np.int64))
    with pytest.raises(IndexError, match=r"target\[1, 2\] is 4, but there are 4 classes"):
        F.cross_entropy(x, gs.tensor([[0, 1, 2], [3, 0, 4]]))
    with pytest.raises(IndexError, match=r"target\[0, 1\] is -1"):
        F.cross_entropy(x, gs.tensor(np.array([[0, -1, 2], [3, 0, 9]], np.int32)))
    with pytest.raises(IndexError, match=r"-100"):
        F.cross_entropy(x, gs.tensor(np.full((2, 3), -100)), ignore_index=-1)
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        F.cross_entropy(x, gs.tensor(np.zeros((2, 4), np.int64)))
    with pytest.raises(ValueError, match=r"last axis"):
        F.cross_entropy(x, gs.tensor(np.zeros((2, 3, 4), np.int64)))
    with pytest.raises(ValueError, match="must be equal"):
        F.cross_entropy(x, gs.tensor(np.zeros((2, 3, 5), np.float32)))
    with pytest.raises(TypeError, match="one dtype"):
        F.cross_entropy(x, gs.tensor(np.zeros((2, 3, 4))))
    with pytest.raises(TypeError, match="uint8"):
        F.cross_entropy(x, gs.tensor(np.zeros((2, 3), np.uint8)))
    with pytest.raises(TypeError, match="input has dtype int64"):
        F.cross_entropy(good, good)
    with pytest.raises(ValueError, match=r"weight has shape \(3,\)"):
        F.cross_entropy(x, good, gs.ones(3))
    with pytest.raises(ValueError, match="reduction"):
        F.cross_entropy(x, good, reduction="avg")
    with pytest.raises(ValueError, match="label_smoothing"):
        F.cross_entropy(x, good, label_smoothing=-0.1)
    with pytest.raises(ValueError, match="0-dimensional"):
        F.cross_entropy(gs.tensor(np.float32(1)), gs.tensor(0))
    with pytest.raises(ValueError, match="no classes"):
        F.cross_entropy(gs.zeros(2, 0), gs.tensor([0, 0]))
    with pytest.raises(ValueError, match="detach"):
        F.cross_entropy(x, gs.tensor(np.zeros((2, 3, 4), np.float32), requires_grad=True))
    for dim in (3, -4):
        with pytest.raises(IndexError, match="out of range"):
            F.softmax(x, dim)
    with pytest.raises(TypeError, match="log_softmax: input has dtype int64"):
        F.log_softmax(good)


@pytest.mark.parametrize("classes", [1, 7, 15, 16, 31, 100, 127, 128, 129, 300, 4095, 4097])
@pytest.mark.parametrize("rows", [1, 15, 17, 259])
def test_rows_in_groups(rows, classes, rng):
    """Full and partial groups of short rows, batches of them, and longer ones: every kind of target."""
    if rows * classes > 300_000:
        rows = 17
    x = (rng.standard_normal((rows, classes)) * 3).astype(np.float32)
    dy = rng.standard_normal((rows, classes)).astype(np.float32)
    p = np.exp(ref_log_softmax(x.astype(np.float64), 1))
    t = gs.tensor(x, requires_grad=True)
    y = F.softmax(t)
    y.backward(gs.tensor(dy))
    np.testing.assert_allclose(y.detach().numpy(), p, rtol=2e-6, atol=1e-7)
    want = p * (dy - (dy * p).sum(1, keepdims=True))
    np.testing.assert_allclose(t.grad.numpy(), want, rtol=4e-6, atol=2e-6)
    holes = rng.integers(0, classes, rows)
    holes[rng.random(rows) < 0.2] = -100
    q = rng.random((rows, classes)).astype(np.float32)
    q[rng.random((rows, classes)) < 0.3] = 0
    weight = rng.random(classes).astype(np.float32)
    for target, w, s in itertools.product((holes, q), (None, weight), (0.0, 0.2)):
        t = gs.tensor(x, requires_grad=True)
        wt = None if w is None else gs.tensor(w)
        loss = F.cross_entropy(t, gs.tensor(target), wt, -100, "none", s)
        loss.backward(gs.ones(rows))
        want, d = ref_cross_entropy(x, target, w, -100, "none", s)
        np.testing.assert_allclose(loss.detach().numpy(), want, rtol=4e-6, atol=4e-6)
        size = 1 + np.abs(d).max(1, keepdims=True)
        assert np.all(np.abs(t.grad.numpy() - d) <= 3e-6 * size)


@pytest.mark.parametrize("classes", [3, 10, 40, 200, 5000])
def test_rows_that_do_not_count(classes, rng):
    """An ignored row has no loss and no gradient whatever it holds; a weight of zero leaves none either."""
    x = rng.standard_normal((40, classes)).astype(np.float32)
    x[3], x[21, 1] = np.nan, np.inf
    index = rng.integers(1, classes, 40)
    index[[3, 21, 39]] = -100
    weight = np.ones(classes, np.float32)
    weight[0] = 0
    index[5] = 0
    for w, s in itertools.product((None, weight), (0.0, 0.1)):
        t = gs.tensor(x, requires_grad=True)
        wt = None if w is None else gs.tensor(w)
        loss = F.cross_entropy(t, gs.tensor(index), wt, -100, "none", s)
        loss.backward(gs.ones(40))
        g, kept = t.grad.numpy(), index != -100
        assert np.all(loss.detach().numpy()[~kept] == 0) and np.all(g[~kept] == 0)
        want, d = ref_cross_entropy(x[kept], index[kept], w, -100, "none", s)
        np.testing.assert_allclose(loss.detach().numpy()[kept], want, rtol=4e-6, atol=4e-6)
        np.testing.assert_allclose(g[kept], d, rtol=1e-5, atol=3e-6)
    # none counts: the mean is 0 / 0, its gradient zero
    t = gs.tensor(x, requires_grad=True)
    loss = F.cross_entropy(t, gs.tensor(np.full(40, -100)), None, -100, "mean", 0.1)
    loss.backward()
    assert np.isnan(loss.item()) and np.all(t.grad.numpy() == 0)


@pytest.mark.parametrize(
    ("n", "inner"),
    [
        *itertools.product([3, 4, 9, 511, 513], [5, 16, 40, 48, 100]),
        *[(7, 2500), (262, 330), (600, 384), (1100, 130), (4100, 64)],
    ],
)
def test_columns_in_blocks(n, inner, rng):
    """Along an axis that is not the last: whole and partial vectors of columns, few and many rows, several blocks."""
    x = (rng.standard_normal((3, n, inner)) * 3).astype(np.float32)
    dy = rng.standard_normal((3, n, inner)).astype(np.float32)
    x[1, :, 2] = -np.inf
    ref = ref_log_softmax(x.astype(np.float64), 1)
    p = np.exp(ref)
    for log in (False, True):
        t = gs.tensor(x, requires_grad=True)
        y = (F.log_softmax if log else F.softmax)(t, 1)
        y.backward(gs.tensor(dy))
        np.testing.assert_allclose(y.detach().numpy(), ref if log else p, rtol=4e-6, atol=2e-6)
        s = dy.sum(1, keepdims=True) if log else (dy * p).sum(1, keepdims=True)
        want = dy - p * s if log else p * (dy - s)
        np.testing.assert_allclose(
            t.grad.numpy(), want, rtol=4e-6, atol=2e-6 * (1 + np.abs(dy).sum(1).max())
        )


@pytest.mark.parametrize("classes", [7, 40, 200, 4100])
def test_cross_entropy_ignored_rows_without_any_weight(classes, rng):
    # the mean is 0 / 0, NaN; an ignored row has no gradient all the same
    x = gs.tensor(rng.standard_normal((37, classes)).astype("float32"), requires_grad=True)
    target = rng.integers(0, classes, 37)
    target[::3] = -100
    F.cross_entropy(x, gs.tensor(target), gs.zeros(classes), label_smoothing=0.1).backward()
    grad = x.grad.numpy()
    assert (grad[::3] == 0).all()
    assert np.isnan(grad[1::3]).all() and np.isnan(grad[2::3]).all()


@pytest.mark.parametrize("classes", [4096, 4097, 13_001, 131_072, 131_073])
def test_long_rows_in_blocks(classes, rng):
    """Blocks far below the row's maximum, of -inf alone, the target in any of them, rows that do not count."""
    x = (rng.standard_normal((7, classes)) * 3).astype(np.float32)
    x[0, :3000] -= 60  # the largest element comes late
    x[1, 3000:] -= 60
    x[2, :2100] = -np.inf
    x[3, : classes // 2] -= 300  # exp of these is zero
    x[4] = -np.inf
    x[5, -1] = np.nan
    dy = rng.standard_normal(x.shape).astype(np.float32)
    index = np.array([5, 4000, classes - 1, 17, 3, 2, -100])
    ref = ref_log_softmax(x.astype(np.float64), 1)
    p = np.exp(ref)
    for log in (False, True):
        t = gs.tensor(x, requires_grad=True)
        y = (F.log_softmax if log else F.softmax)(t)
        y.backward(gs.tensor(dy))
        np.testing.assert_allclose(y.detach().numpy(), ref if log else p, rtol=4e-6, atol=4e-6)
        s = dy.sum(1, keepdims=True, dtype=np.float64) if log else (dy * p).sum(1, keepdims=True)
        want = dy - p * s if log else p * (dy - s)
        np.testing.assert_allclose(t.grad.numpy(), want, rtol=4e-6, atol=1e-3)
    q = rng.random(x.shape).astype(np.float32)
    q[np.isneginf(x)] = 0
    q /= np.maximum(q.sum(1, keepdims=True), 1e-30)
    weight = rng.random(classes).astype(np.float32)
    kept = [0, 1, 3, 6]  # the others hold infinities: their smoothed loss is infinite
    for target, w, smooth in itertools.product((index, q), (None, weight), (0.0, 0.1)):
        rows = kept if smooth else range(7)
        t = gs.tensor(x[rows], requires_grad=True)
        wt = None if w is None else gs.tensor(w)
        loss = F.cross_entropy(t, gs.tensor(target[rows]), wt, -100, "none", smooth)
        loss.backward(gs.ones(len(rows)))
        want, d = ref_cross_entropy(x[rows], target[rows], w, -100, "none", smooth)
        np.testing.assert_allclose(loss.detach().numpy(), want, rtol=2e-5, atol=4e-6)
        got = t.grad.numpy()
        np.testing.assert_array_equal(np.isnan(got), np.isnan(d))
        np.testing.assert_allclose(got, d, rtol=1e-5, atol=1e-6)
        without = F.cross_entropy(
            gs.tensor(x[rows]), gs.tensor(target[rows]), wt, -100, "none", smooth
        )
        np.testing.assert_array_equal(without.numpy(), loss.detach().numpy())
