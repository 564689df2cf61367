"""Convolutions of the C++ engine against the float64 reference, on odd shapes.

Memory is filled with NaN before each run, so that a value read before it is written shows.
"""

from __future__ import annotations

import numpy as np
import pytest
from engine_rig import SHAPES, check, every_isa, normal, program, sparse_rows

from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.formats import BSR, CSR, Dense, Matrix
from sparse_ddpm.program import Add, Conv, NormAct, Operation, Program, Upsample2x
from sparse_ddpm.program.program import Shape

pytestmark = every_isa()


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
