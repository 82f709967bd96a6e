"""Microbenchmarks: every kernel family over documented shapes, against the machine's own peaks and peers.

    gradsmith bench [family...] [--against numpy,torch,jax,tensorflow] [--threads N] [--json F] [--plot F]
    gradsmith bench steps [net...]     (whole training steps and inference: see bench/steps)

Results are checked equal before timing. Libraries take turns within one run; the median of the rounds is
reported. The peaks (FMA loop, large copy) are measured beside each case, so a noisy machine shifts
both. Shares are of the FMA peak on the same number of threads for compute-bound cases and of the copy
bandwidth over the same number of bytes for memory-bound ones.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import pkgutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from .case import Case

__all__ = ["Case", "families", "main", "run_case", "versions"]

PEERS = ("numpy", "torch", "jax", "tensorflow")


def families() -> list[str]:
    """Names of the families that have cases."""
    return sorted(
        m.name.removeprefix("cases_")
        for m in pkgutil.iter_modules(__path__)
        if m.name.startswith("cases_")
    )


def cases_of(family: str, quick: bool = False) -> list[Case]:
    """The cases of one family."""
    return importlib.import_module(f"gradsmith.bench.cases_{family}").cases(quick)


def _arrays(x: Any) -> list:
    import numpy as np

    if isinstance(x, (tuple, list)):
        return [a for item in x for a in _arrays(item)]
    if x is None:
        return []
    if hasattr(x, "detach"):
        x = x.detach()
    return [np.asarray(x)]


def _check(name: str, ours: Any, theirs: Any, rtol: float) -> str | None:
    import numpy as np

    a, b = _arrays(ours), _arrays(theirs)
    if len(a) != len(b):
        return f"{len(a)} results against {len(b)}"
    for i, (x, y) in enumerate(zip(a, b)):
        if x.size != y.size:
            return f"result {i} has shape {x.shape} against {y.shape}"
        if x.size == 0:
            continue
        x64, y64 = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
        error = np.abs(x64 - y64).max() / max(float(np.abs(y64).max()), 1e-30)
        if not error <= rtol:
            return f"result {i} differs by {error:.2e} of its largest element (allowed {rtol:.0e})"
    return None


def _calibrate(fn: Callable[[], Any], seconds: float) -> int:
    fn()
    start = time.perf_counter()
    fn()
    once = max(time.perf_counter() - start, 1e-7)
    return max(1, int(seconds / once))


def _time(fn: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        fn()
    return (time.perf_counter() - start) / count


class _Peaks:
    """The machine's limits, measured again beside each case."""

    def __init__(self, threads: int):
        from .. import _cpu

        self.cpu = _cpu
        self.threads = threads
        self.buffers: dict[Any, tuple] = {}

    def flops(self, dtype: str) -> float:
        best = 0.0
        for _ in range(3):
            seconds, work = self.cpu.probe_fma(dtype, self.threads, 300_000)
            best = max(best, work / seconds)
        return best

    def copy(self, nbytes: float) -> float:
        """Bytes a second of a copy that moves about `nbytes` in all."""
        half = max(1 << 12, min(int(nbytes) // 2, 1 << 28)) // 64 * 64
        if half not in self.buffers:
            self.buffers.clear()
            pair = (self.cpu.empty([half], "uint8"), self.cpu.empty([half], "uint8"))
            pair[0].fill(1)
            pair[1].fill(2)
            self.buffers[half] = pair
        src, dst = self.buffers[half]
        best = 0.0
        repeat = max(3, min(200, int(5e7 / half)))
        for streaming in (False, True):
            for _ in range(repeat):
                best = max(best, 2 * half / self.cpu.probe_copy(src, dst, self.threads, streaming))
        return best

    def mix(self, read: float, written: float) -> float:
        """Seconds of a loop that reads and writes so many bytes, evenly mixed."""
        few, many = sorted((max(read, 1.0), max(written, 1.0)))
        times = max(1, min(64, round(many / few)))
        size = max(1 << 12, int((read + written) / (1 + times))) // 64 * 64
        key = (read, written)
        if key not in self.buffers:
            pair = tuple(self.cpu.empty([n], "uint8") for n in (size, size * times))
            for array in pair:
                array.fill(0)
            self.buffers[key] = pair if read <= written else pair[::-1]
        src, dst = self.buffers[key]
        best = min(
            self.cpu.probe_copy(src, dst, self.threads, streaming)
            for streaming in (False, True)
            for _ in range(max(3, min(100, int(2e7 / size / (1 + times)))))
        )
        return best * (read + written) / (size * (1 + times))


def run_case(
    case: Case, peers: set[str], threads: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """Checks and times one case; returns a JSON-able record."""
    record: dict[str, Any] = {
        "name": case.name,
        "flops": case.flops,
        "bytes": case.bytes,
        "dtype": case.dtype,
    }
    runs = case.setup(peers)
    ours = runs.pop("gradsmith")
    expect = ours()
    notes = {}
    for name in list(runs):
        try:
            problem = _check(name, expect, runs[name](), case.rtol)
        except Exception as error:  # a peer that cannot do it is reported, not fatal
            problem = f"{type(error).__name__}: {error}"
        if problem:
            notes[name] = problem
            if problem[:6] == "result":
                record["wrong"] = True
            del runs[name]
    everyone = {"gradsmith": ours, **runs}
    counts = {name: _calibrate(fn, seconds) for name, fn in everyone.items()}
    times: dict[str, list[float]] = {name: [] for name in everyone}
    peaks = _Peaks(threads)
    flop_peak, copy_peak, mix = [], [], []
    for _ in range(rounds):
        time.sleep(0.08)  # OpenBLAS, OpenMP and XLA threads spin for tens of milliseconds
        if case.flops:
            flop_peak.append(peaks.flops(case.dtype))
        if case.bytes:
            copy_peak.append(peaks.copy(case.bytes))
        if case.passes:
            mix.append(sum(peaks.mix(*each) for each in case.passes))
        for name, fn in everyone.items():
            time.sleep(0.08)
            fn()
            times[name].append(_time(fn, counts[name]))
    record["seconds"] = {name: statistics.median(t) for name, t in times.items()}
    record["best"] = {name: min(t) for name, t in times.items()}
    mine = record["seconds"]["gradsmith"]
    if case.flops:
        record["gflops"] = case.flops / mine / 1e9
        record["fma_peak_gflops"] = statistics.median(flop_peak) / 1e9
        record["share_of_fma_peak"] = record["gflops"] / record["fma_peak_gflops"]
    if case.bytes:
        record["gbytes"] = case.bytes / mine / 1e9
        record["copy_gbytes"] = statistics.median(copy_peak) / 1e9
        record["share_of_copy"] = record["gbytes"] / record["copy_gbytes"]
    if case.passes:
        record["share_of_mix"] = statistics.median(mix) / mine
    record["ratio"] = {
        name: s / mine for name, s in record["seconds"].items() if name != "gradsmith"
    }
    if case.extra is not None:
        record["extra"] = case.extra()
    if notes:
        record["notes"] = notes
    return record


def _line(r: dict[str, Any], peers: list[str]) -> str:
    s = r["seconds"]["gradsmith"]
    duration = f"{s * 1e6:9.1f} us" if s < 1e-3 else f"{s * 1e3:9.2f} ms"
    parts = [f"{r['name']:<46}", duration]
    if r.get("gflops") is not None and (
        not r["bytes"] or r["share_of_fma_peak"] >= r["share_of_copy"]
    ):
        parts.append(f"{r['gflops']:8.1f} GF/s {100 * r['share_of_fma_peak']:5.0f} % of FMA ")
    elif r.get("gbytes") is not None:
        parts.append(f"{r['gbytes']:8.1f} GB/s {100 * r['share_of_copy']:5.0f} % of copy")
        if "share_of_mix" in r:
            parts[-1] += f" {100 * r['share_of_mix']:4.0f} % of the same mix"
    else:
        parts.append(" " * 29)
    for p in peers:
        if p in r["ratio"]:
            parts.append(f"{r['ratio'][p]:7.2f}x")
        else:
            parts.append("wrong!  " if r.get("wrong") and p in r.get("notes", {}) else "      - ")
    return " ".join(parts)


_CHILD = "GRADSMITH_BENCH_THREADS"


def _again(argv: list[str], n: int) -> int:
    """Runs the same command in a fresh process in which every library finds n threads and n cores."""
    import subprocess

    env = dict(os.environ)
    env[_CHILD] = str(n)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        env[name] = str(n)
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    env.setdefault("JAX_PLATFORMS", "cpu")
    before = None
    if hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        if n < len(before):
            os.sched_setaffinity(0, sorted(before)[:n])  # the child inherits it
    try:
        # Through the command, which knows what to do about a closed pipe or a full disk.
        code = (
            "import sys; from gradsmith.cli import main; sys.exit(main(['bench', *sys.argv[1:]]))"
        )
        child = subprocess.Popen([sys.executable, "-c", code, *argv], env=env)
        try:
            return child.wait()
        except KeyboardInterrupt:  # a terminal sends it to both: the child says so and ends
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(1)
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(5)
            child.kill()
            raise
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


def _plot(records: list[dict[str, Any]], path: str, threads: int) -> None:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit(
            "gradsmith bench --plot: needs matplotlib; pip install 'gradsmith[plot]'"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = [r for r in records if r.get("gflops") and r.get("gbytes")]
    if not points:
        raise SystemExit("gradsmith bench --plot: no case with both operations and bytes was run")
    flop_peak = max(r["fma_peak_gflops"] for r in points)
    copy_peak = max(r["copy_gbytes"] for r in points)
    fig, ax = plt.subplots(figsize=(9, 6))
    x = [r["flops"] / r["bytes"] for r in points]
    lo, hi = min(x) / 2, max(max(x) * 2, flop_peak / copy_peak * 4)
    knee = flop_peak / copy_peak
    ax.plot([lo, knee, hi], [lo * copy_peak, flop_peak, flop_peak], "k-", lw=1)
    for family in sorted({r["family"] for r in points}):
        mine = [r for r in points if r["family"] == family]
        ax.plot(
            [r["flops"] / r["bytes"] for r in mine], [r["gflops"] for r in mine], "o", label=family
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("operations per byte")
    ax.set_ylabel("GFLOP/s")
    ax.set_title(f"roofline: {flop_peak:.0f} GFLOP/s, copy {copy_peak:.0f} GB/s, {threads} threads")
    ax.legend()
    ax.grid(True, which="both", alpha=0.3)
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)


def main(argv: list[str] | None = None) -> int:
    """The command `gradsmith bench`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="gradsmith bench",
        description="Microbenchmarks of the kernels. Results are checked equal before timing; the "
        "figures are medians, beside the machine's own peaks, measured in the same run.",
        epilog="whole training steps and inference, against other libraries: gradsmith bench steps --help",
    )
    parser.add_argument("family", nargs="*", help=f"any of: {', '.join(families())} (default: all)")
    parser.add_argument(
        "--against",
        default="numpy",
        help="peers, comma-separated: numpy,torch,jax,tensorflow or none (default: numpy)",
    )
    parser.add_argument(
        "--threads", type=int, default=None, help="threads for everybody (default: all there are)"
    )
    parser.add_argument("--filter", default="", help="only cases whose name holds this text")
    parser.add_argument("--list", action="store_true", help="name the cases, measure nothing")
    parser.add_argument(
        "--quick", action="store_true", help="small shapes, few rounds: a smoke test"
    )
    parser.add_argument("--rounds", type=int, default=None, help="rounds of the median (default 9)")
    parser.add_argument("--json", metavar="F", help="write the records here")
    parser.add_argument("--plot", metavar="F", help="write a roofline picture here")
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["steps"]:  # whole networks, each library in its own process
        from . import steps

        return steps.main(argv[1:])
    args = parser.parse_args(argv)

    known = families()
    chosen = args.family or known
    for f in chosen:
        if f not in known:
            parser.error(f"unknown family {f!r}; one of {', '.join(known)}")
    asked = peers_of(parser, args.against, PEERS)
    if args.threads is not None and not 1 <= args.threads <= 256:
        parser.error(f"--threads is {args.threads}; expected 1 .. 256")
    if args.rounds is not None and args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if args.list:
        names = [c.name for f in chosen for c in cases_of(f, args.quick) if args.filter in c.name]
        print(*names, sep="\n", end="\n" if names else "")
        return 0 if names else _no_case(args.filter)
    check_outputs(parser, args.json, args.plot)
    from .. import _cpu, get_num_threads, set_num_threads

    threads = args.threads or get_num_threads()
    if os.environ.get(_CHILD) != str(threads):
        # NumPy's BLAS reads its thread count when it is loaded, and it is loaded by now.
        return _again(list(argv), threads)
    set_num_threads(threads)
    peers = [p for p in asked if importlib.util.find_spec(p) is not None]
    for p in asked:
        if p not in peers:
            print(f"{p} is not installed: left out", file=sys.stderr)
    if "torch" in peers:
        import torch

        torch.set_num_threads(threads)
    rounds = args.rounds or (3 if args.quick else 9)
    seconds = 0.003 if args.quick else 0.03
    print(f"{_cpu.machine()['name']}, {_cpu.isa()}, {threads} threads; ratio = peer's time / ours")
    print(
        f"{'case':<46} {'median':>12} {'rate':>13} {'share':>15} "
        + " ".join(f"{p:>8}" for p in peers)
    )
    records = []
    status = 0
    for family in chosen:
        for case in cases_of(family, args.quick):
            if args.filter not in case.name:
                continue
            r = run_case(case, set(peers), threads, seconds, rounds)
            r["family"] = family
            records.append(r)
            print(_line(r, peers), flush=True)
            for what, figure in r.get("extra", {}).items():
                print(f"    {what}: {figure:.3g}", flush=True)
            for p, why in r.get("notes", {}).items():
                print(f"    {p}: {why}", file=sys.stderr)
            if r.get("wrong"):
                status = 1
    if not records:
        return _no_case(args.filter)
    if args.json:
        out = {
            "machine": dict(_cpu.machine()),
            "isa": _cpu.isa(),
            "threads": threads,
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(peers),
            "records": records,
        }
        with open(args.json, "w") as f:
            json.dump(out, f, indent=1)
    if args.plot:
        _plot(records, args.plot, threads)
    return status


def _no_case(text: str) -> int:
    print(f"gradsmith bench: no case's name holds {text!r} (see --list)", file=sys.stderr)
    return 2


def peers_of(parser: argparse.ArgumentParser, against: str, known: Sequence[str]) -> list[str]:
    """The libraries that --against names, each once; an unknown one ends the command."""
    asked = dict.fromkeys(p.strip() for p in against.split(","))
    for p in asked:
        if p and p != "none" and p not in known:
            parser.error(f"unknown peer {p!r}; one of {', '.join(known)} or none")
    return [p for p in asked if p in known]


def check_outputs(parser: argparse.ArgumentParser, records: str | None, plot: str | None) -> None:
    """Whether the files can be written is found out before minutes are spent on measuring."""
    for option, path in (("--json", records), ("--plot", plot)):
        if path is None:
            continue
        folder = os.path.dirname(os.path.abspath(path))
        if os.path.isdir(path):
            parser.error(f"{option} {path}: is a folder; expected a file name")
        if not os.path.isdir(folder):
            parser.error(f"{option} {path}: the folder {folder} does not exist")
        if os.path.exists(path) and not os.path.isfile(path):
            continue  # a pipe or a device: opened once only
        new = not os.path.exists(path)
        try:  # to open it is the only sure way to know
            with open(path, "ab"):
                pass
            if new:
                os.remove(path)
        except OSError as error:
            parser.error(f"{option} {path}: cannot be written ({error.strerror})")
    if plot is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        parser.error('--plot needs matplotlib: pip install "gradsmith[plot]"')
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if os.path.splitext(plot)[1].lstrip(".").lower() not in known:
        parser.error(f"--plot {plot}: the suffix must be one of {', '.join(sorted(known))}")


def versions(peers: list[str]) -> dict[str, str]:
    """Of gradsmith and of the peers."""
    from .._version import __version__

    return {
        "gradsmith": __version__,
        **{p: getattr(importlib.import_module(p), "__version__", "?") for p in peers},
    }
