"""The sections of docs/tickets.md, each a claim and what the rows say of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from experiment_rows import Row
from tickets_cost import equal_cost, fastest
from tickets_findings import Findings
from tickets_numbers import (
    allocation_name,
    curves,
    line,
    mean,
    number,
    pattern_name,
    search_name,
    spread,
)
from tickets_pictures import against_sparsity, against_time, over_depth

from sparse_ddpm.similarity import rank_trend

TARGETS = {90: 1.05, 95: 1.05, 99: 1.15}
"""distance(ticket) / distance(dense), at most, by sparsity in per cent."""
CLEAR = 1.1
"""From which ratio of two distances on one row is called clearly worse, at the least."""
TRENDS = {"trend": "", "trend, down": "down.", "trend, up": "up."}
"""Over which blocks, by the beginnings of their names."""


def verdict(ratios: Sequence[float], clear: float = CLEAR) -> str:
    """What a control's distances over its ticket's say; from ``clear`` on, in all seeds, clear."""
    if min(ratios) > clear:
        return "clearly worse than the ticket"
    if max(ratios) < 1.0 / clear:
        return "clearly BETTER than the ticket"
    return f"no clear difference from the ticket (clear: {clear:.2f} times, in every seed)"


def matching(findings: Findings) -> Iterator[str]:
    yield "## Do tickets match dense?"
    yield ""
    yield "Targets: a distance of " + ", ".join(
        f"at most {most:g} of dense at {percent} %" for percent, most in TARGETS.items()
    )
    yield ""
    rows = findings.rows_of("matching")
    yield from findings.ticket_table(rows)
    yield ""
    for row in rows:
        goal = TARGETS.get(round(100 * row.train.get("sparsity", 0.0)))
        ratio = findings.ratio(findings.figures[row.name])
        if goal and ratio is not None:
            verdict = "met" if ratio <= goal else "MISSED"
            yield f"* {row.title}: {ratio:.3g}, target {goal:g}: {verdict}."
    if all(findings.ratio(findings.figures[row.name]) is None for row in rows):
        yield "Whether any target is met is not known: no ticket has been judged beside dense."
    tickets = [row for row in rows if row.train["rounds"]]
    lines = curves(tickets, findings.figures, search_name)
    content = [*lines.items()]
    if findings.dense is not None:
        content.append(("dense", [findings.figures["dense"]]))
    yield from findings.picture("tickets-distance.png", against_sparsity(content))


def remedies(findings: Findings) -> Iterator[str]:
    yield "## What brings a ticket nearer?"
    yield ""
    start = findings.figures.get("dense-round")
    began = mean(start.distances) if start else None
    if start and began is not None:
        steps = findings.rows[start.name].steps()
        yield (
            f"The rounds begin with a dense network of {steps:,} steps, whose distance is "
            f"{number(began)}; `dense` has all its steps at once. Of the tickets of the same "
            f"budget these are nearer than where they began: {findings.nearer(began) or 'none'}."
        )
        yield ""
    yield (
        "One thing done otherwise, everything else as in the row it is beside; below 1 it helps. "
        "*Nearer*: the part of the way from that row to dense that it makes good. Of the first "
        "seed, which all rows have."
    )
    yield ""
    header = "| what | row | distance | without | ratio | nearer |"
    rows = [row for row in findings.rows.values() if row.remedy]
    yield from findings.table(header, rows, partial(remedy, findings))


def remedy(findings: Findings, row: Row) -> list[str]:
    assert row.remedy
    before, what = row.remedy
    here, there = findings.first(row.name), findings.first(before)
    ratio = nearer = None
    if here is not None and there is not None:
        ratio = here / there
        if findings.dense is not None and there > findings.dense:
            nearer = (there - here) / (there - findings.dense)
    return [what, row.title, number(here), number(there), number(ratio), number(nearer, ".0%")]


def controls(findings: Findings) -> Iterator[str]:
    yield "## Is it the ticket, or the size?"
    yield ""
    yield (
        "`reinit`: the ticket's masks on fresh weights; `random-mask`: as many weights in "
        "each layer at random places; both trained as the last round was. After rewinding "
        "`init` the ticket has had no more steps than they, which is the hypothesis's own "
        "test; after `lr` its last round begins at trained weights, so that what the rounds "
        "before were worth is in the ratio too. `narrower` U-Nets are dense and trained for "
        "as long as the ticket in all; at equal measured time they stand under *At equal "
        "cost*, below. Clear is a ratio, in every seed, beyond what the ratio of two rows of one "
        "seed may differ by from that of the same rows of another seed."
    )
    yield ""
    header = "| row | seeds | distance | of its ticket | control / ticket |"
    rows = [row for row in findings.rows_of("control") if row.of]
    yield from findings.table(header, rows, partial(control, findings))
    yield ""
    clear = max(CLEAR, findings.between_pairs())
    for row in rows:
        if ratios := findings.beside_its_ticket(row):
            yield f"* {row.title}: {verdict(ratios, clear)}."


def control(findings: Findings, row: Row) -> list[str]:
    shown, ticket = (spread(findings.figures[name].distances) for name in (row.name, row.of))
    seeds = ", ".join(map(str, findings.figures[row.name].seeds))
    return [row.title, seeds, shown, ticket, spread(findings.beside_its_ticket(row))]


def similarity(findings: Findings) -> Iterator[str]:
    yield "## Does similarity fall downstream?"
    yield ""
    yield (
        "The Jaccard index of two masks, corrected for chance: 1 for equal masks, 0 on average "
        "for independent ones, ± the standard deviation of that. *Trend*: rank correlation of "
        "depth and similarity over the blocks, -1 if it falls from each block to the next; over "
        "all blocks, those of the encoder (down) and those of the decoder (up)."
    )
    yield ""
    rows = [row for row in findings.rows_of("similarity") if row.pair]
    found = {
        row.title: compared
        for row in rows
        if (compared := findings.results[row.name]["runs"].get("0", {}).get("compare"))
    }
    names = list(dict.fromkeys(s["name"] for c in found.values() for s in c["stages"]))

    def cells(row: Row) -> list[str]:
        compared = found[row.title]
        stages = {stage["name"]: stage for stage in compared["stages"]}
        trends = [number(rank_trend(each), "+.2f") for each in parts(compared["blocks"])]
        everywhere = [corrected(stages[name]) for name in names]
        same = "yes" if compared["same_beginning"] else "no"
        return [row.title, same, corrected(compared["total"]), *trends, *everywhere]

    header = line(["tickets", "same initial weights", "all layers", *TRENDS, *names])
    yield from findings.table(header, rows, cells)
    yield from findings.picture("tickets-similarity.png", over_depth(list(found.items())))


def parts(blocks: list[dict[str, Any]]) -> list[list[float | None]]:
    """The similarity of all blocks, of those of the encoder and of those of the decoder."""
    return [
        [block["corrected"] for block in blocks if block["name"].startswith(prefix)]
        for prefix in TRENDS.values()
    ]


def allocation(findings: Findings) -> Iterator[str]:
    yield "## Does it matter where the weights stay?"
    yield ""
    rows = findings.rows_of("allocation")
    yield from findings.ticket_table(rows)
    yield from equal_cost(findings, rows, allocation_name, "uniform")
    found = curves(rows, findings.of_seed[0], allocation_name)
    yield from findings.picture("tickets-allocation.png", against_time(list(found.items())))


def pattern(findings: Findings) -> Iterator[str]:
    yield "## Which pattern is the fastest ticket at equal quality?"
    yield ""
    rows = findings.rows_of("pattern")
    yield from findings.ticket_table(rows)
    yield from equal_cost(findings, rows, pattern_name, "element")
    yield from fastest(findings, rows)
    found = curves(rows, findings.of_seed[0], pattern_name)
    yield from findings.picture("tickets-pattern.png", against_time(list(found.items())))


def shipping(findings: Findings) -> Iterator[str]:
    yield "## The ticket that ships"
    yield ""
    rows = findings.rows_of("shipping")
    yield from findings.ticket_table(rows)
    yield ""
    for row in rows:
        if not row.budget:
            yield f"* {row.title}: {findings.steps(row):,} steps in all."


def saving(findings: Findings) -> Iterator[str]:
    yield "## What is saved"
    yield ""
    yield (
        "Dense over the row, both of this engine: how many times less each row takes. Memory and "
        "steps beside the same network with every weight stored."
    )
    yield ""
    header = "| row | file | FLOPs | peak memory | step, batch 1 | step, batch 16 |"
    rows = [row for row in findings.rows.values() if not row.pair and row.name != "dense"]
    yield from findings.table(header, rows, partial(saved, findings))


def saved(findings: Findings, row: Row) -> list[str]:
    f, dense = findings.figures[row.name], findings.figures.get("dense")
    pairs = [(dense.cost(cost) if dense else None, f.cost(cost)) for cost in ("file_kb", "mflops")]
    pairs.append((mean(f.dense_peaks), mean(f.peaks)))
    pairs += [(1.0, f.step(batch)) for batch in (1, 16)]
    return [row.title, *(number(whole / part if whole and part else None) for whole, part in pairs)]


def corrected(row: dict[str, Any]) -> str:
    if row["corrected"] is None:
        return "-"
    # Adding 0 takes the sign from what rounds to -0.
    return f"{round(row['corrected'], 3) + 0.0:.3f} ± {row['corrected_deviation']:.1g}"
