"""Callbacks: what happens around training besides training.

A callback overrides some of six hooks; each gets the trainer, which holds everything there is to
see or change:

========================  =====================================================================
``trainer.model``         the module; also ``.optimizer``, ``.scheduler``, ``.history``
``trainer.epoch``         epochs finished (in ``on_epoch_end`` the one that just ended counts)
``trainer.step``          optimizer updates made
``trainer.loss``          mean loss of the last update (a float); ``.lr`` its learning rate
``trainer.logs``          the row of the epoch: ``loss``, metrics, ``val_loss``, ``lr``, ...
``trainer.stop(reason)``  end training after this step
``trainer.save(path)``    write a checkpoint
========================  =====================================================================

Order of a run: ``on_fit_start``, then for every epoch ``on_epoch_start``, ``on_step_end`` after
each optimizer update, ``on_eval_end`` after the validation, ``on_epoch_end``; at last ``on_fit_end``,
also when training was stopped, interrupted or failed (then ``trainer.failed`` is true). A hook that
is not overridden costs nothing. ``state_dict`` and ``load_state_dict`` let a callback survive a
resume: its state (numbers, strings, arrays) goes into every checkpoint.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "CSVLog",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "JSONLog",
    "LRLog",
    "LambdaCallback",
    "StopOnNaN",
    "TimeLimit",
]

HOOKS = (
    "on_fit_start",
    "on_epoch_start",
    "on_step_end",
    "on_eval_end",
    "on_epoch_end",
    "on_fit_end",
)


class Callback:
    """Base of all callbacks; override the hooks you need. See the module's text for the trainer.

    A hook returns nothing; what it raises ends the training and comes out of ``fit``.

    >>> import numpy as np, gradsmith as gs
    >>> class Falling(gs.train.Callback):
    ...     def on_epoch_end(self, trainer):
    ...         if len(trainer.history) > 1:
    ...             print(trainer.history[-1]["loss"] < trainer.history[-2]["loss"])
    >>> x, model = np.linspace(-1, 1, 8, dtype=np.float32)[:, None], gs.nn.Linear(1, 1)
    >>> optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = gs.train.Trainer(model, "mse", optimizer, callbacks=Falling())
    >>> history = trainer.fit((x, 2 * x), epochs=2, progress=False)
    True
    """

    order = 0  # callbacks with a larger number run later; on_fit_end runs in reverse

    def on_fit_start(self, trainer: Any) -> None:
        """Before the first epoch of a call of fit."""

    def on_epoch_start(self, trainer: Any) -> None:
        """Before the first batch of an epoch."""

    def on_step_end(self, trainer: Any) -> None:
        """After each optimizer update."""

    def on_eval_end(self, trainer: Any) -> None:
        """After the validation of an epoch; `trainer.logs` has its results."""

    def on_epoch_end(self, trainer: Any) -> None:
        """After each epoch, its row in `trainer.history`."""

    def on_fit_end(self, trainer: Any) -> None:
        """When fit ends, however it does."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the callback: JSON-like, with arrays."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""


def overridden(callbacks: list[Callback], hook: str) -> list[Callable[[Any], None]]:
    """The bound hooks that do something."""
    found = [getattr(c, hook) for c in callbacks]
    return [f for f in found if getattr(f, "__func__", f) is not getattr(Callback, hook)]


class LambdaCallback(Callback):
    """Functions as hooks: ``LambdaCallback(on_epoch_end=lambda trainer: print(trainer.logs))``.

    ValueError: a name that is no hook; TypeError: something that is no function.

    >>> import numpy as np, gradsmith as gs
    >>> x, model = np.linspace(-1, 1, 8, dtype=np.float32)[:, None], gs.nn.Linear(1, 1)
    >>> optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    >>> tell = gs.train.LambdaCallback(on_epoch_end=lambda t: print(t.epoch, t.step))
    >>> trainer = gs.train.Trainer(model, "mse", optimizer, callbacks=tell)
    >>> history = trainer.fit((x, 2 * x), epochs=2, progress=False)
    1 1
    2 2
    """

    def __init__(self, **hooks: Callable[[Any], None]) -> None:
        for name, function in hooks.items():
            if name not in HOOKS:
                raise ValueError(f"LambdaCallback: no hook {name!r}; hooks: {', '.join(HOOKS)}.")
            if not callable(function):
                raise TypeError(f"LambdaCallback: {name} must be a function, not {function!r}.")
            setattr(self, name, function)


# Watching a value ------------------------------------------------------------------------------

_LARGER_IS_BETTER = re.compile(r"(val_)?(acc|top_?\d|precision|recall|f\d|fscore|r2|auc)")


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


class _Best:
    """The best value of one entry of the logs so far."""

    def __init__(self, owner: str, monitor: str | None, mode: str, min_delta: float = 0.0) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"{owner}: mode {mode!r} must be 'auto', 'min' or 'max'.")
        if not (isinstance(min_delta, (int, float, np.number)) and min_delta >= 0):
            raise ValueError(f"{owner}: min_delta is {min_delta}; it must be 0 or more.")
        self.owner, self.monitor, self.mode, self.min_delta = owner, monitor, mode, min_delta
        self.value: float | None = None

    def check(self, trainer: Any) -> None:
        if self.monitor and self.monitor.startswith("val_") and trainer.validation is None:
            raise ValueError(
                f"{self.owner}: monitor={self.monitor!r} needs validation data. Pass "
                "validation=... to fit, or monitor='loss'."
            )

    def better(self, logs: dict[str, Any]) -> bool:
        """Whether the new value is better (then it is kept); NaN never is."""
        name = self.monitor or ("val_loss" if "val_loss" in logs else "loss")
        if name not in logs:
            raise ValueError(
                f"{self.owner}: there is no {name!r} to monitor; there are: {', '.join(logs)}."
            )
        try:
            value = float(logs[name])
        except (TypeError, ValueError):
            kind = type(logs[name]).__name__
            raise ValueError(
                f"{self.owner}: {name!r} is no number to monitor but a {kind}."
            ) from None
        largest = self.mode == "max" or (
            self.mode == "auto" and _LARGER_IS_BETTER.match(name) is not None
        )
        if math.isnan(value):
            return False
        if self.value is not None:
            gain = value - self.value if largest else self.value - value
            if not gain > self.min_delta:
                return False
        self.value = value
        return True


class EarlyStopping(Callback):
    """Stop when ``monitor`` has not improved for over ``patience`` epochs; end on the best weights.

    The weights (and buffers) of the best epoch are put back when training ends, always and for
    whatever reason: patience, the last epoch, Ctrl-C, a time limit. ``best``, ``best_epoch`` (1 is
    the first) and ``bad_epochs`` can be read; all of it, with the best weights, is in a checkpoint.

    Args:
        monitor: an entry of the logs, such as "val_loss" or "val_accuracy".
        patience: epochs without improvement that are borne.
        mode: "min", "max", or "auto" (larger is better for accuracies, F-scores and the like).
        min_delta: smallest change that counts as an improvement.

    Raises:
        ValueError: an argument out of its range; in ``fit``, a ``monitor`` that the logs lack.

    Source: Prechelt 1998, Early Stopping - But When?

    >>> import numpy as np, gradsmith as gs
    >>> x, model = np.linspace(-1, 1, 8, dtype=np.float32)[:, None], gs.nn.Linear(1, 1)
    >>> optimizer = gs.optim.SGD(model.parameters(), lr=0.0)  # never gets better
    >>> stop = gs.train.EarlyStopping("loss", patience=2, min_delta=1e-3)
    >>> trainer = gs.train.Trainer(model, "mse", optimizer, callbacks=stop)
    >>> len(trainer.fit((x, 2 * x), epochs=10, progress=False)), stop.best_epoch, stop.bad_epochs
    (4, 1, 3)
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        mode: str = "auto",
        min_delta: float = 0.0,
    ) -> None:
        if not _whole(patience) or patience < 0:
            raise ValueError(
                f"EarlyStopping: patience must be a whole number of 0 or more, not {patience!r}."
            )
        self.patience = int(patience)
        self._best = _Best("EarlyStopping", monitor, mode, min_delta)
        self._weights: dict[str, np.ndarray] | None = None
        self.best_epoch = self.bad_epochs = 0

    @property
    def best(self) -> float | None:
        """The best value so far; None before the first epoch."""
        return self._best.value

    def on_fit_start(self, trainer: Any) -> None:
        self._best.check(trainer)
        if not trainer.resumed:
            self._best.value, self._weights = None, None
            self.best_epoch = self.bad_epochs = 0
        elif self.bad_epochs > self.patience:  # the resumed run had come to its end
            self._stop(trainer)

    def on_epoch_end(self, trainer: Any) -> None:
        if self._best.better(trainer.logs):
            self.best_epoch, self.bad_epochs = trainer.epoch, 0
            self._weights = weights(trainer.model)
        else:
            self.bad_epochs += 1
            if self.bad_epochs > self.patience:
                self._stop(trainer)

    def _stop(self, trainer: Any) -> None:
        trainer.stop(
            f"{self._best.monitor} has not improved for {self.bad_epochs} epochs; best "
            f"{self._best.value} in epoch {self.best_epoch}"
        )

    def on_fit_end(self, trainer: Any) -> None:
        if self._weights is not None:
            trainer.model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self._best.value,
            "best_epoch": self.best_epoch,
            "bad_epochs": self.bad_epochs,
            "weights": self._weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best.value = state["best"]
        self.best_epoch, self.bad_epochs = state["best_epoch"], state["bad_epochs"]
        self._weights = state["weights"]


def weights(model: Any) -> dict[str, np.ndarray]:
    """A copy of a model's parameters and buffers as arrays."""
    return {
        name: np.array(getattr(value, "data", value)) for name, value in model.state_dict().items()
    }


class Checkpoint(Callback):
    """Write checkpoints from which ``fit(resume=path)`` goes on to the same bits.

    In the folder ``path``: ``last.safetensors``, after every epoch, every ``every`` updates and
    when training ends; ``best.safetensors``, after each epoch in which ``monitor`` was best; with
    ``keep`` above 1 also the last ``keep`` states as ``step-00001234.safetensors``. A ``path`` that
    ends in ``.safetensors`` is itself the file of the last state, and the others take its name as
    prefix. Each file is written beside and renamed, so a kill at any moment leaves a whole one.

    Args:
        path: folder or ``.safetensors`` file; the folder is made.
        monitor: entry of the logs; None takes "val_loss" where there is one, else "loss".
        mode: "min", "max" or "auto".
        every: also after each so many optimizer updates; None only at the ends of epochs.
        keep: how many states to keep.
        best: whether to write the best state.

    Raises:
        ValueError: an argument out of its range; in ``fit``, a ``monitor`` that the logs lack.
        OSError: in ``fit``, the folder cannot be made or a file not be written.

    >>> import os, tempfile
    >>> import numpy as np, gradsmith as gs
    >>> x, model = np.linspace(-1, 1, 8, dtype=np.float32)[:, None], gs.nn.Linear(1, 1)
    >>> optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    >>> folder = tempfile.mkdtemp()
    >>> trainer = gs.train.Trainer(model, "mse", optimizer, callbacks=gs.train.Checkpoint(folder))
    >>> history = trainer.fit((x, 2 * x), epochs=2, progress=False)
    >>> sorted(os.listdir(folder))
    ['best.safetensors', 'last.safetensors']
    >>> len(trainer.fit((x, 2 * x), epochs=2, resume=folder, progress=False))  # at its end already
    2
    """

    order = 100  # after those whose state it saves

    def __init__(
        self,
        path: str | os.PathLike[str],
        monitor: str | None = None,
        mode: str = "auto",
        every: int | None = None,
        keep: int = 1,
        best: bool = True,
    ) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if (value is None and name == "keep") or (
                value is not None and (not _whole(value) or value < 1)
            ):
                raise ValueError(
                    f"Checkpoint: {name} must be a whole number of at least 1, not {value!r}."
                )
        self.path = os.fspath(path)
        stem, suffix = os.path.splitext(self.path)
        self.last = self.path if suffix == ".safetensors" else self._join("last")
        self.best = stem + "-best.safetensors" if self.last == self.path else self._join("best")
        self._numbered = stem + "-" if self.last == self.path else os.path.join(self.path, "")
        self.every, self.keep, self.save_best = every, keep, best
        self._best = _Best("Checkpoint", monitor, mode)
        self._kept: list[int] = []
        self._saved: tuple[int, ...] | None = None

    def _join(self, name: str) -> str:
        return os.path.join(self.path, name + ".safetensors")

    def on_fit_start(self, trainer: Any) -> None:
        self._best.check(trainer)
        if not trainer.resumed:
            self._best.value, self._kept = None, []
        self._saved = None
        os.makedirs(os.path.dirname(self.last) or ".", exist_ok=True)

    def on_step_end(self, trainer: Any) -> None:
        if self.every and trainer.step % self.every == 0:
            self._save(trainer)

    def on_epoch_end(self, trainer: Any) -> None:
        better = self._best.better(trainer.logs)
        if better and self.save_best:
            trainer.save(self.best)  # before the last state: one killed in between does it again
        self._save(trainer)

    def on_fit_end(self, trainer: Any) -> None:
        if not trainer.failed and self._saved != trainer.position:
            self._save(trainer)

    def _save(self, trainer: Any) -> None:
        dropped: list[int] = []
        if self.keep > 1:
            self._kept = [step for step in self._kept if step != trainer.step] + [trainer.step]
            dropped, self._kept = self._kept[: -self.keep], self._kept[-self.keep :]
            trainer.save(f"{self._numbered}step-{trainer.step:08d}.safetensors")
        trainer.save(self.last)
        self._saved = trainer.position
        for step in dropped:
            with contextlib.suppress(FileNotFoundError):
                os.remove(f"{self._numbered}step-{step:08d}.safetensors")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best.value, "kept": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best.value, self._kept = state["best"], list(state["kept"])


# Logs ------------------------------------------------------------------------------------------


def _replace(path: str, text: str) -> None:
    """Write a whole file beside its place and rename it."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(beside, "w", newline="", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except BaseException:
        if os.path.exists(beside):
            os.remove(beside)
        raise


class _EpochLog(Callback):
    """A text file with one entry per finished epoch, kept equal to the trainer's history.

    A fresh run starts the file anew. A resumed run first rewrites it from the history in the
    checkpoint, which takes away the epochs that will be run again and brings back any that the
    file had lost, and then appends.
    """

    order = 50  # after callbacks that add to the logs, before the checkpoint

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def on_fit_start(self, trainer: Any) -> None:
        self._rewrite(list(trainer.history))

    def on_epoch_end(self, trainer: Any) -> None:
        text = self._entry(trainer.logs)
        if text is None:
            self._rewrite(list(trainer.history))
            return
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            file.write(text)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        raise NotImplementedError

    def _entry(self, row: dict[str, Any]) -> str | None:
        raise NotImplementedError


def scalar(value: Any) -> bool:
    """Whether a value of the logs fits into one field of a table."""
    return isinstance(value, (bool, int, float, str)) or value is None


class CSVLog(_EpochLog):
    """One line per epoch with the numbers of the logs, under a heading.

    The file always equals the history: see the resume rule in ``JSONLog``. A column that appears
    later (a validation that starts late) is added to the whole file. Matrices are left out.
    OSError, in ``fit``: ``path`` cannot be written. Format: RFC 4180, with a newline as line end.

    >>> import os, tempfile
    >>> import numpy as np, gradsmith as gs
    >>> x, model = np.linspace(-1, 1, 8, dtype=np.float32)[:, None], gs.nn.Linear(1, 1)
    >>> optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    >>> path = os.path.join(tempfile.mkdtemp(), "log.csv")
    >>> trainer = gs.train.Trainer(model, "mse", optimizer, callbacks=gs.train.CSVLog(path))
    >>> history = trainer.fit((x, 2 * x), epochs=2, progress=False)
    >>> with open(path) as file: print(file.readline().strip())
    epoch,step,loss,lr,seconds,samples_per_second
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._columns: list[str] = []

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        self._columns = list(dict.fromkeys(k for row in rows for k in row if scalar(row[k])))
        _replace(self.path, csv_text(rows, self._columns))

    def _entry(self, row: dict[str, Any]) -> str | None:
        if any(scalar(value) and key not in self._columns for key, value in row.items()):
            return None
        return csv_text([row], self._columns, heading=False)


def csv_text(rows: list[dict[str, Any]], columns: list[str], heading: bool = True) -> str:
    """Rows as CSV text with these columns; what else they hold is left out."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    if heading and columns:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


class JSONLog(_EpochLog):
    """One JSON object per line and epoch; numbers that JSON lacks (NaN, infinity) become null.

    A fresh run starts the file anew; a resumed run continues it without a doubled or lost epoch,
    whatever the moment it was killed at. OSError, in ``fit``: ``path`` cannot be written.
    Format: JSON Lines, https://jsonlines.org.

    >>> import json, os, tempfile
    >>> import numpy as np, gradsmith as gs
    >>> x, model = np.linspace(-1, 1, 8, dtype=np.float32)[:, None], gs.nn.Linear(1, 1)
    >>> optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    >>> path = os.path.join(tempfile.mkdtemp(), "log.jsonl")
    >>> trainer = gs.train.Trainer(model, "mse", optimizer, callbacks=gs.train.JSONLog(path))
    >>> history = trainer.fit((x, 2 * x), epochs=2, progress=False)
    >>> with open(path) as file: print([json.loads(line)["step"] for line in file])
    [1, 2]
    """

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        _replace(self.path, "".join(map(self._entry, rows)))

    def _entry(self, row: dict[str, Any]) -> str:
        return json.dumps(_plain(row)) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class LRLog(Callback):
    """The learning rate of every update: ``steps`` (from 0) and ``rates``, and a CSV if ``path``.

    With several parameter groups ``rates`` holds that of the first. The record is part of a
    checkpoint; a resumed run takes back what lay behind it. OSError, in ``fit``: ``path`` cannot
    be written.

    >>> import numpy as np, gradsmith as gs
    >>> x, model = np.linspace(-1, 1, 8, dtype=np.float32)[:, None], gs.nn.Linear(1, 1)
    >>> optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    >>> halving = gs.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    >>> log = gs.train.LRLog()
    >>> trainer = gs.train.Trainer(model, "mse", optimizer, halving, callbacks=log)
    >>> history = trainer.fit((x, 2 * x), epochs=2, progress=False)
    >>> log.steps, log.rates
    ([0, 1], [0.1, 0.05])
    """

    order = 50

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else os.fspath(path)
        self.steps: list[int] = []
        self.rates: list[float] = []
        self._written = 0

    def on_fit_start(self, trainer: Any) -> None:
        if not trainer.resumed:
            self.steps, self.rates = [], []
        if self.path is not None:
            _replace(self.path, "step,lr\n" + self._lines(0))

    def on_step_end(self, trainer: Any) -> None:
        self.steps.append(trainer.step - 1)
        self.rates.append(trainer.lr)

    def on_epoch_end(self, trainer: Any) -> None:
        if self.path is not None and self._written < len(self.steps):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._lines(self._written))

    def on_fit_end(self, trainer: Any) -> None:
        self.on_epoch_end(trainer)

    def _lines(self, start: int) -> str:
        self._written = len(self.steps)
        pairs = zip(self.steps[start:], self.rates[start:])
        return "".join(f"{step},{rate!r}\n" for step, rate in pairs)

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": np.array(self.steps, np.int64),
            "rates": np.array(self.rates, np.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.rates = state["steps"].tolist(), state["rates"].tolist()


# Stopping --------------------------------------------------------------------------------------


class StopOnNaN(Callback):
    """Stop as soon as a loss is NaN or infinite, before the update it would have spoiled.

    The weights stay those before the bad batch; a RuntimeWarning and ``trainer.stop_reason`` say
    where it happened and what usually helps.

    >>> import warnings
    >>> import numpy as np, gradsmith as gs
    >>> x, model = np.linspace(-1, 1, 8, dtype=np.float32)[:, None], gs.nn.Linear(1, 1)
    >>> optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = gs.train.Trainer(model, "mse", optimizer, callbacks=gs.train.StopOnNaN())
    >>> with warnings.catch_warnings(record=True):
    ...     history = trainer.fit((x, np.log(x)), epochs=2, progress=False)
    >>> trainer.stop_reason
    'the loss is nan in update 1 of epoch 1 (lr 0.1); the update was not made'
    """

    def on_fit_start(self, trainer: Any) -> None:
        trainer.guard = self.refuse

    def on_fit_end(self, trainer: Any) -> None:
        trainer.guard = None

    @staticmethod
    def refuse(trainer: Any, loss: float) -> None:
        """Called by the trainer in place of an update whose loss is not finite."""
        reason = (
            f"the loss is {loss} in update {trainer.step + 1} of epoch {trainer.epoch + 1} "
            f"(lr {trainer.lr:g}); the update was not made"
        )
        trainer.stop(reason)
        warnings.warn(
            f"Training stopped: {reason}. Check the inputs for NaN or huge values "
            "(np.isfinite(x).all()), try a lower lr or a warm-up, or fit(max_grad_norm=1.0).",
            RuntimeWarning,
            stacklevel=3,
        )


class TimeLimit(Callback):
    """Stop after ``seconds`` of this call of ``fit``, at the end of the update that passes it.

    ValueError: ``seconds`` not above 0.

    >>> import numpy as np, gradsmith as gs
    >>> x, model = np.linspace(-1, 1, 8, dtype=np.float32)[:, None], gs.nn.Linear(1, 1)
    >>> optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = gs.train.Trainer(model, "mse", optimizer, callbacks=gs.train.TimeLimit(1e-6))
    >>> history = trainer.fit((x, 2 * x), epochs=100, progress=False)
    >>> trainer.step, trainer.stop_reason
    (1, 'the time limit of 1e-06 s was reached')
    """

    def __init__(self, seconds: float) -> None:
        if isinstance(seconds, (bool, str)) or not seconds > 0:
            raise ValueError(f"TimeLimit: seconds must be more than 0, not {seconds!r}.")
        self.seconds = float(seconds)

    def on_fit_start(self, trainer: Any) -> None:
        self._end = time.monotonic() + self.seconds

    def on_step_end(self, trainer: Any) -> None:
        if time.monotonic() >= self._end:
            trainer.stop(f"the time limit of {self.seconds:g} s was reached")
