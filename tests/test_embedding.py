"""Embedding against NumPy indexing, np.add.at in float64, central differences and PyTorch."""

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F

RNG = np.random.default_rng(77)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@pytest.mark.parametrize(
    "rows,cols", [(1, 1), (5, 3), (7, 16), (100, 17), (3, 65), (1000, 130), (4, 1000)]
)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (6,), (3, 50), (2, 4, 9)])
def test_forward_and_gradient(dtype, index_dtype, rows, cols, shape):
    w = RNG.standard_normal((rows, cols)).astype(dtype)
    index = RNG.integers(0, rows, shape).astype(index_dtype)
    g = RNG.standard_normal((*shape, cols)).astype(dtype)
    W = gs.tensor(w, requires_grad=True)
    y = F.embedding(gs.tensor(index), W)
    assert y.dtype == dtype and np.array_equal(y.detach().numpy(), w[index])
    y.backward(gs.tensor(g))
    ref, size = np.zeros((rows, cols)), np.zeros((rows, cols))
    np.add.at(ref, index, g.astype(np.float64))
    np.add.at(size, index, np.abs(g))
    bound = np.finfo(dtype).eps * (4 + np.log2(index.size + 1)) * size
    assert (np.abs(W.grad.numpy() - ref) <= bound).all()


def test_frequent_row_is_summed_accurately():
    n = 50000
    g = RNG.standard_normal((n, 3)).astype(np.float32) + np.float32(1)
    W = gs.tensor(np.zeros((2, 3), np.float32), requires_grad=True)
    F.embedding(gs.tensor(np.ones(n, np.int64)), W).backward(gs.tensor(g))
    ref = g.sum(0, dtype=np.float64)
    assert np.allclose(W.grad.numpy()[1], ref, rtol=1e-5)
    assert not W.grad.numpy()[0].any()


def test_same_bits_on_any_number_of_threads():
    index = (RNG.integers(0, 700, 20000) ** 2 // 700).astype(np.int64)
    g = RNG.standard_normal((20000, 100)).astype(np.float32)
    w = RNG.standard_normal((700, 100)).astype(np.float32)
    before, results = gs.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            gs.set_num_threads(n)
            W = gs.tensor(w, requires_grad=True)
            y = F.embedding(gs.tensor(index), W)
            y.backward(gs.tensor(g))
            results.append((y.detach().numpy(), W.grad.numpy()))
    finally:
        gs.set_num_threads(before)
    for y, d in results[1:]:
        assert np.array_equal(y, results[0][0]) and np.array_equal(d, results[0][1])


def test_padding():
    for pad in (2, -1):
        layer = nn.Embedding(3, 4, padding_idx=pad)
        assert layer.padding_idx == 2
        assert not layer.weight.data[2].any() and layer.weight.data[:2].all()
        layer(gs.tensor([2, 1, 2])).backward(gs.tensor(np.ones((3, 4), np.float32)))
        assert np.array_equal(layer.weight.grad.numpy(), [[0] * 4, [1] * 4, [0] * 4])


def test_gradcheck_and_strides():
    index = np.array([[0, 3, 1], [3, 3, 2]])
    w = gs.tensor(RNG.standard_normal((4, 5)), requires_grad=True)
    assert gs.gradcheck(lambda t: F.embedding(gs.tensor(index), t), (w,))
    assert gs.gradcheck(lambda t: F.embedding(gs.tensor(index[:, ::-1]), t), (w,))
    table = RNG.standard_normal((6, 10))[:, ::2]
    y = F.embedding(gs.tensor(index.T), gs.tensor(table))
    assert np.array_equal(y.numpy(), table[index.T])
    assert np.array_equal(F.embedding(index, gs.tensor(table)).numpy(), table[index])


def test_layer():
    gs.manual_seed(3)
    a = nn.Embedding(2000, 50)
    values = a.weight.data
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
    b = nn.Embedding(2000, 50)
    assert not np.array_equal(values, b.weight.data)
    b.load_state_dict(a.state_dict())
    i = gs.tensor([[5, 1999], [0, 7]])
    assert np.array_equal(a(i).detach().numpy(), b(i).detach().numpy())
    assert "2000, 50" in repr(a)
    table = RNG.standard_normal((4, 3)).astype(np.float32)
    frozen = nn.Embedding.from_pretrained(table)
    assert not frozen.weight.requires_grad and np.array_equal(
        frozen(gs.tensor([3])).numpy(), table[[3]]
    )
    table[3] = 0
    assert frozen(gs.tensor([3])).numpy().any()  # a copy
    assert nn.Embedding.from_pretrained(gs.tensor(table), freeze=False).weight.requires_grad


def test_bad_input():
    w = gs.tensor(np.zeros((5, 2), np.float32), requires_grad=True)
    for index, text in (
        ([[0, 5]], r"index 5 at position \(0, 1\).*num_embeddings is 5"),
        ([-1], "index -1"),
        ([2**62], "index"),
    ):
        for dtype in ("int64",) if abs(np.max(index)) > 2**31 else ("int32", "int64"):
            with pytest.raises(IndexError, match=text):
                F.embedding(gs.tensor(np.array(index, dtype)), w)
    with pytest.raises(TypeError, match="int32 or int64"):
        F.embedding(gs.tensor([1.0]), w)
    with pytest.raises(ValueError, match="num_embeddings, embedding_dim"):
        F.embedding(gs.tensor([1]), gs.zeros(5))
    with pytest.raises(IndexError, match="padding_idx"):
        F.embedding(gs.tensor([1]), w, padding_idx=5)
    with pytest.raises(ValueError, match="padding_idx"):
        nn.Embedding(3, 2, padding_idx=-4)
    for n in (0, -1, 1.5):
        with pytest.raises(ValueError, match="positive integer"):
            nn.Embedding(n, 2)
    with pytest.raises(ValueError, match="not supported"):
        F.embedding(gs.tensor([1]), w, max_norm=1.0)
    with pytest.raises(ValueError, match="from_pretrained"):
        nn.Embedding.from_pretrained(np.zeros(3))


def test_against_torch():
    torch = pytest.importorskip("torch")
    for _ in range(20):
        rows, cols = int(RNG.integers(1, 50)), int(RNG.integers(1, 40))
        pad = None if RNG.random() < 0.5 else int(RNG.integers(0, rows))
        index = RNG.integers(0, rows, (4, int(RNG.integers(1, 30))))
        w, g = RNG.standard_normal((rows, cols)), RNG.standard_normal((*index.shape, cols))
        W, T = gs.tensor(w, requires_grad=True), torch.tensor(w, requires_grad=True)
        y = F.embedding(gs.tensor(index), W, pad)
        t = torch.nn.functional.embedding(torch.tensor(index), T, pad)
        y.backward(gs.tensor(g))
        t.backward(torch.tensor(g))
        assert np.array_equal(y.detach().numpy(), t.detach().numpy())
        assert np.allclose(W.grad.numpy(), T.grad.numpy(), rtol=1e-12, atol=1e-14)
