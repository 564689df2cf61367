"""A Plan as the native engine takes it: structs of numbers and addresses."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparse_ddpm_kernels import Kind, Op, Tensor
from sparse_ddpm_kernels.binding import NativeBlock, NativeWeight

from sparse_ddpm.engine.arena import contexts_of
from sparse_ddpm.engine.film import Films
from sparse_ddpm.engine.fuse import LinearBlock, Weight
from sparse_ddpm.engine.plan import Plan, Step, concat_copies
from sparse_ddpm.program import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    SpaceToDepth,
    Upsample2x,
)


class NativeOps:
    """The native operations of a plan, and the name of what each makes.

    Holds the arrays and blocks that they point to.
    """

    def __init__(self, plan: Plan, films: Films) -> None:
        self.ops: list[Op] = []
        self.names: list[str] = []
        self._plan = plan
        self._films = films
        self._arrays: list[NDArray[Any]] = []
        self._blocks: list[NativeBlock] = []
        program = plan.program
        self._add(program.input, Op(kind=Kind.LOAD, out=self._tensor(program.input)))
        for step in plan.steps:
            self._step(step)
        self._add("output", Op(kind=Kind.STORE, x=self._tensor(program.output)))

    def _add(self, name: str, op: Op) -> None:
        self.ops.append(op)
        self.names.append(name)

    def _tensor(self, name: str | None) -> Tensor:
        if name is None:
            return Tensor()
        place = self._plan.arena.placements[name]
        return Tensor(
            place.offset,
            place.channel_stride,
            place.row_stride,
            place.lead,
            *place.shape,
            place.halo,
        )

    def _address(self, array: NDArray[Any] | None, dtype: type[np.generic]) -> int | None:
        if array is None:
            return None
        held = np.ascontiguousarray(array, dtype=dtype)
        self._arrays.append(held)
        return int(held.ctypes.data)

    def _step(self, step: Step) -> None:
        operation = step.operation
        if step.block is not None:
            self._block(step.block)
            return
        tensor, address = self._tensor, self._address
        op = Op(out=tensor(operation.out), film=-1)
        match operation:
            case Conv():
                self._conv(op, operation, step)
            case NormAct():
                op.kind, op.x, op.y = Kind.NORM_ACT, tensor(operation.x), tensor(operation.residual)
                op.groups, op.silu, op.eps = operation.groups, operation.silu, operation.eps
                if operation.film is None:
                    op.a = address(operation.gamma, np.float32)
                    op.b = address(operation.beta, np.float32)
                else:
                    op.film = self._films.columns[operation.out]
            case ChannelNorm():
                op.kind, op.x = Kind.CHANNEL_NORM, tensor(operation.x)
                op.y, op.eps = tensor(operation.residual), operation.eps
                op.a = address(operation.gain, np.float32)
            case Attention() | LinearAttention():
                if operation.memory is not None:
                    op.a = address(operation.memory, np.float32)
                    op.groups = operation.memory.shape[3]
                linear = isinstance(operation, LinearAttention)
                op.kind = Kind.LINEAR_ATTENTION if linear else Kind.ATTENTION
                op.x = tensor(operation.qkv)
                op.heads, op.dim_head = operation.heads, operation.dim_head
            case SpaceToDepth():
                op.kind, op.x = Kind.SPACE_TO_DEPTH, tensor(operation.x)
            case Upsample2x():
                op.kind, op.x = Kind.UPSAMPLE, tensor(operation.x)
            case Add():
                op.kind, op.x, op.y = Kind.ADD, tensor(operation.a), tensor(operation.b)
            case Concat():
                self._concat(operation)
                return
        self._add(operation.out, op)

    def _conv(self, op: Op, operation: Conv, step: Step) -> None:
        panels = self._plan.panels(step)
        op.kind = Kind.CONV
        source = operation.x if step.upsample is None else step.upsample.x
        op.x, op.y = self._tensor(source), self._tensor(operation.residual)
        op.size, op.copies, op.upsample = operation.size, step.copies, step.upsample is not None
        op.group, op.panels = step.group, len(panels.rows)
        if operation.film is None:
            op.a = self._address(operation.bias, np.float32)
        else:
            op.film = self._films.columns[operation.out]
        op.panel_ptr = self._address(panels.ptr, np.int64)
        op.offset = self._address(self._plan.offsets(step, panels), np.int32)
        op.value = self._address(panels.values, np.float32)
        op.slot = self._address(panels.rows, np.int32)

    def _block(self, block: LinearBlock) -> None:
        """Three operations that share one description."""
        last = block.out_norm
        native = NativeBlock(
            heads=len(block.heads),
            dim_head=block.mix.dim_head,
            pixels=block.pixels,
            stride=block.stride,
            chunks=block.chunks,
            slot_numbers=block.slot,
            eps=block.norm.eps,
            q=self._weight(block.q, block.stride),
            k=self._weight(block.k, block.stride),
            v=self._weight(block.v, block.stride),
            out=self._weight(block.output, block.stride),
        )
        if block.floats > 0:
            native.context = self._plan.arena.buffers[contexts_of(last.out)].start
        counts = [
            (head.both, head.q, head.k, head.v, *panels, head.context)
            for head, *panels in zip(
                block.heads, block.q.heads, block.k.heads, block.v.heads, strict=True
            )
        ]
        native.head = self._address(np.array(counts, np.int32).reshape(-1, 8), np.int32)
        self._blocks.append(native)
        x = self._tensor(block.norm.x)
        for kind in (Kind.LINEAR_CONTEXT, Kind.LINEAR_MERGE, Kind.LINEAR_APPLY):
            op = Op(kind=kind, x=x, film=-1, block=ctypes.pointer(native))
            if kind is Kind.LINEAR_APPLY:
                op.out, op.y = self._tensor(last.out), self._tensor(last.residual)
                op.a, op.eps = self._address(last.gain, np.float32), last.eps
            self._add(last.out, op)

    def _weight(self, weight: Weight, stride: int) -> NativeWeight:
        panels = weight.panels
        return NativeWeight(
            group=weight.group,
            panels=len(panels.rows),
            panel_ptr=self._address(panels.ptr, np.int64),
            offset=self._address(panels.columns * np.int32(stride), np.int32),
            value=self._address(panels.values, np.float32),
            slot=self._address(panels.rows, np.int32),
            bias=self._address(weight.bias, np.float32),
        )

    def _concat(self, operation: Concat) -> None:
        """Copies of the inputs that could not be made in place."""
        copied = concat_copies(operation, self._plan.arena)
        channel = 0
        for name, needed in zip((operation.a, operation.b), copied, strict=True):
            part = self._tensor(operation.out)
            part.offset += channel * part.channel_stride
            part.channels = self._plan.program.shapes[name][0]
            channel += part.channels
            if needed:
                self._add(operation.out, Op(kind=Kind.COPY, x=self._tensor(name), out=part))
