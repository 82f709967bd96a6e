"""TensorFlow's side of the comparison: tf.function, plain or through XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from .nets import Net

VARIANTS = ("graph", "xla")


class Ops:
    def __init__(self, net: Net, training: bool):
        self.training = training
        self.p = {}
        for name, w in net.weights().items():
            if w.ndim == 4:
                w = w.transpose(1, 2, 3, 0)
            elif w.ndim == 2 and name not in ("token.weight", "position.weight"):
                w = w.T
            w = np.ascontiguousarray(w)
            self.p[name] = tf.Variable(w, trainable=net.trained(name)) if training else tf.constant(w)  # fmt: skip
            if not net.trained(name):
                self.p[name] = tf.Variable(w, trainable=False)

    def weight(self, name: str) -> Any:
        return self.p[f"{name}.weight"]

    def linear(self, x: Any, name: str) -> Any:
        return tf.linalg.matmul(x, self.p[f"{name}.weight"]) + self.p[f"{name}.bias"]

    def conv(self, x: Any, stride: int, padding: int, name: str) -> Any:
        pads = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        y = tf.nn.conv2d(x, self.p[f"{name}.weight"], stride, pads)
        bias = self.p.get(f"{name}.bias")
        return y if bias is None else tf.nn.bias_add(y, bias)

    def batch_norm(self, x: Any, name: str) -> Any:
        p = self.p
        mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
        scale, shift = p[f"{name}.weight"], p[f"{name}.bias"]
        if not self.training:
            return tf.nn.batch_normalization(x, mean, var, shift, scale, 1e-5)
        y, m, v = tf.compat.v1.nn.fused_batch_norm(x, scale, shift, epsilon=1e-5, is_training=True)
        mean.assign(0.9 * mean + 0.1 * m)
        var.assign(0.9 * var + 0.1 * v)
        return y

    def layer_norm(self, x: Any, name: str) -> Any:
        m, v = tf.nn.moments(x, -1, keepdims=True)
        return tf.nn.batch_normalization(
            x, m, v, self.p[f"{name}.bias"], self.p[f"{name}.weight"], 1e-5
        )

    def relu(self, x: Any) -> Any:
        return tf.nn.relu(x)

    def gelu(self, x: Any) -> Any:
        return tf.nn.gelu(x, approximate=True)

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def max_pool(self, x: Any) -> Any:
        return tf.nn.max_pool2d(x, 2, 2, "VALID")

    def mean_pool(self, x: Any) -> Any:
        return tf.reduce_mean(x, (1, 2))

    def flatten(self, x: Any) -> Any:
        return tf.reshape(x, (x.shape[0], -1))

    def embedding(self, x: Any, name: str) -> Any:
        return tf.gather(self.p[f"{name}.weight"], x)

    def attention(self, qkv: Any, heads: int) -> Any:
        n, t, width = qkv.shape
        size = width // 3 // heads
        split = tf.reshape(qkv, (n, t, 3, heads, size))
        q, k, v = tf.unstack(tf.transpose(split, (2, 0, 3, 1, 4)))
        scores = tf.linalg.matmul(q, k, transpose_b=True) * size**-0.5
        mask = np.triu(np.full((t, t), -1e30, np.float32), 1)
        y = tf.linalg.matmul(tf.nn.softmax(scores + mask), v)
        return tf.reshape(tf.transpose(y, (0, 2, 1, 3)), (n, t, width // 3))

    def lstm(self, x: Any, name: str) -> Any:
        p = self.p
        n, steps, _ = x.shape
        hidden = p[f"{name}.weight_hh"].shape[0]
        gates = tf.linalg.matmul(x, p[f"{name}.weight_ih"])
        gates += p[f"{name}.bias_ih"] + p[f"{name}.bias_hh"]
        h = c = tf.zeros((n, hidden))
        ys = []
        for g in tf.unstack(gates, steps, 1):
            i, f, a, o = tf.split(g + tf.linalg.matmul(h, p[f"{name}.weight_hh"]), 4, -1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(a)
            h = tf.sigmoid(o) * tf.tanh(c)
            ys.append(h)
        return tf.stack(ys, 1)

    def last(self, x: Any) -> Any:
        return x[:, -1]


def build(net: Net, batch: int, training: bool, variant: str, threads: int) -> Callable[[], Any]:
    """As in with_torch.py."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    x, y = net.data(batch)
    tx, ty = tf.constant(x), tf.constant(y)
    b = Ops(net, training)
    compiled = variant == "xla"
    if not training:
        infer = tf.function(lambda a: net.forward(b, a), jit_compile=compiled)
        return lambda: infer(tx).numpy()
    trained = [w for name, w in b.p.items() if net.trained(name)]
    optimizer = tf.keras.optimizers.AdamW(1e-3, weight_decay=0.01, epsilon=1e-8)
    optimizer.build(trained)

    @tf.function(jit_compile=compiled)
    def run(a: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = tf.reshape(net.forward(b, a), (-1, net.classes))
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(target, [-1]), logits)
            loss = tf.reduce_mean(each)
        optimizer.apply(tape.gradient(loss, trained), trained)
        return loss

    return lambda: float(run(tx, ty))
