"""What a mask is made of: single weights, or the whole units of its ticket's pattern."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.ticket.config import Pattern

ELEMENT = Pattern()


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """A mask by units. ``groups`` int ``[out]``: the first of the output channels that a channel
    is pruned together with. ``kept`` bool ``[groups, column groups, taps]``.
    """

    pattern: Pattern
    groups: NDArray[np.intp]
    kept: NDArray[np.bool_]

    def same_grid(self, other: Units) -> bool:
        """Whether both masks divide their layer into the same units."""
        return self.pattern == other.pattern and np.array_equal(self.groups, other.groups)

    def weights_within(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many weights ``mask`` (``[out, in, ...]``) keeps in each unit: ``[units]``."""
        layer = _layer(mask).astype(np.int64)
        order = np.argsort(self.groups, kind="stable")
        starts = np.searchsorted(self.groups[order], np.unique(self.groups))
        by_group = np.add.reduceat(layer[order], starts, axis=0)
        columns = np.arange(0, layer.shape[1], self.pattern.columns)
        return np.add.reduceat(by_group, columns, axis=1).reshape(-1)


def divide(mask: NDArray[np.bool_], pattern: Pattern) -> Units:
    """``mask`` (``[out, in, ...]``) by units of ``pattern``, or by weights if it is made of others.

    A unit is a run of ``rows`` output channels by ``columns`` input channels of one tap, cut off at
    the edge. Where the channels were permuted before they were grouped, those that are pruned
    together are found by their equal masks.
    """
    layer = _layer(mask)
    rows = layer.shape[0]
    orders = [np.arange(rows)]
    if pattern.rows > 1:
        _, kind = np.unique(layer.reshape(rows, -1), axis=0, return_inverse=True)
        orders.append(np.argsort(kind.reshape(-1), kind="stable"))
    for order in orders:
        groups = np.empty(rows, np.intp)
        for start in range(0, rows, pattern.rows):
            members = order[start : start + pattern.rows]
            groups[members] = members.min()
        kept = layer[np.unique(groups)][:, :: pattern.columns]
        whole = np.repeat(kept, pattern.columns, axis=1)[:, : layer.shape[1]]
        if np.array_equal(whole[np.searchsorted(np.unique(groups), groups)], layer):
            return Units(pattern, groups, kept)
    return Units(ELEMENT, np.arange(rows), layer)


def _layer(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask.reshape(mask.shape[0], mask.shape[1], -1)
