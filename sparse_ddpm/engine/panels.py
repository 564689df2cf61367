"""Panels: groups of G output channels that share the union of their columns (G = 1 is CSR).

Made from any weight format when an engine is planned, never stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.engine.costs import BLOCK_COSTS, Costs, Read, Way
from sparse_ddpm.formats import Matrix

NOTHING = Read()


FEW = 0.01
"""Share of the columns that dense panels may lack."""

HALVED = 1e-4
"""How near a break-even density is found."""


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
    """Which G to run a weight with, and why. ``entries``: panel entries, ``[G]`` numbers each.

    ``copied``: whether it reads shifted copies of its input. ``dense``: the panels hold all but
    `FEW` of the columns, so that pruning saves nothing. ``times``: estimates by G, each in its
    better way, as multiples of that of the choice.
    """

    group: int
    copied: bool
    entries: int
    reason: str
    dense: bool
    times: Mapping[int, float]


def union_columns(stored: NDArray[np.bool_], group: int) -> NDArray[np.bool_]:
    """Columns that any row of each panel stores, ``[panels, columns]``."""
    rows, columns = stored.shape
    panels = -(-rows // group)
    padded = np.zeros((panels * group, columns), dtype=bool)
    padded[:rows] = stored
    return np.asarray(padded.reshape(panels, group, columns).any(axis=1))


def make_panels(weight: Matrix, group: int) -> Panels:
    """Panels of ``group`` neighbouring rows of ``weight``."""
    union = union_columns(weight.stored(), group)
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


def choose_group(
    weight: Matrix,
    forced: int | None = None,
    costs: Costs = BLOCK_COSTS,
    read: Read = NOTHING,
    copied: bool | None = None,
) -> GroupChoice:
    """The way of least estimated time: shared columns save loads, filled-in zeros cost arithmetic.

    The more rows share a panel, the fewer columns can be left out: with all of them it is a dense
    product, and the reason says so. ``forced``: one of `GROUPS` to use whatever its time.
    ``read``: its input. ``copied``: whether to read shifted copies of that, where there is such a
    way, whatever their time.
    """
    stored = weight.stored()
    rows, columns = stored.shape
    entries: dict[int, int] = {}
    times: dict[Way, float] = {}
    full: dict[Way, float] = {}
    for way, cost in costs.items():
        group = way.group
        if group > max(rows, 1) and group != forced:
            continue
        union = union_columns(stored, group)
        entries[group] = int(np.count_nonzero(union))
        panels = len(union)
        times[way] = cost.time(entries[group], panels * group, read)
        full[way] = cost.time(union.size, panels * group, read)
    allowed = [way for way in times if forced in (None, way.group)]
    allowed = [way for way in allowed if copied in (None, way.copied)] or allowed
    best = min(allowed, key=lambda way: times[way])
    group, least = best.group, max(times[best], 1e-9)
    kept = entries[group] / max(-(-rows // group) * columns, 1)
    dense = kept >= 1.0 - FEW
    filled = weight.nnz / max(entries[group] * group, 1)
    relative = MappingProxyType(
        {g: min(time for way, time in times.items() if way.group == g) / least for g in entries}
    )
    others = [f"G={g} {time:.2f}x" for g, time in relative.items() if g != group]
    if dense:
        which = "every column" if kept == 1.0 else "nearly every column"
        why = f"runs dense: panels hold {which}, {filled:.0%} of a panel is weights"
    else:
        why = (
            "sharing columns does not pay" if group == 1 else f"{filled:.0%} of a panel is weights"
        )
        others.append(f"dense {min(full.values()) / least:.2f}x")
    if forced is not None:
        why = f"G was asked for; {why}"
    elif len(entries) == 1:
        why = f"a single row; {why}" if dense else "a single row"
    words = f"; others by estimate: {', '.join(others)}" if others else ""
    density = weight.nnz / max(rows * columns, 1)
    reason = f"{density:.1%} stored; {why}{words}"
    return GroupChoice(group, best.copied, entries[group], reason, dense, relative)


def break_even(
    rows: int, columns: int, costs: Costs = BLOCK_COSTS, unit: int = 1, read: Read = NOTHING
) -> float:
    """The density from which a weight runs dense by estimate: pruning then saves it nothing.

    For random masks of units of ``unit`` rows of one column: panels of G rows have a column unless
    all their units lack it. 1.0 where every density below pays.
    """

    def dense(density: float) -> bool:
        times: list[tuple[float, float]] = []
        for (group, _), cost in costs.items():
            if group > max(rows, 1):
                continue
            kept = 1.0 - math.pow(1.0 - density, max(1.0, group / unit))
            panels = math.ceil(rows / group)
            times.append((cost.time(panels * kept * columns, panels * group, read), kept))
        return min(times)[1] >= 1.0 - FEW

    low, high = 0.0, 1.0
    if not dense(1.0 - FEW - HALVED):
        return 1.0
    while high - low > HALVED:
        middle = (low + high) / 2
        low, high = (low, middle) if dense(middle) else (middle, high)
    return high
