"""Judges of images. Their numpy parts are imported here, those that need torch by their module."""

from sparse_ddpm.metrics.digits import DigitScores, score_digits

__all__ = ["DigitScores", "score_digits"]
