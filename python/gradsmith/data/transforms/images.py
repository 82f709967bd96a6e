"""Random changes of images (N, H, W, C), drawn for each image, done for the batch at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dataset import as_array

__all__ = ["ColorJitter", "Cutout", "Grayscale", "RandomCrop", "RandomFlip", "RandomRotate"]


def _images(x: Any, what: str) -> np.ndarray:
    x = as_array(x, what)
    if x.ndim != 4:
        raise ValueError(f"{what}: expected images (N, H, W, C), got shape {x.shape}")
    return x


def _rng(rng: Any, what: str) -> np.random.Generator:
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool):
        return np.random.default_rng(rng)
    raise TypeError(f"{what}: needs a NumPy generator or a seed as second argument, got {rng!r}")


def _pair(value: Any, what: str, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list, np.ndarray)) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, (int, np.integer)) and v >= least for v in pair):
        raise ValueError(
            f"{what} must be an integer or a pair of integers >= {least}, got {value!r}"
        )
    return int(pair[0]), int(pair[1])


def _numbers(value: Any, what: str) -> tuple[float, ...]:
    """A number, or a pair of them (a range)."""
    given = tuple(value) if isinstance(value, (tuple, list, np.ndarray)) else (value,)
    number = (int, float, np.integer, np.floating)
    if len(given) not in (1, 2) or not all(isinstance(v, number) for v in given):
        raise TypeError(f"{what} must be a number or a pair (low, high), got {value!r}")
    return tuple(map(float, given))


def _like(y: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float32 results back in the images' dtype; integers rounded and limited to their range."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.clip(np.rint(y), info.min, info.max).astype(dtype)
    return y.astype(dtype, copy=False)


def _filling(fill: float, dtype: np.dtype) -> Any:
    """``fill`` as a pixel of that dtype, limited to its range as every result is."""
    return _like(np.asarray(fill, np.float64), dtype)


def _few_at_a_time(x: np.ndarray) -> Iterator[slice]:
    """Slices of the batch of about 8,192 pixels: temporaries stay in the cache, and below the size
    from which the allocator maps fresh pages for each."""
    step = max(1, 8192 // max(1, x.shape[1] * x.shape[2]))
    return (slice(i, i + step) for i in range(0, len(x), step))


class RandomFlip:
    """Mirror each image left to right and/or top to bottom, each with probability p.

    Images (N, H, W, C) of any dtype. As in Krizhevsky et al. 2012, ImageNet Classification.

    Raises:
        ValueError: p outside [0, 1]; no images.
        TypeError: no generator or seed as second argument.

    >>> RandomFlip(p=1.0)(np.arange(3).reshape(1, 1, 3, 1), 0).ravel().tolist()
    [2, 1, 0]
    """

    def __init__(self, horizontal: bool = True, vertical: bool = False, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"RandomFlip: p must be in [0, 1], got {p}")
        self.horizontal, self.vertical, self.p = horizontal, vertical, p

    def __call__(self, x: Any, rng: Any = None) -> np.ndarray:
        y = _images(x, "RandomFlip").copy()
        rng = _rng(rng, "RandomFlip")
        if self.horizontal:
            chosen = rng.random(len(y)) < self.p
            y[chosen] = y[chosen, :, ::-1]
        if self.vertical:
            chosen = rng.random(len(y)) < self.p
            y[chosen] = y[chosen, ::-1]
        return y

    def __repr__(self) -> str:
        return f"RandomFlip({self.horizontal}, {self.vertical}, p={self.p})"


class RandomCrop:
    """A window of ``size`` (height, width) at a random place of each image, after padding.

    ``size`` None keeps the images' own, so that with ``padding=p`` each image moves by up to p
    pixels. ``mode``: "constant" (pads with ``fill``), "edge", "reflect", "symmetric" or "wrap".
    As in He et al. 2016, Deep Residual Learning (CIFAR-10 with ``padding=4``).

    Raises:
        ValueError: a window larger than the padded image; an unknown mode; no images.
        TypeError: no generator or seed as second argument.

    >>> RandomCrop(padding=2)(np.ones((4, 8, 8, 3), np.float32), 0).shape
    (4, 8, 8, 3)
    """

    _MODES = ("constant", "edge", "reflect", "symmetric", "wrap")

    def __init__(
        self, size: Any = None, padding: Any = 0, mode: str = "constant", fill: float = 0
    ) -> None:
        self.size = None if size is None else _pair(size, "RandomCrop: size", 1)
        self.padding = _pair(padding, "RandomCrop: padding", 0)
        if mode not in self._MODES:
            raise ValueError(f"RandomCrop: mode must be one of {self._MODES}, got {mode!r}")
        self.mode, self.fill = mode, fill

    def __call__(self, x: Any, rng: Any = None) -> np.ndarray:
        x = _images(x, "RandomCrop")
        rng = _rng(rng, "RandomCrop")
        n, height, width, _ = x.shape
        h, w = self.size or (height, width)
        py, px = self.padding
        rows, columns = height + 2 * py - h, width + 2 * px - w
        if rows < 0 or columns < 0:
            raise ValueError(
                f"RandomCrop: size {h} x {w} is larger than the padded images, "
                f"{height + 2 * py} x {width + 2 * px}"
            )
        if py or px:
            extra: Any = (
                {"constant_values": _filling(self.fill, x.dtype)} if self.mode == "constant" else {}
            )
            x = np.pad(x, ((0, 0), (py, py), (px, px), (0, 0)), mode=self.mode, **extra)  # type: ignore[call-overload]
        top, left = rng.integers(0, rows + 1, n), rng.integers(0, columns + 1, n)
        # (N, tops, lefts, C, h, w) without a copy; then one window of each image is copied
        windows = np.lib.stride_tricks.sliding_window_view(x, (h, w), axis=(1, 2))
        windows = windows.transpose(0, 1, 2, 4, 5, 3)
        return np.ascontiguousarray(windows[np.arange(n), top, left])

    def __repr__(self) -> str:
        return f"RandomCrop({self.size}, padding={self.padding}, mode={self.mode!r})"


class RandomRotate:
    """Turn each image about its centre by a random angle, with bilinear interpolation.

    ``degrees``: angles are uniform in [-degrees, degrees], or in a given (low, high);
    counter-clockwise is positive. What comes from outside the image is ``fill``.

    Raises:
        ValueError: angles that do not rise; no images (N, H, W, C).
        TypeError: no generator or seed as second argument.

    >>> x = np.arange(4.0, dtype=np.float32).reshape(1, 2, 2, 1)
    >>> RandomRotate((90, 90))(x, 0)[0, :, :, 0].round(3).tolist()
    [[1.0, 3.0], [0.0, 2.0]]
    """

    def __init__(self, degrees: float | tuple[float, float], fill: float = 0) -> None:
        span = _numbers(degrees, "RandomRotate: degrees")
        if len(span) == 1 and span[0] < 0:
            raise ValueError(f"RandomRotate: degrees must be 0 or more, got {degrees}")
        self.low, self.high = span if len(span) == 2 else (-span[0], span[0])
        if not self.low <= self.high:
            raise ValueError(f"RandomRotate: degrees must rise, got {degrees}")
        self.fill = fill

    def __call__(self, x: Any, rng: Any = None) -> np.ndarray:
        x = _images(x, "RandomRotate")
        rng = _rng(rng, "RandomRotate")
        angle = np.deg2rad(rng.uniform(self.low, self.high, len(x))).astype(np.float32)
        y = np.empty(x.shape, np.float32)
        for part in _few_at_a_time(x):
            self._turn(x[part], angle[part], y[part])
        return _like(y, x.dtype)

    def _turn(self, x: np.ndarray, angle: np.ndarray, y: np.ndarray) -> None:
        """Images (n, H, W, C) turned by (n,) radians into y."""
        n, height, width, channels = x.shape
        cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
        dy = np.arange(height, dtype=np.float32)[None, :, None] - np.float32((height - 1) / 2)
        dx = np.arange(width, dtype=np.float32)[None, None, :] - np.float32((width - 1) / 2)
        # Where each pixel comes from. The frame of fill around the image, one pixel wide, stands
        # for everything outside; coordinates are those of the framed image.
        sy = np.clip(sin * dx + cos * dy + np.float32((height + 1) / 2), 0, height + 1)
        sx = np.clip(cos * dx - sin * dy + np.float32((width + 1) / 2), 0, width + 1)
        y0 = np.minimum(sy.astype(np.intp), height)
        x0 = np.minimum(sx.astype(np.intp), width)
        fy, fx = sy - y0.astype(np.float32), sx - x0.astype(np.float32)
        row = width + 2
        corner = (np.arange(n)[:, None, None] * (height + 2) + y0) * row + x0
        corners = [corner, corner + 1, corner + row, corner + row + 1]
        weights = [(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx]
        plane = np.full((n, height + 2, width + 2), self.fill, np.float32)
        for c in range(channels):  # one plane at a time: contiguous arithmetic, four gathers
            plane[:, 1:-1, 1:-1] = x[..., c]
            total = plane.take(corners[0]) * weights[0]
            for index, weight in zip(corners[1:], weights[1:]):
                total += plane.take(index) * weight
            y[..., c] = total

    def __repr__(self) -> str:
        return f"RandomRotate(({self.low}, {self.high}))"


class Grayscale:
    """Brightness of RGB images, 0.299 R + 0.587 G + 0.114 B, as 1 or 3 equal channels.

    Images (N, H, W, 3), or with one channel, of any dtype. ValueError: another number of channels.
    Source: ITU-R BT.601.

    >>> Grayscale()(np.ones((1, 2, 2, 3), np.float32)).shape
    (1, 2, 2, 1)
    """

    def __init__(self, channels: int = 1) -> None:
        if channels not in (1, 3):
            raise ValueError(f"Grayscale: channels must be 1 or 3, got {channels}")
        self.channels = channels

    def __call__(self, x: Any, rng: Any = None) -> np.ndarray:
        x = _images(x, "Grayscale")
        if x.shape[-1] not in (1, 3):
            raise ValueError(f"Grayscale: expected 1 or 3 channels, got shape {x.shape}")
        gray = _like(_gray(x), x.dtype)
        return np.repeat(gray, self.channels, axis=-1)

    def __repr__(self) -> str:
        return f"Grayscale({self.channels})"


class ColorJitter:
    """Random brightness, contrast, saturation and hue of each image.

    A number v draws the factor from [max(0, 1 - v), 1 + v] (the hue shift from [-v, v], in turns of
    the colour circle, at most 0.5); a pair gives the range itself. With factor f and per image:
    brightness f x; contrast f x + (1 - f) mean(gray); saturation f x + (1 - f) gray. The four come
    in an order drawn for each batch. Images are uint8, or floats in [0, 1]; results are limited to
    that range. On images of one channel saturation and hue do nothing. Arguments as torchvision's.

    Raises:
        ValueError: a range that does not rise or leaves its bounds; no images (N, H, W, 1 or 3).
        TypeError: other dtypes; no generator or seed as second argument.

    >>> x = np.full((2, 4, 4, 3), 0.5, np.float32)
    >>> float(ColorJitter(brightness=(2.0, 2.0))(x, 0).max())
    1.0
    """

    def __init__(
        self, brightness: Any = 0.0, contrast: Any = 0.0, saturation: Any = 0.0, hue: Any = 0.0
    ) -> None:
        self.ranges = {
            "brightness": _range(brightness, 1.0, "brightness"),
            "contrast": _range(contrast, 1.0, "contrast"),
            "saturation": _range(saturation, 1.0, "saturation"),
            "hue": _range(hue, 0.0, "hue"),
        }

    def __call__(self, x: Any, rng: Any = None) -> np.ndarray:
        x = _images(x, "ColorJitter")
        rng = _rng(rng, "ColorJitter")
        if x.shape[-1] not in (1, 3):
            raise ValueError(f"ColorJitter: expected 1 or 3 channels, got shape {x.shape}")
        if x.dtype != np.uint8 and x.dtype.kind != "f":
            raise TypeError(f"ColorJitter: expected uint8 or floats in [0, 1], got {x.dtype}")
        top = np.float32(255 if x.dtype == np.uint8 else 1)
        y = x.astype(np.float32, order="C")
        names = list(self.ranges)
        for i in rng.permutation(4):
            span = self.ranges[names[i]]
            if span is None:
                continue
            f = rng.uniform(*span, len(y)).astype(np.float32)[:, None, None, None]
            if names[i] == "brightness":
                y *= f
            elif names[i] == "contrast":
                mean = _gray(y).mean(axis=(1, 2, 3), keepdims=True)
                y = f * y + (1 - f) * mean
            elif y.shape[-1] == 1:
                continue
            elif names[i] == "saturation":
                y = f * y + (1 - f) * _gray(y)
            else:
                for part in _few_at_a_time(y):
                    y[part] = _turn_hue(y[part], f[part])
            np.clip(y, 0, top, out=y)
        return _like(y, x.dtype)

    def __repr__(self) -> str:
        return f"ColorJitter({', '.join(f'{k}={v}' for k, v in self.ranges.items() if v)})"


def _range(value: Any, middle: float, name: str) -> tuple[float, float] | None:
    given = _numbers(value, f"ColorJitter: {name}")
    if len(given) == 2:
        low, high = given
    else:
        low, high = middle - given[0], middle + given[0]
        if given[0] < 0:
            raise ValueError(f"ColorJitter: {name} must be 0 or more, got {value}")
        low = max(0.0, low) if middle else low
    least, most = (0.0, np.inf) if middle else (-0.5, 0.5)
    if not least <= low <= high <= most:
        raise ValueError(
            f"ColorJitter: {name} range ({low}, {high}) must rise, within {least} to {most}"
        )
    return None if low == high == middle else (low, high)


def _gray(x: np.ndarray) -> np.ndarray:
    """Luma of ITU-R BT.601, as in Pillow; not ``@``, whose bits depend on layout and threads."""
    if x.shape[-1] == 1:
        return x
    x = x if x.dtype.kind == "f" else x.astype(np.float32)
    y = x[..., 0:1] * np.float32(0.299)
    y += x[..., 1:2] * np.float32(0.587)
    y += x[..., 2:3] * np.float32(0.114)
    return y


def _turn_hue(y: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """RGB (N, H, W, 3) with the hue of each image shifted by ``shift`` turns (HSV and back)."""
    r, g, b = (np.ascontiguousarray(y[..., c]) for c in range(3))
    value = np.maximum(np.maximum(r, g), b)
    chroma = value - np.minimum(np.minimum(r, g), b)
    per = 1 / np.where(chroma > 0, chroma, np.float32(1))
    sector = np.where(
        value == r, (g - b) * per, np.where(value == g, (b - r) * per + 2, (r - g) * per + 4)
    )
    sector += 6 * shift[..., 0]
    # each channel is value - chroma * (how far the hue is from it, as a trapezoid)
    result = np.empty_like(y)
    for c, start in enumerate((5, 3, 1)):
        k = sector + np.float32(start)
        k -= 6 * np.floor(k * np.float32(1 / 6))
        fall = np.minimum(k, 4 - k)
        np.clip(fall, 0, 1, out=fall)
        fall *= chroma
        np.subtract(value, fall, out=result[..., c])
    return result


class Cutout:
    """Set ``holes`` rectangles of ``size`` (height, width) at random places of each image to fill.

    Centres are uniform over the pixels; a rectangle that reaches over the border is cut there.
    DeVries and Taylor, Improved Regularization of CNNs with Cutout, arXiv:1708.04552, 2017.

    Raises:
        ValueError: sizes or ``holes`` below 1; no images (N, H, W, C).
        TypeError: no generator or seed as second argument.

    >>> int((Cutout(2)(np.ones((1, 8, 8, 1), np.float32), 0) == 0).sum()) in (1, 2, 4)
    True
    """

    def __init__(self, size: Any, holes: int = 1, fill: float = 0) -> None:
        self.size = _pair(size, "Cutout: size", 1)
        if holes < 1:
            raise ValueError(f"Cutout: holes must be at least 1, got {holes}")
        self.holes, self.fill = int(holes), fill

    def __call__(self, x: Any, rng: Any = None) -> np.ndarray:
        y = _images(x, "Cutout").copy()
        rng = _rng(rng, "Cutout")
        n, height, width, _ = y.shape
        fill = _filling(self.fill, y.dtype)
        for _ in range(self.holes):
            top = rng.integers(0, height, n)[:, None] - self.size[0] // 2
            left = rng.integers(0, width, n)[:, None] - self.size[1] // 2
            rows, columns = np.arange(height), np.arange(width)
            in_rows = (rows >= top) & (rows < top + self.size[0])
            in_columns = (columns >= left) & (columns < left + self.size[1])
            y[in_rows[:, :, None] & in_columns[:, None, :]] = fill
        return y

    def __repr__(self) -> str:
        return f"Cutout({self.size}, holes={self.holes})"
