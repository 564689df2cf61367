"""FLOPs that an engine's kernels execute, whatever becomes of their results."""

from __future__ import annotations

from sparse_ddpm.accounting.flops import OperationFlops, operation_flops
from sparse_ddpm.accounting.tiling import tile
from sparse_ddpm.engine.arena import LINE
from sparse_ddpm.engine.base import AnyPlan, AnyStep
from sparse_ddpm.engine.plan import Plan, Step
from sparse_ddpm.program import Attention, Conv, LinearAttention


def executed_flops(plan: AnyPlan, step: AnyStep) -> int:
    """For one image of a full pass: the zeros that fill panels, halo and rest of a vector included.

    Vectors are taken to have 16 floats, as AVX-512's.
    """
    if not (isinstance(plan, Plan) and isinstance(step, Step)):
        from sparse_ddpm.accounting.gpu import executed_on_gpu

        return executed_on_gpu(plan, step)
    shapes, operation = plan.program.shapes, step.operation
    _, height, width = shapes[operation.out]
    pixels = height * width
    planar = plan.lanes == 1
    filled = -(-pixels // LINE) * LINE if planar else pixels
    if step.block is not None:
        return step.block.flops_per_pixel * filled
    match operation:
        case Conv():
            return 2 * step.entries * step.group * tile(plan, step).vectors * LINE // plan.lanes
        case Attention() | LinearAttention():
            return operation_flops(operation, shapes).surviving // pixels * filled
        case _:
            flops = (operation_flops(part, shapes) for part in step.operations)
            return sum(flops, OperationFlops()).surviving


def executed_images(plan: AnyPlan) -> int:
    """Images that one step of the whole batch runs for, those that fill the last pass included."""
    if isinstance(plan, Plan):
        return -(-plan.batch // plan.lanes) * plan.lanes
    from sparse_ddpm.accounting.gpu import images_on_gpu

    return images_on_gpu(plan)
