"""Similarity of masks: chance against counting and formulas, equal, random and disjoint masks."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from sparse_ddpm.errors import TicketError
from sparse_ddpm.similarity import (
    Comparison,
    block_of,
    compare,
    hypergeometric,
    pooled,
    rank_trend,
    scattered,
    stage_of,
)
from sparse_ddpm.similarity.units import divide
from sparse_ddpm.ticket import PRESETS, Pattern, Ticket, UNetConfig, synthetic_ticket

SMALL = PRESETS["small"]
TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=2, heads=1, dim_head=4)
SIZES = [(1, 0, 1), (5, 5, 5), (7, 0, 3), (9, 4, 7), (30, 3, 2), (60, 30, 29), (400, 4, 396)]


def with_masks(ticket: Ticket, masks: dict[str, NDArray[np.bool_]], pattern: str) -> Ticket:
    weights = {
        name: np.where(masks[name], np.float32(0.5), np.float32(0.0)) if name in masks else weight
        for name, weight in ticket.weights.items()
    }
    provenance = dataclasses.replace(ticket.provenance, pattern=pattern)
    return dataclasses.replace(ticket, weights=weights, masks=masks, provenance=provenance)


def prunable(ticket: Ticket) -> list[str]:
    return [parameter.name for parameter in ticket.parameters() if parameter.prunable]


@pytest.mark.parametrize(("total", "first", "second"), SIZES)
def test_chance_is_the_ratio_of_binomials(total: int, first: int, second: int) -> None:
    found = hypergeometric(total, first, second)
    every = math.comb(total, second)
    for index, probability in enumerate(found.probabilities):
        k = found.first + index
        exact = Fraction(math.comb(first, k) * math.comb(total - first, second - k), every)
        assert probability == pytest.approx(float(exact), rel=1e-11)
    assert found.probabilities.sum() == pytest.approx(1.0, abs=1e-14)


def test_chance_of_a_large_layer_has_the_known_moments() -> None:
    total, first, second = 4_700_000, 470_000, 94_000
    mean, deviation = hypergeometric(total, first, second).moments()
    share = first / total
    variance = second * share * (1 - share) * (total - second) / (total - 1)
    assert mean == pytest.approx(second * share, rel=1e-12)
    assert deviation == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_the_index_of_equal_densities_is_near_the_rule_of_thumb() -> None:
    mean, deviation = hypergeometric(1_000_000, 50_000, 50_000).jaccard(100_000)
    assert mean == pytest.approx(0.05 / 1.95, rel=1e-4)
    assert 0 < deviation < 0.001


def test_pooled_counts_are_those_of_all_pairs() -> None:
    one, two = hypergeometric(9, 4, 5), hypergeometric(6, 2, 3)
    exact: dict[int, float] = {}
    for i, p in enumerate(one.probabilities):
        for j, q in enumerate(two.probabilities):
            k = one.first + two.first + i + j
            exact[k] = exact.get(k, 0.0) + float(p * q)
    both = pooled([one, two])
    assert both.first == min(exact)
    np.testing.assert_allclose(both.probabilities, [exact[k] for k in sorted(exact)], rtol=1e-12)


def test_scattered_single_weights_are_hypergeometric() -> None:
    weights = np.repeat(np.array([1, 0]), [300, 700])
    normal, exact = scattered(weights, 200), hypergeometric(1000, 300, 200)
    np.testing.assert_allclose(normal.moments(), exact.moments(), rtol=1e-6)
    np.testing.assert_allclose(normal.jaccard(500), exact.jaccard(500), rtol=1e-3)
    assert scattered(np.full(5, 3), 2).moments() == (6.0, 0.0)


def test_equal_tickets_give_one() -> None:
    ticket = synthetic_ticket(SMALL, 0.95, seed=3)
    found = compare(ticket, ticket)
    for row in (found.total, *found.stages, *found.blocks, *found.layers):
        assert row.jaccard == row.overlap == row.corrected == 1.0
        assert row.score is not None
        assert row.score > 3.0
    assert [row.name for row in found.layers] == prunable(ticket)
    assert found.trend is None


def spread(found: Comparison) -> NDArray[np.float64]:
    return np.array([row.score for row in found.layers], np.float64)


@pytest.mark.parametrize(
    ("patterns", "unit"),
    [
        (("element", "element"), "element"),
        (("vector:8", "vector:8"), "vector:8"),
        (("block:4x4", "block:4x4"), "block:4x4"),
        (("vector:16", "element"), "element"),
        (("vector:16", "vector:4"), "element"),
        (("block:8x4", "vector:16"), "element"),
    ],
)
def test_independent_masks_are_as_far_from_chance_as_is_said(
    patterns: tuple[str, str], unit: str
) -> None:
    scores = []
    for seed in (1, 2):
        one = synthetic_ticket(SMALL, 0.9, patterns[0], seed=2 * seed)
        two = synthetic_ticket(SMALL, 0.8, patterns[1], seed=2 * seed + 1)
        found = compare(one, two)
        assert {row.unit for row in found.layers} == {unit}
        assert found.total.score is not None
        assert abs(found.total.score) < 4.0
        assert abs(found.total.corrected or 1.0) < 0.01
        scores.append(spread(found))
    every = np.concatenate(scores)
    assert abs(every.mean()) < 4.0 / math.sqrt(every.size)
    assert 0.8 < every.std() < 1.25


def test_disjoint_masks_give_the_negative_bound() -> None:
    dense = synthetic_ticket(TINY, 0.0)
    rng = np.random.default_rng(0)
    first = {name: rng.random(dense.mask(name).shape) < 0.3 for name in prunable(dense)}
    rest = {name: ~mask & (rng.random(mask.shape) < 0.5) for name, mask in first.items()}
    found = compare(with_masks(dense, first, "element"), with_masks(dense, rest, "element"))
    for row in (found.total, *found.layers):
        assert row.common == 0
        assert row.chance is not None
        assert row.corrected == pytest.approx(-row.chance / (1 - row.chance))
    assert (found.total.score or 0.0) < -3.0


def test_units_are_counted_and_not_weights() -> None:
    one = synthetic_ticket(SMALL, 0.9, "vector:16", seed=1)
    two = synthetic_ticket(SMALL, 0.9, "vector:16", seed=2)
    as_units = compare(one, two)
    elements = [
        dataclasses.replace(t, provenance=dataclasses.replace(t.provenance, pattern="element"))
        for t in (one, two)
    ]
    as_weights = compare(*elements)
    assert as_weights.total.total == 16 * as_units.total.total
    assert as_weights.total.jaccard == pytest.approx(as_units.total.jaccard)
    assert as_units.total.chance_deviation is not None
    assert as_weights.total.chance_deviation is not None
    assert as_units.total.chance_deviation > 3 * as_weights.total.chance_deviation


@pytest.mark.parametrize("pattern", ["vector:3", "block:5x2", "vector:64"])
def test_units_that_an_edge_cuts_off(pattern: str) -> None:
    ticket = synthetic_ticket(TINY, 0.6, pattern, seed=4)
    unit = Pattern.parse(pattern)
    for name in prunable(ticket):
        mask = ticket.mask(name)
        found = divide(mask, unit)
        assert found.pattern == unit
        assert found.weights_within(mask).sum() == mask.sum()
        assert found.weights_within(np.ones_like(mask)).sum() == mask.size
        within = found.weights_within(mask).reshape(found.kept.shape)
        np.testing.assert_array_equal(within > 0, found.kept)
    assert compare(ticket, ticket).total.corrected == 1.0


def test_a_mask_of_other_units_is_counted_by_weights() -> None:
    mask = np.zeros((8, 3, 1), bool)
    mask[3, 1] = True
    assert divide(mask, Pattern.parse("vector:4")).pattern == Pattern()


def test_dense_layers_have_nothing_to_compare() -> None:
    dense, pruned = synthetic_ticket(TINY, 0.0), synthetic_ticket(TINY, 0.9)
    both = compare(dense, dense)
    assert both.total.jaccard == 1.0
    assert both.total.corrected is both.total.score is both.trend is None
    one = compare(dense, pruned)
    assert one.total.overlap == 1.0
    assert one.total.corrected == pytest.approx(0.0, abs=1e-12)
    assert one.total.score is None


def test_layers_that_keep_nothing() -> None:
    dense = synthetic_ticket(TINY, 0.0)
    masks = {name: np.zeros(dense.mask(name).shape, bool) for name in prunable(dense)}
    empty = with_masks(dense, masks, "element")
    found = compare(empty, empty)
    assert found.total.jaccard is found.total.overlap is found.total.corrected is None
    assert compare(empty, dense).total.corrected == 0.0


def test_rows_go_from_upstream_to_downstream_and_add_up() -> None:
    found = compare(synthetic_ticket(SMALL, 0.9, seed=1), synthetic_ticket(SMALL, 0.9, seed=2))
    assert [row.name for row in found.stages] == [
        *("down.0", "down.1", "down.2", "mid", "up.0", "up.1", "up.2", "final_block")
    ]
    names = [row.name for row in found.blocks]
    assert names[:5] == [
        *("down.0.block1", "down.0.block2", "down.0.attn", "down.0.down", "down.1.block1")
    ]
    assert names[-2:] == ["up.2.up", "final_block"]
    for rows in (found.blocks, found.stages):
        for key in ("total", "first", "second", "common"):
            assert sum(getattr(row, key) for row in rows) == getattr(found.total, key)
    assert block_of("mid.attn.qkv.weight") == "mid.attn"
    assert stage_of("mid.attn.qkv.weight") == "mid"


@pytest.mark.parametrize(("sign", "trend"), [(1, -1.0), (-1, 1.0)])
def test_the_trend_is_the_sign_of_the_slope(sign: int, trend: float) -> None:
    dense = synthetic_ticket(TINY, 0.0)
    names = prunable(dense)
    blocks = list(dict.fromkeys(block_of(name) for name in names))
    first, second = {}, {}
    for name in names:
        place = blocks.index(block_of(name)) / len(blocks)
        share = 1.0 - place if sign == 1 else place
        size = dense.mask(name).size
        kept = size // 2
        one, two = np.zeros(size, bool), np.zeros(size, bool)
        one[:kept] = True
        moved = kept - round(share * kept)
        two[moved : moved + kept] = True
        first[name], second[name] = (m.reshape(dense.mask(name).shape) for m in (one, two))
    found = compare(with_masks(dense, first, "element"), with_masks(dense, second, "element"))
    for part in (found.trend, found.trend_down, found.trend_up):
        assert part == pytest.approx(trend, abs=0.02)


def test_a_trend_needs_three_that_differ() -> None:
    assert rank_trend([3.0, None, 1.0]) is rank_trend([]) is rank_trend([2.0] * 4) is None
    assert rank_trend([0.9, 0.5, None, 0.1]) == -1.0
    # Down and up again: no trend over all, and a full one over each half.
    assert rank_trend([0.9, 0.5, 0.1, 0.1, 0.5, 0.9]) == pytest.approx(0.0)


def test_common_initial_weights_are_known_only_from_a_hash() -> None:
    ticket = synthetic_ticket(TINY, 0.9)
    assert not compare(ticket, ticket).same_beginning
    origin = dataclasses.replace(ticket.provenance, initial_sha256="ab" * 32)
    sibling = dataclasses.replace(ticket, provenance=origin)
    assert compare(sibling, sibling).same_beginning
    assert not compare(ticket, sibling).same_beginning


def test_different_architectures_are_one_error() -> None:
    one, two = synthetic_ticket(TINY, 0.9), synthetic_ticket(SMALL, 0.9)
    with pytest.raises(TicketError, match=r"architecture\.dim: expected 8 as .*, got 32\.$"):
        compare(one, two)
