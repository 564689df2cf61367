"""The whole step of our engine."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu.devices import Device, Recording
from sparse_ddpm.engine.cuda import CudaEngine
from sparse_ddpm.engine.cuda.tuned import Tuned
from sparse_ddpm.program import Program


@dataclass(slots=True)
class _Steps:
    engine: CudaEngine
    calls: int = 1

    def replay(self) -> None:
        self.engine.replay()


class OurStep:
    """A `CudaEngine` with one timestep. Compiled, captured and run once when it is made.

    ``tuned``: measured kernels; default those that come with the package or lie in the user's
    cache. ``details``: what the plan chose.
    """

    def __init__(
        self,
        program: Program,
        device: Device,
        batch: int,
        dtype: torch.dtype,
        timestep: float,
        tuned: Tuned | None = None,
    ) -> None:
        before, _ = device.memory(reset=True)
        begun = time.perf_counter()
        name = str(dtype).removeprefix("torch.")
        self.engine = CudaEngine(program, batch, name, tuned=tuned)
        self.engine.set_schedule(np.array([timestep]))
        self.output(np.zeros((batch, *program.input_shape), dtype=np.float32))
        seconds = time.perf_counter() - begun
        now, most = device.memory()
        self.recording: Recording = _Steps(self.engine)
        self.bytes = {
            "memory_mib": (now - before) / 2**20,
            "peak_mib": (most - before) / 2**20,
            "build_s": round(seconds, 2),
        }
        steps = self.engine.plan.steps
        self.details: dict[str, Any] = {
            "plan": dict(Counter(step.kernel for step in steps)),
            "measured_layers": sum(step.conv.choice.measured for step in steps if step.conv),
        }

    def output(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """One step: float32 ``[batch, C, H, W]`` to the same."""
        return self.engine.run(x, 0)
