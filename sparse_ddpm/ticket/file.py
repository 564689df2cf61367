"""Ticket files: which format a file has, and saving that either happens wholly or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sparse_ddpm.errors import ConfigError, TicketError, expected
from sparse_ddpm.files import write_atomically
from sparse_ddpm.ticket.content import Content, from_content, shown, to_content
from sparse_ddpm.ticket.safetensors_file import (
    looks_like_safetensors,
    read_safetensors_file,
    write_safetensors_file,
)
from sparse_ddpm.ticket.stored_zip import MAX_BYTES
from sparse_ddpm.ticket.ticket import Ticket
from sparse_ddpm.ticket.torch_file import SIGNATURE, read_torch_file, write_torch_file

_WRITERS = {".pt": write_torch_file, ".safetensors": write_safetensors_file}


def load_ticket(path: str | os.PathLike[str]) -> Ticket:
    """Read a ticket, ``.pt`` or ``.safetensors`` by its content whatever its name, without torch.

    Every field is checked before it is used. Raises `TicketError` that names the file, the thing,
    what was expected and what was found.
    """
    try:
        data = _read(path)
        return from_content(_parse(memoryview(data)))
    except (TicketError, ConfigError) as error:
        raise TicketError(f"{os.fspath(path)}: {error}") from error


def read_content(path: str | os.PathLike[str]) -> Content:
    """What a ticket's file holds, as `sparse_ddpm.ticket.content` describes it, arrays undecoded.

    Raises `TicketError` where there is no readable file of either format. What the content says is
    not checked: `load_ticket` does that.
    """
    try:
        content = _parse(memoryview(_read(path)))
        if not isinstance(content, dict):
            raise TicketError(expected("content", "a table", shown(content)))
    except TicketError as error:
        raise TicketError(f"{os.fspath(path)}: {error}") from error
    return content


def save_ticket(ticket: Ticket, path: str | os.PathLike[str]) -> None:
    """Write ``ticket`` in the format that the suffix says: ``.pt`` or ``.safetensors``.

    The same ticket always gives the same bytes. They are written beside the target and then moved
    in its place, so that a failure leaves what was there before. Raises `TicketError`.
    """
    path = Path(path)
    data = _written(ticket, path)
    write_atomically(path, lambda file: file.write(data), TicketError)


def _written(ticket: Ticket, path: Path) -> bytes:
    writer = _WRITERS.get(path.suffix)
    if writer is None:
        wanted = f"a name that ends in {' or '.join(_WRITERS)}"
        raise TicketError(expected(f"{path}", wanted, repr(path.suffix)))
    try:
        return writer(to_content(ticket))
    except TicketError as error:
        raise TicketError(f"{path}: {error}") from error


def file_bytes(ticket: Ticket, suffix: str = ".pt") -> int:
    """The size of the file that `save_ticket` would write. Raises `TicketError`."""
    return len(_written(ticket, Path(f"ticket{suffix}")))


def _parse(data: memoryview) -> object:
    start = bytes(data[:16])
    if start.startswith(SIGNATURE):
        return read_torch_file(data)
    if looks_like_safetensors(start):
        return read_safetensors_file(data)
    if not start:
        found = "an empty file"
    elif start.startswith(b"\x80"):
        found = "a bare pickle, which is never opened"
    else:
        found = f"{len(data)} bytes of something else"
    raise TicketError(expected("content", "a ticket (.pt or .safetensors)", found))


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES:
            return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        found = getattr(error, "strerror", None) or str(error)
    else:
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        found = f"{status.st_size} bytes" if stat.S_ISREG(status.st_mode) else kind
    raise TicketError(expected("file", f"a readable file of at most {MAX_BYTES} bytes", found))
