"""The lowering against the torch model: value by value, and through the passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.formats import BSR, CSR, Dense
from sparse_ddpm.lower import fuse_residuals, lower, lower_unet
from sparse_ddpm.lower.unet import standardize
from sparse_ddpm.program import Add, Concat, Conv, Program
from sparse_ddpm.ticket import Ticket, UNetConfig, synthetic_ticket

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=2, image_size=8, groups=4, heads=2, dim_head=4)

TICKETS = {
    "element": (TINY, 0.7, "element"),
    "dense": (TINY, 0.0, "element"),
    "unstandardized": (dataclasses.replace(TINY, weight_standardization="none"), 0.7, "element"),
    "vector": (TINY, 0.7, "vector:4"),
    "full": (dataclasses.replace(TINY, weight_standardization="full"), 0.9, "element"),
    "full, dense": (dataclasses.replace(TINY, weight_standardization="full"), 0.0, "element"),
    "full, vector": (dataclasses.replace(TINY, weight_standardization="full"), 0.9, "vector:3"),
    "block": (TINY, 0.7, "block:4x2"),
    "mean squares": (
        dataclasses.replace(
            TINY,
            weight_standardization="none",
            block_norm="rms",
            attention_norm="rms",
            attention_values="sum",
            full_attention=(1,),
        ),
        0.8,
        "element",
    ),
    "mean squares around attention": (
        dataclasses.replace(TINY, attention_norm="rms", image_size=6),
        0.0,
        "element",
    ),
    "one level": (dataclasses.replace(TINY, dim_mults=(1,)), 0.5, "element"),
    "one pixel below": (dataclasses.replace(TINY, image_size=2), 0.5, "element"),
    "four levels": (dataclasses.replace(TINY, dim_mults=(1, 1, 2, 3)), 0.9, "element"),
}

HELPERS = (".sum", ".box", ".minus", ".root", ".wide", ".summed")
"""Ends of names of what a lowering needs and the torch model has not."""


def ticket(kind: str) -> Ticket:
    config, sparsity, pattern = TICKETS[kind]
    return synthetic_ticket(config, sparsity, pattern, seed=3)


def run(program: Program, x: np.ndarray[Any, Any], t: float) -> np.ndarray[Any, Any]:
    engine = ReferenceEngine(program, batch=len(x))
    engine.set_schedule(np.array([t]))
    return engine.values(x, 0)[program.output]


def images(config: UNetConfig, n: int = 2) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(1)
    shape = (n, config.channels, config.image_size, config.image_size)
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", TICKETS)
def test_every_value_equals_the_torch_model(kind: str) -> None:
    pytest.importorskip("torch")
    from sparse_ddpm.verify import torch_values

    drawn = ticket(kind)
    program = lower_unet(drawn)
    x = images(drawn.architecture)
    engine = ReferenceEngine(program, batch=len(x))
    engine.set_schedule(np.array([321.0]))
    got = engine.values(x, 0)
    wanted = torch_values(drawn)(x, 321.0)
    for operation in program.operations:
        name = operation.out
        if isinstance(operation, Concat) or name.endswith(HELPERS):
            continue
        scale = np.abs(wanted[name]).max()
        assert scale > 0, name
        # the standardised weights are float32 once folded, torch's here are float64
        assert np.abs(got[name] - wanted[name]).max() < 3e-6 * scale, name


@pytest.mark.parametrize("kind", TICKETS)
def test_fusing_residuals_changes_no_output_and_leaves_no_add(kind: str) -> None:
    drawn = ticket(kind)
    plain = lower_unet(drawn)
    fused = fuse_residuals(plain)
    assert any(isinstance(op, Add) for op in plain.operations)
    assert not any(isinstance(op, Add) for op in fused.operations)
    x = images(drawn.architecture)
    np.testing.assert_allclose(run(fused, x, 9.0), run(plain, x, 9.0), rtol=1e-12, atol=1e-12)


def test_an_add_that_cannot_be_fused_stays() -> None:
    drawn = ticket("element")
    time = lower_unet(drawn).time
    weight = Dense(np.eye(2, dtype=np.float32))
    conv = Conv("a", "x", weight, 1)
    # a value added to itself has two readers; a value read later cannot be replaced by the sum
    twice = Program((conv, Add("b", "a", "a")), "x", (2, 4, 4), "b", time)
    assert fuse_residuals(twice).operations == twice.operations
    later = Program((conv, Add("b", "a", "x"), Add("c", "b", "a")), "x", (2, 4, 4), "c", time)
    kept = fuse_residuals(later)
    x = np.ones((1, 2, 4, 4), np.float32)
    np.testing.assert_array_equal(run(kept, x, 0.0), run(later, x, 0.0))
    assert next(op.out for op in kept.operations) == "a"


def test_weights_take_the_format_of_their_pattern() -> None:
    for kind, wanted in (("element", CSR), ("vector", BSR), ("block", BSR), ("dense", Dense)):
        convs = {o.out: o for o in lower(ticket(kind)).operations if isinstance(o, Conv)}
        assert isinstance(convs["mid.block1.conv1"].weight, wanted), kind
        assert isinstance(convs["init_conv"].weight, Dense)
        assert isinstance(convs["final_conv"].weight, Dense)
    vector = {o.out: o for o in lower(ticket("vector")).operations if isinstance(o, Conv)}
    matrix = vector["mid.block1.conv1"].weight
    assert isinstance(matrix, BSR)
    assert matrix.block == (4, 1)


def test_masked_weights_survive_even_when_they_are_zero() -> None:
    drawn = ticket("unstandardized")
    name = "mid.block1.conv1.weight"
    weights = {k: v.copy() for k, v in drawn.weights.items()}
    place = tuple(np.argwhere(drawn.masks[name])[0])
    weights[name][place] = 0.0
    changed = dataclasses.replace(drawn, weights=weights)
    conv = next(o for o in lower(changed).operations if o.out == "mid.block1.conv1")
    assert isinstance(conv, Conv)
    assert conv.weight.nnz == int(drawn.masks[name].sum())


def test_standardization_is_over_survivors_only() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((6, 5, 3, 3)) < 0.3
    mask[0] = False
    mask[1] = False
    mask[1, 2, 1, 1] = True
    mask[2] = True
    weight = np.where(mask, rng.standard_normal(mask.shape), 0).astype(np.float32)
    found = standardize(weight, mask)
    assert (found[~mask] == 0).all()
    assert not found[0].any()
    assert not found[1].any(), "a lone survivor is its own mean"
    for row in range(2, 6):
        kept = weight[row][mask[row]].astype(np.float64)
        wanted = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-5)
        np.testing.assert_allclose(found[row][mask[row]], wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(standardize(weight[2:3], None), found[2:3])
