"""Learning-rate schedules under PyTorch's names, arguments and values.

A scheduler is a pure function of the step: ``scheduler.lr_at(t)`` is the rate at step ``t >= 0``,
a float for one parameter group and a list for several. ``step()`` adds one to ``t`` and writes
``lr`` (and, where a schedule cycles it, the momentum) into ``optimizer.param_groups``. Because
nothing depends on the path, ``state_dict()`` holds ``t`` and the rates the curve starts from, and
a resumed run is on the curve by construction. Only ``ReduceLROnPlateau`` reacts to what it sees and keeps counters.

Two exceptions to "pure" are values that are defined by recursion, ``MultiplicativeLR`` and
``ChainedScheduler``: they walk from 0 to ``t`` once and remember the walk.

>>> from types import SimpleNamespace
>>> optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
>>> schedule = StepLR(optimizer, step_size=2, gamma=0.5)
>>> [schedule.lr_at(t) for t in range(5)]
[1.0, 1.0, 0.5, 0.5, 0.25]
>>> schedule.step(); schedule.step(); optimizer.param_groups[0]["lr"]
0.5
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..core import recording

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "InverseTimeLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "NoamLR",
    "OneCycleLR",
    "PiecewiseConstantLR",
    "PolynomialLR",
    "PowerLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
    "WarmupLR",
]

Rate = float | list[float]


def _whole(owner: str, name: str, value: Any, least: int) -> int:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not known or value != int(value):
        raise ValueError(f"{owner}: {name} must be a whole number, not {value!r}.")
    if value < least:
        raise ValueError(f"{owner}: {name} is {value}; it must be at least {least}.")
    return int(value)


def _number(owner: str, name: str, value: Any, low: float = -math.inf, open_low: bool = False):
    if isinstance(value, bool) or not hasattr(value, "__float__") or not math.isfinite(value):
        raise ValueError(f"{owner}: {name} must be a finite number, not {value!r}.")
    if value < low or (open_low and value == low):
        bound = "greater than" if open_low else "at least"
        raise ValueError(f"{owner}: {name} is {value}; it must be {bound} {low:g}.")
    return float(value)


def _dict(owner: str, state: Any) -> dict[str, Any]:
    if not isinstance(state, dict):
        raise TypeError(f"{owner}: the state is a {type(state).__name__}, not a dict.")
    return state


def _groups(optimizer: Any, owner: str) -> list[dict[str, Any]]:
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list) or not groups or not all("lr" in g for g in groups):
        raise TypeError(
            f"{owner}: {type(optimizer).__name__} is not an optimizer (it has no param_groups with "
            f"an 'lr'). Pass the optimizer first: {owner}(optimizer, ...)."
        )
    return groups


class LRScheduler:
    """Base of all schedules: subclass it and write ``_values(t) -> list`` with one rate per group.

    ``last_epoch`` has PyTorch's meaning: -1 starts at ``t = 0``; another value continues after
    that step and needs ``initial_lr`` in every group. Steps are whatever you count; the trainer
    counts optimizer updates. Fractional ``t`` is accepted wherever the formula allows it.
    In the formulas below ``lr0`` is a group's rate when its first schedule was made.

    Raises:
        TypeError: the first argument is no optimizer.
        ValueError: an argument out of its range (all schedules name it and say the range); a
            ``last_epoch`` without ``initial_lr``; groups that came after the schedule.

    >>> import gradsmith as gs
    >>> class Halving(gs.optim.lr_scheduler.LRScheduler):
    ...     def _values(self, t):
    ...         return [lr / 2**t for lr in self.base_lrs]
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = Halving(optimizer)
    >>> schedule.step(); schedule.get_last_lr(), schedule.lr_at(3)
    ([0.5], 0.125)
    """

    def __init__(self, optimizer: Any, last_epoch: int = -1) -> None:
        self.optimizer = optimizer
        groups = _groups(optimizer, type(self).__name__)
        for i, group in enumerate(groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", float(group["lr"]))
            elif "initial_lr" not in group:
                raise ValueError(
                    f"{type(self).__name__}: last_epoch={last_epoch} continues an older schedule, "
                    f"but parameter group {i} has no 'initial_lr'. Load the optimizer's state "
                    "first, or leave last_epoch out and use load_state_dict()."
                )
        self.base_lrs = [float(group["initial_lr"]) for group in groups]
        self.last_epoch: float = last_epoch + 1
        self._apply()

    # What a schedule defines -------------------------------------------------------------------

    def _values(self, t: float) -> list[float]:
        raise NotImplementedError(f"{type(self).__name__} must define _values(t).")

    def _momenta(self, t: float) -> list[float] | None:
        return None

    def _after(self, t: int, rates: list[float]) -> list[float]:
        """Rates at ``t`` when another schedule left ``rates``: this one overwrites them."""
        return self._values(t)

    def _onwards(self, t: float, left: Callable[[], list[float]]) -> list[float]:
        """Rates at its step ``t`` in a sequence whose part before ended with the rates ``left()``."""
        return self._values(t)

    # What users call ---------------------------------------------------------------------------

    def lr_at(self, t: float) -> Rate:
        """The rate at step ``t``: a float for one parameter group, a list for several.

        Raises ValueError for a negative ``t``. Nothing is changed.
        """
        values = self._values(self._checked(t))
        return values[0] if len(values) == 1 else values

    def momentum_at(self, t: float) -> Rate | None:
        """The momentum (Adam's first beta) at step ``t``; None where the schedule leaves it.

        Raises ValueError for a negative ``t``. Nothing is changed.
        """
        values = self._momenta(self._checked(t))
        return values[0] if values is not None and len(values) == 1 else values

    def __call__(self, t: float) -> Rate:
        """The same as ``lr_at(t)``."""
        return self.lr_at(t)

    def step(self, epoch: float | None = None) -> None:
        """Go to the next step (or to ``epoch``) and write the rate into the optimizer.

        Raises ValueError for a negative ``epoch`` or after the end of a schedule that has one; the
        optimizer is unchanged then.
        """
        t = self.last_epoch + 1 if epoch is None else self._checked(epoch)
        self._values(t)  # a schedule that has ended raises here, before anything is changed
        if epoch is not None:
            recording.host_read("scheduler.step(epoch)", "Step the scheduler outside")
        self.last_epoch = t
        self._apply()
        recording.note("scheduler", self)

    def get_last_lr(self) -> list[float]:
        """The rates in use now, one per parameter group."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """The step and the rates that the curve starts from, those of inner schedules too."""
        state = {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}
        if inner := self._parts():
            state["schedulers"] = [s.state_dict() for s in inner]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the saved step and write its rate into the optimizer.

        The saved starting rates hold, whatever rate the optimizer here was made with, as in
        PyTorch; the arguments stay those of this schedule. ValueError where the state is one of
        another kind of schedule or of another number of groups; nothing is changed then.
        """
        if "last_epoch" not in _dict(type(self).__name__, state_dict):
            raise ValueError(
                f"{type(self).__name__}: the state has no 'last_epoch' (keys: {sorted(state_dict)})."
            )
        before = self._starts()
        try:
            self._restart(self._saved_starts(state_dict))
            self.step(state_dict["last_epoch"])
        except BaseException:
            self._restart(before)
            raise

    def _parts(self) -> list[LRScheduler]:
        """The schedules that this one is made of."""
        return []

    def _starts(self) -> list[Any]:
        return [list(self.base_lrs), *(s._starts() for s in self._parts())]

    def _saved_starts(self, state: dict[str, Any]) -> list[Any]:
        owner, inner = type(self).__name__, self._parts()
        rates = state.get("base_lrs", self.base_lrs)  # older states have none
        if not isinstance(rates, (list, tuple)) or not all(
            isinstance(r, (int, float)) for r in rates
        ):
            raise ValueError(f"{owner}: the state's base_lrs are {rates!r}, not a list of numbers.")
        if len(rates) != len(self.base_lrs):
            raise ValueError(
                f"{owner}: the state is for {len(rates)} parameter groups, the optimizer has "
                f"{len(self.base_lrs)}."
            )
        states = state.get("schedulers", [{}] * len(inner))
        if len(states) != len(inner):
            raise ValueError(
                f"{owner}: the state is of {len(states)} inner schedules, this one has {len(inner)}."
            )
        return [[float(r) for r in rates], *(s._saved_starts(t) for s, t in zip(inner, states))]

    def _restart(self, starts: list[Any]) -> None:
        """Other starting rates; what was computed from the old ones is forgotten."""
        self.base_lrs = starts[0]
        for s, inner in zip(self._parts(), starts[1:]):
            s._restart(inner)

    # Shared work -------------------------------------------------------------------------------

    def _checked(self, t: Any) -> float:
        if isinstance(t, bool) or not isinstance(t, (int, float)) or not t >= 0:
            raise ValueError(f"{type(self).__name__}: step {t!r} must be a number of 0 or more.")
        return t

    def _apply(self) -> None:
        groups = self.optimizer.param_groups
        values = self._values(self.last_epoch)
        if len(groups) != len(values):
            raise ValueError(
                f"{type(self).__name__}: built for {len(values)} parameter groups, the optimizer "
                f"now has {len(groups)}. Add groups before making the schedule."
            )
        momenta = self._momenta(self.last_epoch)
        for i, group in enumerate(groups):
            group["lr"] = values[i]
            if momenta is not None:
                if "betas" in group:
                    group["betas"] = (momenta[i], *group["betas"][1:])
                else:
                    group["momentum"] = momenta[i]
        self._last_lr = values

    def _per_group(self, name: str, value: Any) -> list[float]:
        owner, n = type(self).__name__, len(self.optimizer.param_groups)
        values = list(value) if isinstance(value, (list, tuple)) else [value] * n
        if len(values) != n:
            raise ValueError(
                f"{owner}: {name} has {len(values)} values for {n} parameter groups; "
                "give one number, or one per group."
            )
        return [_number(owner, name, v) for v in values]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(t={self.last_epoch}, lr={self.get_last_lr()})"


class _Factor(LRScheduler):
    """lr(t) = lr0 * factor(t); chained, it multiplies by factor(t) / factor(t - 1)."""

    def _factor(self, t: float) -> float:
        raise NotImplementedError

    def _values(self, t: float) -> list[float]:
        f = self._factor(t)
        return [lr * f for lr in self.base_lrs]

    def _after(self, t: int, rates: list[float]) -> list[float]:
        before = self._factor(t - 1) if t > 0 else 1.0
        ratio = self._factor(t) / before if before else 1.0
        return [lr * ratio for lr in rates]


class ConstantLR(_Factor):
    """``lr0 * factor`` for the first ``total_iters`` steps, then ``lr0``.

    ``ConstantLR(optimizer, factor=1)`` is the plain constant rate. ValueError: a ``factor``
    outside [0, 1], ``total_iters`` below 0. Source: PyTorch.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=2)
    >>> [schedule.lr_at(t) for t in range(4)]
    [0.5, 0.5, 1.0, 1.0]
    """

    def __init__(
        self, optimizer: Any, factor: float = 1 / 3, total_iters: int = 5, last_epoch: int = -1
    ) -> None:
        self.factor = _number("ConstantLR", "factor", factor, 0)
        if self.factor > 1:
            raise ValueError(f"ConstantLR: factor is {factor}; it must be between 0 and 1.")
        self.total_iters = _whole("ConstantLR", "total_iters", total_iters, 0)
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: float) -> float:
        return self.factor if t < self.total_iters else 1.0

    def _after(self, t: int, rates: list[float]) -> list[float]:
        if t == 0:
            ratio = self.factor
        else:
            ratio = 1 / self.factor if t == self.total_iters and self.factor else 1.0
        return [lr * ratio for lr in rates]


class LinearLR(_Factor):
    """Factor from ``start_factor`` to ``end_factor``, linear over ``total_iters`` steps.

    ``lr0 * (start + (end - start) * min(t, total_iters) / total_iters)``

    ValueError: ``start_factor`` outside (0, 1], ``end_factor`` outside [0, 1], ``total_iters`` below
    1. As a warm-up: Goyal et al. 2017, Accurate, Large Minibatch SGD; ``WarmupLR`` puts another
    schedule behind it.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=3)
    >>> [schedule.lr_at(t) for t in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    def __init__(
        self,
        optimizer: Any,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self.start_factor = _number("LinearLR", "start_factor", start_factor, 0, open_low=True)
        self.end_factor = _number("LinearLR", "end_factor", end_factor, 0)
        if self.start_factor > 1 or self.end_factor > 1:
            raise ValueError(
                f"LinearLR: start_factor={start_factor} and end_factor={end_factor} must not "
                "exceed 1; raise the optimizer's lr instead."
            )
        self.total_iters = _whole("LinearLR", "total_iters", total_iters, 1)
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: float) -> float:
        share = min(t, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * share


class StepLR(_Factor):
    """``lr0 * gamma ** floor(t / step_size)``: a drop every ``step_size`` steps.

    ValueError: ``step_size`` below 1, ``gamma`` below 0. Source: PyTorch.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    >>> [schedule.lr_at(t) for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    def __init__(
        self, optimizer: Any, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size = _whole("StepLR", "step_size", step_size, 1)
        self.gamma = _number("StepLR", "gamma", gamma, 0)
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: float) -> float:
        return self.gamma ** (t // self.step_size)


class MultiStepLR(_Factor):
    """``lr0 * gamma ** (number of milestones <= t)``; a milestone given twice counts twice.

    ValueError: a milestone that is no whole number of at least 0, ``gamma`` below 0. As in
    He et al. 2016, Deep Residual Learning (a tenth after 32,000 and 48,000 updates).

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[1, 3], gamma=0.5)
    >>> [schedule.lr_at(t) for t in range(5)]
    [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    def __init__(
        self, optimizer: Any, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        if not isinstance(milestones, Iterable):
            raise TypeError(f"MultiStepLR: milestones must be a list, not {milestones!r}.")
        self.milestones = sorted(_whole("MultiStepLR", "milestones", m, 0) for m in milestones)
        self.gamma = _number("MultiStepLR", "gamma", gamma, 0)
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: float) -> float:
        return self.gamma ** bisect_right(self.milestones, t)


class ExponentialLR(_Factor):
    """``lr0 * gamma ** (t / decay_steps)``; with ``staircase`` the exponent is rounded down.

    PyTorch has ``gamma`` only (``decay_steps=1``); the others are Keras's. A tenfold drop every
    ``s`` steps is ``gamma=0.1, decay_steps=s, staircase=True``; without ``staircase`` it is the
    smooth curve through the same corners. ValueError: ``gamma`` or ``decay_steps`` not above 0.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.25, decay_steps=2)
    >>> [schedule.lr_at(t) for t in range(5)]
    [1.0, 0.5, 0.25, 0.125, 0.0625]
    """

    def __init__(
        self,
        optimizer: Any,
        gamma: float,
        last_epoch: int = -1,
        *,
        decay_steps: float = 1,
        staircase: bool = False,
    ) -> None:
        self.gamma = _number("ExponentialLR", "gamma", gamma, 0, open_low=True)
        self.decay_steps = _number("ExponentialLR", "decay_steps", decay_steps, 0, open_low=True)
        self.staircase = bool(staircase)
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: float) -> float:
        x = t / self.decay_steps
        return self.gamma ** (math.floor(x) if self.staircase else x)


class PolynomialLR(_Factor):
    """``lr0 * (1 - min(t, total_iters) / total_iters) ** power``

    From ``total_iters`` on it is zero (``lr0`` for ``power=0``). ValueError: ``total_iters`` below
    1, ``power`` below 0. The "poly" policy of Chen et al. 2018, DeepLab (power 0.9).

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=4, power=2)
    >>> [schedule.lr_at(t) for t in range(6)]
    [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """

    def __init__(
        self, optimizer: Any, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1
    ) -> None:
        self.total_iters = _whole("PolynomialLR", "total_iters", total_iters, 1)
        self.power = _number("PolynomialLR", "power", power, 0)
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: float) -> float:
        return (1.0 - min(t, self.total_iters) / self.total_iters) ** self.power


class PowerLR(_Factor):
    """``lr0 / (1 + t / s) ** c``: half of ``lr0`` at ``t = s`` for ``c = 1``.

    ValueError: ``s`` (in steps) not above 0, ``c`` below 0. Robbins & Monro 1951 ask for
    1/2 < c <= 1: then the rates have no finite sum, but their squares have.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.PowerLR(optimizer, s=2)
    >>> [round(schedule.lr_at(t), 3) for t in range(5)]
    [1.0, 0.667, 0.5, 0.4, 0.333]
    """

    def __init__(self, optimizer: Any, s: float, c: float = 1.0, last_epoch: int = -1) -> None:
        self.s = _number("PowerLR", "s", s, 0, open_low=True)
        self.c = _number("PowerLR", "c", c, 0)
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: float) -> float:
        return (1.0 + t / self.s) ** -self.c


class InverseTimeLR(_Factor):
    """``lr0 / (1 + decay_rate * t / decay_steps)``, the time-based decay (arguments as in Keras).

    With ``staircase`` the quotient ``t / decay_steps`` is rounded down. ValueError: ``decay_rate``
    below 0, ``decay_steps`` not above 0. Source: Bottou 2012, Stochastic Gradient Descent Tricks.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.InverseTimeLR(optimizer, 1, decay_steps=2, staircase=True)
    >>> [round(schedule.lr_at(t), 3) for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.333]
    """

    def __init__(
        self,
        optimizer: Any,
        decay_rate: float,
        decay_steps: float = 1,
        staircase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        self.decay_rate = _number("InverseTimeLR", "decay_rate", decay_rate, 0)
        self.decay_steps = _number("InverseTimeLR", "decay_steps", decay_steps, 0, open_low=True)
        self.staircase = bool(staircase)
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: float) -> float:
        x = t / self.decay_steps
        return 1.0 / (1.0 + self.decay_rate * (math.floor(x) if self.staircase else x))


class NoamLR(_Factor):
    """``lr0 * d_model**-0.5 * min(n**-0.5, n * warmup_steps**-1.5)`` with ``n = t + 1``.

    A linear rise over ``warmup_steps`` steps, then a fall with the root of the step; used with
    ``lr=1`` in the optimizer. ``d_model`` is the width of the model. ValueError: either below 1.
    Source: Vaswani et al. 2017, Attention Is All You Need.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.NoamLR(optimizer, d_model=4, warmup_steps=4)
    >>> [round(schedule.lr_at(t), 4) for t in range(6)]
    [0.0625, 0.125, 0.1875, 0.25, 0.2236, 0.2041]
    """

    def __init__(
        self, optimizer: Any, d_model: int, warmup_steps: int = 4000, last_epoch: int = -1
    ) -> None:
        self.d_model = _whole("NoamLR", "d_model", d_model, 1)
        self.warmup_steps = _whole("NoamLR", "warmup_steps", warmup_steps, 1)
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: float) -> float:
        n = t + 1
        return self.d_model**-0.5 * min(n**-0.5, n * self.warmup_steps**-1.5)


class PiecewiseConstantLR(LRScheduler):
    """``values[i]`` where ``i`` is the number of boundaries below ``t`` (arguments as in Keras).

    The old value still holds *at* its boundary: ``boundaries=[10], values=[1, 0.1]`` gives 1 up
    to and including step 10. All parameter groups get the same rate, ``lr0`` has no part in it.
    ValueError: boundaries that do not increase, not one value more than boundaries.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.PiecewiseConstantLR(optimizer, [1, 3], [1.0, 0.5, 0.1])
    >>> [schedule.lr_at(t) for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.1]
    """

    def __init__(
        self,
        optimizer: Any,
        boundaries: Sequence[float],
        values: Sequence[float],
        last_epoch: int = -1,
    ) -> None:
        self.boundaries = [_number("PiecewiseConstantLR", "boundaries", b, 0) for b in boundaries]
        self.values = [_number("PiecewiseConstantLR", "values", v, 0) for v in values]
        if any(a >= b for a, b in zip(self.boundaries, self.boundaries[1:])):
            raise ValueError(f"PiecewiseConstantLR: boundaries {boundaries} must increase.")
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"PiecewiseConstantLR: {len(self.boundaries)} boundaries need "
                f"{len(self.boundaries) + 1} values, not {len(self.values)}."
            )
        super().__init__(optimizer, last_epoch)

    def _values(self, t: float) -> list[float]:
        return [self.values[bisect_left(self.boundaries, t)]] * len(self.base_lrs)


class LambdaLR(LRScheduler):
    """``lr0 * lr_lambda(t)``; one function, or a list with one per parameter group.

    ValueError: not one function per group; TypeError: something that is no function.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (t + 1) ** 2)
    >>> [round(schedule.lr_at(t), 3) for t in range(4)]
    [1.0, 0.25, 0.111, 0.062]
    """

    def __init__(self, optimizer: Any, lr_lambda: Any, last_epoch: int = -1) -> None:
        self.lr_lambdas = _functions("LambdaLR", optimizer, lr_lambda)
        super().__init__(optimizer, last_epoch)

    def _values(self, t: float) -> list[float]:
        return [lr * f(t) for lr, f in zip(self.base_lrs, self.lr_lambdas)]


class MultiplicativeLR(LRScheduler):
    """``lr0 * lr_lambda(1) * lr_lambda(2) * ... * lr_lambda(t)``; a function, or one per group.

    In ``SequentialLR`` the product begins with ``lr_lambda(0)`` and the rate that the part before
    left, as in PyTorch. ValueError: a fractional ``t``, not one function per group; TypeError:
    something that is no function.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> halve = lambda t: 0.5 if t % 2 else 1.0
    >>> schedule = gs.optim.lr_scheduler.MultiplicativeLR(optimizer, halve)
    >>> [schedule.lr_at(t) for t in range(5)]
    [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    def __init__(self, optimizer: Any, lr_lambda: Any, last_epoch: int = -1) -> None:
        self.lr_lambdas = _functions("MultiplicativeLR", optimizer, lr_lambda)
        self._products: list[list[float]] = []
        self._factors: list[list[float]] = []
        super().__init__(optimizer, last_epoch)

    def _restart(self, starts: list[Any]) -> None:
        super()._restart(starts)
        self._products.clear()

    def _values(self, t: float) -> list[float]:
        t = _whole("MultiplicativeLR", "step", t, 0)
        if not self._products:
            self._products.append(list(self.base_lrs))
        while len(self._products) <= t:
            n = len(self._products)
            self._products.append(self._after(n, self._products[-1]))
        return list(self._products[t])

    def _after(self, t: int, rates: list[float]) -> list[float]:
        return [lr * f(t) for lr, f in zip(rates, self.lr_lambdas)] if t > 0 else list(rates)

    def _onwards(self, t: float, left: Callable[[], list[float]]) -> list[float]:
        t = _whole("MultiplicativeLR", "step", t, 0)
        while len(self._factors) <= t:  # in a sequence lr_lambda(0) counts, too, as in PyTorch
            n = len(self._factors)
            before = self._factors[-1] if n else [1.0] * len(self.lr_lambdas)
            self._factors.append([product * f(n) for product, f in zip(before, self.lr_lambdas)])
        return [lr * factor for lr, factor in zip(left(), self._factors[t])]


def _functions(owner: str, optimizer: Any, given: Any) -> list[Callable[[float], float]]:
    n = len(_groups(optimizer, owner))
    functions = list(given) if isinstance(given, (list, tuple)) else [given] * n
    if len(functions) != n:
        raise ValueError(f"{owner}: {len(functions)} functions for {n} parameter groups.")
    for f in functions:
        if not callable(f):
            raise TypeError(f"{owner}: lr_lambda must be a function of the step, not {f!r}.")
    return functions


class CosineAnnealingLR(LRScheduler):
    """``eta_min + (lr0 - eta_min) * (1 + cos(pi * t / T_max)) / 2``

    As in PyTorch the curve rises again after ``T_max``; set ``T_max`` to the number of steps.
    ValueError: ``T_max`` below 1, ``eta_min`` below 0.
    Source: Loshchilov & Hutter 2017 (SGDR), without the restarts.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    >>> [round(schedule.lr_at(t), 3) for t in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """

    def __init__(
        self, optimizer: Any, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_max = _whole("CosineAnnealingLR", "T_max", T_max, 1)
        self.eta_min = _number("CosineAnnealingLR", "eta_min", eta_min, 0)
        super().__init__(optimizer, last_epoch)

    def _values(self, t: float) -> list[float]:
        share = (1 + math.cos(math.pi * t / self.T_max)) / 2
        return [self.eta_min + (lr - self.eta_min) * share for lr in self.base_lrs]

    def _after(self, t: int, rates: list[float]) -> list[float]:
        if t == 0:
            return list(rates)
        if (t - 1 - self.T_max) % (2 * self.T_max) == 0:  # the quotient below would be 0 / 0
            lift = (1 - math.cos(math.pi / self.T_max)) / 2
            return [r + (lr - self.eta_min) * lift for r, lr in zip(rates, self.base_lrs)]
        up = 1 + math.cos(math.pi * t / self.T_max)
        ratio = up / (1 + math.cos(math.pi * (t - 1) / self.T_max))
        return [ratio * (r - self.eta_min) + self.eta_min for r in rates]


class CosineAnnealingWarmRestarts(LRScheduler):
    """Cosine annealing that starts again after T_0, T_0 * T_mult, T_0 * T_mult**2, ... steps.

    ``eta_min + (lr0 - eta_min) * (1 + cos(pi * u / T)) / 2``, with ``u`` the steps since the last
    restart and ``T`` the length of the period it began. ValueError: ``T_0`` or ``T_mult`` below 1,
    ``eta_min`` below 0. Source: Loshchilov & Hutter 2017 (SGDR).

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=2, T_mult=2)
    >>> [round(schedule.lr_at(t), 3) for t in range(7)]
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """

    def __init__(
        self,
        optimizer: Any,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.T_0 = _whole("CosineAnnealingWarmRestarts", "T_0", T_0, 1)
        self.T_mult = _whole("CosineAnnealingWarmRestarts", "T_mult", T_mult, 1)
        self.eta_min = _number("CosineAnnealingWarmRestarts", "eta_min", eta_min, 0)
        super().__init__(optimizer, last_epoch)

    def _values(self, t: float) -> list[float]:
        length = self.T_0
        if self.T_mult == 1:
            t = t % length
        else:
            while t >= length:  # whole numbers: a logarithm would round near the restarts
                t -= length
                length *= self.T_mult
        share = (1 + math.cos(math.pi * t / length)) / 2
        return [self.eta_min + (lr - self.eta_min) * share for lr in self.base_lrs]


class _Cycling(LRScheduler):
    """Shared by CyclicLR and OneCycleLR: rates given outright, momentum cycled against them."""

    def _start(self, optimizer: Any, rates: list[float], last_epoch: int) -> None:
        if last_epoch == -1:
            for group, lr in zip(optimizer.param_groups, rates):
                group["initial_lr"] = lr
        super().__init__(optimizer, last_epoch)

    def _momentum_range(self, cycle: bool, low: Any, high: Any) -> None:
        self.cycle_momentum = bool(cycle)
        if not cycle:
            return
        self.base_momentums = self._per_group("base_momentum", low)
        self.max_momentums = self._per_group("max_momentum", high)
        for group in self.optimizer.param_groups:
            if "momentum" not in group and "betas" not in group:
                raise ValueError(
                    f"{type(self).__name__}: cycle_momentum=True, but the optimizer has neither "
                    "'momentum' nor 'betas'. Pass cycle_momentum=False."
                )


class CyclicLR(_Cycling):
    """Between ``base_lr`` and ``max_lr`` in triangles; momentum goes the other way.

    ``lr = base + (max - base) * height(t) * scale``, where height rises linearly from 0 to 1 over
    ``step_size_up`` steps and falls over ``step_size_down`` (default: the same number), and scale
    is 1 (``"triangular"``), ``2 ** -(cycle - 1)`` (``"triangular2"``), ``gamma ** t``
    (``"exp_range"``) or ``scale_fn`` of the cycle (from 1) or of t, by ``scale_mode``
    (``"cycle"`` or ``"iterations"``). With ``cycle_momentum`` the momentum (Adam's first beta) is
    ``max_momentum - (max_momentum - base_momentum) * height(t) * scale``.

    ``base_lr``, ``max_lr``, ``base_momentum`` and ``max_momentum`` take one value or one per group.
    Source: Smith 2017, Cyclical Learning Rates for Training Neural Networks.

    Raises:
        ValueError: sizes not above 0, ``gamma`` below 0, an unknown mode, not one value per group,
            or ``cycle_momentum`` with an optimizer that has no momentum.
        TypeError: a ``scale_fn`` that is no function.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    >>> schedule = gs.optim.lr_scheduler.CyclicLR(optimizer, 0.0, 1.0, 2, mode="triangular2")
    >>> [schedule.lr_at(t) for t in range(9)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25, 0.0]
    >>> [round(schedule.momentum_at(t), 3) for t in range(5)]
    [0.9, 0.85, 0.8, 0.85, 0.9]
    """

    def __init__(
        self,
        optimizer: Any,
        base_lr: float | Sequence[float],
        max_lr: float | Sequence[float],
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.8,
        max_momentum: float | Sequence[float] = 0.9,
        last_epoch: int = -1,
    ) -> None:
        _groups(optimizer, "CyclicLR")
        self.optimizer = optimizer
        low, self.max_lrs = self._per_group("base_lr", base_lr), self._per_group("max_lr", max_lr)
        up = _number("CyclicLR", "step_size_up", step_size_up, 0, open_low=True)
        down = step_size_up if step_size_down is None else step_size_down
        self.total_size = up + _number("CyclicLR", "step_size_down", down, 0, open_low=True)
        self.step_ratio = up / self.total_size
        if scale_fn is not None and not callable(scale_fn):
            raise TypeError(f"CyclicLR: scale_fn must be a function, not {scale_fn!r}.")
        if scale_fn is None and mode not in ("triangular", "triangular2", "exp_range"):
            raise ValueError(
                f"CyclicLR: mode {mode!r} is unknown; it is 'triangular', 'triangular2' or "
                "'exp_range', or give scale_fn."
            )
        if scale_mode not in ("cycle", "iterations"):
            raise ValueError(
                f"CyclicLR: scale_mode {scale_mode!r} must be 'cycle' or 'iterations'."
            )
        self.mode, self.gamma = mode, _number("CyclicLR", "gamma", gamma, 0)
        self.scale_fn, self.scale_mode = scale_fn, scale_mode
        self._momentum_range(cycle_momentum, base_momentum, max_momentum)
        self._start(optimizer, low, last_epoch)

    def _height(self, t: float) -> float:
        turns = t / self.total_size
        cycle = math.floor(1 + turns)
        x = 1.0 + turns - cycle
        height = x / self.step_ratio if x <= self.step_ratio else (x - 1) / (self.step_ratio - 1)
        if self.scale_fn is not None:
            return height * self.scale_fn(cycle if self.scale_mode == "cycle" else t)
        if self.mode == "triangular2":
            return height * 2.0 ** (1 - cycle)
        return height * self.gamma**t if self.mode == "exp_range" else height

    def _values(self, t: float) -> list[float]:
        h = self._height(t)
        return [low + (high - low) * h for low, high in zip(self.base_lrs, self.max_lrs)]

    def _momenta(self, t: float) -> list[float] | None:
        if not self.cycle_momentum:
            return None
        h = self._height(t)
        return [m - (m - b) * h for b, m in zip(self.base_momentums, self.max_momentums)]


class OneCycleLR(_Cycling):
    """One rise to ``max_lr`` and one long fall; momentum goes the other way.

    From ``max_lr / div_factor`` up to ``max_lr`` over the first ``pct_start`` of ``total_steps``,
    then down to ``max_lr / div_factor / final_div_factor``, along a half cosine
    (``anneal_strategy="cos"``) or a line (``"linear"``). With ``three_phase`` the fall first
    mirrors the rise and the last phase goes on to the final rate. ``total_steps`` may be given as
    ``epochs`` and ``steps_per_epoch``. ``t`` runs to ``total_steps - 1``; ``t = total_steps``
    (after the last update) keeps the final rate, and a later step raises ValueError.

    Within a phase from a to b, of which the share s has passed, the rate is
    ``b + (a - b) * (1 + cos(pi * s)) / 2`` or ``a + (b - a) * s``. The momentum takes the same way
    from ``max_momentum`` to ``base_momentum`` and back.

    As in PyTorch the peak lies at ``pct_start * total_steps - 1``, which may fall between two
    steps, so that ``max_lr`` itself is never used; ``align_peak=True`` rounds the phases to whole
    steps. Source: Smith & Topin 2018, Super-Convergence; shape with a cosine: Howard & Gugger.

    Raises:
        ValueError: no number of steps, ``pct_start`` outside [0, 1], factors not above 0, an
            unknown ``anneal_strategy``, not one value per group, or ``cycle_momentum`` with an
            optimizer that has no momentum.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    >>> schedule = gs.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    >>> [round(schedule.lr_at(t), 3) for t in range(10)]
    [0.04, 0.52, 1.0, 0.95, 0.812, 0.611, 0.389, 0.188, 0.05, 0.0]
    >>> [round(schedule.momentum_at(t), 3) for t in range(4)]
    [0.95, 0.9, 0.85, 0.855]
    """

    def __init__(
        self,
        optimizer: Any,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
        *,
        align_peak: bool = False,
    ) -> None:
        _groups(optimizer, "OneCycleLR")
        self.optimizer = optimizer
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError(
                    "OneCycleLR: give total_steps, or both epochs and steps_per_epoch."
                )
            total_steps = _whole("OneCycleLR", "epochs", epochs, 1) * _whole(
                "OneCycleLR", "steps_per_epoch", steps_per_epoch, 1
            )
        self.total_steps = _whole("OneCycleLR", "total_steps", total_steps, 1)
        pct_start = _number("OneCycleLR", "pct_start", pct_start, 0)
        if pct_start > 1:
            raise ValueError(f"OneCycleLR: pct_start is {pct_start}; it is a share, 0 to 1.")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"OneCycleLR: anneal_strategy {anneal_strategy!r} must be 'cos' or 'linear'."
            )
        self.anneal_strategy = anneal_strategy
        self.max_lrs = self._per_group("max_lr", max_lr)
        div = _number("OneCycleLR", "div_factor", div_factor, 0, open_low=True)
        final = _number("OneCycleLR", "final_div_factor", final_div_factor, 0, open_low=True)
        low = [lr / div for lr in self.max_lrs]
        self.min_lrs = [lr / final for lr in low]
        peak, end = pct_start * self.total_steps - 1, float(self.total_steps - 1)
        if align_peak:
            peak = float(min(max(round(peak), 0), self.total_steps - 1))
        self._ends = [peak, 2 * peak, end] if three_phase else [peak, end]
        self._momentum_range(cycle_momentum, base_momentum, max_momentum)
        self._start(optimizer, low, last_epoch)

    def _phase(self, t: float) -> tuple[int, float]:
        """Index of the phase that holds t, and the share of it that has passed, 0 to 1."""
        if t > self.total_steps:
            raise ValueError(
                f"OneCycleLR: step {t} is past total_steps={self.total_steps}. Build the schedule "
                "with the number of optimizer updates that the whole run makes."
            )
        start = 0.0
        for i, end in enumerate(self._ends):
            if t <= end or i == len(self._ends) - 1:
                return i, min((t - start) / (end - start), 1.0) if end > start else 1.0
            start = end
        raise AssertionError

    def _between(self, t: float, corners: list[list[float]]) -> list[float]:
        i, share = self._phase(t)
        if self.anneal_strategy == "cos":
            fall = (1 + math.cos(math.pi * share)) / 2
            return [b + (a - b) * fall for a, b in zip(corners[i], corners[i + 1])]
        return [a + (b - a) * share for a, b in zip(corners[i], corners[i + 1])]

    def _values(self, t: float) -> list[float]:
        middle = [self.base_lrs] if len(self._ends) == 3 else []
        return self._between(t, [self.base_lrs, self.max_lrs, *middle, self.min_lrs])

    def _momenta(self, t: float) -> list[float] | None:
        if not self.cycle_momentum:
            return None
        high, low = self.max_momentums, self.base_momentums
        return self._between(t, [high, low, *([high] if len(self._ends) == 3 else []), high])


class WarmupLR(LRScheduler):
    """Linear warm-up, then another schedule (or the constant rate).

    For ``t < warmup_steps``: ``first * (start_factor + (1 - start_factor) * t / warmup_steps)``,
    where ``first`` is the wrapped schedule's rate at its step 0 (``lr0`` without one); afterwards
    the wrapped schedule's rate at ``t - warmup_steps``. ``start_factor`` defaults to
    ``1 / warmup_steps``, so that the first update is already of use.

    ValueError: ``warmup_steps`` or ``start_factor`` below 0, a schedule of another optimizer or
    ``ReduceLROnPlateau``. Source: Goyal et al. 2017, Accurate, Large Minibatch SGD.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> cosine = gs.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    >>> schedule = gs.optim.lr_scheduler.WarmupLR(optimizer, 2, cosine)
    >>> [round(schedule.lr_at(t), 3) for t in range(7)]
    [0.5, 0.75, 1.0, 0.854, 0.5, 0.146, 0.0]
    """

    def __init__(
        self,
        optimizer: Any,
        warmup_steps: int,
        scheduler: LRScheduler | None = None,
        start_factor: float | None = None,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_steps = _whole("WarmupLR", "warmup_steps", warmup_steps, 0)
        start = 1 / max(1, self.warmup_steps) if start_factor is None else start_factor
        self.start_factor = _number("WarmupLR", "start_factor", start, 0)
        _inner("WarmupLR", optimizer, [] if scheduler is None else [scheduler])
        self.scheduler = scheduler
        super().__init__(optimizer, last_epoch)

    def _parts(self) -> list[LRScheduler]:
        return [self.scheduler] if self.scheduler else []

    def _values(self, t: float) -> list[float]:
        if t >= self.warmup_steps:
            after = t - self.warmup_steps
            return self.scheduler._values(after) if self.scheduler else list(self.base_lrs)
        first = self.scheduler._values(0) if self.scheduler else self.base_lrs
        factor = self.start_factor + (1 - self.start_factor) * t / self.warmup_steps
        return [lr * factor for lr in first]

    def _momenta(self, t: float) -> list[float] | None:
        return self.scheduler._momenta(max(0, t - self.warmup_steps)) if self.scheduler else None


class SequentialLR(LRScheduler):
    """``schedulers[i]`` from ``milestones[i - 1]`` on, each counting from 0 at its start.

    Each begins with its own rate; ``MultiplicativeLR`` goes on from the one before. ValueError:
    milestones that do not increase from 1 or are not one fewer than the schedules, a schedule of
    another optimizer or ``ReduceLROnPlateau``. Source: PyTorch.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> low = gs.optim.lr_scheduler.ConstantLR(optimizer, factor=0.1)
    >>> falling = gs.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    >>> schedule = gs.optim.lr_scheduler.SequentialLR(optimizer, [low, falling], milestones=[2])
    >>> [schedule.lr_at(t) for t in range(5)]
    [0.1, 0.1, 1.0, 0.5, 0.25]
    """

    def __init__(
        self,
        optimizer: Any,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        self.schedulers = _inner("SequentialLR", optimizer, schedulers, least=1)
        self.milestones = [_whole("SequentialLR", "milestones", m, 1) for m in milestones]
        if len(self.milestones) != len(self.schedulers) - 1:
            raise ValueError(
                f"SequentialLR: {len(self.schedulers)} schedulers need {len(self.schedulers) - 1} "
                f"milestones, not {len(self.milestones)}."
            )
        if any(a >= b for a, b in zip(self.milestones, self.milestones[1:])):
            raise ValueError(f"SequentialLR: milestones {self.milestones} must increase.")
        super().__init__(optimizer, last_epoch)

    def _parts(self) -> list[LRScheduler]:
        return self.schedulers

    def _part(self, t: float) -> tuple[LRScheduler, float]:
        i = bisect_right(self.milestones, t)
        return self.schedulers[i], t - (self.milestones[i - 1] if i else 0)

    def _values(self, t: float) -> list[float]:
        scheduler, local = self._part(t)
        start = t - local
        if start == 0:
            return scheduler._values(local)
        return scheduler._onwards(local, lambda: self._values(start - 1))

    def _momenta(self, t: float) -> list[float] | None:
        scheduler, local = self._part(t)
        return scheduler._momenta(local)


class ChainedScheduler(LRScheduler):
    """All schedules at once, each applied to what the one before left (PyTorch's recursion).

    Schedules that are a factor on ``lr0`` (constant, linear, step, exponential, ...) multiply;
    one that sets its rate outright (lambda, cyclic, one-cycle) overwrites those before it.
    ValueError: no schedules, one of another optimizer or ``ReduceLROnPlateau``, a fractional ``t``.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> warmup = gs.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=3)
    >>> falling = gs.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    >>> schedule = gs.optim.lr_scheduler.ChainedScheduler([warmup, falling])
    >>> [schedule.lr_at(t) for t in range(5)]
    [0.25, 0.25, 0.1875, 0.125, 0.0625]
    """

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Any = None) -> None:
        if not isinstance(schedulers, (list, tuple)) or not schedulers:
            raise ValueError("ChainedScheduler: give a list of at least one scheduler.")
        if optimizer is None:
            optimizer = getattr(schedulers[0], "optimizer", None)
        self.schedulers = _inner("ChainedScheduler", optimizer, schedulers, least=1)
        self._walk: list[list[float]] = []
        super().__init__(optimizer)

    def _parts(self) -> list[LRScheduler]:
        return self.schedulers

    def _restart(self, starts: list[Any]) -> None:
        super()._restart(starts)
        self._walk.clear()

    def _values(self, t: float) -> list[float]:
        t = _whole("ChainedScheduler", "step", t, 0)
        while len(self._walk) <= t:
            n = len(self._walk)
            rates = self._walk[-1] if n else list(self.base_lrs)
            for scheduler in self.schedulers:
                rates = scheduler._after(n, rates)
            self._walk.append(rates)
        return list(self._walk[t])

    def _momenta(self, t: float) -> list[float] | None:
        found = None
        for scheduler in self.schedulers:
            momenta = scheduler._momenta(t)
            found = found if momenta is None else momenta
        return found


def _inner(
    owner: str, optimizer: Any, schedulers: Sequence[LRScheduler], least: int = 0
) -> list[LRScheduler]:
    schedulers = list(schedulers)
    if len(schedulers) < least:
        raise ValueError(f"{owner}: give a list of at least {least} scheduler.")
    for s in schedulers:
        if isinstance(s, ReduceLROnPlateau) or not isinstance(s, LRScheduler):
            raise ValueError(
                f"{owner}: {type(s).__name__} is not a function of the step and cannot be part of "
                "another schedule."
            )
        if s.optimizer is not optimizer:
            raise ValueError(f"{owner}: {type(s).__name__} belongs to another optimizer.")
    return schedulers


class ReduceLROnPlateau(LRScheduler):
    """Multiply the rate by ``factor`` once a value has stopped improving; ``step(value)``.

    A value is better when it is below ``best * (1 - threshold)`` (``threshold_mode="rel"``) or
    below ``best - threshold`` (``"abs"``); with ``mode="max"`` above ``best * (1 + threshold)`` or
    ``best + threshold``. After more than ``patience`` values that are not better the rate drops,
    not below ``min_lr`` (one value or one per group), unless the change would be at most ``eps``;
    then ``cooldown`` values pass before counting starts again. A NaN is never better.

    The one schedule with a memory: its state holds ``best``, the counters and the rates. The
    trainer calls it once an epoch, with the validation loss where there is one. Source: PyTorch;
    the rule is that of He et al. 2016, Deep Residual Learning ("when the error plateaus").

    Raises:
        ValueError: an unknown mode, ``factor`` outside [0, 1), counts or thresholds below 0, not
            one ``min_lr`` per group.
        TypeError: no optimizer; ``lr_at``, as the rate is no function of the step.

    >>> import gradsmith as gs
    >>> optimizer = gs.optim.SGD([gs.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = gs.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    >>> for loss in [0.9, 0.8, 0.85, 0.84, 0.7]:
    ...     schedule.step(loss)
    ...     print(loss, schedule.get_last_lr())
    0.9 [1.0]
    0.8 [1.0]
    0.85 [1.0]
    0.84 [0.5]
    0.7 [0.5]
    """

    def __init__(
        self,
        optimizer: Any,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        name = "ReduceLROnPlateau"
        if mode not in ("min", "max"):
            raise ValueError(f"{name}: mode {mode!r} must be 'min' or 'max'.")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"{name}: threshold_mode {threshold_mode!r} must be 'rel' or 'abs'.")
        self.factor = _number(name, "factor", factor, 0)
        if self.factor >= 1:
            raise ValueError(f"{name}: factor is {factor}; it must be below 1.")
        self.mode, self.threshold_mode = mode, threshold_mode
        self.patience = _whole(name, "patience", patience, 0)
        self.cooldown = _whole(name, "cooldown", cooldown, 0)
        self.threshold = _number(name, "threshold", threshold, 0)
        self.eps = _number(name, "eps", eps, 0)
        self.optimizer = optimizer
        groups = _groups(optimizer, name)
        self.min_lrs = self._per_group("min_lr", min_lr)
        self.base_lrs = [float(g["lr"]) for g in groups]
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0
        self.last_epoch = 0
        self._last_lr = list(self.base_lrs)

    def lr_at(self, t: float) -> Rate:
        """Always a TypeError: the rate depends on what the schedule is shown."""
        raise TypeError("ReduceLROnPlateau depends on what it is shown, so it has no lr_at(t).")

    def step(self, metrics: float, epoch: int | None = None) -> None:  # type: ignore[override]
        """Look at one value of the watched quantity and drop the rate if it is time."""
        recording.host_read(
            "ReduceLROnPlateau.step()", "Step it outside, with a value that was returned"
        )
        value = float(metrics)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self._better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
            for group, low in zip(self.optimizer.param_groups, self.min_lrs):
                lr = max(group["lr"] * self.factor, low)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr
        self._last_lr = [float(g["lr"]) for g in self.optimizer.param_groups]

    def _better(self, value: float) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        if self.threshold_mode == "abs":
            return sign * value < sign * self.best - self.threshold
        return sign * value < sign * self.best * (1 - sign * self.threshold)

    def state_dict(self) -> dict[str, Any]:
        """The counters, the best value (as text where infinite) and the rates."""
        return {
            "last_epoch": self.last_epoch,
            "best": self.best if math.isfinite(self.best) else str(self.best),
            "num_bad_epochs": self.num_bad_epochs,
            "cooldown_counter": self.cooldown_counter,
            "lr": list(self._last_lr),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state_dict: the best value, the counters and the rates."""
        state = _dict("ReduceLROnPlateau", state_dict)
        missing = {"best", "num_bad_epochs", "cooldown_counter", "lr"} - set(state)
        if missing:
            raise ValueError(f"ReduceLROnPlateau: the state lacks {sorted(missing)}.")
        groups = self.optimizer.param_groups
        if not isinstance(state["lr"], (list, tuple)):
            raise ValueError(f"ReduceLROnPlateau: the state's lr is {state['lr']!r}, not a list.")
        if len(state["lr"]) != len(groups):
            raise ValueError(
                f"ReduceLROnPlateau: the state is for {len(state['lr'])} parameter groups, the "
                f"optimizer has {len(groups)}."
            )
        try:
            at, best = state.get("last_epoch", 0), float(state["best"])
            bad, cooling = int(state["num_bad_epochs"]), int(state["cooldown_counter"])
            rates = [float(lr) for lr in state["lr"]]
        except (OverflowError, TypeError, ValueError) as error:
            raise ValueError(
                f"ReduceLROnPlateau: the state holds what is no number: {error}."
            ) from None
        self.last_epoch, self.best = at, best
        self.num_bad_epochs, self.cooldown_counter = bad, cooling
        for group, lr in zip(groups, rates):
            group["lr"] = lr
        self._last_lr = rates
