"""``summary.md``: what the sections found, the floors first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu.picture import save_picture
from gpu.results import Row, read
from sparse_ddpm.files import write_atomically

FILES = ("correctness", "step", "ceilings", "compiled", "layers")
SECTIONS = ("correctness", "step", "ceilings", "compiled", "tuned", "layers")
"""The most valuable first; each fills one file, but ``tuned`` that of ``step``."""

FLOORS = {
    "vector:32 0.95": {1: 2.0, 16: 2.0, 256: 2.0},
    "vector:32 0.99": {1: 2.5, 16: 2.5, 256: 3.0},
    "element 0.99": {1: 2.0, 16: 2.0, 256: 1.5},
    "dense": {1: 0.8, 16: 0.8, 256: 0.7},
}
"""Least speed-up of our whole step over the faster peer, by ticket and batch."""
OURS = "ours"
PROFILED = 12
"""Kernels of a step that the summary shows."""
UNPROFILED = ("vector:32 0.99", "dense")
"""Tickets whose kernels stand in the JSON only."""

Rows = dict[str, Row]


def write_summary(folder: Path) -> None:
    """``folder/summary.md`` and, where matplotlib is there, ``folder/summary.png``."""
    found = {name: read(folder / f"{name}.json") for name in FILES}
    rows: dict[str, Rows] = {
        name: {row["key"]: row for row in content["rows"]} if content else {}
        for name, content in found.items()
    }
    lines = list(summary([content for content in found.values() if content], rows))
    try:
        if save_picture(rows, folder / "summary.png"):
            lines += ["", "![step time and speed-up](summary.png)"]
    except Exception as error:
        # The table is worth more than the picture.
        lines += ["", f"No picture: {_line(f'{type(error).__name__}: {error}')}"]
    text = "\n".join(lines) + "\n"
    write_atomically(folder / "summary.md", lambda file: file.write(text.encode()))


def summary(contents: Sequence[dict[str, Any]], rows: dict[str, Rows]) -> Iterator[str]:
    yield "# GPU suite"
    yield ""
    if not contents:
        yield "Nothing has been measured."
        return
    about = max((content["about"] for content in contents), key=lambda a: a["date"])
    yield from heading(about)
    yield from floors(rows["step"], rows["compiled"])
    yield from steps(rows["step"], rows["compiled"])
    yield from correctness(rows["correctness"])
    yield from ceilings(rows["ceilings"])
    yield from layers(rows["layers"], rows["ceilings"])
    yield from profiles(rows["step"], rows["compiled"])
    yield from failures(rows)


def heading(about: dict[str, Any]) -> Iterator[str]:
    device, known = about["device"], about["versions"]
    if "dry run" in device["name"]:
        yield "**Dry run: no time below is a measurement.**"
        yield ""
    parts = [device["name"]]
    parts += [f"driver {device['driver']}"] if device.get("driver") else []
    names = ("torch", "triton", "cuda", "cudnn", "python")
    parts += [f"{name} {known[name]}" for name in names if known.get(name)]
    yield ", ".join(parts) + "."
    changed = {True: " with changes", False: "", None: ""}[about["modified"]]
    yield f"Commit {about['commit'] or 'unknown'}{changed}, {about['date']}: `{about['command']}`"


def best(rows: Sequence[Row | None], wanted: str) -> tuple[str, Row] | None:
    """The fastest right engine: of ours where ``wanted`` is `OURS`, else of the peers."""
    found = [
        (name, engine)
        for row in rows
        if row is not None
        for name, engine in row.get("engines", {}).items()
        if "us" in engine and (name.split()[0] == OURS) == (wanted == OURS)
    ]
    return min(found, key=lambda item: item[1]["us"], default=None)


def floors(step: Rows, compiled: Rows) -> Iterator[str]:
    """The table of targets, each met, missed or not measured."""
    yield from ("", "## Whole step over the faster peer", "")
    batches = sorted({batch for floor in FLOORS.values() for batch in floor})
    yield f"| ticket | {' | '.join(f'batch {batch}' for batch in batches)} |"
    yield f"| --- |{' --- |' * len(batches)}"
    for ticket, wanted in FLOORS.items():
        cells = []
        for batch in batches:
            key = f"{ticket}, batch {batch}"
            rows = [step.get(key), step.get(f"{key}, tuned")]
            ours, peer = best(rows, OURS), best([*rows, compiled.get(key)], "peers")
            if ours is None or peer is None:
                cells.append(f"not measured (floor {wanted[batch]:g}x)")
                continue
            ratio = peer[1]["us"] / ours[1]["us"]
            said = "pass" if ratio >= wanted[batch] else "MISS"
            if compiled.get(key) is None:
                said = "torch.compile not measured"
            cells.append(f"{ratio:.2f}x over {peer[0]}, floor {wanted[batch]:g}x: {said}")
        yield f"| {ticket} | {' | '.join(cells)} |"


def steps(step: Rows, compiled: Rows) -> Iterator[str]:
    rows = [row for row in (*step.values(), *compiled.values()) if "engines" in row]
    if not rows:
        return
    yield from ("", "## Steps", "")
    yield "| ticket | batch | engine | ms | p10 | p90 | error | MiB held | MiB peak | noise |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in sorted(rows, key=lambda row: (row["ticket"], row["batch"])):
        for name, engine in row["engines"].items():
            if "us" not in engine:
                continue
            times = [f"{engine[part] / 1e3:.3f}" for part in ("us", "p10_us", "p90_us")]
            memory = [f"{engine[part]:.0f}" for part in ("memory_mib", "peak_mib")]
            noise = f"{row['noise']:.1%}" if row.get("noise") is not None else ""
            cells = [row["ticket"], str(row["batch"]), name, *times, f"{engine['error']:.1e}"]
            yield f"| {' | '.join([*cells, *memory, noise])} |"


def correctness(rows: Rows) -> Iterator[str]:
    if not rows:
        return
    yield from ("", "## Correctness", "", "| kernel | dtype | cases | failed | worst error |")
    yield "| --- | --- | --- | --- | --- |"
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for key, row in rows.items():
        groups[key.split(":")[0], key.rpartition(", ")[2]].append(row)
    for (kernel, dtype), members in sorted(groups.items()):
        failed = sum("failed" in row for row in members)
        errors = [row["error"] for row in members if row.get("error") is not None]
        worst = f"{max(errors):.1e}" if errors else ""
        yield f"| {kernel} | {dtype} | {len(members)} | {failed} | {worst} |"


def ceilings(rows: Rows) -> Iterator[str]:
    if not rows:
        return
    yield from ("", "## Limits", "", "| what | measured |", "| --- | --- |")
    for key, row in rows.items():
        value = f"{row['value']:.4g} {row['unit']}" if "value" in row else "failed"
        yield f"| {key} | {value} |"


def limit(rows: Rows, prefix: str) -> float | None:
    """The largest value among the limits whose name begins with ``prefix``."""
    values = [
        row["value"] for key, row in rows.items() if key.startswith(prefix) and "value" in row
    ]
    return max(values, default=None)


def layers(rows: Rows, limits: Rows) -> Iterator[str]:
    """The fastest of our kernels beside its peers, cold; and which share of which limit it is."""
    found = [row for row in rows.values() if row.get("pattern") and "cudnn" in row["engines"]]
    found = [row for row in found if not row["key"].endswith("compiled")]
    if not found:
        return
    yield from ("", "## Layers", "")
    yield (
        "Cold: buffers rotate over twice the L2. Speed-up over cuDNN (and over torch.compile, and "
        "our own kernel at density 1, where they were measured)."
    )
    yield ""
    yield (
        "| layer | batch | pattern | ours | us | warm us | over cuDNN | over compile | over dense "
        "| of memory | of L2 | of matmul |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    order = sorted(found, key=lambda r: (r["channels"], r["batch"], r["pattern"], r["sparsity"]))
    for row in order:
        mine = fastest(row, OURS)
        if mine is None:
            continue
        name, engine = mine
        seconds = engine["cold"]["us"] * 1e-6
        shape = f"{row['layer']} batch {row['batch']}"
        compiled = (rows.get(f"{shape} compiled") or {}).get("engines", {})
        dense = fastest(rows.get(f"{shape} dense") or {}, f"{OURS} panels")
        peers = [
            row["engines"]["cudnn"],
            compiled.get("compile max-autotune", {}),
            dense[1] if dense else {},
        ]
        over = [
            f"{p['cold']['us'] / engine['cold']['us']:.2f}x" if "cold" in p else "" for p in peers
        ]
        shares = [
            share(engine.get("bytes"), seconds, limit(limits, "copy"), 1e9),
            share(engine.get("streamed_bytes"), seconds, limit(limits, "l2"), 1e9),
            share(engine.get("executed_flops"), seconds, limit(limits, "matmul"), 1e12),
        ]
        pattern = (
            row["pattern"] if row["pattern"] == "dense" else f"{row['pattern']} {row['sparsity']:g}"
        )
        cells = [row["layer"], str(row["batch"]), pattern, name.removeprefix("ours ")]
        cells += [f"{engine[how]['us']:.2f}" for how in ("cold", "warm")]
        yield f"| {' | '.join([*cells, *over, *shares])} |"


def fastest(row: Row, prefix: str) -> tuple[str, Row] | None:
    """By cold time, of the engines whose names begin with ``prefix``."""
    found = [
        (name, engine)
        for name, engine in row.get("engines", {}).items()
        if "cold" in engine and name.startswith(prefix)
    ]
    return min(found, key=lambda item: item[1]["cold"]["us"], default=None)


def share(amount: float | None, seconds: float, rate: float | None, scale: float) -> str:
    if amount is None or rate is None:
        return ""
    return f"{amount / seconds / (rate * scale):.0%}"


def profiles(step: Rows, compiled: Rows) -> Iterator[str]:
    """Kernels of our steps, but for the tickets in `UNPROFILED`, and of one step of each peer."""
    seen = set()
    for row in (*step.values(), *compiled.values()):
        for name, engine in row.get("engines", {}).items():
            kernels = engine.get("kernels")
            ticket = row["ticket"] if name.startswith(OURS) else ""
            shown_already = (name, row["batch"], ticket) in seen or ticket in UNPROFILED
            if not isinstance(kernels, list) or not kernels or name == "eager" or shown_already:
                continue
            seen.add((name, row["batch"], ticket))
            total = sum(kernel["us"] for kernel in kernels)
            count = sum(kernel["count"] for kernel in kernels)
            yield from ("", f"### Inside {name}: {row['key']}", "")
            yield f"{count:.0f} kernels, {total:.0f} us together."
            yield from ("", "| kernel | times | us | share |", "| --- | --- | --- | --- |")
            for kernel in kernels[:PROFILED]:
                part = kernel["us"] / max(total, 1e-9)
                shown = kernel["name"][:90].replace("|", "/")
                yield f"| `{shown}` | {kernel['count']:g} | {kernel['us']:.1f} | {part:.0%} |"


def failures(rows: dict[str, Rows]) -> Iterator[str]:
    """Everything that failed, with its reason."""
    found = []
    for section, members in rows.items():
        for key, row in members.items():
            if "failed" in row:
                found.append(f"* {section}: {key}: {_line(row['failed'])}")
            for name, engine in row.get("engines", {}).items():
                if "failed" in engine:
                    found.append(f"* {section}: {key}: {name}: {_line(engine['failed'])}")
    if found:
        yield from ("", "## Failed", "")
        yield from found


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
