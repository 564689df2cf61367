"""Where values lie in memory: layouts, concatenation without copies, reuse of dead buffers.

A value is ``[C, H, W, lanes]`` floats with the batch innermost and a zero halo. The zeros at the
right of one row serve as those at the left of the next, so rows are ``(W + halo) * lanes`` apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from sparse_ddpm.engine.fuse import LinearBlock
from sparse_ddpm.program import (
    Add,
    ChannelNorm,
    Concat,
    Conv,
    NormAct,
    Operation,
    Program,
    Upsample2x,
)
from sparse_ddpm.program.operations import inputs_of
from sparse_ddpm.program.program import Shape

FLOAT_BYTES = 4

LINE = 16
"""Floats in a cache line: the alignment of buffers and channels."""

NO_UPSAMPLES: Mapping[str, Upsample2x] = MappingProxyType({})
NO_BLOCKS: Mapping[str, LinearBlock] = MappingProxyType({})

FULL_PASS = 13
"""One-image passes that take as long as a pass of `LINE` images (measured)."""


def _round_up(count: int) -> int:
    return -(-count // LINE) * LINE


def lanes_for(batch: int) -> int:
    """Images of one pass over the Program, side by side in memory: 1 or `LINE`, the faster.

    A step of more images makes several passes: larger ones would share nothing more, and leave the
    caches.
    """
    return LINE if FULL_PASS * -(-batch // LINE) <= batch else 1


@dataclass(frozen=True, slots=True)
class Placement:
    """A value in the arena. Strides and offsets are in floats.

    Element (n, c, h, w) lies at ``offset + c * channel_stride + h * row_stride + w * lanes + n``;
    ``lead`` floats of each channel come before its first pixel.
    """

    shape: Shape
    halo: int
    offset: int
    channel_stride: int
    row_stride: int
    lead: int
    buffer: str
    """The value whose buffer this is: itself, or the one that it is made in."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Floats ``start`` to ``start + size`` of the arena, in use from step ``first`` to ``last``."""

    start: int
    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Arena:
    """Every value's placement, the buffers by name, and the size in floats."""

    placements: Mapping[str, Placement]
    buffers: Mapping[str, Buffer]
    size: int


@dataclass(frozen=True, slots=True)
class _Layout:
    lead: int
    row_stride: int
    channel_stride: int


def _layout(height: int, width: int, halo: int, lanes: int) -> _Layout:
    row = (width + halo) * lanes
    lead = _round_up(halo * row + halo * lanes)
    image = (height - 1) * row + width * lanes
    # One more line: the last vector of an image may reach up to 15 floats past its taps.
    lines = _round_up(lead + image + halo * row + halo * lanes + LINE) // LINE
    # An odd number of lines, so that one pixel's channels spread over all sets of the caches.
    return _Layout(lead, row, LINE * (lines | 1))


@dataclass(frozen=True, slots=True)
class _Stage:
    """What makes one value: operation ``step - 1``, or a block that ends in it.

    ``over``: the input that may be overwritten; ``contexts``: floats of a buffer in use meanwhile.
    """

    step: int
    inputs: tuple[str, ...]
    out: str
    over: str | None
    contexts: int = 0


def _stages(
    program: Program, upsamples: Mapping[str, Upsample2x], blocks: Mapping[str, LinearBlock]
) -> list[_Stage]:
    inside = {name for block in blocks.values() for name in block.inside}
    sources = {upsample.out: upsample.x for upsample in upsamples.values()}
    stages = []
    for step, operation in enumerate(program.operations, start=1):
        out = operation.out
        block = blocks.get(out)
        if block is not None:
            x = block.norm.x
            over = x if program.shapes[x] == program.shapes[out] else None
            stages.append(_Stage(step, block.inputs, out, over, block.floats))
        elif out not in inside and out not in sources:
            inputs = tuple(sources.get(name, name) for name in inputs_of(operation))
            stages.append(_Stage(step, inputs, out, _in_place(operation)))
    return stages


def contexts_of(name: str) -> str:
    """The name of the buffer of the contexts of the block that makes ``name``."""
    return f"{name}/contexts"


def _in_place(operation: Operation) -> str | None:
    """The input that ``operation`` may overwrite: read only where, and before, it is written."""
    match operation:
        case NormAct() | ChannelNorm():
            return operation.x
        case Conv():
            return operation.residual
        case Add():
            return operation.a
        case _:
            return None


def _parents(program: Program, stages: Sequence[_Stage], reuse: bool) -> dict[str, tuple[str, int]]:
    """Values made inside another value's memory: its name and their first channel there.

    Inputs of a concatenation are made in it; with ``reuse``, what only one operation reads is made
    where that operation's result will lie, if it may be overwritten: it, and what lies in it.
    """
    parents: dict[str, tuple[str, int]] = {}
    uses: Counter[str] = Counter([program.output])
    last = {program.output: len(program.operations) + 1}
    for stage in stages:
        uses.update(stage.inputs)
        last.update({name: max(stage.step, last.get(name, 0)) for name in stage.inputs})
    for operation in program.operations:
        if isinstance(operation, Concat):
            for name, channel in ((operation.a, 0), (operation.b, program.shapes[operation.a][0])):
                if name not in parents:
                    parents[name] = (operation.out, channel)
    for stage in stages:
        over = stage.over
        if not reuse or over is None or uses[over] > 1 or over == program.input:
            continue
        if all(last[name] < stage.step for name in parts_of(over, parents)):
            parents.setdefault(over, (stage.out, 0))
    return parents


def parts_of(whole: str, parents: Mapping[str, tuple[str, int]]) -> list[str]:
    """The values that lie inside ``whole``, directly or in one another."""
    parts = [name for name, (owner, _) in parents.items() if owner == whole]
    return parts + [inner for part in parts for inner in parts_of(part, parents)]


def _times(program: Program, stages: Sequence[_Stage]) -> dict[str, tuple[int, int]]:
    """First and last step that uses each value; step 0 loads, operation i is step i + 1."""
    end = len(program.operations) + 1
    times = {program.input: (0, 0)}
    for stage in stages:
        for name in stage.inputs:
            times[name] = (times[name][0], stage.step)
        times[stage.out] = (stage.step, stage.step)
    times[program.output] = (times[program.output][0], end)
    return times


def _place(intervals: Mapping[str, tuple[int, int, int]], reuse: bool) -> dict[str, Buffer]:
    """Start of each (size, first, last): largest first, at the lowest place free at those steps."""
    placed: dict[str, Buffer] = {}
    for name, (size, first, last) in sorted(intervals.items(), key=lambda item: -item[1][0]):
        start = 0
        for other in sorted(placed.values(), key=lambda buffer: buffer.start):
            apart = reuse and (other.last < first or last < other.first)
            if not apart and other.start < start + size and start < other.start + other.size:
                start = other.start + other.size
        placed[name] = Buffer(start, size, first, last)
    return placed


def plan_arena(
    program: Program,
    lanes: int,
    keep_all: bool,
    copied: Collection[str] = (),
    upsamples: Mapping[str, Upsample2x] = NO_UPSAMPLES,
    blocks: Mapping[str, LinearBlock] = NO_BLOCKS,
    number_bytes: int = FLOAT_BYTES,
) -> Arena:
    """Place every value of ``program``; with ``keep_all`` no memory is used twice.

    ``copied``: convolutions that read shifted copies of their input, which needs no halo;
    ``upsamples``: of the inputs of some of them, done on the way. Those have no place, nor have
    values inside ``blocks``; the contexts of a block are a buffer of floats, see `contexts_of`.
    ``number_bytes``: of an activation.
    """
    stages = _stages(program, upsamples, blocks)
    times = _times(program, stages)
    parents = _parents(program, stages, not keep_all)

    def root(name: str) -> tuple[str, int]:
        channel = 0
        while name in parents:
            name, first = parents[name]
            channel += first
        return name, channel

    halos: dict[str, int] = {}
    for name in times:
        halos.setdefault(root(name)[0], 0)
    for operation in program.operations:
        if isinstance(operation, Conv) and operation.x in times and operation.out not in copied:
            owner = root(operation.x)[0]
            halos[owner] = max(halos[owner], operation.size // 2)

    layouts = {
        name: _layout(program.shapes[name][1], program.shapes[name][2], halo, lanes)
        for name, halo in halos.items()
    }
    spans: dict[str, tuple[int, int]] = {}
    for name, (first, last) in times.items():
        owner = root(name)[0]
        begin, end = spans.get(owner, (first, last))
        spans[owner] = (min(begin, first), max(end, last))
    shapes = {name: program.shapes[name] for name in times}
    # Whoever makes shifted copies reads a little before an image: a line of its own, that nothing
    # else writes.
    sizes = {
        name: (LINE + shapes[name][0] * layouts[name].channel_stride, *spans[name])
        for name in halos
    }
    for stage in stages:
        if stage.contexts > 0:
            numbers = _round_up(stage.contexts * FLOAT_BYTES // number_bytes)
            sizes[contexts_of(stage.out)] = (numbers, stage.step, stage.step)
    buffers = _place(sizes, reuse=not keep_all)
    placements = {}
    for name, shape in shapes.items():
        owner, channel = root(name)
        layout = layouts[owner]
        placements[name] = Placement(
            shape=shape,
            halo=halos[owner],
            offset=buffers[owner].start + LINE + channel * layout.channel_stride + layout.lead,
            channel_stride=layout.channel_stride,
            row_stride=layout.row_stride,
            lead=layout.lead,
            buffer=owner,
        )
    size = max(buffer.start + buffer.size for buffer in buffers.values())
    return Arena(placements, buffers, size)
