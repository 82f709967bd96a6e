"""Reverse-mode automatic differentiation: the graph's nodes, the backward pass, custom functions.

A forward op computes its arrays and, when some input needs a gradient, records a `Node`: the edges to
the nodes that made its inputs and the arrays that its backward needs. `backward()` walks the nodes from
the loss to the leaves, each node once, after all nodes that use its output. Sums of gradients are made
in an order fixed by the graph, so the bits do not change from run to run.

The recording of an op (`apply`) and the backward pass are in csrc/bindings/{autograd,engine}.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from .. import _cpu
from . import recording
from .tensor import Tensor, wrap

__all__ = [
    "Node",
    "apply",
    "apply_",
    "apply_pair",
    "apply_view",
    "apply_views",
    "backward",
    "bump",
    "enable_grad",
    "grad",
    "is_grad_enabled",
    "no_grad",
    "set_grad_enabled",
    "written",
]


# Recording, in C: apply(cls, k, out, inputs, saved=(), save_output=False, **attrs) -> Tensor(s).
apply: Callable[..., Any] = _cpu.apply
# the same for two Tensors that broadcast: apply_pair(cls, k, out, a, b, keep)
apply_pair: Callable[..., Tensor] = _cpu.apply_pair
# for an op whose output is a view of its only input: apply_view(cls, base, out, **attrs)
apply_view: Callable[..., Tensor] = _cpu.apply_view
# the same for several views, a tuple: apply_views(cls, base, outs, **attrs)
apply_views: Callable[..., Any] = _cpu.apply_views
is_grad_enabled: Callable[[], bool] = _cpu.is_grad_enabled
_set: Callable[[bool], bool] = _cpu._set_grad_enabled
# bump(*tensors): counts a change of their memory that was made outside apply_
bump: Callable[..., None] = _cpu.bump
_edge: Callable[[Tensor], tuple] = _cpu._edge
_record: Callable[..., Any] = _cpu._record
_wants: Callable[[tuple], tuple | None] = _cpu._wants
_keep: Callable[[Any, Tensor], None] = _cpu._keep
_changed: Callable[[Tensor], None] = _cpu._changed
_run: Callable[..., None] = _cpu._run


F = TypeVar("F", bound=Callable)


class _Switch:
    """Context manager and decorator: the recording of the graph in this thread."""

    def __init__(self, mode: bool):
        self.mode = bool(mode)
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(_set(self.mode))

    def __exit__(self, *exc: object) -> None:
        _set(self._before.pop())

    def __call__(self, fn: F) -> F:
        import functools
        import inspect

        mode = self.mode
        if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError(
                f"{type(self).__name__}: a coroutine runs after the call that makes it has ended; use "
                f"`with {type(self).__name__}(...):` inside, around what does not await"
            )
        if inspect.isgeneratorfunction(fn):
            # its body runs piece by piece, long after the call: the mode is set for each piece
            @functools.wraps(fn)
            def pieces(*args: Any, **kwargs: Any) -> Any:
                return (yield from _generate(mode, fn(*args, **kwargs)))

            return cast(F, pieces)

        @functools.wraps(fn)
        def inner(*args: Any, **kwargs: Any) -> Any:
            with _Switch(mode):
                return fn(*args, **kwargs)

        return cast(F, inner)


def _generate(mode: bool, generator: Any) -> Any:
    """The generator with each of its pieces run in `mode`."""
    resume, given = generator.send, None
    while True:
        try:
            with _Switch(mode):
                value = resume(given)
        except StopIteration as end:
            return end.value
        try:
            resume, given = generator.send, (yield value)
        except GeneratorExit:
            with _Switch(mode):
                generator.close()
            raise
        except BaseException as error:
            resume, given = generator.throw, error


class set_grad_enabled(_Switch):
    """Switches the recording of the graph on or off in this thread: from the call on, or for a `with`.

    >>> import gradsmith as gs
    >>> x = gs.ones(3, requires_grad=True)
    >>> with gs.set_grad_enabled(False):
    ...     y = x * 2
    >>> y.requires_grad, gs.is_grad_enabled()
    (False, True)
    """

    def __init__(self, mode: bool):
        super().__init__(mode)
        self._first: bool | None = _set(self.mode)

    def __enter__(self) -> None:
        super().__enter__()
        if self._first is not None:  # the call has switched already
            self._before[-1] = self._first
            self._first = None

    def __call__(self, fn: F) -> F:
        if self._first is not None:  # a decorator leaves the rest as it was
            _set(self._first)
            self._first = None
        return super().__call__(fn)


class no_grad(_Switch):
    """Context manager and decorator under which nothing is recorded in this thread: for evaluation and updates.

    >>> import gradsmith as gs
    >>> x = gs.ones(3, requires_grad=True)
    >>> with gs.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """

    def __new__(cls, fn: Callable | None = None) -> Any:
        new = super().__new__(cls)
        if fn is None:
            return new
        new.__init__()  # type: ignore[misc]
        return new(fn)  # a decorator without parentheses

    def __init__(self) -> None:
        super().__init__(False)


class enable_grad(_Switch):
    """Context manager and decorator that records again inside `no_grad`, in this thread.

    >>> import gradsmith as gs
    >>> x = gs.ones(3, requires_grad=True)
    >>> with gs.no_grad(), gs.enable_grad():
    ...     y = x * 2
    >>> y.requires_grad
    True
    """

    def __new__(cls, fn: Callable | None = None) -> Any:
        new = super().__new__(cls)
        if fn is None:
            return new
        new.__init__()  # type: ignore[misc]
        return new(fn)  # a decorator without parentheses

    def __init__(self) -> None:
        super().__init__(True)


class Node(_cpu.NodeBase):
    """One recorded op. Subclasses define `backward(self, *grads)`.

    `backward` gets one ndarray (or None) per output and returns a tuple with one ndarray (or None) per
    input. `self.saved` are the saved ndarrays (RuntimeError when one was changed in place since, or when
    a backward pass has freed them), `self.needs` says which inputs want a gradient, `self.k` is the
    kernel module of the device.
    """

    __slots__ = ()

    # Whether arrays that backward returns are new ones: then a leaf may keep them without a copy.
    fresh = True

    def backward(self, *grads: Any) -> tuple:
        raise NotImplementedError(f"{type(self).__name__}.backward")

    @property
    def name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        return f"<{self.name}>"


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
    before = box[0]
    box[0] = before + 1
    if needs is not None:
        if save_output:
            _keep(node, target)
        target._node = node
        target._idx = 0
        target._rg = True
        target._at = before + 1
        _changed(target)
    elif target._node is not None and target._at == before:
        target._at = before + 1
    return target


def written(x: Tensor) -> None:
    """What apply_ does after a change in place of which nothing is recorded."""
    box = x._ver
    before = box[0]
    box[0] = before + 1
    if x._node is not None and x._at == before:
        x._at = before + 1


def backward(
    roots: Sequence[Tensor], grads: Sequence[np.ndarray], retain_graph: bool = False
) -> None:
    """Adds to the `.grad` of every leaf the gradient of sum(root * grad)."""
    _run(list(roots), list(grads), retain_graph, None)


def _call_hooks(node: Any, grads: list) -> None:
    """Calls the hooks on a node's outputs; what they return replaces the gradient."""
    for i, fns in node.hooks.items():
        for fn in list(fns.values()):
            if grads[i] is None:
                break
            replaced = fn(wrap(grads[i], node.k))
            if replaced is not None:
                if not isinstance(replaced, Tensor):
                    raise TypeError(
                        f"hook on a tensor: returned a {type(replaced).__name__}, expected a Tensor or None"
                    )
                if replaced.shape != grads[i].shape:
                    raise ValueError(
                        f"hook on a tensor: returned a gradient of shape {replaced.shape}, expected "
                        f"{grads[i].shape}"
                    )
                grads[i] = replaced.data


def _retain(node: Any, grads: list) -> None:
    """Adds to the `.grad` of results that asked for it."""
    for i, ref in node.retain.items():
        t, g = ref(), grads[i]
        if t is not None and g is not None:
            k = node.k
            t._grad = wrap(k.copy(g) if t._grad is None else k.add(t._grad.data, g), k)


_cpu._set_watchers(_call_hooks, _retain)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = False,
    allow_unused: bool = False,
    *,
    create_graph: bool = False,
) -> tuple:
    """Gradients of the sum of `outputs` with respect to `inputs`, without touching any `.grad`.

    outputs, inputs: a Tensor or several. grad_outputs: a Tensor of the shape of each output that weighs its
    elements; may be left out for outputs of one element. retain_graph: keep what the graph saved, for another
    pass. Returns a tuple of one Tensor for each input.

    Raises ValueError when an input does not require a gradient or is not part of the graph
    (unless allow_unused: then None) and for create_graph=True (there are no gradients of gradients), TypeError
    for what is no Tensor, RuntimeError without a graph.

    >>> import gradsmith as gs
    >>> x = gs.tensor([3.0], requires_grad=True)
    >>> gs.grad(x * x, x)[0].tolist()
    [6.0]
    """
    _no_second("grad", create_graph)
    for name, given in (("outputs", outputs), ("inputs", inputs)):
        if not isinstance(given, (Tensor, Iterable)):
            raise TypeError(f"grad: {name} must be a Tensor or several, got {type(given).__name__}")
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    ins = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    gs = (
        [None] * len(outs)
        if grad_outputs is None
        else ([grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs))
    )
    for name, given in (("outputs", outs), ("inputs", ins)):
        for t in given:
            if not isinstance(t, Tensor):
                raise TypeError(f"grad: {name} must be Tensors, got {type(t).__name__}")
    if len(gs) != len(outs):
        raise ValueError(f"grad: {len(gs)} grad_outputs for {len(outs)} outputs; one each")
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
    _run(outs, [_seed(o, g) for o, g in zip(outs, gs)], bool(retain_graph), only)
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
        if t.data.dtype not in _ONES:
            raise TypeError(
                f"backward: only float tensors have gradients, this one is {t.data.dtype}"
            )
        if t.data.ndim == 0:
            one = t._k.copy(_ONES[t.data.dtype])
            return one if recording.thread is None else recording.constant(one)
        return np.ones(t.data.shape, t.data.dtype)
    g = gradient.data if isinstance(gradient, Tensor) else np.asarray(gradient, t.data.dtype)
    if g.shape != t.data.shape:
        raise ValueError(
            f"backward: gradient has shape {g.shape}, the tensor {t.shape}; they must be equal"
        )
    if g.dtype != t.data.dtype:
        raise TypeError(f"backward: gradient has dtype {g.dtype}, the tensor {t.data.dtype}")
    return g


_ONES = {np.dtype(t): np.ones((), t) for t in (np.float32, np.float64)}


def _no_second(op: str, create_graph: Any) -> None:
    if create_graph:
        raise ValueError(
            f"{op}: create_graph=True is not supported: gradients of gradients are not computed. Leave it out"
        )


def _backward(
    self: Tensor,
    gradient: Any = None,
    retain_graph: bool | None = False,
    create_graph: bool = False,
) -> None:
    """Adds to the `.grad` of every leaf the gradient of this tensor (of sum(self * gradient)).

    gradient: shape of self; may be left out for one element. retain_graph: keep what the graph
    saved, so that backward can run again. Raises RuntimeError without a graph, ValueError for create_graph=True
    (there are no gradients of gradients).
    """
    _no_second("backward", create_graph)
    _run([self], [_seed(self, gradient)], bool(retain_graph), None)


_backward.__name__ = "backward"
Tensor._method("backward", _backward)
