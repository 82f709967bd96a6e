"""Functions on Tensors, under PyTorch's names. One line a family: each file in ops/ lists its names."""
from ..ops.dropout import *
from ..ops.activation import *
from ..ops.norm import *
from ..ops.softmax import *
from ..ops.matmul import bilinear, linear
from ..ops.pool import *
from ..ops.conv import *
from ..ops.loss import *
from ..ops.embedding import *
