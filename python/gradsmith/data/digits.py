"""The UCI handwritten digits that ship in the package (assets/digits.idx.gz)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ._files import scaled
from .dataset import ArrayDataset
from .idx import read_idx

__all__ = ["digits"]


def digits(dtype: Any = "float32") -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) of the UCI digits: 1,797 images (N, 8, 8, 1), labels int64 (N,), 10 classes.

    ``dtype`` "float32" gives pixel / 16, in [0, 1]; "uint8" the stored counts, 0 to 16.

    The split never changes, so accuracies can be compared: within each class, in the order of the
    original file, every fourth image is a test image (the 4th, 8th, ...). That gives 1,352 for
    training and 445 for testing, 43 to 45 a class. Consecutive images come from one writer, so most
    writers are in both parts, as in the usual random split.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998, doi:10.24432/C50P49, CC BY 4.0.

    >>> train, test = digits()
    >>> len(train), len(test), train.arrays[0].shape[1:]
    (1352, 445, (8, 8, 1))
    """
    # (1797, 65): 64 pixels row by row, then the label
    table = read_idx(os.path.join(os.path.dirname(__file__), "assets", "digits.idx.gz"))
    images = scaled(table[:, :64].reshape(-1, 8, 8, 1), dtype, 16, "digits")
    labels = table[:, 64].astype(np.int64)
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[3::4]] = True
    names = [str(i) for i in range(10)]
    return (
        ArrayDataset(np.ascontiguousarray(images[~test]), labels[~test], classes=names),
        ArrayDataset(np.ascontiguousarray(images[test]), labels[test], classes=names),
    )
