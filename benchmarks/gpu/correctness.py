"""Every kernel against its reference in float64, in every 16-bit type; then a whole step.

Results are poisoned with NaN beforehand, and halos have to be zero afterwards.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gpu.budget import Budget
from gpu.devices import Device
from gpu.prebuild import Task, prebuild, workers
from gpu.results import Results, Row
from gpu.tickets import StepTicket, settings
from gpu.values import TOLERANCES

Case = Callable[[torch.device, torch.dtype], "Outcome"]
ENGINE = "gpu.cases_engine"
MODULES = (
    "gpu.cases_conv",
    "gpu.cases_norm",
    "gpu.cases_attention",
    "gpu.cases_data",
    ENGINE,
)
"""Each has ``cases(dry) -> Mapping[str, Case]``, named ``kernel: what``."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``error``: relative RMS against float64. ``tolerance``: default that of the dtype.
    ``problem``: anything else that is wrong, such as a written halo.
    """

    error: float
    tolerance: float | None = None
    problem: str | None = None


def cases(dry: bool) -> Mapping[str, tuple[str, Case]]:
    """All cases by name, with the module that each is of. One that cannot be imported is a case."""
    found: dict[str, tuple[str, Case]] = {}
    for module in MODULES:
        try:
            made = importlib.import_module(module).cases(dry)
        except Exception as problem:
            made = {f"{module}: import": functools.partial(_broken, problem)}
        found |= {name: (module, case) for name, case in made.items()}
    return found


def _broken(problem: Exception, device: torch.device, dtype: torch.dtype) -> Outcome:
    raise problem


def run(results: Results, device: Device, source: str, budget: Budget, *, dry: bool) -> None:
    """A row for each case and dtype."""
    found = cases(dry)
    wanted = [
        (name, module, dtype)
        for name, (module, _) in found.items()
        for dtype in device.dtypes
        if results.kept(key(name, dtype), source) is None
    ]
    if device.measured and wanted:
        parts = workers()
        tasks: list[Task] = [
            ("gpu.correctness", "build", (name, module, str(device.torch_device), dtype))
            for name, module, dtype in wanted
            if module != ENGINE
        ]
        engines = [
            (ticket, batch, short(dtype), keep_all)
            for ticket, batch in whole_steps()
            for dtype in device.dtypes
            for keep_all in (False, True)
        ]
        if any(module == ENGINE for _, module, _ in wanted):
            tasks += [("gpu.steps", "build", (engines, part, parts)) for part in range(parts)]
        prebuild(tasks, budget, processes=parts, limit=120.0)
    for name, (_, case) in found.items():
        for dtype in device.dtypes:
            results.measure(
                key(name, dtype),
                source,
                lambda case=case, dtype=dtype: check(case, device.torch_device, dtype),
                seconds=3.0,
                limit=40.0,
            )


def whole_steps() -> list[tuple[StepTicket, int]]:
    """Tickets and the batch size of the engine's cases."""
    from gpu.cases_engine import BATCH

    return [(ticket, BATCH) for ticket in settings(False).tickets]


def build(name: str, module: str, device: str, dtype: torch.dtype) -> None:
    """Run one case and forget it: its kernels are then compiled."""
    importlib.import_module(module).cases(False)[name](torch.device(device), dtype)


def key(name: str, dtype: torch.dtype) -> str:
    return f"{name}, {short(dtype)}"


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check(case: Case, device: torch.device, dtype: torch.dtype) -> Row:
    """One row; ``failed`` says what is wrong."""
    outcome = case(device, dtype)
    tolerance = TOLERANCES[dtype] if outcome.tolerance is None else outcome.tolerance
    row: Row = {
        "dtype": short(dtype),
        "error": outcome.error if math.isfinite(outcome.error) else None,
        "tolerance": tolerance,
        "brief": f"error {outcome.error:.1e}",
    }
    # A comparison with NaN is false, so NaN fails.
    if not outcome.error <= tolerance:
        row["failed"] = f"error: expected at most {tolerance:g}, got {outcome.error:.1e}."
    if outcome.problem is not None:
        row["failed"] = outcome.problem
    return row
