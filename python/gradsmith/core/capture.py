"""gs.capture: a function of tensors, recorded kernel by kernel and replayed in C++.

The first call with a new kind of arguments runs the function as it is, the second and third record every
kernel that it launches and are compared, later ones replay: no Python between kernels, one team of
threads for all of them, memory planned beforehand. docs/capture.md tells what may stand in such a
function; core/watch.py finds what a program depends on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import os
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np

from .. import _cpu
from . import random, recording, reports, trees
from .autograd import is_grad_enabled
from .passes import PASSES, options
from .plan import Plan, versions_of
from .program import Program, axes_of, kinds_of, results_of, view_of
from .recording import CaptureError
from .refuse import Guarded
from .tensor import Tensor, wrap
from .watch import Watch

__all__ = ["PASSES", "CaptureError", "Captured", "capture"]

_MAX_PROGRAMS = 16
_MAX_FAILURES = 3
_MAX_SEEN = 4096  # kinds of arguments that are remembered: a counter as an argument makes new ones
_verbose = os.environ.get("GRADSMITH_VERBOSE", "0") not in ("", "0")
_live: weakref.WeakSet[Captured] = weakref.WeakSet()


def _say(text: str) -> None:
    if _verbose:
        print(f"gradsmith: capture: {text}", file=sys.stderr)


@dataclasses.dataclass
class _Call:
    """A call that no program can do yet."""

    args: tuple  # as the function gets them
    kwargs: dict
    leaves: list[Any]  # of these, as a program would: what is copied or turned stands there so
    tree: Any
    mode: tuple
    key: Any
    copied: dict[int, Tensor]  # by place: what has gaps in its memory, or goes backwards
    turned: dict[int, Tensor]  # what has none, but its axes in another order
    order: dict[int, Any]  # these orders


def _named(module: str, path: str) -> Any:
    """What a module has under a name; None: nothing."""
    import importlib

    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError):
        return None


R = TypeVar("R")


class Captured(_cpu.CapturedBase, Generic[R]):
    """What `gs.capture` returns: call it like the function.

    `programs` lists what has been recorded; `report()` tells what a program does, `verify(*args)`
    compares a replay with the function itself.
    """

    if (
        TYPE_CHECKING
    ):  # arguments may be arrays in place of tensors, so they are not those of the function

        def __call__(self, *args: Any, **kwargs: Any) -> R: ...

    def __init__(self, fn: Callable[..., R], passes: Any = None, fallback: bool = False):
        self.fn: Callable = fn.fn if isinstance(fn, Captured) else fn
        if not callable(fn):
            raise TypeError(f"capture: expected a function, got {type(fn).__name__}")
        self.passes = options(passes)
        self.name = getattr(fn, "__qualname__", type(fn).__name__)
        self._fallback = fallback
        self._programs: list[Program] = []
        self._last: Program | None = None
        self._seen: dict[Any, int] = {}
        self._drafts: dict[
            Any, tuple[Any, int, dict]
        ] = {}  # a recording to compare the next one with
        self._in_place: set[Any] = set()  # keys of arguments that have to be passed as they are
        self._failures = 0
        self._misses = 0
        self._evicted = 0  # recordings in a row that went before they had paid
        self.reason: str | None = None  # why it stays eager
        self.parts: Any = None  # for owners: what it was made for
        self.siblings: Iterable[Captured] = ()  # for owners: one warning for all of these
        self.__wrapped__ = fn
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        self.__qualname__ = self.name
        self.__doc__ = getattr(fn, "__doc__", None)
        self._attribute: str | None = None  # as a method: its name in the class
        _live.add(self)

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = name

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        """A decorated method: every object has programs of its own, in its `__dict__`."""
        if obj is None or not isinstance(self.fn, types.FunctionType):
            return self
        # (asked by type: the dict itself is made when it is first used)
        if self._attribute is None or not type(obj).__dictoffset__:
            raise TypeError(
                f"capture: {type(obj).__name__} objects have no __dict__ to keep programs in. Capture the "
                "method of an object, gs.capture(obj.method), and keep that"
            )
        key = self._attribute  # found there without coming here again
        if getattr(type(obj), key, None) is not self:
            key = self.__qualname__  # asked for by super()
        bound = obj.__dict__.get(key)
        if bound is None:
            bound = Captured(types.MethodType(self.fn, obj), self.passes, self._fallback)
        return obj.__dict__.setdefault(key, bound)

    def __reduce__(self) -> Any:
        """A copy captures anew: programs belong to the arrays they were recorded on. A decorated function
        is found under its name, as functions are."""
        module, path = getattr(self.fn, "__module__", ""), getattr(self.fn, "__qualname__", "")
        if isinstance(self.fn, types.FunctionType) and _named(module, path) is self:
            return (_named, (module, path))
        return (Captured, (self.fn, self.passes, self._fallback))

    # ---- the call: where a program can do all of it, CapturedBase has done so before it comes here
    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if recording.thread is not None and recording.here():
            return self.fn(*args, **kwargs)  # part of the recording around it
        self._acquire()
        try:
            p = self._last
            if p is not None and not kwargs and not p.turned:
                if p.direct:
                    r = p.call(args)
                    if r is not NotImplemented:
                        return r if p.single else results_of(p, r, args)
                elif p.mode == self._mode() and p.native.check(args) and p.ready():
                    return self._replay(p, args)
            return self._other(args, kwargs)
        finally:
            self._release()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._acquire()
        try:
            yield
        finally:
            self._release()

    def _remember(self, p: Program) -> None:
        """The program that the next call tries first."""
        self._last = p
        self._use(p.call if p.direct and not p.turned else None)

    def _mode(self) -> tuple:
        return (is_grad_enabled(), _cpu.get_num_threads(), _cpu.autocast())

    def _other(self, args: tuple, kwargs: dict) -> Any:
        leaves: list[Any] = []
        tree = trees.flatten((args, kwargs) if kwargs else args, leaves)
        copied: dict[int, Tensor] = {}  # what has gaps in its memory, or goes backwards
        turned: dict[int, Tensor] = {}  # what has none, but its axes in another order
        new: dict[int, Any] = {}  # tensors for arrays
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, np.ndarray):
                if id(leaf) not in new:
                    new[id(leaf)] = Tensor(leaf)
                leaves[i] = leaf = new[id(leaf)]
            if isinstance(leaf, Tensor) and not leaf.data.flags.c_contiguous and not leaf._rg:
                (copied if axes_of(leaf.data) is None else turned)[i] = leaf
        seen = leaves.copy()  # what the function gets
        mode = self._mode()
        key: Any = (tree, mode, tuple(recording.modes.items()), tuple([_sign(x) for x in leaves]))
        # The function sees the tensor itself, the program its memory.
        order = {i: axes_of(x.data) for i, x in turned.items()}
        for i, leaf in turned.items():
            leaves[i] = view_of(leaf, leaf.data.transpose(order[i]))
        if turned:
            key = (key, tuple(order.items()))
        if copied:
            key = (key, tuple(copied))
            dense: dict[int, Tensor] = {}
            for i, leaf in copied.items():
                if id(leaf) not in dense:
                    dense[id(leaf)] = wrap(leaf._k.contiguous(leaf.data), leaf._k)
                leaves[i] = dense[id(leaf)]
        flat = tuple(leaves)
        reasons = []
        for p in reversed(self._programs):
            if p.tree != tree or p.mode != mode or p.turned != order:
                continue
            if copied and not p.shares.isdisjoint(copied):
                continue
            if p.native.check(flat) and p.ready():
                self._programs.remove(p)
                self._programs.append(p)
                self._remember(p)
                return self._replay(p, tuple(seen) if copied or turned else flat)
            if p.key == key:  # other shapes have programs of their own
                reasons.append(p.native.reason)
        of: dict[int, Any] = {}
        args, kwargs = trees.replaced((args, kwargs), new, of)
        try:
            call = _Call(args, kwargs, leaves, tree, mode, key, copied, turned, order)
            return self._run(call, reasons)
        finally:
            if of and trees.changed((args, kwargs) if kwargs else args, tree, seen):
                trees.give_back(of)

    def _run(self, call: _Call, reasons: list[str]) -> Any:
        """A call without a program: eager or recorded. reasons: why programs of its kind do not fit."""
        args, kwargs, key, copied = call.args, call.kwargs, call.key, call.copied
        if self.reason is not None or key in self._in_place:
            return self.fn(*args, **kwargs)
        why = self._cannot(call.leaves)
        if why is not None:
            _say(f"{self.name}: eager: {why}")
            return self.fn(*args, **kwargs)
        seen = self._seen[key] = self._seen.pop(key, 0) + 1
        _forget(self._seen, _MAX_SEEN)
        if seen == 1:
            before = [(x, x._ver[0]) for x in copied.values()]
            out = self.fn(*args, **kwargs)
            if before:
                found: list[Any] = []
                trees.flatten(out, found)
                if any([x._ver[0] != v for x, v in before]) or any(
                    [
                        isinstance(r, Tensor) and np.may_share_memory(r.data, x.data)
                        for r in found
                        for x, _ in before
                    ]
                ):
                    self._in_place.add(key)  # it has to see the argument itself
            return out
        if reasons:
            # Something that is not an argument changes from call to call? Now and then is all right.
            if self._last is not None and self._last.native.stats()["replays"] >= 3:
                self._misses = 0
            self._misses += 1
            if self._misses > 8:
                self._give_up(f"what it depends on changes at every call: {reasons[0]}")
                return self.fn(*args, **kwargs)
        _say(f"{self.name}: recording" + (f" again: {reasons[0]}" if reasons else ""))
        return self._record(call)

    def _cannot(self, leaves: list[Any]) -> str | None:
        spans = []
        for i, x in enumerate(leaves):
            if isinstance(x, Tensor):
                if x._rg:
                    return f"argument {i} requires a gradient"
                if x.data.size:
                    a = x.data.__array_interface__["data"][0]
                    spans.append((a, a + x.data.nbytes, x.data.shape, x.data.dtype))
        spans.sort(key=lambda s: s[:2])
        for a, b in itertools.pairwise(spans):
            if b[0] < a[1] and (a[0] != b[0] or a[2:] != b[2:]):
                return "two arguments share a part of their memory; pass a clone()"
        return None

    def _give_up(self, why: str) -> None:
        told = any([c.reason is not None for c in self.siblings])
        self.reason = why
        if told:
            return
        warnings.warn(
            f"gradsmith: {self.name} is not captured and runs eagerly: {why}",
            RuntimeWarning,
            stacklevel=4,
        )

    def _went(self, fresh: bool) -> None:
        """A recording had to go for another one; fresh: before it had paid."""
        self._evicted = self._evicted + 1 if fresh else 0
        if self._evicted > _MAX_PROGRAMS:
            self._give_up(
                f"it is called with more kinds of arguments in turn than the {_MAX_PROGRAMS} that programs "
                "are kept for. Pad them to fewer shapes"
            )

    # ---- replay
    def _replay(self, p: Program, leaves: tuple) -> Any:
        native = p.native
        if p.checks:
            native.check_inputs()
        for action in p.actions:
            action.advance()
        if p.draws:
            native.set_random(*random.take(p.draws))
        try:
            arrays = native.replay()
        except BaseException:
            for action in reversed(p.actions):
                action.undo()
            raise
        for action in p.actions:
            action.done()
        native.count_changes(leaves)
        for t, i in p.grads:
            g = native.holder(i)
            if g is None:
                g = wrap(arrays[i], _cpu)
                native.set_holder(i, g)
            if t._grad is not g:
                t._grad = g
        for t in p.cleared:
            t._grad = None
        return results_of(p, arrays, leaves)

    # ---- recording
    def _record(self, call: _Call) -> Any:
        """Runs the function under the recorder. A second recording must agree with the first one in all
        but what a replay renews; then it becomes a program. That finds what Python computed from data."""
        args, kwargs, leaves, tree = call.args, call.kwargs, call.leaves, call.tree
        key, copied, turned = call.key, call.copied, call.turned
        watch = Watch(self.fn, [*leaves, *trees.classes(tree)])
        if watch.reason is not None:
            self._give_up(watch.reason)
            return self.fn(*args, **kwargs)
        arrays = [x.data for x in leaves if isinstance(x, Tensor)]
        shared = watch.shares_memory(arrays)
        if shared is not None:
            _say(f"{self.name}: eager: an argument shares memory with {shared}")
            return self.fn(*args, **kwargs)
        saved = watch.snapshot() if self._fallback else None
        given = trees.held((args, kwargs)) if self._fallback else []
        entry = [(t, t._grad) for t in watch.trainable]
        rec = _cpu.Recording()
        if not rec.start(arrays, watch.only_gradients(entry)):
            return self.fn(*args, **kwargs)  # another thread records now
        of: dict[int, Any] = {}
        dense = {id(x): leaves[i] for i, x in copied.items()}
        original = args, kwargs
        args, kwargs = trees.replaced(original, dense, of)
        before = random.state()
        versions = versions_of(watch, leaves)
        guarded = Guarded()
        try:
            with guarded:
                out = self.fn(*args, **kwargs)
                notes = list(recording.notes)
                looked = list(recording.looked)
                if recording.refused:  # the function went on as it does without the value
                    raise CaptureError(recording.refused[0])
            plan = Plan(rec, watch, leaves, out, entry, notes, versions, copied, turned)
            for i, x in copied.items():
                if i in plan.changed_inputs:  # the copy of what is not in C order
                    np.copyto(x.data, leaves[i].data)
                    x._ver[0] += 1
        except CaptureError as error:
            rec.stop()
            if saved is None:
                raise
            watch.restore(saved)
            random.set_state(before)
            trees.put_back(given)
            of.clear()
            self._give_up(str(error))
            args, kwargs = original
            return self.fn(*args, **kwargs)
        except BaseException:
            guarded.leave()
            rec.stop()
            raise
        finally:
            seen = [turned.get(i, x) for i, x in enumerate(leaves)]
            changed = trees.changed((args, kwargs) if kwargs else args, tree, seen)
            if changed and of:
                trees.give_back(of)
        after = random.state()
        result = plan.result
        del out
        why = plan.problem()
        if changed:
            why = (
                "it changes a list, dict or object that it is given, and a replay runs no Python. Return what "
                "it puts there"
            )
        if why is None:
            why, plan.written = watch.read_by_host(rec)
        if why is None and plan.leaks():
            gc.collect()
            if plan.leaks():
                why = (
                    "tensors made inside it are kept outside (in a list, an attribute, a hook); a "
                    "replay would not renew them. Return them instead"
                )
        rec.stop()
        why = why or rec.error or None
        if why is None and looked:
            why = (
                f"it takes the array of a tensor, .data ({looked[0]}), and a replay would not look at its "
                "values. Compute with tensors; shape, dtype and detach() are theirs, too"
            )
        if why is None and (before["seed"] != after["seed"]):
            why = "it sets the random seed"
        if why is None and self._mode() != call.mode:
            why = (
                "it leaves another grad mode, autocast or number of threads behind, and a replay runs no "
                "Python. Switch outside, or by a with block"
            )
        if copied and not plan.shares().isdisjoint(copied):
            self._in_place.add(key)  # not seen at the first call
            return result
        if why is not None:
            self._failures += 1
            if self._failures >= _MAX_FAILURES or rec.error or looked:
                self._give_up(why)
            return result
        # Recordings in train and in eval mode are not compared with each other, nor those that add to
        # gradients and those that make them.
        kind = key
        switches = tuple([g[3] for g in watch.guards if len(g) > 3 and type(g[3]) is bool])
        key = (key, switches, tuple([g is None for _, g in entry]))
        draft = self._drafts.pop(key, None)
        contents = watch.contents()
        if draft is not None:
            # Arrays that kernels read, and whose values made no other difference between the two
            plan.written |= {i for i, c in draft[2].items() if contents.get(i, c) != c}
            why = rec.difference(draft[0], before["counter"], draft[1])
            if not why:
                draft[0].drop()
        if draft is None or why:
            if why:
                _say(f"{self.name}: recording again: {why}")
                self._failures += 1
                if self._failures >= _MAX_FAILURES:
                    self._give_up(why)
                    return result
            self._drafts[key] = (rec, before["counter"], contents)
            if _forget(self._drafts, _MAX_PROGRAMS):  # each holds arrays of its call
                self._went(True)
            return result
        self._failures = 0
        p = Program(plan.finish(call.mode[1], self.passes, before, after), tree, call.mode)
        p.draws = after["counter"] - before["counter"]
        p.shares = plan.shares()
        p.turned = call.order
        p.key = kind
        plan.fill(p)
        p.arguments = kinds_of(leaves)
        self._programs.append(p)
        if len(self._programs) > _MAX_PROGRAMS:
            self._went(self._programs.pop(0).fresh())
        self._remember(p)
        if _verbose:
            s = p.native.stats()
            _say(
                f"{self.name}: recorded {s['ops']} operations, {s['barriers']} barriers, arena "
                f"{s['arena_bytes']} bytes (of {s['unshared_bytes']}), {s['guards']} guards"
            )
        return result

    # ---- looking into it
    @property
    def programs(self) -> list[dict[str, Any]]:
        """One dict for each program: operations, barriers, arena_bytes, replays, allocations (new
        arrays for results that somebody held), pool_allocations (blocks taken in all replays), ..."""
        return [{**p.native.stats(), "mode": p.mode} for p in self._programs]

    def report(self, runs: int = 20) -> str:
        """Text on the program used last: operations, fusions, arena, barriers, what a replay allocates,
        page faults, time by operation.

        Times are measured by replaying with a barrier around each operation, on a copy of the state
        that is put back; they are zero before the first replay.
        """
        return reports.report(self, runs)

    def verify(self, *args: Any, **kwargs: Any) -> int:
        """Runs the function and its replay from the same state and compares the bits of results,
        arguments, parameters, states and gradients; the state is put back, arguments too. Returns how
        many arrays were compared. AssertionError names the first one that differs.
        """
        with self._locked():
            return reports.verify(self, args, kwargs)

    def __repr__(self) -> str:
        return f"<captured {self.name}: {len(self._programs)} programs>"


def _forget(table: dict, most: int) -> bool:
    """Drops the entry that was written the longest ago, beyond `most`; whether there was one."""
    if len(table) <= most:
        return False
    del table[next(iter(table))]
    return True


def _sign(x: Any) -> Any:
    """What two arguments have in common that the same program may serve."""
    if isinstance(x, Tensor):
        return (type(x), x.data.shape, x.data.dtype.str)
    if type(x) is float:  # 0 and -0 are two programs, and NaN is like NaN
        return (float, x.hex())
    if isinstance(x, np.number):
        return (type(x), x.tobytes())
    if type(x) is complex:
        return (complex, x.real.hex(), x.imag.hex())
    try:
        hash(x)
    except TypeError:
        return (type(x), id(x))
    return (type(x), x)


@overload
def capture(fn: Callable[..., R], *, passes: Any = None, fallback: bool = False) -> Captured[R]: ...
@overload
def capture(
    fn: None = None, *, passes: Any = None, fallback: bool = False
) -> Callable[[Callable[..., R]], Captured[R]]: ...
def capture(fn: Callable | None = None, *, passes: Any = None, fallback: bool = False) -> Any:
    """A function that records what `fn` does and replays it without Python.

    fn: takes tensors (NumPy arrays arrive as tensors), numbers, strings, and tuples, lists, dicts and
    dataclasses of them; returns the same. The first call with a new kind of arguments (shapes, dtypes, modes of
    the modules, grad mode, threads, autocast) runs `fn`, two record it, later ones replay, to the same bits.
    passes: names of the optimisations to use (`gs.core.capture.PASSES`), a dict of switches, True for
    all, None for those that paid where they were measured. fallback: run eagerly, with one warning, instead of raising when `fn` cannot be captured.

    Raises CaptureError, while recording, where `fn` reads values on the host (`item()`, `numpy()`,
    `bool()`, printing): the message names the line. Works as a decorator too.

    >>> import gradsmith as gs
    >>> model = gs.nn.Linear(2, 1); opt = gs.optim.SGD(model.parameters(), lr=0.1)
    >>> @gs.capture
    ... def step(x, y):
    ...     opt.zero_grad()
    ...     loss = gs.nn.functional.mse_loss(model(x), y)
    ...     loss.backward()
    ...     opt.step()
    ...     return loss
    >>> x, y = gs.ones(4, 2), gs.zeros(4, 1)
    >>> losses = [step(x, y).item() for _ in range(5)]
    >>> losses[4] < losses[0], step.programs[0]["replays"]
    (True, 2)
    """
    if fn is None:
        return lambda f: Captured(f, passes, fallback)
    return Captured(fn, passes, fallback)


def _after_fork() -> None:
    recording.thread = None
    _cpu._recording_forked()
    for c in list(_live):
        c._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
