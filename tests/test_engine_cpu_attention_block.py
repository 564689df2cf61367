"""Linear attention fused with the norms and convolutions around it, against the reference.

Memory is filled with NaN before each run, so that a value read before it is written shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from engine_rig import every_isa, normal
from numpy.typing import NDArray

from sparse_ddpm.accounting import account, operation_flops
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.plan import Plan, Step, make_plan
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.formats import BSR, CSR, Dense, Matrix
from sparse_ddpm.lower import lower
from sparse_ddpm.program import (
    Add,
    ChannelNorm,
    Conv,
    LinearAttention,
    Operation,
    Program,
    TimeEmbedding,
)
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket

TOLERANCE = 3e-6
pytestmark = every_isa()

FUSED = "fused linear attention"
TIME = TimeEmbedding(
    2,
    np.zeros((4, 2), "f4"),
    np.zeros(4, "f4"),
    np.zeros((4, 4), "f4"),
    np.zeros(4, "f4"),
    Dense(np.zeros((0, 4), "f4")),
    np.zeros(0, "f4"),
)


@dataclasses.dataclass
class Block:
    """The five operations from ``x`` to ``y``, and how to change them."""

    channels: int = 6
    heads: int = 2
    dim_head: int = 8
    density: float = 0.4
    residual: str | None = "x"
    scale: float = 1.0
    rows: int | None = None  # of the output: default as many as x has
    dead: Callable[[NDArray[np.float32]], None] | None = None  # edits q, k, v [3, heads, dim, C]
    unread: slice | None = None  # columns of the output convolution without weights
    bias: bool = True

    def weights(self) -> tuple[CSR, CSR]:
        hidden = self.heads * self.dim_head
        rng = np.random.default_rng(1)
        qkv = normal(2, 3 * hidden, self.channels) * self.scale
        qkv *= rng.random(qkv.shape) < self.density
        if self.dead is not None:
            self.dead(qkv.reshape(3, self.heads, self.dim_head, self.channels))
        rows = self.channels if self.rows is None else self.rows
        out = normal(3, rows, hidden)
        out *= rng.random(out.shape) < self.density
        # Channels that are constant, or of two that agree, leave nothing for a norm to see.
        out[np.arange(rows), np.arange(rows) * 5 % hidden] += 2.0
        if self.unread is not None:
            out[:, self.unread] = 0
        return CSR.from_dense(qkv), CSR.from_dense(out)

    def operations(self) -> tuple[Operation, ...]:
        qkv, out = self.weights()
        rows = out.shape[0]
        return (
            ChannelNorm("norm", "x", 1 + 0.3 * normal(4, self.channels)),
            Conv("qkv", "norm", qkv, 1),
            LinearAttention("mix", "qkv", self.heads, self.dim_head),
            Conv("out", "mix", out, 1, normal(5, rows) if self.bias else None),
            ChannelNorm("y", "out", 1 + 0.3 * normal(6, rows), residual=self.residual),
        )

    def program(self, height: int, width: int) -> Program:
        return Program(self.operations(), "x", (self.channels, height, width), "y", TIME)


def attention_step(plan: Plan) -> Step:
    """The step of the one linear attention."""
    found = [s for s in plan.steps if any(isinstance(o, LinearAttention) for o in s.operations)]
    (step,) = found
    return step


def check(
    program: Program,
    batches: tuple[int, ...] = (1, 16),
    threads: tuple[int, ...] = (1, 2),
    fused: bool = True,
    group: int | None = None,
) -> None:
    """Every batch agrees with the reference, and every number of threads with the first."""
    x = normal(7, max(batches), *program.input_shape)
    reference = ReferenceEngine(program, max(batches))
    reference.set_schedule(np.zeros(1))
    wanted = reference.run(x, 0)
    scale = float(np.abs(wanted).max())
    for batch in batches:
        outputs = []
        for count in threads:
            with CpuEngine(program, batch, count, group=group) as engine:
                assert (attention_step(engine.plan).block is not None) == fused
                engine.set_schedule(np.zeros(1))
                outputs.append(engine.run(x[:batch], 0))
                assert np.array_equal(engine.run(x[:batch], 0), outputs[0])
        error = np.abs(outputs[0] - wanted[:batch]).max() / scale
        assert error < TOLERANCE, (batch, error)
        assert all(np.array_equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("batch", [1, 3, 16, 17, 32])
@pytest.mark.parametrize("side", [(1, 1), (4, 4), (7, 5), (8, 8), (17, 16), (33, 1)])
def test_shapes(batch: int, side: tuple[int, int]) -> None:
    check(Block().program(*side), (batch,), (1, 2, 3))


@pytest.mark.parametrize(("heads", "dim_head"), [(1, 1), (1, 32), (3, 5), (4, 32), (2, 20)])
def test_heads(heads: int, dim_head: int) -> None:
    block = Block(heads=heads, dim_head=dim_head, channels=8, density=0.7)
    check(block.program(8, 8))


@pytest.mark.parametrize("channels", [5, 70])
@pytest.mark.parametrize("rows", [5, 40])
def test_as_many_channels_as_it_likes(channels: int, rows: int) -> None:
    residual = "x" if rows == channels else None
    check(Block(channels=channels, rows=rows, residual=residual, density=0.3).program(4, 9))


@pytest.mark.parametrize("bias", [False, True])
def test_without_residual(bias: bool) -> None:
    check(Block(residual=None, bias=bias).program(5, 8))


@pytest.mark.parametrize("side", [(4, 4), (8, 8), (7, 5), (6, 16)])
@pytest.mark.parametrize("after", [1, 3])
def test_between_values_with_halos(side: tuple[int, int], after: int) -> None:
    """x, another residual and the result are read by 3x3 convolutions too."""
    block = Block(residual="other")
    taps = block.channels * after * after
    program = Program(
        (
            Conv("x", "image", Dense(normal(8, block.channels, 3 * 9)), 3),
            Conv("other", "x", Dense(normal(9, block.channels, block.channels * 9)), 3),
            *block.operations(),
            Conv("last", "y", Dense(normal(10, 4, taps)), after),
            Conv("sum", "other", Dense(normal(11, 4, block.channels * 9)), 3, residual="last"),
        ),
        "image",
        (3, *side),
        "sum",
        TIME,
    )
    check(program)


def test_over_its_own_input() -> None:
    """x is read by the block alone: the result takes its memory."""
    block = Block()
    program = Program(
        (
            Conv("x", "image", Dense(normal(8, block.channels, 3)), 1),
            *block.operations(),
            Conv("last", "y", Dense(normal(10, 4, block.channels * 9)), 3),
        ),
        "image",
        (3, 8, 8),
        "last",
        TIME,
    )
    for batch in (1, 16):
        places = make_plan(program, batch).arena.placements
        assert places["x"].offset == places["y"].offset
        assert not {"norm", "qkv", "mix", "out"} & set(places)
    check(program, threads=(1, 2, 3))


def kill(part: int, *index: slice) -> Callable[[NDArray[np.float32]], None]:
    def edit(weights: NDArray[np.float32]) -> None:
        weights[part][index] = 0

    return edit


def kill_all(weights: NDArray[np.float32]) -> None:
    weights[:] = 0


def kill_crosswise(weights: NDArray[np.float32]) -> None:
    """All four cases of q and k, and v in between."""
    weights[0, :, 0::4] = 0
    weights[0, :, 1::4] = 0
    weights[1, :, 0::4] = 0
    weights[1, :, 2::4] = 0
    weights[2, :, 1::3] = 0


SOME, HEAD = slice(1, None, 2), slice(0, 1)
DEAD = {
    "q": kill(0, slice(None), SOME),
    "k": kill(1, slice(None), SOME),
    "v": kill(2, slice(None), SOME),
    "all q": kill(0),
    "all k": kill(1),
    "all v": kill(2),
    "q of a head": kill(0, HEAD),
    "k of a head": kill(1, HEAD),
    "v of a head": kill(2, HEAD),
    "crosswise": kill_crosswise,
    "all": kill_all,
}


@pytest.mark.parametrize("dead", DEAD)
def test_dead_rows(dead: str) -> None:
    check(Block(dead=DEAD[dead], density=1.0).program(7, 5))


def test_dead_rows_are_left_out() -> None:
    block = Block(dead=kill_crosswise, density=1.0, dim_head=12)
    found = attention_step(make_plan(block.program(4, 4))).block
    assert found is not None
    for head in found.heads:
        assert (head.both, head.q, head.k, head.v) == (3, 6, 6, 8)
        assert (head.rows(12), head.terms(12)) == (7, 5)
    assert "12 of 24 q, 12 of 24 k, 16 of 24 v" in found.reason
    assert [len(weight.panels.rows) * weight.group >= 12 for weight in found.weights]


@pytest.mark.parametrize("unread", [slice(0, 8), slice(3, 11), slice(0, 16)])
def test_values_that_nobody_reads(unread: slice) -> None:
    program = Block(unread=unread, density=1.0).program(4, 4)
    check(program)
    found = attention_step(make_plan(program)).block
    assert found is not None
    assert sum(head.v for head in found.heads) == 16 - (unread.stop - unread.start)


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_panels_of_every_size(group: int) -> None:
    block = Block(channels=9, dim_head=13, dead=kill_crosswise, density=0.8)
    check(block.program(4, 8), group=group)


def test_blocks_of_weights() -> None:
    block = Block(channels=8, dim_head=16, density=1.0)
    norm, qkv, mix, out, last = block.operations()
    assert isinstance(qkv, Conv)
    assert isinstance(out, Conv)
    weight: Matrix = BSR.from_dense(qkv.weight.to_dense(), (16, 1), taps=1)
    operations = (norm, dataclasses.replace(qkv, weight=weight), mix, out, last)
    check(Program(operations, "x", (8, 4, 4), "y", TIME))


def test_exponents_near_the_limit() -> None:
    """No maximum is taken: exp of tens and of minus tens are added up as they are."""
    block = Block(scale=7.0, density=1.0)
    program = block.program(6, 16)
    found = attention_step(make_plan(program)).block
    assert found is not None
    assert 40 < found.bound < 75
    # Scores of tens are rounded to float32, and exp makes a relative error of that.
    x = normal(7, 16, *program.input_shape)
    reference = ReferenceEngine(program, 16)
    reference.set_schedule(np.zeros(1))
    with CpuEngine(program, 16, 1) as engine:
        engine.set_schedule(np.zeros(1))
        assert np.abs(engine.run(x, 0) - reference.run(x, 0)).max() < 2e-4


def test_bounds_hold() -> None:
    program = Block(density=1.0).program(8, 8)
    found = attention_step(make_plan(program)).block
    assert found is not None
    reference = ReferenceEngine(program, 4)
    reference.set_schedule(np.zeros(1))
    x = normal(7, 4, *program.input_shape)
    # An input along a row's weights comes close to the bound.
    rows = found.qkv.weight.to_dense() * found.norm.gain
    for n in range(4):
        x[n] += 50 * rows[n][:, None, None]
    largest = np.abs(reference.trace(x, 0)["qkv"][:, :32]).max()
    assert 0.5 * found.bound < largest <= found.bound


def test_exponents_beyond_the_limit_keep_the_maximum() -> None:
    program = Block(scale=20.0, density=1.0).program(4, 4)
    assert "exp must not overflow" in attention_step(make_plan(program)).reason
    with CpuEngine(program, 16, 1) as engine:
        engine.set_schedule(np.zeros(1))
        assert np.isfinite(engine.run(normal(7, 16, *program.input_shape), 0)).all()


@pytest.mark.parametrize("change", ["bias", "size", "reader", "residual", "sum"])
def test_neighbours_that_do_not_fit(change: str) -> None:
    block = Block()
    norm, qkv, mix, out, last = block.operations()
    assert isinstance(norm, ChannelNorm)
    assert isinstance(qkv, Conv)
    assert isinstance(last, ChannelNorm)
    tail: tuple[Operation, ...] = ()
    if change == "bias":
        qkv = dataclasses.replace(qkv, bias=normal(12, 48))
    elif change == "size":
        qkv = dataclasses.replace(qkv, weight=Dense(normal(12, 48, 6 * 9)), size=3)
    elif change == "reader":
        tail = (Conv("z", "mix", Dense(normal(12, 6, 16)), 1, residual="y"),)
    elif change == "residual":
        norm = dataclasses.replace(norm, residual="x")
    else:
        last = dataclasses.replace(last, x="twice")
        tail = (last,)
        last_operation: Operation = Add("twice", "out", "x")
        operations = (norm, qkv, mix, out, last_operation, *tail)
    if change != "sum":
        operations = (norm, qkv, mix, out, last, *tail)
    program = Program(operations, "x", (6, 4, 4), operations[-1].out, TIME)
    check(program, fused=False)
    assert "not fused" in attention_step(make_plan(program)).reason


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("batch", [1, 16])
def test_bad_numbers_reach_the_output_of_their_image_alone(bad: float, batch: int) -> None:
    program = Block(density=1.0).program(4, 4)
    x = normal(7, batch, *program.input_shape)
    x[0, 0, 1, 2] = bad
    with CpuEngine(program, batch, 1) as engine:
        engine.set_schedule(np.zeros(1))
        out = engine.run(x, 0)
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1:]).all()


def test_the_account_of_a_block() -> None:
    config = UNetConfig(dim=16, dim_mults=(1, 2), channels=1, image_size=8, groups=4)
    program = lower(synthetic_ticket(config, 0.97))
    fused, apart = make_plan(program, 16), make_plan(program, 16, keep_all=True)
    blocks = [step for step in fused.steps if step.block is not None]
    assert len(blocks) == 4
    rows = {row.name: row for row in account(fused)}
    for total in ("dense_flops", "surviving_flops", "weight_bytes", "dense_weight_bytes"):
        separate = sum(getattr(row, total) for row in account(apart))
        assert sum(getattr(row, total) for row in rows.values()) == separate
    for step in blocks:
        assert step.block is not None
        assert step.kernel == FUSED
        row = rows[step.operation.out]
        _, height, width = program.shapes[step.block.mix.out]
        convolutions = sum(w.entries * w.group for w in step.block.weights)
        dim = step.block.mix.dim_head
        products = sum(h.v * (h.rows(dim) + h.terms(dim)) for h in step.block.heads)
        assert row.executed_flops == step.flops == 2 * height * width * (convolutions + products)
        assert row.executed_flops < row.surviving_flops
        dense = sum(operation_flops(o, program.shapes).dense for o in step.operations)
        assert row.dense_flops == dense
        inside = [3 * 4 * np.prod(program.shapes[name]) for name in step.block.inside]
        assert row.read_bytes + row.written_bytes < sum(inside)
        assert row.kind == "LinearBlock"
        assert row.density is not None


def test_a_profile_names_the_block_by_its_result() -> None:
    program = Block().program(4, 4)
    with CpuEngine(program, 1, 1, profile=True) as engine:
        engine.set_schedule(np.zeros(1))
        engine.run(normal(7, 1, *program.input_shape), 0)
        assert [name for name, _ in engine.timings()] == ["x", "y", "output"]


def test_a_trace_has_every_value() -> None:
    program = Block().program(4, 4)
    x = normal(7, 16, *program.input_shape)
    with CpuEngine(program, 16, 1) as engine:
        engine.set_schedule(np.zeros(1))
        trace = engine.trace(x, 0)
        assert trace.keys() == set(program.shapes)
        assert np.abs(trace["y"] - engine.run(x, 0)).max() < 1e-5
