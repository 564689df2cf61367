"""The CPU engine: a Plan handed to the native executor, one call a step."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparse_ddpm_kernels import POISON, PROFILE, Executor, KernelError, Kind, Op, Tensor
from sparse_ddpm_kernels.binding import NativeBlock, NativeWeight

from sparse_ddpm.engine.arena import Placement, contexts_of
from sparse_ddpm.engine.base import Engine, Images, check_batch, check_timesteps
from sparse_ddpm.engine.film import Films
from sparse_ddpm.engine.fuse import LinearBlock, Weight
from sparse_ddpm.engine.plan import Plan, Step, concat_copies, make_plan
from sparse_ddpm.engine.precision import check_dtype
from sparse_ddpm.errors import EngineError, expected
from sparse_ddpm.program import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    Program,
    SpaceToDepth,
    Upsample2x,
)

MAX_THREADS = 1_024


def default_threads() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class CpuEngine(Engine):
    """Runs a Program with the C++ kernels.

    ``dtype``: see `sparse_ddpm.engine.plan.DTYPES`; input and output are always float32. A
    float16 has 11 bits and is at most 65504; what is more becomes infinity.
    ``threads``: default all cores this process may use, the caller's own included.
    ``keep_all``: give every value memory of its own. ``group``: the G of every convolution's
    panels (default: the plan chooses). ``profile``: see `timings`.
    Environment: ``SPARSE_DDPM_ISA`` forces an instruction set, ``SPARSE_DDPM_POISON=1`` fills the
    memory of activations with NaN before every run (for tests).
    In a forked process an engine works on, with threads of its own.
    Raises `EngineError` on unusable arguments, when the native library is missing, or when this
    machine lacks ``dtype``.
    """

    def __init__(
        self,
        program: Program,
        batch: int = 1,
        threads: int | None = None,
        dtype: str = "float32",
        *,
        keep_all: bool = False,
        group: int | None = None,
        profile: bool = False,
    ) -> None:
        threads = default_threads() if threads is None else threads
        if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
            raise EngineError(expected("threads", f"1 to {MAX_THREADS}", repr(threads)))
        self.program = program
        self.batch = check_batch(batch)
        self.threads = threads
        self.dtype = dtype
        self._group = group
        self.plan = make_plan(program, self.batch, dtype, keep_all=keep_all, group=group)
        precision = check_dtype(dtype)
        self._tracer: CpuEngine | None = self if keep_all else None
        self._timesteps: NDArray[np.float64] | None = None
        self._films = Films.of(program)
        self._table = np.zeros((0, self._films.width), np.float32)
        self._output_shape = program.shapes[program.output]
        poison = POISON if os.environ.get("SPARSE_DDPM_POISON") == "1" else 0
        self._flags = poison | (PROFILE if profile else 0) | precision
        self._closed = False
        self._executor = self._make_executor()

    def _make_executor(self) -> Executor:
        ops = _Ops(self.plan, self._films)
        self._names = ops.names
        self._process = os.getpid()
        try:
            return Executor(
                ops.ops,
                arena=self.plan.arena.size,
                lanes=self.plan.lanes,
                threads=self.threads,
                flags=self._flags,
            )
        except KernelError as error:
            raise EngineError(str(error)) from error

    @property
    def description(self) -> str:
        plural = "" if self.threads == 1 else "s"
        precision = "" if self.dtype == "float32" else f", {self.dtype}"
        return f"cpu {self._executor.isa}, {self.threads} thread{plural}{precision}"

    def set_schedule(self, timesteps: NDArray[Any]) -> None:
        t = check_timesteps(timesteps)
        self._table = self._films.table(self.program, t)
        self._timesteps = t

    def run(self, x: Images, step: int) -> Images:
        self.check_input(x, step, len(self._table))
        return self._run(x, step)

    def _run(self, x: Images, step: int) -> Images:
        if self._process != os.getpid():
            # A fork has no threads of ours, and whoever held the lock may not be here to give it.
            if self._closed:
                raise EngineError(expected("CPU engine", "an open engine", "a closed one"))
            self._executor = self._make_executor()
        out = np.empty((len(x), *self._output_shape), dtype=np.float32)
        row = self._table.ctypes.data + step * self._table.strides[0] if self._films.width else None
        try:
            self._executor.run(np.ascontiguousarray(x), out, row)
        except KernelError as error:
            raise EngineError(str(error)) from error
        return out

    def trace(self, x: Images, step: int) -> dict[str, Images]:
        """As `run`, but every value by name; the first call plans a second engine.

        Nothing is fused in it, so that its output may be rounded otherwise than `run`'s.
        """
        if self._tracer is None:
            self._tracer = CpuEngine(
                self.program,
                self.batch,
                self.threads,
                self.dtype,
                keep_all=True,
                group=self._group,
            )
        tracer = self._tracer
        if tracer is not self and self._timesteps is not None:
            tracer._table, tracer._timesteps = self._table, self._timesteps
        tracer.check_input(x, step, len(tracer._table))
        lanes = self.plan.lanes
        passes = [tracer._pass_values(x[i : i + lanes], step) for i in range(0, self.batch, lanes)]
        return {name: np.concatenate([values[name] for values in passes]) for name in passes[0]}

    def _pass_values(self, x: Images, step: int) -> dict[str, Images]:
        """Every value of one pass, at most ``lanes`` images."""
        self._run(x, step)
        arena, placements = self._executor.arena(), self.plan.arena.placements
        return {name: self._value(arena, placements[name], len(x)) for name in self.program.shapes}

    def _value(self, arena: NDArray[Any], placement: Placement, images: int) -> Images:
        strides = (placement.channel_stride, placement.row_stride, self.plan.lanes, 1)
        view = np.lib.stride_tricks.as_strided(
            arena[placement.offset :],
            shape=(*placement.shape, images),
            strides=tuple(stride * arena.itemsize for stride in strides),
            writeable=False,
        )
        # A copy even where the view is contiguous: the next pass writes there.
        return view.transpose(3, 0, 1, 2).astype(np.float32)

    def timings(self) -> list[tuple[str, float]]:
        """Seconds of the last step by value made, in order; needs ``profile``."""
        spent: dict[str, float] = {}
        for name, seconds in zip(self._names, self._executor.seconds().tolist(), strict=True):
            spent[name] = spent.get(name, 0.0) + seconds
        return list(spent.items())

    def close(self) -> None:
        """End the threads and free the memory; `run` then raises `EngineError`."""
        if self._tracer is not None and self._tracer is not self:
            self._tracer.close()
        self._closed = True
        if self._process == os.getpid():
            self._executor.close()

    def __enter__(self) -> CpuEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Ops:
    """The native operations of a plan. Holds the arrays that they point to."""

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
