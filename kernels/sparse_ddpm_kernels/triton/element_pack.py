"""Single weights as the element convolution reads them: slices of rows of like length.

Rows are sorted by length and cut into slices, as in SELL-C-sigma (Kreutzer et al. 2014, arXiv
1307.6209), so that the rows that a program walks together end together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm_kernels.triton.layout import IMAGES, Layout
from sparse_ddpm_kernels.triton.panel_pack import column_offsets

if TYPE_CHECKING:
    import torch

PAIR = 2
"""Entries of a row that are read together: two of 32 bits make a word."""

AHEAD = 4
"""Groups after the last that the kernel may read, but never uses."""


@dataclass(frozen=True, slots=True, eq=False)
class ElementWeights:
    """A layer's slices on a device. Slice s takes groups ``start[s] <= g < start[s + 1]``.

    A group holds ``split`` pairs of entries of each of the slice's ``slice_rows`` rows.
    ``start``: int32 ``[slices + 1]``; ``rows``: int32 ``[slices * slice_rows]``, the output channel
    of each slot, -1 for none; ``words``: int64, contiguous, after the last group `AHEAD` more:

    * short: ``[groups, split, slice_rows]``, a pair a word: in each half an entry, the low 16 bits
      its offset in units of N elements, the high 16 its weight;
    * long: ``[groups, split, 2, slice_rows]``, an entry a word: the low 32 bits its offset in
      units of 8 elements, the high 32 its weight in float32.

    Offsets count from the first tap of an output pixel's position in channel 0 of x; they hold for
    x in layout ``x`` only. ``dtype``: that of x, to which the weights were rounded. ``reach``: rows
    and columns from the first tap to the middle one. ``channels``: of the output. ``entries``:
    without padding. ``stride``: an output pixel is ``stride`` pixels of x wide and high. ``scale``:
    a pixel of x is ``scale`` output pixels wide and high, its phases; a slot's row is then
    ``channel * scale**2 + phase``, phases row by row.
    """

    start: torch.Tensor
    rows: torch.Tensor
    words: torch.Tensor
    short: bool
    dtype: torch.dtype
    x: Layout
    channels: int
    slice_rows: int
    split: int
    reach: int
    stride: int
    scale: int
    entries: int

    @property
    def unit(self) -> int:
        """What the words' offsets count, in eighths of elements."""
        return self.x.images // IMAGES if self.short else 1


@dataclass(frozen=True, slots=True, eq=False)
class PackedSlices:
    """`ElementWeights` in numpy, ``offset`` and ``value`` still apart. The longest rows come first.

    ``offset``: in units of N elements, uint16 where all fit, else int32; ``value``: float32; both
    ``[groups, split, 2, slice_rows]``. A row ends with weights of 0 at its last offset.
    """

    start: NDArray[np.int32]
    rows: NDArray[np.int32]
    offset: NDArray[np.integer[Any]]
    value: NDArray[np.float32]
    x: Layout
    channels: int
    reach: int
    stride: int
    scale: int
    entries: int

    @property
    def slice_rows(self) -> int:
        return int(self.value.shape[3])

    @property
    def split(self) -> int:
        return int(self.value.shape[1])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ElementWeights:
        """On ``device``, the weights rounded to ``dtype``: float16, bfloat16 or float32."""
        import torch

        short = self.offset.dtype == np.uint16 and dtype.itemsize == 2
        rounded = torch.from_numpy(self.value).to(dtype)
        if short:
            bits = rounded.view(torch.int16).numpy().view(np.uint16)
            entry = bits.astype(np.uint64) << np.uint64(16) | self.offset.astype(np.uint64)
            words = entry[:, :, 1] << np.uint64(32) | entry[:, :, 0]
        else:
            bits = rounded.float().view(torch.int32).numpy().view(np.uint32)
            eighths = self.offset.astype(np.uint64) * np.uint64(self.x.images // IMAGES)
            words = bits.astype(np.uint64) << np.uint64(32) | eighths
        words = np.concatenate([words, np.zeros((AHEAD, *words.shape[1:]), np.uint64)])

        def copy(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(device, copy=True)

        return ElementWeights(
            start=copy(self.start),
            rows=copy(self.rows),
            words=copy(words.reshape(-1).view(np.int64)),
            short=bool(short),
            dtype=dtype,
            x=self.x,
            channels=self.channels,
            slice_rows=self.slice_rows,
            split=self.split,
            reach=self.reach,
            stride=self.stride,
            scale=self.scale,
            entries=self.entries,
        )


def pack_slices(
    ptr: NDArray[np.int64],
    columns: NDArray[np.int32],
    values: NDArray[np.float32],
    rows: NDArray[np.int32],
    *,
    x: Layout,
    size: int,
    slice_rows: int = 8,
    split: int = 1,
    stride: int = 1,
    scale: int = 1,
) -> PackedSlices:
    """Sort rows by length, cut them into slices, pad each to its longest row.

    Arrays as `sparse_ddpm.engine.panels.Panels` of one row: ``ptr`` int64 ``[rows + 1]``,
    ``columns`` int32 ``[entries]``, ``values`` float32 ``[entries, 1]``, ``rows`` int32
    ``[rows, 1]``. ``x``: how the input lies; for a concatenation the layout that holds both.
    ``size``: odd side of the filter. ``slice_rows``, ``split``: powers of two, those of the tiles;
    pair i of a row goes to the ``i % split``-th of those who sum it up. ``stride`` 2: the channels
    are those of space-to-depth, which is read without being made. ``scale`` 2: the filter is for x
    upsampled, which is read without being made; taps that meet at a pixel of x become one weight.
    ValueError for anything else.
    """
    if values.shape != (len(columns), 1) or rows.shape != (len(ptr) - 1, 1) or not len(rows):
        shapes = f"values {values.shape} and rows {rows.shape}"
        raise ValueError(f"panels: expected those of one row, got {shapes}.")
    if min(slice_rows, split) < 1 or slice_rows & (slice_rows - 1) or split & (split - 1):
        sizes = f"{slice_rows} and {split}"
        raise ValueError(f"slice_rows, split: expected powers of two, got {sizes}.")
    if x.channels * x.plane >= 2**31:
        raise ValueError(f"elements of x: expected less than 2**31, got {x.channels * x.plane}.")
    reach = -(-(size // 2) // scale) * stride
    first = x.offset(0, -reach, -reach)
    phases = scale * scale
    of_row = np.repeat(np.arange(len(rows)), np.diff(ptr))
    owners, offsets = [], []
    for phase in range(phases):
        taps = column_offsets(columns, x=x, size=size, stride=stride, scale=scale, phase=phase)
        offsets.append((taps - first) // x.images)
        owners.append(of_row * phases + phase)
    # Entries in order of row and offset, those that meet summed up.
    reading = x.channels * x.plane
    keys = np.concatenate(owners) * reading + np.concatenate(offsets)
    keys, where = np.unique(keys, return_inverse=True)
    weights = np.bincount(where, np.tile(values[:, 0], phases), len(keys)).astype(np.float32)
    names = (rows * phases + np.arange(phases, dtype=np.int32)).reshape(-1)
    bounds = np.searchsorted(keys, np.arange(len(names) + 1) * reading)
    return _slices(
        bounds, keys % reading, weights, names.astype(np.int32), slice_rows, split,
        x=x, channels=int(rows.max()) + 1, reach=reach, stride=stride, scale=scale,
    )  # fmt: skip


def _slices(
    ptr: NDArray[np.int64],
    offsets: NDArray[np.int64],
    values: NDArray[np.float32],
    rows: NDArray[np.int32],
    slice_rows: int,
    split: int,
    *,
    x: Layout,
    **rest: int,
) -> PackedSlices:
    """Rows of ``offsets`` and ``values``, ``ptr[r] <= k < ptr[r + 1]`` of row ``rows[r]``."""
    lengths = np.diff(ptr)
    order = np.argsort(-lengths, kind="stable")
    slices = -(-len(order) // slice_rows)
    slots = np.full(slices * slice_rows, -1, dtype=np.int32)
    slots[: len(order)] = rows[order]
    groups = -(-lengths[order[::slice_rows]] // (PAIR * split))
    start = np.zeros(slices + 1, dtype=np.int32)
    np.cumsum(groups, out=start[1:])

    # Every place of a slot, entry by entry, and which entry of its row is there.
    shape = (int(start[-1]), split, PAIR, slice_rows)
    group, part, half, slot = np.indices(shape)
    owner = np.searchsorted(start, group, side="right") - 1
    place = owner * slice_rows + slot
    entry = ((group - start[owner]) * split + part) * PAIR + half
    padded = np.zeros(len(slots), dtype=np.int64)
    padded[: len(order)] = lengths[order]
    begin = np.zeros(len(slots), dtype=np.int64)
    begin[: len(order)] = ptr[:-1][order]
    last = padded[place] - 1
    source = np.maximum(begin[place] + np.minimum(entry, last), 0)
    some, used = last >= 0, entry <= last
    reach = rest["reach"]
    offset = np.full(shape, x.offset(0, reach, reach) // x.images, dtype=np.int64)
    offset[some] = offsets[source[some]]
    value = np.zeros(shape, dtype=np.float32)
    value[used] = values[source[used]]
    fits = not offset.size or offset.max() < 2**16
    return PackedSlices(
        start=start,
        rows=slots,
        offset=offset.astype(np.uint16 if fits else np.int32),
        value=value,
        x=x,
        entries=len(offsets),
        **rest,
    )
