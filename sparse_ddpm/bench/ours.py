"""This package's engine as a `Runner`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.bench.engines import Job
from sparse_ddpm.bench.source import program_of
from sparse_ddpm.engine import Engine, make_engine
from sparse_ddpm.program import densified


class EngineRunner:
    """Steps of an `Engine`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.description = engine.description
        plan = getattr(engine, "plan", None)
        self.details: dict[str, Any] = {}
        if plan is not None:
            self.details["arena_bytes"] = plan.arena_bytes

    def load(self, x: NDArray[np.float32]) -> None:
        self.x = x

    def step(self, index: int) -> NDArray[np.float32]:
        return self.engine.run(self.x, index)

    def array(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        return output


class CudaRunner:
    """Steps of a `CudaEngine`, input and output on the device; a step is waited for."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.description = engine.description
        self.details: dict[str, Any] = {
            "arena_bytes": engine.plan.arena_bytes,
            "device_bytes": engine.memory_bytes,
        }

    def load(self, x: NDArray[np.float32]) -> None:
        import torch

        self.engine.input.copy_(torch.from_numpy(x))

    def step(self, index: int) -> Any:
        self.engine.step.fill_(index)
        self.engine.replay()
        self.engine.wait()
        return self.engine.output

    def array(self, output: Any) -> NDArray[np.float32]:
        images: NDArray[np.float32] = output.cpu().numpy().copy()
        return images


def build(job: Job, dtype: str, dense: bool = False) -> EngineRunner | CudaRunner:
    """The engine of ``job.device``; ``dense``: with every weight stored, pruned ones too."""
    program = densified(program_of(job)) if dense else program_of(job)
    if job.device == "cuda":
        engine = make_engine(program, device="cuda", batch=job.batch, dtype=dtype)
        engine.set_schedule(np.array(job.timesteps))
        return CudaRunner(engine)
    engine = make_engine(
        program, device=job.device, batch=job.batch, threads=job.threads, dtype=dtype
    )
    engine.set_schedule(np.array(job.timesteps))
    return EngineRunner(engine)
