from __future__ import annotations

import numpy as np
import pytest

from sparse_ddpm.errors import DataError
from sparse_ddpm.metrics import DigitScores, score_digits


def _rows(digits: list[int], confidences: list[float]) -> np.ndarray:
    rows = np.empty((len(digits), 10), dtype=np.float32)
    for row, digit, confidence in zip(rows, digits, confidences, strict=True):
        row[:] = (1 - confidence) / 9
        row[digit] = confidence
    return rows


def test_counts_by_hand() -> None:
    real = _rows([1, 2, 3, 4], [0.95, 0.99, 0.95, 0.5])
    samples = _rows([7, 7, 7, 0, 1], [0.95, 0.91, 0.89, 0.3, 1.0])
    scores = score_digits(real, np.array([1, 2, 4, 4]), samples)
    assert scores.accuracy == 0.75
    assert scores.real_recognised == 0.75
    assert scores.sample_recognised == 0.6
    assert scores.ratio == pytest.approx(0.8)
    assert not scores.recognised
    assert scores.shares == (0.2, 0.2, 0, 0, 0, 0, 0, 0.6, 0, 0)
    assert not scores.varied


def test_exactly_nine_tenths_is_not_above() -> None:
    rows = np.zeros((1, 10))
    rows[0, :2] = 0.9, 0.1
    assert score_digits(rows, np.array([0]), rows).real_recognised == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sample", "shares", "recognised", "varied"),
    [
        (0.85, (0.1,) * 10, True, True),
        (0.84, (0.04, 0.18, *(0.0975,) * 8), False, True),
        (0.90, (0.039, 0.161, *(0.1,) * 8), True, False),
        (1.00, (0.181, 0.019, *(0.1,) * 8), True, False),
    ],
)
def test_targets(sample: float, shares: tuple[float, ...], recognised: bool, varied: bool) -> None:
    scores = DigitScores(0.99, 1.0, sample, shares)
    assert (scores.recognised, scores.varied) == (recognised, varied)


def test_nothing_recognised_is_no_division_by_zero() -> None:
    rows = _rows([1], [0.2])
    assert score_digits(rows, np.array([1]), rows).ratio == 0.0


@pytest.mark.parametrize(
    ("real", "labels", "samples", "words"),
    [
        (np.ones((1, 9)), [0], _rows([1], [1.0]), "real probabilities: expected .* 10"),
        (_rows([1], [1.0]), [0], np.ones((0, 10)), "sample probabilities: expected .*at least 1"),
        (_rows([1], [1.0]), [0], np.ones((1, 10)), "sum to 1"),
        (_rows([1], [1.0]), [0], np.full((1, 10), np.nan), "sum to 1"),
        (_rows([1], [1.0]), [0, 1], _rows([1], [1.0]), r"real labels: expected \[1\], got \[2\]"),
    ],
)
def test_what_cannot_be_scored(
    real: np.ndarray, labels: list[int], samples: np.ndarray, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        score_digits(real, np.array(labels), samples)
