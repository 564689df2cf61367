"""How a group norm is cut into programs: data, made by a pure function."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparse_ddpm_kernels.triton.layout import IMAGES

ELEMENTS = 4096
"""Of a program of the elementwise pass: four 16-byte vectors for each thread of 4 warps."""

WHOLE = 32768
"""Most elements of a group that one program holds in registers: 64 a thread of 16 warps."""

MERGE_BYTES = 4 << 20
"""Moments read again by the elementwise pass that cost what a launch does, about 1 µs of L2."""


@dataclass(frozen=True, slots=True)
class NormTiles:
    """A program normalises ``rows`` rows of ``images`` images, both powers of two.

    ``whole``: all rows of a group, moments included. ``part``: rows of one pair of the moments
    made by a first pass, 0 if there is none. ``merge``: a kernel merges moments before.
    """

    rows: int
    images: int
    warps: int = 4
    whole: bool = False
    part: int = 0
    merge: bool = False

    def __post_init__(self) -> None:
        powers = self.rows, self.images, self.warps
        if any(n < 1 or n & (n - 1) for n in powers) or self.images < IMAGES:
            raise ValueError(
                f"norm tiles: expected powers of two and at least {IMAGES} images, got {self}."
            )

    def workspace(self, *, group_rows: int, groups: int, images: int) -> int:
        """Elements of the float32 workspace of `group_norm`."""
        parts = -(-group_rows // self.part) if self.part else 0
        return 2 * (parts + self.merge) * groups * images


def choose_norm_tiles(
    channels: int,
    pixels: int,
    images: int,
    groups: int,
    *,
    partials: int = 0,
    multiprocessors: int = 132,
) -> NormTiles:
    """How to normalise ``groups`` groups of ``channels``, ``images`` padded.

    ``partials``: pairs of moments of a group and an image that come with x, 0 if none do.
    """
    rows = channels // groups * pixels
    most = math.gcd(images, 1 << 20)
    if not partials:
        nb = min(most, max(IMAGES, _floor_power(WHOLE // 2 // power(rows))), 32)
        size = power(rows) * nb
        if size <= WHOLE:
            return NormTiles(power(rows), nb, max(1, min(16, size // 1024)), whole=True)
    nb = min(most, 256)
    enough = 2 * multiprocessors * ELEMENTS
    size = min(ELEMENTS, max(1024, _floor_power(rows * groups * images * ELEMENTS // enough)))
    block = min(max(1, size // nb), power(rows))
    warps = max(1, min(4, block * nb // 256))
    part = 0
    if not partials:
        # Eight tiles deep at most, and enough programs.
        deep = 8
        while deep > 1 and groups * images * rows < deep * block * nb * 2 * multiprocessors:
            deep //= 2
        part = deep * block
        partials = -(-rows // part)
    programs = groups * (images // nb) * -(-rows // block)
    merge = partials > 1 and programs * nb * partials * 8 > MERGE_BYTES
    return NormTiles(block, nb, warps, part=part, merge=merge)


def power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def _floor_power(n: int) -> int:
    """The largest power of two that is not above n, 1 at least."""
    return 1 << (max(n, 1).bit_length() - 1)
