"""Fetching the official files, only when asked: over https, checked, renamed when whole."""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import urllib.request
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from sparse_ddpm.errors import DataError, expected

_TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Remote:
    """One official file: its address, the md5 sum of its content, and a bound on its size.

    With ``unzipped`` the sum is that of the content after gzip, which has at most ``limit`` bytes;
    so is the file itself.
    """

    url: str
    md5: str
    limit: int
    unzipped: bool = False


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_CIFAR = "https://www.cs.toronto.edu/~kriz"

MNIST = {
    f"{stem}.gz": Remote(f"{_MNIST}/{stem}.gz", md5, limit, unzipped=True)
    for stem, md5, limit in (
        ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb", 47_040_016),
        ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624", 60_008),
        ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea", 7_840_016),
        ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637", 10_008),
    )
}
CIFAR = {
    "cifar10": Remote(
        f"{_CIFAR}/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 2**28
    ),
    "cifar100": Remote(
        f"{_CIFAR}/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", 2**28
    ),
}


def fetch(remote: Remote, target: Path) -> None:
    """Download ``remote`` to ``target``; nothing is left behind unless the checksum is right.

    Raises `DataError` if the server cannot be reached, sends too much, or the sum differs.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise DataError(expected(str(target), "a place to write to", error)) from error
    try:
        _receive(remote, Path(temporary), target.name)
        found = _md5(Path(temporary), remote)
        if found != remote.md5:
            raise DataError(expected(remote.url, f"md5 sum {remote.md5}", found))
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except (OSError, HTTPException, EOFError, zlib.error) as error:  # OSError is urllib's, gzip's
        raise DataError(expected(remote.url, "a file that can be fetched", error)) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _receive(remote: Remote, path: Path, name: str) -> None:
    with urllib.request.urlopen(remote.url, timeout=_TIMEOUT) as response, open(path, "wb") as file:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isascii() and length.isdigit() else None
        done = 0
        with tqdm(
            total=total, desc=name, unit="B", unit_scale=True, leave=False, disable=None
        ) as bar:
            while block := response.read(_CHUNK):
                done += len(block)
                if done > remote.limit:
                    raise DataError(expected(remote.url, f"at most {remote.limit} bytes", "more"))
                file.write(block)
                bar.update(len(block))
        if total is not None and done != total:
            raise DataError(expected(remote.url, f"{total} bytes", done))


def _md5(path: Path, remote: Remote) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    with gzip.open(path) if remote.unzipped else open(path, "rb") as file:
        while block := file.read(_CHUNK):
            done += len(block)
            if done > remote.limit:
                wanted = f"at most {remote.limit} bytes of content"
                raise DataError(expected(remote.url, wanted, "more"))
            digest.update(block)
    return digest.hexdigest()
