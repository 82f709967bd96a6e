"""gs.capture: a function of tensors, recorded kernel by kernel and replayed in C++.

The first call with a new kind of arguments runs the function as it is, the second and third record every
kernel that it launches and are compared, later ones replay: no Python between kernels, one team of
threads for all of them, memory planned beforehand. docs/capture.md tells what may stand in such a
function; core/watch.py finds what a program depends on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import gc
import itertools
import os
import sys
import threading
import types
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from .. import _cpu
from . import random, recording, trees
from .autograd import is_grad_enabled
from .recording import CaptureError
from .tensor import Tensor, wrap
from .watch import AverageState, OptimizerState, SchedulerState, Watch

__all__ = ["PASSES", "CaptureError", "Captured", "capture"]

PASSES = {
    "side_by_side": "independent small kernels run on different threads",
    "barriers": "threads wait for each other only where memory crosses from one to another",
    "memory": "arrays whose lives do not meet share memory",
    "in_place": "an elementwise kernel writes over an input that nobody reads afterwards",
    "relu_pool": "ReLU and the max-pool behind it in one kernel, forward and backward",
    "conv_pool": "convolution (few channels or Winograd) with the 2 x 2 max-pool behind it, also backward",
    "norm_relu": "batch norm with the sum and the ReLU behind it in one kernel, forward and backward",
    "norm_stats": "statistics of a batch norm taken while the convolution before it makes its output",
    "bias_relu": "matmul, convolution and their bias with the ReLU behind them in one kernel",
    "bias_activation": "matmul and its bias with the activation behind them in one kernel",
    "activation_gradient": "the product that makes a gradient takes it through the activation",
    "conv_gradient": "the convolution that makes a gradient takes it through the ReLU",
    "residual": "a sum behind a matmul in the matmul's kernel",
    "norm_sum": "the gradient of a layer norm and the gradient that is added to it in one kernel",
    "pieces": "parts of a sum are written into it, not into zeros that are added",
    "optimizer": "each layer's update right after its gradients (when no gradient norm is asked for)",
    "gradient_update": "the product that makes a gradient updates the parameter, piece by piece "
    "(None: not where a fast third cache holds all that the update touches)",
    "transposed": "a result that only products read is stored as the next one reads it",
    "prepared_weights": "weights that the program leaves alone stay transformed or packed between replays",
    "prepared_updates": "an update writes the transformed or packed weights for the next replay, too",
}

# Right, but no gain on the machines measured (docs/performance.md): on only where asked for.
_UNPAID = ("bias_activation", "activation_gradient", "prepared_updates")
_MAX_PROGRAMS = 16
_MAX_FAILURES = 3
_MAX_SEEN = 4096  # kinds of arguments that are remembered: a counter as an argument makes new ones
_verbose = os.environ.get("GRADSMITH_VERBOSE", "0") not in ("", "0")
_CONSTANT = (
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
_live: weakref.WeakSet[Captured] = weakref.WeakSet()


def _say(text: str) -> None:
    if _verbose:
        print(f"gradsmith: capture: {text}", file=sys.stderr)


# ---- what raises while a recording runs


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


class _Guarded:
    """While it is entered, reading values raises in the recording thread (other threads read on)."""

    def __enter__(self) -> None:
        self.before: dict[str, Any] = {}
        for name, what in _READERS.items():
            self.before[name] = Tensor.__dict__.get(name)
            setattr(Tensor, name, _refusing(name, what))
        backward = self.backward = Tensor.backward

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
        recording.notes.clear()
        recording.looked.clear()
        recording.constants.clear()
        recording.thread = threading.get_ident()

    def __exit__(self, *exc: object) -> None:
        recording.thread = None
        setattr(Tensor, "backward", self.backward)  # noqa: B010
        del Tensor.data
        recording.constants.clear()
        for name, method in self.before.items():
            if method is None:
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, method)


class _Program:
    """A native program and what Python does around its replay."""

    def __init__(self, native: Any, tree: Any, mode: tuple):
        self.native = native
        self.tree = tree  # of the arguments
        self.mode = mode
        self.key: Any = None  # of the calls that it was recorded for
        self.actions: list[Any] = []
        self.grads: list[tuple[Tensor, int]] = []  # parameter, index of the output
        self.cleared: list[Tensor] = []  # parameters that have no gradient afterwards
        self.results: list[tuple[str, Any]] = []  # how to get each leaf of the result
        self.result_tree: Any = None
        self.draws = 0
        self.checks = False
        self.names = ""
        self.watch: Any = None
        self.arguments: list[Any] = []  # (shape, dtype, which earlier one it is) or a constant
        self.direct = self.single = False
        self.shares: set[int] = set()  # arguments that it changes, or whose memory it returns
        self.turned: dict[
            int, Any
        ] = {}  # arguments that are bound with their axes in another order
        self.call: Any = None  # the whole call in C++, where it can be done there

    def fresh(self) -> bool:
        return self.native.stats()["replays"] < 3

    def ready(self) -> bool:
        return all([a.ready() for a in self.actions])


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


@dataclasses.dataclass
class _Kind:
    """An array argument: its shape and dtype, or which earlier argument it is."""

    shape: tuple[int, ...]
    dtype: Any
    same: int | None


def _kinds(leaves: list[Any]) -> list[Any]:
    first: dict[tuple, int] = {}
    kinds: list[Any] = []
    for i, x in enumerate(leaves):
        if isinstance(x, Tensor):
            at = (x.data.__array_interface__["data"][0], x.data.shape)
            same = first.setdefault(at, i) if x.data.size else i
            kinds.append(_Kind(x.data.shape, x.data.dtype, None if same == i else same))
        else:
            kinds.append(x)
    return kinds


def _named(module: str, path: str) -> Any:
    """What a module has under a name; None: nothing."""
    import importlib

    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError):
        return None


class Captured(_cpu.CapturedBase):
    """What `gs.capture` returns: call it like the function.

    `programs` lists what has been recorded; `report()` tells what a program does, `verify(*args)`
    compares a replay with the function itself.
    """

    def __init__(self, fn: Callable, passes: Any = None, fallback: bool = False):
        self.fn: Callable = fn.fn if isinstance(fn, Captured) else fn
        if not callable(fn):
            raise TypeError(f"capture: expected a function, got {type(fn).__name__}")
        self.passes = _options(passes)
        self.name = getattr(fn, "__qualname__", type(fn).__name__)
        self._fallback = fallback
        self._programs: list[_Program] = []
        self._last: _Program | None = None
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
                        return r if p.single else _results(p, r, args)
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

    def _remember(self, p: _Program) -> None:
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
                (copied if _axes(leaf.data) is None else turned)[i] = leaf
        seen = leaves.copy()  # what the function gets
        mode = self._mode()
        key: Any = (tree, mode, tuple(recording.modes.items()), tuple([_sign(x) for x in leaves]))
        # The function sees the tensor itself, the program its memory.
        order = {i: _axes(x.data) for i, x in turned.items()}
        for i, leaf in turned.items():
            leaves[i] = _view(leaf, leaf.data.transpose(order[i]))
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
    def _replay(self, p: _Program, leaves: tuple) -> Any:
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
        return _results(p, arrays, leaves)

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
        versions = _versions(watch, leaves)
        try:
            with _Guarded():
                out = self.fn(*args, **kwargs)
                notes = list(recording.notes)
                looked = list(recording.looked)
            plan = _Plan(rec, watch, leaves, out, entry, notes, versions, copied, turned)
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
        p = _Program(plan.finish(call.mode[1], self.passes, before, after), tree, call.mode)
        p.draws = after["counter"] - before["counter"]
        p.shares = plan.shares()
        p.turned = call.order
        p.key = kind
        plan.fill(p)
        p.arguments = _kinds(leaves)
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
        p = self._last
        if p is None:
            return f"{self.name}: no program yet" + (f" ({self.reason})" if self.reason else "")
        # the arguments of the last call may be gone: zeros of their kind take their places
        made: list[Any] = []
        for a in p.arguments:
            if isinstance(a, _Kind):
                a = wrap(np.zeros(a.shape, a.dtype), _cpu) if a.same is None else made[a.same]
            made.append(a)
        if not p.native.check(tuple(made)):
            return f"{self.name}: the program does not fit any more: {p.native.reason}"
        s = p.native.stats()
        saved = p.watch.snapshot()
        times: list[float] = []
        faults = None
        try:
            p.native.replay()  # gives up the gradients that the snapshot holds
            taken = p.native.stats()["pool_allocations"]
            for _ in range(3):  # the least counts: other threads of the process may fault too
                start = _page_faults()
                for _ in range(runs):
                    p.native.replay()
                if start is not None:
                    now = (_page_faults() or 0) - start
                    faults = now if faults is None else min(faults, now)
            p.native.profile(True)
            for _ in range(runs):
                p.native.replay()
            times = p.native.times()
        finally:
            p.native.profile(False)
            p.watch.restore(saved)
        taken = p.native.stats()["pool_allocations"] - taken
        lines = [
            f"{self.name}: {s['steps']} operations on {s['threads']} threads, {s['barriers']} barriers, "
            f"arena {s['arena_bytes']} bytes ({s['unshared_bytes']} without sharing), scratch "
            f"{s['scratch_bytes']}, {s['replays']} replays, {s['allocations']} new result arrays",
            f"a replay: {taken / (4 * runs):g} pool allocations"
            + ("" if faults is None else f", {faults / runs:g} page faults"),
            f"{'operation':32s} {'threads':>8s} {'barrier':>8s} {'us':>9s}",
        ]
        for (name, nt, owner, barrier, _, note), t in zip(p.native.listing(), times):
            where = str(nt) if nt > 1 else f"#{owner}"
            lines.append(
                f"{name:32s} {where:>8s} {'yes' if barrier else '':>8s} {t / runs * 1e6:9.2f}"
                + (f"  {note}" if note else "")
            )
        lines.append(f"{'sum':32s} {'':8s} {'':8s} {sum(times) / runs * 1e6:9.2f}")
        return "\n".join(lines)

    def verify(self, *args: Any, **kwargs: Any) -> int:
        """Runs the function and its replay from the same state and compares the bits of results,
        arguments, parameters, states and gradients; the state is put back, arguments too. Returns how
        many arrays were compared. AssertionError names the first one that differs.
        """
        with self._locked():
            if self._last is None:
                raise CaptureError(f"verify: {self.name} has no program yet; call it twice first")
            leaves: list[Any] = []
            trees.flatten((args, kwargs), leaves)
            watch = Watch(self.fn, leaves)
            saved, state = watch.snapshot(), random.state()
            arrays = [x.data if isinstance(x, Tensor) else x for x in leaves]
            given = [a for a in arrays if isinstance(a, np.ndarray)]
            before = [a.copy() for a in given]

            def restore() -> None:
                watch.restore(saved)
                random.set_state(state)
                for a, old in zip(given, before):
                    if a.flags.writeable:
                        a[...] = old

            try:
                expected = self._state_of(self.fn(*args, **kwargs), watch, given)
                restore()
                replays = sum(p.native.stats()["replays"] for p in self._programs)
                got = self._state_of(self(*args, **kwargs), watch, given)
                if sum(p.native.stats()["replays"] for p in self._programs) == replays:
                    raise CaptureError("verify: no program fits these arguments yet")
            finally:
                restore()
            for (name, a), (_, b) in zip(expected, got):
                if (a is None) != (b is None):
                    raise AssertionError(f"verify: {name} is there in one of the two runs only")
                if a is not None and (
                    a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes()
                ):
                    raise AssertionError(f"verify: {name} differs between function and replay")
            return len(expected)

    def _state_of(self, out: Any, watch: Watch, given: list[np.ndarray]) -> list[tuple[str, Any]]:
        leaves: list[Any] = []
        trees.flatten(out, leaves)
        items: list[tuple[str, Any]] = [
            (f"result {i}", x.data.copy()) for i, x in enumerate(leaves) if isinstance(x, Tensor)
        ]
        items += [(f"argument {i}", a.copy()) for i, a in enumerate(given)]
        for name, t in watch.named():
            items.append((name, t.data.copy()))
        for t in watch.trainable:
            items.append(
                (f"gradient of {t.shape}", None if t._grad is None else t._grad.data.copy())
            )
        return items

    def __repr__(self) -> str:
        return f"<captured {self.name}: {len(self._programs)} programs>"


def _page_faults() -> int | None:
    """Minor page faults of this process so far; None where the system does not count them."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _results(p: _Program, arrays: tuple, leaves: tuple) -> Any:
    made: list[Any] = []
    of: dict[int, Tensor] = {}
    for kind, value in p.results:
        if kind == "array":
            t = of.get(value)
            if t is None:
                t = of[value] = wrap(arrays[value], _cpu)
            made.append(t)
        elif kind == "input":
            made.append(leaves[value])
        elif kind == "gradient":
            made.append(value._grad)
        elif kind == "view":
            home, which, dtype, shape, offset, strides = value
            if home == "array":
                base = of.get(which)
                if base is None:
                    base = of[which] = wrap(arrays[which], _cpu)
            else:
                base = leaves[which] if home == "input" else which
            a = base.data  # an argument may have its axes in another order
            flat = a if a.flags.c_contiguous else a.ravel(order="K")
            made.append(_view(base, np.ndarray(shape, dtype, flat, offset, strides)))
        else:
            made.append(value)
    return made[0] if p.result_tree is None else trees.unflatten(p.result_tree, made)


def _view(base: Tensor, a: np.ndarray) -> Tensor:
    """A view of a tensor's memory, without a gradient."""
    t = wrap(a, base._k)
    t._ver = base._ver
    t._at = base._ver[0]
    t._view = True
    return t


def _span(a: np.ndarray) -> tuple[int, int]:
    """The addresses of the first byte that an array covers, and of the one behind the last."""
    low = high = a.__array_interface__["data"][0]
    for n, stride in zip(a.shape, a.strides):
        if stride < 0:
            low += (n - 1) * stride
        else:
            high += (n - 1) * stride
    return low, high + a.itemsize


def _within(a: np.ndarray, base: np.ndarray) -> tuple | None:
    """How to make `a` as a view of `base`; None when it is none."""
    if not a.size or not base.size or not base.flags.c_contiguous:
        return None
    (low, high), (first, last) = _span(a), _span(base)
    if low < first or last < high:
        return None
    return (a.dtype, a.shape, a.__array_interface__["data"][0] - first, a.strides)


def _axes(a: np.ndarray) -> tuple[int, ...] | None:
    """The order of axes in which an array is contiguous; None when there is none."""
    axes = tuple(sorted(range(a.ndim), key=lambda k: -a.strides[k]))
    return axes if a.transpose(axes).flags.c_contiguous else None


def _root(a: np.ndarray) -> np.ndarray:
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


def _versions(watch: Watch, leaves: list[Any]) -> list[tuple[Tensor, int, int]]:
    """Tensors with the argument that they are (or -1) and their versions."""
    known = [(t, -1, t._ver[0]) for _, t in watch.named()]
    return known + [(x, i, x._ver[0]) for i, x in enumerate(leaves) if isinstance(x, Tensor)]


class _Plan:
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
        used: set[int] = set()
        k = _cpu
        # Whether it matters that a parameter has no gradient: an inference function does not look.
        looks = watch.names_gradients() or any(k in ("backward", "optimizer") for k, _ in notes)
        for t, before in entry:
            g = t._grad
            was_read = before is not None and rec.touched(before.data)
            if before is None:
                if looks or g is not None:
                    self.grad_guards.append((t, None))
            elif was_read:
                self.grad_guards.append((t, before))
            if g is None:
                if before is not None:
                    self.cleared.append(t)
            elif g is not before:
                if not rec.whole(g.data) or id(g.data) in used:
                    t._grad = g = wrap(k.copy(g.data), k)
                used.add(id(g.data))
                self.grads.append((t, len(self.outputs)))
                self.outputs.append((g.data, g, t))
        found: list[Any] = []
        self.result_tree = trees.flatten(out, found)
        made: list[Any] = []
        positions = {id(x): i for i, x in enumerate(leaves) if isinstance(x, Tensor)}
        positions.update({id(x): i for i, x in turned.items()})
        known = {id(t) for _, t in watch.named()}
        gradients = {id(t._grad): t for t in watch.trainable if t._grad is not None}
        # Results that share memory go on doing so: with arguments, with what the function sees, with
        # gradients, and with each other.
        bases: list[tuple[str, Any, np.ndarray]] = [
            ("input", i, x.data) for i, x in enumerate(leaves) if isinstance(x, Tensor)
        ]
        bases += [("tensor", t, t.data) for _, t in watch.named()]
        bases += [("array", i, a) for i, (a, _, _) in enumerate(self.outputs)]
        roots = Counter(
            [
                id(_root(a))
                for a in {id(x.data): x.data for x in found if isinstance(x, Tensor)}.values()
            ]
        )
        by_array: dict[int, int] = {}
        of: dict[int, Tensor] = {}
        for x in found:
            if not isinstance(x, Tensor):
                if isinstance(x, np.ndarray):
                    recording.thread = threading.get_ident()
                    try:
                        recording.host_read("returning a NumPy array", "Return the tensor")
                    finally:
                        recording.thread = None
                elif not isinstance(x, _CONSTANT) and not watch.sees(x):
                    self.strange = (
                        f"it returns an object of the class {type(x).__name__}, which would be the same one "
                        "after every replay. Return tensors, numbers, strings, and tuples, lists, dicts and "
                        "dataclasses of them"
                    )
                self.results.append(("value", x))
                made.append(x)
            elif id(x) in positions:
                self.results.append(("input", positions[id(x)]))
                made.append(copied.get(positions[id(x)], x))
            elif id(x) in known:
                self.results.append(("value", x))
                made.append(x)
            elif id(x) in gradients:
                self.results.append(("gradient", gradients[id(x)]))
                made.append(x)
            else:
                if x._rg and x._node is not None and _unfinished(x._node):
                    self.unfinished = True
                a, root = x.data, _root(x.data)
                if id(a) in by_array:
                    self.results.append(("array", by_array[id(a)]))
                    made.append(x if self.unfinished else of[id(a)] if id(a) in of else _view(x, a))
                    continue
                if roots[id(root)] > 1 and rec.whole(root) and id(root) not in used:
                    used.add(id(root))
                    by_array[id(root)] = len(self.outputs)
                    bases.append(("array", len(self.outputs), root))
                    self.outputs.append((root, None, None))
                    if a is root:
                        self.results.append(("array", by_array[id(a)]))
                        made.append(x if self.unfinished else _view(x, a))
                        continue
                for home, which, base in bases:
                    view = _within(a, base)
                    if view is not None:
                        self.results.append(("view", (home, which, *view)))
                        made.append(x if self.unfinished else _view(x, a))
                        break
                else:
                    if not rec.whole(a):
                        a = k.copy(a)
                    by_array[id(x.data)] = len(self.outputs)
                    self.results.append(("array", len(self.outputs)))
                    self.outputs.append((a, None, None))
                    of[id(x.data)] = wrap(a, k)
                    made.append(x if self.unfinished else of[id(x.data)])
        self.result = (
            made[0] if self.result_tree is None else trees.unflatten(self.result_tree, made)
        )

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

    def fill(self, p: _Program) -> None:
        native = p.native
        self.watch.guard(native, self.written)
        for t, g in self.grad_guards:
            name = "a gradient from before the call"
            if g is None or not native.guard_gradient(t, g.data, name):
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
    try:
        hash(x)
    except TypeError:
        return (type(x), id(x))
    return (type(x), x)


def _options(passes: Any) -> dict[str, bool | None]:
    if passes is True:
        return dict.fromkeys(PASSES, True)
    chosen: dict[str, bool | None] = {name: name not in _UNPAID for name in PASSES}
    chosen["gradient_update"] = None
    if passes is None:
        return chosen
    if passes is False:
        return dict.fromkeys(PASSES, False)
    if isinstance(passes, dict):
        given = passes
    else:
        given = {**dict.fromkeys(PASSES, False), **dict.fromkeys(passes, True)}
    for name, on in given.items():
        if name not in PASSES:
            raise ValueError(f"capture: unknown pass {name!r}; there are {', '.join(PASSES)}")
        chosen[name] = None if on is None and name == "gradient_update" else bool(on)
    return chosen


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
