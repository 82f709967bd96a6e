"""Datasets, loader, splits, synthetic sets, downloads."""

import contextlib
import doctest
import gc
import gzip
import hashlib
import http.server
import importlib
import io
import os
import pkgutil
import random
import struct
import sys
import tarfile
import threading
import time

import numpy as np
import pytest

from gradsmith import data as D

FASHION = "/usr/share/datasets/fashion-mnist"


def loader_threads():
    return [t for t in threading.enumerate() if t.name == "gradsmith-loader"]


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    gc.collect()
    assert not loader_threads()


# ---- datasets ------------------------------------------------------------------------------------


def test_array_dataset():
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    ds = D.ArrayDataset(x, y, classes="abc")
    assert len(ds) == 6 and ds.arrays[0] is x and ds.classes == ["a", "b", "c"]
    assert isinstance(ds, D.Dataset)
    index = np.array([5, 0, 0])
    np.testing.assert_array_equal(ds[index][0], x[index])
    np.testing.assert_array_equal(ds[1:3][1], [1, 2])
    assert ds[4][1] == 4
    with pytest.raises(IndexError):
        ds[np.array([6])]
    with pytest.raises(ValueError, match=r"lengths \[6, 5\]"):
        D.ArrayDataset(x, y[:5])
    with pytest.raises(ValueError, match="at least one"):
        D.ArrayDataset()
    with pytest.raises(ValueError, match="single number"):
        D.ArrayDataset(3.0)
    with pytest.raises(TypeError):
        D.ArrayDataset([object()])


def test_tensors_are_arrays_here():
    gs = pytest.importorskip("gradsmith")
    t = gs.tensor(np.arange(4, dtype=np.float32))
    assert D.ArrayDataset(t).arrays[0] is t.data
    assert len(next(iter(D.Loader((t, t), 3)))[1]) == 3


def test_subset():
    ds = D.ArrayDataset(np.arange(10) * 10)
    part = D.Subset(D.Subset(ds, [9, 1, 5, 3]), [2, 0])
    assert len(part) == 2 and part[np.array([1, 0])][0].tolist() == [90, 50]
    assert len(D.Subset(ds, [])) == 0
    for bad in ([10], [-1]):
        with pytest.raises(IndexError, match="0 to 9"):
            D.Subset(ds, bad)
    with pytest.raises(ValueError, match="integers"):
        D.Subset(ds, [0.5])


def test_digits():
    train, test = D.digits()
    assert train.arrays[0].shape == (1352, 8, 8, 1) and test.arrays[0].shape == (445, 8, 8, 1)
    assert train.arrays[0].dtype == np.float32 and train.arrays[1].dtype == np.int64
    assert train.arrays[0].min() == 0 and train.arrays[0].max() == 1
    assert np.bincount(test.arrays[1]).min() == 43 and train.classes == list("0123456789")
    raw, _ = D.digits("uint8")
    np.testing.assert_array_equal(raw.arrays[0], train.arrays[0] * 16)
    again, _ = D.digits()
    again.arrays[0][:] = 0  # each call has arrays of its own
    np.testing.assert_array_equal(D.digits()[0].arrays[0], train.arrays[0])
    with pytest.raises(ValueError, match="uint8"):
        D.digits("float64")


def test_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    test = np.zeros(len(y), bool)
    for c in range(10):
        test[np.flatnonzero(y == c)[3::4]] = True
    for part, mask in zip(D.digits("uint8"), (~test, test)):
        np.testing.assert_array_equal(part.arrays[0].reshape(-1, 64), x[mask])
        np.testing.assert_array_equal(part.arrays[1], y[mask])


def test_the_digits_can_be_told_apart():
    """Nearest neighbour on the split: a wrong pairing of images and labels would show."""
    train, test = D.digits()
    a, b = (part.arrays[0].reshape(-1, 64) for part in (train, test))
    nearest = ((b[:, None] - a[None]) ** 2).sum(-1).argmin(1)
    assert (train.arrays[1][nearest] == test.arrays[1]).mean() > 0.98


# ---- IDX -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
def test_idx_round_trip(tmp_path, dtype, suffix):
    rng = np.random.default_rng(1)
    for shape in ((7,), (3, 4), (2, 3, 5), (0, 4), (1, 1, 1, 1)):
        a = (rng.normal(size=shape) * 50).astype(dtype)
        D.write_idx(tmp_path / f"a{suffix}", a)
        b = D.read_idx(tmp_path / f"a{suffix}")
        assert b.dtype == a.dtype and b.dtype.isnative
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="int64"):
        D.write_idx(tmp_path / "b", np.arange(3))


def idx_bytes(shape, code=8, body=None):
    n = int(np.prod(shape))
    return struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape) + (
        bytes(n) if body is None else body
    )


BAD_IDX = [
    (b"", "4. Truncated"),
    (b"\0\0\x08", "Truncated"),
    (b"P5 1 1 255", "not an IDX file"),
    (b"\0\0\x0a\x01" + b"\0" * 8, "not an IDX file"),
    (b"\0\0\x08\0", "0 axes"),
    (b"\0\0\x08\xff" + b"\0" * 2000, "255 axes"),
    (b"\0\0\x08\x03\0\0\0\x01", "header of 16"),
    (idx_bytes((5,), body=b"1234"), "5 bytes, but 4 follow"),
    (idx_bytes((5,), body=b"123456"), "5 bytes, but 6 follow"),
    (idx_bytes((2**32 - 1,) * 3, body=b"1"), "but 1 follow"),
    (idx_bytes((2**32 - 1,) * 32, 0x0E, body=b""), "follow"),
    (idx_bytes((0, 2**32 - 1, 2**32 - 1, 2**32 - 1), body=b""), "bad.idx"),
]


@pytest.mark.parametrize("content, word", BAD_IDX)
def test_bad_idx(tmp_path, content, word):
    path = tmp_path / "bad.idx"
    for packed in (content, gzip.compress(content)):
        path.write_bytes(packed)
        with pytest.raises(ValueError) as error:
            D.read_idx(path)
        assert "bad.idx" in str(error.value)
        if packed is content:
            assert word in str(error.value)


def test_a_gzipped_header_cannot_reserve_memory(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx_bytes((1 << 31, 1 << 10), body=b"x" * 100)))
    with pytest.raises(ValueError, match="cannot hold"):
        D.read_idx(path)
    path.write_bytes(gzip.compress(idx_bytes((20,), body=b"x" * 21)))
    with pytest.raises(ValueError, match="bytes follow"):
        D.read_idx(path)
    path.write_bytes(gzip.compress(idx_bytes((20,), body=b"x" * 19)))
    with pytest.raises(ValueError, match="only 19"):
        D.read_idx(path)


def mutations(good, rng, count):
    for trial in range(count):
        content = bytearray(good)
        if trial % 4 == 0:
            content = content[: rng.randrange(len(content))]
        elif trial % 4 == 1:
            for _ in range(rng.choice((1, 2, 8))):
                content[rng.randrange(min(len(content), 400))] ^= 1 << rng.randrange(8)
        elif trial % 4 == 2:
            at = rng.randrange(len(content))
            content[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        else:
            content = bytearray(rng.randbytes(rng.randrange(80)))
        yield bytes(content)


@pytest.mark.parametrize("packed", [False, True])
def test_fuzz_idx(tmp_path, packed):
    good = idx_bytes((4, 5, 6), body=bytes(range(120)))
    good = gzip.compress(good) if packed else good
    path = tmp_path / "f.idx"
    refused = 0
    for content in mutations(good, random.Random(3), 800):
        path.write_bytes(content)
        try:
            D.read_idx(path)
        except (ValueError, OSError) as error:
            assert "f.idx" in str(error)
            refused += 1
    assert refused > 400


def family(folder, n=(20, 10), gz=(), dotted=(), side=28, label=9):
    rng = np.random.default_rng(2)
    os.makedirs(folder, exist_ok=True)
    made = {}
    for split, count in zip(("train", "t10k"), n):
        for kind, a in (
            ("images-idx3-ubyte", rng.integers(0, 256, (count, side, side), dtype=np.uint8)),
            ("labels-idx1-ubyte", np.full(count, label, np.uint8)),
        ):
            name = f"{split}-{kind}"
            made[name] = a
            on_disk = name.replace("-idx", ".idx") if name in dotted else name
            D.write_idx(os.path.join(folder, on_disk + (".gz" if name in gz else "")), a)
    return made


def test_mnist_folder(tmp_path):
    made = family(
        tmp_path, gz=("train-images-idx3-ubyte",), dotted=("t10k-labels-idx1-ubyte",), label=3
    )
    train, test = D.mnist(tmp_path)
    assert train.arrays[0].shape == (20, 28, 28, 1) and test.arrays[0].shape == (10, 28, 28, 1)
    np.testing.assert_allclose(
        train.arrays[0][..., 0], made["train-images-idx3-ubyte"] / 255.0, rtol=1e-6
    )
    raw, _ = D.fashion_mnist(tmp_path, "uint8")
    assert raw.arrays[0].dtype == np.uint8 and raw.classes[3] == "Dress"
    assert raw.arrays[1].dtype == np.int64 and set(raw.arrays[1]) == {3}
    assert D.idx_folder(tmp_path)[0].classes == ["0", "1", "2", "3"]
    family(tmp_path / "MNIST" / "raw", n=(3, 2))
    assert len(D.mnist(tmp_path)[0]) == 3


def test_mnist_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none does not exist.*train-images-idx3-ubyte"):
        D.mnist(tmp_path / "none")
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match="not a folder"):
        D.mnist(tmp_path / "note.txt")
    with pytest.raises(FileNotFoundError, match=r"missing train-images.*found note\.txt"):
        D.mnist(tmp_path)
    family(tmp_path)
    D.write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(9, np.uint8))
    with pytest.raises(ValueError, match=r"10 images, but .* 9 labels"):
        D.mnist(tmp_path)
    D.write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.full(10, 10, np.uint8))
    with pytest.raises(ValueError, match="10 to 10; expected 0 to 9"):
        D.mnist(tmp_path)
    D.write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros((10, 1), np.uint8))
    with pytest.raises(ValueError, match="labels are integers"):
        D.mnist(tmp_path)
    D.write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((20, 28), np.uint8))
    with pytest.raises(ValueError, match="images are uint8"):
        D.mnist(tmp_path)


@pytest.mark.skipif(not os.path.isdir(FASHION), reason="dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    train, test = D.fashion_mnist(dtype="uint8")
    assert train.arrays[0].shape == (60000, 28, 28, 1) and len(test) == 10000
    assert np.bincount(train.arrays[1]).tolist() == [6000] * 10
    assert abs(train.arrays[0].mean() / 255 - 0.2860) < 1e-4  # the published mean


# ---- CIFAR ---------------------------------------------------------------------------------------


def cifar_bytes(n, labels=1, seed=0, top=10):
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (n, labels + 3072), dtype=np.uint8)
    records[:, :labels] = rng.integers(0, top, (n, labels))
    return records


def test_cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    parts = [cifar_bytes(4, seed=i) for i in range(6)]
    for i, part in enumerate(parts):
        name = f"data_batch_{i + 1}.bin" if i < 5 else "test_batch.bin"
        (folder / name).write_bytes(part.tobytes())
    for root in (tmp_path, folder):
        train, test = D.cifar10(root, "uint8")
    assert train.arrays[0].shape == (20, 32, 32, 3) and len(test) == 4
    pixel = parts[2][1, 1 + 1024 * 2 + 32 * 5 + 7]  # blue, row 5, column 7
    assert train.arrays[0][9, 5, 7, 2] == pixel
    np.testing.assert_array_equal(train.arrays[1][8:12], parts[2][:, 0])
    assert train.classes[3] == "cat" and D.cifar10(folder)[0].arrays[0].max() <= 1


def test_cifar100(tmp_path):
    parts = [cifar_bytes(5, 2, i, 20) for i in range(2)]
    (tmp_path / "train.bin").write_bytes(parts[0].tobytes())
    (tmp_path / "test.bin").write_bytes(parts[1].tobytes())
    train, test = D.cifar100(tmp_path)
    np.testing.assert_array_equal(train.arrays[1], parts[0][:, 1])
    np.testing.assert_array_equal(D.cifar100(tmp_path, coarse=True)[1].arrays[1], parts[1][:, 0])
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"n{i}" for i in range(100)))
    assert D.cifar100(tmp_path)[1].classes[7] == "n7" and len(test) == 5
    (tmp_path / "fine_label_names.txt").write_text("one\n")
    with pytest.raises(ValueError, match="has 1 names"):
        D.cifar100(tmp_path)


def test_cifar_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing data_batch_1\.bin.*found nothing"):
        D.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(FileNotFoundError, match="pickle can run any code"):
        D.cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        D.cifar10(tmp_path / "none")
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(cifar_bytes(2).tobytes())
    bad = tmp_path / "test_batch.bin"
    for content, word in (
        (b"", "0 bytes"),
        (cifar_bytes(2).tobytes()[:-1], "Truncated"),
        (b"\x80\x02}q\x01", "pickle can run any code"),
        (cifar_bytes(3, top=1).tobytes().replace(b"\0", b"\x0b", 1), "record 0 has the label 11"),
    ):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=word) as error:
            D.cifar10(tmp_path)
        assert "test_batch.bin" in str(error.value)


def test_fuzz_cifar(tmp_path):
    path = tmp_path / "f.bin"
    good = cifar_bytes(3).tobytes()
    for content in mutations(good, random.Random(4), 200):
        path.write_bytes(content)
        try:
            D.CIFARDataset([path])
        except (ValueError, OSError) as error:
            assert "f.bin" in str(error)
        else:
            assert len(content) % 3073 == 0


# ---- image folders -------------------------------------------------------------------------------


def test_image_folder(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    pictures = {}
    for name in ("b/2.png", "a/x/1.png", "b/1.png", "a/0.PNG"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[name] = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pictures[name]).save(path)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / ".hidden").mkdir()
    ds = D.ImageFolder(tmp_path, dtype="uint8")
    order = ["a/0.PNG", "a/x/1.png", "b/1.png", "b/2.png"]
    assert ds.classes == ["a", "b"] and [os.path.relpath(p, tmp_path) for p in ds.paths] == order
    x, y = ds[np.array([3, 0, 1])]
    assert x.shape == (3, 6, 5, 3) and y.tolist() == [1, 0, 0]
    np.testing.assert_array_equal(x[0], pictures["b/2.png"])
    np.testing.assert_array_equal(ds[1][0], pictures["a/x/1.png"])
    gray = D.ImageFolder(tmp_path, size=(3, 4), mode="L")[np.arange(4)][0]
    assert gray.shape == (4, 3, 4, 1) and gray.dtype == np.float32 and gray.max() <= 1
    batches = list(D.Loader(ds, 3, shuffle=True, prefetch=2))
    assert [len(b[0]) for b in batches] == [3, 1]

    Image.fromarray(pictures["b/1.png"][:4]).save(tmp_path / "b" / "2.png")
    with pytest.raises(ValueError, match=r"2\.png is 4 x 5, but the first image 6 x 5"):
        ds[np.arange(4)]
    good = (tmp_path / "b" / "1.png").read_bytes()
    for content in (good[:50], b"", b"not an image"):
        (tmp_path / "b" / "2.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"2\.png: not a readable image"):
            D.ImageFolder(tmp_path, size=6)[np.arange(4)]


def test_images_of_other_kinds(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    gray = np.random.default_rng(1).integers(0, 256, (6, 5), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "a" / "0.png")
    Image.fromarray(gray).convert("P").save(tmp_path / "a" / "1.png")
    Image.fromarray(gray).convert("LA").save(tmp_path / "a" / "2.png")
    Image.fromarray(np.dstack([gray] * 3 + [255 - gray])).save(tmp_path / "a" / "3.png")
    # 16 bits, which Pillow's own conversion turns into white
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "a" / "4.png")
    (tmp_path / "a" / "5.pgm").write_bytes(
        b"P5 5 6 65535 " + (gray.astype(np.uint16) * 257).astype(">u2").tobytes()
    )
    for mode in ("L", "RGB"):
        x, _ = D.ImageFolder(tmp_path, mode=mode, dtype="uint8")[np.arange(6)]
        np.testing.assert_array_equal(x, np.broadcast_to(gray[None, :, :, None], x.shape))
    assert D.ImageFolder(tmp_path, size=np.int64(3))[0][0].shape == (3, 3, 3)


def test_an_image_cannot_reserve_memory(tmp_path):
    pytest.importorskip("PIL.Image")
    import zlib

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    (tmp_path / "a").mkdir()
    for side in (10_000, 50_000):
        png = b"\x89PNG\r\n\x1a\n" + chunk(
            b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        )
        (tmp_path / "a" / "x.png").write_bytes(png + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        warned = pytest.warns() if side == 10_000 else contextlib.nullcontext()
        with warned, pytest.raises(ValueError, match=r"x\.png: not a readable image"):
            D.ImageFolder(tmp_path)[[0]]


def test_image_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        D.ImageFolder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no folders"):
        D.ImageFolder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"'empty'.*no images"):
        D.ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="mode"):
        D.ImageFolder(tmp_path, mode="CMYK")
    with pytest.raises(ValueError, match="dtype"):
        D.ImageFolder(tmp_path, dtype="int32")


# ---- CSV -----------------------------------------------------------------------------------------


def csv_file(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / name


def test_csv(tmp_path):
    ds = D.CSVDataset(csv_file(tmp_path, '\ufeffa,"b, c",k\r\n1,2.5,0\r\n\r\n-3e2, 4 ,2\r\n'))
    assert ds.columns == ["a", "b, c"] and ds.classes is None
    np.testing.assert_array_equal(ds.arrays[0], np.float32([[1, 2.5], [-300, 4]]))
    assert ds.arrays[0].dtype == np.float32 and ds.arrays[1].tolist() == [0, 2]
    assert ds.arrays[1].dtype == np.int64

    real = D.CSVDataset(csv_file(tmp_path, "1;2;0.5\n3;4;1\n"))  # no names, another delimiter
    assert real.columns == ["0", "1"] and real.arrays[1].tolist() == [[0.5], [1.0]]
    text = D.CSVDataset(csv_file(tmp_path, "b,1\na,2\nb,3\n"), target=0)
    assert text.classes == ["a", "b"] and text.arrays[1].tolist() == [1, 0, 1]
    assert text.arrays[0].tolist() == [[1], [2], [3]]
    two = D.CSVDataset(csv_file(tmp_path, "p,q,r\n1,2,3\n4,5,6\n"), target=["r", 0])
    assert two.columns == ["q"] and two.arrays[1].tolist() == [[3, 1], [6, 4]]
    alone = D.CSVDataset(csv_file(tmp_path, "1,2\n3,4\n"), target=None, dtype="float64")
    assert len(alone.arrays) == 1 and alone.arrays[0].dtype == np.float64
    named = D.CSVDataset(csv_file(tmp_path, "2019,2020\n1,2\n"), header=True)
    assert named.columns == ["2019"] and len(named) == 1
    dropped = D.CSVDataset(csv_file(tmp_path, "1,0\n,1\n3,NA\n4,1\n"), missing="drop")
    assert dropped.arrays[0].ravel().tolist() == [1, 4]


@pytest.mark.parametrize(
    "text, options",
    [
        ('"a,x,z";"b,c";y\n1;2;0\n3;4;1\n', {}),  # the comma is the most frequent, in names
        ("\n  \na;b;y\n1;2;0\n3;4;1\n", {}),
        ("a,b,y\n1,2,0\n   \n3,4,1\n \n\n", {}),
        ("7,8,9\n1,2,0\n3,4,1\n", {"header": 1}),
        ("1,2,0\n3,4,1\n", {"header": np.False_}),
        ("a|b|y\r1|2|0\r3|4|1\r", {}),
    ],
)
def test_csv_oddly_written(tmp_path, text, options):
    x, y = D.CSVDataset(csv_file(tmp_path, text), **options).arrays
    assert x.tolist() == [[1, 2], [3, 4]] and y.tolist() == [0, 1]


@pytest.mark.parametrize(
    "text, options, word",
    [
        ("", {}, "no lines"),
        ("\n\n", {}, "no lines"),
        ("a,b\n", {}, "no lines of data"),
        ("a,b\n1,2\n,3\n", {}, r"line 3, column 1 \(a\): the value is missing"),
        ("a,b\n1,2\n4,\n", {}, r"line 3, column 2 \(b\): the value is missing"),
        ("1,2\n1,nan\n", {}, "line 2, column 2: the value is missing"),
        ("1,2,3\n1,?,3\n", {}, r"line 2, column 2: the value is missing \('\?'\)"),
        ("a,b\n1,2\nx,3\n", {}, r"line 3, column 1 \(a\): expected a number, got 'x'"),
        ("a,b\n1,2\n3,x\n", {}, r"line 3, column 2 \(b\): expected a number"),
        ("a,b\n1,2\n1_000,3\n", {}, "expected a number, got '1_000'"),
        ("a,b\n1,2\n-inf,3\n", {}, "line 3, column 1 .*not finite"),
        ("a,b\n1,2\n1,1e999\n", {}, "line 3, column 2 .*not finite"),
        ("a,b\n1e300,2\n", {}, "line 2, column 1 .*does not fit float32"),
        ("a,b\n1,2\n1,2,3\n", {}, "line 3 has 3 values; expected 2"),
        ("a,b\n1,2\n", {"target": "c"}, "no column 'c'; it has a, b"),
        ("a,b\n1,2\n", {"target": 2}, "no column 2; it has 2"),
        ("a,b\n1,2\n", {"target": [0, "a"]}, "twice"),
        ("a\n1\n", {}, "no features"),
        ("a,b\n1,2\n", {"missing": "fill"}, "missing must be"),
        ("a,b\n1,2\n", {"delimiter": "::"}, "one character"),
        ("a,b\n1,2\n", {"header": 2}, "header"),
        (b"\xff\xfea\0,\0b\0", {}, "not a CSV"),
        ('1,"' + "x" * 200_000 + '"\n', {}, "not a CSV|number"),
    ],
)
def test_csv_errors(tmp_path, text, options, word):
    with pytest.raises(ValueError, match=word):
        D.CSVDataset(csv_file(tmp_path, text), **options)


def test_csv_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        D.CSVDataset(tmp_path / "none.csv")


def test_csv_against_numpy(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(500, 7)) * 10.0 ** rng.integers(-5, 6, (500, 7))
    np.savetxt(tmp_path / "a.csv", table, delimiter=",", header="a,b,c,d,e,f,g", comments="")
    ds = D.CSVDataset(tmp_path / "a.csv", dtype="float64")
    expected = np.loadtxt(tmp_path / "a.csv", delimiter=",", skiprows=1)
    np.testing.assert_array_equal(np.hstack(ds.arrays), expected)


def test_fuzz_csv(tmp_path):
    good = b"alpha,beta,kind\n1.5,2,x\n-3e4,5,y\n" + b'"6",7,x\n' * 10
    rng = random.Random(6)
    alphabet = b'0123456789.,;\n\r"ex-+ \0\xff_nai'
    contents = list(mutations(good, rng, 400))
    contents += [bytes(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(600)]
    for content in contents:
        path = csv_file(tmp_path, content, "f.csv")
        for options in ({}, {"target": None, "missing": "drop"}):
            try:
                ds = D.CSVDataset(path, **options)
            except (ValueError, OSError) as error:
                assert "f.csv" in str(error)
            else:
                assert np.isfinite(ds.arrays[0]).all() and len(ds) > 0


# ---- loader --------------------------------------------------------------------------------------


def pairs(n=23):
    return np.arange(n * 3, dtype=np.float32).reshape(n, 3), np.arange(n)


def jitter(x, rng):
    return x + rng.normal(size=x.shape)


@pytest.mark.parametrize("prefetch", [None, 0, 1, 2, 7])
def test_every_sample_once(prefetch):
    x, y = pairs()
    for batch_size in (1, 4, 23, 40):
        for drop_last in (False, True) if batch_size <= 23 else (False,):
            loader = D.Loader((x, y), batch_size, True, 3, drop_last, prefetch=prefetch)
            batches = list(loader)
            assert len(batches) == len(loader)
            seen = np.concatenate([b[1] for b in batches])
            kept = 23 // batch_size * batch_size if drop_last else 23
            assert len(seen) == kept == len(set(seen.tolist()))
            for bx, by in batches:
                np.testing.assert_array_equal(bx, x[by])


def test_order_is_a_function_of_seed_and_epoch():
    data = pairs(200)

    def orders(seed, **more):
        loader = D.Loader(data, 32, True, seed, **more)
        return [np.concatenate([b[1] for b in loader]).tolist() for _ in range(3)]

    a = orders(5)
    assert a == orders(5, prefetch=2) == orders(5, prefetch=0)
    assert a[0] != a[1] != a[2] and a != orders(6)
    # and the batch size does not change it
    assert np.concatenate([b[1] for b in D.Loader(data, 7, True, 5)]).tolist() == a[0]
    plain = D.Loader(data, 64)
    assert np.concatenate([b[1] for b in plain]).tolist() == list(range(200))
    loader = D.Loader(data, 32, True, 5)
    loader.set_epoch(2)
    assert np.concatenate([b[1] for b in loader]).tolist() == a[2]


def test_orders_are_uniform():
    """Each sample comes at each place about equally often (chi-squared, 25 degrees of freedom)."""
    counts = np.zeros((6, 6))
    loader = D.Loader(np.arange(6), 6, True, 1)
    for _ in range(3000):
        ((order,),) = loader
        counts[np.arange(6), order] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 60


def test_batches_are_the_loops_own():
    x, y = pairs()
    for shuffle in (False, True):
        loader = D.Loader((x, y), 5, shuffle, prefetch=2)
        kept = list(loader)
        for bx, _ in kept:
            bx[:] = -1
        assert x.min() == 0
        loader.set_epoch(0)
        for bx, by in loader:
            np.testing.assert_array_equal(bx, x[by])
        assert all((bx == -1).all() for bx, _ in kept)


@pytest.mark.parametrize("prefetch", [None, 0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_resume_anywhere(prefetch, shuffle):
    data = pairs(50)

    def make(seed=4):
        return D.Loader(data, 8, shuffle, seed, transform=jitter, prefetch=prefetch)

    whole, states = [], []
    loader = make()
    states.append(loader.state_dict())
    for _ in range(3):
        for batch in loader:
            whole.append(batch)
            states.append(loader.state_dict())
    assert len(whole) == 21
    for k in (0, 1, 5, 7, 13, 20):
        again = make(seed=99)
        again.load_state_dict(states[k])
        rest = []
        while len(rest) < 21 - k:
            rest += list(again)
        assert len(rest) == 21 - k
        for (ax, ay), (bx, by) in zip(rest, whole[k:]):
            assert ax.tobytes() == bx.tobytes() and ay.tobytes() == by.tobytes()
        assert again.state_dict() == {**loader.state_dict(), "seed": 4}


def test_state_after_epochs_and_breaks():
    loader = D.Loader(pairs(), 5, True)
    assert loader.state_dict()["epoch"] == 0
    list(loader)
    assert (loader.epoch, loader.state_dict()["position"]) == (1, 0)
    for i, _ in enumerate(loader):
        if i == 1:
            break
    assert loader.state_dict()["epoch"] == 1 and loader.state_dict()["position"] == 2
    fresh = D.Loader(pairs(), 5, True)
    fresh.set_epoch(2)  # after a loop that was left, the next one is a whole new epoch
    for a, b in zip(loader, fresh, strict=True):
        np.testing.assert_array_equal(a[1], b[1])
    # the state after an epoch's last batch: nothing is left of it
    for _ in loader:
        state = loader.state_dict()
    again = D.Loader(pairs(), 5, True)
    again.load_state_dict(state)
    assert list(again) == [] and again.epoch == 4
    assert len(list(again)) == 5


def test_load_state_errors():
    loader = D.Loader(pairs(), 5, True)
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises(ValueError, match=r"batch_size=5.*batch_size=6"):
        D.Loader(pairs(), 6, True).load_state_dict(state)
    with pytest.raises(ValueError, match="samples=23"):
        D.Loader(pairs(24), 5, True).load_state_dict(state)
    with pytest.raises(ValueError, match="shuffle"):
        D.Loader(pairs(), 5).load_state_dict(state)
    with pytest.raises(ValueError, match="missing epoch"):
        loader.load_state_dict({"position": 0, "seed": 0})
    with pytest.raises(ValueError, match="position 9"):
        loader.load_state_dict({**state, "position": 9})
    D.Loader(pairs(), 6, True).load_state_dict({**state, "position": 0})


class Failing:
    def __init__(self, at):
        self.at = at

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if self.at in index:
            raise KeyError("broken sample")
        return (np.asarray(index),)


@pytest.mark.parametrize("prefetch", [None, 0, 1, 3])
def test_errors_reach_the_loop(prefetch):
    loader = D.Loader(Failing(9), 4, prefetch=prefetch)
    got = []
    with pytest.raises(KeyError, match="broken sample"):
        for (batch,) in loader:
            got.append(batch.tolist())
    assert got == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert not loader_threads()

    def bad(x, rng):
        raise RuntimeError("in transform")

    with pytest.raises(RuntimeError, match="in transform"):
        list(D.Loader(pairs(), 4, transform=bad, prefetch=prefetch))


def test_leaving_early_leaves_no_thread():
    for stop in (0, 1, 3):
        for i, _ in enumerate(D.Loader(pairs(), 2, prefetch=2)):
            if i == stop:
                break
        gc.collect()
        assert not loader_threads()
    iterator = iter(D.Loader(pairs(), 2, prefetch=2))
    next(iterator)
    assert len(loader_threads()) == 1
    iterator.close()
    assert not loader_threads()

    def fails():
        for _ in D.Loader(pairs(), 2, prefetch=2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    gc.collect()
    assert not loader_threads()


def test_prefetch_runs_ahead_but_not_too_far():
    done = []

    def slow(x, rng):
        done.append(len(done))
        return x

    iterator = iter(D.Loader(pairs(), 1, transform=slow, prefetch=3))
    next(iterator)
    limit = time.monotonic() + 5
    while len(done) < 4 and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(done) == 4  # the one handed out and three ahead
    iterator.close()


def test_automatic_prefetch_uses_a_thread_for_slow_batches_only():
    def slow(x, rng):
        time.sleep(0.002)
        return x

    for transform, threads in ((None, 0), (slow, 1)):
        loader = D.Loader(pairs(), 2, transform=transform)
        list(loader)  # warm
        seen = []
        while threads not in seen and len(seen) < 50:  # a busy machine may stop a quick batch, too
            iterator = iter(loader)
            next(iterator), next(iterator)
            seen.append(len(loader_threads()))
            iterator.close()
        assert seen[-1] == threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork():
    data = pairs(40)
    expected = [b[1].tolist() for b in D.Loader(data, 4, True, 1, transform=jitter)]
    loader = D.Loader(data, 4, True, 1, transform=jitter, prefetch=2)
    iterator = iter(loader)
    got = [next(iterator)[1].tolist() for _ in range(3)]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # goes on with the parent's iterator, then starts one of its own
        ok = False
        try:
            mine = got + [b[1].tolist() for b in iterator]
            loader.set_epoch(0)
            ok = mine == expected and [b[1].tolist() for b in loader] == expected
            iterator.close()
        finally:
            os.write(write, b"y" if ok else b"n")
            os._exit(0)
    os.close(write)
    limit = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > limit:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.read(read, 1) == b"y"
    os.close(read)
    assert got + [b[1].tolist() for b in iterator] == expected


def test_two_loops_at_once():
    """The second loop is the next epoch; each is whole."""
    loader = D.Loader(pairs(), 5, True, prefetch=2)
    both = list(zip(loader, loader, strict=True))
    for k in range(2):
        assert sorted(np.concatenate([b[k][1] for b in both]).tolist()) == list(range(23))
    orders = D.Loader(pairs(), 5, True)
    for k in range(2):
        for got, (_, y) in zip(both, orders, strict=True):
            assert got[k][1].tolist() == y.tolist()
    assert loader.epoch == 2


def test_transforms_of_each_array():
    x, y = pairs(6)
    loader = D.Loader((x, y), 4, transform=(None, D.OneHot(6)))
    bx, by = next(iter(loader))
    np.testing.assert_array_equal(bx, x[:4])
    np.testing.assert_array_equal(by, np.eye(6)[:4])
    with pytest.raises(ValueError, match="3 transforms"):
        list(D.Loader((x, y), 4, transform=(None, None, jitter)))
    with pytest.raises(TypeError, match="transform"):
        D.Loader(x, 4, transform=3)


def test_random_numbers_differ_between_batches_and_epochs():
    seen = []
    loader = D.Loader(pairs(8), 4, seed=1, transform=lambda x, rng: seen.append(rng.random()) or x)
    list(loader), list(loader)
    list(D.Loader(pairs(8), 4, seed=2, transform=loader.transforms[0]))
    assert len(set(seen)) == 6


def test_loader_arguments():
    for batch_size in (0, -3):
        with pytest.raises(ValueError, match="batch_size"):
            D.Loader(pairs(), batch_size)
    for batch_size in (2.0, "4", True):
        with pytest.raises(TypeError, match="batch_size"):
            D.Loader(pairs(), batch_size)
    with pytest.raises(ValueError, match="empty"):
        D.Loader(np.zeros((0, 3)), 2)
    with pytest.raises(ValueError, match="leaves no batch"):
        D.Loader(pairs(), 24, drop_last=True)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            D.Loader(pairs(), 2, seed=seed)
    with pytest.raises(TypeError, match="seed"):
        D.Loader(pairs(), 2, seed="x")
    with pytest.raises(ValueError, match="prefetch"):
        D.Loader(pairs(), 2, prefetch=-1)
    with pytest.raises(TypeError, match="dataset"):
        D.Loader(3)
    with pytest.raises(TypeError, match="tuple of arrays"):
        list(D.Loader(type("Odd", (Failing,), {"__getitem__": lambda s, i: {"x": i}})(0), 2))
    list(D.Loader(pairs(), 2, True, seed=2**64 - 1))


def test_seed_none_is_the_global_seed():
    gs = pytest.importorskip("gradsmith")
    gs.manual_seed(77)
    assert D.Loader(pairs(), 2, seed=None).seed == 77
    gs.manual_seed(0)


def test_memmaps_and_odd_strides(tmp_path):
    mapped = np.memmap(tmp_path / "m", np.float32, "w+", shape=(30, 4))
    mapped[:] = np.arange(120).reshape(30, 4)
    for source in (mapped, np.asfortranarray(mapped), np.array(mapped)[::-1], mapped[:, ::2]):
        for shuffle in (False, True):
            (batch,) = next(iter(D.Loader(source, 7, shuffle, 2)))
            index = D.Loader(np.arange(30), 7, shuffle, 2)
            np.testing.assert_array_equal(batch, source[next(iter(index))[0]])


# ---- splits --------------------------------------------------------------------------------------


def test_train_test_split():
    x, y = pairs(103)
    y = y % 5 % 3
    a, b, c, d = D.train_test_split(x, y, test_size=0.3, seed=1)
    assert len(b) == 31 and len(a) == 72
    assert sorted(np.concatenate([a, b])[:, 0].tolist()) == x[:, 0].tolist()
    np.testing.assert_array_equal(y[(a[:, 0] / 3).astype(int)], c)
    np.testing.assert_array_equal(y[(b[:, 0] / 3).astype(int)], d)
    for seed in range(5):
        _, test = D.train_test_split(D.ArrayDataset(x, y), test_size=0.3, stratify=True, seed=seed)
        assert isinstance(test, D.Subset) and len(test) == 31
        share = np.bincount(y) * (31 / 103)
        assert (abs(np.bincount(test[np.arange(31)][1]) - share) < 1).all()
    train, test = D.train_test_split(D.ArrayDataset(x), test_size=10, shuffle=False)
    assert test.indices.tolist() == list(range(93, 103)) and len(train) == 93
    for size in (0, 103, 1.5, 0.0, 0.001):
        with pytest.raises(ValueError, match="test_size"):
            D.train_test_split(x, test_size=size)
    with pytest.raises(ValueError, match="stratify"):
        D.train_test_split(x, stratify=y[:5])
    with pytest.raises(ValueError, match="shuffle"):
        D.train_test_split(x, stratify=y, shuffle=False)
    with pytest.raises(ValueError, match="lengths"):
        D.train_test_split(x, y[:5])


def test_random_split():
    ds = D.ArrayDataset(np.arange(20))
    a, b, c = D.random_split(ds, [11, 0, 9], seed=3)
    assert [len(a), len(b), len(c)] == [11, 0, 9]
    assert sorted([*a.indices, *c.indices]) == list(range(20))
    assert [len(p) for p in D.random_split(ds, [0.33, 0.33, 0.34])] == [7, 7, 6]
    for lengths in ([10, 9], [0.5, 0.6], [-1, 21], []):
        with pytest.raises(ValueError, match="random_split"):
            D.random_split(ds, lengths)


def test_kfold():
    labels = np.repeat([0, 1, 2], [10, 7, 4])
    for given in (None, labels):
        for shuffle in (False, True):
            folds = list(D.KFold(4, shuffle, seed=2).split(21, given))
            tests = [test for _, test in folds]
            assert sorted(np.concatenate(tests).tolist()) == list(range(21))
            assert sorted(len(t) for t in tests) == [5, 5, 5, 6]
            for train, test in folds:
                assert sorted([*train, *test]) == list(range(21))
                if given is not None:
                    counts = np.bincount(labels[test], minlength=3)
                    assert (abs(counts - np.array([10, 7, 4]) / 4) < 1).all()
    with pytest.raises(ValueError, match="3 samples"):
        next(D.KFold(4).split(np.arange(3)))
    with pytest.raises(ValueError, match="n_splits"):
        D.KFold(1)


# ---- synthetic sets ------------------------------------------------------------------------------


def test_synthetic_sets():
    for make in (D.make_blobs, D.make_moons, D.make_spirals, D.make_regression):
        x, y = make(101, seed=4)
        x2, y2 = make(101, seed=4)
        assert x.dtype == np.float32 and len(x) == len(y) == 101
        assert x.tobytes() == x2.tobytes() and y.tobytes() == y2.tobytes()
        assert make(101, seed=5)[0].tobytes() != x.tobytes()
        with pytest.raises(ValueError):
            make(0)
    centers = np.array([[0.0, 0.0, 5.0], [10.0, 0.0, 0.0]])
    x, y = D.make_blobs(4000, centers=centers, cluster_std=0.5)
    for k in range(2):
        np.testing.assert_allclose(x[y == k].mean(0), centers[k], atol=0.06)
        np.testing.assert_allclose(x[y == k].std(0), 0.5, atol=0.03)
    for make, name in ((D.make_blobs, "cluster_std"), (D.make_moons, "noise")):
        with pytest.raises(ValueError, match=f"{make.__name__}: {name} must be 0 or more, got -1"):
            make(**{name: -1})
    x, y = D.make_moons(200)
    np.testing.assert_allclose(np.hypot(*x[y == 0].T), 1, atol=1e-6)
    np.testing.assert_allclose(np.hypot(*(x[y == 1] - [1, 0.5]).T), 1, atol=1e-6)
    x, y = D.make_spirals(300, 3, noise=0.0)
    assert np.hypot(*x.T).max() <= 1 and np.bincount(y).tolist() == [100] * 3
    x, y, w = D.make_regression(500, 6, n_informative=2, n_targets=3, noise=0.1, coef=True)
    assert y.shape == (500, 3) and (np.abs(w).sum(1) > 0).sum() == 2
    solved = np.linalg.lstsq(x.astype(float), y, rcond=None)[0]
    np.testing.assert_allclose(solved, w, atol=0.05)


# ---- downloads -----------------------------------------------------------------------------------


@pytest.fixture
def small_sources(tmp_path, monkeypatch):
    """A folder that serves small versions of the files, with their checksums."""
    module = sys.modules["gradsmith.data.download"]
    served = tmp_path / "served"
    family(served, n=(5, 3), gz=[f"{a}-{b}" for a in ("train", "t10k")
                                 for b in ("images-idx3-ubyte", "labels-idx1-ubyte")])  # fmt: skip
    with tarfile.open(served / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for i, name in enumerate(module.SOURCES["cifar10"].members):
            content = cifar_bytes(2, seed=i).tobytes()
            info = tarfile.TarInfo(f"../../cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        evil = tarfile.TarInfo("../../evil.txt")
        tar.addfile(evil, io.BytesIO(b""))
    sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in served.iterdir()}
    for name in ("mnist", "cifar10"):
        source = module.SOURCES[name]
        monkeypatch.setitem(
            module.SOURCES,
            name,
            source._replace(
                mirrors=(served.as_uri() + "/",), files={f: sums[f] for f in source.files}
            ),
        )
    return served


def test_download(tmp_path, small_sources):
    root = D.download("mnist", tmp_path / "m", progress=False)
    train, test = D.mnist(root)
    assert len(train) == 5 and len(test) == 3 and len(os.listdir(root)) == 4
    before = {p: os.stat(os.path.join(root, p)).st_mtime_ns for p in os.listdir(root)}
    (small_sources / "train-labels-idx1-ubyte.gz").unlink()
    D.download("MNIST", root, progress=False)  # all there: nothing is fetched
    assert before == {p: os.stat(os.path.join(root, p)).st_mtime_ns for p in os.listdir(root)}

    root = D.download("cifar10", tmp_path / "c", progress=False)
    assert len(D.cifar10(root)[0]) == 10
    assert not (tmp_path / "evil.txt").exists() and not (tmp_path.parent / "evil.txt").exists()
    (tmp_path / "c" / "cifar-10-binary.tar.gz").unlink()
    (small_sources / "cifar-10-binary.tar.gz").unlink()
    D.download("cifar10", root, progress=False)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_download_over_http_and_from_mirrors(tmp_path, small_sources, monkeypatch):
    def handler(*arguments):
        return Quiet(*arguments, directory=str(small_sources))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        url = f"http://127.0.0.1:{server.server_port}"
        module = sys.modules["gradsmith.data.download"]
        source = module.SOURCES["mnist"]
        monkeypatch.setitem(module.SOURCES, "mnist", source._replace(mirrors=()))
        assert len(D.mnist(D.download("mnist", tmp_path / "a", url, progress=False))[1]) == 3
        # a mirror that lacks the files is passed over
        monkeypatch.setitem(module.SOURCES, "mnist", source._replace(mirrors=(url + "/",)))
        D.download("mnist", tmp_path / "b", url + "/none", progress=True)
        assert len(os.listdir(tmp_path / "b")) == 4
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_download_errors(tmp_path, small_sources, monkeypatch):
    with pytest.raises(ValueError, match=r"unknown data set 'imagenet'; known are mnist"):
        D.download("imagenet", tmp_path)
    name = "train-labels-idx1-ubyte.gz"
    (small_sources / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"{name} came damaged.*expected"):
        D.download("mnist", tmp_path / "m", progress=False)
    assert sorted(os.listdir(tmp_path / "m")) == ["train-images-idx3-ubyte.gz"]
    module = sys.modules["gradsmith.data.download"]
    offline = module.SOURCES["mnist"]._replace(mirrors=("http://127.0.0.1:9/",))
    monkeypatch.setitem(module.SOURCES, "mnist", offline)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ConnectionError, match=r"cannot fetch.*127\.0\.0\.1:9.*Without a network"):
        D.download("mnist", tmp_path / "n", timeout=5, progress=False)
    assert os.listdir(tmp_path / "n") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        D.download("mnist", tmp_path / "file", progress=False)


def test_published_checksums_are_well_formed():
    module = sys.modules["gradsmith.data.download"]
    for source in module.SOURCES.values():
        assert source.mirrors and all(m.endswith("/") for m in source.mirrors)
        assert all(len(s) == 32 and int(s, 16) for s in source.files.values())


# ---- the examples --------------------------------------------------------------------------------


def modules():
    yield importlib.import_module("gradsmith.interop.safetensors")
    for info in pkgutil.walk_packages(D.__path__, "gradsmith.data."):
        yield importlib.import_module(info.name)


@pytest.mark.parametrize("module", list(modules()), ids=lambda m: m.__name__)
def test_the_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_the_page_runs():
    page = os.path.join(os.path.dirname(__file__), "..", "docs", "data.md")
    if not os.path.exists(page):
        pytest.skip("docs are not here")
    result = doctest.testfile(page, module_relative=False)
    assert result.failed == 0 and result.attempted > 20


def test_cifar_takes_one_path(tmp_path):
    path = tmp_path / "one.bin"
    path.write_bytes(bytes([3]) + bytes(3072))
    for given in (path, str(path)):
        assert D.CIFARDataset(given).arrays[1].tolist() == [3]


def test_csv_refuses_what_would_be_cut_or_is_ambiguous(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,a,y\n1.5,2,2.5\n")
    with pytest.raises(ValueError, match="CSVDataset: dtype must be .*got int64"):
        D.CSVDataset(path, dtype="int64")  # y was 2
    with pytest.raises(TypeError, match="CSVDataset: 'foo' is not a dtype"):
        D.CSVDataset(path, dtype="foo")
    for target in (1.0, True, [1.5], [None]):
        with pytest.raises(TypeError, match="CSVDataset: target must be a column's name or pos"):
            D.CSVDataset(path, target=target)
    with pytest.raises(ValueError, match="2 columns are called 'a'.*position"):
        D.CSVDataset(path, target="a")
    assert D.CSVDataset(path, target=1).arrays[0].tolist() == [[1.5, 2.5]]
