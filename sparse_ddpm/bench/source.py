"""What every engine is built from: the ticket, lowered, and its time table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.bench.engines import Job
from sparse_ddpm.engine.film import Films
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Program
from sparse_ddpm.ticket import load_ticket


def program_of(job: Job) -> Program:
    """The Program of ``job``'s ticket."""
    return lower(load_ticket(Path(job.ticket)))


def folded_table(program: Program, timesteps: tuple[float, ...]) -> NDArray[np.float32]:
    """Gamma, beta and bias with FiLM folded in, ``[S, columns]``: see `Films`.

    Our engine does the same once per schedule. Peers get it too: they save the time MLP and a
    pass over every modulated activation.
    """
    return Films.of(program).table(program, np.array(timesteps))
