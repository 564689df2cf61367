"""How much two masks have in common by chance alone, given how much each of them keeps.

Two random masks of density d overlap with a Jaccard index of d / (2 - d), so the index alone says
nothing. What is computed here is the distribution of the number of units in common, exactly for
units that fall independently, and from it the mean and the deviation of the index.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEGLIGIBLE = 1e-30
"""Of the largest probability: tails below it are cut off."""


@dataclass(frozen=True, slots=True, eq=False)
class Chance:
    """The distribution of a count: ``probabilities[i]`` (float64 ``[m]``) of ``first + i``."""

    first: int
    probabilities: NDArray[np.float64]

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the count."""
        return self._moments(self._counts())

    def jaccard(self, kept: int) -> tuple[float, float]:
        """Mean and standard deviation of the Jaccard index ``k / (kept - k)`` for a count k.

        ``kept``: what the two masks keep, added up; at least 1.
        """
        counts = self._counts()
        return self._moments(counts / (kept - counts))

    def _counts(self) -> NDArray[np.float64]:
        return self.first + np.arange(self.probabilities.size, dtype=np.float64)

    def _moments(self, values: NDArray[np.float64]) -> tuple[float, float]:
        mean = float(self.probabilities @ values)
        variance = float(self.probabilities @ (values - mean) ** 2)
        return mean, math.sqrt(variance)


def hypergeometric(total: int, first: int, second: int) -> Chance:
    """How many units two independent random sets of ``first`` and ``second`` of ``total`` share.

    Built from the ratio of neighbouring probabilities,
    ``p(k+1) / p(k) = (first - k)(second - k) / ((k + 1)(total - first - second + k + 1))``,
    so it is exact but for rounding, and for tails below 1e-30 by Bernstein's inequality.
    """
    low, high = max(0, first + second - total), min(first, second)
    mean = first * second / total
    variance = mean * (1 - first / total) * (total - second) / max(1, total - 1)
    reach = 12.0 * math.sqrt(variance) + 60.0
    low, high = max(low, math.floor(mean - reach)), min(high, math.ceil(mean + reach))
    counts = np.arange(low, high, dtype=np.float64)
    steps = np.log((first - counts) * (second - counts))
    steps -= np.log((counts + 1) * (total - first - second + counts + 1))
    return _normalised(low, np.concatenate([[0.0], np.cumsum(steps)]))


def scattered(weights: NDArray[np.int64], count: int) -> Chance:
    """The sum of ``count`` of ``weights`` (``[n]``, at least 0) drawn without putting back.

    Chance for masks of unlike units: those of one are thrown at random, and ``weights`` says how
    many weights the other keeps in each. Mean and variance are exact, the shape between the
    smallest and the largest possible sum is taken to be normal.
    """
    size = weights.size
    mean = count * float(weights.mean())
    variance = count * (1 - count / size) * float(weights.var()) * size / max(1, size - 1)
    if variance == 0.0:
        return Chance(round(mean), np.ones(1))
    ordered = np.sort(weights)
    reach = 12.0 * math.sqrt(variance)
    low = max(int(ordered[:count].sum()), math.floor(mean - reach))
    high = min(int(ordered[size - count :].sum()), math.ceil(mean + reach))
    counts = np.arange(low, high + 1, dtype=np.float64)
    return _normalised(low, -((counts - mean) ** 2) / (2.0 * variance))


def pooled(parts: Iterable[Chance]) -> Chance:
    """The sum of independent counts: what several layers share, each with its own densities."""
    first, probabilities = 0, np.ones(1)
    for part in parts:
        first += part.first
        probabilities = np.convolve(probabilities, part.probabilities)
        kept = np.flatnonzero(probabilities > NEGLIGIBLE * probabilities.max())
        first += int(kept[0])
        probabilities = probabilities[kept[0] : kept[-1] + 1]
    return Chance(first, probabilities / probabilities.sum())


def _normalised(first: int, logarithms: NDArray[np.float64]) -> Chance:
    probabilities = np.exp(logarithms - logarithms.max())
    return Chance(first, probabilities / probabilities.sum())
