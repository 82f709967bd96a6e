"""Scaling of features and channels: always along the last axis, one value a feature or channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..dataset import as_array

__all__ = ["Clip", "Compose", "Log", "MinMax", "OneHot", "Standardize", "ToFloat"]

_CHUNK = 1 << 20  # numbers converted to float64 at a time while fitting


def _floating(x: np.ndarray) -> np.ndarray:
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)


def _table(data: Any, what: str) -> np.ndarray:
    """The values to fit as (rows, features); a dataset gives its first array."""
    x = as_array(data.arrays[0] if hasattr(data, "arrays") else data, what)
    if x.size == 0:
        raise ValueError(f"{what}.fit: no values (shape {x.shape})")
    return x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1)


def _chunks(table: np.ndarray, what: str) -> Any:
    rows = max(1, _CHUNK // table.shape[1])
    for start in range(0, len(table), rows):
        part = table[start : start + rows].astype(np.float64)
        finite = np.isfinite(part)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise ValueError(
                f"{what}.fit: feature {column} holds {part[row, column]}; fill or drop missing "
                "values first"
            )
        yield part


def _widen(x: np.ndarray, parts: tuple[np.ndarray, ...]) -> tuple[np.ndarray, Any]:
    """x with its last two axes as one, and the parts repeated to match: NumPy's inner loop is then
    a row of pixels instead of a few channels."""
    if x.ndim < 3 or x.size == 0 or not x.flags.c_contiguous:
        return x, parts
    return x.reshape(*x.shape[:-2], -1), tuple(np.tile(p, x.shape[-2]) for p in parts)


class _Fitted:
    """y = (x - shift) / scale along the last axis, with shift and scale from ``fit``."""

    shift: np.ndarray | None = None
    scale: np.ndarray | None = None

    def _parts(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shift, what rounding it to x's dtype leaves, and scale."""
        name = type(self).__name__
        if self.shift is None or self.scale is None:
            raise ValueError(f"{name}: call fit(x) with the training data first")
        features = x.shape[-1] if x.ndim > 1 else 1
        if features != len(self.shift):
            raise ValueError(
                f"{name}: input of shape {x.shape} has {features} features (last axis); it was "
                f"fitted on {len(self.shift)}"
            )
        shift = self.shift.astype(x.dtype)
        return shift, (self.shift - shift).astype(x.dtype), self.scale.astype(x.dtype)

    def fit(self, x: Any) -> Any:
        """Learn shift and scale from the training data x (..., features); returns self."""
        raise NotImplementedError

    def __call__(self, x: Any, rng: Any = None) -> np.ndarray:
        x = _floating(as_array(x, type(self).__name__))
        parts = self._parts(x)
        wide, (shift, rest, scale) = _widen(x, parts)
        y = wide - shift
        y -= rest
        y /= scale
        return y.reshape(x.shape)

    def inverse(self, y: Any) -> np.ndarray:
        """The x that gives y."""
        y = _floating(as_array(y, type(self).__name__))
        parts = self._parts(y)
        wide, (shift, rest, scale) = _widen(y, parts)
        x = wide * scale
        x += rest
        x += shift
        return x.reshape(y.shape)

    def transform(self, x: Any) -> np.ndarray:
        """The same as calling it."""
        return self(x)

    def fit_transform(self, x: Any) -> np.ndarray:
        """Fit to x and transform it."""
        self.fit(x)
        return self(x)

    def state_dict(self) -> dict[str, Any]:
        """What was fitted, for a checkpoint."""
        return {"shift": self.shift, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what another one was fitted to."""
        shift, scale = state["shift"], state["scale"]
        self.shift = None if shift is None else np.asarray(shift, np.float64)
        self.scale = None if scale is None else np.asarray(scale, np.float64)


class Standardize(_Fitted):
    """Zero mean and unit variance: y = (x - mean) / std, for each feature or channel (last axis).

    mean and std (population, 1/N) come from ``fit`` (float64, in one pass), or are given. A feature
    that never changes is only shifted to zero. Integers become float32.

    Raises:
        ValueError: not fitted; another number of features; nan or infinity while fitting.

    >>> s = Standardize().fit([[1.0, 5.0], [3.0, 5.0]])
    >>> s(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    >>> s.inverse([[-1.0, 0.0]]).tolist()
    [[1.0, 5.0]]
    """

    def __init__(self, mean: Any = None, std: Any = None) -> None:
        if (mean is None) != (std is None):
            raise ValueError("Standardize: give both mean and std, or neither and call fit(x)")
        if mean is not None:
            self.shift, scale = np.atleast_1d(np.asarray(mean, np.float64)), np.asarray(std, float)
            if scale.shape not in ((), (1,), self.shift.shape):
                raise ValueError(
                    f"Standardize: mean has {self.shift.size} values, std {scale.size}; expected "
                    "one of each for every feature"
                )
            self.scale = np.broadcast_to(np.where(scale == 0, 1.0, scale), self.shift.shape).copy()

    @property
    def mean(self) -> np.ndarray | None:
        """Mean of each feature."""
        return self.shift

    @property
    def std(self) -> np.ndarray | None:
        """Standard deviation of each feature; 1 where it does not change."""
        return self.scale

    def fit(self, x: Any) -> Standardize:
        """Learn mean and standard deviation from the training data x (..., features)."""
        table = _table(x, "Standardize")
        count, mean, squares = 0, np.zeros(table.shape[1]), np.zeros(table.shape[1])
        low, high = np.full(table.shape[1], np.inf), np.full(table.shape[1], -np.inf)
        for part in _chunks(table, "Standardize"):
            # Chan, Golub and LeVeque 1979: merge the moments of two parts
            m = part.mean(axis=0)
            delta, total = m - mean, count + len(part)
            squares += ((part - m) ** 2).sum(axis=0) + delta**2 * (count * len(part) / total)
            mean += delta * (len(part) / total)
            count = total
            low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
        std = np.sqrt(squares / count)
        constant = (low == high) | (std == 0)
        self.shift = np.where(constant, low, mean)
        self.scale = np.where(constant, 1.0, std)
        return self

    def __repr__(self) -> str:
        return f"Standardize(mean={self.shift}, std={self.scale})"


class MinMax(_Fitted):
    """Linear scaling of each feature or channel to a range: the fitted least value goes to its
    lower end, the greatest to its upper end. A feature that never changes goes to the lower end.

    y = low + (x - min) / (max - min) * (high - low), along the last axis. Integers become float32.

    Raises:
        ValueError: a range that does not rise; not fitted; another number of features; nan or
            infinity while fitting.

    >>> MinMax().fit_transform([[2.0], [4.0], [3.0]]).ravel().tolist()
    [0.0, 1.0, 0.5]
    """

    def __init__(self, feature_range: tuple[float, float] = (0.0, 1.0)) -> None:
        try:
            low, high = map(float, feature_range)
        except (TypeError, ValueError):
            raise TypeError(
                f"MinMax: feature_range must be a pair (low, high), got {feature_range!r}"
            ) from None
        if not low < high:
            raise ValueError(f"MinMax: feature_range must rise, got {feature_range}")
        self.feature_range = (low, high)

    def fit(self, x: Any) -> MinMax:
        """Learn least and greatest values from the training data x (..., features)."""
        table = _table(x, "MinMax")
        low, high = np.full(table.shape[1], np.inf), np.full(table.shape[1], -np.inf)
        for part in _chunks(table, "MinMax"):
            low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
        start, end = self.feature_range
        self.scale = np.where(high > low, high - low, end - start) / (end - start)
        self.shift = low - start * self.scale
        return self

    def __repr__(self) -> str:
        return f"MinMax({self.feature_range})"


class Log:
    """y = log(x + offset): long tails become short. The default offset 1 keeps zero at zero.

    Raises:
        ValueError: a value with x + offset <= 0.

    >>> Log()(np.array([0.0, 9.0])).round(3).tolist()
    [0.0, 2.303]
    """

    def __init__(self, offset: float = 1.0) -> None:
        self.offset = float(offset)

    def __call__(self, x: Any, rng: Any = None) -> np.ndarray:
        x = _floating(as_array(x, "Log"))
        if x.size and not x.min() > -self.offset:
            raise ValueError(
                f"Log: the least value is {x.min()}; x + offset must be above 0 "
                f"(offset is {self.offset})"
            )
        return np.log1p(x) if self.offset == 1 else np.log(x + x.dtype.type(self.offset))

    def inverse(self, y: Any) -> np.ndarray:
        """exp(y) - offset."""
        y = _floating(as_array(y, "Log"))
        return np.expm1(y) if self.offset == 1 else np.exp(y) - y.dtype.type(self.offset)

    def __repr__(self) -> str:
        return f"Log(offset={self.offset})"


class Clip:
    """Values limited to [low, high]; None leaves that side open.

    The dtype stays as it is. ValueError: no bound, or low above high.

    >>> Clip(-1, 1)(np.array([-3.0, 0.5, 7.0])).tolist()
    [-1.0, 0.5, 1.0]
    """

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        if low is None and high is None:
            raise ValueError("Clip: give low, high or both")
        if low is not None and high is not None and not low <= high:
            raise ValueError(f"Clip: low {low} is above high {high}")
        self.low, self.high = low, high

    def __call__(self, x: Any, rng: Any = None) -> np.ndarray:
        x = as_array(x, "Clip")
        if x.dtype.kind in "iu":  # a bound outside the type's range limits nothing
            info = np.iinfo(x.dtype)
            low = info.min if self.low is None else min(max(self.low, info.min), info.max)
            high = info.max if self.high is None else min(max(self.high, info.min), info.max)
            return np.clip(x, x.dtype.type(np.ceil(low)), x.dtype.type(np.floor(high)))
        return np.clip(x, self.low, self.high)

    def __repr__(self) -> str:
        return f"Clip({self.low}, {self.high})"


class OneHot:
    """Class indices (...) to float32 rows (..., num_classes) with a 1 at the class.

    Raises:
        IndexError: an index outside 0 .. num_classes - 1.
        TypeError: indices that are no integers.
        ValueError: ``num_classes`` below 1.

    >>> OneHot(3)([2, 0]).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"OneHot: num_classes must be at least 1, got {num_classes}")
        self.num_classes = int(num_classes)

    def __call__(self, x: Any, rng: Any = None) -> np.ndarray:
        x = as_array(x, "OneHot")
        if x.dtype.kind not in "iu":
            raise TypeError(f"OneHot: class indices must be integers, got {x.dtype}")
        if x.size and not (x.min() >= 0 and x.max() < self.num_classes):
            raise IndexError(
                f"OneHot: indices from {x.min()} to {x.max()}; expected 0 to {self.num_classes - 1}"
            )
        y = np.zeros((x.size, self.num_classes), np.float32)
        y[np.arange(x.size), x.reshape(-1)] = 1
        return y.reshape(*x.shape, self.num_classes)

    def __repr__(self) -> str:
        return f"OneHot({self.num_classes})"


class ToFloat:
    """uint8 to float32 in [0, 1] (x / 255); uint16 likewise (x / 65535); others cast to float32.

    >>> ToFloat()(np.array([0, 255], np.uint8)).tolist()
    [0.0, 1.0]
    """

    def __call__(self, x: Any, rng: Any = None) -> np.ndarray:
        x = as_array(x, "ToFloat")
        if x.dtype in (np.uint8, np.uint16):
            return np.divide(x, np.float32(np.iinfo(x.dtype).max), dtype=np.float32)
        return x.astype(np.float32)

    def __repr__(self) -> str:
        return "ToFloat()"


class Compose:
    """One transform after the other, all drawing from the same generator.

    Takes them one by one or as a list. TypeError: something that is no function.

    >>> Compose(ToFloat(), Clip(0, 0.5))(np.array([0, 255], np.uint8)).tolist()
    [0.0, 0.5]
    """

    def __init__(self, *transforms: Callable[..., Any]) -> None:
        if len(transforms) == 1 and isinstance(transforms[0], (list, tuple)):
            transforms = tuple(transforms[0])
        for transform in transforms:
            if not callable(transform):
                raise TypeError(f"Compose: {transform!r} is not a transform f(x, rng)")
        self.transforms = transforms

    def __call__(self, x: Any, rng: Any = None) -> Any:
        for transform in self.transforms:
            x = transform(x, rng)
        return x

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"
