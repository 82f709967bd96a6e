"""Tensor, autograd, random state, threads and memory."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """`gs.core.capture`, whose PASSES are documented, is imported at first use as `gs.capture` is."""
        if name == "capture":
            import importlib

            return importlib.import_module("gradsmith.core.capture")
        raise AttributeError(f"module 'gradsmith.core' has no attribute {name!r}")
