"""Rows beside each other where they cost as much, or are as good: tables of docs/tickets.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from experiment_rows import Row
from tickets_findings import Findings
from tickets_numbers import (
    DISTANCE,
    Figures,
    Quality,
    at_cost,
    curves,
    equal_quality,
    line,
    number,
    pattern_name,
    rule,
    spread,
)

COSTS = {
    "file_kb": "size",
    "mflops": "FLOPs",
    "step1": "time, batch 1",
    "step16": "time, batch 16",
}
"""What rows are made equal in, and how the page calls it."""
DISTANCES = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""At which patterns are compared: distance as a multiple of dense."""
LOSSES = (1.03, 1.05, 1.08, 1.12, 1.16)
"""The same for the held-out loss."""
PLACES = ("fastest", "second", "third")
LOSS = Quality(lambda row: row.losses)


def equal_cost(
    findings: Findings, rows: Sequence[Row], name: Callable[[Row], str], standard: str
) -> Iterator[str]:
    """Each row of other curves beside the curve ``standard``, read off where it costs as much."""
    found: dict[str, list[list[float | None]]] = {}
    for seed, figures in findings.of_seed.items():
        of_curves = curves(rows, figures, name)
        # Dense is where every curve begins, and no row of another one.
        curve = [*of_curves.pop("dense", []), *of_curves.pop(standard, [])]
        qualities = (DISTANCE, findings.excess(seed))
        for row in (row for others in of_curves.values() for row in others):
            ratios = [ratio for quality in qualities for ratio in beside(row, curve, quality)]
            if any(ratio is not None for ratio in ratios):
                found.setdefault(row.name, []).append(ratios)
    if not found:
        return
    yield ""
    yield (
        f"At equal cost: a row's distance over that of `{standard}`, read off the curve of its "
        "rows and dense (straight lines over the logarithm of the cost) where it costs as much; "
        "then the same of the held-out loss beyond that of dense. Below 1 the row is better; - "
        "where the curve does not reach. Each seed beside the curve of the same seed: mean "
        "(smallest to largest). Two seeds of one row differ by up to "
        f"{number(findings.between_seeds())} in distance and "
        f"{number(findings.between_seeds(findings.excess))} in loss beyond dense; the ratio of "
        "two rows of one seed and that of the same rows of another by up to "
        f"{number(findings.between_pairs())} and {number(findings.between_pairs(findings.excess))}."
    )
    yield ""
    words = [f"{what}, equal {cost}" for what in ("distance", "loss") for cost in COSTS.values()]
    header = line(["row", *words])
    yield header
    yield rule(header)
    for row_name, seeds in found.items():
        known = [[r for r in ratios if r is not None] for ratios in zip(*seeds, strict=True)]
        yield line([findings.rows[row_name].title, *map(spread, known)])


def beside(row: Figures, curve: Sequence[Figures], quality: Quality | None) -> list[float | None]:
    """The quality of ``row`` over that of ``curve``, for each of `COSTS`."""
    here = None if quality is None else quality.of(row)
    if quality is None or here is None:
        return [None] * len(COSTS)
    costs = [(name, row.cost(name)) for name in COSTS]
    there = [None if at is None else at_cost(curve, name, at, quality) for name, at in costs]
    return [here / each if each else None for each in there]


def fastest(findings: Findings, rows: Sequence[Row]) -> Iterator[str]:
    """Who needs the shortest step for a quality, for each seed, batch and level."""
    lines, wins = [], Wins()
    for words, quality, levels, dense in _goals(findings):
        for level in levels:
            for batch in (1, 16):
                for seed, figures in findings.of_seed.items():
                    found = curves(rows, figures, pattern_name)
                    found.pop("dense", None)
                    order = ranking(found, batch, level * dense, quality)
                    if len(order) < 2:
                        continue
                    wins.add(batch, order[0][0])
                    places = [said(*each) for each in order[: len(PLACES)]]
                    places += ["-"] * (len(PLACES) - len(places))
                    element = next((said(*each) for each in order if each[0] == "element"), "-")
                    cells = [f"{words} {level:g}", str(batch), str(seed), *places, element]
                    lines.append(line(cells))
    if not lines:
        return
    yield ""
    yield (
        "The step, as a part of dense, that each pattern needs to be at most so many times dense "
        "in distance or held-out loss, read off its curve; at most (≤) where even its sparsest "
        "row is good enough. Where fewer than two are, of one seed, there is no line."
    )
    yield ""
    header = line(["at most, of dense", "batch", "seed", *PLACES, "element"])
    yield header
    yield rule(header)
    yield from lines
    yield ""
    yield from wins.said()


class Wins:
    """How often each curve was the fastest."""

    def __init__(self) -> None:
        self.counts: dict[int, dict[str, int]] = {}

    def add(self, batch: int, name: str) -> None:
        of_batch = self.counts.setdefault(batch, {})
        of_batch[name] = of_batch.get(name, 0) + 1

    def said(self) -> Iterator[str]:
        patterns: dict[str, int] = {}
        for batch, counts in self.counts.items():
            yield f"* Lines won, batch {batch}, of {sum(counts.values())}: {_counted(counts)}."
            for name, count in counts.items():
                pattern = name.partition(",")[0]
                patterns[pattern] = patterns.get(pattern, 0) + count
        first, *others = sorted(patterns, key=lambda name: -patterns[name])
        words = f"* By pattern, however searched for: {_counted(patterns)}."
        if not others or patterns[first] > patterns[others[0]]:
            words += f" **The fastest pattern at equal quality: {first}.**"
        yield words


def _counted(counts: dict[str, int]) -> str:
    names = sorted(counts, key=lambda name: -counts[name])
    return ", ".join(f"{name} {counts[name]}" for name in names)


Place = tuple[str, float, bool]
"""A curve's name, its step, and whether that is an upper bound."""


def ranking(
    found: dict[str, list[Figures]], batch: int, level: float, quality: Quality
) -> list[Place]:
    """The curves that are good enough somewhere, the fastest first."""
    places = []
    for name, curve in found.items():
        time, bound = equal_quality(curve, batch, level, quality)
        if time is not None:
            places.append((name, time, bound))
    return sorted(places, key=lambda place: place[1])


def said(name: str, time: float, bound: bool) -> str:
    return f"{name} {'≤ ' if bound else ''}{number(time, '.1%')}"


def _goals(findings: Findings) -> Iterator[tuple[str, Quality, Sequence[float], float]]:
    """What is compared, at which multiples of what dense has."""
    if findings.dense is not None:
        yield "distance", DISTANCE, DISTANCES, findings.dense
    loss = LOSS.of(findings.figures["dense"]) if "dense" in findings.rows else None
    if loss is not None:
        yield "loss", LOSS, LOSSES, loss
