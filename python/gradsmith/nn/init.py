"""Initialisers: fill a parameter in place from the stream of `gs.manual_seed`.

A layer's default fits the activation that usually follows it; `activation_init_` picks by name:
He for the ReLU family, LeCun for SELU, Glorot for linear, tanh, sigmoid and softmax.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core import random, recording
from ..core.arguments import number
from ..core.tensor import Tensor

__all__ = [
    "activation_init_", "calculate_fan", "calculate_gain", "constant_", "eye_", "kaiming_normal_", "kaiming_uniform_",
    "lecun_normal_", "lecun_uniform_", "normal_", "ones_", "orthogonal_", "trunc_normal_", "uniform_",
    "xavier_normal_", "xavier_uniform_", "zeros_",
]  # fmt: skip


def _write(t: Tensor, a: np.ndarray) -> Tensor:
    t._k.copy_(t.data, a)
    t._ver[0] += 1
    return t


def _tensor(t: Any, op: str) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: expected a Tensor or Parameter, got {type(t).__name__}")


def _check(t: Any, op: str) -> None:
    _tensor(t, op)
    if t.data.dtype.kind != "f":
        raise TypeError(f"{op}: expected a float tensor, got {t.data.dtype}")


def calculate_fan(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight: Linear (out, in), conv (out, ..., in/groups), channels last.

    fan_in = in/groups * kernel area, fan_out = out * kernel area. TypeError: no Tensor. ValueError: fewer than 2
    dimensions.

    >>> import gradsmith as gs
    >>> gs.nn.init.calculate_fan(gs.zeros(8, 3, 3, 4))
    (36, 72)
    """
    _tensor(tensor, "calculate_fan")
    shape = tensor.data.shape
    if len(shape) < 2:
        raise ValueError(f"init: fans need at least 2 dimensions, the tensor has shape {shape}")
    area = math.prod(shape[1:-1])
    return shape[-1] * area, shape[0] * area


_CONVOLUTIONS = [f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)]


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor on the standard deviation that keeps the variance through an activation.

    1 for linear, sigmoid, softmax and convolutions, 5/3 for tanh, sqrt(2) for relu and its smooth kin (gelu, silu,
    elu, ...), sqrt(2 / (1 + param^2)) for leaky_relu with the slope param (0.01), 3/4 for selu.
    ValueError: another name. TypeError: no string, a slope that is no number. Source: He et al., Delving Deep into
    Rectifiers, 2015; the values of tanh and selu are PyTorch's.

    >>> import gradsmith as gs
    >>> round(gs.nn.init.calculate_gain("relu"), 4), gs.nn.init.calculate_gain("leaky_relu", 1.0)
    (1.4142, 1.0)
    """
    if not isinstance(nonlinearity, str):
        raise TypeError(
            f"calculate_gain: nonlinearity must be a string, got {type(nonlinearity).__name__}"
        )
    name = nonlinearity.lower()
    if name in ("linear", "identity", "sigmoid", "softmax") or name in _CONVOLUTIONS:
        return 1.0
    if name == "tanh":
        return 5.0 / 3.0
    if name in (
        "relu",
        "relu6",
        "gelu",
        "silu",
        "swish",
        "elu",
        "celu",
        "mish",
        "hardswish",
        "softplus",
    ):
        return math.sqrt(2.0)
    if name in ("leaky_relu", "rrelu", "prelu"):
        slope = 0.01 if param is None else number("calculate_gain", "param", param)
        return math.sqrt(2.0 / (1.0 + slope * slope))
    if name == "selu":
        return 0.75
    raise ValueError(f"calculate_gain: unknown nonlinearity {nonlinearity!r}")


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """tensor ~ U(a, b), each element on its own; returns the tensor, as every initialiser does.

    TypeError: no float Tensor, bounds that are no numbers. ValueError: a above b.

    >>> import gradsmith as gs
    >>> w = gs.nn.init.uniform_(gs.empty(1000), -0.5, 0.5)
    >>> w.min().item() >= -0.5, w.max().item() < 0.5
    (True, True)
    """
    _check(tensor, "uniform_")
    a, b = number("uniform_", "a", a), number("uniform_", "b", b)
    if not a <= b:
        raise ValueError(f"uniform_: a = {a} must not be above b = {b}")
    if b - a > float(np.finfo(tensor.data.dtype).max):
        raise ValueError(f"uniform_: b - a = {b - a} does not fit {tensor.data.dtype}")
    seed, counter = random.next_counter()
    return _write(
        tensor,
        tensor._k.uniform(tensor.data.shape, tensor.data.dtype, a, b, seed, counter),
    )


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """tensor ~ N(mean, std^2), each element on its own.

    TypeError: no float Tensor, mean or std no number. ValueError: a negative std.

    >>> import gradsmith as gs
    >>> w = gs.nn.init.normal_(gs.empty(10000), mean=3.0, std=0.1)
    >>> round(w.mean().item(), 1), round(w.std().item(), 1)
    (3.0, 0.1)
    """
    _check(tensor, "normal_")
    mean, std = number("normal_", "mean", mean), number("normal_", "std", std)
    if not std >= 0:
        raise ValueError(f"normal_: std = {std} must not be negative")
    seed, counter = random.next_counter()
    return _write(
        tensor,
        tensor._k.normal(tensor.data.shape, tensor.data.dtype, mean, std, seed, counter),
    )


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Tensor:
    """tensor ~ N(mean, std^2) restricted to [a, b], by redrawing what falls outside.

    a, b: the bounds themselves, not in standard deviations. TypeError: no float Tensor, no numbers. ValueError: a
    negative std, a mean or std that is not finite, a not below b, bounds more than 2 std from the mean.

    >>> import gradsmith as gs
    >>> w = gs.nn.init.trunc_normal_(gs.empty(1000), std=0.02, a=-0.04, b=0.04)
    >>> abs(w).max().item() <= 0.04
    True
    """
    _check(tensor, "trunc_normal_")
    op = "trunc_normal_"
    mean, std = number(op, "mean", mean), number(op, "std", std)
    a, b = number(op, "a", a), number(op, "b", b)
    if not (0 <= std < math.inf and a < b and math.isfinite(mean)):
        raise ValueError(
            f"trunc_normal_: needs a finite mean and std >= 0 and a < b, got mean = {mean}, std = {std}, a = {a}, b = {b}"
        )
    if std == 0 or mean < a - 2 * std or mean > b + 2 * std:
        raise ValueError(
            f"trunc_normal_: [{a}, {b}] is more than 2 standard deviations from mean {mean}"
        )
    # Drawn evenly over [a, b] and kept in proportion to the density where that keeps more than drawing from the whole
    # distribution: narrow bounds, or a far tail, would have to be redrawn for ever.
    low, high = (a - mean) / std, (b - mean) / std
    nearest = min(max(low, 0.0), high)
    even = math.sqrt(2 * math.pi) * math.exp(nearest * nearest / 2) > high - low
    rng = _generator()

    def draw(count: Any) -> tuple[np.ndarray, np.ndarray]:
        if not even:
            x = rng.normal(mean, std, count)
            return x, (x < a) | (x > b)
        x = rng.uniform(a, b, count)
        density = np.exp((nearest * nearest - ((x - mean) / std) ** 2) / 2)
        return x, rng.random(count) > density

    x, bad = draw(tensor.data.shape)
    while bad.any():
        x[bad], again = draw(int(bad.sum()))
        bad[bad] = again
    dtype = tensor.data.dtype
    bounds = np.array([a, b], dtype)  # those of the dtype that lie within
    if bounds[0] < a:
        bounds[0] = np.nextafter(bounds[0], bounds[1])
    if bounds[1] > b:
        bounds[1] = np.nextafter(bounds[1], bounds[0])
    return _write(tensor, np.clip(x.astype(dtype), *bounds))


def _generator() -> np.random.Generator:
    recording.host_read("this initialisation", "Initialise outside")
    seed, counter = random.next_counter()
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, counter]))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Every element = val. TypeError: no Tensor, val no number. ValueError: val does not fit its dtype.

    >>> import gradsmith as gs
    >>> gs.nn.init.constant_(gs.empty(2), 0.5).tolist()
    [0.5, 0.5]
    """
    _tensor(tensor, "constant_")
    if not isinstance(val, (int, float)):
        number("constant_", "val", val)  # NumPy fills with NaN for None
    try:
        tensor.data.fill(val)
    except (TypeError, ValueError, OverflowError) as error:
        number("constant_", "val", val)
        raise ValueError(f"constant_: {error}") from None
    tensor._ver[0] += 1
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """Every element = 0. TypeError: no Tensor.

    >>> import gradsmith as gs
    >>> gs.nn.init.zeros_(gs.empty(2)).tolist()
    [0.0, 0.0]
    """
    _tensor(tensor, "zeros_")
    return constant_(tensor, 0)


def ones_(tensor: Tensor) -> Tensor:
    """Every element = 1. TypeError: no Tensor.

    >>> import gradsmith as gs
    >>> gs.nn.init.ones_(gs.empty(2)).tolist()
    [1.0, 1.0]
    """
    _tensor(tensor, "ones_")
    return constant_(tensor, 1)


def eye_(tensor: Tensor) -> Tensor:
    """The identity matrix in a 2-d tensor, (n, m): 1 on the diagonal, 0 elsewhere.

    TypeError: no Tensor. ValueError: not 2 dimensions.

    >>> import gradsmith as gs
    >>> gs.nn.init.eye_(gs.empty(2, 3)).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    _tensor(tensor, "eye_")
    if tensor.data.ndim != 2:
        raise ValueError(f"eye_: expected 2 dimensions, got shape {tensor.shape}")
    return _write(tensor, np.eye(*tensor.data.shape, dtype=tensor.data.dtype))


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Glorot: U(-a, a), a = gain * sqrt(6 / (fan_in + fan_out)).

    The fans are those of `calculate_fan`, with its errors. Source: Glorot and Bengio, Understanding the Difficulty
    of Training Deep Feedforward Neural Networks, 2010.

    >>> import gradsmith as gs
    >>> w = gs.nn.init.xavier_uniform_(gs.empty(100, 50))  # a = 0.2
    >>> round(abs(w).max().item(), 2)
    0.2
    """
    fan_in, fan_out = calculate_fan(tensor)
    a = number("xavier_uniform_", "gain", gain) * math.sqrt(6.0 / max(1, fan_in + fan_out))
    return uniform_(tensor, -a, a)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Glorot: N(0, std^2), std = gain * sqrt(2 / (fan_in + fan_out)).

    The fans are those of `calculate_fan`, with its errors. Source: Glorot and Bengio, 2010, as in `xavier_uniform_`.

    >>> import gradsmith as gs
    >>> w = gs.nn.init.xavier_normal_(gs.empty(120, 80))  # std = 0.1
    >>> round(w.std().item(), 2)
    0.1
    """
    fan_in, fan_out = calculate_fan(tensor)
    std = number("xavier_normal_", "gain", gain) * math.sqrt(2.0 / max(1, fan_in + fan_out))
    return normal_(tensor, 0.0, std)


def _fan(tensor: Tensor, mode: str) -> int:
    fan_in, fan_out = calculate_fan(tensor)
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"init: mode {mode!r} must be 'fan_in' or 'fan_out'")
    return fan_in if mode == "fan_in" else fan_out


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """He: U(-b, b), b = gain * sqrt(3 / fan), gain = `calculate_gain(nonlinearity, a)`.

    a: the slope of leaky_relu. mode: "fan_in" keeps the variance of what flows forward, "fan_out" of the gradients.
    ValueError: another mode, an unknown nonlinearity; errors of `calculate_fan`. Source: He, Zhang, Ren and Sun,
    Delving Deep into Rectifiers, 2015.

    >>> import gradsmith as gs
    >>> w = gs.nn.init.kaiming_uniform_(gs.empty(100, 600), nonlinearity="relu")  # b = 0.1
    >>> round(abs(w).max().item(), 2)
    0.1
    """
    b = calculate_gain(nonlinearity, a) * math.sqrt(3.0 / max(1, _fan(tensor, mode)))
    return uniform_(tensor, -b, b)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """He: N(0, std^2), std = gain / sqrt(fan); arguments, errors and source as in `kaiming_uniform_`.

    >>> import gradsmith as gs
    >>> w = gs.nn.init.kaiming_normal_(gs.empty(100, 200), nonlinearity="relu")  # std = 0.1
    >>> round(w.std().item(), 2)
    0.1
    """
    return normal_(
        tensor, 0.0, calculate_gain(nonlinearity, a) / math.sqrt(max(1, _fan(tensor, mode)))
    )


def lecun_uniform_(tensor: Tensor) -> Tensor:
    """LeCun: U(-a, a), a = sqrt(3 / fan_in). Errors as in `calculate_fan`.

    Source: LeCun, Bottou, Orr and Müller, Efficient BackProp, 1998.

    >>> import gradsmith as gs
    >>> w = gs.nn.init.lecun_uniform_(gs.empty(100, 300))  # a = 0.1
    >>> round(abs(w).max().item(), 2)
    0.1
    """
    a = math.sqrt(3.0 / max(1, _fan(tensor, "fan_in")))
    return uniform_(tensor, -a, a)


def lecun_normal_(tensor: Tensor) -> Tensor:
    """LeCun: N(0, 1 / fan_in); what SELU needs. Errors as in `calculate_fan`.

    Source: LeCun et al., 1998, as in `lecun_uniform_`; for SELU: Klambauer, Unterthiner, Mayr and Hochreiter, 2017.

    >>> import gradsmith as gs
    >>> w = gs.nn.init.lecun_normal_(gs.empty(200, 100))  # std = 0.1
    >>> round(w.std().item(), 2)
    0.1
    """
    return normal_(tensor, 0.0, math.sqrt(1.0 / max(1, _fan(tensor, "fan_in"))))


def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """A (semi-)orthogonal matrix times gain, over (shape[0], rest): its rows or columns, the fewer, are orthogonal.

    TypeError: no float Tensor, gain no number. ValueError: fewer than 2 dimensions. Source: Saxe, McClelland and
    Ganguli, Exact Solutions to the Nonlinear Dynamics of Learning in Deep Linear Neural Networks, 2014.

    >>> import gradsmith as gs
    >>> w = gs.nn.init.orthogonal_(gs.empty(2, 5))
    >>> gs.allclose(w @ w.T, gs.eye(2), atol=1e-6)
    True
    """
    _check(tensor, "orthogonal_")
    gain = number("orthogonal_", "gain", gain)
    if tensor.data.ndim < 2:
        raise ValueError(f"orthogonal_: expected at least 2 dimensions, got shape {tensor.shape}")
    rows = tensor.data.shape[0]
    cols = tensor.data.size // max(rows, 1)
    g = _generator().normal(size=(max(rows, cols), min(rows, cols)))
    q, r = np.linalg.qr(g)
    q = q * np.sign(np.where(np.diag(r) == 0, 1.0, np.diag(r)))
    if rows < cols:
        q = q.T
    return _write(
        tensor, np.ascontiguousarray(gain * q).reshape(tensor.data.shape).astype(tensor.data.dtype)
    )


def activation_init_(
    tensor: Tensor,
    activation: str,
    param: float | None = None,
    fans: tuple[float, float] | None = None,
) -> Tensor:
    """The initialiser that fits the activation which follows the layer.

    He normal for the ReLU family, LeCun normal for SELU, Glorot uniform for linear, tanh, sigmoid, softmax.
    param: the slope of leaky_relu. fans: (fan_in, fan_out) where `calculate_fan` does not tell them, as of a transposed
    convolution. TypeError: activation is no string. ValueError: it is unknown; fewer than 2 dimensions. Sources as in
    `kaiming_uniform_`, `lecun_normal_` and `xavier_uniform_`.

    >>> import gradsmith as gs
    >>> w = gs.nn.init.activation_init_(gs.empty(100, 200), "relu")  # std = sqrt(2 / 200)
    >>> round(w.std().item(), 2)
    0.1
    """
    if not isinstance(activation, str):
        raise TypeError(f"init: activation must be a name such as 'relu', got {activation!r}")
    name = activation.lower()
    fan_in, fan_out = fans or calculate_fan(tensor)
    if name == "selu":
        return normal_(tensor, 0.0, math.sqrt(1.0 / max(1, fan_in)))
    if name in ("linear", "identity", "tanh", "sigmoid", "softmax", "log_softmax", "logsigmoid"):
        a = math.sqrt(6.0 / max(1, fan_in + fan_out))
        return uniform_(tensor, -a, a)
    calculate_gain(name, param)  # ValueError for an unknown name
    gain = calculate_gain("leaky_relu", param) if param else math.sqrt(2.0)
    return normal_(tensor, 0.0, gain / math.sqrt(max(1, fan_in)))
