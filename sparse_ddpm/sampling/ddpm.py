"""Ancestral sampling (Ho et al. 2020, "Denoising diffusion probabilistic models", 2006.11239)."""

from __future__ import annotations

import numpy as np

from sparse_ddpm.sampling.levels import Levels, Update


def ddpm(levels: Levels) -> Update:
    """Draw from the posterior q(x_next | x, x0), eq. 6 and 7, with its own ("small") variance.

    Over fewer steps than timesteps it is the same posterior between the timesteps that are visited
    (Nichol & Dhariwal 2021, section 4).
    """
    variance = 1.0 - levels.alpha_bar
    variance_next = 1.0 - levels.alpha_bar_next
    none = np.zeros_like(variance)
    return Update(
        r=levels.alpha_next * levels.beta / variance,
        s=levels.alpha / levels.alpha_next * variance_next / variance,
        w=none,
        u=levels.posterior_std,
        v=none,
    )
