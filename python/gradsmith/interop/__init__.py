"""Meeting other tools: checkpoint files, and the formats and arrays of other libraries."""

from __future__ import annotations

from typing import Any

_ROOMS = ("safetensors", "torch")


def __getattr__(name: str) -> Any:
    """Each format is imported at first use."""
    if name in _ROOMS:
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
