"""Microseconds of one call of every public op and layer on small inputs, with a recorded gradient.

    python bench/op_overhead.py [--above 3] [--seconds 40] [NAME ...]

Inputs are (32, 64) float32, images (1, 8, 8, 8), sequences (2, 32, 8), one thread. All calls are
measured in rounds, one after the other, and the least of each is taken, so that a slow moment of the
machine does not fall on one op. Prints those above the bar, slowest first.
"""

import argparse
import time
from functools import partial

import numpy as np

import gradsmith as gs
from gradsmith import nn
from gradsmith.nn import functional as F

rng = np.random.default_rng(0)


def t(*shape, grad=True):
    return gs.tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=grad)


def ints(high, *shape):
    return gs.tensor(rng.integers(0, high, shape))


def positive(*shape, grad=True):
    return gs.tensor(rng.random(shape).astype(np.float32) * 0.9 + 0.05, requires_grad=grad)


def ops():
    x, y, p, q = t(32, 64), t(32, 64), positive(32, 64), positive(32, 64, grad=False)
    w, v, b, cube = t(64, 64), t(64), t(64), t(4, 8, 8)
    plain, mask = t(32, 64, grad=False), ints(2, 32, 64).bool()
    few, index, classes = ints(32, 8), ints(32, 32, 64), ints(64, 32)
    logp, probabilities = F.log_softmax(x, -1).detach(), F.softmax(plain, -1).detach()
    logp.requires_grad_()
    image, small, one, sequence = t(1, 8, 8, 8), t(1, 4, 4, 8), t(1, 8, 8, 1), t(2, 32, 8)
    heads, qkv, array = t(1, 2, 8, 16), t(1, 8, 96), np.ones((32, 64), np.float32)
    vector, scalar, mean, var = t(64, grad=False), gs.tensor(1.5), gs.zeros(64), gs.ones(64)
    weights = {
        "3x3": nn.Conv2d(8, 8, 3).weight,
        "1x1": nn.Conv2d(8, 8, 1).weight,
        "depthwise": nn.Conv2d(8, 8, 3, groups=8).weight,
        "stem": nn.Conv2d(1, 8, 3).weight,
        "3": nn.Conv1d(8, 8, 3).weight,
        "transposed": nn.ConvTranspose2d(8, 8, 2).weight,
        "transposed 1d": nn.ConvTranspose1d(8, 8, 2).weight,
    }
    calls = {
        "add": lambda: x + y,
        "add number": lambda: x + 1.0,
        "number - x": lambda: 1 - x,
        "mul": lambda: x * y,
        "mul column": lambda: x * x[:, :1],
        "add row": lambda: x + b,
        "div": lambda: x / p,
        "pow 2": lambda: x**2,
        "pow 3": lambda: x**3,
        "pow tensor": lambda: p**y,
        "maximum": lambda: gs.maximum(x, y),
        "remainder": lambda: gs.remainder(x, y),
        "floor_divide": lambda: gs.floor_divide(x, y),
        "clamp": lambda: x.clamp(-1, 1),
        "where": lambda: gs.where(mask, x, y),
        "masked_fill": lambda: x.masked_fill(mask, 0.0),
        "lerp": lambda: gs.lerp(x, y, 0.3),
        "lerp tensor": lambda: gs.lerp(x, y, p),
        "addcmul": lambda: gs.addcmul(x, y, p, value=0.5),
        "addcdiv": lambda: gs.addcdiv(x, y, p, value=0.5),
        "add_": lambda: plain.add_(0.0),
        "eq": lambda: x == y,
        "isclose": lambda: gs.isclose(x, y),
        "allclose": lambda: gs.allclose(x, y),
        "logical_and": lambda: gs.logical_and(mask, mask),
        "sum": lambda: x.sum(),
        "matmul": lambda: x @ w,
        "matmul, transposed right": lambda: x @ w.T,
        "matmul, transposed left": lambda: x.T @ y,
        "mv": lambda: w.mv(v),
        "dot": lambda: v.dot(b),
        "outer": lambda: v.outer(b),
        "addmm": lambda: gs.addmm(y, x, w),
        "linear": lambda: F.linear(x, w, b),
        "reshape": lambda: x.reshape(64, 32),
        "permute": lambda: cube.permute(2, 0, 1),
        "transpose": lambda: x.transpose(0, 1),
        "movedim": lambda: cube.movedim(0, 2),
        "unsqueeze": lambda: x.unsqueeze(0),
        "expand": lambda: b.expand(32, 64),
        "unflatten": lambda: x.unflatten(1, (8, 8)),
        "x[:, a:b]": lambda: x[:, 2:5],
        "x[i]": lambda: x[3],
        "x[..., i]": lambda: x[..., 0],
        "x[:, None]": lambda: x[:, None],
        "x[tensor]": lambda: x[few],
        "x[tensor, tensor]": lambda: x[few, few],
        "x[mask]": lambda: x[mask],
        "x[:, i] = number": lambda: plain.__setitem__((slice(None), 0), 1.0),
        "x[i] = tensor": lambda: plain.__setitem__(0, vector),
        "index_select": lambda: x.index_select(0, few),
        "gather": lambda: x.gather(1, index),
        "take_along_dim": lambda: gs.take_along_dim(x, index, 1),
        "scatter_add": lambda: x.scatter_add(0, index, y),
        "index_add": lambda: x.index_add(0, few, y[:8]),
        "cat": lambda: gs.cat([x, y]),
        "stack": lambda: gs.stack([x, y]),
        "split in 2": lambda: x.split(16),
        "chunk in 2": lambda: x.chunk(2, 1),
        "unbind 4": lambda: cube.unbind(0),
        "pad": lambda: F.pad(x, (1, 1)),
        "pad, reflect": lambda: F.pad(x, (1, 1), mode="reflect"),
        "flip": lambda: x.flip(1),
        "roll": lambda: x.roll(1, 1),
        "tile": lambda: x.tile((1, 2)),
        "repeat_interleave": lambda: x.repeat_interleave(2, 0),
        "tril": lambda: w.tril(),
        "diagonal": lambda: w.diagonal(),
        "narrow": lambda: x.narrow(0, 1, 4),
        "one_hot": lambda: F.one_hot(classes, 64),
        "to float64": lambda: x.double(),
        "clone": lambda: x.clone(),
        "max along": lambda: x.max(1),
        "argmax along": lambda: x.argmax(1),
        "norm along": lambda: x.norm(dim=1),
        "var_mean along": lambda: gs.var_mean(x, 1),
        "any along": lambda: mask.any(1),
        "all": lambda: mask.all(),
        "glu": lambda: F.glu(x),
        "prelu": lambda: F.prelu(x, b),
        "rrelu": lambda: F.rrelu(x, training=True),
        "softmax": lambda: F.softmax(x, -1),
        "softmax over rows": lambda: F.softmax(x, 0),
        "log_softmax": lambda: F.log_softmax(x, -1),
        "layer_norm": lambda: F.layer_norm(x, (64,), b, b),
        "rms_norm": lambda: F.rms_norm(x, (64,), b),
        "batch_norm": lambda: F.batch_norm(x, None, None, b, b, True),
        "batch_norm, evaluation": lambda: F.batch_norm(x, mean, var, b, b, False),
        "normalize": lambda: F.normalize(x),
        "cosine_similarity": lambda: F.cosine_similarity(x, y),
        "dropout": lambda: F.dropout(x, 0.5),
        "dropout1d": lambda: F.dropout1d(sequence, 0.5),
        "alpha_dropout": lambda: F.alpha_dropout(x, 0.5, True),
        "mse_loss": lambda: F.mse_loss(x, q),
        "huber_loss": lambda: F.huber_loss(x, q),
        "binary_cross_entropy": lambda: F.binary_cross_entropy(p, q),
        "bce with logits": lambda: F.binary_cross_entropy_with_logits(x, q),
        "kl_div": lambda: F.kl_div(logp, q),
        "nll_loss": lambda: F.nll_loss(logp, classes),
        "cross_entropy": lambda: F.cross_entropy(x, classes),
        "cross_entropy, probabilities": lambda: F.cross_entropy(x, probabilities),
        "cross_entropy, smoothed": lambda: F.cross_entropy(x, classes, label_smoothing=0.1),
        "embedding": lambda: F.embedding(classes, w),
        "conv1d 3": lambda: F.conv1d(sequence, weights["3"], padding=1),
        "conv2d 3x3, 8x8x8": lambda: F.conv2d(image, weights["3x3"], padding=1),
        "conv2d 3x3, 4x4x8": lambda: F.conv2d(small, weights["3x3"], padding=1),
        "conv2d 3x3 by 2": lambda: F.conv2d(image, weights["3x3"], stride=2, padding=1),
        "conv2d 1x1": lambda: F.conv2d(image, weights["1x1"]),
        "conv2d depthwise": lambda: F.conv2d(image, weights["depthwise"], padding=1, groups=8),
        "conv2d of one channel": lambda: F.conv2d(one, weights["stem"], padding=1),
        "conv_transpose2d": lambda: F.conv_transpose2d(small, weights["transposed"], stride=2),
        "conv_transpose1d": lambda: F.conv_transpose1d(
            sequence, weights["transposed 1d"], stride=2
        ),
        "max_pool2d": lambda: F.max_pool2d(image, 2),
        "avg_pool2d": lambda: F.avg_pool2d(image, 2),
        "adaptive_avg_pool2d": lambda: F.adaptive_avg_pool2d(image, 1),
        "attention": lambda: F.scaled_dot_product_attention(heads, heads, heads),
        "attention_qkv": lambda: F.attention_qkv(qkv, 2),
        "zeros": lambda: gs.zeros(32, 64),
        "full": lambda: gs.full((32, 64), 1.0),
        "arange": lambda: gs.arange(64),
        "rand": lambda: gs.rand(32, 64),
        "randn": lambda: gs.randn(32, 64),
        "randint": lambda: gs.randint(0, 9, (32,)),
        "tensor of an array": lambda: gs.tensor(array),
        "item": lambda: scalar.item(),
        "sum and backward": lambda: x.sum().backward(),
    }
    names = "abs neg square sqrt rsqrt reciprocal exp expm1 log log1p log2 log10 sin cos tan floor round sign isnan"
    for name in names.split():
        calls[name] = partial(getattr(gs, name), p)
    names = "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign hardtanh hardswish sigmoid tanh logsigmoid"
    for name in names.split():
        calls[name] = partial(getattr(F, name), x)
    for name in ["mean", "var", "std", "amax", "prod", "cumsum", "logsumexp"]:
        calls[f"{name} along"] = partial(getattr(gs, name), x, 1)
    rows, state = t(4, 8, grad=False), t(4, 8)
    layers = {
        nn.Linear(64, 64): (x,),
        nn.Bilinear(8, 8, 4): (state, state),
        nn.LayerNorm(64): (x,),
        nn.RMSNorm(64): (x,),
        nn.BatchNorm1d(64): (x,),
        nn.BatchNorm2d(8): (image,),
        nn.GroupNorm(4, 8): (image,),
        nn.InstanceNorm2d(8): (image,),
        nn.Conv2d(8, 8, 3, padding=1): (image,),
        nn.Conv1d(8, 8, 3, padding=1): (sequence,),
        nn.ConvTranspose2d(8, 8, 2, stride=2): (small,),
        nn.ReLU(): (x,),
        nn.Softplus(): (x,),
        nn.Dropout(): (x,),
        nn.Embedding(64, 64): (classes,),
        nn.CrossEntropyLoss(): (x, classes),
        nn.BCEWithLogitsLoss(): (x, q),
        nn.RNNCell(8, 8): (rows, state),
        nn.GRUCell(8, 8): (rows, state),
        nn.LSTMCell(8, 8): (rows, (state, state)),
        nn.LSTM(8, 8): (t(4, 2, 8),),
        nn.GRU(8, 8): (t(4, 2, 8),),
        nn.MultiheadAttention(16, 2, batch_first=True): (t(1, 4, 16),) * 3,
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True): (t(1, 4, 16),),
    }
    for layer, inputs in layers.items():
        calls[f"nn.{type(layer).__name__}"] = partial(layer, *inputs)
    for name in [
        "SGD",
        "Adagrad",
        "RMSprop",
        "Adadelta",
        "Adam",
        "AdamW",
        "NAdam",
        "Adamax",
        "RAdam",
    ]:
        parameters = [nn.Parameter(np.ones(8, np.float32)) for _ in range(4)]
        for parameter in parameters:
            parameter.grad = gs.ones(8)
        calls[f"{name}.step of 4"] = getattr(gs.optim, name)(parameters, lr=1e-5).step
    model = gs.models.mlp(32, 64, 64, 10)
    calls["Module.zero_grad of 6"] = model.zero_grad
    calls["Module.train of 6"] = model.train
    return calls


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="only calls whose name holds one of these")
    parser.add_argument("--above", type=float, default=3.0, help="microseconds")
    parser.add_argument("--seconds", type=float, default=40)
    args = parser.parse_args()
    gs.set_num_threads(1)
    calls = {
        name: call
        for name, call in ops().items()
        if not args.names or any(part in name for part in args.names)
    }
    least = {}
    for call in calls.values():
        call()
    end = time.perf_counter() + args.seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(50):
                call()
            took = (time.perf_counter() - start) / 50 * 1e6
            least[name] = min(took, least.get(name, took))
    for name, took in sorted(least.items(), key=lambda item: -item[1]):
        if args.names or took > args.above:
            print(f"{took:7.2f}  {name}")
    above = sum(took > args.above for took in least.values())
    print(f"{len(least)} calls, {above} above {args.above:g} us")


if __name__ == "__main__":
    main()
