"""Loads the compiled module, and says what to do where that fails."""

import os
import sys

__all__ = ["_cpu"]


def _is_command() -> bool:
    """Whether this process is ``gradsmith ...`` or ``python -m gradsmith ...``."""
    name = sys.argv[0] if sys.argv else ""
    if name == "-m":  # the package is imported to find its __main__
        words = sys.orig_argv
        after = words[words.index("-m") + 1 :] if "-m" in words else []
        return bool(after) and after[0].split(".")[0] == "gradsmith"
    return os.path.basename(name).removesuffix(".exe") == "gradsmith"


def _in_main_interpreter() -> bool:
    try:
        from _thread import _is_main_interpreter  # type: ignore[attr-defined]  # from Python 3.12 on

        return bool(_is_main_interpreter())
    except ImportError:
        pass
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:
        return True
    return bool(interpreters.get_current() == interpreters.get_main())


if not _in_main_interpreter():  # where the module would wait forever for its lock
    raise ImportError(
        "gradsmith cannot be imported in a subinterpreter; run it in the main one (mod_wsgi: "
        "WSGIApplicationGroup %{GLOBAL})"
    )
try:
    from . import _cpu
except ImportError as error:
    text = str(error)
    if "cannot import name '_cpu'" in text:  # Python suspects a circular import
        text = (
            "the compiled module gradsmith._cpu for Python {}.{} is missing in {}; pip install the package, and "
            "do not import its source folder"
        ).format(*sys.version_info[:2], os.path.dirname(__file__))
    if _is_command():
        print(f"gradsmith: {text}", file=sys.stderr)
        raise SystemExit(2) from None
    if text == str(error):  # among them GRADSMITH_...=...: expected ...
        raise
    raise ImportError(text, name="gradsmith._cpu") from None
