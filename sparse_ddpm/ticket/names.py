"""Tickets by name: those that ship with the package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sparse_ddpm.errors import TicketError, expected

FOLDERS = ("assets", "tickets")
"""Of the package. Other files lie beside the tickets: a ticket that ships ends in ``.pt``."""

DEFAULT = "mnist"
"""The ticket of whoever names none."""


def ticket_names() -> Mapping[str, Path]:
    """The tickets that ship, by name, in alphabetical order: their files' names without ``.pt``."""
    package = Path(__file__).parent.parent
    paths = [path for folder in FOLDERS for path in (package / folder).glob("*.pt")]
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def shipped_ticket_path() -> Path:
    """The file of the `DEFAULT` ticket."""
    return ticket_names()[DEFAULT]


def find_ticket(path_or_name: str | os.PathLike[str] | None = None) -> Path:
    """The file of a ticket: a path, the name of one that ships, or None for the `DEFAULT`.

    A file in the working folder comes before a shipped ticket of that name. Raises `TicketError`
    with all names for a text that is neither; a text with a suffix or a folder is always a path.
    """
    if path_or_name is None:
        return shipped_ticket_path()
    path = Path(path_or_name)
    if not isinstance(path_or_name, str) or path.is_file():
        return path
    names = ticket_names()
    if path_or_name in names:
        return names[path_or_name]
    if path.suffix or path.name != path_or_name:
        return path
    wanted = f"a file, or the name of a ticket that ships ({', '.join(names)})"
    raise TicketError(expected(f"ticket {path_or_name!r}", wanted, "neither"))
