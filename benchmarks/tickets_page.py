"""Turn benchmarks/results/tickets/*.json into docs/tickets.md and its pictures.

python benchmarks/tickets_page.py [--check]

No number in that page is typed by hand: settings come from benchmarks/experiments, the rest from
results. Rows without a result are named as not run. With --check nothing is written; exit status 1
if the page is not what the results give.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiment_rows import FOLDER, RESULTS, ROOT, Row, load_rows, read_result
from matplotlib.figure import Figure
from tickets_numbers import (
    Figures,
    allocation_name,
    at_cost,
    curves,
    equal_quality,
    figures,
    line,
    mean,
    number,
    pattern_name,
    rule,
    search_name,
    spread,
)
from tickets_pictures import against_sparsity, against_time, over_depth

from sparse_ddpm.errors import SparseDDPMError
from sparse_ddpm.files import write_atomically

TARGETS = {90: 1.05, 95: 1.05, 99: 1.15}
"""distance(ticket) / distance(dense), at most, by sparsity in per cent."""
CLEAR = 1.1
"""From which ratio of two distances on one row is called clearly worse."""
OF_ROWS = ("rounds", "dense-steps", "steps", "final-steps", "rewind")
QUALITIES = (1.05, 1.15, 1.5)
"""At which patterns are compared: distance as a multiple of dense."""
TICKET_HEADER = (
    "| row | seeds | gone | distance | / dense | precision | recall | kB | MFLOP | peak MiB "
    "| ms, batch 1 | ms, batch 16 |"
)


def verdict(ratio: float) -> str:
    """What a control's distance over its ticket's says."""
    if ratio > CLEAR:
        return "clearly worse than the ticket"
    if ratio < 1.0 / CLEAR:
        return "clearly BETTER than the ticket"
    return f"no clear difference from the ticket (less than {100 * (CLEAR - 1.0):.0f} %)"


class Page:
    """All that the page says. ``results``: a folder; without a file a row is not run."""

    def __init__(self, rows: dict[str, Row], results: Path) -> None:
        self.rows = rows
        self.results = {name: read_result(row, results) for name, row in rows.items()}
        self.figures = {
            name: figures(row, self.results[name]) for name, row in rows.items() if not row.pair
        }
        self.dense = mean(self.figures["dense"].distances) if "dense" in rows else None
        self.pictures: dict[str, Figure] = {}

    def text(self) -> str:
        parts = [
            self.head(),
            self.matching(),
            self.controls(),
            self.similarity(),
            self.allocation(),
            self.pattern(),
            self.shipping(),
            self.saving(),
            self.not_run(),
        ]
        return "\n\n".join("\n".join(part) for part in parts) + "\n"

    def head(self) -> Iterator[str]:
        done = [name for name in self.rows if self.complete(name)]
        begun = [n for n in self.rows if n not in done and self.results[n]["runs"]]
        train = self.rows["dense"].train if "dense" in self.rows else {}
        yield "# Tickets, measured"
        yield ""
        yield (
            "Written by `python benchmarks/tickets_page.py` from `benchmarks/results/tickets`; "
            "change the results, not this page. Each row is a file under "
            "`benchmarks/experiments`; `python benchmarks/experiments.py ROW --data ROOT` runs or "
            "resumes it."
        )
        yield ""
        yield (
            f"**{len(done)} of {len(self.rows)} rows have been run in full, with all their seeds; "
            f"{len(begun)} in part.**"
        ) + ("" if done or begun else " Nothing below has been measured yet.")
        yield ""
        budgets = {row.budget for row in self.rows.values() if row.budget}
        yield (
            f"Dense and tickets alike are trained for {', '.join(map(str, sorted(budgets)))} steps "
            f"of {train.get('batch-size', '?')} images, all rounds together, unless a row says "
            "otherwise. What all rows share:"
        )
        yield ""
        shown = {k: v for k, v in train.items() if k not in OF_ROWS}
        yield "`" + " ".join(f"--{key} {value}" for key, value in shown.items()) + "`"
        yield ""
        yield (
            "*Distance*: Fréchet distance between features of samples and of real images, by "
            f"`sparse-ddpm evaluate`{self.judged()}; several seeds: mean (smallest to largest). "
            "*Gone*: part of the prunable weights. *kB*: the file. *MFLOP*: of surviving weights, "
            "one image, one step. *Peak*: resident memory of a process that steps, batch 1. "
            "*ms*: the median step, float32."
        )
        for words in self.machines():
            yield ""
            yield words

    def judged(self) -> str:
        ways = sorted({way for f in self.figures.values() for way in f.drawn})
        return f" on {' and '.join(f'{n:,} samples ({how})' for n, how in ways)}" if ways else ""

    def machines(self) -> list[str]:
        every = self.figures.values()
        found = dict.fromkeys(
            f"Timed on {bench['machine']['cpu']}, threads: {bench['threads']}, device: "
            f"{bench['device']}."
            for figures in every
            for bench in figures.benches
        )
        judges = {e["judge"]["sha256"] for f in every for e in f.evaluations}
        if len(judges) > 1:
            words = f"**Distances are by {len(judges)} different judges and cannot be compared.**"
            found[words] = None
        if not all(e.get("sound", True) for f in every for e in f.evaluations):
            found["**Some distances are of too few samples to be sound.**"] = None
        real = sorted({e["real_distance"] for f in every for e in f.evaluations} - {None})
        if real:
            found[f"Real images of the other split have a distance of {spread(real)}."] = None
        return list(found)

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
            number(mean(f.file_kb)),
            number(mean(f.mflops)),
            number(mean(f.peaks)),
            number(mean(f.step_ms(1))),
            number(mean(f.step_ms(16))),
        ]

    def ratio(self, f: Figures) -> float | None:
        distance = mean(f.distances)
        return None if distance is None or not self.dense else distance / self.dense

    def rows_of(self, table: str) -> list[Row]:
        return [row for row in self.rows.values() if table in row.tables]

    def matching(self) -> Iterator[str]:
        yield "## Do tickets match dense?"
        yield ""
        yield "Targets: a distance of " + ", ".join(
            f"at most {most:g} of dense at {percent} %" for percent, most in TARGETS.items()
        )
        yield ""
        rows = self.rows_of("matching")
        yield from self.ticket_table(rows)
        yield ""
        for row in rows:
            goal = TARGETS.get(round(100 * row.train.get("sparsity", 0.0)))
            ratio = self.ratio(self.figures[row.name])
            if goal and ratio is not None:
                verdict = "met" if ratio <= goal else "MISSED"
                yield f"* {row.title}: {ratio:.3g}, target {goal:g}: {verdict}."
        if all(self.ratio(self.figures[row.name]) is None for row in rows):
            yield "Whether any target is met is not known: no ticket has been judged beside dense."
        tickets = [row for row in rows if row.train["rounds"]]
        lines = curves(tickets, self.figures, search_name)
        content = [*lines.items()]
        if self.dense is not None:
            content.append(("dense", [self.figures["dense"]]))
        yield from self.picture("tickets-distance.png", against_sparsity(content))

    def controls(self) -> Iterator[str]:
        yield "## Is it the ticket, or the size?"
        yield ""
        yield (
            "`reinit`: the ticket's masks on fresh weights; `random-mask`: as many weights in "
            "each layer at random places; both trained as the last round was. After rewinding "
            "`init` the ticket has had no more steps than they, which is the hypothesis's own "
            "test; after `lr` its last round begins at trained weights, so that what the rounds "
            "before were worth is in the ratio too. `narrower` U-Nets are dense and trained for "
            "as long as the ticket in all; at equal measured time they stand under *At equal "
            "cost*, below."
        )
        yield ""
        header = "| row | seeds | distance | of its ticket | control / ticket |"
        rows = [row for row in self.rows_of("control") if row.of]
        yield from self.table(header, rows, self.control)
        yield ""
        for row in rows:
            here, ticket = (mean(self.figures[name].distances) for name in (row.name, row.of))
            if here is not None and ticket:
                yield f"* {row.title}: {verdict(here / ticket)}."

    def control(self, row: Row) -> list[str]:
        here, ticket = (mean(self.figures[name].distances) for name in (row.name, row.of))
        both = here / ticket if here is not None and ticket else None
        shown = spread(self.figures[row.name].distances)
        seeds = ", ".join(map(str, self.figures[row.name].seeds))
        return [row.title, seeds, shown, number(ticket), number(both)]

    def similarity(self) -> Iterator[str]:
        yield "## Does similarity fall downstream?"
        yield ""
        yield (
            "The Jaccard index of two masks, corrected for chance: 1 for equal masks, 0 on average "
            "for independent ones, ± the standard deviation of that. *Trend*: rank correlation of "
            "depth and similarity over the blocks, -1 if it falls from each block to the next."
        )
        yield ""
        rows = self.rows_of("similarity")
        found = {
            row.title: compared
            for row in rows
            if (compared := self.results[row.name]["runs"].get("0", {}).get("compare"))
        }
        names = list(dict.fromkeys(s["name"] for c in found.values() for s in c["stages"]))

        def cells(row: Row) -> list[str]:
            compared = found[row.title]
            stages = {stage["name"]: stage for stage in compared["stages"]}
            trend = number(compared["trend"], "+.2f")
            everywhere = [self.corrected(stages[name]) for name in names]
            same = "yes" if compared["same_beginning"] else "no"
            return [row.title, same, self.corrected(compared["total"]), trend, *everywhere]

        header = line(["tickets", "same initial weights", "all layers", "trend", *names])
        yield from self.table(header, rows, cells)
        yield from self.picture("tickets-similarity.png", over_depth(list(found.items())))

    @staticmethod
    def corrected(row: dict[str, Any]) -> str:
        if row["corrected"] is None:
            return "-"
        # Adding 0 takes the sign from what rounds to -0.
        return f"{round(row['corrected'], 3) + 0.0:.3f} ± {row['corrected_deviation']:.1g}"

    def allocation(self) -> Iterator[str]:
        yield "## Does it matter where the weights stay?"
        yield ""
        rows = self.rows_of("allocation")
        yield from self.ticket_table(rows)
        found = curves(rows, self.figures, allocation_name)
        if "uniform" in found:
            yield from self.equal_cost(found)
        yield from self.picture("tickets-allocation.png", against_time(list(found.items())))

    def equal_cost(self, found: dict[str, list[Figures]]) -> Iterator[str]:
        yield ""
        yield (
            "At equal cost: distance, read off each allocation's curve (straight lines over the "
            "logarithm of the cost) where it costs as much as `uniform` does; - where its curve "
            "does not reach."
        )
        yield ""
        others = [name for name in found if name != "uniform"]
        header = line(["equal", "uniform at", "uniform", *others])
        yield header
        yield rule(header)
        for words, cost, unit in (
            ("stored size", "file_kb", "kB"),
            ("FLOPs", "mflops", "MFLOP"),
            ("measured time, batch 16", "ms16", "ms"),
        ):
            for point in sorted(found["uniform"], key=lambda f: -(f.cost(cost) or 0.0)):
                at, here = point.cost(cost), mean(point.distances)
                if at is not None and here is not None:
                    there = [number(at_cost(found[name], cost, at)) for name in others]
                    yield line([words, f"{number(at)} {unit}", number(here), *there])

    def pattern(self) -> Iterator[str]:
        yield "## Which pattern is the fastest ticket at equal quality?"
        yield ""
        rows = self.rows_of("pattern")
        yield from self.ticket_table(rows)
        found = curves(rows, self.figures, pattern_name)
        if self.dense is not None:
            yield from self.equal_quality(found, self.dense)
        yield from self.picture("tickets-pattern.png", against_time(list(found.items())))

    def equal_quality(self, found: dict[str, list[Figures]], dense: float) -> Iterator[str]:
        yield ""
        yield (
            "Milliseconds a step that each pattern needs for a distance of so many times dense, "
            "read off its curve; at most (≤) where even its sparsest row is better; - where none "
            "of its rows is as good. The fastest is bold."
        )
        yield ""
        header = line(["distance / dense", "batch", *found])
        yield header
        yield rule(header)
        for batch in (1, 16):
            for quality in QUALITIES:
                times = [equal_quality(each, batch, quality * dense) for each in found.values()]
                known = [time for time, _ in times if time is not None]
                cells = []
                for time, bound in times:
                    text = number(time)
                    text = f"≤ {text}" if bound else text
                    cells.append(f"**{text}**" if known and time == min(known) else text)
                yield line([f"{quality:g}", str(batch), *cells])

    def shipping(self) -> Iterator[str]:
        yield "## The ticket that ships"
        yield ""
        rows = self.rows_of("shipping")
        yield from self.ticket_table(rows)
        yield ""
        for row in rows:
            if not row.budget:
                yield f"* {row.title}: {row.steps():,} steps in all."

    def saving(self) -> Iterator[str]:
        yield "## What is saved"
        yield ""
        yield "Dense over the row, both of this engine: how many times less each row takes."
        yield ""
        header = "| row | file | FLOPs | peak memory | ms, batch 1 | ms, batch 16 |"
        rows = [row for row in self.rows.values() if not row.pair and row.name != "dense"]
        yield from self.table(header, rows, self.saved)

    def saved(self, row: Row) -> list[str]:
        cells = [row.title]
        for cost in ("file_kb", "mflops", "peaks", "ms1", "ms16"):
            here = self.figures[row.name].cost(cost)
            dense = self.figures["dense"].cost(cost) if "dense" in self.figures else None
            cells.append(number(dense / here if dense is not None and here else None))
        return cells

    def not_run(self) -> Iterator[str]:
        yield "## Not run"
        yield ""
        missing = [row for row in self.rows.values() if not self.complete(row.name)]
        if not missing:
            yield "Every row has been run, with all its seeds."
        begun = [row for row in missing if self.results[row.name]["runs"]]
        for row in begun:
            runs = self.results[row.name]["runs"]
            left = [
                f"seed {seed}: {', '.join(stages)}"
                for seed in row.seeds
                if (stages := [s for s in row.stages if s not in runs.get(str(seed), {})])
            ]
            yield f"* `{row.name}`: " + "; ".join(left)
        fresh = [f"`{row.name}`" for row in missing if row not in begun]
        if fresh:
            yield f"* Nothing yet: {', '.join(fresh)}."

    def picture(self, name: str, figure: Figure | None) -> Iterator[str]:
        """The line that shows a picture, if there is one; keeps it for later."""
        if figure is not None:
            self.pictures[name] = figure
            yield ""
            yield f"![{name.removesuffix('.png')}]({name})"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare with what is there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--experiments", type=Path, default=FOLDER, metavar="DIR")
    parser.add_argument(
        "-o", "--page", type=Path, default=ROOT / "docs" / "tickets.md", metavar="FILE.md"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        page = Page(load_rows(options.experiments), options.results)
        text = page.text()
        if options.check:
            same = options.page.exists() and options.page.read_text(encoding="utf-8") == text
            print(f"{options.page}: {'is' if same else 'IS NOT'} what the results give")
            return 0 if same else 1
        for name, figure in page.pictures.items():
            write_atomically(options.page.parent / name, partial(figure.savefig, dpi=150))
        write_atomically(options.page, lambda file: file.write(text.encode()))
    except SparseDDPMError as error:
        print(f"tickets_page: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
