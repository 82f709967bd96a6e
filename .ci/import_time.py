"""Checks the time of `import gradsmith`: at most NumPy's import + 30 ms, medians of fresh processes in turn."""

import statistics
import subprocess
import sys
import time


def seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main() -> int:
    pairs = [(seconds("numpy"), seconds("gradsmith")) for _ in range(21)]
    numpy, ours = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    extra = statistics.median(b - a for a, b in pairs)
    print(f"numpy {numpy * 1e3:.0f} ms, gradsmith {ours * 1e3:.0f} ms, {extra * 1e3:.1f} ms more")
    return extra > 0.030


if __name__ == "__main__":
    sys.exit(main())
