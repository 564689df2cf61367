"""Bytes that the CPU engine holds for a Plan: weights as panels, scratch, the time table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sparse_ddpm.accounting.memory import FLOAT32
from sparse_ddpm.accounting.tiling import Tiling, tile
from sparse_ddpm.engine.arena import LINE
from sparse_ddpm.engine.film import Films
from sparse_ddpm.engine.fuse import LinearBlock, Weight
from sparse_ddpm.engine.panels import union_columns
from sparse_ddpm.engine.plan import DTYPES, Plan, Step
from sparse_ddpm.program import Attention, ChannelNorm, Conv, LinearAttention, NormAct

OFFSET, POINTER, SLOT, COPY, HEAD = 4, 8, 4, 8, 32
HUGE_PAGE = 2 << 20
PAIRED = 8
"""G from which bfloat16 multiplies entries in pairs."""
QUERIES, RUN = 4, 8
"""Vectors of pixels that attention, and linear attention, hold at once."""


@dataclass(frozen=True, slots=True)
class PlannedBytes:
    """Of one step. ``values``: of panel entries, the zeros that fill them included; ``offsets``:
    where those entries read; ``rest``: where panels begin, which rows they make, bias, gains, which
    copies are made, and what fills the last cache line of each array.

    ``scratch``: of each thread, while the step runs.
    """

    values: int = 0
    offsets: int = 0
    rest: int = 0
    scratch: int = 0

    @property
    def weights(self) -> int:
        return self.values + self.offsets + self.rest


def planned_bytes(plan: Plan, step: Step) -> PlannedBytes:
    """What the engine copies for ``step`` when it is made, and its scratch."""
    operation, number = step.operation, DTYPES[plan.dtype]
    if step.block is not None:
        return _block(step.block)
    match operation:
        case Conv():
            return _conv(plan, step, tile(plan, step), number)
        case NormAct(gamma=gamma, beta=beta, film=film):
            rest = _lines(gamma.nbytes) + _lines(beta.nbytes) if film is None else 0
            return PlannedBytes(rest=rest, scratch=2 * FLOAT32 * max(plan.lanes, LINE))
        case ChannelNorm(gain=gain):
            return PlannedBytes(rest=_lines(gain.nbytes))
        case Attention() | LinearAttention():
            return PlannedBytes(scratch=_attention(plan, operation, number))
        case _:
            return PlannedBytes()


def table_bytes(plan: Plan, steps: int) -> int:
    """The float32 time table of a schedule of ``steps`` steps."""
    return FLOAT32 * steps * Films.of(plan.program).width


def native_bytes(plan: Plan, threads: int) -> int:
    """All that the engine holds beside the arena: weights, and scratch of the largest step."""
    parts = [planned_bytes(plan, step) for step in plan.steps]
    scratch = max((part.scratch for part in parts), default=0)
    weights = sum(part.weights for part in parts)
    return weights + threads * scratch + _moments(plan) + _filled(plan.arena_bytes)


def process_bytes(plan: Plan, threads: int, steps: int) -> int:
    """What a process grows by from a Program to images of ``steps`` steps: the engine, which takes
    whole huge pages, the time table, and the images before and after a step with the noise between,
    in float32.
    """
    shape = plan.program.input_shape
    images = FLOAT32 * plan.batch * shape[0] * shape[1] * shape[2]
    return _resident_bytes(plan, threads) + table_bytes(plan, steps) + 4 * images


def _resident_bytes(plan: Plan, threads: int) -> int:
    """What the engine takes from the system, as it takes it: each array from what is left of a
    block of huge pages, or a block of its own, of which the larger rest is kept.
    """
    parts = [planned_bytes(plan, step) for step in plan.steps]
    scratch = max((part.scratch for part in parts), default=0)
    arrays = [size for part in parts for size in (part.rest, part.offsets, part.values)]
    total = left = 0
    for size in (plan.arena_bytes, *arrays, _moments(plan), *(scratch for _ in range(threads))):
        if size <= left:
            left -= size
            continue
        block = -(-size // HUGE_PAGE) * HUGE_PAGE
        total += block
        left = max(left, block - size)
    return total


def _conv(plan: Plan, step: Step, tiling: Tiling, number: int) -> PlannedBytes:
    operation, group = step.operation, step.group
    assert isinstance(operation, Conv)
    panels = -(-operation.weight.shape[0] // group)
    entries, each = step.entries, FLOAT32
    if plan.dtype == "bfloat16" and group >= PAIRED:
        union = union_columns(operation.weight.stored(), group)
        pairs = int((-(-np.count_nonzero(union, axis=1) // 2)).sum())
        # Two offsets a pair; of its values two bfloat16 fill what one float32 would.
        entries, each = 2 * pairs, FLOAT32 // 2
    values, offsets = entries * group * each, entries * OFFSET
    rest = _panel_arrays(panels, group) + _filled(values, offsets)
    if tiling.copies:
        rest += _lines(COPY * tiling.copies) + _lines(3 * POINTER * step.copies)
        rest += _lines(FLOAT32 * step.copies * tiling.kept)
    held = _lines(number * (tiling.copies * tiling.held + LINE)) if tiling.copies else 0
    if tiling.copies and tiling.doubled:
        held += _lines(number * (2 * LINE + tiling.doubled))
    sums = group * tiling.vectors * LINE * FLOAT32 if tiling.flat else 0
    return PlannedBytes(
        values=values,
        offsets=offsets,
        rest=rest,
        scratch=held + _lines(sums),
    )


def _block(block: LinearBlock) -> PlannedBytes:
    def most(counts: Iterable[int]) -> int:
        return max(counts, default=0)

    weights, heads = block.weights, block.heads
    rows = len(block.norm.gain) + 1
    context = rows + most(h.k + 1 for h in heads) + most(h.v for h in heads)
    rows = max(len(block.norm.gain), len(block.out_norm.gain)) + 1
    apply = rows + most(h.q + 2 for h in heads) + sum(h.v for h in heads)
    return PlannedBytes(
        values=sum(FLOAT32 * weight.entries * weight.group for weight in weights),
        offsets=sum(OFFSET * weight.entries for weight in weights),
        rest=sum(map(_weight_rest, weights))
        + _lines(block.out_norm.gain.nbytes)
        + _lines(HEAD * len(heads)),
        scratch=FLOAT32 * block.stride * max(context, apply),
    )


def _weight_rest(weight: Weight) -> int:
    values, offsets = FLOAT32 * weight.entries * weight.group, OFFSET * weight.entries
    return _panel_arrays(len(weight.panels.rows), weight.group) + _filled(values, offsets)


def _panel_arrays(panels: int, group: int) -> int:
    """Where panels begin, the row of each slot, and its bias."""
    return _lines(POINTER * (panels + 1)) + 2 * _lines(SLOT * panels * group)


def _filled(*sizes: int) -> int:
    """What fills the last lines of arrays of these sizes."""
    return sum(_lines(size) - size for size in sizes)


def _attention(plan: Plan, operation: Attention | LinearAttention, number: int) -> int:
    _, height, width = plan.program.shapes[operation.qkv]
    pixels, depth, planar = height * width, operation.dim_head, plan.lanes == 1
    vectors = -(-pixels // LINE) if planar else pixels
    places = plan.arena.placements
    apart = any(
        places[name].row_stride != width * plan.lanes for name in (operation.qkv, operation.out)
    )
    copied = apart or number != FLOAT32 or (planar and pixels % LINE != 0)
    more = 0 if operation.memory is None else operation.memory.shape[3]
    held = (
        QUERIES * (pixels + more) if isinstance(operation, Attention) else depth * (RUN + depth + 2)
    )
    return FLOAT32 * LINE * (4 * depth * vectors * copied + held)


def _moments(plan: Plan) -> int:
    """What convolutions leave for the norms after them: one buffer, as large as the largest, and
    to each such norm the bias.
    """
    buffer = biases = 0
    for before, norm in zip(plan.steps, plan.steps[1:], strict=False):
        if takes_moments(plan, before, norm) and isinstance(before.operation, Conv):
            channels = before.operation.weight.shape[0]
            buffer = max(buffer, 2 * LINE * FLOAT32 * tile(plan, before).spans * channels)
            if before.operation.bias is not None and before.operation.film is None:
                biases += _lines(FLOAT32 * channels)
    return buffer + biases


def takes_moments(plan: Plan, before: Step, norm: Step) -> bool:
    """Whether ``before``, a convolution, sums up its output for ``norm``, which then reads it
    once, not twice.
    """
    conv, operation = before.operation, norm.operation
    return (
        isinstance(conv, Conv)
        and isinstance(operation, NormAct)
        and operation.x == conv.out
        and tile(plan, before).moments
    )


def _lines(size: int) -> int:
    return -(-size // 64) * 64
