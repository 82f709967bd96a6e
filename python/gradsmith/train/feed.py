"""What the trainer is fed with: data of any accepted kind as batches of tensors, and progress."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..core.tensor import Tensor

__all__ = [
    "Batch",
    "Progress",
    "apart",
    "batches",
    "flat",
    "holds_arrays",
    "is_array",
    "loss_of",
    "source_of",
    "tensor_of",
]

Batch = tuple[tuple[Tensor, ...], Tensor, int]  # inputs, target, samples


_LOSSES = {
    "mse": "mse_loss",
    "l1": "l1_loss",
    "mae": "l1_loss",
    "smooth_l1": "smooth_l1_loss",
    "huber": "huber_loss",
    "nll": "nll_loss",
    "kl_div": "kl_div",
    "bce": "binary_cross_entropy",
    "bce_with_logits": "binary_cross_entropy_with_logits",
}


def loss_of(loss: Any) -> Callable[..., Tensor]:
    """A loss given as a function, a module or the name of a function in ``nn.functional``."""
    if callable(loss):
        return loss
    from ..nn import functional

    found = getattr(functional, _LOSSES.get(loss, loss), None) if isinstance(loss, str) else None
    if not callable(found):
        names = ", ".join(map(repr, ("cross_entropy", *_LOSSES)))
        raise ValueError(
            f"Trainer: loss {loss!r} is unknown; use {names}, another name in gs.nn.functional, or "
            "a function f(prediction, target)."
        )
    return found


def is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def holds_arrays(x: Any) -> bool:
    """An array, or a tuple or list with one somewhere in it."""
    return is_array(x) or (isinstance(x, (tuple, list)) and any(map(holds_arrays, x)))


def flat(items: Any) -> tuple[Any, ...]:
    """Inputs given one by one or as a tuple in the first place."""
    items = tuple(items)
    if items and isinstance(items[0], (tuple, list)) and all(map(is_array, items[0])):
        return (*items[0], *items[1:])
    return items


def source_of(name: str, data: Any, batch_size: int, shuffle: bool = False, epoch: int = 0) -> Any:
    """A Loader, or an iterable of batches that is taken as it is."""
    from ..data import Loader

    if isinstance(data, Loader):
        return data
    if isinstance(data, (tuple, list)):
        if not data:
            raise ValueError(f"{name}: the data is empty.")
        if all(isinstance(b, (tuple, list)) and any(map(is_array, b)) for b in data):
            return data  # batches (x, y), one after the other
        if len(data) < 2:
            raise ValueError(f"{name}: expected (x, y), got {len(data)} array.")
        loader = Loader(flat(data), batch_size, shuffle, seed=None)
        loader.set_epoch(epoch)
        return loader
    if is_array(data):
        raise TypeError(f"{name}: expected (x, y), got one array; pass a tuple.")
    if hasattr(data, "__iter__"):
        return data
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        loader = Loader(data, batch_size, shuffle, seed=None)
        loader.set_epoch(epoch)
        return loader
    raise TypeError(
        f"{name}: expected a Loader, a tuple (x, y) of arrays, a dataset or an iterable of batches "
        f"(x, y), got {type(data).__name__}."
    )


def apart(source: Any) -> Any:
    """A loader's twin at its first epoch, so that evaluating does not move the one in training."""
    from ..data import Loader

    if not isinstance(source, Loader):
        return source
    twin = copy.copy(source)
    twin.set_epoch(0)
    return twin


def tensor_of(name: str, a: Any, dtype: np.dtype, labels: bool = False) -> Tensor:
    """A tensor of the model's floating dtype; labels that are whole numbers become int64."""
    if isinstance(a, Tensor):
        return a.to(dtype=dtype) if a.dtype.kind == "f" and a.dtype != dtype else a
    array = a if isinstance(a, np.ndarray) else np.asarray(a)
    if array.dtype.kind == "f":
        array = array.astype(dtype, copy=False)
    elif array.dtype.kind in "iu" and labels:
        array = array if array.dtype.itemsize == 4 and array.dtype.kind == "i" else _int64(array)
    elif array.dtype.kind not in "iub":
        raise TypeError(f"{name}: expected an array of numbers, got {array.dtype}.")
    return Tensor(array)


def _int64(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int64, copy=False)


def batches(name: str, source: Any, dtype: np.dtype, skip: int = 0) -> Iterator[Batch]:
    """Batches as (inputs, target, samples), checked; the first ``skip`` are passed over."""
    for i, batch in enumerate(source):
        if i < skip:
            continue
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise TypeError(
                f"{name}: a batch must be a tuple (x, y), got a {type(batch).__name__}{size}."
            )
        inputs = tuple([tensor_of("x", a, dtype) for a in flat(batch[:-1])])
        target = tensor_of("y", batch[-1], dtype, labels=True)
        counts = [a.shape[0] if a.ndim else 0 for a in (*inputs, target)]
        if min(counts) != max(counts):
            raise ValueError(
                f"{name}: batch {i} has arrays of {counts} samples (inputs, then target); their "
                "first axes must be equal."
            )
        if counts[0] == 0:
            raise ValueError(f"{name}: batch {i} is empty (0 samples).")
        yield inputs, target, counts[0]


class Progress:
    """A bar on a terminal, redrawn at most ten times a second; a line per epoch everywhere."""

    def __init__(self, wanted: bool | None, epochs: int) -> None:
        self.lines = wanted is not False
        # Without a console there is no stderr at all.
        self.bars = self.lines and sys.stderr is not None and sys.stderr.isatty()
        self.epochs, self.unit = epochs, "samples"
        self._bar: Any = None

    def start(self, epoch: int, source: Any, done: int) -> None:
        if not self.bars:
            return
        from tqdm import tqdm

        total = len(source) if hasattr(source, "__len__") else None
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=f"epoch {epoch + 1}/{self.epochs}",
            unit="batch",
            leave=False,
            mininterval=0.1,
            dynamic_ncols=True,
        )

    def advance(self, count: int, loss: float) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self._bar.update(count)

    def line(self, row: dict[str, Any]) -> None:
        """``epoch 3/20  loss 0.0712  accuracy 0.9800  ...  lr 0.002  9120 images/s``"""
        self._end_bar()
        if not self.lines:
            return
        width = len(str(self.epochs))
        parts = [f"epoch {row['epoch']:>{width}}/{self.epochs}"]
        for key, value in row.items():
            if isinstance(value, float) and key not in ("lr", "seconds", "samples_per_second"):
                parts.append(f"{key} {value:.4f}")
        parts.append(f"lr {row['lr']:.3g}")
        parts.append(f"{row['samples_per_second']:.0f} {self.unit}/s")
        print("  ".join(parts), flush=True)

    def close(self, reason: str | None) -> None:
        self._end_bar()
        if reason and self.lines:
            print(f"stopped: {reason}", flush=True)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
