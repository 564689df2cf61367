from __future__ import annotations

import math

import numpy as np
import pytest

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.sampling import alphas_cumprod, betas
from sparse_ddpm.ticket.config import SCHEDULES, DiffusionConfig


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [1, 2, 3, 7, 100, 1000])
def test_alpha_bar_falls_within_bounds(schedule, timesteps):
    beta = betas(schedule, timesteps)
    assert beta.shape == (timesteps,)
    assert beta.dtype == np.float64
    assert (beta > 0).all()
    assert (beta <= 0.999).all()
    alpha_bar = alphas_cumprod(DiffusionConfig(timesteps, schedule))
    assert alpha_bar.dtype == np.float64
    assert (alpha_bar > 0).all()
    assert (np.diff(alpha_bar) < 0).all()
    np.testing.assert_allclose(alpha_bar, [math.prod(1 - beta[: i + 1]) for i in range(timesteps)])


def test_linear_is_ho_2020_at_1000_timesteps():
    beta = betas("linear", 1000)
    assert beta[0] == pytest.approx(1e-4, rel=1e-14)
    assert beta[-1] == pytest.approx(0.02, rel=1e-14)
    np.testing.assert_allclose(np.diff(beta), (0.02 - 1e-4) / 999, rtol=1e-9)


@pytest.mark.parametrize("timesteps", [50, 200, 4000])
def test_linear_keeps_its_total_noise_when_scaled(timesteps):
    beta = betas("linear", timesteps)
    assert beta[0] == pytest.approx(0.1 / timesteps)
    assert beta[-1] == pytest.approx(20 / timesteps)
    assert beta.sum() == pytest.approx(betas("linear", 1000).sum())


def test_linear_stops_below_one_when_short():
    np.testing.assert_allclose(betas("linear", 4), [0.025, 0.999, 0.999, 0.999])


@pytest.mark.parametrize("timesteps", [10, 1000, 4000])
def test_cosine_alpha_bar_is_the_closed_form(timesteps):
    alpha_bar = alphas_cumprod(DiffusionConfig(timesteps, "cosine"))

    def f(t: int) -> float:
        return math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    # Only the last beta would pass 0.999 and is clipped.
    wanted = [f(t) / f(0) for t in range(1, timesteps)]
    np.testing.assert_allclose(alpha_bar[:-1], wanted, rtol=1e-10)
    assert alpha_bar[-1] == pytest.approx(alpha_bar[-2] * 0.001)


@pytest.mark.parametrize("timesteps", [10, 1000, 4000])
def test_sigmoid_alpha_bar_is_the_closed_form(timesteps):
    alpha_bar = alphas_cumprod(DiffusionConfig(timesteps, "sigmoid"))

    # sigmoid(y) = (1 + tanh(y / 2)) / 2, so the ratio needs no sigmoid at all.
    def f(t: int) -> float:
        y = -3 + 6 * t / timesteps
        return 0.5 * (1 - math.tanh(y / 2) / math.tanh(1.5))

    assert f(0) == 1
    wanted = [f(t) for t in range(1, timesteps)]
    np.testing.assert_allclose(alpha_bar[:-1], wanted, rtol=1e-10)
    assert alpha_bar[-1] == pytest.approx(alpha_bar[-2] * 0.001)
    assert alpha_bar[timesteps // 2 - 1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("schedule", "timesteps", "message"),
    [
        (
            "quadratic",
            10,
            "schedule: expected one of linear, cosine, sigmoid, scaled_linear, got 'quadratic'.",
        ),
        ("linear", 0, "timesteps: expected an integer from 1 to"),
        ("linear", 10.0, "timesteps: expected an integer from 1 to"),
        ("linear", True, "timesteps: expected an integer from 1 to"),
        ("linear", 10**9, "timesteps: expected an integer from 1 to"),
    ],
)
def test_wrong_settings_are_named(schedule, timesteps, message):
    with pytest.raises(ConfigError, match=message):
        betas(schedule, timesteps)
