"""What ops say of arguments that are no Tensors. The check costs nothing where they are: an op reads
`x._k` or `x.data` anyway, and asks here only when that failed."""

from __future__ import annotations

from typing import Any

from ..core.arguments import integer, integers, number
from ..core.tensor import Tensor

__all__ = ["REFUSED", "integer", "integers", "kernels", "not_tensors", "number", "renamed"]

REFUSED = (IndexError, TypeError, ValueError)  # what kernels and ops raise for their arguments


def kernels(op: str, x: Any, name: str = "input") -> Any:
    """The kernel module of x's device; TypeError when x is no Tensor."""
    try:
        return x._k
    except AttributeError:
        raise not_tensors(op, None, **{name: x}) from None


def not_tensors(op: str, error: Exception | None, **arguments: Any) -> Exception:
    """The TypeError that names the first argument that is neither a Tensor nor None; else `error` itself."""
    for name, x in arguments.items():
        if x is not None and not isinstance(x, Tensor):
            what = type(x).__name__
            return TypeError(
                f"{op}: {name} must be a Tensor, got {what}. Make one with gs.tensor({name})."
            )
    if error is not None and not isinstance(error, AttributeError):
        return error
    missing = [name for name, x in arguments.items() if x is None]
    return TypeError(f"{op}: {(missing or ['input'])[0]} must be a Tensor, got None")


def renamed(op: str, error: Exception) -> Exception:
    """The error of an op or a kernel that `op` is made of, under the name of the op that was called."""
    head, colon, rest = str(error).partition(":")
    return type(error)(f"{op}:{rest}") if colon and head.isidentifier() else error
