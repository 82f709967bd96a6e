"""Reference models: shapes, names, counts, PyTorch's result from the same weights, loading."""

from __future__ import annotations

import numpy as np
import pytest

import gradsmith as gs
from gradsmith import models


def torch_weights(model):
    """A state dict as PyTorch lays it out: convolution weights (out, in, kh, kw)."""
    torch = pytest.importorskip("torch")
    state = {}
    for name, value in model.state_dict().items():
        a = np.array(value.data)
        state[name] = torch.tensor(a.transpose(0, 3, 1, 2).copy() if a.ndim == 4 else a)
    return state


def randomize(model, rng):
    """Running statistics and scales away from 0 and 1, so that a mistake in them shows."""
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if "bn" in name or "downsample.1" in name:
            value.data[...] = rng.uniform(0.5, 1.5, value.shape)


@pytest.fixture
def fixed():
    gs.manual_seed(3)
    return np.random.default_rng(3)


def test_mlp(fixed):
    model = models.mlp(12, 7, 5, 3, dropout=0.5)
    assert [name for name, _ in model.named_parameters()] == [
        "0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias",
    ]  # fmt: skip
    x = fixed.normal(size=(4, 2, 2, 3)).astype(np.float32)
    model.eval()
    got = model(gs.tensor(x)).detach().numpy()
    a = x.reshape(4, 12).astype(np.float64)
    w = {k: np.array(v.data, np.float64) for k, v in model.state_dict().items()}
    a = np.maximum(a @ w["0.weight"].T + w["0.bias"], 0)
    a = np.maximum(a @ w["3.weight"].T + w["3.bias"], 0)
    np.testing.assert_allclose(got, a @ w["6.weight"].T + w["6.bias"], rtol=1e-5, atol=1e-6)
    assert len(list(models.mlp([4, 2]).parameters())) == 2
    for bad in ((), (3,), (3, 0), (3, 2.5), (True, 2)):
        with pytest.raises(ValueError, match="mlp"):
            models.mlp(*bad)


def test_lenet_against_torch(fixed):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    model = models.lenet(2, 5, (9, 12))
    randomize(model, fixed)
    w = torch_weights(model)
    x = fixed.normal(size=(3, 9, 12, 2)).astype(np.float32)
    model.eval()
    got = model(gs.tensor(x)).detach().numpy()

    def norm(t, name):
        return F.batch_norm(
            t, w[name + ".running_mean"], w[name + ".running_var"], w[name + ".weight"],
            w[name + ".bias"],
        )  # fmt: skip

    t = torch.tensor(x).permute(0, 3, 1, 2)
    t = F.max_pool2d(F.relu(norm(F.conv2d(t, w["conv1.weight"], padding=1), "bn1")), 2)
    t = F.max_pool2d(F.relu(norm(F.conv2d(t, w["conv2.weight"], padding=1), "bn2")), 2)
    t = t.permute(0, 2, 3, 1).reshape(3, -1)
    t = F.linear(
        F.relu(F.linear(t, w["fc1.weight"], w["fc1.bias"])), w["fc2.weight"], w["fc2.bias"]
    )
    np.testing.assert_allclose(got, t.numpy(), rtol=1e-4, atol=1e-5)


def test_lenet_counts_and_errors():
    assert sum(p.size for p in models.lenet().parameters()) == 421_738
    for bad in (3, (28, 3), (8, 8, 1)):
        with pytest.raises(ValueError, match="image_size"):
            models.lenet(image_size=bad)


def resnet_names(blocks=(2, 2, 2, 2)):
    """The names of torchvision's resnet18, from its structure."""
    bn = [".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked"]
    names = ["conv1.weight", *("bn1" + s for s in bn)]
    for i, count in enumerate(blocks):
        for j in range(count):
            p = f"layer{i + 1}.{j}."
            for k in (1, 2):
                names += [f"{p}conv{k}.weight", *(f"{p}bn{k}{s}" for s in bn)]
            if i > 0 and j == 0:
                names += [p + "downsample.0.weight", *(p + "downsample.1" + s for s in bn)]
    return [*names, "fc.weight", "fc.bias"]


def test_resnet18_names_and_counts():
    small = models.resnet18()
    assert sum(p.size for p in small.parameters()) == 11_173_962
    large = models.resnet18(1000, small_images=False)
    assert sum(p.size for p in large.parameters()) == 11_689_512  # torchvision's
    assert large.conv1.weight.shape == (64, 7, 7, 3)
    assert set(small.state_dict()) == set(large.state_dict()) == set(resnet_names())


@pytest.mark.parametrize("small", [True, False])
def test_resnet18_against_torch(small, fixed):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    model = models.resnet18(4, 3, small_images=small)
    randomize(model, fixed)
    w = torch_weights(model)
    x = fixed.normal(size=(2, 16, 16, 3)).astype(np.float32)
    model.eval()
    got = model(gs.tensor(x)).detach().numpy()

    def norm(t, p):
        return F.batch_norm(
            t, w[p + ".running_mean"], w[p + ".running_var"], w[p + ".weight"], w[p + ".bias"]
        )

    t = torch.tensor(x).permute(0, 3, 1, 2)
    if small:
        t = F.relu(norm(F.conv2d(t, w["conv1.weight"], padding=1), "bn1"))
    else:
        t = F.relu(norm(F.conv2d(t, w["conv1.weight"], stride=2, padding=3), "bn1"))
        t = F.max_pool2d(t, 3, 2, 1)
    for i in range(4):
        for j in range(2):
            p = f"layer{i + 1}.{j}."
            stride = 2 if i > 0 and j == 0 else 1
            u = F.relu(
                norm(F.conv2d(t, w[p + "conv1.weight"], stride=stride, padding=1), p + "bn1")
            )
            u = norm(F.conv2d(u, w[p + "conv2.weight"], padding=1), p + "bn2")
            if p + "downsample.0.weight" in w:
                t = norm(
                    F.conv2d(t, w[p + "downsample.0.weight"], stride=stride), p + "downsample.1"
                )
            t = F.relu(u + t)
    want = F.linear(t.mean((2, 3)), w["fc.weight"], w["fc.bias"]).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize(
    "name, args", [("mlp", (64, 8, 4)), ("lenet", (1, 4, 8)), ("resnet18", (4, 1))]
)
def test_every_parameter_gets_a_gradient(name, args, fixed):
    model = models.get(name, *args)
    x = gs.tensor(fixed.normal(size=(4, 8, 8, 1)).astype(np.float32))
    out = model(x)
    assert out.shape == (4, 4)
    gs.nn.functional.cross_entropy(out, gs.tensor(np.array([0, 1, 2, 3]))).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert np.isfinite(parameter.grad.data).all() and np.any(parameter.grad.data), (
            parameter_name
        )


def test_get_and_load(tmp_path):
    with pytest.raises(ValueError, match="lenet, mlp, resnet18"):
        models.get("vgg")
    model = models.mlp(4, 3)
    path = tmp_path / "model.safetensors"
    config = {"model": "mlp", "arguments": [[4, 3], {}], "classes": ["a", "b", "c"]}
    gs.save({"model": model.state_dict(), "config": config}, path)
    for where in (tmp_path, path):
        again = models.load(where)
        assert not again.training and again.config["classes"] == ["a", "b", "c"]
        for a, b in zip(model.parameters(), again.parameters()):
            np.testing.assert_array_equal(a.data, b.data)
    gs.save({"model": model.state_dict()}, path)
    with pytest.raises(ValueError, match="not written by"):
        models.load(path)
