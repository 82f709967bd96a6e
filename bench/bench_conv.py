"""Convolutions against PyTorch, paired in one run: python bench/bench_conv.py [--threads 1 2] [--rounds 8].

Each pair is checked equal first, then timed in alternating rounds; the smallest time counts. On one
thread it is the thread's own processor time, so that a busy machine spoils less of it.
"""

import argparse
import time

import numpy as np

import gradsmith as gs
from gradsmith import _cpu as k
from gradsmith.bench.cases_conv import cases


def peak(threads: int, clock) -> float:
    """Operations a second of the register-only FMA loop."""
    best = 1e9
    for _ in range(5):
        t = clock()
        _, flops = k.probe_fma("float32", threads, 100_000)
        best = min(best, (clock() - t) / flops)
    return 1 / best


def flat(result) -> list[np.ndarray]:
    items = result if isinstance(result, (tuple, list)) else (result,)
    return [np.asarray(a) for a in items]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--rounds", type=int, default=8)
    p.add_argument("--quick", action="store_true")
    p.add_argument("--only", default="")
    p.add_argument("--against", default="torch")
    a = p.parse_args()
    peers = set(a.against.split(","))
    jobs = []
    for case in cases(a.quick):
        if a.only not in case.name:
            continue
        runs = case.setup(peers)
        ours = flat(runs["gradsmith"]())
        for name, fn in runs.items():
            for x, y in zip(ours, flat(fn()), strict=True):
                error = np.abs(x - y).max() / np.abs(x).max()
                assert x.shape == y.shape and error < case.rtol, (case.name, name, error)
        jobs.append((case, runs))
    for threads in a.threads:
        gs.set_num_threads(threads)
        if "torch" in peers:
            import torch

            torch.set_num_threads(threads)
        clock = time.thread_time if threads == 1 else time.perf_counter
        best = [dict.fromkeys(runs, 1e9) for _, runs in jobs]
        top = 0.0
        for _ in range(a.rounds):
            top = max(top, peak(threads, clock))
            for (_, runs), least in zip(jobs, best, strict=True):
                for name, fn in runs.items():
                    fn()
                    end = time.perf_counter() + 0.05
                    while True:
                        t = clock()
                        fn()
                        least[name] = min(least[name], clock() - t)
                        if time.perf_counter() > end:
                            break
        print(f"{threads} thread(s), FMA peak {top / 1e9:.0f} GF/s, {k.isa()}")
        for (case, _), least in zip(jobs, best, strict=True):
            t = least["gradsmith"]
            line = f"{case.name:52s} {t * 1e3:8.3f} ms {case.flops / t / 1e9:7.1f} GF/s {case.flops / t / top:6.1%}"
            for name, other in least.items():
                if name != "gradsmith":
                    line += f"   {name} {other * 1e3:8.3f} ms ({other / t:.2f}x)"
            print(line, flush=True)


if __name__ == "__main__":
    main()
