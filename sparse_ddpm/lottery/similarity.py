"""How alike the masks of two tickets are, block by block, and the densities that follow from it.

The Jaccard similarity ``|A & B| / |A | B|`` of two masks says little by itself: two random masks
of density d have ``d / (2 - d)``, which is 0.82 at 90 % density and 0.005 at 1 %. Corrected for
chance it is ``(J - J0) / (1 - J0)``: 1 for equal masks, 0 for what random masks of the same
densities have on average (and a little below for masks that avoid each other).
"""

from __future__ import annotations

import math

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.ticket import Ticket
from sparse_ddpm.ticket.parameters import Parameter

FLOOR = 0.5
"""The density, relative to the average, of a block whose masks are no more alike than chance."""


def block_of(name: str) -> str:
    """The block of a parameter: a residual block, an attention, or a convolution between levels."""
    parts = name.split(".")[:-1]
    depth = {"down": 3, "up": 3, "mid": 2}.get(parts[0], 1)
    return ".".join(parts[:depth])


def block_similarity(one: Ticket, two: Ticket) -> dict[str, float | None]:
    """Chance-corrected Jaccard similarity of the masks in each block, in the forward order.

    The intersections and unions of a block's layers are summed, and so are those that random
    masks of the same densities, layer by layer, have on average. None for a block that neither
    ticket pruned: there every similarity is as good as chance. Raises `ConfigError` unless both
    have the same parameters.
    """
    if one.parameters() != two.parameters():
        raise ConfigError(
            expected("tickets to compare", "one architecture", "two that differ in parameters")
        )
    sums: dict[str, list[float]] = {}
    for parameter in one.parameters():
        if not parameter.prunable:
            continue
        a, b = one.mask(parameter.name), two.mask(parameter.name)
        chance = float(a.sum()) * float(b.sum()) / a.size
        both = float((a & b).sum())
        together = float(a.sum() + b.sum())
        block = sums.setdefault(block_of(parameter.name), [0.0] * 4)
        for index, term in enumerate((both, together - both, chance, together - chance)):
            block[index] += term
    return {
        block: None if e == f else (i / u - e / f) / (1.0 - e / f)
        for block, (i, u, e, f) in sums.items()
        if u > 0.0
    }


def relative_densities(one: Ticket, two: Ticket) -> dict[str, float]:
    """For each prunable parameter the density it should have, relative to the others.

    Where two searches that share nothing but the task agree on a connection, the task needs that
    connection; where they agree no more than chance, many choices do as well, and fewer are
    needed. So a block has ``FLOOR + (1 - FLOOR) s / mean s``, with s its similarity (at least 0)
    and the mean over all weights: half the average density at chance, rising with s. A block
    that neither ticket pruned counts as average. Raises `ConfigError` where the tickets are
    nowhere more alike than chance, as then nothing is known.
    """
    similarity = {
        block: None if s is None else max(s, 0.0) for block, s in block_similarity(one, two).items()
    }
    parameters = [p for p in one.parameters() if p.prunable]
    known = [(p, s) for p in parameters if (s := similarity.get(block_of(p.name))) is not None]
    total = sum(math.prod(p.shape) for p, _ in known)
    mean = sum(math.prod(p.shape) * s for p, s in known) / total if total else 0.0
    if mean <= 0.0:
        raise ConfigError(
            expected("tickets of the similarity allocation", "masks more alike than chance", "none")
        )
    return {p.name: _relative(p, similarity, mean) for p in parameters}


def _relative(parameter: Parameter, similarity: dict[str, float | None], mean: float) -> float:
    here = similarity.get(block_of(parameter.name))
    return FLOOR + (1.0 - FLOOR) * (1.0 if here is None else here / mean)
