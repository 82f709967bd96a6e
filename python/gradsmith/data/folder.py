"""Images in one folder a class."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ._files import scaled

__all__ = ["ImageFolder"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class ImageFolder:
    """Images from ``root/<class>/.../<file>``, read when they are asked for (needs Pillow).

    Classes are the folders in ``root``, sorted by name; ``classes`` holds their names, ``paths``
    and ``labels`` the files. ``ds[index]`` gives images (N, H, W, C) and labels int64 (N,).

    Args:
        root: the folder.
        size: (height, width) or a number to resize every image to (bilinear); None leaves them as
            they are, and then all must have the same size.
        mode: "RGB" (C = 3) or "L" (greyscale, C = 1). Transparency is left out; 16 bits become 8.
        dtype: "float32" (values / 255) or "uint8".

    Raises:
        FileNotFoundError: no such folder, no class folders, or a class without images.
        ValueError: an image that cannot be read (names the file), or sizes that differ.
        ImportError: Pillow is not installed.

    >>> import os, tempfile
    >>> root = tempfile.mkdtemp()
    >>> for name in ["cat", "dog"]:
    ...     os.mkdir(os.path.join(root, name))
    ...     with open(os.path.join(root, name, "1.ppm"), "wb") as file:
    ...         _ = file.write(b"P6 2 1 255 " + bytes(6))  # two black pixels
    >>> ds = ImageFolder(root, size=32)  # ds[[0, 1]] has images (2, 32, 32, 3)
    >>> ds.classes, ds.labels.tolist()
    (['cat', 'dog'], [0, 1])
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: int | tuple[int, int] | None = None,
        mode: str = "RGB",
        dtype: Any = "float32",
    ) -> None:
        self.root = os.fspath(root)
        if mode not in ("RGB", "L"):
            raise ValueError(f"ImageFolder: mode must be 'RGB' or 'L', got {mode!r}")
        if not os.path.isdir(self.root):
            raise FileNotFoundError(f"ImageFolder: {self.root} is not a folder")
        self.size = (int(size),) * 2 if isinstance(size, (int, np.integer)) else size
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"ImageFolder: size must be (height, width) >= 1, got {size!r}")
        self.mode, self.dtype = mode, np.dtype(dtype)
        scaled(np.empty(0, np.uint8), self.dtype, 255, "ImageFolder")  # checks dtype
        self.classes = sorted(
            entry.name
            for entry in os.scandir(self.root)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        if not self.classes:
            raise FileNotFoundError(
                f"ImageFolder: {self.root} has no folders; expected one for each class"
            )
        self.paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(self.classes):
            found = sorted(
                os.path.join(folder, file)
                for folder, _, files in os.walk(os.path.join(self.root, name))
                for file in files
                if file.lower().endswith(_SUFFIXES) and not file.startswith(".")
            )
            if not found:
                raise FileNotFoundError(
                    f"ImageFolder: class {name!r} in {self.root} has no images "
                    f"({', '.join(_SUFFIXES)})"
                )
            self.paths += found
            labels += [label] * len(found)
        self.labels = np.array(labels, np.int64)
        self._shape: tuple[int, int] | None = None  # of the first image, when size is None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        chosen = np.arange(len(self))[index]
        if np.ndim(chosen) == 0:
            return self._scale(self._read(self.paths[int(chosen)])), self.labels[chosen]
        height, width = self._target()
        images = np.empty((len(chosen), height, width, 3 if self.mode == "RGB" else 1), np.uint8)
        for row, i in enumerate(chosen):
            images[row] = self._read(self.paths[int(i)])
        return self._scale(images), self.labels[chosen]

    def _scale(self, images: np.ndarray) -> np.ndarray:
        return scaled(images, self.dtype, 255, "ImageFolder")

    def _target(self) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        if self._shape is None:
            self._shape = self._read(self.paths[0]).shape[:2]
        return self._shape

    def _read(self, path: str) -> np.ndarray:
        try:
            from PIL import Image
        except ImportError:
            raise ImportError(
                "ImageFolder: reading images needs Pillow: pip install 'gradsmith[image]'"
            ) from None
        try:
            with Image.open(path) as image:
                limit = Image.MAX_IMAGE_PIXELS  # a file may announce any size
                if limit is not None and image.width * image.height > limit:
                    raise ValueError(f"{image.width} x {image.height} pixels, above {limit}")
                picture = _bytes(image, Image).convert(self.mode)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if isinstance(error, (FileNotFoundError, PermissionError)):
                raise
            raise ValueError(f"ImageFolder: {path}: not a readable image ({error})") from None
        if self.size is not None and picture.size != self.size[::-1]:
            picture = picture.resize(self.size[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if self.size is None and self._shape is not None and pixels.shape[:2] != self._shape:
            raise ValueError(
                f"ImageFolder: {path} is {pixels.shape[0]} x {pixels.shape[1]}, but the first "
                f"image {self._shape[0]} x {self._shape[1]}; give size=(height, width) to resize"
            )
        return pixels

    def __repr__(self) -> str:
        return f"ImageFolder({self.root!r}, {len(self)} images, {len(self.classes)} classes)"


def _bytes(image: Any, pillow: Any) -> Any:
    """Grey of 16 bits as grey of 8; Pillow would take everything above 255 for white."""
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not deep:
        return image
    return pillow.fromarray((np.asarray(image).astype(np.uint32) * 255 // 65535).astype(np.uint8))
