"""What a checkpoint of the trainer holds, and the checks before one is taken up.

Tensors are ``model/<name>`` and ``optim/<parameter name>/<slot>``; counters, the random state, the
loaders' positions, the schedule, partial sums of the epoch, history and callbacks' state are JSON.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from .._version import __version__
from .callbacks import Checkpoint

__all__ = ["check_length", "checked", "numbered", "resume_path", "snapshot"]


def snapshot(trainer: Any) -> dict[str, Any]:
    """All that training needs to go on, as of the end of the last update."""
    names = parameter_names(trainer)
    state = trainer.optimizer.state_dict()
    groups = [
        {**group, "params": [names[int(i)] for i in group["params"]]}
        for group in state["param_groups"]
    ]
    scheduler = trainer.scheduler
    return {
        "model": trainer.model.state_dict(),
        "optim": {names[int(i)]: slots for i, slots in state["state"].items()},
        "trainer": {
            "epoch": trainer.epoch,
            "step": trainer.step,
            "lr": trainer.lr,
            "loss": trainer.loss if math.isfinite(trainer.loss) else None,
            "first_epoch": trainer._first_epoch,
            "sums": dict(trainer._sums),
            "marked": dict(trainer._marked),
            "history": [dict(row) for row in trainer.history],
            "optimizer": {"class": type(trainer.optimizer).__name__, "groups": groups},
            "scheduler": None
            if scheduler is None
            else {"class": type(scheduler).__name__, "state": scheduler.state_dict()},
        },
        "metrics": [{"name": m.name, "state": m.state_dict()} for m in trainer.metrics],
        "callbacks": [
            {"class": type(c).__name__, "state": c.state_dict()} for c in trainer.callbacks
        ],
        "config": dict(trainer.config),
        "versions": {"gradsmith": __version__, "numpy": np.__version__},
    }


# What a checkpoint must hold at least: types, dicts with these entries, lists of such.
_NUMBER = (int, float)
_FORM = {
    "model": dict,
    "optim": dict,
    "metrics": [{"name": str, "state": dict}],
    "callbacks": [{"class": str, "state": dict}],
    "trainer": {
        "epoch": int,
        "step": int,
        "first_epoch": int,
        "sums": {"loss": _NUMBER, "samples": int, "batches": int, "seconds": _NUMBER},
        "marked": {"random": dict},
        "history": [dict],
        "optimizer": {"class": str, "groups": [{"params": [str]}]},
        "scheduler": (type(None), dict),
    },
}


def _unlike(value: Any, form: Any, name: str = "") -> str | None:
    """Where ``value`` is not of that form; None where it is."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"{name} is no dict"
        for key, inner in form.items():
            if key not in value:
                return f"it has no {name}{key}"
            if odd := _unlike(value[key], inner, f"{name}{key}/"):
                return odd
    elif isinstance(form, list):
        if not isinstance(value, (list, tuple)):
            return f"{name} is no list"
        for i, item in enumerate(value):
            if odd := _unlike(item, form[0], f"{name}{i}/"):
                return odd
    elif not isinstance(value, form):
        return f"{name.rstrip('/')} is a {type(value).__name__}"
    return None


def checked(path: str | os.PathLike[str], trainer: Any) -> dict[str, Any]:
    """The checkpoint at ``path``; ValueError where it is none or belongs to another trainer."""
    from ..interop.safetensors import load

    state, where = load(path), os.fspath(path)
    if not isinstance(state, dict) or not {"model", "optim", "trainer"} <= state.keys():
        raise ValueError(
            f"resume: {where} holds no training state (no 'trainer' entry). For weights alone use "
            "model.load_state_dict(gs.load(path)['model'])."
        )
    if wrong := _unlike(state, _FORM):
        raise ValueError(f"resume: {where} is damaged or of another version: {wrong}.")
    saved = state["trainer"]
    for kind in ("optimizer", "scheduler"):
        mine = getattr(trainer, kind)
        found = saved[kind]["class"] if saved[kind] else "no scheduler"
        have = "no scheduler" if mine is None else type(mine).__name__
        if found != have:
            raise ValueError(f"resume: {where} was made with {found}, this trainer has {have}.")
    names = [m["name"] for m in state["metrics"]]
    if saved["sums"]["batches"] and names != [m.name for m in trainer.metrics]:
        raise ValueError(
            f"resume: {where} was made within an epoch with the metrics {names}; this trainer has "
            f"{[m.name for m in trainer.metrics]}."
        )
    held = parameter_names(trainer)
    there = [name for group in saved["optimizer"]["groups"] for name in group["params"]]
    if sorted(held) != sorted(there):
        odd = sorted(set(held) ^ set(there)) or held
        raise ValueError(
            f"resume: the optimizer in {where} holds other parameters than this one; they differ "
            f"in {', '.join(odd[:4])}. Build the same model and optimizer as in that run."
        )
    return state


def numbered(trainer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's part of a checkpoint with numbers in place of parameter names again."""
    numbers = {name: i for i, name in enumerate(parameter_names(trainer))}
    return {
        "state": {numbers[name]: slots for name, slots in state["optim"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]}
            for group in state["trainer"]["optimizer"]["groups"]
        ],
    }


def parameter_names(trainer: Any) -> list[str]:
    """Names of the optimizer's parameters, in the order in which it numbers them."""
    known = {id(p): name for name, p in trainer.model.named_parameters()}
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    return [known.get(id(p), f"parameter {i}") for i, p in enumerate(held)]


def resume_path(resume: Any, callbacks: list[Any]) -> str | None:
    """The file that ``fit(resume=...)`` means; None to start anew."""
    if resume is None or resume is False:
        return None
    if resume is True:
        for callback in callbacks:
            if isinstance(callback, Checkpoint):
                return callback.last if os.path.exists(callback.last) else None
        raise ValueError("fit: resume=True needs a Checkpoint among the callbacks.")
    path = os.fspath(resume)
    return os.path.join(path, "last.safetensors") if os.path.isdir(path) else path


def check_length(trainer: Any, source: Any, end: int, accumulate: int) -> None:
    """ValueError before training where a schedule of fixed length would end too early."""
    scheduler = trainer.scheduler
    total = getattr(scheduler, "total_steps", None)
    if total is None or not hasattr(source, "__len__") or end <= trainer.epoch:
        return
    left = -(-(len(source) - trainer._sums["batches"]) // accumulate)
    left += (end - trainer.epoch - 1) * -(-len(source) // accumulate)
    if scheduler.last_epoch + left > total:
        raise ValueError(
            f"fit: {left} updates are to come, but the {type(scheduler).__name__} of "
            f"total_steps={total} is at step {scheduler.last_epoch}. Build it with total_steps = "
            "epochs * updates per epoch, or train for fewer epochs."
        )
