"""Everything that depends on t alone, computed once per schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ProgramError, expected
from sparse_ddpm.formats import Matrix

_erf = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True, slots=True, eq=False)
class TimeEmbedding:
    """Sinusoids, a two-layer MLP with GELU, then SiLU and one linear map to all FiLM parameters.

    ``weight1``: ``[time_dim, dim]``, ``weight2``: ``[time_dim, time_dim]``, their biases;
    ``film``: ``[columns, time_dim]``, ``film_bias``: ``[columns]``. The sinusoids are
    ``sin(t f_i), cos(t f_i)`` with ``f_i = 10000 ** (-i / (dim / 2 - 1))`` (Ho 2020).
    """

    dim: int
    weight1: NDArray[np.float32]
    bias1: NDArray[np.float32]
    weight2: NDArray[np.float32]
    bias2: NDArray[np.float32]
    film: Matrix
    film_bias: NDArray[np.float32]

    def __post_init__(self) -> None:
        time_dim = len(self.bias1)
        for name, got, wanted in (
            ("weight1", self.weight1.shape, (time_dim, self.dim)),
            ("weight2", self.weight2.shape, (time_dim, time_dim)),
            ("bias2", self.bias2.shape, (time_dim,)),
            ("film", self.film.shape, (len(self.film_bias), time_dim)),
        ):
            if tuple(got) != wanted:
                raise ProgramError(expected(f"TimeEmbedding.{name}", wanted, tuple(got)))

    @property
    def columns(self) -> int:
        return len(self.film_bias)

    def table(self, timesteps: NDArray[np.generic]) -> NDArray[np.float64]:
        """Scales and shifts, a row for each of ``timesteps`` ``[S]``: float64 ``[S, columns]``."""
        t = np.asarray(timesteps, dtype=np.float64)[:, None]
        half = self.dim // 2
        frequencies = np.exp(np.arange(half) * (-math.log(10_000.0) / max(half - 1, 1)))
        angles = t * frequencies[None, :]
        hidden = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        hidden = hidden @ self.weight1.astype(np.float64).T + self.bias1
        hidden = 0.5 * hidden * (1.0 + np.asarray(_erf(hidden / math.sqrt(2.0)), np.float64))
        hidden = hidden @ self.weight2.astype(np.float64).T + self.bias2
        hidden = hidden / (1.0 + np.exp(-hidden))
        return hidden @ self.film.to_dense().astype(np.float64).T + self.film_bias
