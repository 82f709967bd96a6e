"""The command line: runs on disk, resume, refusals with one line and exit code 2."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import gradsmith as gs
from gradsmith import cli, models
from gradsmith.data import write_idx


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny images whose class is the quadrant that is lit, as IDX files."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("quadrants")
    for stem, n in (("train", 160), ("t10k", 40)):
        y = rng.integers(0, 4, size=n)
        x = rng.integers(0, 60, size=(n, 8, 8))
        for i, label in enumerate(y):
            x[i, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 150
        write_idx(root / f"{stem}-images-idx3-ubyte", x.astype(np.uint8))
        write_idx(root / f"{stem}-labels-idx1-ubyte.gz", y.astype(np.uint8))
    return root


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = gs.get_num_threads()
    yield
    gs.set_num_threads(before)


def environment():
    """For a process in another folder: this package, wherever it was imported from."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(gs.__file__)))
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}


def train(*args):
    return cli.main(["train", *map(str, args)])


def quick(folder, *args):
    return train("--data", folder, "--model", "mlp", "--epochs", 3, *args)


def weights(path):
    return {k: np.array(v.data) for k, v in gs.load(path)["model"].items()}


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def test_a_run(folder, tmp_path, capsys):
    assert quick(folder) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "160 images of 8x8x1" in lines[0] and "4 classes" in lines[0]
    assert re.match(
        r"epoch 3/3  loss [\d.]+  accuracy [\d.]+  .*lr [\d.e-]+  \d+ images/s", lines[4]
    )
    found = re.search(r"test accuracy ([\d.]+) \((\d+) of 40\) after 3 epochs", out)
    run = tmp_path / "runs" / f"{folder.name}-mlp"
    assert sorted(os.listdir(run)) == ["history.csv", "last.safetensors", "model.safetensors"]
    assert (run / "history.csv").read_text().count("\n") == 4
    state = gs.load(run / "model.safetensors")
    assert state["test"] == {"accuracy": int(found[2]) / 40, "images": 40}
    # The saved model gives that accuracy with nothing but what is in the file.
    model = models.load(run)
    _, test = gs.data.idx_folder(folder)
    x = (test.arrays[0] - np.float32(model.config["mean"])) / np.float32(model.config["std"])
    with gs.no_grad():
        pred = model(gs.tensor(x.astype(np.float32))).numpy().argmax(axis=1)
    assert np.mean(pred == test.arrays[1]) == pytest.approx(int(found[2]) / 40, abs=0.026)
    assert same(run / "last.safetensors", run / "model.safetensors")


def test_runs_are_not_overwritten(folder, tmp_path, capsys):
    assert quick(folder, "--quiet") == 0
    assert quick(folder, "--quiet", "--seed", 1) == 0
    assert sorted(os.listdir("runs")) == [f"{folder.name}-mlp", f"{folder.name}-mlp-2"]
    assert quick(folder, "--out", "mine", "--quiet") == 0
    before = (tmp_path / "mine/last.safetensors").read_bytes()
    capsys.readouterr()
    assert quick(folder, "--out", "mine") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--resume" in err and "--overwrite" in err
    assert (tmp_path / "mine/last.safetensors").read_bytes() == before
    os.remove("mine/last.safetensors")  # its result alone is worth keeping, too
    assert quick(folder, "--out", "mine") == 2
    assert quick(folder, "--out", "mine", "--overwrite", "--seed", 5, "--augment", "--quiet") == 0
    assert gs.load("mine/model.safetensors")["config"]["settings"]["augment"] == "shift"
    assert not same("mine/last.safetensors", f"runs/{folder.name}-mlp/last.safetensors")


def test_runs_that_begin_at_the_same_time_have_folders_of_their_own(folder, tmp_path):
    command = [sys.executable, "-m", "gradsmith", "train", "--data", str(folder), "--model", "mlp"]
    command += ["--epochs", "1", "--quiet"]
    runs = [subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) for _ in range(4)]
    saved = {run.communicate(timeout=120)[0].decode().split()[-1] for run in runs}
    assert [run.returncode for run in runs] == [0] * 4
    assert len(saved) == 4 and all(os.path.exists(path) for path in saved)


def test_out_as_a_file(folder, tmp_path):
    assert quick(folder, "--out", "a/net.safetensors", "--quiet") == 0
    assert os.listdir("a") == ["net.safetensors"]
    assert models.load("a/net.safetensors").config["model"] == "mlp"
    assert train("--resume", "a/net.safetensors", "--quiet") == 0
    assert quick(folder, "--out", "a/net.safetensors") == 2


def test_threads_do_not_change_the_result(folder):
    for n in (1, 2, 3):
        args = ["--model", "lenet", "--epochs", 1, "--augment", "rotate", "--quiet"]
        assert train("--data", folder, *args, "--threads", n, "--out", f"t{n}") == 0
    assert same("t1/model.safetensors", "t2/model.safetensors")
    assert same("t1/model.safetensors", "t3/model.safetensors")


def test_killed_and_resumed_from_the_shell(folder, tmp_path):
    options = ["--data", str(folder), "--model", "lenet", "--epochs", "4", "--augment", "shift"]
    assert train(*options, "--out", "whole", "--quiet") == 0
    command = [sys.executable, "-m", "gradsmith", "train", *options, "--out", "cut"]
    env = environment()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    if process.returncode == -signal.SIGKILL:
        assert not os.path.exists("cut/model.safetensors")
    assert train("--resume", "--out", "cut", "--quiet") == 0
    assert same("cut/model.safetensors", "whole/model.safetensors")
    assert (tmp_path / "cut/history.csv").read_text().count("\n") == 5


def test_ctrl_c_saves_and_says_how_to_go_on(folder, tmp_path):
    options = ["--data", str(folder), "--model", "lenet", "--epochs", "200"]
    command = [sys.executable, "-m", "gradsmith", "train", *options]
    env = environment()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("epoch   2/"):
            break
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert "stopped: interrupted" in rest and "gradsmith train --resume" in rest
    state = gs.load(f"runs/{folder.name}-lenet/last.safetensors")
    assert 2 <= state["trainer"]["epoch"] < 200


def test_resume_finds_the_latest_run_and_refuses_other_settings(folder, tmp_path, capsys):
    assert train("--resume") == 2
    assert "no run below ./runs" in capsys.readouterr().err
    assert train("--resume", "gone") == 2
    assert "gone" in capsys.readouterr().err
    assert quick(folder, "--quiet") == 0
    first = capsys.readouterr().out
    assert train("--resume", "--quiet") == 0  # it is finished: the same result again
    assert capsys.readouterr().out.splitlines()[1] == first.splitlines()[1]
    assert train("--resume", "--lr", 0.5) == 2
    assert "--lr 0.5 differs" in capsys.readouterr().err
    assert train("--resume", "--epochs", 3, "--optimizer", "adamw", "--quiet") == 0
    run = f"runs/{folder.name}-mlp/"
    for state in ({"model": {}}, {"config": {"settings": {"lr": 1}}}, {"config": 3}):
        gs.save(state, "other.safetensors")
        assert train("--resume", "other.safetensors") == 2
        assert "no run of gradsmith train" in capsys.readouterr().err
    assert train("--resume", run + "model.safetensors") == 2  # the result alone
    assert "no run of gradsmith train" in capsys.readouterr().err
    whole = (tmp_path / run / "last.safetensors").read_bytes()
    (tmp_path / run / "last.safetensors").write_bytes(whole[:-100])
    assert train("--resume") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "last.safetensors" in err


def test_unknown_data_is_one_line_and_changes_nothing(tmp_path, capsys):
    assert train("--data", tmp_path / "nowhere", "--out", "run") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "nowhere" in err and "train-images-idx3-ubyte" in err
    (tmp_path / "empty").mkdir()
    assert train("--data", "empty") == 2
    assert "t10k-labels-idx1-ubyte" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["empty"]


def test_damaged_data_is_one_line(folder, tmp_path, capsys):
    for name in os.listdir(folder):
        (tmp_path / name).write_bytes((folder / name).read_bytes()[:50])
    assert train("--data", tmp_path, "--out", "run") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(tmp_path) in err and not os.path.exists("run")


def write_images(folder, train_labels, test_labels):
    folder.mkdir()
    for stem, labels in (("train", train_labels), ("t10k", test_labels)):
        images = np.zeros((len(labels), 8, 8), np.uint8)
        write_idx(folder / f"{stem}-images-idx3-ubyte", images + np.arange(8, dtype=np.uint8))
        write_idx(folder / f"{stem}-labels-idx1-ubyte", np.array(labels, np.uint8))


@pytest.mark.parametrize(
    "labels, text",
    [
        (([], [0, 1]), "no training images"),
        (([0, 1], []), "no test images"),
        (([0] * 9, [0] * 4), "two classes or more"),
    ],
)
def test_data_that_nothing_can_be_learned_from(labels, text, tmp_path, capsys):
    write_images(tmp_path / "data", *labels)
    assert train("--data", "data", "--model", "mlp", "--epochs", 1) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and text in err and not os.path.exists("runs")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("model", ["mlp", "resnet18"])
def test_a_run_that_diverges_fails(folder, model, capsys):
    args = ("--data", folder, "--model", model, "--limit", 33, "--epochs", 1, "--lr", "1e30")
    assert train(*args) == 1
    out, err = capsys.readouterr()
    assert "nan" in (out + err).lower() and "saved" not in out.replace("state is saved", "")


@pytest.mark.parametrize(
    "args, text",
    [
        (["--epochs", "0"], "--epochs"),
        (["--batch-size", "-3"], "--batch-size"),
        (["--lr", "-1"], "--lr"),
        (["--lr", "nan"], "--lr"),
        (["--seed", "-1"], "--seed"),
        (["--limit", "0"], "--limit"),
        (["--optimizer", "Adamw2"], "AdamW"),
        (["--threads", "0"], "n is 0"),
        (["--dropout", "1.5"], "--dropout is 1.5"),
        (["--weight-decay", "-1"], "--weight-decay"),
        (["--label-smoothing", "2"], "--label-smoothing is 2"),
        (["--out", ""], "--out is empty"),  # was /
        (["--plot", "curves.xyz"], "png"),
        (["--plot", "nowhere/curves.png"], "nowhere"),
    ],
)
def test_bad_options(args, text, tmp_path, capsys):
    if "--plot" in args:
        pytest.importorskip("matplotlib")
    assert train(*args, "--quiet") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and text in err
    assert os.listdir(tmp_path) == []


def test_argparse_errors_exit_with_2(capsys):
    for bad in (["--model", "vgg"], ["--nonsense"], ["--epochs", "x"]):
        with pytest.raises(SystemExit) as stop:
            train(*bad)
        assert stop.value.code == 2
    assert cli.main([]) == 2
    assert "train" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and gs.__version__ in capsys.readouterr().out


def test_plot(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert quick(folder, "--plot", "curves.png", "--quiet") == 0
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert train("--resume", "--plot", "again.svg", "--quiet") == 0
    text = (tmp_path / "again.svg").read_text()
    assert text.startswith("<?xml")


def test_a_plot_that_cannot_be_written_costs_no_run(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    (tmp_path / "there.png").mkdir()
    assert quick(folder, "--plot", "there.png") == 2  # before training
    assert "cannot be written" in capsys.readouterr().err and not os.path.exists("runs")

    def full(*_, **__):
        raise OSError(28, "No space left on device", "curves.png")

    monkeypatch.setattr(gs.train.History, "plot", full)
    assert quick(folder, "--plot", "curves.png", "--out", "run") == 1
    out, err = capsys.readouterr()
    assert "No space left" in err and "saved run" in out
    models.load("run")


def shell(command, *args, **env):
    """``gradsmith`` in a shell command, as $G; its output and exit codes."""
    given = " ".join(map(str, args))
    return subprocess.run(
        ["bash", "-c", f'G="{sys.executable} -m gradsmith"; {command.format(given)}'],
        env={**environment(), **env}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_output_that_nobody_reads_or_takes(folder):
    small = ("train", "--data", folder, "--model", "mlp", "--epochs", 2)
    done = shell("$G {} | head -1; echo ${{PIPESTATUS[0]}}", *small)
    assert done.stdout.splitlines()[1] == "141" and done.stderr == ""
    bench = ("bench", "softmax", "--quick", "--against", "none", "--threads", 1)
    done = shell("$G {} | head -1; echo ${{PIPESTATUS[0]}}", *bench)
    assert done.stdout.splitlines()[-1] == "141" and done.stderr == ""
    for args in (("info", "--no-measure"), (*small, "--out", "full"), bench):
        done = shell("$G {} > /dev/full", *args)
        assert done.returncode == 1 and "No space left" in done.stderr
        assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    done = shell("$G {} >&- 2>&-", *small, "--out", "deaf")  # sys.stdout and sys.stderr are None
    assert done.returncode == 0
    models.load("deaf")


def test_ctrl_c_outside_of_training_is_one_line(folder, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gs.data, "idx_folder", interrupted)
    assert quick(folder) == 130
    assert capsys.readouterr().err == "gradsmith: interrupted\n"


def test_names_that_the_terminal_cannot_show(folder):
    plain = dict(LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    small = ("train", "--data", folder, "--model", "mlp", "--epochs", 1, "--out", "ä")
    done = shell("$G {}", *small, **plain)
    assert done.returncode == 0 and "saved " in done.stdout and done.stderr == ""


def test_a_last_batch_of_one_image_does_not_stop_a_batch_norm(folder, capsys):
    small = ("--data", folder, "--model", "resnet18", "--epochs", 1, "--batch-size", 4, "--quiet")
    assert train(*small, "--limit", 5) == 0  # on 8 x 8 images the last maps are 1 x 1
    assert train(*small, "--limit", 1, "--out", "one") == 2
    assert "more than one value per channel" in capsys.readouterr().err


def test_info(capsys):
    assert cli.main(["info", "--no-measure"]) == 0
    assert f"gradsmith {gs.__version__}" in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_optimizers_and_schedules(folder, optimizer, schedule):
    args = ["--optimizer", optimizer, "--schedule", schedule, "--out", "run", "--quiet"]
    assert quick(folder, *args) == 0
    assert gs.load("run/model.safetensors")["test"]["accuracy"] > 0.3


@pytest.mark.parametrize(
    "optimizer",
    sorted(
        name
        for name in gs.optim.__all__
        if hasattr(getattr(gs.optim, name), "step") and name != "Optimizer"
    ),
)
def test_every_optimizer_learns_with_its_default_rate(optimizer, capsys):
    """Adadelta needs a rate of 1, where Adam takes 0.003."""
    assert train("--optimizer", optimizer, "--epochs", 6, "--quiet") == 0
    assert float(re.search(r"test accuracy ([\d.]+)", capsys.readouterr().out)[1]) > 0.9


def test_digits_in_short(capsys):
    """Three epochs of the default: far above chance; the full run is among the slow tests."""
    assert train("--epochs", 3, "--quiet") == 0
    assert float(re.search(r"test accuracy ([\d.]+)", capsys.readouterr().out)[1]) > 0.93


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_defaults_reach_98_5(seed, capsys):
    assert train("--seed", seed, "--quiet") == 0
    out = capsys.readouterr().out
    assert float(re.search(r"test accuracy ([\d.]+)", out)[1]) >= 0.985
    assert float(re.search(r"([\d.]+) s of training", out)[1]) < 60
