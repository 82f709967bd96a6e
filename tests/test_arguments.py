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
