"""Parts of a data set: train and test, random parts, folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .dataset import ArrayDataset, Subset, as_array, as_dataset

__all__ = ["KFold", "random_split", "train_test_split"]


def _rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def _labels(stratify: Any, dataset: Any, what: str) -> np.ndarray | None:
    """The labels to keep in proportion: an array, or True for the last array of the data."""
    if stratify is None or stratify is False:
        return None
    if stratify is True:
        arrays = getattr(dataset, "arrays", None)
        labels = arrays[-1] if arrays else dataset[np.arange(len(dataset))][-1]
    else:
        labels = as_array(stratify, what)
    if labels.ndim != 1 or len(labels) != len(dataset):
        raise ValueError(
            f"{what}: labels to stratify by have shape {labels.shape}; expected ({len(dataset)},)"
        )
    return np.unique(labels, return_inverse=True)[1]


def _test_count(size: float, n: int) -> int:
    count = round(size * n) if isinstance(size, float) else int(size)
    if isinstance(size, float) and not 0 < size < 1:
        raise ValueError(f"train_test_split: test_size must be in (0, 1) or a count, got {size}")
    if not 0 < count < n:
        raise ValueError(
            f"train_test_split: test_size={size} of {n} samples gives {count} for testing; both "
            "parts need at least one"
        )
    return count


def train_test_split(
    *data: Any,
    test_size: float = 0.25,
    seed: int = 0,
    shuffle: bool = True,
    stratify: Any = None,
) -> tuple[Any, ...]:
    """Split into a part to train on and a part to test on.

    One dataset gives (train, test) as ``Subset``; arrays a, b, ... give (a_train, a_test, b_train,
    b_test, ...). ``test_size`` is a share in (0, 1) or a count. ``stratify`` (labels (N,), or True
    for the last array) keeps the classes in proportion, to within one sample a class. Without
    ``shuffle`` the last samples are the test (not with ``stratify``).

    Raises:
        ValueError: no samples for one of the parts, lengths that differ, labels of another length.

    >>> x, y = np.arange(10.0), np.arange(10) % 2
    >>> x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, stratify=y)
    >>> len(x_train), sorted(y_test.tolist())
    (8, [0, 1])
    """
    if not data:
        raise ValueError("train_test_split: expected a dataset or arrays")
    single = len(data) == 1 and not isinstance(data[0], np.ndarray)
    dataset: Any = as_dataset(data[0]) if single else ArrayDataset(*data)
    n = len(dataset)
    count = _test_count(test_size, n)
    labels = _labels(stratify, dataset, "train_test_split")
    if labels is None:
        order = _rng(seed).permutation(n) if shuffle else np.arange(n)
        train, test = order[: n - count], order[n - count :]
    else:
        if not shuffle:
            raise ValueError("train_test_split: stratify needs shuffle=True")
        order = _rng(seed).permutation(n)
        # the share of each class, rounded so that the parts sum up: largest remainders first
        exact = np.bincount(labels) * (count / n)
        quota = np.floor(exact + 1e-9).astype(int)
        short = np.argsort(-(exact - quota), kind="stable")[: count - quota.sum()]
        quota[short] += 1
        by_class = order[np.argsort(labels[order], kind="stable")]
        starts = np.concatenate([[0], np.cumsum(np.bincount(labels))[:-1]])
        rank = np.arange(n) - starts[labels[by_class]]
        chosen = np.zeros(n, bool)
        chosen[by_class[rank < quota[labels[by_class]]]] = True
        train, test = order[~chosen[order]], order[chosen[order]]
    if single:
        return Subset(dataset, train), Subset(dataset, test)
    return tuple(part for a in dataset.arrays for part in (a[train], a[test]))


def random_split(data: Any, lengths: Sequence[float], seed: int = 0) -> list[Subset]:
    """Random parts of a dataset (or arrays), without overlap.

    ``lengths`` are counts that sum to the number of samples, or shares that sum to 1; what rounding
    leaves goes to the first parts, one each. The order is a function of ``seed``.

    Raises:
        ValueError: lengths below 0, or that sum to neither.

    >>> [len(part) for part in random_split(np.arange(10), [0.5, 0.25, 0.25])]
    [6, 2, 2]
    """
    dataset = as_dataset(data)
    n = len(dataset)
    if not lengths or any(length < 0 for length in lengths):
        raise ValueError(f"random_split: lengths must be 0 or more, got {list(lengths)}")
    if all(isinstance(length, (int, np.integer)) for length in lengths) and sum(lengths) == n:
        counts = [int(length) for length in lengths]
    elif abs(sum(lengths) - 1) < 1e-6:
        counts = [int(n * length + 1e-9) for length in lengths]
        for i in range(n - sum(counts)):
            counts[i % len(counts)] += 1
    else:
        raise ValueError(
            f"random_split: lengths {list(lengths)} sum to {sum(lengths)}; expected counts that "
            f"sum to {n} or shares that sum to 1"
        )
    order = _rng(seed).permutation(n)
    ends = np.cumsum(counts)
    return [Subset(dataset, order[end - count : end]) for count, end in zip(counts, ends)]


class KFold:
    """Cross-validation: k parts of (almost) equal size, each of them the test part once.

    ``split(data, labels=None)`` yields k pairs (train, test) of position arrays. With labels every
    class is spread evenly over the parts. ``shuffle`` mixes the samples first, by ``seed``.
    ValueError: ``n_splits`` below 2. Source: Stone 1974, Cross-Validatory Choice.

    >>> [test.tolist() for _, test in KFold(3).split(np.arange(7))]
    [[0, 1, 2], [3, 4], [5, 6]]
    """

    def __init__(self, n_splits: int = 5, shuffle: bool = False, seed: int = 0) -> None:
        if n_splits < 2:
            raise ValueError(f"KFold: n_splits must be at least 2, got {n_splits}")
        self.n_splits, self.shuffle, self.seed = int(n_splits), shuffle, seed

    def __len__(self) -> int:
        return self.n_splits

    def split(self, data: Any, labels: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs (train, test) of sorted positions; ``data`` may also be a number of samples.

        ``labels``: (N,). ValueError: fewer samples than parts, labels of another shape.
        """
        n = int(data) if isinstance(data, (int, np.integer)) else len(as_dataset(data))
        if n < self.n_splits:
            raise ValueError(f"KFold: {n} samples cannot be split into {self.n_splits} parts")
        order = _rng(self.seed).permutation(n) if self.shuffle else np.arange(n)
        part = np.empty(n, int)
        if labels is None:
            sizes = np.full(self.n_splits, n // self.n_splits)
            sizes[: n % self.n_splits] += 1
            part[order] = np.repeat(np.arange(self.n_splits), sizes)
        else:
            classes = as_array(labels, "KFold")
            if classes.shape != (n,):
                raise ValueError(f"KFold: labels have shape {classes.shape}; expected ({n},)")
            # dealt like cards, class after class: even within each class and over all
            dealt = order[np.argsort(classes[order], kind="stable")]
            part[dealt] = np.arange(n) % self.n_splits
        for k in range(self.n_splits):
            yield np.flatnonzero(part != k), np.flatnonzero(part == k)
