"""Layers and networks."""

from ..core.tensor import Parameter
from . import (
    activation,
    attention,
    conv,
    dropout,
    embedding,
    functional,
    init,
    linear,
    loss,
    module,
    norm,
    pool,
    recurrent,
    softmax,
    utils,
)

# One line a family: from .<family> import * ; each file lists its names in __all__.
from .activation import *
from .attention import *
from .conv import *
from .dropout import *
from .embedding import *
from .linear import *
from .loss import *
from .module import *
from .norm import *
from .pool import *
from .recurrent import *
from .softmax import *
from .summary import Summary, summary

__all__ = ["Parameter", "Summary", "functional", "init", "summary", "utils"]
__all__ += activation.__all__
__all__ += attention.__all__
__all__ += conv.__all__
__all__ += dropout.__all__
__all__ += embedding.__all__
__all__ += linear.__all__
__all__ += loss.__all__
__all__ += module.__all__
__all__ += norm.__all__
__all__ += pool.__all__
__all__ += recurrent.__all__
__all__ += softmax.__all__
