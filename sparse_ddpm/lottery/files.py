"""The small files of a run, and the lock on its folder."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.files import write_atomically


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


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
