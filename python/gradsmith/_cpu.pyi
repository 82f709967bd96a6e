from typing import Any

import numpy as np

class Version:
    def __getitem__(self, i: int) -> int: ...
    def __setitem__(self, i: int, value: int) -> None: ...

class TensorBase:
    data: np.ndarray
    _k: Any  # the kernel module of its device
    _ver: Version  # [0] is the number of changes of the memory, shared by its views
    _rg: bool  # requires a gradient
    _node: Any  # what made it; None for a leaf
    _idx: int  # which output of the node
    _at: int  # version at which the node is valid
    _grad: Any
    _acc: Any  # the node that accumulates into a leaf
    _view: bool

class NodeBase:
    k: Any
    needs: tuple
    saved: tuple
    _saved: tuple | None
    edges: tuple
    seq: int
    outputs: int
    hooks: Any
    retain: Any

def __getattr__(name: str) -> Any: ...
