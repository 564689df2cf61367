"""The units of a pattern in one weight: their sizes, their scores, and the way back to a mask.

A weight ``[rows, columns, *taps]`` is cut into R output channels by C input channels of one tap,
counted from channel 0; where R or C does not divide, the last unit is what is left and so smaller.
An array over units is ``[ceil(rows / R), ceil(columns / C), *taps]``.

Only convolutions are cut into units of more than one weight. A FiLM map is run once per schedule
into a table, so coarse units would cost quality and save no time: it is pruned by the element,
whatever the pattern.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.ticket.config import Pattern
from sparse_ddpm.ticket.parameters import Parameter

ELEMENT = Pattern()


def pattern_of(parameter: Parameter, pattern: Pattern) -> Pattern:
    """The pattern that ``parameter`` is pruned in: ``pattern`` for a convolution, else element."""
    return pattern if len(parameter.shape) == 4 else ELEMENT


def unit_sizes(shape: tuple[int, ...], pattern: Pattern) -> NDArray[np.int32]:
    """How many weights each unit has."""
    rows, columns = (
        np.minimum(step, length - np.arange(0, length, step, dtype=np.int32))
        for step, length in zip((pattern.rows, pattern.columns), shape[:2], strict=True)
    )
    grid = (len(rows), len(columns), *shape[2:])
    ones = (1,) * (len(shape) - 2)
    sizes = np.outer(rows, columns).reshape(len(rows), len(columns), *ones)
    return np.broadcast_to(sizes, grid)


def unit_scores(effective: NDArray[np.float32], pattern: Pattern) -> NDArray[np.float32]:
    """The importance of each unit: the root of the mean square of its weights.

    Of an element that is its magnitude. The mean and not the sum (the L2 norm), so that a smaller
    unit at an edge ranks by what it gives for what it costs, as all others do.
    """
    if pattern == ELEMENT:
        return np.abs(effective)
    energy = _sums(np.square(effective, dtype=np.float64), pattern)
    return np.sqrt(energy / unit_sizes(effective.shape, pattern)).astype(np.float32)


def unit_alive(mask: NDArray[np.bool_], pattern: Pattern) -> NDArray[np.bool_]:
    """Which units have a survivor in ``mask``."""
    return np.asarray(_sums(mask.astype(np.int64), pattern) > 0)


def whole_units(mask: NDArray[np.bool_], pattern: Pattern) -> bool:
    """Whether every unit of ``mask`` survives whole or not at all."""
    return np.array_equal(unit_mask(unit_alive(mask, pattern), mask.shape, pattern), mask)


def unit_mask(
    kept: NDArray[np.bool_], shape: tuple[int, ...], pattern: Pattern
) -> NDArray[np.bool_]:
    """The mask of a weight of ``shape`` in which the units ``kept`` survive whole."""
    mask = kept
    for axis, step in enumerate((pattern.rows, pattern.columns)):
        if step > 1:
            mask = np.repeat(mask, step, axis=axis).take(np.arange(shape[axis]), axis=axis)
    return np.array(mask).reshape(shape)


def _sums(values: NDArray[Any], pattern: Pattern) -> NDArray[Any]:
    for axis, step in enumerate((pattern.rows, pattern.columns)):
        if step > 1:
            starts = np.arange(0, values.shape[axis], step)
            values = np.add.reduceat(values, starts, axis=axis)
    return values
