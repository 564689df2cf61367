"""What every engine is built from: the ticket, lowered, and its time table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.bench.engines import Job
from sparse_ddpm.lower import lower
from sparse_ddpm.program import NormAct, Program
from sparse_ddpm.ticket import load_ticket


def program_of(job: Job) -> Program:
    """The Program of ``job``'s ticket."""
    return lower(load_ticket(Path(job.ticket)))


def film_norms(program: Program) -> Iterator[tuple[NormAct, int]]:
    """The norms that time modulates, each with its first column in `folded_table`."""
    column = 0
    for op in program.operations:
        if isinstance(op, NormAct) and op.film is not None:
            yield op, column
            column += 2 * len(op.gamma)


def folded_table(program: Program, timesteps: tuple[float, ...]) -> NDArray[np.float32]:
    """Each norm's gamma and beta with FiLM folded in, ``[S, sum of 2C]``: factors, then summands.

    Our engine does the same once per schedule. Peers get it too: they save the time MLP and a
    pass over every modulated activation.
    """
    film = program.time.table(np.array(timesteps))
    parts = []
    for op, _ in film_norms(program):
        assert op.film is not None
        channels = len(op.gamma)
        scale = film[:, op.film : op.film + channels] + 1.0
        shift = film[:, op.film + channels : op.film + 2 * channels]
        parts += [scale * op.gamma, scale * op.beta + shift]
    empty = [np.zeros((len(film), 0))]
    return np.concatenate(parts or empty, axis=1).astype(np.float32)
