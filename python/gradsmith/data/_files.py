"""Reading files whose size must be checked before memory is taken."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import numpy as np

from ..core.tensor import resolve_dtype

# A deflate stream cannot expand more than 1032 times: a header that promises more is a lie.
_DEFLATE_RATIO = 1032


def open_maybe_gzip(path: str) -> tuple[BinaryIO, int | None, int]:
    """The open file, the exact number of bytes in it (None when gzipped) and the most there can be.

    Gzip is recognised by its magic number, whatever the name.
    """
    size = os.path.getsize(path)
    raw = open(path, "rb")  # noqa: SIM115
    magic = raw.read(2)
    raw.seek(0)
    if magic != b"\x1f\x8b":
        return raw, size, size
    import gzip

    class _Both(gzip.GzipFile):
        def close(self) -> None:
            super().close()
            raw.close()

    return _Both(fileobj=raw, mode="rb"), None, size * _DEFLATE_RATIO + 1024  # type: ignore[return-value]


def damage() -> tuple[type[Exception], ...]:
    """What the gzip module raises on damaged streams."""
    import gzip
    import zlib

    return (EOFError, zlib.error, gzip.BadGzipFile)


def read_into(file: BinaryIO, array: np.ndarray) -> int:
    """Fill a C-contiguous array from the file; the number of bytes that were there."""
    flat: Any = array.reshape(-1).view(np.uint8)
    view = memoryview(flat)
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + (1 << 24)])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done


def scaled(images: np.ndarray, dtype: Any, top: float, what: str) -> np.ndarray:
    """uint8 images as they are, or as float32 in [0, 1]: value / top."""
    wanted = resolve_dtype(dtype, what)
    if wanted == np.uint8:
        return images
    if wanted == np.float32:
        return np.divide(images, np.float32(top), dtype=np.float32)
    raise ValueError(f"{what}: dtype must be 'uint8' or 'float32', got {wanted}")
