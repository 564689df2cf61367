"""From the results of rows to the numbers of docs/tickets.md, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from experiment_rows import Row

from sparse_ddpm.bench.engines import DENSE, OURS

Sitting = Mapping[str, Any]
"""One timing of a row: what ``sparse-ddpm bench`` prints as JSON."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the seeds of one row gave. Each tuple has an item for each seed that got so far."""

    name: str
    title: str
    seeds: tuple[int, ...]
    losses: tuple[float, ...]
    """On held-out images, at the end of training."""
    inspects: tuple[dict[str, Any], ...]
    evaluations: tuple[dict[str, Any], ...]
    benches: tuple[Sequence[Sitting], ...]

    @property
    def sparsities(self) -> tuple[float, ...]:
        return tuple(found["sparsity"] for found in self.inspects)

    @property
    def distances(self) -> tuple[float, ...]:
        return self._judged("distance")

    @property
    def precisions(self) -> tuple[float, ...]:
        return self._judged("precision")

    @property
    def recalls(self) -> tuple[float, ...]:
        return self._judged("recall")

    @property
    def drawn(self) -> tuple[tuple[int, str], ...]:
        """How many samples there were, and how they were drawn."""
        return tuple(
            (found["samples"], f"{found['sampler']}, {found['steps']} steps")
            for found in self.evaluations
        )

    @property
    def file_kb(self) -> tuple[float, ...]:
        return tuple(found["totals"]["file_bytes"] / 1e3 for found in self.inspects)

    @property
    def mflops(self) -> tuple[float, ...]:
        return tuple(found["totals"]["surviving_flops"] / 1e6 for found in self.inspects)

    @property
    def peaks(self) -> tuple[float, ...]:
        """MiB of a process that steps, batch 1."""
        return self._middles(lambda sitting: measured(sitting, OURS, 1, "step_peak_mib"))

    @property
    def dense_peaks(self) -> tuple[float, ...]:
        """The same with every weight stored."""
        return self._middles(lambda sitting: measured(sitting, DENSE, 1, "step_peak_mib"))

    @property
    def sittings(self) -> list[Sitting]:
        return [sitting for sittings in self.benches for sitting in sittings]

    def calmest(self, batch: int) -> Sitting | None:
        """The sitting with the least `dense_ms`: the same work for every row, it tells how much
        the machine was disturbed. Seeds have other weights, but as many in as large layers."""
        found = [(ms, each) for each in self.sittings if (ms := dense_ms(each, batch)) is not None]
        return min(found, key=lambda pair: pair[0])[1] if found else None

    def step(self, batch: int) -> float | None:
        """The median step as a part of `dense_ms`, in the calmest sitting."""
        calmest = self.calmest(batch)
        return None if calmest is None else part_of_dense(calmest, batch)

    def steps(self, batch: int) -> list[float]:
        """The same in each sitting."""
        found = (part_of_dense(sitting, batch) for sitting in self.sittings)
        return [part for part in found if part is not None]

    def cost(self, name: str) -> float | None:
        """Mean of ``file_kb`` or ``mflops``, or ``step`` with a batch, as in ``step16``."""
        if name.startswith("step"):
            return self.step(int(name.removeprefix("step")))
        values: tuple[float, ...] = getattr(self, name)
        return mean(values)

    def _judged(self, key: str) -> tuple[float, ...]:
        return tuple(e[key] for e in self.evaluations if e.get(key) is not None)

    def _middles(self, value: Callable[[Sitting], float | None]) -> tuple[float, ...]:
        """The median of each seed's sittings."""
        seeds = ([v for each in sittings if (v := value(each))] for sittings in self.benches)
        return tuple(median(found) for found in seeds if found)


def measured(sitting: Sitting, engine: str, batch: int, key: str) -> float | None:
    for row in sitting["results"]:
        if (row["engine"], row["batch"]) == (engine, batch):
            return None if row[key] is None else float(row[key])
    return None


def dense_ms(sitting: Sitting, batch: int) -> float | None:
    """The step with every weight stored, in turns with which a row is timed."""
    return measured(sitting, DENSE, batch, "step_ms")


def part_of_dense(sitting: Sitting, batch: int) -> float | None:
    mine, dense = measured(sitting, OURS, batch, "step_ms"), dense_ms(sitting, batch)
    return None if mine is None or not dense else mine / dense


def figures(row: Row, result: Mapping[str, Any]) -> Figures:
    """The figures of ``row`` from its result, seeds in rising order."""
    runs = sorted((int(seed), run) for seed, run in result["runs"].items())
    inspects, evaluations, benches = (
        tuple(run[stage] for _, run in runs if stage in run)
        for stage in ("inspect", "evaluate", "bench")
    )
    seeds = tuple(seed for seed, run in runs if "train" in run)
    losses = tuple(
        part[-1]["held_out_loss"]
        for _, run in runs
        if "train" in run and (part := next(iter(run["train"].values())))
    )
    return Figures(row.name, row.title, seeds, losses, inspects, evaluations, benches)


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


@dataclass(frozen=True, slots=True)
class Quality:
    """What rows are compared by: the lower the better. ``base``: what is taken off first."""

    values: Callable[[Figures], Sequence[float]]
    base: float = 0.0

    def of(self, row: Figures) -> float | None:
        """The mean over the seeds of ``row``."""
        value = mean(self.values(row))
        return None if value is None else value - self.base


DISTANCE = Quality(lambda row: row.distances)


def curves(
    rows: Iterable[Row], found: Mapping[str, Figures], name: Callable[[Row], str]
) -> dict[str, list[Figures]]:
    """Figures with a distance by the name of their curve, in the order of ``rows``."""
    out: dict[str, list[Figures]] = {}
    for row in rows:
        if found[row.name].distances:
            out.setdefault(name(row), []).append(found[row.name])
    return out


def points(
    curve: Iterable[Figures], cost: str, quality: Quality = DISTANCE
) -> list[tuple[float, float]]:
    """(cost, quality), both means over seeds, in rising order of cost."""
    pairs = ((each.cost(cost), quality.of(each)) for each in curve)
    return sorted((c, q) for c, q in pairs if c is not None and q is not None)


def at_cost(
    curve: Iterable[Figures], cost: str, at: float, quality: Quality = DISTANCE
) -> float | None:
    """The quality of ``curve`` at a cost, straight over its logarithm; None beyond its ends."""
    known = points(curve, cost, quality)
    for (left, high), (right, low) in pairwise(known):
        if left <= at <= right:
            return _between(math.log(at), (math.log(left), high), (math.log(right), low))
    return next((value for c, value in known if c == at), None)


def equal_quality(
    curve: Iterable[Figures], batch: int, level: float | None, quality: Quality = DISTANCE
) -> tuple[float | None, bool]:
    """The least step, of dense, at which ``curve`` has a quality of at most ``level``.

    True beside it: its fastest row is good enough already, so this is an upper bound.
    """
    known = points(curve, f"step{batch}", quality)
    for index, (time, value) in enumerate(known):
        if level is None or value > level:
            continue
        if index == 0:
            return time, True
        before, worse = known[index - 1]
        found = _between(level, (worse, math.log(before)), (value, math.log(time)))
        return math.exp(found), False
    return None, False


def _between(x: float, one: tuple[float, float], two: tuple[float, float]) -> float:
    if one[0] == two[0]:
        return two[1]
    return one[1] + (two[1] - one[1]) * (x - one[0]) / (two[0] - one[0])


def allocation_name(row: Row) -> str:
    words = [row.train.get("allocation", "uniform"), *_gradual(row)]
    return _other_than_tickets(row) or ", ".join(words)


def search_name(row: Row) -> str:
    """How weights were chosen: allocation where it is not uniform, then rewinding or gradual."""
    allocation = row.train.get("allocation", "uniform")
    words = [] if allocation == "uniform" else [allocation]
    return ", ".join([*words, *(_gradual(row) or [f"rewinding {row.train['rewind']}"])])


def pattern_name(row: Row) -> str:
    words = [str(row.train.get("pattern", "element"))]
    if (allocation := row.train.get("allocation", "uniform")) != "uniform":
        words.append(allocation)
    if row.train.get("permute"):
        words.append("permuted")
    return _other_than_tickets(row) or ", ".join([*words, *_gradual(row)])


def _gradual(row: Row) -> list[str]:
    if not row.train.get("gradual"):
        return []
    return ["gradual" if row.train["dense-steps"] > 1 else "gradual from the start"]


def _other_than_tickets(row: Row) -> str:
    if row.control.startswith("narrow:"):
        return "narrower dense"
    return "" if row.train.get("sparsity") else "dense"


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def rule(header: str) -> str:
    return "|" + " --- |" * (header.count("|") - 1)


def number(value: float | None, form: str = "") -> str:
    """``value`` in three digits at least, or as ``form`` says; - for None."""
    if value is None:
        return "-"
    return format(value, form or (",.0f" if abs(value) >= 100 else ".3g"))


def spread(values: Sequence[float]) -> str:
    """The mean, and the smallest and largest of several."""
    middle = number(mean(values))
    if len(values) < 2:
        return middle
    return f"{middle} ({number(min(values))} to {number(max(values))})"
