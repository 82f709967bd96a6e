"""What a training run recorded, epoch by epoch."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .callbacks import csv_text, scalar

__all__ = ["History"]


class History(list[dict[str, Any]]):
    """A list with one dict per finished epoch.

    Keys: ``epoch`` (from 1), ``step`` (updates so far), ``loss`` and each metric over the epoch's
    training batches, ``val_loss`` and ``val_<metric>`` where there was validation, ``lr`` of the
    last update, ``seconds`` and ``samples_per_second`` of the training part.

    >>> history = History([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    >>> history.to_dict()
    {'epoch': [1, 2], 'loss': [0.5, 0.25]}
    """

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns: a list with one entry per epoch for each key (None where an epoch lacks it)."""
        keys = dict.fromkeys(key for row in self for key in row)
        return {key: [row.get(key) for row in self] for key in keys}

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The numbers as CSV text, also written to ``path`` if given. Matrices are left out.

        OSError: ``path`` cannot be written.

        >>> print(History([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]).to_csv(), end="")
        epoch,loss
        1,0.5
        2,0.25
        """
        columns = list(dict.fromkeys(k for row in self for k in row if scalar(row[k])))
        text = csv_text(list(self), columns)
        if path is not None:
            with open(path, "w", newline="", encoding="utf-8") as file:
                file.write(text)
        return text

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        confusion: Any = None,
        classes: Any = None,
        title: str | None = None,
    ) -> Any:
        """Curves of the loss, each metric and the learning rate; returns the matplotlib figure.

        Args:
            path: picture file to write (the suffix chooses the format: .png, .svg, .pdf).
            confusion: counts (C, C), true class by predicted class, drawn beside the curves; by
                default the last ``val_confusion`` or ``confusion`` of the history.
            classes: C names for its axes.
            title: heading of the picture.

        Raises ImportError where matplotlib is missing (``pip install "gradsmith[plot]"``) and
        ValueError for an empty history.
        """
        if not self:
            raise ValueError("plot: the history is empty; train for at least one epoch.")
        try:
            from matplotlib.figure import Figure  # no pyplot: works without a screen
        except ImportError as error:
            raise ImportError(
                'plot: matplotlib is missing; pip install "gradsmith[plot]" brings it.'
            ) from error
        columns = self.to_dict()
        if confusion is None:
            found = columns.get("val_confusion") or columns.get("confusion")
            confusion = found[-1] if found else None
        skipped = {"epoch", "step", "seconds", "samples_per_second", "lr"}
        names = [
            key
            for key, values in columns.items()
            if key not in skipped
            and not key.startswith("val_")
            and all(isinstance(v, (int, float)) for v in values if v is not None)
        ]
        panels = len(names) + 1 + (confusion is not None)
        across = min(panels, 3 if panels != 4 else 2)
        down = -(-panels // across)
        figure = Figure(figsize=(4.6 * across, 3.7 * down), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).reshape(-1)
        epochs = columns.get("epoch", list(range(1, len(self) + 1)))
        mark = "o-" if len(self) < 30 else "-"
        for axis, name in zip(axes, names):
            axis.plot(epochs, _floats(columns[name]), mark, ms=3, label="training")
            if f"val_{name}" in columns:
                axis.plot(epochs, _floats(columns[f"val_{name}"]), mark, ms=3, label="validation")
                axis.legend(frameon=False)
            axis.set(title=name, xlabel="epoch")
        axis = axes[len(names)]
        if "lr" in columns:
            axis.plot(epochs, _floats(columns["lr"]), mark, ms=3, color="tab:green")
        axis.set(title="learning rate (end of epoch)", xlabel="epoch")
        for axis in axes[: len(names) + 1]:
            axis.xaxis.get_major_locator().set_params(integer=True)
        if confusion is not None:
            _draw_confusion(axes[len(names) + 1], np.asarray(confusion), classes)
        for axis in axes[panels:]:
            axis.set_visible(False)
        if title:
            figure.suptitle(title)
        if path is not None:
            figure.savefig(path, dpi=130)
        return figure


def _floats(values: list[Any]) -> list[float]:
    return [float("nan") if v is None else float(v) for v in values]


def _draw_confusion(axis: Any, matrix: np.ndarray, classes: Any) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"plot: confusion has shape {matrix.shape}; expected (C, C).")
    count = len(matrix)
    if classes is not None and len(classes) != count:
        raise ValueError(
            f"plot: {len(classes)} names in classes for a confusion of {count} classes."
        )
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axis.set(title="confusion", xlabel="predicted", ylabel="true")
    if count <= 20:
        names = [str(c) for c in (classes if classes is not None else range(count))]
        axis.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axis.set_yticks(range(count), names)
        for i in range(count):
            for j in range(count):
                if matrix[i, j]:
                    color = "white" if share[i, j] > 0.5 else "black"
                    axis.text(
                        j, i, str(matrix[i, j]), ha="center", va="center", size=7, color=color
                    )
