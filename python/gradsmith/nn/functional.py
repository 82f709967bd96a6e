"""Functions on Tensors, under PyTorch's names. One line a family: each file in ops/ lists its names."""

from ..ops.activation import *
from ..ops.attention import *
from ..ops.conv import *
from ..ops.dropout import *
from ..ops.embedding import *
from ..ops.indexing import one_hot
from ..ops.joining import pad
from ..ops.loss import *
from ..ops.matmul import bilinear, linear
from ..ops.norm import *
from ..ops.pool import *
from ..ops.similarity import *
from ..ops.softmax import *
