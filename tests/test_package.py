"""The package as installed: what it imports, what it names, that examples in docstrings run."""

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import gradsmith as gs

HEAVY = ("torch", "jax", "tensorflow", "matplotlib", "PIL", "scipy", "sklearn", "pandas", "safetensors", "tqdm",
         "asyncio", "multiprocessing", "hypothesis", "pytest")  # fmt: skip


def test_import_pulls_in_numpy_and_little_else():
    code = "import sys, numpy; before = set(sys.modules); import gradsmith; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    tops = {m.split(".")[0] for m in done.stdout.split()}
    assert not tops & set(HEAVY)


def modules():
    names = ["gradsmith"]
    for m in pkgutil.walk_packages(gs.__path__, "gradsmith."):
        if not m.name.endswith("__main__") and "._cpu" not in m.name:
            names.append(m.name)
    return names


@pytest.mark.parametrize("name", modules())
def test_module_imports_and_its_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    peer = name.partition(".steps.with_")[2]  # the other side of a comparison may be missing
    if peer and peer != "gradsmith":
        pytest.importorskip(peer)
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", []):
        assert hasattr(module, public), f"{name}.__all__ lists {public}"
    gs.manual_seed(0)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0


ROOMS = (
    "", ".nn", ".nn.functional", ".nn.init", ".nn.utils.rnn", ".optim", ".models", ".interop.safetensors",
    ".interop.torch", ".optim.lr_scheduler", ".train", ".train.metrics", ".data", ".data.transforms",
)  # fmt: skip
WITHOUT_EXAMPLE = {
    "gradsmith.CaptureError",  # an exception
    "gradsmith.is_grad_enabled",  # compiled; its use stands at set_grad_enabled
}


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_has_an_example(room):
    module = importlib.import_module("gradsmith" + room)
    without = set()
    for name in getattr(module, "__all__", dir(module)):
        value = getattr(module, name)
        if name.startswith("_") or not callable(value):
            continue
        if not str(getattr(value, "__module__", "")).startswith("gradsmith"):
            continue  # NumPy's dtypes
        if ">>>" not in (value.__doc__ or ""):
            without.add(f"{module.__name__}.{name}")
    assert without == {n for n in WITHOUT_EXAMPLE if n.rpartition(".")[0] == module.__name__}


@pytest.mark.parametrize(
    "room", [".optim.lr_scheduler", ".train", ".train.metrics", ".data", ".data.transforms"]
)
def test_methods_have_a_line(room):
    module = importlib.import_module("gradsmith" + room)
    for public in module.__all__:
        found = getattr(module, public)
        for key, value in inspect.getmembers(found) if inspect.isclass(found) else []:
            if not key.startswith("_") and (
                inspect.isfunction(value) or isinstance(value, property)
            ):
                assert inspect.getdoc(value), f"{room}.{public}.{key} has no docstring"


def test_a_star_brings_every_layer():
    names = {}
    exec("from gradsmith.nn import *", names)
    assert {"Linear", "Conv2d", "LSTM", "Sequential", "Parameter", "functional"} <= set(names)


def test_lazy_rooms_and_unknown_names():
    for name in ("optim", "train", "data", "models", "interop", "bench"):
        assert getattr(gs, name).__name__ == f"gradsmith.{name}"
        assert name in dir(gs)
    assert callable(gs.save) and callable(gs.load)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = gs.nonsense


def test_the_passes_of_a_capture_are_there_before_the_first_capture():
    code = "import gradsmith as gs; print('memory' in gs.core.capture.PASSES, hasattr(gs.core, 'nothing'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_files_of_ops_are_no_names_of_the_package():
    """`gs.shape(x)` must say that there is no such op, not that a module cannot be called."""
    families = [f.stem for f in Path(gs.ops.__file__).parent.glob("[!_]*.py")]
    assert len(families) > 10
    for name in families:
        assert not isinstance(getattr(gs, name, None), ModuleType), name


def test_type_checkers_know_the_public_names(tmp_path):
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(
        """import gradsmith as gs
from gradsmith.train import Trainer

def learn(x: gs.Tensor) -> gs.Tensor:
    train, test = gs.data.digits()
    model = gs.nn.Linear(4, 2, activation="relu")
    optimizer = gs.optim.Adam(model.parameters(), lr=0.1)
    trainer: Trainer = gs.train.Trainer(model, "mse", optimizer)
    gs.manual_seed(0)
    gs.save(gs.models.mlp().state_dict(), "a.safetensors")
    step = gs.capture(lambda: gs.load("a.safetensors"))
    with gs.no_grad(), gs.threads(1):
        y: gs.Tensor = gs.relu(x @ x) + x.size
    y = -(2 // y % 3 ** y) & (y == 1) | ~(y != x)
    y -= y.sum(0).reshape(-1).max()
    n: int = y.size(0)
    return infer(step2(y), n)

@gs.no_grad()
@gs.autocast()
def infer(x: gs.Tensor, n: int) -> gs.Tensor:
    return x.relu().mean(n)

@gs.capture
def step2(x: gs.Tensor) -> gs.Tensor:
    return x.T.exp().view(3)

@gs.capture(fallback=True)
def step3(x: gs.Tensor) -> tuple[gs.Tensor, ...]:
    return x.split(3)

reveal_type(infer)
reveal_type(step2(gs.zeros(3)))
reveal_type(step3(gs.zeros(3)))
reveal_type(gs.nn.Linear(2, 3)(gs.zeros(2)))

class Net(gs.nn.Module):
    def forward(self, x: gs.Tensor, n: int = 2) -> tuple[gs.Tensor, int]:
        return self.body(x), n

reveal_type(Net()(gs.zeros(2), n=3))
gs.nonsense
"""
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        str(tmp_path / "cache"),
        str(program),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1 and '"nonsense"' in errors[0], done.stdout + done.stderr
    seen = re.findall(r'Revealed type is "(.*)"', done.stdout.replace("gradsmith.core.tensor.", ""))
    assert seen[0].startswith("def (x: Tensor, n: ") and seen[0].endswith("-> Tensor")
    assert seen[1] == "Tensor" and re.match(r"(builtins\.)?tuple\[Tensor, \.\.\.\]", seen[2])
    assert seen[3] == "Tensor" and re.match(
        r"(builtins\.)?tuple\[Tensor, (builtins\.)?int\]", seen[4]
    )


def test_methods_that_type_checkers_know_exist():
    source = ast.parse(Path(gs.core.tensor.__file__).read_text())
    (cls,) = (n for n in source.body if isinstance(n, ast.ClassDef) and n.name == "Tensor")
    (block,) = (n for n in cls.body if isinstance(n, ast.If))
    known = {n.name for n in block.body if isinstance(n, ast.FunctionDef)}
    known |= {t.id for n in block.body if isinstance(n, ast.Assign) for t in n.targets}
    known -= {"__getattr__", "_op"}
    assert [name for name in sorted(known) if not hasattr(gs.Tensor, name)] == []
    methods = {n for n, f in vars(gs.Tensor).items() if n[0] != "_" and callable(f)}
    own = {n.name for n in cls.body if isinstance(n, ast.FunctionDef)}
    assert sorted(methods - known - own) == []


@pytest.mark.skipif(os.name != "posix", reason="needs a shell environment")
def test_stubs_are_there():
    here = os.path.dirname(gs.__file__)
    assert os.path.exists(os.path.join(here, "py.typed"))
    assert os.path.exists(os.path.join(here, "_cpu.pyi"))


def test_weights_load_without_pytorch():
    code = """
import sys
sys.modules["torch"] = None
import numpy as np, gradsmith as gs
layer = gs.nn.Conv1d(2, 3, 4)
w = np.arange(24, dtype="f").reshape(3, 2, 4)
gs.interop.torch.load_state_dict(layer, {"weight": w, "bias": np.zeros(3, "f")})
assert (layer.weight.detach().numpy() == w.transpose(0, 2, 1)).all()
try:
    gs.interop.torch.to_torch(layer)
except ImportError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    assert "pip install torch" in out.stdout


def test_dtypes_under_pytorchs_names():
    import gradsmith as gs

    assert gs.zeros(2, dtype=gs.bool).dtype == bool and gs.zeros(2, dtype=gs.long).dtype == gs.int64
    assert gs.ones(2).to(gs.bool).tolist() == [True, True]
