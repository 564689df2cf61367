"""What a convolution costs on the CPU engine, by the ways it can be run.

In multiply-adds of one vector of 16 floats, for each vector of pixels (16 neighbouring ones of one
image, or one of 16 images). On one core with AVX-512; one image a pass is fitted to the layers of
whole steps by `benchmarks/cost_fit.py`, as is float32 at 16 images; the other two were
measured alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

VECTOR = 16
"""Pixels of a vector."""

GROUPS = (1, 2, 4, 8, 16)
"""Output channels of a panel."""

MAX_COPIED_SIZE = 5
"""Larger kernels would need more shifted copies than they are worth."""

NEAR_BYTES = 5 << 20
"""Of all weights of a step; with as many, half of them come from beyond the nearest caches."""


class Way(NamedTuple):
    """How to run a convolution: in panels of ``group`` channels, and whether it reads shifted
    copies of its input.
    """

    group: int
    copied: bool


class Read(NamedTuple):
    """The input: its ``channels``, and the shifted ``copies`` of them that would be made."""

    channels: int = 0
    copies: int = 0


class Cost(NamedTuple):
    """Of one `Way`: of a panel entry; of a channel of a panel that is started and stored; of a
    shifted copy that is made; and, to whoever makes an input channel, of the halo around its rows.
    """

    entry: float
    channel: float
    copy: float = 0.0
    halo: float = 0.0

    def time(self, entries: float, channels: int, read: Read) -> float:
        """Of a convolution with so many panel entries and channels of panels."""
        return (
            entries * self.entry
            + channels * self.channel
            + read.copies * self.copy
            + read.channels * self.halo
        )


Costs = Mapping[Way, Cost]


class Fit(NamedTuple):
    """One image a pass. ``entry``, ``channel`` and ``copy`` are of a `Cost`; ``fetch``: what each
    entry costs more that comes from beyond the caches; ``panel``: of a panel, whatever its pixels.
    """

    entry: float
    fetch: float
    channel: float
    panel: float
    copy: float = 0.0


def _ways(*costs: tuple[float, float]) -> Costs:
    made = {Way(g, False): Cost(*cost) for g, cost in zip(GROUPS, costs, strict=True)}
    return MappingProxyType(made)


BLOCK_COSTS = _ways((2.1, 4.0), (2.3, 4.0), (4.3, 4.0), (8.5, 4.0), (18.4, 4.0))
"""Of pixels in the nearest cache, as inside a fused block."""

IMAGES_COSTS: Mapping[str, Costs] = MappingProxyType(
    {
        "float32": _ways((1.95, 1.0), (2.4, 6.0), (5.1, 9.0), (9.8, 6.0), (18.1, 7.0)),
        "float16": _ways((1.95, 4.0), (2.6, 4.0), (4.9, 4.0), (9.6, 4.0), (16.6, 4.0)),
        "bfloat16": _ways((1.95, 4.0), (2.6, 4.0), (4.9, 4.0), (6.0, 4.0), (12.5, 4.0)),
    }
)
"""By precision, 16 images a pass."""

IMAGE_FITS: Mapping[str, Mapping[str, tuple[Fit, ...]]] = MappingProxyType(
    {
        "float32": MappingProxyType(
            {
                "pointwise": (
                    Fit(2.47, 1.4, 6.8, 26.0),
                    Fit(2.84, 2.69, 6.52, 22.7),
                    Fit(4.49, 4.78, 6.37, 45.3),
                    Fit(9.1, 7.39, 6.86, 121.0),
                    Fit(18.3, 11.1, 10.6, 239.0),
                ),
                "in place": (
                    Fit(2.25, 0.502, 9.86, 115.0),
                    Fit(2.11, 2.13, 9.12, 229.0),
                    Fit(4.01, 2.2, 5.72, 422.0),
                    Fit(8.21, 3.3, 5.75, 844.0),
                    Fit(16.5, 6.8, 9.03, 1730.0),
                ),
                "copies": (
                    Fit(1.47, 2.2, 0.916, 28.3, 9.52),
                    Fit(1.91, 2.86, 4.67, 11.3, 9.74),
                    Fit(3.75, 3.84, 4.55, 0.0, 11.1),
                    Fit(8.0, 5.59, 5.07, 0.309, 12.0),
                    Fit(17.2, 5.58, 9.38, 21.0, 12.4),
                ),
            }
        ),
        "float16": MappingProxyType(
            {
                "pointwise": (
                    Fit(2.14, 2.14, 4.98, 30.3),
                    Fit(2.85, 3.63, 5.12, 27.4),
                    Fit(4.84, 5.67, 5.32, 32.7),
                    Fit(10.2, 9.34, 5.84, 97.1),
                    Fit(17.7, 17.5, 9.41, 245.0),
                ),
                "in place": (
                    Fit(1.84, 1.31, 7.36, 109.0),
                    Fit(2.49, 2.17, 5.4, 228.0),
                    Fit(4.25, 3.07, 4.25, 414.0),
                    Fit(9.2, 1.61, 4.71, 758.0),
                    Fit(16.4, 2.39, 7.86, 1700.0),
                ),
                "copies": (
                    Fit(1.87, 1.44, 3.19, 22.5, 5.32),
                    Fit(2.41, 2.04, 4.45, 14.9, 6.33),
                    Fit(4.02, 3.47, 3.15, 18.2, 8.19),
                    Fit(8.7, 4.35, 3.14, 71.4, 8.68),
                    Fit(17.0, 2.81, 6.68, 149.0, 11.6),
                ),
            }
        ),
        "bfloat16": MappingProxyType(
            {
                "pointwise": (
                    Fit(2.14, 2.18, 5.27, 31.0),
                    Fit(2.86, 3.52, 5.3, 26.8),
                    Fit(4.77, 5.64, 5.66, 37.7),
                    Fit(7.12, 6.72, 6.38, 102.0),
                    Fit(15.5, 10.7, 10.1, 149.0),
                ),
                "in place": (
                    Fit(1.85, 1.26, 7.34, 116.0),
                    Fit(2.51, 2.13, 5.72, 231.0),
                    Fit(4.28, 2.85, 4.39, 435.0),
                    Fit(6.47, 0.488, 5.35, 751.0),
                    Fit(14.2, 1.78, 8.68, 1530.0),
                ),
                "copies": (
                    Fit(1.87, 1.42, 3.06, 27.5, 5.62),
                    Fit(2.4, 2.14, 4.11, 26.7, 6.77),
                    Fit(4.0, 3.57, 2.75, 42.1, 8.77),
                    Fit(5.98, 3.94, 2.94, 119.0, 9.54),
                    Fit(14.8, 1.5, 7.53, 116.0, 10.7),
                ),
            }
        ),
    }
)
"""By precision and where the pixels are read, one image a pass; in the order of `GROUPS`.

Narrow panels wait for the cache, as they use each loaded pixel once or twice: in place, loads that
cross a cache line cost them twice, which copies save.
"""


HALO, NARROW_HALO, HALO_CHANNEL = 12.0, 234.0, 357.0
"""One image a pass: what a norm takes longer for each vector of pixels that it writes row by row,
of images with rows of whole vectors and of others, and for each channel.
"""


def conv_costs(dtype: str, lanes: int, size: int, image: tuple[int, int], weight: int) -> Costs:
    """Of a kernel of ``size`` x ``size`` taps that makes images of ``image`` (height, width)
    pixels, ``lanes`` a pass. ``weight``: bytes of all weights that a step reads.
    """
    if lanes > 1:
        return IMAGES_COSTS[dtype]
    height, width = image
    vectors = max(1.0, height * width / VECTOR)
    far = weight / (weight + NEAR_BYTES)
    made = {}
    for where, fits in IMAGE_FITS[dtype].items():
        if (where == "pointwise") != (size == 1) or (where == "copies" and size > MAX_COPIED_SIZE):
            continue
        multiplied, halo = vectors, 0.0
        if where == "in place":
            halo = halo_cost(image)
            multiplied = vectors_in_place(size, image)
        for group, fit in zip(GROUPS, fits, strict=True):
            made[Way(group, where == "copies")] = Cost(
                (fit.entry * multiplied + fit.fetch * far) / vectors,
                (fit.channel * multiplied + fit.panel / group) / vectors,
                fit.copy,
                halo,
            )
    return MappingProxyType(made)


def halo_cost(image: tuple[int, int]) -> float:
    """To a norm that writes an image row by row, a channel, for each vector of its pixels."""
    height, width = image
    vectors = max(1.0, height * width / VECTOR)
    return (NARROW_HALO if width % VECTOR else HALO) + HALO_CHANNEL / vectors


def vectors_in_place(size: int, image: tuple[int, int]) -> float:
    """Of one image, that a kernel multiplies: with rows of less, the halo between them, too."""
    height, width = image
    if width % VECTOR == 0:
        return height * width / VECTOR
    return float(-(-((height - 1) * (width + size // 2) + width) // VECTOR))


def copies_of(size: int, image: tuple[int, int]) -> int:
    """Shifted copies of a channel of an image of (height, width) pixels, where they are read: one
    for each tap of an image of a vector at most, else one for each column of the kernel.
    """
    height, width = image
    return size * size if height * width <= VECTOR else size
