"""Recurrent layers and cells, under PyTorch's names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core import recording
from ..core.arguments import number
from ..core.creation import filled
from ..core.tensor import Parameter, Tensor
from ..ops.dropout import dropout as drop
from ..ops.indexing import index_select
from ..ops.joining import cat
from ..ops.recurrent import GRU as _GRU
from ..ops.recurrent import LSTM as _LSTM
from ..ops.recurrent import (
    RNN_RELU,
    RNN_TANH,
    RecurrentBackward,
    RecurrentCellBackward,
    recurrent_layer,
)
from . import init
from .module import Module
from .utils.rnn import PackedSequence

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

_GATES = {_LSTM: 4, _GRU: 3, RNN_TANH: 1, RNN_RELU: 1}


def _mode(nonlinearity: str, name: str) -> int:
    modes = {"tanh": RNN_TANH, "relu": RNN_RELU}
    if nonlinearity not in modes:
        raise ValueError(f"{name}: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    return modes[nonlinearity]


def _positive(name: str, **sizes: Any) -> None:
    for what, n in sizes.items():
        if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
            raise TypeError(f"{name}: {what} must be an int, got {type(n).__name__}")
        if n < 1:
            raise ValueError(f"{name}: {what} = {n} must be at least 1")


class _Recurrent(Module):
    mode: int

    def __init__(
        self,
        mode: int,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        dtype: Any = np.float32,
    ):
        super().__init__()
        name = type(self).__name__
        _positive(name, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        if not 0.0 <= number(name, "dropout", dropout) <= 1.0:
            raise ValueError(f"{name}: dropout must lie in [0, 1], got {dropout}")
        if proj_size:
            raise ValueError(
                f"{name}: proj_size = {proj_size} is not supported; put a Linear layer behind the LSTM instead"
            )
        self.mode = mode
        self.input_size = int(input_size)
        self.hidden_size = int(hidden_size)
        self.num_layers = int(num_layers)
        self.bias = bool(bias)
        self.batch_first = bool(batch_first)
        self.dropout = float(dropout)
        self.bidirectional = bool(bidirectional)
        self._directions = 2 if bidirectional else 1
        rows = _GATES[mode] * self.hidden_size
        for layer in range(self.num_layers):
            size = self.input_size if layer == 0 else self.hidden_size * self._directions
            for suffix in self._suffixes(layer):
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (rows, size),
                    "weight_hh": (rows, self.hidden_size),
                }
                if bias:
                    shapes["bias_ih"] = shapes["bias_hh"] = (rows,)
                for part, shape in shapes.items():
                    setattr(self, part + suffix, Parameter(filled(shape, dtype)))
        self.reset_parameters()

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]

    def _weights(self, layer: int) -> tuple:
        if layer == 0 and self._directions == 1 and self.bias:
            return (self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
        out: list[Any] = []
        for s in self._suffixes(layer):
            out += [getattr(self, "weight_ih" + s), getattr(self, "weight_hh" + s)]
            out += [getattr(self, b + s) if self.bias else None for b in ("bias_ih", "bias_hh")]
        return tuple(out)

    def reset_parameters(self) -> None:
        """Draws all parameters again, from U(-b, b) with b = 1 / sqrt(hidden_size)."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for p in self.parameters():
            init.uniform_(p, -bound, bound)

    def _check_state(self, s: Any, what: str, batch: int, single: bool, like: Tensor) -> Tensor:
        name = type(self).__name__
        layers = self.num_layers * self._directions
        if not isinstance(s, Tensor):
            raise TypeError(f"{name}: {what} must be a Tensor, got {type(s).__name__}")
        want = (layers, self.hidden_size) if single else (layers, batch, self.hidden_size)
        if s.shape != want:
            raise ValueError(
                f"{name}: {what} has shape {s.shape}; expected {want} (layers * directions"
                + ("" if single else ", batch")
                + ", hidden_size)"
            )
        if s.dtype != like.dtype:
            raise TypeError(f"{name}: {what} is {s.dtype} and input is {like.dtype}")
        return s.unsqueeze(1) if single else s

    def forward(self, input: Any, hx: Any = None) -> Any:
        if hx is None and self.num_layers == 1 and self._directions == 1:  # the plain case
            weights = self._weights(0)
            out = weights[0]._k.apply_layer(
                RecurrentBackward, self.mode, input, *weights, self.batch_first
            )
            if out is not None:
                return out[0], (out[1:] if self.mode == _LSTM else out[1])
        name = type(self).__name__
        packed = input if isinstance(input, PackedSequence) else None
        x: Tensor = input.data if packed is not None else input
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name}: input must be a Tensor or a PackedSequence, got {type(x).__name__}"
            )
        axes = "(rows, {0})" if packed else "(B, T, {0})" if self.batch_first else "(T, B, {0})"
        good = x.ndim == 2 if packed else x.ndim in (2, 3)
        if (
            not packed
            and good
            and 0 in (x.shape[:1] if x.ndim == 2 else x.shape[self.batch_first :][:1])
        ):
            raise ValueError(
                f"{name}: input has shape {x.shape}; a sequence needs at least one step"
            )
        if not good or x.shape[-1] != self.input_size:
            raise ValueError(
                f"{name}: input has shape {x.shape}; expected {axes.format(self.input_size)}"
                + ("" if packed else f", or (T, {self.input_size}) without a batch")
            )
        first = self.weight_ih_l0
        if x.dtype != first.dtype:
            raise TypeError(
                f"{name}: input is {x.dtype} and the weights are {first.dtype}; convert one with .to(...)"
            )
        single = packed is None and x.ndim == 2
        if single:
            x = x.unsqueeze(0 if self.batch_first else 1)
        sizes = None
        if packed is not None:
            sizes = recording.host_array(packed.batch_sizes)
            batch = int(sizes[0])
        else:
            batch = x.shape[0 if self.batch_first else 1]
        if hx is None:
            h0 = c0 = None
        elif self.mode == _LSTM:
            if not isinstance(hx, (tuple, list)) or len(hx) != 2:
                raise TypeError(f"{name}: hx must be a pair (h_0, c_0), got {type(hx).__name__}")
            h0 = self._check_state(hx[0], "h_0", batch, single, x)
            c0 = self._check_state(hx[1], "c_0", batch, single, x)
        else:
            h0, c0 = self._check_state(hx, "h_0", batch, single, x), None
        if packed is not None and packed.sorted_indices is not None:
            h0, c0 = (
                None if s is None else index_select(s, 1, packed.sorted_indices) for s in (h0, c0)
            )
        D = self._directions
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            if layer and self.training and self.dropout:
                x = drop(x, self.dropout)
            part = slice(layer * D, (layer + 1) * D)
            whole = self.num_layers == 1
            out = recurrent_layer(
                self.mode,
                x,
                h0 if whole or h0 is None else h0[part],
                c0 if whole or c0 is None else c0[part],
                self._weights(layer),
                self.batch_first and packed is None,
                sizes,
            )
            x = out[0]
            finals.append(out[1:])
        states = [f[0] if len(f) == 1 else cat(f, 0) for f in zip(*finals)]
        if packed is not None:
            if packed.unsorted_indices is not None:
                states = [index_select(s, 1, packed.unsorted_indices) for s in states]
            output: Any = packed._replace(data=x)
        else:
            output = x
        if single:
            output = x.squeeze(0 if self.batch_first else 1)
            states = [s.squeeze(1) for s in states]
        return output, (tuple(states) if self.mode == _LSTM else states[0])

    def flatten_parameters(self) -> None:
        """Nothing: PyTorch's layers move their weights together for a GPU by it."""

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        for what, usual in (
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
        ):
            if getattr(self, what) != usual:
                text += f", {what}={getattr(self, what)}"
        return text


class LSTM(_Recurrent):
    """Long short-term memory over sequences.

    i, f, o = sigmoid(W_ih x_t + b_ih + W_hh h + b_hh), g = tanh(...); c = f c + i g; h = o tanh(c). Gates
    lie in the order i, f, g, o. Arguments, parameter names (weight_ih_l0 (4 H, I), weight_hh_l0 (4 H, H),
    bias_ih_l0, bias_hh_l0, ..._l1, ..._reverse) and defaults are PyTorch's; proj_size must be 0.

    input: (T, B, I), (B, T, I) with batch_first, (T, I), or a PackedSequence. hx: (h_0, c_0), each
    (num_layers * directions, B, H), zeros when None. Returns output (T, B, directions * H), (h_n, c_n).
    dropout acts between layers, in training. ValueError: shapes that do not fit.
    Hochreiter and Schmidhuber, 1997; Gers, Schmidhuber and Cummins, 2000.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> output, (h, c) = nn.LSTM(3, 5)(gs.ones(7, 2, 3))
    >>> output.shape, h.shape
    ((7, 2, 5), (1, 2, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        dtype: Any = np.float32,
    ):
        super().__init__(
            _LSTM, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, dtype,
        )  # fmt: skip


class GRU(_Recurrent):
    """Gated recurrent units over sequences.

    r, z = sigmoid(W_ih x_t + b_ih + W_hh h + b_hh), n = tanh(W_in x_t + b_in + r (W_hn h + b_hn)),
    h = (1 - z) n + z h. Gates lie in the order r, z, n. Arguments, parameter names and defaults are
    PyTorch's. input and hx as in `LSTM`, with h_0 alone. Returns output (T, B, directions * H), h_n
    (num_layers * directions, B, H). ValueError: shapes that do not fit. Cho et al., 2014.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> output, h = nn.GRU(3, 5, bidirectional=True)(gs.ones(7, 2, 3))
    >>> output.shape, h.shape
    ((7, 2, 10), (2, 2, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = np.float32,
    ):
        super().__init__(
            _GRU, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            dtype=dtype,
        )  # fmt: skip


class RNN(_Recurrent):
    """Elman network: h = tanh(W_ih x_t + b_ih + W_hh h + b_hh), or relu; arguments are PyTorch's.

    nonlinearity: "tanh" or "relu" (ValueError). Inputs, results and errors as in `GRU`. Elman, 1990.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.RNN(3, 5, nonlinearity="relu", batch_first=True)(gs.ones(2, 7, 3))[0].shape
    (2, 7, 5)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = np.float32,
    ):
        mode = _mode(nonlinearity, "RNN")
        super().__init__(
            mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            dtype=dtype,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class _Cell(Module):
    def __init__(self, mode: int, input_size: int, hidden_size: int, bias: bool, dtype: Any):
        super().__init__()
        _positive(type(self).__name__, input_size=input_size, hidden_size=hidden_size)
        self.mode = mode
        self.input_size = int(input_size)
        self.hidden_size = int(hidden_size)
        self.bias = bool(bias)
        rows = _GATES[mode] * self.hidden_size
        self.weight_ih = Parameter(filled((rows, self.input_size), dtype))
        self.weight_hh = Parameter(filled((rows, self.hidden_size), dtype))
        for b in ("bias_ih", "bias_hh"):
            self.register_parameter(b, Parameter(filled(rows, dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters again, from U(-b, b) with b = 1 / sqrt(hidden_size)."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for p in self.parameters():
            init.uniform_(p, -bound, bound)

    def _step(self, x: Tensor, h: Any = None, c: Any = None) -> Any:
        """(h,) or (h, c) after one step."""
        weight = self.weight_ih
        out = weight._k.apply_cell(
            RecurrentCellBackward,
            self.mode,
            x,
            h,
            c,
            weight,
            self.weight_hh,
            self.bias_ih,
            self.bias_hh,
        )
        return self._other_step(x, h, c) if out is None else out

    def _other_step(self, x: Tensor, h: Any, c: Any) -> Any:
        """For an input without a batch, and for what does not fit: says so."""
        states = (h, c) if self.mode == _LSTM else (h,)
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        name = type(self).__name__
        for t in (x, *states):
            if not isinstance(t, Tensor) and (t is x or t is not None):
                raise TypeError(
                    f"{name}: {'input' if t is x else 'a state'} must be a Tensor, got {type(t).__name__}"
                )
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            raise ValueError(
                f"{name}: input has shape {x.shape}; expected (B, {self.input_size}) or ({self.input_size},)"
            )
        if x.dtype != self.weight_ih.dtype:
            raise TypeError(
                f"{name}: input is {x.dtype} and the weights are {self.weight_ih.dtype}"
            )
        want = (*x.shape[:-1], self.hidden_size)
        for s in states:
            if s is not None and (s.shape != want or s.dtype != x.dtype):
                raise ValueError(
                    f"{name}: a state has shape {s.shape} and dtype {s.dtype}; expected {want} and {x.dtype}"
                )
        single = x.ndim == 1
        lead = (1, 1) if single else (1, x.shape[0])
        h0, c0 = (
            None if s is None else s.reshape(*lead, self.hidden_size)
            for s in (states + (None,))[:2]
        )
        outs = recurrent_layer(self.mode, x.reshape(*lead, self.input_size), h0, c0, weights)
        return tuple(s.reshape(*want) for s in outs[1:])

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class LSTMCell(_Cell):
    """One step of an LSTM: (h, c) from input (B, I) and hx = (h, c), each (B, H), zeros when None.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> h, c = nn.LSTMCell(3, 5)(gs.ones(2, 3))
    >>> h.shape, c.shape
    ((2, 5), (2, 5))
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, dtype: Any = np.float32
    ):
        super().__init__(_LSTM, input_size, hidden_size, bias, dtype)

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Tensor]:
        if hx is not None and (not isinstance(hx, (tuple, list)) or len(hx) != 2):
            raise TypeError(f"LSTMCell: hx must be a pair (h, c), got {type(hx).__name__}")
        return self._step(input) if hx is None else self._step(input, *hx)


class GRUCell(_Cell):
    """One step of a GRU: h from input (B, I) and hx (B, H), zeros when None.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.GRUCell(3, 5)(gs.ones(2, 3)).shape
    (2, 5)
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, dtype: Any = np.float32
    ):
        super().__init__(_GRU, input_size, hidden_size, bias, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._step(input, hx)[0]


class RNNCell(_Cell):
    """One step of an Elman network: h from input (B, I) and hx (B, H), zeros when None.

    >>> import gradsmith as gs, gradsmith.nn as nn
    >>> nn.RNNCell(3, 5, nonlinearity="relu")(gs.ones(2, 3)).shape
    (2, 5)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        dtype: Any = np.float32,
    ):
        super().__init__(_mode(nonlinearity, "RNNCell"), input_size, hidden_size, bias, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._step(input, hx)[0]

    def extra_repr(self) -> str:
        kind = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return super().extra_repr() + kind
