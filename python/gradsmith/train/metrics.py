"""Streaming metrics: sums over batches, divided once by the true counts.

``update(pred, target)`` takes NumPy arrays, tensors or lists; ``compute()`` is the value over all
that was seen, whatever the batch sizes were (a short last batch weighs what it holds), and NaN
before anything was seen. ``merge`` adds another metric of the same kind. All sums are float64 or
whole numbers. ``state_dict()`` is plain numbers and arrays, so a checkpoint can stop mid-epoch.

What predictions mean, for the metrics of classification:

=====================  ==========================  ==============================================
pred                   target                      read as
=====================  ==========================  ==============================================
float (N, ..., C)      int (N, ...)                scores or logits of C > 1 classes: the largest
float (N, ..., C)      float (N, ..., C)           the same; target holds class probabilities
int (N, ...)           int (N, ...)                class labels
float (N,) or (N, 1)   any (N,) or (N, 1)          one score: class 1 where it exceeds
                                                   ``threshold`` (0.5; use 0 for logits)
=====================  ==========================  ==============================================

>>> accuracy = Accuracy()
>>> accuracy.update([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], [0, 1, 1])
>>> accuracy.update([[0.4, 0.6]], [1])
>>> accuracy.compute()
0.75
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

__all__ = [
    "MAE",
    "MSE",
    "R2",
    "Accuracy",
    "ConfusionMatrix",
    "FScore",
    "Function",
    "Metric",
    "Precision",
    "Recall",
    "TopK",
    "get",
]


def _array(x: Any) -> np.ndarray:
    data = getattr(x, "data", None)
    return data if isinstance(data, np.ndarray) else np.asarray(x)


class Metric:
    """Base of all metrics: define ``reset``, ``update`` and ``compute``.

    ``sums`` names the attributes that are added when metrics merge and saved in ``state_dict``;
    ``name`` is its key in the logs.

    >>> class Worst(Metric):
    ...     name, sums = "worst", ()
    ...     def reset(self): self.value = 0.0
    ...     def update(self, pred, target):
    ...         self.value = max(self.value, float(abs(pred - target).max()))
    ...     def compute(self): return self.value
    >>> worst = Worst()
    >>> worst.reset()
    >>> worst.update(np.array([1.0, 2.0]), np.array([1.5, 2.0])); worst.compute()
    0.5
    """

    name = "metric"
    sums: tuple[str, ...] = ()

    def reset(self) -> None:
        """Forgets what was counted."""
        raise NotImplementedError

    def update(self, pred: Any, target: Any) -> None:
        """Counts a batch: pred as the model gives it, target with one entry a sample."""
        raise NotImplementedError

    def compute(self) -> Any:
        """The value over all that was counted."""
        raise NotImplementedError

    def merge(self, other: Metric) -> Metric:
        """Add what ``other`` has seen; returns self. TypeError for another kind of metric."""
        if type(other) is not type(self):
            raise TypeError(
                f"merge: {type(self).__name__} cannot take a {type(other).__name__}; merge metrics "
                "of one kind."
            )
        for key in self.sums:
            setattr(self, key, getattr(self, key) + getattr(other, key))
        return self

    def state_dict(self) -> dict[str, Any]:
        """What was counted, as plain numbers and arrays."""
        return {key: getattr(self, key) for key in self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what ``state_dict`` gave; ValueError for another metric's."""
        if set(state) != set(self.sums):
            raise ValueError(
                f"{type(self).__name__}: the state has {sorted(state)}, expected "
                f"{sorted(self.sums)}."
            )
        for key in self.sums:
            value = state[key]
            setattr(self, key, value.copy() if isinstance(value, np.ndarray) else value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.compute()})"


# Reading predictions ---------------------------------------------------------------------------


def _labels(owner: str, pred: Any, target: Any, threshold: float) -> tuple[Any, Any, int]:
    """Predicted and true labels, flat int64 (-1 for a NaN score), and C (0 when not known)."""
    p, t = _array(pred), _array(target)
    if p.ndim == t.ndim + 1 and p.shape[-1] == 1:
        p = p[..., 0]
    elif t.ndim == p.ndim + 1 and t.shape[-1] == 1:
        t = t[..., 0]
    classes = 0
    if p.ndim == t.ndim + 1 and p.shape[:-1] == t.shape and p.dtype.kind == "f":
        classes = p.shape[-1]
        p, t = _largest(p), _whole(owner, "target", t)
    elif p.shape != t.shape:
        raise ValueError(
            f"{owner}: pred has shape {p.shape} and target {t.shape}; expected scores (N, C) with "
            "labels (N,), or two arrays of one shape. Nothing is broadcast."
        )
    elif p.dtype.kind == "f" and t.dtype.kind == "f" and p.ndim > 1 and p.shape[-1] > 1:
        classes = p.shape[-1]
        p, t = _largest(p), _largest(t)
    elif p.dtype.kind == "f":
        classes = 2
        p = np.where(np.isnan(p), -1, p > threshold).astype(np.int64)
        t = _whole(owner, "target", t)
    else:
        p, t = _whole(owner, "pred", p), _whole(owner, "target", t)
    return p.reshape(-1), t.reshape(-1), classes


def _largest(scores: np.ndarray) -> np.ndarray:
    """Index of the largest score (the first of equals); -1 in a row that holds a NaN."""
    if scores.shape[-1] == 0:
        raise ValueError(f"metric: scores of shape {scores.shape} have no classes.")
    best = scores.argmax(axis=-1)
    # A NaN anywhere makes the sum NaN (so does inf - inf, which the closer look then clears).
    with np.errstate(invalid="ignore", over="ignore"):
        total = scores.sum()
    if np.isnan(total):
        bad = np.isnan(scores).any(axis=-1)
        return np.where(bad, -1, best)
    return best


def _whole(owner: str, name: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "iub":
        return x.astype(np.int64, copy=False)
    if x.dtype.kind == "f" and (x.size == 0 or (np.isfinite(x).all() and (x == np.rint(x)).all())):
        return x.astype(np.int64)
    raise ValueError(f"{owner}: {name} must hold class labels (whole numbers), not {x.dtype}.")


def _values(owner: str, pred: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    p, t = _array(pred), _array(target)
    if p.shape != t.shape:
        raise ValueError(
            f"{owner}: pred has shape {p.shape} and target {t.shape}; they must be equal (nothing "
            "is broadcast). Use target[:, None] or pred[:, 0]."
        )
    for name, x in (("pred", p), ("target", t)):
        if x.dtype.kind not in "fiub":
            raise TypeError(f"{owner}: {name} must hold numbers, not {x.dtype}.")
    return p.astype(np.float64, copy=False), t.astype(np.float64, copy=False)


# Classification --------------------------------------------------------------------------------


class Accuracy(Metric):
    """Share of right answers: (number right) / (number seen).

    pred and target as in the table above; ``threshold`` is for one score a sample. NaN scores count
    as wrong. ValueError: shapes that do not fit each other (nothing is broadcast), labels that are
    not whole.

    >>> accuracy = Accuracy()
    >>> accuracy.update([[0.9, 0.1], [0.2, 0.8]], [0, 0])
    >>> accuracy.compute()
    0.5
    """

    name, sums = "accuracy", ("right", "count")

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        self.right = self.count = 0

    def update(self, pred: Any, target: Any) -> None:
        p, t, _ = _labels("accuracy", pred, target, self.threshold)
        self.right += int(np.count_nonzero(p == t))
        self.count += p.size

    def compute(self) -> float:
        return self.right / self.count if self.count else float("nan")


class TopK(Metric):
    """Share of samples whose true class is among the k largest scores.

    pred: (..., C) with C >= k; target: labels (...). Equal scores rank by index, as argmax does;
    NaN counts as wrong. ValueError: k below 1, fewer than k classes, other shapes, labels outside
    0 .. C - 1.

    >>> top2 = TopK(2)
    >>> top2.update([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]], [1, 2])
    >>> top2.compute()
    0.5
    """

    sums = ("right", "count")

    def __init__(self, k: int = 5) -> None:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"TopK: k must be a whole number of at least 1, not {k!r}.")
        self.k, self.name = int(k), f"top{k}"
        self.reset()

    def reset(self) -> None:
        self.right = self.count = 0

    def update(self, pred: Any, target: Any) -> None:
        p, t = _array(pred), _whole(self.name, "target", _array(target))
        if p.ndim != t.ndim + 1 or p.shape[:-1] != t.shape:
            raise ValueError(
                f"{self.name}: pred has shape {p.shape} and target {t.shape}; expected scores "
                "(N, C) and labels (N,)."
            )
        classes = p.shape[-1]
        if classes < self.k:
            raise ValueError(
                f"{self.name}: k={self.k} needs at least {self.k} classes, not {classes}."
            )
        p, t = p.reshape(-1, classes), t.reshape(-1)
        if t.size and not (t.min() >= 0 and t.max() < classes):
            raise ValueError(
                f"{self.name}: target holds class {t.max() if t.max() >= classes else t.min()}, "
                f"but pred has {classes} classes (0..{classes - 1})."
            )
        own = np.take_along_axis(p, t[:, None], axis=1)
        ahead = ~(p <= own) | ((p == own) & (np.arange(classes) < t[:, None]))
        self.right += int(np.count_nonzero(ahead.sum(axis=1) < self.k))
        self.count += t.size

    def compute(self) -> float:
        return self.right / self.count if self.count else float("nan")


class ConfusionMatrix(Metric):
    """Counts ``M[true, predicted]``, an int64 array of shape (C, C).

    C is ``num_classes``, or what the scores have, or one more than the largest label seen.
    ValueError: a label below 0 or beyond ``num_classes``, a NaN score, shapes that do not fit.

    >>> confusion = ConfusionMatrix()
    >>> confusion.update([0, 1, 1, 2], [0, 1, 2, 2])
    >>> confusion.compute().tolist()
    [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    """

    name, sums = "confusion", ("matrix",)

    def __init__(self, num_classes: int | None = None, threshold: float = 0.5) -> None:
        if num_classes is not None and (
            isinstance(num_classes, bool)
            or not isinstance(num_classes, (int, np.integer))
            or num_classes < 1
        ):
            raise ValueError(
                f"{type(self).__name__}: num_classes must be a whole number of at least 1, not "
                f"{num_classes!r}."
            )
        self.num_classes = None if num_classes is None else int(num_classes)
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        self.matrix = np.zeros((self.num_classes or 0,) * 2, np.int64)

    def update(self, pred: Any, target: Any) -> None:
        p, t, classes = _labels(self.name, pred, target, self.threshold)
        if p.size == 0:
            return
        low, high = int(min(p.min(), t.min())), int(max(p.max(), t.max())) + 1
        if low < 0:
            what = "a NaN score" if p.min() < 0 else f"class {low}"
            raise ValueError(f"{self.name}: the batch holds {what}; labels start at 0.")
        if self.num_classes is not None and max(high, classes) > self.num_classes:
            raise ValueError(
                f"{self.name}: class {max(high, classes) - 1} does not fit num_classes="
                f"{self.num_classes} (0..{self.num_classes - 1})."
            )
        n = max(len(self.matrix), high, classes)
        if n > 1 << 14:
            raise ValueError(f"{self.name}: label {n - 1} would need {n} classes; at most 16384.")
        self._grow(n)
        self.matrix += np.bincount(t * n + p, minlength=n * n).reshape(n, n)

    def _grow(self, n: int) -> None:
        more = n - len(self.matrix)
        if more > 0:
            self.matrix = np.pad(self.matrix, (0, more))

    def merge(self, other: Metric) -> Metric:
        if type(other) is not type(self) or not isinstance(other, ConfusionMatrix):
            return super().merge(other)
        self._grow(len(other.matrix))
        n = len(other.matrix)
        self.matrix[:n, :n] += other.matrix
        return self

    def compute(self) -> Any:
        return self.matrix.copy()


class FScore(ConfusionMatrix):
    """F_b = (1 + b^2) P R / (b^2 P + R) = (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP)

    ``average``: "macro" (plain mean over the classes that occur as truth or prediction),
    "weighted" (by true counts), "micro" (from summed counts), "binary" (class 1 alone) or None
    (an array with one value per class). ``zero_division`` stands where a quotient is 0 / 0; NaN
    leaves such classes out of the means. An infinite ``beta`` gives the recall. Values agree with
    scikit-learn's. ValueError: a negative ``beta``, an unknown ``average``,
    "binary" with more than two classes, and as in ``ConfusionMatrix``. Source: van Rijsbergen 1979,
    Information Retrieval.

    >>> f1 = FScore(average="binary")
    >>> f1.update([1, 1, 0, 0], [1, 0, 0, 0])  # precision 1/2, recall 1
    >>> round(f1.compute(), 4)
    0.6667
    """

    def __init__(
        self,
        beta: float = 1.0,
        average: str | None = "macro",
        zero_division: float = 0.0,
        num_classes: int | None = None,
        threshold: float = 0.5,
    ) -> None:
        if not beta >= 0:
            raise ValueError(f"FScore: beta is {beta}; it must be 0 or more.")
        self.beta = beta
        self.name = f"f{beta:g}"
        self._set(average, zero_division)
        super().__init__(num_classes, threshold)

    def _set(self, average: str | None, zero_division: float) -> None:
        if average not in ("macro", "weighted", "micro", "binary", None):
            raise ValueError(
                f"{type(self).__name__}: average {average!r} must be 'macro', 'weighted', 'micro', "
                "'binary' or None."
            )
        self.average, self.zero_division = average, zero_division

    def _quotient(self, tp: Any, fp: Any, fn: Any) -> tuple[Any, Any]:
        b2 = self.beta**2
        if b2 == np.inf:
            return tp, tp + fn
        return (1 + b2) * tp, (1 + b2) * tp + b2 * fn + fp

    def compute(self) -> Any:
        m = self.matrix
        tp = np.diag(m).astype(np.float64)
        predicted, true = m.sum(axis=0), m.sum(axis=1)
        if not true.sum():
            return float("nan")
        if self.average == "binary":
            if len(m) > 2:
                raise ValueError(
                    f"{self.name}: average='binary' is for two classes, {len(m)} were seen. Use "
                    "'macro', 'weighted' or 'micro'."
                )
            tp, predicted, true = (np.append(x, 0)[1:2] for x in (tp, predicted, true))
        elif self.average == "micro":
            tp, predicted, true = (x.sum(keepdims=True) for x in (tp, predicted, true))
        top, bottom = self._quotient(tp, predicted - tp, true - tp)
        each = np.full(len(tp), float(self.zero_division))
        np.divide(top, bottom, out=each, where=bottom > 0)
        if self.average is None:
            return each
        counted = predicted + true > 0 if self.average == "macro" else np.ones(len(each), bool)
        counted &= ~np.isnan(each)
        each, weights = each[counted], true[counted]
        if self.average != "weighted" or not weights.any():
            weights = np.ones(len(each))
        return float((each * weights).sum() / weights.sum()) if len(each) else float("nan")


class Precision(FScore):
    """TP / (TP + FP); arguments as in ``FScore``.

    >>> precision = Precision(average=None)
    >>> precision.update([1, 1, 0, 0], [1, 0, 0, 0])
    >>> precision.compute().tolist()
    [1.0, 0.5]
    """

    def __init__(
        self,
        average: str | None = "macro",
        zero_division: float = 0.0,
        num_classes: int | None = None,
        threshold: float = 0.5,
    ) -> None:
        super().__init__(0.0, average, zero_division, num_classes, threshold)
        self.name = "precision"

    def _quotient(self, tp: Any, fp: Any, fn: Any) -> tuple[Any, Any]:
        return tp, tp + fp


class Recall(FScore):
    """TP / (TP + FN); arguments as in ``FScore``.

    >>> recall = Recall(average=None)
    >>> recall.update([1, 1, 0, 0], [1, 0, 0, 1])
    >>> recall.compute().tolist()
    [0.5, 0.5]
    """

    def __init__(
        self,
        average: str | None = "macro",
        zero_division: float = 0.0,
        num_classes: int | None = None,
        threshold: float = 0.5,
    ) -> None:
        super().__init__(1.0, average, zero_division, num_classes, threshold)
        self.name = "recall"

    def _quotient(self, tp: Any, fp: Any, fn: Any) -> tuple[Any, Any]:
        return tp, tp + fn


# Regression ------------------------------------------------------------------------------------


class MSE(Metric):
    """Mean of (pred - target)^2 over every element.

    pred and target of one shape; else ValueError. TypeError: not numbers.

    >>> mse = MSE()
    >>> mse.update([1.0, 2.0], [1.0, 4.0])
    >>> mse.compute()
    2.0
    """

    name, sums = "mse", ("total", "count")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, pred: Any, target: Any) -> None:
        p, t = _values(self.name, pred, target)
        self.total += float(self._errors(p - t).sum())
        self.count += p.size

    def _errors(self, difference: np.ndarray) -> np.ndarray:
        return difference * difference

    def compute(self) -> float:
        return self.total / self.count if self.count else float("nan")


class MAE(MSE):
    """Mean of |pred - target| over every element.

    pred and target of one shape; else ValueError. TypeError: not numbers.

    >>> mae = MAE()
    >>> mae.update([1.0, 2.0], [1.0, 4.0])
    >>> mae.compute()
    1.0
    """

    name = "mae"

    def _errors(self, difference: np.ndarray) -> np.ndarray:
        return np.abs(difference)


class R2(Metric):
    """1 - sum (y - pred)^2 / sum (y - mean y)^2, the plain mean over the outputs of (N, D) data.

    The variance is kept as (count, mean, squared deviations) and merged batch by batch (Chan,
    Golub & LeVeque 1983), so a large mean costs no digits. A constant target gives 1 where it is
    met exactly and 0 otherwise, as in scikit-learn; fewer than two samples give NaN. ValueError:
    shapes that differ, or another number of outputs than before.

    >>> r2 = R2()
    >>> r2.update([1.0, 2.0, 4.0], [1.0, 2.0, 3.0])
    >>> r2.compute()
    0.5
    """

    name, sums = "r2", ("count", "mean", "deviations", "residuals")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self.mean = self.deviations = self.residuals = np.zeros(1)

    def update(self, pred: Any, target: Any) -> None:
        p, t = _values(self.name, pred, target)
        n = len(p) if p.ndim else 1
        if p.size == 0:
            return
        p, t = p.reshape(n, -1), t.reshape(n, -1)
        if self.count and t.shape[1] != len(self.mean):
            raise ValueError(f"r2: batch has {t.shape[1]} outputs, earlier ones {len(self.mean)}.")
        # From the first row on: a constant target then has its own value as mean, to the last bit.
        off = t - t[0]
        middle = off.mean(axis=0)
        self._add(n, t[0] + middle, ((off - middle) ** 2).sum(axis=0), ((t - p) ** 2).sum(axis=0))

    def _add(self, n: int, mean: np.ndarray, deviations: np.ndarray, residuals: np.ndarray) -> None:
        if not self.count:
            self.count, self.mean, self.deviations, self.residuals = n, mean, deviations, residuals
            return
        total = self.count + n
        shift = mean - self.mean
        self.mean = self.mean + shift * (n / total)
        self.deviations = self.deviations + deviations + shift**2 * (self.count * n / total)
        self.residuals = self.residuals + residuals
        self.count = total

    def merge(self, other: Metric) -> Metric:
        if isinstance(other, R2):
            if other.count:
                self._add(other.count, other.mean, other.deviations, other.residuals)
            return self
        return super().merge(other)

    def compute(self) -> float:
        if self.count < 2:
            return float("nan")
        share = np.sign(self.residuals)  # of a constant target: 0 where it is met, 1, or NaN
        np.divide(self.residuals, self.deviations, out=share, where=~(self.deviations <= 0))
        return float((1.0 - share).mean())


class Function(Metric):
    """Any ``f(y, pred)`` of two NumPy arrays, computed once over everything that was seen.

    Predictions are kept until ``compute()``, so the value is right for functions that are not
    means (an F-score, a correlation). ``collect=False`` keeps only the mean of the batches' values
    weighted by their sizes, which is enough for means and needs no memory. TypeError: no function;
    ValueError: pred and target of different lengths.

    >>> largest = Function(lambda y, pred: np.abs(y - pred).max(), name="largest")
    >>> largest.update([1.0, 2.0], [1.0, 4.0]); largest.update([3.0], [2.0])
    >>> largest.compute()
    2.0
    """

    def __init__(
        self, function: Callable[..., Any], name: str | None = None, collect: bool = True
    ) -> None:
        if not callable(function):
            raise TypeError(f"metric: expected a function f(y, pred), not {function!r}.")
        self.function, self.collect = function, collect
        self.name = str(name or getattr(function, "__name__", type(function).__name__))
        self.reset()

    def reset(self) -> None:
        self.preds: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.total, self.count = 0.0, 0

    def update(self, pred: Any, target: Any) -> None:
        p, t = _array(pred), _array(target)
        if p.ndim == 0 or t.ndim == 0 or len(p) != len(t):
            raise ValueError(f"{self.name}: pred {p.shape} and target {t.shape} differ in length.")
        if self.collect:
            self.preds.append(np.array(p))
            self.targets.append(np.array(t))
        elif len(t):
            self.total += float(self.function(t, p)) * len(t)
        self.count += len(t)

    def compute(self) -> Any:
        if not self.count:
            return float("nan")
        if not self.collect:
            return self.total / self.count
        value = self.function(np.concatenate(self.targets), np.concatenate(self.preds))
        return float(value) if np.ndim(value) == 0 else value

    def merge(self, other: Metric) -> Metric:
        if isinstance(other, Function) and other.collect == self.collect:
            self.preds += other.preds
            self.targets += other.targets
            self.total += other.total
            self.count += other.count
            return self
        return super().merge(other)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"total": self.total, "count": self.count}
        if self.preds:
            state["pred"] = np.concatenate(self.preds)
            state["target"] = np.concatenate(self.targets)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self.total, self.count = float(state["total"]), int(state["count"])
        if "pred" in state:
            self.preds, self.targets = [np.array(state["pred"])], [np.array(state["target"])]


_NAMES: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "acc": Accuracy,
    "precision": Precision,
    "recall": Recall,
    "f1": FScore,
    "fscore": FScore,
    "confusion": ConfusionMatrix,
    "confusion_matrix": ConfusionMatrix,
    "mse": MSE,
    "mae": MAE,
    "r2": R2,
}


def get(metric: Any) -> Metric:
    """A metric from a name ("accuracy", "top5", "mse", ...), a class, an object or f(y, pred).

    ValueError: an unknown name; it lists those there are.

    >>> get("top5").name, get(MSE).name
    ('top5', 'mse')
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        key = metric.lower().replace("-", "_")
        top = re.fullmatch(r"top_?(\d+)(_accuracy)?", key)
        if top:
            return TopK(int(top[1]))
        if key in _NAMES:
            return _NAMES[key]()
        raise ValueError(
            f"metric {metric!r} is unknown; known: {', '.join(sorted(_NAMES))}, topK (as 'top5'), "
            "or a function f(y, pred)."
        )
    if isinstance(metric, type) and issubclass(metric, Metric):
        return metric()
    return Function(metric)


def get_all(metrics: Any) -> list[Metric]:
    """A list of metrics with names that differ."""
    if isinstance(metrics, (str, Metric)) or callable(metrics):
        metrics = (metrics,)
    if not isinstance(metrics, Iterable):
        raise TypeError(f"metrics: expected a list, not {type(metrics).__name__}.")
    found = [get(m) for m in metrics]
    for i, metric in enumerate(found):
        if metric.name == "loss" or any(metric.name == other.name for other in found[:i]):
            raise ValueError(
                f"metrics: two results would be called {metric.name!r}; set .name of one of them."
            )
    return found
