"""Datasets, batches and transforms.

A dataset is anything with a length that takes an array of positions and returns a tuple of arrays;
``Loader`` makes seeded, resumable batches of it. Images are (N, H, W, C).
"""

from .dataset import ArrayDataset, Dataset, Subset
from .digits import digits
from .idx import IDXDataset, fashion_mnist, idx_folder, mnist, read_idx, write_idx
from .loader import Loader

__all__ = [
    "ArrayDataset",
    "Dataset",
    "IDXDataset",
    "Loader",
    "Subset",
    "digits",
    "fashion_mnist",
    "idx_folder",
    "mnist",
    "read_idx",
    "write_idx",
]
