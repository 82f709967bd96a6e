"""The graph's objects in C: references, collection, depth, threads, subclasses, misuse."""

import copy
import gc
import pickle
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import gradsmith as gs
from gradsmith import _cpu, nn
from gradsmith.core.autograd import Node, apply
from gradsmith.nn import functional as F


def leaf(rng, *shape):
    return gs.tensor(rng.standard_normal(shape), requires_grad=True)


# ---- references
def test_results_nodes_and_gradients_are_freed_without_the_collector(rng):
    gc.collect()
    gc.disable()
    try:
        x, w = leaf(rng, 3, 4), leaf(rng, 5, 4)
        y = F.linear(x, w)
        z = F.relu(y + 1.0)
        loss = (z * z).sum()
        refs = [weakref.ref(t) for t in (y, z, loss, y._node, z._node, loss._node)]
        loss.backward()
        refs += [weakref.ref(x.grad), weakref.ref(x._acc)]
        del y, z, loss
        assert [r() for r in refs[:6]] == [None] * 6
        x.grad = None
        assert refs[6]() is None
        del x
        assert refs[7]() is None
    finally:
        gc.enable()


def test_reference_counts_of_the_operands_return(rng):
    x, w = leaf(rng, 3, 4), leaf(rng, 5, 4)
    b = leaf(rng, 5)
    seed = np.ones((3, 5))

    def counts():
        objects = (x, w, b, x.data, w.data, b.data, x._ver, seed, x._k, None.__class__)
        return [sys.getrefcount(o) for o in objects]

    def once():
        y = F.linear(x, w, b)
        z = gs.exp(y * y) - y / (y * y + 2.0) + y[1:2].detach()
        a, c = gs.split(z, [2, 3], 1)
        z = gs.cat([a, c], 1)
        z.backward(gs.from_numpy(seed))
        gs.grad((x * 2.0).sum(), x)
        with pytest.raises(RuntimeError):
            z.backward(gs.from_numpy(seed))
        with pytest.raises(ValueError):
            z.backward(gs.ones(2, dtype="float64"))
        for t in (x, w, b):
            t.grad = None

    for _ in range(3):
        once()
    before = counts()
    for _ in range(50):
        once()
    assert counts() == before


@pytest.mark.parametrize("kind", ["graph", "errors", "hooks"])
def test_memory_does_not_grow(rng, kind):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    x = gs.tensor(rng.standard_normal((5, 4)).astype("float32"))
    t = gs.tensor(rng.integers(0, 3, 5))

    class Fails(Node):
        def backward(self, grad):
            raise ArithmeticError("on purpose")

    def once():
        loss = F.cross_entropy(model(x), t)
        if kind == "hooks":
            handle = loss.register_hook(lambda g: g * 2.0)
            mid = model[0].weight * 2.0
            mid.retain_grad()
            (mid.sum() + loss).backward()
            handle.remove()
        elif kind == "errors":
            bad = apply(Fails, loss._k, loss._k.copy(loss.data), (loss,))
            with pytest.raises(ArithmeticError):
                bad.backward()
            with pytest.raises(ValueError):
                loss._k.add(x.data, np.ones((7, 9), np.float32))
        else:
            loss.backward()
        model.zero_grad()

    for _ in range(300):
        once()
    gc.collect()
    in_use = _cpu.memory_stats()["in_use"]
    tracemalloc.start()
    try:
        first = tracemalloc.get_traced_memory()[0]
        objects = len(gc.get_objects())
        for _ in range(1000 if kind != "graph" else 10_000):
            once()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - first
    finally:
        tracemalloc.stop()
    assert grown < 60_000, grown
    assert len(gc.get_objects()) - objects < 200
    assert abs(_cpu.memory_stats()["in_use"] - in_use) < 100_000


def test_cycles_through_a_tensor_are_collected(rng):
    x = leaf(rng, 3)
    y = x * 2.0
    y.friend = y  # by its __dict__
    z = x * 3.0
    z.register_hook(lambda g, z=z: None)  # hooks hold the tensor, the tensor its node
    refs = [weakref.ref(y), weakref.ref(z), weakref.ref(z._node)]
    del y, z
    gc.collect()
    assert [r() for r in refs] == [None] * 3


def test_a_leaf_that_is_gone_takes_no_gradient(rng):
    w = leaf(rng, 3)
    x = leaf(rng, 3)
    y = x * w
    del x
    y.sum().backward()
    assert w.grad is not None


# ---- depth
def test_chains_of_a_hundred_thousand_nodes():
    x = gs.tensor([1.0], requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    assert x.grad.item() == 1.0
    del y  # freed without recursion
    y = x
    for _ in range(100_000):
        y = y * 1.0
    y.keep = y  # freed by the collector
    del y
    gc.collect()

    # in a thread, whose stack is small
    def chain():
        t = x
        for _ in range(100_000):
            t = t + x
        t.backward()

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=chain)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert x.grad.item() == 1.0 + 100_001


def test_wide_nodes(rng):
    for n in (40, 64, 65, 200):
        parts = [leaf(rng, 2) for _ in range(n)]
        y = gs.cat(parts)
        (y * y).sum().backward()
        for p in parts:
            assert np.allclose(p.grad.numpy(), 2 * p.detach().numpy())


# ---- threads
def test_threads_build_and_differentiate_at_once(rng):
    shared = gs.tensor(rng.standard_normal((16, 16)), requires_grad=False)
    errors = []

    def work(seed):
        try:
            r = np.random.default_rng(seed)
            for _ in range(150):
                x = gs.tensor(r.standard_normal((8, 16)), requires_grad=True)
                y = x @ shared
                if seed % 2:
                    with gs.no_grad():
                        assert not (y * 2.0).requires_grad
                (y * y).sum().backward()
                expect = 2 * (x.detach().numpy() @ shared.numpy()) @ shared.numpy().T
                assert np.allclose(x.grad.numpy(), expect)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


def test_threads_differentiate_one_graph(rng):
    x = leaf(rng, 4)
    y = x * x
    losses = [(y * float(i)).sum() for i in range(8)]
    found = {}

    def work(i):
        found[i] = gs.grad(losses[i], x, retain_graph=True)[0].numpy()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(8):
        assert np.allclose(found[i], 2 * i * x.detach().numpy())


# ---- errors
def test_an_exception_in_backward_leaves_the_graph_usable(rng):
    class Once(Node):
        __slots__ = ("fail",)

        def backward(self, grad):
            if self.fail:
                self.fail = False
                raise ArithmeticError("the first time")
            return (grad,)

    x = leaf(rng, 3)
    y = x * x
    z = apply(Once, y._k, y._k.copy(y.data), (y,), fail=True)
    loss = (z * 2.0).sum()
    with pytest.raises(ArithmeticError, match="first"):
        loss.backward(retain_graph=True)
    assert gs.is_grad_enabled() and x.grad is None
    loss.backward()
    assert np.allclose(x.grad.numpy(), 4 * x.detach().numpy())


def test_hooks_that_fail_or_return_nonsense(rng):
    x = leaf(rng, 3)

    def wrong(g):
        return gs.ones(7, dtype="float64")

    handle = x.register_hook(wrong)
    with pytest.raises(ValueError, match="hook"):
        (x * 2.0).sum().backward()
    handle.remove()
    (x * 2.0).sum().backward()
    assert np.allclose(x.grad.numpy(), 2)


def test_backward_inside_backward(rng):
    class Inner(gs.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 1.0

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            with gs.enable_grad():
                t = x.detach()
                t.requires_grad = True
                (t * t).sum().backward()
            return grad * t.grad

    x = leaf(rng, 3)
    Inner.apply(x).sum().backward()
    assert np.allclose(x.grad.numpy(), 2 * x.detach().numpy())


def test_misuse_is_an_error_not_a_crash(rng):
    x = leaf(rng, 3)
    k, a = x._k, np.ones(3)
    for args in ((), (int, k, a, (x,)), (Node, k, a, [x]), (Node, k, a, (3,)), (Node, k, a, (a,))):
        with pytest.raises(TypeError):
            apply(*args)
    with pytest.raises(TypeError):
        _cpu.wrap(a)
    with pytest.raises(TypeError):
        _cpu._edge(a)
    with pytest.raises(TypeError):
        _cpu._run(x, a, False, None)
    with pytest.raises(TypeError):
        x._ver = [0]
    with pytest.raises(TypeError):
        x._node = 5
    with pytest.raises(AttributeError):
        x._acc = None
    with pytest.raises(TypeError):
        _cpu.Accumulate()
    empty = gs.Tensor.__new__(gs.Tensor)  # no __init__
    with pytest.raises(AttributeError):
        _ = empty.data
    with pytest.raises(AttributeError):
        _ = empty + 1.0
    with pytest.raises(ValueError, match="without data"):
        _cpu.apply_pair(Node, k, a, x, empty, 2)
    bare = apply(Node, k, a, (x,))
    with pytest.raises(NotImplementedError, match="Node.backward"):
        bare.sum().backward()

    class NotATuple(Node):
        def backward(self, grad):
            return 3.0

    y = apply(NotATuple, k, np.ones(3), (x,))
    with pytest.raises(AttributeError):
        y.sum().backward()

    class WrongShape(Node):
        def backward(self, grad):
            return (np.ones(7),)

    y = apply(WrongShape, k, np.ones(3), (x,))
    with pytest.raises(RuntimeError, match="leaf"):
        y.sum().backward()
    assert x.grad is None


# ---- classes
def test_a_subclass_of_tensor(rng):
    class Named(gs.Tensor):
        def __init__(self, data, label):
            super().__init__(data, requires_grad=True)
            self.label = label

    t = Named(rng.standard_normal(3), "depth")
    y = t * 2.0
    assert type(y) is gs.Tensor and y.requires_grad
    y.sum().backward()
    assert np.allclose(t.grad.numpy(), 2) and t.label == "depth"
    c = copy.deepcopy(t)
    assert type(c) is Named and c.requires_grad and np.array_equal(c.data, t.data)
    assert np.allclose(c.grad.numpy(), 2)


def test_copies_and_pickles(rng):
    t = leaf(rng, 2, 3)
    s = copy.copy(t)
    assert type(s) is gs.Tensor and s.requires_grad and np.array_equal(s.data, t.data)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        p = pickle.loads(pickle.dumps(nn.Parameter(t.detach().numpy()), protocol))
        assert type(p) is nn.Parameter and p.requires_grad and np.array_equal(p.data, t.data)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[0].weight is other[0]._parameters["weight"]
        assert other[1].running_mean is other[1]._buffers["running_mean"]
        assert other[0].weight is not model[0].weight
        assert np.array_equal(other[0].weight.data, model[0].weight.data)
    with pytest.raises(RuntimeError, match="pickle"):
        pickle.dumps(t * 1.0)


def test_names_of_a_module_and_its_tables_agree():
    m = nn.Linear(3, 4)
    old = m.weight
    m.weight = nn.Parameter(np.zeros((4, 3), np.float32))
    assert m.weight is m._parameters["weight"] and m.weight is not old
    assert [n for n, _ in m.named_parameters()] == ["weight", "bias"]
    m.bias = None
    assert m.bias is None and m._parameters["bias"] is None
    del m.bias
    assert not hasattr(m, "bias") and "bias" not in m._parameters
    m.weight = nn.Linear(2, 2)  # a parameter's name becomes a submodule's
    assert m.weight is m._modules["weight"] and "weight" not in m._parameters
    m.register_buffer("state", gs.ones(2))
    m.state = gs.zeros(2)
    assert m.state is m._buffers["state"]
    with pytest.raises(TypeError, match="buffer"):
        m.state = 3
    m.register_buffer("state", None)
    assert m.state is None


def test_functions_take_positions_keywords_and_defaults():
    k = _cpu
    a = np.ones((2, 3), np.float32)
    assert np.array_equal(k.add(a, other=a), k.add(input=a, other=a))
    assert np.array_equal(k.add(**{"".join(["in", "put"]): a, "other": a}), a + a)
    for call, text in (
        (lambda: k.add(a), "'other' is missing"),
        (lambda: k.add(a, a, a), "takes 2 arguments"),
        (lambda: k.add(a, input=a), "twice"),
        (lambda: k.add(a, nonsense=a), "unknown argument 'nonsense'"),
        (lambda: k.add_scaled(a, a, "2"), "alpha must be a number"),
        (lambda: k.cast(a, 5), "dtype must be"),
        (lambda: k.layer_norm(a, 1.5, None, None, 1e-5, False), "dims must be an integer"),
        (lambda: k.layer_norm(a, 1 << 80, None, None, 1e-5, False), "dims must be an integer"),
        (lambda: k.layer_norm(a, 1, None, None, None, False), "eps must be a number"),
    ):
        with pytest.raises(TypeError, match=text):
            call()
    assert "input, other" in k.add.__text_signature__
