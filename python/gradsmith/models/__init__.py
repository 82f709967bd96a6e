"""Reference networks. Images are (N, H, W, C); every model ends in logits (N, num_classes)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..nn import Module
from .gpt import GPT, gpt
from .lenet import LeNet, lenet
from .mlp import MLP, mlp
from .resnet import BasicBlock, ResNet, resnet18

__all__ = [
    "GPT",
    "MLP",
    "BasicBlock",
    "LeNet",
    "ResNet",
    "get",
    "gpt",
    "lenet",
    "load",
    "mlp",
    "names",
    "resnet18",
]

_MODELS: dict[str, Callable[..., Module]] = {
    "gpt": gpt,
    "lenet": lenet,
    "mlp": mlp,
    "resnet18": resnet18,
}


def names() -> list[str]:
    """What ``get`` knows.

    >>> import gradsmith as gs
    >>> gs.models.names()
    ['gpt', 'lenet', 'mlp', 'resnet18']
    """
    return sorted(_MODELS)


def get(name: str, *args: Any, **kwargs: Any) -> Module:
    """The model called ``name``, with its arguments: ``get("lenet", num_classes=10)``.

    Raises ValueError for an unknown name.

    >>> import gradsmith as gs
    >>> gs.models.get("mlp", 4, 8, 3)[2].out_features
    3
    """
    if name not in _MODELS:
        raise ValueError(f"models: {name!r} is unknown; there are: {', '.join(names())}.")
    return _MODELS[name](*args, **kwargs)


def load(path: str | os.PathLike[str]) -> Module:
    """The trained model of a run of ``gradsmith train``, in evaluation mode.

    ``path``: the run's folder, its ``model.safetensors`` or its ``last.safetensors``. The model has
    an attribute ``config`` with ``mean`` and ``std`` (its inputs are ``(x - mean) / std`` per
    channel) and ``classes``. Raises ValueError for other files, OSError for none; for weights alone use
    ``model.load_state_dict(gs.load(path))``.

    >>> import gradsmith as gs, os, tempfile  # the file of a run, in short
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> config = {"model": "mlp", "arguments": [[4, 8, 3], {}]}
    >>> gs.save({"model": gs.models.mlp(4, 8, 3).state_dict(), "config": config}, path)
    >>> gs.models.load(path)(gs.zeros(5, 4)).shape
    (5, 3)
    """
    from ..interop.safetensors import load as read

    file = os.fspath(path)
    if os.path.isdir(file):
        names = [os.path.join(file, n + ".safetensors") for n in ("model", "last")]
        file = next((n for n in names if os.path.exists(n)), names[0])
    state = read(file)
    config = state.get("config", {}) if isinstance(state, dict) else {}
    if "arguments" not in config or "model" not in state:
        raise ValueError(f"models.load: {file} was not written by gradsmith train.")
    positional, named = config["arguments"]
    model = get(config["model"], *positional, **named)
    model.load_state_dict(state["model"])
    model.config = config
    return model.eval()
