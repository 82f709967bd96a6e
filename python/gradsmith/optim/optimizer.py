"""Optimizer: parameter groups, state, the step that all update rules share.

A rule names its kernel, its states and its scalars; this file does the rest. `step()` sorts the
parameters of a group that have a gradient by their step count (almost always one set) and updates each
set by a single launch over all its tensors. Learning rate, bias corrections and every other scalar are
computed here in double from what `param_groups` holds at that moment and written into slots, which the
kernel reads: a schedule that writes ``param_groups[i]["lr"]`` takes effect at the next step, also in
a captured one.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from .. import _cpu
from ..core import recording
from ..core.tensor import Tensor, wrap

__all__ = ["Optimizer"]

INF = math.inf


def number(
    owner: str, name: str, value: Any, low: float = 0.0, high: float = INF, open_high: bool = False
) -> float:
    """A finite hyperparameter in [low, high] (or [low, high)); ValueError or TypeError otherwise."""
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{owner}: {name} must be a number, not {value!r}.")
    v = float(value)
    if not (low <= v <= high) or (open_high and v == high) or math.isnan(v) or v == INF:
        end = "" if high == INF else f" and {'less than' if open_high else 'at most'} {high:g}"
        raise ValueError(f"{owner}: {name} is {v:g}; it must be finite, at least {low:g}{end}.")
    return v


def pair(owner: str, name: str, value: Any) -> tuple[float, float]:
    """Two decay rates in [0, 1)."""
    try:
        a, b = value
    except (TypeError, ValueError):
        raise TypeError(f"{owner}: {name} must be two numbers, not {value!r}.") from None
    return (
        number(owner, f"{name}[0]", a, 0, 1, True),
        number(owner, f"{name}[1]", b, 0, 1, True),
    )


_IGNORED = {"foreach", "fused", "capturable"}  # PyTorch's choices of implementation
_BASE = {"max_grad_norm", "clip_value", "skip_nonfinite"}


def split(owner: str, defaults: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Moves l1 from the keyword options into the defaults; returns what Optimizer itself takes."""
    rest = {}
    for name, value in options.items():
        if name == "l1":
            defaults["l1"] = value
        elif name in _BASE:
            rest[name] = value
        elif name == "differentiable" and value:
            raise ValueError(f"{owner}: differentiable=True is not supported.")
        elif name not in _IGNORED and name != "differentiable":
            raise TypeError(
                f"{owner}: unknown argument {name!r}. Beside its own it takes l1, max_grad_norm, "
                "clip_value and skip_nonfinite."
            )
    return rest


class Slots:
    """A tuple of slots of the kernels' table, given back when it is collected."""

    def __init__(self, n: int):
        self.ids = tuple(_cpu.slot_new() for _ in range(n))
        weakref.finalize(self, _free, self.ids)

    def __reduce__(self) -> tuple:
        """A copy has slots of its own."""
        return Slots, (len(self.ids),)


def _free(ids: tuple[int, ...]) -> None:
    for i in ids:
        _cpu.slot_free(i)


_STEP: dict[str, float] = {"step": 0}  # what most rules count; read only


class _Row(NamedTuple):
    """A parameter at a step: its array, its state, the state's arrays (read by _cpu._rows_flat)."""

    p: Tensor
    data: np.ndarray
    own: dict[str, Any]
    states: list[np.ndarray]


class Optimizer:
    """Base class of the optimizers.

    params: Tensors, (name, Tensor) pairs, or dicts with the key "params" and the options of that group.
    defaults: options of groups that do not give their own; every group has "lr".

    Arguments that every optimizer takes by keyword, beside PyTorch's:
    l1: adds l1 * sign(p) to the gradient (L1 penalty; with weight_decay, elastic). It can differ
        by group. weight_decay adds weight_decay * p, the gradient of weight_decay / 2 * sum(p^2).
    max_grad_norm: scales the gradients so that the norm of all of them together is at most this.
        The same numbers as `clip_grad_norm_` before `step()`, but read once and never written;
        `optimizer.grad_norm` holds the norm.
    clip_value: clamps every element of the gradients to [-clip_value, clip_value] (after the norm).
    skip_nonfinite: a step whose gradients hold a NaN or an infinity changes nothing, not even the step
        counts, and is counted in `optimizer.skipped`.

    A rule of your own is a subclass that names a kernel (`rule`), the arrays (`arrays`, all that it may keep) and
    numbers (`numbers`, with their start values) that it keeps for each parameter, and whose `scalars(group,
    numbers)` advances the numbers and returns the kernel's scalars. Or override `step`.

    Raises ValueError for an empty list, a parameter that occurs twice, a non-leaf; TypeError for
    what is not a float Tensor. Parameters whose `.grad` is None are skipped.

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([1.0, -2.0])
    >>> p.grad = gs.tensor([0.5, 0.5])
    >>> opt = gs.optim.SGD([p], lr=0.1)
    >>> opt.step(); [round(v, 4) for v in p.tolist()]
    [0.95, -2.05]
    """

    rule: str = ""
    arrays: tuple[str, ...] = ()
    numbers: dict[str, float] = _STEP

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
        skip_nonfinite: bool = False,
    ):
        owner = type(self).__name__
        defaults.setdefault("l1", 0.0)
        defaults.setdefault("maximize", False)
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        self._skipped = 0
        self._slots: dict[tuple[int, int], Slots] = {}
        self._rows: dict[int, tuple[list[_Row], tuple[str, tuple[str, ...]]]] = {}
        self._last: list[tuple[int, Slots, list[_Row]]] = []
        self._clip_slot = Slots(1)
        self._control = np.zeros(4)
        self.max_grad_norm = max_grad_norm
        self.clip_value = clip_value
        self.skip_nonfinite = bool(skip_nonfinite)
        if isinstance(params, (Tensor, np.ndarray, str, bytes)) or not isinstance(params, Iterable):
            raise TypeError(
                f"{owner}: params must be an iterable of Tensors or of dicts, not "
                f"{type(params).__name__}. Pass model.parameters()."
            )
        groups = list(params)
        if not groups:
            raise ValueError(
                f"{owner}: got no parameters. Was model.parameters() used up before, or is every "
                "layer frozen?"
            )
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    # ---- options
    @property
    def max_grad_norm(self) -> float | None:
        return self._max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        self._max_grad_norm = _positive(type(self).__name__, "max_grad_norm", value)

    @property
    def clip_value(self) -> float | None:
        return self._clip_value

    @clip_value.setter
    def clip_value(self, value: float | None) -> None:
        self._clip_value = _positive(type(self).__name__, "clip_value", value)

    @property
    def grad_norm(self) -> float:
        """The global norm of the gradients before clipping, as of the last step with max_grad_norm or skip_nonfinite."""
        recording.host_read("optimizer.grad_norm", "Read it after the call")
        return float(self._control[0])

    @property
    def skipped(self) -> int:
        """How many steps skip_nonfinite has left out."""
        recording.host_read("optimizer.skipped", "Read it after the call")
        return self._skipped

    @skipped.setter
    def skipped(self, value: int) -> None:
        self._skipped = value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds {"params": [...], options}: its own lr, weight_decay, ...; the defaults fill the rest."""
        owner = type(self).__name__
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(f'{owner}: a parameter group is a dict with the key "params".')
        group = dict(param_group)
        params = group["params"]
        given = [params] if isinstance(params, Tensor) else list(params)
        tensors, names = [], []
        for i, p in enumerate(given):
            if isinstance(p, tuple) and len(p) == 2:
                names.append(p[0])
                p = p[1]
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"{owner}: parameter {i} is a {type(p).__name__}, not a Tensor. "
                    "Pass model.parameters()."
                )
            if p.data.dtype.kind != "f":
                raise TypeError(
                    f"{owner}: parameter {i} has dtype {p.dtype}; only float tensors can be trained."
                )
            if not p.is_leaf:
                raise ValueError(
                    f"{owner}: parameter {i} of shape {p.shape} is the result of an op, not a leaf. "
                    "Optimize the tensors that it was computed from."
                )
            tensors.append(p)
        held = {id(p) for g in self.param_groups for p in g["params"]}
        for i, p in enumerate(tensors):
            if id(p) in held:
                raise ValueError(
                    f"{owner}: parameter {i} of shape {p.shape} occurs twice. Each parameter belongs "
                    "to one group, once."
                )
            held.add(id(p))
        unknown = set(group) - set(self.defaults) - {"params", "param_names", "initial_lr"}
        if unknown:
            raise ValueError(
                f"{owner}: unknown option {sorted(unknown)[0]!r} in a parameter group; it has "
                f"{', '.join(sorted(self.defaults))}."
            )
        for name, value in self.defaults.items():
            group.setdefault(name, value)
        group["params"] = tensors
        if names:
            group["param_names"] = names
        self.check(group)
        self.param_groups.append(group)

    def check(self, group: dict[str, Any]) -> None:
        """Raises when an option of the group is out of its range; called before the group is added."""
        owner = type(self).__name__
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].item()
        number(owner, "lr", group["lr"])
        number(owner, "l1", group["l1"])
        number(owner, "weight_decay", group.get("weight_decay", 0.0))
        if "eps" in group:
            number(owner, "eps", group["eps"])
        if "betas" in group:
            group["betas"] = pair(owner, "betas", group["betas"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients (or, with set_to_none=False, fills them with zeros)."""
        for group in self.param_groups:
            for p in group["params"]:
                if p._grad is None:
                    continue
                if set_to_none:
                    p._grad = None
                else:
                    p._k.fill_(p._grad.data, 0.0)
                    p._grad._ver[0] += 1

    # ---- what a rule defines
    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        """The kernel's name and the names of the arrays that it keeps for each parameter."""
        return self.rule, self.arrays

    def scalars(self, group: dict[str, Any], numbers: dict[str, float]) -> tuple[float, ...]:
        """Advances `numbers` by one step and returns the kernel's scalars, all in double."""
        raise NotImplementedError(f"{type(self).__name__}.scalars")

    def decoupled(self, group: dict[str, Any]) -> bool:
        """Whether weight decay shrinks the parameter itself instead of entering the gradient."""
        return bool(group.get("decoupled_weight_decay", False))

    def new_array(self, group: dict[str, Any], name: str, p: Tensor) -> np.ndarray:
        """A fresh state array; zeros unless the rule says otherwise."""
        a = p._k.empty(list(p.data.shape), p.data.dtype)
        a.fill(0)
        return a

    # ---- the step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns what `closure` returned.

        closure: evaluates the model again (zero_grad, forward, backward) and returns the loss.
        """
        loss = None
        if closure is not None:
            from ..core.autograd import enable_grad

            with enable_grad():
                loss = closure()
        if len(self.param_groups) == 1 and self._step_again():
            return loss
        # Everything is looked at before anything is changed.
        work = [self._sets(index, group) for index, group in enumerate(self.param_groups)]
        control = self._norm()
        skip = self.skip_nonfinite and control is not None
        undo: list[tuple[dict[str, Any], dict[str, float]]] = []
        self._last = []
        for index, sets in enumerate(work):
            if not sets:
                continue
            group = self.param_groups[index]
            name, _ = self.kernel(group)
            common = self._common(group)
            for at, (rows, flat) in enumerate(sets):
                slots = self._slots.get((index, at))
                if slots is None:
                    slots = self._slots[index, at] = Slots(12)
                own = rows[0].own
                before = {n: own[n] for n in self.numbers}
                numbers = dict(before)
                values = (*common, *self.scalars(group, numbers))
                rows[0].p._k.optimizer_update(
                    name, slots.ids, values, flat, control, self.skip_nonfinite
                )
                _cpu._rows_done(rows, numbers)
                self._last.append((index, slots, rows))
                if skip:
                    undo += [(row.own, before) for row in rows]
        if skip and self._control[2] == 0:
            for own, numbers in undo:
                own.update(numbers)
            self._skipped += 1
        recording.note("optimizer", self)
        return loss

    def _step_again(self) -> bool:
        """The step of a single group whose parameters and arrays are those of the last one, all in one set,
        without a norm: the same as `step`, a third quicker. False, with nothing done, where that is not so."""
        cached = self._rows.get(0)
        if cached is None or self._max_grad_norm is not None or self.skip_nonfinite:
            return False
        rows, kernel = cached
        group = self.param_groups[0]
        slots = self._slots.get((0, 0))
        p, _, own, _ = rows[0]
        if slots is None or self.state.get(p) is not own:
            return False
        now = self.kernel(group)
        if now is not kernel and now != kernel:
            return False
        if self.numbers is _STEP:
            numbers: dict[str, float] = {"step": own["step"]}
        else:
            numbers = {n: own[n] for n in self.numbers}
        values = self._common(group) + self.scalars(group, numbers)
        if not p._k.optimizer_update_rows(
            kernel[0], slots.ids, values, rows, group["params"], numbers
        ):
            return False
        self._last = [(0, slots, rows)]
        if recording.thread is not None:
            recording.note("optimizer", self)
        return True

    def advance(self) -> None:
        """What replaying the last step needs first: counts the step, writes its scalars into the slots.

        For recorders: the launches that `step()` made read everything that changes from step to step
        (lr, bias corrections, clip limit) from slots, so a replay is `advance()` and those launches
        again. RuntimeError before the first step.
        """
        if not self._last:
            raise RuntimeError(f"{type(self).__name__}.advance: no step has been made yet.")
        for index, slots, rows in self._last:
            group = self.param_groups[index]
            numbers = {n: rows[0].own[n] for n in self.numbers}
            _cpu.slots_write(slots.ids, (*self._common(group), *self.scalars(group, numbers)))
            for row in rows:
                row.own.update(numbers)
                row.p._ver[0] += 1
        self._write_limit()

    def _write_limit(self) -> None:
        """The norm's limit into its slot, which holds another one when it was changed since the last step."""
        _cpu.slots_write(self._clip_slot.ids, (self._limit(),))

    def _limit(self) -> float:
        return INF if self._max_grad_norm is None else self._max_grad_norm

    def _sets(self, index: int, group: dict[str, Any]) -> list[tuple[list[_Row], list]]:
        """The parameters that have a gradient, in sets of equal numbers (step counts) and dtype; with
        each set all its arrays in one list."""
        params = group["params"]
        cached = self._rows.get(index)
        if cached is not None:  # as at the last step, all in one set?
            rows, kernel = cached
            if self.state.get(rows[0].p) is rows[0].own and kernel == self.kernel(group):
                flat = _cpu._rows_flat(rows, params)
                if flat is not None:
                    return [(rows, flat)]
            del self._rows[index]
        kernel = self.kernel(group)
        found: dict[Any, list[_Row]] = {}
        for i, p in enumerate(params):
            if p._grad is None:
                continue
            row = self._row(i, p, group, kernel[1])
            key = (row.data.dtype.num, *[row.own[n] for n in self.numbers])
            found.setdefault(key, []).append(row)
        sets = list(found.values())
        if len(sets) == 1 and len(sets[0]) == len(params):
            self._rows[index] = (sets[0], kernel)
        return [
            (rows, [a for r in rows for a in (r.data, r.p._grad.data, *r.states)]) for rows in sets
        ]

    def _row(self, i: int, p: Tensor, group: dict[str, Any], arrays: tuple[str, ...]) -> _Row:
        """Checks parameter i of the group and makes its state where it has none."""
        owner, data = type(self).__name__, p.data
        g = p._grad.data
        if g.shape != data.shape or g.dtype != data.dtype:
            raise ValueError(
                f"{owner}: parameter {i} has shape {data.shape} and dtype {data.dtype}, its gradient "
                f"{g.shape} and {g.dtype}."
            )
        if not data.flags.writeable:
            raise ValueError(
                f"{owner}: parameter {i} of shape {data.shape} is read-only and cannot be updated in "
                "place. Build it from a copy of the array."
            )
        own = self.state.get(p)
        if own is None:
            own = self.state[p] = dict(self.numbers)
        states = []
        for name in arrays:
            a = own.get(name)
            if a is None:
                a = own[name] = wrap(self.new_array(group, name, p), p._k)
            elif a.data.shape != data.shape or a.data.dtype != data.dtype:
                raise ValueError(
                    f"{owner}: parameter {i} is now {data.shape} {data.dtype}, its state {name} is "
                    f"{a.data.shape} {a.data.dtype}. Build the optimizer after model.to(...)."
                )
            states.append(a.data)
        return _Row(p, data, own, states)

    def _common(self, group: dict[str, Any]) -> tuple[float, float, float, float, float]:
        decay = group.get("weight_decay", 0.0)
        sign = -1.0 if group["maximize"] else 1.0
        clip = INF if self._clip_value is None else self._clip_value
        if decay and self.decoupled(group):  # without a decay both ways are one
            return (sign, clip, 0.0, group["l1"], 1.0 - float(group["lr"]) * float(decay))
        return (sign, clip, decay, group["l1"], 1.0)

    def _norm(self) -> np.ndarray | None:
        """Leaves the global norm and the clip factor in the control array, when somebody needs them."""
        if self._max_grad_norm is None and not self.skip_nonfinite:
            return None
        from .clip import global_norm

        grads = [
            p._grad.data for g in self.param_groups for p in g["params"] if p._grad is not None
        ]
        global_norm(self._control, grads, 2.0, self._limit(), self._clip_slot.ids[0])
        return self._control

    # ---- state
    def state_dict(self) -> dict[str, Any]:
        """{"state": {number: {slot: Tensor or number}}, "param_groups": [...]}, as PyTorch's.

        Arrays are shared with the optimizer, not copied; `gs.save` writes the dict as it is.
        """
        numbers: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            ids = []
            for p in group["params"]:
                ids.append(numbers.setdefault(id(p), len(numbers)))
            groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": ids})
        state = {numbers[id(p)]: dict(own) for p, own in self.state.items()}
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state_dict: options and state go on where they were, to the same bits.

        Raises ValueError, before anything is changed, when groups, shapes or slots do not fit.
        """
        owner = type(self).__name__
        try:
            groups, state = self._read(state_dict)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            if str(error).startswith(owner):
                raise
            raise ValueError(
                f"{owner}.load_state_dict: this is no state of an optimizer ({type(error).__name__}: {error})."
            ) from error
        self.param_groups[:] = groups
        self.state = state
        self._rows.clear()

    def _read(self, state: Any) -> tuple[list[dict[str, Any]], dict[Tensor, dict[str, Any]]]:
        """The groups and the state that a state_dict stands for, all of it checked."""
        owner = type(self).__name__
        if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
            raise ValueError(
                f'{owner}.load_state_dict: expected a dict with "state" and "param_groups".'
            )
        saved_groups = state["param_groups"]
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                f"{owner}.load_state_dict: the saved state has {len(saved_groups)} parameter groups, "
                f"this optimizer has {len(self.param_groups)}."
            )
        by_number: dict[int, Tensor] = {}
        fresh_groups = []
        for i, (saved, group) in enumerate(zip(saved_groups, self.param_groups)):
            if len(saved["params"]) != len(group["params"]):
                raise ValueError(
                    f"{owner}.load_state_dict: group {i} has {len(saved['params'])} parameters in the "
                    f"saved state and {len(group['params'])} here."
                )
            for n, p in zip(saved["params"], group["params"]):
                by_number[int(n)] = p
            options = {k: v for k, v in saved.items() if k not in ("params", "param_names")}
            known = set(self.defaults) | {"initial_lr"}
            fresh = {**group, **{k: v for k, v in options.items() if k in known}}
            self.check(fresh)
            fresh_groups.append(fresh)
        fresh_state: dict[Tensor, dict[str, Any]] = {}
        for key, slots in state["state"].items():
            n = int(key)
            if n not in by_number:
                raise ValueError(f"{owner}.load_state_dict: state of an unknown parameter {key!r}.")
            fresh_state[by_number[n]] = self._take(by_number[n], slots, f"parameter {n}")
        return fresh_groups, fresh_state

    def _take(self, p: Tensor, slots: dict[str, Any], where: str) -> dict[str, Any]:
        own: dict[str, Any] = dict(self.numbers)
        for name, value in slots.items():
            if name in self.numbers:
                own[name] = type(self.numbers[name])(
                    value.item() if hasattr(value, "item") else value
                )
                continue
            if value is None:
                continue
            # a subclass that does not say what it keeps may keep anything
            if vars(type(self)).get("arrays") and name not in self.arrays:
                raise ValueError(
                    f"{type(self).__name__}: the saved state of {where} has {name!r}, which is another optimizer's; "
                    f"this one keeps {', '.join([*self.numbers, *self.arrays])}."
                )
            a = value.data if isinstance(value, Tensor) else np.asarray(value)
            if a.shape != p.shape:
                raise ValueError(
                    f"{type(self).__name__}: the saved {name} of {where} has shape {a.shape}, the "
                    f"parameter has {p.shape}."
                )
            a = p._k.cast(a, p.data.dtype)  # a copy of our own
            own[name] = wrap(a, p._k)
        return own

    def named_state(self, named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
        """The state keyed "<parameter name>/<slot>": Tensors, and numbers as float64 Tensors of shape ()."""
        names = {id(p): name for name, p in named_parameters}
        out: dict[str, Any] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.state:
                    continue
                if id(p) not in names:
                    raise ValueError(
                        f"{type(self).__name__}.named_state: a parameter of shape {p.shape} is not "
                        "among named_parameters."
                    )
                for slot, value in self.state[p].items():
                    if not isinstance(value, Tensor):
                        value = wrap(np.array(value, np.float64), p._k)
                    out[f"{names[id(p)]}/{slot}"] = value
        return out

    def load_named_state(
        self, named_parameters: Iterable[tuple[str, Tensor]], state: dict[str, Any]
    ) -> None:
        """Takes up what `named_state` gave; ValueError, before anything is changed, for unknown names."""
        params = dict(named_parameters)
        slots: dict[str, dict[str, Any]] = {}
        for key, value in state.items():
            name, _, slot = key.rpartition("/")
            if name not in params:
                raise ValueError(
                    f"{type(self).__name__}.load_named_state: no parameter {name!r} here "
                    f"(the saved state has {key!r})."
                )
            slots.setdefault(name, {})[slot] = value
        self.state = {params[n]: self._take(params[n], s, n) for n, s in slots.items()}
        self._rows.clear()

    def __repr__(self) -> str:
        lines = [type(self).__name__ + " ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"parameter group {i} ({len(group['params'])} parameters)")
            lines += [f"    {k}: {group[k]}" for k in sorted(group) if not k.startswith("param")]
        return "\n".join([*lines, ")"])


def _positive(owner: str, name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{owner}: {name} must be a number or None, not {value!r}.")
    if not float(value) > 0:
        raise ValueError(f"{owner}: {name} is {value!r}; it must be greater than 0.")
    return float(value)
