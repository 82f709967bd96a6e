"""The graph: gradients, accumulation, hooks, views and in-place rules, custom functions."""

import copy
import gc
import inspect
import pickle
import threading
import weakref

import numpy as np
import pytest

import gradsmith as gs
from gradsmith.core.autograd import Node, apply


def leaf(rng, *shape, dtype="float64"):
    return gs.tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)


def test_backward_of_a_chain(rng):
    x = leaf(rng, 3, 4)
    ((x * 2.0) * x).sum().backward()
    assert np.allclose(x.grad.numpy(), 4 * x.detach().numpy())


def test_diamond_and_reuse_accumulate_once_each(rng):
    x = leaf(rng, 5)
    a = x * 3.0
    y = a * a + a + x
    y.sum().backward()
    v = x.detach().numpy()
    assert np.allclose(x.grad.numpy(), 18 * v + 3 + 1)


def test_gradients_accumulate_over_backward_calls(rng):
    x = leaf(rng, 4)
    for _ in range(3):
        (x * 2.0).sum().backward()
    assert np.allclose(x.grad.numpy(), 6)
    x.grad = None
    (x * 2.0).sum().backward()
    assert np.allclose(x.grad.numpy(), 2)


def test_leaf_gradients_do_not_share_memory(rng):
    # add passes one array to both inputs; changing one gradient must not change the other
    x, y = leaf(rng, 4), leaf(rng, 4)
    seed = gs.tensor(np.ones(4))
    (x + y).backward(seed)
    x.grad.data[:] = 7
    assert np.allclose(y.grad.numpy(), 1)
    assert np.allclose(seed.numpy(), 1)
    z = leaf(rng, 2, 2)
    z.reshape(4).backward(seed)
    z.grad.data[:] = 5
    assert np.allclose(seed.numpy(), 1)


def test_second_backward_needs_retain_graph(rng):
    x = leaf(rng, 3)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert np.allclose(x.grad.numpy(), 4 * x.detach().numpy())
    with pytest.raises(RuntimeError, match="retain_graph"):
        y.backward()


def test_backward_rejects_what_has_no_graph(rng):
    with pytest.raises(RuntimeError, match="requires_grad"):
        gs.ones(1).backward()
    x = leaf(rng, 3)
    with pytest.raises(RuntimeError, match="scalar"):
        (x * x).backward()
    with pytest.raises(ValueError, match="shape"):
        (x * x).backward(gs.ones(2, dtype="float64"))
    with pytest.raises(TypeError, match="dtype"):
        (x * x).backward(gs.ones(3))


def test_no_grad_and_enable_grad(rng):
    x = leaf(rng, 3)
    with gs.no_grad():
        assert not (x * x).requires_grad
        with gs.enable_grad():
            assert (x * x).requires_grad
        assert not gs.is_grad_enabled()
    assert (x * x).requires_grad

    @gs.no_grad()
    def f():
        return x * x

    assert not f().requires_grad and not f().requires_grad
    with pytest.raises(KeyError), gs.no_grad():
        raise KeyError
    assert gs.is_grad_enabled()


def test_set_grad_enabled_from_the_call_on(rng):
    """As a statement, as a context manager (also twice, also nested), as a decorator."""
    try:
        gs.set_grad_enabled(False)
        assert not gs.is_grad_enabled() and not (leaf(rng, 2) * 2).requires_grad
        gs.set_grad_enabled(True)
        assert gs.is_grad_enabled()
        with gs.set_grad_enabled(False):
            assert not gs.is_grad_enabled()
        assert gs.is_grad_enabled()
        off = gs.set_grad_enabled(False)
        with off:
            with gs.set_grad_enabled(True), off:
                assert not gs.is_grad_enabled()
            assert not gs.is_grad_enabled()
        assert gs.is_grad_enabled()

        @gs.set_grad_enabled(False)
        def enabled():
            return gs.is_grad_enabled()

        assert gs.is_grad_enabled() and not enabled() and gs.is_grad_enabled()
    finally:
        gs.set_grad_enabled(True)


def test_grad_mode_is_a_thread_s_own():
    seen = []
    with gs.no_grad():
        t = threading.Thread(target=lambda: seen.append(gs.is_grad_enabled()))
        t.start()
        t.join()
    assert seen == [True]


def test_detach_cuts_and_shares(rng):
    x = leaf(rng, 3)
    d = (x * 2.0).detach()
    assert d.is_leaf and not d.requires_grad
    (d * x).sum().backward()
    assert np.allclose(x.grad.numpy(), d.numpy())
    e = x.detach()
    e.data[0] = 100.0
    assert x.data[0] == 100.0


def test_retain_grad_on_an_intermediate(rng):
    x = leaf(rng, 3)
    y = x * 3.0
    y.retain_grad()
    (y * y).sum().backward()
    assert np.allclose(y.grad.numpy(), 2 * y.detach().numpy())
    with pytest.raises(RuntimeError, match="retain_grad"):
        gs.ones(2).retain_grad()


def test_hooks_see_and_replace(rng):
    x = leaf(rng, 3)
    y = x * 3.0
    seen = []
    keep = y.register_hook(lambda g: seen.append(g.tolist()))
    y.register_hook(lambda g: g * 10.0)
    z = x.register_hook(lambda g: g + 1.0)
    y.sum().backward(retain_graph=True)
    assert seen == [[1.0, 1.0, 1.0]]
    assert np.allclose(x.grad.numpy(), 31)
    keep.remove()
    z.remove()
    x.grad = None
    y.sum().backward()
    assert len(seen) == 1 and np.allclose(x.grad.numpy(), 30)


def test_hook_that_keeps_the_gradient_is_not_overwritten(rng):
    x = leaf(rng, 3)
    kept = []
    x.register_hook(kept.append)
    (x * 2.0).sum().backward()
    (x * 5.0).sum().backward()
    assert np.allclose(kept[0].numpy(), 2)


def test_saved_tensor_changed_in_place_is_an_error(rng):
    x = leaf(rng, 3)
    y = x * 2.0
    z = y * y
    y.add_(gs.ones(3, dtype="float64"))
    with pytest.raises(RuntimeError, match="in place"):
        z.sum().backward()


def test_change_through_an_alias_is_seen(rng):
    x = leaf(rng, 3)
    y = x * 2.0
    z = y * y
    y.detach().mul_(3.0)
    with pytest.raises(RuntimeError, match="in place"):
        z.sum().backward()


def test_in_place_on_an_intermediate_is_right(rng):
    x = leaf(rng, 3)
    w = leaf(rng, 3)
    y = x * 2.0
    y.add_(w)
    y.mul_(3.0)
    (y * 1.0).sum().backward()
    assert np.allclose(x.grad.numpy(), 6)
    assert np.allclose(w.grad.numpy(), 3)


def test_in_place_on_a_leaf_or_view_is_an_error_and_changes_nothing(rng):
    x = leaf(rng, 3)
    before = x.detach().numpy().copy()
    with pytest.raises(RuntimeError, match="leaf"):
        x.add_(gs.ones(3, dtype="float64"))
    y = x * 1.0
    with pytest.raises(RuntimeError, match="view"):
        y.reshape(3, 1).add_(gs.ones(3, 1, dtype="float64"))
    assert np.array_equal(x.data, before) and np.array_equal(y.data, before)
    with gs.no_grad():
        x.add_(gs.ones(3, dtype="float64"))
    assert np.allclose(x.data, before + 1)


def test_stale_view_is_an_error(rng):
    x = leaf(rng, 4)
    y = x * 2.0
    v = y[1:3]
    y.mul_(3.0)
    with pytest.raises(RuntimeError, match="view"):
        _ = v * 2.0
    (y[1:3] * 1.0).sum().backward()
    assert np.allclose(x.grad.numpy(), [0, 6, 6, 0])


def test_views_share_memory_and_gradients_flow(rng):
    x = leaf(rng, 2, 3, 4)
    v = x.permute(2, 0, 1)[1:, :, ::2].reshape(3, -1)
    w = rng.standard_normal(v.shape)
    (v * gs.tensor(w)).sum().backward()
    expect = np.zeros((2, 3, 4))
    expect.transpose(2, 0, 1)[1:, :, ::2] = w.reshape(3, 2, 2)
    assert np.allclose(x.grad.numpy(), expect)


def test_memory_of_unneeded_intermediates_is_freed(rng):
    x = leaf(rng, 1000)
    a = x + 1.0
    ref = weakref.ref(a)
    b = a + 1.0  # the gradient of add needs no values
    del a
    assert ref() is None
    b.sum().backward()
    assert np.allclose(x.grad.numpy(), 1)


def test_graph_is_freed_without_the_collector(rng):
    gc.disable()
    try:
        x = leaf(rng, 10)
        y = gs.exp(x * 2.0)
        node = weakref.ref(y)
        del y
        assert node() is None
    finally:
        gc.enable()


def test_very_deep_graph_does_not_overflow_the_stack():
    x = gs.tensor([1.0], requires_grad=True)
    y = x
    for _ in range(20_000):
        y = y + 1.0
    y.backward()
    assert x.grad.item() == 1.0
    del y


def test_grad_function_leaves_grad_alone(rng):
    x, y = leaf(rng, 3), leaf(rng, 3)
    z = x * y
    gx, gy = gs.grad(z, [x, y], gs.ones(3, dtype="float64"))
    assert np.allclose(gx.numpy(), y.detach().numpy()) and np.allclose(
        gy.numpy(), x.detach().numpy()
    )
    assert x.grad is None and y.grad is None
    with pytest.raises(ValueError, match="allow_unused"):
        gs.grad((x * 2.0).sum(), y)
    assert gs.grad((x * 2.0).sum(), y, allow_unused=True) == (None,)
    mid = x * 2.0
    (g,) = gs.grad((mid * mid).sum(), mid)
    assert np.allclose(g.numpy(), 2 * mid.detach().numpy())


class Scale(gs.Function):
    @staticmethod
    def forward(ctx, x, factor, y=None):
        ctx.factor = factor
        ctx.save_for_backward(x)
        return x * factor

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        assert x.shape == grad.shape
        return grad * ctx.factor, None


def test_custom_function(rng):
    x = leaf(rng, 4)
    Scale.apply(x, 3.0).sum().backward()
    assert np.allclose(x.grad.numpy(), 3)
    assert gs.gradcheck(lambda t: Scale.apply(t, 2.5), x)
    with gs.no_grad():
        assert not Scale.apply(x, 3.0).requires_grad


def test_custom_function_with_two_outputs(rng):
    class Both(gs.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x + y, x * 2.0

        @staticmethod
        def backward(ctx, g1, g2):
            return g1 + g2 * 2.0, g1

    x, y = leaf(rng, 3), leaf(rng, 3)
    a, _ = Both.apply(x, y)
    a.sum().backward()  # the second output is unused: its gradient is zeros
    assert np.allclose(x.grad.numpy(), 1) and np.allclose(y.grad.numpy(), 1)


def test_custom_function_mistakes_are_named(rng):
    class WrongCount(gs.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x * 1.0

        @staticmethod
        def backward(ctx, g):
            return g

    class WrongShape(gs.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1.0

        @staticmethod
        def backward(ctx, g):
            return gs.ones(1, dtype="float64")

    x = leaf(rng, 3)
    with pytest.raises(RuntimeError, match="WrongCount.backward returned 1"):
        WrongCount.apply(x, x).sum().backward()
    with pytest.raises(RuntimeError, match="WrongShape.backward.*shape"):
        WrongShape.apply(x).sum().backward()

    class NotATensor(gs.Function):
        @staticmethod
        def forward(ctx, x):
            return 3

    with pytest.raises(TypeError, match="NotATensor.forward"):
        NotATensor.apply(x)


def test_custom_function_saved_tensor_changed_in_place(rng):
    x = leaf(rng, 3)
    y = x * 1.0
    z = Scale.apply(y, 2.0)
    y.add_(1.0)
    with pytest.raises(RuntimeError, match="in place"):
        z.sum().backward()


def test_gradcheck_finds_a_wrong_gradient(rng):
    class Wrong(gs.Function):
        @staticmethod
        def forward(ctx, x):
            return x * x

        @staticmethod
        def backward(ctx, g):
            return g

    x = leaf(rng, 3)
    with pytest.raises(RuntimeError, match="gradcheck"):
        gs.gradcheck(Wrong.apply, x)
    assert gs.gradcheck(Wrong.apply, x, raise_exception=False) is False
    with pytest.raises(TypeError, match="float64"):
        gs.gradcheck(lambda t: t * t, leaf(rng, 3, dtype="float32"))
    with pytest.raises(ValueError, match="requires a gradient"):
        gs.gradcheck(lambda t: t * t, gs.ones(2, dtype="float64"))


def test_node_with_wrong_number_of_gradients(rng):
    class Bad(Node):
        __slots__ = ()

        def backward(self, grad):
            return (grad, grad)

    x = leaf(rng, 2)
    y = apply(Bad, x._k, x._k.copy(x.data), (x,))
    with pytest.raises(RuntimeError, match="Bad.backward returned 2 gradients for 1"):
        y.sum().backward()


def test_cast_carries_gradients(rng):
    x = leaf(rng, 4, dtype="float32")
    y = x.double()
    assert y.dtype == np.float64
    (y * y).sum().backward()
    assert x.grad.dtype == np.float32
    assert np.allclose(x.grad.numpy(), 2 * x.detach().numpy())
    assert not x.to(np.int64).requires_grad


def test_requires_grad_rules(rng):
    with pytest.raises(TypeError, match="float"):
        gs.tensor([1, 2], requires_grad=True)
    x = leaf(rng, 2)
    y = x * 1.0
    with pytest.raises(RuntimeError, match="detach"):
        y.requires_grad = False
    with pytest.raises(RuntimeError, match="detach"):
        x.numpy()
    with pytest.raises(RuntimeError, match="detach"):
        np.asarray(x)
    with pytest.raises(ValueError, match="shape"):
        x.grad = gs.ones(3, dtype="float64")
    with pytest.raises(TypeError):
        x.grad = 3


def test_copy_and_pickle_of_leaves(rng):
    p = gs.Parameter(rng.standard_normal((2, 3)).astype("float32"))
    q = copy.deepcopy(p)
    assert type(q) is gs.Parameter and q.requires_grad and np.array_equal(q.data, p.data)
    q.data[0] = 9
    assert not np.array_equal(q.data, p.data)
    r = pickle.loads(pickle.dumps(p))
    assert type(r) is gs.Parameter and np.array_equal(r.data, p.data)
    with pytest.raises(RuntimeError, match="leaf"):
        copy.deepcopy(p * 1.0)


def test_array_interchange():
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    t = gs.from_numpy(a)
    a[0, 0] = 5
    assert t.data[0, 0] == 5 and gs.tensor(a).data is not a
    assert np.array_equal(np.asarray(t), a)
    assert np.array_equal(np.from_dlpack(t), a)
    assert np.array_equal(gs.from_dlpack(a).numpy(), a)
    assert gs.tensor(a.astype(">f4")).dtype == np.float32
    assert gs.tensor([1.5]).dtype == np.float32 and gs.tensor([1]).dtype == np.int64
    assert gs.tensor(np.float64(3)).dtype == np.float64
    for bad in (["a"], np.zeros(2, complex), np.zeros(2, np.float16)):
        with pytest.raises(TypeError, match="dtype"):
            gs.tensor(bad)
    with pytest.raises(ValueError, match="cuda"):
        gs.tensor([1.0], device="cuda")
    with pytest.raises(ValueError, match="unknown device"):
        gs.tensor([1.0], device="tpu")
    with pytest.raises(ValueError, match="one element"):
        gs.ones(2).item()
    with pytest.raises(ValueError, match="ambiguous"):
        bool(gs.ones(2))


def test_hook_must_return_a_tensor(rng):
    x = leaf(rng, 3)
    handle = x.register_hook(lambda g: 2.0)
    with pytest.raises(TypeError, match="hook on a tensor: returned a float"):
        x.sum().backward()
    handle.remove()


def test_custom_function_with_defaults_left_out(rng):
    class Scale(gs.Function):
        @staticmethod
        def forward(ctx, x, by=3.0):
            ctx.by = by
            return x * by

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.by, None

    x = leaf(rng, 3)
    Scale.apply(x).sum().backward()
    assert x.grad.tolist() == [3.0] * 3
    Scale.apply(x, 2.0).sum().backward()
    assert x.grad.tolist() == [5.0] * 3


def test_format():
    loss = gs.tensor(1.23456, requires_grad=True) * 1.0
    assert f"{loss:.2f} {gs.tensor([7]):03d}" == "1.23 007"
    assert f"{gs.tensor([1.0, 2.0])}" == str(gs.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"format: '.2f' is for one number, .* shape \(2,\)"):
        f"{gs.ones(2):.2f}"
    assert repr(gs.ones(0, 3)) == "tensor([], shape=(0, 3))" and repr(gs.ones(0)) == "tensor([])"


def test_numbers_have_no_items():
    with pytest.raises(TypeError, match="iteration over a 0-d tensor"):
        iter(gs.tensor(1.0))


def test_ragged_lists_are_named():
    with pytest.raises(ValueError, match="^Tensor: the data are no array"):
        gs.tensor([[1.0, 2.0], [3.0]])


def test_gradcheck_without_anything_to_check_is_an_error():
    x = gs.tensor(np.arange(3.0), requires_grad=True)
    for fn in (lambda x: x.argmax(), lambda x: 3.0, lambda x: (), lambda x: None):
        with pytest.raises(ValueError, match="no float Tensor"):
            gs.gradcheck(fn, [x])


def test_custom_function_tensors_by_keyword_and_outputs_without_gradient():
    class Split(gs.Function):
        @staticmethod
        def forward(ctx, x, k=1.0, floor=None):
            whole = gs.floor(x)
            ctx.k = k
            ctx.mark_non_differentiable(whole)
            return x * k, whole

        @staticmethod
        def backward(ctx, grad, zeros):
            assert not zeros.numpy().any()
            return grad * ctx.k

    x = gs.tensor([1.5, -2.5], requires_grad=True)
    y, whole = Split.apply(x, k=3.0)
    assert y.requires_grad and not whole.requires_grad and whole.tolist() == [1.0, -3.0]
    y.sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]
    with pytest.raises(TypeError, match=r"Split.apply: x requires a gradient.*positional"):
        Split.apply(x=x)  # had no gradient, silently
    with gs.no_grad():
        Split.apply(x=x)
    assert Split.apply(x, floor=gs.ones(1))[0].requires_grad


def test_a_plain_view_of_what_got_a_gradient_in_place():
    """A view taken while the memory had no gradient cannot pass one on: an error, not a silent zero."""
    for change in (
        lambda c, b: c.__setitem__(0, b),
        lambda c, b: c.add_(b),
        lambda c, b: c.copy_(b.expand(2, 3)),
        lambda c, b: c.mul_(b),
    ):
        b = gs.ones(3, requires_grad=True)
        c = gs.zeros(2, 3)
        view, flat, gone, row = c[0], c.reshape(-1), c[1], c.unbind(0)[0]
        alone = c.detach()[0]
        inner = view[:2]
        del gone
        change(c, b)
        for stale in (view, flat, row, inner):
            with pytest.raises(RuntimeError, match="modified in place after the view was taken"):
                (stale * 3).sum()
            with pytest.raises(RuntimeError, match="modified in place after the view was taken"):
                stale.sum().backward()
            with gs.no_grad():
                assert (stale * 3).shape == stale.shape
            assert stale.detach().tolist() == stale.detach().numpy().tolist()
        assert not alone.requires_grad and (alone * 3).shape == (3,)
        (c[0] * 3).sum().backward()
        assert b.grad is not None


def test_a_stale_view_stays_stale():
    w = gs.ones(2, 3, requires_grad=True)
    c = w * 2
    view = c[0]
    c.mul_(5)
    with gs.no_grad():
        view.add_(1)
        view[0] = 3.0
    with pytest.raises(RuntimeError, match="modified in place after the view was taken"):
        (view * 1).sum()


def test_add_with_alpha_in_place_keeps_a_result_usable():
    w = gs.ones(3, requires_grad=True)
    y = w * 2
    with gs.no_grad():
        y.add_(gs.ones(3), alpha=0.5)
    (y * 3).sum().backward()
    assert w.grad.tolist() == [6.0, 6.0, 6.0]


@pytest.mark.parametrize("n", [63, 64, 65, 300])
def test_an_op_of_many_inputs(n):
    """More inputs than a word has bits, some of which need no gradient."""
    xs = [gs.full((2,), float(i), requires_grad=i % 3 != 1) for i in range(n)]
    weight = gs.arange(2.0 * n, dtype="float32")
    (gs.cat(xs) * weight).sum().backward()
    (gs.stack(xs, 1) * weight.reshape(n, 2).t()).sum().backward()
    for i, x in enumerate(xs):
        assert (x.grad is None) == (i % 3 == 1)
        assert x.grad is None or x.grad.tolist() == [4.0 * i, 4.0 * i + 2]
    assert gs.stack([x.detach() for x in xs]).shape == (n, 2)

    class Sum(gs.Function):
        @staticmethod
        def forward(ctx, *inputs):
            return sum(inputs[1:], inputs[0] * 1)

        @staticmethod
        def backward(ctx, grad):
            return tuple(grad for _ in range(n))

    for x in xs:
        x.grad = None
    Sum.apply(*xs).sum().backward()
    assert all((x.grad is None) == (i % 3 == 1) for i, x in enumerate(xs))


@pytest.mark.parametrize("inside", [False, True])
def test_a_mode_decorates_a_generator_function_and_needs_no_parentheses(inside):
    """The body of a generator runs after the call: each piece of it has the mode, the caller never."""
    switch = gs.enable_grad if inside else gs.no_grad

    def pieces(n):
        """doc"""
        got = []
        for _ in range(n):
            try:
                got.append((yield gs.is_grad_enabled()))
            except KeyError:
                got.append(gs.is_grad_enabled())
        return got

    with gs.set_grad_enabled(not inside):
        for decorated in (switch()(pieces), switch(pieces)):
            assert decorated.__name__ == "pieces"
            g = decorated(3)
            assert next(g) is inside and gs.is_grad_enabled() is not inside
            assert g.send("a") is inside and gs.is_grad_enabled() is not inside
            assert g.throw(KeyError()) is inside and gs.is_grad_enabled() is not inside
            with pytest.raises(StopIteration) as end:
                next(g)
            assert end.value.value == ["a", inside, None]
            assert list(decorated(2)) == [inside, inside]
            g = decorated(2)
            next(g)
            g.close()  # ends while it waits
            with pytest.raises(StopIteration):
                next(g)
            assert gs.is_grad_enabled() is not inside

        class Source:
            @switch()
            def rows(self, n, *, k=1):
                for _ in range(n * k):
                    yield self, gs.is_grad_enabled()

        source = Source()
        assert list(source.rows(1, k=2)) == [(source, inside)] * 2
        assert inspect.isgeneratorfunction(source.rows)

        @switch
        def mode(x, *, y=0):
            return x + y, gs.is_grad_enabled()

        assert mode(1, y=2) == (3, inside)


def test_a_generator_under_no_grad_closes_its_own_with_blocks():
    ended = []

    @gs.no_grad()
    def pieces():
        try:
            yield 1
        finally:
            ended.append(gs.is_grad_enabled())

    g = pieces()
    next(g)
    g.close()
    assert ended == [False] and gs.is_grad_enabled()


def test_a_hook_handle_is_a_context():
    x = gs.ones(2, requires_grad=True)
    with x.register_hook(lambda g: g * 2) as handle:
        (x * 3).sum().backward()
    assert x.grad.tolist() == [6.0, 6.0]
    x.grad = None
    (x * 3).sum().backward()
    handle.remove()
    assert x.grad.tolist() == [3.0, 3.0]
    layer = gs.nn.ReLU()
    for register in (x.register_hook, layer.register_forward_hook, layer.register_forward_pre_hook):
        with pytest.raises(TypeError, match="a hook must be a function, got int"):
            register(3)
    assert layer(x).tolist() == [1.0, 1.0]


def test_gradients_of_gradients_are_refused_by_name():
    x = gs.tensor([2.0], requires_grad=True)
    with pytest.raises(ValueError, match="backward: create_graph=True is not supported"):
        (x * x).backward(create_graph=True)
    with pytest.raises(ValueError, match="grad: create_graph=True is not supported"):
        gs.grad(x * x, x, create_graph=True)
    (x * x).backward(None, None, False)  # PyTorch's defaults
    assert x.grad.tolist() == [4.0] and gs.grad(x * x, x, retain_graph=None)[0].tolist() == [4.0]


def test_errors_in_a_custom_function_name_it():
    class Square(gs.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return grad * 2 * ctx.saved_tensors[0]

    class Other(Square):
        pass

    for kind, name in ((Square, "SquareBackward"), (Other, "OtherBackward")):
        y = gs.ones(2, requires_grad=True) * 1
        z = kind.apply(y)
        assert name in repr(z) and z.grad_fn.name == name
        y.add_(1)
        with pytest.raises(RuntimeError, match=f"{name}: a tensor needed for the gradient"):
            z.sum().backward()


@pytest.mark.parametrize("switch", [gs.no_grad, gs.enable_grad, lambda: gs.set_grad_enabled(False)])
def test_a_coroutine_cannot_be_decorated(switch):
    """Its body runs after the call that makes it, between those of others in this thread."""

    async def step():
        return gs.is_grad_enabled()

    with pytest.raises(TypeError, match=r"grad.*: a coroutine runs after .* use `with"):
        switch()(step)
    assert gs.is_grad_enabled()
