"""The Tensor: a NumPy array with a place in the graph of gradients."""

from __future__ import annotations

import builtins
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .. import _cpu

__all__ = ["Parameter", "Tensor", "as_tensor", "check_device", "resolve_dtype", "wrap"]

_TYPES = (np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_)
_DTYPES = {np.dtype(t) for t in _TYPES}
_REAL = (int, float, np.integer, np.floating, np.bool_)
_BY_TYPE: dict[Any, np.dtype] = {t: np.dtype(t) for t in _TYPES}
_hook_ids = itertools.count()


def resolve_dtype(dtype: Any, op: str = "dtype") -> np.dtype:
    """np.dtype of a name, type or dtype; TypeError when gradsmith does not know it."""
    if isinstance(dtype, type):
        known = _BY_TYPE.get(dtype)
        if known is not None:
            return known
    try:
        d = np.dtype(dtype)
    except TypeError:
        other = "neither a device ('cpu') nor a dtype" if op.endswith("to") else "not a dtype"
        raise TypeError(
            f"{op}: {dtype!r} is {other}; use 'float32', 'float64', 'int64', ..."
        ) from None
    if d not in _DTYPES:
        raise TypeError(
            f"{op}: dtype {d} is not supported; use float32, float64, int32, int64, uint8 or bool"
        )
    return d


def check_device(device: Any, op: str = "device") -> str:
    """Normalises a device string; ValueError when it is unknown or not there."""
    if device == "cpu":
        return "cpu"
    name = str(device)
    if name == "cpu":
        return name
    if name == "cuda" or name.startswith("cuda:"):
        raise ValueError(
            f"{op}: device {name!r} is not available: this build has no CUDA module. Use 'cpu'"
        )
    raise ValueError(f"{op}: unknown device {name!r}; use 'cpu' or 'cuda[:n]'")


class Size(builtins.int):
    """The number of elements of a tensor; called with nothing its shape, with an axis that axis's length."""

    shape: tuple[builtins.int, ...]

    @overload
    def __call__(self, dim: None = None) -> tuple[builtins.int, ...]: ...
    @overload
    def __call__(self, dim: builtins.int) -> builtins.int: ...
    def __call__(self, dim: builtins.int | None = None) -> Any:
        if dim is None:
            return self.shape
        try:
            return self.shape[dim]
        except IndexError:
            raise IndexError(f"size: axis {dim} of a tensor of shape {self.shape}") from None


class Tensor(_cpu.TensorBase):
    """An array with `.grad`: NumPy in, NumPy out, arithmetic by gradsmith's kernels.

    data: anything NumPy reads. Python numbers and lists of them become float32, integer lists int64;
    arrays keep their dtype. Layout is channels last: images (N, H, W, C), sequences (N, T, C).
    Raises TypeError for dtypes other than float32, float64, int32, int64, uint8 and bool.

    >>> import gradsmith as gs
    >>> x = gs.tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad.tolist()
    [2.0, 4.0]
    """

    __array_ufunc__ = None  # array + tensor asks the tensor
    __hash__ = object.__hash__

    # The fields are those of a C struct (csrc/bindings/autograd.h, typed in _cpu.pyi).
    __slots__ = ()

    def __init__(
        self, data: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
    ):
        check_device(device, "Tensor")
        a = _array_of(data, dtype)
        self.data = a
        self._k = _cpu
        if requires_grad:
            self.requires_grad = True

    # ---- what it is
    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    def dim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> Size:
        """How many elements, NumPy's `x.size`; called, it is PyTorch's: `x.size()` the shape, `x.size(0)` an axis."""
        n = Size(self.data.size)
        n.shape = self.data.shape
        return n

    def numel(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def is_leaf(self) -> bool:
        return self._node is None

    @property
    def grad_fn(self) -> Any:
        return self._node

    @property
    def requires_grad(self) -> bool:
        return self._rg

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        flag = bool(flag)
        if self._node is not None:
            if not flag:
                raise RuntimeError(
                    "requires_grad: only a leaf can be switched off; use detach() to cut the graph"
                )
            return
        if flag and self.data.dtype.kind != "f":
            raise TypeError(
                f"requires_grad: only float tensors have gradients, this one is {self.data.dtype}"
            )
        self._rg = flag

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Sets whether a gradient is wanted; returns the tensor. Only float leaves may change.

        >>> import gradsmith as gs
        >>> gs.ones(2).requires_grad_().requires_grad
        True
        """
        self.requires_grad = requires_grad
        return self

    @property
    def grad(self) -> Tensor | None:
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f"grad: must be a Tensor or None, got {type(value).__name__}")
            if value.shape != self.shape or value.dtype != self.dtype:
                raise ValueError(
                    f"grad: has shape {value.shape} and dtype {value.dtype}, its tensor {self.shape} and {self.dtype}"
                )
        self._grad = value

    # ---- out of gradsmith
    def numpy(self) -> np.ndarray:
        """The array itself, sharing memory. RuntimeError when a gradient is required: detach() first."""
        if self._rg:
            raise RuntimeError("numpy: this tensor requires a gradient; use .detach().numpy()")
        return self.data

    def tolist(self) -> Any:
        """The values as nested lists; a number for 0 axes."""
        return self.data.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._rg:
            raise RuntimeError("this tensor requires a gradient; use .detach().numpy()")
        if dtype is not None and np.dtype(dtype) != self.data.dtype:
            return self.data.astype(dtype)
        return self.data.copy() if copy else self.data

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.numpy().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        if self.data.size != 1:
            raise ValueError(
                f"the truth of a tensor of shape {self.shape} is ambiguous; use .any() or .all()"
            )
        return bool(self.data.item())

    def __index__(self) -> int:
        if self.data.dtype.kind not in "iu":
            raise TypeError("only integer tensors of one element can be an index")
        return int(self.item())

    def __len__(self) -> int:
        if self.data.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return self.data.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if self.data.ndim == 0:
            raise TypeError("iteration over a 0-d tensor; use .item() for its value")
        return (self[i] for i in range(self.data.shape[0]))

    def __repr__(self) -> str:
        text = np.array2string(
            self.data, separator=", ", prefix="tensor(", threshold=200, precision=4
        )
        parts = [text]
        if self.data.size == 0 and self.data.ndim != 1:
            parts.append(f"shape={self.data.shape}")
        if self.data.dtype != np.float32:
            parts.append(f"dtype={self.data.dtype}")
        if self._node is not None:
            parts.append(f"grad_fn=<{self._node.name}>")
        elif self._rg:
            parts.append("requires_grad=True")
        return f"tensor({', '.join(parts)})"

    def __format__(self, spec: str) -> str:
        """One element formats as a number does (`f"{loss:.4f}"`), others as `str` does."""
        if spec and self.data.size == 1:
            return format(self.item(), spec)
        try:
            return format(str(self), spec)
        except ValueError:
            raise ValueError(
                f"format: {spec!r} is for one number, the tensor has shape {self.data.shape}"
            ) from None

    # ---- graph
    def detach(self) -> Tensor:
        """The same memory without history. In-place changes of either are seen by the other."""
        t = wrap(self.data, self._k)
        t._ver = self._ver
        t._at = self._ver[0]
        t._view = True
        return t

    def retain_grad(self) -> None:
        """Keeps `.grad` of this non-leaf in the next backward."""
        if not self._rg:
            raise RuntimeError("retain_grad: this tensor does not require a gradient")
        if self._node is not None:
            if self._node.retain is None:
                self._node.retain = {}
            self._node.retain[self._idx] = weakref.ref(self)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Any:
        """Calls hook(gradient) when the gradient of this tensor is known; a returned Tensor replaces it.

        Returns a handle with `.remove()`.
        """
        if not self._rg:
            raise RuntimeError("register_hook: this tensor does not require a gradient")
        node, i = _cpu._edge(self)
        if node.hooks is None:
            node.hooks = {}
        table = node.hooks.setdefault(i, {})
        return HookHandle(table, hook)

    # ---- dtype and device
    def to(self, *args: Any, dtype: Any = None, device: Any = None) -> Tensor:
        """Converts dtype and/or device: to("cpu"), to("float64"), to(np.float32), to(dtype=..., device=...)."""
        for a in args:
            if isinstance(a, str) and (a == "cpu" or a.startswith("cuda")):
                device = a
            else:
                dtype = a
        if device is not None:
            check_device(device, "to")
        if dtype is None:
            return self
        d = resolve_dtype(dtype, "to")
        return self if d is self.data.dtype or d == self.data.dtype else self._cast(d)

    def astype(self, dtype: Any) -> Tensor:
        """`to(dtype=dtype)`: the tensor itself where it has the dtype."""
        return self.to(dtype=dtype)

    def type(self, dtype: Any) -> Tensor:
        """`to(dtype=dtype)`."""
        return self.to(dtype=dtype)

    def float(self) -> Tensor:
        """As float32."""
        return self.to(dtype=np.float32)

    def double(self) -> Tensor:
        """As float64."""
        return self.to(dtype=np.float64)

    def long(self) -> Tensor:
        """As int64."""
        return self.to(dtype=np.int64)

    def int(self) -> Tensor:
        """As int32."""
        return self.to(dtype=np.int32)

    def bool(self) -> Tensor:
        """As bool: true where the element is not 0."""
        return self.to(dtype=np.bool_)

    def cpu(self) -> Tensor:
        """The tensor itself: it is on the CPU."""
        return self

    def is_contiguous(self) -> Any:
        """Whether the elements lie in row-major order without gaps."""
        return self.data.flags.c_contiguous

    def copy_(self, source: Any) -> Tensor:
        """Overwrites this tensor with `source` (same shape, dtypes converted)."""
        from .autograd import apply_
        from .views import CopyBackward

        src = as_tensor(source, like=self) if not isinstance(source, Tensor) else source
        if src.shape != self.shape:
            raise ValueError(
                f"copy_: target has shape {self.shape}, source {src.shape}; they must be equal"
            )
        if src._rg and src.dtype != self.dtype:
            src = src.to(dtype=self.dtype)
        return apply_(
            CopyBackward,
            self,
            lambda: self._k.copy_(self.data, src.data),
            (self, src),
            name="copy_",
        )

    def __deepcopy__(self, memo: dict) -> Tensor:
        if self._node is not None:
            raise RuntimeError("deepcopy: only leaf tensors can be deep-copied; detach() first")
        t = wrap(self._k.copy(self.data), self._k)
        t.__class__ = self.__class__
        t._rg = self._rg
        if self._grad is not None:
            t._grad = wrap(self._k.copy(self._grad.data), self._k)
        memo[id(self)] = t
        return t

    def __reduce__(self) -> Any:
        if self._node is not None:
            raise RuntimeError("pickle: only leaf tensors can be pickled; detach() first")
        return (_rebuild, (type(self), np.array(self.data), self._rg))

    @classmethod
    def _method(cls, name: str, fn: Callable) -> None:
        """Attaches an op as a method; called by the files in ops/."""
        if name in cls.__dict__:
            raise RuntimeError(f"Tensor already has {name}")
        setattr(cls, name, fn)

    if TYPE_CHECKING:  # attached in ops/, core/autograd.py and core/views.py

        def __getattr__(self, name: str) -> Any: ...
        def backward(
            self,
            gradient: Any = None,
            retain_graph: builtins.bool | None = False,
            create_graph: builtins.bool = False,
        ) -> None: ...
        def contiguous(self) -> Tensor: ...
        def clone(self) -> Tensor: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __rfloordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __rmod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __rand__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __ror__(self, other: Any) -> Tensor: ...
        def __xor__(self, other: Any) -> Tensor: ...
        def __rxor__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __pos__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __eq__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...
        @property
        def T(self) -> Tensor: ...
        @property
        def mT(self) -> Tensor: ...
        def max(self, dim: Any = None, keepdim: builtins.bool = False) -> Any: ...
        def min(self, dim: Any = None, keepdim: builtins.bool = False) -> Any: ...
        def allclose(self, other: Any, **kwargs: Any) -> builtins.bool: ...
        def split(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]: ...
        def chunk(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]: ...
        def unbind(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]: ...

        def _op(self, *args: Any, **kwargs: Any) -> Tensor: ...

        abs = abs_ = add = add_ = addcdiv = addcmul = all = amax = amin = any = argmax = _op
        argmin = bmm = broadcast_to = ceil = ceil_ = clamp = clamp_ = clip = cos = cos_ = _op
        count_nonzero = cumsum = diagonal = div = div_ = divide = dot = eq = exp = exp_ = _op
        expand = expand_as = expm1 = expm1_ = fill_ = flatten = flip = floor = floor_ = _op
        floor_divide = gather = ge = greater = greater_equal = gt = index_add = _op
        index_select = isclose = isfinite = isinf = isnan = le = lerp = less = less_equal = _op
        log = log10 = log1p = log1p_ = log2 = log2_ = log_ = log_softmax = logical_and = _op
        logical_not = logical_or = logical_xor = logsumexp = lt = masked_fill = _op
        masked_select = matmul = maximum = mean = minimum = mm = moveaxis = movedim = mul = _op
        mul_ = multiply = mv = narrow = ne = neg = neg_ = negative = norm = not_equal = _op
        outer = permute = pow = pow_ = prelu = prod = ravel = reciprocal = reciprocal_ = _op
        relu = relu_ = remainder = repeat = repeat_interleave = reshape = reshape_as = roll = _op
        round = round_ = rsqrt = rsqrt_ = scatter = scatter_add = select = sigmoid = _op
        sigmoid_ = sign = sign_ = sin = sin_ = softmax = sqrt = sqrt_ = square = square_ = _op
        squeeze = std = sub = sub_ = subtract = sum = swapaxes = t = take_along_dim = tan = _op
        tan_ = tanh = tanh_ = tile = transpose = tril = triu = true_divide = trunc = trunc_ = _op
        unflatten = unsqueeze = var = view = view_as = where = zero_ = _op


class Parameter(Tensor):
    """A Tensor that a Module owns and an optimizer updates; requires a gradient unless told otherwise.

    data: as in `Tensor`; an array's or Tensor's memory is shared. TypeError: an integer dtype that is to have a
    gradient.

    >>> import gradsmith as gs
    >>> layer = gs.nn.Module()
    >>> layer.scale = gs.nn.Parameter(gs.ones(3))
    >>> [(name, p.shape) for name, p in layer.named_parameters()]
    [('scale', (3,))]
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True, dtype: Any = None):
        if isinstance(data, Tensor):
            data = data.data
        super().__init__(data, dtype=dtype, requires_grad=requires_grad)

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


_cpu._set_tensor_class(Tensor)
# wrap(data, k): a Tensor around an array that a kernel made; nothing is checked
wrap: Callable[[Any, Any], Tensor] = _cpu.wrap


class HookHandle:
    """Removes a hook."""

    def __init__(self, table: dict, fn: Callable):
        if not callable(fn):
            raise TypeError(f"a hook must be a function, got {type(fn).__name__}")
        self.id = next(_hook_ids)
        self.table = table
        table[self.id] = fn

    def remove(self) -> None:
        self.table.pop(self.id, None)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def _rebuild(cls: Any, data: np.ndarray, requires_grad: bool) -> Tensor:
    t = wrap(data, _cpu)
    t.__class__ = cls
    t._rg = requires_grad
    return t


def _check_numbers(a: np.ndarray) -> None:
    """TypeError where an array was made of what is no number: NumPy would take None for NaN, "3" for 3."""
    if a.dtype.kind in "biuf":
        return
    odds = [v for v in a.flat if not isinstance(v, _REAL)]
    if a.dtype == object and not odds:
        return
    odd = odds[0] if odds else a.dtype
    raise TypeError(
        f"Tensor: the data must be numbers, got {type(odd).__name__} {odd!r:.40}. Convert them first"
    )


def numbers_of(x: Any, dtype: np.dtype) -> np.ndarray:
    """x as an array of dtype; TypeError where it is no number, nor an array or a list of them."""
    a = np.asarray(x)
    _check_numbers(a)
    return a if a.dtype == dtype else np.asarray(x, dtype)


def _array_of(data: Any, dtype: Any) -> np.ndarray:
    if isinstance(data, Tensor):
        data = data.data
    d = None if dtype is None else resolve_dtype(dtype, "Tensor")
    if isinstance(data, np.ndarray):
        a = data
        if d is not None:
            _check_numbers(a)
    else:
        try:
            a = np.asarray(data)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"Tensor: the data are no array: {error}") from None
        if d is not None:
            _check_numbers(a)
            if d.kind in "iu" and a.dtype != d:
                try:
                    a = np.asarray(data, d)  # where a cast would wrap round
                except (OverflowError, ValueError) as error:
                    raise ValueError(f"Tensor: the data do not fit {d}: {error}") from None
        if (
            d is None
            and not isinstance(data, np.generic)
            and a.dtype == np.float64
            and not hasattr(data, "dtype")
        ):
            a = a.astype(np.float32)
    if d is not None and a.dtype != d:
        a = a.astype(d)
    elif not a.dtype.isnative:
        a = a.astype(a.dtype.newbyteorder("="))
    if a.dtype not in _DTYPES:
        raise TypeError(
            f"Tensor: dtype {a.dtype} is not supported; use float32, float64, int32, int64, uint8 or bool, "
            "for instance Tensor(data, dtype='float32')"
        )
    return a


def as_tensor(
    x: Any, like: Tensor | None = None, op: str | None = None, name: str = "input"
) -> Tensor:
    """x itself when it is a Tensor; else a Tensor around it, numbers and lists in the dtype of `like`.

    What cannot be one is an error that names the op and the argument.
    """
    if isinstance(x, Tensor):
        return x
    try:
        # None would become NaN
        if like is not None and x is not None and not hasattr(x, "dtype"):
            return wrap(numbers_of(x, like.data.dtype), like._k)
        return Tensor(x)
    except (TypeError, ValueError) as error:
        if op is None:
            raise
        if hasattr(x, "dtype") or isinstance(x, (list, tuple)):
            raise type(error)(f"{op}: {name}: {str(error).removeprefix('Tensor: ')}") from None
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(x).__name__}") from None
