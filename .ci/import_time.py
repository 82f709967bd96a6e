"""Prints the time of `import gradsmith` beside NumPy's, medians over fresh processes in turn.

usage: import_time.py [--check]

--check fails when it is more than NumPy's + 30 ms of processor time; not for machines that others use, too.
"""

import os
import statistics
import sys
import time

PAIRS = 21


def seconds(module: str) -> tuple[float, float]:
    start = time.perf_counter()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", f"import {module}"], os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"import {module} failed")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start


def main() -> int:
    pairs = [(seconds("numpy"), seconds("gradsmith")) for _ in range(PAIRS + 1)][1:]
    for i, kind in enumerate(("processor", "wall")):
        numpy, ours = (statistics.median(p[j][i] for p in pairs) * 1e3 for j in (0, 1))
        extra = statistics.median(b[i] - a[i] for a, b in pairs) * 1e3
        print(f"{kind} time: numpy {numpy:.0f} ms, gradsmith {ours:.0f} ms, {extra:.1f} ms more")
        if i == 0:
            limit = extra
    return "--check" in sys.argv and limit > 30


if __name__ == "__main__":
    sys.exit(main())
