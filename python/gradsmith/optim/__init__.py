"""Optimizers, learning-rate schedules, gradient clipping, weight averaging."""

from __future__ import annotations

from . import lr_scheduler
from .adam import Adam, Adamax, AdamW, NAdam, RAdam
from .adaptive import Adadelta, Adagrad, RMSprop
from .averaging import EMA, AveragedModel, update_bn
from .clip import clip_grad_norm_, clip_grad_value_, get_total_norm
from .optimizer import Optimizer
from .sgd import ASGD, SGD

_BY_NAME: dict[str, type[Optimizer]] = {
    c.__name__.lower(): c
    for c in (SGD, ASGD, Adagrad, RMSprop, Adadelta, Adam, AdamW, NAdam, Adamax, RAdam)
}


def get(name: str | type[Optimizer]) -> type[Optimizer]:
    """The optimizer class of that name in any case: get("adamw"). A class is returned as it is.

    Raises ValueError for an unknown name.

    >>> import gradsmith as gs
    >>> gs.optim.get("adamw").__name__
    'AdamW'
    """
    if isinstance(name, type) and issubclass(name, Optimizer):
        return name
    found = _BY_NAME.get(str(name).lower())
    if found is None:
        raise ValueError(f"optim.get: unknown optimizer {name!r}; there are {', '.join(_BY_NAME)}.")
    return found


__all__ = [
    "ASGD",
    "EMA",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "AveragedModel",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "clip_grad_norm_",
    "clip_grad_value_",
    "get",
    "get_total_norm",
    "lr_scheduler",
    "update_bn",
]
