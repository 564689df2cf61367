"""All accounts of one ticket as one plain object: what ``inspect --json`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_ddpm.accounting import (
    Ceilings,
    OperationAccount,
    OperationFlops,
    account,
    executed_images,
    gzip_of_dense,
    lifetimes,
    limit,
    live_bytes,
    moments,
    native_bytes,
    predict,
    process_bytes,
    program_flops,
    reference_gpu_ceilings,
    stored_tensors,
    table_bytes,
    time_flops,
)
from sparse_ddpm.engine.base import AnyPlan
from sparse_ddpm.engine.plan import Plan, make_plan
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Program
from sparse_ddpm.ticket import Ticket
from sparse_ddpm.ticket.content import to_content
from sparse_ddpm.ticket.file import file_bytes, read_content

Inspection = dict[str, Any]
"""See `inspect_ticket`."""

SUMS = (
    "dense_flops",
    "surviving_flops",
    "executed_flops",
    "weight_bytes",
    "dense_weight_bytes",
    "planned_value_bytes",
    "planned_offset_bytes",
    "planned_rest_bytes",
    "read_bytes",
    "written_bytes",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """``steps``: of the sampler, for the costs of an image; ``measure``: time the operations and
    the machine's ceilings, some seconds; ``gzip``: pack the dense weights, to compare with.
    """

    batch: int = 16
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    steps: int = 50
    measure: bool = False
    gzip: bool = False


def inspect_ticket(ticket: Ticket, name: str, path: Path | None, settings: Settings) -> Inspection:
    """Everything that is accounted for. ``path``: the ticket's file; None: what a file would hold.

    FLOPs and activations are for one image and one step, times (us) for a step of the whole batch.
    ``operations``: in the Program's order. Figures that were not asked for are None.
    """
    program = lower(ticket)
    plan = make_any_plan(program, settings)
    ceilings = _ceilings(settings)
    predicted = predict(plan, ceilings)
    measured = _measured(program, ticket, settings, ceilings) if settings.measure else None
    rows = account(plan)
    operations = [_operation(row, plan, ceilings, predicted, measured) for row in rows]
    totals: dict[str, Any] = {key: sum(getattr(row, key) for row in rows) for key in SUMS}
    storage = _storage(ticket, path, settings)
    totals |= _memory_totals(plan, settings)
    totals["file_bytes"] = storage["file_bytes"] if path is not None else None
    totals["limit_us"] = sum(item["limit_us"] for item in operations)
    totals["predicted_us"] = _us(sum(predicted.values()))
    totals["measured_us"] = None if measured is None else _us(sum(measured.values()))
    return {
        "ticket": name,
        "batch": settings.batch,
        "device": settings.device,
        "dtype": settings.dtype,
        "threads": settings.threads if settings.device == "cpu" else None,
        "steps": settings.steps,
        "sparsity": ticket.sparsity,
        "parameters": _parameters(ticket),
        "architecture": dataclasses.asdict(ticket.architecture),
        "diffusion": dataclasses.asdict(ticket.diffusion),
        "provenance": dataclasses.asdict(ticket.provenance),
        "totals": totals,
        "flops": _flops(program, plan, totals, settings.steps),
        "ceilings": ceilings.as_json(),
        "memory": _memory(plan),
        "storage": storage,
        "operations": operations,
    }


def make_any_plan(program: Program, settings: Settings) -> AnyPlan:
    """The plan of the engine of ``settings.device``, ``cpu`` or ``cuda``."""
    if settings.device == "cuda":
        from sparse_ddpm.engine.cuda.plan import make_cuda_plan

        return make_cuda_plan(program, settings.batch, settings.dtype)
    return make_plan(program, settings.batch, settings.dtype)


def _ceilings(settings: Settings) -> Ceilings:
    if settings.device == "cuda":
        return reference_gpu_ceilings(settings.dtype)
    from sparse_ddpm.bench.ceilings import keep_ceilings, kept_ceilings, measure_ceilings

    if not settings.measure:
        return kept_ceilings(settings.threads)
    found = measure_ceilings(settings.threads)
    keep_ceilings(found)
    return found


def _measured(
    program: Program, ticket: Ticket, settings: Settings, ceilings: Ceilings
) -> dict[str, float]:
    """Seconds by the value made, medians, loading and storing of images included."""
    from sparse_ddpm.bench.layers import time_layers

    layers = time_layers(
        program,
        ceilings,
        batch=settings.batch,
        timestep=float(ticket.diffusion.timesteps // 2),
        dtype=settings.dtype,
    )
    return {layer.name: layer.seconds for layer in layers}


def _operation(
    row: OperationAccount,
    plan: AnyPlan,
    ceilings: Ceilings,
    predicted: Mapping[str, float],
    measured: Mapping[str, float] | None,
) -> dict[str, Any]:
    """One row; a concatenation made in place has no time."""
    images = executed_images(plan)
    lanes = plan.lanes if isinstance(plan, Plan) else images
    passes = images // lanes
    # What a pass touches lies in the level that holds it; the next pass uses the same memory again.
    nothing = row.kernel == "none"
    moved = 0 if nothing else row.moved_bytes(lanes)
    least = limit(lanes * row.executed_flops, moved, ceilings)
    seconds = predicted.get(row.name, 0.0)
    timed = None if measured is None else measured.get(row.name, 0.0)
    taken = seconds if timed is None else timed
    flops = images * row.executed_flops
    return {
        **dataclasses.asdict(row),
        "moved_bytes": passes * moved,
        "intensity": lanes * row.executed_flops / moved if moved else None,
        "level": None if nothing else least.level,
        "bound": None if nothing else least.bound,
        "limit_us": _us(passes * least.seconds),
        "predicted_us": _us(seconds),
        "measured_us": None if timed is None else _us(timed),
        "gflops_per_s": flops / taken / 1e9 if taken > 0.0 and flops else None,
    }


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 4)


def _parameters(ticket: Ticket) -> dict[str, int]:
    prunable = [p.name for p in ticket.parameters() if p.prunable]
    return {
        "all": sum(weight.size for weight in ticket.weights.values()),
        "prunable": sum(ticket.weights[name].size for name in prunable),
        "surviving": sum(ticket.survivors(name) for name in prunable),
    }


def _flops(
    program: Program, plan: AnyPlan, totals: Mapping[str, int], steps: int
) -> dict[str, Any]:
    """``schedule``: the time table of all steps, once for any number of images; ``step`` and
    ``image`` (all its steps): of one image; ``batch_step``: what a step of the batch executes,
    images that fill the last pass included.
    """
    row, step = time_flops(program), program_flops(program)
    executed = totals["executed_flops"]
    return {
        # The table is made of dense float64 products.
        "schedule": _three(row, row.dense, steps),
        "step": _three(step, executed, 1),
        "image": _three(step, executed, steps),
        "batch_step": {
            "images": executed_images(plan),
            "executed": executed_images(plan) * executed,
        },
    }


def _three(flops: OperationFlops, executed: int, times: int) -> dict[str, int]:
    return {
        "dense": times * flops.dense,
        "surviving": times * flops.surviving,
        "executed": times * executed,
    }


def _memory_totals(plan: AnyPlan, settings: Settings) -> dict[str, int | None]:
    """``engine_bytes``: beside the arena; ``process_bytes``: what a process grows by."""
    if not isinstance(plan, Plan):
        unknown = dict.fromkeys(("engine_bytes", "table_bytes", "process_bytes"))
        return {"arena_bytes": plan.arena_bytes, **unknown}
    return {
        "arena_bytes": plan.arena_bytes,
        "engine_bytes": native_bytes(plan, settings.threads),
        "table_bytes": table_bytes(plan, settings.steps),
        "process_bytes": process_bytes(plan, settings.threads, settings.steps),
    }


def _memory(plan: AnyPlan) -> dict[str, Any]:
    return {
        "moments": list(moments(plan)),
        "live_bytes": list(live_bytes(plan)),
        "buffers": [dataclasses.asdict(item) for item in lifetimes(plan)],
    }


def _storage(ticket: Ticket, path: Path | None, settings: Settings) -> dict[str, Any]:
    """``container_bytes``: what of the file is no weight, names and alignment."""
    content = to_content(ticket) if path is None else read_content(path)
    tensors = stored_tensors(content)
    size = file_bytes(ticket) if path is None else path.stat().st_size
    encodings: dict[str, dict[str, int]] = {}
    for item in tensors:
        found = encodings.setdefault(
            item.encoding, {"tensors": 0, "values": 0, "places": 0, "dense": 0}
        )
        found["tensors"] += 1
        for key in ("values", "places", "dense"):
            found[key] += getattr(item, key)
    return {
        "written": path is not None,
        "file_bytes": size,
        "container_bytes": size - sum(item.size for item in tensors),
        "dense_bytes": sum(item.dense for item in tensors),
        "gzip_of_dense_bytes": gzip_of_dense(ticket) if settings.gzip else None,
        "encodings": encodings,
        "tensors": [dataclasses.asdict(item) for item in tensors],
    }


def timed(operation: Mapping[str, Any]) -> float:
    """Microseconds of an operation: measured, where it was, else predicted."""
    measured = operation["measured_us"]
    return float(operation["predicted_us"] if measured is None else measured)


def with_flops(found: Inspection) -> Iterator[Mapping[str, Any]]:
    """The operations that multiply, in the Program's order."""
    return (item for item in found["operations"] if item["dense_flops"])
