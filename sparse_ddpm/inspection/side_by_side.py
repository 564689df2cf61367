"""Two inspections side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sparse_ddpm.inspection.report import Inspection
from sparse_ddpm.inspection.words import about, mega, size_of, time_of, where

COMPARED = (
    "density",
    "runs",
    "dense_flops",
    "surviving_flops",
    "executed_flops",
    "planned_value_bytes",
    "planned_offset_bytes",
    "read_bytes",
    "written_bytes",
    "predicted_us",
    "measured_us",
    "kernel",
)
"""Of each operation, for both tickets."""

TOTALS = (
    "dense_flops",
    "surviving_flops",
    "executed_flops",
    "planned_value_bytes",
    "planned_offset_bytes",
    "arena_bytes",
    "process_bytes",
    "file_bytes",
    "predicted_us",
    "measured_us",
)


def compare_inspections(first: Inspection, second: Inspection) -> dict[str, Any]:
    """``totals``: of both, and the second over the first; ``operations``: of both by name, in the
    first one's order, None where only one has it.
    """
    a, b = ({item["name"]: item for item in found["operations"]} for found in (first, second))
    return {
        "totals": {key: _pair(first["totals"][key], second["totals"][key]) for key in TOTALS},
        "operations": [
            {"name": name, "first": _compared(a.get(name)), "second": _compared(b.get(name))}
            for name in dict.fromkeys((*a, *b))
        ],
    }


def _pair(first: float | None, second: float | None) -> dict[str, float | None]:
    ratio = second / first if first and second is not None else None
    return {"first": first, "second": second, "ratio": ratio}


def _compared(item: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if item is None else {key: item[key] for key in COMPARED}


def comparison_lines(first: Inspection, second: Inspection) -> Iterator[str]:
    """A table: every operation of both, the one that differs most in time first, and totals."""
    for mark, found in (("A", first), ("B", second)):
        yield f"{mark}  {found['ticket']}"
        for line in about(found):
            yield f"     {line}"
        yield f"     planned for {where(found)}"
    yield ""
    pairs = ["stored", "executed MFLOP", "weights KiB", "predicted us"]
    measured = all(found["totals"]["measured_us"] is not None for found in (first, second))
    if measured:
        pairs.append("measured us")
    compared = compare_inspections(first, second)
    wide = max(22, *(len(item["name"]) for item in compared["operations"]))
    header = f"{'operation':<{wide}} {'output':>11} " + " ".join(f"{w:>19}" for w in pairs)
    yield f"{header} {'B / A':>7}  kernels"
    yield f"{'':<{wide + 12}} " + " ".join(f"{'A':>9} {'B':>9}" for _ in pairs)
    shapes = {o["name"]: o["shape"] for found in (second, first) for o in found["operations"]}
    key = "measured_us" if measured else "predicted_us"
    for item in sorted(compared["operations"], key=lambda item: -_difference(item, key)):
        shape = "x".join(map(str, shapes[item["name"]]))
        yield f"{item['name']:<{wide}} {shape:>11} {_row(item, key, measured=measured)}"
    yield "-" * (len(header) + 8)
    for name, words, show in (
        ("dense_flops", "dense MFLOP", mega),
        ("surviving_flops", "surviving MFLOP", mega),
        ("executed_flops", "executed MFLOP", mega),
        ("planned_value_bytes", "values in memory", size_of),
        ("planned_offset_bytes", "offsets in memory", size_of),
        ("arena_bytes", "arena", size_of),
        ("process_bytes", "a process grows by", size_of),
        ("file_bytes", "file", size_of),
        ("predicted_us", "step, predicted", time_of),
        ("measured_us", "step, measured", time_of),
    ):
        pair = compared["totals"][name]
        if pair["first"] is None and pair["second"] is None:
            continue
        ratio = "" if pair["ratio"] is None else f"{pair['ratio']:.3f}"
        a, b = (show(pair[which]) for which in ("first", "second"))
        yield f"{words:<22} A {a:>14}   B {b:>14}   B / A {ratio:>7}"


def _difference(item: Mapping[str, Any], key: str) -> float:
    first, second = ((item[which] or {}).get(key) or 0.0 for which in ("first", "second"))
    return abs(float(second) - float(first))


def _row(item: Mapping[str, Any], key: str, *, measured: bool) -> str:
    def weights(half: Mapping[str, Any]) -> float:
        return float(half["planned_value_bytes"] + half["planned_offset_bytes"])

    halves = item["first"], item["second"]
    cells = [
        [
            f"{half['density']:.1%}" if half and half["density"] is not None else ""
            for half in halves
        ],
        [mega(half["executed_flops"]) if half else "" for half in halves],
        [f"{weights(half) / 1024:,.1f}" if half and weights(half) else "" for half in halves],
        [f"{half['predicted_us']:,.1f}" if half else "" for half in halves],
    ]
    if measured:
        cells.append([f"{half['measured_us']:,.1f}" if half else "" for half in halves])
    first, second = ((half or {}).get(key) for half in halves)
    ratio = f"{second / first:.2f}" if first and second is not None else ""
    kernels = " | ".join(dict.fromkeys(half["kernel"] if half else "absent" for half in halves))
    both = " ".join(f"{a:>9} {b:>9}" for a, b in cells)
    return f"{both} {ratio:>7}  {kernels}"
