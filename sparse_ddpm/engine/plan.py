"""The Plan: a Program laid out for one batch size. A pure function of both.

Everything is decided here before the first step: where each value lies, which kernel runs each
operation, and why. The native engine only carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.engine.arena import Arena, Placement, lanes_for, plan_arena
from sparse_ddpm.engine.fuse import LinearBlock, fuse
from sparse_ddpm.engine.panels import ENTRY_COST, Panels, choose_group, make_panels
from sparse_ddpm.errors import EngineError, expected
from sparse_ddpm.program import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    Operation,
    Program,
    SpaceToDepth,
    Upsample2x,
)

FLOAT_BYTES = 4
MAX_OFFSET = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation's kernel and the reason for it; or a block of operations that run as one.

    ``operation``: that, or the last of the ``block``. ``flops``: what a convolution or a block
    executes for one image, filled-in zeros included, a multiplication and its addition as two;
    else 0. For convolutions: ``group`` (G) and ``entries`` (panel entries).
    """

    operation: Operation
    kernel: str
    reason: str
    group: int = 0
    entries: int = 0
    flops: int = 0
    block: LinearBlock | None = None

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What runs, in the Program's order."""
        return (self.operation,) if self.block is None else self.block.operations


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A Program at one batch size. ``lanes``: floats between neighbouring pixels, >= batch."""

    program: Program
    batch: int
    lanes: int
    arena: Arena
    steps: tuple[Step, ...]

    @property
    def arena_bytes(self) -> int:
        """Bytes of all activations together."""
        return FLOAT_BYTES * self.arena.size

    @property
    def flops(self) -> int:
        """Executed FLOPs of all convolutions and fused blocks for one image."""
        return sum(step.flops for step in self.steps)

    def panels(self, step: Step) -> Panels:
        """The panels of a convolution's weight, made anew at each call."""
        if not isinstance(step.operation, Conv):
            raise EngineError(expected(f"panels of {step.operation.out}", "a Conv", step.kernel))
        return make_panels(step.operation.weight, step.group)

    def offsets(self, step: Step, panels: Panels) -> NDArray[np.int32]:
        """Floats from an output pixel to the input pixel of each panel entry, ``[entries]``.

        Raises `EngineError` when the input is too large for 32-bit offsets.
        """
        operation = step.operation
        if not isinstance(operation, Conv):
            raise EngineError(expected(f"offsets of {operation.out}", "a Conv", step.kernel))
        x = self.arena.placements[operation.x]
        size, middle = operation.size, operation.size // 2
        if x.shape[0] * x.channel_stride > MAX_OFFSET:
            raise EngineError(
                expected(
                    f"{operation.out}: input at batch {self.batch}",
                    f"at most {MAX_OFFSET} floats",
                    f"{x.shape[0] * x.channel_stride}; use a smaller batch",
                )
            )
        channel, tap = np.divmod(np.arange(x.shape[0] * size * size), size * size)
        row, column = np.divmod(tap, size)
        by_column = (
            channel * x.channel_stride
            + (row - middle) * x.row_stride
            + (column - middle) * self.lanes
        )
        offsets: NDArray[np.int32] = by_column.astype(np.int32)[panels.columns]
        return offsets


def make_plan(
    program: Program, batch: int = 1, *, keep_all: bool = False, group: int | None = None
) -> Plan:
    """Lay out ``program`` for ``batch`` images.

    ``keep_all``: every value is stored and no memory is used again, so that all of them can be read
    after a step.
    ``group``: the G of every convolution, default by estimated time. Raises `EngineError`.
    """
    if group is not None and group not in ENTRY_COST:
        raise EngineError(expected("group", f"one of {', '.join(map(str, ENTRY_COST))}", group))
    lanes = lanes_for(batch)
    blocks, reasons = ({}, {}) if keep_all else fuse(program, lanes, group)
    arena = plan_arena(program, lanes, keep_all, blocks)
    inside = {name for block in blocks.values() for name in block.inside}
    steps = tuple(
        _block_step(blocks[operation.out], program)
        if operation.out in blocks
        else _step(operation, program, arena, group, reasons)
        for operation in program.operations
        if operation.out not in inside
    )
    return Plan(program, batch, lanes, arena, steps)


def _block_step(block: LinearBlock, program: Program) -> Step:
    _, height, width = program.shapes[block.mix.out]
    flops = block.flops_per_pixel * height * width
    kernel = "fused linear attention"
    return Step(block.out_norm, kernel, block.reason, flops=flops, block=block)


def _step(
    operation: Operation,
    program: Program,
    arena: Arena,
    group: int | None,
    reasons: Mapping[str, str],
) -> Step:
    match operation:
        case Conv(weight=weight, out=out):
            choice = choose_group(weight, group)
            _, height, width = program.shapes[out]
            flops = 2 * choice.entries * choice.group * height * width
            return Step(
                operation,
                f"panels G={choice.group}",
                choice.reason,
                choice.group,
                choice.entries,
                flops,
            )
        case NormAct(film=film, silu=silu):
            parts = ["group norm", *["FiLM"] * (film is not None), *["SiLU"] * silu]
            return Step(operation, " + ".join(parts), "one read for statistics, one to apply")
        case ChannelNorm():
            return Step(operation, "channel norm", "a few vectors of pixels stay in cache")
        case Attention():
            return Step(operation, "attention", "all scores of a few pixels at once")
        case LinearAttention():
            why = reasons.get(operation.out, "not fused: every value is kept")
            return Step(operation, "linear attention", f"a context matrix a head; {why}")
        case SpaceToDepth():
            return Step(operation, "space to depth", "a copy")
        case Upsample2x():
            return Step(operation, "upsample", "a copy")
        case Add():
            return Step(operation, "add", "neither input's operation could take it as a residual")
        case Concat():
            copied = concat_copies(operation, arena)
            if not any(copied):
                return Step(operation, "none", "both inputs are made in place")
            names = [name for name, c in zip((operation.a, operation.b), copied, strict=True) if c]
            return Step(operation, "copy", f"{' and '.join(names)} already lies elsewhere")


def concat_copies(operation: Concat, arena: Arena) -> tuple[bool, bool]:
    """Whether ``a``, and whether ``b``, has to be copied into the concatenation."""
    out = arena.placements[operation.out]
    a, b = arena.placements[operation.a], arena.placements[operation.b]
    second = out.offset + a.shape[0] * out.channel_stride

    def elsewhere(part: Placement, offset: int) -> bool:
        return part.buffer != out.buffer or part.offset != offset

    return elsewhere(a, out.offset), elsewhere(b, second)
