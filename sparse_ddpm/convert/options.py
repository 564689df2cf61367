"""What a checkpoint does not say, or says twice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """What whoever converts adds; None (and False) where the source is to say it.

    A value that the source contradicts is refused. ``raw``: the weights that were trained, not
    their average. ``image_size``: needed wherever a source has weights alone, since a U-Net of
    convolutions fits any. ``groups``, ``heads``: of group norms and attention. ``schedule``,
    ``objective``, ``timesteps``, ``clip``: as in `sparse_ddpm.ticket.config.DiffusionConfig`.
    """

    raw: bool = False
    image_size: int | None = None
    groups: int | None = None
    heads: int | None = None
    schedule: str | None = None
    objective: str | None = None
    timesteps: int | None = None
    clip: bool | None = None
