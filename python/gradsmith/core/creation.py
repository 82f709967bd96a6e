"""Making tensors."""

from __future__ import annotations

from _thread import _local as Local  # as in recording.py
from typing import Any

import numpy as np

from .. import _cpu
from . import random, recording
from .arguments import integer, number
from .tensor import Tensor, check_device, resolve_dtype, wrap

__all__ = [
    "arange", "empty", "empty_like", "eye", "from_dlpack", "from_numpy", "full", "full_like", "linspace",
    "ones", "ones_like", "rand", "rand_like", "randint", "randn", "randn_like", "randperm", "tensor", "zeros",
    "zeros_like",
]  # fmt: skip


def _shape(shape: tuple, op: str) -> tuple[int, ...]:
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    for s in shape:
        if type(s) is not int or s < 0:
            break
    else:
        return shape
    dims = []
    for s in shape:
        if isinstance(s, bool) or not hasattr(s, "__index__"):
            raise TypeError(f"{op}: shape must be integers, got {s!r}")
        n = int(s)
        if n < 0:
            raise ValueError(f"{op}: negative dimension {n} in shape {tuple(shape)}")
        dims.append(n)
    return tuple(dims)


def _count(op: str, name: str, n: Any) -> int:
    """An integer of at least 0; no bool, which would count as 1."""
    if isinstance(n, bool):
        raise TypeError(f"{op}: {name} must be an integer, got a bool")
    n = integer(op, name, n)
    if n < 0:
        raise ValueError(f"{op}: negative {name}, got {n}")
    return n


def filled(shape: Any, dtype: Any, value: float = 0.0) -> np.ndarray:
    """An array of one value on memory of the pool, whose lines begin where vectors do; NumPy's do not."""
    dims = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(shape)
    a = _cpu.empty(dims, resolve_dtype(dtype))
    a.fill(value)
    return a


def _finish(a: np.ndarray, requires_grad: bool) -> Tensor:
    t = wrap(a, _cpu)
    if requires_grad:
        t.requires_grad = True
    return t


def tensor(
    data: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A Tensor with its own copy of `data`.

    data: an array, a Tensor, a number or nested lists of one length. Numbers and lists become float32 (integers
    int64, booleans bool); arrays keep their dtype. Errors as `Tensor`'s.

    >>> import gradsmith as gs
    >>> gs.tensor([[1.0, 2.0]]).shape
    (1, 2)
    """
    check_device(device, "tensor")
    t = Tensor(data, dtype=dtype)
    t.data = _cpu.copy(t.data)
    if requires_grad:
        t.requires_grad = True
    return t


def from_numpy(array: np.ndarray) -> Tensor:
    """A Tensor that shares memory with `array`, of its shape and dtype: what is written into one shows in the other.

    TypeError: no NumPy array, or of a dtype that Tensors do not have.

    >>> import numpy as np, gradsmith as gs
    >>> a = np.zeros(2, np.float32)
    >>> t = gs.from_numpy(a); a[0] = 5
    >>> t.tolist()
    [5.0, 0.0]
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: expected a NumPy array, got {type(array).__name__}")
    return Tensor(array)


def from_dlpack(x: Any) -> Tensor:
    """A Tensor that shares memory with any CPU array that speaks DLPack (torch, jax, ...), of its shape and dtype.

    TypeError: x has no `__dlpack__`, or a dtype that Tensors do not have. Source: the DLPack standard, as in the
    Python array API.

    >>> import numpy as np, gradsmith as gs  # in place of NumPy, torch
    >>> gs.from_dlpack(np.arange(3)).tolist()
    [0, 1, 2]
    """
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"from_dlpack: {type(x).__name__} has no __dlpack__")
    return Tensor(np.from_dlpack(x))


def empty(
    *shape: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A Tensor of undefined content on pooled memory: for what is written before it is read.

    Arguments and errors as in `zeros`.

    >>> import gradsmith as gs
    >>> x = gs.empty(2, 3); _ = x.fill_(1.0)
    >>> x.shape, x.sum().item()
    ((2, 3), 6.0)
    """
    check_device(device, "empty")
    return _finish(_cpu.empty(_shape(shape, "empty"), resolve_dtype(dtype, "empty")), requires_grad)


def full(
    size: Any,
    fill_value: Any,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """A Tensor filled with one value; dtype None: float32, int64 or bool, as the value is.

    size: an integer or a tuple of them. TypeError: fill_value is no number. ValueError: it does not fit
    dtype. Other arguments and errors as in `zeros`.

    >>> import gradsmith as gs
    >>> gs.full((2,), 0.5).tolist()
    [0.5, 0.5]
    """
    size = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if dtype is None:
        value = fill_value.item() if isinstance(fill_value, (np.generic, Tensor)) else fill_value
        dtype = {bool: np.bool_, int: np.int64}.get(type(value), np.float32)
    return _filled("full", size, fill_value, dtype, device, requires_grad)


def _filled(
    op: str, size: tuple, value: Any, dtype: Any, device: str, requires_grad: bool
) -> Tensor:
    check_device(device, op)
    data = _cpu.empty(_shape(size, op), resolve_dtype(dtype, op))
    if not isinstance(value, (int, float)):
        number(op, "fill_value", value)  # NumPy fills with NaN for None
    try:
        data.fill(value)
    except (TypeError, ValueError, OverflowError) as error:
        number(op, "fill_value", value)
        raise ValueError(f"{op}: {error}") from None
    return _finish(data, requires_grad)


def zeros(
    *shape: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A Tensor of zeros.

    shape: integers, or one tuple or list of them. dtype: float32 (the default), float64, int32, int64, uint8 or
    bool, by NumPy's type or its name. TypeError: a size that is no integer, another dtype, requires_grad without a
    float dtype. ValueError: a negative size, another device than "cpu".

    >>> import gradsmith as gs
    >>> gs.zeros(2, 3).shape, gs.zeros((2, 3), dtype="int64").dtype.name
    ((2, 3), 'int64')
    """
    return _filled("zeros", shape, 0, dtype, device, requires_grad)


def ones(
    *shape: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A Tensor of ones. Arguments and errors as in `zeros`.

    >>> import gradsmith as gs
    >>> gs.ones(3).tolist()
    [1.0, 1.0, 1.0]
    """
    return _filled("ones", shape, 1, dtype, device, requires_grad)


def _alike(x: Any, dtype: Any, op: str) -> tuple[tuple[int, ...], Any]:
    """The shape of x, and dtype or else its own; an array will do."""
    if not isinstance(x, (Tensor, np.ndarray)):
        raise TypeError(f"{op}: expected a Tensor, got {type(x).__name__}")
    return x.shape, x.dtype if dtype is None else dtype


def empty_like(
    x: Tensor, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A Tensor of undefined content in the shape (and dtype) of x. TypeError: x is no Tensor or array.

    >>> import gradsmith as gs
    >>> gs.empty_like(gs.zeros(2, 3)).shape
    (2, 3)
    """
    shape, dtype = _alike(x, dtype, "empty_like")
    check_device(device, "empty_like")
    return _finish(_cpu.empty(shape, resolve_dtype(dtype, "empty_like")), requires_grad)


def zeros_like(
    x: Tensor, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """Zeros of the shape (and dtype) of x. TypeError: x is no Tensor or array.

    >>> import gradsmith as gs
    >>> gs.zeros_like(gs.tensor([3, 4])).tolist()
    [0, 0]
    """
    shape, dtype = _alike(x, dtype, "zeros_like")
    return _filled("zeros_like", shape, 0, dtype, device, requires_grad)


def ones_like(
    x: Tensor, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """Ones of the shape (and dtype) of x. TypeError: x is no Tensor or array.

    >>> import gradsmith as gs
    >>> gs.ones_like(gs.tensor([3, 4]), dtype="float32").tolist()
    [1.0, 1.0]
    """
    shape, dtype = _alike(x, dtype, "ones_like")
    return _filled("ones_like", shape, 1, dtype, device, requires_grad)


def full_like(
    x: Tensor,
    fill_value: Any,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """One value in the shape (and dtype) of x. TypeError: x is no Tensor or array, fill_value no number.

    >>> import gradsmith as gs
    >>> gs.full_like(gs.zeros(2), 7).tolist()
    [7.0, 7.0]
    """
    shape, dtype = _alike(x, dtype, "full_like")
    return _filled("full_like", shape, fill_value, dtype, device, requires_grad)


_INTEGERS = (int, np.integer)


def _numbers(op: str, **arguments: Any) -> None:
    """TypeError for the first argument that is no number."""
    for name, value in arguments.items():
        number(op, name, value)


def arange(
    start: Any,
    end: Any = None,
    step: Any = 1,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, ... below end: ceil((end - start) / step) numbers; int64 for integers, float32 otherwise.

    With one number, that is the end and 0 the start. A negative step goes down to above end. TypeError: start, end
    or step is no number. ValueError: step 0.

    >>> import gradsmith as gs
    >>> gs.arange(3).tolist(), gs.arange(1.0, 0.0, -0.25).tolist()
    ([0, 1, 2], [1.0, 0.75, 0.5, 0.25])
    """
    check_device(device, "arange")
    if end is None:
        start, end = 0, start
        _numbers("arange", end=end)
    if dtype is None:
        whole = isinstance(start, _INTEGERS) and isinstance(end, _INTEGERS)
        dtype = np.int64 if whole and isinstance(step, _INTEGERS) else np.float32
    if step == 0:
        raise ValueError("arange: step must not be 0")
    try:
        a = np.arange(start, end, step)
    except (TypeError, ValueError, OverflowError) as error:
        _numbers("arange", start=start, end=end, step=step)
        raise ValueError(
            f"arange: from {start} to {end} in steps of {step} is no array: {error}"
        ) from None
    if a.dtype.kind not in "iufb":
        _numbers("arange", start=start, end=end, step=step)
    a = a.astype(resolve_dtype(dtype, "arange"))
    return _finish(a, requires_grad)


def linspace(
    start: float,
    end: float,
    steps: int,
    dtype: Any = np.float32,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """`steps` numbers from start to end, both included: start + i (end - start) / (steps - 1).

    TypeError: start or end is no number, steps no integer. ValueError: negative steps.

    >>> import gradsmith as gs
    >>> gs.linspace(0, 1, 5).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    check_device(device, "linspace")
    steps = _count("linspace", "steps", steps)
    try:
        a = np.linspace(start, end, steps)
    except (TypeError, ValueError):
        _numbers("linspace", start=start, end=end)
        raise
    if a.dtype.kind != "f" or a.ndim != 1:
        _numbers("linspace", start=start, end=end)
    a = a.astype(resolve_dtype(dtype, "linspace"))
    return _finish(a, requires_grad)


def eye(
    n: int,
    m: int | None = None,
    dtype: Any = np.float32,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """Ones on the diagonal of an (n, m) matrix, zeros elsewhere; m None: (n, n). Errors as in `zeros`.

    >>> import gradsmith as gs
    >>> gs.eye(2, 3).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    check_device(device, "eye")
    n = _count("eye", "n", n)
    m = n if m is None else _count("eye", "m", m)
    return _finish(np.eye(n, m, dtype=resolve_dtype(dtype, "eye")), requires_grad)


def rand(
    *shape: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """Uniform numbers in [0, 1) from the stream of `manual_seed`.

    The same numbers on any number of threads (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011).
    Arguments and errors as in `zeros`; float dtypes only (TypeError).

    >>> import gradsmith as gs
    >>> x = gs.rand(1000)
    >>> x.min().item() >= 0, x.max().item() < 1
    (True, True)
    """
    return _drawn("rand", _cpu.uniform, shape, dtype, device, requires_grad)


def randn(
    *shape: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """Standard normal numbers from the stream of `manual_seed`.

    The same numbers on any number of threads, as in `rand`. Arguments and errors as in `zeros`; float dtypes only
    (TypeError).

    >>> import gradsmith as gs
    >>> x = gs.randn(10000)
    >>> abs(x.mean().item()) < 0.1, abs(x.std().item() - 1) < 0.1
    (True, True)
    """
    return _drawn("randn", _cpu.normal, shape, dtype, device, requires_grad)


def _drawn(
    op: str, kernel: Any, shape: tuple, dtype: Any, device: str, requires_grad: bool
) -> Tensor:
    check_device(device, op)
    name, dims = resolve_dtype(dtype, op), _shape(shape, op)
    if name.kind != "f":
        raise TypeError(f"{op}: dtype must be float32 or float64, got {name}")
    seed, counter = random.next_counter()
    return _finish(kernel(dims, name, 0.0, 1.0, seed, counter), requires_grad)


def rand_like(
    x: Tensor, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """`rand` in the shape (and dtype) of x. TypeError: x is no float Tensor or array.

    >>> import gradsmith as gs
    >>> gs.rand_like(gs.zeros(2, 3)).shape
    (2, 3)
    """
    shape, dtype = _alike(x, dtype, "rand_like")
    return _drawn("rand_like", _cpu.uniform, shape, dtype, device, requires_grad)


def randn_like(
    x: Tensor, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """`randn` in the shape (and dtype) of x. TypeError: x is no float Tensor or array.

    >>> import gradsmith as gs
    >>> gs.randn_like(gs.zeros(2, 3)).shape
    (2, 3)
    """
    shape, dtype = _alike(x, dtype, "randn_like")
    return _drawn("randn_like", _cpu.normal, shape, dtype, device, requires_grad)


_local = Local()  # the generator of each thread: making one takes 15 us


def _generator() -> np.random.Generator:
    """NumPy's generator at the next counter of our stream."""
    recording.host_read(*_HOST_DRAW)
    seed, counter = random.next_counter()
    made = getattr(_local, "generator", None)
    if made is None:
        made = _local.generator = np.random.Generator(np.random.Philox(key=0))
    made.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": np.array([0, 0, 0, counter], np.uint64),
            "key": np.array([seed, 0], np.uint64),
        },
        "buffer": _NO_BUFFER,
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    return made


_NO_BUFFER = np.zeros(4, np.uint64)
_HOST_DRAW = ("a draw of random integers", "Draw them outside and pass them in")


def randint(
    low: Any, high: Any = None, size: Any = (), dtype: Any = np.int64, device: str = "cpu"
) -> Tensor:
    """Uniform integers in [low, high) from the stream of `manual_seed`; also randint(high, size).

    size: an integer or a tuple of them. TypeError: low, high or size is no integer. ValueError: high is
    not above low.

    >>> import gradsmith as gs
    >>> gs.randint(10, (2, 3)).shape, gs.randint(5, 10, (4,)).shape
    ((2, 3), (4,))
    """
    check_device(device, "randint")
    if isinstance(high, (tuple, list)):
        low, high, size = 0, low, high
    if high is None:
        low, high = 0, low
    if type(low) is not int or type(high) is not int:
        low, high = integer("randint", "low", low), integer("randint", "high", high)
    if high <= low:
        raise ValueError(f"randint: high ({high}) must be above low ({low})")
    if low < -(2**63) or high > 2**63:
        raise ValueError(f"randint: {low} .. {high} is not within int64")
    shape = _shape((size,), "randint")
    if high < 2**63:
        recording.host_read(*_HOST_DRAW)
        seed, counter = random.next_counter()
        a = _cpu.random_integers(seed, counter, low, high, shape)
        if dtype is np.int64:
            return wrap(a, _cpu)
    else:
        a = _generator().integers(low, high, size=shape, dtype=np.int64)
    return wrap(a.astype(resolve_dtype(dtype, "randint")), _cpu)


def randperm(n: int) -> Tensor:
    """A random permutation of 0 .. n - 1, int64 (n,), from the stream of `manual_seed`.

    TypeError: n is no integer. ValueError: it is negative.

    >>> import gradsmith as gs
    >>> sorted(gs.randperm(5).tolist())
    [0, 1, 2, 3, 4]
    """
    n = _count("randperm", "n", n)
    return wrap(_generator().permutation(n), _cpu)
