"""What a captured function depends on besides its arguments.

A replay repeats kernels, not Python. So everything that Python decided while the recording ran must
still hold: the modules' modes and numbers, the globals and closure variables that the function's code
names, the arrays behind parameters, buffers and states. `Watch` walks from the function to all of
these; each becomes a guard that the program checks (in C++, by identity) before it is replayed.
Optimizers and schedulers, whose numbers change at every step, are run instead: see OptimizerState.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import _cpu
from . import recording
from .tensor import Parameter, Tensor

__all__ = ["OptimizerState", "SchedulerState", "Watch"]

_PLAIN = (int, float, complex, str, bytes, bool, type(None))
_TABLES = ("_parameters", "_buffers", "_transient", "_modules", "_hooks", "_pre_hooks")
_READS_OPTIONS = {"param_groups", "get_last_lr", "lr_at", "last_epoch", "grad_norm", "skipped"}
# Numbers of our own layers that their arrays' shapes hold already.
_SIZES = {"in_features", "out_features", "in_channels", "out_channels", "num_features"}
_LIMIT = 1 << 16  # guards; a dict's are looked at only when it has changed
_MISSING = object()


def _ours(obj: Any) -> bool:
    name = getattr(obj, "__module__", None) or ""
    root = name.split(".", 1)[0]
    return root in ("gradsmith", "numpy", "builtins") or (
        root in sys.stdlib_module_names and root != "__main__"
    )


class Watch:
    """Walks from a function to all that it can see; `reason` says why it cannot be captured."""

    def __init__(self, fn: Any):
        self.reason: str | None = None
        self.guards: list[tuple] = []
        self.tensors: dict[int, tuple[str, Tensor]] = {}
        self.optimizers: dict[int, Any] = {}
        self.schedulers: dict[int, Any] = {}
        self.generators: list[tuple[Any, str]] = []
        self._done: set[tuple] = set()
        self._seen: dict[int, Any] = {}
        self._functions: set[int] = set()
        self._objects: list[tuple[Any, str]] = []
        self._names: set[str] = set()
        from ..nn.module import Module
        from ..optim.lr_scheduler import LRScheduler
        from ..optim.optimizer import Optimizer

        self._kinds = (Module, Optimizer, LRScheduler)
        self._guard(("size", recording.modes, None, len(recording.modes), "the precision"))
        for mode, value in recording.modes.items():
            self._guard(("item", recording.modes, mode, value, f"the {mode}"))
        self._root(fn)
        # Attributes of objects count when some code reached names them; new code may name more.
        for _ in range(4):
            size = len(self._names)
            for obj, name in list(self._objects):
                self._attributes(obj, name)
            if len(self._names) == size:
                break
        if self._names & _READS_OPTIONS:  # user code that looks at rates: they are constants to it
            for o in self.optimizers.values():
                for i, group in enumerate(o.param_groups):
                    for key, value in group.items():
                        if key != "params":
                            self._guard(("item", group, key, value, f"param_groups[{i}][{key!r}]"))
        self._drawn = self._draws()
        # Those that have a gradient or may have had one: frozen parameters keep theirs.
        self.trainable = [
            t
            for _, t in self.tensors.values()
            if t._rg or t._grad is not None or isinstance(t, Parameter)
        ]
        self._options = [
            (o, [{k: v for k, v in g.items() if k != "params"} for g in o.param_groups])
            for o in self.optimizers.values()
        ]

    # ---- the walk
    def _root(self, fn: Any) -> None:
        if isinstance(fn, functools.partial):
            self._root(fn.func)
            self._value(list(fn.args), "the arguments of a partial")
            self._value(fn.keywords, "the arguments of a partial")
        elif isinstance(fn, types.MethodType):
            if isinstance(fn.__func__, types.FunctionType):
                self._function(fn.__func__, root=True)
            self._value(fn.__self__, "self")
        elif isinstance(fn, types.FunctionType):
            self._function(fn, root=True)
        else:
            call = type(fn).__call__
            if isinstance(call, types.FunctionType) and not _ours(call):
                self._function(call)
            self._value(fn, getattr(type(fn), "__name__", "fn"))

    def _function(self, fn: types.FunctionType, root: bool = False) -> None:
        if id(fn) in self._functions or len(self._functions) > 500:
            return
        self._functions.add(id(fn))
        self._seen[id(fn)] = fn
        wrapped = getattr(fn, "__wrapped__", None)
        if isinstance(wrapped, types.FunctionType):
            self._function(wrapped)
        codes, stack = [], [fn.__code__]
        while stack:
            code = stack.pop()
            codes.append(code)
            stack += [c for c in code.co_consts if isinstance(c, types.CodeType)]
        names = {n for code in codes for n in code.co_names}
        self._names |= names
        if root or not _ours(fn):
            scope = fn.__globals__
            for n in sorted(names):
                if n in scope:
                    value = scope[n]
                    if isinstance(value, types.ModuleType):
                        self._module_names(value, n)
                        continue
                    self._guard(("item", scope, n, value, f"the global {n}"))
                    self._value(value, n)
        for n, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
            try:
                value = cell.cell_contents
            except ValueError:
                continue
            self._guard(("cell", cell, None, value, f"the variable {n}"))
            self._value(value, n)
        if fn.__defaults__:
            self._value(list(fn.__defaults__), "a default argument", guard=False)
        if fn.__kwdefaults__:
            self._value(fn.__kwdefaults__, "a default argument")

    def _module_names(self, module: types.ModuleType, name: str) -> None:
        if _ours(types.SimpleNamespace(__module__=module.__name__)) or not hasattr(
            module, "__file__"
        ):
            return
        self._objects.append((module, name))

    def _guard(self, g: tuple) -> None:
        key = (g[0], id(g[1]), g[2])
        if key in self._done:
            return
        self._done.add(key)
        self.guards.append(g)
        if len(self.guards) > _LIMIT:
            self.reason = f"it can see more than {_LIMIT} values that a replay depends on"

    def _place(self, obj: Any, name: str) -> None:
        """An object keeps its class and its `__dict__`, which is what the guards look into."""
        self._guard(("place", obj, None, (type(obj), obj.__dict__), f"the class of {name}"))

    def _keys(self, table: dict, name: str) -> None:
        """A dict keeps its keys, and their order: some code walks over it."""
        self._guard(("keys", table, None, tuple(table), name))

    def _value(self, v: Any, name: str, guard: bool = True, depth: int = 0) -> None:
        if isinstance(v, (*_PLAIN, np.generic, np.dtype, np.ndarray, type)) or depth > 6:
            if isinstance(v, type) and not _ours(v):
                self._once(v, name)
            return
        if isinstance(v, Tensor):
            self._tensor(v, name)
            return
        if isinstance(v, np.random.Generator):
            self.generators.append((v, str(v.bit_generator.state)))
            return
        if id(v) in self._seen:
            return
        module, optimizer, scheduler = self._kinds
        if isinstance(v, types.FunctionType):
            if not _ours(v):
                self._function(v)
        elif isinstance(v, types.MethodType):
            if not _ours(v) and isinstance(v.__func__, types.FunctionType):
                self._function(v.__func__)
            self._value(v.__self__, name, depth=depth + 1)
        elif isinstance(v, functools.partial):
            self._root(v)
        elif isinstance(v, (tuple, list)):
            self._seen[id(v)] = v
            if isinstance(v, list) and guard and len(v) <= 256:
                self._guard(("list", v, None, list(v), name))
            for i, item in enumerate(v[:256]):
                self._value(item, f"{name}[{i}]", depth=depth + 1)
        elif isinstance(v, dict):
            self._seen[id(v)] = v
            if len(v) > 1024:
                return
            self._keys(v, name)
            for key, item in list(v.items()):
                try:
                    hash(key)
                except TypeError:
                    continue
                self._guard(("item", v, key, item, f"{name}[{key!r}]"))
                self._value(item, f"{name}[{key!r}]", depth=depth + 1)
        elif isinstance(v, module):
            self._seen[id(v)] = v
            self._module(v, name)
        elif isinstance(v, optimizer):
            self._seen[id(v)] = v
            self._optimizer(v, name)
        elif isinstance(v, scheduler):
            self._seen[id(v)] = v
            self.schedulers[id(v)] = v
            self._value(v.optimizer, f"{name}.optimizer", depth=depth + 1)
        elif isinstance(v, types.ModuleType):
            self._module_names(v, name)
        elif type(v).__name__ == "Captured" and _ours(type(v)):
            self._root(v.fn)
        elif hasattr(v, "__dict__"):
            self._once(v, name)

    def _once(self, v: Any, name: str) -> None:
        if id(v) not in self._seen:
            self._seen[id(v)] = v
            self._objects.append((v, name))

    def _attributes(self, obj: Any, name: str) -> None:
        """The attributes of an object that some code reached names."""
        own = obj.__dict__
        plain = isinstance(own, dict)
        if plain and not isinstance(obj, types.ModuleType):
            self._place(obj, name)
        for n in sorted(self._names):
            if n in own:
                value = own[n]
                if isinstance(value, (types.FunctionType, property, classmethod, staticmethod)):
                    if isinstance(value, types.FunctionType) and not _ours(value):
                        self._function(value)
                    continue
                if plain:
                    self._guard(("item", own, n, value, f"{name}.{n}"))
                else:
                    self._guard(("attribute", obj, n, value, f"{name}.{n}"))
                self._value(value, f"{name}.{n}")
            elif not isinstance(obj, (type, types.ModuleType)):
                for cls in type(obj).__mro__:
                    if n in cls.__dict__ and not _ours(cls):
                        value = cls.__dict__[n]
                        if isinstance(value, types.FunctionType):
                            self._function(value)
                        elif isinstance(value, property) and isinstance(
                            value.fget, types.FunctionType
                        ):
                            self._function(value.fget)
                        elif isinstance(value, (*_PLAIN, Tensor)):
                            self._guard(("attribute", obj, n, value, f"{name}.{n}"))
                            self._value(value, f"{name}.{n}")
                        break

    def _module(self, m: Any, name: str) -> None:
        own = m.__dict__
        if own.get("_hooks") or own.get("_pre_hooks"):
            self.reason = f"the module {name} has forward hooks, which a replay would not call. Remove them first"
        self._place(m, name)
        self._guard(("size", own, None, len(own), f"the attributes of {name}"))
        for table in _TABLES:
            if table in own:
                self._guard(("item", own, table, own[table], f"{name}.{table}"))
        for table in ("_hooks", "_pre_hooks"):
            if table in own:
                self._guard(("size", own[table], None, len(own[table]), f"the hooks of {name}"))
        # parameters, buffers and submodules stand in a table too and are walked from there
        tables = [own.get(t, {}) for t in ("_parameters", "_buffers", "_modules")]
        for key, value in list(own.items()):
            if key in _TABLES or (key in _SIZES and _ours(type(m))):
                continue
            self._guard(("item", own, key, value, f"{name}.{key}"))
            if not isinstance(value, _PLAIN) and not any([t.get(key) is value for t in tables]):
                self._value(value, f"{name}.{key}")
        for table in ("_parameters", "_buffers", "_modules"):
            entries = own.get(table, {})
            if isinstance(entries, dict):
                self._keys(
                    entries,
                    f"the submodules of {name}" if table == "_modules" else f"{name}.{table}",
                )
            for key, value in list(entries.items()):
                self._guard(("item", entries, key, value, f"{name}.{key}"))
                if value is not None:
                    self._value(value, f"{name}.{key}")
        for cls in type(m).__mro__:
            if cls is self._kinds[0] or _ours(cls):
                break
            for value in cls.__dict__.values():
                if isinstance(value, types.FunctionType) and value.__name__ != "__init__":
                    self._function(value)

    def _tensor(self, t: Tensor, name: str) -> None:
        if id(t) in self.tensors:
            return
        self.tensors[id(t)] = (name, t)

    def _optimizer(self, o: Any, name: str) -> None:
        base = self._kinds[1]
        if type(o).step is not base.step or "step" in o.__dict__:
            self.reason = (
                f"the optimizer {type(o).__name__} has a step() of its own, whose numbers a replay would "
                "not renew. Give it a kernel and scalars (see Optimizer), or leave it uncaptured"
            )
        self._place(o, name)
        self._guard(("size", o.__dict__, None, len(o.__dict__), f"the attributes of {name}"))
        self.optimizers[id(o)] = o
        groups = o.param_groups
        self._guard(("item", o.__dict__, "param_groups", groups, f"{name}.param_groups"))
        self._guard(("list", groups, None, list(groups), f"{name}.param_groups"))
        for i, group in enumerate(groups):
            params, of = group["params"], f"the parameters of {name}.param_groups[{i}]"
            self._guard(("item", group, "params", params, of))
            self._guard(("list", params, None, list(params), of))
            for j, p in enumerate(group["params"]):
                self._tensor(p, f"{name}.param_groups[{i}]['params'][{j}]")
        for p, own in o.state.items():
            for key, value in own.items():
                if isinstance(value, Tensor):
                    self._tensor(value, f"{name}.state[{tuple(p.shape)}].{key}")

    # ---- use
    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that the function can reach."""
        yield from self.tensors.values()

    def shares_memory(self, arrays: list[np.ndarray]) -> str | None:
        """The name of a tensor that shares memory with one of the arrays."""
        if not arrays:
            return None
        for name, t in self.tensors.values():
            for a in arrays:
                if a.size and np.may_share_memory(a, t.data):
                    return name
        return None

    def names_gradients(self) -> bool:
        """Whether the function's code names gradients or what looks at them."""
        return not self._names.isdisjoint(
            ("grad", "zero_grad", "clip_grad_norm_", "clip_grad_value_")
        )

    def only_gradients(self, entry: list[tuple[Tensor, Tensor | None]]) -> list[np.ndarray | None]:
        """The arrays of the gradients that are reached in no other way: those may be other ones later."""
        at = Counter(t.data.__array_interface__["data"][0] for _, t in self.tensors.values())
        at.update([g.data.__array_interface__["data"][0] for _, g in entry if g is not None])
        return [
            g.data if g is not None and at[g.data.__array_interface__["data"][0]] == 1 else None
            for _, g in entry
        ]

    def _draws(self) -> Any:
        """The states of Python's and NumPy's own generators."""
        import random

        legacy = np.random.get_state(legacy=False)  # noqa: NPY002
        numpy_state = (str(legacy["state"]["pos"]), legacy["state"]["key"].tobytes())
        return (
            random.getstate(),
            numpy_state,
            [str(g.bit_generator.state) for g, _ in self.generators],
        )

    def changed(self, notes: list) -> str | None:
        """What the function itself has changed in Python, which a replay would not do."""
        for kind, owner, key, value, name in self.guards:
            if kind == "item":
                now = owner.get(key, _MISSING)
            elif kind == "cell":
                try:
                    now = owner.cell_contents
                except ValueError:
                    now = _MISSING
            elif kind == "attribute":
                now = getattr(owner, key, _MISSING)
            elif kind == "list":
                if len(owner) != len(value) or any(a is not b for a, b in zip(owner, value)):
                    return f"it changes {name}, and a replay runs no Python. Change it outside"
                continue
            elif kind == "place":
                if type(owner) is not value[0] or owner.__dict__ is not value[1]:
                    return f"it changes {name}, and a replay runs no Python. Change it outside"
                continue
            elif kind == "keys":
                if len(owner) != len(value) or any(
                    [
                        a is not b and not (isinstance(a, _PLAIN) and a == b)
                        for a, b in zip(owner, value)
                    ]
                ):
                    return f"it changes {name}, and a replay runs no Python. Change it outside"
                continue
            else:
                if len(owner) != value:
                    return f"it changes {name}, and a replay runs no Python. Change it outside"
                continue
            if now is value or (
                isinstance(value, _PLAIN) and type(now) is type(value) and now == value
            ):
                continue
            return f"it changes {name}, and a replay runs no Python. Change it outside"
        if self._draws() != self._drawn:
            return (
                "it draws random numbers from Python or NumPy, and a replay would use the old ones. Draw "
                "them outside and pass them in, or use gs.rand, gs.randn or dropout"
            )
        stepped = {id(x) for kind, x in notes if kind == "optimizer"}
        count = [x for kind, x in notes if kind == "optimizer"]
        if len(count) != len(stepped):
            return "it steps one optimizer twice; a program has one set of its numbers. Split it in two"
        if any(x not in self.optimizers for x in stepped):
            return "it steps an optimizer that cannot be found from the function's variables"
        scheduled = {id(x.optimizer) for kind, x in notes if kind == "scheduler"}
        for o, groups in self._options:
            if id(o) in scheduled:
                continue
            now = [{k: v for k, v in g.items() if k != "params"} for g in o.param_groups]
            if now != groups:
                return (
                    "it changes an optimizer's options in Python. Use a scheduler, or do it outside"
                )
        return None

    def guard(self, native: Any) -> None:
        """Gives the guards to a program."""
        for kind, owner, key, value, name in self.guards:
            if kind == "item":
                native.guard_item(owner, key, value, name)
            elif kind == "cell":
                native.guard_cell(owner, value, name)
            elif kind == "attribute":
                native.guard_attribute(owner, key, value, name)
            elif kind == "list":
                native.guard_list(owner, name)
            elif kind == "keys":
                native.guard_keys(owner, name)
            elif kind == "place":
                native.guard_place(owner, name)
            else:
                native.guard_size(owner, name)
        for name, t in self.tensors.values():
            native.guard_tensor(t, t.data, f"the array or requires_grad of {name}")

    def snapshot(self) -> Any:
        """Copies of all that a step changes: arrays, gradients, optimizers' and schedulers' numbers."""
        arrays = [(t, t.data.copy(), t._grad) for _, t in self.tensors.values()]
        grads = [(g, g.data.copy()) for _, _, g in arrays if g is not None]
        numbers = [(own, dict(own)) for o in self.optimizers.values() for own in o.state.values()]
        groups = [(g, dict(g)) for o in self.optimizers.values() for g in o.param_groups]
        steps = [(s, dict(s.__dict__)) for s in self.schedulers.values()]
        return arrays, grads, numbers, groups, steps

    def restore(self, saved: Any) -> None:
        arrays, grads, numbers, groups, steps = saved
        for t, a, g in arrays:
            t.data[...] = a
            t._grad = g
        for g, a in grads:
            g.data[...] = a
        for own, before in (*numbers, *groups):
            own.clear()
            own.update(before)
        for s, before in steps:
            s.__dict__.clear()
            s.__dict__.update(before)


class OptimizerState:
    """Counts an optimizer's step before a replay and writes its scalars into the slots."""

    def __init__(self, o: Any, native: Any):
        self.o = o
        self.sets = []
        self.names = [n for n in o.numbers]
        for index, slots, rows in o._last:
            group = o.param_groups[index]
            self.sets.append((index, group, slots.ids, [r.own for r in rows], o.kernel(group)))
            for r in rows:
                native.guard_item(o.state, r.p, r.own, "an optimizer's state")
                for n in o.kernel(group)[1]:
                    native.guard_item(r.own, n, r.own[n], f"an optimizer's {n}")
        native.guard_item(o.__dict__, "state", o.state, "an optimizer's state")
        native.guard_item(o.__dict__, "skip_nonfinite", o.skip_nonfinite, "skip_nonfinite")
        self.versions = [r.p._ver for _, _, rows in o._last for r in rows]
        self.norm = o._max_grad_norm is not None
        self.watched = o._max_grad_norm is not None or o.skip_nonfinite
        self.skip = o.skip_nonfinite
        self.before: list[tuple[list, dict]] = []

    def ready(self) -> bool:
        """Whether the kernels that were recorded are still those that a step would launch."""
        o = self.o
        if (o._max_grad_norm is not None) != self.norm:
            return False
        for _, group, _, owns, kernel in self.sets:
            if o.kernel(group) != kernel:
                return False
            # One set of numbers serves all: a parameter that was frozen for a while has other ones.
            first = owns[0]
            for n in self.names:
                if any([own[n] is not first[n] and own[n] != first[n] for own in owns]):
                    return False
        return True

    def advance(self) -> None:
        o = self.o
        self.before.clear()
        for _, group, slots, owns, _ in self.sets:
            own = owns[0]
            old = {n: own[n] for n in self.names}
            numbers = dict(old)
            _cpu.slots_write(slots, (*o._common(group), *o.scalars(group, numbers)))
            self.before.append((owns, old))
            for own in owns:
                own.update(numbers)
        if self.norm:
            _cpu.slots_write(o._clip_slot.ids, (o._max_grad_norm,))
        for v in self.versions:
            v[0] += 1

    def native(self) -> tuple | None:
        """For Program.set_direct, where C++ knows the rule."""
        from ..optim import SGD, Adam, AdamW

        o, kind = self.o, type(self.o)
        if kind not in (SGD, Adam, AdamW) or self.skip:
            return None
        flag = "momentum" if kind is SGD else "amsgrad"
        sets = [(g, list(ids), owns, bool(g[flag])) for _, g, ids, owns, _ in self.sets]
        return (
            "sgd" if kind is SGD else "adam",
            o.__dict__,
            kind is AdamW,
            self.norm,
            o._clip_slot.ids[0],
            sets,
            self.versions,
        )

    def undo(self) -> None:
        for owns, old in self.before:
            for own in owns:
                own.update(old)

    def done(self) -> None:
        if self.skip and self.o._control[2] == 0:
            self.undo()
            self.o.skipped += 1


class SchedulerState:
    """Steps a scheduler where the function does."""

    def __init__(self, s: Any):
        self.s = s
        self.before: Any = None

    def ready(self) -> bool:
        return True

    def advance(self) -> None:
        self.before = (dict(self.s.__dict__), [dict(g) for g in self.s.optimizer.param_groups])
        self.s.step()

    def undo(self) -> None:
        own, groups = self.before
        self.s.__dict__.update(own)
        for g, old in zip(self.s.optimizer.param_groups, groups):
            g.update(old)

    def done(self) -> None:
        pass
