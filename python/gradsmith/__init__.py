"""gradsmith: deep learning on hand-written kernels. NumPy in, NumPy out.

>>> import gradsmith as gs
>>> gs.__version__ != ""
True
"""

from typing import TYPE_CHECKING

from ._load import _cpu
from . import nn as nn
from . import ops as ops
from numpy import bool_ as bool_
from numpy import float32 as float32
from numpy import float64 as float64
from numpy import int32 as int32
from numpy import int64 as int64
from numpy import uint8 as uint8

# `as` says to type checkers that a name is ours to give away
from ._version import __version__ as __version__
from .core.autocast import autocast as autocast
from .core.autocast import is_autocast_enabled as is_autocast_enabled
from .core.autograd import enable_grad as enable_grad
from .core.autograd import grad as grad
from .core.autograd import is_grad_enabled as is_grad_enabled
from .core.autograd import no_grad as no_grad
from .core.autograd import set_grad_enabled as set_grad_enabled
from .core.config import empty_cache as empty_cache
from .core.config import get_conv_precision as get_conv_precision
from .core.config import get_num_threads as get_num_threads
from .core.config import memory_stats as memory_stats
from .core.config import set_conv_precision as set_conv_precision
from .core.config import set_num_threads as set_num_threads
from .core.config import show_config as show_config
from .core.config import threads as threads
from .core.creation import *
from .core.function import Function as Function
from .core.gradcheck import gradcheck as gradcheck
from .core.random import manual_seed as manual_seed
from .core.tensor import Parameter as Parameter
from .core.tensor import Tensor as Tensor
from .ops import *

bool, long = bool_, int64  # as PyTorch calls them

if TYPE_CHECKING:  # what __getattr__ finds
    from . import bench as bench
    from . import data as data
    from . import interop as interop
    from . import models as models
    from . import optim as optim
    from . import train as train
    from .core.capture import CaptureError as CaptureError
    from .core.capture import capture as capture
    from .interop.safetensors import load as load
    from .interop.safetensors import save as save

_LAZY = {
    "optim": "gradsmith.optim",
    "train": "gradsmith.train",
    "data": "gradsmith.data",
    "models": "gradsmith.models",
    "interop": "gradsmith.interop",
    "bench": "gradsmith.bench",
}

if not TYPE_CHECKING:  # to which an unknown name is an error
    for _name, _file in list(
        globals().items()
    ):  # `gs.shape` is no op, but came with those of ops/shape.py
        if getattr(_file, "__package__", None) == "gradsmith.ops" and _file is not ops:
            del globals()[_name]
    del _name, _file

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
