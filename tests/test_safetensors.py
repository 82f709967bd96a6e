"""Checkpoint files: what save got comes back, nothing is lost, hostile files are errors."""

import json
import math
import os
import random
import stat
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest

import gradsmith as gs
from gradsmith.interop.safetensors import load, save


def same(a, b):
    """Equal in structure, types and bits."""
    assert type(a) is type(b), (a, b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, float) and math.isnan(a):
        assert math.isnan(b)
    else:
        assert a == b and str(a) == str(b)  # -0.0 too


STATE = {
    "model": {
        "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
        "conv.bias": np.zeros(0, np.float32),
        "steps": np.array(7, np.int64),
        "mask": np.array([True, False, True]),
    },
    "optim": [{"lr": 0.1, "betas": (0.9, 0.999), "step": 12}, None, [], {}, ()],
    "random": {"seed": 2**64 - 1, "counter": 0},
    "text": 'schön / "quoted" \u2028',
    "numbers": [1, 1.0, -0.0, float("nan"), float("inf"), 1e-320, True, False, -(2**70)],
    "scalars": [np.float32(0.1), np.int64(-3), np.bool_(True), np.float64("nan"), np.uint8(255)],
    "by_index": {0: np.ones((1, 2)), 5: "five", -1: [np.zeros((3, 0, 2), np.int32)]},
    "odd keys": {"$array": 1, "$x": np.arange(3), "": 2, "a/b": 3, "__metadata__": np.arange(2)},
    "__metadata__": np.arange(4, dtype=np.uint8),
}


def test_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    save(STATE, path, {"note": "ü"})
    state, metadata = load(path, with_metadata=True)
    same(state, STATE)
    assert metadata == {"note": "ü"}
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert gs.save is save and gs.load is load


NUMBERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("dtype", ["bool", *NUMBERS, "float16", "float32", "float64"])
def test_every_dtype_and_layout(tmp_path, dtype):
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, (5, 6, 7)).astype(dtype)
    arrays = [
        base,
        base.T,
        base[::-2, 1::3],
        np.asfortranarray(base),
        base[0, 0, 0:0],
        base[2, 3, 4:5][0:1].reshape(()),
    ]
    if base.dtype.itemsize > 1:
        arrays.append(base.astype(base.dtype.newbyteorder(">")))
    save(arrays, tmp_path / "a")
    for a, b in zip(arrays, load(tmp_path / "a"), strict=True):
        assert b.dtype == base.dtype and b.dtype.isnative and b.flags.c_contiguous
        assert b.flags.writeable and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("state", [np.arange(3), [], {}, (), None, 3, "x", [np.float32(2)]])
def test_any_root(tmp_path, state):
    save(state, tmp_path / "a")
    same(load(tmp_path / "a"), state)


def test_tensors_come_back_as_tensors(tmp_path):
    weight = gs.tensor(np.arange(6, dtype=np.float32).reshape(2, 3), requires_grad=True)
    save({"t": weight, "a": weight.data, "turned": weight.detach().data.T}, tmp_path / "a")
    state = load(tmp_path / "a")
    assert isinstance(state["t"], gs.Tensor) and isinstance(state["a"], np.ndarray)
    np.testing.assert_array_equal(state["t"].detach().numpy(), weight.data)
    np.testing.assert_array_equal(state["turned"], weight.data.T)
    state["t"].data[0, 0] = 99  # memory of its own
    assert state["a"][0, 0] == 0


def test_names_clash_without_loss(tmp_path):
    state = {"a/b": np.array(1), "a": {"b": np.array(2)}, "a/b~1": np.array(3)}
    save(state, tmp_path / "a")
    same(load(tmp_path / "a"), state)


def test_the_official_reader_reads_it_and_we_read_the_official_writer(tmp_path):
    st = pytest.importorskip("safetensors.numpy")
    save({"model": {"w": np.arange(6.0).reshape(2, 3)}, "step": 3}, tmp_path / "ours")
    theirs = st.load_file(tmp_path / "ours")
    assert list(theirs) == ["model/w"]
    np.testing.assert_array_equal(theirs["model/w"], np.arange(6.0).reshape(2, 3))
    arrays = {"layers.0.weight": np.random.default_rng(0).normal(size=(3, 4)), "b": np.arange(3)}
    st.save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    state, metadata = load(tmp_path / "theirs", with_metadata=True)
    assert metadata == {"format": "pt"} and state.keys() == arrays.keys()
    for key in arrays:
        np.testing.assert_array_equal(state[key], arrays[key])


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_half_precision_of_others_is_widened(tmp_path):
    values = np.array([1.5, -2.0, 0.0078125, np.inf], np.float32)
    bf16 = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    f16 = values.astype("<f2").tobytes()
    header = {"b": entry("BF16", (4,), 0, 8), "h": entry("F16", (2, 2), 8, 16)}
    (tmp_path / "a").write_bytes(raw(header, bf16 + f16))
    state = load(tmp_path / "a")
    assert state["b"].dtype == state["h"].dtype == np.float32 and state["h"].shape == (2, 2)
    np.testing.assert_array_equal(state["b"], values)
    np.testing.assert_array_equal(state["h"].ravel(), values)


# ---- what cannot be saved ------------------------------------------------------------------------


class Odd:
    pass


@pytest.mark.parametrize(
    "state, word",
    [
        ({"a": {"b": Odd()}}, r"state\['a'\]\['b'\] is a Odd"),
        ({"a": [np.array([1j])]}, r"state\['a'\]\[0\] .*complex128"),
        ({"a": np.array([None])}, "object"),
        ({"a": np.array(["x"])}, "<U1"),
        ({1.5: 2}, "keys must be str or int"),
        ({True: 2}, r"key True \(bool\)"),
        ({"a": {1, 2}}, "is a set"),
        ({"a": b"x"}, "is a bytes"),
        (np.datetime64("2020-01-01"), "datetime64"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(tmp_path, state, word):
    path = tmp_path / "a"
    save({"old": 1}, path)
    with pytest.raises(TypeError, match=word):
        save(state, path)
    assert load(path) == {"old": 1} and os.listdir(tmp_path) == ["a"]


def test_a_state_in_itself_is_an_error(tmp_path):
    state = {}
    state["again"] = state
    with pytest.raises(ValueError, match="contains itself"):
        save(state, tmp_path / "a")
    with pytest.raises(TypeError, match="metadata"):
        save({}, tmp_path / "a", {"n": 1})
    with pytest.raises(ValueError, match="taken"):
        save({}, tmp_path / "a", {"gradsmith": "x"})
    with pytest.raises(ValueError, match="Unicode"):
        save({"\ud800": np.zeros(1)}, tmp_path / "a")
    assert os.listdir(tmp_path) == []


# ---- failures while writing ----------------------------------------------------------------------


def test_bad_places_name_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder .*none does not exist.*a\.st"):
        save({}, tmp_path / "none" / "a.st")
    (tmp_path / "dir").mkdir()
    with pytest.raises(IsADirectoryError, match="dir"):
        save({}, tmp_path / "dir")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        save({}, tmp_path / "file" / "a")


def test_devices_and_pipes_are_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, os.devnull):
        with pytest.raises(OSError, match="device or a pipe") as error:
            save({"a": 1}, path)
        assert error.value.filename == str(path)
    assert stat.S_ISFIFO(os.stat(pipe).st_mode) and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_no_permission(tmp_path):
    save({"old": 1}, tmp_path / "a")
    os.chmod(tmp_path, 0o555)
    try:
        with pytest.raises(PermissionError, match="a"):
            save({"new": 1}, tmp_path / "a")
        assert load(tmp_path / "a") == {"old": 1}
    finally:
        os.chmod(tmp_path, 0o755)


def run(code, *arguments):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
def test_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.st"
    save({"old": np.arange(10)}, path)
    result = run(
        "import resource, sys, errno, numpy as np\n"
        "from gradsmith.interop.safetensors import save\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: save({'new': np.zeros(100_000)}, sys.argv[1])\n"
        "except OSError as e:\n"
        "    assert e.errno == errno.EFBIG and sys.argv[1] in str(e), repr(e)\n"
        "    print('refused')\n",
        path,
    )
    assert result.stdout.strip() == "refused", result.stderr
    np.testing.assert_array_equal(load(path)["old"], np.arange(10))
    assert os.listdir(tmp_path) == ["a.st"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_system_call_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.st"
    save({"old": 1}, path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"No space left on device.*a\.st"):
        save({"new": np.zeros(1000)}, path)
    monkeypatch.undo()
    assert load(path) == {"old": 1} and os.listdir(tmp_path) == ["a.st"]


@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
def test_killed_while_writing(tmp_path):
    path = tmp_path / "a.st"
    save({"old": 1}, path)
    code = (
        "import os, sys, numpy as np\n"
        "from gradsmith.interop.safetensors import save\n"
        "os.fsync = lambda d: os.kill(os.getpid(), 9)\n"
        "save({'new': np.zeros(1000)}, sys.argv[1])\n"
    )
    assert run(code, path).returncode == -9
    assert load(path) == {"old": 1} and len(os.listdir(tmp_path)) == 2
    save({"new": 2}, path)  # also cleans up
    assert load(path) == {"new": 2} and os.listdir(tmp_path) == ["a.st"]


def test_replaces_keep_links_and_modes(tmp_path):
    real = tmp_path / "real.st"
    save({"n": 1}, real)
    (tmp_path / "plain").write_bytes(b"")
    assert real.stat().st_mode == (tmp_path / "plain").stat().st_mode
    real.chmod(0o640)
    (tmp_path / "link.st").symlink_to(real)
    save({"n": 2}, tmp_path / "link.st")
    assert (tmp_path / "link.st").is_symlink() and load(real) == {"n": 2}
    assert real.stat().st_mode & 0o777 == 0o640


def test_long_names_and_many_writers(tmp_path):
    path = tmp_path / ("ä" * 100 + ".st")
    states = [{"w": np.full(20_000, i)} for i in range(6)]
    errors = []

    def write(state):
        try:
            for _ in range(5):
                save(state, path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(s,)) for s in states]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    w = load(path)["w"]
    assert (w == w[0]).all() and len(os.listdir(tmp_path)) == 1


# ---- hostile files -------------------------------------------------------------------------------

GRAD = {"__metadata__": {"gradsmith": json.dumps({"version": 1, "state": {"w": {"$array": "w"}}})}}


@pytest.mark.parametrize(
    "content, word",
    [
        (b"", "0 bytes"),
        (b"\x02\0\0", "Truncated"),
        (struct.pack("<Q", 2**63) + b"{}", "header of"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "header of"),
        (struct.pack("<Q", 3) + b"{}", "header of"),
        (b"PK\x03\x04" + b"\0" * 200, "header"),
        (raw(b"[]"), "start with"),
        (raw(b"{"), "JSON"),
        (raw(b"\xff\xfe\xff\xff"), "UTF-8"),
        (raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested|shape|entry"),
        (raw(b'{"a":' + b"9" * 5000 + b"}"), "digits"),
        (raw({"a": 3}), "entry of tensor 'a'"),
        (raw({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "lacks"),
        (raw({"a": {**entry(), "extra": 1}}, b"\0" * 8), "entry"),
        (raw({"a": entry("F8_E4M3")}, b"\0" * 8), "F8_E4M3"),
        (raw({"a": entry(["F32"])}, b"\0" * 8), "dtype"),
        (raw({"a": entry(shape=[-2])}, b"\0" * 8), "shape"),
        (raw({"a": entry(shape=[2.0])}, b"\0" * 8), "shape"),
        (raw({"a": entry(shape=[True, 2])}, b"\0" * 8), "shape"),
        (raw({"a": entry(shape=[1] * 65 + [2])}, b"\0" * 8), "shape"),
        (raw({"a": entry(shape=[2**62, 2**62], end=2**126)}, b"\0" * 8), "lies at"),
        (raw({"a": entry(shape=[2**62, 2**62])}, b"\0" * 8), "needs"),
        (raw({"a": entry(shape=[0, 2**63], end=0)}), "bad.st"),
        (raw({"a": entry(end=12)}, b"\0" * 8), "lies at"),
        (raw({"a": entry(begin=8, end=0)}, b"\0" * 8), "lies at"),
        (raw({"a": entry(begin=-8, end=0)}, b"\0" * 8), "data_offsets"),
        (raw({"a": entry(), "b": entry(begin=4, end=12)}, b"\0" * 12), "overlaps"),
        (raw({"a": entry(), "b": entry()}, b"\0" * 8), "overlaps"),
        (raw({"a": entry(begin=4, end=12)}, b"\0" * 12), "gap"),
        (raw({"a": entry()}, b"\0" * 9), "follow the header"),
        (raw({"a": entry()}, b"\0" * 7), "lies at"),
        (raw(b'{"a":' + json.dumps(entry()).encode() + b',"a":'
             + json.dumps(entry()).encode() + b"}", b"\0" * 8), "'a' twice"),
        (raw({"a": entry("BOOL", (2,), 0, 2)}, b"\1\2"), "BOOL"),
        (raw({"__metadata__": []}), "__metadata__"),
        (raw({"__metadata__": {"a": 1}}), "__metadata__"),
        (raw({"__metadata__": {"gradsmith": "[]"}}), "damaged"),
        (raw({"__metadata__": {"gradsmith": "{"}}), "JSON"),
        (raw({"__metadata__": {"gradsmith": '{"version":9,"state":1}'}}), "format 9"),
        (raw(GRAD), "not in it"),
        (raw({"__metadata__": {"gradsmith": '{"version":1,"state":{"$tensor":"w"}}'}, "w": entry("I8", (2,), 0, 2)}, b"\0" * 2), "'w' a Tensor, which int8"),
        (raw({**GRAD, "w": entry(), "v": entry(begin=8, end=16)}, b"\0" * 16), "'v'"),
        (raw({"__metadata__": {"gradsmith": '{"version":1,"state":{"$what":1}}'}}), "unknown"),
        (raw({"__metadata__": {"gradsmith": '{"version":1,"state":{"$array":[1]}}'}}), "not in it"),
        (raw({"__metadata__": {"gradsmith": '{"version":1,"state":{"$numpy":["O",1]}}'}}), "scalar"),
        (raw({"__metadata__": {"gradsmith": '{"version":1,"state":{"$numpy":["int8",1e9]}}'}}), "int8"),
        (raw({"__metadata__": {"gradsmith": '{"version":1,"state":{"$items":[[[],1]]}}'}}), "dict"),
    ],
)  # fmt: skip
def test_hostile_files_are_value_errors_that_name_the_file(tmp_path, content, word):
    path = tmp_path / "bad.st"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=word) as error:
        load(path)
    assert "bad.st" in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.st"):
        load(tmp_path / "none.st")
    with pytest.raises(OSError):
        load(tmp_path)


def test_fuzz(tmp_path):
    """Truncations, flipped bits and random bytes: ValueError or OSError, or a readable file."""
    path = tmp_path / "f.st"
    save(STATE, path)
    good = path.read_bytes()
    header = 8 + struct.unpack("<Q", good[:8])[0]
    rng = random.Random(5)
    refused = 0
    for trial in range(1500):
        content = bytearray(good)
        kind = trial % 5
        if kind == 0:
            content = content[: rng.randrange(len(content))]
        elif kind == 1:
            for _ in range(rng.choice((1, 2, 8))):
                content[rng.randrange(header)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            at = rng.randrange(header)
            content[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        elif kind == 3:
            content = bytearray(rng.randbytes(rng.randrange(64)))
        else:
            content[rng.randrange(8)] = rng.randrange(256)
        path.write_bytes(content)
        try:
            load(path)
        except (ValueError, OSError) as error:
            assert "f.st" in str(error)
            refused += 1
            if kind == 0:
                assert isinstance(error, ValueError)
        else:
            assert kind != 0  # no truncation goes unnoticed
    assert refused > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
def test_hostile_sizes_take_no_memory(tmp_path):
    """With 1 GB of address space above the imports, headers that announce petabytes are errors."""
    for name, content in {
        "long": struct.pack("<Q", 99_999_999) + b"{}",
        "huge": raw({"a": entry("U8", (2**50,), 0, 2**50)}),
        "wide": raw({"a": entry("U8", (2**50,), 0, 8)}, b"\0" * 8),
    }.items():
        (tmp_path / name).write_bytes(content)
    result = run(
        "import resource, sys\n"
        "from gradsmith.interop.safetensors import load\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)\n"
        "for p in sys.argv[1:]:\n"
        "    try: load(p)\n"
        "    except ValueError as e: assert 'MemoryError' not in str(e), e; print('refused')\n",
        *(tmp_path / n for n in ("long", "huge", "wide")),
    )
    assert result.stdout.split() == ["refused"] * 3, result.stderr
