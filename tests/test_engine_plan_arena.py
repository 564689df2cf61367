"""Placement of values: no overlap while alive, alignment, concatenation without copies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparse_ddpm.accounting import account
from sparse_ddpm.engine import make_engine
from sparse_ddpm.engine.arena import Arena, lanes_for, plan_arena
from sparse_ddpm.engine.plan import make_plan
from sparse_ddpm.errors import EngineError
from sparse_ddpm.formats import CSR, Dense
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Add, Concat, Conv, NormAct, Program, TimeEmbedding, Upsample2x
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket

CONFIG = UNetConfig(dim=8, dim_mults=(1, 2, 2), channels=3, image_size=8, groups=4)
TIME = TimeEmbedding(
    2,
    np.zeros((4, 2), "f4"),
    np.zeros(4, "f4"),
    np.zeros((4, 4), "f4"),
    np.zeros(4, "f4"),
    Dense(np.zeros((0, 4), "f4")),
    np.zeros(0, "f4"),
)


@pytest.fixture(scope="module")
def program() -> Program:
    return lower(synthetic_ticket(CONFIG, 0.8))


def conv(out: str, x: str, channels: int, size: int = 1) -> Conv:
    return Conv(out, x, Dense(np.ones((channels, channels * size * size), "f4")), size)


def test_a_pass_is_full_only_where_that_is_faster() -> None:
    lanes = {batch: lanes_for(batch) for batch in (1, 2, 12, 13, 16, 17, 25, 26, 32, 33, 64, 100)}
    assert lanes == {
        1: 1, 2: 1, 12: 1, 13: 16, 16: 16, 17: 1, 25: 1, 26: 16, 32: 16, 33: 1, 64: 16, 100: 16,
    }  # fmt: skip


@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize("lanes", [1, 3, 16])
def test_buffers_in_use_together_are_apart(program: Program, lanes: int, keep_all: bool) -> None:
    arena = plan_arena(program, lanes, keep_all)
    for a, b in itertools.combinations(arena.buffers.values(), 2):
        together = keep_all or (a.first <= b.last and b.first <= a.last)
        if together:
            assert a.start + a.size <= b.start or b.start + b.size <= a.start
    for buffer in arena.buffers.values():
        assert buffer.start % 16 == 0
        assert buffer.start + buffer.size <= arena.size


@pytest.mark.parametrize("lanes", [1, 3, 16])
def test_taps_and_whole_vectors_stay_within_the_channel(program: Program, lanes: int) -> None:
    arena = plan_arena(program, lanes, keep_all=False)
    for place in arena.placements.values():
        _, height, width = place.shape
        reach = place.halo * (place.row_stride + lanes)
        image = (height - 1) * place.row_stride + width * lanes
        assert place.row_stride == (width + place.halo) * lanes
        assert place.lead >= reach
        assert place.lead + image + reach + 15 <= place.channel_stride
        assert place.lead % 16 == place.channel_stride % 16 == place.offset % 16 == 0
        assert place.channel_stride // 16 % 2 == 1


def test_every_value_is_used_within_its_buffers_life(program: Program) -> None:
    arena = plan_arena(program, 1, keep_all=False)
    for step, operation in enumerate(program.operations, start=1):
        names = [operation.out]
        names += [
            value
            for field in ("x", "a", "b", "qkv", "residual")
            if isinstance(value := getattr(operation, field, None), str)
        ]
        for name in names:
            buffer = arena.buffers[arena.placements[name].buffer]
            assert buffer.first <= step <= buffer.last


def test_reuse_saves_memory(program: Program) -> None:
    kept = plan_arena(program, 16, keep_all=True).size
    assert plan_arena(program, 16, keep_all=False).size < 0.4 * kept


def test_concatenations_of_the_unet_copy_nothing(program: Program) -> None:
    steps = make_plan(program).steps
    kernels = {step.kernel for step in steps if isinstance(step.operation, Concat)}
    assert kernels == {"none"}


def inside(arena: Arena, name: str, owner: str, channel: int) -> bool:
    place, whole = arena.placements[name], arena.placements[owner]
    return place.offset == whole.offset + channel * whole.channel_stride


def test_nested_concatenations_share_one_buffer_and_halo() -> None:
    operations = (
        conv("a", "x", 2),
        conv("b", "a", 2),
        Concat("ab", "a", "b"),
        Concat("abx", "ab", "x"),
        conv("y", "abx", 6, size=7),
    )
    arena = plan_arena(Program(operations, "x", (2, 4, 4), "y", TIME), 1, keep_all=False)
    assert inside(arena, "a", "abx", 0)
    assert inside(arena, "b", "abx", 2)
    assert inside(arena, "x", "abx", 4)
    assert {arena.placements[name].halo for name in ("a", "b", "ab", "abx", "x")} == {3}
    assert set(arena.buffers) == {"abx", "y"}
    assert arena.buffers["abx"].first == 0


def test_a_value_lies_in_one_concatenation_and_is_copied_to_the_next() -> None:
    operations = (
        conv("a", "x", 2),
        Concat("first", "a", "x"),
        Concat("second", "x", "a"),
        Add("y", "first", "second"),
    )
    plan = make_plan(Program(operations, "x", (2, 4, 4), "y", TIME))
    assert plan.steps[1].kernel == "none"
    assert plan.steps[2].kernel == "copy"
    assert "x and a" in plan.steps[2].reason


def test_what_one_convolution_reads_upsampled_has_no_place() -> None:
    operations = (Upsample2x("large", "x"), conv("y", "large", 2, size=3))
    graph = Program(operations, "x", (2, 4, 4), "y", TIME)
    alone, many, kept = (
        make_plan(graph),
        make_plan(graph, batch=16),
        make_plan(graph, keep_all=True),
    )
    assert [step.operations for step in alone.steps] == [operations]
    assert alone.steps[0].kernel == "dense G=2, upsampled, columns shifted"
    assert set(alone.arena.placements) == {"x", "y"}
    assert "large" in many.arena.placements
    assert "large" in kept.arena.placements
    assert [row.read_bytes for row in account(alone)] == [4 * 2 * 4 * 4]
    assert [row.read_bytes for row in account(kept)] == [4 * 2 * 4 * 4, 4 * 2 * 8 * 8]


def test_a_value_that_nobody_reads_is_placed_too() -> None:
    operations = (conv("dead", "x", 2), conv("y", "x", 2))
    arena = plan_arena(Program(operations, "x", (2, 4, 4), "y", TIME), 1, keep_all=False)
    assert arena.buffers["dead"].first == arena.buffers["dead"].last == 1


def test_offsets_that_do_not_fit_are_refused() -> None:
    columns = 1_000
    weight = CSR((1, columns), np.array([0, 1], "i4"), np.array([999], "i4"), np.ones(1, "f4"))
    program = Program((Conv("y", "x", weight, 1),), "x", (columns, 512, 512), "y", TIME)
    plan = make_plan(program, batch=16)
    step = plan.steps[0]
    with pytest.raises(EngineError, match=r"y: input at batch 16: expected at most 2147483647"):
        plan.offsets(step, plan.panels(step))


def test_a_value_read_again_is_not_overwritten_with_the_concatenation_it_lies_in() -> None:
    ones, zeros = np.ones(8, "f4"), np.zeros(8, "f4")
    rng = np.random.default_rng(0)
    program = Program(
        (
            conv("a", "x", 4),
            Conv("b", "a", Dense(rng.standard_normal((4, 4), "f4")), 1),
            Concat("ab", "a", "b"),
            NormAct("n", "ab", 2, ones, zeros),
            Conv("c", "n", Dense(rng.standard_normal((4, 8), "f4")), 1, residual="a"),
        ),
        "x",
        (4, 2, 2),
        "c",
        TIME,
    )
    x = rng.standard_normal((1, 4, 2, 2), "f4")
    outputs = []
    for device in ("numpy", "cpu"):
        engine = make_engine(program, device, batch=1)
        engine.set_schedule(np.array([0]))
        outputs.append(engine.run(x, 0))
        engine.close()
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
