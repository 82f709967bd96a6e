"""Reverse-mode automatic differentiation: the graph's nodes, the backward pass, custom functions.

A forward op computes its arrays and, when some input needs a gradient, records a `Node`: the edges to
the nodes that made its inputs and the arrays that its backward needs. `backward()` walks the nodes from
the loss to the leaves, each node once, after all nodes that use its output. Sums of gradients are made
in an order fixed by the graph, so the bits do not change from run to run.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .tensor import Tensor, wrap

__all__ = [
    "Node",
    "apply",
    "apply_",
    "apply_view",
    "backward",
    "enable_grad",
    "grad",
    "is_grad_enabled",
    "no_grad",
    "set_grad_enabled",
]


class _Mode(threading.local):
    enabled = True


_mode = _Mode()
_sequence = itertools.count(1)
_LEAF = 1 << 62
_ONE = (True,)
_new: Any = object.__new__


def is_grad_enabled() -> bool:
    """True when ops record the graph in this thread."""
    return _mode.enabled


class set_grad_enabled:
    """Context manager that switches the recording of the graph on or off in this thread.

    >>> import gradsmith as gs
    >>> x = gs.ones(3, requires_grad=True)
    >>> with gs.set_grad_enabled(False):
    ...     y = x.detach()
    >>> y.requires_grad
    False
    """

    def __init__(self, mode: bool):
        self.mode = bool(mode)
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(_mode.enabled)
        _mode.enabled = self.mode

    def __exit__(self, *exc: object) -> None:
        _mode.enabled = self._before.pop()

    def __call__(self, fn: Callable) -> Callable:
        import functools

        mode = self.mode

        @functools.wraps(fn)
        def inner(*args: Any, **kwargs: Any) -> Any:
            with set_grad_enabled(mode):
                return fn(*args, **kwargs)

        return inner


class no_grad(set_grad_enabled):
    """Context manager and decorator under which nothing is recorded."""

    def __init__(self) -> None:
        super().__init__(False)


class enable_grad(set_grad_enabled):
    """Context manager and decorator that records again inside `no_grad`."""

    def __init__(self) -> None:
        super().__init__(True)


class Node:
    """One recorded op. Subclasses define `backward(self, *grads)`.

    `backward` gets one ndarray (or None) per output and returns a tuple with one ndarray (or None) per
    input. `self.saved` are the saved ndarrays, `self.needs` says which inputs want a gradient, `self.k`
    is the kernel module of the device.
    """

    # Whether arrays that backward returns are new ones: then a leaf may keep them without a copy.
    fresh = True
    # Class attributes are the defaults, so that recording an op stores only what differs.
    hooks: Any = None
    retain: Any = None
    outputs: int = 1
    _saved: Any = ()
    _watch: Any = ()

    k: Any
    edges: tuple
    needs: tuple
    seq: int

    def backward(self, *grads: Any) -> tuple:
        raise NotImplementedError(f"{type(self).__name__}.backward")

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def saved(self) -> tuple:
        if self._saved is None:
            raise RuntimeError(
                f"{self.name}: backward through this graph a second time: its saved arrays were freed. "
                "Call backward(retain_graph=True) the first time"
            )
        for box, version in self._watch:
            if box[0] != version:
                raise RuntimeError(
                    f"{self.name}: a tensor needed for the gradient was modified in place (version {box[0]}, "
                    f"recorded at {version}). Clone it before the in-place change"
                )
        return self._saved

    def __repr__(self) -> str:
        return f"<{self.name}>"


class _Accumulate(Node):
    """The end of the graph at a leaf: adds to `leaf.grad`."""

    def __init__(self, leaf: Tensor):
        self.k = leaf._k
        self.leaf = weakref.ref(leaf)
        self.edges = ()
        self.needs = ()
        self.seq = _LEAF + next(_sequence)  # ready leaves are served at once

    def accumulate(self, g: np.ndarray, fresh: bool) -> None:
        leaf = self.leaf()
        if leaf is None:
            return
        data = leaf.data
        if g.shape != data.shape or g.dtype != data.dtype:
            raise RuntimeError(
                f"backward: gradient has shape {g.shape} and dtype {g.dtype}, its leaf {data.shape} and {data.dtype}"
            )
        if leaf._grad is None:
            if not fresh or not g.flags.c_contiguous or isinstance(g.base, np.ndarray):
                g = self.k.copy(g)
            leaf._grad = wrap(g, self.k)
        else:
            held = leaf._grad
            self.k.add_(held.data, g)
            held._ver[0] += 1


def _edge(t: Tensor) -> tuple:
    node = t._node
    if node is not None:
        if t._ver[0] != t._at:
            raise RuntimeError(
                "this tensor is a view of memory that was modified in place after the view was taken; "
                "its gradient would be wrong. Take the view again after the change"
            )
        return (node, t._idx)
    acc = t._acc
    if acc is None:
        acc = t._acc = _Accumulate(t)
    return (acc, 0)


def _record(
    cls: Any, k: Any, inputs: tuple, needs: tuple, saved: Sequence[Any], attrs: dict[str, Any]
) -> Node:
    node = _new(cls)
    node.k = k
    node.needs = needs
    node.edges = tuple([_edge(t) if n else None for t, n in zip(inputs, needs)])
    node.seq = next(_sequence)
    if saved:
        _save(node, saved)
    for name, value in attrs.items():
        setattr(node, name, value)
    return node


def _save(node: Any, saved: Sequence[Any]) -> None:
    watch = []
    arrays = []
    for s in saved:
        if isinstance(s, Tensor):
            box = s._ver
            watch.append((box, box[0]))
            arrays.append(s.data)
        else:
            arrays.append(s)
    node._saved = tuple(arrays)
    if watch:
        node._watch = watch


def _wants(inputs: tuple) -> tuple | None:
    """Which inputs need a gradient, or None when nothing is to be recorded."""
    if _mode.enabled:
        if len(inputs) == 1:
            return _ONE if inputs[0]._rg else None
        for t in inputs:
            if t is not None and t._rg:
                return tuple([t is not None and t._rg for t in inputs])
    return None


def apply(
    cls: type,
    k: Any,
    out: Any,
    inputs: tuple,
    saved: Sequence[Any] = (),
    save_output: bool = False,
    **attrs: Any,
) -> Any:
    """Wraps the arrays `out` that an op computed and records the op when an input needs a gradient.

    cls: the op's Node class. k: kernel module. out: an ndarray, or a tuple of them for several outputs.
    inputs: Tensors or None. saved: Tensors (watched for in-place changes) or private ndarrays that
    `backward` needs. save_output: append the output. attrs: attributes of the node.
    """
    needs = _wants(inputs)
    if needs is None:
        if type(out) is tuple:
            return tuple([wrap(o, k) for o in out])
        return wrap(out, k)
    # _record, inlined: this is the path of every op that trains
    node = _new(cls)
    node.k = k
    node.needs = needs
    if len(inputs) == 1:
        node.edges = (_edge(inputs[0]),)
    else:
        node.edges = tuple([_edge(t) if n else None for t, n in zip(inputs, needs)])
    node.seq = next(_sequence)
    if saved:
        _save(node, saved)
    for name, value in attrs.items():
        setattr(node, name, value)
    if type(out) is tuple:
        node.outputs = len(out)
        results = []
        for i, o in enumerate(out):
            t = wrap(o, k)
            if o.dtype.kind == "f":
                t._rg = True
                t._node = node
                t._idx = i
            results.append(t)
        if save_output:
            node._saved = (*node._saved, *out)
            node._watch = [*node._watch, *[(t._ver, 0) for t in results]]
        return tuple(results)
    t = wrap(out, k)
    t._rg = True
    t._node = node
    t._idx = 0
    if save_output:
        node._saved = (*node._saved, out)
        node._watch = [*node._watch, (t._ver, 0)]
    return t


def apply_view(cls: type, base: Tensor, out: np.ndarray, **attrs: Any) -> Tensor:
    """As `apply` for an op whose output is a view of the memory of its only input `base`."""
    needs = _wants((base,))
    t = wrap(out, base._k)
    t._ver = base._ver
    t._at = base._ver[0]
    t._view = True
    if needs is not None:
        t._node = _record(cls, base._k, (base,), needs, (), attrs)
        t._idx = 0
        t._rg = True
    return t


def apply_(
    cls: type,
    target: Tensor,
    write: Callable[[], Any],
    inputs: tuple,
    saved: Sequence[Any] = (),
    save_output: bool = False,
    name: str = "in-place op",
    **attrs: Any,
) -> Tensor:
    """In-place op: checks the rules, calls `write()` (which changes target.data), records.

    inputs[0] must be `target`. Rules: a leaf that requires a gradient, or a view while a gradient is
    recorded, may not be changed in place (RuntimeError, before anything is written).
    """
    needs = _wants(inputs)
    if needs is not None:
        if target._rg and target._node is None:
            raise RuntimeError(
                f"{name}: a leaf tensor that requires a gradient cannot be changed in place. "
                "Do it under no_grad(), or on a result computed from it"
            )
        if target._view:
            raise RuntimeError(
                f"{name}: this tensor is a view; changing it in place while gradients are recorded is not "
                "supported. Use the out-of-place op, or clone() the view first"
            )
        node = _record(cls, target._k, inputs, needs, saved, attrs)
    write()
    box = target._ver
    box[0] += 1
    if needs is not None:
        if save_output:
            node._saved = (*node._saved, target.data)
            node._watch = [*node._watch, (box, box[0])]
        target._node = node
        target._idx = 0
        target._rg = True
        target._at = box[0]
    elif target._node is not None:
        target._at = box[0]
    return target


def backward(
    roots: Sequence[Tensor], grads: Sequence[np.ndarray], retain_graph: bool = False
) -> None:
    """Adds to the `.grad` of every leaf the gradient of sum(root * grad)."""
    _run([_edge(r) for r in roots], grads, retain_graph, None)


def _run(
    starts: Sequence[tuple], grads: Sequence[np.ndarray], retain_graph: bool, only: dict | None
) -> None:
    # How many edges lead into each node that is reachable.
    waiting: dict[Node, int] = {}
    stack = []
    for node, _ in starts:
        if node not in waiting:
            waiting[node] = 0
            stack.append(node)
    while stack:
        for e in stack.pop().edges:
            if e is not None:
                n = e[0]
                if n in waiting:
                    waiting[n] += 1
                else:
                    waiting[n] = 1
                    stack.append(n)
    # pending[node][i] = [gradient of output i, whether it may be kept or changed without a copy]
    pending: dict[Node, list] = {}
    for (node, i), g in zip(starts, grads):
        _add(pending, node, i, g, False)
    ready = [(-node.seq, node) for node, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    before = _mode.enabled
    _mode.enabled = False
    try:
        while ready:
            node = heapq.heappop(ready)[1]
            slots = pending.pop(node, None)
            if slots is not None:
                if node.hooks is not None:
                    _call_hooks(node, slots)
                if node.retain is not None:
                    _retain(node, slots)
                if only is not None and node in only:
                    for i, held in enumerate(slots):
                        if held is not None:
                            only[node][i] = held[0]
                if type(node) is _Accumulate:
                    if only is None:
                        node.accumulate(slots[0][0], slots[0][1])
                    continue
                _step(node, slots, pending)
                if not retain_graph and node._saved:
                    node._saved = None
                    node._watch = ()
            for e in node.edges:
                if e is not None:
                    n = e[0]
                    count = waiting[n] - 1
                    waiting[n] = count
                    if count == 0:
                        heapq.heappush(ready, (-n.seq, n))
    finally:
        _mode.enabled = before


def _add(pending: dict, node: Node, i: int, g: Any, fresh: bool) -> None:
    slots = pending.get(node)
    if slots is None:
        slots = pending[node] = [None] * node.outputs
    held = slots[i]
    if held is None:
        slots[i] = [g, fresh]
    elif held[1]:
        node.k.add_(held[0], g)
    else:
        slots[i] = [node.k.add(held[0], g), True]


def _step(node: Node, slots: list, pending: dict) -> None:
    """Runs one node's backward and hands the gradients on."""
    incoming = [None if s is None else s[0] for s in slots]
    results = node.backward(*incoming)
    if type(results) is not tuple:
        results = tuple(results) if isinstance(results, list) else (results,)
    edges = node.edges
    if len(results) != len(edges):
        raise RuntimeError(
            f"{node.name}.backward returned {len(results)} gradients for {len(edges)} inputs"
        )
    # An array that is also an incoming gradient, saved, a view, or returned twice belongs to somebody else too.
    taken = [id(a) for a in incoming]
    if node.fresh:
        taken += [id(a) for a in node._saved]
    for g, e in zip(results, edges):
        if e is None or g is None:
            continue
        fresh = node.fresh and id(g) not in taken and type(g.base) is not np.ndarray
        if fresh and len(results) > 1 and sum(1 for r in results if r is g) > 1:
            fresh = False
        _add(pending, e[0], e[1], g, fresh)


def _call_hooks(node: Any, slots: list) -> None:
    for i, fns in node.hooks.items():
        if slots[i] is None:
            continue
        for fn in list(fns.values()):
            replaced = fn(wrap(slots[i][0], node.k))
            if replaced is not None:
                if replaced.shape != slots[i][0].shape:
                    raise ValueError(
                        f"hook on a tensor: returned a gradient of shape {replaced.shape}, expected "
                        f"{slots[i][0].shape}"
                    )
                slots[i] = [replaced.data, False]
            else:
                slots[i][1] = False  # the hook may have kept it


def _retain(node: Any, slots: list) -> None:
    for i, ref in node.retain.items():
        t = ref()
        if t is not None and slots[i] is not None:
            g = slots[i][0]
            t._grad = (
                wrap(node.k.copy(g), node.k)
                if t._grad is None
                else wrap(node.k.add(t._grad.data, g), node.k)
            )


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool = False,
    allow_unused: bool = False,
) -> tuple:
    """Gradients of the sum of `outputs` with respect to `inputs`, without touching any `.grad`.

    Raises ValueError when an input does not require a gradient or is not part of the graph
    (unless allow_unused: then None).

    >>> import gradsmith as gs
    >>> x = gs.tensor([3.0], requires_grad=True)
    >>> gs.grad(x * x, x)[0].tolist()
    [6.0]
    """
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    ins = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    gs = (
        [None] * len(outs)
        if grad_outputs is None
        else ([grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs))
    )
    only: dict[Any, dict[int, Any]] = {}
    keys = []
    for t in ins:
        if not t._rg:
            raise ValueError(
                "grad: an input does not require a gradient. Set requires_grad=True on it"
            )
        key = _edge(t)
        keys.append(key)
        only.setdefault(key[0], {})
    _run([_edge(o) for o in outs], [_seed(o, g) for o, g in zip(outs, gs)], retain_graph, only)
    results = []
    for (node, i), t in zip(keys, ins):
        g = only[node].get(i)
        if g is None and not allow_unused:
            raise ValueError(
                "grad: an input was not used in the graph. Pass allow_unused=True to get None for it"
            )
        results.append(None if g is None else wrap(t._k.copy(g), t._k))
    return tuple(results)


def _seed(t: Tensor, gradient: Any) -> np.ndarray:
    """The array that the backward pass starts from at t."""
    if not t._rg:
        raise RuntimeError(
            "backward: this tensor does not require a gradient: no input of the computation has "
            "requires_grad=True, or it was computed under no_grad()"
        )
    if gradient is None:
        if t.data.size != 1:
            raise RuntimeError(
                f"backward: a gradient can be made implicitly only for a scalar, this tensor has shape {t.shape}. "
                "Reduce it (for instance .sum()) or pass backward(gradient)"
            )
        return np.ones(t.data.shape, t.data.dtype)
    g = gradient.data if isinstance(gradient, Tensor) else np.asarray(gradient, t.data.dtype)
    if g.shape != t.data.shape:
        raise ValueError(
            f"backward: gradient has shape {g.shape}, the tensor {t.shape}; they must be equal"
        )
    if g.dtype != t.data.dtype:
        raise TypeError(f"backward: gradient has dtype {g.dtype}, the tensor {t.data.dtype}")
    return g
