"""Gradient descent: SGD with momentum and Nesterov's variant; averaged SGD."""

from __future__ import annotations

from typing import Any

from ..core import arguments
from ..core.tensor import Tensor
from .optimizer import Optimizer, number, split

__all__ = ["ASGD", "SGD"]


class SGD(Optimizer):
    """Gradient descent, with momentum.

    g = gradient + weight_decay p;  b = g at the first step, then momentum b + (1 - dampening) g
    p -= lr g          without momentum
    p -= lr b          with momentum
    p -= lr (g + momentum b)   with nesterov

    maximize: climbs instead. Further keywords (l1, max_grad_norm, ...): see `Optimizer`. Raises ValueError
    for a negative value, and for nesterov without momentum or with dampening.
    (Sutskever et al., "On the importance of initialization and momentum", ICML 2013)

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([1.0])
    >>> opt = gs.optim.SGD([p], lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     p.grad = gs.tensor([1.0]); opt.step()
    >>> round(p.item(), 4)
    0.71
    """

    arrays = ("momentum_buffer",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        rest = split("SGD", defaults, options)
        super().__init__(params, defaults, **rest)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        number("SGD", "momentum", group["momentum"])
        number("SGD", "dampening", group["dampening"], low=float("-inf"))
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("SGD: nesterov needs a momentum > 0 and dampening = 0.")

    def _take(self, p: Tensor, slots: dict[str, Any], where: str) -> dict[str, Any]:
        own = super()._take(p, slots, where)
        if "momentum_buffer" in own and "step" not in slots:
            own["step"] = 1  # PyTorch's state has no count; its first step is over
        return own

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        if group["momentum"] == 0:
            return "sgd", ()
        return "sgd_momentum", ("momentum_buffer",)

    def scalars(self, group: dict[str, Any], numbers: dict[str, float]) -> tuple[float, ...]:
        numbers["step"] += 1
        m = float(group["momentum"])
        if m == 0:
            return (group["lr"],)
        ahead = m if group["nesterov"] else 0.0
        if numbers["step"] == 1:  # the buffer is zero: b = g, without dampening
            return (group["lr"], 0.0, 1.0, ahead)
        return (group["lr"], m, 1.0 - group["dampening"], ahead)


class ASGD(Optimizer):
    """Averaged gradient descent; the average of the parameters is `state[p]["ax"]`.

    p = p (1 - lambd eta) - eta g;  ax += mu (p - ax)
    eta = lr / (1 + lambd lr t)^alpha;  mu = 1 / max(1, t - t0)

    (Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992)

    >>> import gradsmith as gs
    >>> p = gs.nn.Parameter([1.0]); p.grad = gs.tensor([1.0])
    >>> gs.optim.ASGD([p], lr=0.1).step(); round(p.item(), 5)
    0.89999
    """

    rule = "asgd"
    arrays = ("ax",)
    numbers = {"step": 0, "eta": 0.0, "mu": 1.0}  # noqa: RUF012

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        rest = split("ASGD", defaults, options)
        super().__init__(params, defaults, **rest)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        for name in ("lambd", "alpha", "t0"):
            arguments.number("ASGD", name, group[name])

    def scalars(self, group: dict[str, Any], numbers: dict[str, float]) -> tuple[float, ...]:
        lr, lambd = float(group["lr"]), float(group["lambd"])
        eta = lr if numbers["step"] == 0 else numbers["eta"]
        mu = numbers["mu"]
        t = numbers["step"] = numbers["step"] + 1
        numbers["eta"] = lr / (1 + lambd * lr * t) ** group["alpha"]
        numbers["mu"] = 1 / max(1, t - group["t0"])
        return (eta, 1 - lambd * eta, mu)
