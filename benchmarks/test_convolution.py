"""Convolutions: by pattern and format, G, sparsity, size of the image, kernel and batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparse_ddpm.formats import BSR, CSR, Dense, Matrix
from sparse_ddpm.program import Conv
from sparse_ddpm.ticket.config import Pattern
from sparse_ddpm.ticket.synthetic import random_mask

IMAGES = [(64, 32), (128, 16), (256, 8), (512, 4)]
"""Channels and side: the four levels of the paper's U-Net."""


def weight(pattern: str, sparsity: float, rows: int, cin: int, size: int) -> Matrix:
    rng = np.random.default_rng(0)
    unit = Pattern.parse(pattern)
    mask = random_mask((rows, cin, size, size), sparsity, unit, rng).reshape(rows, -1)
    values = np.where(mask, rng.standard_normal(mask.shape), 0.0).astype(np.float32)
    if sparsity == 0.0:
        return Dense(values)
    if unit.rows == unit.columns == 1:
        return CSR.from_dense(values, mask)
    return BSR.from_dense(values, (unit.rows, unit.columns), size * size, mask)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(("channels", "side"), IMAGES)
@pytest.mark.parametrize(
    ("pattern", "sparsity"),
    [
        ("element", 0.9),
        ("element", 0.95),
        ("element", 0.98),
        ("vector:16", 0.9),
        ("vector:16", 0.95),
        ("vector:16", 0.98),
        ("block:8x4", 0.9),
        ("element", 0.0),
    ],
)
def test_conv3x3(
    measure: Any, pattern: str, sparsity: float, channels: int, side: int, batch: int
) -> None:
    matrix = weight(pattern, sparsity, channels, channels, 3)
    measure((channels, side, side), Conv("y", "x", matrix, 3), batch=batch)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("pattern", ["element", "vector:16"])
def test_conv3x3_by_group(measure: Any, pattern: str, group: int, batch: int) -> None:
    matrix = weight(pattern, 0.9, 128, 128, 3)
    measure((128, 16, 16), Conv("y", "x", matrix, 3), batch=batch, group=group)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(("channels", "side"), IMAGES)
@pytest.mark.parametrize("sparsity", [0.9, 0.98])
def test_conv1x1(measure: Any, sparsity: float, channels: int, side: int, batch: int) -> None:
    matrix = weight("element", sparsity, 384, channels, 1)
    measure((channels, side, side), Conv("y", "x", matrix, 1), batch=batch)


@pytest.mark.parametrize("batch", [1, 16])
def test_conv7x7(measure: Any, batch: int) -> None:
    measure((3, 32, 32), Conv("y", "x", weight("element", 0.0, 64, 3, 7), 7), batch=batch)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("sparsity", [0.9, 0.98])
def test_conv3x3_residual(measure: Any, sparsity: float, batch: int) -> None:
    before = Conv("b", "x", weight("element", 0.98, 128, 128, 1), 1)
    matrix = weight("element", sparsity, 128, 128, 3)
    measure((128, 16, 16), before, Conv("y", "x", matrix, 3, residual="b"), batch=batch)
