"""What is known of the rows of docs/tickets.md, and the tables that sections make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from experiment_rows import Row, read_result
from matplotlib.figure import Figure
from tickets_numbers import (
    DISTANCE,
    Figures,
    Quality,
    figures,
    line,
    mean,
    number,
    rule,
    spread,
)

TICKET_HEADER = (
    "| row | seeds | gone | distance | / dense | precision | recall | loss | kB | MFLOP "
    "| peak MiB | step, batch 1 | step, batch 16 |"
)


def one_seed(result: dict[str, Any], seed: str) -> dict[str, Any]:
    """``result`` with the quality of one seed; what all seeds cost."""
    kept = ("inspect", "bench")
    runs = {
        other: run if other == seed else {k: run[k] for k in run if k in kept}
        for other, run in result["runs"].items()
    }
    return {"runs": runs}


class Findings:
    """All rows with what was measured of them. ``results``: a folder; no file: row not run."""

    def __init__(self, rows: dict[str, Row], results: Path) -> None:
        self.rows = rows
        self.results = {name: read_result(row, results) for name, row in rows.items()}
        self.figures = {
            name: figures(row, self.results[name]) for name, row in rows.items() if not row.pair
        }
        # Seeds differ by more than most rows of one seed do: rows are set beside each other so.
        seeds = {int(seed) for result in self.results.values() for seed in result["runs"]}
        seeds |= {0, *(row.seeds[0] for row in rows.values())}
        self.of_seed = {
            seed: {
                name: figures(row, one_seed(self.results[name], str(seed)))
                for name, row in rows.items()
                if not row.pair
            }
            for seed in sorted(seeds)
        }
        self.dense = mean(self.figures["dense"].distances) if "dense" in rows else None
        self.pictures: dict[str, Figure] = {}

    def complete(self, name: str) -> bool:
        row, runs = self.rows[name], self.results[name]["runs"]
        return all(s in runs.get(str(seed), {}) for seed in row.seeds for s in row.stages)

    def ticket_table(self, rows: Iterable[Row]) -> Iterator[str]:
        yield from self.table(TICKET_HEADER, rows, self.ticket_cells)

    def table(
        self, header: str, rows: Iterable[Row], cells: Callable[[Row], Sequence[str]]
    ) -> Iterator[str]:
        """Rows that have been run, at least for one seed, and how many have not."""
        rows = list(rows)
        begun = [row for row in rows if self.results[row.name]["runs"]]
        if begun:
            yield header
            yield rule(header)
            yield from (line(cells(row)) for row in begun)
        if len(begun) < len(rows):
            if begun:
                yield ""
            yield f"**Not run: {len(rows) - len(begun)} of the {len(rows)} rows of this table.**"

    def ticket_cells(self, row: Row) -> list[str]:
        f = self.figures[row.name]
        return [
            row.title,
            ", ".join(map(str, f.seeds)),
            number(mean(f.sparsities), ".2%"),
            spread(f.distances),
            number(self.ratio(f)),
            number(mean(f.precisions)),
            number(mean(f.recalls)),
            number(mean(f.losses), ".4f"),
            number(mean(f.file_kb)),
            number(mean(f.mflops)),
            number(mean(f.peaks)),
            number(f.step(1), ".1%"),
            number(f.step(16), ".1%"),
        ]

    def ratio(self, f: Figures) -> float | None:
        distance = mean(f.distances)
        return None if distance is None or not self.dense else distance / self.dense

    def first(self, name: str) -> float | None:
        """The distance of a row's first seed, to set beside that of another row."""
        return mean(self.of_seed[self.rows[name].seeds[0]][name].distances)

    def excess(self, seed: int) -> Quality | None:
        """The held-out loss beyond that of dense with the same seed."""
        dense = self.of_seed[seed].get("dense")
        base = mean(dense.losses) if dense else None
        return None if base is None else Quality(lambda f: f.losses, base)

    def between_seeds(self, quality: Callable[[int], Quality | None] = lambda _: DISTANCE) -> float:
        """The largest ratio of two seeds of one row; 1 where none has two."""
        rows = self._by_seed(quality).values()
        return max((max(each.values()) / min(each.values()) for each in rows), default=1.0)

    def between_pairs(self, quality: Callable[[int], Quality | None] = lambda _: DISTANCE) -> float:
        """How far the ratio of two rows of one seed may be from that of another seed, at most.

        Rows of one seed share its initial weights, its order of data and mostly its dense round, so
        that most of what seeds differ by is in both. Controls are left out: they are judged by it.
        """
        rows = [f for name, f in self._by_seed(quality).items() if not self.rows[name].of]
        apart = 1.0
        for one, other in combinations(rows, 2):
            ratios = [one[seed] / other[seed] for seed in one.keys() & other.keys()]
            if ratios:
                apart = max(apart, max(ratios) / min(ratios))
        return apart

    def _by_seed(self, quality: Callable[[int], Quality | None]) -> dict[str, dict[int, float]]:
        """The quality of each seed by row, where it is more than 0."""
        found: dict[str, dict[int, float]] = {}
        for seed, rows in self.of_seed.items():
            measure = quality(seed)
            for name, f in rows.items():
                value = None if measure is None else measure.of(f)
                if value is not None and value > 0.0:
                    found.setdefault(name, {})[seed] = value
        return found

    def beside_its_ticket(self, row: Row) -> list[float]:
        """The distance of a control over that of its ticket, for each seed that has both."""
        pairs = (
            (mean(rows[row.name].distances), mean(rows[row.of].distances))
            for rows in self.of_seed.values()
        )
        return [here / ticket for here, ticket in pairs if here is not None and ticket]

    def steps(self, row: Row) -> int:
        """Training steps behind a row's ticket, those of a ticket it began with included."""
        before = 0 if row.begins is None else self.steps(self.rows[row.begins[0]])
        return before + row.steps()

    def nearer(self, distance: float) -> str:
        """Tickets of the usual budget that are nearer than ``distance``."""
        return "; ".join(
            row.title
            for row in self.rows.values()
            if row.train.get("sparsity") and row.budget and not row.of
            for here in [mean(self.figures[row.name].distances)]
            if here is not None and here < distance
        )

    def rows_of(self, table: str) -> list[Row]:
        return [row for row in self.rows.values() if table in row.tables]

    def picture(self, name: str, figure: Figure | None) -> Iterator[str]:
        """The line that shows a picture, if there is one; keeps it for later."""
        if figure is not None:
            self.pictures[name] = figure
            yield ""
            yield f"![{name.removesuffix('.png')}]({name})"
