"""Charts as SVG, drawn for a given width: text keeps its size, so that a phone can show them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape

from sparse_ddpm.inspection.charts import (
    SERIES,
    Charts,
    Memory,
    Roofline,
    Stored,
    slowest,
    stages_apart,
)
from sparse_ddpm.inspection.colours import (
    FAINT,
    INK,
    KIND_COLOURS,
    OTHER,
    PART_COLOURS,
    ROOF,
    SERIES_COLOURS,
    STAGE_COLOURS,
)
from sparse_ddpm.inspection.words import size_of, time_of

LETTER = 6.3
"""Width of a letter of 11 pixels, a little more than it is on the average."""
LINE = 15.0


class Drawing:
    """An SVG of ``width`` by whatever is drawn; all units are pixels."""

    def __init__(self, width: float) -> None:
        self.width = width
        self.height = 0.0
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, anchor: str = "start", *, over: bool = False
    ) -> None:
        """``over``: upon something else, of which it keeps a little away."""
        self._reach(y + 4)
        halo = ' stroke="#fff" stroke-width="3" paint-order="stroke"' if over else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}"{halo}>'
            f"{escape(words)}</text>"
        )

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, tip: str, **data: object
    ) -> None:
        """``tip``: shown where the mouse rests; ``data``: of the element, the figures it shows."""
        self._reach(y + height)
        self.parts.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.0):.2f}" '
            f'height="{height:.2f}" fill="{fill}"{_data(data)}><title>{escape(tip)}</title></rect>'
        )

    def line(
        self, points: Sequence[tuple[float, float]], ink: str, thick: float = 1.0, dash: str = ""
    ) -> None:
        self._reach(max(y for _, y in points))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="{thick}"{dashes}/>'
        )

    def dot(self, x: float, y: float, fill: str, tip: str, **data: object) -> None:
        self._reach(y + 4)
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" fill-opacity="0.8"'
            f"{_data(data)}><title>{escape(tip)}</title></circle>"
        )

    def legend(self, y: float, items: Mapping[str, str]) -> float:
        """Squares of colours with their words, in as many lines as they need; where they end."""
        x = 0.0
        for words, colour in items.items():
            wide = 16 + LETTER * len(words) + 12
            if x > 0.0 and x + wide > self.width:
                x, y = 0.0, y + LINE
            self.rect(x, y, 10, 10, colour, words)
            self.text(x + 14, y + 9, words)
            x += wide
        return y + LINE + 4

    def svg(self, label: str) -> str:
        width, height = math.ceil(self.width), math.ceil(self.height + 4)
        inside = "\n".join(self.parts)
        return (
            f'<svg role="img" aria-label="{escape(label)}" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">\n{inside}\n</svg>'
        )

    def _reach(self, y: float) -> None:
        self.height = max(self.height, y)


def _data(figures: Mapping[str, object]) -> str:
    return "".join(f' data-{key}="{escape(str(value))}"' for key, value in figures.items())


def round_steps(most: float, count: int) -> list[float]:
    """Round numbers from 0 to ``most``, about ``count``."""
    raw = most / max(count, 1) or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    return [step * index for index in range(int(most / step + 1e-9) + 1)]


def bars(chart: Charts, charts: Sequence[Charts], width: float) -> str:
    """FLOPs of every layer; names stand beside their bars, or above them where there is no room."""
    drawing = Drawing(width)
    names = max((len(bar.name) for bar in chart.bars), default=0) * LETTER + 8
    beside = width > 3.5 * names
    left = names if beside else 0.0
    right = width - 10
    most = max(max(bar.flops.values()) for one in charts for bar in one.bars)
    y = drawing.legend(3.0, {words: SERIES_COLOURS[key] for key, words in SERIES})
    top = y
    scale = (right - left) / most
    for bar in chart.bars:
        flops = bar.flops
        words = ", ".join(f"{words} {flops[key]:,}" for key, words in SERIES)
        tip = f"{bar.name}: {words} FLOP"
        if beside:
            drawing.text(left - 6, y + 14, bar.name, "end")
        else:
            for line in wrapped(bar.name, width):
                y += LINE
                drawing.text(0.0, y - 5, line)
        for key, _ in SERIES:
            long = scale * flops[key]
            colour = SERIES_COLOURS[key]
            drawing.rect(
                left, y, long, 5.0, colour, tip, layer=bar.name, series=key, value=flops[key]
            )
            y += 5.5
        y += 6.0
    for value in round_steps(most / 1e6, max(2, int((right - left) / 70))):
        x = left + scale * value * 1e6
        drawing.line([(x, top - 2), (x, y)], FAINT, 0.7)
        drawing.text(x, y + 12, f"{value:g}", "middle" if x > left else "start")
    drawing.text(right, y + 27, "MFLOP, one image", "end")
    return drawing.svg("FLOPs of every layer")


def memory(chart: Charts, charts: Sequence[Charts], width: float) -> str:
    """Time to the right, addresses upwards."""
    drawing = Drawing(width)
    found: Memory = chart.memory
    most = 1.06 * max(one.memory.arena for one in charts)
    y = drawing.legend(
        3.0, {"in use, together": ROOF, "a buffer, by its first use": STAGE_COLOURS[0]}
    )
    left, right, top, bottom = 46.0, width - 10, y + LINE, y + LINE + 236
    moments = len(found.live)
    across, up = (right - left) / moments, (bottom - top) / most

    def at(moment: float, size: float) -> tuple[float, float]:
        return left + across * moment, bottom - up * size

    for value in round_steps(most / (1 << 20), 5):
        x, line = at(0, value * (1 << 20))
        drawing.line([(x, line), (right, line)], FAINT, 0.7)
        drawing.text(left - 6, line + 4, f"{value:g}", "end")
    drawing.text(0.0, top - 4, "MiB")
    for index, block in enumerate(found.blocks):
        x, high = at(block.first, block.start + block.size)
        long = across * (block.last + 1 - block.first)
        tip = f"{block.name}: {size_of(block.size)} at {size_of(block.start)}"
        drawing.rect(
            x,
            high,
            long - 0.5,
            up * block.size - 0.5 if up * block.size > 1 else up * block.size,
            STAGE_COLOURS[index % len(STAGE_COLOURS)],
            tip,
            buffer=block.name,
            value=block.size,
        )
    steps = []
    for moment, size in enumerate(found.live):
        steps += [at(moment, size), at(moment + 1, size)]
    drawing.line(steps, ROOF, 1.3)
    for block in found.blocks:
        x, high = at(block.first, block.start + block.size)
        room = across * (block.last + 1 - block.first) > LETTER * len(block.name) + 8
        if room and up * block.size > 13:
            drawing.text(x + 4, high + up * block.size / 2 + 4, block.name, over=True)
    drawing.line([at(0, found.arena), at(moments, found.arena)], ROOF, 0.9, "5 3")
    drawing.text(right, at(0, found.arena)[1] - 4, f"arena {size_of(found.arena)}", "end")
    longest = max(len(stage.name) for stage in found.stages)
    for stage in stages_apart(found.stages, (longest + 2) * LETTER / across):
        half = LETTER * len(stage.name) / 2
        x = min(at(stage.middle, 0)[0], width - half)
        drawing.text(x, bottom + 15, stage.name, "middle")
    for stage in found.stages[1:]:
        x, _ = at(stage.first, 0)
        drawing.line([(x, bottom), (x, bottom + 4)], ROOF, 0.8)
    return drawing.svg("What lives when in the arena")


def roofline(chart: Charts, charts: Sequence[Charts], width: float) -> str:
    """Both axes logarithmic, the same for all ``charts``."""
    drawing = Drawing(width)
    found: Roofline = chart.roofline
    roofs = [one.roofline for one in charts]
    points = [point for roof in roofs for point in roof.points]
    ridges = [roof.peak / rate for roof in roofs for rate in roof.slopes.values()]
    low = min([point.intensity for point in points], default=1.0) / 2
    high = 2 * max([*ridges, *(point.intensity for point in points)])
    floor = min([point.gflops for point in points], default=1.0) / 3
    ceiling = 2 * max(roof.peak for roof in roofs)
    kinds = dict.fromkeys(point.kind for point in found.points)
    y = drawing.legend(3.0, {kind: KIND_COLOURS.get(kind, OTHER) for kind in kinds})
    left, right, top, bottom = 46.0, width - 10, y + LINE, y + LINE + 260

    def at(intensity: float, gflops: float) -> tuple[float, float]:
        right_ = math.log(intensity / low) / math.log(high / low)
        up = math.log(gflops / floor) / math.log(ceiling / floor)
        return left + (right - left) * right_, bottom - (bottom - top) * up

    for value in _decades(low, high):
        x, _ = at(value, floor)
        drawing.line([(x, top), (x, bottom)], FAINT, 0.7)
        drawing.text(x, bottom + 13, f"{value:g}", "middle")
    for value in _decades(floor, ceiling):
        _, height = at(low, value)
        drawing.line([(left, height), (right, height)], FAINT, 0.7)
        drawing.text(left - 6, height + 4, f"{value:g}", "end")
    how = "measured" if found.measured else "predicted"
    drawing.text(0.0, top - 6, f"GFLOP/s, {how}")
    drawing.text(right, bottom + 28, "executed FLOP a byte", "end")
    notes = []
    for dash, (name, rate) in zip(("", "6 3", "2 3"), found.slopes.items(), strict=False):
        begin, end = max(low, floor / rate), min(found.peak / rate, high)
        if begin < end:
            drawing.line([at(begin, begin * rate), at(end, end * rate)], ROOF, 1.1, dash)
        style = {"": "solid", "6 3": "dashed", "2 3": "dotted"}[dash]
        notes.append(f"{style}: {name}, {rate:,.0f} GB/s")
    first = min(found.peak / rate for rate in found.slopes.values())
    drawing.line([at(max(low, min(first, high)), found.peak), at(high, found.peak)], ROOF, 1.8)
    notes.append(f"thick: multiply-adds, {found.peak:,.0f} GFLOP/s")
    for point in found.points:
        tip = (
            f"{point.name}: {point.gflops:,.1f} GFLOP/s, {point.intensity:.2f} FLOP a byte, "
            f"{time_of(point.us)}"
        )
        x, height = at(point.intensity, point.gflops)
        colour = KIND_COLOURS.get(point.kind, OTHER)
        figures = {"intensity": point.intensity, "gflops": point.gflops}
        drawing.dot(x, height, colour, tip, layer=point.name, **figures)
    for number, (names, point) in enumerate(slowest(found), start=1):
        x, height = at(point.intensity, point.gflops)
        drawing.text(x + 6, height - 4, str(number), over=True)
        notes.append(f"{number}: {names}")
    y = bottom + 28
    for words in notes:
        for line in wrapped(words, width):
            y += LINE
            drawing.text(0.0, y, line)
    return drawing.svg("Roofline")


def wrapped(words: str, width: float) -> list[str]:
    """Lines of ``words`` that fit; a word that is too long goes on in the next."""
    room = int(width / LETTER)
    return textwrap.wrap(words, room, subsequent_indent="   ") or [""]


def _decades(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: where decades are few, parts of them too."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    parts = (1, 2, 5) if high / low < 1000 else (1,)
    values = (10.0**power * part for power in powers for part in parts)
    return [value for value in values if low <= value <= high]


def stored(chart: Charts, charts: Sequence[Charts], width: float) -> str:
    """One bar for each way to store the weights, its parts side by side."""
    drawing = Drawing(width)
    most = max(way.size for one in charts for way in one.stored)
    scale = (width - 10) / most
    y = 0.0
    for way in chart.stored:
        y += LINE
        drawing.text(0.0, y, f"{way.name}: {size_of(way.size)}")
        y += 5
        _stack(drawing, way, y, scale)
        y += 22
    parts = {part: size for way in chart.stored for part, size in way.parts.items()}
    colours = {
        f"{part} {size_of(size)}": PART_COLOURS.get(part, OTHER) for part, size in parts.items()
    }
    drawing.legend(y + 8, colours)
    return drawing.svg("Bytes of the weights in a file")


def _stack(drawing: Drawing, way: Stored, y: float, scale: float) -> None:
    x = 0.0
    for part, size in way.parts.items():
        tip = f"{part}: {size:,} bytes"
        colour = PART_COLOURS.get(part, OTHER)
        drawing.rect(x, y, scale * size, 18.0, colour, tip, stored=way.name, part=part, value=size)
        x += scale * size
