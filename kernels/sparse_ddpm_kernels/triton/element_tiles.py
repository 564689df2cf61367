"""How an element convolution is cut into programs: data, made by pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from sparse_ddpm_kernels.triton.layout import IMAGES

WARP = 32
"""Threads; each loads a vector of `IMAGES` numbers at a time."""

MOST_WARPS = 16

LIKELY = 1.5
"""Times of the best estimate below which a shape is timed before others' second choices."""


@dataclass(frozen=True, slots=True)
class ElementTiles:
    """A program makes ``lines`` x ``columns`` pixels of ``nb`` images of ``slice_rows`` channels.

    Then those of its next slice: ``parts`` programs share the slices of a layer. ``split``: parts
    of a row that are summed up side by side. ``slice_rows`` and ``split`` are those of the packed
    weights. ``registers``: that a thread may have, if what it does fits them; with 80 the eight
    loads of a step are under way together. Powers of two, but for ``parts`` and ``registers``.
    """

    lines: int
    columns: int
    nb: int
    slice_rows: int = 8
    split: int = 1
    parts: int = 1
    warps: int = 8
    registers: int = 128

    def __post_init__(self) -> None:
        sides = self.lines, self.columns, self.nb
        powers = *sides, self.slice_rows, self.split, self.warps
        if any(n < 1 or n & (n - 1) for n in powers) or self.nb < IMAGES or self.parts < 1:
            raise ValueError(
                f"tiles: expected powers of two and at least {IMAGES} images, got {self}."
            )

    @property
    def block(self) -> int:
        """Elements of a channel."""
        return self.lines * self.columns * self.nb

    def pixel_tiles(self, height: int, width: int) -> tuple[int, int]:
        """Down and across."""
        return -(-height // self.lines), -(-width // self.columns)


def choose_element_tiles(
    cout: int,
    height: int,
    width: int,
    images: int,
    entries: int,
    *,
    cin: int | None = None,
    size: int = 3,
    multiprocessors: int = 132,
) -> ElementTiles:
    """The first of `candidate_element_tiles`."""
    return candidate_element_tiles(
        cout,
        height,
        width,
        images,
        entries,
        cin=cin,
        size=size,
        multiprocessors=multiprocessors,
        limit=1,
    )[0]


def candidate_element_tiles(
    cout: int,
    height: int,
    width: int,
    images: int,
    entries: int,
    *,
    cin: int | None = None,
    size: int = 3,
    multiprocessors: int = 132,
    limit: int | None = None,
) -> tuple[ElementTiles, ...]:
    """Tiles worth timing, the best by estimate first, then shapes that differ from it.

    For ``entries`` weights of ``cout`` filters of ``cin`` channels (default: as many) and side
    ``size``, an output of ``height`` x ``width``, and padded ``images``.
    """
    found: dict[ElementTiles, float] = {}
    for tiles in _every(cout, height, width, images):
        found[tiles] = estimate(
            cout, cin or cout, size, height, width, images, entries, tiles, multiprocessors
        )
    ranked = sorted(found, key=lambda tiles: (found[tiles], tiles.split, -tiles.registers))
    bound = LIKELY * found[ranked[0]]
    seen: Counter[tuple[int, ...]] = Counter()
    turns: dict[ElementTiles, tuple[bool, int]] = {}
    for tiles in ranked:
        shape = tiles.block, tiles.nb, tiles.slice_rows, tiles.split
        turns[tiles] = found[tiles] > bound, seen[shape]
        seen[shape] += 1
    ranked.sort(key=turns.__getitem__)
    return tuple(ranked[:limit])


def _every(cout: int, height: int, width: int, images: int) -> Iterator[ElementTiles]:
    most = math.gcd(images, 1 << 20)
    rows = [rows for rows in (4, 8, 16) if rows <= cout] or [_power(cout)]
    for block, nb, slice_rows in product((64, 128, 256, 512), (8, 16, 32, 64), rows):
        if nb > most:
            continue
        lines, columns = _pixels(height, width, min(block // nb, _power(height * width)))
        slices = -(-cout // slice_rows)
        for split, parts, registers in product((1, 2, 4, 8, 16), _parts(slices), (80, 128)):
            warps = max(slice_rows * lines * columns * nb * split // (IMAGES * WARP), 1)
            if warps <= MOST_WARPS:
                yield ElementTiles(lines, columns, nb, slice_rows, split, parts, warps, registers)


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def _pixels(height: int, width: int, count: int) -> tuple[int, int]:
    """Lines and columns, ``count`` pixels together: few tiles, few pixels around each."""

    def cost(columns: int) -> tuple[int, int, int]:
        lines = count // columns
        tiles = -(-height // lines) * -(-width // columns)
        return tiles, tiles * (lines + 2) * (columns + 2), -columns

    columns = min((1 << n for n in range(count.bit_length())), key=cost)
    return count // columns, columns


def _parts(slices: int) -> tuple[int, ...]:
    """1, 2, 4 and so on, and every slice by itself."""
    return *(1 << n for n in range((slices - 1).bit_length())), slices


L1_BYTES, L2_BYTES = 128.0, 28.0
"""That a multiprocessor reads in a cycle."""

L1_SIZE = 180 * 1024

ISSUE = 14.0 / 4.0
"""Cycles in which a multiprocessor's four schedulers issue one vector's term."""

START, SLICE, STEP = 1500.0, 600.0, 450.0
"""Cycles of latency of a program, of each of its slices, and of each step of eight terms."""


def estimate(
    cout: int,
    cin: int,
    size: int,
    height: int,
    width: int,
    images: int,
    entries: int,
    tiles: ElementTiles,
    multiprocessors: int = 132,
) -> float:
    """Cycles, of Hopper and not measured: only there to rank tiles before any is timed."""
    slices = -(-cout // tiles.slice_rows)
    each = -(-slices // tiles.parts)
    down, across = tiles.pixel_tiles(height, width)
    programs = down * across * (images // tiles.nb) * tiles.parts
    # Rows end with pairs, and with the longest of their slice.
    mean = entries / cout
    terms = mean + tiles.split + math.sqrt(mean) * tiles.slice_rows / max(cout, 16)
    vectors = tiles.slice_rows * tiles.block / IMAGES

    # Runs of 8 images fill half a sector of 32 bytes, unless the next pixel follows.
    run = 2.0 * tiles.block * (2.0 if tiles.nb == IMAGES < images else 1.0)
    pixels = tiles.lines * tiles.columns
    around = (tiles.lines + size - 1) * (tiles.columns + size - 1) / pixels
    density = entries / (cout * cin * size * size)

    def traffic(rows: int) -> float:
        """Bytes from L2 if what ``rows`` rows read stays in L1."""
        columns = cin * size * size * (1.0 - (1.0 - density) ** rows)
        channels = cin * (1.0 - (1.0 - density) ** (rows * size * size))
        return run * min(columns, channels * around)

    threads = max(tiles.warps * WARP, 64)
    fit = max(min(65536 // (threads * tiles.registers), 2048 // threads), 1)
    share = -(-programs // multiprocessors)
    whole = traffic(min(each * tiles.slice_rows, cout))
    if whole * min(fit, share) > L1_SIZE:
        whole = each * traffic(min(tiles.slice_rows, cout))
    busy = max(
        each * terms * vectors * (16.0 * 1.125 / L1_BYTES),
        each * terms * vectors / WARP * ISSUE,
        whole / L2_BYTES,
    )
    busy += each * tiles.slice_rows * run / L2_BYTES
    latency = START + each * (SLICE + terms / tiles.split / 8.0 * STEP)
    return max(share * busy, -(-share // fit) * latency) + min(busy, latency)
