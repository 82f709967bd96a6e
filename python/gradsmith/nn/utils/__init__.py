"""Helpers for layers; `nn.utils.rnn` packs sequences of different lengths.

The clipping functions of `gradsmith.optim` are here, too, where PyTorch has them.
"""

from typing import Any

from . import rnn

__all__ = ["rnn"]


def __getattr__(name: str) -> Any:
    if name in ("clip_grad_norm_", "clip_grad_value_", "get_total_norm"):
        from ...optim import clip  # at first use: a network that does not learn needs no optimizers

        return getattr(clip, name)
    raise AttributeError(f"module 'gradsmith.nn.utils' has no attribute {name!r}")
