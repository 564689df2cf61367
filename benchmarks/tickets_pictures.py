"""The pictures of docs/tickets.md. Each is None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from tickets_numbers import Figures, mean, points

COLOURS = (
    *("#d1495b", "#00798c", "#edae49", "#66a182", "#5f4b8b", "#2e4057"),
    *("#8d99ae", "#b56576", "#3d9970", "#c77dff", "#a0522d", "#1f77b4", "#bcbd22", "#17becf"),
)
LINES = ("-o", "--s", ":^")
SHOWN = (80, 90, 95, 98, 99)
DEVIATIONS = 3.0

Curves = Sequence[tuple[str, Sequence[Figures]]]


def against_sparsity(curves: Curves) -> Figure | None:
    """Distance against sparsity; a curve of dense rows alone is a level line."""
    figure, axes = _figure(1, 5.6, 3.9)
    axis = axes[0]
    drawn = False
    for index, (name, curve) in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        known = sorted(
            (1.0 / (1.0 - (mean(f.sparsities) or 0.0)), mean(f.distances), f.distances)
            for f in curve
            if f.distances and f.sparsities
        )
        if not known:
            continue
        if all(x == 1.0 for x, _, _ in known):
            axis.axhline(known[0][1], color="#444444", lw=1.0, ls="--", label=name)
            drawn = True
            continue
        drawn = True
        axis.plot([x for x, _, _ in known], [y for _, y, _ in known], color=colour, label=name)
        seeds = [(x, each) for x, _, every in known for each in every]
        axis.plot(*zip(*seeds, strict=True), "o", ms=3.5, color=colour)
    axis.set_xscale("log")
    axis.set_xticks([1.0 / (1.0 - s / 100) for s in SHOWN], [f"{s}" for s in SHOWN])
    axis.xaxis.minorticks_off()
    axis.set_xlabel("% of the prunable weights that are gone; dots are seeds")
    return _finished(figure, axis) if drawn else None


def against_time(curves: Curves) -> Figure | None:
    """Distance against the measured step, a panel for each batch."""
    figure, axes = _figure(2, 4.9, 4.2)
    drawn = False
    for axis, batch in zip(axes, (1, 16), strict=True):
        for index, (name, curve) in enumerate(curves):
            known = [(100.0 * time, d) for time, d in points(curve, f"step{batch}")]
            if known:
                drawn = True
                style = LINES[index // len(COLOURS) % len(LINES)]
                colour = COLOURS[index % len(COLOURS)]
                axis.plot(*zip(*known, strict=True), style, ms=4, color=colour, label=name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(base=10.0, subs=(1.0, 2.0, 5.0), numticks=20))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.minorticks_off()
        axis.xaxis.set_major_locator(LogLocator(base=10.0, subs=(1.0, 2.0, 5.0), numticks=20))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.minorticks_off()
        axis.set_xlabel("step, % of dense")
        axis.set_title(f"batch {batch}", fontsize=10)
    return _finished(figure, axes[0]) if drawn else None


def over_depth(compared: Sequence[tuple[str, dict[str, Any]]]) -> Figure | None:
    """Chance-corrected Jaccard index of the blocks, upstream at left, one line a pair."""
    if not compared:
        return None
    names = list(dict.fromkeys(block["name"] for _, found in compared for block in found["blocks"]))
    figure, axes = _figure(1, max(6.0, 0.3 * len(names) + 1.5), 4.6)
    axis = axes[0]
    limits = [0.0] * len(names)
    for index, (title, found) in enumerate(compared):
        blocks = [block for block in found["blocks"] if block["corrected"] is not None]
        at = [names.index(block["name"]) for block in blocks]
        for place, block in zip(at, blocks, strict=True):
            limits[place] = max(limits[place], DEVIATIONS * block["corrected_deviation"])
        values = [block["corrected"] for block in blocks]
        colour = COLOURS[index % len(COLOURS)]
        axis.plot(at, values, "o-", ms=3.5, lw=1.2, color=colour, label=title)
    words = f"chance, {DEVIATIONS:g} deviations (the widest)"
    axis.fill_between(
        range(len(names)),
        [-limit for limit in limits],
        limits,
        color="#8d99ae",
        alpha=0.4,
        lw=0,
        step="mid",
        label=words,
    )
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set_ylabel("Jaccard index, corrected for chance")
    axis.axhline(0.0, color="#444444", lw=0.8)
    _legend(figure, axis)
    return figure


def _figure(panels: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width * panels, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3, lw=0.5)
    return figure, list(axes)


def _finished(figure: Figure, axis: Any) -> Figure:
    axis.set_ylabel("Fréchet distance to real images")
    _legend(figure, axis)
    return figure


def _legend(figure: Figure, axis: Any) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right", fontsize=8, frameon=False)
