"""A pass of captured steps, off and on, call by call in one process.

    python bench/pass_turns.py prepared_weights --infer --threads 2 lenet@8 mlp@512
    python bench/pass_turns.py prepared_updates lenet@64 convs64@8

Nets of gradsmith.bench.steps by name, or convsC: three convolutions 3 x 3 of C channels on maps of 8 x 8
and a linear layer, AdamW; @ the batch. Both programs are made anew five times, because a program's luck with
its addresses is worth a few percent; the median of the five ratios (off / on) is printed first.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

import gradsmith as gs
import gradsmith.nn as nn
from gradsmith.bench.steps import with_gradsmith
from gradsmith.bench.steps.nets import NETS


def convs(channels: int, batch: int, infer: bool) -> Callable[[], Any]:
    gs.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(3):
        layers += [nn.Conv2d(channels if i else 3, channels, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 64, 10))
    opt = gs.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = gs.randn(batch, 8, 8, 3), gs.tensor(np.arange(batch) % 10)

    def step(x: Any, y: Any) -> Any:
        if infer:
            with gs.no_grad():
                return model(x)
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss

    captured = gs.capture(step)
    return lambda: captured(x, y)


def made(case: str, infer: bool, passes: dict[str, bool], threads: int) -> Callable[[], Any]:
    name, batch = case.split("@")
    plain = gs.capture

    def capture(fn: Any = None, **more: Any) -> Any:
        return plain(fn, **{**more, "passes": passes})

    with mock.patch.object(gs, "capture", capture):
        if name.startswith("convs"):
            return convs(int(name[5:]), int(batch), infer)
        return with_gradsmith.build(NETS[name], int(batch), not infer, "captured", threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="of the pass")
    parser.add_argument("cases", nargs="+", help="net@batch")
    parser.add_argument("--infer", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each case")
    args = parser.parse_args()
    gs.set_num_threads(args.threads)
    for case in args.cases:
        ratios, all_times = [], ([], [])
        for turn in range(5):
            # the one that is made first is not always the same
            programs: dict[bool, Callable[[], Any]] = {}
            for on in (turn % 2 == 0, turn % 2 == 1):
                programs[on] = made(case, args.infer, {args.name: on}, args.threads)
            for f in programs.values():
                for _ in range(6):
                    f()
            start = time.perf_counter()
            programs[True]()
            calls = max(1, min(20, int(2e-3 / (time.perf_counter() - start))))
            times: tuple[list[float], list[float]] = ([], [])
            end = time.perf_counter() + args.seconds / 5
            while time.perf_counter() < end:
                for on in (len(times[0]) % 2 == 0, len(times[0]) % 2 == 1):
                    start = time.perf_counter()
                    for _ in range(calls):
                        programs[on]()
                    times[on].append((time.perf_counter() - start) / calls)
            n = min(len(times[0]), len(times[1]))
            ratios.append(float(np.median(np.array(times[0][:n]) / np.array(times[1][:n]))))
            for to, new in zip(all_times, times):
                to += new
        off, on = (1e3 * np.median(t) for t in all_times)
        each = " ".join(f"{r:.3f}" for r in sorted(ratios))
        print(
            f"{case:14s} {np.median(ratios):.3f}x  off {off:.4f} ms, on {on:.4f} ms  ({each})",
            flush=True,
        )


if __name__ == "__main__":
    main()
