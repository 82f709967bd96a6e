"""EMA and SWA against NumPy, and the statistics of batch norm after averaging."""

import copy

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
from gradsmith import optim


def trajectory(seed, steps):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((3, 5)), rng.standard_normal(3)) for _ in range(steps)]


def set_(net, values):
    for p, v in zip(net.parameters(), values):
        p.data[...] = v


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_swa_is_the_mean(dtype):
    net = nn.Linear(5, 3).to(dtype=dtype)
    average = optim.AveragedModel(net)
    path = trajectory(0, 7)
    for values in path:
        set_(net, values)
        average.update_parameters(net)
    for i, p in enumerate(average.module.parameters()):
        mean = np.mean([v[i] for v in path], axis=0)
        np.testing.assert_allclose(
            p.data, mean, rtol=0, atol=1e-6 if dtype == np.float32 else 1e-14
        )
        assert not p.requires_grad
    assert average.n_averaged.item() == 7
    x = gs.ones(2, 5, dtype=dtype)
    np.testing.assert_array_equal(average(x).data, average.module(x).data)


@pytest.mark.parametrize("warmup", [False, True])
def test_ema(warmup):
    net = nn.Linear(5, 3).double()
    ema = optim.EMA(net, 0.9, warmup=warmup)
    expect = None
    for n, values in enumerate(trajectory(1, 20)):
        set_(net, values)
        ema.update_parameters(net)
        d = min(0.9, (1 + n) / (10 + n)) if warmup else 0.9
        expect = values if n == 0 else [d * e + (1 - d) * v for e, v in zip(expect, values)]
    for p, e in zip(ema.module.parameters(), expect):
        np.testing.assert_allclose(p.data, e, rtol=1e-12, atol=1e-14)


def test_resumes_from_its_state():
    net = nn.Linear(5, 3)
    path = trajectory(2, 6)
    whole, first = optim.EMA(net, 0.9), optim.EMA(net, 0.9)
    for i, values in enumerate(path):
        set_(net, values)
        whole.update_parameters(net)
        if i < 3:
            first.update_parameters(net)
        if i == 3:
            second = optim.EMA(net, 0.9)
            second.load_state_dict(first.state_dict())
        if i >= 3:
            second.update_parameters(net)
    for p, q in zip(whole.module.parameters(), second.module.parameters()):
        assert p.data.tobytes() == q.data.tobytes()


def test_update_bn():
    rng = np.random.default_rng(3)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).double()
    net.eval()
    batches = [rng.standard_normal((n, 4)) + 3 for n in (8, 8, 8)]
    optim.update_bn([(gs.tensor(b), None) for b in batches], net)
    hidden = [b @ net[0].weight.data.T + net[0].bias.data for b in batches]
    bn = net[1]
    np.testing.assert_allclose(bn.running_mean.data, np.mean([h.mean(0) for h in hidden], 0))
    np.testing.assert_allclose(bn.running_var.data, np.mean([h.var(0, ddof=1) for h in hidden], 0))
    assert not net.training and not bn.training and bn.momentum == 0.1
    with pytest.raises(ValueError, match="no batch"):
        optim.update_bn([], net)


def test_buffers():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    plain, averaged = optim.AveragedModel(net), optim.AveragedModel(net, use_buffers=True)
    for value in (1.0, 3.0):
        net[1].running_mean.data[...] = value
        net[1].num_batches_tracked.data[...] = int(value)
        plain.update_parameters(net)
        averaged.update_parameters(net)
    assert plain.module[1].running_mean.tolist() == [3, 3]
    assert averaged.module[1].running_mean.tolist() == [2, 2]
    assert averaged.module[1].num_batches_tracked.item() == 3


def test_bad_input():
    net = nn.Linear(2, 2)
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match="decay"):
            optim.EMA(net, decay)
    ema = optim.EMA(net)
    with pytest.raises(ValueError, match="bias"):
        ema.update_parameters(nn.Linear(2, 2, bias=False))
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        ema.update_parameters(nn.Linear(2, 3))


@pytest.mark.parametrize("kind", ["swa", "ema", "warmup"])
def test_an_average_inside_of_a_captured_step(kind):
    """Its count and its share are renewed at each replay, also when somebody changes them."""

    def run(captured):
        gs.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        opt = optim.Adam(net.parameters(), lr=0.1)
        average = (
            optim.AveragedModel(net)
            if kind == "swa"
            else optim.EMA(net, 0.9, warmup=kind == "warmup")
        )

        def step(x):
            opt.zero_grad()
            loss = (net(x) ** 2).mean()
            loss.backward()
            opt.step()
            average.update_parameters(net)
            return loss

        call = gs.capture(step) if captured else step
        rows = []
        for i in range(14):
            if i == 8:
                average.load_state_dict(average.state_dict() | {"n_averaged": gs.tensor(2)})
            loss = call(gs.tensor(np.random.default_rng(i).standard_normal((4, 5)), "float32"))
            state = [average.n_averaged, *average.parameters(), *average.buffers()]
            rows.append([loss.detach().numpy().tobytes(), *[t.data.tobytes() for t in state]])
        if captured:
            assert call.reason is None and call.programs[-1]["replays"] >= 5
            assert call.verify(gs.ones(4, 5)) > 10
            assert average.n_averaged.item() == 8
        return rows

    assert run(True) == run(False)


def test_an_average_that_is_updated_twice_stays_eager():
    net = nn.Linear(2, 2)
    ema = optim.EMA(net, 0.5)

    @gs.capture
    def step(x):
        ema.update_parameters(net)
        ema.update_parameters(net)
        return x * 2

    with pytest.warns(RuntimeWarning, match="updates one average twice"):
        for _ in range(8):
            step(gs.ones(2))
    assert ema.n_averaged.item() == 16


def test_a_copy_of_an_average_has_slots_of_its_own():
    ema = optim.EMA(nn.Linear(2, 2))
    assert not set(copy.deepcopy(ema)._slots.ids) & set(ema._slots.ids)


def test_what_is_no_model_or_no_decay_is_named():
    net = gs.nn.Linear(1, 1)
    for call, says in (
        (lambda: gs.optim.EMA(None), "the model must be a Module, got NoneType"),
        (lambda: gs.optim.EMA(net, "0.9"), "AveragedModel: decay must be a number, got str"),
        (lambda: gs.optim.EMA(net).update_parameters(3), "the model must be a Module, got int"),
    ):
        with pytest.raises(TypeError, match=says):
            call()
