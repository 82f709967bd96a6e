"""Transforms of whole batches: ``transform(x, rng) -> x``.

``x`` is a feature matrix (N, F) or images (N, H, W, C); ``rng`` a NumPy generator, which the Loader
derives from its seed, the epoch and the batch. Transforms without chance ignore it and can be
called with ``x`` alone. The input is never changed.
"""

from .features import Clip, Compose, Log, MinMax, OneHot, Standardize, ToFloat
from .images import (
    ColorJitter,
    Cutout,
    Grayscale,
    RandomCrop,
    RandomFlip,
    RandomRotate,
)

__all__ = [
    "Clip",
    "ColorJitter",
    "Compose",
    "Cutout",
    "Grayscale",
    "Log",
    "MinMax",
    "OneHot",
    "RandomCrop",
    "RandomFlip",
    "RandomRotate",
    "Standardize",
    "ToFloat",
]
