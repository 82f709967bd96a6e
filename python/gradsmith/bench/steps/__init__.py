"""Whole training steps and inference of the same networks, against other libraries.

    gradsmith bench steps [NET...] [--against torch,jax,tensorflow,onnxruntime] [--threads 1,2]
                          [--mode train,infer] [--batch N,... | --scaling] [--ops] [--precision bfloat16]
                          [--json F] [--plot F]

Every library runs in a process of its own, which finds exactly the threads and cores asked for, at its
best setting: each variant of a peer (PyTorch eager and compiled, with and without a malloc that keeps its
pages; TensorFlow as a graph and through XLA) is tried first, the fastest one takes part. All start from the
same weights and the same batch; the losses of the first three steps must agree to 1e-3 before anything is
timed. Then the libraries take turns, with a pause so that nobody's spinning threads disturb the next, and
the median of all steps of all rounds is reported. Ratio: the time of the fastest peer over ours.

With --precision bfloat16 ours runs under `gs.autocast`; our own float32 takes part as the peer "float32", and
losses must agree to 2e-2.

``--scaling`` takes batches of 8 to 512. ``--ops`` adds a table of where the time of our training step goes
(where.py); ``--plot`` draws the ratios and that. The tables of docs/performance.md are those of
``gradsmith bench steps --mode train,infer --ops --json F --plot F``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, ClassVar

from .. import check_outputs, peers_of
from . import where
from .nets import NETS, Floor

__all__ = ["main"]

PEERS = ("torch", "jax", "tensorflow", "onnxruntime")
VARIANTS = {
    "gradsmith": ("captured", "eager"),
    "gradsmith bf16": ("captured bf16", "eager bf16"),
    "float32": ("captured", "eager"),
    "torch": ("eager", "compile", "eager+malloc", "compile+malloc"),
    "jax": ("jit",),
    "tensorflow": ("graph", "xla"),
    "onnxruntime": ("all optimizations",),
}
# glibc keeps freed pages: large blocks from the heap, and the heap is never trimmed
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
BATCHES = (8, 32, 128, 512)


class Worker:
    """A library in its own process."""

    live: ClassVar[set[Worker]] = set()

    def __init__(self, library: str, variant: str, net: str, mode: str, batch: int, threads: int):
        self.library, self.variant = library, variant
        env = dict(os.environ)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            env[name] = str(threads)
        env["GRADSMITH_NUM_THREADS"] = str(threads)
        env["TF_NUM_INTRAOP_THREADS"] = str(threads)
        env.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        env.setdefault("JAX_PLATFORMS", "cpu")
        if variant.endswith("malloc"):
            env.update(MALLOC)
        cores: set[int] | None = None
        if hasattr(os, "sched_getaffinity"):
            cores = set(sorted(os.sched_getaffinity(0))[:threads])
        command = [sys.executable, "-m", "gradsmith.bench.steps.worker"]
        side = "gradsmith" if library == "float32" else library
        command += [side, variant, net, mode, str(batch), str(threads)]
        before = os.sched_getaffinity(0) if cores else None
        if cores:
            os.sched_setaffinity(0, cores)  # the child inherits it
        try:
            self.process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            if before:
                os.sched_setaffinity(0, before)
        self.live.add(self)
        answer = self._answer()
        self.error: str | None = answer.get("error")
        self.first: list[float] = answer.get("first", [])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate()
            last = errors.strip().splitlines()[-1:] or ["no message"]
            return {"error": f"the process ended: {last[0]}"}
        return json.loads(line)

    def times(self, seconds: float) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"seconds": seconds}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            self.error = answer["error"]
        return answer.get("times", [])

    def close(self) -> None:
        self.live.discard(self)
        self.process.kill()
        self.process.communicate()


def _agree(mine: list[float], theirs: list[float], mode: str, within: float) -> str | None:
    """Losses within 1e-3, or 2e-2 of bfloat16; outputs within that of the largest."""
    scale = max(map(abs, mine), default=1.0)
    error = max(abs(a - b) for a, b in zip(mine, theirs)) / max(scale, 1e-30)
    if len(mine) == len(theirs) and error <= within:
        return None
    what = "losses" if mode == "train" else "outputs"
    return f"its {what} differ from ours by {error:.1e}"


def _fastest(
    library: str,
    ours: Worker | None,
    job: tuple[str, str, int, int],
    seconds: float,
    precision: str,
) -> tuple[Worker | None, dict[str, Any]]:
    """The best variant of a library, still running, and the trials' medians."""
    best: Worker | None = None
    best_time, trials = float("inf"), dict[str, Any]()
    rounds = library == "gradsmith" and precision == "bfloat16"
    for variant in VARIANTS["gradsmith bf16" if rounds else library]:
        worker = Worker(library, variant, *job)
        problem = worker.error
        if problem is None and ours is not None:
            within = 1e-3 if precision == "float32" else 2e-2
            problem = _agree(ours.first, worker.first, job[1], within)
        if problem is None:
            t = statistics.median(worker.times(seconds) or [float("inf")])
            problem = worker.error
        if problem is not None:
            trials[variant] = problem
            worker.close()
            continue
        trials[variant] = t
        if t < best_time:
            if best is not None:
                best.close()
            best, best_time = worker, t
        else:
            worker.close()
    return best, trials


def compare(
    net: str,
    mode: str,
    batch: int,
    threads: int,
    peers: list[str],
    rounds: int,
    seconds: float,
    precision: str = "float32",
) -> dict[str, Any]:
    """One line of the table, as a record."""
    job = (net, mode, batch, threads)
    floor = Floor(NETS[net], batch)
    record: dict[str, Any] = {"net": net, "mode": mode, "batch": batch, "threads": threads}
    record["precision"] = precision
    record["gflop"] = (floor.step_flops if mode == "train" else floor.flops) / 1e9
    ours, trials = _fastest("gradsmith", None, job, seconds, precision)
    record["trials"] = {"gradsmith": trials}
    if ours is None:
        record["failed"] = trials
        return record
    everybody = [ours]
    try:
        for peer in peers:
            if peer == "onnxruntime" and mode == "train":
                continue
            worker, record["trials"][peer] = _fastest(peer, ours, job, seconds, precision)
            if worker is not None:
                everybody.append(worker)
        times: dict[str, list[float]] = {w.library: [] for w in everybody}
        for _ in range(rounds):
            for w in everybody:
                time.sleep(0.15)  # until the last one's threads sleep
                times[w.library] += w.times(seconds)
    finally:
        for w in everybody:
            w.close()
    record["seconds"] = {name: statistics.median(t) for name, t in times.items() if t}
    record["variant"] = {w.library: w.variant for w in everybody}
    others = {n: s for n, s in record["seconds"].items() if n != "gradsmith"}
    if others and "gradsmith" in record["seconds"]:
        record["fastest_peer"] = min(others, key=others.__getitem__)
        record["ratio"] = min(others.values()) / record["seconds"]["gradsmith"]
    return record


def _line(r: dict[str, Any], peers: list[str]) -> str:
    head = f"{r['net']:<10} {r['mode']:<6} {r['batch']:>5} {r['threads']:>3}"
    if "seconds" not in r:
        return f"{head}  failed: {r['failed']}"
    cells = []
    for name in ("gradsmith", *peers):
        s = r["seconds"].get(name)
        cells.append(f"{'-':>12}" if s is None else f"{s * 1e3:12.4f}")
    ratio = f"{r['ratio']:7.2f}x {r['fastest_peer']}" if "ratio" in r else ""
    speed = r["gflop"] / r["seconds"]["gradsmith"]
    return f"{head} {' '.join(cells)} {speed:9.1f} {ratio}"


def _plot(records: list[dict[str, Any]], ops: list[dict[str, Any]], path: str) -> None:
    from matplotlib.figure import Figure

    from .where import plot

    rows = [r for r in records if "seconds" in r]
    names = [n for n in ("gradsmith", "float32", *PEERS) if any(n in r["seconds"] for r in rows)]
    fig = Figure(figsize=(max(7, 1.4 * len(rows)), 9 if ops else 4.5))
    both = fig.subplots(2 if ops else 1, squeeze=False)
    ax = both[0][0]
    if ops:
        plot(both[1][0], ops)
    width = 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        at = [j + i * width for j, r in enumerate(rows) if name in r["seconds"]]
        mine = [r for r in rows if name in r["seconds"]]
        ax.bar(
            at, [r["seconds"][name] / r["seconds"]["gradsmith"] for r in mine], width, label=name
        )
    ax.set_xticks([j + 0.4 - width / 2 for j in range(len(rows))])
    labels = [f"{r['net']}\n{r['mode']} {r['batch']}, {r['threads']} t" for r in rows]
    ax.set_xticklabels(labels, fontsize=8)
    ax.set_ylabel("time relative to gradsmith")
    ax.set_yscale("log")
    ax.legend()
    ax.grid(True, axis="y", alpha=0.3)
    fig.savefig(path, dpi=120, bbox_inches="tight")


def _numbers(text: str) -> list[int]:
    return [int(t) for t in text.split(",") if t]


def main(argv: list[str] | None = None) -> int:
    """The command `gradsmith bench steps`; returns the exit status."""
    try:
        return _main(argv)
    finally:  # after Ctrl-C, too: threads of a worker would spin on
        for worker in list(Worker.live):
            worker.close()


def _main(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="gradsmith bench steps",
        description="Whole training steps and inference, against other libraries. Each library runs in "
        "its own process, at the fastest of its settings; they take turns, the figures are medians.",
    )
    add = parser.add_argument
    add("net", nargs="*", help=f"any of: {', '.join(NETS)} (default: all)")
    add(
        "--against",
        default=",".join(PEERS),
        help="peers, comma-separated, or none (default: %(default)s)",
    )
    add("--threads", default="1,2", help="thread counts, comma-separated (default: %(default)s)")
    add("--mode", default="train", help="train (default), infer, or both with a comma")
    add("--batch", help="batch sizes instead of each net's own, comma-separated; for scaling")
    add(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of gradsmith (default: float32)",
    )
    add("--scaling", action="store_true", help=f"batches of {', '.join(map(str, BATCHES))}")
    add("--ops", action="store_true", help="where the time of our training step goes, op by op")
    add("--rounds", type=int, default=5, help="turns of each library (default: %(default)s)")
    add("--seconds", type=float, default=1.0, help="of each turn (default: %(default)s)")
    add("--json", metavar="F", help="write the records here")
    add("--plot", metavar="F", help="write a picture here")
    args = parser.parse_args(argv)
    for name in args.net:
        if name not in NETS:
            parser.error(f"unknown net {name!r}; one of {', '.join(NETS)}")
    if args.scaling and args.batch:
        parser.error("--scaling chooses the batches; leave out --batch")
    modes = [m for m in args.mode.split(",") if m]
    if not modes or any(m not in ("train", "infer") for m in modes):
        parser.error("--mode must be train, infer, or train,infer")
    try:
        counts = _numbers(args.threads)
        batches = _numbers(args.batch) if args.batch else list(BATCHES) if args.scaling else None
    except ValueError:
        parser.error("--threads and --batch take whole numbers with commas between them")
    if not counts or min(counts) < 1 or (batches is not None and (not batches or min(batches) < 1)):
        parser.error("--threads and --batch must be at least 1")
    if max(counts) > 256:
        parser.error(f"--threads is {max(counts)}; expected 1 .. 256")
    if args.rounds < 1 or not args.seconds > 0:
        parser.error("--rounds must be at least 1 and --seconds more than 0")
    check_outputs(parser, args.json, args.plot)
    peers = ["float32"] if args.precision == "bfloat16" else []
    for p in peers_of(parser, args.against, PEERS):
        if importlib.util.find_spec(p) is None:
            print(f"{p} is not installed: left out", file=sys.stderr)
        else:
            peers.append(p)
    print(
        f"{'net':<10} {'mode':<6} {'batch':>5} {'thr':>3} {'gradsmith ms':>12} "
        + " ".join(f"{p + ' ms':>12}" for p in peers)
        + f" {'GFLOP/s':>9}   fastest peer / ours"
    )
    records = []
    for threads in counts:
        for net in args.net or NETS:
            for mode in modes:
                own = [NETS[net].batch] if mode == "train" else [1, NETS[net].batch]
                for batch in batches or own:
                    r = compare(
                        net, mode, batch, threads, peers, args.rounds, args.seconds, args.precision
                    )
                    records.append(r)
                    print(_line(r, peers), flush=True)
                    for name, trials in r["trials"].items():
                        for variant, t in trials.items():
                            if isinstance(t, str):
                                print(f"    {name} {variant}: {t}", file=sys.stderr)
    ops = []
    if (args.ops or args.plot) and "train" in modes:
        for net in args.net or NETS:
            for batch in (batches or [NETS[net].batch]) if args.ops else [NETS[net].batch]:
                ops.append(where.where(net, batch, max(counts), args.precision))
                if args.ops:
                    print("\n" + "\n".join(where.lines(ops[-1])), flush=True)
    if args.json:
        from .. import versions
        from ... import _cpu

        out = {
            "machine": dict(_cpu.machine()),
            "isa": _cpu.isa(),
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions([p for p in peers if p != "float32"]),
            "records": records,
            "ops": ops,
        }
        with open(args.json, "w") as f:
            json.dump(out, f, indent=1)
    if args.plot:
        _plot(records, ops, args.plot)
    return 1 if any("failed" in r for r in records) else 0
