"""Inspections as one figure of matplotlib, a column for each ticket."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_ddpm.inspection.charts import SERIES, Charts, charts_of, slowest, stages_apart
from sparse_ddpm.inspection.colours import (
    FAINT,
    KIND_COLOURS,
    OTHER,
    PART_COLOURS,
    ROOF,
    SERIES_COLOURS,
    STAGE_COLOURS,
)
from sparse_ddpm.inspection.report import Inspection
from sparse_ddpm.inspection.words import size_of, title, where
from sparse_ddpm.pictures import save_figure

MIB = 1 << 20
BAR = 0.16
"""Inches of a layer's bars."""
LINES = ("-", "--", ":")
"""Of the roofs of caches and memory."""


def save_inspections(found: Sequence[Inspection], path: Path) -> None:
    """Draw all charts of all inspections, on the same scales."""
    from matplotlib.figure import Figure

    charts = [charts_of(one) for one in found]
    layers = max(len(one.bars) for one in charts)
    heights = [1.2 + BAR * layers, 3.6, 4.6, 1.6]
    width = 9.5 if len(found) == 1 else 8.0 * len(found)
    figure = Figure(figsize=(width, sum(heights) + 1.2), layout="constrained")
    grid = figure.subplots(4, len(found), squeeze=False, height_ratios=heights)
    for column, (one, chart) in enumerate(zip(found, charts, strict=True)):
        bars, memory, roofline, stored = (grid[row][column] for row in range(4))
        _bars(bars, chart, charts)
        bars.set_title(f"{title(one)}\n{where(one)}\n\nFLOPs of a layer, one image", fontsize=10)
        _memory(memory, chart, charts)
        _roofline(roofline, chart)
        source = one["ceilings"]["source"]
        roofline.set_title(f"Roofline; ceilings: {source}", fontsize=10)
        _stored(stored, chart, charts)
    for row in grid:
        for axis in row:
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=7)
    save_figure(figure, path)


def _bars(axis: Any, chart: Charts, charts: Sequence[Charts]) -> None:
    places = range(len(chart.bars))
    for index, (key, words) in enumerate(SERIES):
        values = [bar.flops[key] / 1e6 for bar in chart.bars]
        at = [place + 0.28 * (index - 1) for place in places]
        axis.barh(at, values, height=0.28, color=SERIES_COLOURS[key], label=words)
    axis.set_yticks(places, [bar.name for bar in chart.bars])
    axis.set_ylim(len(chart.bars) - 0.4, -0.6)
    most = max(max(bar.flops.values()) for one in charts for bar in one.bars) / 1e6
    axis.set_xlim(0.0, 1.02 * most)
    axis.set_xlabel("MFLOP", fontsize=8)
    axis.grid(axis="x", alpha=0.3, lw=0.5)
    axis.legend(fontsize=8, frameon=False, loc="lower right")


def _memory(axis: Any, chart: Charts, charts: Sequence[Charts]) -> None:
    from matplotlib.patches import Rectangle

    memory = chart.memory
    for index, block in enumerate(memory.blocks):
        axis.add_patch(
            Rectangle(
                (block.first, block.start / MIB),
                block.last + 1 - block.first,
                block.size / MIB,
                facecolor=STAGE_COLOURS[index % len(STAGE_COLOURS)],
                edgecolor="white",
                lw=0.4,
            )
        )
    moments = len(memory.live)
    axis.step(
        range(moments + 1),
        [*(size / MIB for size in memory.live), memory.live[-1] / MIB],
        where="post",
        color=ROOF,
        lw=1.0,
        label="in use, together",
    )
    axis.axhline(memory.arena / MIB, color=ROOF, lw=0.8, ls="--", label="arena")
    axis.set_xlim(0, moments)
    axis.set_ylim(0.0, 1.15 * max(one.memory.arena for one in charts) / MIB)
    stages = stages_apart(memory.stages, 0.06 * moments)
    axis.set_xticks([stage.middle for stage in stages], [stage.name for stage in stages])
    for stage in memory.stages:
        axis.axvline(stage.first, color=FAINT, lw=0.6, zorder=0)
    axis.set_ylabel("MiB of the arena", fontsize=8)
    axis.set_title(f"What lives when in the arena of {size_of(memory.arena)}", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="upper right", ncols=2)


def _roofline(axis: Any, chart: Charts) -> None:
    roofline = chart.roofline
    points = roofline.points
    low = min([point.intensity for point in points], default=1.0) / 2
    ridge = max(roofline.peak / rate for rate in roofline.slopes.values())
    high = 2 * max([ridge, *(point.intensity for point in points)])
    for style, (name, rate) in zip(LINES, roofline.slopes.items(), strict=False):
        knee = min(roofline.peak / rate, high)
        label = f"{name} {rate:,.0f} GB/s"
        ends = [low * rate, knee * rate]
        axis.plot([low, knee], ends, color=ROOF, lw=0.9, ls=style, label=label)
    first = min(roofline.peak / rate for rate in roofline.slopes.values())
    peak = f"multiply-adds {roofline.peak:,.0f} GFLOP/s"
    axis.plot([min(first, high), high], [roofline.peak] * 2, color=ROOF, lw=1.6, label=peak)
    for kind in dict.fromkeys(point.kind for point in points):
        mine = [point for point in points if point.kind == kind]
        axis.scatter(
            [point.intensity for point in mine],
            [point.gflops for point in mine],
            s=14,
            alpha=0.8,
            color=KIND_COLOURS.get(kind, OTHER),
            label=kind,
        )
    for number, (names, point) in enumerate(slowest(roofline), start=1):
        at = (point.intensity, point.gflops)
        axis.annotate(str(number), at, fontsize=8, xytext=(5, 3), textcoords="offset points")
        axis.plot([], [], " ", label=f"{number}: {names}")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("executed FLOP a byte read or written", fontsize=8)
    how = "measured" if roofline.measured else "predicted"
    axis.set_ylabel(f"GFLOP/s, {how}", fontsize=8)
    axis.grid(alpha=0.3, lw=0.5)
    below = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.14), "ncols": 2}
    axis.legend(fontsize=7, frameon=False, **below)


def _stored(axis: Any, chart: Charts, charts: Sequence[Charts]) -> None:
    for row, stored in enumerate(chart.stored):
        begin = 0.0
        for part, size in stored.parts.items():
            colour = PART_COLOURS.get(part, OTHER)
            mine = len(stored.parts) > 1
            label = f"{part} {size_of(size)}" if mine else None
            axis.barh(row, size / MIB, left=begin / MIB, color=colour, height=0.6, label=label)
            begin += size
        axis.annotate(f" {size_of(stored.size)}", (begin / MIB, row), fontsize=8, va="center")
    axis.set_yticks(range(len(chart.stored)), [stored.name for stored in chart.stored])
    axis.set_ylim(len(chart.stored) - 0.5, -0.5)
    axis.set_xlim(0.0, 1.18 * max(stored.size for one in charts for stored in one.stored) / MIB)
    axis.set_xlabel("MiB", fontsize=8)
    axis.set_title("Bytes of the weights in a file", fontsize=10)
    axis.legend(fontsize=7, frameon=False, loc="lower right", ncols=2)
