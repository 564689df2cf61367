"""How a value lies in GPU memory: ``[C, H, W, N]``, images innermost, a halo of zeros around.

A convolution's tap is then a constant offset. N is a multiple of 8, so that every offset is, and a
vector of eight 16-bit numbers is aligned wherever it starts.

The ``halo`` columns at the right of one row are those at the left of the next, and as many lie
before the first row::

    storage of a channel = halo rows above, H rows, halo rows below, each (W + halo) * N elements
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IMAGES = 8
"""Images come in multiples of this."""

MOST_DIM = 128
"""Largest dim_head of attention: the sums of a program's queries stay in registers."""


def padded_images(batch: int) -> int:
    """``batch`` rounded up to a multiple of `IMAGES`."""
    return -(-batch // IMAGES) * IMAGES


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes in elements. ``images``: padded, a multiple of 8. ``halo``: of the largest reader."""

    channels: int
    height: int
    width: int
    images: int
    halo: int = 0

    def __post_init__(self) -> None:
        sides = self.channels, self.height, self.width, self.images
        if min(sides) < 1 or self.images % IMAGES or self.halo < 0:
            raise ValueError(
                f"layout: expected positive sides, images in multiples of {IMAGES} and a halo of 0 "
                f"or more, got {self}."
            )

    @property
    def row(self) -> int:
        """From a pixel to the one below it."""
        return (self.width + self.halo) * self.images

    @property
    def plane(self) -> int:
        """From a channel to the next."""
        return (self.height + 2 * self.halo) * self.row

    @property
    def first(self) -> int:
        """Where pixel (0, 0) of channel 0 lies in the storage."""
        return self.halo * (self.images + self.row)

    @property
    def size(self) -> int:
        """Elements of the storage: the channels, and the columns left of the first row."""
        return self.channels * self.plane + self.halo * self.images

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """Of the view ``[C, H, W, N]``."""
        return self.plane, self.row, self.images, 1

    def offset(self, channel: int, dy: int = 0, dx: int = 0) -> int:
        """From a pixel of channel 0 to one of ``channel``, ``dy`` rows below, ``dx`` right."""
        return channel * self.plane + dy * self.row + dx * self.images

    def allocate(self, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
        """Storage ``[size]``, zeroed: kernels write pixels only, so that the halo stays zero."""
        import torch

        return torch.zeros(self.size, dtype=dtype, device=device)

    def view(self, storage: torch.Tensor) -> torch.Tensor:
        """The pixels of ``storage`` ``[size]`` as ``[C, H, W, N]``."""
        shape = self.channels, self.height, self.width, self.images
        return storage.as_strided(shape, self.strides, storage.storage_offset() + self.first)
