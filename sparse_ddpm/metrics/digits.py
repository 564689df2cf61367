"""What a digit classifier says of samples, beside what it says of real images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import DataError, expected

CONFIDENCE = 0.9
LEAST_RATIO = 0.85
SHARES = (0.04, 0.18)


@dataclass(frozen=True, slots=True)
class DigitScores:
    """All are fractions from 0 to 1, but for ``ratio``.

    ``real_recognised`` and ``sample_recognised`` count the images whose most probable digit has a
    softmax confidence above `CONFIDENCE`, right or not: samples have no label to be right about.
    ``shares`` are those of the most probable digit, 0 to 9, among all samples.
    """

    accuracy: float
    real_recognised: float
    sample_recognised: float
    shares: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How much less often samples are recognised than real images."""
        return self.sample_recognised / self.real_recognised if self.real_recognised else 0.0

    @property
    def recognised(self) -> bool:
        return self.ratio >= LEAST_RATIO

    @property
    def varied(self) -> bool:
        """Whether no digit is too rare or too frequent."""
        return SHARES[0] <= min(self.shares) and max(self.shares) <= SHARES[1]


def score_digits(
    real: NDArray[np.float32], labels: NDArray[np.int64], samples: NDArray[np.float32]
) -> DigitScores:
    """Score softmax probabilities ``[N, 10]`` of real images, with labels ``[N]``, and of samples.

    Raises `DataError` if a shape is another, a set is empty, or a row is no distribution.
    """
    for what, rows in (("real probabilities", real), ("sample probabilities", samples)):
        if rows.ndim != 2 or rows.shape[1] != 10 or not len(rows):
            raise DataError(expected(what, "[N, 10] with N at least 1", list(rows.shape)))
        if not (np.all(rows >= 0) and np.allclose(rows.sum(axis=1), 1, atol=1e-3)):
            raise DataError(expected(what, "rows that are >= 0 and sum to 1", "others"))
    if labels.shape != real.shape[:1]:
        raise DataError(expected("real labels", f"[{len(real)}]", list(labels.shape)))
    counts = np.bincount(samples.argmax(axis=1), minlength=10)
    return DigitScores(
        accuracy=float(np.mean(real.argmax(axis=1) == labels)),
        real_recognised=float(np.mean(real.max(axis=1) > CONFIDENCE)),
        sample_recognised=float(np.mean(samples.max(axis=1) > CONFIDENCE)),
        shares=tuple((counts / len(samples)).tolist()),
    )
