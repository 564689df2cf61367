"""A whole step of the engine, and every value inside it, against the float64 numpy reference."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from gpu.correctness import Case, Outcome, short
from gpu.tickets import TIMESTEP, StepTicket, images, program_of, settings
from sparse_ddpm.engine.cuda import CudaEngine
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.verify import relative_rms

BATCH = 3
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Roundings add up along the network."""
INSIDE = 10.0
"""How many times as far a value inside may be: a norm of few pixels enlarges a rounding."""


def cases(dry: bool) -> Mapping[str, Case]:
    """``engine: ...`` for every ticket."""
    return {
        f"engine: {ticket.name}, batch {BATCH}": functools.partial(step, ticket)
        for ticket in settings(dry).tickets
    }


@functools.lru_cache(maxsize=1)
def answers(ticket: StepTicket) -> dict[str, NDArray[np.float64]]:
    """Every value of the step, ``[N, C, H, W]``."""
    program = program_of(ticket)
    reference = ReferenceEngine(program, BATCH)
    reference.set_schedule(np.array([TIMESTEP]))
    return reference.values(images(program, BATCH), 0)


def step(ticket: StepTicket, device: torch.device, dtype: torch.dtype) -> Outcome:
    program = program_of(ticket)
    x = images(program, BATCH)
    t = np.array([900.0, TIMESTEP])
    wanted = answers(ticket)
    engine = CudaEngine(program, BATCH, short(dtype))
    engine.set_schedule(t)
    if device.type != "cpu":
        # What is compared is then a replay of the graph that this captures.
        engine.run(x, 0)
    error = relative_rms(engine.run(x, 1), wanted[program.output])
    most = TOLERANCES[dtype]
    far = {
        name: away
        for name, value in engine.trace(x, 1).items()
        if not (away := relative_rms(value, wanted[name])) <= INSIDE * most
    }
    problem = None
    if far:
        name = next(name for name in program.shapes if name in far)
        problem = f"{name}: expected an error of {INSIDE * most:g} at most, got {far[name]:.1e}."
    return Outcome(error, most, problem)
