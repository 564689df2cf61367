"""Precision and recall of samples, and which classes they show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import DataError, expected

NEIGHBOURS = 3
_ROWS = 1_000  # rows of distances in memory at a time


def precision_recall(
    real: NDArray[Any], samples: NDArray[Any], neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Improved precision and recall of features ``[N, D]`` and ``[M, D]``, from 0 to 1.

    Each set stands for the union of the balls around its points that reach to the ``neighbours``-th
    nearest other point. Precision is the part of the samples inside the real set (do samples look
    real?), recall the part of the real images inside the samples (is everything real drawn?).
    Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models",
    2019. Both depend on N and M: compare figures at equal ones. Time grows with the square of them.

    Raises `DataError` for other shapes, values that are not finite, or a set with no more points
    than ``neighbours``.
    """
    if neighbours < 1:
        raise DataError(expected("neighbours", "at least 1", neighbours))
    for what, rows in (("real features", real), ("sample features", samples)):
        if rows.ndim != 2 or not rows.shape[1]:
            raise DataError(expected(what, "[N, D]", list(rows.shape)))
        if len(rows) <= neighbours:
            raise DataError(expected(what, f"more than {neighbours} rows", len(rows)))
        if not np.isfinite(rows).all():
            raise DataError(expected(what, "finite values", "nan or infinity"))
    if real.shape[1] != samples.shape[1]:
        wanted = f"[N, {real.shape[1]}], as many as the real ones"
        raise DataError(expected("sample features", wanted, list(samples.shape)))
    # Distances are of differences of large squares: the common centre would only cost digits.
    centre = real.mean(axis=0, dtype=np.float64)
    points, others = real - centre, samples - centre
    slack = 1e-12 * max((points**2).sum(axis=1).max(), (others**2).sum(axis=1).max())
    real_radii = _radii(points, neighbours) + slack
    sample_radii = _radii(others, neighbours) + slack
    drawn = np.zeros(len(points), dtype=np.bool_)
    believable = 0
    for part in _parts(len(others)):
        distances = _squared_distances(others[part], points)
        believable += int((distances <= real_radii).any(axis=1).sum())
        drawn |= (distances <= sample_radii[part, None]).any(axis=0)
    return believable / len(others), float(drawn.mean())


def _radii(points: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    """Squared distance of each point to its ``neighbours``-th nearest other one."""
    radii = np.empty(len(points))
    for part in _parts(len(points)):
        distances = _squared_distances(points[part], points)
        # A point itself is the nearest, at distance 0.
        radii[part] = np.partition(distances, neighbours, axis=1)[:, neighbours]
    return radii


def _squared_distances(
    rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    squares = (rows**2).sum(axis=1)[:, None] + (columns**2).sum(axis=1)
    squares -= 2 * (rows @ columns.T)
    result: NDArray[np.float64] = np.maximum(squares, 0, out=squares)
    return result


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, _ROWS):
        yield slice(start, min(start + _ROWS, count))


def class_histogram(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Share of each class, the most probable one, among rows of logits ``[N, K]``: float64 ``[K]``.

    Raises `DataError` for another shape or no rows.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise DataError(expected("logits", "[N, K] with N at least 1", list(logits.shape)))
    counts = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])
    shares: NDArray[np.float64] = counts / len(logits)
    return shares


def histogram_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Total variation between two class histograms ``[K]``: from 0, alike, to 1, disjoint."""
    if first.shape != second.shape or first.ndim != 1:
        raise DataError(expected("class histogram", list(first.shape), list(second.shape)))
    return float(np.abs(first - second).sum() / 2)
