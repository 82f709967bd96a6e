"""Runs that are killed with SIGKILL and resumed end with the bits of one that never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

RUN = r"""
import json, os, signal, sys
import numpy as np
import gradsmith as gs
import gradsmith.nn as nn
from gradsmith.data import Loader
from gradsmith.optim import lr_scheduler
from gradsmith.train import *

folder, spec = sys.argv[1], json.loads(sys.argv[2])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

kind, count = spec.get("die", [None, 0])
if kind in ("before rename", "after rename"):
    rename, seen = os.replace, []
    def replace(a, b, **kw):
        seen.append(b)
        if len(seen) == count and kind == "before rename":
            die()
        rename(a, b, **kw)
        if len(seen) == count:
            die()
    os.replace = replace

class Killer(Callback):
    order = spec.get("order", 200)
    def on_step_end(self, trainer):
        if kind == "step" and trainer.step == count:
            die()
        if spec.get("slow"):
            import time
            time.sleep(spec["slow"])
    def on_eval_end(self, trainer):
        if kind == "evaluation" and trainer.epoch + 1 == count:
            die()
    def on_epoch_end(self, trainer):
        if kind == "epoch" and trainer.epoch == count:
            die()

gs.manual_seed(11)
rng = np.random.default_rng(2)
x = rng.normal(size=(83, 6)).astype(np.float32)
y = (x[:, 0] * x[:, 1] > 0.1 * x[:, 2]).astype(np.int64)
model = nn.Sequential(
    nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 24), nn.ReLU(),
    nn.Linear(24, 2),
)
optimizer = getattr(gs.optim, spec.get("optimizer", "AdamW"))(model.parameters(), lr=0.01)
updates = 6 * 5  # 9 batches in windows of 2
if spec.get("plateau"):
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
else:
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.02, updates)
noise = lambda a, rng: a + rng.normal(size=a.shape).astype(a.dtype) * 0.1
loader = Loader((x, y), 10, shuffle=True, seed=4, transform=noise)
log = LRLog(folder + "/lr.csv")
trainer = Trainer(
    model, "cross_entropy", optimizer, scheduler,
    metrics=["accuracy", "f1", metrics.Function(lambda y, p: np.median(p[:, 0]), "median")],
    callbacks=[
        Checkpoint(folder, every=3, keep=2), EarlyStopping("val_loss", patience=2),
        CSVLog(folder + "/log.csv"), JSONLog(folder + "/log.jsonl"), log, Killer(),
    ],
)
trainer.fit(loader, (x[:30], y[:30]), epochs=6, accumulate=2, max_grad_norm=1.0, resume=True, progress=False)
np.savez(folder + "/end.npz", **{k: t.numpy() for k, t in model.state_dict().items()})
json.dump([trainer.history, log.steps, log.rates, trainer.stop_reason], open(folder + "/end.json", "w"))
"""


def launch(folder, threads=1, **spec):
    env = {**os.environ, "GRADSMITH_NUM_THREADS": str(threads)}
    args = [sys.executable, "-c", RUN, str(folder), json.dumps(spec)]
    return subprocess.Popen(args, env=env, stderr=subprocess.PIPE, text=True)


def run(folder, **spec):
    process = launch(folder, **spec)
    _, err = process.communicate(timeout=120)
    if "die" in spec:
        assert process.returncode == -signal.SIGKILL, err
        assert not (folder / "end.json").exists()
    else:
        assert process.returncode == 0, err


def ending(folder):
    with np.load(folder / "end.npz") as file:
        weights = {name: file[name] for name in file.files}
    history, steps, rates, reason = json.loads((folder / "end.json").read_text())
    for row in history:
        del row["seconds"], row["samples_per_second"]
    return weights, (history, steps, rates, reason)


def logged(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    table = (folder / "log.csv").read_text().splitlines()
    return [r["epoch"] for r in rows], [line.split(",")[0] for line in table[1:]]


def check_same(a, b):
    (wa, ra), (wb, rb) = ending(a), ending(b)
    assert wa.keys() == wb.keys() and len(wa) == 11
    for name in wa:
        assert wa[name].tobytes() == wb[name].tobytes(), name
    assert ra == rb
    assert (a / "lr.csv").read_bytes() == (b / "lr.csv").read_bytes()
    epochs = [row["epoch"] for row in ra[0]]
    assert logged(a) == logged(b) == (epochs, [str(e) for e in epochs])


@pytest.fixture(scope="module", params=["onecycle", "plateau"])
def unbroken(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    spec = {"plateau": True, "optimizer": "SGD"} if request.param == "plateau" else {}
    run(folder, **spec)
    history, steps = ending(folder)[1][:2]
    assert len(steps) == 5 * len(history) > 10
    return folder, spec


def test_killed_at_chosen_moments(unbroken, tmp_path):
    """One run, killed again and again: before and after checkpoints, in evaluation, in renames."""
    whole, spec = unbroken
    before, after = -1, 200  # dies before the checkpoint of that moment is written, or after it
    moments = [
        (["step", 2], before),  # before the first checkpoint
        (["before rename", 4], after),  # the first ones write the logs
        (["after rename", 6], before),
        (["step", 4], after),
        (["epoch", 1], before),
        (["step", 9], after),
        (["step", 10], before),
        (["evaluation", 2], after),
        (["step", 15], before),
        (["step", 15], after),  # the last of an epoch: what is left of it is its evaluation and row
        (["epoch", 3], after),
    ]
    for i, (moment, order) in enumerate(moments):
        run(tmp_path, die=moment, order=order, threads=1 + i % 2, **spec)
    run(tmp_path, **spec)
    check_same(whole, tmp_path)


def test_resuming_a_finished_run_changes_nothing(unbroken, tmp_path):
    whole, spec = unbroken
    run(tmp_path, **spec)
    run(tmp_path, **spec)
    check_same(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments(seed, unbroken, tmp_path):
    whole, spec = unbroken
    rng = random.Random(seed)
    kills = 0
    while kills < 6:
        process = launch(tmp_path, threads=rng.randint(1, 3), slow=0.06, **spec)
        time.sleep(0.2 + rng.random() * 1.3)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    assert kills
    run(tmp_path, **spec)
    check_same(whole, tmp_path)


def test_the_checkpoint_is_readable_by_anyone(unbroken):
    import gradsmith as gs

    whole, _ = unbroken
    state = gs.load(whole / "last.safetensors")
    assert {"model", "optim", "trainer", "callbacks", "versions"} <= state.keys()
    assert set(state["optim"]) <= set(state["model"])
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(whole / "last.safetensors")
    weights = ending(whole)[0]
    assert {f"model/{name}" for name in weights} <= tensors.keys()
    best = state["callbacks"][0]["state"]["weights"]
    for name, value in weights.items():  # the run ended on its best weights
        np.testing.assert_array_equal(np.asarray(best[name]), value)
