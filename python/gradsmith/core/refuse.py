"""What raises while a recording runs: a replay would not read values on the host again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from . import recording
from .tensor import Tensor


def _refusing(name: str, what: str) -> Callable:
    original = getattr(Tensor, name)

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        recording.host_read(what)
        return original(self, *args, **kwargs)

    return method


_READERS = {
    "item": "item()",
    "numpy": "numpy()",
    "tolist": "tolist()",
    "__array__": "np.asarray(tensor)",
    "__dlpack__": "__dlpack__()",
    "__float__": "float(tensor)",
    "__int__": "int(tensor)",
    "__bool__": "bool(tensor) (an `if`, `while`, `and`, `not` or `assert` on a tensor)",
    "__index__": "a tensor as a Python index",
    "__repr__": "printing a tensor",
    "__reduce__": "pickling a tensor",
}


_ARRAY: Any = next(c.__dict__["data"] for c in Tensor.__mro__ if "data" in c.__dict__)


class Guarded:
    """While it is entered, reading values raises in the recording thread (other threads read on)."""

    def __init__(self) -> None:
        self.before: dict[str, Any] = {}  # what Tensor had, None: nothing

    def __enter__(self) -> None:
        backward = Tensor.backward
        for name in (*_READERS, "backward", "data"):
            self.before[name] = Tensor.__dict__.get(name)
        for name, what in _READERS.items():
            setattr(Tensor, name, _refusing(name, what))

        def noted(t: Tensor, *args: Any, **kwargs: Any) -> None:
            recording.note("backward", None)
            backward(t, *args, **kwargs)

        setattr(Tensor, "backward", noted)  # noqa: B010

        def taken(t: Tensor) -> Any:
            recording.looks(sys._getframe(1))
            return _ARRAY.__get__(t)

        def given(t: Tensor, array: Any) -> None:
            recording.looks(sys._getframe(1))
            _ARRAY.__set__(t, array)

        setattr(Tensor, "data", property(taken, given))  # noqa: B010
        recording.refused.clear()
        recording.notes.clear()
        recording.looked.clear()
        recording.constants.clear()
        recording.thread = threading.get_ident()

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def leave(self) -> None:
        """May be called again: an interrupt may have come in the middle of entering or leaving."""
        recording.thread = None
        recording.constants.clear()
        for name, method in self.before.items():
            if method is not None:
                setattr(Tensor, name, method)
            elif name in Tensor.__dict__:
                delattr(Tensor, name)
