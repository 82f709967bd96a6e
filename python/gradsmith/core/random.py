"""The random state: one seed and one counter. Every op that draws numbers takes the next counter.

A draw is Philox4x32-10 at (seed, op counter, element), so it does not depend on the number of threads,
and the state is two integers that a checkpoint stores.
"""

from __future__ import annotations

from typing import Any

from .. import _cpu
from .recording import host_read

__all__ = ["manual_seed", "next_counter", "set_state", "state", "take"]

# The two integers lie in the compiled module (csrc/bindings/dropout.cpp), where taking a counter is one call.
next_counter = _cpu.random_next  # (seed, counter) for one op that draws numbers
take = _cpu.random_take  # (seed, first counter) for the n draws of a replayed program


def manual_seed(seed: int) -> None:
    """Sets the seed (0 <= seed < 2**64) and starts the stream anew.

    >>> import gradsmith as gs
    >>> gs.manual_seed(1); a = gs.rand(3).tolist()
    >>> gs.manual_seed(1); a == gs.rand(3).tolist()
    True
    """
    host_read("manual_seed()", "Set the seed before the call")
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"manual_seed: seed must be an integer, got {type(seed).__name__}")
    seed = int(seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"manual_seed: seed {seed} is outside 0 .. 2**64 - 1")
    _cpu.random_set(seed, 0)


def state() -> dict[str, int]:
    """The state as two integers, to be stored in a checkpoint."""
    seed, counter = take(0)
    return {"seed": seed, "counter": counter}


def set_state(value: dict[str, Any]) -> None:
    """Continues from a stored state. ValueError when it is not one."""
    try:
        host_read("set_state()", "Set the random state before the call")
        seed, counter = int(value["seed"]), int(value["counter"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"set_state: expected {{'seed': int, 'counter': int}}, got {value!r}"
        ) from None
    if not (0 <= seed < 2**64 and 0 <= counter < 2**64):
        raise ValueError(f"set_state: seed or counter out of range: {value!r}")
    _cpu.random_set(seed, counter)
