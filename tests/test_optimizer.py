"""Optimizers against their formulas in float64 NumPy, and against PyTorch where it is installed."""

import copy
import json
import math

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
from gradsmith import optim

# ---- references: one function per algorithm; s is a dict of state, t counts from 1


def ref_sgd(p, g, s, t, lr=1e-3, momentum=0, dampening=0, nesterov=False):
    if momentum == 0:
        return p - lr * g
    s["b"] = g if t == 1 else momentum * s["b"] + (1 - dampening) * g
    return p - lr * (g + momentum * s["b"] if nesterov else s["b"])


def ref_adagrad(p, g, s, t, lr=1e-2, lr_decay=0, initial_accumulator_value=0, eps=1e-10):
    s["s"] = s.get("s", initial_accumulator_value) + g * g
    return p - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(s["s"]) + eps)


def ref_rmsprop(p, g, s, t, lr=1e-2, alpha=0.99, eps=1e-8, momentum=0, centered=False):
    s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g * g
    v = s["v"]
    if centered:
        s["a"] = alpha * s.get("a", 0) + (1 - alpha) * g
        v = v - s["a"] ** 2
    d = g / (np.sqrt(v) + eps)
    if momentum:
        s["b"] = d = momentum * s.get("b", 0) + d
    return p - lr * d


def ref_adadelta(p, g, s, t, lr=1.0, rho=0.9, eps=1e-6):
    s["v"] = rho * s.get("v", 0) + (1 - rho) * g * g
    d = np.sqrt(s.get("u", 0 * g) + eps) / np.sqrt(s["v"] + eps) * g
    s["u"] = rho * s.get("u", 0) + (1 - rho) * d * d
    return p - lr * d


def ref_adam(p, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, amsgrad=False):
    b1, b2 = betas
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    v = s["v"]
    if amsgrad:
        s["x"] = v = np.maximum(s.get("x", 0), v)
    return p - lr * (s["m"] / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def ref_nadam(p, g, s, t, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, momentum_decay=4e-3):
    b1, b2 = betas
    mu, ahead = (b1 * (1 - 0.5 * 0.96 ** (k * momentum_decay)) for k in (t, t + 1))
    s["M"] = s.get("M", 1.0) * mu
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    mh = ahead * s["m"] / (1 - s["M"] * ahead) + (1 - mu) * g / (1 - s["M"])
    return p - lr * mh / (np.sqrt(s["v"] / (1 - b2**t)) + eps)


def ref_adamax(p, g, s, t, lr=2e-3, betas=(0.9, 0.999), eps=1e-8):
    b1, b2 = betas
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["u"] = np.maximum(b2 * s.get("u", 0), np.abs(g) + eps)
    return p - lr / (1 - b1**t) * s["m"] / s["u"]


def ref_radam(p, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    b1, b2 = betas
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    mh = s["m"] / (1 - b1**t)
    top = 2 / (1 - b2) - 1
    rho = top - 2 * t * b2**t / (1 - b2**t)
    if rho <= 5:
        return p - lr * mh
    r = math.sqrt((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho))
    return p - lr * r * mh * math.sqrt(1 - b2**t) / (np.sqrt(s["v"]) + eps)


def ref_asgd(p, g, s, t, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6):
    eta, mu = s.get("eta", lr), s.get("mu", 1)
    p = p * (1 - lambd * eta) - eta * g
    s["ax"] = s.get("ax", 0) + mu * (p - s.get("ax", 0))
    s["eta"], s["mu"] = lr / (1 + lambd * lr * t) ** alpha, 1 / max(1, t - t0)
    return p


# name, reference, options of the rule, options that all rules share
CASES = [
    ("SGD", ref_sgd, {}, {}),
    ("SGD", ref_sgd, {"lr": 0.1}, {"weight_decay": 0.1}),
    ("SGD", ref_sgd, {"lr": 0.1, "momentum": 0.9}, {}),
    ("SGD", ref_sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, {"weight_decay": 0.01}),
    ("SGD", ref_sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"maximize": True}),
    ("Adagrad", ref_adagrad, {}, {}),
    (
        "Adagrad",
        ref_adagrad,
        {"lr_decay": 0.1, "initial_accumulator_value": 0.1},
        {"weight_decay": 0.1},
    ),
    ("RMSprop", ref_rmsprop, {}, {}),
    ("RMSprop", ref_rmsprop, {"alpha": 0.9, "momentum": 0.9}, {"weight_decay": 0.1}),
    ("RMSprop", ref_rmsprop, {"centered": True}, {"maximize": True}),
    ("RMSprop", ref_rmsprop, {"centered": True, "momentum": 0.5}, {}),
    ("Adadelta", ref_adadelta, {}, {}),
    ("Adadelta", ref_adadelta, {"lr": 0.5, "rho": 0.8}, {"weight_decay": 0.1, "maximize": True}),
    ("Adam", ref_adam, {}, {}),
    ("Adam", ref_adam, {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-4}, {"weight_decay": 0.1}),
    ("Adam", ref_adam, {"amsgrad": True}, {"maximize": True}),
    ("Adam", ref_adam, {"betas": (0.0, 0.9)}, {}),
    ("AdamW", ref_adam, {"lr": 0.01}, {}),
    ("AdamW", ref_adam, {"lr": 0.01, "amsgrad": True}, {"weight_decay": 0.3}),
    ("NAdam", ref_nadam, {}, {}),
    ("NAdam", ref_nadam, {"momentum_decay": 0.1}, {"weight_decay": 0.1}),
    (
        "NAdam",
        ref_nadam,
        {"lr": 0.01},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    ("Adamax", ref_adamax, {}, {}),
    ("Adamax", ref_adamax, {"lr": 0.05}, {"weight_decay": 0.1, "maximize": True}),
    ("RAdam", ref_radam, {}, {}),
    ("RAdam", ref_radam, {"betas": (0.9, 0.9)}, {"weight_decay": 0.1}),
    (
        "RAdam",
        ref_radam,
        {"lr": 0.01},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    ("ASGD", ref_asgd, {}, {}),
    ("ASGD", ref_asgd, {"lr": 0.1, "lambd": 0.01, "t0": 2}, {"weight_decay": 0.1}),
]
IDS = [f"{c[0]}-{i}" for i, c in enumerate(CASES)]

# edge shapes: empty, scalar, tails around a vector and around a chunk
SHAPES = [(0,), (), (1,), (3,), (7, 5), (15,), (16,), (17,), (64,), (65, 1), (8191,), (8193,)]


def reference_step(fn, p, g, s, t, rule, shared, name, l1=0.0):
    """One step in float64, with what all rules do to the gradient first."""
    decay = shared.get("weight_decay", 0.01 if name == "AdamW" else 0)
    own = name == "AdamW" or shared.get("decoupled_weight_decay", False)
    lr = rule.get("lr", fn.__defaults__[0])
    g = -g if shared.get("maximize") else g
    if own:
        p = p * (1 - lr * decay)
    else:
        g = g + decay * p
    return fn(p, g + l1 * np.sign(p), s, t, **rule)


def run(name, options, start, grads, dtype, **more):
    """Our optimizer over len(grads) steps; the parameters after each."""
    params = [gs.nn.Parameter(a.astype(dtype)) for a in start]
    opt = getattr(optim, name)(params, **options, **more)
    out = []
    for step in grads:
        for p, g in zip(params, step):
            p.grad = gs.tensor(g.astype(dtype))
        opt.step()
        out.append([np.array(p.data) for p in params])
    return out, opt, params


def data(seed, shapes, steps):
    rng = np.random.default_rng(seed)
    start = [rng.standard_normal(s) for s in shapes]
    grads = [[rng.standard_normal(s) for s in shapes] for _ in range(steps)]
    return start, grads


@pytest.mark.parametrize("name,fn,rule,shared", CASES, ids=IDS)
def test_formula_float64(name, fn, rule, shared):
    start, grads = data(len(name), SHAPES, 8)
    got, _, _ = run(name, {**rule, **shared}, start, grads, np.float64)
    p, s = [a.copy() for a in start], [{} for _ in start]
    for t, step in enumerate(grads, 1):
        for i, g in enumerate(step):
            p[i] = reference_step(fn, p[i], g, s[i], t, rule, shared, name)
            np.testing.assert_allclose(got[t - 1][i], p[i], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name,fn,rule,shared", CASES, ids=IDS)
def test_formula_float32(name, fn, rule, shared):
    """No further from the exact result than the same formula in NumPy's float32, and a few roundings."""
    start, grads = data(3, [(1000,), (33, 3)], 6)
    start = [a.astype(np.float32).astype(np.float64) for a in start]
    grads = [[g.astype(np.float32).astype(np.float64) for g in step] for step in grads]
    got, _, _ = run(name, {**rule, **shared}, start, grads, np.float32)
    exact, s = [a.copy() for a in start], [{} for _ in start]
    single, z = [a.astype(np.float32) for a in start], [{} for _ in start]
    for t, step in enumerate(grads, 1):
        for i, g in enumerate(step):
            exact[i] = reference_step(fn, exact[i], g, s[i], t, rule, shared, name)
            h = g.astype(np.float32)
            single[i] = reference_step(fn, single[i], h, z[i], t, rule, shared, name)
            assert single[i].dtype == np.float32
            mine, theirs = np.abs(got[t - 1][i] - exact[i]), np.abs(single[i] - exact[i])
            ulp = np.finfo(np.float32).eps * np.abs(exact[i]).max()
            assert mine.max() <= 2 * theirs.max() + ulp
            assert np.sqrt((mine**2).mean()) <= 1.5 * np.sqrt((theirs**2).mean()) + 0.1 * ulp


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_extreme_gradients(eps, amsgrad):
    """Zeros, the smallest and largest numbers and what is not finite, beside each other in a vector."""
    tiny, large = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    g = np.array([0, 1, np.inf, -np.inf, np.nan, tiny, large, 1e-18, -1e18, 0, 3e-20], np.float32)
    g = np.tile(g, 5)
    p = gs.tensor(np.ones_like(g), requires_grad=True)
    opt = optim.Adam([p], lr=0.125, eps=eps, amsgrad=amsgrad)
    want, m, v, top = (np.full(g.shape, c, np.float32) for c in (1, 0, 0, 0))
    one = np.float32(1)
    with np.errstate(all="ignore"):
        for t in (1, 2):
            p.grad = gs.tensor(g)
            opt.step()
            m = np.float32(0.9) * m + np.float32(1 - 0.9) * g
            v = np.float32(0.999) * v + np.float32(1 - 0.999) * g * g
            top = np.maximum(top, v)
            d = np.sqrt(top if amsgrad else v) * (one / np.float32(np.sqrt(1 - 0.999**t)))
            want = want - np.float32(0.125 / (1 - 0.9**t)) * (m / (d + np.float32(eps)))
            np.testing.assert_allclose(p.data, want, rtol=2e-5, err_msg=f"step {t}")


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_penalties(name):
    """l1 beside weight_decay: the elastic penalty's gradient."""
    fn = {"SGD": ref_sgd, "RMSprop": ref_rmsprop}.get(name, ref_adam)
    start, grads = data(5, [(50,)], 4)
    start[0][::7] = 0.0
    shared = {"weight_decay": 0.2}
    got, _, _ = run(name, shared, start, grads, np.float64, l1=0.05)
    p, s = start[0], {}
    for t, (g,) in enumerate(grads, 1):
        p = reference_step(fn, p, g, s, t, {}, shared, name, l1=0.05)
        np.testing.assert_allclose(got[t - 1][0], p, rtol=1e-12)


@pytest.mark.parametrize("name,fn,rule,shared", CASES, ids=IDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch(name, fn, rule, shared, dtype):
    """Step by step the same as PyTorch, two groups, the lr changed on the way."""
    torch = pytest.importorskip("torch")
    start, grads = data(11, [(40, 7), (9,), (), (130,)], 20)
    options = {**rule, **shared}
    ours = [gs.nn.Parameter(a.astype(dtype)) for a in start]
    theirs = [torch.tensor(a.astype(dtype), requires_grad=True) for a in start]
    rate = rule.get("lr", 0.05)

    def groups(params):
        return [{"params": params[:2], "lr": rate}, {"params": params[2:], "lr": rate / 3}]

    a = getattr(optim, name)(groups(ours), **options)
    b = getattr(torch.optim, name)(groups(theirs), **options)
    for t, step in enumerate(grads):
        if t in (7, 13):
            for opt in (a, b):
                for group in opt.param_groups:
                    group["lr"] *= 0.5
        for i, (p, q, g) in enumerate(zip(ours, theirs, step)):
            skip = i == 1 and t in (0, 4, 5)  # a parameter without a gradient now and then
            p.grad = None if skip else gs.tensor(g.astype(dtype))
            q.grad = None if skip else torch.tensor(g.astype(dtype))
        a.step()
        b.step()
        # PyTorch keeps NAdam's product of mu in float32 whatever the parameters are.
        tight = 1e-12 if dtype == "float64" and name not in ("NAdam", "ASGD") else 2e-6
        for p, q in zip(ours, theirs):
            np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=tight, atol=tight)


def test_defaults_as_torch():
    torch = pytest.importorskip("torch")
    for name in ("SGD", "ASGD", "Adagrad", "RMSprop", "Adadelta", "Adam", "AdamW", "NAdam"):
        a = getattr(optim, name)([gs.nn.Parameter([1.0])]).param_groups[0]
        b = getattr(torch.optim, name)([torch.ones(1, requires_grad=True)]).param_groups[0]
        for key, value in a.items():
            if key not in ("params", "l1"):
                assert b[key] == value, (name, key)


@pytest.mark.parametrize("name,fn,rule,shared", CASES, ids=IDS)
def test_same_bits_on_any_number_of_threads(name, fn, rule, shared):
    start, grads = data(2, [(100_003,), (5, 3), (0,), (70_000,)], 2)
    before = gs.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            gs.set_num_threads(n)
            more = {"max_grad_norm": 1.0}
            out, opt, _ = run(name, {**rule, **shared}, start, grads, np.float32, **more)
            results.append((out, opt.grad_norm))
    finally:
        gs.set_num_threads(before)
    for out, norm in results[1:]:
        assert norm == results[0][1]
        for x, y in zip(out[-1], results[0][0][-1]):
            assert x.tobytes() == y.tobytes()


def test_many_small_tensors():
    start, grads = data(8, [(i % 37,) for i in range(300)], 3)
    got, _, _ = run("AdamW", {}, start, grads, np.float64)
    for i in range(300):
        one, _, _ = run("AdamW", {}, start[i : i + 1], [g[i : i + 1] for g in grads], np.float64)
        assert one[-1][0].tobytes() == got[-1][i].tobytes()


# ---- clipping


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW", "NAdam", "Adamax", "RAdam"])
def test_averages_of_a_gradient_that_vanished_become_zero(name, dtype):
    """0.9 of the smallest subnormal rounds to itself: without flushing they would stay, and be slow."""
    more = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    p = gs.nn.Parameter(np.ones(100, dtype))
    optimizer = getattr(gs.optim, name)([p], lr=1e-3, **more)
    smallest = np.finfo(dtype).smallest_normal
    p.grad = gs.tensor(np.full(100, smallest * 8, dtype))
    optimizer.step()
    before = p.data.copy()
    for _ in range(60):
        p.grad = gs.tensor(np.zeros(100, dtype))
        optimizer.step()
    states = [v.data for v in optimizer.state[p].values() if isinstance(v, gs.Tensor)]
    averages = [v for v in states if v.shape == p.shape]
    assert averages
    for v in averages:
        assert np.all((v == 0) | (np.abs(v) >= smallest)), (name, v[0])
    np.testing.assert_allclose(p.data, before, rtol=0.1)
    tiny = np.array([smallest / 4], dtype)
    assert tiny[0] * dtype(0.5) > 0  # nothing outside the update is flushed


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf, 3.0, 0.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_grad_norm(norm_type, dtype):
    _, (grads,) = data(4, [(0,), (3,), (16, 5), (9001,), ()], 1)
    params = [gs.nn.Parameter(np.zeros(g.shape, dtype)) for g in grads]
    for p, g in zip(params, grads):
        p.grad = gs.tensor(g.astype(dtype))
    flat = np.concatenate([g.astype(dtype).astype(np.float64).ravel() for g in grads])
    norm = (
        np.abs(flat).max()
        if norm_type == math.inf
        else (np.abs(flat) ** norm_type).sum() ** (1 / norm_type)
    )
    total = optim.clip_grad_norm_(params, norm / 4, norm_type)
    tight = 1e-12 if dtype == np.float64 else 3e-7
    np.testing.assert_allclose(total.item(), norm, rtol=tight)
    for p, g in zip(params, grads):
        scaled = g.astype(dtype) * (norm / 4 / (norm + 1e-6))
        np.testing.assert_allclose(p.grad.data, scaled, rtol=4 * tight)
    held = [p.grad.data.tobytes() for p in params]
    optim.clip_grad_norm_(params, norm, norm_type)  # below the limit: untouched
    assert held == [p.grad.data.tobytes() for p in params]


def test_clip_torch():
    torch = pytest.importorskip("torch")
    _, (grads,) = data(4, [(31,), (16, 5)], 1)
    for norm_type in (2.0, math.inf, 1.0):
        ours = [gs.nn.Parameter(np.zeros(g.shape)) for g in grads]
        theirs = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads]
        for p, q, g in zip(ours, theirs, grads):
            p.grad, q.grad = gs.tensor(g), torch.tensor(g)
        a = optim.clip_grad_norm_(ours, 2.0, norm_type)
        b = torch.nn.utils.clip_grad_norm_(theirs, 2.0, norm_type)
        np.testing.assert_allclose(a.item(), b.item(), rtol=1e-12)
        for p, q in zip(ours, theirs):
            np.testing.assert_allclose(p.grad.data, q.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop", "NAdam"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fused_clipping_equals_separate(name, dtype):
    start, grads = data(6, [(100,), (3, 7), (20_000,)], 4)
    for limit, value in ((0.5, None), (None, 0.3), (1e9, None)):
        fused, opt, _ = run(name, {}, start, grads, dtype, max_grad_norm=limit, clip_value=value)
        params = [gs.nn.Parameter(a.astype(dtype)) for a in start]
        plain = getattr(optim, name)(params)
        for step in grads:
            for p, g in zip(params, step):
                p.grad = gs.tensor(g.astype(dtype))
            if limit is not None:
                norm = optim.clip_grad_norm_(params, limit)
            if value is not None:
                optim.clip_grad_value_(params, value)
            plain.step()
        for x, p in zip(fused[-1], params):
            assert x.tobytes() == p.data.tobytes()
        if limit is not None:
            np.testing.assert_allclose(opt.grad_norm, norm.item(), rtol=1e-6)


def test_clip_grad_value():
    p = gs.nn.Parameter(np.zeros(40, np.float32))
    g = np.linspace(-3, 3, 40).astype(np.float32)
    g[5] = np.nan
    p.grad = gs.tensor(g.copy())
    optim.clip_grad_value_(p, 1.0)
    np.testing.assert_array_equal(p.grad.data, np.clip(g, -1, 1))


def test_norm_of_huge_values_does_not_overflow():
    p = gs.nn.Parameter(np.zeros(20, np.float32))
    p.grad = gs.tensor(np.full(20, 1e30, np.float32))
    total = optim.clip_grad_norm_(p, 1.0)
    np.testing.assert_allclose(total.item(), 1e30 * math.sqrt(20), rtol=1e-6)
    np.testing.assert_allclose(p.grad.data, np.full(20, 1 / math.sqrt(20)), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite(bad):
    p = gs.nn.Parameter(np.ones(100, np.float32))
    p.grad = gs.tensor(np.ones(100, np.float32))
    p.grad.data[77] = bad
    with pytest.raises(RuntimeError, match="total norm"):
        optim.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    assert p.grad.data[0] == 1
    opt = optim.Adam([p], skip_nonfinite=True)
    opt.step()
    assert opt.skipped == 1 and (p.data == 1).all() and opt.state[p]["step"] == 0
    assert not opt.state[p]["exp_avg"].data.any()
    p.grad = gs.tensor(np.ones(100, np.float32))
    opt.step()
    assert opt.skipped == 1 and opt.state[p]["step"] == 1
    np.testing.assert_allclose(p.data, 1 - 1e-3, rtol=1e-6)


def test_without_skip_a_nan_shows():
    p = gs.nn.Parameter(np.ones(3, np.float32))
    p.grad = gs.tensor(np.array([1, np.nan, 1], np.float32))
    optim.SGD([p], lr=1.0, clip_value=0.5).step()
    assert np.isnan(p.data[1]) and p.data[0] == 0.5


# ---- state


@pytest.mark.parametrize("name,fn,rule,shared", CASES, ids=IDS)
@pytest.mark.parametrize("how", ["dict", "file", "named"])
def test_state_goes_on_with_the_same_bits(name, fn, rule, shared, how, tmp_path):
    start, grads = data(9, [(70,), (4, 5)], 9)
    whole, _, _ = run(name, {**rule, **shared}, start, grads, np.float32)
    _, opt, params = run(name, {**rule, **shared}, start, grads[:4], np.float32)
    again = [gs.nn.Parameter(np.array(p.data)) for p in params]
    fresh = getattr(optim, name)(again, **{**rule, **shared})
    names = [f"layer.{i}" for i in range(2)]
    if how == "named":
        fresh.load_named_state(zip(names, again), opt.named_state(zip(names, params)))
    else:
        state = opt.state_dict()
        json.dumps(state["param_groups"])
        if how == "file":
            gs.save(state, tmp_path / "o.safetensors")
            state = gs.load(tmp_path / "o.safetensors")
        fresh.load_state_dict(state)
    for step in grads[4:]:
        for p, g in zip(again, step):
            p.grad = gs.tensor(g.astype(np.float32))
        fresh.step()
    for p, x in zip(again, whole[-1]):
        assert p.data.tobytes() == x.tobytes()


def test_state_is_a_copy():
    start, grads = data(9, [(7,)], 2)
    _, opt, params = run("Adam", {}, start, grads, np.float32)
    other = optim.Adam([gs.nn.Parameter(np.array(params[0].data))])
    other.load_state_dict(opt.state_dict())
    other.param_groups[0]["params"][0].grad = gs.tensor(np.ones(7, np.float32))
    held = opt.state[params[0]]["exp_avg"].data.copy()
    other.step()
    np.testing.assert_array_equal(held, opt.state[params[0]]["exp_avg"].data)


def test_load_state_dict_checks_first():
    p, q = gs.nn.Parameter(np.ones(3)), gs.nn.Parameter(np.ones(4))
    p.grad, q.grad = gs.tensor(np.ones(3)), gs.tensor(np.ones(4))
    a, b = optim.Adam([p]), optim.Adam([q])
    a.step()
    with pytest.raises(ValueError, match=r"exp_avg.*\(3,\).*\(4,\)"):
        b.load_state_dict(a.state_dict())
    with pytest.raises(ValueError, match="2 parameters"):
        b.load_state_dict(optim.Adam([p, q]).state_dict())
    with pytest.raises(ValueError, match="param_groups"):
        b.load_state_dict({})
    bad = a.state_dict()
    bad["param_groups"][0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        a.load_state_dict(bad)
    assert not b.state and a.param_groups[0]["lr"] == 1e-3


# ---- the interface


def test_closure_zero_grad_and_version():
    p = gs.nn.Parameter(np.ones(3, np.float32))
    opt = optim.SGD([p], lr=0.5)

    def closure():
        assert gs.is_grad_enabled()
        p.grad = gs.tensor(np.ones(3, np.float32))
        return "loss"

    with gs.no_grad():
        assert opt.step(closure) == "loss"
    assert p._ver[0] == 1 and (p.data == 0.5).all()
    opt.zero_grad(set_to_none=False)
    assert not p.grad.data.any()
    opt.zero_grad()
    assert p.grad is None
    opt.step()  # nothing to do
    assert (p.data == 0.5).all()


def test_scheduler_takes_effect():
    p = gs.nn.Parameter([0.0])
    opt = optim.SGD([p], lr=1.0)
    schedule = optim.lr_scheduler.StepLR(opt, 1, gamma=0.1)
    for expect in (-1.0, -1.1, -1.11):
        p.grad = gs.tensor([1.0])
        opt.step()
        schedule.step()
        assert p.item() == pytest.approx(expect)


def test_views_and_strides():
    """Parameters and gradients of any strides."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((6, 10))
    for view in (lambda a: a.T, lambda a: a[::2, ::-1], lambda a: a[:, 3:4]):
        strided, plain = base.copy(), np.ascontiguousarray(view(base))
        g = rng.standard_normal(plain.shape)
        results = []
        for a in (view(strided), plain):
            p = gs.nn.Parameter(a)
            p.grad = gs.tensor(np.asfortranarray(g))
            opt = optim.Adam([p], lr=0.1)
            opt.step()
            opt.step()
            results.append(np.array(p.data))
        np.testing.assert_array_equal(*results)


def test_mixed_dtypes_in_one_group():
    a, b = gs.nn.Parameter(np.ones(3, np.float32)), gs.nn.Parameter(np.ones(3))
    a.grad, b.grad = gs.tensor(np.ones(3, np.float32)), gs.tensor(np.ones(3))
    opt = optim.SGD([a, b], lr=0.1, max_grad_norm=math.sqrt(6) / 2)
    opt.step()
    np.testing.assert_allclose(a.data, 0.95, rtol=1e-6)
    np.testing.assert_allclose(b.data, 0.95, rtol=1e-6)
    assert opt.grad_norm == pytest.approx(math.sqrt(6))


def test_get():
    assert optim.get("adamw") is optim.AdamW and optim.get(optim.SGD) is optim.SGD
    with pytest.raises(ValueError, match="adamx"):
        optim.get("adamx")


def test_slots_are_given_back():
    k = gs._cpu
    for _ in range(2000):  # 12 slots each; the table has 65536
        p = gs.nn.Parameter([1.0])
        p.grad = gs.tensor([1.0])
        optim.SGD([p]).step()
    k.slot_free(k.slot_new())


def test_custom_rule():
    """A user's rule over a kernel: what the docstring of Optimizer promises."""

    class Halving(optim.Optimizer):
        rule = "sgd"

        def scalars(self, group, numbers):
            numbers["step"] += 1
            return (group["lr"] / 2 ** numbers["step"],)

    p = gs.nn.Parameter(np.zeros(1))
    opt = Halving([p], {"lr": 1.0})
    for _ in range(3):
        p.grad = gs.tensor(np.ones(1))
        opt.step()
    assert p.item() == -0.875


@pytest.mark.parametrize("name,fn,rule,shared", CASES, ids=IDS)
def test_advance_writes_what_the_next_step_would(name, fn, rule, shared):
    """A replayed step: the same launch after advance() gives the bits of a second step()."""
    start, grads = data(1, [(40,)], 1)
    seen = []
    for replay in (False, True):
        p = gs.nn.Parameter(start[0].copy())
        p.grad = gs.tensor(grads[0][0])
        opt = getattr(optim, name)([p], **{**rule, **shared})
        opt.step()
        opt.param_groups[0]["lr"] /= 2
        if replay:
            opt.advance()
            ids = opt._slots[0, 0].ids
            values = tuple(gs._cpu.slot_get(i) for i in ids)
            kernel, arrays = opt.kernel(opt.param_groups[0])
            flat = [p.data, p.grad.data, *[opt.state[p][a].data for a in arrays]]
            gs._cpu.optimizer_update(kernel, None, values, flat)
        else:
            opt.step()
        seen.append((p.data.tobytes(), [opt.state[p][n] for n in opt.numbers]))
    assert seen[0] == seen[1]
    with pytest.raises(RuntimeError, match="no step"):
        optim.Adam([gs.nn.Parameter([1.0])]).advance()


def test_bad_input():
    p = gs.nn.Parameter([1.0, 2.0])
    with pytest.raises(ValueError, match="no parameters"):
        optim.SGD([])
    with pytest.raises(ValueError, match="twice"):
        optim.SGD([p, p])
    with pytest.raises(ValueError, match="twice"):
        optim.SGD([{"params": [p]}, {"params": [p]}])
    with pytest.raises(TypeError, match=r"model\.parameters"):
        optim.SGD(p)
    with pytest.raises(TypeError, match="not a Tensor"):
        optim.SGD([np.ones(3)])
    with pytest.raises(TypeError, match="int64"):
        optim.SGD([gs.tensor([1, 2])])
    with pytest.raises(ValueError, match="leaf"):
        optim.SGD([p.clone()])
    for options in ({"lr": -1.0}, {"lr": math.nan}, {"lr": math.inf}, {"weight_decay": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            optim.Adam([p], **options)
    with pytest.raises(ValueError, match=r"betas\[1\]"):
        optim.Adam([p], betas=(0.9, 1.0))
    with pytest.raises(TypeError, match="betas"):
        optim.Adam([p], betas=0.9)
    with pytest.raises(TypeError, match="lr"):
        optim.Adam([p], lr="fast")
    with pytest.raises(TypeError, match="momentun"):
        optim.SGD([p], momentun=0.9)
    with pytest.raises(ValueError, match="nesterov"):
        optim.SGD([p], nesterov=True)
    with pytest.raises(ValueError, match="unknown option 'rate'"):
        optim.SGD([{"params": [p], "rate": 1}])
    with pytest.raises(ValueError, match="max_grad_norm"):
        optim.SGD([p], max_grad_norm=0)
    with pytest.raises(ValueError, match="max_norm"):
        optim.clip_grad_norm_([p], -1.0)
    with pytest.raises(ValueError, match="norm_type"):
        optim.clip_grad_norm_([p], 1.0, norm_type=0)
    with pytest.raises(ValueError, match="clip_value"):
        optim.clip_grad_value_([p], math.nan)


def test_bad_gradient_changes_nothing():
    a, b = gs.nn.Parameter(np.ones(3)), gs.nn.Parameter(np.ones(4))
    a.grad, b.grad = gs.tensor(np.ones(3)), gs.tensor(np.ones(4))
    b.data = np.ones(5)
    opt = optim.SGD([a, b], lr=0.1)
    with pytest.raises(ValueError, match=r"\(5,\).*\(4,\)"):
        opt.step()
    assert (a.data == 1).all()
    b.data = np.ones(4)
    b.data.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        opt.step()
    assert (a.data == 1).all()
    adam = optim.Adam([a])
    adam.step()
    a.data = np.ones(6)
    a._grad = gs.tensor(np.ones(6))
    with pytest.raises(ValueError, match="state exp_avg"):
        adam.step()


def test_kernel_arguments_are_checked():
    k = gs._cpu
    a = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="unknown rule"):
        k.optimizer_update("nope", None, (), [])
    with pytest.raises(ValueError, match="2 arrays"):
        k.optimizer_update("sgd", None, (1.0,), [a])
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        k.optimizer_update("sgd", None, (1.0,), [a, np.ones(4, np.float32)])
    with pytest.raises(TypeError, match="float64"):
        k.optimizer_update("sgd", None, (1.0,), [a, np.ones(3)])
    with pytest.raises(TypeError, match="at most"):
        k.optimizer_update("sgd", None, (1.0,) * 50, [a, a])
    with pytest.raises(ValueError, match="slot"):
        k.optimizer_update("sgd", (70000,), (1.0,), [a, a])
    with pytest.raises(ValueError, match="control"):
        k.optimizer_update("sgd", None, (1.0,), [a, a], np.zeros(3))


def test_state_of_a_parameter_without_axes(rng):
    """A scalar parameter's state comes back in its shape, and training goes on to the same bits."""
    for make in (lambda p: gs.optim.AdamW(p, 0.1), lambda p: gs.optim.SGD(p, 0.1, momentum=0.9)):
        values = [rng.normal(size=()), rng.normal(size=(2, 3))]
        first = [nn.Parameter(np.array(v)) for v in values]
        again = [nn.Parameter(np.array(v)) for v in values]
        a, b = make(first), make(again)
        for step in range(4):
            for p, q in zip(first, again):
                p.grad = gs.tensor(rng.normal(size=p.shape))
                q.grad = p.grad
            a.step()
            if step == 1:
                b.load_state_dict(a.state_dict())
                for p, q in zip(first, again):
                    q.detach().copy_(p.detach())
            elif step > 1:
                b.step()
                for p, q in zip(first, again):
                    np.testing.assert_array_equal(q.detach().numpy(), p.detach().numpy())


def test_momentum_of_pytorch_goes_on(rng):
    """PyTorch's state of SGD has no count of steps: a loaded buffer is not begun anew."""
    p = nn.Parameter(rng.normal(size=3))
    before, buffer, g = p.detach().numpy().copy(), rng.normal(size=3), rng.normal(size=3)
    opt = gs.optim.SGD([p], 0.1, momentum=0.9)
    saved = opt.state_dict()
    saved["state"] = {0: {"momentum_buffer": buffer}}
    opt.load_state_dict(saved)
    p.grad = gs.tensor(g)
    opt.step()
    np.testing.assert_allclose(p.detach().numpy(), before - 0.1 * (0.9 * buffer + g), rtol=1e-14)


def test_clip_names_what_it_got():
    with pytest.raises(TypeError, match="clip_grad_norm_: expected Tensors, got Linear"):
        gs.optim.clip_grad_norm_(nn.Linear(2, 2), 1.0)


@pytest.mark.parametrize("name", ["Adagrad", "RMSprop", "Adam", "AdamW", "NAdam", "RAdam"])
def test_a_lane_that_is_not_finite_leaves_the_others_alone(name):
    """Quotients of two vectors are looked at together; the ones with a NaN are divided after all."""
    r = np.random.default_rng(3)
    start, grad = (r.standard_normal(200).astype(np.float32) for _ in range(2))
    for bad in (math.nan, math.inf, -math.inf):
        results = []
        for at in (None, 0, 17, 37, 150, 199):
            p = gs.nn.Parameter(start.copy())
            optimizer = getattr(gs.optim, name)([p], lr=0.1)
            for _ in range(7):
                g = grad.copy()
                if at is not None:
                    g[at] = bad
                p.grad = gs.tensor(g)
                optimizer.step()
            results.append((at, p.data.copy()))
        whole = results[0][1]
        for at, got in results[1:]:
            rest = np.arange(200) != at
            assert got[rest].tobytes() == whole[rest].tobytes(), (bad, at)
            assert not np.isfinite(got[at]), (bad, at)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "NAdam", "Adadelta"])
def test_the_quick_step_is_the_step(name):
    """A second step of unchanged parameters takes a shorter way; two groups never do."""
    start, grads = data(5, [(3, 4), (7,), (2,)], 6)
    more = {"momentum": 0.9} if name == "SGD" else {}
    results = []
    for split in (False, True):
        p = [gs.nn.Parameter(s.astype(np.float32)) for s in start]
        groups = [{"params": p[:1]}, {"params": p[1:]}] if split else p
        optimizer = getattr(gs.optim, name)(groups, lr=0.05, weight_decay=0.1, **more)
        for i, step in enumerate(grads):
            for q, g in zip(p, step):
                q.grad = gs.tensor(g.astype(np.float32))
            if i == 2:
                for group in optimizer.param_groups:
                    group["lr"] = 0.01
            if i == 3:
                optimizer.clip_value = 0.5
            if i == 4:
                p[1].grad = None
            optimizer.step()
        results.append([q.data.tobytes() for q in p])
        assert [optimizer.state[q]["step"] for q in p] == [6, 5, 6]
    assert results[0] == results[1]


def test_state_of_another_optimizer_is_an_error():
    def used(make):
        p = gs.Parameter([1.0, 2.0])
        p.grad = gs.tensor([0.5, 1.0])
        opt = make([p])
        opt.step()
        return opt, p

    adam, p = used(lambda params: gs.optim.Adam(params))
    sgd, q = used(lambda params: gs.optim.SGD(params, 0.1, momentum=0.9))
    before = {k: v.tolist() for k, v in sgd.state[q].items() if k != "step"}
    with pytest.raises(
        ValueError, match="SGD: the saved state of parameter 0 has 'exp_avg'.*momentum_buffer"
    ):
        sgd.load_state_dict(adam.state_dict())
    with pytest.raises(ValueError, match="SGD: the saved state of w has 'exp_avg'"):
        sgd.load_named_state([("w", q)], adam.named_state([("w", p)]))
    assert before == {k: v.tolist() for k, v in sgd.state[q].items() if k != "step"}
    amsgrad, _ = used(lambda params: gs.optim.AdamW(params, amsgrad=True))
    gs.optim.AdamW([gs.Parameter([1.0, 2.0])]).load_state_dict(amsgrad.state_dict())

    class Slow(gs.optim.SGD):  # keeps what it likes
        def step(self, closure=None):
            super().step(closure)
            for p, own in self.state.items():
                own["slow"] = gs.tensor(p.detach().numpy())

    slow, _ = used(lambda params: Slow(params, 0.1))
    other = Slow([gs.Parameter([1.0, 2.0])], 0.1)
    other.load_state_dict(slow.state_dict())
    assert next(iter(other.state.values()))["slow"].shape == (2,)


def test_clipping_has_pytorch_s_place():
    assert gs.nn.utils.clip_grad_norm_ is gs.optim.clip_grad_norm_
    assert gs.nn.utils.clip_grad_value_ is gs.optim.clip_grad_value_
    with pytest.raises(AttributeError, match="no attribute 'weight_norm'"):
        _ = gs.nn.utils.weight_norm


def test_scalars_of_long_formulas_are_pythons():
    """To the bit: what the compiled module computes, written in Python."""
    rng = np.random.default_rng(7)
    product = 1.0
    for t in [*range(1, 40), 1000, 123457]:
        lr, decay = float(rng.uniform(1e-4, 1)), float(rng.uniform(0, 0.01))
        b1, b2 = float(rng.uniform(0, 0.99)), float(rng.uniform(0.9, 0.9999))
        mu = b1 * (1 - 0.5 * 0.96 ** (t * decay))
        ahead = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * decay))
        new = product * mu
        want = (
            lr * (1 - mu) / (1 - new), lr * ahead / (1 - new * ahead), b1, b2, 1 - b2, 1e-8,
            1 / (1 - b2**t), new,
        )  # fmt: skip
        assert gs._cpu.nadam_scalars(t, lr, b1, b2, decay, 1e-8, product) == want
        product = new or 1.0
        want = (
            lr / (1 - b1**t), b1, 1 - b1, b2, 1 - b2, 1e-8, 1 / math.sqrt(1 - b2**t)
        )  # fmt: skip
        assert gs._cpu.adam_scalars(t, lr, b1, b2, 1e-8) == want
        rate, correction, far = lr / (1 - b1**t), 1 - b2**t, 2 / (1 - b2) - 1
        rho = far - 2 * t * b2**t / correction
        if rho > 5:
            rate *= math.sqrt(
                (rho - 4) * (rho - 2) * far / ((far - 4) * (far - 2) * rho) * correction
            )
        want = (rate, b1, 1 - b1, b2, 1 - b2, 1e-8, float(rho > 5))
        assert gs._cpu.radam_scalars(t, lr, b1, b2, 1e-8) == want


def test_what_is_no_state_of_an_optimizer():
    """One error that names the optimizer, and nothing is changed."""
    p = gs.nn.Parameter([1.0, 2.0])
    p.grad = gs.ones(2)
    opt = gs.optim.Adam([p], lr=0.1)
    opt.step()
    good = copy.deepcopy(opt.state_dict())
    before = repr(opt.state_dict())
    group = good["param_groups"][0]
    for wrong in (
        None,
        5,
        {"state": {}},
        {**good, "state": 3},
        {**good, "state": {0: 3}},
        {**good, "state": {"a": {}}},
        {**good, "state": {0: {"step": "a"}}},
        {**good, "state": {0: {"step": math.inf}}},
        {**good, "param_groups": None},
        {**good, "param_groups": [3]},
        {**good, "param_groups": [{k: v for k, v in group.items() if k != "params"}]},
        {**good, "param_groups": [{**group, "params": ["a"]}]},
        {**good, "param_groups": [{**group, "lr": "a"}]},
        {**good, "param_groups": [{**group, "betas": 1}]},
    ):
        with pytest.raises((TypeError, ValueError), match=r"^Adam(\.load_state_dict)?: "):
            opt.load_state_dict(wrong)
        assert repr(opt.state_dict()) == before
    opt.load_state_dict(good)


def test_options_of_other_types_are_named():
    p = gs.nn.Parameter([1.0])
    p.grad = gs.ones(1)
    for call, says in (
        (lambda: gs.optim.ASGD([p], t0="1"), "ASGD: t0 must be a number"),
        (lambda: gs.optim.ASGD([{"params": [p], "alpha": None}]), "ASGD: alpha must be a number"),
        (lambda: gs.optim.clip_grad_norm_([p], "a"), "clip_grad_norm_: max_norm must be a number"),
        (lambda: gs.optim.clip_grad_norm_([p], 1, []), "clip_grad_norm_: norm_type must be a num"),
        (lambda: gs.optim.get_total_norm([p], "two"), "get_total_norm: norm_type must be a number"),
        (lambda: gs.optim.clip_grad_value_([p], None), "clip_grad_value_: clip_value must be a n"),
    ):
        with pytest.raises(TypeError, match=says):
            call()
    assert gs.optim.clip_grad_norm_([p], 5, "inf").item() == 1
    gs.optim.ASGD([p], t0=math.inf).step()
