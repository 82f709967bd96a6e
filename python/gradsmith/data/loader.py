"""Batches from a dataset: seeded, resumable, prepared ahead by one thread."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .dataset import ArrayDataset, as_dataset

__all__ = ["Loader"]

Batch = tuple[np.ndarray, ...]
Transform = Callable[[Any, np.random.Generator], Any]

# Seconds of work in a batch from which a thread pays: handing a batch over costs 15 to 60 us, and
# the thread takes a core from the kernels. Gathering 4 MB from memory is below it.
_THREAD_PAYS = 400e-6


class Loader:
    """Iterate over a dataset in batches: tuples of arrays with the batch as first axis.

    Each ``for`` loop over the loader is one epoch. The order of epoch e is a pure function of
    (seed, e), and the random numbers of the transform in batch i one of (seed, e, i): a run can
    stop anywhere and go on with the same batches, on any number of threads.

    Args:
        data: a dataset, an array, or a tuple of arrays (N, ...).
        batch_size: samples in a batch; the last batch of an epoch may be smaller.
        shuffle: a new order each epoch; else the dataset's own.
        seed: of order and transforms, 0 <= seed < 2**64; None takes that of ``gs.manual_seed``.
        drop_last: leave out the smaller last batch.
        transform: ``f(x, rng) -> x`` on the first array of each batch, or a tuple with one such
            function (or None) for each array.
        prefetch: batches that a background thread keeps ready; 0 prepares them in the loop; None
            times the first batch of each epoch and uses 2 where it took over 0.4 ms, else 0. The
            batches are the same in every case.

    Raises:
        ValueError: an empty dataset, or arguments out of range.

    >>> x, y = np.arange(10.0).reshape(5, 2), np.arange(5)
    >>> for xb, yb in Loader((x, y), 2):
    ...     print(xb.shape, yb)
    (2, 2) [0 1]
    (2, 2) [2 3]
    (1, 2) [4]
    """

    def __init__(
        self,
        data: Any,
        batch_size: int = 32,
        shuffle: bool = False,
        seed: int | None = 0,
        drop_last: bool = False,
        transform: Transform | tuple[Transform | None, ...] | None = None,
        prefetch: int | None = None,
    ) -> None:
        self.dataset = as_dataset(data, "Loader")
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
            raise TypeError(f"Loader: batch_size must be an int, got {batch_size!r}")
        if batch_size < 1:
            raise ValueError(f"Loader: batch_size must be at least 1, got {batch_size}")
        if prefetch is not None and prefetch < 0:
            raise ValueError(f"Loader: prefetch must be 0 or more, got {prefetch}")
        n = len(self.dataset)
        if n == 0:
            raise ValueError("Loader: the dataset is empty")
        if drop_last and n < batch_size:
            raise ValueError(
                f"Loader: drop_last with {n} samples and batch_size={batch_size} leaves no batch; "
                "lower batch_size or set drop_last=False"
            )
        self.batch_size = int(batch_size)
        self.shuffle = bool(shuffle)
        self.seed = _checked_seed(seed)
        self.drop_last = bool(drop_last)
        self.transforms = transform if isinstance(transform, tuple) else (transform,)
        if not all(t is None or callable(t) for t in self.transforms):
            raise TypeError("Loader: transform must be a function f(x, rng), or a tuple of such")
        self.prefetch = None if prefetch is None else int(prefetch)
        self.epoch = 0
        self._position = 0  # batches of this epoch that were handed out
        self._resume = False  # the next loop goes on at _position

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The next loop runs epoch ``epoch`` (from 0), from its first batch."""
        self.epoch, self._position, self._resume = int(epoch), 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: after the batch that was handed out last.

        >>> loader = Loader(np.arange(6), 2)
        >>> for (batch,) in loader: break
        >>> again = Loader(np.arange(6), 2)
        >>> again.load_state_dict(loader.state_dict())
        >>> [batch.tolist() for (batch,) in again]
        [[2, 3], [4, 5]]
        """
        return {
            "epoch": self.epoch,
            "position": self._position,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "samples": len(self.dataset),
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken: the next loop yields the rest of that epoch.

        Raises:
            ValueError: it was taken within an epoch over another number of samples, batch size or
                kind of order, so that the rest of the epoch is not defined.
        """
        missing = {"epoch", "position", "seed"} - set(state)
        if missing:
            raise ValueError(f"Loader.load_state_dict: missing {', '.join(sorted(missing))}")
        mine = self.state_dict()
        if state["position"]:
            for key in ("batch_size", "samples", "shuffle", "drop_last"):
                if key in state and state[key] != mine[key]:
                    raise ValueError(
                        f"Loader.load_state_dict: the state was taken within an epoch with "
                        f"{key}={state[key]}; this loader has {key}={mine[key]}"
                    )
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position <= len(self):
            raise ValueError(
                f"Loader.load_state_dict: epoch {epoch}, position {position}; an epoch has "
                f"{len(self)} batches"
            )
        self.seed = _checked_seed(state["seed"])
        self.epoch, self._position, self._resume = epoch, position, True

    # ---- one epoch -------------------------------------------------------------------------------

    def _order(self, epoch: int) -> np.ndarray | None:
        if not self.shuffle:
            return None
        return _generator(self.seed, 0, 0, epoch).permutation(len(self.dataset))

    def _batch(self, order: np.ndarray | None, epoch: int, i: int) -> Batch:
        begin, end = i * self.batch_size, min((i + 1) * self.batch_size, len(self.dataset))
        dataset = self.dataset
        # Fresh arrays each time: gathering into reused ones measured no faster, and the loop may
        # keep a batch.
        items: Any
        if type(dataset) is ArrayDataset:
            if order is None:
                items = tuple([np.array(a[begin:end]) for a in dataset.arrays])
            else:
                index = order[begin:end]
                items = tuple([a.take(index, axis=0) for a in dataset.arrays])
        else:
            items = dataset[np.arange(begin, end) if order is None else order[begin:end]]
            if not isinstance(items, (tuple, list)):
                raise TypeError(
                    f"Loader: {type(dataset).__name__}[index array] returned "
                    f"{type(items).__name__}; expected a tuple of arrays"
                )
            items = tuple(items)
        if self.transforms != (None,):
            if len(self.transforms) > len(items):
                raise ValueError(
                    f"Loader: {len(self.transforms)} transforms for batches of {len(items)} arrays"
                )
            rng = _generator(self.seed, 1, i, epoch)
            done = [
                items[k] if t is None else t(items[k], rng) for k, t in enumerate(self.transforms)
            ]
            items = (*done, *items[len(done) :])
        return items

    def __iter__(self) -> Iterator[Batch]:
        if self._position and not self._resume:  # the last loop was left early
            self.epoch, self._position = self.epoch + 1, 0
        self._resume = False
        epoch, start, order = self.epoch, self._position, self._order(self.epoch)
        count, depth = len(self), self.prefetch
        if depth is None and start < count:
            before = time.perf_counter()
            batch = self._batch(order, epoch, start)
            depth = 2 if time.perf_counter() - before > _THREAD_PAYS else 0
            self._position = start = start + 1
            yield batch
        if depth and start < count:
            yield from self._threaded(order, epoch, start, count, depth)
        else:
            for i in range(start, count):
                batch = self._batch(order, epoch, i)
                self._position = i + 1
                yield batch
        self.epoch, self._position = epoch + 1, 0

    def _threaded(
        self, order: np.ndarray | None, epoch: int, start: int, count: int, depth: int
    ) -> Iterator[Batch]:
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        room: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one entry: prepare one batch more
        for _ in range(depth):
            room.put(True)
        stopped: list[bool] = []

        def work() -> None:
            try:
                for i in range(start, count):
                    if not room.get() or stopped:
                        return
                    ready.put((self._batch(order, epoch, i), None))
            except BaseException as error:  # handed to the loop, which raises it
                ready.put((None, error))

        process = os.getpid()
        thread = threading.Thread(target=work, name="gradsmith-loader", daemon=True)
        thread.start()
        try:
            for i in range(start, count):
                if os.getpid() != process:  # forked: the thread did not come along
                    batch = self._batch(order, epoch, i)
                else:
                    batch, error = ready.get()
                    if error is not None:
                        raise error
                    room.put(True)
                self._position = i + 1
                yield batch
        finally:
            # In a forked child the queues may be locked for ever by the parent's thread.
            if os.getpid() == process:
                stopped.append(True)
                room.put(False)
                if threading.current_thread() is not thread:  # collected from within it
                    thread.join()

    def __repr__(self) -> str:
        return (
            f"Loader({self.dataset!r}, batch_size={self.batch_size}, shuffle={self.shuffle}, "
            f"seed={self.seed}, prefetch={self.prefetch})"
        )


def _checked_seed(seed: int | None) -> int:
    if seed is None:
        from ..core import random

        return int(random.state()["seed"])
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"Loader: seed must be an int, got {seed!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"Loader: seed must be in 0 .. 2**64 - 1, got {seed}")
    return int(seed)


def _generator(seed: int, stream: int, batch: int, epoch: int) -> np.random.Generator:
    """Philox keyed by the seed; stream, batch and epoch are the upper words of its counter."""
    key = np.array([seed, 0], np.uint64)
    counter = np.array([0, batch, epoch, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
