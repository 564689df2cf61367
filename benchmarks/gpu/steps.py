"""The whole step: our engine beside torch, on the same masked weights, in turns.

``step`` holds our engine and torch eager in a CUDA graph; ``compiled`` torch.compile, which takes
minutes to build and whose times stay valid while our kernels change. Eager is timed in both, so
that a drift of the GPU between the two shows.
"""

from __future__ import annotations

import functools
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from gpu.correctness import short
from gpu.devices import Device, Recording
from gpu.peers import Peer
from gpu.prebuild import Task, prebuild, workers
from gpu.profile import kernels
from gpu.results import Results, Row
from gpu.tickets import (
    TIMESTEP,
    Images,
    Settings,
    StepTicket,
    images,
    program_of,
    step_error,
)

SAMPLES, BURST = 25, 1e-2
TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
"""Of a whole step: relative RMS error against float64, to be timed at all."""
AUTOTUNE, COMPILE, EAGER = "compile max-autotune", "compile", "eager"


class Step(Protocol):
    """An engine with one step ready to be replayed."""

    recording: Recording
    bytes: dict[str, float]
    details: dict[str, Any]

    def output(self, x: Images) -> Images: ...


Make = Mapping[str, Callable[[], Step]]


class Peers:
    """torch at one batch size, in each mode built once and loaded with a ticket."""

    def __init__(self, device: Device, batch: int) -> None:
        self.device, self.batch = device, batch
        self._made: dict[str, Peer] = {}

    def get(self, ticket: StepTicket, mode: str) -> Peer:
        program = program_of(ticket)
        if mode in self._made:
            self._made[mode].load(program)
        else:
            self._made[mode] = Peer(program, self.device, self.batch, mode, TIMESTEP)
        return self._made[mode]


def key(ticket: StepTicket, batch: int) -> str:
    return f"{ticket.name}, batch {batch}"


def run(results: Results, device: Device, source: str, settings: Settings) -> None:
    """Our engine and eager torch: a row for each ticket and batch."""
    missing = [
        (ticket, batch, short(dtype), False)
        for batch in settings.batches
        for ticket in settings.tickets
        for dtype in _dtypes(ticket, device)
        if results.kept(key(ticket, batch), source) is None
    ]
    if device.measured and missing:
        parts = workers()
        tasks: list[Task] = [
            ("gpu.steps", "build", (missing, part, parts)) for part in range(parts)
        ]
        prebuild(tasks, results.budget, processes=parts, limit=120.0)
    for batch in settings.batches:
        peers = Peers(device, batch)
        for ticket in settings.tickets:
            make: Make = {
                f"ours {short(dtype)}": functools.partial(_ours, ticket, device, batch, dtype)
                for dtype in _dtypes(ticket, device)
            }
            results.measure(
                key(ticket, batch),
                source,
                functools.partial(compare, ticket, make, peers),
                seconds=15.0 if device.measured else 1.0,
                limit=150.0,
            )


def run_tuned(results: Results, device: Device, source: str, settings: Settings) -> None:
    """Our engine once more, the kernels of its convolutions measured first.

    What is measured goes to a table beside the results; where the time is short, the rest is left
    to estimates.
    """
    from gpu.tuning import Table, tune_step

    table = Table(results.folder)
    for batch in settings.batches:
        peers = Peers(device, batch)
        for ticket in settings.tickets:
            make: Make = {
                f"ours tuned {short(dtype)}": functools.partial(
                    tune_step, ticket, device, batch, dtype, table, results.budget
                )
                for dtype in _dtypes(ticket, device)
            }
            results.measure(
                f"{key(ticket, batch)}, tuned",
                source,
                functools.partial(compare, ticket, make, peers),
                seconds=60.0 if device.measured else 1.0,
                limit=400.0,
            )


def run_compiled(results: Results, device: Device, source: str, settings: Settings) -> None:
    """torch.compile with max-autotune; in its default mode where that does not come to an end."""
    for batch in settings.batches:
        if all(results.kept(key(ticket, batch), source) for ticket in settings.tickets):
            continue
        peers = Peers(device, batch)
        for mode in (AUTOTUNE, COMPILE):
            built = results.measure(
                f"build {mode}, batch {batch}",
                source,
                functools.partial(_build_peer, settings.tickets[0], peers, mode),
                seconds=100.0 if device.measured else 1.0,
                limit=300.0,
                # What another process built is gone with it.
                again=True,
            )
            if "failed" not in built:
                break
        else:
            continue
        for ticket in settings.tickets:
            make = {mode: functools.partial(peers.get, ticket, mode)}
            results.measure(
                key(ticket, batch),
                source,
                functools.partial(compare, ticket, make, peers),
                seconds=10.0 if device.measured else 1.0,
                limit=90.0,
            )


def _build_peer(ticket: StepTicket, peers: Peers, mode: str) -> Row:
    begun = time.perf_counter()
    peers.get(ticket, mode)
    seconds = time.perf_counter() - begun
    return {"batch": peers.batch, "build_s": seconds, "brief": f"built in {seconds:.0f} s"}


def compare(ticket: StepTicket, make: Make, peers: Peers) -> Row:
    """Build ``make`` and eager torch; outputs against float64; then times in turns, and kernels.

    What cannot be built, or is wrong, is left out and says so. The first of ``make`` takes part
    twice: how far its two medians lie apart is the noise.
    """
    device, batch = peers.device, peers.batch
    x = images(program_of(ticket), batch)
    engines: dict[str, Step] = {}
    found: dict[str, Row] = {}
    for name, build_engine in {**make, EAGER: lambda: peers.get(ticket, EAGER)}.items():
        dtype = name.split()[-1] if name.startswith("ours") else short(device.dtypes[0])
        found[name] = {"dtype": dtype, "error": None}
        try:
            engine = build_engine()
            wrong = step_error(ticket, engine.output(x))
        except Exception as reason:
            traceback.print_exc()
            found[name]["failed"] = f"{type(reason).__name__}: {reason}"[:800]
            continue
        if math.isfinite(wrong):
            found[name]["error"] = wrong
        # A comparison with NaN is false, so NaN is wrong too.
        if wrong <= TOLERANCES[dtype]:
            engines[name] = engine
        else:
            most = TOLERANCES[dtype]
            found[name]["failed"] = f"error: expected at most {most:g}, got {wrong:.1e}."
    row: Row = {"ticket": ticket.name, "batch": batch, "engines": found}
    again = [name for name in list(make)[:1] if name in engines]
    order = [*engines, *again]
    times = device.play([engines[name].recording for name in order], samples=SAMPLES, burst=BURST)
    for name, timing in zip(order, times, strict=True):
        if "us" in found[name]:
            row["noise"] = abs(timing.median / (found[name]["us"] * 1e-6) - 1.0)
            continue
        found[name] |= {**timing.as_json(), **engines[name].bytes, **engines[name].details}
        # What interprets our kernels is no profile of them.
        if device.measured or not name.startswith("ours"):
            found[name]["kernels"] = kernels(engines[name].recording, device)
    said = [
        f"{name} {engine['us'] / 1e3:.3f} ms" if "us" in engine else f"{name} failed"
        for name, engine in found.items()
    ]
    return {**row, "brief": ", ".join(said)}


def _ours(ticket: StepTicket, device: Device, batch: int, dtype: torch.dtype) -> Step:
    from gpu.ours import OurStep

    return OurStep(program_of(ticket), device, batch, dtype, TIMESTEP)


def _dtypes(ticket: StepTicket, device: Device) -> tuple[torch.dtype, ...]:
    """Our engine's; with single weights also float16, whose sums are packed."""
    single = ticket.pattern == "element" and ticket.sparsity > 0
    return device.dtypes if single else device.dtypes[:1]


def build(engines: Sequence[tuple[StepTicket, int, str, bool]], part: int, parts: int) -> None:
    """Launch every ``parts``-th step of our engines and forget it: its kernels are then compiled.

    ``engines``: ticket, batch, dtype, and whether every value is kept, as for a trace. A process
    takes the same places of all of them, as those share most kernels.
    """
    from sparse_ddpm.engine.cuda import CudaEngine

    for ticket, batch, dtype, keep_all in engines:
        engine = CudaEngine(program_of(ticket), batch, dtype, keep_all=keep_all)
        for launches in list(engine._launches.steps.values())[part::parts]:
            for launch in launches:
                launch()
