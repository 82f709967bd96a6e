"""gradsmith.interop.torch: PyTorch's weights give PyTorch's outputs, and go back as they came."""

import warnings

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
from gradsmith.interop import torch as bridge

torch = pytest.importorskip("torch")
T = torch.nn


def last(x):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def randomise(module):
    for t in [*module.parameters(), *module.buffers()]:
        if t.is_floating_point():
            t.data.uniform_(0.1, 1.0)
    return module.eval()


def same_state(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].shape == b[name].shape, name
        assert torch.equal(a[name], b[name]), name


class Flat(nn.Module):
    """Flattens in forward, not by a module."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4 * 5 * 6)
        self.fc = nn.Linear(4 * 5 * 6, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        x = gs.nn.functional.relu(self.conv(x)).flatten(1)
        return self.head(gs.nn.functional.gelu(self.fc(self.norm(x))))


class TorchFlat(T.Module):
    def __init__(self):
        super().__init__()
        self.conv = T.Conv2d(3, 4, 3, padding=1)
        self.norm = T.BatchNorm1d(4 * 5 * 6)
        self.fc = T.Linear(4 * 5 * 6, 7)
        self.head = T.Linear(7, 2)

    def forward(self, x):
        x = T.functional.relu(self.conv(x)).flatten(1)
        return self.head(T.functional.gelu(self.fc(self.norm(x))))


def pair(n):
    return n.Sequential(
        n.Conv2d(3, 8, (3, 2), stride=2, groups=1),
        n.BatchNorm2d(8),
        n.ReLU(),
        n.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),
        n.ConvTranspose2d(8, 6, 3, stride=2, groups=2),
        n.PReLU(6),
        n.GroupNorm(3, 6),
        n.MaxPool2d(2),
        n.Dropout(0.5),
        n.Flatten(),
        n.Dropout(0.5),
        n.Linear(6 * 4 * 5, 10),
        n.LayerNorm(10),
        n.Linear(10, 3),
    )


@pytest.mark.parametrize("how", ["example", "flatten"])
def test_images(how):
    theirs, ours = randomise(pair(T)), pair(nn).eval()
    x = np.random.default_rng().normal(size=(2, 3, 9, 10)).astype(np.float32)
    known = {"example": last(x)} if how == "example" else {"flatten": {"11": (4, 5, 6)}}
    result = bridge.load_state_dict(ours, theirs.state_dict(), **known)
    assert result.missing_keys == [] and result.unexpected_keys == []
    want = theirs(torch.from_numpy(x)).detach().numpy()
    with gs.no_grad():
        got = ours(gs.tensor(last(x))).numpy()
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4 * np.abs(want).max())
    same_state(bridge.to_torch(ours, **known), theirs.state_dict())


def test_flattened_images_without_an_example_warn():
    theirs, ours = pair(T), pair(nn)
    with pytest.warns(
        UserWarning, match=r"'11' \(120 features\) may read a flattened image.*example="
    ):
        bridge.load_state_dict(ours, theirs.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bridge.load_state_dict(ours, theirs.state_dict(), flatten={})
        bridge.to_torch(gs.models.resnet18(10))  # its Linear reads averages


def test_flatten_in_forward():
    theirs, ours = randomise(TorchFlat()), Flat()
    x = np.random.default_rng().normal(size=(3, 3, 5, 6)).astype(np.float32)
    modes = [m.training for m in ours.modules()]
    bridge.load_state_dict(ours, theirs, example=last(x))
    assert [m.training for m in ours.modules()] == modes
    want = theirs(torch.from_numpy(x)).detach().numpy()
    with gs.no_grad():
        got = ours.eval()(gs.tensor(last(x))).numpy()
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4 * np.abs(want).max())
    same_state(bridge.to_torch(ours, example=last(x)), theirs.state_dict())
    # head does not read an image
    assert np.array_equal(ours.head.weight.detach().numpy(), theirs.head.weight.detach().numpy())


def test_sequences():
    theirs = T.ModuleDict(
        {
            "embed": T.Embedding(11, 6),
            "conv": T.Conv1d(6, 4, 3, groups=2),
            "lstm": T.LSTM(4, 5, 2, bidirectional=True, batch_first=True),
            "block": T.TransformerEncoderLayer(10, 2, 16, batch_first=True),
            "bilinear": T.Bilinear(3, 4, 5),
            "norm": T.LayerNorm((3, 4, 5)),
        }
    )
    ours = nn.ModuleDict(
        {
            "embed": nn.Embedding(11, 6),
            "conv": nn.Conv1d(6, 4, 3, groups=2),
            "lstm": nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True),
            "block": nn.TransformerEncoderLayer(10, 2, 16, batch_first=True),
            "bilinear": nn.Bilinear(3, 4, 5),
            "norm": nn.LayerNorm((4, 5, 3)),
        }
    )
    randomise(theirs)
    bridge.load_state_dict(ours.eval(), theirs)
    same_state(bridge.to_torch(ours), theirs.state_dict())
    rng = np.random.default_rng()
    tokens = rng.integers(0, 11, (2, 9))
    h = theirs["conv"](theirs["embed"](torch.from_numpy(tokens)).transpose(1, 2)).transpose(1, 2)
    want = theirs["block"](theirs["lstm"](h)[0]).detach().numpy()
    with gs.no_grad():
        h = ours["conv"](ours["embed"](gs.tensor(tokens)))
        got = ours["block"](ours["lstm"](h)[0]).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    with gs.no_grad():
        got = ours["norm"](gs.tensor(last(x))).numpy()
    np.testing.assert_allclose(
        got, last(theirs["norm"](torch.from_numpy(x)).detach().numpy()), rtol=1e-4, atol=1e-5
    )


def test_resnet18_takes_torchvisions_names(tmp_path):
    ours = gs.models.resnet18(num_classes=10)
    state = bridge.to_torch(ours)
    assert tuple(state["layer1.0.conv1.weight"].shape) == (64, 64, 3, 3)
    other = gs.models.resnet18(num_classes=10)
    torch.save(state, tmp_path / "net.pt")
    bridge.load_state_dict(other, tmp_path / "net.pt")
    for a, b in zip(ours.state_dict().values(), other.state_dict().values()):
        assert np.array_equal(a.numpy(), b.numpy())


def test_files_prefixes_and_types(tmp_path):
    layer = T.Conv2d(2, 3, (2, 4))
    state = {f"module._orig_mod.{k}": v.to(torch.bfloat16) for k, v in layer.state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    gs.save(
        {k: v.detach().numpy() for k, v in layer.state_dict().items()}, tmp_path / "a.safetensors"
    )
    for source, tol in ((tmp_path / "a.pt", 1e-2), (tmp_path / "a.safetensors", 0), (layer, 0)):
        ours = nn.Conv2d(2, 3, (2, 4))
        bridge.load_state_dict(ours, source)
        np.testing.assert_allclose(
            ours.weight.detach().numpy(), last(layer.weight.detach().numpy()), rtol=tol
        )
    assert bridge.from_torch(nn.Conv2d(2, 3, (2, 4)), layer)["weight"].dtype == np.float32


def test_a_pickle_with_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"weight": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        bridge.load_state_dict(nn.Linear(2, 2), tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()


def test_errors_change_nothing():
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    before = [p.detach().numpy().copy() for p in ours.parameters()]
    good = bridge.to_torch(ours)
    for change, error, text in [
        ({"0.weight": torch.zeros(4, 3, 5, 5)}, ValueError, r"'0.weight' has shape \(4, 3, 5, 5\).*\(4, 3, 3, 3\)"),
        ({"0.weight": torch.zeros(4)}, ValueError, "0.weight"),
        ({"2.weight": torch.zeros(4)}, KeyError, "unexpected 1: 2.weight"),
        ({"1.bias": {"a": 1}}, TypeError, "'1.bias' is a dict"),
        ({"1.bias": 3.0}, TypeError, "'1.bias' is a float"),
    ]:  # fmt: skip
        with pytest.raises(error, match=text):
            bridge.load_state_dict(ours, {**good, **change})
    with pytest.raises(KeyError, match="missing 1: 1.bias"):
        bridge.load_state_dict(ours, {k: v for k, v in good.items() if k != "1.bias"})
    with pytest.raises(TypeError, match="expected a state dict"):
        bridge.load_state_dict(ours, [1, 2])
    with pytest.raises(TypeError, match="gradsmith module"):
        bridge.load_state_dict(good, ours)
    with pytest.raises(ValueError, match="'0', which is no Linear"):
        bridge.load_state_dict(ours, good, flatten={"0": (1, 1, 4)})
    with pytest.raises(ValueError, match=r"'1' reads 4 features, an image of shape \(2, 1, 3\)"):
        bridge.load_state_dict(ours, good, flatten={"1": (2, 1, 3)})
    for p, b in zip(ours.parameters(), before):
        assert np.array_equal(p.detach().numpy(), b)
    assert bridge.load_state_dict(ours, {"x": torch.zeros(1)}, strict=False).unexpected_keys == [
        "x"
    ]
