"""The Adam family: Adam, AdamW, NAdam, Adamax, RAdam.

All keep m = beta1 m + (1 - beta1) g, and all but Adamax v = beta2 v + (1 - beta2) g^2; t counts the
steps from 1. Bias corrections are computed in double. eps is added outside the root, as in PyTorch;
Keras' Adam scales it by sqrt(1 - beta2^t) ("epsilon hat").
"""

from __future__ import annotations

from typing import Any

from .. import _cpu
from .optimizer import Optimizer, number, split

__all__ = ["Adam", "AdamW", "Adamax", "NAdam", "RAdam"]


class Adam(Optimizer):
    """p -= lr mh / (sqrt(vh) + eps),  mh = m / (1 - beta1^t),  vh = v / (1 - beta2^t)

    weight_decay enters the gradient (L2); with decoupled_weight_decay it shrinks p itself by
    1 - lr weight_decay. amsgrad: the largest v so far in place of v.
    (Kingma & Ba, arXiv:1412.6980; amsgrad: Reddi et al., ICLR 2018)

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([1.0]); p.grad = gs.tensor([4.0])
    >>> gs.optim.Adam([p], lr=0.1).step(); round(p.item(), 4)
    0.9
    """

    arrays = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        rest = split(type(self).__name__, defaults, options)
        super().__init__(params, defaults, **rest)

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        if group["amsgrad"]:
            return "adam_amsgrad", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        return "adam", ("exp_avg", "exp_avg_sq")

    def scalars(self, group: dict[str, Any], numbers: dict[str, float]) -> tuple[float, ...]:
        t = numbers["step"] = numbers["step"] + 1
        b1, b2 = group["betas"]
        return _cpu.adam_scalars(t, group["lr"], b1, b2, group["eps"])


class AdamW(Adam):
    """Adam whose weight decay is decoupled: p *= 1 - lr weight_decay, then Adam's update.

    The decay uses the scheduled lr. (Loshchilov & Hutter, arXiv:1711.05101)

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([1.0]); p.grad = gs.tensor([4.0])
    >>> gs.optim.AdamW([p], lr=0.1, weight_decay=0.5).step(); round(p.item(), 4)
    0.85
    """

    arrays = Adam.arrays

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **options: Any,
    ):
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            **options,
        )

    def decoupled(self, group: dict[str, Any]) -> bool:
        return True


class NAdam(Optimizer):
    """Adam with Nesterov's momentum: p -= lr (mu_{t+1} m / (1 - M mu_{t+1}) + (1 - mu_t) g / (1 - M)) / (sqrt(vh) + eps)

    mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2), M = mu_1 ... mu_t. Keras' Nadam has
    momentum_decay = 1 and is a different algorithm in effect.
    (Dozat, "Incorporating Nesterov momentum into Adam", 2016)

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([1.0]); p.grad = gs.tensor([4.0])
    >>> gs.optim.NAdam([p], lr=0.1).step(); round(p.item(), 3)
    0.894
    """

    rule = "nadam"
    arrays = ("exp_avg", "exp_avg_sq")
    numbers = {"step": 0, "mu_product": 1.0}  # noqa: RUF012

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        rest = split("NAdam", defaults, options)
        super().__init__(params, defaults, **rest)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        number("NAdam", "momentum_decay", group["momentum_decay"])

    def scalars(self, group: dict[str, Any], numbers: dict[str, float]) -> tuple[float, ...]:
        t = numbers["step"] = numbers["step"] + 1
        b1, b2 = group["betas"]
        values = _cpu.nadam_scalars(
            t, group["lr"], b1, b2, group["momentum_decay"], group["eps"], numbers["mu_product"]
        )
        numbers["mu_product"] = values[7]
        return values[:7]


class Adamax(Optimizer):
    """u = max(beta2 u, |g| + eps);  p -= lr / (1 - beta1^t) m / u

    Adam's variant for the infinity norm. (Kingma & Ba, arXiv:1412.6980, section 7)

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([1.0]); p.grad = gs.tensor([4.0])
    >>> gs.optim.Adamax([p], lr=0.1).step(); round(p.item(), 4)
    0.9
    """

    rule = "adamax"
    arrays = ("exp_avg", "exp_inf")

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        rest = split("Adamax", defaults, options)
        super().__init__(params, defaults, **rest)

    def scalars(self, group: dict[str, Any], numbers: dict[str, float]) -> tuple[float, ...]:
        t = numbers["step"] = numbers["step"] + 1
        b1, b2 = group["betas"]
        return (group["lr"] / (1 - b1**t), b1, 1 - b1, b2, group["eps"])


class RAdam(Optimizer):
    """Adam that waits until the variance of its rate is known.

    rho_inf = 2 / (1 - beta2) - 1;  rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t)
    rho_t > 5:  p -= lr r_t mh sqrt(1 - beta2^t) / (sqrt(v) + eps),
                r_t = sqrt((rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t))
    otherwise:  p -= lr mh   (the first 5 steps with the default beta2)

    (Liu et al., "On the variance of the adaptive learning rate and beyond", arXiv:1908.03265)

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([1.0]); p.grad = gs.tensor([4.0])
    >>> gs.optim.RAdam([p], lr=0.1).step(); round(p.item(), 4)
    0.6
    """

    rule = "radam"
    arrays = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        rest = split("RAdam", defaults, options)
        super().__init__(params, defaults, **rest)

    def scalars(self, group: dict[str, Any], numbers: dict[str, float]) -> tuple[float, ...]:
        t = numbers["step"] = numbers["step"] + 1
        b1, b2 = group["betas"]
        return _cpu.radam_scalars(t, group["lr"], b1, b2, group["eps"])
