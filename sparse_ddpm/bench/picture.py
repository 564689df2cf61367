"""Pictures of benchmarks, from the objects that ``bench --json`` prints. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_ddpm.bench.engines import OURS, label
from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.pictures import FIGURES, check_figure, save_figure

FORMATS = FIGURES
SHOWN = (0, 50, 80, 90, 95, 98, 99)
"""Sparsities, in per cent, that an axis names. Its scale is that of the weights left."""
OUR_COLOUR, PEER_COLOURS = "#d1495b", {"float32": "#8d99ae", "bfloat16": "#c6ccd8"}
COLOURS = ("#d1495b", "#00798c", "#edae49", "#66a182", "#5f4b8b")


def check_picture(path: Path) -> None:
    """See `sparse_ddpm.pictures.check_figure`."""
    check_figure(path, FORMATS)


def save_steps(result: dict[str, Any], path: Path) -> None:
    """Bars: the median step of every engine with its p10 and p90, a panel for each batch."""
    batches = list(dict.fromkeys(row["batch"] for row in result["results"]))
    figure, axes = _figure(len(batches), width=5.2, height=3.6)
    for axis, batch in zip(axes, batches, strict=True):
        rows = [row for row in result["results"] if row["batch"] == batch]
        rows.sort(key=lambda row: -row["step_ms"])
        medians = [row["step_ms"] for row in rows]
        spread = [
            [row["step_ms"] - row["p10_ms"] for row in rows],
            [row["p90_ms"] - row["step_ms"] for row in rows],
        ]
        names = [label(row["engine"], row["dtype"]) for row in rows]
        colours = [
            OUR_COLOUR if row["engine"] == OURS else PEER_COLOURS.get(row["dtype"], "#8d99ae")
            for row in rows
        ]
        axis.barh(names, medians, xerr=spread, color=colours, error_kw={"lw": 0.8})
        for index, median in enumerate(medians):
            axis.text(median, index, f"  {median:.3g}", va="bottom", fontsize=8)
        axis.set_xlabel("ms a step")
        axis.set_title(f"batch {batch}", fontsize=10)
    figure.suptitle(
        f"{result['model']}, {result['sparsity']:.0%} pruned ({result['pattern']}), "
        f"{result['threads']} threads",
        fontsize=11,
    )
    save_figure(figure, path)


def save_speedup(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Lines: speed-up against sparsity, a panel for each batch, a colour for each pattern.

    Solid: our float32 over the fastest float32 peer; dashed: our fastest over the fastest peer of
    any precision. Raises `ConfigError` when no result has a ratio.
    """
    batches = sorted({row["batch"] for result in results for row in result["ratios"]})
    if not batches:
        raise ConfigError(expected("speed-up picture", "results with peers", "none"))
    patterns = sorted({result["pattern"] for result in results})
    figure, axes = _figure(len(batches), width=4.6, height=3.9)
    for axis, batch in zip(axes, batches, strict=True):
        for colour, pattern in zip(_colours(len(patterns)), patterns, strict=True):
            for key, line, words in (
                ("vs_fastest_fp32_peer", "-", "over float32 peers"),
                ("vs_fastest_peer", "--", "over all peers"),
            ):
                points = sorted(
                    (1.0 / (1.0 - result["sparsity"]), row[key])
                    for result in results
                    for row in result["ratios"]
                    if result["pattern"] == pattern and row["batch"] == batch and row[key]
                )
                if points:
                    x, y = zip(*points, strict=True)
                    style = {"color": colour, "marker": "o", "ms": 3.5, "lw": 1.4}
                    axis.plot(x, y, line, label=f"{pattern}, {words}", **style)
        axis.axhline(1.0, color="#444444", lw=0.8)
        axis.set_xscale("log")
        axis.set_xticks([1.0 / (1.0 - s / 100) for s in SHOWN], [f"{s:g}" for s in SHOWN])
        axis.xaxis.minorticks_off()
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axis.yaxis.set_major_locator(_ticks())
        axis.yaxis.minorticks_off()
        axis.grid(alpha=0.3, lw=0.5)
        axis.set_xlabel("% of the weights pruned")
        axis.set_title(f"batch {batch}", fontsize=10)
    axes[0].set_ylabel("steps a second, times the fastest peer")
    axes[0].legend(fontsize=8, frameon=False)
    first = results[0]
    figure.suptitle(
        f"{first['model']}: speed over the fastest peer, {first['threads']} threads", fontsize=11
    )
    save_figure(figure, path)


def _ticks() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10.0, subs=(1.0, 2.0, 5.0), numticks=20)


def _colours(count: int) -> tuple[str, ...]:
    return tuple(COLOURS[index % len(COLOURS)] for index in range(count))


def _figure(panels: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)
