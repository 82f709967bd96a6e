"""Direct 3x3 convolutions, forward, as a share of the FMA peak that is measured in turn with them.

python bench/direct_peak.py --threads 1 --seconds 20
Batch 32 except for the last shape; operations are counted with the products that padding saves. Printed are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import gradsmith as gs
from gradsmith import _cpu

SHAPES = ((32, 32, 32), (64, 32, 32), (128, 16, 32), (256, 8, 32), (512, 4, 32), (512, 8, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    gs.set_num_threads(args.threads)
    _cpu.conv_force("direct")
    rng = np.random.default_rng(0)
    arrays = [
        [
            _cpu.copy(rng.standard_normal(shape, dtype=np.float32))
            for shape in ((n, side, side, c), (c, 3, 3, c), (c,))
        ]
        for c, side, n in SHAPES
    ]
    shares: list[list[float]] = [[] for _ in SHAPES]
    end = time.perf_counter() + args.seconds
    while time.perf_counter() < end or not shares[-1]:
        for (c, side, n), (x, w, b), share in zip(SHAPES, arrays, shares, strict=True):
            seconds, operations = _cpu.probe_fma("float32", args.threads, 60_000)
            before = time.perf_counter()
            _cpu.conv(2, x, w, b, (1, 1), (1, 1), (1, 1), 1, False)
            rate = 18 * c * c * n * side * side / (time.perf_counter() - before)
            share.append(rate / (operations / seconds))
    for (c, side, n), share in zip(SHAPES, shares, strict=True):
        print(
            f"{c:3} @ {side:2}, batch {n:2}: {statistics.median(share):.0%} of {len(share)} turns"
        )


if __name__ == "__main__":
    main()
