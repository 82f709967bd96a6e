"""From a recording to a program: where each result, gradient and counter of the call comes from."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections import Counter
from typing import Any

import numpy as np

from .. import _cpu
from . import recording, trees
from .program import Program, root_of, view_of, within
from .tensor import Tensor, wrap
from .watch import AverageState, OptimizerState, SchedulerState, Watch

CONSTANT = (
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    np.generic,
    np.dtype,
    type,
    slice,
    range,
    enum.Enum,
)


def versions_of(watch: Watch, leaves: list[Any]) -> list[tuple[Tensor, int, int]]:
    """Tensors with the argument that they are (or -1) and their versions."""
    known = [(t, -1, t._ver[0]) for _, t in watch.named()]
    return known + [(x, i, x._ver[0]) for i, x in enumerate(leaves) if isinstance(x, Tensor)]


@dataclasses.dataclass
class _Homes:
    """Where memory of results may be: results that share memory go on doing so, with arguments, with
    what the function sees, with gradients, and with each other."""

    bases: list[tuple[str, Any, np.ndarray]]
    roots: Counter[int]  # how many results are in an array
    outputs: dict[int, int] = dataclasses.field(default_factory=dict)  # array: its output
    tensors: dict[int, Tensor] = dataclasses.field(default_factory=dict)  # array: tensor for it


class Plan:
    """What remains to be done while the recording still runs, and the way from it to a program."""

    def __init__(
        self,
        rec: Any,
        watch: Watch,
        leaves: list[Any],
        out: Any,
        entry: list,
        notes: list,
        versions: list[tuple[Tensor, int, int]],
        copied: dict[int, Tensor],
        turned: dict[int, Tensor],
    ):
        self.rec, self.watch, self.leaves, self.notes = rec, watch, leaves, notes
        self.results: list[tuple[str, Any]] = []
        self.outputs: list[tuple[np.ndarray, Any, Any]] = []
        self.grads: list[tuple[Tensor, int]] = []
        self.cleared: list[Tensor] = []
        self.grad_guards: list[tuple[Tensor, Any]] = []
        self.unfinished = False
        self.written: set[int] = set()
        self.strange: str | None = None
        self.changed = list(
            {id(t._ver): t._ver for t, i, v in versions if i < 0 and t._ver[0] != v}.values()
        )
        self.changed_inputs = [i for t, i, v in versions if i >= 0 and t._ver[0] != v]
        self.used: set[int] = set()  # arrays that are an output of their own
        self._gradients(entry)
        self.result = self._results(out, copied, turned)

    def _gradients(self, entry: list) -> None:
        """What becomes of the gradients of the parameters. entry: each with what it had before."""
        # Whether it matters that a parameter has no gradient: an inference function does not look.
        looks = self.watch.names_gradients() or any(
            [kind in ("backward", "optimizer") for kind, _ in self.notes]
        )
        for t, before in entry:
            g = t._grad
            was_read = before is not None and self.rec.touched(before.data)
            if before is None:
                if looks or g is not None:
                    self.grad_guards.append((t, None))
            elif was_read:
                self.grad_guards.append((t, before))
            elif self.watch.reads_gradients():
                self.grad_guards.append((t, True))
            if g is None:
                if before is not None:
                    self.cleared.append(t)
            elif g is not before:
                if not self.rec.whole(g.data) or id(g.data) in self.used:
                    t._grad = g = wrap(_cpu.copy(g.data), _cpu)
                self.used.add(id(g.data))
                self.grads.append((t, len(self.outputs)))
                self.outputs.append((g.data, g, t))

    def _results(self, out: Any, copied: dict[int, Tensor], turned: dict[int, Tensor]) -> Any:
        """How a replay gets each leaf of the result; returns the result of this call."""
        found: list[Any] = []
        self.result_tree = trees.flatten(out, found)
        tensors = [(i, x) for i, x in enumerate(self.leaves) if isinstance(x, Tensor)]
        positions = {id(x): i for i, x in tensors}
        positions.update({id(x): i for i, x in turned.items()})
        known = {id(t) for _, t in self.watch.named()}
        gradients = {id(t._grad): t for t in self.watch.trainable if t._grad is not None}
        bases: list[tuple[str, Any, np.ndarray]] = [("input", i, x.data) for i, x in tensors]
        bases += [("tensor", t, t.data) for _, t in self.watch.named()]
        bases += [("array", i, a) for i, (a, _, _) in enumerate(self.outputs)]
        own = {id(x.data): x.data for x in found if isinstance(x, Tensor)}
        homes = _Homes(bases, Counter([id(root_of(a)) for a in own.values()]))
        made: list[Any] = []
        for x in found:
            if not isinstance(x, Tensor):
                self._value(x)
                self.results.append(("value", x))
            elif id(x) in positions:
                self.results.append(("input", positions[id(x)]))
                x = copied.get(positions[id(x)], x)
            elif id(x) in known:
                self.results.append(("value", x))
            elif id(x) in gradients:
                self.results.append(("gradient", gradients[id(x)]))
            else:
                x = self._made(x, homes)
            made.append(x)
        return made[0] if self.result_tree is None else trees.unflatten(self.result_tree, made)

    def _value(self, x: Any) -> None:
        """A leaf that is no tensor has to be the same after every replay."""
        if isinstance(x, np.ndarray):
            recording.thread = threading.get_ident()
            try:
                recording.host_read("returning a NumPy array", "Return the tensor")
            finally:
                recording.thread = None
        elif not isinstance(x, CONSTANT) and not self.watch.sees(x):
            self.strange = (
                f"it returns an object of the class {type(x).__name__}, which would be the same one "
                "after every replay. Return tensors, numbers, strings, and tuples, lists, dicts and "
                "dataclasses of them"
            )

    def _made(self, x: Tensor, homes: _Homes) -> Tensor:
        """A leaf that the function made; returns what the caller of this call gets for it."""
        if x._rg and x._node is not None and _unfinished(x._node):
            self.unfinished = True
        a, root = x.data, root_of(x.data)
        if id(a) in homes.outputs:
            self.results.append(("array", homes.outputs[id(a)]))
            if self.unfinished:
                return x
            return homes.tensors[id(a)] if id(a) in homes.tensors else view_of(x, a)
        if homes.roots[id(root)] > 1 and self.rec.whole(root) and id(root) not in self.used:
            self.used.add(id(root))
            homes.outputs[id(root)] = len(self.outputs)
            homes.bases.append(("array", len(self.outputs), root))
            self.outputs.append((root, None, None))
            if a is root:
                self.results.append(("array", homes.outputs[id(a)]))
                return x if self.unfinished else view_of(x, a)
        for home, which, base in homes.bases:
            view = within(a, base)
            if view is not None:
                self.results.append(("view", (home, which, *view)))
                return x if self.unfinished else view_of(x, a)
        if not self.rec.whole(a):
            a = _cpu.copy(a)
        homes.outputs[id(x.data)] = len(self.outputs)
        self.results.append(("array", len(self.outputs)))
        self.outputs.append((a, None, None))
        t = homes.tensors[id(x.data)] = wrap(a, _cpu)
        return x if self.unfinished else t

    def shares(self) -> set[int]:
        """The arguments that it changes, or whose memory it returns."""
        returned = {v[1] for kind, v in self.results if kind == "view" and v[0] == "input"}
        return returned | set(self.changed_inputs)

    def problem(self) -> str | None:
        if self.unfinished:
            return (
                "its result still needs a backward pass, and a replay keeps no graph. Call backward() "
                "inside the function, put it under no_grad(), or return the detach() of a result"
            )
        return self.strange or self.watch.changed(self.notes)

    def leaks(self) -> int:
        known = [a for a, _, _ in self.outputs]
        return self.rec.alive(known)[0]

    def finish(
        self, threads: int, passes: dict[str, bool | None], before: dict, after: dict
    ) -> Any:
        leaves: list[tuple] = []
        first: dict[tuple, int] = {}
        for i, x in enumerate(self.leaves):
            if isinstance(x, Tensor):
                key = (x.data.__array_interface__["data"][0], x.data.shape)
                same = first.setdefault(key, i) if x.data.size else i
                leaves.append((type(x), x.data, same if same != i else -1))
            else:
                leaves.append((x,))
        return self.rec.finish(
            leaves, self.outputs, threads, passes, before["counter"], after["counter"]
        )

    def fill(self, p: Program) -> None:
        native = p.native
        self.watch.guard(native, self.written)
        for t, g in self.grad_guards:
            name = "a gradient from before the call"
            if g is True:
                native.guard_has_grad(t, name)
            elif g is None or not native.guard_gradient(t, g.data, name):
                native.guard_grad(t, g, name)
                if g is not None:
                    native.guard_tensor(g, g.data, name)
        for kind, what in self.notes:
            if kind == "optimizer":
                p.actions.append(OptimizerState(what, native))
            elif kind == "scheduler":
                p.actions.append(SchedulerState(what))
            elif kind == "average":
                p.actions.append(AverageState(what))
        p.grads, p.cleared = self.grads, self.cleared
        p.results, p.result_tree = self.results, self.result_tree
        p.checks = native.has_checks()
        p.watch = self.watch
        native.plain_arguments = self.watch.plain_arguments
        counted = {id(v) for a in p.actions if isinstance(a, OptimizerState) for v in a.versions}
        native.set_changed([v for v in self.changed if id(v) not in counted], self.changed_inputs)
        steppers = [a.native() if isinstance(a, OptimizerState) else None for a in p.actions]
        if p.draws == 0 and all(s is not None for s in steppers):
            p.single = p.result_tree is None and p.results[0][0] == "array"
            outputs = [value for kind, value in p.results if kind == "array"]
            native.set_direct(p.mode[0], p.mode[2], _cpu, steppers, p.cleared, outputs, p.single)
            p.call = native.caller()
            p.direct = True


def _unfinished(node: Any) -> bool:
    """Whether a node's graph still holds what backward needs."""
    seen, stack = set(), [node]
    while stack:
        n = stack.pop()
        if id(n) in seen:
            continue
        seen.add(id(n))
        try:
            if n.saved:
                return True
        except (RuntimeError, AttributeError):
            return False  # freed by a backward pass
        stack += [e[0] for e in n.edges if e is not None]
    return False
