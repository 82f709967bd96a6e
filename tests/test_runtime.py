"""The runtime: instruction sets, threads, fork, memory pool, bfloat16, and the rule that kernels export one symbol."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import gradsmith as gs
from gradsmith import _cpu


def run_python(code, **env):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done


def test_isa_can_only_be_lowered():
    for name in _cpu.supported_isas():
        done = run_python("from gradsmith import _cpu; print(_cpu.isa())", GRADSMITH_ISA=name)
        assert done.stdout.strip() == name, done.stderr
    done = run_python("from gradsmith import _cpu", GRADSMITH_ISA="pentium")
    assert done.returncode != 0
    assert "pentium" in done.stderr and "one of" in done.stderr


def test_num_threads_environment_and_setter():
    done = run_python(
        "import gradsmith as gs; print(gs.get_num_threads())", GRADSMITH_NUM_THREADS="3"
    )
    assert done.stdout.strip() == "3"
    for bad in ("abc", "0", "-2", "1.5", "257", "99999999999999999999"):
        done = run_python("import gradsmith", GRADSMITH_NUM_THREADS=bad)
        assert f"GRADSMITH_NUM_THREADS={bad}: expected a whole number, 1 .. 256" in done.stderr
    before = gs.get_num_threads()
    with gs.threads(2):
        assert gs.get_num_threads() == 2
    assert gs.get_num_threads() == before
    for bad in (0, -1, 1000):
        with pytest.raises(ValueError, match="set_num_threads"):
            gs.set_num_threads(bad)
    with pytest.raises(TypeError):
        gs.set_num_threads(2.5)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores and affinity",
)
def test_a_worker_leaves_the_core_of_its_caller():
    # both are put on one core and let go while the other core is busy, so that the system wakes the
    # worker where it was: the next jobs part them, and their affinity stays
    code = """
import os, subprocess, sys
import numpy as np
import gradsmith as gs
from gradsmith import _cpu

one, other = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, {one, other})
gs.set_num_threads(2)
x = gs.from_numpy(np.ones((256, 256), np.float32))
x @ x
tasks = [int(t) for t in os.listdir("/proc/self/task")]
hog = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{other}}})\\nwhile True: pass"])
try:
    for mask in ({one}, {one, other}):
        for t in tasks:
            os.sched_setaffinity(t, mask)
        before = _cpu.team_moves()
        for _ in range(20):
            x @ x
        print(_cpu.team_moves() - before)
finally:
    hog.kill()
print(all(os.sched_getaffinity(t) == {one, other} for t in tasks))
"""
    env = dict(os.environ, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", GRADSMITH_NUM_THREADS="2")
    for _ in range(20):  # the system itself may part them first
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        pinned, free, kept = run.stdout.split()
        assert pinned == "0" and kept == "True"
        if int(free) > 0:
            return
    raise AssertionError("no worker moved in twenty runs")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_is_respected():
    code = (
        "import os; os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]}); "
        "import gradsmith as gs; print(gs.get_num_threads())"
    )
    env = {
        k: v for k, v in os.environ.items() if k not in ("GRADSMITH_NUM_THREADS", "OMP_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "1", done.stderr


@pytest.fixture
def cpu_group():
    """A control group of this test's own with a quota of one processor, and one within it."""
    for root in ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup"):
        outer = os.path.join(root, f"gradsmith-test-{os.getpid()}")
        inner = os.path.join(outer, "inner")
        try:
            os.mkdir(outer)
        except OSError:
            continue
        try:
            if os.path.exists(os.path.join(outer, "cpu.cfs_quota_us")):
                name, quota = "cpu.cfs_quota_us", "100000"
            else:
                name, quota = "cpu.max", "100000 100000"
            if not os.path.exists(os.path.join(outer, name)):
                continue
            os.mkdir(inner)
            with open(os.path.join(outer, name), "w") as file:
                file.write(quota)
            yield inner
            return
        finally:
            for folder in (inner, outer):
                if os.path.isdir(folder):
                    os.rmdir(folder)
    pytest.skip("no control group can be made here")


def test_the_quota_of_a_control_group_is_respected(cpu_group):
    """Of the process's own group or of one around it, as a service of systemd has it."""
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        pytest.skip("needs two cores")
    env = {
        k: v for k, v in os.environ.items() if k not in ("GRADSMITH_NUM_THREADS", "OMP_NUM_THREADS")
    }
    code = (
        "import os, sys\n"
        "try:\n"
        "    with open(sys.argv[1] + '/cgroup.procs', 'w') as f: f.write(str(os.getpid()))\n"
        "except OSError as error: sys.exit(f'cannot join: {error}')\n"
        "import gradsmith as gs; print(gs.get_num_threads(), 'container quota 1' in gs.show_config(False))"
    )
    for folder in (cpu_group, os.path.dirname(cpu_group)):
        done = subprocess.run(
            [sys.executable, "-c", code, folder],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.stderr.startswith("cannot join"):
            pytest.skip(done.stderr.strip())
        assert done.stdout.split() == ["1", "True"], done.stdout + done.stderr


@pytest.mark.parametrize(
    "work",
    ["x @ x", "f(x)", "(x @ w).relu().sum().backward()"],
    ids=["kernel", "replay", "backward"],
)
def test_the_process_ends_while_a_thread_computes(work):
    code = f"""
import threading, time
import gradsmith as gs
gs.set_num_threads(2)
x, w = gs.ones(300, 300), gs.ones(300, 300, requires_grad=True)
f = gs.capture(lambda x: (x @ x).relu().sum())
for _ in range(5):
    f(x)
def work():
    while True:
        {work}
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("end")
"""
    for _ in range(3):
        done = run_python(code)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "end", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_team_survives_fork():
    code = """
import os, numpy as np, gradsmith as gs
from gradsmith import _cpu
gs.set_num_threads(3)
x = np.arange(4_000_000, dtype=np.float32)
assert (_cpu.copy(x) == x).all()          # the team is running
pid = os.fork()
if pid == 0:
    ok = (_cpu.copy(x) == x).all()        # a fresh team in the child
    os._exit(0 if ok else 1)
_, status = os.waitpid(pid, 0)
assert status == 0, status
assert (_cpu.copy(x) == x).all()
print("fine")
"""
    done = run_python(code)
    assert done.stdout.strip() == "fine", done.stderr


def test_several_python_threads_use_the_team_at_once():
    gs.set_num_threads(2)
    x = np.random.default_rng(0).standard_normal(3_000_000).astype(np.float32)
    wrong = []

    def work():
        for _ in range(10):
            if not np.array_equal(_cpu.copy(x), x):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


def test_team_size_may_change_between_calls():
    x = np.random.default_rng(0).standard_normal(500_000).astype(np.float32)
    before = gs.get_num_threads()
    for n in (1, 3, 2, 5, 1, 4, 2) * 20:
        gs.set_num_threads(n)
        assert np.array_equal(_cpu.copy(x), x)
    gs.set_num_threads(before)


@pytest.mark.skipif(os.environ.get("GRADSMITH_POOL") == "0", reason="the pool is off")
def test_pool_reuses_memory():
    gs.empty_cache()
    a = _cpu.empty((1 << 20,), "float32")
    address = a.ctypes.data
    del a
    b = _cpu.empty((1 << 20,), "float32")
    assert b.ctypes.data == address
    assert address % 64 == 0
    stats = gs.memory_stats()
    assert stats["in_use"] >= b.nbytes
    del b
    assert gs.memory_stats()["cached"] >= 4 << 20
    gs.empty_cache()
    assert gs.memory_stats()["cached"] == 0


def test_pool_blocks_do_not_overlap(rng):
    sizes = rng.integers(1, 300_000, 60)
    arrays = [_cpu.empty((int(n),), "uint8") for n in sizes]
    for i, a in enumerate(arrays):
        a[:] = i
    for i in range(0, len(arrays), 2):
        arrays[i] = None
    fresh = [_cpu.empty((int(n),), "uint8") for n in sizes[::2]]
    for a in fresh:
        a[:] = 255
    for i in range(1, len(arrays), 2):
        assert (arrays[i] == i).all()


def test_impossible_size_is_a_memory_error():
    with pytest.raises(MemoryError):
        _cpu.empty((1 << 50,), "float32")
    with pytest.raises(MemoryError):
        _cpu.empty((1 << 40, 1 << 40), "float32")


def test_copy_takes_any_strides(rng):
    x = rng.standard_normal((5, 4, 3, 6))
    for v in (
        x,
        x[::-1],
        x[:, ::2, ::-1],
        x.transpose(3, 1, 0, 2),
        x[:, :0],
        x[2, 1, 1, 3:].reshape(3)[:1].reshape(()),
        np.broadcast_to(x[:1], x.shape),
    ):
        assert np.array_equal(_cpu.copy(v), v)
        out = np.zeros_like(v, order="C")[..., ::-1] if v.ndim else np.zeros(())
        _cpu.copy_(out, v)
        assert np.array_equal(out, v)


def test_cast_between_dtypes(rng):
    x = rng.standard_normal(1000) * 100
    for a in ("float32", "float64", "int32", "int64"):
        for b in ("float32", "float64", "int32", "int64"):
            assert np.array_equal(_cpu.cast(x.astype(a), b), x.astype(a).astype(b))


def test_bindings_reject_bad_arrays():
    with pytest.raises(TypeError, match="x must be a NumPy array"):
        _cpu.copy([1, 2])
    with pytest.raises(TypeError, match="complex128"):
        _cpu.copy(np.zeros(3, complex))
    with pytest.raises(TypeError, match="byte order"):
        _cpu.copy(np.zeros(3, ">f4"))
    with pytest.raises(ValueError, match="dimensions"):
        _cpu.copy(np.zeros((1,) * 9))
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _cpu.copy_(frozen, np.ones(3))
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        _cpu.copy_(np.zeros(3), np.ones(4))
    raw = np.zeros(17, np.uint8)[1:].view(np.float64)
    with pytest.raises(ValueError, match="aligned"):
        _cpu.copy(raw)


def bfloat16_reference(x):
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = np.isnan(x)
    rounded[nan] = ((bits[nan] >> 16) | 0x40).astype(np.uint16)
    return rounded


def test_bfloat16_rounds_to_nearest_even(rng):
    bits = rng.integers(0, 2**32, 200_003, dtype=np.uint32)
    edge = np.array([0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x00000001, 0x007FFFFF, 0x3F808000, 0x3F818000, 0x7F7FFFFF], np.uint32)  # fmt: skip
    x = np.concatenate([edge, bits, np.arange(1000, dtype=np.uint32)]).view(np.float32)
    got = _cpu.float32_to_bfloat16(x)
    assert np.array_equal(got, bfloat16_reference(x))
    back = _cpu.bfloat16_to_float32(got)
    assert np.array_equal(back.view(np.uint32), got.astype(np.uint32) << 16)
    with pytest.raises(TypeError, match="float32"):
        _cpu.float32_to_bfloat16(np.zeros(3))


def test_verbose_prints_the_kernel():
    done = run_python(
        "from gradsmith import _cpu; import numpy as np; _cpu.copy(np.zeros(4))",
        GRADSMITH_VERBOSE="1",
    )
    assert "gradsmith: copy" in done.stderr


def test_show_config_names_the_choice():
    text = gs.show_config(measure=False)
    assert _cpu.isa() in text and "threads" in text and gs.__version__ in text


STREAMING = """
import hashlib, sys
import numpy as np
import gradsmith as gs, gradsmith.nn.functional as F
rng = np.random.default_rng(1)
def digest(name, fn, *shapes):
    for dtype in (np.float32, np.float64):
        leaves = [gs.tensor(rng.standard_normal(s).astype(dtype), requires_grad=True) for s in shapes]
        y = fn(*leaves)
        y.backward(gs.tensor(rng.standard_normal(y.shape).astype(dtype)))
        h = hashlib.sha256(y.detach().numpy().tobytes())
        for t in leaves:
            h.update(t.grad.numpy().tobytes())
        print(name, dtype.__name__, shapes, h.hexdigest())
for n in (5, 1024, 20000, 70003):
    for f in ("relu", "leaky_relu", "relu6", "gelu", "silu", "mish", "tanh", "softplus", "hardswish"):
        digest(f, getattr(F, f), (n,))
    digest("add", lambda a, b: a + b, (n,), (n,))
    digest("exp", lambda a: (a * 2.0).exp(), (n,))
    digest("where", lambda a, b: gs.where(a > b, a, b), (n,), (n,))
for rows, c in ((300, 3), (300, 16), (500, 64), (70, 100), (40, 2048)):
    for relu in (False, True):
        digest("batch_norm", lambda x, w, b: F.batch_norm(x, None, None, w, b, True, relu=relu), (rows, c), (c,), (c,))
    digest("layer_norm", lambda x, w, b: F.layer_norm(x, c, w, b), (rows, c), (c,), (c,))
for n in (10, 16, 33, 100, 5000):
    digest("softmax", lambda x: F.softmax(x, -1), (37, n))
    digest("log_softmax", lambda x: F.log_softmax(x, -1), (37, n))
    for smooth in (0.0, 0.1):
        t = gs.tensor(rng.integers(0, n, 37))
        digest("cross_entropy", lambda x: F.cross_entropy(x, t, label_smoothing=smooth), (37, n))
for c in (3, 16, 20, 64):
    digest("group_norm", lambda x, w, b: F.group_norm(x, 1, w, b), (3, 7, 5, c), (c,), (c,))
    for args in ((2,), (3, 2, 1), (3, 1, 1)):
        digest("max_pool2d", lambda x: F.max_pool2d(x, *args), (2, 9, 8, c))
        digest("avg_pool2d", lambda x: F.avg_pool2d(x, *args), (2, 9, 8, c))
    digest("adaptive", lambda x: F.adaptive_avg_pool2d(x, 2), (2, 9, 8, c))
"""


def test_streaming_stores_change_no_bit():
    """Outputs written past the caches, all of them or none, in place of large ones only."""
    outputs = []
    for limit in ("0", str(2**60)):
        env = {**os.environ, "GRADSMITH_STREAM_BYTES": limit}
        run = subprocess.run(
            [sys.executable, "-c", STREAMING], env=env, capture_output=True, text=True, check=True
        )
        outputs.append(run.stdout.splitlines())
    assert len(outputs[0]) > 100
    assert outputs[0] == outputs[1]


def test_creation_names_itself():
    for call, error, text in (
        (lambda: gs.arange(0, 1, 0), ValueError, "^arange: step"),
        (lambda: gs.linspace(0, 1, -1), ValueError, "^linspace: negative"),
        (lambda: gs.eye(-1), ValueError, "^eye: negative"),
        (lambda: gs.eye(2, 1.5), TypeError, "^eye: .*1.5"),
        (lambda: gs.randperm(-1), ValueError, "^randperm: negative"),
    ):
        with pytest.raises(error, match=text):
            call()
    assert gs.eye(2, 3).shape == (2, 3) and gs.linspace(0, 1, 5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert sorted(gs.randperm(4).tolist()) == [0, 1, 2, 3] and gs.randperm(0).shape == (0,)


def test_a_sequence_without_steps_is_told_by_its_own_shape():
    for first, shape in ((False, (0, 5, 8)), (True, (5, 0, 8)), (False, (0, 8)), (True, (0, 8))):
        for kind in (gs.nn.LSTM, gs.nn.GRU, gs.nn.RNN):
            with pytest.raises(
                ValueError, match=rf"input has shape \({', '.join(map(str, shape))}\)"
            ):
                kind(8, 6, batch_first=first)(gs.zeros(shape))
    assert gs.nn.LSTM(8, 6)(gs.zeros(3, 0, 8))[0].shape == (3, 0, 6)


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("GRADSMITH_ISA", "pentium", "not an instruction set; one of .+"),
        ("GRADSMITH_NUM_THREADS", "two", "expected a whole number, 1 .. 256"),
        ("GRADSMITH_STREAM_BYTES", "64M", "expected a whole number, 0 or more"),
        ("GRADSMITH_STREAM_BYTES", "9" * 30, "expected a whole number, 0 or more"),
        ("GRADSMITH_POOL", "off", "expected 0 or 1"),
        ("GRADSMITH_VERBOSE", "2", "expected 0 or 1"),
    ],
)
def test_a_wrong_setting_is_an_error_of_the_import_and_a_line_of_the_command(name, value, expected):
    text = rf"{name}={value}: {expected}"
    done = run_python("import gradsmith", **{name: value})
    assert done.returncode == 1 and re.search(rf"\nImportError: {text}\n$", done.stderr)
    run_script = (
        "import sys; sys.argv = ['/some/bin/gradsmith', 'info']; from gradsmith.cli import main"
    )
    for command in (["-m", "gradsmith", "info"], ["-c", run_script]):
        done = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, name: value},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2 and done.stdout == ""
        assert re.fullmatch(rf"gradsmith: {text}\n", done.stderr), done.stderr


@pytest.mark.parametrize("name", ["GRADSMITH_POOL", "GRADSMITH_VERBOSE", "GRADSMITH_STREAM_BYTES"])
def test_an_empty_setting_is_none(name):
    assert run_python("import gradsmith", **{name: ""}).returncode == 0


def test_a_package_without_its_compiled_module_says_so(tmp_path):
    package = tmp_path / "gradsmith"
    package.mkdir()
    for path in Path(gs.__file__).parent.glob("*.py"):
        (package / path.name).write_text(path.read_text())
    # isolated, for an editable install would find the module of this one
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import gradsmith"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert re.search(r"ImportError: the compiled module gradsmith._cpu .* is missing", done.stderr)


def test_a_subinterpreter_is_an_error_and_no_hang():
    code = """
try:
    import _interpreters as module
    new = module.create("legacy")
except ImportError:
    import _xxsubinterpreters as module
    new = module.create(isolated=False)
code = "try: import gradsmith\\nexcept ImportError as e: print(e)"
(getattr(module, "exec", None) or module.run_string)(new, code)
module.destroy(new)
import gradsmith
print(gradsmith.ones(2).tolist())
"""
    done = run_python(code)
    assert "gradsmith cannot be imported in a subinterpreter" in done.stdout, done.stderr
    assert done.stdout.endswith("[1.0, 1.0]\n")
