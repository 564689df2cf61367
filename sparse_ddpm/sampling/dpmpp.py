"""DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", arXiv 2211.01095)."""

from __future__ import annotations

import numpy as np

from sparse_ddpm.sampling.levels import Levels, Update


def dpmpp(levels: Levels) -> Update:
    """Second-order multistep solver for the data prediction, midpoint form (algorithm 2).

    The first step has no x0 before it and the last goes to infinite lambda; both are of first
    order, which is DDIM.
    """
    s = levels.sigma_next / levels.sigma
    # alpha_next (1 - exp(-h)), without an infinite h in the last step.
    gain = levels.alpha_next - levels.alpha * s

    half_slope = np.zeros_like(s)
    lam = np.log(levels.alpha / levels.sigma)
    h = np.diff(lam)
    half_slope[1:-1] = h[1:] / (2.0 * h[:-1])

    none = np.zeros_like(s)
    return Update(r=gain * (1.0 + half_slope), s=s, w=none, u=none, v=-gain * half_slope)
