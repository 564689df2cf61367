"""The CPU engine: a Plan handed to the native executor, one call a step."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparse_ddpm_kernels import POISON, PROFILE, Executor, KernelError

from sparse_ddpm.engine.arena import Placement
from sparse_ddpm.engine.base import Engine, Images, check_batch, check_timesteps
from sparse_ddpm.engine.film import Films
from sparse_ddpm.engine.native_ops import NativeOps
from sparse_ddpm.engine.plan import make_plan
from sparse_ddpm.engine.precision import check_dtype
from sparse_ddpm.errors import EngineError, expected
from sparse_ddpm.program import Program

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
    panels, ``copied``: whether they read shifted copies of their input where they can (default of
    both: the plan chooses). ``profile``: see `timings`.
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
        copied: bool | None = None,
        profile: bool = False,
    ) -> None:
        threads = default_threads() if threads is None else threads
        if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
            raise EngineError(expected("threads", f"1 to {MAX_THREADS}", repr(threads)))
        self.program = program
        self.batch = check_batch(batch)
        self.threads = threads
        self.dtype = dtype
        self._group, self._copied = group, copied
        self.plan = make_plan(
            program, self.batch, dtype, keep_all=keep_all, group=group, copied=copied
        )
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
        ops = NativeOps(self.plan, self._films)
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
                copied=self._copied,
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
