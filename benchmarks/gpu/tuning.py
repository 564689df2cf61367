"""The engine's own tuning, for the Programs of the whole-step comparison."""

from __future__ import annotations

import torch
from sparse_ddpm_kernels.triton.layout import padded_images

from gpu.budget import Budget
from gpu.devices import Device
from gpu.ours import OurStep
from gpu.prebuild import Task, prebuild, workers
from gpu.tables import Table
from gpu.tickets import TIMESTEP, StepTicket, program_of
from sparse_ddpm.engine.cuda.tune import measure_layer, tune
from sparse_ddpm.engine.cuda.tuned import layer_key
from sparse_ddpm.program import Conv

KINDS, TILES = 3, 3
"""Tried for a layer, and tiles of each; cuDNN beside them."""
SHARE = 0.5
"""Of the time that is left, for the layers of one step."""


def tune_step(
    ticket: StepTicket,
    device: Device,
    batch: int,
    dtype: torch.dtype,
    table: Table,
    budget: Budget,
) -> OurStep:
    """Our engine after `tune`, whose layers are saved in ``table``."""
    program, name = program_of(ticket), str(dtype).removeprefix("torch.")
    kinds, tiles = (KINDS, TILES) if device.measured else (1, 1)
    if device.measured:
        parts = workers()
        tasks: list[Task] = [
            ("gpu.tuning", "build", (ticket, batch, name, part, parts)) for part in range(parts)
        ]
        prebuild(tasks, budget, processes=parts, limit=120.0)
    seconds = max(1.0, SHARE * budget.left)
    tune(program, batch, name, table.tuned, kinds=kinds, tiles=tiles, seconds=seconds)
    table.save()
    return OurStep(program, device, batch, dtype, TIMESTEP, table.tuned)


def build(ticket: StepTicket, batch: int, dtype: str, part: int, parts: int) -> None:
    """Measure every ``parts``-th layer and forget it: its kernels are then compiled."""
    program = program_of(ticket)
    layers = {
        layer_key(op, program.shapes[op.out], padded_images(batch), dtype): op
        for op in program.operations
        if isinstance(op, Conv)
    }
    for operation in list(layers.values())[part::parts]:
        measure_layer(operation, program, batch, dtype, KINDS, TILES)
