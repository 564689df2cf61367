"""The plan's cost model in seconds: what each operation of the CPU engine should take.

Work is counted in multiply-adds of one vector of 16 floats, 32 FLOPs: of a convolution's panels
what `engine.panels` chooses G by, of everything else figures that were fitted, once, to the
operations of whole steps (one thread of AVX-512; benchmarks/accounts.py measures how near they
come). A machine's peak of multiply-adds turns work into seconds, so that memory is taken to be as
fast, beside its arithmetic, as that of the machine they were fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparse_ddpm.accounting.limits import Ceilings
from sparse_ddpm.accounting.memory import FLOAT32, block_bytes, step_bytes
from sparse_ddpm.accounting.planned import OFFSET, takes_moments
from sparse_ddpm.accounting.tiling import tile
from sparse_ddpm.engine.arena import LINE
from sparse_ddpm.engine.base import AnyPlan
from sparse_ddpm.engine.costs import BLOCK_COSTS, Read, Way, conv_costs, halo_cost
from sparse_ddpm.engine.fuse import LinearBlock
from sparse_ddpm.engine.plan import DTYPES, Plan, Step, weight_bytes
from sparse_ddpm.program import Attention, ChannelNorm, Concat, Conv, LinearAttention, NormAct
from sparse_ddpm.program.program import Shape

OUTPUT = "output"
"""The name under which `CpuEngine.timings` has the storing of images."""

VECTOR_FLOPS = 2 * LINE


@dataclass(frozen=True, slots=True)
class Costs:
    """Work in vector multiply-adds, by vector, channel or operation; a vector is 16 neighbouring
    pixels of one image, or one pixel of 16 images.
    """

    entry: float
    """Of the panels' own estimate."""
    stored: float
    residual: float
    norm: float
    norm_again: float
    norm_channel: float
    channel_norm: float
    channel_norm_channel: float
    moved: float
    moved_channel: float
    score: float
    """Attention: of 32 FLOPs, exponentials included."""
    attention: float
    block_entry: float
    block_product: float
    block_norm: float
    block_exp: float
    block_pixel: float
    block: float
    image: float


COSTS: Mapping[bool, Costs] = {
    False: Costs(
        entry=1.08,
        stored=0.0,
        residual=1.0,
        norm=13.7,
        norm_again=3.7,
        norm_channel=37.5,
        channel_norm=8.3,
        channel_norm_channel=62.0,
        moved=6.0,
        moved_channel=29.0,
        score=1.29,
        attention=3900.0,
        block_entry=1.09,
        block_product=1.07,
        block_norm=21.6,
        block_exp=15.9,
        block_pixel=0.0,
        block=18000.0,
        image=40.0,
    ),
    True: Costs(
        entry=1.05,
        stored=8.5,
        residual=2.0,
        norm=15.1,
        norm_again=5.2,
        norm_channel=138.0,
        channel_norm=12.0,
        channel_norm_channel=0.0,
        moved=8.6,
        moved_channel=0.0,
        score=1.35,
        attention=35000.0,
        block_entry=1.2,
        block_product=1.88,
        block_norm=20.2,
        block_exp=14.5,
        block_pixel=174.0,
        block=0.0,
        image=110.0,
    ),
}
"""By whether vectors hold images."""

WAIT = 1.1e-6
"""Seconds until another thread sees that an operation is done, at each operation."""
SHARED_BYTE = 0.03e-9
"""Seconds more for each byte that an operation reads of what another thread wrote."""
SPILL = 0.5
"""Of the memory's time for what an operation reads and writes beyond the caches: the rest hides
behind its arithmetic."""
STREAM = 1.2
"""Of the memory's time for the weights of narrow panels, which a step reads once and whose products
do not hide that, what is not hidden..."""
STREAM_CACHES = 5
"""... where a step's weights are many times this often the second cache."""
NARROW = 2
""""Narrow" is a G of so many."""


def predict(plan: AnyPlan, ceilings: Ceilings) -> dict[str, float]:
    """Seconds of one step of the whole batch, by the value made, as `CpuEngine.timings` has them:
    loading the images, all steps of the plan in order, and storing the images (`OUTPUT`). What
    runs nothing takes none. A `CudaPlan` gives its own estimates, of its operations alone.
    """
    if not isinstance(plan, Plan):
        from sparse_ddpm.accounting.gpu import predict_on_gpu

        return predict_on_gpu(plan)
    threads = ceilings.threads
    second = threads * VECTOR_FLOPS / ceilings.flops_per_s
    passes = -(-plan.batch // plan.lanes)
    program, costs = plan.program, COSTS[plan.lanes > 1]
    memory, weights = _Memory.of(plan, ceilings), weight_bytes(program)
    found: dict[str, float] = {}

    def add(name: str, shape: Shape, work: float, units: float, more: float = 0.0) -> None:
        once = work * second / max(min(threads, units), 1.0) + more
        if threads > 1 and work > 0.0:
            written = FLOAT32 * LINE * _vectors(shape, plan)
            once += WAIT + SHARED_BYTE * written * (threads - 1) / threads
        found[name] = passes * once

    first, last = program.input_shape, program.shapes[program.output]
    add(program.input, first, costs.image * _vectors(first, plan), first[0])
    before: Step | None = None
    for step in plan.steps:
        work, units = _work(plan, step, before, costs, weights)
        shape = program.shapes[step.operation.out]
        add(step.operation.out, shape, work, units, memory.seconds(plan, step) if work else 0.0)
        before = step
    add(OUTPUT, last, 2.0 * costs.image * _vectors(last, plan), last[0])
    return found


@dataclass(frozen=True, slots=True)
class _Memory:
    """What comes from beyond the caches: ``spilled``, the share of an arena that is larger than the
    last of them; ``streamed``, the share of a step's weights that is not near at hand.
    """

    spilled: float
    streamed: float
    bytes_per_s: float
    threads: int

    @classmethod
    def of(cls, plan: Plan, ceilings: Ceilings) -> _Memory:
        sizes = {level.name: level.size for level in ceilings.levels if level.size > 0}
        last, near = max(sizes.values(), default=0), STREAM_CACHES * sizes.get("L2", 0)
        weights = sum(map(_weight_bytes, plan.steps))
        return cls(
            spilled=max(0.0, 1.0 - last / plan.arena_bytes),
            streamed=weights / max(weights + near, 1),
            bytes_per_s=ceilings.levels[-1].bytes_per_s,
            threads=ceilings.threads,
        )

    def seconds(self, plan: Plan, step: Step) -> float:
        """Of one pass of ``step``."""
        shapes, number = plan.program.shapes, DTYPES[plan.dtype]
        size = (
            step_bytes(step.operations, shapes, number)
            if step.block is None
            else block_bytes(step.block, shapes, number)
        )
        moved = SPILL * self.spilled * plan.lanes * (size.read + size.written)
        # One image a pass: the entries' costs have it.
        if 0 < step.group <= NARROW and plan.lanes > 1:
            moved += self.streamed * STREAM * _weight_bytes(step) / self.threads
        return moved / self.bytes_per_s


def _weight_bytes(step: Step) -> int:
    return step.entries * (FLOAT32 * step.group + OFFSET)


def _vectors(shape: Shape, plan: Plan) -> float:
    """Of one pass."""
    return shape[0] * shape[1] * shape[2] * plan.lanes / LINE


def _work(
    plan: Plan, step: Step, before: Step | None, costs: Costs, weights: int
) -> tuple[float, float]:
    """Vector multiply-adds of one pass, and how many threads can share them."""
    operation = step.operation
    shape = plan.program.shapes[operation.out]
    channels, vectors = shape[0], _vectors(shape, plan)
    if step.block is not None:
        return _block(step.block, plan, shape, costs), float(step.block.chunks)
    match operation:
        case Conv():
            return _conv(plan, step, operation, costs, weights), 1e9
        case NormAct(groups=groups):
            again = before is None or not takes_moments(plan, before, step)
            each = costs.norm + costs.norm_again * again
            each += costs.residual * (operation.residual is not None)
            halo = 0.0
            if plan.lanes == 1 and plan.arena.placements[operation.out].row_stride != shape[2]:
                halo = halo_cost(shape[1:]) * vectors
            return each * vectors + costs.norm_channel * channels + halo, float(groups)
        case ChannelNorm():
            each = costs.channel_norm + costs.residual * (operation.residual is not None)
            return each * vectors + costs.channel_norm_channel * channels, float(shape[1])
        case Attention() | LinearAttention():
            pixels = shape[1] * shape[2]
            terms = pixels if isinstance(operation, Attention) else operation.dim_head
            scores = 2.0 * channels * terms * pixels * plan.lanes / LINE
            return costs.score * scores + costs.attention, float(operation.heads)
        case Concat() if step.kernel == "none":
            return 0.0, 1.0
        case _:
            return costs.moved * vectors + costs.moved_channel * channels, float(channels)


def _conv(plan: Plan, step: Step, operation: Conv, costs: Costs, weights: int) -> float:
    tiling = tile(plan, step)
    rows, group = operation.weight.shape[0], step.group
    panels = -(-rows // group)
    _, height, width = plan.program.shapes[operation.out]
    costs_of = conv_costs(plan.dtype, plan.lanes, operation.size, (height, width), weights)
    cost = costs_of[Way(group, step.copies > 0)]
    vectors = max(1.0, height * width * plan.lanes / LINE)
    work = costs.entry * vectors * cost.time(step.entries, panels * group, Read(0, tiling.copies))
    stored = costs.stored + costs.residual * (operation.residual is not None)
    return work + stored * rows * tiling.vectors


def _block(block: LinearBlock, plan: Plan, shape: Shape, costs: Costs) -> float:
    pixels = shape[1] * shape[2] * plan.lanes
    dim = block.mix.dim_head
    panels = sum(
        weight.entries * BLOCK_COSTS[Way(weight.group, False)].entry
        + 0.1 * len(weight.panels.rows) * weight.group
        for weight in block.weights
    )
    products = sum(head.v * (head.rows(dim) + head.terms(dim)) for head in block.heads)
    powers = sum(head.q + head.k for head in block.heads)
    each = (
        costs.block_entry * panels
        + costs.block_product * products
        + costs.block_norm * shape[0]
        + costs.block_exp * powers
        + costs.block_pixel
    )
    return each * pixels / LINE + costs.block
