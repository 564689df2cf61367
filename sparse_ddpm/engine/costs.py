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
    """One image a pass. ``entry``, ``channel`` and ``copy`` are of a `Cost`; ``panel``: of a panel,
    whatever its pixels; ``fetch``: what each entry costs more that comes from beyond the caches, if
    one vector is multiplied by it: half of that with two, a quarter with four, as the next ones are
    on their way meanwhile.
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
                    Fit(2.55, 1.4, 6.64, 26.0),
                    Fit(3.0, 2.46, 6.18, 24.1),
                    Fit(4.79, 4.31, 5.97, 48.6),
                    Fit(9.55, 6.47, 6.45, 129.0),
                    Fit(19.0, 9.48, 10.1, 255.0),
                ),
                "in place": (
                    Fit(2.23, 0.969, 10.2, 112.0),
                    Fit(2.2, 2.24, 8.62, 227.0),
                    Fit(4.1, 2.15, 5.42, 422.0),
                    Fit(8.36, 2.93, 5.47, 848.0),
                    Fit(16.8, 6.07, 8.7, 1740.0),
                ),
                "copies": (
                    Fit(1.59, 2.19, 0.496, 27.8, 9.03),
                    Fit(2.09, 2.86, 4.49, 10.7, 8.97),
                    Fit(4.01, 3.8, 4.52, 0.0, 10.3),
                    Fit(8.43, 5.28, 5.13, 6.26, 10.9),
                    Fit(17.7, 5.0, 9.46, 38.0, 11.6),
                ),
            }
        ),
        "float16": MappingProxyType(
            {
                "pointwise": (
                    Fit(2.24, 1.9, 4.67, 31.5),
                    Fit(3.04, 3.26, 4.78, 29.3),
                    Fit(5.15, 5.16, 4.99, 35.2),
                    Fit(10.7, 8.37, 5.52, 102.0),
                    Fit(18.7, 15.5, 8.98, 260.0),
                ),
                "in place": (
                    Fit(1.89, 1.28, 6.99, 109.0),
                    Fit(2.57, 2.06, 4.96, 228.0),
                    Fit(4.36, 3.17, 4.0, 412.0),
                    Fit(9.25, 1.68, 4.66, 756.0),
                    Fit(16.5, 2.24, 7.78, 1710.0),
                ),
                "copies": (
                    Fit(1.95, 1.34, 2.86, 22.8, 5.08),
                    Fit(2.54, 1.96, 4.28, 14.8, 5.9),
                    Fit(4.25, 3.38, 3.08, 18.1, 7.55),
                    Fit(9.02, 3.92, 3.13, 76.6, 7.93),
                    Fit(17.2, 2.42, 6.71, 157.0, 11.2),
                ),
            }
        ),
        "bfloat16": MappingProxyType(
            {
                "pointwise": (
                    Fit(2.25, 1.98, 5.01, 31.8),
                    Fit(3.04, 3.21, 5.01, 28.1),
                    Fit(5.09, 5.19, 5.37, 39.4),
                    Fit(7.51, 6.02, 6.12, 106.0),
                    Fit(16.1, 9.17, 9.76, 158.0),
                ),
                "in place": (
                    Fit(1.9, 1.25, 7.03, 116.0),
                    Fit(2.6, 2.02, 5.33, 231.0),
                    Fit(4.38, 2.97, 4.18, 432.0),
                    Fit(6.48, 0.555, 5.34, 749.0),
                    Fit(14.3, 1.57, 8.61, 1530.0),
                ),
                "copies": (
                    Fit(1.95, 1.33, 2.77, 27.3, 5.42),
                    Fit(2.54, 2.06, 3.93, 26.2, 6.37),
                    Fit(4.24, 3.49, 2.68, 41.4, 8.16),
                    Fit(6.27, 3.65, 2.95, 122.0, 8.85),
                    Fit(15.0, 1.22, 7.55, 122.0, 10.4),
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
                (fit.entry * multiplied + fit.fetch * far / vectors) / vectors,
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
