"""Where tensors lie: channel-major, images innermost, a halo of zeros around each image."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sparse_ddpm_kernels.training import Tensor

LINE = 16
"""Floats of a cache line."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The image of one channel; strides in floats."""

    height: int
    width: int
    halo: int
    lanes: int

    @property
    def row(self) -> int:
        return (self.width + self.halo) * self.lanes

    @property
    def lead(self) -> int:
        """From the first float of a channel to its first pixel."""
        return self.halo * self.row + self.halo * self.lanes

    @property
    def channel(self) -> int:
        """An odd number of lines, so that one pixel's channels do not share the sets of a cache."""
        lines = -(-((self.height + 2 * self.halo) * self.row + self.halo * self.lanes) // LINE)
        return (lines | 1) * LINE

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(eq=False, slots=True)
class Buffer:
    """Channels that lie together, in the order in which they are asked for."""

    geometry: Geometry
    channels: int
    offset: int
    """Of the first float, in the arena."""


@dataclass(frozen=True, slots=True)
class Value:
    """Some channels of a buffer."""

    buffer: Buffer
    first: int
    channels: int

    def tensor(self) -> Tensor:
        return tensor(self.buffer.geometry, self.buffer.offset, self.first, self.channels, space=0)


def tensor(geometry: Geometry, offset: int, first: int, channels: int, *, space: int) -> Tensor:
    """``channels`` from ``first`` on of a buffer at ``offset``."""
    start = offset + first * geometry.channel + geometry.lead
    return Tensor(
        start, geometry.channel, geometry.row, channels, geometry.height, geometry.width, space
    )


@dataclass(slots=True)
class Arena:
    """Memory that is handed out and never taken back."""

    floats: int = 0

    def take(self, floats: int) -> int:
        start = self.floats
        self.floats += -(-floats // LINE) * LINE
        return start

    def buffer(self, geometry: Geometry, channels: int) -> Buffer:
        return Buffer(geometry, channels, self.take(geometry.channel * channels))


@dataclass(slots=True)
class Recycler:
    """Channels of one geometry that are taken and given back; their halos stay zeros."""

    channels: int = 0
    _free: list[tuple[int, int]] = field(default_factory=list)

    def take(self, count: int) -> int:
        """The first of ``count`` neighbouring channels."""
        for i, (first, free) in enumerate(self._free):
            if free >= count:
                if free == count:
                    del self._free[i]
                else:
                    self._free[i] = (first + count, free - count)
                return first
        first, self.channels = self.channels, self.channels + count
        return first

    def give(self, first: int, count: int) -> None:
        merged: list[tuple[int, int]] = []
        for start, length in sorted([*self._free, (first, count)]):
            if merged and merged[-1][0] + merged[-1][1] == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged


def zeros(floats: int) -> NDArray[np.float32]:
    """Zeros in pages of their own, large ones where the system has them."""
    area = mmap.mmap(-1, max(floats, 1) * 4)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        area.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(area, np.float32)
