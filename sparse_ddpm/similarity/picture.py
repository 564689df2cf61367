"""A comparison as a picture: similarity over depth, with its chance level. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from sparse_ddpm.pictures import save_figure
from sparse_ddpm.similarity.compare import Comparison, Likeness, block_of, stage_of

COLOUR, LAYER_COLOUR, CHANCE_COLOUR = "#d1495b", "#e8aab3", "#8d99ae"
BAND = 3.0
"""Deviations of chance on either side of the band that is drawn."""


def save_similarity(found: Comparison, title: str, path: Path) -> None:
    """The chance-corrected Jaccard index of blocks (a line) and layers (dots), upstream at left.

    The band is what independent masks give a block, within `BAND` standard deviations.
    """
    from matplotlib.figure import Figure

    blocks = [row for row in found.blocks if row.corrected is not None]
    places = {row.name: index for index, row in enumerate(blocks)}
    figure = Figure(figsize=(max(6.0, 0.3 * len(blocks) + 1.5), 4.2), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    layers = [row for row in found.layers if block_of(row.name) in places]
    layers = [row for row in layers if row.corrected is not None]
    at = [places[block_of(row.name)] for row in layers]
    axis.scatter(at, _values(layers), s=9, color=LAYER_COLOUR, label="layers", zorder=2)
    axis.plot(range(len(blocks)), _values(blocks), "o-", ms=4, lw=1.4, color=COLOUR, label="blocks")
    limits = [BAND * (row.corrected_deviation or 0.0) for row in blocks]
    axis.fill_between(
        range(len(blocks)),
        [-limit for limit in limits],
        limits,
        color=CHANCE_COLOUR,
        alpha=0.4,
        lw=0,
        step="mid",
        label=f"chance, {BAND:g} deviations",
    )
    axis.axhline(0.0, color="#444444", lw=0.8)
    stages = [stage_of(f"{row.name}.") for row in blocks]
    for index in range(1, len(stages)):
        if stages[index] != stages[index - 1]:
            axis.axvline(index - 0.5, color="#cccccc", lw=0.6, zorder=0)
    axis.set_xticks(range(len(blocks)), [row.name for row in blocks], rotation=90, fontsize=7)
    axis.set_ylabel("Jaccard index, corrected for chance")
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def _values(rows: list[Likeness]) -> list[float]:
    return [row.corrected for row in rows if row.corrected is not None]
