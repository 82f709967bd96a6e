"""The command line: ``gradsmith train | bench | info``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence

from .._version import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 failed, 2 wrong use, 130 Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the output (`| head`) has seen enough
        _output_to_nowhere()
        return 141
    except KeyboardInterrupt:  # outside of training, which takes care of it itself
        print("gradsmith: interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # the output cannot be written
        print(f"gradsmith: {error}", file=sys.stderr)
        _output_to_nowhere()
        return 1


def _output_to_nowhere() -> None:
    """What is still in the buffer of the standard output is let go, without an error at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(given: list[str]) -> int:
    if given[:1] == ["bench"]:  # it has its own parser
        from ..bench import main as bench

        return int(bench(given[1:]) or 0)
    parser = argparse.ArgumentParser(
        prog="gradsmith", description="Deep learning on hand-written kernels."
    )
    parser.add_argument("--version", action="version", version=f"gradsmith {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    from .train import add_arguments

    add_arguments(commands.add_parser("train", help="train a model on images"))
    commands.add_parser("bench", help="measure the kernels (gradsmith bench --help)")
    info = commands.add_parser("info", help="versions, instruction set, threads, measured peaks")
    info.add_argument("--no-measure", action="store_true", help="do not measure the peaks")
    args = parser.parse_args(given)
    if args.command == "train":
        from .train import run

        return run(args)
    if args.command == "info":
        from ..core.config import show_config

        print(show_config(measure=not args.no_measure))
        return 0
    parser.print_help()
    return 2
