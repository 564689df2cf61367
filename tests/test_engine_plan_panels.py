"""Panels hold exactly the weights, whatever the format; the choice of G explains itself."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sparse_ddpm.engine.costs import (
    GROUPS,
    IMAGE_FITS,
    IMAGES_COSTS,
    Costs,
    Read,
    Way,
    conv_costs,
    copies_of,
)
from sparse_ddpm.engine.panels import Panels, break_even, choose_group, make_panels
from sparse_ddpm.engine.plan import make_plan
from sparse_ddpm.errors import EngineError
from sparse_ddpm.formats import BSR, CSR, Dense, Matrix
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Conv, NormAct
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket


def to_dense(panels: Panels, shape: tuple[int, int]) -> NDArray[np.float32]:
    matrix = np.zeros(shape, np.float32)
    for index, rows in enumerate(panels.rows):
        for k in range(panels.ptr[index], panels.ptr[index + 1]):
            for slot, row in enumerate(rows):
                if row >= 0:
                    matrix[row, panels.columns[k]] += panels.values[k, slot]
                else:
                    assert panels.values[k, slot] == 0
    return matrix


def weights(shape: tuple[int, int], density: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape, dtype=np.float32) * (rng.random(shape) < density)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", [(1, 9), (7, 18), (16, 27), (33, 36)])
@pytest.mark.parametrize("kind", ["dense", "csr", "bsr", "empty"])
def test_panels_are_the_weight(kind: str, shape: tuple[int, int], group: int) -> None:
    matrix = weights(shape, 0.0 if kind == "empty" else 0.3)
    weight: Matrix = CSR.from_dense(matrix)
    if kind == "dense":
        weight = Dense(matrix)
    if kind == "bsr":
        weight = BSR.from_dense(matrix, (4, 1), taps=9)
    panels = make_panels(weight, group)
    assert np.array_equal(to_dense(panels, shape), matrix)
    assert panels.values.shape == (panels.ptr[-1], group)
    assert sorted(panels.rows[panels.rows >= 0]) == list(range(shape[0]))
    for first, last in zip(panels.ptr[:-1], panels.ptr[1:], strict=True):
        assert (np.diff(panels.columns[first:last]) > 0).all()


def test_panels_of_one_are_csr() -> None:
    weight = CSR.from_dense(weights((9, 30), 0.2))
    panels = make_panels(weight, 1)
    assert np.array_equal(panels.ptr, weight.indptr)
    assert np.array_equal(panels.columns, weight.indices)
    assert np.array_equal(panels.values[:, 0], weight.values)


def test_a_stored_zero_is_kept() -> None:
    weight = CSR.from_dense(np.zeros((2, 4)), np.ones((2, 4), bool))
    assert make_panels(weight, 2).ptr[-1] == 4


def test_sparse_elements_share_nothing() -> None:
    choice = choose_group(CSR.from_dense(weights((64, 576), 0.05)))
    assert choice.group == 1
    assert not choice.dense
    assert "does not pay" in choice.reason
    assert "5." in choice.reason
    assert ", dense " in choice.reason


def test_dense_and_vector_weights_share_columns() -> None:
    assert choose_group(Dense(weights((64, 576), 1.0))).group >= 4
    rows = np.repeat(weights((4, 576), 0.05) != 0, 16, axis=0)
    choice = choose_group(CSR.from_dense(rows.astype("f4"), rows))
    assert choice.group >= 4
    assert "100% of a panel" in choice.reason
    assert not choice.dense


ALL_COSTS = [
    *IMAGES_COSTS.values(),
    *(
        conv_costs(dtype, 1, size, (side, side), 1 << 20)
        for dtype in IMAGE_FITS
        for size in (1, 3)
        for side in (4, 8, 32)
    ),
]


@pytest.mark.parametrize("costs", ALL_COSTS)
@pytest.mark.parametrize("density", [1.0, 0.98])
def test_above_its_break_even_a_weight_runs_dense_and_says_so(costs: Costs, density: float) -> None:
    choice = choose_group(CSR.from_dense(weights((64, 576), density)), None, costs)
    assert choice.dense
    assert choice.entries * choice.group >= 0.99 * 64 * 576
    assert "runs dense: panels hold " in choice.reason
    assert "G=1 " in choice.reason


def test_the_kernel_of_a_dense_layer_is_called_dense() -> None:
    config = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=4)
    for sparsity, wanted in ((0.0, True), (0.9, False)):
        plan = make_plan(lower(synthetic_ticket(config, sparsity)))
        step = next(s for s in plan.steps if s.operation.out == "down.0.block1.conv2")
        assert step.kernel.startswith("dense G=") is wanted
        block = next(s.block for s in plan.steps if s.block is not None)
        assert block.output.dense is wanted
        assert (" dense" in block.reason) is wanted


def test_few_rows_make_no_wide_panels() -> None:
    assert choose_group(Dense(weights((1, 64), 1.0))).group == 1
    assert choose_group(Dense(weights((3, 64), 1.0))).group <= 2


@pytest.mark.parametrize("shape", [(8, 9), (0, 9), (8, 0)])
def test_an_empty_weight_has_a_choice_too(shape: tuple[int, int]) -> None:
    choice = choose_group(CSR.from_dense(np.zeros(shape)))
    assert (choice.group, choice.entries) == (1, 0)
    assert not choice.dense


def test_flops_count_what_runs() -> None:
    config = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=4)
    program = lower(synthetic_ticket(config, 0.9))
    plan = make_plan(program, keep_all=True, group=4)
    assert plan.flops == sum(step.flops for step in plan.steps)
    for step in plan.steps:
        if isinstance(step.operation, Conv):
            _, height, width = program.shapes[step.operation.out]
            entries = len(plan.panels(step).columns)
            assert step.entries == entries
            assert step.flops == 2 * 4 * entries * height * width
            assert step.flops >= 2 * step.operation.weight.nnz * height * width
        else:
            assert step.flops == 0
        assert step.kernel
        assert step.reason


def test_panels_of_something_else_are_refused() -> None:
    config = UNetConfig(dim=8, dim_mults=(1,), channels=1, image_size=4, groups=4)
    plan = make_plan(lower(synthetic_ticket(config, 0.5)))
    norm = next(step for step in plan.steps if isinstance(step.operation, NormAct))
    with pytest.raises(EngineError, match="expected a Conv"):
        plan.panels(norm)


def test_small_images_of_large_networks_pay_for_their_weights_way() -> None:
    """Entries that come from memory for one vector of pixels cost more."""
    near, far = (conv_costs("float32", 1, 3, (4, 4), size) for size in (0, 1 << 30))
    wider = conv_costs("float32", 1, 3, (8, 8), 1 << 30)
    for way, cost in near.items():
        more = far[way].entry - cost.entry
        assert more > 0.0
        if way.copied:
            assert wider[way].entry - cost.entry == pytest.approx(more / 16)
    images = conv_costs("float32", 16, 3, (4, 4), 1 << 30)
    assert images == IMAGES_COSTS["float32"]
    assert not any(way.copied for way in images)


def test_pixels_are_read_from_copies_where_there_are_enough_taps_for_them() -> None:
    """One image: a copy of each column, or of each tap of a few pixels, or none."""
    for size, side, ways in ((1, 8, {False}), (3, 8, {False, True}), (7, 8, {False})):
        costs = conv_costs("float32", 1, size, (side, side), 0)
        assert {way.copied for way in costs} == ways
        assert {way.group for way in costs} == set(GROUPS)
    assert [copies_of(3, (side, side)) for side in (4, 8, 32)] == [9, 3, 3]
    costs = conv_costs("float32", 1, 3, (32, 32), 0)
    few, many = (  # of an input that has a halo anyway
        choose_group(CSR.from_dense(weights((64, 576), density)), 1, costs, Read(0, 192))
        for density in (0.01, 0.1)
    )
    assert not few.copied
    assert many.copied
    wanted = choose_group(CSR.from_dense(weights((64, 576), 0.1)), 1, costs, Read(64, 192), False)
    assert not wanted.copied
    pointwise = conv_costs("float32", 1, 1, (8, 8), 0)
    assert not choose_group(Dense(weights((8, 9), 1.0)), None, pointwise, Read(9), True).copied


def test_rows_of_part_of_a_vector_cost_more_in_place() -> None:
    """Their halo is multiplied, too, and whoever makes them writes row by row."""
    way = Way(1, False)
    narrow, wide = (conv_costs("float32", 1, 3, image, 0)[way] for image in ((8, 8), (4, 16)))
    assert narrow.entry == pytest.approx(wide.entry * 5 / 4)
    assert narrow.halo > wide.halo > 0.0


def test_a_plan_reads_as_it_is_told() -> None:
    config = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=16, groups=4)
    program = lower(synthetic_ticket(config, 0.9))
    for copied, wanted in ((True, 3), (False, 0)):
        plan = make_plan(program, copied=copied)
        step = next(s for s in plan.steps if s.operation.out == "down.0.block1.conv2")
        assert step.copies == wanted
        assert ("columns shifted" in step.kernel) is copied
    assert all(step.copies == 0 for step in make_plan(program, 16, copied=True).steps)


def test_breaking_even_counts_copies() -> None:
    costs = conv_costs("float32", 1, 3, (32, 32), 0)
    alone = break_even(64, 576, costs)
    assert 0.3 < alone < 1.0
    assert break_even(64, 576, costs, 1, Read(64, 192)) != alone
    assert break_even(64, 576, costs, 16, Read(64, 192)) == 1.0
