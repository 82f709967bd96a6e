"""Losses against float64 NumPy, central differences, and PyTorch where it is installed."""

import math

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def ref_bce(x, t):
    with np.errstate(divide="ignore"):
        return -(t * np.maximum(np.log(x), -100) + (1 - t) * np.maximum(np.log1p(-x), -100))


def ref_kl(x, t):
    return np.where(t > 0, t * np.log(np.where(t > 0, t, 1)), 0) - t * x


def ref_huber(x, t, delta=1.0):
    d = np.abs(x - t)
    return np.where(d <= delta, d * d / 2, delta * (d - delta / 2))


def normal(rng, shape):
    return rng.standard_normal(shape) * 2


def unit(rng, shape):
    return rng.uniform(0.01, 0.99, shape)


# name, options, elementwise reference, input, target
CASES = [
    ("mse_loss", {}, lambda x, t: (x - t) ** 2, normal, normal),
    ("l1_loss", {}, lambda x, t: np.abs(x - t), normal, normal),
    ("smooth_l1_loss", {}, ref_huber, normal, normal),
    ("smooth_l1_loss", {"beta": 0.3}, lambda x, t: ref_huber(x, t, 0.3) / 0.3, normal, normal),
    ("smooth_l1_loss", {"beta": 0.0}, lambda x, t: np.abs(x - t), normal, normal),
    ("huber_loss", {}, ref_huber, normal, normal),
    ("huber_loss", {"delta": 2.5}, lambda x, t: ref_huber(x, t, 2.5), normal, normal),
    ("binary_cross_entropy", {}, ref_bce, unit, unit),
    (
        "binary_cross_entropy_with_logits",
        {},
        lambda x, t: (1 - t) * x + softplus(-x),
        normal,
        unit,
    ),
    ("kl_div", {}, ref_kl, lambda r, s: -np.abs(normal(r, s)), unit),
    (
        "kl_div",
        {"log_target": True},
        lambda x, t: np.exp(t) * (t - x),
        lambda r, s: -np.abs(normal(r, s)),
        lambda r, s: -np.abs(normal(r, s)),
    ),
    ("poisson_nll_loss", {}, lambda x, t: np.exp(x) - t * x, normal, unit),
    (
        "poisson_nll_loss",
        {"log_input": False, "eps": 0.01},
        lambda x, t: x - t * np.log(x + 0.01),
        unit,
        unit,
    ),
]
IDS = [f"{c[0]}-{i}" for i, c in enumerate(CASES)]
# tails around vectors, groups of 16 and chunks of 8192; empty and scalar
SHAPES = [(), (1,), (3,), (7,), (15,), (16,), (17,), (5, 13), (8191,), (8192,), (8193,), (4, 5000)]


@pytest.mark.parametrize("name,options,ref,make_x,make_t", CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values(name, options, ref, make_x, make_t, dtype):
    rng = np.random.default_rng(1)
    f = getattr(F, name)
    tight = 2e-6 if dtype == np.float32 else 1e-12
    for shape in SHAPES:
        x, t = make_x(rng, shape).astype(dtype), make_t(rng, shape).astype(dtype)
        exact = ref(x.astype(np.float64), t.astype(np.float64))
        scale = np.abs(x) + np.abs(t) + 1
        a, b = gs.tensor(x), gs.tensor(t)
        each = f(a, b, reduction="none", **options)
        assert each.shape == shape and each.dtype == dtype
        assert (np.abs(each.data - exact) <= tight * (np.abs(exact) + scale)).all()
        total = f(a, b, reduction="sum", **options)
        room = tight * (np.abs(exact).sum() + scale.sum())
        assert total.shape == () and total.dtype == dtype
        assert abs(total.item() - exact.sum()) <= room
        assert abs(f(a, b, **options).item() - exact.mean()) <= room / max(1, x.size)


@pytest.mark.parametrize("name,options,ref,make_x,make_t", CASES, ids=IDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(name, options, ref, make_x, make_t, reduction):
    rng = np.random.default_rng(2)
    x = gs.tensor(make_x(rng, (3, 7)), requires_grad=True)
    t = gs.tensor(make_t(rng, (3, 7)), requires_grad=True)
    f = getattr(F, name)
    assert gs.gradcheck(lambda a, b: f(a, b, reduction=reduction, **options), [x, t])
    # one side alone
    assert gs.gradcheck(lambda a: f(a, t.detach(), reduction=reduction, **options), [x])
    assert gs.gradcheck(lambda b: f(x.detach(), b, reduction=reduction, **options), [t])


@pytest.mark.parametrize("name", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("shape", [(7,), (1,), (), (3, 7), (3, 1)])
def test_weights(name, shape):
    rng = np.random.default_rng(3)
    x, t, w = unit(rng, (3, 7)), unit(rng, (3, 7)), unit(rng, shape) + 0.5
    f = getattr(F, name)
    a, b = gs.tensor(x, requires_grad=True), gs.tensor(t)
    plain = f(a, b, reduction="none").data
    got = f(a, b, weight=gs.tensor(w), reduction="none")
    np.testing.assert_allclose(got.data, plain * w, rtol=1e-12)
    assert gs.gradcheck(lambda x: f(x, b, weight=gs.tensor(w)), [a])
    if name.endswith("logits"):
        q = gs.tensor(w)
        exact = w * t * softplus(-x) + (1 - t) * softplus(x)
        got = f(a, b, pos_weight=q, reduction="none")
        np.testing.assert_allclose(got.data, exact, rtol=1e-12)
        tt = gs.tensor(t, requires_grad=True)
        assert gs.gradcheck(lambda x, t: f(x, t, pos_weight=q, weight=q), [a, tt])


def ref_nll(x, t, w, ignore, reduction):
    c = x.shape[-1]
    rows, tt = x.reshape(-1, c), t.reshape(-1)
    keep = tt != ignore
    safe = np.where(keep, tt, 0)
    weight = np.where(keep, (np.ones(c) if w is None else w)[safe], 0)
    each = -weight * rows[np.arange(len(tt)), safe]
    if reduction == "none":
        return each.reshape(t.shape)
    return each.sum() / (weight.sum() if reduction == "mean" else 1)


@pytest.mark.parametrize("shape", [(4, 3), (3,), (2, 5, 7), (1, 1), (1000, 10), (3, 9000)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nll(shape, reduction):
    rng = np.random.default_rng(4)
    x, w = normal(rng, shape), unit(rng, shape[-1:])
    for index in (np.int32, np.int64):
        t = rng.integers(0, shape[-1], shape[:-1]).astype(index)
        if t.size > 1:
            t.reshape(-1)[1] = -100
        for weight in (None, w):
            a = gs.tensor(x)
            got = F.nll_loss(
                a,
                gs.tensor(t),
                None if weight is None else gs.tensor(weight),
                reduction=reduction,
            )
            np.testing.assert_allclose(got.data, ref_nll(x, t, weight, -100, reduction), rtol=1e-12)
            one = x.astype(np.float32)
            got = F.nll_loss(
                gs.tensor(one),
                gs.tensor(t),
                None if weight is None else gs.tensor(weight.astype(np.float32)),
                reduction=reduction,
            )
            assert got.dtype == np.float32
            exact = ref_nll(x, t, weight, -100, reduction)
            np.testing.assert_allclose(got.data, exact, rtol=3e-6, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nll_gradcheck(reduction):
    rng = np.random.default_rng(5)
    x = gs.tensor(normal(rng, (2, 3, 4)), requires_grad=True)
    t = gs.tensor(np.array([[0, 3, 7], [1, 7, 2]]))
    w = gs.tensor(unit(rng, (4,)))
    assert gs.gradcheck(lambda x: F.nll_loss(x, t, w, 7, reduction), [x])
    assert gs.gradcheck(lambda x: F.nll_loss(x, t, ignore_index=7, reduction=reduction), [x])


def test_kl_batchmean_and_zero_targets():
    rng = np.random.default_rng(6)
    x = -np.abs(normal(rng, (4, 9)))
    t = unit(rng, (4, 9))
    t[:, ::3] = 0
    a, b = gs.tensor(x, requires_grad=True), gs.tensor(t, requires_grad=True)
    loss = F.kl_div(a, b, reduction="batchmean")
    np.testing.assert_allclose(loss.item(), ref_kl(x, t).sum() / 4, rtol=1e-12)
    loss.backward()
    np.testing.assert_allclose(a.grad.data, -t / 4, rtol=1e-12)
    assert np.isfinite(b.grad.data).all() and (b.grad.data[:, ::3] == 0).all()


def test_extremes():
    for dtype in (np.float32, np.float64):
        x = gs.tensor(np.array([0, 1, 0, 1], dtype), requires_grad=True)
        t = gs.tensor(np.array([0, 1, 1, 0], dtype))
        loss = F.binary_cross_entropy(x, t, reduction="none")
        assert loss.tolist() == [0, 0, 100, 100]  # the logarithm stops at -100
        loss.backward(gs.ones(4, dtype=dtype))
        np.testing.assert_allclose(x.grad.data, [0, 0, -1e12, 1e12], rtol=1e-6)
        z = gs.tensor(np.array([1e4, -1e4, 1e4, -1e4, 88, -104], dtype), requires_grad=True)
        t = gs.tensor(np.array([1, 0, 0, 1, 1, 0], dtype))
        loss = F.binary_cross_entropy_with_logits(z, t, reduction="none")
        np.testing.assert_allclose(loss.data[:4], [0, 0, 1e4, 1e4])
        assert (loss.data[4:] >= 0).all() and (loss.data[4:] < 1e-37).all()
        loss.backward(gs.ones(6, dtype=dtype))
        np.testing.assert_allclose(z.grad.data, [0, 0, 1, -1, 0, 0], atol=1e-30)


@pytest.mark.parametrize("name,options,ref,make_x,make_t", CASES, ids=IDS)
def test_nan_shows(name, options, ref, make_x, make_t):
    rng = np.random.default_rng(7)
    x, t = make_x(rng, (50,)), make_t(rng, (50,))
    f = getattr(F, name)
    x[20] = np.nan
    if name == "binary_cross_entropy":
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            f(gs.tensor(x), gs.tensor(t), **options)
        return
    a = gs.tensor(x, requires_grad=True)
    loss = f(a, gs.tensor(t), **options)
    assert math.isnan(loss.item())
    each = f(a, gs.tensor(t), reduction="none", **options).data
    assert np.isnan(each).sum() == 1 and np.isnan(each[20])


def test_huge_sums_keep_accuracy():
    """4 M equal float32 losses: a float32 accumulator would be off in the third digit."""
    n = 4_000_001
    x = gs.tensor(np.full(n, 0.1, np.float32))
    exact = float(np.float32(np.float32(0.1) * np.float32(0.1)))
    np.testing.assert_allclose(F.mse_loss(x, gs.zeros(n)).item(), exact, rtol=1e-7)
    np.testing.assert_allclose(F.mse_loss(x, gs.zeros(n), "sum").item(), exact * n, rtol=1e-7)


@pytest.mark.parametrize("name,options,ref,make_x,make_t", CASES, ids=IDS)
def test_same_bits_on_any_number_of_threads(name, options, ref, make_x, make_t):
    rng = np.random.default_rng(8)
    x, t = (m(rng, (70_001,)).astype(np.float32) for m in (make_x, make_t))
    before, seen = gs.get_num_threads(), set()
    try:
        for n in (1, 2, 3):
            gs.set_num_threads(n)
            a, b = gs.tensor(x, requires_grad=True), gs.tensor(t, requires_grad=True)
            loss = getattr(F, name)(a, b, **options)
            loss.backward()
            seen.add((loss.data.tobytes(), a.grad.data.tobytes(), b.grad.data.tobytes()))
    finally:
        gs.set_num_threads(before)
    assert len(seen) == 1


def test_strided_inputs():
    rng = np.random.default_rng(9)
    base, t = normal(rng, (8, 10)), normal(rng, (5, 4))
    view = base[::2, ::-2].T
    a = gs.tensor(view, requires_grad=True)
    loss = F.mse_loss(a, gs.tensor(t))
    np.testing.assert_allclose(loss.item(), ((view - t) ** 2).mean(), rtol=1e-12)
    loss.backward()
    np.testing.assert_allclose(a.grad.data, 2 * (view - t) / 20, rtol=1e-12)
    c = normal(rng, (6, 10))[::2, ::-1]
    got = F.nll_loss(gs.tensor(c), gs.tensor(np.array([0, 9, 4, 1, 2, 3])[::2]))
    np.testing.assert_allclose(got.item(), -(c[0, 0] + c[1, 4] + c[2, 2]) / 3, rtol=1e-12)


@pytest.mark.parametrize("name", [
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "kl_div", "poisson_nll_loss", "nll_loss", "cross_entropy",
])  # fmt: skip
def test_the_mean_over_an_empty_batch_is_an_error(name):
    """PyTorch's is NaN, which a step would write into every parameter."""
    loss = getattr(F, name)
    x = gs.tensor(np.zeros((0, 3), np.float32), requires_grad=True)
    indices = gs.tensor(np.zeros(0, np.int64))
    targets = [gs.zeros((0, 3))] if name != "nll_loss" else [indices]
    if name == "cross_entropy":
        targets.append(indices)
    for t in targets:
        with pytest.raises(
            ValueError, match=rf"^{name}: input has shape \(0, 3\): the mean over an empty"
        ):
            loss(x, t)
        total = loss(x, t, reduction="sum")
        total.backward()
        assert total.item() == 0 and x.grad.shape == (0, 3)
        assert loss(x, t, reduction="none").size == 0
    if name == "kl_div":
        with pytest.raises(ValueError, match="kl_div: input has shape"):
            loss(x, targets[0], reduction="batchmean")


def test_twice_backward_and_scaled():
    """The graph can be walked again; an upstream gradient scales."""
    x = gs.tensor([1.0, 3.0], requires_grad=True)
    loss = F.mse_loss(x, gs.tensor([0.0, 0.0]))
    loss.backward(gs.tensor(3.0), retain_graph=True)
    np.testing.assert_allclose(x.grad.data, [3, 9])
    loss.backward()
    np.testing.assert_allclose(x.grad.data, [4, 12])


@pytest.mark.parametrize("name,options,ref,make_x,make_t", CASES, ids=IDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batchmean"])
def test_torch(name, options, ref, make_x, make_t, reduction):
    torch = pytest.importorskip("torch")
    if reduction == "batchmean" and name != "kl_div":
        pytest.skip("only kl_div")
    rng = np.random.default_rng(10)
    x, t = make_x(rng, (6, 11)), make_t(rng, (6, 11))
    ours = [gs.tensor(v, requires_grad=True) for v in (x, t)]
    theirs = [torch.tensor(v, requires_grad=True) for v in (x, t)]
    a = getattr(F, name)(*ours, reduction=reduction, **options)
    b = getattr(torch.nn.functional, name)(*theirs, reduction=reduction, **options)
    np.testing.assert_allclose(a.data, b.detach().numpy(), rtol=1e-12, atol=1e-13)
    up = rng.standard_normal(a.shape)
    a.backward(gs.tensor(up))
    b.backward(torch.tensor(up))
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(p.grad.data, q.grad.numpy(), rtol=1e-10, atol=1e-13)


def test_modules():
    rng = np.random.default_rng(11)
    x, t = gs.tensor(unit(rng, (4, 5))), gs.tensor(unit(rng, (4, 5)))
    i = gs.tensor(np.array([0, 1, 4, 2]))
    w = gs.tensor(unit(rng, (5,)))
    pairs = [
        (nn.MSELoss(), F.mse_loss(x, t), t),
        (nn.L1Loss("sum"), F.l1_loss(x, t, "sum"), t),
        (nn.SmoothL1Loss(beta=0.2), F.smooth_l1_loss(x, t, beta=0.2), t),
        (nn.HuberLoss(delta=0.2), F.huber_loss(x, t, delta=0.2), t),
        (nn.BCELoss(w), F.binary_cross_entropy(x, t, w), t),
        (
            nn.BCEWithLogitsLoss(pos_weight=w),
            F.binary_cross_entropy_with_logits(x, t, pos_weight=w),
            t,
        ),
        (nn.KLDivLoss("batchmean"), F.kl_div(x, t, "batchmean"), t),
        (nn.NLLLoss(w, 4), F.nll_loss(x, i, w, 4), i),
        (nn.PoissonNLLLoss(), F.poisson_nll_loss(x, t), t),
    ]
    for module, expect, target in pairs:
        assert module(x, target).item() == expect.item()
        assert module.reduction in repr(module)
    assert list(nn.BCELoss(w).state_dict()) == ["weight"]


def test_bad_input():
    x = gs.zeros(32, 1)
    with pytest.raises(
        ValueError, match=r"mse_loss: input \(32, 1\) and target \(32,\).*\[:, None\]"
    ):
        F.mse_loss(x, gs.zeros(32))
    with pytest.raises(ValueError, match=r"l1_loss.*input\[:, None\]"):
        F.l1_loss(gs.zeros(32), x)
    with pytest.raises(ValueError, match=r"reshape\(4, 8\)"):
        F.huber_loss(gs.zeros(4, 8), gs.zeros(8, 4))
    with pytest.raises(ValueError, match="broadcast"):
        F.mse_loss(gs.zeros(4, 8), gs.zeros(1, 8))
    with pytest.raises(TypeError, match="one dtype"):
        F.mse_loss(gs.zeros(3), gs.tensor([1, 2, 3]))
    with pytest.raises(TypeError, match="float32 or float64"):
        F.mse_loss(gs.tensor([1, 2]), gs.tensor([1, 2]))
    with pytest.raises(TypeError, match="Tensor"):
        F.mse_loss([1.0], gs.zeros(1))
    with pytest.raises(ValueError, match="avg"):
        F.mse_loss(x, x, "avg")
    with pytest.raises(ValueError, match="batchmean"):
        nn.MSELoss("batchmean")
    with pytest.raises(ValueError, match="beta"):
        F.smooth_l1_loss(x, x, beta=-1)
    with pytest.raises(ValueError, match="delta"):
        F.huber_loss(x, x, delta=0)
    for bad in (-1e-6, 1.0001, np.inf):
        with pytest.raises(ValueError, match="sigmoid"):
            F.binary_cross_entropy(gs.tensor([0.5, bad]), gs.zeros(2))
    with pytest.raises(ValueError, match=r"weight has shape \(3,\)"):
        F.binary_cross_entropy(gs.zeros(2, 4), gs.zeros(2, 4), gs.ones(3))
    with pytest.raises(ValueError, match="detach"):
        F.binary_cross_entropy(x, x, gs.ones(1, requires_grad=True))
    logs = gs.zeros(4, 3)
    with pytest.raises(IndexError, match=r"target element 2 is 3; classes are 0 to 2"):
        F.nll_loss(logs, gs.tensor([0, 1, 3, -7]))
    with pytest.raises(IndexError, match="-1"):
        F.nll_loss(logs, gs.tensor([0, 1, 2, -1]))
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(3,\)"):
        F.nll_loss(logs, gs.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match="int32 or int64"):
        F.nll_loss(logs, gs.zeros(4))
    with pytest.raises(ValueError, match=r"\(3,\), one number a class"):
        F.nll_loss(logs, gs.tensor([0, 1, 2, 0]), gs.ones(4))
    with pytest.raises(ValueError, match="class axis"):
        F.nll_loss(gs.tensor(1.0), gs.tensor(0))


def test_bad_index_at_the_end_of_a_large_batch():
    t = np.zeros(50_000, np.int64)
    t[49_999] = 12
    with pytest.raises(IndexError, match="49999 is 12"):
        F.nll_loss(gs.zeros(50_000, 10), gs.tensor(t))
