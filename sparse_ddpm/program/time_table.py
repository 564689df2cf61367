"""Everything that depends on t alone, computed once per schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ProgramError, expected
from sparse_ddpm.formats import Matrix

ACTS = ("gelu", "silu")

_erf = np.frompyfunc(math.erf, 1, 1)


def _gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * x * (1.0 + np.asarray(_erf(x / math.sqrt(2.0)), np.float64))


def _silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # exp of a large number is inf, and x / inf is right
        return np.asarray(x / (1.0 + np.exp(-x)))


@dataclass(frozen=True, slots=True, eq=False)
class TimeEmbedding:
    """Sinusoids, a two-layer MLP, then SiLU and one linear map to all FiLM parameters.

    ``weight1``: ``[time_dim, dim]``, ``weight2``: ``[time_dim, time_dim]``, their biases;
    ``film``: ``[columns, time_dim]``, ``film_bias``: ``[columns]``. The sinusoids are
    ``sin(t f_i), cos(t f_i)`` with ``f_i = 10000 ** (-i / (dim / 2 - shift))`` (Ho 2020), the
    cosines before the sines with ``cos_first``. ``act``, between the two layers: one of ACTS.
    """

    dim: int
    weight1: NDArray[np.float32]
    bias1: NDArray[np.float32]
    weight2: NDArray[np.float32]
    bias2: NDArray[np.float32]
    film: Matrix
    film_bias: NDArray[np.float32]
    shift: int = 1
    cos_first: bool = False
    act: str = "gelu"

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
        if self.act not in ACTS:
            raise ProgramError(expected("TimeEmbedding.act", " or ".join(ACTS), repr(self.act)))

    @property
    def columns(self) -> int:
        return len(self.film_bias)

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """The sinusoids' ``f_i``: float64 ``[dim / 2]``."""
        half = self.dim // 2
        exponents = np.arange(half) * (-math.log(10_000.0) / max(half - self.shift, 1))
        return np.asarray(np.exp(exponents))

    def table(self, timesteps: NDArray[np.generic]) -> NDArray[np.float64]:
        """Scales and shifts, a row for each of ``timesteps`` ``[S]``: float64 ``[S, columns]``."""
        t = np.asarray(timesteps, dtype=np.float64)[:, None]
        angles = t * self.frequencies[None, :]
        waves = [np.sin(angles), np.cos(angles)]
        hidden = np.concatenate(waves[::-1] if self.cos_first else waves, axis=1)
        hidden = hidden @ self.weight1.astype(np.float64).T + self.bias1
        hidden = _gelu(hidden) if self.act == "gelu" else _silu(hidden)
        hidden = _silu(hidden @ self.weight2.astype(np.float64).T + self.bias2)
        return hidden @ self.film.to_dense().astype(np.float64).T + self.film_bias
