"""What every solver starts from: signal and noise at both ends of each step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


class Levels(NamedTuple):
    """Signal and noise where each step starts and where it arrives: float64 ``[S]`` each.

    A step goes from ``x = alpha x0 + sigma eps`` to ``alpha_next x0 + sigma_next eps``; the last
    one arrives at x0 itself, alpha_next = 1 and sigma_next = 0.
    """

    alpha_bar: Column
    alpha_bar_next: Column

    @classmethod
    def at(cls, alpha_bar: Column, timesteps: NDArray[np.int64]) -> Levels:
        """From ``alpha_bar`` ``[T]`` at the falling ``timesteps`` ``[S]``."""
        here = alpha_bar[timesteps]
        return cls(here, np.append(here[1:], 1.0))

    @property
    def alpha(self) -> Column:
        return np.sqrt(self.alpha_bar)

    @property
    def sigma(self) -> Column:
        return np.sqrt(1.0 - self.alpha_bar)

    @property
    def alpha_next(self) -> Column:
        return np.sqrt(self.alpha_bar_next)

    @property
    def sigma_next(self) -> Column:
        return np.sqrt(1.0 - self.alpha_bar_next)

    @property
    def beta(self) -> Column:
        """The variance that the forward process adds over a whole step (Ho et al. 2020, eq. 2)."""
        return 1.0 - self.alpha_bar / self.alpha_bar_next

    @property
    def posterior_std(self) -> Column:
        """Standard deviation of q(x_next | x, x0), 0 in the last step (Ho et al. 2020, eq. 7)."""
        return self.sigma_next / self.sigma * np.sqrt(self.beta)


class Linear(NamedTuple):
    """``x_part * x + n_part * n`` with the network's output n: float64 ``[S]`` each."""

    x_part: Column
    n_part: Column


class Update(NamedTuple):
    """The second half of a table: ``x' = r x0 + s x + w n + u z + v x0_previous``, ``[S]`` each."""

    r: Column
    s: Column
    w: Column
    u: Column
    v: Column


def x0_estimate(objective: str, levels: Levels) -> Linear:
    """x0 from x and n; v is ``alpha eps - sigma x0`` (Salimans & Ho 2022, appendix D)."""
    alpha, sigma = levels.alpha, levels.sigma
    match objective:
        case "eps":
            return Linear(1.0 / alpha, -sigma / alpha)
        case "x0":
            return Linear(np.zeros_like(alpha), np.ones_like(alpha))
        case _:
            return Linear(alpha, -sigma)


def eps_estimate(objective: str, levels: Levels) -> Linear:
    """eps from x and n, without clipping anything."""
    alpha, sigma = levels.alpha, levels.sigma
    match objective:
        case "eps":
            return Linear(np.zeros_like(alpha), np.ones_like(alpha))
        case "x0":
            return Linear(1.0 / sigma, -alpha / sigma)
        case _:
            return Linear(sigma, alpha)
