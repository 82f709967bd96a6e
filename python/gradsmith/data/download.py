"""Fetching the well-known data sets, with their published checksums."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["download"]

_LIMIT = 1 << 30  # bytes; no file here is larger, whatever a server sends


class _Source(NamedTuple):
    mirrors: tuple[str, ...]  # folders, as URLs
    files: dict[str, str]  # name: MD5, as the authors publish it
    members: tuple[str, ...] = ()  # what to take out of a .tar.gz
    folder: str = ""  # where to put it, below root


SOURCES = {
    "mnist": _Source(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": _Source(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": _Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"),
        "cifar-10-batches-bin",
    ),
    "cifar100": _Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
        ("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt"),
        "cifar-100-binary",
    ),
}


def download(
    name: str,
    root: str | os.PathLike[str],
    mirror: str | None = None,
    timeout: float = 30.0,
    progress: bool = True,
) -> str:
    """Fetch "mnist", "fashion_mnist", "cifar10" or "cifar100" into the folder ``root``.

    Returns ``root``, for ``gs.data.mnist(root)`` and so on. Files that are there with the right
    checksum are kept. Each file comes under a temporary name, is checked against the MD5 that the
    authors publish, and only then renamed. ``mirror`` is the URL of a folder with the same files,
    tried first. ``timeout`` is in seconds.

    Raises:
        ValueError: an unknown name, or a file whose checksum is wrong.
        ConnectionError: no source can be reached; says what to fetch by hand and where to put it.
        OSError: ``root`` cannot be written.

    >>> import os, tempfile
    >>> root = tempfile.mkdtemp()
    >>> folder = os.path.join(root, "cifar-100-binary")
    >>> os.mkdir(folder)
    >>> for name in ["train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt"]:
    ...     open(os.path.join(folder, name), "wb").close()
    >>> download("cifar100", root) == root  # its files are there: nothing is fetched
    True
    """
    key = name.lower().replace("-", "_")
    if key not in SOURCES:
        raise ValueError(f"download: unknown data set {name!r}; known are {', '.join(SOURCES)}")
    source = SOURCES[key]
    folder = os.fspath(root)
    os.makedirs(folder, exist_ok=True)
    mirrors = ([mirror.rstrip("/") + "/"] if mirror else []) + list(source.mirrors)
    for file, md5 in source.files.items():
        path = os.path.join(folder, file)
        if source.members and _unpacked(folder, source):
            continue
        if not (os.path.isfile(path) and _md5(path) == md5):
            _fetch([m + file for m in mirrors], path, md5, timeout, progress)
        if source.members:
            _unpack(path, os.path.join(folder, source.folder), source.members)
    return folder


def _unpacked(folder: str, source: _Source) -> bool:
    place = os.path.join(folder, source.folder)
    return all(os.path.isfile(os.path.join(place, member)) for member in source.members)


def _md5(path: str) -> str:
    import hashlib

    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fetch(urls: Sequence[str], path: str, md5: str, timeout: float, progress: bool) -> None:
    import http.client

    problems, damaged = [], False
    for url in urls:
        part = f"{path}.{os.getpid()}.part"
        try:
            _copy(url, part, timeout, progress)
            found = _md5(part)
            if found == md5:
                os.replace(part, path)
                return
            damaged = True
            problems.append(f"{url}: the MD5 is {found}, expected {md5}")
        except (OSError, http.client.HTTPException) as error:
            # URLError and timeouts are OSErrors, and so is a full disk: that one is not the network
            if getattr(error, "filename", None) == part or getattr(error, "errno", None) == 28:
                raise
            problems.append(f"{url}: {getattr(error, 'reason', None) or error}")
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(part)
    told = "; ".join(problems)
    file, folder = os.path.basename(path), os.path.dirname(path)
    if damaged:
        raise ValueError(f"download: {file} came damaged ({told}). Try again, or another mirror=.")
    raise ConnectionError(
        f"download: cannot fetch {file} ({told}). Without a network, fetch it elsewhere and put it "
        f"into {folder}."
    )


def _copy(url: str, part: str, timeout: float, progress: bool) -> None:
    import urllib.request

    request: Any = urllib.request.Request(url, headers={"User-Agent": "gradsmith"})
    with urllib.request.urlopen(request, timeout=timeout) as reply, open(part, "wb") as file:
        total = reply.headers.get("Content-Length")
        bar: Any = None
        if progress:
            from tqdm import tqdm

            size = int(total) if total and total.isdigit() else None
            label = url.rsplit("/", 1)[-1]
            # disable=None: no bar where nobody watches
            bar = tqdm(total=size, unit="B", unit_scale=True, desc=label, disable=None)
        with bar or contextlib.nullcontext():
            done = 0
            while block := reply.read(1 << 18):
                done += len(block)
                if done > _LIMIT:
                    raise ConnectionError("the server sends more than 1 GiB")
                file.write(block)
                if bar is not None:
                    bar.update(len(block))


def _unpack(archive: str, folder: str, members: Sequence[str]) -> None:
    """Take the named files out of the archive; paths in it are not followed."""
    import shutil
    import tarfile
    import zlib

    os.makedirs(folder, exist_ok=True)
    wanted = set(members)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = os.path.basename(member.name)
                content = tar.extractfile(member) if member.isfile() and name in wanted else None
                if content is None:
                    continue
                part = os.path.join(folder, f"{name}.{os.getpid()}.part")
                try:
                    with open(part, "wb") as file:
                        shutil.copyfileobj(content, file, 1 << 20)
                    os.replace(part, os.path.join(folder, name))
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(part)
                wanted.discard(name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"download: {archive} is damaged ({error})") from None
    if wanted:
        raise ValueError(f"download: {archive} lacks {', '.join(sorted(wanted))}")
