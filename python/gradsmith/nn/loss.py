"""Loss modules over the functions of ops/loss.py; formulas, shapes and errors stand there."""

from __future__ import annotations

from ..core.tensor import Tensor
from ..ops import loss as F
from .module import Module

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MSELoss",
    "NLLLoss",
    "PoissonNLLLoss",
    "SmoothL1Loss",
]


class _Loss(Module):
    _more: tuple[str, ...] = ()  # reductions beside the usual ones

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = F._reduction(type(self).__name__, reduction, self._more)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class MSELoss(_Loss):
    """Mean of (input - target)^2. See `functional.mse_loss`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.MSELoss()(gs.tensor([1.0, 2.0]), gs.tensor([1.0, 4.0])).item()
    2.0
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, self.reduction)


class L1Loss(_Loss):
    """Mean of |input - target|. See `functional.l1_loss`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.L1Loss()(gs.tensor([1.0, 2.0]), gs.tensor([1.0, 4.0])).item()
    1.0
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, self.reduction)


class SmoothL1Loss(_Loss):
    """d^2 / (2 beta) where d = |input - target| is below beta, d - beta / 2 above. See `functional.smooth_l1_loss`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.SmoothL1Loss("none")(gs.tensor([0.5, 3.0]), gs.zeros(2)).tolist()
    [0.125, 2.5]
    """

    def __init__(self, reduction: str = "mean", beta: float = 1.0):
        super().__init__(reduction)
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, self.reduction, self.beta)


class HuberLoss(_Loss):
    """d^2 / 2 where d = |input - target| is below delta, delta (d - delta / 2) above. See `functional.huber_loss`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.HuberLoss("none", delta=2.0)(gs.tensor([0.5, 3.0]), gs.zeros(2)).tolist()
    [0.125, 4.0]
    """

    def __init__(self, reduction: str = "mean", delta: float = 1.0):
        super().__init__(reduction)
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, self.reduction, self.delta)


class BCELoss(_Loss):
    """Binary cross-entropy of probabilities. See `functional.binary_cross_entropy`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> round(nn.BCELoss()(gs.tensor([0.5]), gs.tensor([1.0])).item(), 4)
    0.6931
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean"):
        super().__init__(reduction)
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(input, target, self.weight, self.reduction)


class BCEWithLogitsLoss(_Loss):
    """Binary cross-entropy of logits. See `functional.binary_cross_entropy_with_logits`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> round(nn.BCEWithLogitsLoss()(gs.tensor([0.0]), gs.tensor([1.0])).item(), 4)
    0.6931
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ):
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input, target, self.weight, self.reduction, self.pos_weight
        )


class KLDivLoss(_Loss):
    """Kullback-Leibler divergence from log-probabilities. See `functional.kl_div`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> p, q = gs.tensor([[0.5, 0.5]]), gs.tensor([[0.25, 0.75]])
    >>> round(nn.KLDivLoss("batchmean")(q.log(), p).item(), 4)
    0.1438
    """

    _more = ("batchmean",)

    def __init__(self, reduction: str = "mean", log_target: bool = False):
        super().__init__(reduction)
        self.log_target = log_target

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(input, target, self.reduction, self.log_target)


class PoissonNLLLoss(_Loss):
    """Negative log likelihood of Poisson counts. See `functional.poisson_nll_loss`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.PoissonNLLLoss()(gs.tensor([0.0]), gs.tensor([3.0])).item()
    1.0
    """

    def __init__(
        self,
        log_input: bool = True,
        full: bool = False,
        eps: float = 1e-8,
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        self.log_input, self.full, self.eps = log_input, full, eps

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.poisson_nll_loss(
            input, target, self.log_input, self.full, self.eps, self.reduction
        )


class NLLLoss(_Loss):
    """Negative log likelihood of class indices, the class axis last. See `functional.nll_loss`.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.NLLLoss()(gs.tensor([[-1.0, -3.0], [-2.0, -4.0]]), gs.tensor([0, 1])).item()
    2.5
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(input, target, self.weight, self.ignore_index, self.reduction)
