"""Masks as panels: which weights of a convolution a kernel reads, and in what order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ENTRY_COSTS = {1: 1.95, 4: 1.28, 8: 1.23}
"""Time of an entry of a panel of so many channels, in multiply-adds of one vector a channel."""
PRODUCT_ENTRIES, GRADIENT_ENTRIES = 9, 3
"""Of a row and a chunk, at least: products load and store a row's sums again for each chunk, and
gradients load the row's outputs."""


@dataclass(frozen=True, slots=True)
class Panels:
    """Rows of a matrix, ``group`` at a time, over the union of their columns, chunk by chunk.

    ``ptr`` int64 ``[chunks * panels + 1]``, ``column`` int32 ``[entries]``, ``index`` int32
    ``[entries, group]``: where the weight stands in the dense one, -1 where there is none.
    """

    group: int
    rows: int
    chunks: int
    ptr: NDArray[np.int64]
    column: NDArray[np.int32]
    index: NDArray[np.int32]


def make_panels(
    mask: NDArray[np.bool_], index: NDArray[np.int32], near: int | None = None, entries: int = 0
) -> Panels:
    """Panels of the least estimated time for a mask ``[rows, columns]``; ``index`` as it.

    ``near``: how many columns the nearest cache holds the pixels of. Rows of single channels are
    cut into chunks of so many if that leaves ``entries`` in each, on average.
    """
    rows, columns = mask.shape
    best, least = 1, float("inf")
    for group, cost in ENTRY_COSTS.items():
        time = np.count_nonzero(_union(mask, group)) * group * cost
        if time < least:
            best, least = group, time
    union = _union(mask, best)
    panels = len(union)
    width, chunks = max(columns, 1), 1
    if near is not None and best == 1:
        count = -(-columns // near)
        if np.count_nonzero(union) >= entries * panels * count:
            width, chunks = near, count
    padded = np.zeros((panels, chunks * width), bool)
    padded[:, :columns] = union
    segments = padded.reshape(panels, chunks, width).swapaxes(0, 1).reshape(-1, width)
    ptr = np.zeros(len(segments) + 1, np.int64)
    np.cumsum(segments.sum(1), out=ptr[1:])
    segment, inner = np.nonzero(segments)
    chunk, panel = np.divmod(segment, max(panels, 1))
    column = chunk * width + inner
    where = panel[:, None] * best + np.arange(best)
    inside = np.minimum(where, rows - 1)
    kept = (where < rows) & mask[inside, column[:, None]]
    found = np.where(kept, index[inside, column[:, None]], -1).astype(np.int32)
    return Panels(best, rows, chunks, ptr, column.astype(np.int32), found)


def _union(mask: NDArray[np.bool_], group: int) -> NDArray[np.bool_]:
    rows, columns = mask.shape
    panels = -(-rows // group)
    padded = np.zeros((panels * group, columns), bool)
    padded[:rows] = mask
    union: NDArray[np.bool_] = np.logical_or.reduce(padded.reshape(panels, group, columns), axis=1)
    return union
