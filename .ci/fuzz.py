"""Random ops on hostile arguments: a documented kind of error or a result, never a crash or another error.

usage: fuzz.py [--seconds 30] [--seed N]

Runs public functions, Tensor methods and layers, and their gradients, on arrays of random shape, dtype and layout
(empty, strided, broadcast, Fortran order, read-only, unaligned, NaN) and on arguments that are out of
range, huge or of the wrong type; a second stream makes geometries that nearly fit, so that kernels run on every tail.
The call in progress stands in fuzz-last.txt when the process dies. Meant for a build with
sanitizers; without one memory is limited to 3 GiB.
"""

import argparse
import collections
import contextlib
import inspect
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings

import numpy as np

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F

ALLOWED = (
    ValueError,
    TypeError,
    IndexError,
    RuntimeError,
    MemoryError,
    OverflowError,
    NotImplementedError,
)
SKIP = {
    "save", "load", "set_num_threads", "manual_seed", "show_config", "gradcheck", "enable_grad", "no_grad",
    "empty_cache", "memory_stats", "set_grad_enabled", "register_hook", "_method", "apply_",
}  # fmt: skip
OPERATORS = {"__getitem__", "__setitem__", "__add__", "__mul__", "__matmul__", "__pow__", "__iadd__", "__imul__"}  # fmt: skip
SIZES = [0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 32, 33]
HUGE = [2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, -(2**63), 10**30]
NUMBERS = [0.0, 1.0, 0.5, -1.0, 2.0, 1e-5, float("nan"), float("inf"), -float("inf"), 1e300, 5, -3]


class Fuzzer:
    def __init__(self, seed: int) -> None:
        self.r, self.n = random.Random(seed), np.random.default_rng(seed)
        self.shape: tuple = ()
        self.dtype = "float32"
        self.last = open("fuzz-last.txt", "w")  # noqa: SIM115
        self.bad: collections.Counter = collections.Counter()
        self.ran = self.done = 0
        self.functions = {}
        for module, prefix in ((gs, "gs."), (F, "F."), (gs.Tensor, "Tensor.")):
            for name in dir(module):
                f = getattr(module, name)
                hidden = name.startswith("_") and name not in OPERATORS
                if not hidden and name not in SKIP and callable(f) and not inspect.isclass(f):
                    self.add(prefix + name, f)
        self.layers = {
            name: layer
            for name in dir(nn)
            if inspect.isclass(layer := getattr(nn, name)) and issubclass(layer, nn.Module)
        }
        for name in ("Module", "Sequential", "ModuleList", "ModuleDict"):
            self.layers.pop(name, None)

    def add(self, name, f):
        with contextlib.suppress(ValueError, TypeError):
            self.functions[name] = (f, list(inspect.signature(f).parameters.values()))

    # ---- arguments

    def some_shape(self):
        shape = [self.r.choice(SIZES) for _ in range(self.r.choice([0, 1, 1, 2, 2, 3, 3, 4, 5]))]
        while np.prod(shape, dtype=float) > 4000:
            shape.pop()
        return tuple(shape)

    def layout(self, a):
        """The same values and shape in another layout."""
        kind = self.r.random()
        if a.ndim == 0 or kind < 0.5:
            return a
        if kind < 0.6:
            return np.ascontiguousarray(a[..., ::-1])[..., ::-1]
        if kind < 0.7:
            return np.asfortranarray(a)
        if kind < 0.8:
            wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
            wide[..., ::2] = a
            return wide[..., ::2]
        if kind < 0.85 and a.shape[0]:
            return np.broadcast_to(a[:1], a.shape)
        if kind < 0.92:
            raw = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
            raw[...] = a
            return raw
        a.flags.writeable = False
        return a

    def array(self, shape):
        kind = self.r.choice(
            ["float32"] * 6 + ["float64"] * 3 + ["int32", "int64", "uint8", "bool"]
        )
        if kind.startswith("float"):
            a = np.asarray(self.n.standard_normal(shape).astype(kind))
            if a.size and self.r.random() < 0.1:
                a.flat[self.r.randrange(a.size)] = self.r.choice([np.nan, np.inf, -np.inf, 1e38])
        else:
            low = 0 if kind in ("uint8", "bool") or self.r.random() < 0.6 else -3
            a = np.asarray(self.n.integers(low, self.r.choice([1, 2, 4, 100]), shape).astype(kind))
        return self.layout(a)

    def tensor(self):
        shape = self.shape
        if self.r.random() > 0.6:
            shape = self.some_shape()
        elif shape and self.r.random() < 0.3:
            changed = list(shape)
            changed[self.r.randrange(len(shape))] = self.r.choice([0, 1, 2, 5])
            shape = tuple(changed)
        self.shape = shape
        return self.leaf(gs.Tensor(self.array(shape)))

    def leaf(self, t):
        if t.dtype.kind == "f" and self.r.random() < 0.6:
            t.requires_grad_(True)
        return t

    def exact(self, *shape):
        """A float tensor of this shape; now and then one size is another."""
        if shape and self.r.random() < 0.05:
            changed = list(shape)
            changed[self.r.randrange(len(shape))] = self.r.choice([0, 1, 2, 64])
            shape = tuple(changed)
        a = np.asarray(self.n.standard_normal(shape).astype(self.dtype))
        return self.leaf(gs.Tensor(self.layout(a)))

    def indices(self, shape, limit):
        low = -2 if self.r.random() < 0.15 else 0
        high = max(1, limit) + (self.r.random() < 0.15)
        kind = self.r.choice(["int64", "int32", "uint8"])
        return gs.Tensor(np.asarray(self.n.integers(low, high, shape).astype(kind)))

    def integer(self):
        return self.r.choice([0, 1, 1, 2, 2, 3, 4, 5, 7, -1, -1, -2, 16, 100, self.r.choice(HUGE)])

    def rarely_hostile(self, value):
        return self.r.choice([0, -1, None, 1.5, "1", *HUGE]) if self.r.random() < 0.02 else value

    def weird(self):
        return self.r.choice([
            None, "x", "", object(), [], [1, 2], (1, 2, 3), {}, b"a", np.float16(1), 1j, True, [[1, 2], [3]],
            np.zeros(3, "f2"), np.zeros(2, "c16"), np.zeros((), "O"), np.zeros(2, [("a", "f4")]),
            np.zeros(3, ">f4"), np.datetime64("now"), slice(1, 2), ..., gs.zeros(0), gs.tensor(3),
        ])  # fmt: skip

    def argument(self, p):
        r, name, kind = self.r, p.name, str(p.annotation)
        if r.random() < 0.1:
            return self.weird()
        if name in (
            "dim",
            "axis",
            "dims",
            "dim0",
            "dim1",
            "source",
            "destination",
            "start_dim",
            "end_dim",
        ):
            return r.choice([None, 0, 1, 2, -1, -2, (0, 1), (0, -1), (), 5, (0, 0), 2**40])
        if name in ("shape", "size", "sizes", "output_size", "normalized_shape", "repeats"):
            return r.choice(
                [self.integer(), self.some_shape(), self.shape, (-1, 2), (2**40, 2**40)]
            )
        if name in ("kernel_size", "stride", "padding", "dilation", "output_padding"):
            return r.choice([1, 2, 3, 0, self.integer(), (1, 2), "same"])
        if name == "reduction":
            return r.choice(["mean", "sum", "none", "batchmean", "avg"])
        if name in ("target", "index", "indices"):
            return r.choice([self.tensor, lambda: self.indices(self.shape[:-1], 4)])()
        if name == "tensors":
            return [self.tensor() for _ in range(r.choice([0, 1, 2, 3]))]
        if name == "dtype":
            return r.choice(["float32", "float64", "int64", "bool", None, "float16", object])
        if "bool" in kind and "Tensor" not in kind:
            return r.random() < 0.5
        if "float" in kind and "Tensor" not in kind:
            return r.choice(NUMBERS)
        if kind.startswith("int"):
            return self.integer()
        return r.choice([self.tensor] * 9 + [lambda: r.choice(NUMBERS), self.integer])()

    def arguments(self, parameters):
        args, named = [], {}
        for p in parameters:
            if p.name == "self":
                args.append(self.tensor())
            elif p.kind is p.VAR_POSITIONAL:
                args += [
                    self.r.choice([self.tensor, self.integer])()
                    for _ in range(self.r.choice([0, 1, 2]))
                ]
            elif p.kind is p.VAR_KEYWORD or p.name == "out":
                continue
            elif p.default is p.empty and p.kind is not p.KEYWORD_ONLY:
                args.append(self.argument(p))
            elif p.default is p.empty or self.r.random() < 0.45:
                named[p.name] = self.argument(p)
        return args, named

    # ---- calls

    def call(self, name, f, *args, **named):
        text = f"{name} {[shown(a) for a in args]} { {k: shown(v) for k, v in named.items()} }"
        self.last.seek(0)
        self.last.truncate()
        self.last.write(text[:4000])
        self.last.flush()
        self.ran += 1
        signal.alarm(60)
        try:
            y = f(*args, **named)
            for t in y if isinstance(y, tuple) else (y,):
                if isinstance(t, gs.Tensor) and t.requires_grad and t.size < 1_000_000:
                    g = np.asarray(self.n.standard_normal(t.shape).astype(t.dtype))
                    t.backward(gs.Tensor(self.layout(g)), retain_graph=True)
            self.done += 1
            return y
        except ALLOWED as error:
            if not str(error):
                self.bad[f"{name}: {type(error).__name__} without a message"] += 1
        except Exception as error:
            if "division of an integer tensor by zero" in str(error):
                return None
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{os.path.basename(at.filename)}:{at.lineno}"
            self.bad[f"{name}: {type(error).__name__}: {str(error)[:200]} ({where})"] += 1
            print(text[:600])
        finally:
            signal.alarm(0)
        return None

    def anything(self):
        self.shape = self.some_shape()
        f, parameters = self.functions[name := self.r.choice(list(self.functions))]
        args, named = self.arguments(parameters)
        self.call(name, f, *args, **named)

    def layer(self):
        self.shape = self.some_shape()
        make = self.layers[name := self.r.choice(list(self.layers))]
        args, named = [], {}
        for p in list(inspect.signature(make.__init__).parameters.values())[1:]:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            if p.default is not p.empty and self.r.random() < 0.6:
                continue
            if any(w in p.name for w in ("features", "channels", "num", "embed", "hidden", "size")):
                last = self.shape[-1] if self.shape else 1
                value = self.rarely_hostile(self.r.choice([1, 2, 3, 4, 8, last, last]))
                value = 3 if isinstance(value, int) and value > 4096 else value
            else:
                value = self.argument(p)
            if p.default is p.empty:
                args.append(value)
            else:
                named[p.name] = value
        module = self.call("nn." + name, make, *args, **named)
        if isinstance(module, nn.Module):
            if self.r.random() < 0.3:
                module.eval()
            forward = inspect.signature(module.forward).parameters.values()
            needed = [p for p in forward if p.default is p.empty]
            self.call(f"nn.{name}()", module, *[self.tensor() for _ in needed])

    # ---- geometries that nearly fit

    def size(self):
        return self.r.choice(SIZES)

    def some(self, n, *values):
        return tuple(self.rarely_hostile(self.r.choice(values)) for _ in range(n))

    def nearly(self):
        self.dtype = self.r.choice(["float32", "float32", "float64"])
        getattr(
            self, self.r.choice(["conv", "conv_t", "pool", "norm", "product", "loss", "index"])
        )()

    def conv(self):
        r, nd = self.r, self.r.choice([1, 2])
        groups = r.choice([1, 1, 1, 2, 3, 8])
        cin, cout = groups * r.choice([1, 1, 2, 4, 8, 16]), groups * r.choice([1, 1, 2, 3, 8, 16])
        stride = self.some(nd, 1, 1, 2, 3, 7)
        padding = r.choice([self.some(nd, 0, 0, 1, 2, 9), "same", "valid"])
        if padding == "same":
            stride = (1,) * nd
        window = tuple(r.choice([1, 1, 2, 3, 3, 5]) for _ in range(nd))
        x = self.exact(r.choice([0, 1, 1, 2, 3]), *(self.size() for _ in range(nd)), cin)
        w = self.exact(cout, *window, cin // groups)
        b = r.choice([None, self.exact(cout)])
        rest = (stride, padding, self.some(nd, 1, 1, 2, 5), self.rarely_hostile(groups))
        self.call(f"conv{nd}d", getattr(F, f"conv{nd}d"), x, w, b, *rest, relu=r.random() < 0.2)

    def conv_t(self):
        r, nd = self.r, self.r.choice([1, 2])
        groups = r.choice([1, 1, 2, 3])
        cin, cout = groups * r.choice([1, 2, 8]), groups * r.choice([1, 3, 16])
        x = self.exact(r.choice([0, 1, 2]), *(r.choice([0, 1, 2, 5, 9]) for _ in range(nd)), cin)
        w = self.exact(cin, *(r.choice([1, 2, 3, 5]) for _ in range(nd)), cout // groups)
        b = r.choice([None, self.exact(cout)])
        stride, padding = (r.choice([1, 2, 3]),) * nd, tuple(r.choice([0, 1, 2]) for _ in range(nd))
        rest = (stride, padding, (r.choice([0, 0, 1, -1]),) * nd, groups, (r.choice([1, 2]),) * nd)
        self.call(f"conv_transpose{nd}d", getattr(F, f"conv_transpose{nd}d"), x, w, b, *rest)

    def pool(self):
        r, nd = self.r, self.r.choice([1, 2])
        x = self.exact(r.choice([0, 1, 2, 3]), *(self.size() for _ in range(nd)), self.size())
        kind = r.choice(["max", "avg", "adaptive_avg", "adaptive_max"])
        f = getattr(F, f"{kind}_pool{nd}d")
        if kind.startswith("adaptive"):
            out = self.some(nd, *SIZES)
            return self.call(f"{kind}_pool{nd}d", f, x, out if nd > 1 else out[0])
        window = (self.some(nd, 1, 2, 3, 5), self.some(nd, 1, 2, 3), self.some(nd, 0, 0, 1))
        last = self.some(nd, 1, 1, 2) if kind == "max" else r.random() < 0.5
        return self.call(f"{kind}_pool{nd}d", f, x, *window, last, r.random() < 0.5)

    def norm(self):
        r = self.r
        x = self.exact(*(self.size() for _ in range(r.choice([1, 2, 3]))), self.size())
        c = x.shape[-1]
        w, b = r.choice([(None, None), (self.exact(c), self.exact(c))])
        kind = r.choice(["batch", "batch", "layer", "group", "rms", "instance"])
        if kind == "batch":
            mean, var = r.choice(
                [(None, None), (gs.zeros(c, dtype=self.dtype), gs.ones(c, dtype=self.dtype))]
            )
            if mean is not None and r.random() < 0.1:
                mean.data.flags.writeable = False
            self.call("batch_norm", F.batch_norm, x, mean, var, w, b, r.random() < 0.7)
        elif kind == "group":
            self.call("group_norm", F.group_norm, x, r.choice([0, 1, 2, 4, c]), w, b)
        elif kind == "instance":
            self.call("instance_norm", F.instance_norm, x, weight=w, bias=b)
        elif kind == "layer":
            self.call("layer_norm", F.layer_norm, x, c, w, b)
        else:
            self.call("rms_norm", F.rms_norm, x, c, w)

    def product(self):
        r, (m, k, n) = self.r, (self.size() for _ in range(3))
        lead = tuple(r.choice([1, 1, 2, 3]) for _ in range(r.choice([0, 1, 2])))
        if r.random() < 0.4:
            bias = r.choice([None, self.exact(n)])
            return self.call("linear", F.linear, self.exact(*lead, m, k), self.exact(n, k), bias)
        a = self.exact(*r.choice([(m, k), (*lead, m, k), (k,)]))
        b = self.exact(*r.choice([(k, n), (*lead, k, n), (k,)]))
        return self.call("matmul", gs.matmul, a, b)

    def loss(self):
        r = self.r
        shape = tuple(self.size() for _ in range(r.choice([1, 2, 3])))
        x, reduction = self.exact(*shape), r.choice(["mean", "sum", "none"])
        kind = r.choice(["cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
                         "binary_cross_entropy_with_logits", "kl_div"])  # fmt: skip
        f = getattr(F, kind)
        if kind not in ("cross_entropy", "nll_loss"):
            return self.call(kind, f, x, self.exact(*shape), reduction=reduction)
        target = self.indices(shape[:-1], shape[-1])
        options = {"reduction": reduction, "ignore_index": r.choice([-100, 0, 1, 2**40])}
        if kind == "cross_entropy":
            options["label_smoothing"] = r.choice([0.0, 0.1, 1.0])
            target = r.choice([target, target, self.exact(*shape)])
        weight = r.choice([None, self.exact(shape[-1]).detach()])
        return self.call(kind, f, x, target, weight, **options)

    def index(self):
        r = self.r
        shape = tuple(self.size() for _ in range(r.choice([1, 2, 3])))
        x, axis = self.exact(*shape), r.randrange(len(shape))
        n, some = shape[axis], tuple(r.choice([s, max(0, s - 1), 1]) for s in shape)
        kind = r.choice(
            ["gather", "scatter", "scatter_add", "index_select", "index_add", "get", "set", "table"]
        )
        few = self.indices((r.choice([0, 1, 5]),), n)
        if kind == "gather":
            self.call(kind, gs.gather, x, axis, self.indices(some, n))
        elif kind.startswith("scatter"):
            self.call(kind, getattr(gs, kind), x, axis, self.indices(some, n), self.exact(*some))
        elif kind == "index_select":
            self.call(kind, gs.index_select, x, axis, few)
        elif kind == "index_add":
            rows = (*shape[:axis], few.size, *shape[axis + 1 :])
            self.call(kind, gs.index_add, x, axis, few, self.exact(*rows))
        elif kind == "table":
            padding = r.choice([None, None, 0, -1, 5])
            table = self.exact(self.size(), self.size())
            self.call(
                "embedding",
                F.embedding,
                self.indices(some, table.shape[0]),
                table,
                padding_idx=padding,
            )
        else:
            key = r.choice([few, slice(None, None, -1), (None, ..., 0), slice(2**62), (..., slice(-(2**62), 2**62, 3)), 2**62])  # fmt: skip
            if kind == "get":
                self.call("getitem", lambda x: x[key], x)
            else:
                self.call(
                    "setitem", put, x, key, r.choice([1.5, self.exact(), self.exact(self.size())])
                )


def put(x, key, value):
    x = x.detach().clone()
    x[key] = value


def shown(x):
    if isinstance(x, gs.Tensor):
        return f"Tensor({x.dtype}, {x.shape}, strides {x.data.strides})"
    return f"array({x.dtype}, {x.shape})" if isinstance(x, np.ndarray) else repr(x)[:80]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if "LD_PRELOAD" not in os.environ:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    signal.signal(signal.SIGALRM, too_slow)
    fuzzer = Fuzzer(options.seed)
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        fuzzer.r.choice([fuzzer.nearly, fuzzer.nearly, fuzzer.anything, fuzzer.layer])()
    print(f"seed {options.seed}: {fuzzer.ran} calls, {fuzzer.done} with a result")
    for text, count in fuzzer.bad.most_common(40):
        print(count, text)
    return bool(fuzzer.bad) or fuzzer.done < fuzzer.ran // 10


def too_slow(*_):
    raise AssertionError("one call took a minute")


if __name__ == "__main__":
    sys.exit(main())
