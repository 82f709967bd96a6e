"""The benchmark runner: equality before timing, floors, whole steps in processes of their own."""

import argparse
import itertools
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import gradsmith as gs
from gradsmith import bench
from gradsmith.bench import Case, families, main, run_case
from gradsmith.bench import steps as whole
from gradsmith.bench.steps.nets import NETS, Floor


def test_a_peer_with_another_result_is_not_timed(rng):
    x = rng.normal(size=100)

    def setup(peers):
        runs = {"gradsmith": lambda: x, "numpy": lambda: x * (1 + 1e-6), "torch": lambda: x + 1}
        return {n: f for n, f in runs.items() if n == "gradsmith" or n in peers}

    r = run_case(Case("copy", setup, bytes=1e6), {"numpy", "torch"}, 1, 1e-4, 2)
    assert set(r["ratio"]) == {"numpy"}
    assert r["wrong"] and "differs" in r["notes"]["torch"]
    assert r["share_of_copy"] > 0 and "share_of_fma_peak" not in r


def test_a_peer_that_fails_is_reported():
    def setup(peers):
        return {"gradsmith": lambda: np.ones(1), "jax": lambda: 1 / 0}

    r = run_case(Case("one", setup, flops=1e3), {"jax"}, 1, 1e-4, 1)
    assert r["ratio"] == {} and "ZeroDivisionError" in r["notes"]["jax"]
    assert "wrong" not in r


def test_every_family_has_cases():
    from gradsmith.bench import cases_of

    assert {"matmul", "conv", "activation", "norm", "pool", "optimizer"} <= set(families())
    for family in families():
        names = [c.name for c in cases_of(family, quick=True)]
        assert names and len(set(names)) == len(names)


@pytest.mark.parametrize("argv", [["nothing"], ["--against", "theano"], ["--threads", "0"]])
def test_wrong_arguments(argv, capsys):
    with pytest.raises(SystemExit) as e:
        main(argv)
    assert e.value.code == 2
    assert argv[-1] in capsys.readouterr().err or argv[0] == "--threads"


@pytest.mark.parametrize(
    "argv",
    [
        ["nothing"],
        ["--mode", "x"],
        ["--threads", "a"],
        ["--batch", "0"],
        ["--against", "x"],
        ["--threads", "1,500"],
    ],
)
def test_wrong_arguments_of_steps(argv):
    with pytest.raises(SystemExit) as e:
        whole.main(argv)
    assert e.value.code == 2


def test_floor_counts_multiply_adds():
    sizes = (784, 512, 256, 10)
    products = sum(a * b for a, b in itertools.pairwise(sizes))
    floor = Floor(NETS["mlp"], 128)
    assert floor.flops == 2 * 128 * products
    assert floor.step_flops == 2 * 128 * (3 * products - 784 * 512)
    assert floor.parameters == products + sum(sizes[1:])
    # the stage of each block pair has the same number of operations; known size of ResNet-18
    resnet = Floor(NETS["resnet18"], 1)
    assert math.isclose(resnet.flops / 2, 0.5557e9, rel_tol=1e-3)
    assert resnet.parameters == 11_173_962
    assert Floor(NETS["gpt"], 16).out == (16, 64, 1000)
    assert Floor(NETS["lstm"], 2).out == (2, 10)


def _mlp_loss(net, batch):
    """The loss of the first step in float64."""
    w = {n: a.astype("f8") for n, a in net.weights().items()}
    x, y = net.data(batch)
    x = x.astype("f8")
    layers = len(w) // 2
    for i in range(layers):
        x = x @ w[f"fc{i}.weight"].T + w[f"fc{i}.bias"]
        if i < layers - 1:
            x = np.maximum(x, 0)
    x -= x.max(1, keepdims=True)
    return float((np.log(np.exp(x).sum(1)) - x[np.arange(batch), y]).mean())


def test_worker_trains_and_answers():
    command = [sys.executable, "-m", "gradsmith.bench.steps.worker"]
    command += ["gradsmith", "eager", "mlp-tiny", "train", "8", "1"]
    asked = json.dumps({"seconds": 0.01}) + "\n"
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    first, timed = map(json.loads, done.stdout.splitlines())
    assert math.isclose(first["first"][0], _mlp_loss(NETS["mlp-tiny"], 8), rel_tol=1e-5)
    assert first["first"][2] < first["first"][0]
    assert len(timed["times"]) >= 3 and min(timed["times"]) > 0


def test_steps_reports_a_worker_that_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(whole.VARIANTS, "gradsmith", ("eager",))
    monkeypatch.setitem(whole.NETS, "broken", NETS["mlp-tiny"])  # unknown to the worker
    assert whole.main(["broken", "--against", "none", "--threads", "1", "--rounds", "1"]) == 1
    assert "KeyError" in capsys.readouterr().err
    out = tmp_path / "r.json"
    argv = ["mlp-tiny", "--against", "none", "--threads", "1", "--rounds", "1", "--seconds", "0.01"]
    assert whole.main([*argv, "--json", str(out)]) == 0
    (record,) = json.loads(out.read_text())["records"]
    assert record["seconds"]["gradsmith"] > 0 and "ratio" not in record


def test_where_the_time_goes(tmp_path, capsys):
    """Operations of the kernels are those of the network; the table and the picture are written."""
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "r.json", tmp_path / "r.png"
    argv = ["mlp-tiny", "lenet", "--against", "none", "--threads", "1", "--rounds", "1"]
    argv += [
        "--seconds",
        "0.01",
        "--ops",
        "--batch",
        "8",
        "--json",
        str(out),
        "--plot",
        str(picture),
    ]
    assert whole.main(argv) == 0
    ops = json.loads(out.read_text())["ops"]
    assert [r["net"] for r in ops] == ["mlp-tiny", "lenet"]
    for r in ops:
        assert math.isclose(sum(g["flops"] for g in r["ops"]), Floor(NETS[r["net"]], 8).step_flops)
        assert math.isclose(sum(g["share"] for g in r["ops"]), 1.0)
        floor = Floor(NETS[r["net"]], 8)
        large = sum(math.prod(s) for s in floor.p.values() if len(s) == 2 and math.prod(s) >= 32768)
        if gs._cpu.machine()["near"]:  # a fast third cache holds all that the update touches
            large = 0
        assert bool(large) == any(g["name"] == "matmul_update" for g in r["ops"])
        adam = next(g for g in r["ops"] if g["name"] == "adam")
        # reads gradient, parameter and two moments, writes three of them; large weights are updated
        # by the product that makes their gradient
        assert math.isclose(adam["bytes"], 28 * (floor.parameters - large), rel_tol=0.01)
    assert "of floor" in capsys.readouterr().out and picture.stat().st_size > 10_000


def test_scaling_chooses_batches(monkeypatch):
    asked = []
    monkeypatch.setattr(
        whole,
        "compare",
        lambda *a: asked.append(a[2]) or {"net": a[0], "mode": a[1], "batch": a[2], "threads": a[3],
                                          "trials": {}, "failed": {}},
    )  # fmt: skip
    whole.main(["mlp", "--against", "none", "--threads", "1", "--scaling"])
    assert asked == [8, 32, 128, 512]
    with pytest.raises(SystemExit):
        whole.main(["mlp", "--scaling", "--batch", "8"])


@pytest.mark.parametrize("start", [main, whole.main], ids=["kernels", "steps"])
def test_files_that_cannot_be_written_are_refused_before_measuring(start, tmp_path, capsys):
    for arguments, text in (
        (["--json", str(tmp_path / "no" / "a.json")], "--json .*the folder .* does not exist"),
        (["--plot", str(tmp_path / "no" / "a.png")], "--plot .*the folder .* does not exist"),
        (["--json", str(tmp_path)], "is a folder"),
        (["--plot", str(tmp_path / "a.foo")], "--plot .*a.foo: the suffix must be one of .*png"),
        (["--rounds", "0"], "--rounds must be at least 1"),
    ):
        with pytest.raises(SystemExit) as error:
            start(arguments)
        out = capsys.readouterr()
        assert error.value.code == 2 and out.out == ""
        assert re.search(text, out.err), out.err


@pytest.mark.parametrize("start", [main, whole.main], ids=["kernels", "steps"])
def test_a_file_that_only_opening_shows_cannot_be_written(start, tmp_path, capsys, monkeypatch):
    # a folder that says it can be written, and cannot (/proc, a full disk)
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    path = tmp_path / "a.json"
    with pytest.raises(SystemExit) as error:
        start(["--json", str(path)])
    assert error.value.code == 2
    assert f"--json {path}: cannot be written (No space left" in capsys.readouterr().err


def test_ctrl_c_leaves_no_worker(monkeypatch):
    children = []

    def interrupted(*args):
        children.append(whole.Worker("gradsmith", "captured", "mlp-tiny", "infer", 1, 1).process)
        raise KeyboardInterrupt

    monkeypatch.setattr(whole, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        whole.main(["mlp-tiny", "--against", "none", "--threads", "1"])
    assert children[0].poll() is not None and not whole.Worker.live


def test_ctrl_c_is_said_once(monkeypatch):
    """A terminal sends it to the command and to the process that measures, which says so and ends."""

    class Child:
        waits = 0

        def __init__(self, *args, **kwargs):
            pass

        def wait(self, timeout=None):
            self.waits += 1
            if self.waits == 1:
                raise KeyboardInterrupt
            return 130

    monkeypatch.setattr(subprocess, "Popen", Child)
    assert bench._again(["reduce"], 1) == 130


def test_list_names_cases_and_measures_nothing(capsys, monkeypatch):
    monkeypatch.setattr(bench, "run_case", None)
    monkeypatch.setattr(bench, "_again", None)
    assert main(["pool", "softmax", "--list", "--filter", "max"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names == [
        c.name for f in ("pool", "softmax") for c in bench.cases_of(f) if "max" in c.name
    ]
    assert main(["--list", "--filter", "no such case"]) == 2
    out = capsys.readouterr()
    assert out.out == "" and "no case's name holds 'no such case'" in out.err


def test_peers_are_taken_once(capsys):
    parser = argparse.ArgumentParser()
    assert bench.peers_of(parser, "torch, numpy,torch,none", bench.PEERS) == ["torch", "numpy"]
    assert bench.peers_of(parser, "none", bench.PEERS) == []
    with pytest.raises(SystemExit):
        bench.peers_of(parser, "numpy,touch", bench.PEERS)
    assert "unknown peer 'touch'; one of numpy, torch, " in capsys.readouterr().err


def test_a_filter_without_a_case_and_too_many_threads_are_errors(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(bench._CHILD, "1")
    path = tmp_path / "a.json"
    before = gs.get_num_threads()
    try:
        options = ["reduce", "--quick", "--threads", "1", "--against", "none", "--json", str(path)]
        assert main([*options, "--filter", "no such case"]) == 2
    finally:
        gs.set_num_threads(before)
    assert "no case's name holds 'no such case'" in capsys.readouterr().err and not path.exists()
    with pytest.raises(SystemExit):
        main(["reduce", "--threads", "5000"])
    assert "--threads is 5000; expected 1 .. 256" in capsys.readouterr().err
