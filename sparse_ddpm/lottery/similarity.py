"""Densities that follow from how alike the masks of two tickets are, block by block."""

from __future__ import annotations

import math

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.similarity import Likeness, block_of, compare
from sparse_ddpm.ticket import Ticket
from sparse_ddpm.ticket.parameters import Parameter

FLOOR = 0.5
"""The density, relative to the average, of a block whose masks are no more alike than chance."""
BEYOND = 5.0
"""Standard deviations above which masks count as more alike than chance. Of the 28 blocks of two
tickets of two seeds the one most alike was at 3.1."""


def relative_densities(one: Ticket, two: Ticket) -> dict[str, float]:
    """For each prunable parameter the density it should have, relative to the others.

    Where two searches that began with the same weights agree on a connection whatever data they
    saw first, the task needs that connection; where they agree no more than chance, many choices
    do as well, and fewer are needed. So a block has ``FLOOR + (1 - FLOOR) s / mean s``, with s its
    similarity (0 unless `BEYOND` chance) and the mean over all weights: half the average density
    at chance, rising with s. A block that neither ticket pruned counts as average. Raises
    `TicketError` for tickets of two architectures, and `ConfigError` where they are nowhere more
    alike than chance, as then nothing is known: so are tickets of two seeds, since hidden channels
    have no order that two random beginnings would share.
    """
    similarity = {row.name: _beyond_chance(row) for row in compare(one, two).blocks}
    parameters = [p for p in one.parameters() if p.prunable]
    known = [(p, s) for p in parameters if (s := similarity.get(block_of(p.name))) is not None]
    total = sum(math.prod(p.shape) for p, _ in known)
    mean = sum(math.prod(p.shape) * s for p, s in known) / total if total else 0.0
    if mean <= 0.0:
        raise ConfigError(
            expected(
                "tickets of the similarity allocation",
                "masks more alike than chance (as of two --data-seed and one --seed)",
                "none",
            )
        )
    return {p.name: _relative(p, similarity, mean) for p in parameters}


def _beyond_chance(row: Likeness) -> float | None:
    if row.corrected is None:
        return None
    return row.corrected if row.score is not None and row.score > BEYOND else 0.0


def _relative(parameter: Parameter, similarity: dict[str, float | None], mean: float) -> float:
    here = similarity.get(block_of(parameter.name))
    return FLOOR + (1.0 - FLOOR) * (1.0 if here is None else here / mean)
