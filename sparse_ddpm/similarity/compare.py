"""Two tickets of one architecture: what their masks share, per layer, block, stage and in all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.similarity.chance import Chance, hypergeometric, pooled, scattered
from sparse_ddpm.similarity.units import divide
from sparse_ddpm.ticket.config import Pattern
from sparse_ddpm.ticket.ticket import Ticket


@dataclass(frozen=True, slots=True)
class Likeness:
    """What two masks share. ``unit``: what is counted, ``element`` or the pattern of both.

    ``total`` units, of which ``first`` survive in one ticket, ``second`` in the other and
    ``common`` in both. ``chance`` and ``chance_deviation``: mean and standard deviation of the
    Jaccard index of independent random masks that keep as many units in each layer; None where
    nothing survives.
    """

    name: str
    unit: str
    total: int
    first: int
    second: int
    common: int
    chance: float | None
    chance_deviation: float | None

    @property
    def overlap(self) -> float | None:
        """Part of the sparser mask that the other keeps too."""
        least = min(self.first, self.second)
        return self.common / least if least else None

    @property
    def jaccard(self) -> float | None:
        """Units that both keep over units that one of them keeps."""
        either = self.first + self.second - self.common
        return self.common / either if either else None

    @property
    def corrected(self) -> float | None:
        """``(J - chance) / (1 - chance)``: 1 for equal masks, 0 on average for independent ones.

        Below 0 for masks that avoid each other, ``-chance / (1 - chance)`` if nothing is common.
        None where masks cannot differ: both keep all, or nothing.
        """
        if self.jaccard is None or self.chance is None or self.chance >= 1.0:
            return None
        return (self.jaccard - self.chance) / (1.0 - self.chance)

    @property
    def corrected_deviation(self) -> float | None:
        """Standard deviation of `corrected` for independent masks."""
        if self.chance is None or self.chance_deviation is None or self.chance >= 1.0:
            return None
        return self.chance_deviation / (1.0 - self.chance)

    @property
    def score(self) -> float | None:
        """How many standard deviations of chance lie between the index and chance."""
        corrected, deviation = self.corrected, self.corrected_deviation
        return corrected / deviation if corrected is not None and deviation else None

    def as_json(self) -> dict[str, Any]:
        derived = ("overlap", "jaccard", "corrected", "corrected_deviation", "score")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in derived}}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows from upstream to downstream, in the order of the forward pass.

    A block is a residual block, an attention or a change of resolution; a stage is a level of the
    U-Net. Rows of several layers add up what their layers count.
    """

    layers: tuple[Likeness, ...]
    blocks: tuple[Likeness, ...]
    stages: tuple[Likeness, ...]
    total: Likeness
    same_beginning: bool
    """Whether both tickets began from the same initial weights, as far as they say."""

    @property
    def trend(self) -> float | None:
        """`rank_trend` of the corrected index over all blocks."""
        return rank_trend([row.corrected for row in self.blocks])

    @property
    def trend_down(self) -> float | None:
        """`trend` over the levels of the encoder alone."""
        return rank_trend([row.corrected for row in self.blocks if row.name.startswith("down.")])

    @property
    def trend_up(self) -> float | None:
        """`trend` over the levels of the decoder alone."""
        return rank_trend([row.corrected for row in self.blocks if row.name.startswith("up.")])


def rank_trend(similarities: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation of place and value, of those that are known.

    -1: similarity falls from each to the next; +1: it rises. None for fewer than three.
    """
    values = [value for value in similarities if value is not None]
    if len(values) < 3:
        return None
    ranks = np.array([_rank(value, values) for value in values])
    depths = np.arange(len(values), dtype=np.float64)
    spread = ranks.std() * depths.std()
    if spread == 0.0:
        return None
    return float(np.mean((ranks - ranks.mean()) * (depths - depths.mean())) / spread)


def compare(first: Ticket, second: Ticket) -> Comparison:
    """Compare the masks of two tickets; raises `TicketError` if their architectures differ.

    Where both tickets have one pattern and a layer's masks are made of its units, units are
    counted and chance is exact. Elsewhere weights are counted: exactly if one mask is made of
    single weights, else with the units of the finer mask thrown at random.

    Channels are compared by their place. Training with permuted channels gives each ticket an
    order of its own, so masks of such tickets are alike by chance only, whatever they learnt.
    """
    for item in dataclasses.fields(first.architecture):
        ours, theirs = (getattr(t.architecture, item.name) for t in (first, second))
        if ours != theirs:
            what = f"second ticket's architecture.{item.name}"
            raise TicketError(expected(what, f"{ours} as the first ticket's", theirs))
    found = [
        _layer(parameter.name, first, second)
        for parameter in first.parameters()
        if parameter.prunable
    ]
    hashes = {ticket.provenance.initial_sha256 for ticket in (first, second)}
    return Comparison(
        layers=tuple(row for row, _ in found),
        blocks=_grouped(found, block_of),
        stages=_grouped(found, stage_of),
        total=_sum("all", found),
        same_beginning=len(hashes) == 1 and "" not in hashes,
    )


def block_of(name: str) -> str:
    """The block of a parameter: ``down.0.block1.conv2.weight`` is in ``down.0.block1``."""
    parts = name.split(".")[:-1]
    return ".".join(parts if parts[-1] in ("down", "up") else parts[:-1])


def stage_of(name: str) -> str:
    """The stage of a parameter: ``down.0``, ``mid``, ``up.1``, ``final_block``."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("down", "up") else parts[0]


def _layer(name: str, first: Ticket, second: Ticket) -> tuple[Likeness, Chance]:
    masks = first.mask(name), second.mask(name)
    one, two = (
        divide(mask, Pattern.parse(ticket.provenance.pattern))
        for mask, ticket in zip(masks, (first, second), strict=True)
    )
    unit = "element"
    same = one.pattern == two.pattern
    if same:
        masks, unit = (one.kept, two.kept), str(one.pattern)
    kept = tuple(int(np.count_nonzero(mask)) for mask in masks)
    if same or max(one.kept.size, two.kept.size) == masks[0].size:
        chance = hypergeometric(masks[0].size, *kept)
    elif one.kept.size >= two.kept.size:
        chance = scattered(one.weights_within(masks[1]), int(np.count_nonzero(one.kept)))
    else:
        chance = scattered(two.weights_within(masks[0]), int(np.count_nonzero(two.kept)))
    common = int(np.count_nonzero(masks[0] & masks[1]))
    return _row(name, unit, (masks[0].size, *kept, common), chance), chance


def _grouped(
    found: Sequence[tuple[Likeness, Chance]], group_of: Callable[[str], str]
) -> tuple[Likeness, ...]:
    names = dict.fromkeys(group_of(row.name) for row, _ in found)
    return tuple(_sum(n, [pair for pair in found if group_of(pair[0].name) == n]) for n in names)


def _sum(name: str, found: Sequence[tuple[Likeness, Chance]]) -> Likeness:
    rows = [row for row, _ in found]
    units = {row.unit for row in rows}
    counts = tuple(
        sum(getattr(row, key) for row in rows) for key in ("total", "first", "second", "common")
    )
    unit = units.pop() if len(units) == 1 else "mixed"
    return _row(name, unit, counts, pooled(chance for _, chance in found))


def _row(name: str, unit: str, counts: tuple[int, ...], chance: Chance) -> Likeness:
    total, first, second, common = counts
    mean, deviation = chance.jaccard(first + second) if first + second else (None, None)
    return Likeness(name, unit, total, first, second, common, mean, deviation)


def _rank(value: float, values: Sequence[float]) -> float:
    """The place of ``value`` among ``values``; the middle one of equals."""
    below = sum(other < value for other in values)
    return below + (sum(other == value for other in values) - 1) / 2.0
