"""Reference networks. Images are (N, H, W, C); every model ends in logits (N, num_classes)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..nn import Module
from .lenet import LeNet, lenet
from .mlp import MLP, mlp
from .resnet import BasicBlock, ResNet, resnet18

__all__ = ["MLP", "BasicBlock", "LeNet", "ResNet", "get", "lenet", "mlp", "names", "resnet18"]

_MODELS: dict[str, Callable[..., Module]] = {"lenet": lenet, "mlp": mlp, "resnet18": resnet18}


def names() -> list[str]:
    """What ``get`` knows."""
    return sorted(_MODELS)


def get(name: str, *args: Any, **kwargs: Any) -> Module:
    """The model called ``name``, with its arguments: ``get("lenet", num_classes=10)``.

    Raises ValueError for an unknown name.

    >>> import gradsmith as gs
    >>> gs.models.names()
    ['lenet', 'mlp', 'resnet18']
    """
    if name not in _MODELS:
        raise ValueError(f"models: {name!r} is unknown; there are: {', '.join(names())}.")
    return _MODELS[name](*args, **kwargs)
