"""Matrix products: exact on small integers, within bounds on random numbers, for every view and shape."""

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F

k = gs._cpu
DTYPES = [np.float32, np.float64]
# around register tiles (rows 4, 6, 8, 14; columns 8, 16, 32, 48, 64) and beyond
EDGES = [1, 2, 3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 29, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70]


@pytest.fixture(autouse=True)
def _restore_threads():
    before = gs.get_num_threads()
    yield
    gs.set_num_threads(before)


def ints(rng, shape, dtype=np.float32):
    return rng.integers(-8, 9, shape).astype(dtype)


LAYOUTS = ["rows", "columns", "steps", "reversed", "reversed columns", "broadcast"]


def make(rng, m, n, dtype, layout):
    """An (m, n) matrix of small integers under the strides of a NumPy view."""
    if layout == "rows":
        return ints(rng, (m, n), dtype)
    if layout == "columns":
        return ints(rng, (n, m), dtype).T
    if layout == "steps":
        return ints(rng, (2 * m, n + 3), dtype)[::2, 1 : n + 1]
    if layout == "reversed":
        return ints(rng, (m, 2 * n), dtype)[::-1, ::-2]
    if layout == "reversed columns":
        return ints(rng, (n, m), dtype)[::-1].T
    return np.broadcast_to(ints(rng, (n,), dtype), (m, n))


def exact(a, b):
    return np.matmul(a.astype(np.float64), b.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_around_tiles(rng, dtype):
    """Sums of small integers have no rounding: every element must be equal."""
    for _ in range(250):
        m, n, depth = (int(x) for x in rng.choice(EDGES, 3))
        a = make(rng, m, depth, dtype, rng.choice(LAYOUTS))
        b = make(rng, depth, n, dtype, rng.choice(LAYOUTS))
        gs.set_num_threads(int(rng.integers(1, 4)))
        np.testing.assert_array_equal(k.matmul(a, b), exact(a, b), err_msg=f"{m} {n} {depth}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size_up_to_70(rng, dtype):
    for m in range(1, 71):
        n, depth = int(rng.integers(1, 71)), int(rng.integers(1, 71))
        for shape in ((m, n, depth), (depth, m, n), (n, depth, m)):
            a, b = ints(rng, (shape[0], shape[2]), dtype), ints(rng, (shape[2], shape[1]), dtype)
            for ta in (False, True):
                for tb in (False, True):
                    x = np.ascontiguousarray(a.T) if ta else a
                    y = np.ascontiguousarray(b.T) if tb else b
                    got = k.matmul(x, y, ta=ta, tb=tb)
                    np.testing.assert_array_equal(got, exact(a, b), err_msg=f"{shape} {ta} {tb}")


@pytest.mark.parametrize("layout_a", LAYOUTS)
@pytest.mark.parametrize("layout_b", LAYOUTS)
def test_views(rng, layout_a, layout_b):
    for m, n, depth in (
        (37, 150, 260),
        (150, 37, 70),
        (300, 80, 33),
        (1, 200, 300),
        (200, 1, 300),
        (2, 3, 600),
    ):
        a, b = make(rng, m, depth, np.float32, layout_a), make(rng, depth, n, np.float32, layout_b)
        np.testing.assert_array_equal(k.matmul(a, b), exact(a, b), err_msg=f"{m} {n} {depth}")


@pytest.mark.parametrize(
    "shape",
    [
        (600, 520, 1100),  # several blocks of columns, rows and depth
        (1030, 130, 513),
        (7, 2100, 1025),
        (2100, 9, 1025),
        (64, 1024, 512),  # strides that are powers of two
        (530, 1100, 2048),  # rows of A that lie pages apart, copied
        (1025, 1300, 600),  # A packed whole, panels of B packed ahead
        (300, 700, 150),  # few steps
        (250, 1600, 900),  # few rows
        (2048, 128, 64),  # B in place, A packed (team)
        (310, 1030, 200),  # units of columns (team)
        (645, 213, 1100),  # narrow last panels
        (700, 2200, 1300),
        (20, 20, 40000),  # slices along k
        (1, 1, 200000),
        (3, 2, 70001),
        (1, 700, 9000),
        (5, 60, 9000),
        (1, 5000, 300),
    ],
)
@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_large_exact_and_same_bits(rng, shape, ta, tb):
    m, n, depth = shape
    a = rng.integers(-3, 4, (depth, m) if ta else (m, depth)).astype(np.float32)
    b = rng.integers(-3, 4, (n, depth) if tb else (depth, n)).astype(np.float32)
    expect = exact(a.T if ta else a, b.T if tb else b)
    np.testing.assert_array_equal(k.matmul(a, b, ta=ta, tb=tb), expect)
    a, b = rng.standard_normal(a.shape, np.float32), rng.standard_normal(b.shape, np.float32)
    results = []
    for threads in (1, 2, 3, 5):
        gs.set_num_threads(threads)
        results.append(k.matmul(a, b, ta=ta, tb=tb))
    for r in results[1:]:
        np.testing.assert_array_equal(r, results[0])


@pytest.mark.parametrize("ta, tb", [(False, False), (False, True), (True, False), (True, True)])
def test_small_products_have_the_bits_of_large_ones(rng, ta, tb):
    """One thread takes the kernel without blocking, several the blocked one: chains in one order."""
    shapes = [(64, 128, 64), (61, 112, 70), (37, 96, 130), (128, 64, 64), (30, 48, 300)]
    for m, n, depth in [
        *shapes,
        *(tuple(int(x) for x in rng.integers(9, 65, 3)) for _ in range(12)),
    ]:
        a = rng.standard_normal((depth, m) if ta else (m, depth)).astype(np.float32)
        b = rng.standard_normal((n, depth) if tb else (depth, n)).astype(np.float32)
        bias = rng.standard_normal(n).astype(np.float32)
        start = rng.standard_normal((m, n)).astype(np.float32)
        bits = []
        for threads in (1, 2, 3):
            gs.set_num_threads(threads)
            c = start.copy()
            k.matmul_out(c, a, b, bias, ta=ta, tb=tb, act=1, accumulate=True)
            bits.append((c.tobytes(), k.matmul(a, b, ta=ta, tb=tb).tobytes()))
        assert bits[0] == bits[1] == bits[2], (m, n, depth)
        if not tb:  # rows of B far apart
            apart = np.zeros((depth, 4096), np.float32)[:, :n]
            apart[...] = b
            gs.set_num_threads(1)
            one = k.matmul(a, apart, ta=ta).tobytes()
            gs.set_num_threads(3)
            assert one == k.matmul(a, apart, ta=ta).tobytes()
        want = (a.T if ta else a).astype(np.float64) @ (b.T if tb else b).astype(np.float64)
        want = np.maximum(want + bias + start, 0)
        np.testing.assert_allclose(c, want, rtol=0, atol=2e-6 * depth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_bound(rng, dtype):
    eps = np.finfo(dtype).eps
    for m, n, depth in (
        (65, 130, 700),
        (200, 200, 2000),
        (1, 300, 5000),
        (300, 1, 5000),
        (3, 40, 9000),
    ):
        for a, b in (
            (rng.standard_normal((m, depth)), rng.standard_normal((depth, n))),
            (rng.random((m, depth)), rng.random((depth, n))),
        ):
            a, b = a.astype(dtype), b.astype(dtype)
            if dtype == np.float32:
                expect, size = exact(a, b), exact(np.abs(a), np.abs(b))
            else:
                wide = np.longdouble
                if m * n * depth > 1e7:
                    continue
                expect = a.astype(wide) @ b.astype(wide)
                size = np.abs(a).astype(wide) @ np.abs(b).astype(wide)
            for x, y in ((a, b), (np.asfortranarray(a), b), (a, np.asfortranarray(b))):
                error = np.abs(k.matmul(x, y) - expect)
                assert (error <= 2 * eps * (8 + depth**0.5) * size).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_epilogue(rng, dtype):
    for m, n, depth in (
        (5, 7, 3),
        (70, 70, 70),
        (33, 200, 700),
        (1, 90, 40),
        (90, 1, 40),
        (3, 5, 0),
        (2, 30, 20000),
        (290, 330, 1100),
    ):
        for tb in (False, True):
            a, b, bias = (
                ints(rng, (m, depth), dtype),
                ints(rng, (n, depth) if tb else (depth, n), dtype),
                ints(rng, (n,), dtype),
            )
            b64 = b.T if tb else b
            for act in (0, 1):
                expect = -2.0 * exact(a, b64) + bias
                got = k.matmul(a, b, bias, tb=tb, act=act, alpha=-2.0)
                np.testing.assert_array_equal(got, np.maximum(expect, 0) if act else expect)
                c = ints(rng, (m, n), dtype)
                expect = expect + c
                k.matmul_out(c, a, b, bias, tb=tb, act=act, alpha=-2.0, accumulate=True)
                np.testing.assert_array_equal(c, np.maximum(expect, 0) if act else expect)
            c = np.full((m, n), np.nan, dtype)
            k.matmul_out(c, a, b, tb=tb)
            np.testing.assert_array_equal(c, exact(a, b64))


@pytest.mark.parametrize(
    ("sa", "sb"),
    [
        ((3, 4, 5), (5, 6)),
        ((4, 5), (3, 5, 6)),
        ((3, 4, 5), (3, 5, 6)),
        ((1, 4, 5), (3, 5, 6)),
        ((2, 1, 4, 5), (3, 5, 6)),
        ((2, 3, 4, 5), (2, 1, 5, 6)),
        ((2, 3, 20, 30), (2, 3, 30, 70)),
        ((7, 1, 5), (5, 6)),
        ((5,), (3, 5, 6)),
        ((3, 4, 5), (5,)),
        ((5,), (5,)),
        ((5,), (5, 6)),
        ((4, 5), (5,)),
        ((0, 4, 5), (5, 6)),
        ((2, 4, 0), (0, 6)),
        ((2, 0, 5), (5, 6)),
        ((2, 4, 5), (2, 5, 0)),
        ((100, 3, 4), (100, 4, 3)),
        ((2, 130, 70), (2, 70, 90)),
        ((3, 2, 1, 2, 2, 4, 5), (2, 5, 6)),
    ],
)
def test_batches(rng, sa, sb, threads):
    a, b = ints(rng, sa), ints(rng, sb)
    got = gs.tensor(a) @ gs.tensor(b)
    expect = exact(a, b)
    assert got.shape == expect.shape
    np.testing.assert_array_equal(got.numpy(), expect)
    if len(sa) > 2:  # batch dimensions of a view
        wide = ints(rng, (2 * sa[0], *sa[1:]))[::-2]
        np.testing.assert_array_equal((gs.tensor(wide) @ gs.tensor(b)).numpy(), exact(wide, b))


def test_empty_sum_gives_bias(rng):
    bias = ints(rng, (6,))
    np.testing.assert_array_equal(
        k.matmul(np.ones((4, 0), np.float32), np.ones((0, 6), np.float32)), np.zeros((4, 6))
    )
    got = k.matmul(np.ones((4, 0), np.float32), np.ones((0, 6), np.float32), bias)
    np.testing.assert_array_equal(got, np.broadcast_to(bias, (4, 6)))
    for m, n in ((1, 6), (4, 1), (1, 1)):
        np.testing.assert_array_equal(
            k.matmul(np.ones((m, 0), np.float32), np.ones((0, n), np.float32)), np.zeros((m, n))
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_propagates(rng, value):
    """0 * inf is nan: zeros may not be skipped."""
    for m, n, depth in ((70, 70, 70), (1, 70, 90), (70, 1, 90), (9, 20, 600)):
        a, b = ints(rng, (m, depth)), ints(rng, (depth, n))
        a[0] = 0
        a[m // 2, depth // 2] = value
        b[depth - 1, n - 1] = value
        for x, y in ((a, b), (np.asfortranarray(a), b), (a, np.asfortranarray(b))):
            with np.errstate(invalid="ignore"):
                expect = exact(a, b)
            np.testing.assert_array_equal(k.matmul(x, y), expect)
            with np.errstate(invalid="ignore"):
                np.testing.assert_array_equal(k.matmul(x, y, act=1), np.maximum(expect, 0))


def poisoned(x, pad=80):
    """x inside a larger buffer whose rest is NaN."""
    whole = np.full(tuple(s + 2 * pad for s in x.shape), np.nan, x.dtype)
    view = whole[tuple(slice(pad, pad + s) for s in x.shape)]
    view[...] = x
    return whole, view


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_neither_read_nor_written(rng, dtype):
    for _ in range(60):
        m, n, depth = (int(x) for x in rng.choice(EDGES, 3))
        a, b, bias, c = (
            ints(rng, (m, depth), dtype),
            ints(rng, (depth, n), dtype),
            ints(rng, (n,), dtype),
            ints(rng, (m, n), dtype),
        )
        for turn_a in (False, True):
            for turn_b in (False, True):
                x = poisoned(a.T)[1].T if turn_a else poisoned(a)[1]
                y = poisoned(b.T)[1].T if turn_b else poisoned(b)[1]
                whole, out = poisoned(c)
                k.matmul_out(out, x, y, poisoned(bias)[1], accumulate=True)
                np.testing.assert_array_equal(out, exact(a, b) + bias + c)
                out[...] = np.nan
                assert np.isnan(whole).all()


@pytest.mark.skipif(not hasattr(__import__("mmap"), "PROT_READ"), reason="needs mmap")
def test_no_read_past_the_last_page(rng):
    """Operands and output end where their last page ends; the page after is not accessible."""
    import ctypes
    import mmap

    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    kept = []

    def at_end(x):
        size = (x.nbytes + page - 1) // page * page
        m = mmap.mmap(-1, size + page)
        kept.append(m)
        start = ctypes.addressof(ctypes.c_char.from_buffer(m))
        assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 0) == 0
        v = np.frombuffer(m, x.dtype, x.size, size - x.nbytes).reshape(x.shape)
        v[...] = x
        return v

    for _ in range(60):
        m, n, depth = (int(x) for x in rng.choice(EDGES, 3))
        a, b, bias = ints(rng, (m, depth)), ints(rng, (depth, n)), ints(rng, (n,))
        for ta in (False, True):
            for tb in (False, True):
                x = at_end(np.ascontiguousarray(a.T) if ta else a)
                y = at_end(np.ascontiguousarray(b.T) if tb else b)
                out = at_end(np.zeros((m, n), np.float32))
                k.matmul_out(out, x, y, at_end(bias), ta=ta, tb=tb)
                np.testing.assert_array_equal(out, exact(a, b) + bias)
                np.testing.assert_array_equal(k.colsum(x), x.astype(np.float64).sum(0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_colsum(rng, dtype):
    for shape in (
        (1, 1),
        (7, 5),
        (300, 65),
        (5000, 10),
        (3, 3000),
        (2, 3, 4, 5),
        (0, 4),
        (4, 0),
        (6,),
        (1000, 1100),
    ):
        x = ints(rng, shape, dtype)
        expect = (
            x.astype(np.float64).reshape(-1, shape[-1]).sum(0) if x.size else np.zeros(shape[-1])
        )
        np.testing.assert_array_equal(k.colsum(x), expect)
        out = ints(rng, (shape[-1],), dtype)
        expect = expect + out
        k.colsum(x, out)
        np.testing.assert_array_equal(out, expect)
    wide = ints(rng, (40, 60, 30), dtype)
    for x in (wide[::2, ::-1, 3:], wide.transpose(2, 1, 0), wide[:, :, ::2]):
        np.testing.assert_array_equal(
            k.colsum(x), x.astype(np.float64).reshape(-1, x.shape[-1]).sum(0)
        )
    x = rng.standard_normal((3001, 77)).astype(dtype)
    results = []
    for threads in (1, 2, 3):
        gs.set_num_threads(threads)
        results.append(k.colsum(x))
        np.testing.assert_array_equal(results[-1], results[0])
    np.testing.assert_allclose(results[0], x.astype(np.float64).sum(0), atol=1e-3)


# ---- ops and gradients


def t64(rng, *shape):
    return gs.tensor(rng.standard_normal(shape), requires_grad=True)


def close_product(got, a, b, plus=0.0, scale=1.0):
    """got = scale * a @ b + plus in float64; terms cancel, so the bound is on their magnitudes."""
    want = scale * (a @ b) + plus
    most = abs(scale) * (np.abs(a) @ np.abs(b)) + np.abs(plus)
    assert got.shape == want.shape
    assert np.all(np.abs(got - want) <= 2 * (a.shape[-1] + 2) * np.finfo(np.float64).eps * most)


@pytest.mark.parametrize(
    ("sa", "sb"),
    [
        ((4, 3), (3, 5)),
        ((3,), (3,)),
        ((3,), (3, 5)),
        ((4, 3), (3,)),
        ((2, 4, 3), (3, 5)),
        ((2, 4, 3), (3,)),
        ((3,), (2, 3, 5)),
        ((4, 3), (2, 3, 5)),
        ((2, 4, 3), (2, 3, 5)),
        ((2, 1, 4, 3), (3, 3, 5)),
        ((1, 4, 3), (6, 3, 2)),
        ((2, 3, 4, 3), (2, 1, 3, 2)),
    ],
)
def test_matmul_gradients(rng, sa, sb):
    assert gs.gradcheck(gs.matmul, (t64(rng, *sa), t64(rng, *sb)))


def test_gradients_skip_what_is_not_needed(rng):
    a, b = t64(rng, 4, 3), t64(rng, 3, 5)
    for needs in ((True, False), (False, True)):
        x, y = a.detach(), b.detach()
        x.requires_grad, y.requires_grad = needs
        out = x @ y
        grads = out.grad_fn.backward(np.ones((4, 5)))
        assert [g is not None for g in grads] == list(needs)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), (2, 1, 4, 3), (1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(rng, shape, bias):
    x, w = t64(rng, *shape), t64(rng, 5, 3)
    b = t64(rng, 5) if bias else None
    out = F.linear(x, w, b)
    close_product(out.detach().numpy(), x.data, w.data.T, b.data if bias else 0.0)
    if bias:
        assert gs.gradcheck(F.linear, (x, w, b))
    else:
        assert gs.gradcheck(F.linear, (x, w))


def test_special_products(rng):
    a, b, c = t64(rng, 4, 3), t64(rng, 3, 5), t64(rng, 4, 5)
    u, v = t64(rng, 3), t64(rng, 3)
    s, r = t64(rng, 2, 4, 3), t64(rng, 2, 3, 5)
    row = t64(rng, 5)
    for fn, x, y in ((gs.mm, a, b), (gs.bmm, s, r), (gs.mv, a, u), (gs.dot, u, v)):
        close_product(fn(x, y).data, x.data, y.data)
    np.testing.assert_allclose(gs.outer(u, row).data, np.outer(u.data, row.data), rtol=1e-12)
    for beta, alpha in ((1.0, 1.0), (0.5, -2.0), (0.0, 3.0), (1.0, 2.0)):
        for x in (c, row):
            got = gs.addmm(x, a, b, beta=beta, alpha=alpha)
            close_product(got.data, a.data, b.data, beta * x.data, alpha)
            assert gs.gradcheck(
                lambda x, a, b, be=beta, al=alpha: gs.addmm(x, a, b, beta=be, alpha=al), (x, a, b)
            )
    for fn, args in (
        (gs.mm, (a, b)),
        (gs.bmm, (s, r)),
        (gs.mv, (a, u)),
        (gs.dot, (u, v)),
        (gs.outer, (u, row)),
    ):
        assert gs.gradcheck(fn, args)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_of_few_rows(rng, dtype):
    """Rows of x and of the weights are summed along k: bias, ReLU and sums that are added to, odd widths."""
    for m in range(1, 10):
        for n in (1, 2, 4, 5, 7, 8, 9, 15, 16, 17, 64, 67, 130):
            for depth in (1, 15, 16, 17, 100):
                x, w, b = (
                    ints(rng, (m, depth), dtype),
                    ints(rng, (n, depth), dtype),
                    ints(rng, n, dtype),
                )
                want = exact(x, w.T) + b
                got = [k.linear(x, w, b, act) for act in (0, 1)]
                assert (got[0] == want).all() and (got[1] == np.maximum(want, 0)).all(), (
                    m,
                    n,
                    depth,
                )
                out = ints(rng, (m, n), dtype)
                more = exact(x, w.T) + out
                k.matmul_out(out, x, w, tb=True, accumulate=True)
                assert (out == more).all(), (m, n, depth)
    x, w = (rng.standard_normal(s).astype(dtype) for s in ((5, 40), (70, 40)))
    gs.set_num_threads(1)
    want = k.linear(x, w)
    for threads in (2, 3):
        gs.set_num_threads(threads)
        assert (k.linear(x, w) == want).all()


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_bilinear(rng, lead):
    x, y, w, b = t64(rng, *lead, 3), t64(rng, *lead, 2), t64(rng, 5, 3, 2), t64(rng, 5)
    expect = np.einsum("...i,oij,...j->...o", x.data, w.data, y.data) + b.data
    np.testing.assert_allclose(F.bilinear(x, y, w, b).data, expect, rtol=1e-10, atol=1e-12)
    assert gs.gradcheck(F.bilinear, (x, y, w, b))


def test_against_torch(rng):
    torch = pytest.importorskip("torch")
    for sa, sb in (
        ((4, 3), (3, 5)),
        ((2, 6, 7), (7, 3)),
        ((2, 1, 4, 3), (5, 3, 2)),
        ((6, 7), (7,)),
        ((7,), (2, 7, 3)),
    ):
        a, b = rng.standard_normal(sa), rng.standard_normal(sb)
        ta, tb = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
        ga, gb = gs.tensor(a, requires_grad=True), gs.tensor(b, requires_grad=True)
        tc, gc = ta @ tb, ga @ gb
        g = rng.standard_normal(tc.shape)
        tc.backward(torch.tensor(g))
        gc.backward(gs.tensor(g))
        np.testing.assert_allclose(gc.detach().numpy(), tc.detach().numpy(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(ga.grad.numpy(), ta.grad.numpy(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(gb.grad.numpy(), tb.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_layers(rng):
    layer = nn.Linear(6, 4)
    assert layer.weight.shape == (4, 6) and layer.bias.shape == (4,)
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = rng.standard_normal((3, 6)).astype(np.float32)
    expect = x @ layer.weight.data.T + layer.bias.data
    np.testing.assert_allclose(layer(gs.tensor(x)).detach().numpy(), expect, rtol=1e-5, atol=1e-6)
    assert nn.Linear(6, 4, bias=False).bias is None
    assert "in_features=6" in repr(layer)
    big = nn.Linear(400, 300)
    for p in (big.weight, big.bias):
        assert np.abs(p.data).max() <= 1 / 20 and np.abs(p.data).max() > 0.04
    he = nn.Linear(400, 300, activation="relu")
    assert abs(he.weight.data.std() - (2 / 400) ** 0.5) < 0.002 and not he.bias.data.any()
    assert nn.Bilinear(3, 2, 5)(gs.ones(4, 3), gs.ones(4, 2)).shape == (4, 5)
    for bad in (0, -1):
        with pytest.raises(ValueError, match="Linear: in_features"):
            nn.Linear(bad, 3)
    with pytest.raises(TypeError, match="Linear: out_features"):
        nn.Linear(3, 2.5)


# ---- bad input


def test_bad_input(rng):
    a = gs.ones(4, 3)
    with pytest.raises(ValueError, match=r"matmul: a has shape \(4, 3\) and b has shape \(4, 3\)"):
        a @ a
    with pytest.raises(ValueError, match="do not broadcast"):
        gs.ones(2, 4, 3) @ gs.ones(3, 3, 5)
    with pytest.raises(TypeError, match="one dtype"):
        a @ gs.ones(3, 2, dtype="float64")
    with pytest.raises(TypeError, match="float32 or float64"):
        gs.ones(4, 3, dtype="int64") @ gs.ones(3, 2, dtype="int64")
    with pytest.raises(ValueError, match="at least 1 dimension"):
        a @ gs.tensor(2.0)
    with pytest.raises(
        ValueError,
        match=r"linear: input has shape \(256, 4096\); its last axis must be 1024 \(weight is \(768, 1024\)\)",
    ):
        F.linear(gs.ones(256, 4096), gs.ones(768, 1024))
    with pytest.raises(ValueError, match=r"linear: bias has shape \(3,\); expected \(2,\)"):
        F.linear(a, gs.ones(2, 3), gs.ones(3))
    with pytest.raises(ValueError, match="linear: weight"):
        F.linear(a, gs.ones(3))
    with pytest.raises(TypeError, match="linear"):
        F.linear(a, gs.ones(2, 3, dtype="float64"))
    with pytest.raises(ValueError, match="mm: mat2"):
        gs.mm(a, gs.ones(3))
    with pytest.raises(ValueError, match="batch sizes"):
        gs.bmm(gs.ones(2, 4, 3), gs.ones(3, 3, 5))
    with pytest.raises(ValueError, match="addmm: input"):
        gs.addmm(gs.ones(3), a, gs.ones(3, 2))
    with pytest.raises(ValueError, match="bilinear"):
        F.bilinear(a, a, gs.ones(2, 3, 4))


def test_bad_output(rng):
    a, b = ints(rng, (4, 3)), ints(rng, (3, 5))
    out = np.zeros((4, 5), np.float32)
    with pytest.raises(ValueError, match="out has shape"):
        k.matmul_out(np.zeros((4, 6), np.float32), a, b)
    with pytest.raises(TypeError, match="out"):
        k.matmul_out(np.zeros((4, 5)), a, b)
    with pytest.raises(ValueError, match="last axis of out"):
        k.matmul_out(np.zeros((5, 4), np.float32).T, a, b)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        k.matmul_out(out, a, b)
    assert not out.any()
    square = ints(rng, (4, 4))
    before = square.copy()
    with pytest.raises(ValueError, match="shares memory"):
        k.matmul_out(square, square, square)
    np.testing.assert_array_equal(square, before)


@pytest.mark.parametrize("shape", [(32, 64, 32), (300, 200, 260), (4, 64, 64), (1, 512, 64)])
def test_subnormal_numbers_count_as_zero(rng, shape):
    """Read or made, on every way through the kernels; what is not a product keeps them."""
    m, n, depth = shape
    tiny = np.finfo(np.float32).smallest_normal
    for ta, tb in [(False, False), (False, True), (True, False), (True, True)]:
        a = np.full((depth, m) if ta else (m, depth), tiny / 8, np.float32)
        b = rng.uniform(0.5, 1, (n, depth) if tb else (depth, n)).astype(np.float32)
        for threads in (1, 2, 3):
            gs.set_num_threads(threads)
            assert not k.matmul(a, b, ta=ta, tb=tb).any()
            assert not k.matmul(b, a, ta=not tb, tb=not ta).any()
            made = k.matmul(np.full_like(a, tiny), b * np.float32(1e-6), ta=ta, tb=tb)
            assert not made[made < tiny].any()
    kept = k.mul(np.full(100, tiny, np.float32), np.full(100, 0.25, np.float32))
    assert np.all(kept == tiny / 4)
