"""Activations: values against float64 NumPy, gradients by central differences, NaN, in-place, bad input."""

import math

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F

_erf = np.vectorize(math.erf, otypes=[float])
_erfc = np.vectorize(math.erfc, otypes=[float])


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1 + e)


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772
# name: (gradsmith, float64 reference, layer)
CASES = {
    "identity": (lambda x: nn.Identity()(x), lambda x: x, nn.Identity()),
    "sigmoid": (F.sigmoid, _sigmoid, nn.Sigmoid()),
    "tanh": (F.tanh, np.tanh, nn.Tanh()),
    "relu": (F.relu, lambda x: np.maximum(x, 0), nn.ReLU()),
    "relu6": (F.relu6, lambda x: np.clip(x, 0, 6), nn.ReLU6()),
    "leaky_relu": (F.leaky_relu, lambda x: np.where(x > 0, x, 0.01 * x), nn.LeakyReLU()),
    "leaky_relu_neg": (
        lambda x: F.leaky_relu(x, -0.5), lambda x: np.where(x > 0, x, -0.5 * x), nn.LeakyReLU(-0.5)
    ),
    "rrelu_eval": (F.rrelu, lambda x: np.where(x > 0, x, 11 / 48 * x), nn.RReLU().eval()),
    "elu": (lambda x: F.elu(x, 1.5), lambda x: np.where(x > 0, x, 1.5 * np.expm1(np.minimum(x, 0))), nn.ELU(1.5)),
    "elu_neg": (
        lambda x: F.elu(x, -0.5), lambda x: np.where(x > 0, x, -0.5 * np.expm1(np.minimum(x, 0))), nn.ELU(-0.5)
    ),
    "selu": (F.selu, lambda x: SCALE * np.where(x > 0, x, ALPHA * np.expm1(np.minimum(x, 0))), nn.SELU()),
    "celu": (
        lambda x: F.celu(x, 0.7), lambda x: np.where(x > 0, x, 0.7 * np.expm1(np.minimum(x, 0) / 0.7)), nn.CELU(0.7)
    ),
    "gelu": (F.gelu, lambda x: x * 0.5 * _erfc(-x / math.sqrt(2)), nn.GELU()),
    "gelu_tanh": (
        lambda x: F.gelu(x, "tanh"),
        lambda x: x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
        nn.GELU("tanh"),
    ),
    "silu": (F.silu, lambda x: x * _sigmoid(x), nn.SiLU()),
    "swish": (lambda x: F.silu(x, beta=1.7), lambda x: x * _sigmoid(1.7 * x), nn.SiLU(beta=1.7)),
    "softplus": (F.softplus, _softplus, nn.Softplus()),
    "softplus_beta": (
        lambda x: F.softplus(x, 2.0, 3.0), lambda x: np.where(2 * x > 3, x, _softplus(2 * x) / 2), nn.Softplus(2.0, 3.0)
    ),
    "softsign": (F.softsign, lambda x: x / (1 + np.abs(x)), nn.Softsign()),
    "hardswish": (F.hardswish, lambda x: x * np.clip(x + 3, 0, 6) / 6, nn.Hardswish()),
    "hardsigmoid": (F.hardsigmoid, lambda x: np.clip(x + 3, 0, 6) / 6, nn.Hardsigmoid()),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 2.0), lambda x: np.clip(x, -0.5, 2), nn.Hardtanh(-0.5, 2.0)),
    "mish": (F.mish, lambda x: x * np.tanh(_softplus(x)), nn.Mish()),
    "logsigmoid": (F.logsigmoid, lambda x: -_softplus(-x), nn.LogSigmoid()),
    "threshold": (
        lambda x: F.threshold(x, 0.3, -1.0), lambda x: np.where(x > 0.3, x, -1.0), nn.Threshold(0.3, -1.0)
    ),
}  # fmt: skip
# where the derivative jumps: kept away from in difference quotients
KINKS = {
    "relu6": (0, 6), "hardtanh": (-0.5, 2), "hardswish": (-3, 3), "hardsigmoid": (-3, 3), "threshold": (0.3,),
    "softplus_beta": (1.5,),
}  # fmt: skip
SHAPES = [(), (0,), (1,), (7,), (15,), (16,), (17,), (33, 3), (2, 0, 3), (5, 63), (2, 3, 65)]


def grads(fn, x, dy):
    t = gs.tensor(x, requires_grad=True)
    y = fn(t)
    y.backward(gs.tensor(dy))
    return y.detach().numpy(), t.grad.numpy()


@pytest.mark.parametrize("name", CASES)
def test_forward_float64_and_layers(name, rng):
    fn, ref, layer = CASES[name]
    for shape in SHAPES:
        x = rng.standard_normal(shape) * 4
        y = fn(gs.tensor(np.asarray(x))).numpy()
        assert y.shape == shape and y.dtype == np.float64
        np.testing.assert_allclose(y, ref(np.asarray(x)), rtol=1e-13, atol=1e-15)
        np.testing.assert_array_equal(layer(gs.tensor(np.asarray(x))).numpy(), y)


@pytest.mark.parametrize("name", CASES)
def test_forward_float32(name, rng):
    fn, ref, _ = CASES[name]
    x = np.concatenate([rng.standard_normal(3001) * s for s in (0.01, 1, 4, 30)]).astype(np.float32)
    y = fn(gs.tensor(x)).numpy()
    assert y.dtype == np.float32
    # A few units in the last place. Those that round the argument of exp lose |argument| / 2 units more.
    want = ref(x.astype(np.float64))
    argument = {"gelu_tanh": np.abs(x + 0.045 * x**3) * 3.2, "swish": 1.7 * np.abs(x)}.get(
        name, 0 * x
    )
    bound = (8e-7 + 1e-7 * np.minimum(argument, 104)) * np.abs(want) + 1e-37
    assert (np.abs(y - want) <= bound).all()


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name, rng):
    fn = CASES[name][0]
    x = rng.standard_normal((3, 7)) * 2.5
    for kink in (0.0, *KINKS.get(name, ())):
        x[np.abs(x - kink) < 1e-3] += 0.01
    gs.gradcheck(fn, gs.tensor(x, requires_grad=True))


@pytest.mark.parametrize("name", CASES)
def test_backward_float32_follows_float64(name, rng):
    fn = CASES[name][0]
    for shape in [(1,), (17,), (63, 5), (0, 3)]:
        x = (rng.standard_normal(shape) * 4).astype(np.float32)
        dy = rng.standard_normal(shape).astype(np.float32)
        _, g = grads(fn, x, dy)
        _, g64 = grads(fn, x.astype(np.float64), dy.astype(np.float64))
        assert g.dtype == np.float32
        np.testing.assert_allclose(g, g64, rtol=4e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_same_bits_on_any_number_of_threads(name, rng):
    fn = CASES[name][0]
    x = rng.standard_normal(100_003).astype(np.float32)
    dy = rng.standard_normal(100_003).astype(np.float32)
    before = gs.get_num_threads()
    results = []
    for n in (1, 2, 3):
        gs.set_num_threads(n)
        results.append(grads(fn, x, dy))
    gs.set_num_threads(before)
    for y, g in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(g, results[0][1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_special_values(name, dtype):
    fn, _, _ = CASES[name]
    x = np.array([np.nan, 0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4], dtype)
    y, g = grads(fn, x, np.ones_like(x))
    assert np.isnan(y[0])
    assert np.isfinite(y[1:]).all()
    assert np.isfinite(g[1:]).all()
    big, _ = grads(fn, np.array([np.inf, -np.inf, 3e38, -3e38], dtype), np.ones(4, dtype))
    if name not in ("gelu_tanh",):
        assert not np.isnan(big).any(), big
    if name in (
        "sigmoid",
        "tanh",
        "relu",
        "gelu",
        "silu",
        "mish",
        "relu6",
        "hardsigmoid",
        "softplus",
    ):
        limit = {"sigmoid": (1, 0), "tanh": (1, -1), "relu6": (6, 0), "hardsigmoid": (1, 0)}.get(
            name, (np.inf, 0)
        )
        np.testing.assert_array_equal(
            np.abs(big[:2]) * np.sign(limit), np.abs(limit) * np.sign(limit)
        )


def test_gradient_at_the_kink():
    one = np.ones(1, np.float32)
    at = lambda fn, v: grads(fn, np.array([v], np.float32), one)[1][0]  # noqa: E731
    assert at(F.relu, 0.0) == 0 and at(F.relu, -0.0) == 0
    assert at(F.relu6, 6.0) == 0 and at(F.relu6, 0.0) == 0
    assert at(F.hardtanh, 1.0) == 0 and at(F.hardtanh, -1.0) == 0
    assert at(F.leaky_relu, 0.0) == np.float32(0.01)
    assert at(F.elu, 0.0) == 1
    assert at(F.hardswish, -3.0) == 0 and at(F.hardswish, 3.0) == 1


def test_against_pytorch(rng):
    torch = pytest.importorskip("torch")
    T = torch.nn.functional
    table = {
        "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": T.relu, "relu6": T.relu6, "leaky_relu": T.leaky_relu,
        "leaky_relu_neg": lambda x: T.leaky_relu(x, -0.5), "rrelu_eval": T.rrelu,
        "elu": lambda x: T.elu(x, 1.5), "selu": T.selu, "celu": lambda x: T.celu(x, 0.7),
        "gelu": T.gelu, "gelu_tanh": lambda x: T.gelu(x, approximate="tanh"), "silu": T.silu, "softplus": T.softplus,
        "softplus_beta": lambda x: T.softplus(x, 2.0, 3.0), "softsign": T.softsign, "hardswish": T.hardswish,
        "hardsigmoid": T.hardsigmoid, "hardtanh": lambda x: T.hardtanh(x, -0.5, 2.0), "mish": T.mish,
        "logsigmoid": T.logsigmoid, "threshold": lambda x: T.threshold(x, 0.3, -1.0),
    }  # fmt: skip
    x = np.concatenate([rng.standard_normal(500) * 4, [0, 3, -3, 6, 0.3, -0.5, 2.0, 1.5, np.nan]])
    dy = rng.standard_normal(x.size)
    for name, fn in table.items():
        y, g = grads(CASES[name][0], x, dy)
        t = torch.tensor(x, requires_grad=True)
        z = fn(t)
        tol = 1e-6 if name in ("celu", "hardsigmoid") else 1e-12
        z.backward(torch.tensor(dy))
        np.testing.assert_allclose(y, z.detach().numpy(), rtol=tol, atol=1e-14, err_msg=name)
        # PyTorch rounds 1 / alpha of celu and 1 / 6 of hardsigmoid to float32;
        # the gradient at NaN is the last element: PyTorch's own ops disagree on it
        np.testing.assert_allclose(g[:-1], t.grad.numpy()[:-1], rtol=tol, atol=1e-12, err_msg=name)


def test_any_strides(rng):
    x = rng.standard_normal((6, 10)).astype(np.float32)
    for view in (x.T, x[::-1], x[:, ::-2], np.broadcast_to(x[:1], (4, 10))):
        np.testing.assert_array_equal(
            F.silu(gs.tensor(view)).numpy(), F.silu(gs.tensor(view.copy())).numpy()
        )
    t = gs.tensor(x.T, requires_grad=True)
    F.gelu(t).backward(gs.tensor(np.broadcast_to(np.float32(1), (10, 6))))
    assert t.grad.shape == (10, 6)


INPLACE = {
    "relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu, "elu": F.elu, "selu": F.selu, "celu": F.celu,
    "hardtanh": F.hardtanh,
}  # fmt: skip
INPLACE_INPUT = {
    "silu": F.silu, "mish": F.mish, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "threshold": lambda x, inplace=False: F.threshold(x, 0.1, 2.0, inplace),
}  # fmt: skip


@pytest.mark.parametrize("name", INPLACE)
def test_inplace_gradient(name, rng):
    fn = INPLACE[name]
    x = rng.standard_normal((4, 9))
    dy = rng.standard_normal((4, 9))
    y, g = grads(fn, x, dy)
    t = gs.tensor(x, requires_grad=True)
    mid = F.threshold(t, -1e9, 0.0)  # not a leaf, and its gradient does not need its output
    out = fn(mid, inplace=True)
    assert out is mid
    np.testing.assert_array_equal(out.detach().numpy(), y)
    out.backward(gs.tensor(dy))
    np.testing.assert_allclose(t.grad.numpy(), g)
    with pytest.raises(RuntimeError, match="leaf"):
        fn(gs.tensor(x, requires_grad=True), inplace=True)


@pytest.mark.parametrize("name", INPLACE_INPUT)
def test_inplace_that_needs_its_input(name, rng):
    fn = INPLACE_INPUT[name]
    x = rng.standard_normal(9).astype(np.float32)
    t = gs.tensor(x.copy())
    assert fn(t, inplace=True) is t
    np.testing.assert_array_equal(t.numpy(), fn(gs.tensor(x)).numpy())
    strided = gs.tensor(np.repeat(x, 2)[::2])
    fn(strided, inplace=True)
    np.testing.assert_array_equal(strided.numpy(), t.numpy())
    held = F.relu(gs.tensor(x, requires_grad=True))
    before = held.detach().numpy().copy()
    with pytest.raises(RuntimeError, match="inplace"):
        fn(held, inplace=True)
    np.testing.assert_array_equal(held.detach().numpy(), before)


def test_output_changed_in_place_is_noticed():
    t = gs.tensor(np.ones(4, np.float32), requires_grad=True)
    y = F.sigmoid(t)
    y.detach().copy_(np.zeros(4, np.float32))
    with pytest.raises(RuntimeError, match="modified in place"):
        y.backward(gs.ones(4))


# ---- randomised leaky ReLU


def test_rrelu_training(rng):
    x = rng.standard_normal(40_000).astype(np.float32)
    gs.manual_seed(5)
    t = gs.tensor(x, requires_grad=True)
    y = F.rrelu(t, 0.1, 0.3, training=True)
    dy = rng.standard_normal(x.size).astype(np.float32)
    y.backward(gs.tensor(dy))
    out = y.detach().numpy()
    np.testing.assert_array_equal(out[x > 0], x[x > 0])
    slope = out[x < 0] / x[x < 0]
    assert slope.min() > 0.0999 and slope.max() < 0.3001
    assert abs(slope.mean() - 0.2) < 6 * 0.2 / math.sqrt(12 * slope.size)
    np.testing.assert_allclose(t.grad.numpy(), np.where(x > 0, dy, dy * (out / x)), rtol=1e-5)
    # other draw, same seed again
    again = F.rrelu(gs.tensor(x), 0.1, 0.3, training=True).numpy()
    assert (again != out).mean() > 0.4
    gs.manual_seed(5)
    np.testing.assert_array_equal(F.rrelu(gs.tensor(x), 0.1, 0.3, training=True).numpy(), out)
    gs.manual_seed(5)
    layer = nn.RReLU(0.1, 0.3)
    np.testing.assert_array_equal(layer(gs.tensor(x)).numpy(), out)


@pytest.mark.parametrize("lower", [0.1, -0.4])
def test_rrelu_gradient(lower, rng):
    def fn(t):
        gs.manual_seed(11)
        return F.rrelu(t, lower, 0.5, training=True)

    x = rng.standard_normal((5, 5))
    x[np.abs(x) < 1e-2] = 0.5
    gs.gradcheck(fn, gs.tensor(x, requires_grad=True))


def test_rrelu_same_bits(threads, rng):
    x = np.linspace(-1, 1, 70_001).astype(np.float32)
    gs.manual_seed(3)
    y = F.rrelu(gs.tensor(x), training=True).numpy()
    gs.manual_seed(3)
    short = F.rrelu(gs.tensor(x[:10]), training=True).numpy()
    np.testing.assert_array_equal(short, y[:10])
    wide = None
    gs.manual_seed(3)
    wide = F.rrelu(gs.tensor(x.astype(np.float64)), training=True).numpy()
    np.testing.assert_allclose(wide, y, rtol=2e-6)


# ---- PReLU


@pytest.mark.parametrize("dtype,tol", [(np.float64, 1e-12), (np.float32, 3e-6)])
@pytest.mark.parametrize(
    "shape", [(5, 1), (0, 3), (1, 7), (33, 16), (9, 17), (4, 3, 65), (700, 40)]
)
def test_prelu(shape, dtype, tol, rng):
    x = rng.standard_normal(shape).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    for n in {1, shape[-1]}:
        w = (rng.random(n) * 0.5).astype(dtype)
        t, p = gs.tensor(x, requires_grad=True), gs.tensor(w, requires_grad=True)
        y = F.prelu(t, p)
        y.backward(gs.tensor(dy))
        np.testing.assert_allclose(y.detach().numpy(), np.where(x > 0, x, w * x), rtol=tol)
        np.testing.assert_allclose(t.grad.numpy(), np.where(x > 0, dy, w * dy), rtol=tol)
        terms = np.where(x > 0, 0, x.astype(np.float64) * dy).reshape(-1, n)
        np.testing.assert_allclose(
            p.grad.numpy(), terms.sum(0), rtol=tol, atol=tol * (np.abs(terms).sum() / n + 1)
        )


def test_prelu_gradcheck_and_frozen_weight(rng):
    x = gs.tensor(rng.standard_normal((4, 5)), requires_grad=True)
    for n in (1, 5):
        gs.gradcheck(F.prelu, [x, gs.tensor(rng.random(n), requires_grad=True)])
    y = F.prelu(x, gs.tensor(np.full(5, 0.5)))
    y.backward(gs.tensor(np.ones((4, 5))))
    assert x.grad is not None
    w = gs.tensor(np.full(5, 0.5), requires_grad=True)
    F.prelu(gs.tensor(rng.standard_normal((4, 5))), w).backward(gs.tensor(np.ones((4, 5))))
    assert w.grad.shape == (5,)


@pytest.mark.parametrize("channels", [1, 24])
def test_prelu_same_bits(channels, rng):
    x = rng.standard_normal((120_000 // channels, channels)).astype(np.float32)
    before = gs.get_num_threads()
    results = []
    for n in (1, 2, 3):
        gs.set_num_threads(n)
        w = gs.tensor(np.full(channels, 0.3, np.float32), requires_grad=True)
        F.prelu(gs.tensor(x), w).backward(gs.tensor(x))
        results.append(w.grad.numpy())
    gs.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_prelu_layer():
    layer = nn.PReLU(3, init=0.1)
    assert layer.weight.shape == (3,) and "num_parameters=3" in repr(layer)
    assert list(layer.state_dict()) == ["weight"]
    with pytest.raises(ValueError, match="num_parameters"):
        nn.PReLU(0)


# ---- bad input


def test_bad_input():
    with pytest.raises(TypeError, match=r"relu: input has dtype int64"):
        F.relu(gs.tensor([1, 2]))
    with pytest.raises(ValueError, match="alpha must not be 0"):
        F.celu(gs.ones(2), 0.0)
    with pytest.raises(ValueError, match="beta must not be 0"):
        F.softplus(gs.ones(2), 0.0)
    with pytest.raises(ValueError, match="approximate"):
        F.gelu(gs.ones(2), "fast")
    with pytest.raises(ValueError, match="approximate"):
        nn.GELU("fast")
    with pytest.raises(ValueError, match="min_val"):
        F.hardtanh(gs.ones(2), 1.0, -1.0)
    with pytest.raises(ValueError, match="upper"):
        F.rrelu(gs.ones(2), 0.5, 0.1)
    with pytest.raises(ValueError, match=r"weight has shape \(2,\)"):
        F.prelu(gs.ones(4, 3), gs.ones(2))
    with pytest.raises(TypeError, match="one dtype"):
        F.prelu(gs.ones(4, 3), gs.tensor(np.ones(3)))
    frozen = np.ones(5, np.float32)
    frozen.flags.writeable = False
    from gradsmith import _cpu

    with pytest.raises(ValueError, match="read-only"):
        _cpu.activation_(2, frozen)
    with pytest.raises(ValueError, match="unknown function"):
        _cpu.activation(999, np.ones(3, np.float32))
    with pytest.raises(ValueError, match="must be equal"):
        _cpu.activation_backward(0, np.ones(3, np.float32), np.ones(4, np.float32))


def test_glu(rng):
    x = rng.standard_normal((3, 4, 6))
    for dim, (a, b) in {-1: (x[..., :3], x[..., 3:]), 1: (x[:, :2], x[:, 2:])}.items():
        np.testing.assert_allclose(F.glu(gs.tensor(x), dim).numpy(), a * _sigmoid(b), rtol=1e-12)
    gs.gradcheck(F.glu, gs.tensor(x[0], requires_grad=True))
    with pytest.raises(ValueError, match="even"):
        F.glu(gs.ones(2, 3))
    with pytest.raises(IndexError, match="out of range"):
        F.glu(gs.ones(2, 4), 2)


LARGE = 65536 + 37  # from 65536 elements on forward saves less: a bit an element, or the derivative


@pytest.mark.parametrize("name", CASES)
def test_large_arrays_give_the_same_bits(name, rng):
    """The kernels for large arrays against those for small ones, element by element."""
    fn = CASES[name][0]
    x = (rng.standard_normal(LARGE) * 3).astype(np.float32)
    x[:8] = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -20.0, 6.0]
    dy = rng.standard_normal(LARGE).astype(np.float32)
    dy[100] = np.nan
    y, g = grads(fn, x, dy)
    with gs.no_grad():
        np.testing.assert_array_equal(fn(gs.tensor(x)).numpy(), y)
    for at in range(0, LARGE, 16384):
        part = slice(at, min(at + 16384, LARGE))
        y_part, g_part = grads(fn, x[part], dy[part])
        np.testing.assert_array_equal(y[part], y_part)
        np.testing.assert_array_equal(g[part], g_part)


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "sigmoid", "gelu", "silu", "mish", "softplus"]
)
def test_past_the_caches(name, rng):
    """8 MB arrays, written with streaming stores; aligned and not."""
    fn, ref, _ = CASES[name]
    n = 2**21 + 5
    x = rng.standard_normal(n).astype(np.float32)
    dy = rng.standard_normal(n).astype(np.float32)
    y, g = grads(fn, x, dy)
    some = rng.integers(0, n, 5000)
    some[:2] = 0, n - 1
    np.testing.assert_allclose(y[some], ref(x[some].astype(np.float64)), rtol=2e-6, atol=1e-6)
    y_some, g_some = grads(fn, x[some], dy[some])
    np.testing.assert_array_equal(g[some], g_some)
    np.testing.assert_array_equal(y[some], y_some)


@pytest.mark.parametrize(
    "name",
    ["sigmoid", "tanh", "elu", "gelu", "gelu_tanh", "silu", "softplus", "logsigmoid", "mish"],
)
def test_neighbours_do_not_matter(name, rng):
    """Blocks of vectors with a large number or NaN are worked on another way, to the same bits."""
    fn = CASES[name][0]
    ends = np.linspace(7.5, 8, 3000)  # where the tables end
    x = np.concatenate([np.linspace(-9, 9, 3000), ends, -ends]).astype(np.float32)
    dy = rng.standard_normal(x.size).astype(np.float32)
    y, g = grads(fn, x, dy)
    others = np.arange(x.size) % 37 != 0
    for number in (9.0, -30.0, 100.0, np.nan):
        y_other, g_other = grads(fn, np.where(others, x, np.float32(number)), dy)
        np.testing.assert_array_equal(y_other[others], y[others])
        np.testing.assert_array_equal(g_other[others], g[others])


def test_large_relu_in_place_and_on_views(rng):
    x = rng.standard_normal((300, 401)).astype(np.float32)
    t = gs.tensor(x, requires_grad=True)
    y = F.relu(t * 1.0, inplace=True) + F.relu(t.T).T
    y.sum().backward()
    np.testing.assert_array_equal(y.detach().numpy(), 2 * np.maximum(x, 0))
    np.testing.assert_array_equal(t.grad.numpy(), np.where(x > 0, 2, 0).astype(np.float32))


def test_bits_are_checked():
    k = gs.tensor([1.0])._k
    with pytest.raises(ValueError, match="saved bits"):
        k.activation_mask_backward(np.ones(40, np.float32), np.zeros(4, np.uint8), 0.0)
    with pytest.raises(ValueError, match="one bit"):
        k.activation_mask(k.ACTIVATIONS["tanh"], np.ones(4, np.float32))
    with pytest.raises(ValueError, match="derivative"):
        k.activation_slope(k.ACTIVATIONS["relu"], np.ones(4, np.float32))
    with pytest.raises(TypeError):
        k.activation_slope(k.ACTIVATIONS["gelu"], np.ones(4))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mish_gradient_of_huge_inputs(dtype):
    x = np.array([45, 80, 1e5, 1e20, 3e37, np.inf, -1e5, -3e37, -np.inf], dtype)
    np.testing.assert_array_equal(grads(F.mish, x, np.ones_like(x))[1], [1] * 6 + [0] * 3)
