"""The average of the weights: its formula, and that masked weights stay exactly zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_ddpm.model.ema import EMA


def test_average_follows_the_formula_with_its_short_memory_at_first() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    wanted = model.weight.detach().double().clone()
    for k in range(200):
        with torch.no_grad():
            model.weight.copy_(torch.full((2, 3), float(k % 7)))
        ema.update()
        decay = min(0.9, (1 + k) / (10 + k))
        wanted = decay * wanted + (1 - decay) * float(k % 7)
    torch.testing.assert_close(ema.weights()["weight"].double(), wanted, atol=1e-5, rtol=0)
    assert list(ema.weights()) == ["weight", "bias"]


def test_average_is_independent_of_the_model_it_was_made_from() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(ema.weights()["weight"], before)


def test_load_continues_bit_for_bit() -> None:
    def updates(ema: EMA, model: nn.Linear, values: range) -> None:
        for value in values:
            with torch.no_grad():
                model.weight.fill_(value * 0.37)
            ema.update()

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    whole = EMA(model, 0.995)
    half = EMA(model, 0.995)
    updates(whole, model, range(20))
    updates(half, model, range(11))
    kept = {name: value.clone() for name, value in half.weights().items()}
    other = nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    resumed = EMA(other, 0.995)
    resumed.load(kept, half.updates)
    updates(resumed, other, range(11, 20))
    for name, value in whole.weights().items():
        assert torch.equal(value, resumed.weights()[name])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
def test_exact_zeros_stay_exact(decay: float) -> None:
    model = nn.Linear(50, 50)
    gone = torch.rand(50, 50) < 0.9
    with torch.no_grad():
        model.weight.masked_fill_(gone, 0.0)
    ema = EMA(model, decay)
    for _ in range(20):
        with torch.no_grad():
            model.weight.add_(torch.randn(50, 50) * ~gone)
        ema.update()
    average = ema.weights()["weight"]
    assert bool((average[gone] == 0.0).all())
    assert not bool((average[~gone] == 0.0).any())
