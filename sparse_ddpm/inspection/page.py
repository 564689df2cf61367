"""Inspections as one HTML page that needs nothing else: no script runs, nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from sparse_ddpm.inspection import svg
from sparse_ddpm.inspection.charts import Charts, charts_of
from sparse_ddpm.inspection.report import Inspection
from sparse_ddpm.inspection.words import about, flops_of, kibi, mega, size_of, time_of, title, where

Draw = Callable[[Charts, Sequence[Charts], float], str]

NARROW = 340
WIDE = {1: 1080, 2: 520}
"""Pixels of a chart, by how many stand side by side."""

SECTIONS: Sequence[tuple[str, str, Draw]] = (
    (
        "FLOPs of every layer",
        "For one image and one step. Dense: all weights. Executed: what the kernel multiplies, "
        "the zeros that fill panels and the halo included; a fused attention leaves out what other "
        "dead weights make useless. Surviving: the weights that are stored.",
        svg.bars,
    ),
    (
        "Memory over the step",
        "What lives when in the arena, addresses upwards. What is made in place has no buffer.",
        svg.memory,
    ),
    (
        "Roofline",
        "Each layer by what it executes for a byte, and how fast; the roofs are what the machine "
        "allows. The slowest layers have numbers.",
        svg.roofline,
    ),
    (
        "Bytes of the file",
        "The weights as float32 with their zeros, that packed by gzip, and as the ticket stores "
        "them: values, and their places as a bitmask or as gaps.",
        svg.stored,
    ),
)

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1120px; background: #fff; color: #222;
       font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 20px; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 28px 0 2px; }
h3 { font-size: 14px; margin: 10px 0 6px; overflow-wrap: anywhere; }
p { margin: 2px 0 10px; color: #555; max-width: 760px; }
svg { display: block; font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans",
      sans-serif; }
.pair { display: flex; flex-wrap: wrap; gap: 20px; }
.pair > * { min-width: 0; flex: 1 1 300px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 8px;
         margin: 8px 0; }
.fact { border: 1px solid #ddd; border-radius: 6px; padding: 6px 8px; }
.fact b { display: block; font-size: 15px; }
.fact span { color: #555; font-size: 12px; }
.scroll { overflow-x: auto; border: 1px solid #ddd; border-radius: 6px; margin: 8px 0 18px; }
table { border-collapse: collapse; font-size: 12px; white-space: nowrap; }
th, td { padding: 3px 8px; text-align: right; border-bottom: 1px solid #eee; }
th { background: #f4f5f7; }
th:first-child, td:first-child, .words { text-align: left; }
.narrow { display: none; }
@media (max-width: %dpx) { .wide { display: none; } .narrow { display: block; } }
"""

COLUMNS: Sequence[tuple[str, str, Callable[[Any], str]]] = (
    ("name", "operation", str),
    ("kind", "kind", str),
    ("density", "stored", lambda value: "" if value is None else f"{value:.1%}"),
    ("break_even_density", "even at", lambda value: "" if value is None else f"{value:.1%}"),
    ("runs", "runs", lambda value: value or ""),
    ("dense_flops", "dense MFLOP", mega),
    ("surviving_flops", "surviving MFLOP", mega),
    ("executed_flops", "executed MFLOP", mega),
    ("planned_value_bytes", "values KiB", kibi),
    ("planned_offset_bytes", "offsets KiB", kibi),
    ("moved_bytes", "moved KiB", kibi),
    ("intensity", "FLOP/B", lambda value: f"{value:.2f}" if value else ""),
    ("limit_us", "limit us", lambda value: f"{value:,.1f}"),
    ("predicted_us", "predicted us", lambda value: f"{value:,.1f}"),
    ("measured_us", "measured us", lambda value: "" if value is None else f"{value:,.1f}"),
    ("bound", "bound by", lambda value: value or ""),
    ("kernel", "kernel", str),
)
WORDS = frozenset({"kind", "runs", "bound", "kernel"})


def page(found: Sequence[Inspection]) -> str:
    """The page of one inspection, or of two side by side. Its figures also stand in it as JSON."""
    wide = WIDE[min(len(found), 2)]
    # Charts side by side, the gap between them, the page's own margins.
    style = STYLE % (len(found) * wide + (len(found) - 1) * 20 + 40)
    heading = " and ".join(title(one) for one in found)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(heading)}</title><style>{style}</style></head><body>",
        f"<h1>{escape(heading)}</h1>",
        *_side_by_side([list(_facts(one)) for one in found]),
    ]
    charts = [charts_of(one) for one in found]
    for name, words, draw in SECTIONS:
        parts += [f"<h2>{escape(name)}</h2>", f"<p>{escape(words)}</p>"]
        both = zip(found, charts, strict=True)
        parts += _side_by_side([list(_chart(*one, charts, draw, wide)) for one in both])
    for one in found:
        parts += [f"<h2>Operations of {escape(one['ticket'])}</h2>", *_table(one)]
    figures = json.dumps(list(found), allow_nan=False).replace("</", "<\\/")
    parts.append(f'<script type="application/json" id="figures">{figures}</script>')
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _side_by_side(columns: Sequence[Sequence[str]]) -> list[str]:
    inside = [part for column in columns for part in ("<div>", *column, "</div>")]
    return ['<div class="pair">', *inside, "</div>"]


def _chart(
    found: Inspection, chart: Charts, charts: Sequence[Charts], draw: Draw, wide: int
) -> Iterator[str]:
    if len(charts) > 1:
        yield f"<h3>{escape(found['ticket'])}</h3>"
    for name, width in (("wide", wide), ("narrow", NARROW)):
        yield f'<div class="{name}">{draw(chart, charts, width)}</div>'


def _facts(found: Inspection) -> Iterator[str]:
    total, flops, storage = found["totals"], found["flops"], found["storage"]
    yield f"<h3>{escape(found['ticket'])}</h3>"
    for line in (*about(found), f"planned for {where(found)}"):
        yield f"<p>{escape(line)}</p>"
    times = [("a step of the batch, predicted", time_of(total["predicted_us"]))]
    if total["measured_us"] is not None:
        times.append(("measured", time_of(total["measured_us"])))
    facts: Mapping[str, str] = dict(
        [
            *times,
            ("at the machine's limits", time_of(total["limit_us"])),
            ("a step of an image, dense", flops_of(total["dense_flops"])),
            ("surviving", flops_of(total["surviving_flops"])),
            ("executed", flops_of(total["executed_flops"])),
            (f"an image of {found['steps']} steps, executed", flops_of(flops["image"]["executed"])),
            (f"time table of {found['steps']} steps", flops_of(flops["schedule"]["executed"])),
            ("arena at its peak", size_of(total["arena_bytes"])),
            ("weights: values in memory", size_of(total["planned_value_bytes"])),
            ("weights: offsets in memory", size_of(total["planned_offset_bytes"])),
            ("a process grows by", size_of(total["process_bytes"])),
            ("file" if storage["written"] else "as a file", size_of(storage["file_bytes"])),
        ]
    )
    yield '<div class="facts">'
    for words, value in facts.items():
        yield f'<div class="fact"><b>{escape(value)}</b><span>{escape(words)}</span></div>'
    yield "</div>"
    yield f"<p>Ceilings: {escape(found['ceilings']['source'])}.</p>"


def _table(found: Inspection) -> Iterator[str]:
    yield '<div class="scroll"><table><thead><tr>'
    yield "".join(f"<th{_class(key)}>{escape(words)}</th>" for key, words, _ in COLUMNS)
    yield "</tr></thead><tbody>"
    for item in found["operations"]:
        cells = (f"<td{_class(key)}>{escape(show(item[key]))}</td>" for key, _, show in COLUMNS)
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _class(key: str) -> str:
    return ' class="words"' if key in WORDS else ""
