"""Checkpoints: any nested state in one safetensors file, written all or nothing.

Arrays become tensors named by their path in the state, joined with ``/`` (``model/conv.weight``);
everything else (numbers, strings, None, lists, the nesting itself) goes as JSON into the header's
``__metadata__`` under the key ``gradsmith``. So the tensors can be read by every safetensors reader
and ``load`` gives back what ``save`` got. Nothing is ever pickled.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core import recording

__all__ = ["load", "save"]

_KEY = "gradsmith"  # our entry in __metadata__: {"version": 1, "state": tree}
_VERSION = 1
_MAX_HEADER = 100_000_000  # bytes; the limit every safetensors reader shares

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # NumPy has no bfloat16: widened to float32 after reading
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_SAVED = frozenset(np.dtype(v).newbyteorder("=") for v in _DTYPES.values())
_SCALARS = frozenset(d.name for d in _SAVED)


# ---- the state as a tree of JSON and a flat dict of arrays ---------------------------------------


def _where(path: tuple[Any, ...]) -> str:
    return "state" + "".join(f"[{key!r}]" for key in path)


def _tensor_data(value: Any) -> np.ndarray | None:
    """The array inside a Tensor (anything with an ndarray in ``.data``), else None."""
    data = getattr(value, "data", None)
    return data if isinstance(data, np.ndarray) else None


class _Flattener:
    """Walks a state once: arrays go to ``tensors``, the rest becomes the returned JSON tree.

    Dicts with string keys are JSON objects and lists are JSON lists; what JSON cannot tell apart is
    an object with one key that starts with ``$``: ``$array``, ``$tensor`` (name in the file),
    ``$tuple`` (items), ``$numpy`` (dtype, value), ``$items`` (pairs: other keys, or keys with $).
    """

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}

    def add(self, array: np.ndarray, path: tuple[Any, ...]) -> str:
        if array.dtype.newbyteorder("=") not in _SAVED:
            raise TypeError(
                f"save: {_where(path)} is an array of {array.dtype}; a safetensors file holds "
                "bool, integers and float16/32/64. Convert it first."
            )
        stem = name = "/".join(str(key) for key in path) or "value"
        twin = 0  # {"a/b": x, "a": {"b": y}} asks for the same name twice
        while name in self.tensors or name == "__metadata__":
            twin += 1
            name = f"{stem}~{twin}"
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"save: the key of {_where(path)} is not valid Unicode") from None
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        self.tensors[name] = np.require(np.asarray(native), requirements="C").reshape(array.shape)
        return name

    def walk(self, value: Any, path: tuple[Any, ...] = ()) -> Any:
        if value is None or value is True or value is False:
            return value
        if isinstance(value, np.ndarray):
            return {"$array": self.add(value, path)}
        if isinstance(value, np.generic):  # before float: np.float64 is one
            if value.dtype.name not in _SCALARS:
                raise TypeError(f"save: {_where(path)} is a {type(value).__name__} scalar")
            return {"$numpy": [value.dtype.name, value.item()]}
        if isinstance(value, (str, int, float)):
            return value
        if isinstance(value, Mapping):
            plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
            if plain:
                return {str(key): self.walk(item, (*path, key)) for key, item in value.items()}
            for key in value:
                if not isinstance(key, (str, int)) or isinstance(key, (bool, np.generic)):
                    raise TypeError(
                        f"save: {_where(path)} has the key {key!r} ({type(key).__name__}); "
                        "keys must be str or int"
                    )
            return {"$items": [[key, self.walk(v, (*path, key))] for key, v in value.items()]}
        if isinstance(value, (list, tuple)):
            items = [self.walk(item, (*path, i)) for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        data = _tensor_data(value)
        if data is not None:
            return {"$tensor": self.add(data, path)}
        raise TypeError(
            f"save: {_where(path)} is a {type(value).__name__}; expected Tensors, arrays, dicts, "
            "lists, tuples, str, int, float, bool or None"
        )


def _rebuild(node: Any, tensors: dict[str, np.ndarray], used: set[str]) -> Any:
    if isinstance(node, list):
        return [_rebuild(item, tensors, used) for item in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1:
        ((kind, value),) = node.items()
        if kind in ("$array", "$tensor"):
            if not isinstance(value, str) or value not in tensors:
                raise ValueError(f"its metadata names the tensor {value!r}, which is not in it")
            used.add(value)
            if kind == "$array":
                return tensors[value]
            from ..core.tensor import Tensor

            try:
                return Tensor(tensors[value])
            except TypeError:
                dtype = tensors[value].dtype
                raise ValueError(
                    f"its metadata calls {value!r} a Tensor, which {dtype} cannot be"
                ) from None
        if kind == "$tuple" and isinstance(value, list):
            return tuple(_rebuild(item, tensors, used) for item in value)
        if kind == "$numpy" and isinstance(value, list) and len(value) == 2:
            if value[0] not in _SCALARS or not isinstance(value[1], (bool, int, float)):
                raise ValueError(f"its metadata holds a malformed scalar {value!r}")
            scalar = np.dtype(value[0]).type(value[1])
            if scalar != value[1] and value[1] == value[1]:  # nan differs from itself
                raise ValueError(f"its metadata holds {value[1]!r} as {value[0]}")
            return scalar
        if kind == "$items" and isinstance(value, list):
            result = {}
            for pair in value:
                if not (isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int)):
                    raise ValueError("its metadata holds a malformed dict")
                result[pair[0]] = _rebuild(pair[1], tensors, used)
            return result
        if kind.startswith("$"):
            raise ValueError(f"its metadata holds an unknown entry {kind!r}")
    return {key: _rebuild(item, tensors, used) for key, item in node.items()}


# ---- writing -------------------------------------------------------------------------------------


def save(state: Any, path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> None:
    """Write a nested state to one safetensors file; either all of it or nothing.

    ``state`` is made of dicts (keys str or int), lists, tuples, Tensors, NumPy arrays and scalars,
    str, int, float (also nan and inf), bool and None. ``metadata`` adds strings to the header.

    The bytes go to a temporary file beside ``path``, which is flushed to the disk and then
    renamed over ``path``: whatever happens (full disk, crash, kill), ``path`` holds either the old
    file or the new one.

    Raises:
        TypeError: something in ``state`` cannot be stored; the message says where it is.
        OSError: the file cannot be written; the previous file is as it was.

    >>> import numpy as np, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "a.safetensors")
    >>> save({"model": {"weight": np.ones((2, 3), np.float32)}, "epoch": 3, "lr": 0.1}, path)
    >>> state = load(path)
    >>> state["model"]["weight"].shape, state["epoch"], state["lr"]
    ((2, 3), 3, 0.1)
    """
    recording.host_read("save", "Save after the call")
    target = os.path.realpath(os.fspath(path))  # a symbolic link stays one
    flat = _Flattener()
    try:
        tree = flat.walk(state)
        text = json.dumps({"version": _VERSION, "state": tree}, separators=(",", ":"))
    except RecursionError:
        raise ValueError("save: the state is nested too deeply, or contains itself") from None
    header = dict(metadata or {})
    for key, value in header.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"save: metadata[{key!r}] must be a str, got {type(value).__name__}")
    if _KEY in header:
        raise ValueError(f"save: the metadata key {_KEY!r} is taken by gradsmith itself")
    header[_KEY] = text
    _write(flat.tensors, target, header, os.fspath(path))


def _write(tensors: dict[str, np.ndarray], target: str, header: dict[str, str], shown: str) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder, name = os.path.split(target)
    beside = ""
    try:
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, "is a folder; expected a file name")
        if os.path.exists(target) and not os.path.isfile(target):  # root could replace /dev/null
            raise OSError(errno.EINVAL, "is a device or a pipe; expected a file name")
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, f"the folder {folder} does not exist")
        _remove_stale(folder, name)
        beside = _make_beside(folder, name)
        temporary = os.path.join(beside, "new")
        mode = _file_mode(target, beside)
        save_file(tensors, temporary, metadata=header)
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
        _sync_folder(folder)
    except (OSError, SafetensorError) as error:
        code = getattr(error, "errno", None) or errno.EIO
        reason = getattr(error, "strerror", None) or str(error)
        # what the safetensors library passes on, in its newer and older wording
        told = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", reason)
        if told:
            code = int(told.group(1) or told.group(2))
            reason = os.strerror(code)
        # OSError picks the subclass that belongs to the code
        raise OSError(code, f"save: cannot write the checkpoint: {reason}", shown) from error
    finally:
        if beside:
            _remove_folder(beside)


def _temporary_prefix(name: str) -> str:
    return f".{name[:40]}.{socket.gethostname()[:40]}-"


def _make_beside(folder: str, name: str) -> str:
    """A new folder in ``folder``: all that is unfinished stays in it, also after a kill."""
    for attempt in range(1000):
        path = os.path.join(folder, f"{_temporary_prefix(name)}{os.getpid()}-{attempt}.tmp")
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
            return path
    raise FileExistsError(errno.EEXIST, "too many temporary folders beside it")


def _file_mode(target: str, beside: str) -> int:
    """The permissions of the file that is replaced, else those a new file gets."""
    with contextlib.suppress(OSError):
        return os.stat(target).st_mode & 0o777
    path = os.path.join(beside, "mode")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
    return os.stat(path).st_mode & 0o777


def _remove_folder(path: str) -> None:
    with contextlib.suppress(OSError):
        for entry in os.listdir(path):
            os.remove(os.path.join(path, entry))
        os.rmdir(path)


def _remove_stale(folder: str, name: str) -> None:
    """Remove what a killed process of this machine left while it wrote the same file."""
    prefix = _temporary_prefix(name)
    if os.name != "posix":
        return
    for entry in os.listdir(folder):
        if not (entry.startswith(prefix) and entry.endswith(".tmp")):
            continue
        process = entry[len(prefix) :].split("-")[0]
        if not (process.isascii() and process.isdigit()):
            continue
        try:
            os.kill(int(process), 0)
        except (ProcessLookupError, OverflowError):
            _remove_folder(os.path.join(folder, entry))
        except OSError:
            pass  # alive, but another user's


def _sync_folder(folder: str) -> None:
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse; the rename is done
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ---- reading -------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], with_metadata: bool = False) -> Any:
    """Read a safetensors file: what ``save`` got, or ``{name: array}`` of anybody else's file.

    Arrays come back as arrays and Tensors as Tensors, each with memory of its own. In files that
    ``save`` did not write, bfloat16 and float16 tensors come as float32. Everything is checked
    before memory is taken: header, names, dtypes, shapes and offsets against the file's length.

    Returns the state, or ``(state, metadata)`` with ``with_metadata=True``, where ``metadata`` is
    the dict of strings that was given to ``save``.

    Raises:
        ValueError: not a safetensors file, truncated or damaged; names the file and the problem.
        OSError: the file cannot be opened or read.

    >>> import gradsmith as gs, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "a.safetensors")
    >>> gs.save(gs.nn.Linear(3, 2).state_dict(), path)
    >>> {name: t.shape for name, t in gs.load(path).items()}
    {'weight': (2, 3), 'bias': (2,)}
    """
    shown = os.fspath(path)
    try:
        with open(path, "rb", buffering=0) as file:
            tensors, kinds, header = _read(file)
        if _KEY not in header:
            state = {name: _widen(array, kinds[name]) for name, array in tensors.items()}
        else:
            state = _restore(header.pop(_KEY), tensors, kinds)
    except UnicodeDecodeError:
        raise ValueError(f"load: {shown}: its header is not UTF-8 text; damaged file?") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"load: {shown}: its header is not valid JSON ({error})") from None
    except ValueError as error:
        raise ValueError(f"load: {shown}: {error}") from None
    except RecursionError:
        raise ValueError(f"load: {shown}: its header is nested too deeply") from None
    except (OverflowError, MemoryError) as error:
        raise ValueError(f"load: {shown}: {type(error).__name__}: {error}") from None
    return (state, header) if with_metadata else state


def _widen(array: np.ndarray, kind: str) -> np.ndarray:
    if kind == "BF16":
        from .. import _cpu

        return _cpu.bfloat16_to_float32(array.astype(np.uint16))  # aligned and in native byte order
    return array.astype(np.float32) if kind == "F16" else array


def _restore(text: str, tensors: dict[str, np.ndarray], kinds: dict[str, str]) -> Any:
    document = json.loads(text)
    if not isinstance(document, dict) or "state" not in document or "version" not in document:
        raise ValueError("its gradsmith metadata is damaged")
    if document["version"] != _VERSION:
        raise ValueError(
            f"written in checkpoint format {document['version']!r}; this gradsmith reads format "
            f"{_VERSION}. Use the gradsmith version that wrote it, or a newer one."
        )
    for name, kind in kinds.items():
        if kind == "BF16":
            tensors[name] = _widen(tensors[name], kind)
    used: set[str] = set()
    state = _rebuild(document["state"], tensors, used)
    if len(used) != len(tensors):
        spare = min(tensors.keys() - used)
        raise ValueError(f"it holds the tensor {spare!r}, which its metadata does not list")
    return state


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"its header holds the name {twice!r} twice")
    return result


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _read(file: Any) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    """The tensors as stored, their safetensors dtypes, and the metadata."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"it has {size} bytes; a safetensors file has at least 10. Truncated?")
    (length,) = struct.unpack("<Q", start)
    if length > size - 8 or length > _MAX_HEADER:
        raise ValueError(
            f"its first 8 bytes announce a header of {length} bytes, but the file has {size}; "
            "truncated, or not a safetensors file"
        )
    text = _read_exactly(file, bytearray(length)).decode()
    if not text.startswith("{"):
        raise ValueError("its header does not start with '{'; not a safetensors file")
    document = json.loads(text, object_pairs_hook=_unique)

    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its __metadata__ is not a dict of strings")
    room = size - 8 - length
    entries = sorted(
        (_entry(name, entry, room) for name, entry in document.items()),
        key=lambda entry: (entry[3], entry[4]),
    )
    position = 0
    for name, _, _, begin, end in entries:
        if begin != position:
            problem = "overlaps the tensor before it" if begin < position else "leaves a gap"
            raise ValueError(f"the data of tensor {name!r} (bytes {begin} to {end}) {problem}")
        position = end
    if position != room:
        raise ValueError(f"its tensors take {position} bytes, but {room} follow the header")

    tensors: dict[str, np.ndarray] = {}
    for name, kind, shape, _, _ in entries:  # in file order: one sequential read
        array = np.empty(shape, _DTYPES[kind])
        if array.size:
            flat = array.reshape(-1).view(np.uint8)
            _read_exactly(file, flat)
            if kind == "BOOL" and flat.max() > 1:
                raise ValueError(f"tensor {name!r} is BOOL but holds bytes other than 0 and 1")
        tensors[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    kinds = {entry[0]: entry[1] for entry in entries}
    return {name: tensors[name] for name in document}, kinds, metadata


def _entry(name: str, entry: Any, room: int) -> tuple[str, str, tuple[int, ...], int, int]:
    """One tensor of the header, checked: name, dtype, shape, first and last byte."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the header entry of tensor {name!r} lacks dtype, shape or data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(
            f"tensor {name!r} has dtype {kind!r}; gradsmith reads {', '.join(_DTYPES)}"
        )
    if not isinstance(shape, list) or not all(map(_is_count, shape)) or len(shape) > 32:
        raise ValueError(f"tensor {name!r} has the shape {str(shape)[:80]}; expected sizes >= 0")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise ValueError(f"tensor {name!r} has the data_offsets {str(offsets)[:80]}")
    begin, end = offsets
    if not begin <= end <= room:
        raise ValueError(
            f"tensor {name!r} lies at bytes {begin} to {end}, but the file has {room} bytes of data"
        )
    expected = math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize
    if expected != end - begin:
        raise ValueError(
            f"tensor {name!r} of shape {tuple(shape)} and dtype {kind} needs {expected} bytes; "
            f"the header gives it {end - begin}"
        )
    return name, kind, tuple(shape), begin, end


def _read_exactly(file: Any, buffer: Any) -> Any:
    view = memoryview(buffer)
    while len(view):
        count = file.readinto(view)
        if not count:
            raise ValueError("the file ended while it was read; is something writing to it?")
        view = view[count:]
    return buffer
