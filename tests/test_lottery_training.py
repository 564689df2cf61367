"""One round: schedules, inputs, masked averages, and what stays exactly zero."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")

from sparse_ddpm.errors import DataError, SparseDDPMError
from sparse_ddpm.lottery.evaluation import held_out_loss, split
from sparse_ddpm.lottery.pruning import dense_masks, random_masks
from sparse_ddpm.lottery.run import initial_weights
from sparse_ddpm.lottery.session import resolve
from sparse_ddpm.lottery.settings import Settings
from sparse_ddpm.lottery.training import (
    Trained,
    learning_rate,
    masked_model,
    step_inputs,
    train_round,
)
from sparse_ddpm.model.diffusion import Diffusion
from sparse_ddpm.sampling.schedule import alphas_cumprod
from sparse_ddpm.ticket.config import PRESETS
from tests.lottery_tiny import CHOSEN, TINY

IMAGES = torch.from_numpy(
    np.random.default_rng(0).integers(256, size=(30, 1, 8, 8), dtype=np.uint8)
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)


def make(**changes: Any) -> Settings:
    return Settings(**{**CHOSEN, "data": "mnist:x", **changes})


def masks_at(density: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {n: rng.random(m.shape) < density for n, m in dense_masks(TINY).items()}


def train(settings: Settings, masks: dict[str, np.ndarray], **kwargs: Any) -> Trained:
    diffusion = Diffusion(settings.diffusion, alphas_cumprod(settings.diffusion))
    start = kwargs.pop("start", None) or initial_weights(settings)
    steps = kwargs.pop("steps", 5)
    return train_round(settings, diffusion, IMAGES, start, masks, 1, steps, **kwargs)


def test_one_cycle_rises_to_the_summit_and_falls_to_nothing() -> None:
    settings = make(lr_schedule="one-cycle", lr=0.5)
    rates = [learning_rate(settings, step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.5 / 25)
    assert rates[150] == pytest.approx((0.5 + 0.5 / 25) / 2)
    assert rates[300] == pytest.approx(0.5)
    assert rates[-1] < 1e-5
    assert all(a < b for a, b in pairwise(rates[:301]))
    assert all(a > b for a, b in pairwise(rates[300:]))
    assert learning_rate(make(lr=0.5), 77, 1000) == 0.5
    assert learning_rate(settings, 0, 1) == pytest.approx(0.5 / 25)


def test_inputs_of_a_step_are_a_function_of_seed_round_and_step() -> None:
    one = step_inputs(make(), IMAGES, 1, 3)
    again = step_inputs(make(), IMAGES, 1, 3)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    for other in (
        step_inputs(make(seed=1), IMAGES, 1, 3),
        step_inputs(make(), IMAGES, 2, 3),
        step_inputs(make(), IMAGES, 1, 4),
    ):
        assert not torch.equal(one[2], other[2])
    x0, t, noise = one
    assert x0.shape == noise.shape == (4, 1, 8, 8)
    assert x0.dtype == noise.dtype == torch.float32
    assert float(x0.min()) >= -1.0
    assert float(x0.max()) <= 1.0
    assert t.dtype == torch.int64
    assert set(t.tolist()) <= {0, 1, 2}


def test_images_fill_the_range() -> None:
    ends = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    ends[2:] = 255
    x0 = step_inputs(make(), ends, 0, 0)[0]
    assert sorted(set(x0.flatten().tolist())) == [-1.0, 1.0]


def test_flips_turn_about_half_of_the_images() -> None:
    plain = step_inputs(make(batch_size=300), IMAGES, 0, 0)[0]
    flipped = step_inputs(make(batch_size=300, flip=True), IMAGES, 0, 0)[0]
    turned = torch.tensor([torch.equal(f, p.flip(-1)) for f, p in zip(flipped, plain, strict=True)])
    same = torch.tensor([torch.equal(f, p) for f, p in zip(flipped, plain, strict=True)])
    assert bool((turned ^ same).all())
    assert 100 < int(turned.sum()) < 200


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_pruned_weights_and_their_average_are_exactly_zero(optimizer: str, precision: str) -> None:
    settings = make(optimizer=optimizer, precision=precision, weight_decay=0.1)
    masks = masks_at(0.1)
    trained = train(settings, masks)
    for weights in (trained.weights, trained.average):
        for name, mask in masks.items():
            pruned = weights[name].numpy()[~mask]
            assert (pruned == 0.0).all(), name
            assert not np.signbit(pruned).any(), name
    start = initial_weights(settings)
    moved = [n for n, w in trained.weights.items() if not torch.equal(w, start[n])]
    assert len(moved) == len(start), "something that should be trained is not"


def test_average_begins_anew_and_is_not_the_weights() -> None:
    settings = make(ema=0.9)
    trained = train(settings, masks_at(0.5), steps=30)
    name = "mid.block1.conv1.weight"
    assert not torch.equal(trained.average[name], trained.weights[name])
    at_once = train(make(ema=0.0), masks_at(0.5), steps=3)
    assert torch.equal(at_once.average[name], at_once.weights[name])


def test_no_given_value_is_changed() -> None:
    settings = make()
    start = initial_weights(settings)
    masks = masks_at(0.3)
    before = {n: w.clone() for n, w in start.items()}
    kept = {n: m.copy() for n, m in masks.items()}
    train(settings, masks, start=start)
    assert all(torch.equal(start[n], before[n]) for n in start)
    assert all(np.array_equal(masks[n], kept[n]) for n in masks)


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = initial_weights(make())
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = initial_weights(make(lr=0.1))
    assert all(torch.equal(one[n], again[n]) for n in one)
    for other in (initial_weights(make(seed=1)), initial_weights(make(), "reinit")):
        assert not torch.equal(one["init_conv.weight"], other["init_conv.weight"])
    torch.manual_seed(1)
    initial_weights(make())
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator was disturbed"


def test_loss_falls_on_something_easy() -> None:
    settings = make(batch_size=16, lr=2e-3, loss="l2", objective="x0")
    black = torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
    diffusion = Diffusion(settings.diffusion, alphas_cumprod(settings.diffusion))
    start = initial_weights(settings)
    masks = masks_at(0.3)
    trained = train_round(settings, diffusion, black, start, masks, 0, 60)
    before = held_out_loss(settings, diffusion, masked_model(settings, start, masks), black)
    after = held_out_loss(
        settings, diffusion, masked_model(settings, trained.average, masks), black
    )
    assert after < 0.2 * before
    assert trained.loss < 0.2 * before


def test_held_out_loss_is_one_number_whatever_the_seed_and_the_batch() -> None:
    settings = make()
    diffusion = Diffusion(settings.diffusion, alphas_cumprod(settings.diffusion))
    model = masked_model(settings, initial_weights(settings), dense_masks(TINY))
    losses = [
        held_out_loss(other, diffusion, model, IMAGES)
        for other in (settings, make(seed=9), make(batch_size=7), make(batch_size=100))
    ]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    settings = make()
    start = initial_weights(settings)
    start["init_conv.weight"][:] = float("nan")
    with pytest.raises(SparseDDPMError, match=r"loss in round 1 after 5 steps: .* finite .* nan"):
        train(settings, masks_at(0.5), start=start)


@pytest.mark.parametrize(("count", "held"), [(2, 1), (9, 1), (50, 5), (60_000, 2000)])
def test_the_last_images_are_held_out(count: int, held: int) -> None:
    images = torch.arange(count)
    training, out = split(images)
    assert len(out) == held
    assert torch.equal(torch.cat([training, out]), images)


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="data: expected at least 2 images, got 1"):
        split(torch.zeros(1))


def test_auto_is_resolved_to_something_definite() -> None:
    settings = resolve(Settings("mnist:x"))
    assert settings.device in ("cpu", "cuda")
    assert settings.precision in ("float32", "bf16")
    assert settings.threads is not None
    assert resolve(settings) == settings
    chosen = Settings("mnist:x", device="cpu", precision="float32", threads=1)
    assert resolve(chosen) == chosen


def test_random_masks_train_too() -> None:
    masks = random_masks(masks_at(0.2), 0)
    trained = train(dataclasses.replace(make(), loss="l2"), masks)
    assert all((trained.average[n].numpy()[~m] == 0).all() for n, m in masks.items())
