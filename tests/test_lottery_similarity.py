"""Densities that follow from two tickets' masks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparse_ddpm.errors import ConfigError, TicketError
from sparse_ddpm.lottery.similarity import relative_densities
from sparse_ddpm.ticket import Ticket
from sparse_ddpm.ticket.synthetic import synthetic_ticket
from tests.lottery_tiny import TINY


def with_masks(ticket: Ticket, masks: dict[str, np.ndarray]) -> Ticket:
    weights = {
        n: np.where(masks[n], np.float32(1), np.float32(0)) if n in masks else w
        for n, w in ticket.weights.items()
    }
    return dataclasses.replace(ticket, weights=weights, masks=masks)


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


def test_chance_counts_for_nothing() -> None:
    """Blocks that are a little more alike than chance, by chance, are at the floor."""
    one, two = (synthetic_ticket(TINY, 0.8, seed=seed) for seed in (0, 1))
    alike = {n: one.mask(n) if n.startswith("down.0") else m for n, m in two.masks.items()}
    densities = relative_densities(one, with_masks(two, alike))
    assert {d for n, d in densities.items() if not n.startswith("down.0")} == {0.5}


@pytest.mark.parametrize("seed", range(1, 6))
def test_tickets_of_two_seeds_are_refused(seed: int) -> None:
    one, two = synthetic_ticket(TINY, 0.8, seed=0), synthetic_ticket(TINY, 0.8, seed=seed)
    with pytest.raises(ConfigError, match=r"more alike than chance .*--data-seed.*, got none"):
        relative_densities(one, two)


def test_tickets_that_say_nothing_are_refused() -> None:
    one = synthetic_ticket(TINY, 0.5)
    with pytest.raises(ConfigError, match=r"masks more alike than chance .*, got none"):
        relative_densities(with_masks(one, {}), with_masks(one, {}))
    inverse = with_masks(one, {n: ~m for n, m in one.masks.items()})
    with pytest.raises(ConfigError, match=r"masks more alike than chance .*, got none"):
        relative_densities(one, inverse)
    other = synthetic_ticket(dataclasses.replace(TINY, dim=16), 0.5)
    with pytest.raises(TicketError, match=r"architecture\.dim"):
        relative_densities(one, other)
