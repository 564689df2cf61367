"""The Plan: a Program laid out for one batch size. A pure function of both.

Everything is decided here before the first step: where each value lies, which kernel runs each
operation, and why. The native engine only carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.engine.arena import Arena, Placement, lanes_for, plan_arena
from sparse_ddpm.engine.costs import GROUPS, Read, conv_costs, copies_of
from sparse_ddpm.engine.fuse import LinearBlock, fuse
from sparse_ddpm.engine.panels import GroupChoice, Panels, choose_group, make_panels
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

DTYPES: Mapping[str, int] = MappingProxyType({"float32": 4, "float16": 2, "bfloat16": 2})
"""Precisions and the bytes of an activation in memory.

float32: everything. float16: activations are stored as float16, all arithmetic is float32.
bfloat16: so too, but panels of 8 and 16 channels multiply in bfloat16 and add in float32.
"""

MAX_OFFSET = 2**31 - 1

Weightless = (
    NormAct | ChannelNorm | Attention | LinearAttention | SpaceToDepth | Upsample2x | Concat | Add
)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation's kernel and the reason for it; or operations that run as one.

    ``operation``: that, or the last of the ``block``. ``flops``: what a convolution or a block
    executes for one image, filled-in zeros included, a multiplication and its addition as two;
    else 0. For convolutions: ``group`` (G), ``entries`` (panel entries), ``copies``, the shifted
    ones of each input channel that it may read, and ``upsample``, done while they are made.
    """

    operation: Operation
    kernel: str
    reason: str
    group: int = 0
    entries: int = 0
    flops: int = 0
    copies: int = 0
    upsample: Upsample2x | None = None
    block: LinearBlock | None = None

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What runs, in the Program's order."""
        if self.block is not None:
            return self.block.operations
        return (self.operation,) if self.upsample is None else (self.upsample, self.operation)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A Program at one batch size. ``lanes``: images of one pass, see `lanes_for`."""

    program: Program
    batch: int
    dtype: str
    lanes: int
    arena: Arena
    steps: tuple[Step, ...]

    @property
    def arena_bytes(self) -> int:
        """Bytes of all activations together."""
        return DTYPES[self.dtype] * self.arena.size

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

        The column of the weight instead where shifted copies are read: the kernels lay those out.

        Raises `EngineError` when the input is too large for 32-bit offsets.
        """
        operation = step.operation
        if not isinstance(operation, Conv):
            raise EngineError(expected(f"offsets of {operation.out}", "a Conv", step.kernel))
        if step.copies:
            return panels.columns.astype(np.int32)
        size, middle = operation.size, operation.size // 2
        x = self.arena.placements[operation.x]
        if x.shape[0] * x.channel_stride > MAX_OFFSET:
            raise EngineError(
                expected(
                    f"{operation.out}: input at batch {self.batch}",
                    f"at most {MAX_OFFSET} floats",
                    f"{x.shape[0] * x.channel_stride}; use a smaller batch",
                )
            )
        channel, tap = np.divmod(np.arange(operation.weight.shape[1]), size * size)
        row, column = np.divmod(tap, size)
        by_column = channel * x.channel_stride + (row - middle) * x.row_stride
        by_column += (column - middle) * self.lanes
        offsets: NDArray[np.int32] = by_column.astype(np.int32)[panels.columns]
        return offsets


def make_plan(
    program: Program,
    batch: int = 1,
    dtype: str = "float32",
    *,
    keep_all: bool = False,
    group: int | None = None,
    copied: bool | None = None,
) -> Plan:
    """Lay out ``program`` for ``batch`` images of activations of ``dtype``, one of `DTYPES`.

    ``keep_all``: every value is stored and no memory is used again, so that all of them can be read
    after a step.
    ``group``: the G of every convolution, ``copied``: whether they read shifted copies of their
    input where they can; default of both: by estimated time. Raises `EngineError`.
    """
    if dtype not in DTYPES:
        raise EngineError(
            expected("dtype of the cpu engine", f"one of {', '.join(DTYPES)}", repr(dtype))
        )
    if group is not None and group not in GROUPS:
        raise EngineError(expected("group", f"one of {', '.join(map(str, GROUPS))}", group))
    lanes = lanes_for(batch)
    blocks, reasons = ({}, {}) if keep_all else fuse(program, lanes, group)
    inside = {name for block in blocks.values() for name in block.inside}
    convs = [op for op in program.operations if isinstance(op, Conv) and op.out not in inside]
    size = weight_bytes(program)
    groups, shifted = {}, {}
    for conv in convs:
        _, height, width = program.shapes[conv.out]
        costs = conv_costs(dtype, lanes, conv.size, (height, width), size)
        copies = copies_of(conv.size, (height, width))
        read = Read(conv.weight.shape[1] // conv.size**2, copies_read(conv, copies))
        groups[conv.out] = choice = choose_group(conv.weight, group, costs, read, copied)
        if choice.copied:
            shifted[conv.out] = copies
    upsamples = {} if keep_all else _upsamples(program, shifted)
    inside |= {upsample.out for upsample in upsamples.values()}
    arena = plan_arena(program, lanes, keep_all, shifted, upsamples, blocks, DTYPES[dtype])
    steps = []
    for op in program.operations:
        if op.out in inside:
            continue
        if op.out in blocks:
            steps.append(_block_step(blocks[op.out], program))
        elif isinstance(op, Conv):
            copies, upsample = shifted.get(op.out, 0), upsamples.get(op.out)
            steps.append(_conv_step(op, program, groups[op.out], copies, upsample))
        else:
            steps.append(_step(op, arena, reasons))
    return Plan(program, batch, dtype, lanes, arena, tuple(steps))


def weight_bytes(program: Program) -> int:
    """Of the weights of all convolutions, in the Program's formats."""
    return sum(op.weight.nbytes for op in program.operations if isinstance(op, Conv))


def _block_step(block: LinearBlock, program: Program) -> Step:
    _, height, width = program.shapes[block.mix.out]
    flops = block.flops_per_pixel * height * width
    kernel = "fused linear attention"
    return Step(block.out_norm, kernel, block.reason, flops=flops, block=block)


def copies_read(operation: Conv, copies: int) -> int:
    """Of ``copies`` shifted ones of each input channel, those that some weight reads."""
    size = operation.size
    taps = operation.weight.stored().any(axis=0).reshape(-1, size, size)
    return int(np.count_nonzero(taps if copies > size else taps.any(axis=1)))


def _upsamples(program: Program, copied: Mapping[str, int]) -> dict[str, Upsample2x]:
    """By convolution: the upsampling of its input, where nothing else reads that."""
    uses = program.uses()
    made = {op.out: op for op in program.operations if isinstance(op, Upsample2x)}
    return {
        op.out: made[op.x]
        for op in program.operations
        if isinstance(op, Conv) and op.out in copied and op.x in made and uses[op.x] == 1
    }


def _conv_step(
    operation: Conv, program: Program, choice: GroupChoice, copies: int, upsample: Upsample2x | None
) -> Step:
    _, height, width = program.shapes[operation.out]
    size = operation.size
    source = {0: "", size: ", columns shifted", size**2: ", taps shifted"}[copies]
    doubled = "" if upsample is None else ", upsampled"
    return Step(
        operation,
        f"{'dense' if choice.dense else 'panels'} G={choice.group}{doubled}{source}",
        choice.reason,
        choice.group,
        choice.entries,
        2 * choice.entries * choice.group * height * width,
        copies,
        upsample,
    )


def _step(operation: Weightless, arena: Arena, reasons: Mapping[str, str]) -> Step:
    match operation:
        case NormAct(film=film, silu=silu):
            parts = ["group norm", *["FiLM"] * (film is not None), *["SiLU"] * silu]
            why = "one read to apply; statistics from a convolution of large tiles, else one read"
            return Step(operation, " + ".join(parts), why)
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
