"""Writing files: the old one or the new one, whatever moment the process dies at."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from sparse_ddpm.errors import SparseDDPMError, expected


def write_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    error: type[SparseDDPMError] = SparseDDPMError,
) -> None:
    """Let ``write`` fill a file beside ``path``, bring it to the disk, then give it its name.

    Whatever goes wrong, ``path`` stays as it was and the other file is removed. What the system
    refuses is raised as ``error``; what ``write`` itself raises goes through, but for `OSError`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise error(expected(str(path), "a file that can be written", reason)) from problem
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sweep(folder: Path) -> None:
    """Remove what a killed process left of `write_atomically` in ``folder``."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, where the system lets one open a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
