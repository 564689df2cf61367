"""How a panel convolution is cut into programs: data, made by pure functions."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass

from sparse_ddpm_kernels.triton.layout import IMAGES
from sparse_ddpm_kernels.triton.panel_pack import BLOCK_KS

LEAST_BLOCK = 64
"""Positions of a tile: wgmma's M."""

SUMS = 128
"""Float32 sums a thread may hold in registers."""

SHARED = 227 * 1024
"""Shared memory of a multiprocessor of Hopper, in bytes."""


@dataclass(frozen=True, slots=True)
class PanelTiles:
    """A program makes ``pixels`` pixels of ``nb`` images, both powers of two, of one panel.

    ``block_k``: columns of a K-step, that of the packed weights. ``stages``: buffers of the
    pipeline. ``warps``: of a program. ``splits``: programs that share a panel's K-steps.
    """

    pixels: int
    nb: int
    block_k: int
    stages: int = 3
    warps: int = 4
    splits: int = 1

    def __post_init__(self) -> None:
        powers = self.pixels, self.nb, self.block_k, self.warps
        if any(n < 1 or n & (n - 1) for n in powers) or self.nb < IMAGES:
            raise ValueError(
                f"tiles: expected powers of two and at least {IMAGES} images, got {self}."
            )
        if self.block < LEAST_BLOCK or self.stages < 1 or self.splits < 1:
            raise ValueError(f"tiles: expected at least {LEAST_BLOCK} positions, got {self}.")

    @property
    def block(self) -> int:
        """Positions of a tile."""
        return self.pixels * self.nb

    def pixel_tiles(self, pixels: int) -> int:
        return -(-pixels // self.pixels)

    def shared_bytes(self, group: int, itemsize: int = 2) -> int:
        """Of the pipeline's buffers."""
        return self.stages * (self.block + group) * self.block_k * itemsize

    def holds_weights(self, group: int) -> bool:
        """Whether a K-step's weights come through registers, a step ahead.

        Asynchronous copies move at least 4 bytes, and so few weights are less for each thread.
        """
        return self.block_k * group < 64 * self.warps

    def sum_warps(self, group: int) -> int:
        """Of the kernel that sums up the splits, ``group`` channels a program."""
        return max(1, min(8, self.block * group // 512))

    def partial_size(self, channels: int, pixels: int, images: int) -> int:
        """Elements of the float32 workspace of `panel_conv`; 0 if K is not split."""
        return self.splits * channels * pixels * images if self.splits > 1 else 0

    def moments_shape(
        self, channels: int, pixels: int, images: int, channels_per_block: int
    ) -> tuple[int, int, int, int]:
        """``[2, T, B, N]`` of `panel_conv`'s ``moments``."""
        return 2, self.pixel_tiles(pixels), channels // channels_per_block, images


def block_channels(group: int, group_channels: int) -> int:
    """Channels of one pair of moments: whole blocks make a panel and a group of the norm."""
    return math.gcd(group, group_channels)


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def norm_fits(pixels: int, group: int, group_channels: int) -> bool:
    """Whether a tile of 8 images can hold all pixels and whole groups of a group norm."""
    block = max(_power(pixels) * IMAGES, LEAST_BLOCK)
    whole = group_channels & (group_channels - 1) == 0 and group % group_channels == 0
    return whole and block * group <= SUMS // 2 * 32 * 16


def _positions(pixels: int, most: int, norm: bool) -> list[tuple[int, int]]:
    """Pixels and images of tiles: runs of 32 or 128 bytes, half of that where need be."""
    found = set()
    for nb in (8, 16, 32) if norm else {min(most, 16), min(most, 64)}:
        if nb <= most:
            whole = max(_power(pixels) * nb, LEAST_BLOCK)
            sizes = (whole,) if norm else (64, 128, 256)
            found |= {(min(size, whole) // nb, nb) for size in sizes}
    return sorted(found)


def _warps(block: int, group: int, norm: bool) -> int:
    """Warps that hold 64 sums a thread: a norm needs registers too."""
    warps = 4 if block < 512 else 8 if block < 2048 else 16
    while block * group > SUMS // 2 * 32 * warps and warps < (16 if norm else 8):
        warps *= 2
    return warps


def candidate_panel_tiles(
    cout: int,
    pixels: int,
    images: int,
    entries: int,
    group: int,
    *,
    moments: bool = False,
    norm: bool = False,
    multiprocessors: int = 132,
    limit: int | None = None,
) -> tuple[PanelTiles, ...]:
    """Tiles worth timing, the best by estimate first, then unlike ones before variants.

    ``cout``, ``pixels``, ``images``: of the output, images padded. ``entries``: columns of all
    panels together, ``group``: channels of a panel. ``moments``: the epilogue writes them.
    ``norm``: the epilogue normalises, so that a tile holds all pixels. ValueError if none fits.
    """
    mean = -(-entries // -(-cout // group))
    most = math.gcd(images, 1 << 20)
    found = []
    for block_k in BLOCK_KS:
        if block_k > 16 and block_k >= 2 * mean:
            continue
        steps = -(-mean // block_k)
        depths = (2,) if steps < 3 else (3, 4)
        splits = [n for n in (1, 2, 4, 8) if n == 1 or 2 * n <= steps]
        for pixels_, nb in _positions(pixels, most, norm):
            warps = _warps(pixels_ * nb, group, norm)
            for stages, split in itertools.product(depths, splits):
                tiles = PanelTiles(pixels_, nb, block_k, stages, warps, split)
                fits = tiles.block * group <= SUMS * 32 * warps
                if fits and tiles.shared_bytes(group) <= SHARED:
                    found.append(tiles)
    if not found:
        raise ValueError(f"norm in the epilogue: expected fewer pixels, got {pixels} x {group}.")

    def cycles(tiles: PanelTiles) -> float:
        return estimate(cout, pixels, images, entries, group, tiles, moments, multiprocessors)

    found.sort(key=lambda tiles: (cycles(tiles), tiles.stages, -tiles.block_k))
    # Whoever times only a few should see unlike ones: each further variant of a cut comes later.
    seen: Counter[tuple[int, int, int]] = Counter()
    late = {}
    for tiles in found:
        cut = tiles.block, tiles.block_k, tiles.splits
        late[tiles] = cycles(tiles) * (1 + VARIANT * seen[cut])
        seen[cut] += 1
    return tuple(sorted(found, key=late.__getitem__)[:limit])


def choose_panel_tiles(
    cout: int,
    pixels: int,
    images: int,
    entries: int,
    group: int,
    *,
    moments: bool = False,
    norm: bool = False,
    multiprocessors: int = 132,
) -> PanelTiles:
    """The first of `candidate_panel_tiles`."""
    return candidate_panel_tiles(
        cout,
        pixels,
        images,
        entries,
        group,
        moments=moments,
        norm=norm,
        multiprocessors=multiprocessors,
    )[0]


BYTES = 28.0
"""From L2 to a multiprocessor, per cycle."""

FLOPS = 2500.0
"""Of a multiprocessor's tensor cores, per cycle, in a loop that feeds them well."""

VARIANT = 0.2
"""How much slower a tile must seem to come after one that differs in depth or shape alone."""

START, STEP, LAUNCH = 1500.0, 250.0, 3500.0
"""Cycles of latency of a program, of a K-step in a full pipeline, and of one more kernel."""


def estimate(
    cout: int,
    pixels: int,
    images: int,
    entries: int,
    group: int,
    tiles: PanelTiles,
    moments: bool = False,
    multiprocessors: int = 132,
) -> float:
    """Cycles, of Hopper and not measured: only there to rank tiles before any is timed."""
    panels = -(-cout // group)
    mean = -(-entries // panels)
    steps = -(-mean // (tiles.block_k * tiles.splits))
    outputs = tiles.pixel_tiles(pixels) * (images // tiles.nb) * panels
    programs = outputs * tiles.splits
    # Runs of 8 images fill half a sector of 32 bytes, unless the next pixel follows.
    sector = 2.0 if tiles.nb == 8 < images else 1.0
    step = max(
        (tiles.block * sector + group) * tiles.block_k * 2 / BYTES,
        2.0 * tiles.block * tiles.block_k * group / FLOPS,
    )
    stored = tiles.block * group * (2 * sector if tiles.splits == 1 else 4.0)
    written = 2 * 4.0 * tiles.nb * max(group // 8, 1) if moments else 0.0
    busy = steps * step + (stored + written) / BYTES
    threads = tiles.warps * 32
    registers = threads * (48 + tiles.block * group // threads)
    fit = min(SHARED // max(tiles.shared_bytes(group), 1024), 65536 // registers, 16)
    latency = START + steps * max(STEP, 900.0 / tiles.stages)
    each = -(-programs // multiprocessors)
    cycles = max(each * busy, -(-each // max(fit, 1)) * latency) + min(busy, latency)
    if tiles.splits > 1:
        share = -(-outputs // multiprocessors)
        cycles += LAUNCH + share * tiles.block * group * (tiles.splits * 4 + 2) / BYTES
    return cycles
