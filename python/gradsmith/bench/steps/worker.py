"""One library in a process of its own: builds a step, then times it whenever it is asked to.

    python -m gradsmith.bench.steps.worker LIBRARY VARIANT NET train|infer BATCH THREADS

Talks in lines of JSON. First it writes {"first": [...]}, the losses of the first three steps or the
sorted outline of the first output; then for each line {"seconds": s} it reads, {"times": [...]}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

import numpy as np

from .nets import NETS

__all__ = ["main"]


def _build(library: str, variant: str, name: str, mode: str, batch: int, threads: int) -> Any:
    side = importlib.import_module(f".with_{library}", __package__)
    return side.build(NETS[name], batch, mode == "train", variant, threads)


def _timed(step: Any, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def main(argv: list[str]) -> int:
    """Serves until its input ends."""
    answers = os.fdopen(os.dup(1), "w")  # whatever a library prints goes to stderr
    os.dup2(2, 1)

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    library, variant, net, mode, batch, threads = argv
    try:
        step = _build(library, variant, net, mode, int(batch), int(threads))
        if mode == "train":
            first = [float(step()) for _ in range(3)]
        else:
            first = np.asarray(step()).astype(np.float64).ravel()[:1000].tolist()
        for _ in range(5):  # a captured program is made on the second call; pages become warm
            step()
    except Exception as error:
        say(error=f"{type(error).__name__}: {error}")
        return 1
    say(first=first)
    for line in sys.stdin:
        say(times=_timed(step, json.loads(line)["seconds"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
