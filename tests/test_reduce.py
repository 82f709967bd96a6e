"""Reductions against float64 NumPy: values, error bounds, NaN, empty axes, gradients, threads."""

import itertools
import math

import numpy as np
import pytest

import gradsmith as gs

k = gs._cpu
SHAPES = [
    (),
    (1,),
    (7,),
    (64,),
    (65,),
    (1023,),
    (1025,),
    (3, 5),
    (17, 33),
    (2, 3, 4),
    (5, 1, 6),
    (2, 3, 2, 3),
]


def axes_of(shape):
    yield None
    for r in range(1, len(shape) + 1):
        yield from itertools.combinations(range(len(shape)), r)


def layouts(x):
    """The same values in several memory orders."""
    yield x
    yield np.asfortranarray(x)
    wide = np.zeros((*x.shape, 2), x.dtype)
    wide[..., 0] = x
    yield wide[..., 0]
    yield np.ascontiguousarray(x[..., ::-1])[..., ::-1] if x.ndim else x
    if x.ndim > 1:
        yield np.ascontiguousarray(np.swapaxes(x, 0, 1)).swapaxes(0, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("keepdim", [False, True])
def test_values(rng, dtype, keepdim):
    tol = {"rtol": 3e-6, "atol": 3e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-12}
    for shape in SHAPES:
        base = rng.uniform(-2, 2, shape).astype(dtype)
        for x in layouts(base) if base.ndim < 4 else (base, np.asfortranarray(base)):
            d = x.astype(np.float64)
            t = gs.Tensor(x)
            for axes in axes_of(shape):
                kw = {"axis": axes, "keepdims": keepdim}
                # terms of both signs cancel: the error of a sum is bounded by the sum of magnitudes
                for got, want, most in (
                    (t.sum(axes, keepdim), d.sum(**kw), np.abs(d).sum(**kw)),
                    (t.mean(axes, keepdim), d.mean(**kw), np.abs(d).mean(**kw)),
                ):
                    assert got.dtype == np.dtype(dtype)
                    assert got.shape == np.shape(want)
                    assert np.all(np.abs(got.numpy() - want) <= tol["rtol"] * most)
                for got, want in (
                    (t.amax(axes, keepdim), x.max(**kw)),
                    (t.amin(axes, keepdim), x.min(**kw)),
                    (t.norm(2, axes, keepdim), np.sqrt((d * d).sum(**kw))),
                    (t.norm(1, axes, keepdim), np.abs(d).sum(**kw)),
                    (t.norm(math.inf, axes, keepdim), np.abs(x).max(**kw)),
                    (t.var(axes, correction=0, keepdim=keepdim), d.var(**kw)),
                    (t.logsumexp(axes, keepdim), np.log(np.exp(d).sum(**kw))),
                ):
                    assert got.dtype == np.dtype(dtype)
                    assert got.shape == np.shape(want)
                    np.testing.assert_allclose(got.numpy(), want, **tol)
                n = d.size // max(1, np.size(d.sum(axis=axes)))
                if n > 1:
                    want = d.std(ddof=1, **kw)
                    np.testing.assert_allclose(t.std(axes, keepdim=keepdim).numpy(), want, **tol)
                near_one = gs.Tensor((1 + x / 100).astype(dtype))
                want = near_one.numpy().astype("f8").prod(**kw)
                np.testing.assert_allclose(near_one.prod(axes, keepdim).numpy(), want, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sum_error_bound(rng, dtype):
    """|error| <= eps (4 + log2 n) sum |x|, for long, short and column sums."""
    eps = np.finfo(dtype).eps
    for shape, axis in (
        ((1 << 20,), 0), ((999_999,), 0), ((3, 70_001), 1), ((100_003, 3), 0), ((4097, 600), 0), ((50, 77, 61), (0, 2)),
        ((2000, 16), 1), ((31,), 0), ((63, 1000), 0),
    ):  # fmt: skip
        for data in (rng.random(shape), rng.normal(size=shape), np.full(shape, 0.1)):
            x = data.astype(dtype)
            got = k.sum(x, axis, False)
            wide = x.astype(np.longdouble)
            exact, magnitude = wide.sum(axis=axis), np.abs(wide).sum(axis=axis)
            n = x.size / got.size
            assert np.all(np.abs(got - exact) <= eps * (4 + np.log2(n)) * magnitude)


def test_exact_integers_in_floats(rng):
    for shape in ((100_000,), (300, 300), (7, 1000, 3)):
        x = rng.integers(-20, 20, shape).astype(np.float32)
        for axes in axes_of(shape):
            np.testing.assert_array_equal(k.sum(x, axes, False), x.astype("f8").sum(axis=axes))


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
def test_integers(rng, dtype):
    for shape in SHAPES:
        x = np.asarray(rng.integers(0, 2 if dtype == "bool" else 100, shape)).astype(dtype)
        for v in layouts(x):
            t = gs.Tensor(v)
            for axes in axes_of(shape):
                for keep in (False, True):
                    got = t.sum(axes, keep)
                    assert got.dtype == np.int64
                    np.testing.assert_array_equal(
                        got.numpy(), x.sum(axis=axes, keepdims=keep, dtype=np.int64)
                    )
                    np.testing.assert_array_equal(
                        t.amax(axes, keep).numpy(), x.max(axis=axes, keepdims=keep)
                    )
                    np.testing.assert_array_equal(
                        t.amin(axes, keep).numpy(), x.min(axis=axes, keepdims=keep)
                    )
                    np.testing.assert_array_equal(
                        t.any(axes, keep).numpy(), x.any(axis=axes, keepdims=keep)
                    )
                    np.testing.assert_array_equal(
                        t.all(axes, keep).numpy(), x.all(axis=axes, keepdims=keep)
                    )
    small = gs.tensor(np.array([2, 3, 4], np.int32))
    assert small.prod().item() == 24 and small.prod().dtype == np.int64
    assert small.count_nonzero().item() == 3


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8"])
def test_argmax(rng, dtype):
    for shape in [*SHAPES[1:], (1000, 3), (3, 1000), (100_000,), (4, 300, 5)]:
        x = rng.integers(0, 20, shape).astype(dtype)  # many ties: the first must win
        for v in layouts(x):
            for axis in (None, *range(len(shape))):
                np.testing.assert_array_equal(k.argmax(v, axis, False), x.argmax(axis=axis))
                np.testing.assert_array_equal(k.argmin(v, axis, False), x.argmin(axis=axis))
                if axis is not None:
                    m = gs.max(gs.Tensor(v), axis, keepdim=True)
                    np.testing.assert_array_equal(m.values.numpy(), x.max(axis=axis, keepdims=True))
                    np.testing.assert_array_equal(
                        m.indices.numpy(), x.argmax(axis=axis, keepdims=True)
                    )
                    m = gs.min(gs.Tensor(v), axis)
                    np.testing.assert_array_equal(m.values.numpy(), x.min(axis=axis))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_infinity(rng, dtype):
    for n in (1, 5, 16, 40, 1000, 5000):
        for shape, axis in (((n, 3), 0), ((3, n), 1)):
            x = rng.normal(size=shape).astype(dtype)
            x.ravel()[rng.integers(0, x.size, 2)] = np.nan
            np.testing.assert_array_equal(k.amax(x, axis, False), x.max(axis=axis))
            np.testing.assert_array_equal(k.amin(x, axis, False), x.min(axis=axis))
            np.testing.assert_array_equal(k.argmax(x, axis, False), x.argmax(axis=axis))
            np.testing.assert_array_equal(k.argmin(x, axis, False), x.argmin(axis=axis))
            np.testing.assert_array_equal(k.max_abs(x, axis, False), np.abs(x).max(axis=axis))
    minus = np.full((3, 40), -np.inf, dtype)
    assert gs.Tensor(minus).amax(1).tolist() == [-math.inf] * 3
    assert gs.Tensor(minus).logsumexp(1).tolist() == [-math.inf] * 3
    big = gs.Tensor(np.array([1e4, 1e4, -1e4], dtype))
    np.testing.assert_allclose(big.logsumexp(0).item(), 1e4 + math.log(2), rtol=1e-6)
    assert gs.Tensor(np.array([np.inf, 1], dtype)).logsumexp(0).item() == math.inf


def test_empty():
    for dtype in ("float32", "float64"):
        x = gs.zeros(0, 3, dtype=dtype)
        assert x.sum().item() == 0 and x.sum(0).tolist() == [0, 0, 0]
        assert x.sum(1).shape == (0,)
        assert x.prod(0).tolist() == [1, 1, 1]
        assert all(math.isnan(v) for v in x.mean(0).tolist())
        assert x.norm().item() == 0
        assert x.logsumexp(0).tolist() == [-math.inf] * 3
        assert x.amax(1).shape == (0,)
        for f in (x.amax, x.amin, x.argmax, x.argmin, x.max, x.min):
            with pytest.raises(ValueError, match="no elements"):
                f()
            with pytest.raises(ValueError, match="no elements"):
                f(0)
    b = gs.zeros(0, dtype="bool")
    assert b.any().item() is False and b.all().item() is True
    assert gs.zeros(0, dtype="int64").sum().item() == 0


def test_var_is_stable(rng):
    x = (rng.normal(size=(4, 5000)) + 1e4).astype(np.float32)
    np.testing.assert_allclose(
        k.var(x, 1, 0.0, False, False)[0], x.astype("f8").var(axis=1), rtol=1e-5
    )
    x = np.ascontiguousarray(x.T)
    np.testing.assert_allclose(
        k.var(x, 0, 0.0, False, False)[0], x.astype("f8").var(axis=0), rtol=1e-5
    )


@pytest.mark.parametrize("correction", [0, 1])
def test_std_of_equal_elements_has_a_gradient_of_zero(correction):
    x = gs.tensor([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]], requires_grad=True)
    gs.std(x, 1, correction=correction).sum().backward()
    a = x.detach().numpy().astype("f8")
    s = a[1].std(ddof=correction) * (3 - correction)
    np.testing.assert_allclose(x.grad.numpy(), [[0, 0, 0], [-1 / s, 0, 1 / s]], rtol=1e-6)


def test_cumsum(rng):
    for shape in ((5,), (3, 4), (2, 300, 3), (4, 3, 700)):
        x = rng.integers(-5, 5, shape).astype(np.float32)
        for axis in range(len(shape)):
            np.testing.assert_array_equal(k.cumsum(x, axis), np.cumsum(x, axis))
            np.testing.assert_array_equal(
                gs.cumsum(gs.tensor(x), axis - len(shape)).numpy(), np.cumsum(x, axis)
            )
        assert k.cumsum(x.astype(np.int32), 0).dtype == np.int64


def test_sum_to(rng):
    for shape, target in (((4, 5), (5,)), ((4, 5), (4, 1)), ((2, 3, 4), (1, 4)), ((6,), ()), ((3, 4), (3, 4)),
                          ((2, 3, 4, 5), (3, 1, 5)), ((1, 3), (1, 1)), ((0, 3), (3,)), ((300, 70), (70,))):  # fmt: skip
        g = rng.integers(-9, 9, shape).astype(np.float64)
        lead = len(shape) - len(target)
        want = g.sum(axis=tuple(range(lead)))
        axes = tuple(i for i, s in enumerate(target) if s == 1)
        want = want.sum(axis=axes, keepdims=True) if axes else want
        np.testing.assert_array_equal(k.sum_to(g, target), want)
        assert k.sum_to(g, target).shape == target
    with pytest.raises(ValueError, match="cannot be reduced"):
        k.sum_to(np.ones((2, 3)), (2,))


def test_threads_give_the_same_bits(rng):
    arrays = [
        rng.normal(size=s).astype(np.float32)
        for s in ((1 << 19,), (700, 900), (200_000, 3), (3, 100_000))
    ]
    results = []
    before = gs.get_num_threads()
    try:
        for n in (1, 2, 3):
            gs.set_num_threads(n)
            results.append(
                [f(x, a, False) for x in arrays for a in (None, *range(x.ndim))
                 for f in (k.sum, k.mean, k.norm2, k.prod, k.amax, k.argmax) if not (f is k.argmax and a == ())]
                + [k.var(x, 0, 1.0, False, False)[0] for x in arrays]
            )  # fmt: skip
    finally:
        gs.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            np.testing.assert_array_equal(a, b)


GRADS = {
    "sum": lambda x: x.sum(),
    "sum0": lambda x: x.sum(0) ** 2,
    "sum_keep": lambda x: x.sum((0, 2), keepdim=True) * x,
    "mean": lambda x: x.mean() * x.mean(1),
    "mean_keep": lambda x: x.mean(-1, keepdim=True) ** 2,
    "amax": lambda x: x.amax(1) + x.amin((0, 2), keepdim=True).sum(),
    "max": lambda x: gs.max(x, 1).values * 2,
    "min_keep": lambda x: gs.min(x, 2, keepdim=True)[0] * x,
    "max_all": lambda x: x.max() * x.min(),
    "prod": lambda x: x.prod(),
    "prod1": lambda x: x.prod(1, keepdim=True),
    "var": lambda x: x.var(),
    "var1": lambda x: x.var(1, correction=0) + x.var((0, 2)).sum(),
    "std": lambda x: x.std(1, keepdim=True) * x,
    "var_mean": lambda x: gs.var_mean(x, 1)[0] * gs.var_mean(x, 1)[1],
    "norm": lambda x: x.norm() + x.norm(2, 1).sum(),
    "norm1": lambda x: x.norm(1, 0),
    "norm3": lambda x: x.norm(3, (0, 1)),
    "norm_inf": lambda x: x.norm(float("inf"), 2) + x.norm(-float("inf"), 0).sum(),
    "logsumexp": lambda x: x.logsumexp(1) * x.logsumexp((0, 2), keepdim=True).sum(),
    "cumsum": lambda x: x.cumsum(1) * x,
    "sum_to": lambda x: gs.sum_to(x, (1, 4)) ** 2,
}


@pytest.mark.parametrize("name", GRADS)
def test_gradients(rng, name):
    x = gs.tensor(rng.permutation(24).reshape(2, 3, 4) / 7.0 + 0.3, requires_grad=True)
    assert gs.gradcheck(GRADS[name], x)


def test_gradient_of_prod_with_zeros():
    for values in ([2.0, 0.0, 3.0], [0.0, 0.0, 3.0], [2.0, 5.0, 3.0]):
        x = gs.tensor(values, dtype="float64", requires_grad=True)
        x.prod().backward()
        want = [np.prod(values[:i] + values[i + 1 :]) for i in range(3)]
        assert x.grad.tolist() == want


def test_gradient_of_ties():
    x = gs.tensor([3.0, 1.0, 3.0], requires_grad=True)
    x.amax().backward()
    assert x.grad.tolist() == [0.5, 0, 0.5]
    x = gs.tensor([[3.0, 1.0, 3.0]], requires_grad=True)
    gs.max(x, 1).values.sum().backward()
    assert x.grad.tolist() == [[1, 0, 0]]
    x = gs.zeros(3, requires_grad=True)
    x.norm().backward()
    assert x.grad.tolist() == [0, 0, 0]


def test_same_as_torch(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(5, 6, 7)).astype(np.float32)
    for name in GRADS:
        if name in ("sum_to",) or "var_mean" in name:
            continue
        f = GRADS[name]
        try:
            t = torch.tensor(x, requires_grad=True)
            yt = f(t)
        except (TypeError, AttributeError, RuntimeError):
            if "max" in name or "min" in name:
                continue
            raise
        g = gs.tensor(x, requires_grad=True)
        yg = f(g)
        np.testing.assert_allclose(yg.detach().numpy(), yt.detach().numpy(), rtol=1e-4, atol=1e-5)
        yg.sum().backward()
        yt.sum().backward()
        np.testing.assert_allclose(
            g.grad.numpy(), t.grad.numpy(), rtol=2e-4, atol=2e-5, err_msg=name
        )


def test_errors():
    x = gs.ones(2, 3)
    with pytest.raises(IndexError, match=r"sum: axis 2 .*\(2, 3\)"):
        x.sum(2)
    with pytest.raises(IndexError, match="argmax"):
        x.argmax(-3)
    with pytest.raises(ValueError, match="twice"):
        x.mean((0, -2))
    with pytest.raises(TypeError, match="mean"):
        gs.tensor([1, 2]).mean()
    with pytest.raises(TypeError, match="axis"):
        x.sum("a")
    with pytest.raises(ValueError, match="norm"):
        x.norm("nuc")
    with pytest.raises(TypeError, match="sum"):
        gs.sum([1.0])


def test_empty_gradients():
    """No elements, but a graph: logsumexp and max along an axis have gradients of the shape of the input."""
    for shape, dim in (
        ((0, 3), 0),
        ((2, 0), 1),
        ((2, 0, 3), (0, 1)),
        ((2, 0, 3), -1),
        ((0, 3), None),
    ):
        x = gs.tensor(np.zeros(shape), requires_grad=True)
        y = gs.logsumexp(x, dim, keepdim=True)
        assert y.shape == np.zeros(shape).sum(dim, keepdims=True).shape
        assert (y.detach().numpy() == -np.inf).all()
        y.sum().backward()
        assert x.grad.shape == shape
    for shape, dim in (((0, 3), -1), ((2, 0, 3), 0), ((2, 0, 3), 2)):
        for op in (gs.max, gs.min):
            x = gs.tensor(np.zeros(shape), requires_grad=True)
            op(x, dim)[0].sum().backward()
            assert x.grad.shape == shape


@pytest.mark.parametrize("name", ["var", "std", "var_mean"])
def test_unbiased(name, rng):
    x = rng.normal(size=(3, 4))
    for unbiased in (False, True):
        got = getattr(gs, name)(gs.tensor(x), 1, unbiased=unbiased)
        got = got[0] if name == "var_mean" else got
        want = (np.std if name == "std" else np.var)(x, 1, ddof=int(unbiased))
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)
    with pytest.raises(TypeError, match=f"{name}: dim is False"):
        getattr(gs, name)(gs.tensor(x), False)
    with pytest.raises(ValueError, match=f"{name}: give correction or unbiased"):
        getattr(gs, name)(gs.tensor(x), 1, correction=2, unbiased=True)


def test_errors_name_the_op_that_was_called():
    x = gs.ones(3)
    for name, call in {
        "std": lambda: gs.std(x, 5),
        "var_mean": lambda: gs.var_mean(x, 5),
        "logsumexp": lambda: gs.logsumexp(x, 5),
        "count_nonzero": lambda: gs.count_nonzero(x, 5),
        "norm": lambda: gs.norm(x, 2, 5),
    }.items():
        with pytest.raises(IndexError, match=f"^{name}: axis 5 is out of range"):
            call()
    for p in (0, 1, 2, 3, math.inf, -math.inf):
        with pytest.raises(IndexError, match="^norm: axis 5"):
            gs.norm(x, p, 5)
    with pytest.raises(TypeError, match="^logsumexp: "):
        gs.logsumexp(gs.tensor(np.zeros((0, 2), np.int64)), 0)


def test_axes_given_as_a_list_may_change_before_backward():
    for op in (gs.sum, gs.mean, gs.amax, gs.prod, gs.logsumexp, gs.var, gs.norm):
        x = gs.tensor(np.arange(1.0, 25.0).reshape(2, 3, 4), requires_grad=True)
        y = gs.tensor(np.arange(1.0, 25.0).reshape(2, 3, 4), requires_grad=True)
        axes = [0, 2]
        out = op(x, dim=axes)
        axes[:] = [1]
        out.sum().backward()
        op(y, dim=(0, 2)).sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), y.grad.numpy())


@pytest.mark.parametrize("p", [0.5, -1, -2.5, 1.5, 3])
def test_norm_gradient_at_zeros(p):
    """A zero among the elements, and nothing but zeros: gradient 0, as in PyTorch, where NaN was."""
    torch = pytest.importorskip("torch")
    data = np.array([[0.0, 1.0, -2.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.5]])
    x = gs.tensor(data, requires_grad=True)
    t = torch.tensor(data, requires_grad=True)
    gs.norm(x, p, 1).sum().backward()
    torch.norm(t, p, 1).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), rtol=1e-12)
