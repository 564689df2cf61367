"""One row for each step of a Plan: what it costs and which kernel runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparse_ddpm.accounting.executed import executed_flops
from sparse_ddpm.accounting.flops import OperationFlops, operation_flops
from sparse_ddpm.accounting.memory import block_bytes, step_bytes
from sparse_ddpm.accounting.planned import PlannedBytes, planned_bytes
from sparse_ddpm.engine.base import AnyPlan, AnyStep
from sparse_ddpm.engine.costs import BLOCK_COSTS, Read, conv_costs, copies_of
from sparse_ddpm.engine.panels import break_even
from sparse_ddpm.engine.plan import DTYPES, Plan, Step, weight_bytes
from sparse_ddpm.formats import BSR, Matrix
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
    """What the kernel multiplies and adds: the zeros that fill a panel, the halo between rows and
    the rest of a vector included. Less than what survives where a fused block leaves out what other
    dead weights make useless."""
    weight_bytes: int
    """In the Program's format."""
    dense_weight_bytes: int
    planned_value_bytes: int
    """In the engine: values of panels, the zeros that fill them included."""
    planned_offset_bytes: int
    planned_rest_bytes: int
    scratch_bytes: int
    """Of each thread, while the step runs."""
    read_bytes: int
    written_bytes: int
    break_even_density: float | None
    """From this density on the plan would run random weights of this shape dense."""
    runs: str | None
    """``sparse`` or ``dense``; None without weights."""
    kernel: str
    reason: str

    def intensity(self, images: int) -> float:
        """Executed FLOPs a byte that ``images`` images side by side read and write, weights too."""
        return images * self.executed_flops / max(self.moved_bytes(images), 1)

    def moved_bytes(self, images: int) -> int:
        """Activations of ``images`` images, and the planned weights once."""
        weights = self.planned_value_bytes + self.planned_offset_bytes + self.planned_rest_bytes
        return images * (self.read_bytes + self.written_bytes) + weights


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
        convs = [part for part in step.operations if isinstance(part, Conv)]
        weights = [conv.weight for conv in convs]
        stored = sum(weight.nnz for weight in weights)
        places = sum(conv.places for conv in convs)
        planned = _planned(plan, step)
        rows.append(
            OperationAccount(
                name=operation.out,
                kind=_kind(step.operations) if block is None else type(block).__name__,
                shape=shapes[operation.out],
                format="+".join(sorted({type(weight).__name__ for weight in weights})),
                density=stored / max(places, 1) if weights else None,
                dense_flops=flops.dense,
                surviving_flops=flops.surviving,
                executed_flops=executed_flops(plan, step),
                weight_bytes=size.weights,
                dense_weight_bytes=size.dense_weights,
                planned_value_bytes=planned.values,
                planned_offset_bytes=planned.offsets,
                planned_rest_bytes=planned.rest,
                scratch_bytes=planned.scratch,
                read_bytes=size.read,
                written_bytes=size.written,
                break_even_density=_break_even(plan, step),
                runs=_runs(step) if weights else None,
                kernel=step.kernel,
                reason=step.reason,
            )
        )
    return tuple(rows)


def _kind(operations: Sequence[Operation]) -> str:
    conv = any(isinstance(operation, Conv) for operation in operations)
    return Conv.__name__ if conv else type(operations[-1]).__name__


def _planned(plan: AnyPlan, step: AnyStep) -> PlannedBytes:
    if isinstance(plan, Plan) and isinstance(step, Step):
        return planned_bytes(plan, step)
    from sparse_ddpm.accounting.gpu import planned_on_gpu

    return planned_on_gpu(plan, step)


def _runs(step: AnyStep) -> str:
    if isinstance(step, Step):
        dense = (
            all(weight.dense for weight in step.block.weights if weight.entries)
            if step.block is not None
            else step.kernel.startswith("dense")
        )
    else:
        from sparse_ddpm.accounting.gpu import dense_on_gpu

        dense = dense_on_gpu(step)
    return "dense" if dense else "sparse"


def _break_even(plan: AnyPlan, step: AnyStep) -> float | None:
    """Of a fused block its first convolution's, by far the larger one; as a share of the weights
    that may be stored.
    """
    convs = [part for part in step.operations if isinstance(part, Conv)]
    if not convs:
        return None
    if not (isinstance(plan, Plan) and isinstance(step, Step)):
        from sparse_ddpm.accounting.gpu import break_even_on_gpu

        return break_even_on_gpu(plan, step)
    weight = convs[0].weight
    costs, read = BLOCK_COSTS, Read()
    if step.block is None:
        _, height, width = plan.program.shapes[convs[0].out]
        size = weight_bytes(plan.program)
        costs = conv_costs(plan.dtype, plan.lanes, convs[0].size, (height, width), size)
        channels = weight.shape[1] // convs[0].size ** 2
        read = Read(channels, channels * copies_of(convs[0].size, (height, width)))
    even = break_even(*weight.shape, costs, unit_rows(weight), read)
    return min(1.0, even * weight.shape[0] * weight.shape[1] / max(convs[0].places, 1))


def unit_rows(weight: Matrix) -> int:
    """Rows that were pruned together."""
    return weight.block[0] if isinstance(weight, BSR) else 1
