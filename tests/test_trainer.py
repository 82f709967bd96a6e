"""The Trainer: means over true counts, accumulation, modes, stopping, bad input."""

from __future__ import annotations

import itertools
import os
import signal
import threading

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F
from gradsmith.optim import lr_scheduler
from gradsmith.train import (
    Callback,
    Checkpoint,
    EarlyStopping,
    LambdaCallback,
    LRLog,
    StopOnNaN,
    TimeLimit,
    Trainer,
)

RNG = np.random.default_rng(5)
X = RNG.normal(size=(50, 2)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int64)


def net(dropout=0.0, seed=0, hidden=16):
    gs.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 2))


def make(model=None, lr=0.1, momentum=0.9, **kw):
    model = net() if model is None else model
    optimizer = gs.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    kw.setdefault("metrics", ["accuracy"])
    return Trainer(model, kw.pop("loss", "cross_entropy"), optimizer, **kw)


def fit(trainer, train=(X, Y), *args, **kw):
    kw.setdefault("progress", False)
    return trainer.fit(train, *args, **kw)


def weights(model):
    return {name: np.array(t.data) for name, t in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# What it computes ------------------------------------------------------------------------------


def test_it_learns_and_records():
    trainer = make(net(hidden=32), lr=0.05)
    history = fit(trainer, (X, Y), (X[:20], Y[:20]), epochs=60, batch_size=8)
    assert history is trainer.history and [row["epoch"] for row in history] == list(range(1, 61))
    assert list(history[0]) == [
        "epoch", "step", "loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds",
        "samples_per_second",
    ]  # fmt: skip
    assert trainer.step == 60 * 7 and trainer.epoch == 60
    assert history[-1]["accuracy"] > 0.9 and history[-1]["loss"] < history[0]["loss"] / 2
    assert trainer.evaluate((X[:20], Y[:20]))["loss"] == history[-1]["val_loss"]


def test_means_are_over_samples_not_batches():
    """With lr 0 the epoch's mean over batches of 16, 16, 16 and 2 is the mean over all samples."""
    trainer = make(lr=0.0)
    history = fit(trainer, epochs=1, batch_size=16)
    logits = trainer.predict(X, batch_size=7)
    assert logits.shape == (50, 2) and isinstance(logits, np.ndarray)
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(50), Y]
    assert history[0]["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert history[0]["accuracy"] == np.mean(z.argmax(axis=1) == Y)
    for batch_size in (1, 16, 49, 500):
        got = trainer.evaluate((X, Y), batch_size)
        assert got["loss"] == pytest.approx(losses.mean(), rel=1e-5)
        assert got["accuracy"] == history[0]["accuracy"]


@pytest.mark.parametrize(
    "sizes, accumulate", [([3, 3, 3, 1], 2), ([4, 4, 2], 2), ([2, 1, 5, 2], 4), ([10], 3)]
)
def test_accumulation_equals_one_large_batch(sizes, accumulate):
    cuts = np.cumsum([0, *sizes])
    micro = [(X[a:b], Y[a:b]) for a, b in itertools.pairwise(cuts)]
    windows = [micro[i : i + accumulate] for i in range(0, len(micro), accumulate)]
    large = [tuple(np.concatenate(a) for a in zip(*window)) for window in windows]
    a, b = make(net().double()), make(net().double())
    fit(a, micro, epochs=3, accumulate=accumulate, max_grad_norm=0.5)
    fit(b, large, epochs=3, max_grad_norm=0.5)
    assert a.step == b.step == 3 * len(windows)
    for name, value in weights(a.model).items():
        np.testing.assert_allclose(value, weights(b.model)[name], rtol=1e-12, atol=1e-14)
    for i in range(3):
        assert a.history[i]["loss"] == pytest.approx(b.history[i]["loss"], rel=1e-12)
        assert a.history[i]["accuracy"] == b.history[i]["accuracy"]


def test_max_grad_norm_bounds_the_update():
    trainer = make(lr=1.0, momentum=0.0)
    before = weights(trainer.model)
    fit(trainer, [(X * 100, Y)], max_grad_norm=0.25)
    moved = sum(((weights(trainer.model)[k] - v) ** 2).sum() for k, v in before.items())
    assert np.sqrt(moved) == pytest.approx(0.25, rel=1e-3)


def test_same_result_as_the_plain_loop():
    trainer = make(net(dropout=0.3))
    batches = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 50, 10)]
    gs.manual_seed(3)
    fit(trainer, batches, epochs=2)
    model = net(dropout=0.3)
    optimizer = gs.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gs.manual_seed(3)
    for _ in range(2):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(gs.tensor(x)), gs.tensor(y)).backward()
            optimizer.step()
    assert equal(weights(model), weights(trainer.model))


def test_the_scheduler_steps_once_per_update():
    trainer = make()
    trainer.scheduler = lr_scheduler.ExponentialLR(trainer.optimizer, 0.9)
    log = LRLog()
    trainer.callbacks.append(log)
    history = fit(trainer, epochs=2, batch_size=10, accumulate=2)  # 3 updates per epoch
    assert log.steps == list(range(6))
    assert log.rates == [trainer.scheduler.lr_at(t) for t in range(6)]
    assert [row["lr"] for row in history] == [log.rates[2], log.rates[5]]


def test_plateau_sees_the_validation_loss_or_the_first_metric():
    for mode, validation in (("min", (X, Y)), ("min", None), ("max", (X, Y))):
        trainer = make()
        plateau = lr_scheduler.ReduceLROnPlateau(trainer.optimizer, mode, patience=0)
        seen = []
        plateau.step = seen.append
        trainer.scheduler = plateau
        history = fit(trainer, (X, Y), validation, epochs=2)
        key = {"min": "loss", "max": "accuracy"}[mode]
        assert seen == [row["val_" + key if validation else key] for row in history]
    trainer.metrics, trainer._eval_metrics = [], []
    with pytest.raises(ValueError, match="metric"):
        fit(trainer)


def test_one_cycle_that_is_too_short_is_refused_before_training():
    trainer = make()
    trainer.scheduler = lr_scheduler.OneCycleLR(trainer.optimizer, 0.1, 10)
    before = weights(trainer.model)
    with pytest.raises(ValueError, match=r"20 updates.*total_steps=10"):
        fit(trainer, epochs=4, batch_size=10)
    assert equal(before, weights(trainer.model))
    fit(trainer, epochs=2, batch_size=10)


# Modes and evaluation --------------------------------------------------------------------------


def test_modes_are_put_back():
    model = net(dropout=0.5)
    trainer = make(model)
    model[2].eval()  # frozen by the user, as one does with batch norm
    during = []
    trainer.callbacks = [
        LambdaCallback(on_step_end=lambda t: during.append([m.training for m in model]))
    ]
    fit(trainer, (X, Y), (X, Y))
    assert all(modes == [True, True, False, True] for modes in during)
    assert [m.training for m in model] == [True, True, False, True] and model.training
    model.eval()
    during.clear()
    fit(trainer, (X, Y), (X, Y))
    assert all(modes == [True] * 4 for modes in during)
    assert not any(m.training for m in model.modules())
    model.train()
    with pytest.raises(ValueError):
        trainer.predict(np.zeros((0, 2), np.float32))
    assert model.training


def test_evaluation_has_no_dropout_and_no_graph():
    model = net(dropout=0.5)
    trainer = make(model)
    a, b = trainer.predict(X), trainer.predict(X)
    np.testing.assert_array_equal(a, b)
    model.eval()
    np.testing.assert_array_equal(a, model(gs.tensor(X)).detach().numpy())
    flags = []
    trainer.loss_function = lambda p, t: flags.append(p.requires_grad) or F.cross_entropy(p, t)
    trainer.evaluate((X, Y))
    assert flags == [False]


def test_evaluate_in_a_callback_does_not_disturb_the_epoch():
    quiet, busy = make(), make()
    busy.callbacks = [LambdaCallback(on_step_end=lambda t: t.evaluate((X[:3], Y[:3])))]
    fit(quiet, epochs=2, batch_size=10)
    fit(busy, epochs=2, batch_size=10)
    for a, b in zip(quiet.history, busy.history):
        assert (a["loss"], a["accuracy"]) == (b["loss"], b["accuracy"])


def test_evaluating_the_training_loader_does_not_move_it(tmp_path):
    from gradsmith.data import Loader

    def noise(x, rng):
        return x + rng.normal(size=x.shape).astype(x.dtype)

    def run(*callbacks, resume=None):
        loader = Loader((X, Y), 10, shuffle=True, seed=3, transform=noise)
        hooks = [LambdaCallback(**{h: lambda t, f=f: f(t, loader)}) for h, f in callbacks]
        trainer = make(net(dropout=0.1), callbacks=[*hooks, Checkpoint(tmp_path)])
        fit(trainer, loader, loader, epochs=3, resume=resume)
        return trainer

    def look(trainer, loader):
        trainer.evaluate(loader)
        trainer.predict(loader)

    def stop(trainer, loader):
        look(trainer, loader)
        if trainer.step == 7:
            trainer.stop()

    quiet = run()
    for hook in ("on_step_end", "on_epoch_end", "on_epoch_start"):
        assert equal(weights(run((hook, look)).model), weights(quiet.model))
    assert run(("on_step_end", stop)).step == 7
    again = run(("on_epoch_end", look), resume=tmp_path)
    assert equal(weights(again.model), weights(quiet.model))
    assert [r["val_loss"] for r in again.history] == [r["val_loss"] for r in quiet.history]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x, z):
        return self.a(x) + self.b(z)


def test_several_inputs():
    model = TwoInputs()
    trainer = make(model)
    fit(trainer, (X, X[::-1], Y), batch_size=20)
    fit(trainer, ((X, X[::-1]), Y), batch_size=20)
    fit(trainer, [((X, X), Y), (X, X, Y)])
    assert trainer.predict((X, X)).shape == (50, 2)
    assert set(trainer.evaluate((X, X, Y))) == {"loss", "accuracy"}


# What it is fed with ---------------------------------------------------------------------------


def test_kinds_of_data_give_the_same_numbers():
    from gradsmith.data import ArrayDataset, Loader

    want = make().evaluate((X, Y))
    trainer = make()
    assert trainer.evaluate(Loader((X, Y), 50)) == want
    assert trainer.evaluate(ArrayDataset(X, Y)) == want
    assert trainer.evaluate([(X, Y)]) == want
    assert trainer.evaluate(((x, y) for x, y in [(X, Y)])) == want
    assert trainer.evaluate((gs.tensor(X), gs.tensor(Y))) == want
    assert trainer.evaluate([(gs.tensor(X), gs.tensor(Y))]) == want
    assert trainer.evaluate((X.astype(np.float64), Y.astype(np.uint8))) == want
    assert trainer.evaluate((X.astype(np.float64)[::-1][::-1], Y.astype(np.int32))) == want
    assert trainer.evaluate((X.tolist(), Y.tolist())) == want
    for x in (Loader((X, Y), 7), [X[:9], X[9:]], gs.tensor(X), (X,)):
        np.testing.assert_allclose(trainer.predict(x), trainer.predict(X), rtol=1e-4, atol=1e-6)


def test_arrays_are_shuffled_anew_each_epoch_by_the_seed():
    orders = []
    for seed in (1, 1, 2):
        trainer, seen = make(lr=0.0), []
        plain = trainer.loss_function
        trainer.loss_function = lambda p, t, f=plain, s=seen: s.extend(t.tolist()) or f(p, t)
        gs.manual_seed(seed)
        fit(trainer, epochs=2)
        fit(trainer, epochs=1)
        orders.append(seen)
    assert orders[0] == orders[1] != orders[2]
    assert len({tuple(orders[0][i : i + 50]) for i in (0, 50, 100)}) == 3


def test_fit_again_goes_on():
    trainer = make()
    fit(trainer, epochs=2)
    history = fit(trainer, epochs=3)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]


def test_regression_and_loss_names():
    target = X.sum(axis=1, keepdims=True).astype(np.float64)
    gs.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 1))
    for loss in ("mse", "mse_loss", lambda p, t: F.mse_loss(p, t)):
        trainer = make(model, loss=loss, metrics=["mse", "r2"], lr=0.1, momentum=0.0)
        history = fit(trainer, (X, target), epochs=30)
        assert history[-1]["mse"] == pytest.approx(history[-1]["loss"], rel=1e-4)
    assert trainer.evaluate((X, target))["r2"] > 0.99


# Progress --------------------------------------------------------------------------------------


def test_plain_lines_where_there_is_no_terminal(capfd):
    fit(make(), (X, Y), (X, Y), epochs=2, progress=None)
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert len(lines) == 2 and err == ""
    for word in (
        "epoch 2/2",
        "loss 0.",
        "accuracy 0.",
        "val_loss",
        "val_accuracy",
        "lr 0.1",
        "samples/s",
    ):
        assert word in lines[1]
    fit(make(), epochs=2)
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch, capfd):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fit(make(), epochs=2, batch_size=5, progress=None)
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2 and "epoch 1/2" in err and "/10" in err


# Stopping --------------------------------------------------------------------------------------


def stop_at(step, action):
    return LambdaCallback(on_step_end=lambda t: action(t) if t.step == step else None)


def interrupt(_):
    signal.raise_signal(signal.SIGINT)


def raise_interrupt(_):
    raise KeyboardInterrupt


class Stream:
    """Batches without a length, the same in every epoch."""

    def __iter__(self):
        return ((X[i : i + 10], Y[i : i + 10]) for i in range(0, 50, 10))


@pytest.mark.parametrize(
    "data", [(X, Y), list(Stream()), Stream()], ids=["arrays", "list", "stream"]
)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("action", [interrupt, raise_interrupt])
def test_ctrl_c_saves_and_resumes_exactly(action, accumulate, data, tmp_path):
    updates = 5 if accumulate == 1 else 3  # in an epoch of 5 batches

    def run(*callbacks, resume=None):
        trainer = make(net(dropout=0.2), callbacks=[Checkpoint(tmp_path), *callbacks])
        history = fit(
            trainer, data, (X, Y), epochs=3, batch_size=10, accumulate=accumulate, resume=resume
        )
        return trainer, history

    whole, _ = run()
    usual = signal.getsignal(signal.SIGINT)
    for step in (updates - 1, updates, updates + 2):  # the last of an epoch among them
        cut, history = run(stop_at(step, action))
        assert signal.getsignal(signal.SIGINT) is usual
        assert cut.stop_reason == "interrupted" and cut.step == step
        # The signal lets an epoch finish that is known to be through; the exception does not.
        if action is interrupt and not isinstance(data, Stream):
            assert len(history) == step // updates
        again, history = run(resume=tmp_path)
        assert again.step == whole.step == 3 * updates
        assert equal(weights(again.model), weights(whole.model))
        for a, b in zip(history, whole.history):
            for key in ("epoch", "step", "loss", "accuracy", "val_loss", "val_accuracy", "lr"):
                assert a[key] == b[key]
        assert len(history) == 3


def test_ctrl_c_inside_the_forward_pass_resumes_exactly(tmp_path):
    def run(fail_at=None, resume=None):
        model = net(dropout=0.2)
        calls = []

        def hook(module, args):
            calls.append(1)
            if len(calls) == fail_at:
                raise KeyboardInterrupt

        trainer = make(model, callbacks=[Checkpoint(tmp_path)])
        model[3].register_forward_pre_hook(hook)
        fit(trainer, epochs=2, batch_size=10, resume=resume)
        return trainer

    whole = run()
    cut = run(fail_at=8)
    assert cut.step == 7 and cut.stop_reason == "interrupted"
    assert equal(weights(run(resume=tmp_path).model), weights(whole.model))


def test_ctrl_c_inside_the_optimizer_saves_nothing_half_done(tmp_path):
    trainer = make(callbacks=[Checkpoint(tmp_path)])
    fit(trainer, epochs=1, batch_size=10)
    before = (tmp_path / "last.safetensors").read_bytes()
    step = trainer.optimizer.step

    def broken():
        step()
        raise KeyboardInterrupt

    trainer.optimizer.step = broken
    fit(trainer, epochs=1, batch_size=10)
    assert trainer.failed and trainer.stop_reason == "interrupted"
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_fit_in_another_thread():
    trainer = make()
    thread = threading.Thread(target=fit, args=(trainer,))
    thread.start()
    thread.join()
    assert trainer.epoch == 1


def test_an_error_leaves_the_checkpoint_alone_and_restores_the_best(tmp_path):
    values = iter([1.0, 5.0, 7.0])

    class Watch(Callback):
        def on_epoch_end(self, trainer):
            trainer.logs["mine"] = next(values)
            self.saved = getattr(self, "saved", None) or weights(trainer.model)

    def fail(_):
        raise RuntimeError("mine")

    watch = Watch()
    trainer = make(callbacks=[watch, EarlyStopping("mine"), Checkpoint(tmp_path), stop_at(5, fail)])
    with pytest.raises(RuntimeError, match="mine"):
        fit(trainer, epochs=3, batch_size=20)
    assert trainer.failed and equal(weights(trainer.model), watch.saved)
    assert gs.load(tmp_path / "last.safetensors")["trainer"]["step"] == 3


def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    trainer = make(callbacks=[Checkpoint(tmp_path)])
    fit(trainer)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fit(trainer)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
    monkeypatch.undo()
    again = make(callbacks=[Checkpoint(tmp_path)])
    fit(again, epochs=1, resume=True)
    assert again.epoch == 1


def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    trainer = make(callbacks=[Checkpoint(tmp_path / "file" / "run")])
    with pytest.raises(OSError, match="file"):
        fit(trainer)
    assert trainer.step == 0


@pytest.mark.parametrize("ending", ["epochs", "patience", "interrupt", "time"])
def test_the_best_weights_are_restored_however_training_ends(ending):
    kept = {}

    class Judge(Callback):
        def on_epoch_end(self, trainer):
            trainer.logs["badness"] = abs(trainer.epoch - 2)
            if trainer.epoch == 2:
                kept.update(weights(trainer.model))
            if trainer.epoch == 4 and ending == "interrupt":
                interrupt(None)

    callbacks = [Judge(), EarlyStopping("badness", patience=2 if ending == "patience" else 50)]
    if ending == "time":
        limit = TimeLimit(1000)
        callbacks += [
            limit,
            LambdaCallback(
                on_epoch_end=lambda t: setattr(limit, "_end", 0) if t.epoch == 4 else None
            ),
        ]
    trainer = make(callbacks=callbacks)
    fit(trainer, epochs=6)
    assert trainer.epoch == {"epochs": 6, "patience": 5, "interrupt": 4, "time": 4}[ending]
    assert kept and equal(weights(trainer.model), kept)


def test_stop_on_nan_keeps_the_last_good_weights():
    bad = X.copy()
    bad[17] = np.nan
    seen = []
    trainer = make(
        callbacks=[StopOnNaN(), LambdaCallback(on_step_end=lambda t: seen.append(weights(t.model)))]
    )
    with pytest.warns(RuntimeWarning, match="lower lr"):
        history = fit(
            trainer, [(X[:10], Y[:10]), (bad[10:20], Y[10:20]), (X[:10], Y[:10])], epochs=2
        )
    assert trainer.step == 1 and history == [] and "nan" in trainer.stop_reason
    assert equal(weights(trainer.model), seen[0]) and np.isfinite(seen[0]["0.weight"]).all()


def test_stop_from_a_hook():
    trainer = make(callbacks=[stop_at(2, lambda t: t.stop("enough"))])
    fit(trainer, epochs=5, batch_size=10)
    assert trainer.step == 2 and trainer.stop_reason == "enough"
    trainer.callbacks = []
    fit(trainer, epochs=1, batch_size=10)  # begins a new epoch
    assert trainer.step == 7 and trainer.epoch == 1


def test_hooks_in_order():
    calls = []
    hooks = (
        "on_fit_start",
        "on_epoch_start",
        "on_step_end",
        "on_eval_end",
        "on_epoch_end",
        "on_fit_end",
    )
    log = LambdaCallback(**{h: lambda t, h=h: calls.append((h, t.epoch, t.step)) for h in hooks})
    fit(make(callbacks=[log]), (X, Y), (X, Y), epochs=2, batch_size=25)
    assert calls == [
        ("on_fit_start", 0, 0), ("on_epoch_start", 0, 0), ("on_step_end", 0, 1),
        ("on_step_end", 0, 2), ("on_eval_end", 0, 2), ("on_epoch_end", 1, 2),
        ("on_epoch_start", 1, 2), ("on_step_end", 1, 3), ("on_step_end", 1, 4),
        ("on_eval_end", 1, 4), ("on_epoch_end", 2, 4), ("on_fit_end", 2, 4),
    ]  # fmt: skip


# Bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train, error, text",
    [
        ((X, Y[:-1]), ValueError, "50.*49"),
        ((X[:0], Y[:0]), ValueError, "empty"),
        ([], ValueError, "empty"),
        ([(X, Y[:-1])], ValueError, r"batch 0.*\[50, 49\]"),
        ([(X[:0], Y[:0])], ValueError, "0 samples"),
        ([(X,)], TypeError, r"tuple \(x, y\)"),
        ([X[0]], (TypeError, ValueError), "x, y"),
        ((X,), ValueError, r"\(x, y\)"),
        (X, TypeError, r"\(x, y\)"),
        (3, TypeError, "int"),
        (iter([]), ValueError, "no batches"),
        ((np.array(["a"] * 50), Y), TypeError, "numbers"),
    ],
)  # fmt: skip
def test_bad_training_data(train, error, text):
    trainer = make()
    before = weights(trainer.model)
    with pytest.raises(error, match=text):
        fit(trainer, train)
    assert equal(before, weights(trainer.model))


def test_a_generator_is_used_up_after_one_epoch():
    trainer = make()
    with pytest.raises(ValueError, match=r"epoch 2.*generator"):
        fit(trainer, ((x, y) for x, y in [(X, Y)]), epochs=2)
    assert trainer.epoch == 1


def test_bad_arguments():
    model = net()
    optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'mean_square'.*cross_entropy"):
        Trainer(model, "mean_square", optimizer)
    with pytest.raises(TypeError, match="model"):
        Trainer("lenet", "mse", optimizer)
    with pytest.raises(TypeError, match="optimizer"):
        Trainer(model, "mse", 0.1)
    with pytest.raises(TypeError, match="Callback"):
        Trainer(model, "mse", optimizer, callbacks=[print])
    with pytest.raises(ValueError, match="another optimizer"):
        Trainer(model, "mse", optimizer, lr_scheduler.StepLR(make().optimizer, 1))
    with pytest.raises(ValueError, match="known"):
        make(metrics=["acuracy"])
    with pytest.raises(ValueError, match="device"):
        make(device="tpu")
    trainer = make()
    for kw in (
        {"epochs": -1},
        {"epochs": 1.5},
        {"accumulate": 0},
        {"max_grad_norm": 0},
        {"max_grad_norm": "1"},
        {"batch_size": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(kw))):
            fit(trainer, **kw)
    with pytest.raises(ValueError, match="Checkpoint"):
        fit(trainer, resume=True)
    with pytest.raises(OSError, match="nowhere"):
        fit(trainer, resume="nowhere.safetensors")
    trainer.loss_function = lambda p, t: p
    with pytest.raises(ValueError, match="one element"):
        fit(trainer)
    assert trainer.step == 0


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    trainer = make(callbacks=[Checkpoint(path)])
    fit(trainer)
    state = gs.load(path)
    assert equal(
        {k: np.array(getattr(v, "data", v)) for k, v in state["model"].items()},
        weights(trainer.model),
    )
    other = make(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))
    before = weights(other.model)
    with pytest.raises(ValueError, match="other parameters"):
        fit(other, resume=path)
    assert equal(before, weights(other.model)) and other.step == 0
    scheduled = make()
    scheduled.scheduler = lr_scheduler.StepLR(scheduled.optimizer, 1)
    with pytest.raises(ValueError, match=r"no scheduler.*StepLR"):
        fit(scheduled, resume=path)
    plain = tmp_path / "weights.safetensors"
    gs.save({"model": trainer.model.state_dict()}, plain)
    with pytest.raises(ValueError, match="no training state"):
        fit(make(), resume=plain)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=os.path.basename(path)):
        fit(make(), resume=path)


@pytest.mark.parametrize(
    "broken, word",
    [
        (lambda s: s["trainer"].clear(), "no trainer/epoch"),
        (lambda s: s["trainer"].update(history="none"), "trainer/history/ is no list"),
        (lambda s: s["trainer"].update(step="1"), "trainer/step is a str"),
        (lambda s: s["trainer"]["sums"].pop("loss"), "no trainer/sums/loss"),
        (lambda s: s.pop("callbacks"), "no callbacks"),
        (lambda s: s.update(metrics=[3]), "metrics/0/ is no dict"),
    ],
)
def test_damaged_checkpoints_name_the_file_and_change_nothing(broken, word, tmp_path):
    """Files that are whole safetensors, but not what a trainer wrote."""
    path = tmp_path / "a.safetensors"
    trainer = make(callbacks=[Checkpoint(path)])
    fit(trainer)
    state = gs.load(path)
    broken(state)
    gs.save(state, path)
    other = make()
    before = weights(other.model)
    with pytest.raises(ValueError, match=rf"a\.safetensors is damaged .*{word}"):
        fit(other, resume=path)
    assert equal(before, weights(other.model)) and other.step == 0


def test_a_damaged_state_of_a_callback_names_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    fit(make(callbacks=[Checkpoint(path)]))
    state = gs.load(path)
    del state["callbacks"][0]["state"]["best"]
    gs.save(state, path)
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged .*KeyError: 'best'"):
        fit(make(callbacks=[Checkpoint(path)]), resume=path)


def test_mistakes_in_what_the_trainer_is_made_of():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = gs.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="none of the optimizer's parameters belongs to the model"):
        Trainer(other, "mse", optimizer)
    with pytest.raises(TypeError, match="scheduler must be a schedule.*'cosine'"):
        Trainer(model, "mse", optimizer, "cosine")
    with pytest.raises(TypeError, match="callbacks must be Callbacks, not 3"):
        Trainer(model, "mse", optimizer, callbacks=3)
    limit = gs.train.TimeLimit(60)
    assert Trainer(model, "mse", optimizer, callbacks=limit).callbacks == [limit]
    # a part of the model, or parameters of the loss besides it, are fine
    Trainer(nn.Sequential(model, nn.Linear(2, 2)), "mse", optimizer)
    Trainer(other, model, optimizer)


def test_predict_takes_nested_lists_and_lists_of_batches():
    model = gs.nn.Linear(3, 2)
    optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    trainer = gs.train.Trainer(model, "mse", optimizer)
    x = np.arange(12, dtype=np.float32).reshape(4, 3) / 4
    want = trainer.predict(x)
    assert np.array_equal(trainer.predict(x.tolist()), want)
    assert np.array_equal(trainer.predict([x[:2], x[2:]]), want)
    assert np.array_equal(trainer.predict([(x[:2], x), (x[2:], x)]), want)


class Two(nn.Module):
    """Returns a tuple, as recurrent layers do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        y = self.linear(x)
        return y, y.sum()


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_models_that_return_no_tensor(capture, accumulate):
    x, y = np.ones((6, 2), np.float32), np.ones((6, 2), np.float32)

    def trainer(**kw):
        model = Two()
        optimizer = gs.optim.SGD(model.parameters(), lr=0.1)

        def loss(pred, target):
            return gs.nn.functional.mse_loss(pred[0], target)

        return Trainer(model, loss, optimizer, capture=capture, **kw)

    plain = trainer()  # fine as long as nobody has to read the prediction
    plain.fit((x, y), (x, y), batch_size=3, accumulate=accumulate, progress=False)
    with pytest.raises(TypeError, match="predict: the model must return a Tensor, got a tuple"):
        plain.predict(x)
    measured = trainer(metrics=["mse"])
    before = weights(measured.model)
    for go in (
        lambda: measured.fit((x, y), batch_size=3, accumulate=accumulate, progress=False),
        lambda: measured.evaluate((x, y)),
    ):
        with pytest.raises(TypeError, match="metrics: the model must return a Tensor, got a tuple"):
            go()
    assert equal(before, weights(measured.model)) and measured.step == 0


def test_losses_that_are_no_scalar_and_classes_in_place_of_objects():
    model = nn.Linear(2, 2)
    optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    x = np.ones((6, 2), np.float32)
    for loss, got in ((lambda p, t: 1.0, "float"), (lambda p, t: (p - t).sum(1), r"shape \(6,\)")):
        with pytest.raises(ValueError, match=f"evaluate: the loss must be .* got {got}"):
            Trainer(model, loss, optimizer).evaluate((x, x))
    with pytest.raises(TypeError, match=r"loss must be an object.*write MSELoss\(...\)"):
        Trainer(model, nn.MSELoss, optimizer)
    with pytest.raises(TypeError, match=r"model must be an object.*write Linear\(...\)"):
        Trainer(nn.Linear, "mse", optimizer)
