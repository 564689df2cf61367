"""MNIST: the IDX files of the original distribution, compressed with gzip or not."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.data.images import MAX_BYTES, Images
from sparse_ddpm.errors import DataError, expected

_UNSIGNED_BYTE = 0x08
_DEFLATE_RATIO = 1_032  # no deflate stream expands further than this


def load_mnist(folder: Path, split: str) -> Images:
    """Read the images and labels of ``split`` (``train`` or ``test``) from ``folder``.

    Images are uint8 ``[N, 28, 28, 1]``. Raises `DataError`.
    """
    images_path, labels_path = (find(folder, stem) for stem in stems(split))
    images = read_idx(images_path, 3)
    if images.shape[1:] != (28, 28):
        got = f"{images.shape[1]} x {images.shape[2]}"
        raise DataError(expected(f"{images_path}: image size", "28 x 28", got))
    labels = read_idx(labels_path, 1)
    if len(labels) != len(images):
        wanted = f"{len(images)} labels, as many as images in {images_path.name}"
        raise DataError(expected(str(labels_path), wanted, len(labels)))
    if labels.max() > 9:
        raise DataError(expected(f"{labels_path}: labels", "digits 0 to 9", int(labels.max())))
    return Images(images[..., None], labels.astype(np.int64), "mnist")


def stems(split: str) -> tuple[str, str]:
    """File names without ``.gz``, images first."""
    prefix = "train" if split == "train" else "t10k"
    return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"


def names(stem: str) -> list[str]:
    """Every file name under which the file ``stem`` is known."""
    dotted = stem.replace("-idx", ".idx")
    return [stem + ".gz", stem, dotted + ".gz", dotted]


def present(folder: Path, stem: str) -> bool:
    return any((folder / name).is_file() for name in names(stem))


def find(folder: Path, stem: str) -> Path:
    for name in names(stem):
        if (folder / name).is_file():
            return folder / name
    state = "no such folder" if not folder.is_dir() else "none of them"
    raise DataError(expected(f"mnist:{folder}", f"a file {' or '.join(names(stem))}", state))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes with this number of dimensions; raise `DataError`.

    Layout: two zero bytes, the type code 0x08, the number of dimensions, one big-endian uint32
    per dimension, then the data in C order.
    """
    try:
        with open(path, "rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not compressed:
                return _read(raw, path, dimensions, size)
            with gzip.GzipFile(fileobj=raw) as stream:
                return _read(cast(BinaryIO, stream), path, dimensions, size * _DEFLATE_RATIO)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        wanted = "a whole gzip file"
        raise DataError(
            expected(str(path), wanted, f"a truncated or damaged one ({error})")
        ) from error
    except OSError as error:
        raise DataError(expected(str(path), "a readable file", str(error))) from error


def _read(stream: BinaryIO, path: Path, dimensions: int, limit: int) -> NDArray[np.uint8]:
    """Read from an open stream that can hold at most ``limit`` bytes."""
    length = 4 + 4 * dimensions
    header = stream.read(length)
    if header[:2] != b"\0\0" or len(header) < 4:
        wanted = f"an IDX file (magic number 0x{_UNSIGNED_BYTE:06x}{dimensions:02x} in 4 bytes)"
        raise DataError(
            expected(str(path), wanted, f"0x{header[:4].hex()}" if header else "nothing")
        )
    if header[2] != _UNSIGNED_BYTE:
        wanted = f"0x{_UNSIGNED_BYTE:02x} (unsigned byte)"
        raise DataError(expected(f"{path}: IDX type code", wanted, f"0x{header[2]:02x}"))
    if header[3] != dimensions:
        wanted = f"{dimensions} ({'images' if dimensions == 3 else 'labels'})"
        raise DataError(expected(f"{path}: IDX dimensions", wanted, header[3]))
    if len(header) < length:
        raise DataError(expected(f"{path}: IDX header", f"{length} bytes", len(header)))
    shape = struct.unpack(f">{dimensions}I", header[4:])
    count = math.prod(shape)
    text = " x ".join(str(n) for n in shape)
    if not 0 < count <= MAX_BYTES:
        wanted = f"1 to {MAX_BYTES} bytes of data"
        raise DataError(expected(str(path), wanted, f"a header that claims {text}"))
    if count + length > limit:
        wanted = f"{text} = {count} bytes of data, as its header says"
        raise DataError(expected(str(path), wanted, f"at most {limit - length}"))
    data = np.empty(count, dtype=np.uint8)
    view, done = data.data, 0
    while done < count and (got := stream.readinto(view[done : done + 2**24])):  # type: ignore[attr-defined]
        done += got
    more = bool(stream.read(1))
    if done < count or more:
        found = f"more than {count}" if more else str(done)
        raise DataError(
            expected(str(path), f"{text} = {count} bytes of data, as its header says", found)
        )
    return data.reshape(shape)
