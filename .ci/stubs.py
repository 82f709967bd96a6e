"""Writes python/gradsmith/_cpu.pyi, the type stub of the compiled module, from the module itself.

usage: stubs.py [--check]

The functions of the module are builtins that know the names and defaults of their arguments: the stub takes the types
from the defaults, everything else is Any, because the bindings check arrays. The types of what the classes
Tensor and Node store stand below; what another class has is Any. --check writes nothing and fails when the stub
in the tree is another one. Needs gradsmith (installed or on PYTHONPATH) and ruff.
"""

import difflib
import inspect
import subprocess
import sys
from pathlib import Path

import gradsmith  # noqa: F401  the module needs the package's classes
from gradsmith import _cpu

TARGET = Path(__file__).resolve().parent.parent / "python" / "gradsmith" / "_cpu.pyi"
HEADER = '''"""Kernels and runtime of the CPU. Written by .ci/stubs.py from the compiled module."""

from typing import Any

import numpy as np
'''
CLASSES = {
    "TensorBase": {
        "data": "np.ndarray",
        "_k": "Any  # the kernel module of its device",
        "_ver": "Version  # [0] is the number of changes of the memory, shared by its views",
        "_rg": "bool  # requires a gradient",
        "_node": "Any  # what made it; None for a leaf",
        "_idx": "int  # which output of the node",
        "_at": "int  # version at which the node is valid",
        "_grad": "Any",
        "_acc": "Any  # the node that accumulates into a leaf",
        "_view": "bool",
    },
    "NodeBase": {
        "k": "Any",
        "needs": "tuple",
        "saved": "tuple",
        "_saved": "tuple | None",
        "edges": "tuple",
        "seq": "int",
        "outputs": "int",
        "hooks": "Any",
        "retain": "Any",
    },
}
METHODS = {
    "Version": (
        "def __getitem__(self, i: int) -> int: ...",
        "def __setitem__(self, i: int, value: int) -> None: ...",
    ),
    "CapturedBase": ("def __call__(self, *args: Any, **kwargs: Any) -> Any: ...",),
}
STORED = ("member_descriptor", "getset_descriptor")


def describe(name: str, cls: type) -> str:
    """Attributes (typed in CLASSES, else Any), properties and methods of a class."""
    known = CLASSES.get(name, {})
    lines = [f"{n}: {t}" for n, t in known.items()] + list(METHODS.get(name, ()))
    members = {n: v for n, v in vars(cls).items() if not n.startswith(("__", "_pybind11"))}
    if gone := sorted(set(known) - set(members)):
        raise SystemExit(f"stubs.py: the class {name} no longer has {', '.join(gone)}")
    for n, v in sorted(members.items()):
        if n in known:
            continue
        stored = type(v).__name__ in STORED or isinstance(v, property)
        lines.append(
            f"{n}: Any" if stored else f"def {n}(self, *args: Any, **kwargs: Any) -> Any: ..."
        )
    if type(cls) is not type:  # pybind11's: they can be made
        lines.insert(0, "def __init__(self, *args: Any, **kwargs: Any) -> None: ...")
    base = cls.__base__.__name__ if cls.__base__ else "object"
    head = f"class {name}:" if base.startswith(("object", "pybind11")) else f"class {name}({base}):"
    return head + "\n" + "".join(f"    {line}\n" for line in lines or ["..."])


def function(name: str, f: object) -> str:
    try:
        parameters = list(inspect.signature(f).parameters.values())  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return f"def {name}(*args: Any, **kwargs: Any) -> Any: ...\n"
    parts = []
    for i, p in enumerate(parameters):
        if p.kind is p.VAR_KEYWORD:
            parts.append(f"**{p.name}: Any")
        elif p.kind is p.VAR_POSITIONAL:
            parts.append(f"*{p.name}: Any")
        elif p.default is p.empty:
            parts.append(f"{p.name}: Any")
        else:
            known = type(p.default) in (bool, int, float, str)
            kind = type(p.default).__name__ if known else "Any"
            parts.append(f"{p.name}: {kind} = {p.default!r}")
        last = i + 1 == len(parameters) or parameters[i + 1].kind is not p.POSITIONAL_ONLY
        if p.kind is p.POSITIONAL_ONLY and last:
            parts.append("/")
    return f"def {name}({', '.join(parts)}) -> Any: ...\n"


def generate() -> str:
    text = HEADER
    members = {n: v for n, v in vars(_cpu).items() if not n.startswith("__")}
    for name, value in members.items():
        if isinstance(value, type):
            text += "\n" + describe(name, value)
    text += "\n"
    for name, value in sorted(members.items()):
        if callable(value) and not isinstance(value, type):
            text += function(name, value)
        elif not isinstance(value, type):
            text += f"{name}: {type(value).__name__}\n"
    command = ["ruff", "format", "--stdin-filename", str(TARGET), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def main() -> int:
    text = generate()
    if "--check" not in sys.argv:
        TARGET.write_text(text)
        return 0
    old = TARGET.read_text()
    if old != text:
        lines = difflib.unified_diff(
            old.splitlines(), text.splitlines(), "in the tree", "from the module", lineterm="", n=0
        )
        print("\n".join(lines))
        print(f"{TARGET.name} does not describe the module: run .ci/stubs.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
