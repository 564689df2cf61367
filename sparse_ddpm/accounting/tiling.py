"""How the CPU engine cuts a convolution's image: what it multiplies and copies beyond the pixels.

A mirror of ``csrc/tiles.cpp`` for vectors of 16 floats, AVX-512's, which all instruction sets cut
images by; those with fewer registers take smaller tiles of the same image.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparse_ddpm.engine.arena import LINE
from sparse_ddpm.engine.plan import Plan, Step, copies_read
from sparse_ddpm.program import Conv

TILE_LIMITS = {1: 16, 2: 12, 4: 6, 8: 3, 16: 1}
"""By G: vectors of pixels in a register tile."""
SPANS = 16
"""Units that an image is cut into, where it has as many tiles."""
TALL_ENOUGH = 8
"""Vectors of a tile that reads copies from which two threads get one each."""
LEAST_VECTORS = 8
"""Of a tile, for a convolution to take its output's moments."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """One pass of a convolution. ``tiles``: register tiles of a panel; ``vectors``: of 16 floats
    that every panel entry multiplies, the halo between rows and the rest of the last vector
    included; ``flat``: they run over rows and halo and are gathered in scratch.

    ``copies``: images of shifted input that the weight reads, 0 where it reads its input itself;
    ``copied``: floats of one of them that are made, all spans together; ``held``: floats of one
    span, to the next copy; ``doubled``: floats of rows upsampled before; ``kept``: floats after
    which the pixels that a shift moves out of the image lie as before, 0 where rows are copied one
    by one. ``spans``: units the image is cut into. ``moments``: whether tiles are large enough to
    sum up what a norm needs.
    """

    tiles: int
    vectors: int
    flat: bool
    copies: int
    copied: int
    held: int
    doubled: int
    kept: int
    spans: int
    moments: bool


def tile(plan: Plan, step: Step) -> Tiling:
    """The tiling of a convolution's ``step``."""
    operation = step.operation
    assert isinstance(operation, Conv)
    places, lanes = plan.arena.placements, plan.lanes
    _, height, width = plan.program.shapes[operation.out]
    source = places[operation.x if step.upsample is None else step.upsample.x]
    row = width * lanes
    x_row = row if step.copies else source.row_stride
    written = [operation.out, *([operation.residual] if operation.residual else [])]
    whole = x_row == row and all(places[name].row_stride == row for name in written)
    high, long = (1, row * height) if whole else (height, row)
    flat = long % LINE != 0
    if flat:
        high, long = 1, -(-((height - 1) * x_row + row) // LINE) * LINE
    across = long // LINE
    limit = TILE_LIMITS[step.group]
    if step.copies and not flat and high == 1:
        limit = min(limit, max(TALL_ENOUGH, -(-across // 2)))
    widest, rows = _cut(high, across, limit, row)
    each = len(rows) if step.copies > operation.size else -(-len(rows) // SPANS)
    spans = -(-len(rows) // each)
    copies = copied = held = doubled = kept = 0
    if step.copies:
        above = operation.size // 2 if step.copies == operation.size else 0
        read = [
            max(last for _, last in part) - min(first for first, _ in part) + 2 * above
            for part in (rows[i : i + each] for i in range(0, len(rows), each))
        ]
        read = [height + 2 * above] if flat else read
        copies = copies_read(operation, step.copies)
        copied = sum(read) * row
        held = (-(-max(read) * row // LINE) | 1) * LINE
        doubled = max(read) * row if step.upsample is not None else 0
        gaps = source.row_stride != row and step.upsample is None
        middle = operation.size // 2
        reach = (middle * row if step.copies > operation.size else 0) + middle * lanes
        aligned = (row % LINE == 0 or LINE % row == 0) and height * row % LINE == 0
        if aligned and not gaps and reach <= LINE - 1:
            kept = height * row if step.copies > operation.size else max(row, LINE)
    return Tiling(
        tiles=len(rows),
        vectors=high * across,
        flat=flat,
        copies=copies,
        copied=copied,
        held=held,
        doubled=doubled,
        kept=kept,
        spans=spans,
        moments=(
            not flat
            and operation.residual is None
            and widest >= LEAST_VECTORS
            and high * across >= LEAST_VECTORS * spans
        ),
    )


def _cut(high: int, across: int, limit: int, row: int) -> tuple[int, list[tuple[int, int]]]:
    """Vectors of the largest tile, and which rows of the image each tile makes."""
    strips = -(-across // limit)
    start = [across * strip // strips for strip in range(strips + 1)]
    most = 1
    while 2 * most * start[1] <= limit:
        most *= 2
    made = []
    line = across * LINE if high > 1 else row
    at = 0
    while at < high:
        rows = most
        while rows > high - at:
            rows //= 2
        for strip in range(strips):
            wide, column = start[strip + 1] - start[strip], start[strip] * LINE
            done = 0
            while done < rows:
                now = rows - done
                while now * wide > limit:
                    now //= 2
                begin = (at + done) * line + column
                end = (at + done + now - 1) * line + column + wide * LINE
                made.append((begin // row, -(-end // row)))
                done += now
        at += rows
    return most * start[1], made
