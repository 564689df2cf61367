"""Turn benchmarks/results/tickets/*.json into docs/tickets.md and its pictures.

python benchmarks/tickets_page.py [--check]

No number in that page is typed by hand: settings come from benchmarks/experiments, the rest from
results. Rows without a result are named as not run. With --check nothing is written; exit status 1
if the page is not what the results give.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

from experiment_rows import FOLDER, RESULTS, ROOT, load_rows
from tickets_findings import Findings
from tickets_numbers import dense_ms, number, spread
from tickets_sections import (
    allocation,
    controls,
    matching,
    pattern,
    remedies,
    saving,
    shipping,
    similarity,
)

from sparse_ddpm.errors import SparseDDPMError
from sparse_ddpm.files import write_atomically

OF_ROWS = ("rounds", "dense-steps", "steps", "final-steps", "rewind", "pattern")
SECTIONS = (matching, remedies, controls, similarity, allocation, pattern, shipping, saving)


def page(findings: Findings) -> str:
    """The text of the page. Its pictures are in ``findings.pictures`` then."""
    parts = [part(findings) for part in (head, *SECTIONS, not_run)]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def head(findings: Findings) -> Iterator[str]:
    done = [name for name in findings.rows if findings.complete(name)]
    begun = [n for n in findings.rows if n not in done and findings.results[n]["runs"]]
    train = findings.rows["dense"].train if "dense" in findings.rows else {}
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
        f"**{len(done)} of {len(findings.rows)} rows have been run in full, with all their seeds; "
        f"{len(begun)} in part.**"
    ) + ("" if done or begun else " Nothing below has been measured yet.")
    yield ""
    budgets = {row.budget for row in findings.rows.values() if row.budget}
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
        f"`sparse-ddpm evaluate`{judged(findings)}; several seeds: mean (smallest to largest). "
        "*Loss*: on held-out images. "
        "*Gone*: part of the prunable weights. *kB*: the file. *MFLOP*: of surviving weights, "
        "one image, one step. *Peak*: resident memory of a process that steps, batch 1. "
        "*Step*: the median step, float32, as a part of that of the same network with every "
        f"weight stored, timed in turns with it{dense_steps(findings)}; {timings(findings)}."
    )
    for words in machines(findings):
        yield ""
        yield words


def dense_steps(findings: Findings) -> str:
    words = []
    for batch in (1, 16):
        calm = filter(None, (f.calmest(batch) for f in findings.figures.values()))
        times = [ms for sitting in calm if (ms := dense_ms(sitting, batch)) is not None]
        if times:
            words.append(f"{spread(times)} ms at batch {batch}")
    return f", which took {' and '.join(words)}" if words else ""


def timings(findings: Findings) -> str:
    """How often rows were timed, which timing counts, and how far those of one are apart."""
    rows = [f for f in findings.figures.values() if f.sittings]
    found = [parts for f in rows for batch in (1, 16) if len(parts := f.steps(batch)) > 1]
    if not found:
        return "one timing a row"
    apart = sorted(max(parts) / min(parts) for parts in found)
    return (
        f"of {spread([len(f.sittings) for f in rows])} timings a row the one in which that dense "
        "step was the shortest, since its work is the same for every row and its time tells how "
        "much the machine was disturbed (the largest over the least part of one row: "
        f"{number(median(apart))} in the median row, {number(apart[-1])} at most)"
    )


def judged(findings: Findings) -> str:
    ways = sorted({way for f in findings.figures.values() for way in f.drawn})
    return f" on {' and '.join(f'{n:,} samples ({how})' for n, how in ways)}" if ways else ""


def machines(findings: Findings) -> list[str]:
    every = findings.figures.values()
    benches = [bench for figures in every for bench in figures.sittings]
    found = dict.fromkeys(
        f"Timed on {bench['machine']['cpu']}, {bench['threads']} threads, device {bench['device']}."
        for bench in benches
    )
    if not any(bench["device"] == "cuda" for bench in benches):
        found["**Nothing has been timed on a GPU:** what is fastest is so on a CPU."] = None
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


def not_run(findings: Findings) -> Iterator[str]:
    yield "## Not run"
    yield ""
    missing = [row for row in findings.rows.values() if not findings.complete(row.name)]
    if not missing:
        yield "Every row has been run, with all its seeds."
    begun = [row for row in missing if findings.results[row.name]["runs"]]
    for row in begun:
        runs = findings.results[row.name]["runs"]
        left = [
            f"seed {seed}: {', '.join(stages)}"
            for seed in row.seeds
            if (stages := [s for s in row.stages if s not in runs.get(str(seed), {})])
        ]
        yield f"* `{row.name}`: " + "; ".join(left)
    fresh = [f"`{row.name}`" for row in missing if row not in begun]
    if fresh:
        yield f"* Nothing yet: {', '.join(fresh)}."


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
        findings = Findings(load_rows(options.experiments), options.results)
        text = page(findings)
        if options.check:
            same = options.page.exists() and options.page.read_text(encoding="utf-8") == text
            print(f"{options.page}: {'is' if same else 'IS NOT'} what the results give")
            return 0 if same else 1
        for name, figure in findings.pictures.items():
            write_atomically(options.page.parent / name, partial(figure.savefig, dpi=150))
        write_atomically(options.page, lambda file: file.write(text.encode()))
    except SparseDDPMError as error:
        print(f"tickets_page: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
