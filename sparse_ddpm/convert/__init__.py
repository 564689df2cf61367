"""Other people's checkpoints become tickets. Needs torch, and nothing of theirs.

One module for each kind of source; whatever cannot be carried over exactly is refused with the
reason.
"""

from __future__ import annotations

from pathlib import Path

from sparse_ddpm.convert.options import Options
from sparse_ddpm.convert.prune import prune_ticket
from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket import Ticket

__all__ = ["Options", "convert", "prune_ticket"]


def convert(path: str | Path, options: Options | None = None) -> Ticket:
    """The ticket that computes what the checkpoint at ``path`` computes.

    A folder is one of diffusers (``convert.diffusers.convert_folder``). A file is one of
    lucidrains' trainer or of the paper's fork of it, or a state dict with or without masks; it is
    read without running anything that it holds. Raises `TicketError` or `ConfigError`.
    """
    path, options = Path(path), options or Options()
    if path.is_dir():
        from sparse_ddpm.convert.diffusers import convert_folder

        return convert_folder(path, options)
    if not path.is_file():
        raise TicketError(expected(str(path), "a checkpoint or a folder", "nothing there"))
    from sparse_ddpm.convert.checkpoint import convert_file

    return convert_file(path, options)
