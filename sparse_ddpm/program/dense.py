"""A Program with every weight stored: what an engine runs that knows nothing of sparsity."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.formats import Dense
from sparse_ddpm.program.operations import Conv
from sparse_ddpm.program.program import Program

LITTLE = np.float32(1e-20)
"""Stands for a weight that is gone: not 0, which plans may leave out, and too small to matter."""


def densified(program: Program) -> Program:
    """The same function to rounding, every weight `Dense` and none of them 0."""
    operations = tuple(
        dataclasses.replace(op, weight=Dense.from_dense(_filled(op)))
        if isinstance(op, Conv)
        else op
        for op in program.operations
    )
    return dataclasses.replace(program, operations=operations)


def _filled(operation: Conv) -> NDArray[np.float32]:
    dense = operation.weight.to_dense()
    return np.where(dense == 0.0, LITTLE, dense)
