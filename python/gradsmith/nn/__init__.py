"""Layers and networks."""

from ..core.tensor import Parameter
from . import functional, init
from .module import (
    Flatten,
    Identity,
    Module,
    ModuleDict,
    ModuleList,
    ParameterList,
    Sequential,
    Unflatten,
)

__all__ = [
    "Flatten",
    "Identity",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "ParameterList",
    "Sequential",
    "Summary",
    "Unflatten",
    "functional",
    "init",
    "summary",
]

# One line a family: from .<family> import * ; each file lists its names in __all__.
from .dropout import *
from .norm import *
from .activation import *
from .summary import Summary, summary
from .linear import *
from .pool import *
from .conv import *
from .softmax import *
from .loss import *
from .embedding import *
from .attention import *
from .recurrent import *
from . import utils
