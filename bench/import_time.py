"""What `import gradsmith` takes over `import numpy`: fresh processes that take turns, medians.

python bench/import_time.py --turns 30 --against torch,jax
Run it on an installed wheel: an editable install looks for changes at each import.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds_of(module: str) -> float:
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--against", default="", help="other modules, separated by commas")
    args = parser.parse_args()
    modules = ["gradsmith", *[m for m in args.against.split(",") if m]]
    for m in ["numpy", *modules]:
        seconds_of(m)  # fills the caches of files and of compiled modules
    base: list[float] = []
    over: dict[str, list[float]] = {m: [] for m in modules}
    for _ in range(args.turns):
        base.append(seconds_of("numpy"))
        for m in modules:
            over[m].append(seconds_of(m) - base[-1])
    print(f"numpy       {1e3 * statistics.median(base):7.1f} ms a process")
    for m in modules:
        print(f"{m:11} {1e3 * statistics.median(over[m]):+7.1f} ms")


if __name__ == "__main__":
    main()
