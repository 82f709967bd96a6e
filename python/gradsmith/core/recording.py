"""What the rest of the library knows of a recording (core/capture.py): whether one runs in this thread.

Code that looks at values on the host, or changes Python state that a step depends on, calls one of
these; outside of a recording they cost one comparison.
"""

from __future__ import annotations

import linecache
import os
import sys
from _thread import get_ident  # threading would be read at import for this alone
from typing import Any

__all__ = ["CaptureError", "constant", "here", "host_array", "host_read", "modes", "note"]

_package = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

thread: int | None = None  # the thread that records
# Switches that decide which kernels run (precisions); whoever changes one writes it here too, and a
# program is used only while they are as they were.
modes: dict[str, Any] = {"conv_precision": "default"}
refused: list[str] = []  # what this recording has raised, whether or not somebody caught it
looked: list[str] = []  # lines of the user's code that took a tensor's array
constants: dict[int, Any] = {}  # tensors and arrays that this recording made of numbers of its key
notes: list[tuple[str, Any]] = []  # optimizers and schedulers that stepped, in order


class CaptureError(RuntimeError):
    """A function cannot be captured; the message says which line and what to do."""


def here() -> bool:
    """Whether this thread is recording."""
    return thread is not None and thread == get_ident()


def user_line() -> str:
    """The innermost line outside of the library, as `file:line: source`."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_package):
        frame = frame.f_back
    if frame is None:
        return "(unknown line)"
    name, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(name, line).strip()
    return f"{name}:{line}" + (f": {text}" if text else "")


def host_read(what: str, advice: str = "") -> None:
    """Raises CaptureError when this thread records: a replay would not look at the value again."""
    if thread is not None and here():
        advice = advice or (
            "Return the tensor and read it after the call, or keep the computation in gradsmith "
            "operations (gs.where for a choice)"
        )
        refused.append(
            f"{what} inside a captured function reads values on the host, and a replay would use the "
            f"old ones ({user_line()}). {advice}."
        )
        raise CaptureError(refused[-1])


def looks(frame: Any) -> None:
    """Remembers that the code of a frame takes the array of a tensor, unless it is the library's."""
    if here() and not frame.f_code.co_filename.startswith(_package):
        looked.append(user_line())


def constant(t: Any) -> Any:
    """A tensor or array made of numbers that are no data (lengths from a list): the library may read it again."""
    if here():
        constants[id(t)] = t
    return t


def known(a: Any) -> bool:
    """Whether what the library finds in an array decides the same at a replay, too."""
    return thread is None or not here() or id(a) in constants


def host_array(t: Any) -> Any:
    """The values of a tensor on the host; CaptureError in a recording, unless it is a `constant`."""
    return t.data if id(t) in constants and here() else t.numpy()


def note(kind: str, what: Any) -> None:
    """Remembers that an optimizer or scheduler stepped in this recording."""
    if here():
        notes.append((kind, what))
