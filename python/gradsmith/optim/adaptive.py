"""Rates by element from past squared gradients: Adagrad, RMSprop, Adadelta."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.tensor import Tensor
from .optimizer import Optimizer, number, split

__all__ = ["Adadelta", "Adagrad", "RMSprop"]


class Adagrad(Optimizer):
    """s += g^2;  p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

    s starts at initial_accumulator_value. Keras adds its epsilon inside the root and starts at 0.1.
    (Duchi et al., "Adaptive subgradient methods", JMLR 2011)

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([1.0]); p.grad = gs.tensor([4.0])
    >>> gs.optim.Adagrad([p], lr=0.1).step(); round(p.item(), 4)
    0.9
    """

    rule = "adagrad"
    arrays = ("sum",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "maximize": maximize,
        }
        rest = split("Adagrad", defaults, options)
        super().__init__(params, defaults, **rest)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        number("Adagrad", "lr_decay", group["lr_decay"])
        number("Adagrad", "initial_accumulator_value", group["initial_accumulator_value"])

    def new_array(self, group: dict[str, Any], name: str, p: Tensor) -> np.ndarray:
        a = super().new_array(group, name, p)
        a.fill(group["initial_accumulator_value"])
        return a

    def scalars(self, group: dict[str, Any], numbers: dict[str, float]) -> tuple[float, ...]:
        t = numbers["step"] = numbers["step"] + 1
        return (group["lr"] / (1 + (t - 1) * group["lr_decay"]), group["eps"])


class RMSprop(Optimizer):
    """v = alpha v + (1 - alpha) g^2;  p -= lr g / (sqrt(v) + eps)

    centered: a = alpha a + (1 - alpha) g, and v - a^2 under the root. momentum > 0:
    b = momentum b + g / (sqrt(v) + eps), p -= lr b. Keras names alpha rho and takes 0.9.
    (Tieleman & Hinton, Coursera lecture 6.5, 2012; centered: Graves, arXiv:1308.0850)

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([1.0]); p.grad = gs.tensor([4.0])
    >>> gs.optim.RMSprop([p], lr=0.01).step(); round(p.item(), 4)
    0.9
    """

    arrays = ("square_avg", "grad_avg", "momentum_buffer")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        rest = split("RMSprop", defaults, options)
        super().__init__(params, defaults, **rest)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        number("RMSprop", "momentum", group["momentum"])
        number("RMSprop", "alpha", group["alpha"], high=1)

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        name, arrays = "rmsprop", ["square_avg"]
        if group["centered"]:
            name += "_centered"
            arrays.append("grad_avg")
        if group["momentum"] > 0:
            name += "_momentum"
            arrays.append("momentum_buffer")
        return name, tuple(arrays)

    def scalars(self, group: dict[str, Any], numbers: dict[str, float]) -> tuple[float, ...]:
        numbers["step"] += 1
        a = group["alpha"]
        return (group["lr"], a, 1 - a, group["eps"], group["momentum"])


class Adadelta(Optimizer):
    """v = rho v + (1 - rho) g^2;  d = sqrt(u + eps) / sqrt(v + eps) g;  u = rho u + (1 - rho) d^2;  p -= lr d

    (Zeiler, arXiv:1212.5701)

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([1.0]); p.grad = gs.tensor([4.0])
    >>> gs.optim.Adadelta([p]).step(); round(p.item(), 4)
    0.9968
    """

    rule = "adadelta"
    arrays = ("square_avg", "acc_delta")

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        rest = split("Adadelta", defaults, options)
        super().__init__(params, defaults, **rest)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        number("Adadelta", "rho", group["rho"], high=1)

    def scalars(self, group: dict[str, Any], numbers: dict[str, float]) -> tuple[float, ...]:
        numbers["step"] += 1
        return (group["lr"], group["rho"], 1 - group["rho"], group["eps"])
