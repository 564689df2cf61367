"""The passes of a U-Net for one number of lanes, and how images are parted into jobs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sparse_ddpm_kernels import training as native

from sparse_ddpm.model.sparse.backward import Backward, operation
from sparse_ddpm.model.sparse.memory import LINE, zeros
from sparse_ddpm.model.sparse.steps import Steps
from sparse_ddpm.model.unet import UNet

WIDE, NARROW = 16, 8
"""Lanes of a job: the narrow one where vectors have 8 floats or fewer (a tensor is smaller then,
and nearer), and on AVX-512, which falls back to AVX2 for it, where it leaves fewer lanes empty."""
NARROW_COST = 0.65
"""Time of a narrow job in wide ones, where both are to be had (measured on Zen 4)."""


def job_sizes(images: int, threads: int, isa: str) -> list[int]:
    """Lanes of each job, those of a thread ``threads`` apart; of least estimated time."""
    narrow = [NARROW] * -(-images // NARROW)
    if isa != "avx512":
        return narrow
    whole, rest = divmod(images, WIDE)
    wide = [WIDE] * whole
    if rest:
        wide.append(NARROW if rest <= NARROW else WIDE)
    return min(wide, narrow, key=lambda sizes: _time(sizes, threads))


def _time(sizes: list[int], threads: int) -> float:
    costs = [1.0 if size == WIDE else NARROW_COST for size in sizes]
    return max(sum(costs[thread::threads]) for thread in range(threads))


class Engine:
    """Operations, the threads' workspaces and the jobs' arenas.

    ``weights`` lays out the same values whatever the lanes.
    """

    def __init__(self, model: UNet, lanes: int, isa: str, threads: int) -> None:
        if isa == "avx512" and lanes < native.vector(isa):
            isa = "avx2"
        self.lanes, self._isa = lanes, native.ISAS.index(isa)
        self._steps = Steps(model, lanes)
        self.weights, self.films = self._steps.weights, self._steps.films
        back = Backward(self._steps.steps)
        forward = [operation(step) for step in self._steps.steps]
        self._operations = tuple((native.Op * len(ops))(*ops) for ops in (forward, back.operations))
        self._scratch = -(-back.floats // LINE) * LINE
        needed = native.scratch(isa, [*forward, *back.operations], lanes)
        self._workspaces = [zeros(self._scratch + needed) for _ in range(threads)]
        self._places = np.array([space.ctypes.data for space in self._workspaces], np.uintp)
        self._arenas: list[NDArray[np.float32]] = []

    def job(self, index: int, *, backward: bool) -> native.Job:
        """A job in the arena of that index, without its images."""
        while len(self._arenas) <= index:
            self._arenas.append(zeros(self._steps.arena.floats))
        operations = self._operations[backward]
        return native.Job(
            op=native.address(operations),
            ops=len(operations),
            lanes=self.lanes,
            isa=self._isa,
            workspace=self._places.ctypes.data,
            scratch=self._scratch,
            arena=self._arenas[index].ctypes.data,
        )
