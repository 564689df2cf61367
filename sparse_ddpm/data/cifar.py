"""CIFAR-10 and CIFAR-100 from the official binary archives. Pickles are never opened."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.data.images import Images
from sparse_ddpm.errors import DataError, expected

_PIXELS = 3 * 32 * 32
_MAX_MEMBER = 2**29  # the largest official file has 184 MB


@dataclass(frozen=True, slots=True)
class Layout:
    """How one of the two data sets is stored: records of ``label_bytes`` labels and an image."""

    name: str
    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: tuple[int, ...]
    """Number of classes of each label byte; the last label is the one that counts."""
    pickled: frozenset[str]
    """The archive for Python and files in it, by which a mix-up is recognised."""


LAYOUTS = {
    "cifar10": Layout(
        "cifar10",
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        (10,),
        frozenset({"cifar-10-python.tar.gz", "data_batch_1", "test_batch"}),
    ),
    "cifar100": Layout(
        "cifar100",
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        ("train.bin",),
        ("test.bin",),
        (20, 100),
        frozenset({"cifar-100-python.tar.gz", "train", "test"}),
    ),
}


def load_cifar(path: Path, kind: str, split: str) -> Images:
    """Read ``split`` of ``kind`` (``cifar10`` or ``cifar100``): uint8 ``[N, 32, 32, 3]``, labels.

    ``path`` is the archive, the folder of its ``.bin`` files, or a folder that holds one of them.
    Raises `DataError`.
    """
    layout = LAYOUTS[kind]
    wanted = layout.train if split == "train" else layout.test
    source = _source(path, layout, wanted)
    files = dict(
        _folder_files(source, wanted) if source.is_dir() else _tar_files(source, layout, wanted)
    )
    missing = [name for name in wanted if name not in files]
    if missing:
        raise DataError(expected(str(source), f"the files {', '.join(wanted)}", f"no {missing[0]}"))
    parts = [_records(f"{source}: {name}", files.pop(name), layout) for name in wanted]
    for name, (_, labels) in zip(wanted, parts, strict=True):
        if len(labels) != len(parts[0][1]):
            records = f"{len(parts[0][1])} records, as in {wanted[0]}"
            raise DataError(expected(f"{source}: {name}", records, len(labels)))
    images = np.concatenate([images for images, _ in parts])
    return Images(images, np.concatenate([labels for _, labels in parts]), layout.name)


def present(path: Path, kind: str) -> bool:
    """Whether there is anything at ``path`` to read ``kind`` from, whole or not."""
    layout = LAYOUTS[kind]
    files = layout.train + layout.test
    return path.is_file() or any(
        (path / name).is_file()
        for name in (layout.archive, *files, *(f"{layout.folder}/{name}" for name in files))
    )


def _source(path: Path, layout: Layout, wanted: tuple[str, ...]) -> Path:
    """The archive, or the folder in which the wanted files lie."""
    if path.is_file():
        return path
    if not path.is_dir():
        where = f"the archive {layout.archive} or a folder with {', '.join(wanted)}"
        raise DataError(expected(f"{layout.name}:{path}", where, "no such path"))
    for folder in (path, path / layout.folder):
        if any((folder / name).is_file() for name in wanted):
            return folder
    if (path / layout.archive).is_file():
        return path / layout.archive
    inside = (path, path / "cifar-10-batches-py", path / "cifar-100-python")
    _refuse_pickles(
        path,
        [entry.name for f in inside if f.is_dir() for entry in f.iterdir() if entry.is_file()],
        layout,
    )
    where = f"{', '.join(wanted)} there or in {layout.folder}/, or {layout.archive}"
    raise DataError(expected(f"{layout.name}:{path}", where, "none of them"))


def _refuse_pickles(source: Path, names: Iterable[str], layout: Layout) -> None:
    for name in names:
        if name in layout.pickled:
            raise DataError(
                expected(
                    str(source),
                    f"the binary archive {layout.archive} ({', '.join(layout.train)})",
                    f"{name} of the Python archive, a pickle, which is never opened",
                )
            )


def _folder_files(folder: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    for name in wanted:
        try:
            if (size := (folder / name).stat().st_size) > _MAX_MEMBER:
                raise DataError(expected(str(folder / name), f"at most {_MAX_MEMBER} bytes", size))
            yield name, (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(expected(str(folder / name), "a readable file", error)) from error


def _tar_files(path: Path, layout: Layout, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Read the wanted members in one pass, to the end, so that gzip's checksum is compared."""
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
            seen: list[str] = []
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    name = member.name.rpartition("/")[2]
                    if member.size > _MAX_MEMBER:
                        limit = f"at most {_MAX_MEMBER} bytes"
                        raise DataError(expected(f"{path}: {name}", limit, member.size))
                    if not member.isreg():
                        continue
                    seen.append(name)
                    if name in wanted:
                        content = archive.extractfile(member)
                        assert content is not None  # a regular file always has content
                        data = content.read()
                        if len(data) != member.size:
                            raise DataError(
                                expected(f"{path}: {name}", f"{member.size} bytes", len(data))
                            )
                        yield name, data
            while compressed and stream.read(2**20):
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            expected(str(path), f"a whole {layout.archive}", f"a damaged or other file ({error})")
        ) from error
    except OSError as error:
        raise DataError(expected(str(path), "a readable file", error)) from error
    if not any(name in wanted for name in seen):
        _refuse_pickles(path, seen, layout)


def _records(what: str, data: bytes, layout: Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Split one file into images ``[N, 32, 32, 3]`` (stored plane by plane) and labels ``[N]``."""
    length = len(layout.classes) + _PIXELS
    if not data or len(data) % length:
        raise DataError(expected(what, f"records of {length} bytes", f"{len(data)} bytes"))
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, length)
    for column, classes in enumerate(layout.classes):
        largest = int(records[:, column].max())
        if largest >= classes:
            raise DataError(expected(f"{what}: labels", f"0 to {classes - 1}", largest))
    planes = records[:, len(layout.classes) :].reshape(-1, 3, 32, 32)
    labels = records[:, len(layout.classes) - 1].astype(np.int64)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
