"""The training loop, to be read from top to bottom.

One update, in this order: the batches of the window (``accumulate`` of them) are fetched; for each
a forward pass in training mode, the loss, and the backward pass with the batch's share of the
window's samples, so that the sum is the gradient of the mean over all of them; the gradients are
clipped; the optimizer steps with the rate of ``scheduler.lr_at(step)``; the scheduler steps. All
that a resumed run needs is marked at that point, and only then do callbacks see the step.

The plain loop does the same, and stays a first-class way to train:

    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(gs.tensor(x)), gs.tensor(y))
        loss.backward()
        optimizer.step()
        scheduler.step()
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..core import random
from ..core.autocast import autocast, checked_precision
from ..core.autograd import no_grad
from ..core.creation import empty_like
from ..core.tensor import Tensor
from ..optim.lr_scheduler import ReduceLROnPlateau
from .callbacks import Callback, overridden
from .feed import (
    Batch,
    Progress,
    apart,
    batches,
    flat,
    holds_arrays,
    is_array,
    loss_of,
    source_of,
    tensor_of,
)
from .history import History
from .metrics import Metric, get_all
from .state import check_length, checked, numbered, resume_path, snapshot

__all__ = ["Trainer"]


class Trainer:
    """Fit, evaluate and predict with a model.

    Args:
        model: a ``gs.nn.Module`` called with the inputs of a batch.
        loss: ``f(prediction, target) -> scalar Tensor``, the mean over the samples: a function of
            ``gs.nn.functional``, a loss module, or a name ("cross_entropy", "mse", "l1", "huber",
            "smooth_l1", "bce", "bce_with_logits", "nll", or any name in ``gs.nn.functional``).
        optimizer: an optimizer over the model's parameters.
        scheduler: a schedule of ``optim.lr_scheduler``; stepped once per optimizer update
            (``ReduceLROnPlateau`` once per epoch with the validation loss, or the training loss
            where there is none; with ``mode="max"`` with the first metric instead).
        metrics: names ("accuracy", "top5", ...), metrics of ``gs.train.metrics``, or functions
            ``f(y, pred)``.
        callbacks: see ``gs.train.callbacks``.
        device: where the model is put.
        capture: record updates, evaluation and prediction kernel by kernel and replay them
            (``gs.capture``), to the same bits; what cannot be captured runs eagerly, with one
            warning that says why.
        precision: "float32", or "bfloat16": the model and the loss run under ``gs.autocast`` in fit,
            evaluate and predict. Parameters, optimizer states and checkpoints stay float32, so a run may
            be resumed in either precision.

    Raises:
        TypeError: something else in the place of the model, the optimizer, the scheduler, a metric
            or a callback.
        ValueError: an unknown loss, metric or precision; an optimizer without a parameter of the
            model; a scheduler of another optimizer.

    >>> import numpy as np, gradsmith as gs
    >>> model = gs.nn.Sequential(gs.nn.Linear(2, 16), gs.nn.Tanh(), gs.nn.Linear(16, 2))
    >>> x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    >>> y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    >>> optimizer = gs.optim.Adam(model.parameters(), lr=0.03)
    >>> trainer = gs.train.Trainer(model, "cross_entropy", optimizer, metrics=["accuracy"])
    >>> history = trainer.fit((x, y), epochs=30, progress=False)
    >>> trainer.evaluate((x, y))["accuracy"] > 0.9
    True
    """

    def __init__(
        self,
        model: Any,
        loss: str | Callable[..., Tensor],
        optimizer: Any,
        scheduler: Any = None,
        metrics: Any = (),
        callbacks: Callback | Iterable[Callback] = (),
        device: str = "cpu",
        capture: bool = True,
        precision: str = "float32",
    ) -> None:
        for name, part in (("model", model), ("loss", loss)):
            if isinstance(part, type):
                raise TypeError(
                    f"Trainer: {name} must be an object, not the class {part.__name__}; write "
                    f"{part.__name__}(...)."
                )
        if not hasattr(model, "parameters") or not callable(model):
            raise TypeError(f"Trainer: model must be a Module, not {type(model).__name__}.")
        if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "step"):
            raise TypeError(f"Trainer: optimizer must be an optimizer, not {optimizer!r}.")
        if scheduler is not None and not hasattr(scheduler, "optimizer"):
            raise TypeError(
                f"Trainer: scheduler must be a schedule of gs.optim.lr_scheduler, not {scheduler!r}."
            )
        if scheduler is not None and scheduler.optimizer is not optimizer:
            raise ValueError("Trainer: the scheduler belongs to another optimizer.")
        if isinstance(callbacks, Callback):
            callbacks = (callbacks,)
        elif not isinstance(callbacks, Iterable):
            raise TypeError(f"Trainer: callbacks must be Callbacks, not {callbacks!r}.")
        self.model = model.to(device=device)
        self.loss_function = loss_of(loss)
        owners = [o for o in (model, loss) if hasattr(o, "parameters")]
        known = {id(p) for owner in owners for p in owner.parameters()}
        updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if known and not known & updated:
            raise ValueError(
                "Trainer: none of the optimizer's parameters belongs to the model. Build the optimizer from "
                "this model's parameters()."
            )
        self.optimizer, self.scheduler, self.device = optimizer, scheduler, device
        self.metrics: list[Metric] = get_all(metrics)
        self.callbacks = sorted(callbacks, key=lambda c: getattr(c, "order", 0))
        for c in self.callbacks:
            if not isinstance(c, Callback):
                raise TypeError(f"Trainer: {c!r} is not a Callback; subclass gs.train.Callback.")
        self._eval_metrics: list[Metric] = copy.deepcopy(self.metrics)
        self.history = History()
        self.config: dict[str, Any] = {}  # anything JSON-like that should travel with checkpoints
        checked_precision("Trainer", "precision", precision)
        self.precision = precision
        self.capture = bool(capture)
        self._captured: dict[tuple[str, bool], Any] = {}  # what it does, predictions kept
        self.epoch = self.step = 0  # finished epochs, optimizer updates
        self.logs: dict[str, Any] = {}
        self.loss = math.nan  # mean loss of the last update
        self.lr = float(optimizer.param_groups[0]["lr"])
        self.validation: Any = None
        self.resumed = self.failed = False
        self.stop_reason: str | None = None
        self.guard: Callable[[Trainer, float], None] | None = None
        self._stepping = False
        self._first_epoch = 0
        self._sums = _no_sums()
        self._pending: dict[str, Any] | None = None  # the loader's state in a checkpoint, until fit
        self._source: Any = None
        self._marked: dict[str, Any] = {}
        self._totals: list[tuple[Any, Tensor]] = []  # parameters and their sums in a window

    # Training ----------------------------------------------------------------------------------

    def fit(
        self,
        train: Any,
        validation: Any = None,
        epochs: int = 1,
        *,
        batch_size: int = 32,
        accumulate: int = 1,
        max_grad_norm: float | None = None,
        resume: str | os.PathLike[str] | bool | None = None,
        progress: bool | None = None,
    ) -> History:
        """Train for ``epochs`` epochs and return the history.

        Args:
            train: a ``gs.data.Loader``, a tuple of arrays ``(x, y)`` or a dataset (shuffled, in
                batches of ``batch_size``), or an iterable of batches ``(x, y)`` that can be gone
                through once per epoch. ``(x1, x2, y)`` calls ``model(x1, x2)``.
            validation: the same, evaluated after each epoch; not shuffled.
            epochs: epochs to train in this call. A resumed call finishes the run that was begun,
                so the same line of code goes on to the same end.
            batch_size: for arrays and datasets.
            accumulate: batches per optimizer update. The update equals that of one large batch,
                in a short last window too.
            max_grad_norm: clip the global L2 norm of the optimizer's gradients to this.
            resume: a checkpoint, or the folder of a ``Checkpoint`` callback; True goes on from
                that callback's last file where there is one and starts anew where there is none.
            progress: True or False; None shows a bar on a terminal and lines elsewhere.

        Ctrl-C finishes the update, saves what the callbacks save and returns the history; a second
        Ctrl-C does not wait for the update. Raises ValueError for empty or mismatched data.
        """
        for name, value, least in (("epochs", epochs, 0), ("accumulate", accumulate, 1)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"fit: {name} must be a whole number >= {least}, not {value!r}.")
        if max_grad_norm is not None and not (
            isinstance(max_grad_norm, (int, float, np.number)) and max_grad_norm > 0
        ):
            raise ValueError(f"fit: max_grad_norm must be positive, not {max_grad_norm!r}.")
        source = source_of("fit: train", train, batch_size, shuffle=True, epoch=self.epoch)
        self.validation = (
            None if validation is None else source_of("fit: validation", validation, 256)
        )
        path = resume_path(resume, self.callbacks)
        self.resumed = path is not None
        if path is not None:
            self.load(path)
            if self._marked.get("accumulate", accumulate) != accumulate and self._sums["batches"]:
                raise ValueError(
                    f"fit: the checkpoint was made within an epoch with accumulate="
                    f"{self._marked['accumulate']}; go on with the same."
                )
        else:
            self._first_epoch, self._sums, self._pending = self.epoch, _no_sums(), None
        self._source = source
        if self._pending is not None and hasattr(source, "load_state_dict"):
            source.load_state_dict(self._pending)
        end = self._first_epoch + int(epochs)
        check_length(self, source, end, accumulate)
        self.stop_reason, self.failed, self._stepping = None, False, False
        self._mark(accumulate=int(accumulate))
        modes = _modes(self.model)
        if not self.model.training:
            self.model.train()
        bar = Progress(progress, end)
        try:
            with self._finishing_on_ctrl_c():
                self._call("on_fit_start")
                while self.epoch < end and self.stop_reason is None:
                    self._epoch(source, int(accumulate), max_grad_norm, bar)
        except KeyboardInterrupt:
            self.failed = self._stepping  # half an update is no state to save
            self.stop("interrupted")
        except BaseException:
            self.failed = True
            raise
        finally:
            bar.close(self.stop_reason)
            _set_modes(modes)
            self._end()
        return self.history

    def _epoch(self, source: Any, accumulate: int, max_norm: float | None, bar: Progress) -> None:
        sums = self._sums
        if not sums["batches"]:
            self.logs = {}
            for metric in self.metrics:
                metric.reset()
        self._call("on_epoch_start")
        after_step = overridden(self.callbacks, "on_step_end")
        bar.start(self.epoch, source, sums["batches"])
        # A loader goes on where its state says; a plain iterable is passed over up to there.
        skip = 0 if hasattr(source, "load_state_dict") else sums["batches"]
        stream = batches("fit", source, self._dtype(), skip)
        started, before = time.perf_counter(), sums["seconds"]
        while self.stop_reason is None and (window := self._window(stream, source, accumulate)):
            if not self._update(window, max_norm):
                break
            sums["seconds"] = before + time.perf_counter() - started
            self._mark()
            bar.unit = "images" if window[0][0][0].ndim == 4 else "samples"
            bar.advance(len(window), self.loss)
            for hook in after_step:
                hook(self)
        else:
            if self.stop_reason is None or (self._left(source) == 0 and not next(stream, None)):
                self._finish_epoch(bar)

    def _left(self, source: Any) -> int | None:
        """Batches that the epoch still has; None where that is not known."""
        return len(source) - self._sums["batches"] if hasattr(source, "__len__") else None

    def _window(self, stream: Iterator[Batch], source: Any, accumulate: int) -> list[Batch]:
        # Not beyond the last batch: a loader that is asked for more goes on to its next epoch, and
        # the checkpoint after this window would say so.
        left = self._left(source) or accumulate
        return list(itertools.islice(stream, max(1, min(accumulate, left))))

    def _step(self, max_norm: float | None) -> None:
        """The optimizer's step; ours clips in the pass that updates."""
        from ..optim import Optimizer, clip_grad_norm_

        optimizer = self.optimizer
        if max_norm is None:
            optimizer.step()
        elif isinstance(optimizer, Optimizer):
            before, optimizer.max_grad_norm = optimizer.max_grad_norm, max_norm
            try:
                optimizer.step()
            finally:
                optimizer.max_grad_norm = before
        else:
            clip_grad_norm_(self.model.parameters(), max_norm)
            optimizer.step()

    def _program(
        self, kind: str, keep: bool, make: Callable[..., Callable], *more: Any
    ) -> Callable:
        """The captured function of this kind; the function itself with ``capture=False``.

        Its arguments are tensors one by one, not in a tuple, which replays without Python.
        """
        step = self._captured.get((kind, keep))
        if (
            step is not None
            and self.capture
            and step.parts[0] is self.model
            and step.parts[1] is self.loss_function
            and step.parts[2] is self.optimizer
        ):
            return step
        fn = make(self.model, self.loss_function, keep, *more)
        if not self.capture:
            return fn
        from ..core.capture import Captured

        step = self._captured[kind, keep] = Captured(fn, fallback=True)
        step.name = f"Trainer's {kind}"
        step.parts = (self.model, self.loss_function, self.optimizer)
        step.siblings = self._captured.values()  # one warning for all of them
        return step

    def _replayed(self, batch: Batch, max_norm: float | None) -> bool:
        """The update on one batch through `gs.capture`."""
        inputs, target, n = batch
        keep = bool(self.metrics)
        optimizer = self.optimizer
        step = self._program("update", keep, _update_of, optimizer)
        self.lr = float(optimizer.param_groups[0]["lr"])
        before = optimizer.max_grad_norm
        if max_norm is not None:
            optimizer.max_grad_norm = max_norm
        self._stepping = True
        pred: Any = None
        try:
            if keep:
                loss, pred = step(*inputs, target)
            else:
                loss = step(*inputs, target)
        except Exception:  # not an interrupt, which may have hit half an update
            self._stepping = False
            raise
        finally:
            optimizer.max_grad_norm = before
        self._count(1, n, loss.item() * n, [(pred.data, target.data)] if keep else [()])
        return True

    def _windowed(self, window: list[Batch], max_norm: float | None) -> bool:
        """The update on several batches, or under a guard: `gs.capture` of its parts.

        Gradients are summed in arrays that stay where they are, so that the programs find them.
        """
        optimizer, keep = self.optimizer, bool(self.metrics)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if [id(p) for p, _ in self._totals] != [id(p) for p in held] or any(
            p.shape != t.shape or p.dtype != t.dtype for p, t in self._totals
        ):
            self._totals = [(p, empty_like(p)) for p in held]
            self._captured = {k: c for k, c in self._captured.items() if k[0][:3] != "win"}
        totals = self._totals
        first = self._program("window's first batch", keep, _first_of, optimizer, totals)
        more = self._program("window's next batch", keep, _next_of)
        total = sum(n for _, _, n in window)
        self.lr = float(optimizer.param_groups[0]["lr"])
        seen, summed = [], 0.0
        for i, (inputs, target, n) in enumerate(window):
            if i == 0:
                loss, pred, given = first(*inputs, target, n / total)
                for k in given:
                    totals[k][0].grad = totals[k][1]
            else:
                loss, pred = more(*inputs, target, n / total)
            value = loss.item()
            if self.guard is not None and not math.isfinite(value):
                optimizer.zero_grad()
                self.guard(self, value)
                return False
            summed += value * n
            seen.append((pred.data, target.data) if keep else ())
        step = self._program("window's update", False, _step_of, optimizer)
        before = optimizer.max_grad_norm
        if max_norm is not None:
            optimizer.max_grad_norm = max_norm
        self._stepping = True
        try:
            step()
        finally:
            optimizer.max_grad_norm = before
        self._count(len(window), total, summed, seen)
        return True

    def _update(self, window: list[Batch], max_norm: float | None) -> bool:
        """One optimizer step on the mean loss over all samples of the window."""
        with autocast(self.precision):
            return self._updated(window, max_norm)

    def _updated(self, window: list[Batch], max_norm: float | None) -> bool:
        if self.capture and _ours(self.optimizer):
            if len(window) == 1 and self.guard is None:
                return self._replayed(window[0], max_norm)
            return self._windowed(window, max_norm)
        total = sum(n for _, _, n in window)
        self.lr = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.zero_grad()
        seen, summed = [], 0.0
        for inputs, target, n in window:
            pred = _measured(self.model(*inputs), bool(self.metrics))
            loss = _scalar(self.loss_function(pred, target))
            value = loss.item()
            if self.guard is not None and not math.isfinite(value):
                self.optimizer.zero_grad()
                self.guard(self, value)
                return False
            _backward(loss, n / total)
            summed += value * n
            seen.append((pred.data, target.data) if self.metrics else ())
        self._stepping = True  # from here to the end of the update nothing can be saved
        self._step(max_norm)
        self._count(len(window), total, summed, seen)
        return True

    def _count(self, batches: int, total: int, summed: float, seen: list) -> None:
        """What follows the optimizer's step: the schedule, the sums, the metrics."""
        self.step += 1
        if self.scheduler is not None and not _plateau(self.scheduler):
            self.scheduler.step()
        self.loss = summed / total
        sums = self._sums
        sums["loss"] += summed
        sums["samples"] += total
        sums["batches"] += batches
        for metric in self.metrics:
            for arrays in seen:
                metric.update(*arrays)
        self._stepping = False

    def _finish_epoch(self, bar: Progress) -> None:
        sums = self._sums
        if not sums["samples"]:
            raise ValueError(
                f"fit: the training data gave no batches in epoch {self.epoch + 1}. A generator "
                "can be gone through once; pass arrays, a Loader, or a list of batches."
            )
        row = {"epoch": self.epoch + 1, "step": self.step, "loss": sums["loss"] / sums["samples"]}
        row.update((m.name, _plain_value(m.compute())) for m in self.metrics)
        self.logs = row
        if self.validation is not None:
            results = self._evaluate(self.validation)
            row.update((f"val_{key}", value) for key, value in results.items())
            self._call("on_eval_end")
        row["lr"] = self.lr
        row["seconds"] = round(sums["seconds"], 3)
        row["samples_per_second"] = round(sums["samples"] / max(sums["seconds"], 1e-9), 1)
        if _plateau(self.scheduler):
            self.scheduler.step(self._watched(row))
        self.epoch += 1
        self.history.append(row)
        self._sums = _no_sums()
        self._mark()
        bar.line(row)
        self._call("on_epoch_end")

    def _watched(self, row: dict[str, Any]) -> float:
        name = "loss"
        if self.scheduler.mode == "max":
            if not self.metrics:
                raise ValueError("fit: ReduceLROnPlateau(mode='max') needs a metric to watch.")
            name = self.metrics[0].name
        return row.get(f"val_{name}", row[name])

    def stop(self, reason: str = "stopped") -> None:
        """End training after the update in progress; the first reason is kept."""
        self.stop_reason = self.stop_reason or reason

    def _call(self, hook: str) -> None:
        for function in overridden(self.callbacks, hook):
            function(self)

    def _end(self) -> None:
        """Every ``on_fit_end`` runs, in reverse order, even when one of them fails."""
        errors = []
        for hook in reversed(overridden(self.callbacks, "on_fit_end")):
            try:
                hook(self)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    @contextmanager
    def _finishing_on_ctrl_c(self) -> Iterator[None]:
        """Ctrl-C asks for a stop; a second one raises KeyboardInterrupt as usual."""
        usual = signal.default_int_handler
        mine = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is usual
        )

        def finish(*_: Any) -> None:
            self.stop("interrupted")
            signal.signal(signal.SIGINT, usual)

        if mine:
            signal.signal(signal.SIGINT, finish)
        try:
            yield
        finally:
            if mine:
                signal.signal(signal.SIGINT, usual)

    # Evaluation --------------------------------------------------------------------------------

    def evaluate(self, data: Any, batch_size: int = 256) -> dict[str, Any]:
        """``{"loss": ..., metric: ...}`` over data as in ``fit``, each sample counted once.

        The model runs in evaluation mode without gradients; its modes are put back. Metrics have
        their own names, without ``val_``. Raises ValueError for data without batches.

        >>> import numpy as np, gradsmith as gs
        >>> double = gs.nn.Linear(1, 1, bias=False)
        >>> _ = gs.nn.init.constant_(double.weight, 2.0)
        >>> optimizer = gs.optim.SGD(double.parameters(), lr=0.1)
        >>> trainer = gs.train.Trainer(double, "mse", optimizer, metrics=["mae"])
        >>> x = np.array([[1.0], [3.0]], np.float32)
        >>> trainer.evaluate((x, x))
        {'loss': 5.0, 'mae': 2.0}
        >>> trainer.predict(x).tolist()
        [[2.0], [6.0]]
        """
        return self._evaluate(source_of("evaluate", data, batch_size))

    def _evaluate(self, source: Any) -> dict[str, Any]:
        for metric in self._eval_metrics:
            metric.reset()
        summed, samples = 0.0, 0
        keep = bool(self._eval_metrics)
        step = self._program("evaluation", keep, _evaluation_of)
        with self._evaluating():
            for inputs, target, n in batches("evaluate", apart(source), self._dtype()):
                loss, pred = step(*inputs, target)
                summed += loss.item() * n
                samples += n
                for metric in self._eval_metrics:
                    metric.update(pred.data, target.data)
        if not samples:
            raise ValueError("evaluate: the data gave no batches.")
        result: dict[str, Any] = {"loss": summed / samples}
        result.update((m.name, _plain_value(m.compute())) for m in self._eval_metrics)
        return result

    def predict(self, x: Any, batch_size: int = 256) -> np.ndarray:
        """The model's output for every sample: an array (N, ...).

        ``x`` is an array or Tensor (N, ...) or nested lists of numbers, a tuple of them for a model with several inputs, or a
        Loader or iterable of batches ``(x,)`` or ``(x, y)``, whose ``y`` is not looked at. Example
        in ``evaluate``. Raises ValueError for data without batches.
        """
        if isinstance(x, list) and x and not holds_arrays(x[0]):
            x = np.asarray(x)  # numbers in lists; a list of arrays is batches
        arrays = x if isinstance(x, tuple) else (x,)
        only_inputs = all(is_array(a) for a in arrays)
        if only_inputs:
            from ..data import Loader

            source: Any = Loader(tuple(arrays), batch_size, prefetch=0)
        else:
            source = x if isinstance(x, list) else source_of("predict", x, batch_size)
        dtype, parts = self._dtype(), []
        step = self._program("prediction", True, lambda model, *_: lambda *inputs: model(*inputs))
        with self._evaluating():
            for batch in apart(source):
                batch = batch if isinstance(batch, (tuple, list)) else (batch,)
                inputs = batch if only_inputs or len(batch) == 1 else batch[:-1]
                pred = step(*[tensor_of("predict", a, dtype) for a in flat(inputs)])
                if not isinstance(pred, Tensor):
                    raise TypeError(
                        f"predict: the model must return a Tensor, got a {type(pred).__name__}; wrap "
                        "it in a Module that returns what is wanted."
                    )
                parts.append(np.array(pred.data))
        if not parts:
            raise ValueError("predict: the data gave no batches.")
        return np.concatenate(parts)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        modes = _modes(self.model)
        self.model.eval()
        try:
            with no_grad(), autocast(self.precision):
                yield
        finally:
            _set_modes(modes)

    def _dtype(self) -> np.dtype:
        return next(
            (p.dtype for p in self.model.parameters() if p.dtype.kind == "f"), np.dtype("float32")
        )

    # Checkpoints -------------------------------------------------------------------------------

    @property
    def position(self) -> tuple[int, int, int]:
        """(epochs finished, updates made, batches into the epoch)"""
        return self.epoch, self.step, self._sums["batches"]

    def _mark(self, **more: Any) -> None:
        """Note where the random state and the loader stand, between two updates."""
        self._marked.update(more, random=random.state())
        if hasattr(self._source, "state_dict"):
            self._marked["loader"] = self._source.state_dict()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint (safetensors; ``gs.load`` reads it) that ``fit(resume=path)`` takes.

        Tensors: ``model/<name>``, ``optim/<name>/<slot>``; everything else as JSON in the header.
        Raises OSError where the file cannot be written; one that was there is kept then.
        """
        from ..interop.safetensors import save

        save(snapshot(self), path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read a checkpoint written by ``save``; ``fit(resume=path)`` calls it.

        Raises ValueError where the file is no training checkpoint or belongs to another model,
        optimizer or scheduler; nothing is changed then.
        """
        state = checked(path, self)
        try:
            self._take_up(state)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"resume: {os.fspath(path)} is damaged or of another version: "
                f"{type(error).__name__}: {error}."
            ) from error

    def _take_up(self, state: dict[str, Any]) -> None:
        """All that a checkpoint holds, which `checked` has seen."""
        saved = state["trainer"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(numbered(self, state))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(saved["scheduler"]["state"])
        if saved["sums"]["batches"]:
            for metric, entry in zip(self.metrics, state["metrics"]):
                metric.load_state_dict(entry["state"])
        entries = list(state["callbacks"])
        for callback in self.callbacks:
            for entry in entries:
                if entry["class"] == type(callback).__name__:
                    callback.load_state_dict(entry["state"])
                    entries.remove(entry)
                    break
        self.epoch, self.step = saved["epoch"], saved["step"]
        self._first_epoch, self._sums = saved["first_epoch"], dict(saved["sums"])
        self.history = History(saved["history"])
        self.logs = self.history[-1] if self.history else {}
        # Of the last update; the optimizer's rate now is that of the next, its schedule has stepped.
        self.lr = float(saved.get("lr", self.optimizer.param_groups[0]["lr"]))
        loss = saved.get("loss")
        self.loss = math.nan if loss is None else loss
        self._marked = dict(saved["marked"])
        self._pending = self._marked.get("loader")
        self.config = state.get("config", {})
        random.set_state(self._marked["random"])


# Helpers ---------------------------------------------------------------------------------------


def _scalar(loss: Any, op: str = "fit") -> Tensor:
    if not isinstance(loss, Tensor) or loss.size != 1:
        got = f"shape {loss.shape}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"{op}: the loss must be a Tensor of one element, got {got}.")
    return loss


def _measured(pred: Any, keep: bool) -> Any:
    """The prediction; where metrics are to take it, TypeError unless they can."""
    if keep and not isinstance(pred, Tensor):
        raise TypeError(
            f"metrics: the model must return a Tensor, got a {type(pred).__name__}. Leave the "
            "metrics out, or wrap the model in a Module that returns one."
        )
    return pred


def _ours(optimizer: Any) -> bool:
    from ..optim import Optimizer

    return isinstance(optimizer, Optimizer)


def _update_of(model: Any, loss_function: Any, keep: bool, optimizer: Any) -> Callable:
    """The update as a function of its batch alone, which is what can be captured."""

    def update(*batch: Tensor) -> Any:
        optimizer.zero_grad()
        pred = _measured(model(*batch[:-1]), keep)
        loss = _scalar(loss_function(pred, batch[-1]))
        loss.backward()
        optimizer.step()
        return (loss, pred) if keep else loss

    return update


def _backward(loss: Tensor, share: float) -> None:
    """The gradient of the window's mean from a batch that is this share of its samples."""
    if share == 1:
        loss.backward()
    else:  # a constant of the loss's own shape and dtype
        loss.backward(Tensor(np.full(loss.shape, share, loss.dtype)))


def _first_of(
    model: Any, loss_function: Any, keep: bool, optimizer: Any, totals: list[tuple[Any, Tensor]]
) -> Callable:
    """The first batch of a window: its gradients go into `totals`; returns which there are."""

    def first(*batch: Any) -> tuple:  # inputs, target, share
        optimizer.zero_grad()
        pred = _measured(model(*batch[:-2]), keep)
        loss = _scalar(loss_function(pred, batch[-2]))
        _backward(loss, batch[-1])
        given = []
        with no_grad():
            for i, (p, total) in enumerate(totals):
                if p.grad is not None:
                    total.copy_(p.grad)
                    p.grad = None
                    given.append(i)
        return loss, pred if keep else None, tuple(given)

    return first


def _next_of(model: Any, loss_function: Any, keep: bool) -> Callable:
    """A later batch of a window, whose gradients are added to those that are there."""

    def more(*batch: Any) -> tuple:  # inputs, target, share
        pred = _measured(model(*batch[:-2]), keep)
        loss = _scalar(loss_function(pred, batch[-2]))
        _backward(loss, batch[-1])
        return loss, pred if keep else None

    return more


def _step_of(model: Any, loss_function: Any, keep: bool, optimizer: Any) -> Callable:
    def step() -> None:
        optimizer.step()

    return step


def _evaluation_of(model: Any, loss_function: Any, keep: bool) -> Callable:
    def evaluation(*batch: Tensor) -> tuple:
        pred = _measured(model(*batch[:-1]), keep)
        loss = _scalar(loss_function(pred, batch[-1]), "evaluate")
        return loss, pred if keep else None

    return evaluation


def _no_sums() -> dict[str, Any]:
    return {"loss": 0.0, "samples": 0, "batches": 0, "seconds": 0.0}


def _plateau(scheduler: Any) -> bool:
    return isinstance(scheduler, ReduceLROnPlateau)


def _modes(model: Any) -> list[tuple[Any, bool]]:
    return [(module, module.training) for module in model.modules()]


def _set_modes(modes: list[tuple[Any, bool]]) -> None:
    for module, training in modes:
        module.training = training


def _plain_value(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
