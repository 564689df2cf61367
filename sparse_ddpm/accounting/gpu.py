"""The accounts of a `CudaPlan`. Needs what the plan needs: no GPU, no torch."""

from __future__ import annotations

from sparse_ddpm.accounting.flops import OperationFlops, operation_flops
from sparse_ddpm.accounting.memory import FLOAT32, step_bytes
from sparse_ddpm.accounting.planned import OFFSET, PlannedBytes
from sparse_ddpm.engine.base import AnyPlan, AnyStep
from sparse_ddpm.engine.cuda.choose import (
    BYTES_PER_US,
    LAUNCH_US,
    break_even,
)
from sparse_ddpm.engine.cuda.plan import DTYPES, ConvStep, CudaPlan, CudaStep
from sparse_ddpm.formats import BSR
from sparse_ddpm.program import ChannelNorm, Conv, NormAct

PASSES = 3
"""Kernels of a fused linear attention: context, merging, application."""


def executed_on_gpu(plan: AnyPlan, step: AnyStep) -> int:
    """For one image: panels in whole trips of the kernels' loops, cuDNN's columns all."""
    assert isinstance(step, CudaStep)
    shapes = plan.program.shapes
    if step.block is not None or step.conv is not None:
        return step.flops
    flops = (operation_flops(part, shapes) for part in step.operations)
    return sum(flops, OperationFlops()).surviving


def images_on_gpu(plan: AnyPlan) -> int:
    """The batch, padded to whole vectors."""
    assert isinstance(plan, CudaPlan)
    return plan.images


def planned_on_gpu(plan: AnyPlan, step: AnyStep) -> PlannedBytes:
    """Packed weights and where they read, gains and biases; tables of columns are not counted."""
    assert isinstance(step, CudaStep)
    number = DTYPES[plan.dtype]
    rest = 0
    for part in step.operations:
        match part:
            case NormAct(gamma=gamma, beta=beta, film=film) if film is None:
                rest += int(gamma.nbytes + beta.nbytes)
            case ChannelNorm(gain=gain):
                rest += int(gain.nbytes)
            case Conv(bias=bias) if bias is not None:
                rest += FLOAT32 * len(bias)
            case _:
                pass
    if step.block is not None:
        convs = [part.weight.shape for part in step.block if isinstance(part, Conv)]
        return PlannedBytes(
            values=number * sum(rows * columns for rows, columns in convs), rest=rest
        )
    if step.conv is None:
        return PlannedBytes(rest=rest)
    entries, packed = step.conv.choice.executed, step.conv.choice.group > 0
    return PlannedBytes(number * entries * _rows(step.conv), OFFSET * entries * packed, rest)


def dense_on_gpu(step: AnyStep) -> bool:
    """Whether pruning saves the step nothing."""
    assert isinstance(step, CudaStep)
    return step.conv is None or step.conv.choice.kind == "cudnn"


def break_even_on_gpu(plan: AnyPlan, step: AnyStep) -> float | None:
    """The density from which cuDNN is estimated the faster; 0 for a fused block, always dense."""
    assert isinstance(plan, CudaPlan)
    assert isinstance(step, CudaStep)
    if step.conv is None:
        return 0.0
    operation = step.conv.operation
    weight, shape = operation.weight, plan.program.shapes[operation.out]
    unit = weight.block[0] if isinstance(weight, BSR) else 1
    return break_even(operation, shape, plan.images, plan.dtype, unit)


def predict_on_gpu(plan: AnyPlan) -> dict[str, float]:
    """Seconds of a step by the value made, by the plan's estimates for one kind of chip: of
    convolutions what the kernel was chosen by, of the rest a launch and the traffic.
    """
    assert isinstance(plan, CudaPlan)
    shapes, number = plan.program.shapes, DTYPES[plan.dtype]
    found = {}
    for step in plan.steps:
        if step.kernel == "none":
            found[step.out] = 0.0
        elif step.conv is not None:
            choice = step.conv.choice
            found[step.out] = 1e-6 * choice.estimates[choice.kind]
        else:
            size = step_bytes(step.operations, shapes, number)
            launches = PASSES if step.block is not None else 1
            traffic = plan.images * (size.read + size.written) / BYTES_PER_US
            found[step.out] = 1e-6 * (launches * LAUNCH_US + traffic)
    return found


def _rows(conv: ConvStep) -> int:
    """Output channels of a panel; all of them in a dense product."""
    return conv.choice.group if conv.choice.group else conv.operation.weight.shape[0]
