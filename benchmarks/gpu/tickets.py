"""The tickets of the whole-step comparison, their Programs and their answers in float64."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Program
from sparse_ddpm.ticket import PRESETS, UNetConfig
from sparse_ddpm.ticket.synthetic import synthetic_ticket

Images = NDArray[np.float32]

TIMESTEP = 500.0
SEED = 0


@dataclass(frozen=True, slots=True)
class StepTicket:
    """A random ticket of ``architecture``. Sparsity 0 is the dense model."""

    architecture: UNetConfig
    pattern: str
    sparsity: float

    @property
    def name(self) -> str:
        return f"{self.pattern} {self.sparsity:g}" if self.sparsity else "dense"


@dataclass(frozen=True, slots=True)
class Settings:
    """Every ticket is run at every batch size, in this order."""

    tickets: tuple[StepTicket, ...]
    batches: tuple[int, ...]


def settings(dry: bool) -> Settings:
    """The table of tickets; in a dry run small ones of the same kinds."""
    if dry:
        tiny = UNetConfig(
            dim=8, dim_mults=(1,), channels=3, image_size=2, groups=4, heads=1, dim_head=8
        )
        return Settings((StepTicket(tiny, "vector:8", 0.8),), (3,))
    paper = PRESETS["paper"]
    kinds = (("vector:32", 0.95), ("vector:32", 0.99), ("element", 0.99), ("element", 0.0))
    return Settings(tuple(StepTicket(paper, *kind) for kind in kinds), (16, 256, 1))


@functools.lru_cache(maxsize=8)
def program_of(ticket: StepTicket) -> Program:
    """Lowered; kept, as it takes seconds."""
    return lower(synthetic_ticket(ticket.architecture, ticket.sparsity, ticket.pattern, seed=SEED))


def images(program: Program, batch: int) -> Images:
    """``[batch, C, H, W]``: the same image at the same place of every batch."""
    rng = np.random.default_rng(SEED)
    return rng.standard_normal((batch, *program.input_shape), dtype=np.float32)


def checked(batch: int) -> Sequence[int]:
    """The images of a batch that are compared with float64: some of the first, and the last."""
    return sorted({index for index in (0, 2, 15, 255) if index < batch} | {batch - 1})


_answers: dict[tuple[StepTicket, int], Images] = {}


def answer(ticket: StepTicket, index: int) -> Images:
    """One step of one image of `images` at `TIMESTEP`, ``[C, H, W]``, by the numpy reference."""
    found = _answers.get((ticket, index))
    if found is None:
        program = program_of(ticket)
        engine = ReferenceEngine(program, batch=1)
        engine.set_schedule(np.array([TIMESTEP]))
        x = images(program, index + 1)[index:]
        found = _answers[ticket, index] = engine.run(x, 0)[0]
    return found


def step_error(ticket: StepTicket, output: Images) -> float:
    """Relative RMS error of a whole batch's output, over `checked` images."""
    from sparse_ddpm.bench.measure import relative_rms

    which = list(checked(len(output)))
    return relative_rms(output[which], np.stack([answer(ticket, index) for index in which]))
