"""Threads, memory, and what the library says of itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .. import _cpu
from .._version import __version__
from . import recording

__all__ = [
    "empty_cache",
    "get_conv_precision",
    "get_num_threads",
    "memory_stats",
    "set_conv_precision",
    "set_num_threads",
    "show_config",
    "threads",
]


def set_num_threads(n: int) -> None:
    """Sets how many threads kernels may use, 1 .. 256. Results do not depend on it.

    The default is the smallest of the process's affinity mask, the container's quota and OMP_NUM_THREADS;
    GRADSMITH_NUM_THREADS overrides it. TypeError: n is no integer. ValueError: it is out of range.

    >>> import gradsmith as gs
    >>> before = gs.get_num_threads()
    >>> gs.set_num_threads(1); gs.get_num_threads()
    1
    >>> gs.set_num_threads(before)
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"set_num_threads: n must be an integer, got {type(n).__name__}")
    if not 1 <= int(n) <= 256:
        raise ValueError(f"set_num_threads: n is {n}; expected 1 .. 256")
    _cpu.set_num_threads(int(n))


def get_num_threads() -> int:
    """How many threads kernels may use.

    >>> import gradsmith as gs
    >>> gs.get_num_threads() >= 1
    True
    """
    return _cpu.get_num_threads()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """`with gs.threads(1): ...` uses n threads inside. Errors as in `set_num_threads`.

    >>> import gradsmith as gs
    >>> with gs.threads(1):
    ...     gs.get_num_threads()
    1
    """
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


def set_conv_precision(precision: str) -> None:
    """Sets how far float32 convolutions may round: "default" or "strict".

    "default": 3x3 convolutions use Winograd where it is faster, F(4x4,3x3) for stride 1 and F(4,2) on even
    and odd pixels for stride 2, forward and backward; root mean square error 0.5e-6 to 1.1e-6 of the result's
    at 64 to 512 channels. "strict": only F(2x2,3x3) (0.2e-6 to 0.35e-6) and the direct sum (0.15e-6 to
    1.1e-6). Float64 is always direct.

    A value that is not finite spreads over the tile of outputs that it touches (4x4 or 2x2 pixels and
    their neighbours) in either form of Winograd.

    ValueError: another name. Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.

    >>> import gradsmith as gs
    >>> gs.set_conv_precision("strict")
    >>> gs.get_conv_precision()
    'strict'
    >>> gs.set_conv_precision("default")
    """
    if not isinstance(precision, str):
        raise TypeError(
            f"set_conv_precision: precision must be a string, got {type(precision).__name__}"
        )
    _cpu.set_conv_precision(precision)
    recording.modes["conv_precision"] = precision


def get_conv_precision() -> str:
    """How far float32 convolutions may round: "default" or "strict", see `set_conv_precision`.

    >>> import gradsmith as gs
    >>> gs.get_conv_precision()
    'default'
    """
    return str(_cpu.get_conv_precision())


def memory_stats() -> dict[str, int]:
    """Bytes in use and cached by the memory pool, its peak, and how often it asked the system.

    hits, misses: allocations that cached memory served, and those that it did not.

    >>> import gradsmith as gs
    >>> x = gs.zeros(1000)
    >>> gs.memory_stats()["in_use"] >= 4000
    True
    """
    return dict(_cpu.memory_stats())


def empty_cache() -> None:
    """Gives the memory that the pool holds in reserve back to the system.

    >>> import gradsmith as gs
    >>> gs.empty_cache(); gs.memory_stats()["cached"]
    0
    """
    _cpu.empty_cache()


def show_config(measure: bool = True) -> str:
    """Text on versions, instruction set, caches, threads and (measure=True) the machine's peaks.

    The measurement, GFLOP/s of a core and GB/s of copies on all threads, takes a few tenths of a second.

    >>> import gradsmith as gs
    >>> [line.split()[0] for line in gs.show_config(measure=False).splitlines()]
    ['gradsmith', 'cpu', 'isa', 'threads', 'cuda']
    """
    import numpy as np

    m = _cpu.machine()
    b = _cpu.cpu_budget()

    def size(n: int) -> str:
        return f"{n >> 20}M" if n >= 1 << 20 else f"{n >> 10}K"

    lowered = os.environ.get("GRADSMITH_ISA")
    lines = [
        f"gradsmith {__version__}   python {sys.version.split()[0]}   numpy {np.__version__}",
        f"cpu      {m['name']}, caches L1 {size(m['l1d'])} L2 {size(m['l2'])} L3 {size(m['l3'])}",
        f"isa      {_cpu.isa()} of {', '.join(_cpu.supported_isas())}"
        + (f" (GRADSMITH_ISA={lowered})" if lowered else " (GRADSMITH_ISA lowers it)"),
        f"threads  {get_num_threads()}: affinity {b['affinity']}, container quota {b['quota'] or 'none'}, "
        f"cores {b['cores']}; set by {b['reason']} (GRADSMITH_NUM_THREADS, gs.set_num_threads)",
        "cuda     not built into this module",
    ]
    if measure:
        best = max(f / t for t, f in (_cpu.probe_fma("float32", 1, 200_000) for _ in range(8)))
        src, dst = _cpu.empty([16 << 20], "float32"), _cpu.empty([16 << 20], "float32")
        _cpu.copy_(dst, src)
        n = get_num_threads()
        copy = max(2 * src.nbytes / _cpu.probe_copy(src, dst, n, True) for _ in range(5))
        lines.append(
            f"peak     {best / 1e9:.0f} GFLOP/s float32 a core, copy {copy / 1e9:.1f} GB/s on {n} threads (measured now)"
        )
    return "\n".join(lines)
