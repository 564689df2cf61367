"""Bytes of a Program: weights in their format, activations that an operation reads and writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparse_ddpm.engine.fuse import LinearBlock
from sparse_ddpm.program import ChannelNorm, Conv, NormAct, Operation
from sparse_ddpm.program.operations import inputs_of
from sparse_ddpm.program.program import Shape

FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class OperationBytes:
    """``weights``: in their format; ``dense_weights``: all as float32; activations per image."""

    weights: int
    dense_weights: int
    read: int
    written: int


def operation_bytes(
    operation: Operation, shapes: Mapping[str, Shape], activation: int = FLOAT32
) -> OperationBytes:
    """Bytes of one operation; activations, of ``activation`` bytes each, count once per image."""
    weights = dense = 0
    match operation:
        case Conv(weight=weight, bias=bias, places=places):
            extra = 0 if bias is None else int(bias.nbytes)
            weights = weight.nbytes + extra
            dense = FLOAT32 * places + extra
        case NormAct(gamma=gamma, beta=beta):
            weights = dense = int(gamma.nbytes + beta.nbytes)
        case ChannelNorm(gain=gain):
            weights = dense = int(gain.nbytes)
        case _:
            pass
    read = sum(activation * math.prod(shapes[name]) for name in inputs_of(operation))
    written = activation * math.prod(shapes[operation.out])
    return OperationBytes(weights, dense, read, written)


def step_bytes(
    operations: Sequence[Operation], shapes: Mapping[str, Shape], activation: int = FLOAT32
) -> OperationBytes:
    """Bytes of operations that run as one: what they hand to one another is not stored."""
    parts = [operation_bytes(operation, shapes, activation) for operation in operations]
    inside = {operation.out for operation in operations[:-1]}
    read = [name for op in operations for name in inputs_of(op) if name not in inside]
    return OperationBytes(
        weights=sum(part.weights for part in parts),
        dense_weights=sum(part.dense_weights for part in parts),
        read=sum(activation * math.prod(shapes[name]) for name in read),
        written=parts[-1].written,
    )


def block_bytes(
    block: LinearBlock, shapes: Mapping[str, Shape], activation: int = FLOAT32
) -> OperationBytes:
    """Bytes of a fused block: x is read twice, and of what lies inside only contexts are stored,
    in float32.
    """
    parts = [operation_bytes(operation, shapes) for operation in block.operations]
    x, residual = block.norm.x, block.out_norm.residual
    read = 2 * math.prod(shapes[x])
    if residual not in (None, x):
        read += math.prod(shapes[str(residual)])
    contexts = FLOAT32 * (block.chunks + 1) * block.slot  # of each chunk, and their sum
    return OperationBytes(
        weights=sum(part.weights for part in parts),
        dense_weights=sum(part.dense_weights for part in parts),
        read=activation * read + contexts,
        written=activation * math.prod(shapes[block.out_norm.out]) + contexts,
    )
