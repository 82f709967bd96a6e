"""LSTM, GRU and RNN against float64 NumPy and PyTorch; gradients; packed batches, edges, hostile input."""

import inspect

import numpy as np
import pytest

import gradsmith as gs
from gradsmith import nn
from gradsmith.nn.utils.rnn import (
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
)

KINDS = ["LSTM", "GRU", "RNN", "RNN relu"]


def make(kind, *args, **kwargs):
    if kind == "RNN relu":
        return nn.RNN(*args, nonlinearity="relu", **kwargs)
    return getattr(nn, kind)(*args, **kwargs)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell(kind, x, h, c, w, u, b, bh):
    """One step in float64."""
    gi, gh = x @ w.T + b, h @ u.T + bh
    if kind == "LSTM":
        i, f, g, o = np.split(gi + gh, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    if kind == "GRU":
        (ri, zi, ni), (rh, zh, nh) = np.split(gi, 3, -1), np.split(gh, 3, -1)
        r, z = sigmoid(ri + rh), sigmoid(zi + zh)
        n = np.tanh(ni + r * nh)
        return (1 - z) * n + z * h, c
    return (np.tanh(gi + gh) if kind == "RNN" else np.maximum(gi + gh, 0)), c


def reference(kind, layer, x, h0, c0, lengths=None):
    """x (T, B, I) -> output, h_n, c_n, step by step in float64, sequences of the given lengths."""
    p = {n: v.detach().numpy().astype(np.float64) for n, v in layer.named_parameters()}
    T, B, _ = x.shape
    D = 2 if layer.bidirectional else 1
    H = layer.hidden_size
    lengths = [T] * B if lengths is None else lengths
    hs, cs = h0.copy(), c0.copy()
    x = x.astype(np.float64)
    for k in range(layer.num_layers):
        out = np.zeros((T, B, D * H))
        for d in range(D):
            s = f"_l{k}" + ("_reverse" if d else "")
            w, u = p["weight_ih" + s], p["weight_hh" + s]
            b = p.get("bias_ih" + s, np.zeros(len(w)))
            bh = p.get("bias_hh" + s, np.zeros(len(w)))
            for j in range(B):
                h, c = hs[k * D + d, j], cs[k * D + d, j]
                steps = range(lengths[j])
                for t in reversed(steps) if d else steps:
                    h, c = cell(kind, x[t, j], h, c, w, u, b, bh)
                    out[t, j, d * H : (d + 1) * H] = h
                hs[k * D + d, j], cs[k * D + d, j] = h, c
        x = out
    return x, hs, cs


SHAPES = [
    # T, B, I, H
    (1, 1, 1, 1),
    (3, 2, 5, 7),
    (5, 33, 3, 16),
    (4, 6, 17, 40),
    (2, 13, 8, 64),
    (9, 1, 4, 129),
    (3, 0, 4, 5),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", ["plain", "no bias", "two", "both ways"])
def test_against_numpy(rng, kind, shape, variant):
    T, B, I, H = shape
    first = bool(rng.integers(2))
    args = {"no bias": {"bias": False}, "two": {"num_layers": 2}}.get(variant, {})
    if variant == "both ways":
        args = {"num_layers": 2, "bidirectional": True}
    layer = make(kind, I, H, batch_first=first, **args)
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    n = layer.num_layers * (2 if layer.bidirectional else 1)
    h0, c0 = (rng.standard_normal((n, B, H)).astype(np.float32) for _ in range(2))
    zero = bool(rng.integers(2))
    if zero:
        h0[...] = c0[...] = 0
    hx = (gs.tensor(h0), gs.tensor(c0)) if kind == "LSTM" else gs.tensor(h0)
    given = gs.tensor(x.transpose(1, 0, 2).copy() if first else x)
    out, state = layer(given, None if zero else hx)
    h, c = state if kind == "LSTM" else (state, None)
    ref, rh, rc = reference(kind, layer, x, h0.astype(float), c0.astype(float))
    got = out.detach().numpy()
    got = got.transpose(1, 0, 2) if first else got
    tol = {"rtol": 1e-4, "atol": 5e-6 * max(1.0, abs(ref).max(initial=0))}
    np.testing.assert_allclose(got, ref, **tol)
    np.testing.assert_allclose(h.detach().numpy(), rh, **tol)
    if c is not None:
        np.testing.assert_allclose(c.detach().numpy(), rc, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(rng, kind, both, packed):
    layer = make(kind, 3, 5, bidirectional=both, dtype=np.float64)
    n = 2 if both else 1
    x = gs.tensor(rng.standard_normal((4, 3, 3)), requires_grad=True)
    h0 = gs.tensor(rng.standard_normal((n, 3, 5)), requires_grad=True)
    c0 = gs.tensor(rng.standard_normal((n, 3, 5)), requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def fn(x, h0, c0, *weights):
        for name, w in zip(names, weights):
            layer._parameters[name] = w
        hx = (h0, c0) if kind == "LSTM" else h0
        given = pack_padded_sequence(x, [2, 4, 1], enforce_sorted=False) if packed else x
        out, state = layer(given, hx)
        out = out.data if packed else out
        return (out, *state) if kind == "LSTM" else (out, state)

    inputs = [x, h0, *([c0] if kind == "LSTM" else []), *layer.parameters()]
    run = fn if kind == "LSTM" else lambda x, h0, *w: fn(x, h0, c0, *w)
    assert gs.gradcheck(run, inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
def test_packed_against_numpy(rng, kind, layers):
    """Sequences of different lengths, in any order, as if each ran alone."""
    B, T, I, H = 9, 7, 6, 20
    lengths = rng.integers(1, T + 1, B)
    lengths[rng.integers(B)] = T
    layer = make(kind, I, H, num_layers=layers, bidirectional=True)
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    x[np.arange(T)[:, None] >= lengths] = np.nan  # padding is never read
    h0, c0 = (rng.standard_normal((2 * layers, B, H)).astype(np.float32) for _ in range(2))
    hx = (gs.tensor(h0), gs.tensor(c0)) if kind == "LSTM" else gs.tensor(h0)
    packed = pack_padded_sequence(gs.tensor(x), lengths, enforce_sorted=False)
    out, state = layer(packed, hx)
    padded, n = pad_packed_sequence(out)
    h, c = state if kind == "LSTM" else (state, None)
    ref, rh, rc = reference(kind, layer, x, h0.astype(float), c0.astype(float), lengths)
    assert n.tolist() == lengths.tolist()
    tol = {"rtol": 1e-4, "atol": 5e-6 * max(1.0, abs(ref).max())}
    np.testing.assert_allclose(padded.detach().numpy(), ref, **tol)
    np.testing.assert_allclose(h.detach().numpy(), rh, **tol)
    if c is not None:
        np.testing.assert_allclose(c.detach().numpy(), rc, rtol=1e-4, atol=1e-5)


def test_packing_helpers(rng):
    a = [gs.tensor(rng.standard_normal((n, 2)).astype(np.float32)) for n in (2, 5, 3)]
    padded = pad_sequence(a)
    assert padded.shape == (5, 3, 2) and not padded.numpy()[2:, 0].any()
    assert pad_sequence(a, batch_first=True, padding_side="left").numpy()[0, :3].any() == np.False_
    packed = pack_sequence(a, enforce_sorted=False)
    assert packed.batch_sizes.tolist() == [3, 3, 2, 1, 1]
    for x, y in zip(a, unpack_sequence(packed)):
        assert (x.numpy() == y.numpy()).all()
    out, n = pad_packed_sequence(packed, batch_first=True, padding_value=-1.0, total_length=6)
    assert out.shape == (3, 6, 2) and (out.numpy()[0, 2:] == -1).all() and n.tolist() == [2, 5, 3]
    for bad, match in (
        ([5, 5], "lengths"),
        ([6, 1, 1], "1 .. 5"),
        ([0, 1, 1], "1 .. 5"),
        ([1, 2, 3], "rise"),
    ):
        with pytest.raises(ValueError, match=match):
            pack_padded_sequence(padded, bad)
    with pytest.raises(ValueError, match="total_length"):
        pad_packed_sequence(packed, total_length=2)
    with pytest.raises(TypeError, match="pad_packed_sequence: .* PackedSequence, got Tensor"):
        pad_packed_sequence(out)
    torch = pytest.importorskip("torch")
    theirs = torch.nn.utils.rnn.pack_sequence(
        [torch.tensor(x.numpy()) for x in a], enforce_sorted=False
    )
    assert (theirs.data.numpy() == packed.data.numpy()).all()
    assert theirs.batch_sizes.tolist() == packed.batch_sizes.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_torch(rng, kind, both, dtype):
    """Outputs and gradients with the same weights."""
    torch = pytest.importorskip("torch")
    name, extra = (kind, {}) if kind != "RNN relu" else ("RNN", {"nonlinearity": "relu"})
    theirs = getattr(torch.nn, name)(9, 30, 2, bidirectional=both, **extra).to(
        torch.float64 if dtype == np.float64 else torch.float32
    )
    ours = make(kind, 9, 30, num_layers=2, bidirectional=both, dtype=dtype)
    ours.load_state_dict({n: p.detach().numpy() for n, p in theirs.state_dict().items()})
    x = rng.standard_normal((11, 14, 9)).astype(dtype)
    h0, c0 = (rng.standard_normal((4 if both else 2, 14, 30)).astype(dtype) for _ in range(2))
    tt = [torch.tensor(v, requires_grad=True) for v in (x, h0, c0)]
    oo = [gs.tensor(v, requires_grad=True) for v in (x, h0, c0)]
    a, sa = theirs(tt[0], (tt[1], tt[2]) if kind == "LSTM" else tt[1])
    b, sb = ours(oo[0], (oo[1], oo[2]) if kind == "LSTM" else oo[1])
    tol = {"rtol": 2e-4, "atol": 2e-5} if dtype == np.float32 else {"rtol": 1e-9, "atol": 1e-11}
    np.testing.assert_allclose(b.detach().numpy(), a.detach().numpy(), **tol)
    g = rng.standard_normal(a.shape).astype(dtype)
    loss_a, loss_b = (a * torch.tensor(g)).sum(), (b * gs.tensor(g)).sum()
    for u, v in zip(sa, sb) if kind == "LSTM" else ((sa, sb),):
        np.testing.assert_allclose(v.detach().numpy(), u.detach().numpy(), **tol)
        loss_a, loss_b = loss_a + (u * u).sum(), loss_b + (v * v).sum()
    loss_a.backward()
    loss_b.backward()
    for t, o in zip(tt[: 3 if kind == "LSTM" else 2], oo):
        want = t.grad.numpy()
        np.testing.assert_allclose(
            o.grad.numpy(), want, rtol=tol["rtol"], atol=tol["atol"] * (1 + abs(want).max())
        )
    for n, p in ours.named_parameters():
        want = dict(theirs.named_parameters())[n].grad.numpy()
        np.testing.assert_allclose(
            p.grad.numpy(),
            want,
            rtol=tol["rtol"],
            atol=tol["atol"] * (1 + abs(want).max()),
            err_msg=n,
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch, hidden", [(6, 640), (40, 100)])  # split by units, by sequences
def test_same_bits_on_any_number_of_threads(rng, kind, batch, hidden):
    before = gs.get_num_threads()
    layer = make(kind, 24, hidden, bidirectional=True)
    x = gs.tensor(rng.standard_normal((6, batch, 24)).astype(np.float32), requires_grad=True)
    seen = []
    try:
        for n in (1, 2, 3):
            gs.set_num_threads(n)
            x.grad = None
            layer.zero_grad()
            out, _ = layer(x)
            (out * out).sum().backward()
            seen.append(
                [out.detach().numpy(), x.grad.numpy()]
                + [p.grad.numpy() for p in layer.parameters()]
            )
    finally:
        gs.set_num_threads(before)
    for other in seen[1:]:
        assert all((a == b).all() for a, b in zip(seen[0], other))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("hidden", [256, 250])
def test_weights_beyond_a_second_cache(rng, kind, hidden):
    """Members with sequences of their own, padded rows of states, gradients over 2080 rows, written over the gates in
    a captured step: against PyTorch in float64, and the same bits whatever the threads."""
    torch = pytest.importorskip("torch")
    T, B, I = 52, 40, 24
    layer = make(kind, I, hidden, batch_first=True)
    theirs = getattr(torch.nn, kind)(I, hidden, batch_first=True).double()
    theirs.load_state_dict(
        {n: torch.tensor(p.detach().numpy().astype(float)) for n, p in layer.named_parameters()}
    )
    x = rng.standard_normal((B, T, I)).astype(np.float32)
    w = rng.standard_normal((B, T, hidden)).astype(np.float32)
    h0, c0 = (rng.standard_normal((1, B, hidden)).astype(np.float32) for _ in range(2))
    tt = [torch.tensor(v.astype(float), requires_grad=True) for v in (x, h0, c0)]
    out, _ = theirs(tt[0], (tt[1], tt[2]) if kind == "LSTM" else tt[1])
    (out * torch.tensor(w.astype(float))).sum().backward()
    used = tt[: 3 if kind == "LSTM" else 2]
    want = [out.detach().numpy()] + [v.grad.numpy() for v in [*used, *theirs.parameters()]]

    before = gs.get_num_threads()
    seen = []
    try:
        for n in (3, 1, 2):
            gs.set_num_threads(n)
            layer.zero_grad()
            oo = [gs.tensor(v, requires_grad=True) for v in (x, h0, c0)][: len(used)]
            out, _ = layer(oo[0], tuple(oo[1:]) if kind == "LSTM" else oo[1])
            (out * gs.tensor(w)).sum().backward()
            seen.append(
                [out.detach().numpy()] + [v.grad.numpy() for v in [*oo, *layer.parameters()]]
            )

        def step(x, w):
            out, _ = layer(x)
            (out * w).sum().backward()
            grads = [p.grad.clone() for p in layer.parameters()]
            layer.zero_grad()
            return [out.detach(), *grads]

        run = gs.capture(step)
        layer.zero_grad()
        eager = [v.numpy() for v in step(gs.tensor(x), gs.tensor(w))]
        for _ in range(4):
            replayed = [v.numpy() for v in run(gs.tensor(x), gs.tensor(w))]
        assert run.reason is None, run.reason
    finally:
        gs.set_num_threads(before)
    for got, ref in zip(seen[0], want):
        np.testing.assert_allclose(got, ref, rtol=2e-4, atol=2e-5 * (1 + abs(ref).max()))
    for other in seen[1:]:
        assert all((a == b).all() for a, b in zip(seen[0], other))
    assert all((a == b).all() for a, b in zip(eager, replayed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_strips_that_members_take_in_turn(rng, kind, packed):
    """So many steps that a member takes strips of the batch again and again, from others too."""
    T, B, H = 40, 21, 128
    layer = make(kind, 5, H)
    lengths = sorted(rng.integers(1, T + 1, B).tolist(), reverse=True) if packed else [T] * B
    lengths[0] = T
    x = rng.standard_normal((T, B, 5)).astype(np.float32)
    w = rng.standard_normal((T, B, H)).astype(np.float32)
    zero = np.zeros((1, B, H))
    want, h, _ = reference(kind, layer, x, zero, zero, lengths)
    before = gs.get_num_threads()
    seen = []
    try:
        for n in (1, 2, 2, 3, 2):
            gs.set_num_threads(n)
            layer.zero_grad()
            t = gs.tensor(x, requires_grad=True)
            out, last = layer(pack_padded_sequence(t, lengths) if packed else t)
            if packed:
                out, _ = pad_packed_sequence(out)
            (out * gs.tensor(w)).sum().backward()
            seen.append(
                [out.detach().numpy(), (last[0] if kind == "LSTM" else last).detach().numpy()]
                + [t.grad.numpy()]
                + [p.grad.numpy() for p in layer.parameters()]
            )
    finally:
        gs.set_num_threads(before)
    np.testing.assert_allclose(seen[0][0], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen[0][1], h, rtol=1e-4, atol=1e-5)
    for other in seen[1:]:
        assert all((a == b).all() for a, b in zip(seen[0], other))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batch, hidden, steps", [(1, 5, 1), (1, 256, 4), (9, 33, 5), (40, 100, 6)])
def test_inference_gives_the_bits_of_training(rng, kind, batch_first, batch, hidden, steps):
    """Without a backward neither gates nor states are kept; states of two steps take turns."""
    layer = make(kind, 7, hidden, num_layers=2, bidirectional=True, batch_first=batch_first)
    shape = (batch, steps, 7) if batch_first else (steps, batch, 7)
    x = gs.tensor(rng.standard_normal(shape).astype(np.float32))
    h = gs.tensor(rng.standard_normal((4, batch, hidden)).astype(np.float32))
    states = (None, (h, h + 1.0) if kind == "LSTM" else h)
    before = gs.get_num_threads()
    try:
        for state in states:
            want, last = layer(x, state)
            for n in (1, 2, 3):
                gs.set_num_threads(n)
                with gs.no_grad():
                    got, end = layer(x, state)
                assert (got.numpy() == want.detach().numpy()).all()
                for a, b in zip(end, last):
                    assert (a.numpy() == b.detach().numpy()).all()
    finally:
        gs.set_num_threads(before)


def test_cells_are_one_step(rng):
    x = gs.tensor(rng.standard_normal((3, 4)).astype(np.float32))
    for kind, cell_cls in (("LSTM", nn.LSTMCell), ("GRU", nn.GRUCell), ("RNN", nn.RNNCell)):
        layer, one = make(kind, 4, 6), cell_cls(4, 6)
        one.load_state_dict({n[:-3]: p.detach().numpy() for n, p in layer.named_parameters()})
        h = c = None
        for _t in range(3):
            if kind == "LSTM":
                h, c = one(x, None if h is None else (h, c))
            else:
                h = one(x, h)
        out, _ = layer(gs.stack([x, x, x]))
        np.testing.assert_allclose(
            h.detach().numpy(), out.detach().numpy()[-1], rtol=1e-5, atol=1e-6
        )
        state = one(x[0]) if kind != "LSTM" else one(x[0])[0]
        assert state.shape == (6,)
        assert list(one.state_dict()) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cell_has_the_gradients_of_a_layer_of_one_step(rng, kind, bias, dtype):
    one = getattr(nn, kind + "Cell")(4, 6, bias=bias, dtype=dtype)
    layer = make(kind, 4, 6, bias=bias, dtype=dtype)
    layer.load_state_dict({n + "_l0": p.detach().numpy() for n, p in one.named_parameters()})
    parts = [rng.standard_normal((5, n)).astype(dtype) for n in (4, 6, 6)]
    seeds = [gs.tensor(rng.standard_normal((5, 6)).astype(dtype)) for _ in range(2)]
    for used in (0, 1, 2) if kind == "LSTM" else (0, 1):  # without a state, with h, with h and c
        ours = [gs.tensor(p, requires_grad=True) for p in parts]
        theirs = [gs.tensor(p, requires_grad=True) for p in parts]
        zero = gs.tensor(np.zeros((5, 6), dtype))
        if kind == "LSTM":
            hx = None if not used else (ours[1], ours[2] if used > 1 else zero)
            state = [zero, zero] if not used else [theirs[1], theirs[2] if used > 1 else zero]
            got = one(ours[0], hx)
            want = layer(theirs[0][None], tuple(s[None] for s in state))[1]
        else:
            got = (one(ours[0], ours[1] if used else None),)
            want = (layer(theirs[0][None], theirs[1][None] if used else None)[1],)
        for p in (*one.parameters(), *layer.parameters()):
            p.grad = None
        sum((g * s).sum() for g, s in zip(got, seeds)).backward()
        sum((w[0] * s).sum() for w, s in zip(want, seeds)).backward()
        for g, w in zip(got, want):
            np.testing.assert_array_equal(g.detach().numpy(), w.detach().numpy()[0])
        for a, b in zip(ours[: used + 1], theirs):
            np.testing.assert_array_equal(a.grad.numpy(), b.grad.numpy())
        for a, b in zip(one.parameters(), layer.parameters()):
            np.testing.assert_array_equal(a.grad.numpy(), b.grad.numpy())
        with gs.no_grad():
            quiet = one(ours[0], hx) if kind == "LSTM" else one(ours[0], ours[1] if used else None)
        quiet = quiet if kind == "LSTM" else (quiet,)
        for g, q in zip(got, quiet):
            assert not q.requires_grad
            np.testing.assert_array_equal(g.detach().numpy(), q.numpy())


def test_unbatched_and_dropout(rng):
    layer = nn.LSTM(4, 6, 2, dropout=0.5)
    x = gs.tensor(rng.standard_normal((5, 4)).astype(np.float32))
    layer.eval()
    out, (h, c) = layer(x)
    ref, (rh, rc) = layer(x.unsqueeze(1))
    assert out.shape == (5, 6) and h.shape == (2, 6) and c.shape == (2, 6)
    assert (out.detach().numpy() == ref.detach().numpy()[:, 0]).all()
    assert (h.detach().numpy() == rh.detach().numpy()[:, 0]).all()
    out2, _ = layer(x, (h, c))
    ref2, _ = layer(x.unsqueeze(1), (rh, rc))
    assert (out2.detach().numpy() == ref2.detach().numpy()[:, 0]).all()
    layer.train()
    gs.manual_seed(1)
    a = layer(x)[0].detach().numpy()
    b = layer(x)[0].detach().numpy()
    gs.manual_seed(1)
    assert (a == layer(x)[0].detach().numpy()).all() and not (a == b).all()


def test_saturated_and_tiny_gates():
    """Large pre-activations give 0, 1 and +-1; small ones keep their relative accuracy."""
    for scale in (1e4, 1e-4):
        layer = nn.RNN(1, 3, bias=False)
        layer.weight_ih_l0.data[...] = [[scale], [-scale], [0.0]]
        out, _ = layer(gs.ones(1, 1, 1))
        np.testing.assert_allclose(
            out.detach().numpy().ravel(), np.tanh([scale, -scale, 0.0]), rtol=5e-7, atol=0
        )
    layer = nn.LSTM(1, 2)
    layer.weight_ih_l0.data[...] = 1e4
    out, (_, c) = layer(gs.ones(3, 1, 1))
    np.testing.assert_allclose(c.detach().numpy(), 3.0, rtol=1e-6)
    bad, _ = layer(gs.tensor(np.full((1, 1, 1), np.nan, np.float32)))
    assert np.isnan(bad.detach().numpy()).all()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_each_gate_passes_nan_and_bears_infinity(kind):
    """A NaN in one gate alone reaches the state; a gate at infinity is open or shut."""
    H = 3
    for gate in range(4 if kind == "LSTM" else 3):
        for value in (np.nan, np.inf, -np.inf, 1e30, -1e30):
            layer = make(kind, 1, H)
            for p in layer.parameters():
                p.data[...] = 0.1
            layer.bias_ih_l0.data[gate * H : (gate + 1) * H] = value
            with np.errstate(over="ignore"):
                p = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0]
                p = [v.detach().numpy().astype(np.float64) for v in p]
                h = c = np.full((1, H), 0.5)
                want, _ = cell(kind, np.ones((1, 1)), h, c, *p)
            start = gs.tensor(np.full((1, 1, H), 0.5, np.float32))
            out, _ = layer(gs.ones(1, 1, 1), (start, start) if kind == "LSTM" else start)
            np.testing.assert_allclose(
                out.detach().numpy()[0], want, rtol=1e-6, atol=1e-7, err_msg=f"{gate} {value}"
            )


def test_parameters_and_start():
    layer = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    shapes = {n: p.shape for n, p in layer.named_parameters()}
    assert shapes["weight_ih_l0"] == (16, 3) and shapes["weight_ih_l1_reverse"] == (16, 8)
    assert shapes["weight_hh_l1"] == (16, 4) and shapes["bias_hh_l0_reverse"] == (16,)
    assert all(abs(p.detach().numpy()).max() <= 0.5 for p in layer.parameters())
    torch = pytest.importorskip("torch")
    theirs = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True).state_dict()
    assert list(theirs) == list(layer.state_dict())


def test_bad_input():
    layer = nn.LSTM(3, 4)
    x = gs.ones(5, 2, 3)
    with pytest.raises(
        ValueError, match=r"LSTM: input has shape \(5, 2, 4\); expected \(T, B, 3\)"
    ):
        layer(gs.ones(5, 2, 4))
    with pytest.raises(ValueError, match="input has shape"):
        layer(gs.ones(3))
    with pytest.raises(ValueError, match="at least one step"):
        layer(gs.ones(0, 2, 3))
    with pytest.raises(TypeError, match="float64"):
        layer(x.double())
    with pytest.raises(TypeError, match="pair"):
        layer(x, gs.ones(1, 2, 4))
    with pytest.raises(ValueError, match="h_0 has shape"):
        layer(x, (gs.ones(1, 3, 4), gs.ones(1, 2, 4)))
    with pytest.raises(ValueError, match="c_0 has shape"):
        layer(x, (gs.ones(1, 2, 4), gs.ones(2, 4)))
    with pytest.raises(TypeError, match="Tensor"):
        layer(x.numpy())
    with pytest.raises(ValueError, match="proj_size"):
        nn.LSTM(3, 4, proj_size=2)
    with pytest.raises(ValueError, match="at least 1"):
        nn.GRU(0, 4)
    with pytest.raises(TypeError, match="must be an int"):
        nn.GRU(3, 4.0)
    with pytest.raises(ValueError, match="nonlinearity"):
        nn.RNN(3, 4, nonlinearity="gelu")
    with pytest.raises(ValueError, match="dropout"):
        nn.LSTM(3, 4, dropout=2.0)
    with pytest.raises(ValueError, match="expected"):
        nn.GRUCell(3, 4)(gs.ones(2, 5))
    with pytest.raises(ValueError, match="state"):
        nn.GRUCell(3, 4)(gs.ones(2, 3), gs.ones(2, 5))
    with pytest.raises(TypeError, match="GRUCell: input must be a Tensor, got ndarray"):
        nn.GRUCell(3, 4)(np.ones((2, 3), np.float32))
    with pytest.raises(TypeError, match="LSTMCell: a state must be a Tensor, got int"):
        nn.LSTMCell(3, 4)(gs.ones(2, 3), (gs.ones(2, 4), 3))
    with pytest.raises(TypeError, match="float64"):
        nn.RNNCell(3, 4)(gs.ones(2, 3).double())


def test_lstm_learns():
    """The sum of the marked numbers of a sequence (the adding problem, short)."""
    gs.manual_seed(0)
    rng = np.random.default_rng(0)
    layer, head = nn.LSTM(2, 32, batch_first=True), nn.Linear(32, 1)
    opt = gs.optim.Adam([*layer.parameters(), *head.parameters()], lr=1e-2)

    def batch(n, T=12):
        x = np.zeros((n, T, 2), np.float32)
        x[:, :, 0] = rng.random((n, T))
        for r in x:
            r[rng.permutation(T)[:2], 1] = 1
        return x, (x[:, :, 0] * x[:, :, 1]).sum(1, keepdims=True)

    for _ in range(300):
        x, y = batch(64)
        opt.zero_grad()
        out, _ = layer(gs.tensor(x))
        loss = gs.nn.functional.mse_loss(head(out[:, -1]), gs.tensor(y))
        loss.backward()
        gs.optim.clip_grad_norm_([*layer.parameters(), *head.parameters()], 1.0)
        opt.step()
    x, y = batch(500)
    out, _ = layer(gs.tensor(x))
    error = ((head(out[:, -1]).detach().numpy() - y) ** 2).mean()
    assert error < 0.02  # the mean of y alone gives 1/6


@pytest.mark.parametrize("kind", KINDS)
def test_captured_step_gives_the_same_bits(kind):
    """Two layers in both directions with dropout between them: replays equal the eager steps."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 5, 6, 4)).astype(np.float32)
    y = rng.integers(0, 3, (8, 6))

    def train(captured):
        gs.manual_seed(2)
        layer = make(kind, 4, 10, num_layers=2, dropout=0.3, bidirectional=True)
        head = nn.Linear(20, 3)
        params = [*layer.parameters(), *head.parameters()]
        opt = gs.optim.AdamW(params, lr=1e-2)

        def step(a, b):
            opt.zero_grad()
            loss = gs.nn.functional.cross_entropy(head(layer(a)[0][-1]), b)
            loss.backward()
            opt.step()
            return loss

        run = gs.capture(step) if captured else step
        losses = [run(gs.tensor(a), gs.tensor(b)).item() for a, b in zip(x, y)]
        if captured:
            assert run.reason is None, run.reason
            assert sum(p["replays"] for p in run.programs) >= 5
        return losses, [p.detach().numpy() for p in params]

    (la, pa), (lb, pb) = train(False), train(True)
    assert la == lb and all((a == b).all() for a, b in zip(pa, pb))


def test_flatten_parameters_is_borne():
    """Programs written for PyTorch call it after they load or copy a layer."""
    layer = nn.GRU(2, 3)
    assert layer.flatten_parameters() is None and layer(gs.ones(1, 1, 2))[0].shape == (1, 1, 3)


@pytest.mark.parametrize("layer", [gs.nn.LSTM, gs.nn.GRU, gs.nn.RNN])
def test_arguments_are_those_of_pytorch_and_an_unknown_one_names_the_layer(layer):
    names = list(inspect.signature(layer).parameters)
    common = ["num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    assert [n for n in names if n in common] == common and names[:2] == [
        "input_size",
        "hidden_size",
    ]
    with pytest.raises(TypeError, match=rf"^{layer.__name__}\.__init__.* 'num_layer'"):
        layer(3, 5, num_layer=2)
    assert layer(3, 5, dtype="float64").weight_ih_l0.dtype == "float64"
