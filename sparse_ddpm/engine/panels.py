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

from sparse_ddpm.formats import Matrix

GROUPS = (1, 2, 4, 8, 16)

VECTOR = 16
"""Floats of a vector of pixels."""

Costs = Mapping[int, tuple[float, float]]
"""By G: time of one panel entry over one vector of pixels, in multiply-adds of a vector, and time
to start and to store one channel of a panel.

G = 1 waits for the L2 cache, as each loaded pixel is used once, and G = 2 hides one more
multiply-add in the same wait. Wide panels pay for the small tiles that their sums leave room for.
"""


START = (4.0,) * len(GROUPS)


def _costs(*entry: float, start: tuple[float, ...] = START) -> Costs:
    return MappingProxyType(dict(zip(GROUPS, zip(entry, start, strict=True), strict=True)))


FLOAT32_COSTS = _costs(2.1, 2.3, 4.3, 8.5, 18.4)
"""Of pixels in the nearest cache, as inside a fused block."""

ENTRY_COSTS: Mapping[str, tuple[Costs, Costs]] = MappingProxyType(
    {
        "float32": (
            _costs(1.9, 2.25, 4.9, 9.2, 17.8, start=(1.5, 4.0, 22.0, 4.5, 12.0)),
            _costs(1.95, 2.4, 5.1, 9.8, 18.1, start=(1.0, 6.0, 9.0, 6.0, 7.0)),
        ),
        "float16": (_costs(1.95, 2.6, 4.6, 8.7, 17.8), _costs(1.95, 2.6, 4.9, 9.6, 16.6)),
        "bfloat16": (_costs(1.95, 2.6, 4.6, 6.5, 13.5), _costs(1.95, 2.6, 4.9, 6.0, 12.5)),
    }
)
"""By precision: with one image in a pass, and with a vector of them. On one core with AVX-512;
float32 fitted to whole steps (benchmarks/cost_model.py), the others measured alone."""

POINTWISE = MappingProxyType(dict(zip(GROUPS, (1.18, 1.42, 1.0, 1.0, 1.0), strict=True)))
"""By G: an entry of a 1x1 kernel over one of a larger kernel, one image a pass, float32, more than
`FEW_VECTORS` of pixels. No other tap has brought those near."""

FEW_VECTORS = 4

STREAMED = MappingProxyType(dict(zip(GROUPS, (1.85, 2.5, 2.8, 4.1, 4.7), strict=True)))
"""By G: what an entry costs more that comes from beyond the caches, shared by the vectors of pixels
that it is used for. One image a pass: of 16, there are enough to hide its way."""

NEAR_BYTES = 5 << 20
"""Of all weights of a step; with as many, half of them come from beyond the nearest caches."""

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

    ``dense``: the panels hold all but `FEW` of the columns, so that pruning saves nothing.
    ``times``: estimates by G, as multiples of that of ``group``.
    """

    group: int
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
    weight: Matrix, forced: int | None = None, entry_costs: Costs = FLOAT32_COSTS
) -> GroupChoice:
    """The G of least estimated time: shared columns save loads, filled-in zeros cost arithmetic.

    The more rows share a panel, the fewer columns can be left out: with all of them it is a dense
    product, and the reason says so. ``forced``: one of `GROUPS` to use whatever its time.
    """
    stored = weight.stored()
    rows, columns = stored.shape
    entries: dict[int, int] = {}
    costs: dict[int, float] = {}
    full: dict[int, int] = {}
    every: dict[int, float] = {}
    for group, (cost, first) in entry_costs.items():
        if group > max(rows, 1) and group != forced:
            continue
        union = union_columns(stored, group)
        start = len(union) * group * first
        entries[group], full[group] = int(np.count_nonzero(union)), union.size
        costs[group], every[group] = (n[group] * cost + start for n in (entries, full))
    group = min(costs, key=lambda g: costs[g]) if forced is None else forced
    kept = entries[group] / max(full[group], 1)
    dense = kept >= 1.0 - FEW
    filled = weight.nnz / max(entries[group] * group, 1)
    best = max(costs[group], 1e-9)
    relative = MappingProxyType({g: cost / best for g, cost in costs.items()})
    others = [f"G={g} {time:.2f}x" for g, time in relative.items() if g != group]
    if dense:
        which = "every column" if kept == 1.0 else "nearly every column"
        why = f"runs dense: panels hold {which}, {filled:.0%} of a panel is weights"
    else:
        why = (
            "sharing columns does not pay" if group == 1 else f"{filled:.0%} of a panel is weights"
        )
        others.append(f"dense {min(every.values()) / best:.2f}x")
    if forced is not None:
        why = f"G was asked for; {why}"
    elif len(costs) == 1:
        why = f"a single row; {why}" if dense else "a single row"
    times = f"; others by estimate: {', '.join(others)}" if others else ""
    density = weight.nnz / max(rows * columns, 1)
    reason = f"{density:.1%} stored; {why}{times}"
    return GroupChoice(group, entries[group], reason, dense, relative)


def entry_costs(dtype: str, lanes: int, size: int, pixels: int, weight_bytes: int) -> Costs:
    """Of a kernel of ``size`` x ``size`` taps on images of ``pixels`` pixels, ``lanes`` a pass.

    ``weight_bytes``: of all weights that a step reads.
    """
    costs = ENTRY_COSTS[dtype][lanes > 1]
    if lanes > 1:
        return costs
    vectors = max(1.0, pixels / VECTOR)
    points = size == 1 and vectors > FEW_VECTORS and dtype == "float32"
    factor = POINTWISE if points else dict.fromkeys(GROUPS, 1.0)
    far = weight_bytes / (weight_bytes + NEAR_BYTES) / vectors
    return MappingProxyType(
        {
            group: (cost * factor[group] + far * STREAMED[group], start)
            for group, (cost, start) in costs.items()
        }
    )


def break_even(rows: int, columns: int, entry_costs: Costs = FLOAT32_COSTS, unit: int = 1) -> float:
    """The density from which a weight runs dense by estimate: pruning then saves it nothing.

    For random masks of units of ``unit`` rows of one column: panels of G rows have a column unless
    all their units lack it. 1.0 where every density below pays.
    """

    def dense(density: float) -> bool:
        times: list[tuple[float, float]] = []
        for group, (cost, first) in entry_costs.items():
            if group > max(rows, 1):
                continue
            kept = 1.0 - math.pow(1.0 - density, max(1.0, group / unit))
            panels = math.ceil(rows / group)
            times.append((panels * (kept * columns * cost + group * first), kept))
        return min(times)[1] >= 1.0 - FEW

    low, high = 0.0, 1.0
    if not dense(1.0 - FEW - HALVED):
        return 1.0
    while high - low > HALVED:
        middle = (low + high) / 2
        low, high = (low, middle) if dense(middle) else (middle, high)
    return high
