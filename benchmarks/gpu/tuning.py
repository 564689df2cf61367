"""The engine's own tuning, for the Programs of the whole-step comparison."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from sparse_ddpm_kernels.triton.layout import padded_images

from gpu.budget import Budget
from gpu.correctness import short
from gpu.devices import Device
from gpu.ours import OurStep
from gpu.prebuild import Task, prebuild, workers
from gpu.tickets import TIMESTEP, StepTicket, program_of
from sparse_ddpm.engine.cuda.engine import gpu_name
from sparse_ddpm.engine.cuda.tune import measure_layer, tune
from sparse_ddpm.engine.cuda.tuned import Tuned, layer_key, layer_of
from sparse_ddpm.program import Conv

KINDS, TILES = 3, 2
"""Tried for a layer, and tiles of each; cuDNN beside them."""
SHARE = 0.4
"""Of the time that is left, for the layers of one step."""
VARIABLE = "SPARSE_DDPM_TUNED"


class Table:
    """``folder/<gpu>-triton-<version>.json``, as `sparse_ddpm.engine.cuda.tuned` reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _tables_in(folder):
            self.tuned = Tuned.load(gpu_name(), triton.__version__)

    def save(self) -> None:
        self.tuned.save(self.folder)


@contextlib.contextmanager
def _tables_in(folder: Path) -> Iterator[None]:
    """The user's tables lie in ``folder`` meanwhile."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def tune_step(
    ticket: StepTicket,
    device: Device,
    batch: int,
    dtype: torch.dtype,
    table: Table,
    budget: Budget,
) -> OurStep:
    """Our engine after `tune`, whose layers are saved in ``table``."""
    program, name = program_of(ticket), short(dtype)
    kinds, tiles = (KINDS, TILES) if device.measured else (1, 1)
    if device.measured:
        parts = workers()
        tasks: list[Task] = [
            ("gpu.tuning", "build", (ticket, batch, name, part, parts)) for part in range(parts)
        ]
        prebuild(tasks, budget, processes=parts, limit=100.0)
    seconds = max(1.0, SHARE * budget.left)
    tune(program, batch, name, table.tuned, kinds=kinds, tiles=tiles, seconds=seconds)
    table.save()
    return OurStep(program, device, batch, dtype, TIMESTEP, table.tuned)


def build(ticket: StepTicket, batch: int, dtype: str, part: int, parts: int) -> None:
    """Measure every ``parts``-th layer and forget it: its kernels are then compiled."""
    program = program_of(ticket)
    layers = [layer_of(program, op) for op in program.operations if isinstance(op, Conv)]
    different = {layer_key(layer, padded_images(batch), dtype): layer for layer in layers}
    for layer in list(different.values())[part::parts]:
        measure_layer(layer, batch, dtype, KINDS, TILES)
