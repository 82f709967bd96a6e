"""What a dataset is here, and the one made of arrays.

A dataset has ``len()`` and is indexed by a whole array of positions at once: ``dataset[index]``
returns a tuple of arrays whose first axis is the batch. One call a batch instead of one a sample is
what makes loading fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

__all__ = ["ArrayDataset", "Dataset", "Subset", "as_dataset"]


@runtime_checkable
class Dataset(Protocol):
    """Anything with a length that can be indexed by an integer array; no base class is needed.

    >>> class Squares:
    ...     def __len__(self): return 1000
    ...     def __getitem__(self, index): return (np.square(index),)
    >>> isinstance(Squares(), Dataset)
    True
    >>> Squares()[np.array([3, 5])][0].tolist()
    [9, 25]
    """

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        """A tuple of arrays, one entry along their first axis for each position."""
        ...


def as_array(value: Any, what: str) -> np.ndarray:
    """``value`` as an ndarray: arrays as they are, Tensors by their data, lists converted."""
    if isinstance(value, np.ndarray):
        return value
    data = getattr(value, "data", None)
    array = data if isinstance(data, np.ndarray) else np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"{what}: expected an array of numbers, got {type(value).__name__}")
    return array


class ArrayDataset:
    """Arrays of the same length, sample by sample along the first axis.

    ``ds[index]`` with an integer, a slice, or an array of positions returns the tuple of the
    arrays, so indexed. ``arrays`` are the arrays themselves (not copies), ``classes`` the names of
    the classes where the last array holds labels, else None.

    Raises:
        ValueError: no array given, an array without a first axis, or lengths that differ.

    >>> ds = ArrayDataset([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [0, 1, 1])
    >>> len(ds)
    3
    >>> x, y = ds[np.array([2, 0])]
    >>> y.tolist()
    [1, 0]
    """

    def __init__(self, *arrays: Any, classes: Sequence[str] | None = None) -> None:
        if not arrays:
            raise ValueError("ArrayDataset: expected at least one array")
        self.arrays = tuple(as_array(a, "ArrayDataset") for a in arrays)
        for i, array in enumerate(self.arrays):
            if array.ndim == 0:
                raise ValueError(f"ArrayDataset: array {i} is a single number; expected (N, ...)")
        lengths = [len(a) for a in self.arrays]
        if len(set(lengths)) != 1:
            raise ValueError(
                f"ArrayDataset: the arrays have lengths {lengths}; their first axes must be equal, "
                "one entry a sample"
            )
        self.classes = None if classes is None else [str(c) for c in classes]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return tuple(a[index] for a in self.arrays)

    def __repr__(self) -> str:
        inner = ", ".join(f"{a.shape} {a.dtype}" for a in self.arrays)
        return f"{type(self).__name__}({inner})"


class Subset:
    """Some samples of a dataset, by position; nothing is copied.

    ``indices``: integers (M,), each from 0 to len(dataset) - 1; they may repeat.

    Raises:
        ValueError: indices that are no list of integers.
        IndexError: a position that the dataset does not have.

    >>> part = Subset(ArrayDataset([10, 20, 30]), [2, 0])
    >>> part[np.array([0, 1])][0].tolist()
    [30, 10]
    """

    def __init__(self, dataset: Dataset, indices: Any) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices)
        if self.indices.size == 0:
            self.indices = self.indices.astype(np.int64)
        if self.indices.ndim != 1 or self.indices.dtype.kind not in "iu":
            raise ValueError(
                f"Subset: indices must be a list of integers, got shape {self.indices.shape} "
                f"of {self.indices.dtype}"
            )
        n = len(dataset)
        if len(self.indices) and (self.indices.min() < 0 or self.indices.max() >= n):
            raise IndexError(
                f"Subset: indices from {self.indices.min()} to {self.indices.max()}; the dataset "
                f"has samples 0 to {n - 1}"
            )

    @property
    def classes(self) -> list[str] | None:
        """The class names of the dataset below, or None."""
        return getattr(self.dataset, "classes", None)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return self.dataset[self.indices[index]]

    def __repr__(self) -> str:
        return f"Subset({len(self)} of {len(self.dataset)}: {self.dataset!r})"


def as_dataset(data: Any, op: str = "data") -> Dataset:
    """A dataset as it is; one array, or a tuple or list of arrays, as an ArrayDataset.

    TypeError: anything else.

    >>> as_dataset((np.zeros((3, 2)), np.arange(3)))
    ArrayDataset((3, 2) float64, (3,) int64)
    """
    if isinstance(data, tuple) or (
        isinstance(data, list) and data and all(hasattr(a, "shape") for a in data)
    ):
        return ArrayDataset(*data)
    if isinstance(data, np.ndarray) or isinstance(getattr(data, "data", None), np.ndarray):
        return ArrayDataset(data)
    if (
        hasattr(data, "__len__")
        and hasattr(data, "__getitem__")
        and not isinstance(data, (list, dict, str, bytes))
    ):
        return data
    raise TypeError(
        f"{op}: expected a dataset (len() and [index array]), an array or a tuple of arrays, "
        f"got {type(data).__name__}"
    )
