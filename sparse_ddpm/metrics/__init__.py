"""Judges of images. Their numpy parts are imported here, those that need torch by their module."""

from sparse_ddpm.metrics.digits import DigitScores, score_digits
from sparse_ddpm.metrics.evaluation import Evaluation, evaluate
from sparse_ddpm.metrics.features import FeatureNet
from sparse_ddpm.metrics.fidelity import class_histogram, histogram_distance, precision_recall
from sparse_ddpm.metrics.frechet import (
    Statistics,
    StatisticsStream,
    frechet_distance,
    statistics,
)
from sparse_ddpm.metrics.judge import (
    Judge,
    Reference,
    load_judge,
    measure,
    save_judge,
    shipped_judge,
)

__all__ = [
    "DigitScores",
    "Evaluation",
    "FeatureNet",
    "Judge",
    "Reference",
    "Statistics",
    "StatisticsStream",
    "class_histogram",
    "evaluate",
    "frechet_distance",
    "histogram_distance",
    "load_judge",
    "measure",
    "precision_recall",
    "save_judge",
    "score_digits",
    "shipped_judge",
    "statistics",
]
