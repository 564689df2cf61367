"""A sampler is a table: DDPM, DDIM and DPM-Solver++ are rows of one loop body.

Row i, with n the network's output at ``timesteps[i]``, z fresh noise, x0_previous the x0 of row
i - 1, and the clamp only where ``clip`` is set::

    x0 = clamp(p x + q n, -1, 1)        x' = r x0 + s x + w n + u z + v x0_previous
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.sampling.ddim import ddim
from sparse_ddpm.sampling.ddpm import ddpm
from sparse_ddpm.sampling.dpmpp import dpmpp
from sparse_ddpm.sampling.levels import Levels, x0_estimate
from sparse_ddpm.sampling.schedule import alphas_cumprod
from sparse_ddpm.sampling.spacing import spaced_timesteps
from sparse_ddpm.ticket.config import DiffusionConfig

SAMPLERS = ("ddim", "ddpm", "dpm++")
CLIP_EPS = ("rederive", "keep")
COLUMNS = ("p", "q", "r", "s", "w", "u", "v")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The rows of one sampler. Checks itself when made; the arrays are read-only copies.

    ``timesteps``: int64 ``[S]``, falling, >= 0. Columns: float64 ``[S]``, finite. Row 0 has no
    x0_previous (v = 0), and the last row is x0 itself (r = 1; s, w, u and v 0).
    """

    timesteps: NDArray[np.int64]
    p: NDArray[np.float64]
    q: NDArray[np.float64]
    r: NDArray[np.float64]
    s: NDArray[np.float64]
    w: NDArray[np.float64]
    u: NDArray[np.float64]
    v: NDArray[np.float64]
    clip: bool

    @property
    def coefficients(self) -> NDArray[np.float64]:
        """All columns in their order, ``[S, 7]``."""
        return np.stack([getattr(self, name) for name in COLUMNS], axis=1)

    def __post_init__(self) -> None:
        timesteps = _frozen(self.timesteps, np.int64)
        if timesteps.ndim != 1 or not len(timesteps):
            raise ConfigError(expected("table.timesteps", "shape [S], S >= 1", timesteps.shape))
        if timesteps[-1] < 0 or (np.diff(timesteps) >= 0).any():
            raise ConfigError(
                expected("table.timesteps", "falling and >= 0", timesteps.tolist()[:8])
            )
        object.__setattr__(self, "timesteps", timesteps)
        for name in COLUMNS:
            column = _frozen(getattr(self, name), np.float64)
            if column.shape != timesteps.shape:
                raise ConfigError(expected(f"table.{name}", timesteps.shape, column.shape))
            if not np.isfinite(column).all():
                row = int(np.flatnonzero(~np.isfinite(column))[0])
                raise ConfigError(
                    expected(f"table.{name} in row {row}", "a finite number", column[row])
                )
            object.__setattr__(self, name, column)
        if self.v[0] != 0:
            raise ConfigError(expected("table.v in row 0", "0, as no x0 came before", self.v[0]))
        last = (self.r[-1], self.s[-1], self.w[-1], self.u[-1], self.v[-1])
        if last != (1, 0, 0, 0, 0):
            raise ConfigError(
                expected(
                    "table, last row", "r, s, w, u, v = 1, 0, 0, 0, 0", tuple(map(float, last))
                )
            )
        if type(self.clip) is not bool:
            raise ConfigError(expected("table.clip", "true or false", repr(self.clip)))

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def _frozen(values: object, dtype: type[np.generic]) -> NDArray[np.generic]:
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


def make_table(
    diffusion: DiffusionConfig,
    *,
    sampler: str = "ddim",
    steps: int = 50,
    eta: float | None = None,
    spacing: str = "trailing",
    clip_eps: str = "rederive",
) -> Table:
    """The table of ``sampler`` (``ddim``, ``ddpm`` or ``dpm++``) with ``steps`` rows.

    ``eta`` (0 to 1, default 0) and ``clip_eps`` are DDIM's: the share of the posterior's noise that
    is added, and whether eps is derived again from the clipped x0 (``rederive``) or stays what the
    network said (``keep``, diffusers' default). ``spacing`` is ``trailing``, ``leading`` or
    ``linspace`` (`spaced_timesteps`). Each step leads to the timestep of the next row, the last one
    to x0. Raises `ConfigError` that names the setting.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(expected("sampler", f"one of {', '.join(SAMPLERS)}", repr(sampler)))
    if clip_eps not in CLIP_EPS:
        raise ConfigError(expected("clip_eps", f"one of {', '.join(CLIP_EPS)}", repr(clip_eps)))
    if sampler != "ddim":
        if eta is not None:
            raise ConfigError(expected("eta", f"none with sampler {sampler}", repr(eta)))
        if clip_eps != "rederive":
            raise ConfigError(
                expected("clip_eps", f"rederive with sampler {sampler}", repr(clip_eps))
            )
    if eta is not None and (type(eta) not in (int, float) or not 0.0 <= eta <= 1.0):
        raise ConfigError(expected("eta", "a number from 0 to 1", repr(eta)))

    timesteps = spaced_timesteps(diffusion.timesteps, steps, spacing, skip_zero=sampler == "dpm++")
    levels = Levels.at(alphas_cumprod(diffusion), timesteps)
    match sampler:
        case "ddpm":
            update = ddpm(levels)
        case "dpm++":
            update = dpmpp(levels)
        case _:
            update = ddim(levels, diffusion.objective, eta or 0.0, clip_eps)
    x0 = x0_estimate(diffusion.objective, levels)
    return Table(timesteps, x0.x_part, x0.n_part, *update, clip=diffusion.clip)
