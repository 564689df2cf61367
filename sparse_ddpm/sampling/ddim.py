"""DDIM (Song et al. 2021, "Denoising diffusion implicit models", arXiv 2010.02502)."""

from __future__ import annotations

import numpy as np

from sparse_ddpm.sampling.levels import Levels, Update, eps_estimate


def ddim(levels: Levels, objective: str, eta: float, clip_eps: str) -> Update:
    """``x' = alpha_next x0 + direction eps + eta posterior_std z``, eq. 12 and 16.

    x0 may have been clipped. With ``clip_eps = "rederive"`` eps is what then leads from x0 to x;
    with ``"keep"`` it is what the network said.
    """
    noise = eta * levels.posterior_std
    # sqrt(sigma_next^2 - noise^2), factored so that rounding cannot make the root's argument < 0.
    kept = 1.0 - eta**2 * levels.beta / (1.0 - levels.alpha_bar)
    direction = levels.sigma_next * np.sqrt(np.maximum(kept, 0.0))
    none = np.zeros_like(noise)
    if clip_eps == "keep":
        eps = eps_estimate(objective, levels)
        return Update(
            levels.alpha_next, direction * eps.x_part, direction * eps.n_part, noise, none
        )
    s = direction / levels.sigma
    return Update(levels.alpha_next - levels.alpha * s, s, none, noise, none)
