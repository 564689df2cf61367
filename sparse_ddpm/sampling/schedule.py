"""Noise schedules: how fast the forward process destroys an image.

Everything is float64: with the cosine schedule alpha_bar falls to about 1e-9 at the last timestep.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.ticket.config import BETA_SCHEDULES, MAX_TIMESTEPS, SCHEDULES, DiffusionConfig

MAX_BETA = 0.999
"""Largest beta of any schedule (Nichol & Dhariwal 2021, section 3.2)."""


def _from_alpha_bar(alpha_bar: NDArray[np.float64]) -> NDArray[np.float64]:
    """Betas ``[T]`` whose running product of ``1 - beta`` is ``alpha_bar`` ``[T + 1]``."""
    return np.clip(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.0, MAX_BETA)


def _linear(timesteps: int, start: float, end: float) -> NDArray[np.float64]:
    """``start`` to ``end`` in equal steps (Ho et al. 2020, section 4), times ``1000 / timesteps``.

    The scaling keeps the end of the process where it is at 1000 timesteps. Below 21 timesteps it
    would ask for betas of 1 and more; they stop at `MAX_BETA`.
    """
    scale = 1000.0 / timesteps
    return np.minimum(np.linspace(scale * start, scale * end, timesteps), MAX_BETA)


def _scaled_linear(timesteps: int, start: float, end: float) -> NDArray[np.float64]:
    """As `_linear`, but the roots of the betas go in equal steps (Rombach et al. 2022)."""
    scale = 1000.0 / timesteps
    roots = np.linspace(math.sqrt(scale * start), math.sqrt(scale * end), timesteps)
    return np.minimum(np.square(roots), MAX_BETA)


def _cosine(timesteps: int) -> NDArray[np.float64]:
    """alpha_bar is a squared cosine with s = 0.008 (Nichol & Dhariwal 2021, 2102.09672, eq. 17)."""
    offset = 0.008
    t = np.arange(timesteps + 1) / timesteps
    return _from_alpha_bar(np.cos((t + offset) / (1.0 + offset) * (math.pi / 2)) ** 2)


def _sigmoid(timesteps: int) -> NDArray[np.float64]:
    """alpha_bar is a falling sigmoid, -3 to 3, tau = 1 (Jabri et al. 2022, arXiv 2212.11972).

    Shifted and scaled so that it is 1 at t = 0 and 0 at t = T.
    """
    start, end = -3.0, 3.0
    t = np.arange(timesteps + 1) / timesteps
    falling = 1.0 / (1.0 + np.exp(t * (end - start) + start))
    low, high = falling[-1], falling[0]
    return _from_alpha_bar((falling - low) / (high - low))


_BETAS = {"linear": _linear, "scaled_linear": _scaled_linear}
_FIXED = {"cosine": _cosine, "sigmoid": _sigmoid}
assert {*_BETAS, *_FIXED} == set(SCHEDULES)
assert tuple(_BETAS) == BETA_SCHEDULES


def betas(
    schedule: str, timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NDArray[np.float64]:
    """Variances of the forward steps (Ho et al. 2020, eq. 2): float64 ``[T]`` in [0, 0.999].

    ``beta_start``, ``beta_end``: see `DiffusionConfig`, of some schedules only. Raises
    `ConfigError` for an unknown schedule or a number of timesteps that is out of range.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(expected("schedule", f"one of {', '.join(SCHEDULES)}", repr(schedule)))
    if type(timesteps) is not int or not 1 <= timesteps <= MAX_TIMESTEPS:
        raise ConfigError(
            expected("timesteps", f"an integer from 1 to {MAX_TIMESTEPS}", repr(timesteps))
        )
    if schedule in _BETAS:
        return _BETAS[schedule](timesteps, beta_start, beta_end)
    return _FIXED[schedule](timesteps)


def alphas_cumprod(config: DiffusionConfig) -> NDArray[np.float64]:
    """alpha_bar, the part of the variance that is still image: float64 ``[T]``, falling.

    ``alpha_bar[t]`` is the product of ``1 - beta`` up to and with t, so that
    ``x_t = sqrt(alpha_bar[t]) x_0 + sqrt(1 - alpha_bar[t]) noise`` (Ho et al. 2020, eq. 4).
    """
    alphas = 1.0 - betas(config.schedule, config.timesteps, config.beta_start, config.beta_end)
    return np.cumprod(alphas, dtype=np.float64)
