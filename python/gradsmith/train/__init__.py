"""Training: the Trainer, its callbacks, streaming metrics and the history of a run."""

from . import metrics
from .callbacks import (
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    JSONLog,
    LambdaCallback,
    LRLog,
    StopOnNaN,
    TimeLimit,
)
from .history import History
from .trainer import Trainer

__all__ = [
    "CSVLog",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "History",
    "JSONLog",
    "LRLog",
    "LambdaCallback",
    "StopOnNaN",
    "TimeLimit",
    "Trainer",
    "metrics",
]
