"""One row for each operation of a Plan: what it costs and which kernel runs it."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_ddpm.accounting.flops import operation_flops
from sparse_ddpm.accounting.memory import operation_bytes
from sparse_ddpm.engine.plan import Plan
from sparse_ddpm.program import Conv
from sparse_ddpm.program.program import Shape


@dataclass(frozen=True, slots=True)
class OperationAccount:
    """FLOPs are for one image, bytes of activations too; ``density`` is None without weights."""

    name: str
    kind: str
    shape: Shape
    format: str
    density: float | None
    dense_flops: int
    surviving_flops: int
    executed_flops: int
    """What the kernel multiplies and adds: the zeros that fill a panel included."""
    weight_bytes: int
    dense_weight_bytes: int
    read_bytes: int
    written_bytes: int
    kernel: str
    reason: str


def account(plan: Plan) -> tuple[OperationAccount, ...]:
    """The accounts of all operations of ``plan``, in their order."""
    shapes = plan.program.shapes
    rows = []
    for step in plan.steps:
        operation = step.operation
        flops = operation_flops(operation, shapes)
        size = operation_bytes(operation, shapes)
        weight = operation.weight if isinstance(operation, Conv) else None
        rows.append(
            OperationAccount(
                name=operation.out,
                kind=type(operation).__name__,
                shape=shapes[operation.out],
                format="" if weight is None else type(weight).__name__,
                density=None
                if weight is None
                else weight.nnz / max(weight.shape[0] * weight.shape[1], 1),
                dense_flops=flops.dense,
                surviving_flops=flops.surviving,
                executed_flops=flops.surviving if weight is None else step.flops,
                weight_bytes=size.weights,
                dense_weight_bytes=size.dense_weights,
                read_bytes=size.read,
                written_bytes=size.written,
                kernel=step.kernel,
                reason=step.reason,
            )
        )
    return tuple(rows)
