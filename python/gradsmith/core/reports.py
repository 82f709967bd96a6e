"""What a captured function tells of its programs: the report on one, and a replay compared with the function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _cpu
from . import random, trees
from .program import Kind
from .recording import CaptureError
from .tensor import Tensor, wrap
from .watch import Watch

if TYPE_CHECKING:
    from .capture import Captured


def report(c: Captured, runs: int) -> str:
    """See Captured.report."""
    p = c._last
    if p is None:
        return f"{c.name}: no program yet" + (f" ({c.reason})" if c.reason else "")
    # the arguments of the last call may be gone: zeros of their kind take their places
    made: list[Any] = []
    for a in p.arguments:
        if isinstance(a, Kind):
            a = wrap(np.zeros(a.shape, a.dtype), _cpu) if a.same is None else made[a.same]
        made.append(a)
    if not p.native.check(tuple(made)):
        return f"{c.name}: the program does not fit any more: {p.native.reason}"
    s = p.native.stats()
    saved = p.watch.snapshot()
    times: list[float] = []
    faults = None
    try:
        p.native.replay()  # gives up the gradients that the snapshot holds
        taken = p.native.stats()["pool_allocations"]
        for _ in range(3):  # the least counts: other threads of the process may fault too
            start = _page_faults()
            for _ in range(runs):
                p.native.replay()
            if start is not None:
                now = (_page_faults() or 0) - start
                faults = now if faults is None else min(faults, now)
        p.native.profile(True)
        for _ in range(runs):
            p.native.replay()
        times = p.native.times()
    finally:
        p.native.profile(False)
        p.watch.restore(saved)
    taken = p.native.stats()["pool_allocations"] - taken
    lines = [
        f"{c.name}: {s['steps']} operations on {s['threads']} threads, {s['barriers']} barriers, "
        f"arena {s['arena_bytes']} bytes ({s['unshared_bytes']} without sharing), scratch "
        f"{s['scratch_bytes']}, {s['replays']} replays, {s['allocations']} new result arrays",
        f"a replay: {taken / (4 * runs):g} pool allocations"
        + ("" if faults is None else f", {faults / runs:g} page faults"),
        f"{'operation':32s} {'threads':>8s} {'barrier':>8s} {'us':>9s}",
    ]
    for (name, nt, owner, barrier, _, note), t in zip(p.native.listing(), times):
        where = str(nt) if nt > 1 else f"#{owner}"
        lines.append(
            f"{name:32s} {where:>8s} {'yes' if barrier else '':>8s} {t / runs * 1e6:9.2f}"
            + (f"  {note}" if note else "")
        )
    lines.append(f"{'sum':32s} {'':8s} {'':8s} {sum(times) / runs * 1e6:9.2f}")
    return "\n".join(lines)


def verify(c: Captured, args: tuple, kwargs: dict) -> int:
    """See Captured.verify."""
    if c._last is None:
        raise CaptureError(f"verify: {c.name} has no program yet; call it three times first")
    leaves: list[Any] = []
    trees.flatten((args, kwargs), leaves)
    watch = Watch(c.fn, leaves)
    saved, state = watch.snapshot(), random.state()
    arrays = [x.data if isinstance(x, Tensor) else x for x in leaves]
    given = [a for a in arrays if isinstance(a, np.ndarray)]
    before = [a.copy() for a in given]

    def restore() -> None:
        watch.restore(saved)
        random.set_state(state)
        for a, old in zip(given, before):
            if a.flags.writeable:
                a[...] = old

    try:
        expected = _state_of(c.fn(*args, **kwargs), watch, given)
        restore()
        replays = sum(p.native.stats()["replays"] for p in c._programs)
        got = _state_of(c(*args, **kwargs), watch, given)
        if sum(p.native.stats()["replays"] for p in c._programs) == replays:
            raise CaptureError("verify: no program fits these arguments yet")
    finally:
        restore()
    for (name, a), (_, b) in zip(expected, got):
        if (a is None) != (b is None):
            raise AssertionError(f"verify: {name} is there in one of the two runs only")
        if a is not None and not _same(a, b):
            raise AssertionError(f"verify: {name} differs between function and replay")
    return len(expected)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bits, but for those of NaNs: which of its two operands' a sum keeps depends on their order,
    which eager execution leaves to the compiler."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.tobytes() == b.tobytes():
        return True
    if a.dtype.kind != "f":
        return False
    nan = np.isnan(a)
    return bool(np.array_equal(nan, np.isnan(b))) and a[~nan].tobytes() == b[~nan].tobytes()


def _state_of(out: Any, watch: Watch, given: list[np.ndarray]) -> list[tuple[str, Any]]:
    leaves: list[Any] = []
    trees.flatten(out, leaves)
    items: list[tuple[str, Any]] = [
        (f"result {i}", x.data.copy()) for i, x in enumerate(leaves) if isinstance(x, Tensor)
    ]
    items += [(f"argument {i}", a.copy()) for i, a in enumerate(given)]
    for name, t in watch.named():
        items.append((name, t.data.copy()))
    for t in watch.trainable:
        items.append((f"gradient of {t.shape}", None if t._grad is None else t._grad.data.copy()))
    return items


def _page_faults() -> int | None:
    """Minor page faults of this process so far; None where the system does not count them."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
