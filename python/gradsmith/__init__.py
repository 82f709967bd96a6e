"""gradsmith: deep learning on hand-written kernels. NumPy in, NumPy out.

>>> import gradsmith as gs
>>> gs.__version__ != ""
True
"""

from . import (
    _cpu,
    nn,
    ops,
)
from numpy import float32, float64, int32, int64, uint8

from ._version import __version__
from .core.autocast import autocast, is_autocast_enabled
from .core.autograd import (
    enable_grad,
    grad,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from .core.config import (
    empty_cache,
    get_conv_precision,
    get_num_threads,
    memory_stats,
    set_conv_precision,
    set_num_threads,
    show_config,
    threads,
)
from .core.creation import *
from .core.creation import __all__ as _creation_names
from .core.function import Function
from .core.gradcheck import gradcheck
from .core.random import manual_seed
from .core.tensor import Parameter, Tensor
from .ops import *

_LAZY = {
    "optim": "gradsmith.optim",
    "train": "gradsmith.train",
    "data": "gradsmith.data",
    "models": "gradsmith.models",
    "interop": "gradsmith.interop",
    "bench": "gradsmith.bench",
}


def __getattr__(name: str) -> object:
    """Rooms that a small program may not need are imported at first use."""
    import importlib

    if name in _LAZY:
        return importlib.import_module(_LAZY[name])
    if name in ("capture", "CaptureError"):
        return getattr(importlib.import_module("gradsmith.core.capture"), name)
    if name in ("save", "load"):
        module = importlib.import_module("gradsmith.interop.safetensors")
        return getattr(module, name)
    raise AttributeError(f"module 'gradsmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, "save", "load", "capture", "CaptureError"])
