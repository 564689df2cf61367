"""A file with tensors: which kind it is, and which module knows it."""

from __future__ import annotations

from pathlib import Path

from sparse_ddpm.convert.options import Options
from sparse_ddpm.convert.read import read_file
from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket import Ticket


def convert_file(path: Path, options: Options) -> Ticket:
    """The ticket that a file of tensors holds. Raises `TicketError` or `ConfigError`."""
    content = read_file(path)
    if content.get("format") == "sparse-ddpm-ticket":
        raise TicketError(
            expected(str(path), "a checkpoint", "a ticket, which needs no converting")
        )
    names = ", ".join(sorted(map(str, content))[:3])
    raise TicketError(expected(str(path), "a checkpoint of a known kind", f"one with {names}"))
