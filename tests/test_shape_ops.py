"""Shape, joining and indexing ops against NumPy: values, views, gradients, bad input."""

import numpy as np
import pytest

import gradsmith as gs

X = np.arange(24.0, dtype=np.float64).reshape(2, 3, 4)

# name: (op on a Tensor, the same on an array, whether it must be a view)
OPS = {
    "reshape": (lambda x: x.reshape(4, -1), lambda x: x.reshape(4, -1), True),
    "view": (lambda x: x.view(6, 4), lambda x: x.reshape(6, 4), True),
    "flatten": (lambda x: x.flatten(), lambda x: x.reshape(-1), True),
    "flatten1": (lambda x: x.flatten(1), lambda x: x.reshape(2, 12), True),
    "ravel": (lambda x: x.ravel(), lambda x: x.ravel(), True),
    "unflatten": (lambda x: x.unflatten(2, (2, -1)), lambda x: x.reshape(2, 3, 2, 2), True),
    "transpose": (lambda x: x.transpose(0, -1), lambda x: x.swapaxes(0, 2), True),
    "permute": (lambda x: x.permute(2, 0, 1), lambda x: x.transpose(2, 0, 1), True),
    "T": (lambda x: x.T, lambda x: x.T, True),
    "mT": (lambda x: x.mT, lambda x: x.swapaxes(1, 2), True),
    "movedim": (lambda x: gs.movedim(x, (0, 1), (-1, 0)), lambda x: np.moveaxis(x, (0, 1), (-1, 0)), True),
    "unsqueeze": (lambda x: x.unsqueeze(-2), lambda x: x[:, :, None], True),
    "squeeze": (lambda x: x[:1].squeeze(0), lambda x: x[0], True),
    "expand": (lambda x: x[:, :1].expand(-1, 5, 4), lambda x: np.broadcast_to(x[:, :1], (2, 5, 4)), True),
    "expand_new": (lambda x: x.expand(2, 2, 3, 4), lambda x: np.broadcast_to(x, (2, 2, 3, 4)), True),
    "flip": (lambda x: x.flip(0, 2), lambda x: x[::-1, :, ::-1], True),
    "diagonal": (lambda x: x.diagonal(1, 1, 2), lambda x: np.diagonal(x, 1, 1, 2), True),
    "select": (lambda x: x.select(1, -1), lambda x: x[:, -1], True),
    "narrow": (lambda x: x.narrow(2, 1, 2), lambda x: x[:, :, 1:3], True),
    "index": (lambda x: x[1, ..., 2], lambda x: x[1, ..., 2], True),
    "element": (lambda x: x[1, 2, 3], lambda x: x[1, 2, 3], True),
    "slices": (lambda x: x[:, ::-2, None, 1:], lambda x: x[:, ::-2, None, 1:], True),
    "all": (lambda x: x[...], lambda x: x, True),
    "split": (lambda x: x.split(2, 2)[1], lambda x: x[:, :, 2:], True),
    "sections": (lambda x: x.split((1, 2), 1)[1], lambda x: x[:, 1:], True),
    "chunk": (lambda x: x.chunk(2, 1)[0], lambda x: x[:, :2], True),
    "unbind": (lambda x: x.unbind(1)[2], lambda x: x[:, 2], True),
    "cat": (lambda x: gs.cat([x, x * 2, x[:, :1]], 1), lambda x: np.concatenate([x, x * 2, x[:, :1]], 1), False),
    "stack": (lambda x: gs.stack([x, x * 2], -1), lambda x: np.stack([x, x * 2], -1), False),
    "tile": (lambda x: gs.tile(x, (2, 1, 3)), lambda x: np.tile(x, (2, 1, 3)), False),
    "repeat": (lambda x: x.repeat(2, 1, 1, 3), lambda x: np.tile(x, (2, 1, 1, 3)), False),
    "interleave": (lambda x: x.repeat_interleave(3, 1), lambda x: np.repeat(x, 3, 1), False),
    "roll": (lambda x: x.roll((1, -5), (0, 2)), lambda x: np.roll(x, (1, -5), (0, 2)), False),
    "roll_flat": (lambda x: x.roll(7), lambda x: np.roll(x, 7), False),
    "pad": (lambda x: gs.pad(x, (1, 2, 0, 3), value=5.0), lambda x: np.pad(x, ((0, 0), (0, 3), (1, 2)), constant_values=5.0), False),
    "crop": (lambda x: gs.pad(x, (-1, 2, 1, -1)), lambda x: np.pad(x[:, :2, 1:], ((0, 0), (1, 0), (0, 2))), False),
    "reflect": (lambda x: gs.pad(x, (3, 2, 1, 2), "reflect"), lambda x: np.pad(x, ((0, 0), (1, 2), (3, 2)), "reflect"), False),
    "replicate": (lambda x: gs.pad(x, (3, 2), "replicate"), lambda x: np.pad(x, ((0, 0), (0, 0), (3, 2)), "edge"), False),
    "circular": (lambda x: gs.pad(x, (3, 2), "circular"), lambda x: np.pad(x, ((0, 0), (0, 0), (3, 2)), "wrap"), False),
    "index_select": (lambda x: x.index_select(1, gs.tensor([2, 0, 2, -1])), lambda x: x[:, [2, 0, 2, -1]], False),
    "take": (lambda x: x[:, [2, 0, 2, -1]], lambda x: x[:, [2, 0, 2, -1]], False),
    "take2": (lambda x: x[[1, 0, 1], [2, 2, 2]], lambda x: x[[1, 0, 1], [2, 2, 2]], False),
    "take_nd": (lambda x: x[gs.tensor([[1, 0], [1, 1]])], lambda x: x[np.array([[1, 0], [1, 1]])], False),
    "take_last": (lambda x: x[:, :, gs.tensor([3, 3, 0])], lambda x: x[:, :, [3, 3, 0]], False),
    "take_mixed": (lambda x: x[[0, 1], 1:, [2, 2]], lambda x: x[[0, 1], 1:, [2, 2]], False),
    "take_none": (lambda x: x[None, [1, 1]], lambda x: x[None, [1, 1]], False),
    "take_int": (lambda x: x[1, [2, 0]], lambda x: x[1, [2, 0]], False),
    "mask": (lambda x: x[x > 7.5], lambda x: x[x > 7.5], False),
    "mask_axis": (lambda x: x[:, gs.tensor([True, False, True])], lambda x: x[:, [True, False, True]], False),
    "masked_select": (lambda x: x.masked_select(x > 7.5), lambda x: x[x > 7.5], False),
    "gather": (lambda x: x.gather(2, gs.tensor([[[3, 0], [1, 1]]])), lambda x: np.take_along_axis(x[:1, :2], np.array([[[3, 0], [1, 1]]]), 2), False),
    "take_along": (lambda x: gs.take_along_dim(x, gs.tensor([[[0], [2], [2]]]), 2), lambda x: np.take_along_axis(x, np.array([[[0], [2], [2]]]), 2), False),
    "tril": (lambda x: x.tril(1), lambda x: np.tril(x, 1), False),
    "triu": (lambda x: x.triu(-1), lambda x: np.triu(x, -1), False),
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_values(name):
    ours, reference, view = OPS[name]
    for dtype in ("float32", "float64", "int64", "int32", "uint8"):
        if dtype == "uint8" and name in ("cat", "stack"):
            continue
        x = X.astype(dtype)
        if x.dtype.kind in "iu" and name in ("mask", "masked_select"):
            continue  # an integer is not compared with 7.5
        t = gs.tensor(x)
        got, want = ours(t), reference(x)
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_array_equal(got.numpy(), want)
        assert np.may_share_memory(got.data, t.data) == view
        odd = gs.Tensor(np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0))
        if name != "view":
            np.testing.assert_array_equal(ours(odd).numpy(), want)


@pytest.mark.parametrize("name", OPS)
def test_gradients(name):
    x = gs.tensor(X, requires_grad=True)
    assert gs.gradcheck(OPS[name][0], x)
    x = gs.tensor(X, requires_grad=True)
    assert gs.gradcheck(lambda x: OPS[name][0](x * x) * 2.0, x)


def test_scatter_ops(rng):
    index = rng.integers(0, 5, (7, 3))
    src = rng.normal(size=(7, 3))
    base = rng.normal(size=(5, 4))
    want = base.copy()
    for i in range(7):
        for j in range(3):
            want[index[i, j], j] += src[i, j]
    got = gs.scatter_add(gs.tensor(base), 0, gs.tensor(index), gs.tensor(src))
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-13, atol=1e-14)
    b, s = gs.tensor(base, requires_grad=True), gs.tensor(src, requires_grad=True)
    assert gs.gradcheck(lambda b, s: gs.scatter_add(b, 0, gs.tensor(index), s), [b, s])
    i = gs.tensor([4, 0, 4])
    rows = gs.tensor(rng.normal(size=(3, 4)), requires_grad=True)
    want = base.copy()
    np.add.at(want, [4, 0, 4], 0.5 * rows.detach().numpy())
    np.testing.assert_allclose(
        gs.index_add(b, 0, i, rows, alpha=0.5).detach().numpy(), want, rtol=1e-13, atol=1e-14
    )
    assert gs.gradcheck(lambda b, r: gs.index_add(b, 0, i, r, alpha=0.5), [b, rows])
    assert gs.gradcheck(lambda b: gs.scatter(b, 1, gs.tensor([[1], [3]]), 2.0), b)


def test_scattered_sums_do_not_depend_on_threads(rng):
    x = rng.normal(size=(2000, 300)).astype(np.float32)
    index = rng.integers(0, 50, 2000)
    before = gs.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            gs.set_num_threads(n)
            t = gs.zeros(50, 300, requires_grad=True)
            (t[index] * gs.tensor(x)).sum().backward()
            results.append(t.grad.numpy())
    finally:
        gs.set_num_threads(before)
    for r in results[1:]:
        np.testing.assert_array_equal(r, results[0])
    want = np.zeros((50, 300))
    np.add.at(want, index, x.astype("f8"))
    np.testing.assert_allclose(results[0], want, rtol=1e-4, atol=1e-4)


def test_large_copies_of_views(rng):
    """Transposes and strided copies, which the copy kernel tiles."""
    for dtype in ("float32", "float64", "uint8"):
        x = rng.integers(0, 200, (70, 33, 130)).astype(dtype)
        for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
            np.testing.assert_array_equal(gs._cpu.copy(x.transpose(order)), x.transpose(order))
            y = x.transpose(order)[::-1, 1:, ::2]
            np.testing.assert_array_equal(gs._cpu.copy(y), y)
        np.testing.assert_array_equal(gs._cpu.cast(x.T, "int64"), x.T.astype(np.int64))


def test_one_hot():
    i = np.array([[0, 2], [1, 1]])
    np.testing.assert_array_equal(gs.one_hot(gs.tensor(i), 4).numpy(), np.eye(4, dtype=np.int64)[i])
    assert gs.one_hot(gs.tensor(i)).shape == (2, 2, 3)
    with pytest.raises(IndexError, match="one_hot"):
        gs.one_hot(gs.tensor(i), 2)
    with pytest.raises(IndexError, match="one_hot"):
        gs.one_hot(gs.tensor([-1]), 2)


# ---- index assignment
def test_setitem_values(rng):
    for index in (
        0,
        slice(1, None),
        (..., 2),
        (slice(None), None, 1),
        ([0, 1, 1], [2, 0, 1]),
        (slice(None), [1, 2]),
    ):
        for value in (5.0, 7, "array"):
            x = X.copy()
            v = rng.normal(size=x[index].shape) if value == "array" else value
            want = x.copy()
            want[index] = v
            t = gs.Tensor(x)
            t[index] = gs.tensor(v) if value == "array" else v
            np.testing.assert_array_equal(x, want)
    x = gs.tensor(X)
    x[x > 10] = 0.0
    assert x.amax().item() == 10
    x = gs.tensor(np.arange(6.0))
    x[1:] = x[:-1]  # overlapping parts of one memory
    assert x.tolist() == [0, 0, 1, 2, 3, 4]


def test_setitem_gradients():
    def f(x, v):
        y = x * 2.0
        y[:, 1] = v
        y[0, 0] = 3.0
        y[[1, 1], [2, 2], [0, 3]] = v[0, :2] * v[1, 2]
        return y * y

    x = gs.tensor(X / 10, requires_grad=True)
    v = gs.tensor(X[:, 0] / 7 + 1, requires_grad=True)
    assert gs.gradcheck(f, [x, v])


def test_views_and_in_place():
    x = gs.ones(4, requires_grad=True)
    y = x * 2
    v = y[1:]
    with pytest.raises(RuntimeError, match="view"):
        v += 1
    z = y.reshape(2, 2)
    y += 1
    with pytest.raises(RuntimeError, match="view"):
        z.sum().backward()
    base = gs.ones(4)
    base[1:].add_(1)
    assert base.tolist() == [1, 2, 2, 2]


def test_same_as_torch(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(3, 4, 6)).astype(np.float32)
    for f in (
        lambda x: x.transpose(0, 2)[1:, ::2] * 2,
        lambda x: x.permute(1, 2, 0).reshape(4, -1) ** 2,
        lambda x: x.split([1, 3], 1)[1][..., 2:4] * x.chunk(3, 2)[0][:, 1:],
        lambda x: x.unsqueeze(1).expand(3, 2, 4, 6) * x[:, None],
        lambda x: x.repeat(1, 2, 1) + x.roll(2, 1).repeat(1, 2, 1),
        lambda x: x[[0, 2, 0]].flip(0) * x,
        lambda x: x.tril() + x.triu(2),
        lambda x: x[:, 1, None].squeeze(1) + x.narrow(1, 2, 1).squeeze(),
        lambda x: x.flatten(0, 1).T.unflatten(1, (3, 4)) + x.movedim(2, 0),
    ):
        g, t = gs.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        yg, yt = f(g), f(t)
        np.testing.assert_allclose(yg.detach().numpy(), yt.detach().numpy(), rtol=1e-6)
        (yg * yg).sum().backward()
        (yt * yt).sum().backward()
        np.testing.assert_allclose(g.grad.numpy(), t.grad.numpy(), rtol=1e-5, atol=1e-5)
    for mode in ("reflect", "replicate", "circular"):
        got = gs.pad(gs.tensor(x), (2, 1), mode).numpy()
        np.testing.assert_array_equal(
            got, torch.nn.functional.pad(torch.tensor(x), (2, 1), mode).numpy()
        )


def test_errors():
    x = gs.ones(2, 3)
    for match, kind, f in (
        (r"reshape.*\(2, 3\).*\(4, 2\)", ValueError, lambda: x.reshape(4, 2)),
        ("view", ValueError, lambda: x.T.view(6)),
        ("permute", ValueError, lambda: x.permute(0, 0)),
        ("transpose", IndexError, lambda: x.transpose(0, 2)),
        (r"expand.*\(2, 3\)", ValueError, lambda: x.expand(4, 3)),
        ("unflatten", ValueError, lambda: x.unflatten(1, (2, 2))),
        ("squeeze", IndexError, lambda: x.squeeze(2)),
        ("cat", ValueError, lambda: gs.cat([])),
        (r"cat.*\(2, 3\).*\(2,\)", ValueError, lambda: gs.cat([x, gs.ones(2)])),
        (r"cat.*differ", ValueError, lambda: gs.cat([x, gs.ones(2, 4)], 0)),
        ("cat", TypeError, lambda: gs.cat([x, gs.ones(2, 3, dtype="float64")])),
        ("cat", TypeError, lambda: gs.cat(x)),
        ("stack", ValueError, lambda: gs.stack([x, gs.ones(3, 2)])),
        ("split", ValueError, lambda: x.split([1, 1], 1)),
        ("split", ValueError, lambda: x.split(0)),
        ("chunk", ValueError, lambda: x.chunk(0)),
        ("narrow", IndexError, lambda: x.narrow(1, 2, 2)),
        ("index", IndexError, lambda: x[2]),
        ("index", IndexError, lambda: x[0, 0, 0]),
        ("index", IndexError, lambda: x[[0, 2]]),
        ("index", IndexError, lambda: x[gs.ones(2)]),
        ("mask", IndexError, lambda: x[gs.tensor([True, False, True])]),
        ("index_select", IndexError, lambda: x.index_select(0, gs.tensor([2]))),
        ("index_select", TypeError, lambda: x.index_select(0, gs.ones(1))),
        ("gather", ValueError, lambda: x.gather(0, gs.tensor([0]))),
        ("gather", IndexError, lambda: x.gather(0, gs.tensor([[5]]))),
        ("scatter_add", ValueError, lambda: x.scatter_add(0, gs.tensor([[1, 1]]), gs.ones(1, 1))),
        ("pad", ValueError, lambda: gs.pad(x, (1,))),
        ("pad", ValueError, lambda: gs.pad(x, (3, 0), "reflect")),
        ("pad", ValueError, lambda: gs.pad(x, (1, 1), "mirror")),
        ("pad", ValueError, lambda: gs.pad(x, (-2, -2))),
        ("tril", ValueError, lambda: gs.ones(3).tril()),
        ("roll", ValueError, lambda: x.roll((1, 2), 0)),
        ("repeat", ValueError, lambda: x.repeat(2)),
        ("flatten", ValueError, lambda: x.flatten(1, 0)),
    ):
        with pytest.raises(kind, match=match):
            f()
    with pytest.raises(ValueError, match="expand"):
        x[0] = gs.ones(2)
    with pytest.raises(ValueError, match="does not broadcast"):
        x[[0, 1]] = gs.ones(4)


def test_scatter_gradients(rng):
    """Against a loop; indices that meet: the gradient goes to the one whose value is there."""
    for shape, taken, dim in (((4, 5), (3, 5), 0), ((4, 5), (2, 7), 1), ((3, 4, 2), (2, 9, 1), -2)):
        d = dim % len(shape)
        index = rng.integers(0, shape[d], taken)
        bigger = tuple(n + 1 for n in taken)
        x = gs.tensor(rng.normal(size=shape), requires_grad=True)
        s = gs.tensor(rng.normal(size=bigger), requires_grad=True)
        y = gs.scatter(x, dim, gs.tensor(index), s)
        g = rng.normal(size=shape)
        y.backward(gs.tensor(g))
        dx, ds = g.copy(), np.zeros(bigger)
        for at in np.ndindex(*taken):
            to = (*at[:d], index[at], *at[d + 1 :])
            dx[to] = 0
            if y.detach().numpy()[to] == s.detach().numpy()[at]:
                ds[at] = g[to]
        np.testing.assert_array_equal(x.grad.numpy(), dx)
        np.testing.assert_array_equal(s.grad.numpy(), ds)
        assert (ds != 0).sum() == (dx == 0).sum()
    x = gs.tensor(rng.normal(size=(4, 3)), requires_grad=True)
    s = gs.tensor(rng.normal(size=(2, 3)), requires_grad=True)
    index = gs.tensor(np.stack([rng.permutation(4)[:2] for _ in range(3)], 1))
    assert gs.gradcheck(lambda x, s: gs.scatter(x, 0, index, s), [x, s])
    frozen = x.detach()
    gs.scatter(frozen, 0, index, s).sum().backward()
    assert (s.grad.numpy() == 1).all()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 8), (3, 4, 5), (2, 0)])
def test_masks_and_index_arrays_as_numpy(shape):
    r = np.random.default_rng(len(shape))
    a = r.standard_normal(shape).astype(np.float32)
    for share in (0.0, 0.3, 1.0):
        mask = np.asarray(r.random(shape) < share)
        for turned in (False, True):
            x = gs.tensor(a, requires_grad=True)
            seen, m, want = (x.T, mask.T, a.T[mask.T]) if turned else (x, mask, a[mask])
            got = seen[gs.tensor(m)]
            np.testing.assert_array_equal(got.data, want)
            got.sum().backward()
            np.testing.assert_array_equal(x.grad.data, mask.astype(np.float32))
    if a.ndim < 2 or not a.size:
        return
    for index_shape in ((), (4,), (2, 3), (0,)):
        for n in range(2, a.ndim + 1):
            index = tuple(r.integers(-s, s, index_shape) for s in shape[:n])
            x = gs.tensor(a, requires_grad=True)
            got = x[tuple(gs.tensor(np.asarray(i)) for i in index)]
            np.testing.assert_array_equal(got.data, a[index])
            got.sum().backward()
            want = np.zeros_like(a)
            np.add.at(want, index, 1)
            np.testing.assert_array_equal(x.grad.data, want)


def test_index_arrays_out_of_range_and_of_two_shapes():
    x = gs.tensor(np.arange(12.0).reshape(3, 4))
    with pytest.raises(IndexError, match="index 3 is out of range for an axis of size 3"):
        x[gs.tensor([0, 3]), gs.tensor([0, 1])]
    with pytest.raises(IndexError, match="index -5 is out of range for an axis of size 4"):
        x[gs.tensor([0, 1]), gs.tensor([0, -5])]
    with pytest.raises(IndexError, match="do not broadcast"):
        x[gs.tensor([0, 1]), gs.tensor([0, 1, 2])]
    np.testing.assert_array_equal(
        x[gs.tensor([[0], [2]]), gs.tensor([1, 3])].data, x.data[[[0], [2]], [1, 3]]
    )


def test_index_arrays_of_no_axes_take_their_axis_away():
    x = np.arange(12.0).reshape(3, 4)
    for index in (
        np.array(-2),
        (slice(None), np.array(-2)),
        (np.array(1), slice(None)),
        (-1, np.array(2)),
        (np.array(1), np.array(3)),
        (None, np.array(1), slice(1, 3)),
    ):
        parts = index if isinstance(index, tuple) else (index,)
        tensors = tuple(gs.tensor(p) if isinstance(p, np.ndarray) else p for p in parts)
        for i in (index, tensors):
            t = gs.tensor(x, requires_grad=True)
            got = t[i]
            assert got.shape == x[index].shape
            np.testing.assert_array_equal(got.detach().numpy(), x[index])
            got.sum().backward()
            want = np.zeros((3, 4))
            want[index] = 1
            np.testing.assert_array_equal(t.grad.numpy(), want)


def test_gather_takes_negative_indices_along_every_axis():
    r = np.random.default_rng(7)
    for shape in ((3, 70), (70, 3), (2, 9, 17)):
        for dtype in (np.float32, np.float64, np.int32):
            a = (r.standard_normal(shape) * 100).astype(dtype)
            for dim, size in enumerate(shape):
                index = r.integers(-size, size, shape)
                got = gs.gather(gs.tensor(a), dim, gs.tensor(index)).data
                np.testing.assert_array_equal(got, np.take_along_axis(a, index % size, dim))
                with pytest.raises(IndexError, match="out of range"):
                    gs.gather(gs.tensor(a), dim, gs.tensor(np.full(shape, size)))


def test_arguments_that_pytorch_has(rng):
    """repeats of its own for each slice, an index into the flattened input, scatter's value, dtype, decimals, size()."""
    torch = pytest.importorskip("torch")
    a = rng.uniform(0.5, 2.0, (2, 3, 4))  # of one sign: sums in float32 that cancel lose digits
    x, t = gs.tensor(a, requires_grad=True), torch.tensor(a, requires_grad=True)
    counts, flat = [2, 0, 1], np.array([[3, 23], [0, 3]])
    where = rng.integers(0, 3, (2, 2, 4))
    pairs = [
        (gs.repeat_interleave(x, gs.tensor(counts), 1), torch.repeat_interleave(t, torch.tensor(counts), 1)),
        (gs.repeat_interleave(x, gs.tensor([2]), 0), torch.repeat_interleave(t, torch.tensor([2]), 0)),
        (gs.take_along_dim(x, gs.tensor(flat)), torch.take_along_dim(t, torch.tensor(flat))),
        (x.scatter(1, gs.tensor(where), value=2.5), t.scatter(1, torch.tensor(where), value=2.5)),
        (x.round(decimals=2), t.round(decimals=2)),
        (gs.round(x * 100, decimals=-1), torch.round(t * 100, decimals=-1)),
        (x.sum(1, dtype="float32"), t.sum(1, dtype=torch.float32)),
        (x.cumsum(1, dtype="float32"), t.cumsum(1, dtype=torch.float32)),
        (x.prod(dtype=np.float32), t.prod(dtype=torch.float32)),
    ]  # fmt: skip
    for got, want in pairs:
        assert got.shape == tuple(want.shape) and str(want.dtype).endswith(str(got.dtype))
        np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=1e-6)
        x.grad = t.grad = None
        (got * got).sum().backward()
        (want * want).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), rtol=1e-5)
    ints = gs.tensor([1, 2, 4])
    assert (
        abs(ints.mean(dtype="float64").item() - 7 / 3) < 1e-15
        and ints.sum(dtype="int32").dtype == "int32"
    )
    assert (x.size, x.size(), x.size(-1)) == (24, (2, 3, 4), 4)
    assert x.view(x.size(0), -1).shape == (2, 12)
    with pytest.raises(IndexError, match=r"size: axis 3 of a tensor of shape \(2, 3, 4\)"):
        x.size(3)
    for bad in ([1, 2], [1, -1, 0]):
        with pytest.raises(ValueError, match="repeat_interleave: repeats must be 3 numbers"):
            gs.repeat_interleave(x, gs.tensor(bad), 1)
    with pytest.raises(TypeError, match="scatter: give src .* or value"):
        x.scatter(1, gs.tensor(where))


def test_creation_as_pytorch():
    for value, dtype in (
        (2, "int64"),
        (2.0, "float32"),
        (True, "bool"),
        (np.float64(1), "float32"),
    ):
        assert gs.full((2,), value).dtype == dtype
    assert gs.full((2,), 2, dtype="float64").dtype == "float64"
    assert gs.randint(3, (2, 5)).shape == (2, 5) and gs.randint(3, 4, (2,)).tolist() == [3, 3]
    x = gs.ones(2, 3, dtype="float64")
    for made in (
        gs.zeros_like(x, requires_grad=True), gs.rand_like(x, requires_grad=True), gs.eye(2, requires_grad=True),
        gs.full_like(x, 1, device="cpu", requires_grad=True), gs.linspace(0, 1, 3, requires_grad=True),
        gs.arange(3.0, device="cpu", requires_grad=True), gs.randn(2, device="cpu", requires_grad=True),
    ):  # fmt: skip
        assert made.requires_grad and made.is_leaf
    for make in (lambda: gs.arange(3, device="cuda"), lambda: gs.randn(3, device="cuda")):
        with pytest.raises(ValueError, match="device 'cuda' is not available"):
            make()


@pytest.mark.parametrize(
    "shape, counts",
    [
        ((3,), (4,)), ((2, 3), (1, 5)), ((2, 3), (3, 1)), ((2, 3), (2, 2)), ((2, 3), (1, 1)),
        ((2, 1, 3), (1, 4, 1)), ((2, 3), (2,)), ((3,), (2, 2)), ((2, 3), (0, 1)), ((0, 3), (2, 1)),
    ],
)  # fmt: skip
def test_tile_is_numpys(rng, shape, counts):
    a = rng.standard_normal(shape)
    for source in (a, np.asfortranarray(a)):
        x = gs.tensor(source, requires_grad=True)
        out = gs.tile(x, counts)
        want = np.tile(a, counts)
        np.testing.assert_array_equal(out.detach().numpy(), want)
        (out * gs.tensor(np.arange(1.0, want.size + 1).reshape(want.shape))).sum().backward()
        expect = np.zeros(a.size)
        places = np.tile(np.arange(a.size).reshape(shape), counts).ravel()
        np.add.at(expect, places, np.arange(1.0, want.size + 1))
        np.testing.assert_allclose(x.grad.numpy(), expect.reshape(shape))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_pads_of_one_kind_do_not_disturb_each_other(rng, mode):
    """Where elements come from is kept between calls."""
    names = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    for _ in range(3):
        for widths in ((1, 2), (2, 1), (0, 3), (1, 0, 2, 2)):
            a = rng.standard_normal((4, 5))
            full = [(0, 0), (0, 0)]
            for i in range(len(widths) // 2):
                full[1 - i] = widths[2 * i : 2 * i + 2]
            x = gs.tensor(a, requires_grad=True)
            out = gs.pad(x, widths, mode=mode)
            np.testing.assert_array_equal(out.detach().numpy(), np.pad(a, full, names[mode]))
            out.sum().backward()
            assert x.grad.numpy().sum() == out.size


def test_shapes_without_axes_or_elements():
    x = gs.tensor(2.0, requires_grad=True)
    y = gs.flip(x, 0)
    y.backward()
    assert y.shape == () and x.grad.item() == 1.0
    with pytest.raises(ValueError, match="flip: dims .* twice"):
        gs.flip(gs.zeros(3, 2), 0, -2)
    with pytest.raises(IndexError, match="transpose: dim 1 is out of range"):
        gs.transpose(x, 0, 1)
    assert [t.shape for t in gs.chunk(gs.zeros(2, 0), 3, 1)] == [(2, 0)] * 3


def test_t_is_for_matrices():
    x = gs.randn(2, 3, requires_grad=True)
    assert x.t().shape == (3, 2) and gs.ones(4).t().shape == (4,) and gs.tensor(1.0).t().shape == ()
    (x.t() * gs.arange(6.0).reshape(3, 2)).sum().backward()
    assert x.grad.tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    with pytest.raises(ValueError, match=r"t: takes a tensor of at most 2 axes.*\(2, 3, 4\)"):
        gs.ones(2, 3, 4).t()
