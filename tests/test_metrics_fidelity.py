"""Precision and recall against the definition, written out pair by pair; class histograms."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_ddpm.errors import DataError
from sparse_ddpm.metrics import class_histogram, fidelity, histogram_distance, precision_recall


def inside(points: np.ndarray, others: np.ndarray, k: int) -> float:
    """Share of ``others`` inside the balls around ``points``, by definition."""
    count = 0
    for other in others:
        for i, point in enumerate(points):
            apart = sorted(np.linalg.norm(points[j] - point) for j in range(len(points)) if j != i)
            if np.linalg.norm(other - point) <= apart[k - 1]:
                count += 1
                break
    return count / len(others)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shape", [(30, 25, 2), (4, 40, 5), (40, 4, 1), (17, 17, 8)])
def test_it_is_the_definition(
    shape: tuple[int, int, int], k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "_ROWS", 7)
    n, m, d = shape
    rng = np.random.default_rng(n)
    real, samples = rng.standard_normal((n, d)) + 1e3, rng.standard_normal((m, d)) * 1.5 + 1e3
    found = precision_recall(real, samples, k)
    assert found == (inside(real, samples, k), inside(samples, real, k))
    # A float32 copy is only rounded differently.
    near = precision_recall((real - 1e3).astype(np.float32), (samples - 1e3).astype(np.float32), k)
    assert near == found


def test_extremes() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 6))
    assert precision_recall(rows, rows) == (1.0, 1.0)
    assert precision_recall(rows, rows + 100) == (0.0, 0.0)
    same = np.ones((10, 3))
    assert precision_recall(same, same) == (1.0, 1.0)
    assert precision_recall(same, same * 2) == (0.0, 0.0)


def test_a_missing_mode_costs_recall_and_an_invented_one_precision() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((2, 300, 4)) + np.array([0, 50])[:, None, None]
    again = rng.standard_normal((300, 4))
    both = np.concatenate([one, two])
    precision, recall = precision_recall(both, again)
    assert precision > 0.9
    assert 0.4 < recall < 0.51
    assert precision_recall(again, both) == (recall, precision)


@pytest.mark.parametrize(
    ("real", "samples", "k"),
    [
        (np.zeros((3, 2)), np.zeros((9, 2)), 3),
        (np.zeros((9, 2)), np.zeros((3, 2)), 3),
        (np.zeros((9, 2)), np.zeros((9, 3)), 3),
        (np.zeros((9, 0)), np.zeros((9, 0)), 3),
        (np.zeros(9), np.zeros((9, 1)), 3),
        (np.full((9, 2), np.inf), np.zeros((9, 2)), 3),
        (np.zeros((9, 2)), np.zeros((9, 2)), 0),
    ],
)
def test_other_sets_are_refused(real: np.ndarray, samples: np.ndarray, k: int) -> None:
    with pytest.raises(DataError, match=r"features: expected|neighbours: expected"):
        precision_recall(real, samples, k)


def test_class_histogram_counts_the_most_probable_class() -> None:
    logits = np.array([[0.0, 2, 1, -9], [5, 2, 1, 0], [-1, -2, -0.5, -9], [9, 2, 1, 0]])
    np.testing.assert_array_equal(class_histogram(logits), [0.5, 0.25, 0.25, 0])
    for wrong in (np.zeros((0, 4)), np.zeros((4, 0)), np.zeros(4)):
        with pytest.raises(DataError, match="logits"):
            class_histogram(wrong)


def test_histogram_distance_goes_from_alike_to_disjoint() -> None:
    first = np.array([0.5, 0.5, 0.0])
    assert histogram_distance(first, first) == 0
    assert histogram_distance(first, np.array([0.0, 0.0, 1.0])) == 1
    assert histogram_distance(first, np.array([0.4, 0.5, 0.1])) == pytest.approx(0.1)
    with pytest.raises(DataError, match="class histogram"):
        histogram_distance(first, np.array([0.5, 0.5]))
