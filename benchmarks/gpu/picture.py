"""``summary.png``: step time against batch, and each layer's speed-up against sparsity."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from sparse_ddpm.bench.engines import EXTRA
from sparse_ddpm.bench.picture import COLOURS, SHOWN
from sparse_ddpm.errors import MissingDependencyError, expected
from sparse_ddpm.files import write_atomically

Rows = dict[str, dict[str, Any]]
MARKS = ("o", "s", "^", "v", "D", "P")


def save_picture(rows: dict[str, Rows], path: Path) -> bool:
    """Write it, and say so; False where nothing was timed. `MissingDependencyError`."""
    steps = step_lines(rows["step"], rows["compiled"])
    layers = layer_lines(rows["layers"])
    if not steps and not layers:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        wanted = f"to be installed for pictures: {EXTRA}"
        raise MissingDependencyError(expected("matplotlib", wanted, error)) from None
    shown = sorted(layers)
    figure = Figure(figsize=(5.4 + 3.6 * len(shown), 4.2), layout="constrained")
    widths = [1.4, *[1.0] * len(shown)]
    axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    tickets = sorted({ticket for _, ticket in steps})
    engines = sorted({engine for engine, _ in steps})
    for (engine, ticket), points in sorted(steps.items()):
        colour = COLOURS[tickets.index(ticket) % len(COLOURS)]
        line = "-" if engine.startswith("ours") else "--"
        mark = MARKS[engines.index(engine) % len(MARKS)]
        x, y = zip(*sorted(points), strict=True)
        label = f"{engine}, {ticket}"
        axes[0].plot(x, y, line, marker=mark, ms=4, lw=1.2, color=colour, label=label)
    axes[0].set(xscale="log", yscale="log", xlabel="batch", ylabel="ms a step")
    axes[0].set_xticks(sorted({x for points in steps.values() for x, _ in points} or {1}))
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].xaxis.minorticks_off()
    axes[0].set_title("whole step", fontsize=10)
    if steps:
        axes[0].legend(fontsize=6, frameon=False)
    patterns = sorted({pattern for lines in layers.values() for pattern, _ in lines})
    for axis, layer in zip(axes[1:], shown, strict=True):
        largest = max(batch for _, batch in layers[layer])
        for (pattern, batch), points in sorted(layers[layer].items()):
            if batch != largest:
                continue
            x, y = zip(*sorted(points), strict=True)
            colour = COLOURS[patterns.index(pattern) % len(COLOURS)]
            axis.plot(x, y, "-", marker="o", ms=3.5, lw=1.2, color=colour, label=pattern)
        axis.axhline(1.0, color="#444444", lw=0.8)
        axis.set(xscale="log", xlabel="% of the weights pruned")
        axis.set_xticks([1.0 / (1.0 - s / 100) for s in SHOWN], [f"{s:g}" for s in SHOWN])
        axis.xaxis.minorticks_off()
        axis.set_title(f"{layer}, batch {largest}", fontsize=10)
        axis.legend(fontsize=6, frameon=False)
    if shown:
        axes[1].set_ylabel("speed-up over cuDNN, cold")
    for axis in axes:
        axis.grid(alpha=0.3, lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    if not _measured(rows):
        figure.suptitle("Dry run: no time here is a measurement", fontsize=11)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return True


def step_lines(step: Rows, compiled: Rows) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """By engine and ticket: batch and milliseconds. Of peers the dense ticket's suffices."""
    found: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for row in (*step.values(), *compiled.values()):
        for engine, timed in row.get("engines", {}).items():
            if "us" in timed:
                ticket = row["ticket"] if engine.startswith("ours") else "any ticket"
                found[engine, ticket].setdefault(float(row["batch"]), timed["us"] / 1e3)
    return {key: sorted(points.items()) for key, points in found.items()}


def layer_lines(
    rows: Rows,
) -> dict[str, dict[tuple[str, int], list[tuple[float, float]]]]:
    """By layer, then pattern and batch: 1 / density and the speed-up of our fastest kernel."""
    found: dict[str, dict[tuple[str, int], list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows.values():
        engines = row.get("engines", {})
        ours = [
            engine["cold"]["us"]
            for name, engine in engines.items()
            if name.startswith("ours") and "cold" in engine
        ]
        if ours and "cold" in engines.get("cudnn", {}):
            point = 1.0 / (1.0 - row["sparsity"]), engines["cudnn"]["cold"]["us"] / min(ours)
            found[row["layer"]][row["pattern"], row["batch"]].append(point)
    return found


def _measured(rows: dict[str, Rows]) -> bool:
    return any(
        engine.get("measured") or engine.get("cold", {}).get("measured")
        for members in rows.values()
        for row in members.values()
        for engine in row.get("engines", {}).values()
    )
