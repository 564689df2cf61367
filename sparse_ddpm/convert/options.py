"""What a checkpoint does not say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _silent(_text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Options:
    """What whoever converts adds; None where the source is to say it.

    A value that the source contradicts is refused. ``raw``: the weights that were trained, not
    their average. ``image_size``: needed wherever a source has weights alone, since a U-Net of
    convolutions fits any. ``groups``, ``heads``: of group norms and attention. ``schedule``,
    ``objective``, ``timesteps``, ``clip``: as in `sparse_ddpm.ticket.config.DiffusionConfig`.
    ``source_version``: of the package that wrote the source, where it does not say. ``tell`` hears
    in a sentence what may surprise.
    """

    raw: bool = False
    image_size: int | None = None
    groups: int | None = None
    heads: int | None = None
    schedule: str | None = None
    objective: str | None = None
    timesteps: int | None = None
    clip: bool | None = None
    source_version: str | None = None
    tell: Callable[[str], None] = _silent
