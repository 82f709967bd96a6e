"""Arguments that are no Tensors, and no axes: every op says which one it is, and nothing crashes."""

import numpy as np
import pytest

import gradsmith as gs
import gradsmith.nn as nn
import gradsmith.nn.functional as F

x, w = gs.ones(2, 3), gs.ones(4, 3)
image, kernel = gs.ones(1, 5, 5, 3), gs.ones(2, 3, 3, 3)
CASES = {
    "linear: input": lambda v: F.linear(v, w),
    "linear: weight": lambda v: F.linear(x, v),
    "linear: bias": lambda v: F.linear(x, w, v),
    "mm: input": lambda v: gs.mm(v, w),
    "bmm: mat2": lambda v: gs.bmm(gs.ones(1, 2, 3), v),
    "dot: tensor": lambda v: gs.dot(gs.ones(3), v),
    "addmm: input": lambda v: gs.addmm(v, x, gs.ones(3, 4)),
    "bilinear: input2": lambda v: F.bilinear(x, v, gs.ones(4, 3, 3)),
    "conv2d: input": lambda v: F.conv2d(v, kernel),
    "conv2d: weight": lambda v: F.conv2d(image, v),
    "conv1d: bias": lambda v: F.conv1d(gs.ones(1, 5, 3), gs.ones(2, 3, 3), v),
    "conv_transpose2d: weight": lambda v: F.conv_transpose2d(image, v),
    "max_pool2d: input": lambda v: F.max_pool2d(v, 2),
    "avg_pool1d: input": lambda v: F.avg_pool1d(v, 2),
    "adaptive_avg_pool2d: input": lambda v: F.adaptive_avg_pool2d(v, (None, 1)),
    "batch_norm: input": lambda v: F.batch_norm(v, None, None, training=True),
    "layer_norm: input": lambda v: F.layer_norm(v, 3),
    "rms_norm: input": lambda v: F.rms_norm(v, 3),
    "group_norm: input": lambda v: F.group_norm(v, 1),
    "batch_norm: running_mean": lambda v: F.batch_norm(x, v, gs.ones(3)),
    "layer_norm: bias": lambda v: F.layer_norm(x, 3, None, v),
    "group_norm: weight": lambda v: F.group_norm(x, 1, v),
    "instance_norm: bias": lambda v: F.instance_norm(gs.ones(1, 4, 3), bias=v),
    "prelu: weight": lambda v: F.prelu(x, v),
    "embedding: weight": lambda v: F.embedding(gs.tensor([0]), v),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("value", [3, 0.5, "x", [1.0], np.ones((2, 3), np.float32)], ids=str)
def test_no_tensor(name, value):
    got = type(value).__name__
    with pytest.raises(TypeError, match=rf"^{name} must be a Tensor, got {got}"):
        CASES[name](value)


def test_none_where_a_tensor_is_needed():
    for op in (lambda: F.conv1d(None, w), lambda: F.conv2d(image, None), lambda: F.linear(x, None)):
        with pytest.raises(TypeError, match=r"(input|weight) must be a Tensor, got None"):
            op()


def test_variance_of_nothing():
    t = gs.zeros(0, 3, requires_grad=True)
    for correction in (1, 0, -3):
        v, m = gs.var_mean(t, 0, correction=correction)
        (v.sum() + m.sum()).backward()
        assert t.grad.shape == (0, 3)


@pytest.mark.parametrize("dim", [(0, 1), 1.0, "0", None], ids=str)
def test_dim_that_is_no_integer(dim):
    for op in (
        lambda: gs.unsqueeze(x, dim),
        lambda: gs.narrow(x, dim, 0, 1),
        lambda: gs.transpose(x, dim, 0),
        lambda: gs.split(x, 1, dim),
        lambda: nn.Flatten(dim)(x),
    ):
        with pytest.raises(TypeError, match=r"\w+: dim must be an integer, got"):
            op()


@pytest.mark.parametrize("name", ["empty", "zeros", "ones", "rand", "randn"])
def test_like(name):
    fn = getattr(gs, name + "_like")
    with pytest.raises(TypeError, match=rf"{name}_like: expected a Tensor, got int"):
        fn(5)
    assert fn(gs.ones(2, 3, dtype="float64")).dtype == np.float64
    assert fn(np.ones((2, 0), np.float32)).shape == (2, 0)


def test_sizes_beyond_memory():
    """Refused before anything is taken: MemoryError, or a ValueError where the size is no int64."""
    big = 2**40
    for make in (
        lambda: gs.zeros(big, big),
        lambda: gs.randn(big, 2**20),
        lambda: gs.one_hot(gs.tensor([0, 1]), 2**62),
        lambda: x.expand(2, 3)[:, :1].expand(2, 2**61).contiguous(),
        lambda: F.pad(x, (0, 2**62)),
        lambda: gs.tile(x, (2**40, 2**40)),
        lambda: F.conv2d(image, kernel, padding=2**31),
        lambda: F.conv2d(image, kernel, stride=2**63),
        lambda: F.conv2d(image, kernel, dilation=2**62),
        lambda: F.conv_transpose2d(image, gs.ones(3, 3, 3, 2), 2**40),
        lambda: F.max_pool2d(image, 2**62),
        lambda: F.adaptive_avg_pool2d(image, 2**40),
    ):
        with pytest.raises((ValueError, MemoryError, OverflowError, TypeError)) as error:
            make()
        assert str(error.value)


@pytest.mark.parametrize("bad", [None, "a", object(), {}])
@pytest.mark.parametrize(
    "op", ["relu", "relu_", "relu6", "elu", "celu", "selu", "leaky_relu", "gelu", "glu", "rrelu", "softmax", "log_softmax", "dropout",
           "dropout2d", "alpha_dropout", "cross_entropy", "normalize", "matmul"],
)  # fmt: skip
def test_an_input_that_is_no_tensor_is_named_with_its_op(op, bad):
    more = {"cross_entropy": (gs.tensor([0]),), "matmul": (gs.ones(2),)}.get(op, ())
    fn = getattr(gs, op, None) or getattr(F, op)
    with pytest.raises(TypeError, match=rf"^{op}: "):
        fn(bad, *more)


def test_targets_that_are_no_tensors_are_named():
    for loss in ("mse_loss", "l1_loss", "huber_loss", "nll_loss", "cross_entropy"):
        with pytest.raises(TypeError, match=rf"^{loss}: target must be a Tensor, got str"):
            getattr(F, loss)(gs.zeros(2, 3), "a")


@pytest.mark.parametrize("bad", ["a", None, [], (1.0, 2.0), 1j])
@pytest.mark.parametrize(
    "op, name",
    [("leaky_relu", "negative_slope"), ("elu", "alpha"), ("celu", "alpha"), ("silu", "beta"),
     ("hardtanh", "min_val"), ("hardtanh", "max_val"), ("softplus", "beta"),
     ("softplus", "threshold"), ("rrelu", "lower"), ("rrelu", "upper"), ("dropout", "p"),
     ("dropout1d", "p"), ("alpha_dropout", "p"), ("threshold", "value"),
     ("smooth_l1_loss", "beta"), ("huber_loss", "delta")],
)  # fmt: skip
def test_numbers_that_are_none_are_named_with_their_op(op, name, bad):
    x = gs.zeros(2, 3)
    args = {name: bad}
    if op == "threshold":
        args["threshold"] = 1.0
    if op.endswith("loss"):
        args["target"] = x
    with pytest.raises(TypeError, match=rf"^{op}: {name} must be a number, got "):
        (getattr(gs, op, None) or getattr(F, op))(x, **args)


def test_numpys_integers_are_integers_to_pools():
    x = gs.rand(1, 8, 8, 2)
    for two in (np.int64(2), (np.int32(2), np.int64(2)), [np.int64(2)]):
        assert gs.max_pool2d(x, two).shape == (1, 4, 4, 2)
        assert gs.adaptive_avg_pool2d(x, two).shape == (1, 2, 2, 2)
    assert gs.max_pool1d(x[0], np.int64(2), np.int64(2)).shape == (8, 4, 2)
    assert gs.adaptive_max_pool2d(x, (None, np.int64(3))).shape == (1, 8, 3, 2)
    with pytest.raises(TypeError, match="max_pool2d: kernel_size must be integers"):
        gs.max_pool2d(x, ("2", 2))


def test_index_errors_name_the_op_that_was_called():
    with pytest.raises(IndexError, match="^index_select: index 3"):
        gs.zeros(3, 2).index_select(0, gs.tensor([3]))
    with pytest.raises(IndexError, match="^one_hot: index -1"):
        gs.one_hot(gs.tensor([-1]))


def test_states_and_hooks_are_passed_by_pytorchs_names():
    net = gs.nn.Linear(2, 2)
    net.load_state_dict(state_dict=net.state_dict())
    net.requires_grad_(requires_grad=True)
    seen = []
    net.register_forward_hook(hook=lambda m, x, y: seen.append(1))
    net.register_forward_pre_hook(hook=lambda m, x: seen.append(0))
    net.weight.register_hook(hook=lambda g: seen.append(2))
    net(gs.ones(1, 2)).sum().backward()
    assert seen == [0, 1, 2]
    optimizer = gs.optim.SGD([net.weight], lr=0.1)
    optimizer.add_param_group(param_group={"params": [net.bias]})
    optimizer.load_state_dict(state_dict=optimizer.state_dict())
    schedule = gs.optim.lr_scheduler.StepLR(optimizer, 3)
    schedule.load_state_dict(state_dict=schedule.state_dict())


def test_none_is_no_number():
    with pytest.raises(TypeError, match="mse_loss: target must be a Tensor, got NoneType"):
        F.mse_loss(gs.tensor(1.0), None)  # was NaN


heads = gs.ones(1, 2, 3, 4)
JUNK = ["a", b"a", [], (1.0, "a"), {}, 1j, object()]
NUMBERS = {
    "arange: start": lambda v: gs.arange(v, 3),
    "arange: end": lambda v: gs.arange(0, v),
    "arange: step": lambda v: gs.arange(0, 3, v),
    "linspace: start": lambda v: gs.linspace(v, 1, 3),
    "linspace: end": lambda v: gs.linspace(0, v, 3),
    "full: fill_value": lambda v: gs.full((2,), v),
    "full_like: fill_value": lambda v: gs.full_like(x, v),
    "uniform_: a": lambda v: nn.init.uniform_(gs.ones(2), v),
    "uniform_: b": lambda v: nn.init.uniform_(gs.ones(2), 0, v),
    "normal_: mean": lambda v: nn.init.normal_(gs.ones(2), v),
    "normal_: std": lambda v: nn.init.normal_(gs.ones(2), 0, v),
    "trunc_normal_: std": lambda v: nn.init.trunc_normal_(gs.ones(2), 0, v),
    "constant_: val": lambda v: nn.init.constant_(gs.ones(2), v),
    "xavier_uniform_: gain": lambda v: nn.init.xavier_uniform_(gs.ones(2, 2), v),
    "xavier_normal_: gain": lambda v: nn.init.xavier_normal_(gs.ones(2, 2), v),
    "orthogonal_: gain": lambda v: nn.init.orthogonal_(gs.ones(2, 2), v),
    "calculate_gain: param": lambda v: nn.init.calculate_gain("leaky_relu", v),
    "add: alpha": lambda v: gs.add(x, x, alpha=v),
    "sub: alpha": lambda v: gs.sub(x, x, alpha=v),
    "addcmul: value": lambda v: gs.addcmul(x, x, x, value=v),
    "addcdiv: value": lambda v: gs.addcdiv(x, x, x, value=v),
    "addmm: alpha": lambda v: gs.addmm(x, gs.ones(2, 4), gs.ones(4, 3), alpha=v),
    "addmm: beta": lambda v: gs.addmm(x, gs.ones(2, 4), gs.ones(4, 3), beta=v),
    "index_add: alpha": lambda v: gs.index_add(x, 0, gs.tensor([0, 1]), x, alpha=v),
    "pad: value": lambda v: F.pad(gs.arange(3), (1, 1), value=v),
    "var: correction": lambda v: gs.var(x, correction=v),
    "std: correction": lambda v: gs.std(x, correction=v),
    "var_mean: correction": lambda v: gs.var_mean(x, correction=v),
    "normalize: p": lambda v: F.normalize(x, v),
    "avg_pool2d: divisor_override": lambda v: F.avg_pool2d(image, 2, divisor_override=v),
    "batch_norm: momentum": lambda v: F.batch_norm(x, gs.ones(3), gs.ones(3), momentum=v),
    "batch_norm: eps": lambda v: F.batch_norm(x, gs.ones(3), gs.ones(3), eps=v),
    "instance_norm: eps": lambda v: F.instance_norm(gs.ones(1, 4, 3), eps=v),
    "rms_norm: eps": lambda v: F.rms_norm(x, 3, eps=v),
    "poisson_nll_loss: eps": lambda v: F.poisson_nll_loss(x, x, eps=v),
    "scaled_dot_product_attention: dropout_p": lambda v: F.scaled_dot_product_attention(
        heads, heads, heads, dropout_p=v
    ),
    "scaled_dot_product_attention: scale": lambda v: F.scaled_dot_product_attention(
        heads, heads, heads, scale=v
    ),
    "attention_qkv: dropout_p": lambda v: F.attention_qkv(gs.ones(1, 3, 12), 2, dropout_p=v),
    "attention_qkv: scale": lambda v: F.attention_qkv(gs.ones(1, 3, 12), 2, scale=v),
}
INTEGERS = {
    "linspace: steps": lambda v: gs.linspace(0, 1, v),
    "eye: n": lambda v: gs.eye(v),
    "eye: m": lambda v: gs.eye(2, v),
    "randperm: n": lambda v: gs.randperm(v),
    "randint: low": lambda v: gs.randint(v, 3, (2,)),
    "narrow: start": lambda v: gs.narrow(x, 0, v, 1),
    "narrow: length": lambda v: gs.narrow(x, 0, 0, v),
    "chunk: chunks": lambda v: gs.chunk(x, v),
    "diagonal: offset": lambda v: gs.diagonal(x, v),
    "tril: diagonal": lambda v: gs.tril(x, v),
    "triu: diagonal": lambda v: gs.triu(x, v),
    "round: decimals": lambda v: gs.round(x, decimals=v),
    "glu: dim": lambda v: F.glu(gs.ones(2, 4), v),
    "cosine_similarity: dim": lambda v: F.cosine_similarity(x, x, v),
    "nll_loss: ignore_index": lambda v: F.nll_loss(x, gs.tensor([0, 1]), ignore_index=v),
}
LISTS = {
    "pad: pad": lambda v: F.pad(x, v),
    "split: split_size_or_sections": lambda v: gs.split(x, v),
    "unflatten: sizes": lambda v: gs.unflatten(x, 1, v),
    "broadcast_to: size": lambda v: gs.broadcast_to(x, v),
    "sum_to: shape": lambda v: gs.sum_to(x, v),
    "layer_norm: normalized_shape": lambda v: F.layer_norm(x, v),
    "rms_norm: normalized_shape": lambda v: F.rms_norm(x, v),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("bad", JUNK, ids=repr)
def test_no_number(name, bad):
    with pytest.raises(TypeError, match=rf"^{name} must be a number, got {type(bad).__name__} "):
        NUMBERS[name](bad)


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("bad", [*JUNK, 2.5, None], ids=repr)
def test_no_integer(name, bad):
    if bad is None and name == "eye: m":
        return
    with pytest.raises(TypeError, match=rf"^{name} must be an integer, got {type(bad).__name__} "):
        INTEGERS[name](bad)


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("bad", ["a", ["a"], [1.5, 1.5], 1j, object(), None, 2.5], ids=repr)
def test_no_integers(name, bad):
    with pytest.raises(TypeError, match=rf"^{name} must be integers, got {type(bad).__name__} "):
        LISTS[name](bad)


def test_numpys_numbers_are_numbers():
    two, half = np.int64(2), np.float32(0.5)
    assert gs.narrow(x, 0, two - 1, np.int32(1)).shape == (1, 3)
    assert len(gs.chunk(x, two)) == len(gs.split(x, np.int64(1))) == 2
    assert F.pad(x, (two, two)).shape == (2, 7)
    assert F.pad(gs.arange(2), (0, 1), value=np.float64(3)).tolist() == [0, 1, 3]
    assert F.layer_norm(x, np.int64(3)).shape == gs.broadcast_to(x, [two, 3]).shape == (2, 3)
    assert gs.add(gs.arange(2), gs.arange(2), alpha=two).tolist() == [0, 3]
    assert gs.index_add(gs.ones(2), 0, gs.tensor([1]), gs.ones(1), alpha=two).tolist() == [1, 3]
    assert gs.addcmul(x, x, x, value=half).tolist() == [[1.5] * 3] * 2
    assert gs.addmm(gs.ones(3), x, gs.ones(3, 3), alpha=two, beta=half).tolist() == [[6.5] * 3] * 2
    assert gs.var(gs.tensor([1.0, 3.0]), correction=np.int64(0)).item() == 1.0


def test_numbers_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"^masked_select: mask of shape \(5,\) does not broadcast"
    ):
        gs.masked_select(x, gs.ones(5) > 0)
    with pytest.raises(ValueError, match="^full_like: cannot convert float NaN"):
        gs.full_like(gs.arange(2), float("nan"))
    with pytest.raises(ValueError, match="^constant_: cannot convert"):
        nn.init.constant_(gs.arange(2), float("inf"))
    with pytest.raises(ValueError, match=r"^arange: from 0 to inf in steps of 1"):
        gs.arange(0, float("inf"))
    with pytest.raises(ValueError, match=r"^randint: 0 .. \d+ is not within int64"):
        gs.randint(0, 2**64, (2,))
    for draw in (gs.rand, gs.randn):
        with pytest.raises(TypeError, match=rf"^{draw.__name__}: dtype must be float32 or float64"):
            draw(2, dtype="int64")


@pytest.mark.parametrize("name", ["empty", "zeros", "ones", "full", "rand", "randn"])
def test_like_names_itself(name):
    fn, more = getattr(gs, name + "_like"), (1.0,) if name == "full" else ()
    with pytest.raises(ValueError, match=rf"^{name}_like: device 'cuda' is not available"):
        fn(x, *more, device="cuda")
    with pytest.raises(TypeError, match=rf"^{name}_like: .*float16"):
        fn(x, *more, dtype="float16")


@pytest.mark.parametrize("name", ["zeros_", "ones_", "eye_", "uniform_", "normal_", "orthogonal_"])
def test_initialisers_of_no_tensor(name):
    with pytest.raises(TypeError, match=rf"^{name}: expected a Tensor or Parameter, got list"):
        getattr(nn.init, name)([1.0])


def test_initialisers_of_empty_weights():
    for fn in (nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.kaiming_normal_):
        assert fn(gs.ones(0, 0)).shape == (0, 0)  # no fan to divide by


def test_composed_ops_name_themselves_in_errors():
    """The op that was called, not the one that it is made of, in shape, dtype and dim errors."""
    ints, tall, deep = gs.arange(6).reshape(2, 3), gs.ones(4, 5), gs.ones(*(1,) * 8).unsqueeze(0)
    a, v = gs.ones(2, 3), gs.ones(3)
    calls = {
        "mm": lambda: gs.mm(a, a),
        "bmm": lambda: gs.bmm(a.unsqueeze(0), a.unsqueeze(0)),
        "mv": lambda: gs.mv(a, gs.ones(2)),
        "dot": lambda: gs.dot(v, gs.ones(2)),
        "addmm": lambda: gs.addmm(a, gs.ones(2, 4), a),
        "allclose": lambda: gs.allclose(a, tall),
        "isclose": lambda: gs.isclose(ints, a),
        "max": lambda: gs.max(a, tall),
        "min": lambda: gs.min(gs.zeros(0)),
        "any": lambda: gs.any(deep),
        "all": lambda: gs.all(deep),
        "count_nonzero": lambda: gs.count_nonzero(deep),
        "clamp": lambda: gs.clamp(a, tall),
        "lerp": lambda: gs.lerp(a, tall, 0.5),
        "log10": lambda: gs.log10(ints),
        "masked_fill": lambda: gs.masked_fill(a, a, 0.0),
        "broadcast_to": lambda: gs.broadcast_to(a, (4, 4)),
        "take_along_dim": lambda: gs.take_along_dim(a, gs.full((2, 1), 9), 1),
        "celu": lambda: gs.celu(ints),
        "selu": lambda: gs.selu(ints),
        "relu6": lambda: gs.relu6(ints),
        "relu_": lambda: gs.relu_(ints),
        "rrelu": lambda: gs.rrelu(ints),
        "glu": lambda: gs.glu(gs.arange(4)),
        "softmin": lambda: gs.softmin(a, 5),
        "log_softmax": lambda: gs.log_softmax(a, 5),
        "smooth_l1_loss": lambda: F.smooth_l1_loss(a, tall, beta=0),
        "normalize": lambda: F.normalize(a, dim=7),
        "cosine_similarity": lambda: F.cosine_similarity(a, a.double()),
    }
    for name, call in calls.items():
        with pytest.raises((IndexError, TypeError, ValueError), match=rf"^{name}: "):
            call()
    with pytest.raises(TypeError, match=r"^log_softmax: dim must be an integer"):
        gs.log_softmax(a, "0")


def test_advice_on_mixed_dtypes_loses_nothing():
    for a, b, to in (
        (gs.arange(3), gs.ones(3), "float32"),
        (gs.ones(3), gs.arange(3), "float32"),
        (gs.ones(3), gs.ones(3, dtype="float64"), "float64"),
        (gs.ones(3) > 0, gs.arange(3), "int64"),
    ):
        with pytest.raises(TypeError, match=rf"mixed silently. Convert one with .astype\('{to}'\)"):
            gs.maximum(a, b)


def test_isclose_of_integers():
    a = gs.tensor([1, 2, 10**9])
    assert gs.isclose(a, gs.tensor([1, 3, 10**9 + 1])).tolist() == [True, False, True]
    assert gs.isclose(a, gs.tensor([1, 3, 10**9 + 1]), 0, 0).tolist() == [True, False, False]
    assert gs.allclose(a, a) and not gs.allclose(a > 1, a > 2) and gs.isclose(a, 2).sum() == 1


def test_sizes_that_no_memory_holds_are_errors():
    x = gs.ones(2, 3)
    for widths in ((2**63 - 1, 2**63 - 1), (2**62, 2**62), (-(2**63), -(2**63)), (2**70, 0)):
        for pad in (widths, (0, 0, *widths)):
            with pytest.raises(ValueError, match="^pad: a border of axis . is larger than any mem"):
                F.pad(x, pad)
    with pytest.raises(ValueError, match=r"^pad: border .* of axis 1 with 3 elements"):
        F.pad(x, (2**62, 2**62), "replicate")
    with pytest.raises(ValueError, match="between 1 and 2\\^24, got 4611686018427387904"):
        F.max_pool1d(gs.ones(1, 4, 1), 2**62)
    with pytest.raises(TypeError, match="from -92.* to 92.*, got 9223372036854775808$"):
        F.cross_entropy(x, gs.tensor([0, 1]), ignore_index=2**63)


def test_diagonals_beyond_every_axis():
    x, big = gs.ones(2, 3), 2**63 - 1
    assert gs.triu(x, big).sum().item() == gs.tril(x, -big).sum().item() == 0
    assert gs.triu(x, -big).sum().item() == gs.tril(x, big).sum().item() == 6
    assert gs.diagonal(x, big).shape == gs.diagonal(x, -big).shape == (0,)


def test_what_is_no_list_of_arrays():
    rows = np.arange(40.0).reshape(5, 8)  # its rows live no longer than the loop over them
    np.testing.assert_array_equal(gs._cpu.cat(rows, 0), rows.ravel())
    with pytest.raises((TypeError, ValueError)):
        gs._cpu.cat("ab", 0)


def _conv(channels, *shape):
    return lambda: gs.nn.Conv2d(channels, 8, 3)(gs.zeros(shape))


def _labels(labels):
    return lambda: gs.nn.functional.cross_entropy(gs.zeros((2, 3)), gs.tensor(labels))


def _state(*shape):
    state = {"weight": np.zeros(shape, np.float32), "bias": np.zeros(8, np.float32)}
    return lambda: gs.nn.Conv2d(5, 8, 3).load_state_dict(state)


@pytest.mark.parametrize(
    "call, text",
    [
        (_conv(3, 1, 3, 32, 32), r"conv2d: input has shape \(1, 3, 32, 32\).* by .movedim\(-3, -1\)"),
        (_conv(1, 32, 28, 28), r"conv2d: input has shape \(32, 28, 28\).* axis by x\[..., None\]"),
        (_conv(3, 1, 32, 32, 4), r"Channels are last; check the layer before it"),
        (lambda: gs.nn.Conv1d(3, 8, 3)(gs.zeros((1, 3, 32))), r"by .movedim\(-2, -1\)"),
        (lambda: gs.nn.ConvTranspose2d(3, 8, 3)(gs.zeros((1, 3, 9, 9))), r"by .movedim\(-3, -1\)"),
        (_labels([[0, 1, 0], [1, 0, 0]]), r"indices have shape \(2, 3\).* by target.argmax\(-1\)"),
        (_labels([[0], [1]]), r"class indices have shape \(2, 1\).* by target\[..., 0\]"),
        (_labels([0.0, 1.0]), r"target has dtype float32 and shape \(2,\); class indices must be int"),
        (_labels([1, 3]), r"target\[1\] is 3, but there are 3 classes \(0 .. 2\)"),
        (_state(8, 5, 3, 3), r"weight has shape \(8, 5, 3, 3\).*gs.interop.torch.load_state_dict"),
        (_state(8, 3, 3, 4), r"and \(8, 3, 3, 5\) in the module$"),
        (lambda: gs.nn.Sequential([gs.nn.ReLU()]), r"item 0 must be a Module, got list. A star"),
        (lambda: gs.nn.Sequential(gs.relu), r"item 0 must be a Module, got function.*nn.ReLU\(\)"),
        (lambda: gs.nn.ModuleList([[]]), r"ModuleList: item 0 must be a Module, got list$"),
        (lambda: gs.nn.ReLU().to("gpu"), r"ReLU.to: 'gpu' is neither a device \('cpu'\) nor a dtype"),
        (lambda: gs.zeros(2).to("gpu"), r"to: 'gpu' is neither a device \('cpu'\) nor a dtype"),
        (lambda: gs.zeros(2, dtype="gpu"), r"'gpu' is not a dtype"),
        (lambda: gs.zeros(4).reshape(-1, -1), r"into shape \(-1, -1\); one size alone may be -1"),
        (lambda: gs.zeros(4).reshape(3, -1), r"does not fit into shape \(3, -1\)$"),
        (lambda: gs.data.Loader([1, 2], 2), r"Loader: expected a dataset"),
    ],
)  # fmt: skip
def test_errors_of_beginners_name_the_way_out(call, text):
    with pytest.raises((ValueError, TypeError, IndexError), match=text):
        call()


def test_transpositions_that_do_are_no_errors():
    # as many rows as channels: it cannot be known that they were meant as channels
    assert gs.nn.Conv2d(3, 8, 3)(gs.zeros((1, 3, 32, 3))).shape == (1, 1, 30, 8)


def test_what_is_no_number_does_not_become_one():
    """NumPy makes NaN of None, 3 of "3", and drops imaginary parts."""
    x = gs.zeros(2)
    for wrong in (
        None,
        "3",
        b"3",
        1j,
        [1.0, None],
        ["1", "2"],
        [1, 1j],
        {1: 2},
        np.array([1 + 2j]),
    ):
        for dtype in ("float32", "int64", "bool"):
            with pytest.raises(TypeError, match="Tensor: the data must be numbers, got "):
                gs.tensor(wrong, dtype=dtype)
        for index in (0, slice(None), gs.tensor([0]), x >= 0, ...):
            with pytest.raises(TypeError, match="index assignment: the data must be numbers, got "):
                x[index] = wrong
        with pytest.raises((TypeError, ValueError), match="Tensor|copy_"):
            x.copy_(wrong)
    for wrong in (None, "3", 1j, [1]):
        for make in (lambda v: gs.full(2, v), lambda v: gs.full_like(x, v)):
            with pytest.raises(TypeError, match="full(_like)?: fill_value must be a number, got"):
                make(wrong)
    with pytest.raises(TypeError, match="arange: end must be a number, got NoneType"):
        gs.arange(None)
    assert x.tolist() == [0.0, 0.0]
    x[:] = np.array([1, 2.5], object)
    assert x.tolist() == [1.0, 2.5]
    x[0] = 10**30  # more than 64 bits
    assert gs.tensor([10**30, 1.5], dtype="float32").tolist() == [x[0].item(), 1.5]
    assert gs.tensor(np.empty((0,), object), dtype="float32").shape == (0,)


def test_numbers_that_do_not_fit_an_integer_dtype():
    """They wrapped round: gs.tensor([300], dtype="uint8") was 44."""
    for data, dtype in (
        ([300], "uint8"),
        ([-1], "uint8"),
        ([2**40, 1], "int32"),
        (2**31, "int32"),
        ([[1, -(2**31) - 1]], "int32"),
        ([float("nan")], "int64"),
        ([1.0, float("inf")], "int32"),
    ):
        with pytest.raises(ValueError, match=f"Tensor: the data do not fit {dtype}"):
            gs.tensor(data, dtype=dtype)
    assert gs.tensor([2.7, -1.2], dtype="int64").tolist() == [2, -1]
    assert gs.tensor([True, 255], dtype="uint8").tolist() == [1, 255]
    assert gs.tensor([3], dtype="int32").dtype == np.int32


def test_alpha_scales_numbers_and_lists():
    """A list times 2 is the list twice: x.add_([1, 2], alpha=2) added 1, 2, 1, 2 to four elements."""
    x = gs.tensor([1.0, 2.0, 3.0, 4.0])
    for other in (
        1,
        1.0,
        np.float32(1),
        True,
        [1, 1, 1, 1],
        (1.0,),
        np.ones(4, np.float32),
        gs.ones(4),
    ):
        for alpha in (2, 0.5, gs.tensor(2.0)):
            a = float(alpha)
            for given in (x, gs.tensor(x.tolist(), requires_grad=True) * 1):
                assert gs.add(given, other, alpha=alpha).tolist() == [v + a for v in x.tolist()]
                assert given.sub(other, alpha=alpha).tolist() == [v - a for v in x.tolist()]
                assert given.clone().add_(other, alpha=a).tolist() == [v + a for v in x.tolist()]
                assert given.clone().sub_(other, alpha=a).tolist() == [v - a for v in x.tolist()]
    for call in (x.add, x.sub, x.clone().add_, x.clone().sub_):
        with pytest.raises(ValueError, match="add|sub"):
            call([1, 2], alpha=2)
        with pytest.raises(TypeError, match="(add|sub)_?: expected a Tensor or a number, got str"):
            call("1", alpha=2)
    assert gs.tensor([1, 2]).add(1, alpha=2).tolist() == [3, 4]
    with pytest.raises(TypeError, match="would lose its fraction"):
        gs.tensor([1, 2]).add(1, alpha=2.5)
    with pytest.raises(TypeError, match="add_: alpha must be a number, got str"):
        x.add_(1, alpha="2")
    with pytest.raises(TypeError, match="constant_: val must be a number, got NoneType"):
        gs.nn.init.constant_(gs.ones(2), None)


def test_fill_takes_a_tensor_without_axes():
    x = gs.ones(3, requires_grad=True)
    y, v = x * 2, gs.tensor(5.0, requires_grad=True)
    (y.fill_(v) * gs.arange(3.0)).sum().backward()
    assert y.tolist() == [5.0, 5.0, 5.0] and v.grad.item() == 3 and x.grad.tolist() == [0.0] * 3
    assert gs.ones(2, dtype="int64").fill_(gs.tensor(4)).tolist() == [4, 4]
    assert gs.ones(2).fill_(np.float32(2)).tolist() == [2.0, 2.0]
    for wrong in (None, "3", [1], gs.ones(1), np.ones(2)):
        with pytest.raises(TypeError, match="fill_: value must be a number, got"):
            gs.ones(2).fill_(wrong)
    for low, high, name in ((gs.zeros(2), None, "min"), (0, "1", "max"), ([0], 1, "min")):
        with pytest.raises(TypeError, match=f"clamp_: {name} must be a number, got"):
            gs.ones(2).clamp_(low, high)
    assert gs.ones(2).clamp_(max=np.float32(0.5)).tolist() == [0.5, 0.5]


def test_pads_default_value_and_other_small_things():
    x = gs.ones(2)
    assert F.pad(x, (1, 0), value=None).tolist() == [0.0, 1.0, 1.0]  # PyTorch's default
    assert F.pad(gs.tensor([1, 2]), (1, 0), value=np.float32(3)).tolist() == [3, 1, 2]
    assert F.pad(x, (0, 1), value=np.float32(0.5)).tolist() == [1.0, 1.0, 0.5]
    for call, error, says in (
        (lambda: F.pad(x, (1, 1), value="2"), TypeError, "pad: value must be a number, got str"),
        (lambda: gs.nn.LSTM(2, 3, 2, dropout="0"), TypeError, "LSTM: dropout must be a number"),
        (lambda: gs.tensor(1.0).unflatten(0, (1, 1)), IndexError, "unflatten: a tensor without"),
        (
            lambda: gs.grad(None, x),
            TypeError,
            "grad: outputs must be a Tensor or several, got None",
        ),
        (lambda: gs.grad(x, 3), TypeError, "grad: inputs must be a Tensor or several, got int"),
    ):
        with pytest.raises(error, match=says):
            call()
