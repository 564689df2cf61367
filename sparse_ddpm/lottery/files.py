"""Files that are either the old one or the new one, whatever moment the process dies at."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_ddpm.errors import ConfigError, expected


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file beside ``path``, bring it to the disk, then give it its name.

    The temporary name keeps the suffix (formats are chosen by it) and is the same each time, so
    what a killed process left is overwritten.
    """
    temporary = path.with_name(f".partial-{path.name}")
    write(temporary)
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: _write_utf8(temporary, text))


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


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
