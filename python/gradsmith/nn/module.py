"""Module: parameters, buffers and submodules under names; containers of modules."""

from __future__ import annotations

import itertools
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

import numpy as np

from .. import _cpu
from ..core.arguments import integers
from ..core.tensor import Parameter, Tensor, check_device, resolve_dtype
from ..ops._arguments import not_tensors

__all__ = [
    "Flatten",
    "Identity",
    "Module",
    "ModuleDict",
    "ModuleList",
    "ParameterList",
    "Sequential",
    "Unflatten",
]

_OWN = ("training", "_parameters", "_buffers", "_transient", "_modules", "_hooks", "_pre_hooks")
M = TypeVar("M", bound="Module")
O = TypeVar("O", bound="_Ordered")


if TYPE_CHECKING:
    P = ParamSpec("P")
    R = TypeVar("R", covariant=True)

    class _Forward(Protocol[P, R]):
        """A call of a module takes and returns what its forward does."""

        def forward(self, *args: P.args, **kwargs: P.kwargs) -> R: ...


class Module(_cpu.ModuleBase):
    """Base class of layers and networks.

    Assign Parameters, Modules and (by `register_buffer`) buffers as attributes in `__init__`, after
    `super().__init__()`; define `forward`. Calling the module calls forward.

    >>> import gradsmith.nn as nn
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body = nn.Sequential(nn.Identity())
    ...     def forward(self, x):
    ...         return self.body(x)
    >>> [name for name, _ in Net().named_modules()]
    ['', 'body', 'body.0']
    """

    training: bool

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __call__(self: _Forward[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...

    # Parameters, buffers and submodules stand in a table each, and once more in the instance's
    # __dict__, where a plain attribute access finds them.
    def __init__(self) -> None:
        d = self.__dict__
        d["_parameters"] = {}
        d["_buffers"] = {}
        d["_transient"] = set()  # buffers that state_dict leaves out
        d["_modules"] = {}
        d["_hooks"] = {}
        d["_pre_hooks"] = {}
        d["training"] = True

    # ---- attributes
    def __setattr__(self, name: str, value: Any) -> None:
        d = self.__dict__
        if "_parameters" not in d:
            if isinstance(value, (Parameter, Module)):
                raise AttributeError(
                    f"{type(self).__name__}: call super().__init__() before assigning the submodule or parameter {name!r}"
                )
            object.__setattr__(self, name, value)
            return
        if isinstance(value, Parameter):
            self._enter("_parameters", name, value)
        elif isinstance(value, Module):
            self._enter("_modules", name, value)
        elif name in d["_parameters"]:
            if value is not None:
                raise TypeError(
                    f"{type(self).__name__}.{name} is a parameter; assign a Parameter or None, not {type(value).__name__}"
                )
            d["_parameters"][name] = d[name] = None
        elif name in d["_buffers"]:
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(self).__name__}.{name} is a buffer; assign a Tensor or None, not {type(value).__name__}"
                )
            d["_buffers"][name] = d[name] = value
        elif name in d["_modules"]:
            if value is not None:
                raise TypeError(
                    f"{type(self).__name__}.{name} is a submodule; assign a Module or None, not {type(value).__name__}"
                )
            d["_modules"][name] = d[name] = None
        else:
            object.__setattr__(self, name, value)

    def _enter(self, table: str, name: str, value: Any) -> None:
        """Puts a value under a name into one of the tables, and out of the others."""
        d = self.__dict__
        for other in ("_parameters", "_buffers", "_modules"):
            if other != table:
                d[other].pop(name, None)
        d[table][name] = d[name] = value

    def __delattr__(self, name: str) -> None:
        for table in (self._parameters, self._buffers, self._modules):
            if name in table:
                del table[name]
                self.__dict__.pop(name, None)
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._buffers, *self._modules})

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Adds a parameter (None keeps the name without one)."""
        self._check_name(name, "_parameters")
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"register_parameter: {name!r} must be a Parameter or None, got {type(param).__name__}"
            )
        self._enter("_parameters", name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Adds a tensor that is state but not trained, such as running statistics."""
        self._check_name(name, "_buffers")
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(
                f"register_buffer: {name!r} must be a Tensor or None, got {type(tensor).__name__}"
            )
        self._enter("_buffers", name, tensor)
        self._transient.discard(name) if persistent else self._transient.add(name)

    def register_module(self, name: str, module: Module | None) -> None:
        """Adds a submodule under a name."""
        self._check_name(name, "_modules")
        if module is not None and not isinstance(module, Module):
            raise TypeError(
                f"register_module: {name!r} must be a Module or None, got {type(module).__name__}"
            )
        self._enter("_modules", name, module)

    add_module = register_module

    def _check_name(self, name: str, table: str) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(
                f"{type(self).__name__}: {name!r} cannot be a name: it must be a string without dots"
            )
        if name in _OWN or hasattr(type(self), name):
            raise ValueError(
                f"{type(self).__name__}: {name!r} cannot be a name: it is an attribute of the module itself. Take "
                "another one"
            )
        if name in self.__dict__ and name not in self.__dict__[table]:
            raise KeyError(
                f"{type(self).__name__}: {name!r} is there already, as something else. Take another name, "
                "or delete the attribute first"
            )

    # ---- running
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    # ModuleBase.__call__ calls forward, or this when there are hooks.
    def _call_hooked(self, *args: Any, **kwargs: Any) -> Any:
        for fn in list(self._pre_hooks.values()):
            changed = fn(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        out = self.forward(*args, **kwargs)
        for fn in list(self._hooks.values()):
            changed = fn(self, args, out)
            if changed is not None:
                out = changed
        return out

    def register_forward_hook(self, hook: Callable) -> Any:
        """Calls hook(module, args, output) after forward; a returned value replaces the output."""
        from ..core.tensor import HookHandle

        return HookHandle(self._hooks, hook)

    def register_forward_pre_hook(self, hook: Callable) -> Any:
        """Calls hook(module, args) before forward; a returned value replaces the arguments."""
        from ..core.tensor import HookHandle

        return HookHandle(self._pre_hooks, hook)

    # ---- walking
    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules with their names."""
        for name, m in self._modules.items():
            if m is not None:
                yield name, m

    def children(self) -> Iterator[Module]:
        """The direct submodules."""
        for _, m in self.named_children():
            yield m

    def named_modules(
        self, memo: set | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Every module of the tree with its dotted name: each once, or under each of its names."""
        memo = set() if memo is None else memo
        if remove_duplicate:
            if id(self) in memo:
                return
            memo.add(id(self))
        yield prefix, self
        for name, m in self.named_children():
            path = f"{prefix}.{name}" if prefix else name
            if remove_duplicate:
                yield from m.named_modules(memo, path)
            else:
                yield from m.named_modules(memo, path, False)

    def modules(self) -> Iterator[Module]:
        """Every module of the tree, each once: itself first."""
        return iter(self._tree())

    def _named(
        self, table: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Tensor]]:
        if not isinstance(prefix, str):
            raise TypeError(
                f"{type(self).__name__}.named{table}: prefix must be a string, got {prefix!r}. "
                "recurse is the second argument"
            )
        return self._walk(table, prefix, recurse, remove_duplicate)

    def _walk(
        self, table: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        modules: Iterable[tuple[str, Module]] = [("", self)]
        if recurse and remove_duplicate:
            modules = self.named_modules()
        elif recurse:
            modules = self.named_modules(remove_duplicate=False)
        first = prefix + "." if prefix else ""
        for path, m in modules:
            before = f"{first}{path}." if path else first
            for name, t in m.__dict__[table].items():
                if t is None or (remove_duplicate and id(t) in seen):
                    continue
                seen.add(id(t))
                yield before + name, t

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its dotted name, behind prefix and a dot where one is given.

        A shared one comes once, under its first name, unless remove_duplicate is False.
        """
        return self._named("_parameters", prefix, recurse, remove_duplicate)  # type: ignore[return-value]

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Every parameter of the tree, each once; of the module alone with recurse=False."""
        if type(self).named_parameters is not Module.named_parameters:
            found = self.named_parameters() if recurse else self.named_parameters(recurse=False)
            return iter([p for _, p in found])
        return iter(self._all("_parameters", recurse))  # type: ignore[arg-type]

    def _all(self, table: str, recurse: bool = True) -> list[Tensor]:
        """Every tensor of a table of the tree, each once, in the order of their names."""
        found: dict[int, Tensor] = {}
        for m in self._tree() if recurse else (self,):
            for t in m.__dict__[table].values():
                if t is not None and id(t) not in found:
                    found[id(t)] = t
        return list(found.values())

    def _tree(self) -> list[Module]:
        """Every module of the tree, each once, as `modules` gives them."""
        if type(self).named_modules is not Module.named_modules:
            return [m for _, m in self.named_modules()]
        # depth first, in the order of the names: of what is left, the next one is at the end
        found: dict[int, Module] = {}
        left: list[Module | None] = [self]
        while left:
            m = left.pop()
            if m is None or id(m) in found:
                continue
            found[id(m)] = m
            children = m.__dict__["_modules"]
            if children:
                left += reversed(children.values())
        return list(found.values())

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Every buffer with its dotted name; the arguments are those of `named_parameters`."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Every buffer of the tree, each once; of the module alone with recurse=False."""
        for _, b in self.named_buffers(recurse=recurse):
            yield b

    def get_submodule(self, target: str) -> Module:
        """The module under a dotted name; AttributeError when there is none."""
        m: Module = self
        for part in target.split(".") if target else []:
            child = m._modules.get(part)
            if child is None:
                raise AttributeError(f"{type(self).__name__} has no submodule {target!r}")
            m = child
        return m

    def get_parameter(self, target: str) -> Parameter:
        """The parameter under a dotted name; AttributeError when there is none."""
        return self._get("_parameters", target)  # type: ignore[return-value]

    def get_buffer(self, target: str) -> Tensor:
        """The buffer under a dotted name; AttributeError when there is none."""
        return self._get("_buffers", target)

    def _get(self, table: str, target: str) -> Tensor:
        path, _, name = target.rpartition(".")
        found = self.get_submodule(path).__dict__[table].get(name)
        if found is None:
            kind = table[1:-1]
            raise AttributeError(f"{type(self).__name__} has no {kind} {target!r}")
        return found

    def apply(self: M, fn: Callable[[Module], Any]) -> M:
        """Calls fn on every submodule, then on self."""
        for m in self.children():
            m.apply(fn)
        fn(self)
        return self

    # ---- state
    def _state(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, m in self._all_modules(""):
            for name, p in m._parameters.items():
                if p is not None:
                    yield prefix + name, p
            for name, b in m._buffers.items():
                if b is not None and name not in m._transient:
                    yield prefix + name, b

    def _all_modules(self, prefix: str) -> Iterator[tuple[str, Module]]:
        # Shared modules under each of their names, as PyTorch's state dicts have them.
        yield prefix, self
        for name, m in self.named_children():
            yield from m._all_modules(f"{prefix}{name}.")

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> OrderedDict[str, Tensor]:
        """Parameters and persistent buffers by dotted name, sharing memory with the module.

        prefix: put before each name as it is (with its dot). keep_vars: the parameters and buffers
        themselves instead of tensors without a graph.
        """
        return OrderedDict((prefix + n, t if keep_vars else t.detach()) for n, t in self._state())

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> LoadResult:
        """Copies values by name into the parameters and buffers; all is checked before any is changed.

        state_dict: names to Tensors or arrays. strict: every name must match. Returns the missing and
        unexpected names. Raises KeyError for names (strict) and ValueError for shapes.
        """
        if not hasattr(state_dict, "items"):
            raise TypeError(
                f"load_state_dict: expected a mapping of names to arrays, got {type(state_dict).__name__}"
            )
        own = OrderedDict(self._state())
        missing = [n for n in own if n not in state_dict]
        unexpected = [n for n in state_dict if n not in own]
        if strict and (missing or unexpected):

            def few(names: list[str]) -> str:
                return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

            text = []
            if missing:
                text.append(f"missing {len(missing)}: {few(missing)}")
            if unexpected:
                text.append(f"unexpected {len(unexpected)}: {few(unexpected)}")
            raise KeyError(
                f"{type(self).__name__}.load_state_dict: {'; '.join(text)}. strict=False loads the names that match"
            )
        arrays = {}
        for name, t in own.items():
            if name not in state_dict:
                continue
            value = state_dict[name]
            a = value.data if isinstance(value, Tensor) else np.asarray(value)
            if a.shape != t.data.shape:
                hint = ""
                if a.ndim > 2 and (a.shape[0], *a.shape[2:], a.shape[1]) == t.data.shape:
                    hint = ". Weights of PyTorch are read by gs.interop.torch.load_state_dict"
                raise ValueError(
                    f"{type(self).__name__}.load_state_dict: {name} has shape {a.shape} in the state and "
                    f"{t.data.shape} in the module{hint}"
                )
            resolve_dtype(a.dtype, f"load_state_dict: {name}")
            arrays[name] = a
        for name, a in arrays.items():
            t = own[name]
            t._k.copy_(t.data, a)
            t._ver[0] += 1
        return LoadResult(missing, unexpected)

    # ---- modes
    def train(self: M, mode: bool = True) -> M:
        """Sets training mode (dropout active, batch statistics) in the whole tree."""
        if not isinstance(mode, (bool, np.bool_)):
            raise TypeError(
                f"{type(self).__name__}.train: mode must be True or False, got {type(mode).__name__}"
            )
        flag = bool(mode)
        for m in self._tree():
            m.__dict__["training"] = flag
        return self

    def eval(self: M) -> M:
        """Sets evaluation mode."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Sets whether the parameters of the tree are trained."""
        for p in self.parameters():
            p.requires_grad = requires_grad
        return self

    def freeze(self: M) -> M:
        """The parameters of the tree are no longer trained."""
        return self.requires_grad_(False)

    def unfreeze(self: M) -> M:
        """The parameters of the tree are trained again."""
        return self.requires_grad_(True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops (or zeroes) the gradients of all parameters."""
        own = type(self)
        if (
            set_to_none
            and own.parameters is Module.parameters
            and own.named_parameters is Module.named_parameters
            and own.named_modules is Module.named_modules
        ):
            seen: set[int] = set()
            left: list[Module | None] = [self]
            while left:
                m = left.pop()
                if m is None or id(m) in seen:
                    continue
                seen.add(id(m))
                d = m.__dict__
                for p in d["_parameters"].values():
                    if p is not None:
                        p._grad = None
                if d["_modules"]:
                    left += d["_modules"].values()
            return
        for p in self.parameters():
            if set_to_none or p._grad is None:
                p._grad = None
            else:
                p._k.fill_(p._grad.data, 0.0)
                p._grad._ver[0] += 1

    def to(self: M, *args: Any, dtype: Any = None, device: Any = None) -> M:
        """Converts float parameters and buffers to a dtype in place; device must be 'cpu'."""
        for a in args:
            if isinstance(a, str) and (a == "cpu" or a.startswith("cuda")):
                device = a
            else:
                dtype = a
        if device is not None:
            check_device(device, f"{type(self).__name__}.to")
        if dtype is not None:
            d = resolve_dtype(dtype, f"{type(self).__name__}.to")
            if d.kind != "f":
                raise TypeError(f"{type(self).__name__}.to: parameters must stay float, got {d}")
            for t in itertools.chain(self.parameters(), self.buffers()):
                if t.data.dtype.kind == "f" and t.data.dtype != d:
                    t.data = t._k.cast(t.data, d.name)
                    t._ver[0] += 1
                    if t._grad is not None:
                        t._grad = t._grad.to(dtype=d)
        return self

    def double(self: M) -> M:
        """Converts float parameters and buffers to float64 in place."""
        return self.to(dtype=np.float64)

    def float(self: M) -> M:
        """Converts float parameters and buffers to float32 in place."""
        return self.to(dtype=np.float32)

    def cpu(self: M) -> M:
        """The module itself: it is on the CPU."""
        return self

    # ---- text
    def extra_repr(self) -> str:
        """What `repr` shows in the parentheses."""
        return ""

    def __repr__(self) -> str:
        lines = []
        for name, m in self.named_children():
            lines.append(f"({name}): " + repr(m).replace("\n", "\n  "))
        extra = self.extra_repr()
        head = type(self).__name__ + "("
        if not lines:
            return head + extra + ")"
        return head + (extra + "\n  " if extra else "\n  ") + "\n  ".join(lines) + "\n)"


class LoadResult(tuple):
    """(missing_keys, unexpected_keys) of a load."""

    def __new__(cls, missing: list[str], unexpected: list[str]) -> LoadResult:
        return super().__new__(cls, (missing, unexpected))

    @property
    def missing_keys(self) -> list[str]:
        return self[0]

    @property
    def unexpected_keys(self) -> list[str]:
        return self[1]


def _listed(owner: Module, items: Any) -> list[Any]:
    if not isinstance(items, Iterable):
        raise TypeError(f"{type(owner).__name__}: expected a list, got {type(items).__name__}")
    return list(items)


class _Ordered(Module):
    """What Sequential and ModuleList share: modules in an order, named "0", "1", ... unless given names."""

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(list(self._modules.values()))

    def _name(self, index: Any, op: str) -> str:
        """The name of the module at a position, which may count from the end."""
        try:
            i = operator.index(index)
        except TypeError:
            raise TypeError(
                f"{type(self).__name__}: {op} takes an integer, got {type(index).__name__}"
            ) from None
        if not -len(self) <= i < len(self):
            raise IndexError(f"{type(self).__name__}: {op} {i} is outside the {len(self)} modules")
        return list(self._modules)[i]

    def _check_item(self, module: Any, at: Any) -> None:
        if not isinstance(module, Module):
            hint = ""
            if isinstance(module, type) and issubclass(module, Module):
                hint = f". Did you mean {module.__name__}()?"
            elif isinstance(module, (list, tuple)) and isinstance(self, Sequential):
                hint = ". A star takes it apart: Sequential(*layers)"
            elif callable(module):
                hint = ". A function goes into a forward of your own, or has a module, as relu has nn.ReLU()"
            raise TypeError(
                f"{type(self).__name__}: item {at} must be a Module, got {type(module).__name__}{hint}"
            )

    def _renew(self, items: list[tuple[str, Module]]) -> None:
        """Holds these modules instead; where all names are numbers they become positions again."""
        if all([name.isdigit() for name, _ in items]):
            items = [(str(i), m) for i, (_, m) in enumerate(items)]
        for name in list(self._modules):
            delattr(self, name)
        for name, m in items:
            self.register_module(name, m)

    def __setitem__(self, index: int, module: Module) -> None:
        name = self._name(index, "index")
        self._check_item(module, index)
        self.register_module(name, module)

    def __delitem__(self, index: int | slice) -> None:
        items = list(self._modules.items())
        if isinstance(index, slice):
            del items[index]
        else:
            name = self._name(index, "index")
            items = [item for item in items if item[0] != name]
        self._renew(items)

    def append(self: O, module: Module) -> O:
        """Adds a module at the end."""
        self._check_item(module, len(self))
        name = next(n for n in map(str, itertools.count(len(self))) if n not in self._modules)
        self.register_module(name, module)
        return self

    def __iadd__(self: O, modules: Iterable[Module]) -> O:
        return self.extend(modules)

    def extend(self: O, modules: Iterable[Module]) -> O:
        """Adds modules at the end."""
        new = _listed(self, modules)
        for i, m in enumerate(new, len(self)):
            self._check_item(m, i)
        for m in new:
            self.append(m)
        return self

    def insert(self: O, index: int, module: Module) -> O:
        """Puts a module before the one at a position; those behind it move up."""
        self._check_item(module, index)
        items = list(self._modules.items())
        name = next(n for n in map(str, itertools.count(len(self))) if n not in self._modules)
        items.insert(operator.index(index), (name, module))
        self._renew(items)
        return self

    def pop(self, index: int = -1) -> Module:
        """Takes a module out and returns it; those behind it move down."""
        m = self._modules[self._name(index, "index")]
        del self[index]
        return m


class Sequential(_Ordered):
    """Modules called one after the other. Takes modules, or one OrderedDict of names to modules.

    Layers are replaced, added and removed as in a list; a replacement keeps the name. TypeError: an item that is no
    Module. IndexError: a position outside.

    >>> import gradsmith.nn as nn
    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> net[-1] = nn.Linear(4, 3)
    >>> net.insert(2, nn.Dropout(0.1))[3].out_features
    3
    """

    def __init__(self, *modules: Any):
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], dict):
            items = list(modules[0].items())
        else:
            items = [(str(i), m) for i, m in enumerate(modules)]
        for name, m in items:
            self._check_item(m, name)
            self.register_module(name, m)

    def forward(self, x: Any) -> Any:
        for m in self._modules.values():
            x = m(x)
        return x

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            names = list(self._modules)[index]
            return type(self)(OrderedDict((n, self._modules[n]) for n in names))
        return self._modules[self._name(index, "index")]


class ModuleList(_Ordered):
    """A list of modules that are registered; it has no forward. Items are replaced, added and removed as in a list.

    TypeError: an item that is no Module. IndexError: a position outside.

    >>> import gradsmith.nn as nn
    >>> layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    >>> len(layers), [name for name, _ in layers[:2].named_parameters()]
    (3, ['0.weight', '0.bias', '1.weight', '1.bias'])
    """

    def __init__(self, modules: Iterable[Module] | None = None):
        super().__init__()
        self.extend(() if modules is None else modules)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return ModuleList(list(self._modules.values())[index])
        return self._modules[self._name(index, "index")]


class ModuleDict(Module):
    """Modules under names; it has no forward.

    TypeError: a value that is no Module. ValueError: a name with a dot. KeyError: a name that is not there.

    >>> import gradsmith.nn as nn
    >>> heads = nn.ModuleDict({"digit": nn.Linear(8, 10)})
    >>> heads["parity"] = nn.Linear(8, 2)
    >>> list(heads), heads["parity"].out_features
    (['digit', 'parity'], 2)
    """

    def __init__(self, modules: Any = None):
        super().__init__()
        self.update(modules or {})

    def update(self, modules: Any) -> None:
        for name, m in dict(modules).items():
            self.register_module(name, m)

    def __getitem__(self, name: str) -> Module:
        return self._modules[name]

    def __setitem__(self, name: str, module: Module) -> None:
        self.register_module(name, module)

    def __delitem__(self, name: str) -> None:
        if name not in self._modules:
            raise KeyError(name)
        delattr(self, name)

    def clear(self) -> None:
        """Takes all modules out."""
        for name in list(self._modules):
            delattr(self, name)

    def pop(self, name: str) -> Module:
        """Takes a module out and returns it."""
        m = self._modules[name]
        delattr(self, name)
        return m

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._modules))

    def keys(self) -> Any:
        return self._modules.keys()

    def values(self) -> Any:
        return self._modules.values()

    def items(self) -> Any:
        return self._modules.items()


class ParameterList(Module):
    """A list of parameters that are registered; what is no Parameter becomes one. TypeError: no float tensor.

    >>> import gradsmith as gs
    >>> scales = gs.nn.ParameterList([gs.ones(2), gs.ones(3)])
    >>> [(name, p.shape) for name, p in scales.named_parameters()]
    [('0', (2,)), ('1', (3,))]
    """

    def __init__(self, parameters: Iterable[Any] | None = None):
        super().__init__()
        self.extend(() if parameters is None else parameters)

    def append(self, p: Any) -> ParameterList:
        self.register_parameter(str(len(self)), p if isinstance(p, Parameter) else Parameter(p))
        return self

    def extend(self, parameters: Iterable[Any]) -> ParameterList:
        """Adds parameters at the end."""
        for p in _listed(self, parameters):
            self.append(p)
        return self

    __iadd__ = extend

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(list(self._parameters.values()))

    def __getitem__(self, index: int | slice) -> Any:
        found = list(self._parameters.values())[index]
        return ParameterList(found) if isinstance(index, slice) else found

    def __setitem__(self, index: int, p: Any) -> None:
        name = list(self._parameters)[index]
        self.register_parameter(name, p if isinstance(p, Parameter) else Parameter(p))


class Identity(Module):
    """Returns its input. Any constructor arguments are ignored.

    >>> import gradsmith as gs
    >>> net = gs.nn.Sequential(gs.nn.Linear(4, 3), gs.nn.ReLU())
    >>> net[1] = gs.nn.Identity()  # takes a layer out
    >>> net(gs.zeros(2, 4)).shape
    (2, 3)
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def forward(self, x: Any) -> Any:
        return x


class Flatten(Module):
    """Merges dimensions start_dim .. end_dim into one: (N, H, W, C) -> (N, H*W*C).

    When called, IndexError for a dimension that the input lacks, ValueError when end_dim comes before start_dim.

    >>> import gradsmith as gs
    >>> gs.nn.Flatten()(gs.zeros(2, 4, 4, 3)).shape
    (2, 48)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise not_tensors("Flatten", None, input=x)
        return x.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Splits dimension `dim` into `unflattened_size`: (N, H*W*C) -> (N, H, W, C); one size may be -1.

    When called, IndexError for a dimension that the input lacks, ValueError for sizes that do not multiply to its size.

    >>> import gradsmith as gs
    >>> gs.nn.Unflatten(1, (4, 4, -1))(gs.zeros(2, 48)).shape
    (2, 4, 4, 3)
    """

    def __init__(self, dim: int, unflattened_size: tuple[int, ...]):
        super().__init__()
        self.dim = dim
        self.unflattened_size = integers("Unflatten", "unflattened_size", unflattened_size)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise not_tensors("Unflatten", None, input=x)
        return x.unflatten(self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
