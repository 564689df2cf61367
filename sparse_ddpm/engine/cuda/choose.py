"""Which kernel runs a convolution on a GPU: panels of G channels, single weights, or dense cuDNN.

Estimates until a `Tuned` table of measurements for the GPU at hand replaces them. The rates follow
from what a kernel streams out of the L2 cache for each multiply-add: an activation loaded once
serves G channels. They are estimates for Hopper chips, not measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from sparse_ddpm.engine.panels import union_columns
from sparse_ddpm.errors import EngineError, expected
from sparse_ddpm.formats import Matrix
from sparse_ddpm.program import Conv
from sparse_ddpm.program.program import Shape

GROUPS = (16, 32, 64, 128)
"""Output channels of a panel: what the tensor cores' instructions come in."""

KINDS = ("elements", *(f"panels:{group}" for group in GROUPS), "cudnn")

TFLOPS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "float16": {
            "elements": 25.0,
            "panels:16": 100.0,
            "panels:32": 200.0,
            "panels:64": 380.0,
            "panels:128": 550.0,
            "cudnn": 650.0,
        },
        "bfloat16": {
            "elements": 17.0,
            "panels:16": 100.0,
            "panels:32": 200.0,
            "panels:64": 380.0,
            "panels:128": 550.0,
            "cudnn": 650.0,
        },
        # Multiplied on CUDA cores: no tensor core is exact in float32.
        "float32": dict.fromkeys(KINDS, 25.0),
    }
)
"""What each kernel executes at large batches, TFLOP/s: estimates."""

LAUNCH_US = 2.0
"""A node of a CUDA graph, microseconds (an estimate)."""

BYTES_PER_US = 3.5e6
"""Memory bandwidth, bytes a microsecond (an estimate)."""

NORM_US = 3.0
"""A norm in a kernel of its own beside one in the convolution's (an estimate)."""

STEP_US = 0.35
"""One trip through a kernel's loop while nothing else runs, microseconds (an estimate)."""

PROGRAMS = 264
"""Programs that a GPU runs at once: fewer do not use all of it."""

PIXELS = 128
"""Pixels times images of a program, for the estimates."""

NEAR = 1e-3
"""How near a break-even density is found."""

LOOP = {"elements": 8, "cudnn": 64, **{f"panels:{group}": 64 for group in GROUPS}}
"""Entries of one trip."""


@dataclass(frozen=True, slots=True)
class ConvChoice:
    """``kind``: one of `KINDS`. ``entries``: of all panels, zeros that fill them not counted apart;
    ``executed``: those that fill the last trip of a kernel's loop, too.

    ``estimates``: microseconds by kind; ``measured``: the choice is a table's.
    """

    kind: str
    group: int
    entries: int
    executed: int
    estimates: Mapping[str, float]
    reason: str
    measured: bool = False


def group_of(kind: str) -> int:
    """Output channels of a panel of ``kind``; 1 for single weights, 0 for cuDNN."""
    if kind == "elements":
        return 1
    return 0 if kind == "cudnn" else int(kind.split(":")[1])


def choose_kernel(
    operation: Conv,
    shape: Shape,
    images: int,
    dtype: str,
    *,
    force: str | None = None,
    measured: Mapping[str, float] | None = None,
    extra_us: Mapping[str, float] = MappingProxyType({}),
) -> ConvChoice:
    """The kernel of least time for a convolution that makes ``shape`` of ``images`` (padded).

    ``force``: one of `KINDS`; ``measured``: microseconds by kind, which then decide;
    ``extra_us``: added to a kind's estimate. Raises `EngineError` for an unknown kind.
    """
    if force is not None and force not in KINDS:
        raise EngineError(expected("kernel", f"one of {', '.join(KINDS)}", repr(force)))
    weight = operation.weight
    entries = _entries(weight)
    bytes_moved = _bytes(operation, shape, images, dtype)
    estimates = {
        kind: _estimate(kind, weight, entries[kind], shape, images, dtype, bytes_moved)
        + extra_us.get(kind, 0.0)
        for kind in KINDS
    }
    times = dict(measured) if measured else estimates
    kind = force if force is not None else min(times, key=lambda name: times[name])
    if kind not in times:
        times = estimates
    count = sum(entries[kind])
    density = weight.nnz / max(weight.shape[0] * weight.shape[1], 1)
    best = max(times[kind], 1e-9)
    others = [f"{name} {time / best:.2f}x" for name, time in times.items() if name != kind]
    how = "measured" if measured and times is not estimates else "by estimate"
    asked = "asked for; " if force is not None else ""
    filled = weight.nnz / max(count * max(group_of(kind), 1), 1)
    what = "runs dense" if kind == "cudnn" else f"{filled:.0%} of what is multiplied is weights"
    reason = f"{density:.1%} stored; {asked}{what}; {times[kind]:.1f} us {how}, others "
    # What cuDNN's tiles fill up nobody knows.
    trip = LOOP[kind] if group_of(kind) else 1
    return ConvChoice(
        kind,
        group_of(kind),
        count,
        sum(-(-each // trip) * trip for each in entries[kind]),
        MappingProxyType(estimates),
        reason + ", ".join(others),
        measured is not None and how == "measured",
    )


def break_even(
    operation: Conv,
    shape: Shape,
    images: int,
    dtype: str,
    unit: int = 1,
    extra_us: Mapping[str, float] = MappingProxyType({}),
) -> float:
    """The density from which cuDNN, dense, is estimated as fast as anything sparse.

    For random masks of units of ``unit`` rows of one column; arguments as `choose_kernel`'s. 1.0
    where sparse kernels are faster at every density.
    """
    weight = operation.weight
    rows, columns = weight.shape
    moved = _bytes(operation, shape, images, dtype)

    def time(kind: str, density: float) -> float:
        group = group_of(kind)
        kept = 1.0 - (1.0 - density) ** max(1.0, group / unit)
        panels = 1 if group == 0 else math.ceil(rows / group)
        entries = [columns if group == 0 else round(kept * columns)] * panels
        found = _estimate(kind, weight, entries, shape, images, dtype, moved)
        return found + extra_us.get(kind, 0.0)

    dense = time("cudnn", 1.0)

    def pays(density: float) -> bool:
        return min(time(kind, density) for kind in KINDS if kind != "cudnn") < dense

    if pays(1.0):
        return 1.0
    low, high = 0.0, 1.0
    while high - low > NEAR:
        middle = (low + high) / 2
        low, high = (middle, high) if pays(middle) else (low, middle)
    return high


def _entries(weight: Matrix) -> dict[str, list[int]]:
    """Entries of each panel, by kind; of cuDNN's one "panel" of all rows, its columns."""
    stored = weight.stored()
    counts: dict[str, list[int]] = {}
    for kind in KINDS:
        group = group_of(kind)
        if group == 0:
            counts[kind] = [stored.shape[1]]
        else:
            counts[kind] = np.count_nonzero(union_columns(stored, group), axis=1).tolist()
    return counts


def _bytes(operation: Conv, shape: Shape, images: int, dtype: str) -> float:
    """Activations read once and written once."""
    size = 4 if dtype == "float32" else 2
    rows, columns = operation.weight.shape
    inputs = columns // operation.size**2 + (rows if operation.residual is not None else 0)
    return float((inputs + rows) * shape[1] * shape[2] * images * size)


def _estimate(
    kind: str,
    weight: Matrix,
    entries: list[int],
    shape: Shape,
    images: int,
    dtype: str,
    bytes_moved: float,
) -> float:
    """Microseconds of one convolution."""
    pixels = shape[1] * shape[2] * images
    rows, columns = weight.shape
    trip = LOOP[kind]
    if kind == "cudnn":
        # Its layout is another: both sides are transposed by copies of their own.
        flops = 2.0 * rows * columns * pixels
        programs = max(rows / 128, 1.0) * max(pixels / PIXELS, 1.0)
        longest, launches, moved = columns, 3, 3.0 * bytes_moved
    else:
        group = group_of(kind)
        trips = sum(-(-count // trip) for count in entries)
        flops = 2.0 * trips * trip * group * pixels
        programs = len(entries) / (8 if kind == "elements" else 1) * max(pixels / PIXELS, 1.0)
        longest, launches, moved = max(entries, default=0), 1, bytes_moved
    used = min(1.0, programs / PROGRAMS)
    arithmetic = flops / (TFLOPS[dtype][kind] * 1e6 * used)
    latency = -(-longest // trip) * STEP_US
    # Neither hides the other wholly.
    return launches * LAUNCH_US + math.hypot(max(arithmetic, latency), moved / BYTES_PER_US)
