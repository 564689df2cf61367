"""Every operation of the C++ engine against the float64 reference, on odd shapes.

Memory is filled with NaN before each run, so that a value read before it is written shows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sparse_ddpm_kernels import ISAS, KernelError, available_isas

from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.formats import BSR, CSR, Dense, Matrix
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
    TimeEmbedding,
    Upsample2x,
)
from sparse_ddpm.program.program import Shape

BATCHES = (1, 3, 7, 16, 17)
SHAPES = ((3, 1, 1), (5, 4, 4), (6, 7, 5), (2, 8, 8), (2, 6, 16))
TOLERANCE = 3e-6


def isas() -> tuple[str, ...]:
    try:
        return available_isas()
    except KernelError:
        return ISAS


@pytest.fixture(params=isas(), autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPARSE_DDPM_ISA", request.param)
    monkeypatch.setenv("SPARSE_DDPM_POISON", "1")
    return str(request.param)


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def time_embedding(columns: int = 0) -> TimeEmbedding:
    return TimeEmbedding(
        dim=4,
        weight1=normal(1, 8, 4),
        bias1=normal(2, 8),
        weight2=normal(3, 8, 8),
        bias2=normal(4, 8),
        film=Dense(normal(5, columns, 8)),
        film_bias=normal(6, columns),
    )


def program(shape: Shape, *operations: Operation, columns: int = 0) -> Program:
    return Program(operations, "x", shape, operations[-1].out, time_embedding(columns))


def check(
    make: Callable[[Shape], Program],
    shapes: tuple[Shape, ...] = SHAPES,
    batches: tuple[int, ...] = BATCHES,
    group: int | None = None,
) -> None:
    """The program of each shape agrees with the reference at every batch, on 1 and 2 threads."""
    timesteps = np.array([3.0, 700.0])
    for shape in shapes:
        graph = make(shape)
        x = normal(7, max(batches), *shape)
        reference = ReferenceEngine(graph, max(batches))
        reference.set_schedule(timesteps)
        wanted = reference.run(x, 1)
        scale = max(float(np.abs(wanted).max()), 1e-3)
        for batch in batches:
            for threads in (1, 2):
                with CpuEngine(graph, batch, threads, group=group) as engine:
                    engine.set_schedule(timesteps)
                    got = engine.run(x[:batch], 1)
                error = np.abs(got - wanted[:batch]).max() / scale
                assert error < TOLERANCE, (shape, batch, threads, error)


def sparse_rows(rows: int, columns: int, density: float = 0.3) -> CSR:
    """Random weights; the first row has none, the last has all."""
    mask = np.random.default_rng(8).random((rows, columns)) < density
    mask[0] = False
    mask[-1] = True
    return CSR.from_dense(normal(9, rows, columns) * mask, mask)


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_conv(size: int, group: int) -> None:
    def make(shape: Shape) -> Program:
        rows = 2 * group + 1
        weight = sparse_rows(rows, shape[0] * size * size)
        return program(shape, Conv("y", "x", weight, size, normal(10, rows)))

    check(make, batches=(1, 3, 16, 17), group=group)


@pytest.mark.parametrize("group", [1, 4, 16])
def test_conv_on_whole_vectors_of_a_wide_image(group: int) -> None:
    def make(shape: Shape) -> Program:
        weight = sparse_rows(18, shape[0] * 9)
        return program(shape, Conv("y", "x", weight, 3, normal(10, 18)))

    check(make, shapes=((3, 9, 32), (2, 5, 48)), batches=(1, 7, 16), group=group)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("size", [3, 5])
def test_conv_of_copies_that_threads_make_for_parts_of_an_image(size: int, density: float) -> None:
    """Images of several spans; at low densities most copies are never read, or none is."""

    def make(shape: Shape) -> Program:
        weight = sparse_rows(20, shape[0] * size * size, density)
        if density == 0.0:
            weight = CSR.from_dense(np.zeros(weight.shape, np.float32))
        return program(shape, Conv("y", "x", weight, size, normal(10, 20)))

    shapes = ((2, 16, 16), (3, 32, 32), (2, 31, 16), (1, 64, 48), (2, 17, 33))
    check(make, shapes=shapes, batches=(1, 2), group=1)


@pytest.mark.parametrize("group", [1, 16])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_conv_of_an_upsampled_image(size: int, group: int) -> None:
    def make(shape: Shape) -> Program:
        weight = sparse_rows(18, shape[0] * size * size)
        return program(shape, Upsample2x("large", "x"), Conv("y", "large", weight, size))

    shapes = (*SHAPES, (2, 2, 2), (3, 16, 16), (1, 5, 24), (2, 9, 32))
    check(make, shapes=shapes, batches=(1, 3, 16), group=group)


def test_an_upsampled_image_that_is_read_twice_is_stored() -> None:
    def make(shape: Shape) -> Program:
        operations: list[Operation] = [Upsample2x("large", "x")]
        for name in ("a", "b"):
            operations.append(Conv(name, "large", sparse_rows(4, shape[0] * 9), 3, normal(10, 4)))
        return program(shape, *operations, Add("y", "a", "b"))

    check(make, batches=(1, 16))


def test_conv_with_residual_and_without_bias() -> None:
    def make(shape: Shape) -> Program:
        weight = sparse_rows(shape[0], shape[0] * 9)
        return program(shape, Conv("y", "x", weight, 3, residual="x"))

    check(make)


@pytest.mark.parametrize("group", [1, 4, 16])
@pytest.mark.parametrize("bias", [True, False])
def test_conv_whose_bias_time_changes(group: int, bias: bool) -> None:
    def make(shape: Shape) -> Program:
        weight = sparse_rows(17, shape[0] * 9)
        given = normal(10, 17) if bias else None
        residual = Conv("r", "x", sparse_rows(17, shape[0]), 1, film=0)
        op = Conv("y", "x", weight, 3, given, residual="r", film=5)
        return program(shape, residual, op, columns=23)

    check(make, group=group)


def test_norm_after_a_conv_whose_bias_time_changes() -> None:
    """Images as large as those whose convolution leaves the norm its moments."""

    def make(shape: Shape) -> Program:
        first = Conv("a", "x", sparse_rows(6, shape[0] * 9), 3, normal(10, 6), film=2)
        second = NormAct("b", "a", 3, normal(12, 6), normal(13, 6), film=8)
        return program(shape, first, second, columns=21)

    check(make, shapes=((3, 5, 4), (2, 16, 16), (3, 32, 32)), batches=(1, 2, 16))


def test_each_step_has_the_bias_of_its_own_row() -> None:
    weight = Dense(np.zeros((3, 2), np.float32))
    graph = program((2, 4, 4), Conv("y", "x", weight, 1, normal(10, 3), film=1), columns=5)
    timesteps = np.array([900.0, 20.0, 0.0])
    wanted = graph.time.table(timesteps)[:, 1:4] + normal(10, 3)
    with CpuEngine(graph, 2) as engine:
        engine.set_schedule(timesteps)
        for step in (2, 0, 1, 0):
            got = engine.run(normal(7, 2, 2, 4, 4), step)
            assert np.abs(got - wanted[step][None, :, None, None]).max() < 1e-6


def test_conv_of_one_output_channel() -> None:
    def make(shape: Shape) -> Program:
        return program(shape, Conv("y", "x", Dense(normal(9, 1, shape[0])), 1, normal(10, 1)))

    check(make)


def test_conv_without_a_single_weight() -> None:
    def make(shape: Shape) -> Program:
        empty = CSR.from_dense(np.zeros((4, shape[0] * 9), np.float32))
        return program(shape, Conv("y", "x", empty, 3, normal(10, 4)))

    check(make)


@pytest.mark.parametrize("block", [(4, 1), (8, 2)])
def test_conv_from_blocks(block: tuple[int, int]) -> None:
    def make(shape: Shape) -> Program:
        matrix = normal(9, 12, shape[0] * 9)
        whole = BSR.from_dense(matrix, block, taps=9)
        keep = np.random.default_rng(11).random(whole.blocks.shape[0]) < 0.4
        kept = np.repeat(keep, block[0] * block[1]).reshape(whole.blocks.shape)
        trimmed = BSR(whole.shape, 9, whole.indptr, whole.indices, whole.blocks * kept)
        weight: Matrix = BSR.from_dense(trimmed.to_dense(), block, taps=9)
        return program(shape, Conv("y", "x", weight, 3))

    check(make, batches=(1, 16))


def test_chained_convs_see_zeros_outside_each_image() -> None:
    def make(shape: Shape) -> Program:
        first = Conv("a", "x", sparse_rows(5, shape[0] * 9), 3, normal(10, 5))
        second = Conv("b", "a", sparse_rows(4, 5 * 49), 7, normal(11, 4))
        return program(shape, first, second)

    check(make)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("residual", [None, "x"])
@pytest.mark.parametrize("film", [None, 2])
def test_norm_act(silu: bool, residual: str | None, film: int | None) -> None:
    def make(shape: Shape) -> Program:
        groups = 3 if shape[0] % 3 == 0 else 1
        gamma, beta = normal(12, shape[0]), normal(13, shape[0])
        op = NormAct("y", "x", groups, gamma, beta, film, silu, residual=residual)
        return program(shape, op, columns=2 * shape[0] + 3)

    check(make)


def test_norm_act_far_from_zero() -> None:
    """A mean of a thousand deviations costs no more than the input's own rounding."""

    def make(shape: Shape) -> Program:
        shift = Conv("a", "x", Dense(np.eye(shape[0], dtype=np.float32)), 1)
        lifted = Conv("b", "a", CSR.from_dense(np.eye(shape[0])), 1, np.full(shape[0], 1e3, "f4"))
        ones = np.ones(shape[0], np.float32)
        return program(shape, shift, lifted, NormAct("y", "b", 1, ones, 0 * ones, silu=False))

    shape = (5, 8, 8)
    graph = make(shape)
    x = normal(7, 3, *shape)
    with CpuEngine(graph, 3, 1) as engine:
        engine.set_schedule(np.zeros(1))
        got = engine.run(x, 0)
    lifted = (x + np.float32(1e3)).astype(np.float64).reshape(3, -1)
    centred = lifted - lifted.mean(axis=1, keepdims=True)
    wanted = centred / np.sqrt(lifted.var(axis=1, keepdims=True) + 1e-5)
    assert np.abs(got.reshape(3, -1) - wanted).max() < 2e-4


@pytest.mark.parametrize("residual", [None, "x"])
def test_channel_norm(residual: str | None) -> None:
    def make(shape: Shape) -> Program:
        return program(shape, ChannelNorm("y", "x", normal(14, shape[0]), residual=residual))

    # Of two channels that nearly agree little is left in float32: not fewer than five here.
    check(make, shapes=((5, 4, 4), (6, 7, 5), (12, 8, 8), (9, 6, 16), (70, 4, 4)))


def test_channel_norm_of_one_channel() -> None:
    def make(shape: Shape) -> Program:
        return program(shape, ChannelNorm("y", "x", normal(14, 1)))

    check(make, shapes=((1, 3, 3),))


@pytest.mark.parametrize("kind", [Attention, LinearAttention])
@pytest.mark.parametrize(("heads", "dim_head"), [(1, 1), (2, 5), (4, 32)])
def test_attention(
    kind: type[Attention] | type[LinearAttention], heads: int, dim_head: int
) -> None:
    def make(shape: Shape) -> Program:
        return program(shape, kind("y", "x", heads, dim_head))

    channels = 3 * heads * dim_head
    check(make, shapes=tuple((channels, h, w) for _, h, w in SHAPES), batches=(1, 3, 16, 17))


@pytest.mark.parametrize("kind", [Attention, LinearAttention])
def test_attention_between_values_with_halos(
    kind: type[Attention] | type[LinearAttention],
) -> None:
    """qkv and the result are also read by 3x3 convolutions, so neither lies without gaps."""

    def make(shape: Shape) -> Program:
        return program(
            shape,
            kind("mix", "x", 2, 2),
            Conv("a", "x", sparse_rows(3, 12 * 9), 3),
            Conv("y", "mix", sparse_rows(3, 4 * 9), 3, residual="a"),
        )

    check(make, shapes=((12, 4, 4), (12, 7, 5), (12, 3, 16)))


def test_attention_of_large_scores_is_a_choice() -> None:
    def make(shape: Shape) -> Program:
        scaled = Conv("a", "x", Dense(60 * np.eye(6, dtype=np.float32)), 1)
        return program(shape, scaled, Attention("y", "a", 1, 2))

    check(make, shapes=((6, 4, 4),))


@pytest.mark.parametrize("halo", [False, True])
def test_moves(halo: bool) -> None:
    """Space to depth, upsampling and sums; with a 3x3 convolution behind, they clear a halo."""

    def make(shape: Shape) -> Program:
        operations: list[Operation] = [
            SpaceToDepth("small", "x"),
            Upsample2x("large", "small"),
            Add("twice", "large", "large"),
        ]
        if halo:
            operations.append(Conv("y", "twice", sparse_rows(3, 4 * shape[0] * 9), 3))
        return program(shape, *operations)

    check(make, shapes=((3, 2, 2), (1, 4, 6), (2, 8, 16)))


@pytest.mark.parametrize("halo", [False, True])
def test_concat(halo: bool) -> None:
    """Parts made in place, a part in two concatenations, one value twice, the program's input."""

    def make(shape: Shape) -> Program:
        channels = shape[0]
        operations: list[Operation] = [
            Conv("a", "x", sparse_rows(2, channels), 1, normal(15, 2)),
            Conv("b", "x", sparse_rows(3, channels), 1, normal(16, 3)),
            Concat("ab", "a", "b"),
            Concat("ba", "b", "a"),
            Concat("bb", "b", "b"),
            Concat("both", "ab", "ba"),
            Concat("more", "bb", "x"),
            Concat("all", "both", "more"),
        ]
        if halo:
            operations.append(Conv("y", "all", sparse_rows(3, (16 + channels) * 9), 3))
        return program(shape, *operations)

    check(make, batches=(1, 3, 16))


def test_silu_is_accurate_over_its_whole_range() -> None:
    """gamma = 0 leaves beta as the argument of SiLU, hence of exp."""
    beta = np.linspace(-110, 110, 4001, dtype=np.float32)
    op = NormAct("y", "x", 1, np.zeros_like(beta), beta)
    graph = program((len(beta), 1, 1), op)
    with CpuEngine(graph, 1, 1) as engine:
        engine.set_schedule(np.zeros(1))
        got = engine.run(normal(7, 1, len(beta), 1, 1), 0).ravel()
    wanted = beta.astype(np.float64)
    wanted = wanted / (1 + np.exp(-wanted))
    # silu(-87) is -1.4e-36; beyond it float32 runs out of normal numbers.
    tiny = beta <= -87
    assert np.abs(got[tiny]).max() < 2e-36
    exact = ~tiny & (wanted != 0)
    ulps = np.abs(got - wanted)[exact] / np.abs(wanted[exact]) * 2.0**23
    assert (ulps / (5 + np.abs(beta[exact]) / 2)).max() < 1.2
    assert (got[wanted == 0] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_bad_numbers_reach_the_output_of_their_image_alone(bad: float, batch: int) -> None:
    shape = (6, 4, 4)
    ones = np.ones(6, np.float32)
    graph = program(
        shape,
        NormAct("n", "x", 2, ones, ones),
        ChannelNorm("c", "n", ones),
        LinearAttention("l", "c", 1, 2),
        Conv("q", "l", Dense(normal(9, 6, 2)), 1),
        Attention("y", "q", 2, 1),
    )
    x = normal(7, batch, *shape)
    x[0, 0, 1, 2] = bad
    with CpuEngine(graph, batch, 1) as engine:
        engine.set_schedule(np.zeros(1))
        got = engine.run(x, 0)
    assert np.isnan(got[0]).any()
    assert np.isfinite(got[1:]).all()
