"""FLOPs of a Program: a multiplication and its addition are two.

Counted as torch's ``FlopCounterMode`` counts: convolutions and matrix products; norms,
activations, biases and data movement are not (they are bound by memory, not by arithmetic).
Zero padding counts as if it were image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparse_ddpm.program import Attention, Conv, LinearAttention, Operation, Program
from sparse_ddpm.program.program import Shape


@dataclass(frozen=True, slots=True)
class OperationFlops:
    """One image through one operation. ``dense``: all weights; ``surviving``: stored weights."""

    dense: int = 0
    surviving: int = 0

    def __add__(self, other: OperationFlops) -> OperationFlops:
        return OperationFlops(self.dense + other.dense, self.surviving + other.surviving)


def operation_flops(operation: Operation, shapes: Mapping[str, Shape]) -> OperationFlops:
    """FLOPs of one operation for one image; ``shapes`` are the Program's."""
    match operation:
        case Conv(out=out, weight=weight, places=places):
            pixels = shapes[out][1] * shapes[out][2]
            return OperationFlops(2 * places * pixels, 2 * weight.nnz * pixels)
        case Attention(qkv=qkv, heads=heads, dim_head=dim_head, memory=memory):
            pixels = shapes[qkv][1] * shapes[qkv][2]
            keys = pixels + (0 if memory is None else memory.shape[3])
            both = 2 * 2 * heads * dim_head * pixels * keys
            return OperationFlops(both, both)
        case LinearAttention(qkv=qkv, heads=heads, dim_head=dim_head, memory=memory):
            pixels = shapes[qkv][1] * shapes[qkv][2]
            keys = pixels + (0 if memory is None else memory.shape[3])
            both = 2 * heads * dim_head * dim_head * (pixels + keys)
            return OperationFlops(both, both)
        case _:
            return OperationFlops()


def program_flops(program: Program) -> OperationFlops:
    """FLOPs of one denoising step for one image; the time table is not part of a step."""
    total = OperationFlops()
    for operation in program.operations:
        total += operation_flops(operation, program.shapes)
    return total


def time_flops(program: Program) -> OperationFlops:
    """FLOPs of one row of the time table: the time MLP and the FiLM maps, once per schedule's step.

    ``surviving``: stored weights of the maps; the MLP is never pruned. What is executed is dense.
    """
    time = program.time
    mlp = 2 * (time.weight1.size + time.weight2.size)
    rows, columns = time.film.shape
    return OperationFlops(mlp + 2 * rows * columns, mlp + 2 * time.film.nnz)
