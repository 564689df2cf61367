"""What a mask is made of: single weights, or the whole units of its ticket's pattern."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.ticket.config import Pattern

ELEMENT = Pattern()


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """A mask by units of ``pattern``: ``kept`` bool ``[row units, column units, taps]``."""

    pattern: Pattern
    kept: NDArray[np.bool_]

    def weights_within(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many weights ``mask`` (``[out, in, ...]``) keeps in each unit: ``[units]``."""
        counts = _layer(mask).astype(np.int64)
        for axis, step in enumerate((self.pattern.rows, self.pattern.columns)):
            counts = np.add.reduceat(counts, np.arange(0, counts.shape[axis], step), axis=axis)
        return counts.reshape(-1)


def divide(mask: NDArray[np.bool_], pattern: Pattern) -> Units:
    """``mask`` (``[out, in, ...]``) by units of ``pattern``, or by weights if it is made of others.

    A unit is a run of ``rows`` output channels by ``columns`` input channels of one tap, counted
    from channel 0 and cut off at the edge. A ticket of coarse units may have layers of single
    weights, such as FiLM maps.
    """
    layer = _layer(mask)
    kept = layer[:: pattern.rows, :: pattern.columns]
    whole = np.repeat(np.repeat(kept, pattern.rows, axis=0), pattern.columns, axis=1)
    if np.array_equal(whole[: layer.shape[0], : layer.shape[1]], layer):
        return Units(pattern, kept)
    return Units(ELEMENT, layer)


def _layer(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask.reshape(mask.shape[0], mask.shape[1], -1)
