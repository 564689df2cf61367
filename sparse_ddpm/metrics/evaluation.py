"""Samples against real images, as a judge sees them: all scores at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import DataError, expected
from sparse_ddpm.metrics.fidelity import class_histogram, histogram_distance, precision_recall
from sparse_ddpm.metrics.frechet import frechet_distance, statistics
from sparse_ddpm.metrics.judge import SPLITS, Judge, Reference

SOUND = 10_000
"""Samples from which on a distance is worth quoting."""
NEIGHBOURHOOD = 10_000
"""Real images and samples among which precision and recall look for neighbours, at most."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``distance``: Fréchet distance of ``samples`` samples to ``reference`` real images.

    ``real_distance``: that of real images of the other split to the same reference, which is what a
    perfect sampler may reach (None where the judge does not know it). ``precision`` and ``recall``
    are None where only statistics of the real images were at hand. ``classes`` and
    ``reference_classes`` are shares, ``class_distance`` the total variation between them.
    """

    samples: int
    reference: int
    distance: float
    real_distance: float | None
    precision: float | None
    recall: float | None
    classes: tuple[float, ...]
    reference_classes: tuple[float, ...]
    class_distance: float


def evaluate(
    judge: Judge,
    samples: NDArray[np.uint8],
    *,
    real: NDArray[np.uint8] | None = None,
    split: str = "train",
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Score ``samples``, uint8 ``[N, H, H, C]``, against real images.

    ``real``: uint8 ``[M, H, H, C]``, images of ``split``; left out, what the judge knows of that
    split at this image size. ``progress`` is called with the number of images after each part.
    Raises `DataError` for images of another kind, fewer than the features, or of an image size that
    the judge does not know.
    """
    if split not in SPLITS:
        raise DataError(expected("split", "train or test", repr(split)))
    network = judge.network
    if len(samples) <= network.dimension:
        wanted = f"more than {network.dimension}, the number of features ({SOUND:,} to be sound)"
        raise DataError(expected("samples", wanted, len(samples)))
    size = samples.shape[1]
    precision = recall = None
    if real is None:
        reference = judge.reference(split, size)
        features, logits = network(samples, progress)
    else:
        if real.shape[1:] != samples.shape[1:]:
            wanted = f"{list(samples.shape[1:])}, as the samples"
            raise DataError(expected("real images", wanted, list(real.shape[1:])))
        features, logits = network(samples, progress)
        real_features, real_logits = network(real, progress)
        reference = Reference(statistics(real_features), class_histogram(real_logits))
        count = min(len(real), len(samples), NEIGHBOURHOOD)
        precision, recall = precision_recall(_spread(real_features, count), features[:count])
    classes = class_histogram(logits)
    other = _known(judge, SPLITS[1 - SPLITS.index(split)], size)
    return Evaluation(
        samples=len(samples),
        reference=reference.statistics.count,
        distance=frechet_distance(statistics(features), reference.statistics),
        real_distance=None
        if other is None
        else frechet_distance(other.statistics, reference.statistics),
        precision=precision,
        recall=recall,
        classes=tuple(classes.tolist()),
        reference_classes=tuple(reference.classes.tolist()),
        class_distance=histogram_distance(classes, reference.classes),
    )


def _known(judge: Judge, split: str, size: int) -> Reference | None:
    try:
        return judge.reference(split, size)
    except DataError:
        return None


def _spread(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """``count`` rows at even distances: the files of a data set may be in some order."""
    result: NDArray[np.float32] = rows[(np.arange(count) * len(rows)) // count]
    return result
