"""Channels in another order: the same function, and units that hold more."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.lottery.patterns import unit_scores, unit_sizes
from sparse_ddpm.lottery.permutation import (
    Space,
    allowed,
    channel_spaces,
    check_orders,
    find_permutations,
    permuted,
)
from sparse_ddpm.lottery.pruning import best_units, prunable, survivors
from sparse_ddpm.model.unet import UNet
from sparse_ddpm.ticket.config import PRESETS, Pattern, UNetConfig
from sparse_ddpm.ticket.parameters import unet_parameters
from tests.lottery_tiny import TINY

WIDE = UNetConfig(dim=24, dim_mults=(1, 2, 3), channels=3, image_size=8, groups=4, dim_head=6)
PLAIN = UNetConfig(
    dim=8, dim_mults=(2,), channels=1, image_size=4, heads=1, weight_standardization="none"
)


def random_order(space: Space, rng: np.random.Generator) -> np.ndarray:
    """Any order that group norm allows: within its groups, and of the groups."""
    groups = np.arange(space.size).reshape(space.groups, -1)
    shuffled = np.stack([rng.permutation(group) for group in groups])
    return shuffled[rng.permutation(space.groups)].reshape(-1)


def random_weights(config: UNetConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Every parameter random, also the norms, so that nothing hides a wrong place."""
    rng = np.random.default_rng(seed)
    out = {}
    for p in unet_parameters(config):
        weight = rng.standard_normal(p.shape) / np.sqrt(max(1, np.prod(p.shape[1:])))
        out[p.name] = weight + (len(p.shape) == 1)
    return out


def outputs(config: UNetConfig, weights: dict[str, np.ndarray], masks: dict[str, np.ndarray]):
    model = UNet(config).double()
    model.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()})
    model.set_masks({n: torch.from_numpy(m) for n, m in masks.items()})
    generator = torch.Generator().manual_seed(0)
    shape = (2, config.channels, config.image_size, config.image_size)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return model(x, torch.tensor([3, 700]))


@pytest.mark.parametrize("config", [TINY, WIDE, PLAIN])
def test_the_network_does_not_notice(config: UNetConfig) -> None:
    rng = np.random.default_rng(1)
    weights = random_weights(config)
    masks = {p.name: rng.random(p.shape) < 0.5 for p in prunable(config)}
    spaces = channel_spaces(config)
    orders = {space.name: random_order(space, rng) for space in spaces}
    assert all(allowed(space, orders[space.name]) for space in spaces)
    before = outputs(config, weights, masks)
    moved = permuted(weights, spaces, orders)
    after = outputs(config, moved, permuted(masks, spaces, orders))
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-11)
    # Every row of every prunable convolution that can move did.
    for p in prunable(config):
        assert not np.array_equal(moved[p.name], weights[p.name]), p.name
    # One space at a time, so that no error of one undoes that of another.
    for space in spaces:
        one = {space.name: orders[space.name]}
        alone = outputs(config, permuted(weights, spaces, one), permuted(masks, spaces, one))
        assert torch.allclose(before, alone, rtol=1e-9, atol=1e-11), space.name


def test_an_order_across_norm_groups_is_noticed_and_refused() -> None:
    spaces = channel_spaces(WIDE)
    space = next(s for s in spaces if s.name == "mid.block1.hidden")
    order = np.arange(space.size)
    order[[0, -1]] = order[[-1, 0]]
    assert not allowed(space, order)
    assert not allowed(space, np.zeros(space.size, np.int64))
    weights = random_weights(WIDE)
    moved = permuted(weights, spaces, {space.name: order})
    assert not torch.allclose(outputs(WIDE, weights, {}), outputs(WIDE, moved, {}))
    for content in ({space.name: order.tolist()}, {"nowhere": [0]}, {space.name: "abc"}):
        with pytest.raises(ConfigError, match=r"orders\.json: expected orders that the norms"):
            check_orders("orders.json", content, spaces)


def test_every_row_of_every_prunable_convolution_is_in_one_space() -> None:
    for config in (TINY, WIDE, *PRESETS.values()):
        rows = {p.name: np.zeros(p.shape[0], int) for p in unet_parameters(config)}
        for space in channel_spaces(config):
            for place in space.places:
                if place.axis == 0:
                    stop = place.start + space.size * place.inner
                    rows[place.parameter][place.start : stop] += 1
        for name, count in rows.items():
            fixed = name.startswith(("time.", "final_conv."))
            assert (count == (0 if fixed else 1)).all(), name


def held(weight: np.ndarray, pattern: Pattern, density: Fraction) -> float:
    scores = unit_scores(weight, pattern).reshape(-1)
    sizes = unit_sizes(weight.shape, pattern).reshape(-1)
    kept = best_units(scores, sizes, survivors(weight.size, density))
    return float((scores[kept] ** 2 * sizes[kept]).sum() / (weight**2).sum())


@pytest.mark.parametrize(
    ("pattern", "step", "gain"),
    [
        (Pattern(2, 1), 1, 1.05),
        (Pattern(3, 1), 1, 1.1),
        (Pattern(5, 1), 1, 1.0),
        (Pattern(12, 2), 6, 1.0),
    ],
)
def test_rows_that_keep_the_same_columns_come_together(
    pattern: Pattern, step: int, gain: float
) -> None:
    """Rows of two kinds, mixed within what the norms allow, are sorted into their kinds."""
    rng = np.random.default_rng(2)
    weights = {n: w.astype(np.float32) for n, w in random_weights(WIDE).items()}
    spaces = channel_spaces(WIDE)
    mixed = {}
    for space in spaces:
        for place in space.places:
            if place.axis == 0 and weights[place.parameter].ndim == 4:
                weight = weights[place.parameter]
                kinds = (np.arange(space.size) // step) % 2
                columns = np.arange(weight.shape[1]) % 2
                stop = place.start + space.size
                weight[place.start : stop][kinds[:, None] != columns] *= np.float32(0.1)
        mixed[space.name] = random_order(space, rng)
    weights = permuted(weights, spaces, mixed)
    density = Fraction(1, 4)
    orders = find_permutations(weights, WIDE, pattern, density)
    check_orders("found", orders, spaces)
    better = permuted(weights, spaces, orders)
    names = [p.name for p in prunable(WIDE) if len(p.shape) == 4]
    gains = [held(better[n], pattern, density) / held(weights[n], pattern, density) for n in names]
    assert np.mean(gains) > gain
    assert all(
        np.array_equal(orders[n], o)
        for n, o in find_permutations(weights, WIDE, pattern, density).items()
    )


def test_nothing_moves_where_nothing_is_gained() -> None:
    weights = {n: np.ones_like(w, np.float32) for n, w in random_weights(TINY).items()}
    assert find_permutations(weights, TINY, Pattern(4, 1), Fraction(1, 4)) == {}
