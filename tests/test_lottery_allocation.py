"""How survivors are shared out: against the formulas of the papers, written out anew."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ddpm.cli.train import weight_costs
from sparse_ddpm.errors import ConfigError
from sparse_ddpm.lottery.allocation import lamp_scores, layer_densities, proportional
from sparse_ddpm.lottery.costs import pixels_of
from sparse_ddpm.lottery.pruning import dense_masks, density_of, prunable, prune
from sparse_ddpm.lower import lower_unet
from sparse_ddpm.program import Conv
from sparse_ddpm.ticket.config import PRESETS, Pattern, UNetConfig
from sparse_ddpm.ticket.synthetic import synthetic_ticket
from tests.lottery_tiny import TINY


def effective(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        p.name: rng.standard_normal(p.shape, np.float32) * np.float32(1 + i % 7)
        for i, p in enumerate(prunable(TINY))
    }


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(1, 1000)), min_size=1, max_size=12),
    st.fractions(Fraction(1, 100), 1),
)
@settings(max_examples=100, deadline=None)
def test_densities_are_in_proportion_where_there_is_room(
    layers: list[tuple[float, int]], density: Fraction
) -> None:
    raw, sizes = [r for r, _ in layers], [n for _, n in layers]
    got = proportional(raw, sizes, density)
    assert sum(d * n for d, n in zip(got, sizes, strict=True)) == density * sum(sizes)
    assert all(0 < d <= 1 for d in got)
    scales = {d / Fraction(r) for d, r in zip(got, raw, strict=True) if d < 1}
    assert len(scales) <= 1
    for full in (r for d, r in zip(got, raw, strict=True) if d == 1):
        assert all(Fraction(full) * s >= 1 for s in scales)
    sparser = proportional(raw, sizes, density / 2)
    assert all(a <= b for a, b in zip(sparser, got, strict=True))


def test_layers_without_a_share_get_none() -> None:
    assert proportional([0.0, 1.0], [10, 10], Fraction(1, 4)) == [0, Fraction(1, 2)]
    with pytest.raises(ConfigError, match=r"density: expected room in layers above 0, got 0\.75"):
        proportional([0.0, 1.0], [10, 10], Fraction(3, 4))


def test_erk_is_the_formula() -> None:
    parameters = prunable(PRESETS["small"])
    density = Fraction(1, 20)
    got = layer_densities("erk", parameters, density, None)
    raw = [sum(p.shape) / np.prod(p.shape) for p in parameters]
    sparse = [i for i, d in enumerate(got) if d < 1]
    ratios = [float(got[i]) / raw[i] for i in sparse]
    assert max(ratios) == pytest.approx(min(ratios))
    assert len(sparse) > len(parameters) // 2
    by_name = {p.name: d for p, d in zip(parameters, got, strict=True)}
    assert by_name["mid.block1.conv1.weight"] < density < by_name["down.0.block1.conv1.weight"]


def test_lamp_scores_are_the_formula() -> None:
    squares = np.array([4, 1, 1, 0.25, 0], np.float64)
    ones = np.ones(5, np.int32)
    assert lamp_scores(squares, ones) == pytest.approx([1, 1 / 6, 1 / 6, 0.25 / 6.25, 0])
    # A unit of two weights with the same mean square counts twice in the sums below it.
    sizes = np.array([2, 1, 1, 1, 1], np.int32)
    assert lamp_scores(squares, sizes) == pytest.approx([4 / 8, 0.1, 0.1, 0.25 / 10.25, 0])
    assert not lamp_scores(np.zeros(5), ones).any()
    assert lamp_scores(np.zeros(0), ones[:0]).size == 0


def test_lamp_keeps_what_its_scores_say_whatever_a_layer_is_scaled_by() -> None:
    weights = effective()
    kept = prune(weights, dense_masks(TINY), Fraction(1, 10), architecture=TINY, allocation="lamp")
    assert sum(m.sum() for m in kept.values()) == math.floor(
        sum(m.size for m in kept.values()) / 10
    )
    scores: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        square = np.square(weight.ravel().astype(np.float64))
        ranked = np.sort(square)
        tail = np.cumsum(ranked[::-1])[::-1]
        scores[name] = (square / tail[np.searchsorted(ranked, square)]).reshape(weight.shape)
    lowest = min(scores[n][m].min() for n, m in kept.items())
    highest = max(scores[n][~m].max() for n, m in kept.items() if not m.all())
    assert lowest >= highest * (1 - 1e-9)
    scaled = {n: w * np.float32(4.0 ** (i % 5)) for i, (n, w) in enumerate(weights.items())}
    again = prune(scaled, dense_masks(TINY), Fraction(1, 10), architecture=TINY, allocation="lamp")
    assert all(np.array_equal(again[n], m) for n, m in kept.items())


def test_latency_moves_weights_to_where_they_are_cheap() -> None:
    weights = effective()
    costs = weight_costs(TINY, Pattern(), Fraction(1, 5))
    kept = {
        allocation: prune(
            weights,
            dense_masks(TINY),
            Fraction(1, 5),
            architecture=TINY,
            allocation=allocation,
            layers=costs,
        )
        for allocation in ("lamp", "latency", "uniform")
    }
    time = {a: sum(costs[n] * m.sum() for n, m in masks.items()) for a, masks in kept.items()}
    assert time["latency"] < min(0.85 * time["lamp"], 0.95 * time["uniform"])
    assert density_of(kept["latency"]) == pytest.approx(0.2, abs=1e-3)
    film = "down.0.block1.film.weight"
    assert costs[film] == 0
    assert np.array_equal(kept["latency"][film], kept["uniform"][film])
    # One price everywhere is LAMP again.
    flat = dict.fromkeys(costs, 3.0)
    same = prune(
        weights,
        dense_masks(TINY),
        Fraction(1, 5),
        architecture=TINY,
        allocation="latency",
        layers=flat,
    )
    assert all(np.array_equal(same[n], m) for n, m in kept["lamp"].items())


@pytest.mark.parametrize(
    "config", [TINY, PRESETS["small"], UNetConfig(8, (1, 1, 2, 2), channels=1, image_size=16)]
)
def test_pixels_are_those_of_the_program(config: UNetConfig) -> None:
    program = lower_unet(synthetic_ticket(config, 0.5))
    found = {
        f"{op.out}.weight": int(np.prod(program.shapes[op.out][1:]))
        for op in program.operations
        if isinstance(op, Conv)
    }
    pixels = pixels_of(config)
    convs = {name: n for name, n in pixels.items() if n}
    assert convs == {name: found[name] for name in convs}
    assert {n.split(".")[-2] for n, count in pixels.items() if not count} == {"film"}


def test_costs_follow_pixels_and_pattern() -> None:
    config = PRESETS["small"]
    element = weight_costs(config, Pattern(), Fraction(1, 20))
    vector = weight_costs(config, Pattern(8, 1), Fraction(1, 20))
    near, far = "down.0.block1.conv1.weight", "mid.block1.conv1.weight"
    assert element[near] / element[far] == pytest.approx(16, rel=0.05)
    assert vector[far] < 0.8 * element[far]


@pytest.mark.parametrize("allocation", ["similarity", "latency"])
def test_numbers_of_layers_are_checked(allocation: str) -> None:
    good = {p.name: 1.0 for p in prunable(TINY)}
    for bad in (None, {**good, "mid.attn.qkv.weight": -1.0}, {**good, "mid.attn.qkv.weight": "1"}):
        with pytest.raises(ConfigError, match=f"allocation {allocation}: number of .* expected"):
            prune(
                effective(),
                dense_masks(TINY),
                Fraction(1, 2),
                architecture=TINY,
                allocation=allocation,
                layers=bad,
            )
