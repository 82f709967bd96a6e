"""Where the time of our captured step goes, op by op, against the floor of operations and bytes.

Kernels are timed in their program, with a barrier around each. The floor of a kernel is the longer of its
operations at the FMA peak and its bytes at the speed of a copy of as many bytes, both measured in the same
process; operations are those of the direct algorithm, so a Winograd convolution may lie below its floor.
"""

from __future__ import annotations

from typing import Any

__all__ = ["lines", "plot", "where"]


def where(
    net: str, batch: int, threads: int, precision: str = "float32", runs: int = 30
) -> dict[str, Any]:
    """The kernels of one training step, those of one name together, the longest first."""
    import gradsmith as gs

    from .. import _Peaks
    from . import with_gradsmith
    from .nets import NETS

    with gs.threads(threads):
        variant = "captured-bf16" if precision == "bfloat16" else "captured"
        step = with_gradsmith.build(NETS[net], batch, True, variant, threads)
        for _ in range(5):
            step()
        native = step.captured._programs[-1].native  # type: ignore[attr-defined]
        native.profile(True)
        for _ in range(3):
            step()
        native.profile(True)  # from zero again
        for _ in range(runs):
            step()
        seconds = [t / runs for t in native.times()]
        native.profile(False)
        peaks = _Peaks(threads)
        flop_peak = peaks.flops("float32")
        speeds: dict[int, float] = {}  # of a copy, by the power of two of its bytes
        groups: dict[str, dict[str, Any]] = {}
        for (name, *_), t, (flops, nbytes) in zip(native.listing(), seconds, native.work()):
            size = max(int(nbytes), 1).bit_length()
            if size not in speeds:
                speeds[size] = peaks.copy(1 << size)
            g = groups.setdefault(
                name,
                {
                    "name": name,
                    "count": 0,
                    "seconds": 0.0,
                    "flops": 0.0,
                    "bytes": 0.0,
                    "floor": 0.0,
                },
            )
            g["count"] += 1
            g["seconds"] += t
            g["flops"] += flops
            g["bytes"] += nbytes
            g["floor"] += max(flops / flop_peak, nbytes / speeds[size])
    rows = sorted(groups.values(), key=lambda g: -g["seconds"])
    total = sum(g["seconds"] for g in rows)
    for g in rows:
        g["share"] = g["seconds"] / total
        g["share_of_fma_peak"] = g["flops"] / g["seconds"] / flop_peak if g["seconds"] else 0.0
        g["share_of_floor"] = g["floor"] / g["seconds"] if g["seconds"] else 0.0
    return {
        "net": net,
        "batch": batch,
        "threads": threads,
        "precision": precision,
        "seconds": total,
        "fma_peak_gflops": flop_peak / 1e9,
        "ops": rows,
    }


def lines(r: dict[str, Any]) -> list[str]:
    """The table of one net."""
    out = [
        f"{r['net']}, batch {r['batch']}, {r['threads']} threads, {r['precision']}: {r['seconds'] * 1e3:.3f} ms of "
        f"kernels, float32's FMA peak {r['fma_peak_gflops']:.0f} GFLOP/s",
        f"  {'op':<32} {'count':>5} {'us':>10} {'share':>6} {'floor us':>10} {'of floor':>9} {'of FMA':>7} "
        f"{'GB/s':>7}",
    ]
    for g in r["ops"]:
        rate = g["bytes"] / g["seconds"] / 1e9 if g["seconds"] else 0.0
        out.append(
            f"  {g['name']:<32} {g['count']:>5} {g['seconds'] * 1e6:>10.1f} {g['share']:>6.1%} "
            f"{g['floor'] * 1e6:>10.1f} {g['share_of_floor']:>9.0%} {g['share_of_fma_peak']:>7.0%} {rate:>7.1f}"
        )
    return out


def plot(ax: Any, records: list[dict[str, Any]], most: int = 14) -> None:
    """For each net a stacked bar of its op times, and beside it that of their floors, as shares of the step."""
    shares: dict[str, float] = {}
    for r in records:
        for g in r["ops"]:
            shares[g["name"]] = shares.get(g["name"], 0.0) + g["share"]
    names = sorted(shares, key=lambda n: -shares[n])[:most]
    for i, name in enumerate([*names, "others"]):
        mine = [
            [g for g in r["ops"] if (g["name"] if g["name"] in names else "others") == name]
            for r in records
        ]
        color = "lightgrey" if name == "others" else f"C{i % 10}"
        for shift, key in ((-0.2, "seconds"), (0.2, "floor")):
            low = [
                sum(g[key] for g in r["ops"] if g["name"] in names[:i]) / r["seconds"]
                for r in records
            ]
            ax.bar(
                [k + shift for k in range(len(records))],
                [sum(g[key] for g in found) / r["seconds"] for found, r in zip(mine, records)],
                0.36,
                low,
                color=color,
                hatch="///" if 10 <= i < len(names) else None,
                edgecolor="white",
                linewidth=0.3,
                alpha=1.0 if key == "seconds" else 0.5,
                label=name if key == "seconds" else None,
            )
    ax.set_xticks(range(len(records)))
    ax.set_xticklabels([f"{r['net']}\n{r['batch']}, {r['threads']} t" for r in records], fontsize=8)
    ax.set_ylabel("share of the step (pale: the floor)")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.grid(True, axis="y", alpha=0.3)
