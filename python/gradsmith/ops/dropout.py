"""Dropout: the mask is a function of (seed, op counter, element), drawn again in backward, never stored."""

from __future__ import annotations

import math
from typing import Any

from ..core.autograd import Node, apply, apply_
from ..core.random import next_counter
from ..core.tensor import Tensor, as_tensor
from ._arguments import number

__all__ = [
    "alpha_dropout",
    "dropout",
    "dropout1d",
    "dropout2d",
    "feature_alpha_dropout",
]

_ALPHA = -1.7580993408473766  # -scale * alpha of SELU: its limit at -inf


class DropoutBackward(Node):
    """dx = factor * dy where the element was kept, else 0."""

    __slots__ = ("draw", "factor", "spatial")
    draw: tuple  # p, seed, counter
    factor: float
    spatial: int

    def backward(self, grad: Any) -> tuple:
        return (self.k.dropout(grad, *self.draw, self.factor, 0.0, 0.0, self.spatial),)


def _check(p: float, name: str) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: p must lie in [0, 1], got {p}")


def _drop(
    input: Tensor, p: float, abc: tuple[float, float, float], spatial: int, inplace: bool, name: str
) -> Tensor:
    k = input._k
    draw = (p, *next_counter())
    a, b, c = abc
    if inplace:
        return apply_(
            DropoutBackward, input, lambda: k.dropout_(input.data, *draw, a, b, c, spatial), (input,),
            name=name, draw=draw, factor=a, spatial=spatial,
        )  # fmt: skip
    y = k.dropout(input.data, *draw, a, b, c, spatial)
    return apply(DropoutBackward, k, y, (input,), draw=draw, factor=a, spatial=spatial)


def _plain(
    input: Tensor, p: float, training: bool, inplace: bool, axes: tuple[int, ...], name: str
) -> Tensor:
    if type(p) is not float:
        p = number(name, "p", p)
    if not 0.0 <= p <= 1.0:
        _check(p, name)
    if not isinstance(input, Tensor):
        input = as_tensor(input, op=name)
    if axes and input.ndim not in axes:
        raise ValueError(
            f"{name}: input has shape {input.shape}; expected {axes[0]} axes, or {axes[1]} with a batch, channels last"
        )
    if p == 0.0 or not training:
        return input
    scale = 0.0 if p == 1.0 else 1.0 / (1.0 - p)
    return _drop(input, p, (scale, 0.0, 0.0), axes[0] - 1 if axes else 0, inplace, name)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """y = x / (1 - p) with probability 1 - p, else 0, for each element; x itself when not training.

    input: any shape, float. The draw depends on `gs.manual_seed` and the count of draws only, not on
    threads. ValueError when p lies outside [0, 1].
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, 2014.

    >>> import gradsmith as gs
    >>> y = gs.dropout(gs.ones(1000), 0.5)
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """
    if type(p) is not float:
        p = number("dropout", "p", p)
    if training and not inplace and 0.0 < p < 1.0 and isinstance(input, Tensor):
        k = input._k
        seed, counter = next_counter()
        scale = 1.0 / (1.0 - p)
        y = k.dropout(input.data, p, seed, counter, scale, 0.0, 0.0, 0)
        return apply(
            DropoutBackward, k, y, (input,), draw=(p, seed, counter), factor=scale, spatial=0
        )
    return _plain(input, p, training, inplace, (), "dropout")


def dropout1d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Dropout of whole channels of sequences (N, T, C) or (T, C): one draw for each (n, c).

    ValueError for other ranks, or p outside [0, 1]. Tompson et al., 2015.

    >>> import gradsmith as gs
    >>> gs.dropout1d(gs.ones(2, 3, 4), 0.5, training=False).shape
    (2, 3, 4)
    """
    return _plain(input, p, training, inplace, (2, 3), "dropout1d")


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Dropout of whole channels of images (N, H, W, C) or (H, W, C): one draw for each (n, c).

    ValueError for other ranks, or p outside [0, 1]. Tompson et al., 2015.

    >>> import gradsmith as gs
    >>> gs.dropout2d(gs.ones(2, 3, 3, 4), 1.0).numpy().max().item()
    0.0
    """
    return _plain(input, p, training, inplace, (3, 4), "dropout2d")


def _alpha(
    input: Tensor, p: float, training: bool, inplace: bool, channels: bool, name: str
) -> Tensor:
    if type(p) is not float:
        p = number(name, "p", p)
    if not 0.0 <= p <= 1.0:
        _check(p, name)
    if not isinstance(input, Tensor):
        input = as_tensor(input, op=name)
    if channels and input.ndim < 2:
        raise ValueError(
            f"{name}: input has shape {input.shape}; expected at least (N, C), channels last"
        )
    if p == 0.0 or not training:
        return input
    spatial = input.ndim - 2 if channels else 0
    if p == 1.0:
        return _drop(input, p, (0.0, 0.0, 0.0), spatial, inplace, name)
    q = 1.0 - p
    a = 1.0 / math.sqrt(q + _ALPHA * _ALPHA * q * p)
    b = -a * p * _ALPHA
    return _drop(input, p, (a, b, a * _ALPHA + b), spatial, inplace, name)


def alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Dropout that keeps mean 0 and variance 1, for SELU: y = a x + b, or a * -1.7581 + b with probability p.

    a = (q + 1.7581^2 q p)^(-1/2), b = 1.7581 a p, q = 1 - p. p = 1 gives zeros.
    ValueError when p lies outside [0, 1]. Klambauer et al., 2017.

    >>> import gradsmith as gs
    >>> x = gs.ones(3)
    >>> gs.alpha_dropout(x, 0.5, training=False) is x
    True
    """
    return _alpha(input, p, training, inplace, False, "alpha_dropout")


def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """`alpha_dropout` of whole channels: input (N, ..., C), one draw for each (n, c).

    >>> import gradsmith as gs
    >>> gs.feature_alpha_dropout(gs.ones(2, 5, 3), 0.2, training=True).shape
    (2, 5, 3)
    """
    return _alpha(input, p, training, inplace, True, "feature_alpha_dropout")
