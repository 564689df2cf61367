"""Panels: groups of G output channels that share the union of their columns (G = 1 is CSR).

Made from any weight format when an engine is planned, never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.formats import Matrix

ENTRY_COST: Mapping[int, float] = MappingProxyType({1: 1.9, 2: 2.6, 4: 4.4, 8: 8.3, 16: 17.0})
"""Time of one panel entry over one vector of pixels by G, in multiply-adds of a vector.

G = 1 waits for the cache (each loaded pixel is used once); larger panels approach one multiply-add
each. Measured on one core with AVX-512.
"""

PANEL_COST = 4.0
"""Time to start and to store one panel, in the same unit."""


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """Entry k of panel p, ``ptr[p] <= k < ptr[p + 1]``, multiplies column ``columns[k]``.

    ``ptr``: int64 ``[panels + 1]``; ``columns``: int32 ``[entries]``, rising within a panel;
    ``values``: float32 ``[entries, G]``, 0.0 where a row lacks the column; ``rows``: int32
    ``[panels, G]``, the matrix row of each slot, -1 past the last row.
    """

    ptr: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: NDArray[np.float32]
    rows: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class GroupChoice:
    """Which G to run a weight with, and why. ``entries``: panel entries, ``[G]`` numbers each."""

    group: int
    entries: int
    reason: str


def _union(stored: NDArray[np.bool_], group: int) -> NDArray[np.bool_]:
    """Columns that any row of each panel stores, ``[panels, columns]``."""
    rows, columns = stored.shape
    panels = -(-rows // group)
    padded = np.zeros((panels * group, columns), dtype=bool)
    padded[:rows] = stored
    return np.asarray(padded.reshape(panels, group, columns).any(axis=1))


def make_panels(weight: Matrix, group: int) -> Panels:
    """Panels of ``group`` neighbouring rows of ``weight``."""
    union = _union(weight.stored(), group)
    panels = len(union)
    panel, column = np.nonzero(union)
    ptr = np.zeros(panels + 1, dtype=np.int64)
    np.cumsum(np.bincount(panel, minlength=panels), out=ptr[1:])
    rows, columns = weight.shape
    dense = np.zeros((panels * group, columns), dtype=np.float32)
    dense[:rows] = weight.to_dense()
    slots = np.arange(panels * group, dtype=np.int32)
    slots[rows:] = -1
    return Panels(
        ptr=ptr,
        columns=column.astype(np.int32),
        values=np.ascontiguousarray(dense.reshape(panels, group, columns)[panel, :, column]),
        rows=slots.reshape(panels, group),
    )


def choose_group(weight: Matrix) -> GroupChoice:
    """The G of least estimated time: shared columns save loads, filled-in zeros cost arithmetic."""
    stored = weight.stored()
    rows, columns = stored.shape
    density = weight.nnz / max(rows * columns, 1)
    entries: dict[int, int] = {}
    costs: dict[int, float] = {}
    for group, cost in ENTRY_COST.items():
        if group > 1 and group > rows:
            continue
        union = _union(stored, group)
        entries[group] = int(np.count_nonzero(union))
        costs[group] = entries[group] * cost + len(union) * group * PANEL_COST
    group = min(costs, key=lambda g: costs[g])
    if group == 1:
        others = ", ".join(f"G={g} {costs[g] / costs[1]:.2f}x" for g in costs if g > 1)
        why = f"sharing columns does not pay ({others})" if others else "a single row"
    else:
        filled = weight.nnz / max(entries[group] * group, 1)
        why = f"{filled:.0%} of a panel is weights, {costs[group] / costs[1]:.2f}x the time of G=1"
    return GroupChoice(group, entries[group], f"{density:.1%} stored; {why}")
