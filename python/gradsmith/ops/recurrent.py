"""One recurrent layer over all steps: LSTM, GRU, RNN, in one or both directions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.autograd import Node, _wants, apply
from ..core.tensor import Tensor

__all__: list[str] = []

LSTM, GRU, RNN_TANH, RNN_RELU = range(4)


class RecurrentBackward(Node):
    """The time loop in reverse gives the gradients of the gates; weights and inputs follow by products."""

    __slots__ = ("batch_first", "directions", "mode", "sizes")
    mode: int
    batch_first: bool
    sizes: Any
    directions: int

    def backward(self, dout: Any, dhn: Any, dcn: Any = None) -> tuple:
        k, D = self.k, self.directions
        # input, (w_ih, w_hh) of each direction, (gates, hprev, aux) of each direction
        x, *rest = self.saved
        need_x, need_h, need_c, *need_w = self.needs
        rows = x.reshape(-1, x.shape[-1]) if x.flags.c_contiguous else None
        dx: Any = None
        grads: list[Any] = []
        states: tuple[list, list] = ([], [])
        for d in range(D):
            w_ih, w_hh = rest[2 * d : 2 * d + 2]
            gates, hprev, aux = rest[2 * D + 3 * d : 2 * D + 3 * d + 3]
            dg, dh, dh0, dc0 = k.recurrent_backward(
                self.mode, gates, w_hh, self.sizes, self.batch_first, d, hprev, aux, dout,
                None if dhn is None else dhn[d], None if dcn is None else dcn[d], need_h, need_c,
            )  # fmt: skip
            states[0].append(dh0)
            states[1].append(dc0)
            # rows of gates and hprev may be longer than what they hold
            width, row, n = w_hh.shape[0], dg.shape[-1], hprev.shape[0]
            same = dh is dg
            dg = dg.reshape(n, row)[:, :width]
            dh = dg if same else dh.reshape(n, row)[:, :width]
            if need_x:
                if dx is None:
                    dx = k.matmul(dg, w_ih)
                else:
                    k.matmul_out(dx, dg, w_ih, accumulate=True)
            wants = need_w[4 * d : 4 * d + 4]
            if wants[0] and rows is None:
                rows = k.contiguous(x).reshape(-1, x.shape[-1])
            grads += [
                k.matmul(dg, rows, ta=True) if wants[0] else None,
                k.matmul(dh, hprev[:, : w_hh.shape[1]], ta=True) if wants[1] else None,
            ]
            bias = k.colsum(dg) if wants[2] or (wants[3] and dh is dg) else None
            grads.append(bias if wants[2] else None)
            if not wants[3]:
                grads.append(None)
            elif self.mode == GRU:
                grads.append(k.colsum(dh))
            else:
                grads.append(k.colsum(dg) if bias is None else bias)
        if dx is not None:
            dx = dx.reshape(x.shape)

        def stacked(parts: list) -> Any:
            if parts[0] is None:
                return None
            parts = [p.reshape(1, *p.shape) for p in parts]
            return parts[0] if len(parts) == 1 else k.cat(parts, 0)

        return (
            dx,
            stacked(states[0]) if need_h else None,
            stacked(states[1]) if need_c else None,
            *grads,
        )


def recurrent_layer(
    mode: int,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: tuple[Tensor | None, ...],
    batch_first: bool = False,
    sizes: np.ndarray | None = None,
) -> tuple[Tensor, ...]:
    """(output, h_n) or (output, h_n, c_n) of one layer.

    mode: LSTM, GRU, RNN_TANH, RNN_RELU. x: (T, B, I), (B, T, I) when batch_first, or packed (rows, I)
    with sizes, the int64 number of rows of each step. h0, c0: (directions, B, H) or None for zeros.
    weights: w_ih (G H, I), w_hh (G H, H), b_ih, b_hh (G H,) or None, of each direction.
    output: as x with directions * H columns; h_n, c_n: (directions, B, H).
    """
    k = x._k
    D = len(weights) // 4
    w_hh = weights[1]
    assert w_hh is not None
    data = x.data
    H = w_hh.data.shape[1]
    name, shape = data.dtype, data.shape
    lead = shape[:-1]
    B = int(sizes[0]) if sizes is not None else shape[0 if batch_first else 1]
    out = k.empty((*lead, D * H), name)
    hn = k.empty((D, B, H), name)
    cn = k.empty((D, B, H), name) if mode == LSTM else None
    inputs = (x, h0, c0 if mode == LSTM else None, *weights)
    keep = _wants(inputs) is not None
    kept: list[Any] = []
    steps = len(sizes) if sizes is not None else shape[1 if batch_first else 0]
    whole = k.recurrent_takes_input(mode, B, steps, shape[-1], H, name.itemsize)
    for d in range(D):
        w, u, b, c = weights[4 * d : 4 * d + 4]
        assert w is not None and u is not None
        bias = None if b is None else b.data
        own: tuple = ()
        gates = None
        if whole:  # the input part never exists as an array
            own = (data, w.data, bias)
        else:
            gates = k.linear(data, w.data, bias)
        gates, hprev, aux = k.recurrent(
            mode, gates, u.data, None if c is None else c.data,
            None if h0 is None else h0.data[d], None if c0 is None else c0.data[d], sizes,
            batch_first, d, out, hn, cn, keep, *own,
        )  # fmt: skip
        kept += [gates, hprev, hprev if aux is None else aux]  # RNN has no third
    outs = (out, hn, cn) if mode == LSTM else (out, hn)
    saved: list[Any] = [x]
    for d in range(D):
        saved += [weights[4 * d], weights[4 * d + 1]]
    return apply(
        RecurrentBackward, k, outs, inputs, saved + kept,
        mode=mode, batch_first=batch_first, sizes=sizes, directions=D,
    )  # fmt: skip


class RecurrentCellBackward(RecurrentBackward):
    """As RecurrentBackward for one step, without the axes of time and direction."""

    __slots__ = ()
    batch_first, sizes, directions = False, None, 1

    def backward(self, dh: Any, dc: Any = None, _: Any = None) -> tuple:
        k = self.k
        dhn = None if dh is None else k.contiguous(dh)[None]
        dcn = None if dc is None else k.contiguous(dc)[None]
        dx, dh0, dc0, *grads = RecurrentBackward.backward(self, None, dhn, dcn)
        return dx, None if dh0 is None else dh0[0], None if dc0 is None else dc0[0], *grads
