"""Custom differentiable functions: the class that users subclass."""

from __future__ import annotations

from typing import Any

import numpy as np

from .autograd import Node, _record, _wants, is_grad_enabled, no_grad
from .tensor import Tensor, wrap

__all__ = ["Context", "Function"]


class _FunctionNode(Node):
    fresh = False
    ctx: Any
    function: Any

    def backward(self, *grads: Any) -> tuple:
        ctx = self.ctx
        _ = self.saved  # checks versions
        if not ctx.materialize_grads:
            given = [None if g is None else wrap(g, self.k) for g in grads]
        else:
            given = [
                wrap(np.zeros(shape, dtype) if g is None else g, self.k)
                for g, (shape, dtype) in zip(grads, ctx._outputs)
            ]
        ctx._saved_arrays = self._saved
        results = self.function.backward(ctx, *given)
        if not isinstance(results, (tuple, list)):
            results = (results,)
        # Nones at the end stand for arguments that were left to their defaults
        while len(results) > ctx._nargs and results[-1] is None:
            results = results[:-1]
        if len(results) != ctx._nargs:
            raise RuntimeError(
                f"{self.function.__name__}.backward returned {len(results)} gradients; forward had {ctx._nargs} "
                "arguments. Return one per argument, None where there is none"
            )
        arrays: list[Any] = []
        for i, (shape, dtype) in zip(ctx._where, ctx._inputs):
            r = results[i]
            if r is None:
                arrays.append(None)
                continue
            a = r.data if isinstance(r, Tensor) else np.asarray(r)
            if a.shape != shape or a.dtype != dtype:
                raise RuntimeError(
                    f"{self.function.__name__}.backward returned a gradient of shape {a.shape} and dtype {a.dtype} "
                    f"for argument {i}; expected {shape} and {dtype}"
                )
            arrays.append(a)
        return tuple(arrays)


class Context:
    """What `Function.forward` leaves for `Function.backward`: any attribute, and saved tensors."""

    def __init__(self) -> None:
        self.materialize_grads = True
        self.needs_input_grad: tuple = ()
        self._to_save: tuple = ()
        self._constant: tuple = ()
        self._saved_arrays: tuple = ()
        self._k: Any = None
        self._nargs = 0
        self._where: list[int] = []
        self._inputs: list = []
        self._outputs: list = []

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Saves tensors for `backward`; a later in-place change of one is an error there."""
        self._to_save = tensors

    @property
    def saved_tensors(self) -> tuple:
        """The tensors saved, as plain tensors without history."""
        return tuple(None if a is None else wrap(a, self._k) for a in self._saved_arrays)

    def mark_non_differentiable(self, *outputs: Tensor) -> None:
        """Called in `forward`: these outputs want no gradient; `backward` gets zeros for them."""
        self._constant = outputs

    def set_materialize_grads(self, value: bool) -> None:
        """With False, `backward` gets None instead of zeros for outputs that were not used."""
        self.materialize_grads = bool(value)


class Function:
    """Base class of custom differentiable functions.

    Subclass it with two static methods and call it through `apply`:
    `forward(ctx, *args)` computes the outputs from Tensors and other arguments (nothing is recorded
    inside) and leaves what the gradient needs by `ctx.save_for_backward(*tensors)` or attributes of
    ctx; `backward(ctx, *grads)` gets one Tensor per output and returns one Tensor (or None) per argument
    of forward. `ctx.needs_input_grad[i]` says which arguments want a gradient.

    >>> import gradsmith as gs
    >>> class Cube(gs.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         ctx.save_for_backward(x)
    ...         return x * x * x
    ...     @staticmethod
    ...     def backward(ctx, grad):
    ...         (x,) = ctx.saved_tensors
    ...         return grad * x * x * 3.0
    >>> x = gs.tensor([2.0], requires_grad=True)
    >>> Cube.apply(x).backward()
    >>> x.grad.tolist()
    [12.0]
    """

    _node_class: Any  # the class of the nodes that a subclass records

    @staticmethod
    def forward(ctx: Context, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("subclasses of Function define forward(ctx, ...)")

    @staticmethod
    def backward(ctx: Context, *grads: Any) -> Any:
        raise NotImplementedError("subclasses of Function define backward(ctx, *grads)")

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Runs forward and records the function.

        Tensors that want a gradient are positional arguments; one given by keyword is a TypeError.
        """
        for name, value in kwargs.items():
            if isinstance(value, Tensor) and value._rg and is_grad_enabled():
                raise TypeError(
                    f"{cls.__name__}.apply: {name} requires a gradient, and gradients flow to "
                    f"positional arguments only. Pass it without its name, or {name}.detach()"
                )
        ctx = Context()
        where = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        tensors = tuple(args[i] for i in where)
        needs = _wants(tensors)
        ctx.needs_input_grad = tuple(
            isinstance(a, Tensor) and a._rg and needs is not None for a in args
        )
        with no_grad():
            outs = cls.forward(ctx, *args, **kwargs)
        single = isinstance(outs, Tensor)
        results = tuple(outs) if isinstance(outs, (tuple, list)) else (outs,)
        for r in results:
            if not isinstance(r, Tensor):
                raise TypeError(
                    f"{cls.__name__}.forward must return Tensors, got {type(r).__name__}"
                )
        if needs is None:
            return outs
        k = tensors[0]._k
        ctx._k = k
        ctx._nargs = len(args)
        ctx._where = where
        ctx._inputs = [(t.data.shape, t.data.dtype) for t in tensors]
        kind = cls.__dict__.get("_node_class")  # of a name that errors can tell
        if kind is None:
            kind = cls._node_class = type(f"{cls.__name__}Backward", (_FunctionNode,), {})
        node = _record(
            kind,
            k,
            tensors,
            needs,
            [s for s in ctx._to_save],
            {"ctx": ctx, "function": cls},
        )
        node.outputs = len(results)
        wrapped = []
        for i, r in enumerate(results):
            t = wrap(r.data, k)
            # An output that is an input, or a view of one, shares its versions.
            shared = next((s for s in tensors if np.may_share_memory(s.data, r.data)), None)
            if shared is not None:
                t._ver = shared._ver
                t._view = True
            elif r._ver[0] == 0:
                t._ver = r._ver
            t._at = t._ver[0]
            if t.data.dtype.kind == "f" and not any(r is c for c in ctx._constant):
                t._rg = True
                t._node = node
                t._idx = i
            wrapped.append(t)
        ctx._outputs = [(t.data.shape, t.data.dtype) for t in wrapped]
        return wrapped[0] if single else tuple(wrapped)
