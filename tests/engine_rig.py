"""What the tests of the C++ engine share: instruction sets, programs, and a check."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sparse_ddpm_kernels import ISAS, KernelError, available_isas

from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.formats import CSR, Dense
from sparse_ddpm.program import Operation, Program, TimeEmbedding
from sparse_ddpm.program.program import Shape

BATCHES = (1, 3, 7, 16, 17)
SHAPES = ((3, 1, 1), (5, 4, 4), (6, 7, 5), (2, 8, 8), (2, 6, 16))
TOLERANCE = 3e-6


def isas() -> tuple[str, ...]:
    """The instruction sets of this machine; all of them where the engine was not built."""
    try:
        return available_isas()
    except KernelError:
        return ISAS


def every_isa() -> list[pytest.MarkDecorator]:
    """Marks for a module whose tests are all run on each instruction set."""
    return [
        pytest.mark.usefixtures("isa"),
        pytest.mark.parametrize("isa", isas(), indirect=True),
    ]


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def time_embedding(columns: int = 0) -> TimeEmbedding:
    return TimeEmbedding(
        dim=4,
        weight1=normal(1, 8, 4),
        bias1=normal(2, 8),
        weight2=normal(3, 8, 8),
        bias2=normal(4, 8),
        film=Dense(normal(5, columns, 8)),
        film_bias=normal(6, columns),
    )


def program(shape: Shape, *operations: Operation, columns: int = 0) -> Program:
    return Program(operations, "x", shape, operations[-1].out, time_embedding(columns))


def check(
    make: Callable[[Shape], Program],
    shapes: tuple[Shape, ...] = SHAPES,
    batches: tuple[int, ...] = BATCHES,
    group: int | None = None,
) -> None:
    """The program of each shape agrees with the reference at every batch, on 1 and 2 threads."""
    timesteps = np.array([3.0, 700.0])
    for shape in shapes:
        graph = make(shape)
        x = normal(7, max(batches), *shape)
        reference = ReferenceEngine(graph, max(batches))
        reference.set_schedule(timesteps)
        wanted = reference.run(x, 1)
        scale = max(float(np.abs(wanted).max()), 1e-3)
        for batch in batches:
            for threads in (1, 2):
                with CpuEngine(graph, batch, threads, group=group) as engine:
                    engine.set_schedule(timesteps)
                    got = engine.run(x[:batch], 1)
                error = np.abs(got - wanted[:batch]).max() / scale
                assert error < TOLERANCE, (shape, batch, threads, error)


def sparse_rows(rows: int, columns: int, density: float = 0.3) -> CSR:
    """Random weights; the first row has none, the last has all."""
    mask = np.random.default_rng(8).random((rows, columns)) < density
    mask[0] = False
    mask[-1] = True
    return CSR.from_dense(normal(9, rows, columns) * mask, mask)
