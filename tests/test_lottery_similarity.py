"""Masks compared beyond chance, and densities that follow."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.lottery.similarity import block_of, block_similarity, relative_densities
from sparse_ddpm.ticket import Ticket
from sparse_ddpm.ticket.synthetic import synthetic_ticket
from tests.lottery_tiny import TINY


def with_masks(ticket: Ticket, masks: dict[str, np.ndarray]) -> Ticket:
    weights = {
        n: np.where(masks[n], np.float32(1), np.float32(0)) if n in masks else w
        for n, w in ticket.weights.items()
    }
    return dataclasses.replace(ticket, weights=weights, masks=masks)


def test_blocks() -> None:
    ticket = synthetic_ticket(TINY, 0.5)
    blocks = list(dict.fromkeys(block_of(n) for n in ticket.masks))
    assert blocks == list(block_similarity(ticket, ticket))
    assert blocks[:4] == ["down.0.block1", "down.0.block2", "down.0.attn", "down.0.down"]
    assert {"mid.block1", "mid.attn", "up.1.up", "final_block"} <= set(blocks)


def test_equal_masks_are_one_and_random_ones_nought() -> None:
    one, two = (synthetic_ticket(TINY, 0.8, seed=seed) for seed in (0, 1))
    assert set(block_similarity(one, one).values()) == {1.0}
    values = [s for s in block_similarity(one, two).values() if s is not None]
    assert abs(np.mean(values)) < 0.02
    assert max(map(abs, values)) < 0.15
    # Also where the densities differ, and by units of many weights.
    dense = synthetic_ticket(TINY, 0.2, seed=3)
    values = [s for s in block_similarity(one, dense).values() if s is not None]
    assert abs(np.mean(values)) < 0.02
    one, two = (synthetic_ticket(TINY, 0.8, "vector:4", seed=seed) for seed in (0, 1))
    values = [s for s in block_similarity(one, two).values() if s is not None]
    assert abs(np.mean(values)) < 0.04


def test_one_layer_by_hand() -> None:
    ticket = synthetic_ticket(TINY, 0.5)
    name = "down.0.down.weight"
    shape = ticket.weights[name].shape
    a, b = np.zeros(shape, bool), np.zeros(shape, bool)
    a.flat[:200], b.flat[100:200] = True, True
    got = block_similarity(with_masks(ticket, {name: a}), with_masks(ticket, {name: b}))
    chance = (200 * 100 / a.size) / (300 - 200 * 100 / a.size)
    assert got["down.0.down"] == pytest.approx((0.5 - chance) / (1 - chance))
    assert got["mid.attn"] is None


def test_alike_blocks_are_denser() -> None:
    one, two = (synthetic_ticket(TINY, 0.8, seed=seed) for seed in (0, 1))
    alike = {n: one.mask(n) if n.startswith("down.0") else m for n, m in two.masks.items()}
    densities = relative_densities(one, with_masks(two, alike))
    assert set(densities) == set(one.masks)
    far = np.mean([d for n, d in densities.items() if not n.startswith("down.0")])
    near = [d for n, d in densities.items() if n.startswith("down.0")]
    assert len(set(near)) == 1
    assert near[0] > 4 * far
    assert min(densities.values()) >= 0.5
    sizes = {n: m.size for n, m in one.masks.items()}
    mean = sum(d * sizes[n] for n, d in densities.items()) / sum(sizes.values())
    assert mean == pytest.approx(1.0)


def test_tickets_that_say_nothing_are_refused() -> None:
    one = synthetic_ticket(TINY, 0.5)
    with pytest.raises(ConfigError, match="masks more alike than chance, got none"):
        relative_densities(with_masks(one, {}), with_masks(one, {}))
    inverse = with_masks(one, {n: ~m for n, m in one.masks.items()})
    with pytest.raises(ConfigError, match="masks more alike than chance, got none"):
        relative_densities(one, inverse)
    other = synthetic_ticket(dataclasses.replace(TINY, dim=16), 0.5)
    with pytest.raises(ConfigError, match="tickets to compare: expected one architecture"):
        block_similarity(one, other)
