"""Writes python/gradsmith/_cpu.pyi, the type stub of the compiled module.

usage: stubs.py [--check]

pybind11-stubgen reads the signatures that the bindings declare; this shortens what it writes (any number is an
int or a float here, arrays are Any: the bindings check them) so that the stub says the same with every version of
pybind11. --check writes nothing and fails when the stub in the tree is another one. Needs gradsmith
(installed or on PYTHONPATH), pybind11-stubgen and ruff.
"""

import difflib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "python" / "gradsmith" / "_cpu.pyi"
HEADER = (
    '"""Kernels and runtime of the CPU. Written by .ci/stubs.py from the compiled module."""\n\n'
)
# what stubgen writes (without "typing.") -> what the stub says
SHORTER = (
    (r"(Supports(Int|Index) \| )*Supports(Int|Index)(?= \| Supports(Int|Index))? \| Supports(Int|Index)", "int"),
    (r"SupportsFloat \| SupportsIndex", "float"),
    (r"\bSupportsInt\b|\bSupportsIndex\b", "int"),
    (r"\bSupportsFloat\b", "float"),
    (r"(numpy|np)\.(typing\.)?(ndarray|NDArray|ArrayLike)(\[[^\n]*?\]\]|\[[^\n]*?\])?", "Any"),
    (r"types\.CapsuleType|CapsuleType|\bcapsule\b|\bhandle\b", "Any"),
    (r"collections\.abc\.", ""),
)  # fmt: skip


def generate() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "gradsmith._cpu", "-o", folder]
        command += ["--numpy-array-use-type-var", "--print-invalid-expressions-as-is"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if done.returncode:
            raise SystemExit(f"pybind11-stubgen failed:\n{done.stdout}{done.stderr}")
        text = Path(folder, "gradsmith", "_cpu.pyi").read_text()
    text = text.replace("typing.", "")
    text = re.sub(r'\A""".*?"""\n', "", text, count=1, flags=re.S)
    text = re.sub(r"^(from|import) .*\n", "", text, flags=re.M)
    text = re.sub(r"^__all__.*\n", "", text, flags=re.M)
    text = re.sub(r"^(\w+: [^=\n]+) = .*$", r"\1", text, flags=re.M)  # values differ by machine
    text = re.sub(r"^(\w+: [^#\n]+?) *#.*$", r"\1", text, flags=re.M)
    for pattern, short in SHORTER:
        text = re.sub(pattern, short, text)
    # stubs need no docstrings and no body: one line a function
    text = re.sub(r'\n +"""(?:[^"]|"(?!""))*"""', " ...", text)
    text = re.sub(r":\s*\n +\.\.\.", ": ...", text)
    names = {
        "collections.abc": ("Callable", "Iterable", "Iterator", "Mapping", "Sequence"),
        "typing": ("Any", "ClassVar", "Final", "overload"),
    }
    head = ""
    for module, candidates in names.items():
        used = [n for n in candidates if re.search(rf"\b{n}\b", text)]
        if used:
            head += f"from {module} import {', '.join(used)}\n"
    return formatted(HEADER + head + "\n" + text)


def formatted(text: str) -> str:
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
