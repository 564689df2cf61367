"""How an element convolution is cut into programs: data, made by pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparse_ddpm_kernels.triton.layout import IMAGES

WARP = 32
"""Threads; each loads a vector of `IMAGES` numbers at a time."""


@dataclass(frozen=True, slots=True)
class ElementTiles:
    """A program makes ``lines`` x ``columns`` pixels of ``nb`` images of ``slice_rows`` channels.

    Then those of its next slice: ``parts`` programs share the slices of a layer. ``split``: parts
    of a row that are summed up side by side. All but ``parts`` are powers of two. ``slice_rows``
    and ``split`` are those of the packed weights.
    """

    lines: int
    columns: int
    nb: int
    slice_rows: int = 8
    split: int = 1
    parts: int = 1
    warps: int = 8

    def __post_init__(self) -> None:
        powers = (
            self.lines, self.columns, self.nb, self.slice_rows, self.split, self.warps,
        )  # fmt: skip
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


def choose_element_tiles(
    cout: int,
    height: int,
    width: int,
    images: int,
    entries: int,
    *,
    multiprocessors: int = 132,
) -> ElementTiles:
    """Tiles for an output of ``cout`` channels, ``height`` x ``width``, padded ``images``.

    ``entries``: weights of the layer. A program takes every slice of its pixels where programs are
    many, so that its reads stay in L1; where they are few, rows are split among warps. Not
    measured: the first of `candidate_element_tiles`, which are there to be timed.
    """
    most = math.gcd(images, 1 << 20)
    nb = min(most, 32)
    return _tiles(cout, height, width, images, entries, nb, 256, multiprocessors)


def candidate_element_tiles(
    cout: int,
    height: int,
    width: int,
    images: int,
    entries: int,
    *,
    multiprocessors: int = 132,
    limit: int | None = None,
) -> tuple[ElementTiles, ...]:
    """Tiles worth timing, `choose_element_tiles`' first."""
    first = choose_element_tiles(
        cout, height, width, images, entries, multiprocessors=multiprocessors
    )
    found = {first: None}
    slices = -(-cout // first.slice_rows)
    most = math.gcd(images, 1 << 20)
    for block in (256, 512, 128):
        for nb in (32, 16, 64, 8):
            if nb > most or nb > block:
                continue
            tiles = _tiles(cout, height, width, images, entries, nb, block, multiprocessors)
            for parts in sorted({tiles.parts, max(tiles.parts // 2, 1), slices}):
                for split in sorted({tiles.split, 1, 2}):
                    warps = min(_warps(tiles.slice_rows, tiles.block, split), 16)
                    for some in (warps, max(warps // 2, 1)):
                        made = ElementTiles(
                            tiles.lines, tiles.columns, nb, tiles.slice_rows, split, parts, some
                        )
                        found[made] = None
    return tuple(found)[:limit]


def _warps(slice_rows: int, block: int, split: int) -> int:
    """So that each thread has one vector."""
    return max(1, slice_rows * block * split // (WARP * IMAGES))


def _tiles(
    cout: int,
    height: int,
    width: int,
    images: int,
    entries: int,
    nb: int,
    block: int,
    multiprocessors: int,
) -> ElementTiles:
    slice_rows = min(_power(cout), 8)
    slices = -(-cout // slice_rows)
    mean = -(-entries // cout)
    lines, columns = _pixels(height, width, max(min(block // nb, _power(height * width)), 1))
    block = lines * columns * nb
    tiles = -(-height // lines) * -(-width // columns) * (images // nb)
    parts = min(slices, max(1, -(-4 * multiprocessors // tiles)))
    split = 1
    while (
        split < 8
        and tiles * parts * _warps(slice_rows, block, split) < 16 * multiprocessors
        and _warps(slice_rows, block, 2 * split) <= 16
        and mean >= 16 * split
    ):
        split *= 2
    warps = min(_warps(slice_rows, block, split), 16)
    return ElementTiles(lines, columns, nb, slice_rows, split, parts, warps)
