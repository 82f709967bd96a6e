"""Convolutions 3x3, stride 1, against PyTorch (oneDNN, channels last): processes of their own that take turns.

python bench/conv_turns.py --threads 2 --seconds 3 64@32 128@16
Channels @ pixels. Each turn is the median of --turn milliseconds of calls; printed are the medians over the turns
and the ratio PyTorch / ours of each turn: median and range. PyTorch's malloc is told to keep its pages. With
--autocast ours rounds to bfloat16 and PyTorch stays float32.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

KEEP = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def make(
    library: str, channels: int, size: int, batch: int, threads: int, autocast: bool
) -> dict[str, Any]:
    """Forward, and forward + backward, of one shape."""
    import numpy as np

    rng = np.random.default_rng(0)
    x, w, b, dy = (
        rng.standard_normal(s, dtype=np.float32)
        for s in (
            (batch, size, size, channels),
            (channels, 3, 3, channels),
            (channels,),
            (batch, size, size, channels),
        )
    )
    if library == "torch":
        import torch

        torch.set_num_threads(threads)
        tx, tw, tdy = (torch.from_numpy(a).permute(0, 3, 1, 2) for a in (x, w, dy))
        tb = torch.from_numpy(b)

        def forward() -> Any:
            with torch.no_grad():
                return torch.nn.functional.conv2d(tx, tw, tb, 1, 1)

        def both() -> Any:
            return forward(), torch.ops.aten.convolution_backward(
                tdy, tx, tw, [channels], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True] * 3
            )

    else:
        import gradsmith as gs
        from gradsmith import _cpu as k

        gs.set_num_threads(threads)
        x, w, b, dy = (k.copy(a) for a in (x, w, b, dy))
        cast = gs.autocast(enabled=autocast)

        @cast
        def forward() -> Any:
            return k.conv(2, x, w, b, 1, 1, 1, 1, False)

        @cast
        def both() -> Any:
            return forward(), k.conv_backward(2, x, dy, w, 1, 1, 1, 1, True, True, True)

    return {"forward": forward, "forward + backward": both}


def serve(library: str, batch: int, threads: int, turn: float, autocast: bool) -> None:
    print("ready", flush=True)
    current: tuple = ()
    functions: dict[str, Any] = {}
    for line in sys.stdin:
        channels, size, what = line.rstrip("\n").split(" ", 2)
        if current != (channels, size):
            current = (channels, size)
            functions = make(library, int(channels), int(size), batch, threads, autocast)
        f = functions[what]
        f()
        times: list[float] = []
        end = time.perf_counter() + turn / 1e3
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            f()
            times.append(time.perf_counter() - start)
        print(statistics.median(times), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3, help="of each shape and direction")
    parser.add_argument("--turn", type=float, default=25, help="milliseconds")
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.serve:
        serve(a.serve, a.batch, a.threads, a.turn, a.autocast)
        return
    env = {**os.environ, **KEEP, "OMP_NUM_THREADS": str(a.threads)}
    peers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--serve", name, *sys.argv[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for name in ("gradsmith", "torch")
    }
    for p in peers.values():
        assert p.stdout and p.stdout.readline() == "ready\n"
    for shape in a.shapes:
        channels, size = shape.split("@")
        for what in ("forward", "forward + backward"):
            times: dict[str, list[float]] = {name: [] for name in peers}
            end = time.perf_counter() + a.seconds
            while len(times["torch"]) < 2 or time.perf_counter() < end:
                for name, p in peers.items():
                    assert p.stdin and p.stdout
                    p.stdin.write(f"{channels} {size} {what}\n")
                    p.stdin.flush()
                    times[name].append(float(p.stdout.readline()))
                time.sleep(0.03)  # OpenMP's threads spin after their work
            ratios = sorted(t / o for t, o in zip(times["torch"], times["gradsmith"], strict=True))
            print(
                f"{shape:>7} {what:<18} {a.threads} threads: ours "
                f"{statistics.median(times['gradsmith']) * 1e3:.3f} ms, PyTorch "
                f"{statistics.median(times['torch']) * 1e3:.3f} ms, {statistics.median(ratios):.2f}x "
                f"({ratios[0]:.2f}-{ratios[-1]:.2f}, {len(ratios)} turns)",
                flush=True,
            )
    for p in peers.values():
        p.kill()


if __name__ == "__main__":
    main()
