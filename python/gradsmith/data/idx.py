"""IDX, the file format of the MNIST family, and the folders of four files that come in it.

Format: two zero bytes, a type code, the number of axes, then each axis as a big-endian uint32, then
the values, big-endian, the last axis fastest. Source: http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._files import damage, open_maybe_gzip, read_into, scaled
from .dataset import ArrayDataset

__all__ = ["IDXDataset", "fashion_mnist", "idx_folder", "mnist", "read_idx", "write_idx"]

_CODES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of an IDX file, plain or gzipped (by its content, not its name).

    Raises:
        ValueError: not an IDX file, or its header does not fit the file's length. Checked before
            memory is taken.
        OSError: the file cannot be read.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "a.idx")
    >>> write_idx(path, np.arange(6, dtype=np.uint8).reshape(2, 3))
    >>> read_idx(path).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    shown = os.fspath(path)
    file, exact, most = open_maybe_gzip(shown)
    try:
        with file:
            return _read(file, exact, most)
    except damage() as error:
        raise ValueError(f"read_idx: {shown}: damaged or truncated gzip file ({error})") from None
    except (ValueError, MemoryError, OverflowError) as error:
        raise ValueError(f"read_idx: {shown}: {error}") from None


def _read(file: Any, exact: int | None, most: int) -> np.ndarray:
    start = file.read(4)
    if len(start) < 4:
        raise ValueError(f"it has {len(start)} bytes; an IDX file has at least 4. Truncated?")
    zero, code, axes = struct.unpack(">HBB", start)
    if zero != 0 or code not in _CODES:
        raise ValueError(
            f"not an IDX file: it starts with {start.hex(' ')}; expected 00 00, a type of "
            f"{', '.join(f'{c:02x}' for c in _CODES)}, and the number of axes"
        )
    if not 1 <= axes <= 32:
        raise ValueError(f"its header gives it {axes} axes; expected 1 to 32")
    sizes = file.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise ValueError(f"it ends within its header of {4 + 4 * axes} bytes. Truncated?")
    shape = struct.unpack(f">{axes}I", sizes)
    dtype = np.dtype(_CODES[code])
    expected = math.prod(shape) * dtype.itemsize
    header = 4 + 4 * axes
    if (exact is not None and expected != exact - header) or expected > most:
        held = f"{exact - header} follow it" if exact is not None else "it cannot hold as many"
        raise ValueError(
            f"its header announces {shape} of {dtype.name}, {expected} bytes, but {held}. Damaged?"
        )
    array = np.empty(shape, dtype)
    found = read_into(file, array) if array.size else 0
    if found != expected:
        raise ValueError(f"its header announces {expected} bytes, but only {found} follow it")
    if file.read(1):
        raise ValueError(f"bytes follow the {expected} that its header announces. Damaged?")
    return array.astype(dtype.newbyteorder("="), copy=False)


def write_idx(path: str | os.PathLike[str], array: Any) -> None:
    """Write an array as an IDX file (gzipped when the name ends in .gz).

    Types: uint8, int8, int16, int32, float32, float64, of 1 to 32 axes; any other is a ValueError.
    OSError: the file cannot be written.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.idx")
    >>> write_idx(path, np.array([7, 8], np.uint8))
    >>> with open(path, "rb") as file: print(file.read().hex(" "))  # uint8, 1 axis, of 2; 7, 8
    00 00 08 01 00 00 00 02 07 08
    """
    array = np.asarray(array)
    names = {np.dtype(v).newbyteorder("="): k for k, v in _CODES.items()}
    code = names.get(array.dtype.newbyteorder("="))
    if code is None or not 1 <= array.ndim <= 32:
        raise ValueError(
            f"write_idx: {array.dtype} of shape {array.shape}; expected 1 to 32 axes of "
            f"{', '.join(d.name for d in names)}"
        )
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    values = header + array.astype(_CODES[code]).tobytes()
    if os.fspath(path).endswith(".gz"):
        import gzip

        values = gzip.compress(values, mtime=0)
    with open(path, "wb") as file:
        file.write(values)


def _images(path: str, dtype: Any) -> np.ndarray:
    images = read_idx(path)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"{path}: holds {images.shape} of {images.dtype}; images are uint8 of "
            "(N, height, width) or (N, height, width, channels)"
        )
    images = images[..., None] if images.ndim == 3 else images
    return scaled(images, dtype, 255, "IDXDataset")


class IDXDataset(ArrayDataset):
    """Images and labels from two IDX files: images (N, H, W, 1), labels int64 (N,).

    ``dtype`` is "float32" (values / 255, in [0, 1]) or "uint8" (as stored).

    Raises:
        ValueError: not IDX files, not images and labels, counts that differ, or a label that
            ``classes`` does not have.
        OSError: a file cannot be read.

    >>> import os, tempfile
    >>> images, labels = (os.path.join(tempfile.mkdtemp(), name) for name in ("x.idx", "y.idx"))
    >>> write_idx(images, np.full((2, 8, 8), 255, np.uint8))
    >>> write_idx(labels, np.array([1, 0], np.uint8))
    >>> ds = IDXDataset(images, labels, classes=["no", "yes"])
    >>> ds, float(ds.arrays[0].max())
    (IDXDataset((2, 8, 8, 1) float32, (2,) int64), 1.0)
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        dtype: Any = "float32",
        classes: Sequence[str] | None = None,
    ) -> None:
        x = _images(os.fspath(images), dtype)
        y = read_idx(labels)
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise ValueError(f"{labels}: holds {y.shape} of {y.dtype}; labels are integers of (N,)")
        if len(x) != len(y):
            raise ValueError(f"{images} holds {len(x)} images, but {labels} {len(y)} labels")
        if len(y) and (y.min() < 0 or (classes is not None and y.max() >= len(classes))):
            known = " or more" if classes is None else f" to {len(classes) - 1}"
            raise ValueError(f"{labels}: labels from {y.min()} to {y.max()}; expected 0{known}")
        super().__init__(x, y.astype(np.int64), classes=classes)


def _find(folder: str, stem: str) -> str | None:
    dotted = stem.replace("-idx", ".idx")  # how some archives unpack
    for name in (stem, stem + ".gz", dotted, dotted + ".gz"):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    return None


def idx_folder(
    root: str | os.PathLike[str],
    dtype: Any = "float32",
    classes: Sequence[str] | None = None,
) -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) from a folder with the four IDX files of the MNIST family, .gz or not.

    The files are train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte. Images come as (N, H, W, 1), labels as int64 (N,). ``classes`` are the
    names of the classes; by default "0" to the largest label.

    Raises:
        FileNotFoundError: the folder or one of the files is missing; lists what is there.
        ValueError: a file is damaged, or the files do not fit each other.

    >>> import os, tempfile
    >>> root = tempfile.mkdtemp()
    >>> for part, count in [("train", 3), ("t10k", 1)]:  # black images in place of the real ones
    ...     images, labels = np.zeros((count, 28, 28), np.uint8), np.zeros(count, np.uint8)
    ...     write_idx(os.path.join(root, part + "-images-idx3-ubyte.gz"), images)
    ...     write_idx(os.path.join(root, part + "-labels-idx1-ubyte.gz"), labels)
    >>> train, test = idx_folder(root, classes=["round", "square"])
    >>> train, len(test)
    (IDXDataset((3, 28, 28, 1) float32, (3,) int64), 1)
    """
    folder = os.fspath(root)
    if not os.path.isdir(folder):
        kind = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise FileNotFoundError(
            f"{folder} {kind}; expected a folder with the files "
            + ", ".join(stem + "[.gz]" for pair in _FILES.values() for stem in pair)
        )
    paths = {stem: _find(folder, stem) for pair in _FILES.values() for stem in pair}
    missing = [stem for stem, path in paths.items() if path is None]
    if missing:
        there = sorted(os.listdir(folder))
        shown = ", ".join(there[:12]) + (f" and {len(there) - 12} more" if len(there) > 12 else "")
        raise FileNotFoundError(
            f"{folder}: missing {', '.join(missing)} (each plain or .gz); found "
            f"{shown or 'nothing'}"
        )
    train, test = (
        IDXDataset(str(paths[images]), str(paths[labels]), dtype, classes)
        for images, labels in _FILES.values()
    )
    if train.arrays[0].shape[1:] != test.arrays[0].shape[1:]:
        raise ValueError(
            f"{folder}: training images are {train.arrays[0].shape[1:]}, test images "
            f"{test.arrays[0].shape[1:]}"
        )
    if classes is None:
        count = max(
            (int(y.max()) + 1 for y in (train.arrays[1], test.arrays[1]) if len(y)), default=0
        )
        train.classes = test.classes = [str(i) for i in range(count)]
    return train, test


def _family(root: str | os.PathLike[str], name: str) -> str:
    """The folder itself, or the one torchvision puts below it."""
    below = os.path.join(os.fspath(root), name, "raw")
    return below if os.path.isdir(below) else os.fspath(root)


def mnist(
    root: str | os.PathLike[str], dtype: Any = "float32"
) -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) of MNIST: 60,000 and 10,000 images (N, 28, 28, 1) of handwritten digits.

    ``root`` holds the four IDX files (see ``idx_folder``; ``gs.data.download("mnist", root)``
    fetches them). ``dtype`` "float32" gives [0, 1], "uint8" the stored bytes. Errors as of
    ``idx_folder``. Source: LeCun, Bottou, Bengio and Haffner 1998.

    >>> import os, tempfile
    >>> root = tempfile.mkdtemp()
    >>> for part, count in [("train", 3), ("t10k", 1)]:  # black images in place of the real ones
    ...     images, labels = np.zeros((count, 28, 28), np.uint8), np.zeros(count, np.uint8)
    ...     write_idx(os.path.join(root, part + "-images-idx3-ubyte.gz"), images)
    ...     write_idx(os.path.join(root, part + "-labels-idx1-ubyte.gz"), labels)
    >>> train, test = mnist(root)
    >>> len(train), test.arrays[0].shape, train.classes[:3]
    (3, (1, 28, 28, 1), ['0', '1', '2'])
    """
    return idx_folder(_family(root, "MNIST"), dtype, [str(i) for i in range(10)])


def fashion_mnist(
    root: str | os.PathLike[str] = "/usr/share/datasets/fashion-mnist", dtype: Any = "float32"
) -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) of Fashion-MNIST: 60,000 and 10,000 images (N, 28, 28, 1) of clothing.

    ``root`` holds the four IDX files (``gs.data.download("fashion_mnist", root)`` fetches them); by
    default where Debian's dataset-fashion-mnist puts them. ``dtype`` and errors as of ``mnist``.
    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017.

    >>> import os, tempfile
    >>> root = tempfile.mkdtemp()
    >>> for part, count in [("train", 3), ("t10k", 1)]:  # black images in place of the real ones
    ...     images, labels = np.zeros((count, 28, 28), np.uint8), np.zeros(count, np.uint8)
    ...     write_idx(os.path.join(root, part + "-images-idx3-ubyte.gz"), images)
    ...     write_idx(os.path.join(root, part + "-labels-idx1-ubyte.gz"), labels)
    >>> train, test = fashion_mnist(root)
    >>> len(train), test.arrays[0].shape, test.classes[test.arrays[1][0]]
    (3, (1, 28, 28, 1), 'T-shirt/top')
    """
    return idx_folder(_family(root, "FashionMNIST"), dtype, FASHION_CLASSES)
