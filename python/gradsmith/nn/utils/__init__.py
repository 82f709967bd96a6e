"""Helpers for layers; `nn.utils.rnn` packs sequences of different lengths."""

from . import rnn

__all__ = ["rnn"]
