"""Which timesteps a sampler visits, as diffusers defines them (Lin et al. 2023, table 2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected

SPACINGS = ("trailing", "leading", "linspace")


def spaced_timesteps(
    timesteps: int, steps: int, spacing: str = "trailing", *, skip_zero: bool = False
) -> NDArray[np.int64]:
    """``steps`` of the timesteps 0 to ``timesteps - 1``, falling: int64 ``[steps]``.

    ``trailing`` starts at the last timestep, ``leading`` ends at timestep 0, ``linspace`` does both
    (with one step it is timestep 0). With ``skip_zero``, which diffusers' DPM-Solver++ implies, the
    last two are laid out for one step more and timestep 0 is then left out. Raises `ConfigError`
    for an unknown spacing or a number of steps that does not fit.
    """
    if spacing not in SPACINGS:
        raise ConfigError(expected("spacing", f"one of {', '.join(SPACINGS)}", repr(spacing)))
    extra = int(skip_zero and spacing != "trailing")
    most = timesteps - extra
    if type(steps) is not int or not 1 <= steps <= most:
        wanted = f"an integer from 1 to {most}" if most else "another spacing than " + spacing
        raise ConfigError(expected("steps", wanted, repr(steps)))

    if spacing == "trailing":
        # Rounding can give arange one element more than `steps`, which would be timestep -1.
        return np.round(np.arange(timesteps, 0, -timesteps / steps)[:steps]).astype(np.int64) - 1
    points = steps + extra
    if spacing == "leading":
        rising = np.arange(points, dtype=np.int64) * (timesteps // points)
    else:
        rising = np.round(np.linspace(0, timesteps - 1, points)).astype(np.int64)
    return rising[extra:][::-1].copy()
