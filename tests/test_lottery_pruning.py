"""Which weights survive: exact counts, monotone masks, both allocations, ties, controls."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.lottery.pruning import (
    dense_masks,
    density_after,
    density_of,
    prune,
    random_masks,
    survivors,
)
from sparse_ddpm.ticket.config import UNetConfig
from sparse_ddpm.ticket.parameters import unet_parameters

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, heads=2, dim_head=4)
PLAIN = UNetConfig(
    dim=8,
    dim_mults=(1, 2),
    channels=1,
    image_size=8,
    heads=2,
    dim_head=4,
    weight_standardization="none",
)


def effective(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {p.name: rng.standard_normal(p.shape, np.float32) for p in unet_parameters(TINY)}


def rounds_of(fraction: float, count: int, allocation: str) -> list[dict[str, np.ndarray]]:
    masks = [dense_masks(TINY)]
    for r in range(1, count + 1):
        density = density_after(r, fraction=fraction, sparsity=None, rounds=count)
        weights = {n: np.where(masks[-1].get(n, True), w, 0) for n, w in effective(seed=r).items()}
        masks.append(prune(weights, masks[-1], density, architecture=TINY, allocation=allocation))
    return masks


def test_density_is_exact_in_decimals() -> None:
    assert density_after(0, fraction=0.2, sparsity=None, rounds=5) == 1
    assert density_after(3, fraction=0.2, sparsity=None, rounds=5) == Fraction(64, 125)
    assert density_after(5, fraction=0.2, sparsity=0.95, rounds=5) == Fraction(1, 20)
    assert density_after(0, fraction=0.2, sparsity=0.95, rounds=5) == 1
    assert float(density_after(2, fraction=0.2, sparsity=0.75, rounds=4)) == 0.5


@given(st.integers(1, 10**7), st.integers(0, 40), st.sampled_from([0.05, 0.2, 0.5, 0.9]))
@settings(max_examples=200, deadline=None)
def test_survivors_are_a_falling_function_of_size_fraction_and_round(
    size: int, round_: int, fraction: float
) -> None:
    now, then = (
        survivors(size, density_after(r, fraction=fraction, sparsity=None, rounds=99))
        for r in (round_, round_ + 1)
    )
    assert 1 <= then <= now <= size
    exact = size * (1 - fraction) ** round_
    assert now == max(1, math.floor(exact)) or abs(exact - round(exact)) < 1e-6


def test_a_decimal_that_floats_get_wrong() -> None:
    # 1000 * (1 - 0.1) ** 3 is 728.9999999999999 in floats: 729 weights must survive.
    assert survivors(1000, density_after(3, fraction=0.1, sparsity=None, rounds=3)) == 729


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_rounds_have_exact_counts_and_monotone_masks(allocation: str) -> None:
    masks = rounds_of(0.2, 6, allocation)
    total = sum(m.size for m in masks[0].values())
    for r in range(1, 7):
        density = density_after(r, fraction=0.2, sparsity=None, rounds=6)
        for name, mask in masks[r].items():
            assert not (mask & ~masks[r - 1][name]).any(), f"{name} came back in round {r}"
            if allocation == "uniform":
                assert mask.sum() == survivors(mask.size, density), name
        if allocation == "global":
            assert sum(m.sum() for m in masks[r].values()) == survivors(total, density)
    assert density_of(masks[6]) == pytest.approx(0.8**6, abs=0.01)


def test_sparsity_is_reached_at_least() -> None:
    masks = dense_masks(TINY)
    density = density_after(1, fraction=0.2, sparsity=0.95, rounds=1)
    kept = prune(effective(), masks, density, architecture=TINY)
    sizes = [m.size for m in kept.values()]
    assert 0.95 <= 1 - density_of(kept) < 0.95 + len(sizes) / sum(sizes)


def test_the_largest_survive_in_each_layer() -> None:
    weights = effective()
    kept = prune(weights, dense_masks(TINY), Fraction(1, 3), architecture=TINY)
    for name, mask in kept.items():
        magnitude = np.abs(weights[name])
        assert magnitude[mask].min() >= magnitude[~mask].max(), name


def test_global_is_one_threshold_over_plain_layers() -> None:
    rng = np.random.default_rng(1)
    weights = {
        p.name: rng.standard_normal(p.shape, np.float32) * np.float32(1 + i % 5)
        for i, p in enumerate(unet_parameters(PLAIN))
    }
    kept = prune(
        weights, dense_masks(PLAIN), Fraction(1, 4), architecture=PLAIN, allocation="global"
    )
    lowest = min(np.abs(weights[n])[m].min() for n, m in kept.items() if m.any())
    highest = max(np.abs(weights[n])[~m].max() for n, m in kept.items() if not m.all())
    assert lowest >= highest
    densities = [m.mean() for m in kept.values()]
    assert max(densities) > 2 * min(densities)


def test_global_does_not_let_standardisation_decide() -> None:
    """Standardised weights have variance 1, others about 1 / fan-in; both must lose some."""
    weights = effective()
    for p in unet_parameters(TINY):
        if p.prunable and not p.standardized:
            weights[p.name] /= np.float32(math.sqrt(math.prod(p.shape[1:])))
    kept = prune(weights, dense_masks(TINY), Fraction(1, 2), architecture=TINY, allocation="global")
    standardized = {p.name for p in unet_parameters(TINY) if p.standardized}
    parts = [
        np.mean(
            np.concatenate([m.ravel() for n, m in kept.items() if (n in standardized) == which])
        )
        for which in (True, False)
    ]
    assert all(0.3 < part < 0.7 for part in parts), parts


def test_of_equal_magnitudes_the_earlier_stay() -> None:
    weights = {n: np.full_like(w, -0.5) for n, w in effective().items()}
    kept = prune(weights, dense_masks(TINY), Fraction(1, 2), architecture=TINY)
    for name, mask in kept.items():
        flat = mask.ravel()
        assert flat[: flat.sum()].all(), name
    together = prune(
        weights, dense_masks(PLAIN), Fraction(1, 2), architecture=PLAIN, allocation="global"
    )
    flat = np.concatenate([m.ravel() for m in together.values()])
    assert flat[: flat.sum()].all()


def test_survivors_that_are_exactly_zero_rank_before_the_pruned() -> None:
    half = prune(effective(), dense_masks(TINY), Fraction(1, 2), architecture=TINY)
    zeros = {n: np.zeros_like(w) for n, w in effective().items()}
    quarter = prune(zeros, half, Fraction(1, 4), architecture=TINY)
    for name, mask in quarter.items():
        assert mask.sum() == survivors(mask.size, Fraction(1, 4))
        assert not (mask & ~half[name]).any()


def test_what_is_never_pruned_has_no_mask() -> None:
    kept = prune(effective(), dense_masks(TINY), Fraction(1, 10), architecture=TINY)
    for name in kept:
        assert name.endswith(".weight")
        assert not name.startswith(("init_conv", "final_conv", "time.")), name
        assert ".norm" not in name, name
    assert "down.0.block1.conv1.weight" in kept
    assert "mid.attn.qkv.weight" in kept
    assert "up.0.block1.film.weight" in kept


def test_random_masks_have_the_same_density_in_each_layer() -> None:
    kept = prune(
        effective(), dense_masks(TINY), Fraction(1, 5), architecture=TINY, allocation="global"
    )
    drawn, again, other = (random_masks(kept, seed) for seed in (3, 3, 4))
    for name, mask in kept.items():
        assert drawn[name].shape == mask.shape
        assert drawn[name].sum() == mask.sum()
        assert np.array_equal(drawn[name], again[name])
    assert any(not np.array_equal(drawn[n], m) for n, m in kept.items())
    assert any(not np.array_equal(drawn[n], m) for n, m in other.items())


def test_unknown_allocation() -> None:
    with pytest.raises(
        ConfigError, match=r"allocation: expected one of uniform, global, .*, got 'even'"
    ):
        prune(effective(), dense_masks(TINY), Fraction(1), architecture=TINY, allocation="even")
