"""An inspection as a table for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sparse_ddpm.inspection.report import Inspection, timed
from sparse_ddpm.inspection.words import (
    about,
    flops_of,
    kibi,
    mega,
    size_of,
    time_of,
    title,
    where,
)

Operation = Mapping[str, Any]

SORTS: Mapping[str, Callable[[Operation], float]] = {
    "time": timed,
    "flops": lambda item: float(item["executed_flops"]),
    "bytes": lambda item: float(item["moved_bytes"]),
    "weights": lambda item: float(item["planned_value_bytes"] + item["planned_offset_bytes"]),
    "density": lambda item: float(item["density"] or 0.0),
    "order": lambda _: 0.0,
}
"""What a table may be sorted by, largest first; ``order``: as operations run."""

COLUMNS = (
    ("operation", "", -22),
    ("kind", "", -15),
    ("output", "", 11),
    ("stored", "", 7),
    ("even at", "", 7),
    ("runs", "", -6),
    ("dense", "MFLOP", 10),
    ("surviving", "MFLOP", 10),
    ("executed", "MFLOP", 10),
    ("weights", "KiB", 9),
    ("moved", "KiB", 10),
    ("FLOP/B", "", 7),
    ("limit", "us", 9),
    ("predicted", "us", 10),
    ("measured", "us", 10),
    ("bound by", "", -13),
)
"""Heading, unit and width, which names may widen; a negative width is text."""


def table_lines(found: Inspection, sort: str = "time", *, reasons: bool = False) -> Iterator[str]:
    """What the ticket is, a line for each operation sorted by one of `SORTS`, totals."""
    yield found["ticket"]
    for line in about(found):
        yield f"  {line}"
    yield f"  planned for {where(found)}; ceilings {_ceilings(found)}"
    yield ""
    longest = max(len(item["name"]) for item in found["operations"])
    columns = [("operation", "", -max(longest, -COLUMNS[0][2])), *COLUMNS[1:]]
    if found["totals"]["measured_us"] is None:
        columns = [column for column in columns if column[0] != "measured"]
    header = _line({name: name for name, _, _ in columns}, columns) + "  kernel"
    yield header.rstrip()
    yield _line({name: unit for name, unit, _ in columns}, columns).rstrip()
    for item in sorted(found["operations"], key=SORTS[sort], reverse=sort != "order"):
        kernel = f"{item['format']} {item['kernel']}".strip()
        why = f": {item['reason']}" if reasons else ""
        yield f"{_line(_cells(item), columns)}  {kernel}{why}"
    yield "-" * len(header)
    yield _line({"operation": "total", **_totals(found)}, columns).rstrip()
    yield ""
    yield from _summary(found)


def _line(cells: Mapping[str, str], columns: list[tuple[str, str, int]]) -> str:
    texts = ((cells.get(name, ""), width) for name, _, width in columns)
    return " ".join(
        f"{text:<{-width}}" if width < 0 else f"{text:>{width}}" for text, width in texts
    )


def _cells(item: Operation) -> dict[str, str]:
    weights = sum(item[f"planned_{part}_bytes"] for part in ("value", "offset", "rest"))
    density, even, intensity = item["density"], item["break_even_density"], item["intensity"]
    return {
        "operation": item["name"],
        "kind": item["kind"],
        "output": "x".join(map(str, item["shape"])),
        "stored": "" if density is None else f"{density:.1%}",
        "even at": "" if even is None else f"{even:.1%}",
        "runs": item["runs"] or "",
        "dense": mega(item["dense_flops"]),
        "surviving": mega(item["surviving_flops"]),
        "executed": mega(item["executed_flops"]),
        "weights": kibi(weights),
        "moved": kibi(item["moved_bytes"]),
        "FLOP/B": f"{intensity:.2f}" if intensity else "",
        "limit": _us(item["limit_us"]),
        "predicted": _us(item["predicted_us"]),
        "measured": _us(item["measured_us"]),
        "bound by": item["bound"] or "",
    }


def _totals(found: Inspection) -> dict[str, str]:
    total = found["totals"]
    weights = sum(total[f"planned_{part}_bytes"] for part in ("value", "offset", "rest"))
    return {
        "dense": mega(total["dense_flops"]),
        "surviving": mega(total["surviving_flops"]),
        "executed": mega(total["executed_flops"]),
        "weights": kibi(weights),
        "moved": kibi(sum(item["moved_bytes"] for item in found["operations"])),
        "limit": _us(total["limit_us"]),
        "predicted": _us(total["predicted_us"]),
        "measured": _us(total["measured_us"]),
    }


def _us(time: float | None) -> str:
    return f"{time:,.1f}" if time else ""


def _ceilings(found: Inspection) -> str:
    limits = found["ceilings"]
    levels = ", ".join(f"{name} {rate:.0f}" for name, rate in limits["gbytes_per_s"].items())
    return f"({limits['source']}): {limits['gflops_per_s']:.0f} GFLOP/s, GB/s read from {levels}"


def _summary(found: Inspection) -> Iterator[str]:
    total, flops, storage = found["totals"], found["flops"], found["storage"]
    yield "FLOP                          dense       surviving        executed"
    for key, words in (
        ("schedule", f"time table, {found['steps']} steps"),
        ("step", "step of an image"),
        ("image", f"image of {found['steps']} steps"),
    ):
        parts = (f"{flops_of(flops[key][kind]):>15}" for kind in ("dense", "surviving", "executed"))
        yield f"{words:<20}{' '.join(parts)}"
    images, executed = flops["batch_step"]["images"], flops["batch_step"]["executed"]
    yield f"a step of {found['batch']} executes {flops_of(executed)} on {images} images"
    yield ""
    yield (
        f"{'memory of weights':<20}{size_of(total['planned_value_bytes']):>12} values, "
        + ", ".join(
            f"{size_of(total[key])} {words}"
            for key, words in (
                ("planned_offset_bytes", "offsets"),
                ("planned_rest_bytes", "panels, bias and gains"),
            )
        )
        + f"; dense {size_of(total['dense_weight_bytes'])}"
    )
    yield f"{'activations (arena)':<20}{size_of(total['arena_bytes']):>12} at their peak"
    if total["process_bytes"] is not None:
        yield (
            f"{'a process grows by':<20}{size_of(total['process_bytes']):>12}: the arena, "
            f"{size_of(total['engine_bytes'])} of weights and scratch, "
            f"{size_of(total['table_bytes'])} of time table, images"
        )
    yield f"{'file':<20}{size_of(storage['file_bytes']):>12}" + _file_words(storage)
    times = f"{time_of(total['predicted_us'])} predicted"
    if total["measured_us"] is not None:
        times += f", {time_of(total['measured_us'])} measured"
    yield f"{'a step of the batch':<20}{times:>12}; at the limits {time_of(total['limit_us'])}"


def _file_words(storage: Mapping[str, Any]) -> str:
    kinds = ", ".join(
        f"{size_of(part['values'] + part['places'])} in {part['tensors']} {name}"
        for name, part in storage["encodings"].items()
    )
    packed = storage["gzip_of_dense_bytes"]
    gzipped = "" if packed is None else f", gzip of that {size_of(packed)}"
    would = "" if storage["written"] else " (not written: what it would be)"
    return f"{would}: {kinds}; dense float32 {size_of(storage['dense_bytes'])}{gzipped}"


def heading(found: Inspection) -> str:
    """For pictures and comparisons."""
    return f"{title(found)}; {where(found)}"
