"""Module, containers, state dicts, freezing, hooks, summary, initialisers."""

import math
from collections import OrderedDict

import numpy as np
import pytest

import gradsmith as gs
from gradsmith import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(3, 2))
        self.register_buffer("scale", gs.ones(2))
        self.register_buffer("scratch", gs.ones(1), persistent=False)

    def forward(self, x):
        return self.rest(self.first(x)) * self.scale


def test_names_and_order():
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "first.weight",
        "first.bias",
        "rest.1.weight",
        "rest.1.bias",
    ]
    assert [n for n, _ in net.named_modules()] == ["", "first", "rest", "rest.0", "rest.1"]
    assert list(net.state_dict()) == ["scale", *[n for n, _ in net.named_parameters()]]
    assert [n for n, _ in net.named_buffers()] == ["scale", "scratch"]
    assert net.get_submodule("rest.1") is net.rest[1]
    with pytest.raises(AttributeError, match="nope"):
        net.get_submodule("rest.nope")


def test_shared_parameters_are_listed_once():
    net = Net()
    net.rest[1].weight = net.first.weight if False else net.rest[1].weight
    net.twin = net.first
    assert len(list(net.parameters())) == 4
    assert "twin.weight" in net.state_dict()


def test_named_walks_take_pytorchs_arguments():
    net = Net()
    net.twin = net.first
    names = ["first.weight", "first.bias", "rest.1.weight", "rest.1.bias"]
    assert [n for n, _ in net.named_parameters("net")] == [f"net.{n}" for n in names]
    assert [n for n, _ in net.named_parameters("", True, False)] == [
        *names, "twin.weight", "twin.bias",
    ]  # fmt: skip
    assert [n for n, _ in net.first.named_parameters("a.b", recurse=False)] == [
        "a.b.weight",
        "a.b.bias",
    ]
    assert [n for n, _ in net.named_buffers("net")] == ["net.scale", "net.scratch"]
    assert list(net.named_parameters(recurse=False)) == []
    modules = ["", "first", "rest", "rest.0", "rest.1", "twin"]
    assert [n for n, _ in net.named_modules(remove_duplicate=False)] == modules
    with pytest.raises(TypeError, match=r"named_parameters: prefix must be a string.*recurse"):
        net.named_parameters(False)
    assert net.get_parameter("rest.1.bias") is net.rest[1].bias
    assert net.get_buffer("scale") is net.scale
    for get, name in ((net.get_parameter, "scale"), (net.get_buffer, "first.bias")):
        with pytest.raises(AttributeError, match=name):
            get(name)
    state = net.state_dict(prefix="net.", keep_vars=True)
    assert list(state)[:2] == ["net.scale", "net.first.weight"]
    assert state["net.first.weight"] is net.first.weight
    assert net.cpu() is net


def test_state_dict_round_trip(rng):
    a, b = Net(), Net()
    result = b.load_state_dict(a.state_dict())
    assert result.missing_keys == [] and result.unexpected_keys == []
    x = gs.tensor(rng.standard_normal((5, 4)).astype("float32"))
    assert np.array_equal(a(x).detach().numpy(), b(x).detach().numpy())
    assert b.first.weight.requires_grad and not np.shares_memory(
        a.first.weight.data, b.first.weight.data
    )


def test_load_state_dict_checks_all_before_it_changes_any():
    net = Net()
    state = {k: np.array(v.numpy()) + 1 for k, v in net.state_dict().items()}
    before = {k: np.array(v.numpy()) for k, v in net.state_dict().items()}
    bad = dict(state)
    bad["rest.1.bias"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match=r"rest\.1\.bias.*\(7,\).*\(2,\)"):
        net.load_state_dict(bad)
    missing = dict(state)
    del missing["first.weight"]
    with pytest.raises(KeyError, match=r"missing 1: first\.weight"):
        net.load_state_dict(missing)
    with pytest.raises(KeyError, match="unexpected 1: other"):
        net.load_state_dict({**state, "other": np.zeros(1)})
    with pytest.raises(TypeError):
        net.load_state_dict(3)
    for k, v in net.state_dict().items():
        assert np.array_equal(v.numpy(), before[k])
    result = net.load_state_dict({**missing, "other": np.zeros(1)}, strict=False)
    assert result.missing_keys == ["first.weight"] and result.unexpected_keys == ["other"]
    assert np.array_equal(net.first.bias.data, before["first.bias"] + 1)


def test_loading_into_a_parameter_that_backward_needs_is_seen(rng):
    net = Net()
    y = net(gs.tensor(rng.standard_normal((5, 4)).astype("float32"), requires_grad=True)).sum()
    net.load_state_dict(Net().state_dict())
    with pytest.raises(RuntimeError, match="in place"):
        y.backward()


def test_train_eval_and_freeze():
    net = Net()
    assert net.training and net.rest[0].training
    net.eval()
    assert not net.training and not net.rest[1].training
    net.train()
    net.first.freeze()
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    net(gs.ones(2, 4)).sum().backward()
    assert net.first.weight.grad is None and net.rest[1].weight.grad is not None
    net.zero_grad()
    assert net.rest[1].weight.grad is None
    net.unfreeze()
    assert all(p.requires_grad for p in net.parameters())


def test_assignment_rules():
    net = Net()
    with pytest.raises(TypeError, match="is a parameter"):
        net.first.weight = np.zeros((3, 4))
    with pytest.raises(TypeError, match="is a buffer"):
        net.scale = 3
    with pytest.raises(TypeError, match="is a submodule"):
        net.first = 3
    with pytest.raises(ValueError, match="dots"):
        net.register_buffer("a.b", gs.ones(1))

    class Early(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(1, 1)

    with pytest.raises(AttributeError, match=r"super\(\).__init__"):
        Early()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = net.nothing
    with pytest.raises(TypeError, match=r"Did you mean ReLU\(\)"):
        nn.Sequential(nn.ReLU)
    del net.scale
    assert "scale" not in net.state_dict()
    with pytest.raises(NotImplementedError, match="forward"):
        nn.Module()(1)


def test_containers():
    s = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.ReLU()))
    assert list(s._modules) == ["a", "b"] and len(s[:1]) == 1 and isinstance(s[-1], nn.ReLU)
    s.append(nn.Identity())
    assert len(s) == 3 and [type(m).__name__ for m in s] == ["Linear", "ReLU", "Identity"]
    ml = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    assert len(list(ml.parameters())) == 4 and ml[1] is list(ml)[1]
    md = nn.ModuleDict({"x": nn.Linear(1, 1)})
    md["y"] = nn.ReLU()
    assert list(md) == ["x", "y"] and "x" in md and len(list(md.parameters())) == 2
    pl = nn.ParameterList([gs.ones(2), gs.zeros(3)])
    assert [n for n, _ in pl.named_parameters()] == ["0", "1"]


def test_hooks_and_apply():
    net = Net()
    seen = []
    h = net.first.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    net(gs.ones(2, 4))
    h.remove()
    net(gs.ones(2, 4))
    assert seen == [(2, 3)]
    h = net.rest.register_forward_pre_hook(lambda m, args: args[0] * 0.0)
    out = net(gs.ones(2, 4))
    assert np.allclose(out.detach().numpy(), net.rest[1].bias.data)
    h.remove()
    kinds = []
    net.apply(lambda m: kinds.append(type(m).__name__))
    assert kinds == ["Linear", "ReLU", "Linear", "Sequential", "Net"]


def test_dtype_conversion_and_repr(rng):
    net = Net().double()
    assert all(p.dtype == np.float64 for p in net.parameters()) and net.scale.dtype == np.float64
    net(gs.tensor(rng.standard_normal((2, 4)))).sum().backward()
    assert net.first.weight.grad.dtype == np.float64
    net.float()
    assert net.first.weight.dtype == np.float32 and net.first.weight.grad.dtype == np.float32
    with pytest.raises(TypeError, match="float"):
        net.to("int64")
    with pytest.raises(ValueError, match="cuda"):
        net.to("cuda")
    assert "(first): Linear(" in repr(net)


def test_flatten_and_unflatten(rng):
    x = gs.tensor(rng.standard_normal((2, 3, 4, 5)))
    assert nn.Flatten()(x).shape == (2, 60)
    assert nn.Unflatten(1, (3, 4, 5))(nn.Flatten()(x)).shape == x.shape


def test_summary_counts():
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )
    net[0].freeze()
    s = nn.summary(net, (2, 8, 8, 1))
    assert s.parameters == 8 * 9 + 8 + 128 * 10 + 10
    assert s.trainable == 128 * 10 + 10
    assert s.multiply_adds == 2 * 64 * 8 * 9 + 2 * 1280
    assert [r.output_shape for r in s.rows] == [
        (2, 8, 8, 8),
        (2, 8, 8, 8),
        (2, 4, 4, 8),
        (2, 128),
        (2, 10),
    ]
    assert "Conv2d" in str(s) and "multiply-adds" in str(s)
    assert net.training and net[0].training


def test_summary_counts_what_each_kind_of_layer_multiplies():
    B, T, E, H = 3, 4, 32, 16

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.rms = nn.LayerNorm((T, 8)), nn.RMSNorm((T, 8))
            self.lstm = nn.LSTM(8, H, 2, batch_first=True, bidirectional=True)
            self.place = nn.LearnedPositionalEncoding(E, 10)
            self.attention = nn.MultiheadAttention(E, 4, batch_first=True)
            self.cell = nn.GRUCell(E, 5)

        def forward(self, x):
            x, _ = self.lstm(self.rms(self.norm(x)))
            x = self.place(x)
            x, _ = self.attention(x, x[:, :3], x[:, :3])
            return self.cell(x[:, 0])

    rows = {r.name: r.multiply_adds for r in nn.summary(Net(), (B, T, 8)).rows}
    assert rows["norm"] == rows["rms"] == rows["place"] == 0
    assert rows["lstm"] == B * T * 4 * H * (2 * (8 + H) + 2 * (2 * H + H))
    assert rows["attention"] == B * (T + 3 + 3) * E * E + 2 * B * T * 3 * E
    assert rows["attention.out_proj"] == B * T * E * E
    assert rows["cell"] == B * 3 * 5 * (E + 5)


def test_names_of_the_module_itself_are_refused():
    for name in ("training", "forward", "keys", "state_dict", "_parameters", "__class__"):
        with pytest.raises(ValueError, match=f"ModuleDict: '{name}' cannot be a name: it is an"):
            nn.ModuleDict({name: nn.Linear(2, 2)})
    m = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'training' cannot be a name"):
        m.register_buffer("training", gs.ones(2))
    with pytest.raises(ValueError, match="'train' cannot be a name"):
        m.register_parameter("train", nn.Parameter(gs.ones(2)))
    m.register_parameter("weight", nn.Parameter(gs.ones(2, 2)))  # one that it has is replaced
    assert m.training and list(m.state_dict()) == ["weight", "bias"]


def test_summary_leaves_the_network_as_it_was():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    net[2].eval()
    gs.manual_seed(3)
    gs.rand(1)
    before = gs.core.random.state()
    mean = net[1].running_mean.numpy().copy()
    nn.summary(net, (3, 4))
    assert gs.core.random.state() == before
    assert np.array_equal(net[1].running_mean.numpy(), mean)
    assert net[0].training and not net[2].training


@pytest.mark.parametrize(
    "name,std",
    [
        ("xavier_uniform_", np.sqrt(2 / (300 + 200))),
        ("xavier_normal_", np.sqrt(2 / (300 + 200))),
        ("kaiming_uniform_", np.sqrt(2 / 300)),
        ("kaiming_normal_", np.sqrt(2 / 300)),
        ("lecun_uniform_", np.sqrt(1 / 300)),
        ("lecun_normal_", np.sqrt(1 / 300)),
    ],
)
def test_initialisers_have_their_variance(name, std):
    gs.manual_seed(11)
    t = gs.empty(200, 300)
    getattr(nn.init, name)(t)
    a = t.numpy().astype(np.float64)
    assert abs(a.std() / std - 1) < 0.02
    assert abs(a.mean()) < 5 * std / np.sqrt(a.size)
    if "uniform" in name:
        assert np.abs(a).max() <= std * np.sqrt(3) * (1 + 1e-6)
    else:
        assert np.abs(a).max() > 3 * std


def test_initialisers_of_filters_count_the_kernel_area():
    gs.manual_seed(5)
    t = gs.empty(64, 3, 3, 32)
    nn.init.kaiming_normal_(t)
    assert abs(t.numpy().std() / np.sqrt(2 / (32 * 9)) - 1) < 0.03


def test_orthogonal_and_others():
    gs.manual_seed(0)
    for shape in ((5, 8), (8, 5), (6, 2, 2, 3)):
        t = nn.init.orthogonal_(gs.empty(*shape, dtype="float64"), gain=2.0)
        m = t.numpy().reshape(shape[0], -1)
        m = m if m.shape[0] <= m.shape[1] else m.T
        assert np.allclose(m @ m.T, 4 * np.eye(len(m)), atol=1e-10)
    t = nn.init.trunc_normal_(gs.empty(100, 100), std=1.0, a=-1.0, b=1.5)
    assert t.numpy().min() >= -1 and t.numpy().max() <= 1.5
    assert np.array_equal(nn.init.eye_(gs.empty(3, 4)).numpy(), np.eye(3, 4))
    assert (nn.init.constant_(gs.empty(3), 2.5).numpy() == 2.5).all()
    with pytest.raises(ValueError, match="2 dimensions"):
        nn.init.kaiming_normal_(gs.empty(3))
    with pytest.raises(ValueError, match="nonlinearity"):
        nn.init.activation_init_(gs.empty(3, 3), "reel")
    with pytest.raises(TypeError, match="float"):
        nn.init.normal_(gs.zeros(3, dtype="int64"))


@pytest.mark.parametrize(
    "mean,std,a,b",
    [
        (0, 1, -2, 2),
        (1, 2, -1, 4),
        (0, 1, 0, 0.1),
        (0, 1, 1.9, 9),
        (3, 0.5, 3.9, 4),
        (0, 1, 2, 2.001),
    ],
)
def test_truncated_normal_has_its_distribution(mean, std, a, b):
    """Also between bounds that next to nothing of the whole distribution falls into."""
    gs.manual_seed(3)
    phi = np.vectorize(lambda v: math.erf(v / math.sqrt(2)))
    for dtype in ("float64", "float32"):
        w = nn.init.trunc_normal_(gs.empty(20000, dtype=dtype), mean, std, a, b).numpy()
        assert w.min() >= a and w.max() <= b  # a float32 that rounds to beyond a bound too
        low, high, at = (phi((v - mean) / std) for v in (a, b, np.sort(w.astype(np.float64))))
        cdf = (at - low) / (high - low)
        assert np.abs(cdf - (np.arange(20000) + 0.5) / 20000).max() < 1.95 / np.sqrt(
            20000
        )  # KS, 0.1 %
    nn.init.trunc_normal_(gs.empty(10), 0.0, 1.0, 0.0, 1e-9)  # would be redrawn for ever


def test_bounds_that_no_number_lies_between():
    for bad in (dict(mean=np.nan), dict(std=np.inf), dict(a=np.nan), dict(mean=np.inf)):
        with pytest.raises(ValueError, match="trunc_normal_"):
            nn.init.trunc_normal_(gs.empty(3), **bad)
    with pytest.raises(ValueError, match="does not fit float32"):
        nn.init.uniform_(gs.empty(3), -3e38, 3e38)
    nn.init.uniform_(gs.empty(3, dtype="float64"), -3e38, 3e38)


@pytest.mark.parametrize(
    "layer,arguments",
    [
        ("Conv2d", dict(in_channels=64, out_channels=32, kernel_size=3)),
        ("Conv2d", dict(in_channels=64, out_channels=32, kernel_size=3, groups=4)),
        ("ConvTranspose2d", dict(in_channels=64, out_channels=16, kernel_size=3)),
        ("ConvTranspose2d", dict(in_channels=16, out_channels=64, kernel_size=4, stride=2)),
        (
            "ConvTranspose2d",
            dict(in_channels=64, out_channels=64, kernel_size=4, stride=2, groups=4),
        ),
    ],
)
def test_weights_that_fit_a_relu_double_the_mean_square(layer, arguments):
    """The ReLU halves it again. A transposed convolution too, whose fans its weight's shape does not tell."""
    gs.manual_seed(4)
    layer = getattr(nn, layer)(**arguments, activation="relu")
    y = layer(gs.randn(4, 20, 20, layer.in_channels)).detach().numpy()[:, 4:-4, 4:-4]
    assert abs(np.square(y, dtype=np.float64).mean() / 2 - 1) < 0.1


def test_same_seed_same_weights():
    def weights():
        gs.manual_seed(42)
        return [np.array(p.data) for p in Net().parameters()]

    assert all(np.array_equal(a, b) for a, b in zip(weights(), weights()))
    gs.manual_seed(43)
    other = [np.array(p.data) for p in Net().parameters()]
    assert not np.array_equal(weights()[0], other[0])
    for bad, kind in ((-1, ValueError), (2**64, ValueError), (1.5, TypeError), ("1", TypeError)):
        with pytest.raises(kind, match="manual_seed"):
            gs.manual_seed(bad)


def test_parameters_begin_where_vectors_do():
    """NumPy's memory starts 16 bytes into a line: every vector of a weight would cross two."""
    layers = [
        nn.Linear(64, 64),
        nn.Conv2d(16, 32, 3),
        nn.LSTM(32, 32),
        nn.GRUCell(32, 32),
        nn.LayerNorm(512),
        nn.BatchNorm1d(512),
        nn.Embedding(64, 64),
        nn.MultiheadAttention(64, 4),
    ]
    for layer in layers:
        for name, p in layer.named_parameters():
            if p.nbytes > 256:
                assert p.data.ctypes.data % 64 == 0, (type(layer).__name__, name)


def test_arguments_have_pytorchs_names():
    t = gs.empty(3, 4)
    assert (nn.init.constant_(tensor=t, val=2.0).numpy() == 2).all()
    for name in (
        "zeros_",
        "normal_",
        "uniform_",
        "kaiming_normal_",
        "xavier_uniform_",
        "orthogonal_",
    ):
        assert getattr(nn.init, name)(tensor=t) is t
    assert nn.Unflatten(dim=1, unflattened_size=(2, 2))(gs.ones(1, 4)).shape == (1, 2, 2)


@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleList])
def test_containers_change_like_lists(kind):
    layers = [nn.Linear(2, 2), nn.ReLU(), nn.Tanh(), nn.Sigmoid()]
    net = kind(*layers) if kind is nn.Sequential else kind(layers)
    new = nn.Linear(2, 3)
    net[-4] = new
    assert [*net] == [new, *layers[1:]] and [*net.state_dict()] == ["0.weight", "0.bias"]
    del net[1]
    assert [*net] == [new, layers[2], layers[3]] and net[1] is layers[2] and net[-1] is layers[3]
    assert [n for n, _ in net.named_children()] == ["0", "1", "2"]
    net.insert(0, layers[0])
    assert [*net] == [layers[0], new, layers[2], layers[3]]
    assert "1.weight" in net.state_dict() and net.state_dict()["1.weight"].shape == (3, 2)
    assert net.pop(1) is new and net.pop() is layers[3] and len(net) == 2
    net.extend([nn.ReLU(), new])
    assert [n for n, _ in net.named_children()] == ["0", "1", "2", "3"] and net[3] is new
    del net[1:3]
    assert [*net] == [layers[0], new]
    part = net[1:]
    part.append(layers[1])  # the slice may have kept its names; none is lost
    assert [*part] == [new, layers[1]] and len(net) == 2

    before = [*net]
    with pytest.raises(IndexError, match="index 2 is outside the 2 modules"):
        net[2] = nn.ReLU()
    with pytest.raises(TypeError, match=r"item 0 must be a Module.*ReLU\(\)"):
        net[0] = nn.ReLU
    with pytest.raises(TypeError, match="item 3 must be a Module"):
        net.extend([nn.ReLU(), 3])
    with pytest.raises(TypeError, match="takes an integer"):
        net["0"]
    assert [*net] == before


def test_named_containers_keep_their_names():
    net = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.ReLU(), c=nn.Tanh()))
    net[1] = nn.Sigmoid()
    del net[0]
    assert [n for n, _ in net.named_children()] == ["b", "c"]
    d = nn.ModuleDict({"a": nn.ReLU(), "b": nn.Tanh()})
    a = d["a"]
    assert d.pop("a") is a and [*d] == ["b"]
    del d["b"]
    assert len(d) == 0
    with pytest.raises(KeyError, match="b"):
        del d["b"]


def test_data_takes_arrays_and_tensors():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = gs.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert layer(gs.tensor([[1.0, 1.0]])).tolist() == [[3.0, 7.0]]
    layer.weight.data = np.eye(2, dtype=np.float32)
    assert layer(gs.tensor([[5.0, 6.0]])).tolist() == [[5.0, 6.0]]
    with pytest.raises(TypeError, match=r"Tensor\.data: expected an array or a Tensor, got list"):
        layer.weight.data = [[1.0, 2.0]]
    assert layer(gs.tensor([[5.0, 6.0]])).tolist() == [[5.0, 6.0]]


def test_zero_grad_asks_parameters_where_a_class_has_its_own():
    class Adapted(nn.Linear):
        def parameters(self, recurse=True):
            return iter([self.bias])

    layer = Adapted(3, 2)
    for p in (layer.weight, layer.bias):
        p.grad = gs.ones(*p.shape)
    layer.zero_grad()
    assert layer.bias.grad is None and layer.weight.grad is not None


def test_zeroed_gradients_count_as_changed():
    """A graph that saved a gradient must not go on with the zeros written over it."""
    net = nn.Linear(2, 2)
    for model in (net, nn.Sequential(net)):
        net.zero_grad()
        net(gs.ones(1, 2)).sum().backward()
        y = (net.weight.grad * net.weight).sum()
        model.zero_grad(set_to_none=False)
        assert net.weight.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]
        with pytest.raises(RuntimeError, match="modified in place"):
            y.backward()


def every_layer():
    return [
        nn.Linear(3, 4),
        nn.Bilinear(2, 3, 4),
        nn.Conv1d(2, 4, 3),
        nn.Conv2d(2, 4, 3),
        nn.ConvTranspose1d(2, 4, 3),
        nn.ConvTranspose2d(2, 4, 3),
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3),
        nn.BatchNorm1d(3, affine=False),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.InstanceNorm1d(3, affine=True),
        nn.InstanceNorm2d(3, affine=True),
        nn.LayerNorm((2, 3)),
        nn.LayerNorm(3, bias=False),
        nn.GroupNorm(2, 4),
        nn.RMSNorm(3),
        nn.RMSNorm(3, elementwise_affine=False),
        nn.PReLU(3, init=0.5),
        nn.Embedding(3, 2, padding_idx=1),
        nn.RNN(2, 3),
        nn.LSTM(2, 3, bidirectional=True),
        nn.GRU(2, 3, bias=False),
        nn.LSTMCell(2, 3),
        nn.MultiheadAttention(4, 2),
    ]


@pytest.mark.parametrize("index", range(len(every_layer())))
def test_parameters_are_drawn_again_outside_of_no_grad(index):
    """`model.apply(lambda m: m.reset_parameters())`, as PyTorch users write it."""
    gs.manual_seed(3)
    layer = every_layer()[index]
    first = {n: t.numpy().copy() for n, t in layer.state_dict().items()}
    for t in layer.state_dict().values():
        t.data[...] = 7
    gs.manual_seed(3)
    layer.reset_parameters()
    assert all(p.requires_grad and p.is_leaf for p in layer.parameters())
    for name, t in layer.state_dict().items():
        if np.ptp(first[name]) == 0:  # constants come back
            assert np.array_equal(t.numpy(), first[name]), name
        else:  # drawn: all of them anew
            assert (t.numpy() != 7).all() and np.abs(t.numpy()).max() < 6, name


@pytest.mark.parametrize("register", ["register_buffer", "register_parameter", "register_module"])
def test_a_registered_name_takes_nothing_elses_place(register):
    values = {
        "register_buffer": gs.ones(2),
        "register_parameter": nn.Parameter([1.0]),
        "register_module": nn.ReLU(),
    }
    net = nn.Module()
    net.plain = 3
    for other, value in values.items():
        getattr(net, other)(f"of_{other}", value)
    for name in ["plain", "training", *(f"of_{o}" for o in values if o != register)]:
        with pytest.raises((KeyError, ValueError), match=name):
            getattr(net, register)(name, values[register])
    getattr(net, register)(f"of_{register}", None)  # its own may be replaced
    assert getattr(net, f"of_{register}") is None
    del net.plain
    getattr(net, register)("plain", values[register])
    net.of_register_parameter = nn.ReLU()  # an assignment does take the place
    assert "of_register_parameter" in dict(net.named_children())


def test_train_takes_a_flag_only():
    net = nn.Linear(2, 2)
    assert net.train(np.bool_(False)) is net and net.training is False
    for wrong in ("eval", 0, None, gs.ones(1)):
        with pytest.raises(TypeError, match="Linear.train: mode must be True or False"):
            net.train(wrong)
    assert net.training is False


def test_containers_change_as_in_pytorch():
    layers = nn.ModuleList([nn.ReLU()])
    before = layers
    layers += [nn.Tanh(), nn.Linear(1, 1)]
    assert layers is before and [type(m).__name__ for m in layers] == ["ReLU", "Tanh", "Linear"]
    heads = nn.ModuleDict({"a": nn.ReLU(), "b": nn.Tanh()})
    heads.clear()
    assert len(heads) == 0 and not hasattr(heads, "a")
    scales = nn.ParameterList([gs.ones(1)])
    scales += [gs.ones(2)]
    assert scales.extend([nn.Parameter(gs.ones(3))]) is scales
    scales[-1] = gs.zeros(4)
    assert [p.shape for p in scales] == [(1,), (2,), (4,)] and scales[2].requires_grad
    part = scales[1:]
    assert isinstance(part, nn.ParameterList) and part[0] is scales[1] and len(part) == 2
    assert [n for n, _ in scales.named_parameters()] == ["0", "1", "2"]
    with pytest.raises(IndexError):
        scales[3] = gs.ones(1)


def test_a_cell_tells_its_nonlinearity():
    assert repr(nn.RNNCell(2, 3, nonlinearity="relu")) == "RNNCell(2, 3, nonlinearity=relu)"
    assert repr(nn.RNNCell(2, 3, bias=False)) == "RNNCell(2, 3, bias=False)"


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda: nn.Flatten(), "Flatten"),
        (lambda: nn.Unflatten(1, (1, 3)), "Unflatten"),
        (lambda: nn.BatchNorm1d(3), "BatchNorm1d|batch_norm"),
        (lambda: nn.InstanceNorm1d(3), "InstanceNorm1d"),
        (lambda: nn.GroupNorm(1, 3), "GroupNorm"),
        (lambda: nn.LayerNorm(3), "layer_norm"),
        (lambda: nn.RMSNorm(3), "rms_norm"),
        (lambda: nn.Linear(3, 2), "linear"),
        (lambda: nn.Conv1d(3, 2, 1), "conv1d"),
        (lambda: nn.ConvTranspose2d(3, 2, 1), "conv_transpose2d"),
        (lambda: nn.MaxPool1d(1), "max_pool1d"),
        (lambda: nn.AdaptiveAvgPool2d(1), "adaptive_avg_pool2d"),
        (lambda: nn.PReLU(), "prelu"),
        (lambda: nn.LSTM(3, 2), "LSTM"),
        (lambda: nn.GRUCell(3, 2), "GRUCell"),
        (lambda: nn.SinusoidalPositionalEncoding(4), "SinusoidalPositionalEncoding"),
        (lambda: nn.LearnedPositionalEncoding(5, 4), "LearnedPositionalEncoding"),
        (lambda: nn.TransformerEncoderLayer(4, 2), "MultiheadAttention|layer_norm"),
    ],
)
def test_a_layer_says_that_it_wants_a_tensor(layer, name):
    for wrong in (np.ones((2, 3), np.float32), [[1.0, 2.0, 3.0]], None, 3, "a"):
        with pytest.raises(
            TypeError, match=rf"({name}).*must be a Tensor.*, got (None$|{type(wrong).__name__})"
        ):
            layer()(wrong)


def test_attention_says_which_argument_is_no_tensor():
    x = gs.ones(2, 1, 4)
    for at, name in enumerate(("query", "key", "value")):
        given = [x, x, x]
        given[at] = np.ones((2, 1, 4), np.float32)
        with pytest.raises(TypeError, match=rf"MultiheadAttention: {name} must be a Tensor"):
            nn.MultiheadAttention(4, 2)(*given)
    net = nn.Transformer(4, 2, 1, 1, 8)
    with pytest.raises(TypeError, match="Transformer: tgt must be a Tensor, got None"):
        net(x, None)
    with pytest.raises(ValueError, match="SinusoidalPositionalEncoding: input has shape"):
        nn.SinusoidalPositionalEncoding(4)(gs.ones(4))
    with pytest.raises(ValueError, match="conv_transpose2d: "):
        nn.ConvTranspose2d(3, 2, 1)(gs.ones(3), output_size=(2, 2))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Dropout("0.1"), "Dropout: p must be a number, got str"),
        (lambda: nn.Dropout(None), "Dropout: p must be a number, got NoneType"),
        (lambda: nn.CrossEntropyLoss(label_smoothing="0"), "CrossEntropyLoss: label_smoothing"),
        (lambda: nn.BatchNorm1d(3, momentum="0"), "BatchNorm1d: momentum must be a number"),
        (lambda: nn.Embedding(3, 2, padding_idx="0"), "Embedding: padding_idx must be an int"),
        (lambda: nn.MultiheadAttention(4, None), "MultiheadAttention: num_heads must be an int"),
        (lambda: nn.MultiheadAttention(4.0, 2), "MultiheadAttention: embed_dim must be an int"),
        (lambda: nn.TransformerEncoderLayer(4, 2, dropout=None), "dropout must be a number"),
        (lambda: nn.TransformerEncoder(nn.Identity(), "2"), "TransformerEncoder: num_layers must"),
        (lambda: nn.TransformerEncoder(4, 2), "TransformerEncoder: the layer must be a Module"),
        (lambda: nn.PReLU("a"), "PReLU: num_parameters must be an integer"),
        (lambda: nn.RReLU(None), "RReLU: lower must be a number"),
        (lambda: nn.Hardtanh(0, "1"), "Hardtanh: max_val must be a number"),
        (lambda: nn.Unflatten(1, 3), "Unflatten: unflattened_size must be integers"),
        (lambda: nn.ModuleList(3), "ModuleList: expected a list, got int"),
        (lambda: nn.ParameterList(3), "ParameterList: expected a list, got int"),
    ],
)
def test_a_layer_names_the_argument_that_is_of_another_type(make, says):
    with pytest.raises(TypeError, match=says):
        make()
    assert len(nn.ModuleList(None)) == len(nn.ParameterList(None)) == 0
