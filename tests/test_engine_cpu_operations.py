"""Every operation but convolutions of the C++ engine against the float64 reference, on odd shapes.

Memory is filled with NaN before each run, so that a value read before it is written shows.
"""

from __future__ import annotations

import numpy as np
import pytest
from engine_rig import SHAPES, check, every_isa, normal, program, sparse_rows

from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.formats import CSR, Dense
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
from sparse_ddpm.program.program import Shape

pytestmark = every_isa()


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
