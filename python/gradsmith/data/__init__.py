"""Datasets, batches and transforms.

A dataset is anything with a length that takes an array of positions and returns a tuple of arrays;
``Loader`` makes seeded, resumable batches of it. Images are (N, H, W, C).
"""

from . import transforms
from .cifar import CIFARDataset, cifar10, cifar100
from .dataset import ArrayDataset, Dataset, Subset
from .digits import digits
from .download import download
from .folder import ImageFolder
from .idx import IDXDataset, fashion_mnist, idx_folder, mnist, read_idx, write_idx
from .loader import Loader
from .split import KFold, random_split, train_test_split
from .synthetic import make_blobs, make_moons, make_regression, make_spirals
from .table import CSVDataset
from .text import is_sentence, make_text
from .transforms import (
    Clip,
    ColorJitter,
    Compose,
    Cutout,
    Grayscale,
    Log,
    MinMax,
    OneHot,
    RandomCrop,
    RandomFlip,
    RandomRotate,
    Standardize,
    ToFloat,
)

__all__ = [
    "ArrayDataset",
    "CIFARDataset",
    "CSVDataset",
    "Clip",
    "ColorJitter",
    "Compose",
    "Cutout",
    "Dataset",
    "Grayscale",
    "IDXDataset",
    "ImageFolder",
    "KFold",
    "Loader",
    "Log",
    "MinMax",
    "OneHot",
    "RandomCrop",
    "RandomFlip",
    "RandomRotate",
    "Standardize",
    "Subset",
    "ToFloat",
    "cifar10",
    "cifar100",
    "digits",
    "download",
    "fashion_mnist",
    "idx_folder",
    "is_sentence",
    "make_blobs",
    "make_moons",
    "make_regression",
    "make_spirals",
    "make_text",
    "mnist",
    "random_split",
    "read_idx",
    "train_test_split",
    "transforms",
    "write_idx",
]
