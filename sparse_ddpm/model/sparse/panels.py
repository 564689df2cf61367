"""Masks as panels: which weights of a convolution a kernel reads, and in what order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ENTRY_COSTS = {1: 1.95, 4: 1.28, 8: 1.23}
"""Time of an entry of a panel of so many channels, in multiply-adds of one vector a channel."""


@dataclass(frozen=True, slots=True)
class Panels:
    """Rows of a matrix, ``group`` at a time, over the union of their columns.

    ``ptr`` int64 ``[panels + 1]``, ``column`` int32 ``[entries]``, ``index`` int32 ``[entries,
    group]``: where the weight stands in the dense one, -1 where there is none.
    """

    group: int
    rows: int
    ptr: NDArray[np.int64]
    column: NDArray[np.int32]
    index: NDArray[np.int32]


def make_panels(mask: NDArray[np.bool_], index: NDArray[np.int32]) -> Panels:
    """Panels of the least estimated time for a mask ``[rows, columns]``; ``index`` as it."""
    rows = len(mask)
    best, least = 1, float("inf")
    for group, cost in ENTRY_COSTS.items():
        time = np.count_nonzero(_union(mask, group)) * group * cost
        if time < least:
            best, least = group, time
    union = _union(mask, best)
    ptr = np.zeros(len(union) + 1, np.int64)
    np.cumsum(union.sum(1), out=ptr[1:])
    panel, column = np.nonzero(union)
    where = panel[:, None] * best + np.arange(best)
    inside = np.minimum(where, rows - 1)
    kept = (where < rows) & mask[inside, column[:, None]]
    entries = np.where(kept, index[inside, column[:, None]], -1).astype(np.int32)
    return Panels(best, rows, ptr, column.astype(np.int32), entries)


def _union(mask: NDArray[np.bool_], group: int) -> NDArray[np.bool_]:
    rows, columns = mask.shape
    panels = -(-rows // group)
    padded = np.zeros((panels * group, columns), bool)
    padded[:rows] = mask
    union: NDArray[np.bool_] = np.logical_or.reduce(padded.reshape(panels, group, columns), axis=1)
    return union
