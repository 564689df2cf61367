"""Files that are either the old one or the new one, whatever moment the process dies at."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_ddpm.errors import ConfigError, SparseDDPMError, expected


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file beside ``path``, bring it to the disk, then give it its name.

    The temporary name keeps the suffix (formats are chosen by it) and is the same each time, so
    what a killed process left is overwritten. Raises `SparseDDPMError` where nothing can be
    written.
    """
    temporary = path.with_name(f".partial-{path.name}")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise SparseDDPMError(expected(str(path), "a writable place", str(error))) from error


def sweep(folder: Path) -> None:
    """Remove temporary files of ours that a killed process left in ``folder``."""
    for pattern in (".partial-*", ".ticket.*.tmp"):
        for path in folder.glob(pattern):
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; raises `ConfigError` if there is anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(expected(str(path), "a JSON object", str(error))) from error
    if not isinstance(value, dict):
        raise ConfigError(expected(str(path), "a JSON object", type(value).__name__))
    return value


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold ``directory`` against a second trainer; the lock ends with the process, killed or not.

    Raises `ConfigError` if another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                expected(f"run in {directory}", "no other trainer at work", "one that runs")
            ) from error
        yield
    finally:
        os.close(descriptor)
