"""One row for each step of a Plan: what it costs and which kernel runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparse_ddpm.accounting.flops import OperationFlops, operation_flops
from sparse_ddpm.accounting.memory import block_bytes, step_bytes
from sparse_ddpm.engine.base import AnyPlan
from sparse_ddpm.engine.plan import DTYPES, Step
from sparse_ddpm.program import Conv, Operation
from sparse_ddpm.program.program import Shape


@dataclass(frozen=True, slots=True)
class OperationAccount:
    """FLOPs are for one image, bytes of activations too; ``density`` is None without weights.

    ``kind``: the operation's, of several that run as one ``LinearBlock`` or, where one of them is
    that, ``Conv``.
    """

    name: str
    kind: str
    shape: Shape
    format: str
    density: float | None
    dense_flops: int
    surviving_flops: int
    executed_flops: int
    """What the kernel multiplies and adds: the zeros that fill a panel included. Less than what
    survives where a fused block leaves out what other dead weights make useless."""
    weight_bytes: int
    dense_weight_bytes: int
    read_bytes: int
    written_bytes: int
    kernel: str
    reason: str


def account(plan: AnyPlan) -> tuple[OperationAccount, ...]:
    """The accounts of all steps of ``plan``, in their order; a fused block is one of them."""
    shapes, activation = plan.program.shapes, DTYPES[plan.dtype]
    rows = []
    for step in plan.steps:
        operation = step.operation
        block = step.block if isinstance(step, Step) else None
        flops = sum((operation_flops(part, shapes) for part in step.operations), OperationFlops())
        size = (
            step_bytes(step.operations, shapes, activation)
            if block is None
            else block_bytes(block, shapes, activation)
        )
        weights = [part.weight for part in step.operations if isinstance(part, Conv)]
        stored = sum(weight.nnz for weight in weights)
        places = sum(weight.shape[0] * weight.shape[1] for weight in weights)
        rows.append(
            OperationAccount(
                name=operation.out,
                kind=_kind(step.operations) if block is None else type(block).__name__,
                shape=shapes[operation.out],
                format="+".join(sorted({type(weight).__name__ for weight in weights})),
                density=stored / max(places, 1) if weights else None,
                dense_flops=flops.dense,
                surviving_flops=flops.surviving,
                executed_flops=step.flops if weights else flops.surviving,
                weight_bytes=size.weights,
                dense_weight_bytes=size.dense_weights,
                read_bytes=size.read,
                written_bytes=size.written,
                kernel=step.kernel,
                reason=step.reason,
            )
        )
    return tuple(rows)


def _kind(operations: Sequence[Operation]) -> str:
    conv = any(isinstance(operation, Conv) for operation in operations)
    return Conv.__name__ if conv else type(operations[-1]).__name__
