"""Averages of a network's weights: exponential (EMA) and stochastic weight averaging (SWA)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..core import recording
from ..core.arguments import number
from ..core.tensor import Tensor
from ..nn.module import Module
from .optimizer import INF, Slots

__all__ = ["EMA", "AveragedModel", "update_bn"]


def _module(owner: str, model: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"{owner}: the model must be a Module, got {type(model).__name__}")


class AveragedModel(Module):
    """A copy of `model` whose parameters are an average over the updates.

    By default the plain mean of SWA: w = w + (p - w) / (n + 1) at the n-th call of
    `update_parameters` (n from 0: the first call copies). decay in [0, 1): the exponential average
    w = decay w + (1 - decay) p instead.

    use_buffers: average float buffers (batch norm's running statistics) as well; otherwise they are
    copied from the model at each update. Plain SWA weights have no statistics of their own:
    call `update_bn` before using them.

    `module` is the averaged network, `n_averaged` the number of updates. ValueError for a decay outside
    [0, 1). (Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018)

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> net = nn.Linear(1, 1, bias=False); average = gs.optim.AveragedModel(net)
    >>> for value in (1.0, 2.0, 6.0):
    ...     with gs.no_grad():
    ...         _ = net.weight.copy_(gs.tensor([[value]]))
    ...     average.update_parameters(net)
    >>> average.module.weight.item()
    3.0
    """

    def __init__(self, model: Module, decay: float | None = None, use_buffers: bool = False):
        super().__init__()
        _module("AveragedModel", model)
        if decay is not None and not 0 <= number("AveragedModel", "decay", decay) < 1:
            raise ValueError(f"AveragedModel: decay is {decay}; it must be in [0, 1)")
        self.module = copy.deepcopy(model)
        self.module.requires_grad_(False)
        self.decay, self.use_buffers = decay, use_buffers
        self.register_buffer("n_averaged", Tensor(np.array(0, np.int64)))
        self._slots = Slots(6)  # the scalars of an update, which a replay reads anew

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def share(self, n: int) -> float:
        """How much of the new parameters enters the average at the update after n others."""
        if n == 0:
            return 1.0
        return 1 / (n + 1) if self.decay is None else 1 - self.decay

    def update_parameters(self, model: Module) -> None:
        """Takes the parameters of `model` into the average. ValueError when its names or shapes differ."""
        _module("AveragedModel", model)
        mine: dict[str, Tensor] = dict(self.module.named_parameters())
        theirs: dict[str, Tensor] = dict(model.named_parameters())
        own, other = dict(self.module.named_buffers()), dict(model.named_buffers())
        for a, b, what in ((mine, theirs, "parameters"), (own, other, "buffers")):
            if a.keys() != b.keys():
                odd = sorted(a.keys() ^ b.keys())
                raise ValueError(f"AveragedModel: the model has other {what}: {', '.join(odd[:4])}")
            for name in a:
                if a[name].shape != b[name].shape or a[name].dtype != b[name].dtype:
                    raise ValueError(
                        f"AveragedModel: {name} is {b[name].shape} {b[name].dtype} in the model and "
                        f"{a[name].shape} {a[name].dtype} in the average"
                    )
        pairs = [(mine[name], theirs[name]) for name in mine]
        for name in own:
            if self.use_buffers and own[name].dtype.kind == "f":
                pairs.append((own[name], other[name]))
            else:
                own[name]._k.copy_(own[name].data, other[name].data)
                own[name]._ver[0] += 1
        sets: dict[int, list[np.ndarray]] = {}
        for average, current in pairs:
            sets.setdefault(average.dtype.num, []).extend((average.data, current.data))
            average._ver[0] += 1
        values = self.advance()
        for arrays in sets.values():
            pairs[0][0]._k.optimizer_update("average", self._slots.ids, values, arrays)
        recording.note("average", self)

    def advance(self, by: int = 1) -> tuple[float, ...]:
        """Counts an update; its scalars. A replay calls this before its kernels."""
        n = int(self.n_averaged.data)
        self.n_averaged.data[...] = n + by
        return (1.0, INF, 0.0, 0.0, 1.0, self.share(n))


class EMA(AveragedModel):
    """Exponential moving average of the weights: w = decay w + (1 - decay) p at each update.

    The first update copies. warmup: the decay is min(decay, (1 + n) / (10 + n)) at update n, so that the
    average forgets the random start. Float buffers are averaged too; integer ones are copied.
    ValueError for a decay outside [0, 1).

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> net = nn.Linear(1, 1, bias=False); ema = gs.optim.EMA(net, decay=0.75)
    >>> for value in (4.0, 8.0):
    ...     with gs.no_grad():
    ...         _ = net.weight.copy_(gs.tensor([[value]]))
    ...     ema.update_parameters(net)
    >>> ema.module.weight.item()
    5.0
    """

    def __init__(
        self, model: Module, decay: float = 0.999, use_buffers: bool = True, warmup: bool = False
    ):
        super().__init__(model, decay, use_buffers)
        self.warmup = warmup

    def share(self, n: int) -> float:
        if n == 0:
            return 1.0
        decay = self.decay or 0.0
        return 1 - (min(decay, (1 + n) / (10 + n)) if self.warmup else decay)


def update_bn(loader: Iterable, model: Module, forward: Callable | None = None) -> None:
    """Computes the running statistics of every batch norm anew from one pass over `loader`.

    Averaged weights (SWA) come without statistics that fit them. Every batch of the loader, or the
    first element of a tuple, goes through the model in training mode without gradients; the
    statistics become the plain mean over the batches. The modes of the modules are restored.

    forward: called with each batch in place of model(inputs). ValueError when the loader gives no batch.
    (Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018)

    >>> import gradsmith as gs
    >>> norm = gs.nn.BatchNorm1d(1)
    >>> gs.optim.update_bn([gs.tensor([[0.0], [2.0]]), gs.tensor([[4.0], [6.0]])], norm)
    >>> norm.running_mean.tolist()
    [3.0]
    """
    from ..core.autograd import no_grad

    norms = [
        m
        for m in model.modules()
        if hasattr(m, "running_mean") and m.running_mean is not None and hasattr(m, "momentum")
    ]
    if not norms:
        return
    modes = [(m, m.training) for m in model.modules()]
    momenta = [m.momentum for m in norms]
    seen = 0
    try:
        model.train()
        for m in norms:
            m.running_mean.data.fill(0)
            m.running_var.data.fill(1)
            if getattr(m, "num_batches_tracked", None) is not None:
                m.num_batches_tracked.data.fill(0)
        with no_grad():
            for batch in loader:
                for m in norms:
                    m.momentum = 1 / (seen + 1)  # the plain mean so far
                if forward is not None:
                    forward(batch)
                else:
                    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
                    model(inputs if isinstance(inputs, Tensor) else Tensor(inputs))
                seen += 1
    finally:
        for m, momentum in zip(norms, momenta):
            m.momentum = momentum
        for m, mode in modes:
            m.training = mode
    if seen == 0:
        raise ValueError("update_bn: the loader gave no batch; the statistics are reset now")
