"""Ops on Tensors: one autograd rule per op over the kernels. Importing this attaches Tensor's methods.

One line a family, so that `gs.<op>` finds what ops/<family>.py lists in __all__.
"""

from ..core import views as _views  # clone and contiguous of Tensor
from .dropout import *
from .attention import *

from .activation import *
from .norm import *
from .matmul import *
from .pool import *
from .conv import *
from .elementwise import *
from .compare import *
from .operators import *
from .reduce import *
from .softmax import *
from .loss import *
from .shape import *
from .indexing import *
from .joining import *
from .embedding import *
from .similarity import *
