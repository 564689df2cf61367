"""Where values lie on a GPU: a buffer each, concatenations in one, dead buffers reused.

A buffer is reused only by values of the same layout: kernels write pixels, never the halo, so what
was zero when the memory was allocated stays zero.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparse_ddpm_kernels.triton.layout import Layout, padded_images

from sparse_ddpm.engine.arena import parts_of
from sparse_ddpm.program import Add, ChannelNorm, Concat, Conv, NormAct, Operation, Program
from sparse_ddpm.program.operations import inputs_of


@dataclass(frozen=True, slots=True)
class Place:
    """A value: channels ``first`` to ``first + channels`` of a buffer of ``layout``."""

    buffer: int
    layout: Layout
    first: int
    channels: int

    @property
    def part(self) -> Layout:
        """The value's own channels, with the strides of the buffer."""
        whole = self.layout
        return Layout(self.channels, whole.height, whole.width, whole.images, whole.halo)


@dataclass(frozen=True, slots=True)
class Memory:
    """Every value's place by name, and the layout of each buffer."""

    places: Mapping[str, Place]
    buffers: tuple[Layout, ...]

    @property
    def size(self) -> int:
        """Elements of all buffers together."""
        return sum(layout.size for layout in self.buffers)


@dataclass(frozen=True, slots=True)
class Stage:
    """What one step reads and makes. ``over``: an input that it may overwrite.

    ``size``: of a convolution's filter, whose input ``x`` needs a halo; 0 of anything else.
    """

    inputs: tuple[str, ...]
    out: str
    over: str | None = None
    x: str = ""
    size: int = 0
    concat: tuple[str, str] | None = None

    @classmethod
    def of(cls, operation: Operation) -> Stage:
        """A step of one operation."""
        match operation:
            case Conv():
                return cls(
                    inputs_of(operation),
                    operation.out,
                    operation.residual,
                    operation.x,
                    operation.size,
                )
            case Concat():
                pair = operation.a, operation.b
                return cls(pair, operation.out, concat=pair)
            case NormAct() | ChannelNorm():
                return cls(inputs_of(operation), operation.out, operation.x)
            case Add():
                return cls(inputs_of(operation), operation.out, operation.a)
            case _:
                return cls(inputs_of(operation), operation.out)


def plan_memory(
    program: Program, stages: Sequence[Stage], batch: int, keep_all: bool = False
) -> Memory:
    """Place what ``stages`` make of ``batch`` images, padded to a multiple of 8.

    ``keep_all``: no buffer is written twice, for traces.
    """
    parents = _parents(program, stages, reuse=not keep_all)
    made = (program.input, *(stage.out for stage in stages))

    def root(name: str) -> tuple[str, int]:
        channel = 0
        while name in parents:
            name, first = parents[name]
            channel += first
        return name, channel

    owners = {name: root(name) for name in made}
    halos: Counter[str] = Counter()
    for stage in stages:
        if stage.size > 0:
            owner = owners[stage.x][0]
            halos[owner] = max(halos[owner], stage.size // 2)
    images = padded_images(batch)
    layouts = {
        owner: Layout(*program.shapes[owner], images, halos[owner]) for owner, _ in owners.values()
    }
    spans = _spans(program, stages, owners)
    buffers: list[Layout] = []
    free: dict[Layout, list[tuple[int, int]]] = defaultdict(list)  # last step, buffer
    number: dict[str, int] = {}
    for owner in sorted(spans, key=lambda name: spans[name]):
        first, last = spans[owner]
        layout = layouts[owner]
        dead = [item for item in free[layout] if item[0] < first and not keep_all]
        if dead:
            # The one that died last is the likeliest to lie in a cache.
            item = max(dead)
            free[layout].remove(item)
            number[owner] = item[1]
        else:
            number[owner] = len(buffers)
            buffers.append(layout)
        free[layout].append((last, number[owner]))
    places = {
        name: Place(number[owner], layouts[owner], channel, program.shapes[name][0])
        for name, (owner, channel) in owners.items()
    }
    return Memory(places, tuple(buffers))


def _parents(program: Program, stages: Sequence[Stage], reuse: bool) -> dict[str, tuple[str, int]]:
    """Values made inside another's buffer: its name and their first channel there."""
    parents: dict[str, tuple[str, int]] = {}
    uses: Counter[str] = Counter([program.output])
    last = {program.output: len(stages)}
    for step, stage in enumerate(stages):
        uses.update(stage.inputs)
        last.update({name: max(step, last.get(name, 0)) for name in stage.inputs})
        if stage.concat is not None:
            first, second = stage.concat
            for name, channel in ((first, 0), (second, program.shapes[first][0])):
                parents.setdefault(name, (stage.out, channel))
    for step, stage in enumerate(stages):
        over = stage.over
        if not reuse or over is None or uses[over] > 1 or over == program.input:
            continue
        # Not if what lies in it, as part of a concatenation, is read again.
        if all(last[name] < step for name in parts_of(over, parents)):
            parents.setdefault(over, (stage.out, 0))
    return parents


def _spans(
    program: Program, stages: Sequence[Stage], owners: Mapping[str, tuple[str, int]]
) -> dict[str, tuple[int, int]]:
    """First and last step that uses each buffer; step 0 loads, stage i is step i + 1."""
    spans: dict[str, tuple[int, int]] = {}

    def use(name: str, step: int) -> None:
        owner = owners[name][0]
        first, last = spans.get(owner, (step, step))
        spans[owner] = min(first, step), max(last, step)

    use(program.input, 0)
    for step, stage in enumerate(stages, start=1):
        for name in (*stage.inputs, stage.out):
            use(name, step)
    use(program.output, len(stages) + 1)
    return spans
