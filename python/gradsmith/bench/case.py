"""What a benchmark case is. Each family lists its own in `cases_<family>.py` as `cases(quick)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Case"]


@dataclass
class Case:
    """One measured piece of work.

    name: what and which shape, for instance "matmul 512x512x512 nt". setup(peers) -> runs: makes the
    inputs once and returns one callable without arguments per library, "gradsmith" and those of `peers`
    ("numpy", "torch", "jax", "tensorflow") that can do it; each returns its result (array, tensor or a
    tuple of them), which is compared with ours before anything is timed. A callable must do the work
    at each call, at the library's best setting, and wait for it to be done. flops / bytes: operations and bytes that the
    work needs at least; whichever bounds it is the figure that is printed. passes: of work that does not read as much as it
    writes, the bytes read and written by each pass, for a share of loops of the same mix. rtol: of the comparison,
    relative to the largest element. extra: measured after the timing, figures by name; printed below the
    case and written into its record.
    """

    name: str
    setup: Callable[[set[str]], dict[str, Callable[[], Any]]]
    flops: float = 0.0
    bytes: float = 0.0
    rtol: float = 1e-4
    dtype: str = "float32"
    extra: Callable[[], dict[str, float]] | None = None
    passes: tuple[tuple[float, float], ...] = ()
