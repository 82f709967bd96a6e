"""Callbacks alone, against a stand-in for the trainer: no kernels are needed here."""

from __future__ import annotations

import csv
import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest

from gradsmith.train import (
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    History,
    JSONLog,
    LambdaCallback,
    LRLog,
    StopOnNaN,
    TimeLimit,
)
from gradsmith.train.callbacks import HOOKS, overridden


class Model:
    def __init__(self):
        self.w = np.zeros(3)

    def state_dict(self):
        return {"w": self.w}

    def load_state_dict(self, state):
        self.w[...] = state["w"]


class FakeTrainer(SimpleNamespace):
    def __init__(self, **kw):
        base = dict(
            model=Model(), history=History(), epoch=0, step=0, logs={}, loss=1.0, lr=0.1,
            validation=object(), resumed=False, failed=False, stop_reason=None, saved=[], batch=0,
        )  # fmt: skip
        super().__init__(**{**base, **kw})

    @property
    def position(self):
        return self.epoch, self.step, self.batch

    def stop(self, reason):
        self.stop_reason = self.stop_reason or reason

    def save(self, path):
        self.saved.append((os.path.basename(path), self.step))
        with open(path, "w") as file:
            file.write(str(self.step))

    def end_epoch(self, callback, **logs):
        self.epoch += 1
        self.logs = {"epoch": self.epoch, **logs}
        self.history.append(self.logs)
        callback.on_epoch_end(self)


def test_hooks_that_are_not_overridden_are_left_out():
    class Mine(Callback):
        def on_step_end(self, trainer):
            pass

    mine, other = Mine(), LambdaCallback(on_epoch_end=print)
    assert overridden([mine, other, Callback()], "on_step_end") == [mine.on_step_end]
    assert overridden([mine, other], "on_epoch_end") == [print]
    assert all(overridden([Callback()], hook) == [] for hook in HOOKS)
    with pytest.raises(ValueError, match="on_batch_end"):
        LambdaCallback(on_batch_end=print)
    with pytest.raises(TypeError):
        LambdaCallback(on_step_end=3)


@pytest.mark.parametrize(
    "monitor, values", [("val_loss", [3, 2, 2.5, 2.6]), ("val_accuracy", [0.1, 0.9, 0.8, 0.9])]
)
def test_early_stopping(monitor, values):
    trainer, stopper = FakeTrainer(), EarlyStopping(monitor, patience=1)
    stopper.on_fit_start(trainer)
    for i, value in enumerate(values):
        trainer.model.w[:] = i
        trainer.end_epoch(stopper, **{monitor: value})
    assert stopper.best_epoch == 2 and stopper.best == values[1] and stopper.bad_epochs == 2
    assert trainer.stop_reason.startswith(monitor)
    stopper.on_fit_end(trainer)
    np.testing.assert_array_equal(trainer.model.w, 1.0)  # the second epoch's weights


def test_early_stopping_restores_without_having_stopped():
    trainer, stopper = FakeTrainer(), EarlyStopping("loss", patience=100)
    stopper.on_fit_start(trainer)
    for i, value in enumerate([1.0, math.nan, 2.0]):
        trainer.model.w[:] = i
        trainer.end_epoch(stopper, loss=value)
    stopper.on_fit_end(trainer)
    assert trainer.model.w[0] == 0 and trainer.stop_reason is None and stopper.bad_epochs == 2


def test_early_stopping_min_delta_mode_and_state():
    trainer, stopper = FakeTrainer(), EarlyStopping("loss", 2, mode="max", min_delta=0.5)
    stopper.on_fit_start(trainer)
    for value in (1.0, 1.4, 1.6):
        trainer.end_epoch(stopper, loss=value)
    assert stopper.best == 1.6 and stopper.best_epoch == 3
    trainer.end_epoch(stopper, loss=0.0)
    again = EarlyStopping("loss", 2, mode="max", min_delta=0.5)
    again.load_state_dict(stopper.state_dict())
    trainer.resumed = True
    again.on_fit_start(trainer)
    assert (again.best, again.best_epoch, again.bad_epochs) == (1.6, 3, 1)
    for _ in range(2):
        trainer.end_epoch(again, loss=0.0)
    assert trainer.stop_reason
    # A resumed run that had ended ends at once; a fresh one forgets.
    last = EarlyStopping("loss", 2, mode="max", min_delta=0.5)
    last.load_state_dict(again.state_dict())
    trainer.stop_reason = None
    last.on_fit_start(trainer)
    assert trainer.stop_reason
    trainer.resumed = False
    last.on_fit_start(trainer)
    assert last.best is None and last.bad_epochs == 0


def test_monitor_errors():
    with pytest.raises(ValueError, match="validation"):
        EarlyStopping().on_fit_start(FakeTrainer(validation=None))
    with pytest.raises(ValueError, match=r"'mse'.*there are: epoch, loss"):
        FakeTrainer().end_epoch(EarlyStopping("mse"), loss=1.0)
    for bad in (lambda: EarlyStopping(patience=-1), lambda: EarlyStopping(mode="up")):
        with pytest.raises(ValueError):
            bad()
    for bad in (-1, "1", np.nan):
        with pytest.raises(ValueError, match="min_delta"):
            EarlyStopping(min_delta=bad)
    with pytest.raises(ValueError, match="'confusion' is no number"):
        FakeTrainer().end_epoch(EarlyStopping("confusion"), confusion=[[1, 2], [3, 4]])
    assert EarlyStopping(patience=np.int64(2)).patience == 2
    assert Checkpoint("x", every=np.int32(5)).every == 5
    for kw in ({"every": 0}, {"keep": 0}, {"keep": 1.5}, {"keep": None}):
        with pytest.raises(ValueError, match=next(iter(kw))):
            Checkpoint("x", **kw)
    with pytest.raises(ValueError, match="seconds"):
        TimeLimit(0)


def test_checkpoint_last_best_and_keep(tmp_path):
    trainer = FakeTrainer()
    saver = Checkpoint(tmp_path / "a" / "run", every=2, keep=3)
    saver.on_fit_start(trainer)
    for epoch, value in enumerate([3.0, 1.0, 2.0]):
        for _ in range(3):
            trainer.step += 1
            saver.on_step_end(trainer)
        trainer.end_epoch(saver, loss=0.0, val_loss=value)
        assert (tmp_path / "a/run/best.safetensors").read_text() == str([3, 6, 6][epoch])
    saver.on_fit_end(trainer)
    names = sorted(os.listdir(tmp_path / "a/run"))
    assert names == [
        "best.safetensors", "last.safetensors", "step-00000006.safetensors",
        "step-00000008.safetensors", "step-00000009.safetensors",
    ]  # fmt: skip
    assert (tmp_path / "a/run/last.safetensors").read_text() == "9"
    lasts = [step for name, step in trainer.saved if name == "last.safetensors"]
    assert lasts == [2, 3, 4, 6, 6, 8, 9]  # the end of training adds none: nothing is new


def test_checkpoint_at_the_end_of_a_stopped_epoch(tmp_path):
    trainer, saver = FakeTrainer(), Checkpoint(tmp_path / "m.safetensors")
    saver.on_fit_start(trainer)
    trainer.step = 5
    trainer.failed = True
    saver.on_fit_end(trainer)
    assert trainer.saved == []
    trainer.failed = False
    saver.on_fit_end(trainer)
    assert trainer.saved == [("m.safetensors", 5)]
    trainer.end_epoch(saver, loss=1.0)
    assert sorted(os.listdir(tmp_path)) == ["m-best.safetensors", "m.safetensors"]


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_log_and_late_columns(tmp_path):
    path = tmp_path / "logs" / "log.csv"
    trainer, log = FakeTrainer(), CSVLog(path)
    log.on_fit_start(trainer)
    assert path.read_text() == ""
    trainer.end_epoch(log, loss=0.1, confusion=[[1, 2], [3, 4]])
    trainer.end_epoch(log, loss=math.nan)
    trainer.end_epoch(log, loss=0.3, val_loss=0.5)
    rows = read_csv(path)
    assert [r["epoch"] for r in rows] == ["1", "2", "3"]
    assert [r["loss"] for r in rows] == ["0.1", "nan", "0.3"]
    assert [r["val_loss"] for r in rows] == ["", "", "0.5"] and "confusion" not in rows[0]


@pytest.mark.parametrize("kind", [CSVLog, JSONLog])
def test_resumed_logs_have_no_doubled_and_no_lost_epochs(kind, tmp_path):
    path = tmp_path / "log"

    def epochs():
        if kind is CSVLog:
            return [int(r["epoch"]) for r in read_csv(path)]
        return [json.loads(line)["epoch"] for line in path.read_text().splitlines()]

    trainer, log = FakeTrainer(), kind(path)
    log.on_fit_start(trainer)
    for _ in range(3):
        trainer.end_epoch(log, loss=1.0)
    assert epochs() == [1, 2, 3]
    # Killed after the line of epoch 3 was written, before its checkpoint: epoch 3 is run again.
    trainer.history.pop()
    trainer.epoch, trainer.resumed = 2, True
    log = kind(path)
    log.on_fit_start(trainer)
    assert epochs() == [1, 2]
    trainer.end_epoch(log, loss=1.0)
    assert epochs() == [1, 2, 3]
    # The file was lost or cut in the middle of a line: it comes back from the history.
    path.write_text(path.read_text()[:-7])
    log = kind(path)
    log.on_fit_start(trainer)
    trainer.end_epoch(log, loss=1.0)
    assert epochs() == [1, 2, 3, 4]
    # A fresh run starts the file anew.
    kind(path).on_fit_start(FakeTrainer())
    assert path.read_text() == ""
    assert os.listdir(tmp_path) == ["log"]


def test_json_log_is_strict_json(tmp_path):
    path = tmp_path / "log"
    trainer, log = FakeTrainer(), JSONLog(path)
    log.on_fit_start(trainer)
    trainer.end_epoch(
        log, loss=math.nan, m=np.float32(0.5), c=np.eye(2, dtype=int), d={"x": math.inf}
    )

    def refuse(name):
        raise AssertionError(name)

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"epoch": 1, "loss": None, "m": 0.5, "c": [[1, 0], [0, 1]], "d": {"x": None}}


def test_lr_log(tmp_path):
    path = tmp_path / "lr.csv"
    trainer, log = FakeTrainer(), LRLog(path)
    log.on_fit_start(trainer)
    for i in range(4):
        trainer.step, trainer.lr = i + 1, 0.1 / (i + 1)
        log.on_step_end(trainer)
    log.on_epoch_end(trainer)
    state = log.state_dict()
    trainer.step, trainer.lr = 5, 7.0  # lost with the process
    log.on_step_end(trainer)
    log.on_fit_end(trainer)
    again = LRLog(path)
    again.load_state_dict(state)
    trainer.resumed = True
    again.on_fit_start(trainer)
    trainer.step, trainer.lr = 5, 0.02
    again.on_step_end(trainer)
    again.on_fit_end(trainer)
    rows = read_csv(path)
    assert [int(r["step"]) for r in rows] == [0, 1, 2, 3, 4] == again.steps
    assert [float(r["lr"]) for r in rows] == [0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4, 0.02] == again.rates


def test_time_limit(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    trainer, limit = FakeTrainer(), TimeLimit(5)
    limit.on_fit_start(trainer)
    now[0] = 4.9
    limit.on_step_end(trainer)
    assert trainer.stop_reason is None
    now[0] = 5.0
    limit.on_step_end(trainer)
    assert "5 s" in trainer.stop_reason


def test_stop_on_nan_says_what_to_do():
    trainer, guard = FakeTrainer(step=411, epoch=2, lr=0.3), StopOnNaN()
    guard.on_fit_start(trainer)
    with pytest.warns(RuntimeWarning, match=r"update 412 of epoch 3 \(lr 0.3\).*max_grad_norm"):
        trainer.guard(trainer, math.inf)
    assert "inf" in trainer.stop_reason
    guard.on_fit_end(trainer)
    assert trainer.guard is None


# History ---------------------------------------------------------------------------------------


def make_history():
    rows = []
    for i in range(4):
        row = {
            "epoch": i + 1,
            "step": 10 * i,
            "loss": 1 / (i + 1),
            "accuracy": 0.5 + i / 10,
            "lr": 0.1,
        }
        if i > 1:
            row |= {"val_loss": 2 / (i + 1), "val_confusion": [[3, 1], [0, 2]]}
        rows.append(row)
    return History(rows)


def test_history_to_dict_and_csv(tmp_path):
    history = make_history()
    columns = history.to_dict()
    assert columns["loss"] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert columns["val_loss"] == [None, None, 2 / 3, 0.5]
    text = history.to_csv(tmp_path / "h.csv")
    assert (tmp_path / "h.csv").read_text() == text
    rows = read_csv(tmp_path / "h.csv")
    assert [float(r["loss"]) for r in rows] == columns["loss"] and "val_confusion" not in rows[0]
    assert History().to_dict() == {} and History().to_csv() == ""


def test_history_plot(tmp_path):
    pytest.importorskip("matplotlib")
    figure = make_history().plot(tmp_path / "curves.png", classes=["cat", "dog"], title="run")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == [
        "loss", "accuracy", "learning rate (end of epoch)", "confusion",
    ]  # fmt: skip
    np.testing.assert_array_equal(shown[0].lines[0].get_ydata(), make_history().to_dict()["loss"])
    assert {text.get_text() for text in shown[3].texts} == {"1", "2", "3"}
    with pytest.raises(ValueError, match="empty"):
        History().plot()
    with pytest.raises(ValueError, match="confusion"):
        make_history().plot(confusion=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 names in classes for a confusion of 2"):
        make_history().plot(classes=["cat"])
