"""Made-up data sets with a known answer: arrays (x, y), the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["make_blobs", "make_moons", "make_regression", "make_spirals"]


def _start(name: str, n_samples: int, seed: int) -> np.random.Generator:
    if n_samples < 1:
        raise ValueError(f"{name}: n_samples must be at least 1, got {n_samples}")
    return np.random.Generator(np.random.Philox(key=seed))


def _finish(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, noise: float, argument: str
) -> tuple[np.ndarray, np.ndarray]:
    """Add noise and mix the samples."""
    if noise < 0:
        raise ValueError(f"{argument} must be 0 or more, got {noise}")
    x = x + rng.normal(0, noise, x.shape) if noise else x
    order = rng.permutation(len(x))
    return x[order].astype(np.float32), y[order]


def _classes(n_samples: int, classes: int) -> np.ndarray:
    return np.arange(n_samples, dtype=np.int64) % classes


def make_blobs(
    n_samples: int = 100,
    n_features: int = 2,
    centers: Any = 3,
    cluster_std: float = 1.0,
    center_box: tuple[float, float] = (-10.0, 10.0),
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Normal clouds: x float32 (N, features), y int64 (N,), the cloud it is from.

    ``centers`` is a number of clouds (centres uniform in ``center_box``) or their centres (K, F);
    ``cluster_std`` is the standard deviation around them. ValueError: counts below 1, a negative
    ``cluster_std``, centres of another shape. Named as in scikit-learn.

    >>> x, y = make_blobs(30, centers=3)
    >>> x.shape, np.bincount(y).tolist()
    ((30, 2), [10, 10, 10])
    """
    rng = _start("make_blobs", n_samples, seed)
    if isinstance(centers, (int, np.integer)):
        if centers < 1 or n_features < 1:
            raise ValueError("make_blobs: centers and n_features must be at least 1")
        middle = rng.uniform(*center_box, (int(centers), n_features))
    else:
        middle = np.asarray(centers, np.float64)
        if middle.ndim != 2:
            raise ValueError(f"make_blobs: centers have shape {middle.shape}; expected (K, F)")
    y = _classes(n_samples, len(middle))
    return _finish(rng, middle[y], y, cluster_std, "make_blobs: cluster_std")


def make_moons(
    n_samples: int = 100, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Two half circles that reach into each other: x float32 (N, 2), y int64 (N,) of 0 and 1.

    Class 0 is (cos a, sin a) and class 1 (1 - cos a, 1/2 - sin a), a from 0 to pi, plus normal
    noise of standard deviation ``noise``. ValueError: no samples, negative noise. Named as in
    scikit-learn.

    >>> x, y = make_moons(10)
    >>> x.shape, sorted(set(y.tolist()))
    ((10, 2), [0, 1])
    """
    rng = _start("make_moons", n_samples, seed)
    y = _classes(n_samples, 2)
    angle = np.pi * (np.arange(n_samples) // 2) / max(1, (n_samples + 1) // 2 - 1)
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x = np.where(y[:, None] == 0, x, [1.0, 0.5] - x)
    return _finish(rng, x, y, noise, "make_moons: noise")


def make_spirals(
    n_samples: int = 100, classes: int = 2, turns: float = 1.5, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Spiral arms around the origin, radius 0 to 1: x float32 (N, 2), y int64 (N,), the arm.

    Arm c is r (cos a, sin a) with a = 2 pi (turns r + c / classes), even over the disc's area, plus
    normal noise of standard deviation ``noise``. ValueError: counts below 1, negative noise. After
    Lang & Witbrock 1988, Learning to Tell Two Spirals Apart.

    >>> x, y = make_spirals(99, classes=3)
    >>> x.shape, np.bincount(y).tolist()
    ((99, 2), [33, 33, 33])
    """
    rng = _start("make_spirals", n_samples, seed)
    if classes < 1:
        raise ValueError(f"make_spirals: classes must be at least 1, got {classes}")
    y = _classes(n_samples, classes)
    radius = np.sqrt((np.arange(n_samples) // classes + 0.5) / -(-n_samples // classes))
    angle = 2 * np.pi * (turns * radius + y / classes)
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _finish(rng, x, y, noise, "make_spirals: noise")


def make_regression(
    n_samples: int = 100,
    n_features: int = 10,
    n_informative: int | None = None,
    n_targets: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    coef: bool = False,
) -> tuple[np.ndarray, ...]:
    """A noisy linear map: y = x w + noise, x normal float32 (N, features), y float32 (N, targets).

    ``n_informative`` features have weights (uniform in [0, 100]), the others none; None is all.
    With ``coef`` the weights (features, targets) are returned third. ``noise`` is its standard
    deviation. ValueError: counts below 1, more informative features than features, negative noise.
    Named as in scikit-learn.

    >>> x, y, w = make_regression(50, 4, coef=True)
    >>> bool(np.allclose(x @ w, y, rtol=1e-4, atol=1e-3))
    True
    """
    rng = _start("make_regression", n_samples, seed)
    if n_features < 1 or n_targets < 1:
        raise ValueError("make_regression: n_features and n_targets must be at least 1")
    used = n_features if n_informative is None else n_informative
    if not 0 <= used <= n_features:
        raise ValueError(f"make_regression: n_informative must be in 0 .. {n_features}, got {used}")
    if noise < 0:
        raise ValueError(f"make_regression: noise must be 0 or more, got {noise}")
    x = rng.normal(size=(n_samples, n_features)).astype(np.float32)
    w = np.zeros((n_features, n_targets))
    w[rng.permutation(n_features)[:used]] = rng.uniform(0, 100, (used, n_targets))
    y = (x @ w + rng.normal(size=(n_samples, n_targets)) * noise).astype(np.float32)
    return (x, y, w.astype(np.float32)) if coef else (x, y)
