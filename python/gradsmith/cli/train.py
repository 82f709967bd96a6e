"""``gradsmith train``: a model on the shipped digits, or on a folder of images.

A run is a folder (``runs/<data>-<model>`` unless ``--out`` says otherwise):

    last.safetensors    the state of training after the last epoch; ``--resume`` goes on from it
    model.safetensors   the weights alone, with what ``gs.models.load`` needs, written at the end
    history.csv         a line per epoch

A run is never overwritten unasked: without ``--out`` a new one gets the next free name, and with
``--out`` an existing one is an error that names ``--resume`` and ``--overwrite``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from typing import Any

__all__ = ["add_arguments", "run"]

RUNS = "runs"
# Options that do not change what is learned, and may differ when a run is resumed.
FREE = {"out", "resume", "overwrite", "plot", "threads", "quiet", "command"}


class Refused(Exception):
    """Wrong use: one line for the user, exit code 2."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a model. Without arguments: a convolutional network on the handwritten digits that "
        "ship with gradsmith. The test images are looked at after each epoch for the record; "
        "nothing is chosen by them."
    )
    add = parser.add_argument
    add("--data", metavar="DIR", help="folder with IDX files (MNIST family) or CIFAR-10 binaries")
    add("--model", choices=["mlp", "lenet", "resnet18"], help="default: lenet")
    add("--epochs", type=int, metavar="N", help="default: 30 on digits, 10 otherwise")
    add("--batch-size", type=int, metavar="N", help="default: 32 below 10,000 images, else 64")
    add("--lr", type=float, metavar="X", help="highest learning rate (default: by optimizer)")
    add("--optimizer", metavar="NAME", help="a class of gs.optim: AdamW (default), SGD, Adam, ...")
    add("--weight-decay", type=float, metavar="X", help="default: 0.01 for AdamW, 5e-4 for SGD")
    add("--schedule", choices=["onecycle", "cosine", "constant"], help="default: onecycle")
    add("--label-smoothing", type=float, metavar="X", help="default: 0.1")
    add(
        "--dropout",
        type=float,
        metavar="P",
        help="default: 0.1 below 10,000 images, else 0.25 (mlp, lenet)",
    )
    add("--seed", type=int, metavar="N", help="default: 0")
    add(
        "--augment",
        nargs="?",
        const="on",
        choices=["auto", "on", "none", "shift", "rotate", "flip"],
        metavar="KIND",
        help="shift: by a pixel at random; rotate: that, and by up to 10 degrees; flip: that, and "
        "mirrored; on (or no KIND): rotate on digits, else shift; none; auto (default): rotate on "
        "digits, else none",
    )
    add("--limit", type=int, metavar="N", help="use the first N training images only")
    add("--out", metavar="PATH", help="folder of the run, or a .safetensors file for its state")
    add("--overwrite", action="store_true", help="let --out replace an existing run")
    add(
        "--resume",
        nargs="?",
        const="",
        metavar="PATH",
        help="go on with a run: PATH, or --out, or the latest below ./runs",
    )
    add(
        "--plot", metavar="FILE", help="curves and confusion matrix as a picture (.png, .svg, .pdf)"
    )
    add("--threads", type=int, metavar="N", help="threads of the kernels (the result is the same)")
    add("--quiet", action="store_true", help="print the result only")


def run(args: argparse.Namespace) -> int:
    import gradsmith as gs

    try:
        if args.threads is not None:
            gs.set_num_threads(args.threads)
        if args.plot is not None:
            _check_plot(args.plot)
        return _train(args)
    except Refused as error:
        print(f"gradsmith train: {error}", file=sys.stderr)
        return 2
    except (ValueError, TypeError) as error:
        print(f"gradsmith train: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # of the output; `main` knows what to do
        raise
    except OSError as error:
        print(f"gradsmith train: {error}", file=sys.stderr)
        return 2 if isinstance(error, FileNotFoundError) else 1


def _train(args: argparse.Namespace) -> int:
    import numpy as np

    import gradsmith as gs
    from gradsmith import models
    from gradsmith.interop.safetensors import save
    from gradsmith.nn import functional
    from gradsmith.train import Checkpoint, CSVLog, StopOnNaN, Trainer

    say = (lambda *_: None) if args.quiet else functools.partial(print, flush=True)
    resume = _resumed_path(args)
    if resume is not None:
        settings = _settings_of(resume, args)
    else:
        settings, wanted = _settings(args), _new_out(args)
    train, test, classes = _data(settings)
    if resume is None:
        _fill(settings, len(train))

    gs.manual_seed(settings["seed"])
    standardize, loader = _loader(settings, train)
    shape = test.arrays[0].shape[1:]
    arguments = _model_arguments(settings, shape, len(classes))
    model = models.get(settings["model"], *arguments[0], **arguments[1])
    optimizer = _optimizer(settings, model)
    updates = settings["epochs"] * len(loader)
    scheduler = _scheduler(settings, optimizer, updates)
    loss = functools.partial(functional.cross_entropy, label_smoothing=settings["label_smoothing"])
    # The last thing before the run begins, for the folder is made by it.
    out = _out_of(resume) if resume is not None else wanted or _free_name(settings)
    is_file = out.endswith(".safetensors")
    callbacks = [Checkpoint(out, best=False), StopOnNaN()]
    if not is_file:
        callbacks.append(CSVLog(os.path.join(out, "history.csv")))
    trainer = Trainer(model, loss, optimizer, scheduler, ["accuracy"], callbacks)
    if resume is None and not is_file:  # with --overwrite: the old run's result goes with its state
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(out, "model.safetensors"))
    trainer.config = {
        "model": settings["model"],
        "arguments": [list(arguments[0]), arguments[1]],
        "classes": list(classes),
        "mean": standardize.shift.tolist(),
        "std": standardize.scale.tolist(),
        "settings": settings,
    }
    parameters = sum(p.size for p in model.parameters())
    name = "digits" if settings["data"] is None else settings["data"]
    images = "x".join(map(str, shape))
    say(
        f"{name}: {len(train)} images of {images} to train on, {len(test)} to test on, "
        f"{len(classes)} classes"
    )
    say(
        f"{settings['model']}: {parameters:,} parameters, {settings['optimizer']}, "
        f"{settings['schedule']} up to lr {settings['lr']:g}, batches of {settings['batch_size']}, "
        f"augmentation {settings['augment']}, seed {settings['seed']}"
    )
    test_x, test_y = standardize(test.arrays[0]), test.arrays[1]
    history = trainer.fit(
        loader,
        (test_x, test_y),
        epochs=settings["epochs"],
        resume=resume,
        progress=False if args.quiet else None,
    )

    def plot(matrix: Any) -> None:
        title = f"{settings['model']}, {name}"
        history.plot(args.plot, confusion=matrix, classes=classes, title=title)
        say(f"plot: {args.plot}")

    if trainer.stop_reason is not None:
        if args.plot is not None and history:
            plot(_confusion(trainer.predict(test_x), test_y, len(classes)))
        if trainer.epoch < settings["epochs"]:
            shown = out if args.out is not None or resume else ""
            say(f"the state is saved; go on with: gradsmith train --resume {shown}".rstrip())
        return 130 if trainer.stop_reason == "interrupted" else 1

    scores = trainer.predict(test_x)
    if np.isnan(scores).any():
        print(
            "gradsmith train: the predictions are NaN; the training has diverged, try a lower --lr",
            file=sys.stderr,
        )
        return 1
    matrix = _confusion(scores, test_y, len(classes))
    right, count = int(matrix.trace()), int(matrix.sum())
    saved = out
    if not is_file:
        saved = os.path.join(out, "model.safetensors")
        state = {"model": model.state_dict(), "config": trainer.config}
        save({**state, "test": {"accuracy": right / count, "images": count}}, saved)
    seconds = sum(row.get("seconds", 0.0) for row in history)
    print(
        f"test accuracy {right / count:.4f} ({right} of {count}) after {trainer.epoch} epochs, "
        f"{seconds:.1f} s of training",
        flush=True,
    )
    print(f"saved {saved}", flush=True)
    if args.plot is not None and history:
        plot(matrix)  # at last: a picture that cannot be written costs nothing else
    return 0


# Settings --------------------------------------------------------------------------------------

_LR = {"sgd": 0.1, "asgd": 0.1, "adadelta": 1.0, "adagrad": 0.01, "rmsprop": 1e-3}  # others: 3e-3


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, checked; None where the default depends on the data."""
    from gradsmith import optim

    given = {k: v for k, v in vars(args).items() if k not in FREE}
    for name, least in (("epochs", 1), ("batch_size", 1), ("limit", 1), ("seed", 0)):
        if given[name] is not None and given[name] < least:
            option = name.replace("_", "-")
            raise Refused(f"--{option} is {given[name]}; it must be at least {least}")
    if given["lr"] is not None and not 0 < given["lr"] < float("inf"):
        raise Refused(f"--lr is {given['lr']}; it must be more than 0")
    for name in ("dropout", "label_smoothing"):
        if given[name] is not None and not 0 <= given[name] < 1:
            option = name.replace("_", "-")
            raise Refused(f"--{option} is {given[name]}; it must be at least 0 and below 1")
    if given["weight_decay"] is not None and not 0 <= given["weight_decay"] < float("inf"):
        raise Refused(f"--weight-decay is {given['weight_decay']}; it must be 0 or more")
    name = given["optimizer"] or "AdamW"
    known = {n.lower(): n for n in optim.__all__ if hasattr(getattr(optim, n), "step")}
    known.pop("optimizer", None)
    if name.lower() not in known:
        raise Refused(f"--optimizer {name} is unknown; there are: {', '.join(known.values())}")
    given["optimizer"] = known[name.lower()]
    if given["data"] is not None:
        given["data"] = os.path.abspath(given["data"])
    for key, default in (
        ("model", "lenet"),
        ("schedule", "onecycle"),
        ("label_smoothing", 0.1),
        ("seed", 0),
        ("lr", _LR.get(name.lower(), 3e-3)),
        ("weight_decay", {"adamw": 0.01, "sgd": 5e-4}.get(name.lower(), 0.0)),
    ):
        if given[key] is None:
            given[key] = default
    return given


def _fill(settings: dict[str, Any], images: int) -> None:
    """The defaults that depend on the data."""
    digits = settings["data"] is None
    if settings["epochs"] is None:
        settings["epochs"] = 30 if digits else 10
    if settings["batch_size"] is None:
        settings["batch_size"] = 32 if images < 10_000 else 64
    if settings["dropout"] is None:
        settings["dropout"] = 0.1 if images < 10_000 else 0.25
    if settings["augment"] in (None, "auto", "on"):
        other = "shift" if settings["augment"] == "on" else "none"
        settings["augment"] = "rotate" if digits else other


def _data(settings: dict[str, Any]) -> tuple[Any, Any, list[str]]:
    from gradsmith import data

    folder = settings["data"]
    if folder is None:
        train, test = data.digits()
    elif os.path.exists(os.path.join(folder, "data_batch_1.bin")) or os.path.isdir(
        os.path.join(folder, "cifar-10-batches-bin")
    ):
        train, test = data.cifar10(folder)
    else:
        train, test = data.idx_folder(folder)
    for part, name in ((train, "training"), (test, "test")):
        if not len(part):
            raise Refused(f"{folder}: there are no {name} images")
    if len(train.classes or []) < 2:
        raise Refused(f"{folder}: all labels are 0; there must be two classes or more")
    if settings["limit"] is not None:
        train = data.ArrayDataset(
            *(a[: settings["limit"]] for a in train.arrays), classes=train.classes
        )
    return train, test, list(train.classes or [])


def _loader(settings: dict[str, Any], train: Any) -> tuple[Any, Any]:
    from gradsmith import data

    x = train.arrays[0]
    standardize = data.Standardize().fit(x)
    steps: list[Any] = []
    if settings["augment"] == "rotate":
        steps.append(data.RandomRotate(10))
    if settings["augment"] == "flip":
        steps.append(data.RandomFlip())
    if settings["augment"] != "none":
        steps.append(data.RandomCrop(padding=max(1, round(max(x.shape[1:3]) / 32))))
    if steps:
        dataset, transform = train, data.Compose(*steps, standardize)
    else:  # once for all epochs
        dataset, transform = data.ArrayDataset(standardize(x), train.arrays[1]), None
    # A batch norm may see one value a channel where a last batch is one small image: such a batch is
    # left out, a different image each epoch.
    batch = settings["batch_size"]
    alone = settings["model"] == "resnet18" and batch > 1 and len(dataset) % batch == 1
    loader = data.Loader(
        dataset,
        batch,
        shuffle=True,
        seed=settings["seed"],
        drop_last=alone and len(dataset) > 1,
        transform=transform,
    )
    return standardize, loader


def _model_arguments(
    settings: dict[str, Any], shape: tuple[int, ...], classes: int
) -> tuple[list[Any], dict[str, Any]]:
    height, width, channels = shape
    if settings["model"] == "mlp":
        sizes = [height * width * channels, 256, 128, classes]
        return sizes, {"dropout": settings["dropout"]}
    arguments: dict[str, Any] = {"in_channels": channels, "num_classes": classes}
    if settings["model"] == "lenet":
        arguments |= {"image_size": [height, width], "dropout": settings["dropout"]}
    return [], arguments


def _optimizer(settings: dict[str, Any], model: Any) -> Any:
    from gradsmith import optim

    extra = {"momentum": 0.9, "nesterov": True} if settings["optimizer"] == "SGD" else {}
    # Biases and the two vectors of a normalisation are not decayed.
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings["weight_decay"]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return getattr(optim, settings["optimizer"])(groups, lr=settings["lr"], **extra)


def _scheduler(settings: dict[str, Any], optimizer: Any, updates: int) -> Any:
    from gradsmith.optim import lr_scheduler

    if settings["schedule"] == "onecycle":
        cycle = all("betas" in g or "momentum" in g for g in optimizer.param_groups)
        return lr_scheduler.OneCycleLR(
            optimizer, settings["lr"], updates, cycle_momentum=cycle, align_peak=True
        )
    if settings["schedule"] == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, updates)
    return lr_scheduler.ConstantLR(optimizer, 1.0)


def _confusion(scores: Any, y: Any, classes: int) -> Any:
    from gradsmith.train.metrics import ConfusionMatrix

    metric = ConfusionMatrix(classes)
    metric.update(scores, y)
    return metric.compute()


def _check_plot(path: str) -> None:
    """Before training: can this picture be written?"""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Refused('--plot needs matplotlib: pip install "gradsmith[plot]"') from None
    suffix = os.path.splitext(path)[1].lstrip(".").lower()
    known = Figure().canvas.get_supported_filetypes()
    if suffix not in known:
        raise Refused(f"--plot {path}: the suffix must be one of {', '.join(sorted(known))}")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise Refused(f"--plot {path}: the folder {folder} does not exist")
    there = path if os.path.exists(path) else folder
    if os.path.isdir(path) or not os.access(there, os.W_OK):
        raise Refused(f"--plot {path}: cannot be written")


# Runs on disk ----------------------------------------------------------------------------------


def _state_file(path: str) -> str:
    return path if path.endswith(".safetensors") else os.path.join(path, "last.safetensors")


def _new_out(args: argparse.Namespace) -> str | None:
    """``--out``, unless it would replace a run; None lets the data and the model name it."""
    if args.out is None:
        return None
    if not args.out:
        raise Refused("--out is empty; name a folder, or a .safetensors file")
    out = args.out.rstrip("/") or "/"
    files = [_state_file(out), os.path.join(out, "model.safetensors")]
    if any(map(os.path.exists, files)) and not args.overwrite:
        raise Refused(
            f"--out {args.out} holds a run already; add --resume to go on with it, --overwrite to "
            "replace it, or choose another name"
        )
    folder = os.path.dirname(out) if out.endswith(".safetensors") else out
    if folder and os.path.exists(folder) and not os.path.isdir(folder):
        raise Refused(f"--out {args.out}: {folder} is a file, not a folder")
    return out


def _free_name(settings: dict[str, Any]) -> str:
    data = "digits" if settings["data"] is None else os.path.basename(settings["data"])
    os.makedirs(RUNS, exist_ok=True)
    first = path = os.path.join(RUNS, f"{data or 'data'}-{settings['model']}")
    number = 1
    while True:
        try:
            os.mkdir(path)  # which one of several runs that begin at a time can do
            return path
        except FileExistsError:
            number += 1
            path = f"{first}-{number}"


def _resumed_path(args: argparse.Namespace) -> str | None:
    if args.resume is None:
        return None
    path = args.resume or args.out
    if args.resume and args.out and os.path.abspath(args.out) != os.path.abspath(args.resume):
        raise Refused("--resume PATH and --out name different runs; a run goes on in its place")
    if path:
        file = _state_file(path)
        if not os.path.exists(file):
            raise Refused(f"--resume {path}: there is no run (expected {file})")
        return file
    found = []
    if os.path.isdir(RUNS):
        files = [_state_file(os.path.join(RUNS, name)) for name in os.listdir(RUNS)]
        found = [file for file in files if os.path.isfile(file)]
    if not found:
        raise Refused(f"--resume: there is no run below ./{RUNS}; name one: --resume PATH")
    return max(found, key=os.path.getmtime)


def _out_of(file: str) -> str:
    folder, name = os.path.split(file)
    return folder or "." if name == "last.safetensors" else file


def _settings_of(file: str, args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the run in ``file``; options that differ from them are refused."""
    from gradsmith.interop.safetensors import load

    state = load(file)
    config = state.get("config") if isinstance(state, dict) else None
    settings = config.get("settings") if isinstance(config, dict) else None
    wanted = vars(args).keys() - FREE
    if not isinstance(settings, dict) or not wanted <= settings.keys() or "trainer" not in state:
        raise Refused(f"--resume: {file} is no run of gradsmith train (its state is not in it)")
    for name, value in vars(args).items():
        if name in FREE or value is None or (name == "augment" and value in ("auto", "on")):
            continue
        mine = settings[name]
        if name == "data":
            value = os.path.abspath(value)
        if name == "optimizer" and value.lower() == mine.lower():
            continue
        if value != mine:
            raise Refused(
                f"--{name.replace('_', '-')} {value} differs from the run in {file} "
                f"({mine}); a run goes on with its own settings. Leave --resume out for a "
                "new run"
            )
    return settings
