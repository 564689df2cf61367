"""Fréchet distance between Gaussians fitted to features, from statistics gathered in a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import DataError, expected


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """``count`` rows of features: ``mean`` float64 ``[D]``, ``covariance`` float64 ``[D, D]``.

    The covariance is the unbiased one, over ``count - 1``. Raises `DataError` for arrays of
    another kind, a covariance that is not symmetric, or values that are not finite.
    """

    count: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.count < 2:
            raise DataError(expected("statistics", "at least 2 samples", self.count))
        if self.mean.ndim != 1 or self.mean.dtype != np.float64 or not len(self.mean):
            raise DataError(expected("statistics: mean", "float64 [D]", _kind(self.mean)))
        size = self.dimension
        if self.covariance.shape != (size, size) or self.covariance.dtype != np.float64:
            wanted = f"float64 [{size}, {size}]"
            raise DataError(expected("statistics: covariance", wanted, _kind(self.covariance)))
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise DataError(expected("statistics", "finite values", "nan or infinity"))
        if not np.array_equal(self.covariance, self.covariance.T):
            raise DataError(expected("statistics: covariance", "a symmetric matrix", "another"))

    @property
    def dimension(self) -> int:
        return len(self.mean)


class StatisticsStream:
    """Gathers `Statistics` of ``dimension`` features from any number of parts.

    The parts are joined by their means and scatter matrices (Chan, Golub and LeVeque, "Updating
    formulae and a pairwise algorithm for computing sample variances", 1979), which loses no digits
    where the mean is large beside the spread.
    """

    def __init__(self, dimension: int) -> None:
        if dimension < 1:
            raise DataError(expected("features", "at least 1", dimension))
        self._count = 0
        self._mean = np.zeros(dimension)
        self._scatter = np.zeros((dimension, dimension))

    def update(self, features: NDArray[Any]) -> None:
        """Add rows ``[N, D]`` of any real dtype; none is fine. Raises `DataError`."""
        size = len(self._mean)
        if features.ndim != 2 or features.shape[1] != size:
            raise DataError(expected("features", f"[N, {size}]", list(features.shape)))
        if not len(features):
            return
        rows = features.astype(np.float64)
        if not np.isfinite(rows).all():
            raise DataError(expected("features", "finite values", "nan or infinity"))
        mean = rows.mean(axis=0)
        rows -= mean
        shift = mean - self._mean
        total = self._count + len(rows)
        self._scatter += rows.T @ rows
        self._scatter += np.outer(shift, shift) * (self._count * len(rows) / total)
        self._mean += shift * (len(rows) / total)
        self._count = total

    def result(self) -> Statistics:
        """The statistics so far. Raises `DataError` for fewer than two rows."""
        if self._count < 2:
            raise DataError(expected("statistics", "at least 2 samples", self._count))
        covariance = (self._scatter + self._scatter.T) / (2 * (self._count - 1))
        return Statistics(self._count, self._mean.copy(), covariance)


def statistics(features: NDArray[Any]) -> Statistics:
    """`Statistics` of rows ``[N, D]``. Raises `DataError`."""
    if features.ndim != 2:
        raise DataError(expected("features", "[N, D]", list(features.shape)))
    stream = StatisticsStream(features.shape[1])
    stream.update(features)
    return stream.result()


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Squared 2-Wasserstein distance between the Gaussians of two sets of features, at least 0.

    ``|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)`` (Dowson and Landau, "The Fréchet distance between
    multivariate normal distributions", 1982; as a score of images: Heusel et al., "GANs trained by
    a two time-scale update rule", 2017). The trace of ``(C1 C2)^½`` is the sum of the singular
    values of ``C1^½ C2^½``, so that nothing is complex or negative whatever the rounding.

    The estimate is biased upwards, by about ``1/count``: compare distances at equal counts. Raises
    `DataError` if the dimensions differ, or where a set has no more samples than features: its
    covariance is then singular.
    """
    size = first.dimension
    if second.dimension != size:
        raise DataError(expected("features", f"{size}, as in the other set", second.dimension))
    for one in (first, second):
        if one.count <= size:
            wanted = f"more than {size}, the number of features (10,000 for a sound distance)"
            raise DataError(expected("samples", wanted, one.count))
    roots = _root(first.covariance) @ _root(second.covariance)
    crossed = np.linalg.svd(roots, compute_uv=False).sum()
    shift = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return max(0.0, float(shift @ shift + traces - 2 * crossed))


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square root; what rounding made negative counts as 0."""
    values, vectors = np.linalg.eigh(covariance)
    root: NDArray[np.float64] = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def _kind(value: NDArray[Any]) -> str:
    return f"{value.dtype} {list(value.shape)}"
