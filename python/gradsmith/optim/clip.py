"""Clipping of gradients: by global norm and by value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import _cpu
from ..core import recording
from ..core.arguments import number
from ..core.tensor import Tensor, wrap

__all__ = ["clip_grad_norm_", "clip_grad_value_", "get_total_norm"]


def _tensors(parameters: Any, op: str) -> list[Tensor]:
    if not isinstance(parameters, (Tensor, Iterable)):
        raise TypeError(
            f"{op}: expected Tensors, got {type(parameters).__name__}. Pass model.parameters()."
        )
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for p in given:
        if not isinstance(p, Tensor):
            raise TypeError(f"{op}: expected Tensors, got {type(p).__name__}.")
    return given


def _grads(parameters: Any, op: str) -> list[Tensor]:
    return [p._grad for p in _tensors(parameters, op) if p._grad is not None]


def _by_dtype(arrays: list[np.ndarray]) -> dict[Any, list[np.ndarray]]:
    sets: dict[Any, list[np.ndarray]] = {}
    for a in arrays:
        sets.setdefault(a.dtype.num, []).append(a)
    return sets


def global_norm(
    control: np.ndarray, arrays: list[np.ndarray], p: float, max_norm: float, slot: int = -1
) -> None:
    """control = {norm, min(1, max_norm / (norm + 1e-6)), finite, 0} of all arrays together."""
    sets = list(_by_dtype(arrays).values())
    if len(sets) <= 1:
        _cpu.grad_norm(control, sets[0] if sets else [], p, max_norm, slot)
        return
    recording.host_read("a norm over gradients of several dtypes", "Clip each dtype by itself")
    norms = np.empty(len(sets))
    for i, part in enumerate(sets):
        _cpu.grad_norm(control, part, p)
        norms[i] = control[0]
    _cpu.grad_norm(control, [norms], p, max_norm, slot)


def _order(op: str, norm_type: Any) -> float:
    p = math.inf if norm_type == "inf" else number(op, "norm_type", norm_type)
    if not p > 0:
        raise ValueError(f"{op}: norm_type is {norm_type!r}; it must be greater than 0 or 'inf'.")
    return p


def get_total_norm(
    tensors: Iterable[Tensor], norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """The norm of all tensors together, as if they were one vector: (sum |x|^p)^(1/p).

    norm_type: p > 0, or inf for the largest magnitude. Returns a Tensor of shape () and the first
    tensor's dtype; the sum itself runs in float64. Raises RuntimeError for a NaN or an infinity with
    error_if_nonfinite.

    >>> import gradsmith as gs
    >>> gs.optim.get_total_norm([gs.tensor([3.0]), gs.tensor([4.0])]).item()
    5.0
    """
    given = _tensors(tensors, "get_total_norm")
    control = np.zeros(4)
    p = _order("get_total_norm", norm_type)
    global_norm(control, [t.data for t in given], p, math.inf)
    return _report(given, control, p, error_if_nonfinite, "get_total_norm")


def _report(given: list[Tensor], control: np.ndarray, p: float, strict: bool, op: str) -> Tensor:
    if strict:
        recording.host_read(
            f"{op}(error_if_nonfinite=True)", "Pass False, or check the norm outside"
        )
    if strict and control[2] == 0:
        raise RuntimeError(
            f"{op}: the total norm of order {p:g} is {control[0]}, so the gradients hold a NaN or an "
            "infinity. Nothing was scaled. Lower the learning rate, or pass error_if_nonfinite=False."
        )
    dtype = given[0].data.dtype if given else np.float32
    if recording.here():  # by a kernel, so that a replay does it again
        return wrap(_cpu.cast(control[:1], np.dtype(dtype).name).reshape(()), _cpu)
    return wrap(np.array(control[0], dtype), _cpu)


def clip_grad_norm_(
    parameters: Any,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales the gradients of `parameters` in place: g *= min(1, max_norm / (norm + 1e-6)).

    norm is the norm of order norm_type over all gradients together, summed in float64; it is returned
    (as it was before clipping, shape ()). Raises RuntimeError for a norm that is not finite with
    error_if_nonfinite, before anything is scaled. `foreach` is accepted and ignored.
    (Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013)

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([0.0, 0.0]); p.grad = gs.tensor([30.0, 40.0])
    >>> gs.optim.clip_grad_norm_([p], 5.0).item()
    50.0
    >>> [round(v, 3) for v in p.grad.tolist()]
    [3.0, 4.0]
    """
    max_norm = number("clip_grad_norm_", "max_norm", max_norm)
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm is {max_norm}; it must be at least 0.")
    grads = _grads(parameters, "clip_grad_norm_")
    p = _order("clip_grad_norm_", norm_type)
    control = np.zeros(4)
    arrays = [g.data for g in grads]
    global_norm(control, arrays, p, max_norm)
    total = _report(grads, control, p, error_if_nonfinite, "clip_grad_norm_")
    for part in _by_dtype(arrays).values():
        _cpu.grad_scale(control, part)
    for g in grads:
        g._ver[0] += 1
    return total


def clip_grad_value_(parameters: Any, clip_value: float, foreach: bool | None = None) -> None:
    """Clamps every element of the gradients of `parameters` in place to [-clip_value, clip_value].

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([0.0, 0.0]); p.grad = gs.tensor([-3.0, 0.5])
    >>> gs.optim.clip_grad_value_([p], 1.0); p.grad.tolist()
    [-1.0, 0.5]
    """
    clip_value = number("clip_grad_value_", "clip_value", clip_value)
    if not clip_value >= 0:
        raise ValueError(f"clip_grad_value_: clip_value is {clip_value}; it must be at least 0.")
    grads = _grads(parameters, "clip_grad_value_")
    for part in _by_dtype([g.data for g in grads]).values():
        _cpu.grad_clamp(part, clip_value)
    for g in grads:
        g._ver[0] += 1
