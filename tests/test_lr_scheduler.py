"""Schedules: formulas, golden vectors, PyTorch step by step, resume, bad arguments."""

from __future__ import annotations

import json
import math
import random
import warnings
from types import SimpleNamespace

import pytest

from gradsmith.optim import lr_scheduler as S


def make(lr=1.0, **extra):
    """An optimizer as a schedule sees it."""
    rates = lr if isinstance(lr, list) else [lr]
    return SimpleNamespace(param_groups=[{"lr": r, **extra} for r in rates])


def curve(scheduler, n):
    """Rates as the optimizer gets them, step by step; lr_at must agree before and after."""
    ahead = [scheduler.lr_at(t) for t in range(n)]
    seen = []
    for _ in range(n):
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == [g["lr"] for g in scheduler.optimizer.param_groups]
        scheduler.step()
    assert seen == [r[0] if isinstance(r, list) else r for r in ahead]
    assert ahead == [scheduler.lr_at(t) for t in range(n)]
    return seen


def close(a, b, tol=1e-12):
    assert len(a) == len(b)
    for i, (x, y) in enumerate(zip(a, b)):
        assert abs(x - y) <= tol * max(1.0, abs(y)), (i, x, y)


# Formulas ------------------------------------------------------------------------------------


def test_formulas():
    T = range(40)
    lr0 = 0.3
    cases = [
        (S.ConstantLR(make(lr0), 0.5, 4), lambda t: lr0 * (0.5 if t < 4 else 1)),
        (S.LinearLR(make(lr0), 0.25, 0.75, 8), lambda t: lr0 * (0.25 + 0.5 * min(t, 8) / 8)),
        (S.StepLR(make(lr0), 7, 0.5), lambda t: lr0 * 0.5 ** (t // 7)),
        (
            S.MultiStepLR(make(lr0), [9, 3, 9], 0.5),
            lambda t: lr0 * 0.5 ** sum(m <= t for m in (3, 9, 9)),
        ),
        (S.ExponentialLR(make(lr0), 0.9), lambda t: lr0 * 0.9**t),
        (S.ExponentialLR(make(lr0), 0.1, decay_steps=8), lambda t: lr0 * 0.1 ** (t / 8)),
        (
            S.ExponentialLR(make(lr0), 0.1, decay_steps=8, staircase=True),
            lambda t: lr0 * 0.1 ** (t // 8),
        ),
        (S.PolynomialLR(make(lr0), 20, 2), lambda t: lr0 * (1 - min(t, 20) / 20) ** 2),
        (S.PowerLR(make(lr0), 10, 0.5), lambda t: lr0 / (1 + t / 10) ** 0.5),
        (S.InverseTimeLR(make(lr0), 0.1), lambda t: lr0 / (1 + 0.1 * t)),
        (S.InverseTimeLR(make(lr0), 0.5, 4, True), lambda t: lr0 / (1 + 0.5 * (t // 4))),
        (S.LambdaLR(make(lr0), lambda t: 1 / (1 + t)), lambda t: lr0 / (1 + t)),
        (S.MultiplicativeLR(make(lr0), lambda t: 0.9), lambda t: lr0 * 0.9**t),
        (
            S.CosineAnnealingLR(make(lr0), 12, 0.01),
            lambda t: 0.01 + (lr0 - 0.01) * (1 + math.cos(math.pi * t / 12)) / 2,
        ),
        (
            S.NoamLR(make(2.0), 64, 10),
            lambda t: 2 * 64**-0.5 * min((t + 1) ** -0.5, (t + 1) * 10**-1.5),
        ),
        (
            S.PiecewiseConstantLR(make(lr0), [5, 10], [3, 2, 1]),
            lambda t: 3 if t <= 5 else 2 if t <= 10 else 1,
        ),
    ]
    for scheduler, f in cases:
        close(curve(scheduler, 40), [f(t) for t in T])


def test_power_and_exponential_corners():
    assert S.PowerLR(make(0.4), 50).lr_at(50) == pytest.approx(0.2, rel=1e-15)
    assert S.ExponentialLR(make(0.4), 0.1, decay_steps=50).lr_at(50) == pytest.approx(0.04)


def test_warmup_wraps_another_schedule():
    opt = make(0.5)
    s = S.WarmupLR(opt, 4, S.StepLR(opt, 2, 0.1))
    close(
        [s.lr_at(t) for t in range(9)],
        [0.125, 0.21875, 0.3125, 0.40625, 0.5, 0.5, 0.05, 0.05, 0.005],
    )
    opt = make(0.5)
    s = S.WarmupLR(opt, 4, start_factor=0.0)
    close(curve(s, 6), [0, 0.125, 0.25, 0.375, 0.5, 0.5])
    assert S.WarmupLR(make(0.5), 0).lr_at(0) == 0.5


def test_several_groups():
    opt = make([1.0, 0.1])
    s = S.StepLR(opt, 1, 0.5)
    assert s.lr_at(1) == [0.5, 0.05]
    s.step()
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.05]
    s = S.LambdaLR(make([1.0, 0.1]), [lambda t: t, lambda t: 2])
    assert s.lr_at(3) == [3.0, 0.2]
    s = S.OneCycleLR(make([1.0, 1.0]), [1.0, 0.1], 10, cycle_momentum=False)
    assert s.lr_at(2) == [1.0, 0.1]


# Golden vectors ------------------------------------------------------------------------------


def test_golden_vectors():
    def head(scheduler, want, tol=1e-6):
        close(curve(scheduler, len(want)), want, tol)

    head(
        S.OneCycleLR(make(), 1.0, 10, cycle_momentum=False),
        [0.04, 0.52, 1, 0.950485, 0.811746, 0.611262, 0.388742, 0.188258, 0.049519, 4e-6],
    )
    head(
        S.OneCycleLR(
            make(), 1.0, 11, pct_start=0.5, anneal_strategy="linear", div_factor=10,
            final_div_factor=1, cycle_momentum=False,
        ),
        [0.1, 0.3, 0.5, 0.7, 0.9, 0.918182, 0.754545],
    )  # fmt: skip
    head(
        S.CyclicLR(make(), 0.1, 1.0, 4, mode="triangular2", cycle_momentum=False),
        [0.1, 0.325, 0.55, 0.775, 1, 0.775, 0.55, 0.325, 0.1, 0.2125, 0.325, 0.4375, 0.55],
    )
    head(
        S.CyclicLR(make(), 0.1, 1.0, 4, mode="exp_range", gamma=0.9, cycle_momentum=False),
        [0.1, 0.3025, 0.4645, 0.592075, 0.69049, 0.498581, 0.339148, 0.207617, 0.1],
    )
    s = S.CosineAnnealingLR(make(), 10, 0.1)
    head(s, [1, 0.977975, 0.914058, 0.814503, 0.689058, 0.55])
    close([s.lr_at(10), s.lr_at(11)], [0.1, 0.122025], 1e-6)
    head(S.CosineAnnealingWarmRestarts(make(), 4, 2), [1, 0.853553, 0.5, 0.146447, 1, 0.96194])
    values = [1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5]
    want = [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125, 0.125]
    opt = make()
    s, got = S.ReduceLROnPlateau(opt, factor=0.5, patience=2), []
    for v in values:
        s.step(v)
        got.append(opt.param_groups[0]["lr"])
    assert got == want


def test_one_cycle_align_peak_reaches_the_maximum():
    kw = dict(pct_start=0.5, anneal_strategy="linear", cycle_momentum=False)
    assert max(curve(S.OneCycleLR(make(), 1.0, 11, **kw), 11)) < 1
    aligned = curve(S.OneCycleLR(make(), 1.0, 11, align_peak=True, **kw), 11)
    assert max(aligned) == 1.0
    for total in (1, 2, 3, 7):
        s = S.OneCycleLR(make(), 1.0, total, align_peak=True, cycle_momentum=False)
        assert all(0 < s.lr_at(t) <= 1 for t in range(total + 1))


def test_cyclic_modes_by_formula():
    s = S.CyclicLR(
        make(momentum=0.9), 0.1, 0.5, 3, 5, scale_fn=lambda c: 1 / c, base_momentum=0.6,
        max_momentum=0.8,
    )  # fmt: skip
    for t in range(33):
        cycle, x = divmod(t, 8)
        height = (x / 3 if x <= 3 else (8 - x) / 5) / (cycle + 1)
        assert s.lr_at(t) == pytest.approx(0.1 + 0.4 * height, rel=1e-12)
        assert s.momentum_at(t) == pytest.approx(0.8 - 0.2 * height, rel=1e-12)


# PyTorch, step by step -----------------------------------------------------------------------

CASES = {
    "constant": lambda m, o: m.ConstantLR(o, 0.3, 7),
    "linear": lambda m, o: m.LinearLR(o, 0.1, 0.8, 9),
    "step": lambda m, o: m.StepLR(o, 5, 0.3),
    "multistep": lambda m, o: m.MultiStepLR(o, [3, 8, 8, 20], 0.4),
    "exponential": lambda m, o: m.ExponentialLR(o, 0.93),
    "lambda": lambda m, o: m.LambdaLR(o, lambda t: 0.95**t),
    "multiplicative": lambda m, o: m.MultiplicativeLR(o, lambda t: 0.9 + 0.01 * (t % 5)),
    "polynomial": lambda m, o: m.PolynomialLR(o, 25, 1.7),
    "cosine": lambda m, o: m.CosineAnnealingLR(o, 17, 0.01),
    "restarts": lambda m, o: m.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
    "restarts1": lambda m, o: m.CosineAnnealingWarmRestarts(o, 6),
    "cyclic": lambda m, o: m.CyclicLR(o, 0.01, 0.2, 4, 7),
    "cyclic2": lambda m, o: m.CyclicLR(o, 0.01, 0.2, 5, mode="triangular2"),
    "cyclicexp": lambda m, o: m.CyclicLR(o, 0.01, 0.2, 5, mode="exp_range", gamma=0.97),
    "cyclicfn": lambda m, o: m.CyclicLR(
        o, 0.01, 0.2, 5, scale_fn=lambda t: 1 / (1 + t), scale_mode="iterations"
    ),
    "onecycle": lambda m, o: m.OneCycleLR(o, 0.2, 40),
    "onecycle_linear": lambda m, o: m.OneCycleLR(o, 0.2, 41, anneal_strategy="linear"),
    "onecycle_three": lambda m, o: m.OneCycleLR(
        o, 0.2, epochs=4, steps_per_epoch=10, three_phase=True, div_factor=10, final_div_factor=50
    ),
    "onecycle_three_linear": lambda m, o: m.OneCycleLR(
        o, 0.2, 43, pct_start=0.45, three_phase=True, anneal_strategy="linear"
    ),
    "sequential": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.1, 1.0, 5), m.ExponentialLR(o, 0.9), m.StepLR(o, 3, 0.5)], [5, 20]
    ),
    "sequential_cos": lambda m, o: m.SequentialLR(
        o, [m.ConstantLR(o, 0.1, 4), m.CosineAnnealingLR(o, 20, 0.001)], [6]
    ),
    "sequential_multiplicative": lambda m, o: m.SequentialLR(
        o,
        [
            m.StepLR(o, 3, 0.5),
            m.MultiplicativeLR(o, lambda t: 0.97 if t else 1.1),
            m.ConstantLR(o, 0.3, 4),
        ],
        [8, 25],
    ),
    "chained": lambda m, o: m.ChainedScheduler(
        [m.ConstantLR(o, 0.1, 4), m.ExponentialLR(o, 0.9), m.StepLR(o, 6, 0.5)]
    ),
    "chained_cos": lambda m, o: m.ChainedScheduler(
        [m.LinearLR(o, 0.2, 1.0, 8), m.CosineAnnealingLR(o, 12, 0.003)], o
    ),
    "chained_poly": lambda m, o: m.ChainedScheduler(
        [m.PolynomialLR(o, 12, 2.0), m.MultiplicativeLR(o, lambda t: 0.97)]
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_against_torch(name, kind):
    torch = pytest.importorskip("torch")
    w = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [w[0]], "lr": 0.1}, {"params": [w[1]], "lr": 0.02}]
    if kind == "sgd":
        theirs_opt = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        ours_opt = make([0.1, 0.02], momentum=0.9)
    else:
        theirs_opt = torch.optim.AdamW(groups, lr=0.1)
        ours_opt = make([0.1, 0.02], betas=(0.9, 0.999))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = CASES[name](torch.optim.lr_scheduler, theirs_opt)
        ours = CASES[name](S, ours_opt)
        for t in range(40):
            for a, b in zip(ours_opt.param_groups, theirs_opt.param_groups):
                assert a["lr"] == pytest.approx(b["lr"], rel=1e-9, abs=1e-13), t
                if kind == "sgd":
                    assert a["momentum"] == pytest.approx(b["momentum"], rel=1e-12), t
                else:
                    assert a["betas"] == pytest.approx(b["betas"], rel=1e-12), t
            assert ours.get_last_lr() == pytest.approx(theirs.get_last_lr(), rel=1e-9, abs=1e-13)
            theirs_opt.step()
            if t < 39:
                theirs.step()
                ours.step()


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_plateau_against_torch(mode, threshold_mode):
    torch = pytest.importorskip("torch")
    rng = random.Random(f"{mode}{threshold_mode}")
    for _ in range(20):
        kw = dict(
            mode=mode, factor=rng.choice([0.1, 0.5, 0.9]), patience=rng.randrange(4),
            threshold=rng.choice([0, 1e-4, 0.1]), threshold_mode=threshold_mode,
            cooldown=rng.randrange(3), min_lr=rng.choice([0.0, 0.05]), eps=rng.choice([1e-8, 0.01]),
        )  # fmt: skip
        theirs_opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs_opt, **kw)
        opt = make(1.0)
        ours = S.ReduceLROnPlateau(opt, **kw)
        for t in range(40):
            value = rng.choice([rng.random(), 0.5, math.nan, -rng.random()])
            theirs.step(value)
            ours.step(value)
            assert opt.param_groups[0]["lr"] == theirs_opt.param_groups[0]["lr"]
            if t == 17:  # a resume in the middle, through JSON
                state = json.loads(json.dumps(ours.state_dict()))
                opt = make(123.0)
                ours = S.ReduceLROnPlateau(opt, **kw)
                ours.load_state_dict(state)


# Resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_resume_at_every_step(name):
    def build():
        opt = make([0.1, 0.02], momentum=0.9)
        return CASES[name](S, opt), opt

    scheduler, opt = build()
    for t in range(30):
        state = json.loads(json.dumps(scheduler.state_dict()))
        assert state["last_epoch"] == t
        again, other = build()
        again.load_state_dict(state)
        for a, b in zip(opt.param_groups, other.param_groups):
            assert (a["lr"], a["momentum"]) == (b["lr"], b["momentum"])
        scheduler.step()


@pytest.mark.parametrize("name", [*CASES, "sequence", "chain", "warmup"])
@pytest.mark.parametrize("rates_first", [True, False])
def test_resume_where_the_optimizer_was_made_with_another_rate(name, rates_first):
    """The state of a schedule says where its curve starts, in whatever order states are loaded."""
    gs = pytest.importorskip("gradsmith")

    def build(lr):
        opt = gs.optim.SGD([gs.zeros(2, requires_grad=True)], lr=lr, momentum=0.9)
        if name in CASES:
            return CASES[name](S, opt), opt
        if name == "warmup":
            return S.WarmupLR(opt, 4, S.CosineAnnealingLR(opt, 20)), opt
        parts = [S.LinearLR(opt, 0.1, total_iters=9), S.ExponentialLR(opt, 0.9)]
        if name == "chain":
            return S.ChainedScheduler(parts), opt
        return S.SequentialLR(opt, [*parts, S.MultiplicativeLR(opt, lambda t: 0.9)], [7, 12]), opt

    for n in (5, 9, 14):
        scheduler, opt = build(0.1)
        for _ in range(n):
            scheduler.step()
        states = json.loads(json.dumps(scheduler.state_dict())), opt.state_dict()
        again, other = build(7.0)
        for loaded in (again, other) if rates_first else (other, again):
            loaded.load_state_dict(states[loaded is other])
        for _ in range(4):
            assert other.param_groups[0]["lr"] == opt.param_groups[0]["lr"]
            assert again.get_last_lr() == scheduler.get_last_lr()
            scheduler.step()
            again.step()


def test_state_of_another_schedule():
    opt = make([0.1, 0.2])
    scheduler = S.SequentialLR(opt, [S.StepLR(opt, 2), S.StepLR(opt, 3)], [4])
    scheduler.step()
    one = make(0.3)
    with pytest.raises(ValueError, match="2 parameter groups, the optimizer has 1"):
        S.StepLR(one, 2).load_state_dict(scheduler.state_dict())
    other = S.ChainedScheduler([S.StepLR(make([1.0, 2.0]), 2)])
    with pytest.raises(ValueError, match="2 inner schedules, this one has 1"):
        other.load_state_dict(scheduler.state_dict())
    assert other.base_lrs == [1.0, 2.0] and other.last_epoch == 0
    other.load_state_dict({"last_epoch": 3})  # states of before had nothing else
    assert other.base_lrs == [1.0, 2.0] and other.last_epoch == 3


def test_last_epoch_continues():
    opt = make(1.0)
    S.StepLR(opt, 2, 0.5)
    again = S.StepLR(opt, 2, 0.5, last_epoch=3)
    assert again.last_epoch == 4 and opt.param_groups[0]["lr"] == 0.25


def test_fractional_steps():
    s = S.CosineAnnealingWarmRestarts(make(), 4)
    assert s.lr_at(4.5) == pytest.approx((1 + math.cos(math.pi / 8)) / 2)
    s.step(0.5)
    assert s.get_last_lr()[0] == s.lr_at(0.5)


# Bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, word",
    [
        (lambda o: S.StepLR(o, 0), "step_size"),
        (lambda o: S.StepLR(o, 2.5), "step_size"),
        (lambda o: S.StepLR(o, 2, math.nan), "gamma"),
        (lambda o: S.ConstantLR(o, 1.5), "factor"),
        (lambda o: S.LinearLR(o, 0.0), "start_factor"),
        (lambda o: S.LinearLR(o, total_iters=0), "total_iters"),
        (lambda o: S.PolynomialLR(o, -1), "total_iters"),
        (lambda o: S.MultiStepLR(o, [1, -2]), "milestones"),
        (lambda o: S.ExponentialLR(o, -0.5), "gamma"),
        (lambda o: S.CosineAnnealingLR(o, 0), "T_max"),
        (lambda o: S.CosineAnnealingWarmRestarts(o, 3, 0), "T_mult"),
        (lambda o: S.PiecewiseConstantLR(o, [1], [1]), "values"),
        (lambda o: S.PiecewiseConstantLR(o, [2, 1], [1, 2, 3]), "increase"),
        (lambda o: S.CyclicLR(o, 0.1, 1, mode="square", cycle_momentum=False), "mode"),
        (lambda o: S.CyclicLR(o, 0.1, 1), "cycle_momentum"),
        (lambda o: S.CyclicLR(o, 0.1, [1, 2], cycle_momentum=False), "max_lr"),
        (lambda o: S.OneCycleLR(o, 1.0), "total_steps"),
        (lambda o: S.OneCycleLR(o, 1.0, 10), "cycle_momentum"),
        (lambda o: S.OneCycleLR(o, 1.0, 10, pct_start=1.5, cycle_momentum=False), "pct_start"),
        (
            lambda o: S.OneCycleLR(o, 1.0, 10, anneal_strategy="x", cycle_momentum=False),
            "anneal_strategy",
        ),
        (lambda o: S.LambdaLR(o, [abs, abs]), "functions"),
        (lambda o: S.SequentialLR(o, [S.StepLR(o, 1)], [3]), "milestones"),
        (lambda o: S.SequentialLR(o, [S.StepLR(make(), 1)], []), "another optimizer"),
        (lambda o: S.ChainedScheduler([]), "at least one"),
        (lambda o: S.ChainedScheduler([S.ReduceLROnPlateau(o)]), "ReduceLROnPlateau"),
        (lambda o: S.ReduceLROnPlateau(o, mode="up"), "mode"),
        (lambda o: S.ReduceLROnPlateau(o, factor=1.0), "factor"),
        (lambda o: S.WarmupLR(o, -1), "warmup_steps"),
        (lambda o: S.InverseTimeLR(o, -1), "decay_rate"),
        (lambda o: S.StepLR(o, 1, last_epoch=3), "initial_lr"),
    ],
)
def test_bad_arguments(build, word):
    with pytest.raises(ValueError, match=word):
        build(make(0.1))


def test_bad_calls():
    with pytest.raises(TypeError, match="optimizer"):
        S.StepLR(0.1, 3)
    s = S.StepLR(make(), 3)
    for t in (-1, math.nan, "3", None):
        with pytest.raises(ValueError, match="step"):
            s.lr_at(t)
    with pytest.raises(ValueError, match="last_epoch"):
        s.load_state_dict({})
    with pytest.raises(TypeError):
        S.ReduceLROnPlateau(make()).lr_at(3)
    with pytest.raises(TypeError):
        S.LambdaLR(make(), 0.5)
    s.optimizer.param_groups.append({"lr": 1.0})
    with pytest.raises(ValueError, match="parameter groups"):
        s.step()


def test_one_cycle_ends():
    opt = make()
    s = S.OneCycleLR(opt, 1.0, 3, cycle_momentum=False)
    for _ in range(3):
        s.step()
    last = opt.param_groups[0]["lr"]
    assert last == s.lr_at(2) == s.lr_at(3)
    with pytest.raises(ValueError, match="total_steps=3"):
        s.step()
    assert s.last_epoch == 3 and opt.param_groups[0]["lr"] == last


def test_with_real_optimizers():
    """The rate and the momentum reach the optimizer, and its saved state carries on with them."""
    gs = pytest.importorskip("gradsmith")
    p = gs.nn.Parameter([1.0, 2.0])
    for optimizer in (gs.optim.SGD([p], lr=0.1, momentum=0.9), gs.optim.AdamW([p], lr=0.1)):
        schedule = S.OneCycleLR(optimizer, 0.2, 20)
        for t in range(7):
            group = optimizer.param_groups[0]
            assert group["lr"] == schedule.lr_at(t)
            momentum = group["betas"][0] if "betas" in group else group["momentum"]
            assert momentum == schedule.momentum_at(t)
            p.grad = gs.tensor([0.5, -0.5])
            optimizer.step()
            schedule.step()
        twin = type(optimizer)([p], lr=9.0, **({"momentum": 0.1} if "momentum" in group else {}))
        again = S.OneCycleLR(twin, 0.2, 20)
        twin.load_state_dict(optimizer.state_dict())
        again.load_state_dict(schedule.state_dict())
        assert twin.param_groups[0]["lr"] == schedule.lr_at(7)
        assert twin.param_groups[0].get("betas") == optimizer.param_groups[0].get("betas")


def test_a_step_of_size_lr_at():
    """Plain SGD with gradient 1 moves by exactly the scheduled rates."""
    gs = pytest.importorskip("gradsmith")
    p = gs.nn.Parameter([0.0], dtype="float64")
    optimizer = gs.optim.SGD([p], lr=0.5)
    schedule = S.CosineAnnealingLR(optimizer, 10)
    moved = 0.0
    for t in range(10):
        p.grad = gs.tensor([1.0], dtype="float64")
        optimizer.step()
        schedule.step()
        moved += schedule.lr_at(t)
        assert p.item() == pytest.approx(-moved, rel=1e-12)


def test_what_is_no_state_of_a_schedule_changes_nothing():
    opt = SimpleNamespace(param_groups=[{"lr": 0.5}])
    plateau = S.ReduceLROnPlateau(opt)
    plateau.step(3.0)
    good, before = plateau.state_dict(), repr(plateau.state_dict())
    for key, value in (
        ("num_bad_epochs", "a"),
        ("num_bad_epochs", math.inf),
        ("cooldown_counter", None),
        ("best", "low"),
        ("lr", ["a"]),
        ("lr", 3),
    ):
        with pytest.raises(ValueError, match="^ReduceLROnPlateau: the state"):
            plateau.load_state_dict({**good, key: value})
        assert repr(plateau.state_dict()) == before and opt.param_groups[0]["lr"] == 0.5
    step = S.StepLR(opt, 3)
    for schedule in (step, plateau):
        for wrong in (None, 3, "state", [1]):
            with pytest.raises(TypeError, match="LR.*: the state is a .*, not a dict"):
                schedule.load_state_dict(wrong)
    for rates in (3, "a", ["a"]):
        with pytest.raises(ValueError, match="StepLR: the state's base_lrs"):
            step.load_state_dict({"last_epoch": 1, "base_lrs": rates})
    with pytest.raises(TypeError, match="MultiStepLR: milestones must be a list, not 30"):
        S.MultiStepLR(opt, 30)
    for n in (math.nan, math.inf):
        with pytest.raises(ValueError, match="StepLR: step_size must be a whole number"):
            S.StepLR(opt, n)
