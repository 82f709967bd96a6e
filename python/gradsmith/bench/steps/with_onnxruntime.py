"""onnxruntime's side of the comparison, inference only: the PyTorch network, exported."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

from .nets import Net

VARIANTS = ("all optimizations",)


def build(net: Net, batch: int, training: bool, variant: str, threads: int) -> Callable[[], Any]:
    """As in with_torch.py; raises ValueError for training."""
    if training:
        raise ValueError("onnxruntime: inference only")
    import onnxruntime
    import torch

    from . import with_torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ops = with_torch.Ops(net, False)

        def forward(self, x: Any) -> Any:
            return net.forward(self.ops, x)

    x, _ = net.data(batch)
    inputs = with_torch._input(x).contiguous()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = os.path.join(folder, "net.onnx")
        torch.onnx.export(Module().eval(), (inputs,), path, dynamo=False, input_names=["x"])
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"x": inputs.numpy()}
    return lambda: session.run(None, feed)[0]
