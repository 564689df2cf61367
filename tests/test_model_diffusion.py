"""The forward process against formulas written out again in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.model.diffusion import Diffusion, loss
from sparse_ddpm.sampling.schedule import alphas_cumprod
from sparse_ddpm.ticket.config import OBJECTIVES, SCHEDULES, DiffusionConfig


def make(objective: str = "eps", schedule: str = "cosine", timesteps: int = 50) -> Diffusion:
    config = DiffusionConfig(timesteps, schedule, objective)
    return Diffusion(config, alphas_cumprod(config))


def batch(n: int, timesteps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(n)
    x0 = torch.from_numpy(rng.uniform(-1, 1, (n, 3, 4, 5)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal((n, 3, 4, 5), np.float32))
    return x0, torch.from_numpy(rng.integers(timesteps, size=n)), noise


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_noising_and_target_are_the_papers_formulas(schedule: str, objective: str) -> None:
    diffusion = make(objective, schedule)
    x0, t, noise = batch(7, 50)
    noisy, target = diffusion.q_sample(x0, t, noise), diffusion.target(x0, t, noise)
    abar = alphas_cumprod(diffusion.config)
    for i in range(7):
        a = abar[int(t[i])]
        image, eps = x0[i].double().numpy(), noise[i].double().numpy()
        wanted = math.sqrt(a) * image + math.sqrt(1 - a) * eps
        np.testing.assert_allclose(noisy[i].numpy(), wanted, atol=1e-6)
        of = {
            "eps": eps,
            "x0": image,
            "v": math.sqrt(a) * eps - math.sqrt(1 - a) * image,
        }
        np.testing.assert_allclose(target[i].numpy(), of[objective], atol=1e-6)


def test_v_and_the_noisy_image_give_back_image_and_noise() -> None:
    """x0 = sqrt(abar) x_t - sqrt(1 - abar) v, and eps = sqrt(1 - abar) x_t + sqrt(abar) v."""
    diffusion = make("v", "sigmoid")
    x0, t, noise = batch(5, 50)
    noisy, v = diffusion.q_sample(x0, t, noise), diffusion.target(x0, t, noise)
    a = torch.from_numpy(alphas_cumprod(diffusion.config))[t].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(
        a.sqrt() * noisy - (1 - a).sqrt() * v, x0.double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        (1 - a).sqrt() * noisy + a.sqrt() * v, noise.double(), atol=1e-5, rtol=0
    )


def test_losses_are_means_over_every_element() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 2, 4, 4))
    got = [loss(torch.from_numpy(a), torch.from_numpy(b), kind) for kind in ("l1", "l2")]
    assert float(got[0]) == pytest.approx(np.mean(np.abs(a - b)), rel=1e-6)
    assert float(got[1]) == pytest.approx(np.mean((a - b) ** 2), rel=1e-6)


def test_loss_of_bf16_is_taken_in_float32() -> None:
    prediction = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    assert float(loss(prediction, torch.full((1000,), 1.001), "l1")) == pytest.approx(
        1e-3, rel=1e-3
    )


def test_what_cannot_be_is_refused() -> None:
    config = DiffusionConfig(10)
    with pytest.raises(ConfigError, match=r"alphas_cumprod: expected \[10\], got \(9,\)"):
        Diffusion(config, alphas_cumprod(DiffusionConfig(9)))
    with pytest.raises(ConfigError, match="alphas_cumprod: expected values from 0 to 1"):
        Diffusion(config, np.full(10, np.nan))
    with pytest.raises(ConfigError, match="loss: expected one of l1, l2, got 'huber'"):
        loss(torch.zeros(1), torch.zeros(1), "huber")
