"""CIFAR-10 and CIFAR-100 in their binary version.

A file is records of 1 label byte (CIFAR-100: 2, coarse then fine) and 3,072 pixels: 32 x 32 red,
then green, then blue. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._files import scaled
from .dataset import ArrayDataset

__all__ = ["CIFARDataset", "cifar10", "cifar100"]

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_PIXELS = 3 * 32 * 32
_NO_PICKLE = (
    "The python version of CIFAR is pickled, and a pickle can run any code when it is read, so "
    "gradsmith does not read it; get the binary version (gs.data.download)."
)


class CIFARDataset(ArrayDataset):
    """Images (N, 32, 32, 3) and labels int64 (N,) from .bin files of CIFAR's binary version.

    ``label_bytes`` is 1 for CIFAR-10 and 2 for CIFAR-100, whose last is the label used unless
    ``coarse``. ``dtype`` "float32" gives values / 255, "uint8" the stored bytes. ``classes`` are
    the names of the classes, or their number.

    Raises:
        ValueError: a file that is not whole records, or with a label that no class has.
        OSError: a file cannot be read.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "images.bin")
    >>> with open(path, "wb") as file: _ = file.write(bytes([3]) + bytes(3072))  # a black cat
    >>> ds = CIFARDataset(path)
    >>> ds.arrays[0].shape, ds.classes[ds.arrays[1][0]]
    ((1, 32, 32, 3), 'cat')
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        label_bytes: int = 1,
        dtype: Any = "float32",
        classes: Sequence[str] | int = CIFAR10_CLASSES,
        coarse: bool = False,
    ) -> None:
        if label_bytes not in (1, 2):
            raise ValueError(f"CIFARDataset: label_bytes must be 1 or 2, got {label_bytes}")
        if isinstance(paths, (str, os.PathLike)):
            paths = [paths]
        if not paths:
            raise ValueError("CIFARDataset: expected at least one file")
        names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        column = label_bytes - 1 if not coarse else 0
        parts = [_records(os.fspath(p), label_bytes, column, len(names)) for p in paths]
        images = np.concatenate([p[1] for p in parts])
        labels = np.concatenate([p[0] for p in parts])
        super().__init__(scaled(images, dtype, 255, "CIFARDataset"), labels, classes=names)


def _records(path: str, label_bytes: int, column: int, classes: int) -> tuple[Any, Any]:
    record = label_bytes + _PIXELS
    size = os.path.getsize(path)
    if size == 0 or size % record:
        with open(path, "rb") as file:
            pickled = file.read(1) == b"\x80"
        raise ValueError(
            f"{path}: it has {size} bytes; CIFAR's binary version has a multiple of {record} "
            f"({label_bytes} for labels, {_PIXELS} for pixels). "
            + (_NO_PICKLE if pickled else "Truncated?")
        )
    raw = np.fromfile(path, np.uint8)
    if len(raw) != size:
        raise ValueError(f"{path}: read {len(raw)} of {size} bytes; is something writing to it?")
    raw = raw.reshape(-1, record)
    labels = raw[:, column].astype(np.int64)
    if labels.max() >= classes:
        bad = int(np.argmax(labels >= classes))
        raise ValueError(
            f"{path}: record {bad} has the label {labels[bad]}; expected 0 to {classes - 1}"
        )
    images = raw[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return labels, np.ascontiguousarray(images)


def _folder(root: str | os.PathLike[str], below: str, files: Sequence[str]) -> str:
    """Where the files are: in root, or in the folder that the archive unpacks to."""
    root = os.fspath(root)
    for folder in (root, os.path.join(root, below)):
        if all(os.path.isfile(os.path.join(folder, f)) for f in files):
            return folder
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"{root} is not a folder; expected one with {', '.join(files)}, or {below} in it"
        )
    folder = os.path.join(root, below)
    folder = folder if os.path.isdir(folder) else root
    missing = [f for f in files if not os.path.isfile(os.path.join(folder, f))]
    found = sorted(os.listdir(folder))
    pickled = {"data_batch_1", "test_batch", "train", "test"} & set(found) or any(
        os.path.isdir(os.path.join(root, name))
        for name in ("cifar-10-batches-py", "cifar-100-python")
    )
    raise FileNotFoundError(
        f"{folder}: missing {', '.join(missing)}; found {', '.join(found[:12]) or 'nothing'}. "
        + (_NO_PICKLE if pickled else "gs.data.download fetches the binary version.")
    )


def cifar10(
    root: str | os.PathLike[str], dtype: Any = "float32"
) -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) of CIFAR-10: 50,000 and 10,000 colour images (N, 32, 32, 3), 10 classes.

    ``root`` holds data_batch_1.bin to data_batch_5.bin and test_batch.bin, or the folder
    cifar-10-batches-bin with them; ``gs.data.download("cifar10", root)`` fetches them. ``dtype``
    "float32" gives [0, 1], "uint8" the stored bytes. Source: Krizhevsky 2009.

    Raises:
        FileNotFoundError: files are missing; says which, and what is there.
        ValueError: a damaged file.

    >>> import os, tempfile
    >>> root = tempfile.mkdtemp()
    >>> for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
    ...     with open(os.path.join(root, name), "wb") as file:
    ...         _ = file.write(bytes(3073))  # in place of 10,000 images, one black airplane
    >>> train, test = cifar10(root)
    >>> len(train), test.arrays[0].shape, test.classes[test.arrays[1][0]]
    (5, (1, 32, 32, 3), 'airplane')
    """
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    folder = _folder(root, "cifar-10-batches-bin", files)
    paths = [os.path.join(folder, f) for f in files]
    return CIFARDataset(paths[:5], 1, dtype), CIFARDataset(paths[5:], 1, dtype)


def cifar100(
    root: str | os.PathLike[str], dtype: Any = "float32", coarse: bool = False
) -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) of CIFAR-100: 50,000 and 10,000 colour images (N, 32, 32, 3), 100 classes.

    ``coarse`` gives the 20 groups of classes instead. ``root`` holds train.bin and test.bin, or the
    folder cifar-100-binary with them; class names are read from the text files beside them.
    ``gs.data.download("cifar100", root)`` fetches them. Source: Krizhevsky 2009.

    Raises:
        FileNotFoundError: files are missing; says which, and what is there.
        ValueError: a damaged file, or a file with another number of names.

    >>> import os, tempfile
    >>> root = tempfile.mkdtemp()
    >>> for name in ["train.bin", "test.bin"]:
    ...     with open(os.path.join(root, name), "wb") as file:
    ...         _ = file.write(bytes([4, 30]) + bytes(3072))  # one image, of group 4 and class 30
    >>> [int(cifar100(root, coarse=coarse)[0].arrays[1][0]) for coarse in (False, True)]
    [30, 4]
    """
    files = ["train.bin", "test.bin"]
    folder = _folder(root, "cifar-100-binary", files)
    count = 20 if coarse else 100
    names: Sequence[str] | int = count
    listed = os.path.join(folder, f"{'coarse' if coarse else 'fine'}_label_names.txt")
    if os.path.isfile(listed):
        with open(listed, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
        if len(lines) != count:
            raise ValueError(f"{listed}: has {len(lines)} names; expected {count}")
        names = lines
    train, test = (
        CIFARDataset([os.path.join(folder, f)], 2, dtype, names, coarse=coarse) for f in files
    )
    return train, test
