"""Synthetic tickets: exact sparsity, whole units, values of a sensible size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from damage_base import TINY

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.ticket import PRESETS, DiffusionConfig, Pattern, UNetConfig, synthetic_ticket

EVEN = UNetConfig(dim=16, dim_mults=(1, 2), channels=1, image_size=8, heads=2, dim_head=8)


@pytest.mark.parametrize("pattern", ["element", "vector:8", "block:4x8", "block:1x2"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
def test_every_tensor_has_the_same_exact_sparsity(pattern: str, sparsity: float) -> None:
    ticket = synthetic_ticket(EVEN, sparsity, pattern, seed=5)
    unit = Pattern.parse(pattern)
    for parameter in ticket.parameters():
        if not parameter.prunable:
            assert parameter.name not in ticket.masks
            continue
        rows, columns = parameter.shape[:2]
        mask = ticket.mask(parameter.name).reshape(rows, columns, -1)
        tiles = mask.reshape(
            rows // unit.rows, unit.rows, columns // unit.columns, unit.columns, -1
        )
        alive = tiles.any(axis=(1, 3))
        assert (alive == tiles.all(axis=(1, 3))).all()
        assert alive.sum() == max(1, round(alive.size * (1 - sparsity)))
        assert (ticket.weights[parameter.name][ticket.mask(parameter.name)] != 0).all()
    assert str(Pattern.parse(ticket.provenance.pattern)) == pattern
    assert ticket.provenance.sparsity == ticket.sparsity


@pytest.mark.parametrize("pattern", ["vector:4", "block:4x4", "vector:1000", "block:7x5"])
def test_units_at_an_edge_are_cut_off(pattern: str) -> None:
    ticket = synthetic_ticket(TINY, 0.6, pattern)
    unit = Pattern.parse(pattern)
    for name, mask in ticket.masks.items():
        rows, columns = mask.shape[:2]
        flat = mask.reshape(rows, columns, -1)
        alive = flat[:: unit.rows, :: unit.columns]
        for row in range(rows):
            for column in range(columns):
                whole = alive[row // unit.rows, column // unit.columns]
                assert (flat[row, column] == whole).all(), name
        assert alive.sum() == max(1, round(alive.size * 0.4))


def test_one_unit_always_survives() -> None:
    ticket = synthetic_ticket(TINY, 1 - 1e-9)
    assert {ticket.survivors(name) for name in ticket.masks} == {1}


def test_values_keep_activations_of_order_one() -> None:
    ticket = synthetic_ticket(PRESETS["small"], 0.9, seed=2)
    for parameter in ticket.parameters():
        weight = ticket.weights[parameter.name]
        if len(parameter.shape) == 1:
            is_gain = "gain" in parameter.name or "norm" in parameter.name
            is_gain = is_gain and not parameter.name.endswith("bias")
            assert abs(weight.mean() - (1.0 if is_gain else 0.0)) < 0.5
            assert len(set(weight.tolist())) == weight.size
            continue
        variance = float(np.square(weight, dtype=np.float64).sum()) / parameter.shape[0]
        assert 0.6 < math.sqrt(variance) < 1.5, parameter.name


def test_the_seed_decides() -> None:
    one = synthetic_ticket(TINY, 0.5, seed=1)
    assert one.equals(synthetic_ticket(TINY, 0.5, seed=1))
    assert not one.equals(synthetic_ticket(TINY, 0.5, seed=2))
    diffusion = DiffusionConfig(timesteps=10, objective="x0")
    assert synthetic_ticket(TINY, 0.5, diffusion=diffusion).diffusion == diffusion


@pytest.mark.parametrize(
    ("sparsity", "pattern", "says"),
    [
        (1.0, "element", "sparsity: expected 0 <= sparsity < 1, got 1.0"),
        (-0.1, "element", "sparsity"),
        (float("nan"), "element", "sparsity"),
        (0.5, "stripe", "pattern: expected element, vector:G or block:RxC, got 'stripe'"),
        (0.5, "vector:0", "pattern rows"),
    ],
)
def test_wrong_settings(sparsity: float, pattern: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        synthetic_ticket(TINY, sparsity, pattern)
