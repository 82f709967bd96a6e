"""What a captured function depends on besides its arguments.

A replay repeats kernels, not Python. So everything that Python decided while the recording ran must
still hold: the modules' modes and numbers, the globals and closure variables that the function's code
names, the arrays behind parameters, buffers and states. `Watch` walks from the function to all of
these; each becomes a guard that the program checks (in C++, by identity) before it is replayed.
Optimizers and schedulers, whose numbers change at every step, are run instead: see OptimizerState.

What is guarded: cells, globals and functions (code, defaults) of the user's code; of plain objects the
attributes that some code reached names, or all of them where it looks them up by strings; methods that
operators and `with` call; modules whole; the contents of lists, dicts, sets, deques, small arrays and
buffers. What cannot be looked into and changes by being used (an iterator) makes the function eager.
"""

from __future__ import annotations

import array
import contextvars
import functools
import io
import operator
import os
import sys
import types
import weakref
from collections import ChainMap, Counter, UserDict, UserList, UserString, deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .. import _cpu
from . import recording
from .function import Function
from .tensor import Parameter, Tensor

__all__ = ["AverageState", "OptimizerState", "SchedulerState", "Watch"]

_PLAIN = (int, float, complex, str, bytes, bool, type(None))
_TABLES = ("_parameters", "_buffers", "_transient", "_modules", "_hooks", "_pre_hooks")
_READS_OPTIONS = {"param_groups", "get_last_lr", "lr_at", "last_epoch"}
# Numbers of our own layers that their arrays' shapes hold already.
_SIZES = {"in_features", "out_features", "in_channels", "out_channels", "num_features"}
_LIMIT = 1 << 16  # guards; a dict's are looked at only when it has changed
_ITEMS = 1 << 14  # of one list or dict: more are not compared at each call
_BYTES = 1 << 18  # of one array: the same
_DEPTH = 100
_MISSING = object()
# Code that looks attributes up by names that it computes: all attributes of what it sees count.
_LOOKS_UP = {
    *("getattr", "hasattr", "vars", "__dict__", "dir", "asdict", "astuple", "fields"),
    *("globals", "locals", "eval", "exec", "__getattribute__", "attrgetter", "methodcaller"),
}
# Classes of the standard library that hold what their user put there.
_HOLDERS = (types.SimpleNamespace, UserDict, UserList, UserString, ChainMap)
# Methods with such names that a step does not call.
_NOT_CALLED = {"__init__", "__new__", "__del__", "__repr__", "__init_subclass__", "__reduce__"}


def _known(name: str | None) -> bool:
    root = (name or "").split(".", 1)[0]
    return (
        root in ("gradsmith", "numpy", "builtins")
        or (root in sys.stdlib_module_names and root != "__main__")
        or (bool(name) and _installed(str(name)))
    )


@functools.lru_cache(maxsize=4096)
def _installed(name: str) -> bool:
    """Whether a module belongs to an installed library that knows nothing of this one."""
    m = sys.modules.get(name)
    file = getattr(m, "__file__", None) or ""
    if "site-packages" not in file and "dist-packages" not in file:
        return False
    for v in list(vars(m).values()):
        of = v.__name__ if isinstance(v, types.ModuleType) else getattr(v, "__module__", None)
        if isinstance(of, str) and of.split(".", 1)[0] == "gradsmith":
            return False
    return True


def _ours(obj: Any) -> bool:
    """Whether something belongs to this library, NumPy or Python: its own code is not looked into."""
    if isinstance(obj, types.FunctionType) and not _known(obj.__globals__.get("__name__")):
        return False  # code that was made by exec()
    return _known(getattr(obj, "__module__", None))


def _foreign(cls: type) -> bool:
    """Whether a class is of the standard library or of another one, which keep state in objects."""
    root = (getattr(cls, "__module__", None) or "").split(".", 1)[0]
    return root not in ("gradsmith", "numpy", "builtins") and _ours(cls)


def _same(a: Any, b: Any) -> bool:
    """Whether a replay may take one value for the other (bindings/capture.cpp: same_value)."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a.hex() == b.hex()
    if isinstance(a, np.number):
        return a.tobytes() == b.tobytes()
    if isinstance(a, complex):
        return _same((a.real, a.imag), (b.real, b.imag))
    if isinstance(a, tuple):
        return len(a) == len(b) and all([_same(x, y) for x, y in zip(a, b)])
    return isinstance(a, _PLAIN) and a == b


def _identifiers(code: types.CodeType) -> set[str]:
    """The strings in code that may name attributes."""
    found: set[str] = set()
    for c in code.co_consts:
        for x in c if isinstance(c, (tuple, frozenset)) else (c,):
            if isinstance(x, str) and len(x) < 256:
                found.update([n for n in x.split(".") if n.isidentifier()])
    return found


def _raw(cls: type, name: str) -> Any:
    """What a class has under a name, as it stands there (a function, a property, ...)."""
    for c in cls.__mro__:
        if name in c.__dict__:
            return c.__dict__[name]
    return _MISSING


def _of_c(v: Any) -> bool:
    """Whether it is a number, an array or a struct of ctypes, whose bytes are compared."""
    return "_ctypes" in sys.modules and any([c.__module__ == "_ctypes" for c in type(v).__mro__])


def _content(v: Any) -> Any:
    """A copy of an array's or a buffer's values, to be compared with later."""
    m = memoryview(v)
    return m.format, m.shape, m.tobytes()


class Watch:
    """Walks from a function to all that it can see; `reason` says why it cannot be captured."""

    def __init__(self, fn: Any, arguments: Iterable[Any] = ()):
        self.reason: str | None = None
        self.guards: list[tuple] = []
        self.tensors: dict[int, tuple[str, Tensor]] = {}
        self.optimizers: dict[int, Any] = {}
        self.schedulers: dict[int, Any] = {}
        self.generators: list[Any] = []
        # NumPy arrays: name, whether their values are compared, whether the code names them
        self.arrays: list[tuple[np.ndarray, str, bool, bool]] = []
        self._large: list[tuple[str, str]] = []  # attributes with more than can be compared
        self._strings: set[str] = set()
        self._words: set[str] = set()
        self._classes: set[int] = set()
        self._module_classes: set[int] = set()
        import random

        self._draw_from = (np.random.Generator, np.random.RandomState, random.Random)
        self._done: set[tuple] = set()
        self._seen: dict[int, Any] = {}
        self._functions: set[int] = set()
        self._objects: list[tuple[Any, str]] = []
        self._names: set[str] = set()
        from ..nn.module import Module
        from ..optim.lr_scheduler import LRScheduler
        from ..optim.optimizer import Optimizer

        self._kinds = (Module, Optimizer, LRScheduler)
        self._guard(("size", recording.modes, None, len(recording.modes), "the precision"))
        for mode, value in recording.modes.items():
            self._guard(("item", recording.modes, mode, value, f"the {mode}"))
        self._root(fn)
        arguments = list(arguments)
        for i, x in enumerate(arguments):
            if not isinstance(x, Tensor):
                self._value(x, f"argument {i}")
            elif type(x) not in (Tensor, Parameter):
                self._value(type(x), f"the class of argument {i}")
        # Attributes of objects count when some code reached names them; new code may name more.
        while self.reason is None:
            size = self._size()
            for obj, name in [*self._objects, *self._attributed()]:
                self._attributes(obj, name)
            if size == self._size():
                break
        self._of_arguments(arguments)
        # So are step counts to code that looks for them.
        if "state" in self._names and any(
            [self._words & set(o.numbers) for o in self.optimizers.values()]
        ):
            for o in self.optimizers.values():
                for own in o.state.values():
                    for key in o.numbers:
                        if key in own:
                            self._guard(
                                (
                                    "item",
                                    own,
                                    key,
                                    own[key],
                                    f"an optimizer's {key!r}, which it looks at,",
                                )
                            )
        if self._names & {"environ", "getenv"}:
            self._value(getattr(os.environ, "_data", None), "os.environ")
        for attribute, name in self._large:
            if attribute in self._names:
                self._too_large(name)
        if self._names & _READS_OPTIONS:  # user code that looks at rates: they are constants to it
            for o in self.optimizers.values():
                for i, group in enumerate(o.param_groups):
                    for key, value in group.items():
                        if key != "params":
                            self._guard(("item", group, key, value, f"param_groups[{i}][{key!r}]"))
        self._drawn = self._draws()
        # Those that have a gradient or may have had one: frozen parameters keep theirs.
        self.trainable = [
            t
            for _, t in self.tensors.values()
            if t._rg or t._grad is not None or isinstance(t, Parameter) or self.reads_gradients()
        ]
        self._options = [
            (o, [{k: v for k, v in g.items() if k != "params"} for g in o.param_groups])
            for o in self.optimizers.values()
        ]

    def _size(self) -> tuple:
        return len(self._names), len(self._strings), len(self._objects), len(self.tensors)

    def _attributed(self) -> list[tuple[Any, str]]:
        """Tensors with attributes of their own or of a user's class; all where code looks attributes up."""
        return [
            (t, name)
            for name, t in self.tensors.values()
            if self._strings or type(t) not in (Tensor, Parameter) or _attributes_of(t)
        ]

    def _of_arguments(self, arguments: list[Any]) -> None:
        """Arguments are other objects at each call, so what they carry beside their arrays cannot be guarded."""
        looks = self._names | self._strings
        self.plain_arguments = bool(self._strings) or "grad" in looks
        for i, x in enumerate(arguments):
            if not isinstance(x, Tensor):
                continue
            # an attribute of its own may stand before one of its class
            users = [c.__dict__ for c in type(x).__mro__ if not _ours(c)]
            self.plain_arguments |= any([n in own for own in users for n in looks])
            own = _attributes_of(x)
            found = sorted(looks & own.keys()) or (sorted(own) if self._strings else [])
            if "grad" in looks and x._grad is not None:
                found.append("grad")
            if found:
                self.reason = self.reason or (
                    f"it may look at the attribute {found[0]} of argument {i}, and a replay would not. Pass "
                    "that as an argument of its own"
                )

    # ---- the walk
    def _root(self, fn: Any) -> None:
        if isinstance(fn, functools.partial):
            self._root(fn.func)
            self._value(fn.args, "the arguments of a partial")
            self._value(fn.keywords, "the arguments of a partial")
        elif isinstance(fn, types.MethodType):
            if isinstance(fn.__func__, types.FunctionType):
                self._function(fn.__func__, root=True)
            self._value(fn.__self__, "self")
        elif isinstance(fn, types.FunctionType):
            self._function(fn, root=True)
        else:
            self._value(fn, getattr(type(fn), "__name__", "fn"))

    def _function(self, fn: types.FunctionType, root: bool = False) -> None:
        if id(fn) in self._functions or len(self._functions) > 500:
            return
        self._functions.add(id(fn))
        self._seen[id(fn)] = fn
        wrapped = getattr(fn, "__wrapped__", None)
        if isinstance(wrapped, types.FunctionType):
            self._function(wrapped)
        codes, stack = [], [fn.__code__]
        while stack:
            code = stack.pop()
            codes.append(code)
            stack += [c for c in code.co_consts if isinstance(c, types.CodeType)]
        names = {n for code in codes for n in code.co_names}
        self._names |= names
        self._guard(("function", fn, None, _parts(fn), f"the function {fn.__name__}"))
        strings = {n for code in codes for n in _identifiers(code)}
        self._words |= strings
        if not names.isdisjoint(_LOOKS_UP):
            self._strings |= strings
            if names & {"globals", "eval", "exec"}:
                names |= strings
        if fn.__dict__:
            self._objects.append((fn, fn.__name__))
        if root or not _ours(fn):
            if names & {"import_module", "__import__", "modules"}:  # by their names
                for code in codes:
                    for n in code.co_consts:
                        if isinstance(n, str) and isinstance(sys.modules.get(n), types.ModuleType):
                            self._module_names(sys.modules[n], n)
            scope = fn.__globals__
            for n in sorted(names):
                if n not in scope:  # perhaps imported inside of the function
                    for full in (n, f"{scope.get('__package__')}.{n}"):
                        if isinstance(sys.modules.get(full), types.ModuleType):
                            self._module_names(sys.modules[full], full)
                else:
                    value = scope[n]
                    if isinstance(value, types.ModuleType):
                        self._module_names(value, n)
                        continue
                    self._guard(("item", scope, n, value, f"the global {n}"))
                    self._value(value, n)
        for n, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
            try:
                value = cell.cell_contents
            except ValueError:
                continue
            self._guard(("cell", cell, None, value, f"the variable {n}"))
            self._value(value, n)
        if fn.__defaults__:
            self._value(fn.__defaults__, "a default argument")
        if fn.__kwdefaults__:
            self._value(fn.__kwdefaults__, "a default argument")

    def _module_names(self, module: types.ModuleType, name: str) -> None:
        root = module.__name__.split(".", 1)[0]
        if not _known(module.__name__) or root == "gradsmith" or _installed(module.__name__):
            self._once(module, name)

    def _too_large(self, name: str) -> None:
        self.reason = self.reason or (
            f"it can see {name}, which holds more than can be compared at each call. Pass in what a step "
            "needs of it"
        )

    def _too_many(self, v: Any, name: str, attribute: Any) -> bool:
        """Whether v has more items than are compared: then the function stays eager, if it uses them."""
        if len(v) <= _ITEMS:
            return False
        if attribute is None:
            self._too_large(name)
        else:
            self._large.append((attribute, name))
        return True

    def _guard(self, g: tuple) -> None:
        key = (g[0], id(g[1]), g[2])
        if key in self._done:
            return
        self._done.add(key)
        self.guards.append(g)
        if len(self.guards) > _LIMIT:
            self.reason = f"it can see more than {_LIMIT} values that a replay depends on"

    def _place(self, obj: Any, name: str) -> None:
        """An object keeps its class and its `__dict__`, which is what the guards look into."""
        self._guard(("place", obj, None, (type(obj), obj.__dict__), f"the class of {name}"))

    def _keys(self, table: dict, name: str) -> None:
        """A dict keeps its keys, and their order: some code walks over it."""
        self._guard(("keys", table, None, tuple(table), name))

    def _value(self, v: Any, name: str, depth: int = 0, attribute: str | None = None) -> None:
        """Walks into a value; `attribute`: its name in a module, whose attributes are all walked."""
        if isinstance(v, (*_PLAIN, np.generic, np.dtype)) or self.reason is not None:
            return
        if isinstance(v, type):
            if not _ours(v):
                self._once(v, name)
            return
        if isinstance(v, Tensor):
            self._tensor(v, name)
            return
        if id(v) in self._seen:
            return
        if depth > _DEPTH:
            self._too_large(name)
            return
        module, optimizer, scheduler = self._kinds
        if isinstance(v, (np.ndarray, bytearray, array.array, memoryview)) or _of_c(v):
            self._seen[id(v)] = v
            self._array(v, name, attribute)
        elif isinstance(v, self._draw_from):
            self._seen[id(v)] = v
            self.generators.append(v)
        elif isinstance(v, types.FunctionType):
            if not _ours(v):
                self._function(v)
        elif isinstance(v, types.MethodType):
            if not _ours(v) and isinstance(v.__func__, types.FunctionType):
                self._function(v.__func__)
            self._value(v.__self__, name, depth + 1)
        elif isinstance(v, types.BuiltinMethodType):
            if not isinstance(v.__self__, types.ModuleType):
                self._value(v.__self__, name, depth + 1)
        elif isinstance(v, functools.partial):
            self._root(v)
        elif isinstance(v, (property, classmethod, staticmethod)):
            self._descend(v, name)
        elif isinstance(v, (operator.attrgetter, operator.methodcaller)):
            self._seen[id(v)] = v
            self._names.update(*[str(n).split(".") for n in v.__reduce__()[1][:]])
        elif isinstance(v, (tuple, list, set, frozenset, deque)):
            self._seen[id(v)] = v
            if self._too_many(v, name, attribute):
                return
            if isinstance(v, list):
                self._guard(("list", v, None, list(v), name))
            elif isinstance(v, (set, deque)):
                self._guard(("order", v, None, tuple(v), name))
            for i, item in enumerate(v):
                self._value(item, f"{name}[{i}]", depth + 1)
            if not _ours(type(v)):
                self._objects.append((v, name))
        elif isinstance(v, (dict, types.MappingProxyType)):
            self._seen[id(v)] = v
            if self._too_many(v, name, attribute):
                return
            if not isinstance(v, dict):
                self._value(dict(v), name, depth + 1)
                return
            self._keys(v, name)
            for key, item in list(v.items()):
                self._guard(("item", v, key, item, f"{name}[{key!r}]"))
                self._value(item, f"{name}[{key!r}]", depth + 1)
            if not _ours(type(v)) or isinstance(v, _HOLDERS):
                self._objects.append((v, name))
        elif isinstance(v, module):
            self._seen[id(v)] = v
            self._module(v, name)
        elif isinstance(v, optimizer):
            self._seen[id(v)] = v
            self._optimizer(v, name)
        elif isinstance(v, scheduler):
            self._seen[id(v)] = v
            self.schedulers[id(v)] = v
            self._value(v.optimizer, f"{name}.optimizer", depth + 1)
        elif isinstance(v, types.ModuleType):
            self._module_names(v, name)
        elif type(v).__name__ == "Captured" and _ours(type(v)):
            self._root(v.fn)
        elif isinstance(v, contextvars.ContextVar):
            self._seen[id(v)] = v
            now = v.get(_MISSING)
            self._guard(("context", v, None, now, name))
            self._value(None if now is _MISSING else now, name, depth + 1)
        elif isinstance(v, weakref.ref):
            self._value(v(), name, depth + 1)
        elif isinstance(getattr(v, "__wrapped__", None), types.FunctionType):  # lru_cache
            self._value(v.__wrapped__, name, depth + 1)
        elif isinstance(v, types.GeneratorType) or (
            hasattr(type(v), "__next__") and _ours(type(v)) and not isinstance(v, io.IOBase)
        ):
            self.reason = (
                f"it can see {name}, an iterator, which a replay would not move on. Take the next "
                "value outside and pass it in"
            )
        elif hasattr(v, "__dict__") or not _ours(type(v)):
            self._once(v, name)

    def _array(self, v: Any, name: str, attribute: str | None) -> None:
        """Values that Python may read: kept when they are few, see `read_by_host`."""
        try:
            size = v.nbytes if isinstance(v, np.ndarray) else memoryview(v).nbytes
        except ValueError:  # a released view
            size = 0
        if size == 0 or (isinstance(v, np.ndarray) and v.dtype.hasobject):
            if isinstance(v, np.ndarray) and v.size <= _ITEMS:
                self._value(v.ravel().tolist(), name)  # what it holds
            return
        try:
            content = _content(v) if size <= _BYTES else None
        except (ValueError, TypeError, BufferError):  # dates, for instance
            content = None
        if content is not None:
            self._guard(("content", v, None, content, name))
        if isinstance(v, np.ndarray) and v.dtype.kind not in "USVMm":
            self.arrays.append((v, name, content is not None, attribute is None))
        elif content is None and attribute is None:
            self._too_large(name)

    def _once(self, v: Any, name: str) -> None:
        if id(v) not in self._seen:
            self._seen[id(v)] = v
            self._objects.append((v, name))

    def _descend(self, raw: Any, name: str) -> None:
        """Into what a class has under a name."""
        if isinstance(raw, types.FunctionType):
            if not _ours(raw):
                self._function(raw)
        elif isinstance(raw, property):
            for part in (raw.fget, raw.fset):
                if isinstance(part, types.FunctionType) and not _ours(part):
                    self._function(part)
        elif isinstance(raw, (classmethod, staticmethod)):
            self._descend(raw.__func__, name)
        elif isinstance(raw, (functools.cached_property, functools.partialmethod)):
            self._descend(raw.func, name)
        elif not isinstance(raw, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            self._value(raw, name)

    def _of_class(self, cls: type, name: str) -> bool:
        """The methods of a user's class that operators call; whether it computes attributes."""
        computes = False
        for c in cls.__mro__:
            if _ours(c):
                continue
            for n, raw in list(c.__dict__.items()):
                special = n.startswith("__") and n.endswith("__") and n not in _NOT_CALLED
                if not special or not isinstance(raw, types.FunctionType):
                    continue
                computes = computes or n in ("__getattr__", "__getattribute__")
                if id(cls) not in self._classes:
                    self._guard(("type", cls, n, _raw(cls, n), f"{name}.{n}"))
                    self._descend(raw, f"{name}.{n}")
        if not computes and id(cls) not in self._classes and type(cls) is not type:
            self._of_class(type(cls), f"the class of {name}")
        self._classes.add(id(cls))
        return computes

    def _behind(self, cls: type, n: str, name: str) -> None:
        """What super() finds under a name that a class has given a new meaning."""
        if "super" in self._names:
            for c in cls.__mro__:
                if n in c.__dict__ and not _ours(c):
                    self._guard(("type", c, n, c.__dict__[n], f"{name}.{n}"))
                    self._descend(c.__dict__[n], f"{name}.{n}")

    def _foreign_state(self, own: dict, name: str) -> None:
        """What other libraries' objects hold (an event's flag, a configuration's values): their code is not
        looked into, so all of it counts."""
        for n, value in list(own.items()):
            if isinstance(n, str) and not n.startswith("__"):
                self._guard(("item", own, n, value, f"{name}.{n}"))
                holds = isinstance(value, (tuple, list, dict, set, deque, np.ndarray, bytearray))
                if holds or _of_c(value):
                    self._value(value, f"{name}.{n}", attribute=n)

    def _attributes(self, obj: Any, name: str) -> None:
        """The attributes of an object that some code reached names."""
        own = getattr(obj, "__dict__", {})
        names = self._names | self._strings
        cls = type(obj)
        if isinstance(obj, types.ModuleType):
            for n in names & own.keys():
                value = own[n]
                self._guard(("item", own, n, value, f"{name}.{n}"))
                code = isinstance(value, (types.FunctionType, type, types.ModuleType))
                if not _known(obj.__name__) or (not code and _installed(obj.__name__)):
                    self._value(value, f"{name}.{n}")
            return
        if isinstance(obj, type):
            self._of_class(obj, name)
            if issubclass(obj, Function):  # called by `apply` and by the backward pass
                names |= {"forward", "backward"}
            for n in names:
                raw = _raw(obj, n)
                if raw is not _MISSING:
                    self._guard(("type", obj, n, raw, f"{name}.{n}"))
                    self._descend(raw, f"{name}.{n}")
                    self._behind(obj, n, name)
                elif cls is not type:
                    self._guard(("type", cls, n, _raw(cls, n), f"{name}.{n}"))
                    self._descend(_raw(cls, n), f"{name}.{n}")
            return
        computes = self._of_class(cls, name)
        plain = _cpu.has_dict(obj)
        every = computes or bool(self._strings) or isinstance(obj, _HOLDERS)
        if every and _ours(cls) and not isinstance(obj, (*_HOLDERS, Tensor)):
            every = False
        if plain:
            self._place(obj, name)
            if every and len(own) <= _ITEMS:
                self._keys(own, f"the attributes of {name}")
            if _foreign(cls) and not isinstance(obj, _HOLDERS):
                self._foreign_state(own, name)
        for n in sorted(names | (own.keys() if every else set()), key=str):
            if n in own:
                value = own[n]
                if plain:
                    self._guard(("item", own, n, value, f"{name}.{n}"))
                else:
                    self._guard(("attribute", obj, n, value, f"{name}.{n}"))
                self._value(value, f"{name}.{n}")
                continue
            raw = _raw(cls, n)
            if raw is _MISSING or n == "__dict__":
                continue
            if isinstance(obj, Tensor) and raw is _raw(Tensor, n):
                continue
            if isinstance(raw, types.MemberDescriptorType):  # a slot
                value = getattr(obj, n, _MISSING)
                self._guard(("attribute", obj, n, value, f"{name}.{n}"))
                self._value(None if value is _MISSING else value, f"{name}.{n}")
            elif not any([n in c.__dict__ for c in cls.__mro__ if not _ours(c)]):
                continue
            else:
                self._guard(("type", cls, n, raw, f"{name}.{n}"))
                if plain:
                    self._guard(("absent", own, n, None, f"{name}.{n}"))
                self._descend(raw, f"{name}.{n}")
                self._behind(cls, n, name)
        if every:
            for c in cls.__mro__:
                for n in c.__dict__.get("__slots__", ()) if not _ours(c) else ():
                    self._strings.add(n)

    def _module(self, m: Any, name: str) -> None:
        own = m.__dict__
        if own.get("_hooks") or own.get("_pre_hooks"):
            self.reason = f"the module {name} has forward hooks, which a replay would not call. Remove them first"
        self._place(m, name)
        self._guard(("size", own, None, len(own), f"the attributes of {name}"))
        for table in _TABLES:
            if table in own:
                self._guard(("item", own, table, own[table], f"{name}.{table}"))
        for table in ("_hooks", "_pre_hooks"):
            if table in own:
                self._guard(("size", own[table], None, len(own[table]), f"the hooks of {name}"))
        # parameters, buffers and submodules stand in a table too and are walked from there
        tables = [own.get(t, {}) for t in ("_parameters", "_buffers", "_modules")]
        for key, value in list(own.items()):
            if key in _TABLES or (key in _SIZES and _ours(type(m))):
                continue
            self._guard(("item", own, key, value, f"{name}.{key}"))
            if not isinstance(value, _PLAIN) and not any([t.get(key) is value for t in tables]):
                self._value(value, f"{name}.{key}", attribute=key)
        for table in ("_parameters", "_buffers", "_modules"):
            entries = own.get(table, {})
            if isinstance(entries, dict):
                self._keys(
                    entries,
                    f"the submodules of {name}" if table == "_modules" else f"{name}.{table}",
                )
            for key, value in list(entries.items()):
                self._guard(("item", entries, key, value, f"{name}.{key}"))
                if value is not None:
                    self._value(value, f"{name}.{key}")
        kind = type(m)
        if id(kind) in self._module_classes:
            return
        self._module_classes.add(id(kind))
        for key in ("forward", "__call__"):
            self._guard(("type", kind, key, _raw(kind, key), f"{name}.{key}"))
        for cls in kind.__mro__:
            if _ours(cls):
                continue
            for key, value in cls.__dict__.items():
                if key not in _NOT_CALLED and not isinstance(value, _PLAIN):
                    self._guard(("type", kind, key, _raw(kind, key), f"{name}.{key}"))
                    self._descend(value, f"{name}.{key}")
                elif key[:2] != "__":
                    self._guard(("type", kind, key, _raw(kind, key), f"{name}.{key}"))

    def _tensor(self, t: Tensor, name: str) -> None:
        if id(t) in self.tensors:
            return
        self.tensors[id(t)] = (name, t)
        node = t._acc  # what runs the hooks on a leaf
        for hooks in ((node and node.hooks) or {}).values():
            for hook in hooks.values():
                self._value(hook, f"a hook on the gradient of {name}")

    def _optimizer(self, o: Any, name: str) -> None:
        base = self._kinds[1]
        if type(o).step is not base.step or "step" in o.__dict__:
            self.reason = (
                f"the optimizer {type(o).__name__} has a step() of its own, whose numbers a replay would "
                "not renew. Give it a kernel and scalars (see Optimizer), or leave it uncaptured"
            )
        self._place(o, name)
        self._guard(("size", o.__dict__, None, len(o.__dict__), f"the attributes of {name}"))
        self.optimizers[id(o)] = o
        groups = o.param_groups
        self._guard(("item", o.__dict__, "param_groups", groups, f"{name}.param_groups"))
        self._guard(("list", groups, None, list(groups), f"{name}.param_groups"))
        for i, group in enumerate(groups):
            params, of = group["params"], f"the parameters of {name}.param_groups[{i}]"
            self._guard(("item", group, "params", params, of))
            self._guard(("list", params, None, list(params), of))
            for j, p in enumerate(group["params"]):
                self._tensor(p, f"{name}.param_groups[{i}]['params'][{j}]")
        for p, own in o.state.items():
            for key, value in own.items():
                if isinstance(value, Tensor):
                    self._tensor(value, f"{name}.state[{tuple(p.shape)}].{key}")

    # ---- use
    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that the function can reach."""
        yield from self.tensors.values()

    def sees(self, obj: Any) -> bool:
        """Whether an object was there before, and the function could reach it."""
        return self._seen.get(id(obj)) is obj or id(obj) in self.optimizers

    def read_by_host(self, rec: Any) -> tuple[str | None, set[int]]:
        """Why a function that was recorded cannot be replayed: it sees arrays whose values are too many to be
        compared and that no kernel reads. Else None, and the arrays that its kernels change."""
        written: set[int] = set()
        for a, name, compared, named in self.arrays:
            if not rec.touched(a):
                if named and not compared:
                    return (
                        f"it can see {name}, a NumPy array of {a.nbytes} bytes whose values a replay would not "
                        "read again. Pass in what a step needs of it as a tensor"
                    ), written
            elif rec.written(a):
                written.add(id(a))
        return None, written

    def contents(self) -> dict[int, Any]:
        """The values, as they were before the call, of the arrays whose values are compared."""
        return {id(owner): value for kind, owner, _, value, _ in self.guards if kind == "content"}

    def shares_memory(self, arrays: list[np.ndarray]) -> str | None:
        """The name of a tensor that shares memory with one of the arrays."""
        if not arrays:
            return None
        for name, t in self.tensors.values():
            for a in arrays:
                if a.size and np.may_share_memory(a, t.data):
                    return name
        return None

    def names_gradients(self) -> bool:
        """Whether the function's code names gradients or what looks at them."""
        return not self._names.isdisjoint(
            ("grad", "zero_grad", "clip_grad_norm_", "clip_grad_value_")
        )

    def _reads_rates(self) -> bool:
        """Whether the code looks at numbers that schedulers change."""
        if self._names & {"get_last_lr", "last_epoch"}:
            return True
        keys = {k for o in self.optimizers.values() for g in o.param_groups for k in g}
        return "param_groups" in self._names and bool(self._words & (keys - {"params"}))

    def reads_gradients(self) -> bool:
        """Whether the code names `.grad`: whether there is one may decide what it does."""
        return "grad" in self._names or "grad" in self._strings

    def only_gradients(self, entry: list[tuple[Tensor, Tensor | None]]) -> list[np.ndarray | None]:
        """The arrays of the gradients that are reached in no other way: those may be other ones later."""
        at = Counter(t.data.__array_interface__["data"][0] for _, t in self.tensors.values())
        at.update([g.data.__array_interface__["data"][0] for _, g in entry if g is not None])
        return [
            g.data if g is not None and at[g.data.__array_interface__["data"][0]] == 1 else None
            for _, g in entry
        ]

    def _draws(self) -> Any:
        """The states of Python's and NumPy's own generators, and of those that it can see."""
        import random

        legacy = np.random.get_state(legacy=False)  # noqa: NPY002
        numpy_state = (str(legacy["state"]["pos"]), legacy["state"]["key"].tobytes())
        return (
            random.getstate(),
            numpy_state,
            [_state_of(g) for g in self.generators],
        )

    def changed(self, notes: list) -> str | None:
        """What the function itself has changed in Python, which a replay would not do."""
        for g in self.guards:
            if not _holds(*g[:4]):
                return f"it changes {g[4]}, and a replay runs no Python. Change it outside"
        if self._draws() != self._drawn:
            return (
                "it draws random numbers from Python or NumPy, and a replay would use the old ones. Draw "
                "them outside and pass them in, or use gs.rand, gs.randn or dropout"
            )
        stepped = {id(x) for kind, x in notes if kind == "optimizer"}
        count = [x for kind, x in notes if kind == "optimizer"]
        if len(count) != len(stepped):
            return "it steps one optimizer twice; a program has one set of its numbers. Split it in two"
        averages = [x for kind, x in notes if kind == "average"]
        if len({id(x) for x in averages}) != len(averages):
            return "it updates one average twice; a program has one set of its numbers. Split it in two"
        if not all([self.sees(x) for x in averages]):
            return "it updates an average that cannot be found from the function's variables"
        if any(x not in self.optimizers for x in stepped):
            return "it steps an optimizer that cannot be found from the function's variables"
        scheduled = {id(x.optimizer) for kind, x in notes if kind == "scheduler"}
        if scheduled and self._reads_rates():
            return (
                "it steps a scheduler and looks at what that changes (rates, last_epoch), and a replay would use "
                "the old numbers. Look at them, or step the scheduler, outside"
            )
        for o, groups in self._options:
            if id(o) in scheduled:
                continue
            now = [{k: v for k, v in g.items() if k != "params"} for g in o.param_groups]
            if now != groups:
                return (
                    "it changes an optimizer's options in Python. Use a scheduler, or do it outside"
                )
        return None

    def guard(self, native: Any, written: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """Gives the guards to a program; `written`: arrays that may have other values."""
        for kind, owner, key, value, name in self.guards:
            if kind == "item":
                native.guard_item(owner, key, value, name)
            elif kind == "cell":
                native.guard_cell(owner, value, name)
            elif kind == "attribute":
                there = value is not _MISSING
                native.guard_attribute(owner, key, value if there else None, there, name)
            elif kind == "list":
                native.guard_list(owner, name)
            elif kind == "keys":
                native.guard_keys(owner, name)
            elif kind == "place":
                native.guard_place(owner, name)
            elif kind == "absent":
                native.guard_absent(owner, key, name)
            elif kind == "type":
                native.guard_type(
                    owner, key, None if value is _MISSING else value, value is not _MISSING, name
                )
            elif kind == "function":
                native.guard_function(owner, value, name)
            elif kind == "order":
                native.guard_order(owner, value, name)
            elif kind == "content":
                if id(owner) not in written:
                    native.guard_content(owner, value, name)
            elif kind == "context":
                native.guard_context(
                    owner, None if value is _MISSING else value, value is not _MISSING, name
                )
            else:
                native.guard_size(owner, name)
        for name, t in self.tensors.values():
            native.guard_tensor(t, t.data, f"the array or requires_grad of {name}")

    def snapshot(self) -> Any:
        """Copies of all that a step changes: arrays, gradients, optimizers' and schedulers' numbers."""
        arrays = [(t, t.data.copy(), t._grad) for _, t in self.tensors.values()]
        grads = [(g, g.data.copy()) for _, _, g in arrays if g is not None]
        numbers = [(own, dict(own)) for o in self.optimizers.values() for own in o.state.values()]
        groups = [(g, dict(g)) for o in self.optimizers.values() for g in o.param_groups]
        steps = [(s, dict(s.__dict__)) for s in self.schedulers.values()]
        norms = [(o, o._control.copy(), o._skipped) for o in self.optimizers.values()]
        return arrays, grads, numbers, groups, steps, norms

    def restore(self, saved: Any) -> None:
        arrays, grads, numbers, groups, steps, norms = saved
        for t, a, g in arrays:
            t.data[...] = a
            t._grad = g
        for g, a in grads:
            g.data[...] = a
        for own, before in (*numbers, *groups):
            own.clear()
            own.update(before)
        for s, before in steps:
            s.__dict__.clear()
            s.__dict__.update(before)
        for o, control, skipped in norms:
            o._control[...] = control
            o._skipped = skipped


def _attributes_of(t: Tensor) -> dict[str, Any]:
    """What somebody has written onto a tensor."""
    return t.__dict__ if _cpu.has_dict(t) else {}


def _parts(fn: types.FunctionType) -> tuple:
    return fn.__code__, fn.__defaults__, fn.__kwdefaults__


def _state_of(g: Any) -> Any:
    """The state of a generator of random numbers."""
    if isinstance(g, np.random.Generator):
        return str(g.bit_generator.state)
    if isinstance(g, np.random.RandomState):
        return str(g.get_state(legacy=False)), g.get_state(legacy=False)["state"]["key"].tobytes()
    return g.getstate()


def _holds(kind: str, owner: Any, key: Any, value: Any) -> bool:
    """Whether a guard holds."""
    if kind == "item":
        return _same(owner.get(key, _MISSING), value)
    if kind == "cell":
        try:
            return _same(owner.cell_contents, value)
        except ValueError:
            return False
    if kind == "attribute":
        return _same(getattr(owner, key, _MISSING), value)
    if kind == "list" or kind == "keys" or kind == "order":
        return len(owner) == len(value) and all([_same(a, b) for a, b in zip(owner, value)])
    if kind == "place":
        return type(owner) is value[0] and owner.__dict__ is value[1]
    if kind == "absent":
        return key not in owner
    if kind == "type":
        return _same(_raw(owner, key), value)
    if kind == "function":
        return all([a is b for a, b in zip(_parts(owner), value)])
    if kind == "content":
        return _content(owner) == value
    if kind == "context":
        return _same(owner.get(_MISSING), value)
    return len(owner) == value


class OptimizerState:
    """Counts an optimizer's step before a replay and writes its scalars into the slots."""

    def __init__(self, o: Any, native: Any):
        self.o = o
        self.sets = []
        self.names = [n for n in o.numbers]
        for index, slots, rows in o._last:
            group = o.param_groups[index]
            self.sets.append((index, group, slots.ids, [r.own for r in rows], o.kernel(group)))
            for r in rows:
                native.guard_item(o.state, r.p, r.own, "an optimizer's state")
                for n in o.kernel(group)[1]:
                    native.guard_item(r.own, n, r.own[n], f"an optimizer's {n}")
        native.guard_item(o.__dict__, "state", o.state, "an optimizer's state")
        native.guard_item(o.__dict__, "skip_nonfinite", o.skip_nonfinite, "skip_nonfinite")
        self.versions = [r.p._ver for _, _, rows in o._last for r in rows]
        self.norm = o._max_grad_norm is not None
        self.watched = o._max_grad_norm is not None or o.skip_nonfinite
        self.skip = o.skip_nonfinite
        self.before: list[tuple[list, dict]] = []

    def ready(self) -> bool:
        """Whether the kernels that were recorded are still those that a step would launch."""
        o = self.o
        if (o._max_grad_norm is not None) != self.norm:
            return False
        for _, group, _, owns, kernel in self.sets:
            if o.kernel(group) != kernel:
                return False
            # One set of numbers serves all: a parameter that was frozen for a while has other ones.
            first = owns[0]
            for n in self.names:
                if any([own[n] is not first[n] and own[n] != first[n] for own in owns]):
                    return False
        return True

    def advance(self) -> None:
        o = self.o
        self.before.clear()
        for _, group, slots, owns, _ in self.sets:
            own = owns[0]
            old = {n: own[n] for n in self.names}
            numbers = dict(old)
            _cpu.slots_write(slots, (*o._common(group), *o.scalars(group, numbers)))
            self.before.append((owns, old))
            for own in owns:
                own.update(numbers)
        if self.watched:
            o._write_limit()
        for v in self.versions:
            v[0] += 1

    def native(self) -> tuple | None:
        """For Program.set_direct, where C++ knows the rule."""
        from ..optim import SGD, Adam, AdamW

        o, kind = self.o, type(self.o)
        if kind not in (SGD, Adam, AdamW) or self.skip:
            return None
        flag = "momentum" if kind is SGD else "amsgrad"
        sets = [(g, list(ids), owns, bool(g[flag])) for _, g, ids, owns, _ in self.sets]
        return (
            "sgd" if kind is SGD else "adam",
            o.__dict__,
            kind is AdamW,
            self.norm,
            o._clip_slot.ids[0],
            sets,
            self.versions,
        )

    def undo(self) -> None:
        for owns, old in self.before:
            for own in owns:
                own.update(old)

    def done(self) -> None:
        if self.skip and self.o._control[2] == 0:
            self.undo()
            self.o._skipped += 1


class AverageState:
    """Counts an update of an average (optim/averaging.py) and writes its share into the slots."""

    def __init__(self, average: Any):
        self.average = average

    def ready(self) -> bool:
        return True

    def advance(self) -> None:
        _cpu.slots_write(self.average._slots.ids, self.average.advance())

    def undo(self) -> None:
        self.average.advance(-1)

    def done(self) -> None:
        pass


class SchedulerState:
    """Steps a scheduler where the function does."""

    def __init__(self, s: Any):
        self.s = s
        self.before: Any = None

    def ready(self) -> bool:
        return True

    def advance(self) -> None:
        self.before = (dict(self.s.__dict__), [dict(g) for g in self.s.optimizer.param_groups])
        self.s.step()

    def undo(self) -> None:
        own, groups = self.before
        self.s.__dict__.update(own)
        for g, old in zip(self.s.optimizer.param_groups, groups):
            g.update(old)

    def done(self) -> None:
        pass
