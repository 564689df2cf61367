"""For runtimes that multiply every zero: a convolution is handed only the channels it reads."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.formats import CSR, Dense, Matrix
from sparse_ddpm.program import Conv, Operation, Program

COPY_COST = 64
"""Multiply-adds of a dense convolution that take as long as the copy of one element."""

LANES = 16
"""Dense kernels work on so many channels at once: as many are copied as fill them."""


def select_channels(program: Program) -> Program:
    """Put a `Conv` that copies channels before each that does not read enough of its input.

    A channel that one convolution does not read may be needed all the same: for a norm's
    statistics, or by another reader. The copy is a 1x1 convolution whose rows hold one 1.0 each
    (`selection`), named after its reader. It is put in where a dense convolution of the read
    channels and the copy take less time than one of all. Requires nothing; same output.
    """
    operations: list[Operation] = []
    made: dict[tuple[str, bytes], str] = {}
    for op in program.operations:
        if not isinstance(op, Conv):
            operations.append(op)
            continue
        rows, taps = op.weight.shape[0], op.size**2
        dense = op.weight.to_dense()
        read = _filled(np.asarray(dense.reshape(rows, -1, taps).any(axis=(0, 2))))
        live = int(read.sum())
        if not live or (read.size - live) * rows * taps <= COPY_COST * live:
            operations.append(op)
            continue
        key = op.x, read.tobytes()
        if key not in made:
            made[key] = f"{op.out}.read"
            operations.append(Conv(made[key], op.x, CSR.from_dense(np.eye(read.size)[read]), 1))
        columns = read.repeat(taps)
        weight: Matrix = Dense.from_dense(dense[:, columns])
        if not isinstance(op.weight, Dense):
            weight = CSR.from_dense(dense[:, columns], op.weight.stored()[:, columns])
        operations.append(dataclasses.replace(op, x=made[key], weight=weight))
    return dataclasses.replace(program, operations=tuple(operations))


def _filled(read: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``read`` and the first of the other channels, a multiple of `LANES` together or all."""
    more = -int(read.sum()) % LANES
    filled = read.copy()
    filled[np.flatnonzero(~read)[:more]] = True
    return filled


def selection(op: Conv) -> NDArray[np.int64] | None:
    """The channels that ``op`` copies, in order, ``[Cout]``; None where it does anything else."""
    if op.size != 1 or op.bias is not None or op.film is not None or op.residual is not None:
        return None
    if not isinstance(op.weight, CSR) or (op.weight.values != 1).any():
        return None
    if (np.diff(op.weight.indptr) != 1).any():
        return None
    return op.weight.indices.astype(np.int64)
