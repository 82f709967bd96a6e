"""Elementwise ops against NumPy in float64, over shapes, strides, dtypes, threads and instruction sets."""

import os
import subprocess
import sys

import numpy as np
import pytest

import gradsmith as gs

rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
k = gs._cpu

SHAPES = [
    ((), ()),
    ((0,), (0,)),
    ((0, 3), (3,)),
    ((1,), (7,)),
    ((15,), (15,)),
    ((16,), ()),
    ((65,), (1,)),
    ((5, 3), (3,)),
    ((5, 3), (5, 1)),
    ((700, 7), (7,)),
    ((700, 7), (700, 1)),
    ((40, 130), (130,)),
    ((40, 130), (40, 1)),
    ((3, 1, 5), (1, 4, 1)),
    ((2, 1, 33, 1), (31, 1, 129)),
    ((1, 1), (3, 1, 2)),
    ((20000,), (20000,)),
    ((2, 3, 2, 1, 2, 1, 2, 3), (3, 1, 4, 1, 3, 1, 3)),
]
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
INT_BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "floor_divide": np.floor_divide,
    "remainder": np.remainder,
}
UNARY = {  # NumPy function, lowest and highest argument, bound in ULP
    "neg": (np.negative, -9, 9, 0),
    "abs": (np.abs, -9, 9, 0),
    "sign": (np.sign, -9, 9, 0),
    "square": (np.square, -9, 9, 0.51),
    "exp": (np.exp, -90, 85, 1.1),
    "expm1": (np.expm1, -20, 80, 2.1),
    "log": (np.log, 1e-30, 1e6, 1.1),
    "log1p": (np.log1p, -0.99, 100, 2.1),
    "log2": (np.log2, 1e-30, 1e6, 1.1),
    "sqrt": (np.sqrt, 0, 1e6, 0.51),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1e-6, 1e6, 1.6),
    "reciprocal": (lambda x: 1 / x, 0.01, 100, 0.51),
    "sin": (np.sin, -1000, 1000, 2.6),
    "cos": (np.cos, -1000, 1000, 2.6),
    "tan": (np.tan, -1.5, 1.5, 5),
    "floor": (np.floor, -9, 9, 0),
    "ceil": (np.ceil, -9, 9, 0),
    "round": (np.rint, -9, 9, 0),
    "trunc": (np.trunc, -9, 9, 0),
}


def floats(shape, dtype, low=-3.0, high=3.0):
    return rng.uniform(low, high, size=shape).astype(dtype)


def ulps(got, exact):
    """Largest error of float32 or float64 `got` in units in the last place of the exact result."""
    exact = np.asarray(exact, np.float64)
    tiny = np.finfo(got.dtype).smallest_subnormal
    unit = np.spacing(np.abs(exact).astype(got.dtype)).astype(np.float64)
    unit = np.maximum(unit, tiny)
    return np.max(np.abs(got.astype(np.float64) - exact) / unit, initial=0)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_broadcast(name, dtype):
    for sa, sb in SHAPES:
        a, b = floats(sa, dtype), floats(sb, dtype, 0.5, 3)
        for x, y in ((a, b), (b, a + np.dtype(dtype).type(4))):
            got = getattr(gs, name)(gs.tensor(x), gs.tensor(y)).numpy()
            want = BINARY[name](x, y)
            assert got.dtype == want.dtype and got.shape == want.shape
            np.testing.assert_array_equal(got, want, err_msg=f"{sa} {sb}")


@pytest.mark.parametrize("name", INT_BINARY)
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_binary_integers(name, dtype):
    info = np.iinfo(dtype)
    for sa, sb in SHAPES:
        a = rng.integers(info.min, info.max, sa, dtype, endpoint=True)
        b = np.asarray(rng.integers(info.min, info.max, sb, dtype, endpoint=True))
        b[b == 0] = 3
        if info.min < 0:
            b[b == -1] = 2
        with np.errstate(over="ignore"):
            want = INT_BINARY[name](a, b)
        got = getattr(gs, name)(gs.tensor(np.asarray(a)), gs.tensor(b)).numpy()
        np.testing.assert_array_equal(got, want)
        assert got.dtype == np.dtype(dtype)


def test_integer_division_never_crashes():
    a = gs.tensor(np.array([5, -5, np.iinfo(np.int64).min], np.int64))
    assert (a // gs.tensor(np.array([0, 0, 0], np.int64))).tolist() == [0, 0, 0]
    assert (a // -1).tolist()[:2] == [-5, 5]
    assert (a % -1).tolist() == [0, 0, 0]
    with pytest.raises(ZeroDivisionError, match="floor_divide"):
        a // 0


def test_float_remainder_and_floor_divide():
    a, b = floats(500, "float64", -50, 50), floats(500, "float64", -7, 7)
    np.testing.assert_allclose((gs.tensor(a) % gs.tensor(b)).numpy(), a % b, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal((gs.tensor(a) // gs.tensor(b)).numpy(), a // b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_division_to_the_bit(dtype):
    """Quotients that a rounded division misses by one, exact multiples, large ones, special values."""
    b = floats(4000, dtype, -9, 9)
    n = rng.integers(-3000, 3000, b.size).astype(dtype)
    near = (b * n).astype(dtype)
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-38, 3e30, -7.5], dtype)
    cases = [
        (near, b),
        (np.nextafter(near, dtype_inf(dtype)), b),
        (np.nextafter(near, -dtype_inf(dtype)), b),
        (floats(4000, dtype, -1e-6, 1e-6), b),
        (floats(4000, dtype, -1e12, 1e12), b),
        (n, np.full_like(n, 3)),
        tuple(x.ravel() for x in np.meshgrid(special, special)),
    ]
    with np.errstate(all="ignore"):
        for x, y in cases:
            got = (gs.tensor(x) // gs.tensor(y)).numpy(), (gs.tensor(x) % gs.tensor(y)).numpy()
            np.testing.assert_array_equal(got[0], x // y)
            np.testing.assert_array_equal(got[1], x % y)


def dtype_inf(dtype):
    return np.dtype(dtype).type(np.inf)


def test_powers_of_negative_numbers():
    x = floats(3000, "float32", -6, 6)
    for e in (3, 4, 5.0, -3, 7, -2):
        got = (gs.tensor(x) ** e).numpy()
        np.testing.assert_allclose(got, x.astype(np.float64) ** e, rtol=2.5e-7, err_msg=str(e))
    assert np.isnan((gs.tensor(x[x < 0]) ** 0.3).numpy()).all()
    t = gs.tensor(x, requires_grad=True)
    (t**3).sum().backward()
    np.testing.assert_allclose(t.grad.numpy(), 3 * x.astype(np.float64) ** 2, rtol=4e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_strides(dtype):
    base = floats((40, 60), dtype)
    views = [
        base,
        base.T,
        base[::-1],
        base[:, ::-1],
        base[::2, ::3],
        base[3:4],
        base[:, 5:6],
        np.broadcast_to(base[0], (40, 60)),
        base.reshape(4, 10, 60).transpose(2, 0, 1),
        np.broadcast_to(base[:, :1], (40, 60))[::-1],
    ]
    for x in views:
        want = x * x + x
        got = gs.Tensor(x) * gs.Tensor(x) + gs.Tensor(x)
        np.testing.assert_array_equal(got.numpy(), want)
        np.testing.assert_array_equal((2.0 - gs.Tensor(x)).numpy(), 2 - x)
        np.testing.assert_array_equal(k.copy(x), x)
        np.testing.assert_array_equal(k.neg(x), -x)


def test_scalars_and_operators():
    x = floats((33,), "float32")
    t = gs.tensor(x)
    np.testing.assert_array_equal((t + 1).numpy(), x + np.float32(1))
    np.testing.assert_array_equal((1 + t).numpy(), x + np.float32(1))
    np.testing.assert_array_equal((t - 0.1).numpy(), x - np.float32(0.1))
    np.testing.assert_array_equal((0.1 - t).numpy(), np.float32(0.1) - x)
    np.testing.assert_array_equal((t * 3).numpy(), x * np.float32(3))
    np.testing.assert_array_equal((t / 3).numpy(), x / np.float32(3))
    np.testing.assert_array_equal((3 / t).numpy(), np.float32(3) / x)
    np.testing.assert_array_equal((-t).numpy(), -x)
    np.testing.assert_array_equal(abs(t).numpy(), abs(x))
    np.testing.assert_allclose((t**3).numpy(), x.astype("f8") ** 3, rtol=2e-7)
    np.testing.assert_allclose((2**t).numpy(), 2 ** x.astype("f8"), rtol=2e-7)
    np.testing.assert_array_equal((np.float32(2) * t).numpy(), 2 * x)
    np.testing.assert_array_equal((t + x).numpy(), x + x)
    np.testing.assert_array_equal((x + t).numpy(), x + x)
    assert (t + np.float64(1)).dtype == np.float32
    i = gs.tensor([1, 2, 3])
    assert (i + 2).dtype == np.int64
    assert (i * 2).tolist() == [2, 4, 6]
    assert (10 - i).tolist() == [9, 8, 7]


@pytest.mark.parametrize("name", UNARY)
def test_unary(name):
    f, low, high, bound = UNARY[name]
    for n in (0, 1, 7, 16, 17, 63, 1000, 20001):
        x = floats(n, "float32", low, high)
        got = getattr(gs, name)(gs.tensor(x)).numpy()
        with np.errstate(all="ignore"):
            want = f(x.astype(np.float64))
        assert got.dtype == np.float32
        assert ulps(got, want) <= bound, (name, n)
    x = floats((5, 7), "float64", low, high)
    np.testing.assert_allclose(
        getattr(gs, name)(gs.tensor(x)).numpy(), f(x), rtol=1e-14, atol=1e-14
    )


def test_special_values():
    inf, nan = np.inf, np.nan
    for dtype in ("float32", "float64"):
        x = np.array([0.0, -0.0, inf, -inf, nan, 1.0, -1.0] * 3, dtype)
        with np.errstate(all="ignore"):
            for name, f in (
                ("exp", np.exp), ("log", np.log), ("sqrt", np.sqrt), ("sign", np.sign), ("abs", np.abs),
                ("log1p", np.log1p), ("expm1", np.expm1), ("reciprocal", np.reciprocal), ("round", np.rint),
            ):  # fmt: skip
                np.testing.assert_allclose(
                    getattr(gs, name)(gs.tensor(x)).numpy(), f(x), rtol=1e-6, err_msg=name
                )
        for a in x[:7]:
            for b in x[:7]:
                ta, tb = gs.tensor(np.full(5, a)), gs.tensor(np.full(5, b))
                np.testing.assert_array_equal(gs.maximum(ta, tb).numpy(), np.maximum(a, b))
                np.testing.assert_array_equal(gs.minimum(ta, tb).numpy(), np.minimum(a, b))
                for op in ("eq", "ne", "lt", "le", "gt", "ge"):
                    py = {
                        "eq": a == b,
                        "ne": a != b,
                        "lt": a < b,
                        "le": a <= b,
                        "gt": a > b,
                        "ge": a >= b,
                    }
                    assert getattr(gs, op)(ta, tb).numpy().tolist() == [py[op]] * 5
        t = gs.tensor(x)
        np.testing.assert_array_equal(t.isnan().numpy(), np.isnan(x))
        np.testing.assert_array_equal(t.isfinite().numpy(), np.isfinite(x))
        np.testing.assert_array_equal(t.isinf().numpy(), np.isinf(x))
        np.testing.assert_array_equal(t.clamp(-0.5, 0.5).numpy(), np.clip(x, -0.5, 0.5))
        np.testing.assert_array_equal(t.clamp(min=0.5).numpy(), np.maximum(x, x.dtype.type(0.5)))


def test_pow():
    for dtype, rtol in (("float32", 1.2e-7), ("float64", 1e-14)):
        a = floats(3000, dtype, 0.01, 20)
        b = floats(3000, dtype, -8, 8)
        got = (gs.tensor(a) ** gs.tensor(b)).numpy()
        np.testing.assert_allclose(got, a.astype("f8") ** b.astype("f8"), rtol=rtol)
        for e in (0, 1, 2, 3, -1, -2, 0.5, 2.5):
            np.testing.assert_allclose((gs.tensor(a) ** e).numpy(), a.astype("f8") ** e, rtol=rtol)
        special = np.array([0.0, -0.0, 1, -1, 2, -2, np.inf, -np.inf, np.nan, 0.5], dtype)
        x, y = (m.ravel().copy() for m in np.meshgrid(special, special))
        with np.errstate(all="ignore"):
            np.testing.assert_allclose((gs.tensor(x) ** gs.tensor(y)).numpy(), x**y, rtol=rtol)
    big = np.array([1e30, 1e-30, 3e38], "float32")
    with np.errstate(all="ignore"):
        np.testing.assert_allclose((gs.tensor(big) ** 3.0).numpy(), big**3, rtol=1e-6)
    assert (gs.tensor([2, 3]) ** 3).tolist() == [8, 27]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool"])
def test_comparisons(dtype):
    for sa, sb in SHAPES:
        a, b = (rng.integers(0, 2 if dtype == "bool" else 5, s).astype(dtype) for s in (sa, sb))
        ta, tb = gs.tensor(np.asarray(a)), gs.tensor(np.asarray(b))
        for got, want in (
            (ta == tb, a == b), (ta != tb, a != b), (ta < tb, a < b), (ta <= tb, a <= b), (ta > tb, a > b),
            (ta >= tb, a >= b),
        ):  # fmt: skip
            assert got.dtype == np.bool_
            np.testing.assert_array_equal(got.numpy(), want)


def test_logic_where():
    a, b = rng.random(100) < 0.5, rng.random(100) < 0.5
    ta, tb = gs.tensor(a), gs.tensor(b)
    np.testing.assert_array_equal((ta & tb).numpy(), a & b)
    np.testing.assert_array_equal((ta | tb).numpy(), a | b)
    np.testing.assert_array_equal((ta ^ tb).numpy(), a ^ b)
    np.testing.assert_array_equal((~ta).numpy(), ~a)
    for dtype in ("float32", "float64", "int32", "int64", "uint8"):
        for sc, sa, sb in (((100,), (100,), (100,)), ((5, 1), (3,), ()), ((), (4, 4), (4, 1))):
            c = np.asarray(rng.random(sc) < 0.5)
            x, y = (np.asarray(rng.integers(0, 9, s)).astype(dtype) for s in (sa, sb))
            np.testing.assert_array_equal(
                gs.where(gs.tensor(c), gs.tensor(x), gs.tensor(y)).numpy(), np.where(c, x, y)
            )
    x = floats((3, 4), "float32")
    np.testing.assert_array_equal(
        gs.tensor(x).masked_fill(gs.tensor(x > 0), -1.0).numpy(), np.where(x > 0, np.float32(-1), x)
    )
    assert gs.where(gs.tensor([True, False]), 1, 0).tolist() == [1, 0]
    assert gs.where(gs.tensor([True, False]), 1.5, 0).dtype == np.float32


def test_three_operands():
    a, b, c = (floats((5, 33), "float64", 0.5, 3) for _ in range(3))
    ta, tb, tc = gs.tensor(a), gs.tensor(b), gs.tensor(c)
    np.testing.assert_allclose(
        gs.lerp(ta, tb, tc / 3).numpy(), a + c / 3 * (b - a), rtol=1e-13, atol=1e-14
    )
    np.testing.assert_allclose(
        gs.lerp(ta, tb, 0.3).numpy(), a + 0.3 * (b - a), rtol=1e-13, atol=1e-14
    )
    np.testing.assert_array_equal(gs.lerp(ta, tb, 1.0).numpy(), b)
    np.testing.assert_allclose(
        gs.addcmul(ta, tb, tc, value=0.5).numpy(), a + 0.5 * b * c, rtol=1e-13, atol=1e-14
    )
    np.testing.assert_allclose(
        gs.addcdiv(ta, tb, tc, value=0.5).numpy(), a + 0.5 * b / c, rtol=1e-13, atol=1e-14
    )
    np.testing.assert_allclose(
        gs.add(ta, tb, alpha=0.5).numpy(), a + 0.5 * b, rtol=1e-13, atol=1e-14
    )
    assert gs.allclose(ta, ta + 1e-10) and not gs.allclose(ta, tb)


# ---- in place
def test_in_place_values():
    for view in (lambda a: a, lambda a: a.T, lambda a: a[::-1, ::2], lambda a: a[:, 1]):
        for name, f in (
            ("add_", np.add),
            ("sub_", np.subtract),
            ("mul_", np.multiply),
            ("div_", np.divide),
        ):
            data = floats((9, 70), "float32")
            target = view(data)
            other = floats(target.shape, "float32", 1, 2)
            want = f(target, other)
            expect = data.copy()
            view(expect)[...] = want
            t = gs.Tensor(target)
            assert getattr(t, name)(gs.tensor(other)) is t
            np.testing.assert_array_equal(data, expect)
    x = gs.ones(3, 4)
    x += gs.tensor([1.0, 2, 3, 4])
    x *= 2
    x -= 1
    x /= gs.tensor([[1.0], [2], [4]])
    np.testing.assert_array_equal(
        x.numpy(), ((1 + np.arange(1, 5)) * 2 - 1) / np.array([[1.0], [2], [4]])
    )
    x.fill_(3).neg_().abs_().sqrt_().clamp_(0, 1).zero_()
    assert x.sum().item() == 0


def test_in_place_overlap():
    """An operand that overlaps the target at other places is read as it was before."""
    for n in (10, 1000, 100000):
        data = floats(n, "float32")
        want = data[1:] + data[:-1]
        k.add_(data[1:], data[:-1])
        np.testing.assert_array_equal(data[1:], want)
        data = floats(n, "float32")
        want = data * data[::-1]
        k.mul_(data, data[::-1])
        np.testing.assert_array_equal(data, want)
        data = floats(n, "float32")
        want = data - data[0]
        k.sub_(data, data[:1])
        np.testing.assert_array_equal(data, want)
    m = floats((50, 50), "float32")
    want = m + m.T
    k.add_(m, m.T)
    np.testing.assert_array_equal(m, want)


def test_in_place_rules():
    leaf = gs.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        leaf += 1
    with gs.no_grad():
        leaf += 1
    assert leaf.tolist() == [2, 2, 2]
    y = leaf * 2
    z = y.exp()
    y += 1  # exp saved its output, not y
    z.sum().backward()
    y = leaf * 2
    z = y * y
    y += 1
    with pytest.raises(RuntimeError, match="modified in place"):
        z.sum().backward()


def test_in_place_gradients():
    x0, w0 = floats((4, 3), "float64", 0.5, 2), floats((3,), "float64", 0.5, 2)

    def f(x, w):
        y = x * 1.0
        y += w
        y *= w
        y -= 0.5
        y /= w + 1
        y **= 2
        y = y.exp_() * 1.0  # the gradients of exp_ and sqrt_ need their outputs unchanged
        y.log_()
        y = y.sqrt_() * 1.0
        y.clamp_(0.1, 1.5)
        y *= y
        return y

    x, w = gs.tensor(x0, requires_grad=True), gs.tensor(w0, requires_grad=True)
    assert gs.gradcheck(f, [x, w])


# ---- gradients
GRADS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "square": lambda a, b: a**2 + b**3,
    "pow_scalar": lambda a, b: a**2.5 + b**-1.5 + 2.0**a + a**0 + a**1 + a**0.5 + b**-1,
    "maximum": lambda a, b: gs.maximum(a, b) * gs.minimum(b, a + 0.3),
    "scalar_max": lambda a, b: gs.maximum(a, 1.1) + gs.minimum(1.3, b),
    "remainder": lambda a, b: a % b,
    "where": lambda a, b: gs.where(a > 1.2, a, b),
    "where_scalar": lambda a, b: gs.where(b > 1.2, a, 0.0) + gs.where(b > 1.2, 2.0, b),
    "lerp": lambda a, b: gs.lerp(a, b, 0.3) + gs.lerp(b, a, a),
    "addc": lambda a, b: gs.addcmul(a, b, a, value=0.7) + gs.addcdiv(b, a, b, value=1.5),
    "reflected": lambda a, b: (1 - a) * (2 / b) * (3 + a),
}
UNARY_GRADS = [
    "neg", "abs", "sign", "square", "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal",
    "sin", "cos", "tan", "floor", "ceil", "round", "trunc",
]  # fmt: skip


def off_the_kinks(shape, low, high, offset):
    """Hundredths and an offset: no two of them, nor one and a limit, are a rounding apart."""
    return np.floor(floats(shape, "float64", low, high) * 100) / 100 + offset


@pytest.mark.parametrize("name", GRADS)
def test_gradients_binary(name):
    for sa, sb in (((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (2, 1, 4)), ((), (3,)), ((2, 1), ())):
        a = gs.tensor(off_the_kinks(sa, 0.55, 1.9, 0.003), requires_grad=True)
        b = gs.tensor(off_the_kinks(sb, 0.55, 1.9, 0.0071), requires_grad=True)
        assert gs.gradcheck(GRADS[name], [a, b])


@pytest.mark.parametrize("name", UNARY_GRADS)
def test_gradients_unary(name):
    x = gs.tensor(off_the_kinks((3, 5), 0.6, 1.4, 0.013), requires_grad=True)
    assert gs.gradcheck(getattr(gs, name), x)
    if name in ("neg", "abs", "square", "exp", "sin", "cos", "tan"):
        x = gs.tensor(floats((3, 5), "float64", -1.4, -0.2), requires_grad=True)
        assert gs.gradcheck(getattr(gs, name), x)


def test_gradients_float32_follow_float64():
    x = floats((40, 33), "float32", 0.5, 2)
    for name in UNARY_GRADS:
        grads = []
        for dtype in ("float32", "float64"):
            t = gs.tensor(x, dtype=dtype, requires_grad=True)
            (getattr(gs, name)(t) * t).sum().backward()
            grads.append(t.grad.numpy())
        np.testing.assert_allclose(grads[0], grads[1], rtol=2e-6, atol=2e-6, err_msg=name)


def test_gradient_of_clamp_and_ties():
    x = gs.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], requires_grad=True)
    x.clamp(-1, 1).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    x.grad = None
    low, high = gs.full((5,), -1.0, requires_grad=True), gs.ones(1, requires_grad=True)
    x.clamp(low, high).sum().backward()  # a bound has what is beyond it, but no tie
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    assert low.grad.tolist() == [1, 0, 0, 0, 0] and high.grad.tolist() == [1]
    low.grad = high.grad = x.grad = None
    x.clamp(high, low).sum().backward()  # crossed: the upper one has it all
    assert low.grad.tolist() == [1] * 5 and high.grad.tolist() == [0] and not x.grad.numpy().any()
    a, b = gs.ones(3, requires_grad=True), gs.ones(3, requires_grad=True)
    gs.maximum(a, b).sum().backward()
    assert a.grad.tolist() == b.grad.tolist() == [0.5, 0.5, 0.5]
    zero = gs.zeros(2, requires_grad=True)
    (zero**2 + abs(zero)).sum().backward()
    assert zero.grad.tolist() == [0, 0]


def test_same_as_torch():
    torch = pytest.importorskip("torch")
    a, b = floats((6, 1, 5), "float32", 0.5, 2), floats((4, 5), "float32", 0.5, 2)
    for f in GRADS:
        if f in ("where", "where_scalar", "maximum", "lerp", "addc", "scalar_max"):
            continue
        ga, gb = (gs.tensor(v, requires_grad=True) for v in (a, b))
        ta, tb = (torch.tensor(v, requires_grad=True) for v in (a, b))
        yg, yt = GRADS[f](ga, gb), GRADS[f](ta, tb)
        np.testing.assert_allclose(yg.detach().numpy(), yt.detach().numpy(), rtol=2e-6, atol=1e-6)
        yg.sum().backward()
        yt.sum().backward()
        np.testing.assert_allclose(ga.grad.numpy(), ta.grad.numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gb.grad.numpy(), tb.grad.numpy(), rtol=1e-5, atol=1e-5)


# ---- determinism
def test_threads_give_the_same_bits():
    a, b, c = floats((300, 700), "float32"), floats((700,), "float32"), floats((300, 1), "float32")
    results = []
    before = gs.get_num_threads()
    try:
        for n in (1, 2, 3):
            gs.set_num_threads(n)
            results.append(
                [k.add(a, b), k.mul(a, c), k.exp(a), k.copy(a.T), k.where(a > 0, a, c)]
                + [
                    k.uniform((1001, 77), "float32", 0, 1, 5, 9),
                    k.normal((1001, 77), "float32", 0, 1, 5, 9),
                ]
                + [k.normal((333,), "float64", 0, 1, 5, 9)]
            )
    finally:
        gs.set_num_threads(before)
    for other in results[1:]:
        for x, y in zip(results[0], other):
            np.testing.assert_array_equal(x, y)


CROSS = """
import hashlib, numpy as np, gradsmith as gs
k = gs._cpu
rng = np.random.default_rng(3)
h = hashlib.sha256()
for dtype in ("float32", "float64"):
    a, b = (rng.normal(size=(37, 1111)).astype(dtype) for _ in range(2))
    for r in (k.add(a, b), k.sub(a, b[:1]), k.mul(a, b[:, :1]), k.div(a, b), k.sqrt(abs(a)), k.maximum(a, b)):
        h.update(np.ascontiguousarray(r))
    for axes in (None, 0, 1):
        for op in (k.sum, k.mean, k.amax, k.sum_square, k.prod):
            h.update(np.ascontiguousarray(op(a, axes, False)))
    h.update(np.ascontiguousarray(k.sum(a.reshape(37, 11, 101), (0, 2), False)))
    h.update(k.uniform((999,), dtype, -1.0, 3.0, 7, 8))
print(h.hexdigest())
"""


def test_instruction_sets_agree():
    digests = {}
    for isa in k.supported_isas():
        env = dict(os.environ, GRADSMITH_ISA=isa)
        run = subprocess.run(
            [sys.executable, "-c", CROSS], capture_output=True, text=True, env=env, check=True
        )
        digests[isa] = run.stdout
    assert len(set(digests.values())) == 1, digests


# ---- random numbers
def test_philox_stream():
    """Known answers of Philox4x32-10 (Random123's kat_vectors) through the uniform stream."""

    def philox(key, ctr):
        c, kk = list(ctr), list(key)
        for _ in range(10):
            p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [
                (p1 >> 32) ^ c[1] ^ kk[0],
                p1 & 0xFFFFFFFF,
                (p0 >> 32) ^ c[3] ^ kk[1],
                p0 & 0xFFFFFFFF,
            ]
            kk = [(kk[0] + 0x9E3779B9) & 0xFFFFFFFF, (kk[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return c

    assert philox((0, 0), (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    seed, counter = 0x123456789ABCDEF0, 0xFEDCBA9876543210
    u = k.uniform((1001,), "float32", 0.0, 1.0, seed, counter)
    for i in (0, 1, 2, 3, 4, 63, 64, 500, 1000):
        words = philox(
            (seed & 0xFFFFFFFF, seed >> 32), (i // 4, 0, counter & 0xFFFFFFFF, counter >> 32)
        )
        assert u[i] == np.float32((words[i % 4] >> 8) * 2.0**-24)


def test_random_distributions():
    for dtype in ("float32", "float64"):
        u = k.uniform((400, 500), dtype, -2.0, 3.0, 11, 4)
        assert u.min() >= -2 and u.max() < 3
        assert abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 25 / 12) < 0.03
        z = k.normal((400, 501), dtype, 1.0, 2.0, 11, 5).astype("f8")
        assert abs(z.mean() - 1) < 0.02 and abs(z.std() - 2) < 0.02
        s = (z - 1) / 2
        assert abs((s**3).mean()) < 0.05 and abs((s**4).mean() - 3) < 0.1
        assert abs(np.corrcoef(s.ravel()[:-1], s.ravel()[1:])[0, 1]) < 0.02
        assert np.isfinite(z).all()
    assert k.uniform((0,), "float32", 0.0, 1.0, 1, 1).shape == (0,)
    a, b = (k.uniform((50,), "float32", 0.0, 1.0, 1, c) for c in (1, 2))
    assert not np.array_equal(a, b)
    # a prefix of the stream is the stream of a shorter array
    np.testing.assert_array_equal(
        k.normal((77,), "float32", 0, 1, 3, 3), k.normal((1000,), "float32", 0, 1, 3, 3)[:77]
    )
    with pytest.raises(ValueError, match="low"):
        k.uniform((3,), "float32", 2.0, 1.0, 1, 1)
    with pytest.raises(ValueError, match="finite"):
        k.normal((3,), "float32", float("nan"), 1.0, 1, 1)


# ---- bad input
def test_errors():
    a, b = gs.ones(2, 3), gs.ones(4)
    with pytest.raises(ValueError, match=r"add.*\(2, 3\).*\(4,\)"):
        a + b
    with pytest.raises(ValueError, match=r"where.*\(2, 3\)"):
        gs.where(a > 0, a, b)
    with pytest.raises(TypeError, match=r"float32 and float64.*astype"):
        a + gs.ones(3, dtype="float64")
    with pytest.raises(TypeError, match="int64"):
        a * gs.tensor([1, 2, 3])
    with pytest.raises(TypeError, match="fraction"):
        gs.tensor([1, 2]) + 0.5
    with pytest.raises(ValueError, match="fit"):
        gs.tensor(np.array([1], np.uint8)) + 300
    for large in (2**63, -(2**70), 1e20):
        with pytest.raises(ValueError, match="add: the number .* does not fit into dtype int64"):
            gs.tensor([1, 2]) + large
    with pytest.raises(TypeError, match=r"div.*float"):
        gs.tensor([1, 2]) / 2
    with pytest.raises(TypeError, match="exp"):
        gs.exp(gs.tensor([1, 2]))
    with pytest.raises(TypeError):
        a + "x"
    with pytest.raises(TypeError):
        a + None
    with pytest.raises(TypeError, match="add"):
        gs.add(a, object())
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        gs.ones(3).add_(a)
    with pytest.raises(TypeError, match="bool"):
        gs.where(a, a, a)
    with pytest.raises(ValueError, match="clamp"):
        a.clamp()
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        gs.Tensor(frozen).add_(1)
    with pytest.raises(ValueError, match="read-only"):
        gs.ones(1).expand(3).add_(1)
    swapped = np.ones(3, ">f4")
    with pytest.raises(TypeError, match="byte order"):
        k.add(swapped, swapped)
    with pytest.raises(TypeError, match="float16"):
        k.add(np.ones(3, np.float16), 1.0)
    odd = np.zeros(17, np.uint8)[1:].view(np.uint8)
    misaligned = np.frombuffer(odd.tobytes() + b"\0" * 4, np.uint8)[1:9].view(np.float32)
    try:
        k.add(misaligned, 1.0)
    except ValueError as e:
        assert "aligned" in str(e)


def test_comparison_with_foreign_types():
    t = gs.ones(2)
    assert (t == None) is False  # noqa: E711
    assert (t != "x") is True
    with pytest.raises(TypeError):
        _ = t < "x"


def test_copy_between_overlapping_views(rng):
    """What is copied is what was there before, however source and target lie."""
    for target, source in (
        (np.s_[1:], np.s_[:-1]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:], np.s_[::-1]),
        (np.s_[::2], np.s_[1::2]),
        (np.s_[2:8:2], np.s_[3:6]),
    ):
        for dtype in ("float32", "int64"):
            a = rng.integers(0, 100, 3000 if target == np.s_[:] else 10).astype(dtype)
            want = a.copy()
            want[target] = a[source].copy()
            t = gs.from_numpy(a)
            t[target].copy_(t[source])
            np.testing.assert_array_equal(a, want)
    a = rng.normal(size=(70, 70))
    want = a.T.copy()
    t = gs.from_numpy(a)
    t.copy_(t.T)
    np.testing.assert_array_equal(a, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("equal_nan", [False, True])
def test_isclose_is_numpys(rng, dtype, equal_nan):
    special = [0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, np.finfo(dtype).max, np.finfo(dtype).tiny]
    for shape, other in [((7, 33), (7, 33)), ((5, 1, 9), (4, 1)), ((3,), ()), ((0, 4), (4,))]:
        a = rng.standard_normal(shape).astype(dtype)
        b = a.copy() if other == shape else np.asarray(rng.standard_normal(other), dtype)
        b = np.where(rng.random(other) < 0.5, b * dtype(1 + 2e-5), b).astype(dtype)
        for x in (a, b):
            hit = rng.random(x.shape) < 0.2
            x[hit] = rng.choice(special, int(hit.sum()))
        for rtol, atol in ((1e-5, 1e-8), (0.0, 0.0), (1e-3, 0.1)):
            with np.errstate(invalid="ignore", over="ignore"):
                x, y = np.broadcast_arrays(a, b)
                near = np.abs(x - y) <= np.abs(y) * dtype(rtol) + dtype(atol)
                want = (near & np.isfinite(y)) | (x == y)
                if equal_nan:
                    want |= np.isnan(x) & np.isnan(y)
            got = gs.isclose(gs.tensor(a), gs.tensor(b), rtol, atol, equal_nan)
            np.testing.assert_array_equal(got.numpy(), want)
            assert gs.allclose(gs.tensor(a), gs.tensor(b), rtol, atol, equal_nan) == bool(
                want.all()
            )
    turned = gs.tensor(rng.standard_normal((6, 5)).astype(dtype))
    assert gs.isclose(turned.T, turned.T.clone()).numpy().all()
    assert gs.isclose(turned, 3.0, atol=100.0).numpy().all()
    with pytest.raises(TypeError, match="isclose: .*dtype"):
        gs.isclose(turned, gs.tensor(np.ones((6, 5), np.int64)))


def test_randint_gives_numpys_integers():
    """Those of NumPy's Generator on Philox with the seed as key and the count of draws as counter."""
    for seed in (0, 5, 2**64 - 1):
        gs.manual_seed(seed)
        for count, (low, high) in enumerate(
            [
                (0, 9),
                (-5, 2**31),
                (0, 2**32),
                (0, 2**32 + 1),
                (-(2**63), 2**63 - 1),
                (7, 8),
                (3, 3 * 2**30),
            ]
        ):
            key, counter = np.array([seed, 0], np.uint64), np.array([0, 0, 0, count], np.uint64)
            generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
            want = generator.integers(low, high, size=(5, 13), dtype=np.int64)
            np.testing.assert_array_equal(gs.randint(low, high, (5, 13)).numpy(), want)
    gs.manual_seed(3)
    first = gs.randint(0, 10, (4,), dtype=np.int32)
    assert first.dtype == np.int32
    gs.manual_seed(3)
    assert gs.randint(0, 10, (4,)).tolist() == first.tolist()
    with pytest.raises(ValueError, match="randint: high"):
        gs.randint(3, 3, (2,))
