"""Passes: Program to Program, same output."""

from __future__ import annotations

import dataclasses
from collections import Counter

from sparse_ddpm.program import Add, ChannelNorm, Conv, NormAct, Operation, Program
from sparse_ddpm.program.operations import inputs_of


def fuse_residuals(program: Program) -> Program:
    """Fold each `Add` into the operation that makes one of its inputs, as that one's residual.

    Requires nothing. Ensures that every Add left has no producer that could take it: the producer
    is a `Conv`, `NormAct` or `ChannelNorm` without a residual, its value is read by this Add
    alone, and the Add's other input is made before it. The fused operation takes the Add's name.
    """
    uses = Counter(name for op in program.operations for name in inputs_of(op))
    uses[program.output] += 1
    position = {op.out: index for index, op in enumerate(program.operations)}
    operations: list[Operation | None] = list(program.operations)
    for index, op in enumerate(program.operations):
        if not isinstance(op, Add):
            continue
        candidates = []
        for mine, other in ((op.a, op.b), (op.b, op.a)):
            producer = operations[position[mine]] if mine in position else None
            if (
                isinstance(producer, Conv | NormAct | ChannelNorm)
                and producer.residual is None
                and uses[mine] == 1
                and position.get(other, -1) < position[mine]
            ):
                candidates.append((position[mine], other))
        if candidates:
            at, other = max(candidates)
            producer = operations[at]
            assert isinstance(producer, Conv | NormAct | ChannelNorm)
            operations[at] = dataclasses.replace(producer, out=op.out, residual=other)
            position[op.out] = at
            operations[index] = None
    return dataclasses.replace(program, operations=tuple(op for op in operations if op is not None))
