"""normalize and cosine_similarity against NumPy, PyTorch and difference quotients."""

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn.functional as F


@pytest.mark.parametrize("p", [1, 2, 3, float("inf")])
@pytest.mark.parametrize(
    "shape,dim", [((4, 3), 1), ((4, 3), 0), ((2, 1, 5), -1), ((7,), 0), ((0, 3), 1)]
)
def test_normalize(p, shape, dim, rng):
    x = rng.standard_normal(shape)
    want = x / np.linalg.norm(x, p, dim, keepdims=True)
    t = gs.tensor(x, requires_grad=True)
    np.testing.assert_allclose(F.normalize(t, p, dim).detach().numpy(), want, rtol=1e-12)
    assert gs.gradcheck(lambda t: F.normalize(t, p, dim), t)


def test_normalize_of_zeros_is_zero():
    x = gs.zeros(2, 3, requires_grad=True)
    y = F.normalize(x)
    y.backward(gs.ones(2, 3))
    assert not y.detach().numpy().any() and np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize(
    "sa,sb,dim", [((4, 3), (4, 3), 1), ((4, 3), (3,), -1), ((2, 1, 5), (3, 5), 2), ((6,), (6,), 0)]
)
def test_cosine_similarity(sa, sb, dim, rng):
    a, b = rng.standard_normal(sa), rng.standard_normal(sb)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    x, y = gs.tensor(a, requires_grad=True), gs.tensor(b, requires_grad=True)
    got = F.cosine_similarity(x, y, dim)
    np.testing.assert_allclose(got.detach().numpy(), (a * b).sum(-1) / lengths, rtol=0, atol=1e-14)
    assert gs.gradcheck(lambda x, y: F.cosine_similarity(x, y, dim), (x, y))


def test_cosine_similarity_of_numbers(rng):
    a, b = (gs.tensor(np.array(v), requires_grad=True) for v in (-1.5, 2.5))
    for dim in (0, -1):
        assert F.cosine_similarity(a, b, dim).item() == -1
        assert gs.gradcheck(lambda x, y, dim=dim: F.cosine_similarity(x, y, dim), (a, b))


def test_against_torch(rng):
    torch = pytest.importorskip("torch")
    T = torch.nn.functional
    a, b = rng.standard_normal((5, 4, 3)), rng.standard_normal((5, 4, 3))
    a[0] = 0
    for ours, theirs in (
        (F.normalize(gs.tensor(a)), T.normalize(torch.tensor(a))),
        (F.normalize(gs.tensor(a), 1, 2), T.normalize(torch.tensor(a), 1, 2)),
        (
            F.cosine_similarity(gs.tensor(a), gs.tensor(b)),
            T.cosine_similarity(torch.tensor(a), torch.tensor(b)),
        ),
    ):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-12, atol=1e-14)


def test_bad_input():
    x = gs.ones(2, 3)
    with pytest.raises(TypeError, match="normalize: expected a float tensor, got int64"):
        F.normalize(gs.tensor([[1, 2]]))
    with pytest.raises(IndexError, match="axis 2"):
        F.normalize(x, dim=2)
    with pytest.raises(ValueError, match="eps"):
        F.normalize(x, eps=float("nan"))
    with pytest.raises(ValueError, match=r"cosine_similarity: x1 \(2, 3\) and x2 \(2, 4\)"):
        F.cosine_similarity(x, gs.ones(2, 4))
    assert F.one_hot(gs.tensor([1])).tolist() == [[0, 1]] and F.pad(x, (1, 0)).shape == (2, 4)
