"""Gradients against central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .autograd import grad, no_grad
from .tensor import Tensor, wrap

__all__ = ["gradcheck"]


def gradcheck(
    fn: Callable,
    inputs: Tensor | Sequence[Any],
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Compares the gradients of `fn(*inputs)` with central differences.

    df/dx_i ~ (f(x + eps e_i) - f(x - eps e_i)) / (2 eps), for every element of every float input that
    requires a gradient and every element of every float output. The inputs should be float64.
    Raises ValueError when no input requires a gradient or no output is a float Tensor, RuntimeError on a
    mismatch (or returns False with raise_exception=False).

    >>> import gradsmith as gs
    >>> x = gs.tensor([[0.5, -1.0]], dtype="float64", requires_grad=True)
    >>> gs.gradcheck(lambda x: x * x, x)
    True
    """
    args = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [t for t in args if isinstance(t, Tensor) and t._rg]
    if not checked:
        raise ValueError("gradcheck: no input requires a gradient. Set requires_grad=True on one")
    for t in checked:
        if t.data.dtype != np.float64:
            raise TypeError(
                f"gradcheck: inputs must be float64, got {t.data.dtype}; differences in float32 are noise"
            )

    def outputs() -> list[Tensor]:
        out = fn(*args)
        found = out if isinstance(out, (tuple, list)) else (out,)
        return [o for o in found if isinstance(o, Tensor) and o.data.dtype.kind == "f"]

    outs = outputs()
    if not outs:
        raise ValueError("gradcheck: fn returned no float Tensor, so there is no gradient to check")
    for o_index, o in enumerate(outs):
        n_out = o.data.size
        numeric = [np.zeros((n_out, t.data.size)) for t in checked]
        with no_grad():
            for t, table in zip(checked, numeric):
                base = np.array(t.data)
                work = base.copy()
                original = t.data
                try:
                    t.data = work
                    for i, at in enumerate(np.ndindex(base.shape)):
                        value = work[at]
                        work[at] = value + eps
                        plus = np.array(outputs()[o_index].data).reshape(-1)
                        work[at] = value - eps
                        minus = np.array(outputs()[o_index].data).reshape(-1)
                        work[at] = value
                        table[:, i] = (plus - minus) / (2 * eps)
                finally:
                    t.data = original
        analytic = [np.zeros((n_out, t.data.size)) for t in checked]
        for j in range(n_out):
            fresh = outputs()[o_index]
            if not fresh._rg:
                break
            seed = np.zeros(fresh.data.size)
            seed[j] = 1.0
            gs = grad(
                fresh, checked, wrap(seed.reshape(fresh.data.shape), fresh._k), allow_unused=True
            )
            for g, table in zip(gs, analytic):
                if g is not None:
                    table[j] = g.data.reshape(-1)
        for index, (a, n) in enumerate(zip(analytic, numeric)):
            bad = ~np.isclose(a, n, rtol=rtol, atol=atol, equal_nan=False)
            if bad.any():
                if not raise_exception:
                    return False
                j, i = np.argwhere(bad)[0]
                raise RuntimeError(
                    f"gradcheck: output {o_index} element {j}, input {index} element {i}: analytic {a[j, i]:.9g}, "
                    f"numeric {n[j, i]:.9g} ({int(bad.sum())} of {bad.size} elements differ)"
                )
    return True
