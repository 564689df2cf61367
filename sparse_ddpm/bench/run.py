"""A benchmark from beginning to end: build, compare, time, for each batch size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.bench.engines import DENSE, OURS, EngineSpec, Job
from sparse_ddpm.bench.measure import Rhythm, Times, relative_rms, take_turns
from sparse_ddpm.bench.process import Worker, WorkerError
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.program import Program

CHECKED_IMAGES = 16
"""Images of a batch that are compared with the slow reference, first and last among them."""
SCHEDULE = 10
"""Timesteps that the timed steps cycle through, evenly spaced."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What to compare. ``ticket``: the file that every worker opens."""

    ticket: str
    program: Program
    timesteps: int
    batches: tuple[int, ...]
    threads: int
    device: str
    engines: tuple[EngineSpec, ...]
    rhythm: Rhythm = field(default_factory=Rhythm)
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    """One engine at one batch size: timed, or ``problem`` says why not."""

    spec: EngineSpec
    batch: int
    problem: str | None = None
    missing: bool = False
    error: float | None = None
    times: Times | None = None
    peak_mib: float | None = None
    step_peak_mib: float | None = None
    built: dict[str, Any] = field(default_factory=dict)

    @property
    def step_s(self) -> float:
        """Median seconds of a step."""
        assert self.times is not None
        return self.times.percentile(50)


def schedule(timesteps: int) -> tuple[float, ...]:
    """`SCHEDULE` timesteps from the last to 0; the one in the middle is used to compare."""
    return tuple(float(t) for t in np.linspace(timesteps - 1, 0, SCHEDULE).round())


def benchmark(settings: Settings, progress: Progress = lambda _: None) -> list[Outcome]:
    """Every engine at every batch size, in the order of ``settings``."""
    found: list[Outcome] = []
    for batch in settings.batches:
        found += _at_batch(settings, batch, progress)
    return found


def _at_batch(settings: Settings, batch: int, progress: Progress) -> list[Outcome]:
    def say(text: str) -> None:
        progress(f"batch {batch}: {text}")

    program, middle = settings.program, SCHEDULE // 2
    times = schedule(settings.timesteps)
    rng = np.random.default_rng([settings.seed, batch])
    x = rng.standard_normal((batch, *program.input_shape), dtype=np.float32)
    say("reference in float64")
    images, wanted = _reference(program, x, times[middle])
    job = Job(settings.ticket, batch, settings.threads, settings.device, times)
    outcomes = [Outcome(spec, batch) for spec in settings.engines]
    with contextlib.ExitStack() as stack:
        workers: list[tuple[Outcome, Worker]] = []
        for outcome in outcomes:
            reason = outcome.spec.missing()
            if reason is not None:
                outcome.problem, outcome.missing = reason, True
                continue
            say(f"building {outcome.spec.label}")
            worker = stack.enter_context(Worker(outcome.spec, settings.threads))
            try:
                outcome.built = worker.build(job)
                output = worker.call("output", x, middle)
            except WorkerError as error:
                outcome.problem = str(error)
                worker.close()
                continue
            outcome.error = relative_rms(output[images], wanted)
            # A comparison with NaN is false, so NaN is wrong too.
            if not outcome.error <= outcome.spec.tolerance:
                outcome.problem = (
                    "wrong: relative RMS error against float64 expected "
                    f"at most {outcome.spec.tolerance:g}, got {outcome.error:.1e}"
                )
                worker.close()
                continue
            workers.append((outcome, worker))
        _time(workers, settings, say)
    return outcomes


def _time(
    workers: Sequence[tuple[Outcome, Worker]], settings: Settings, progress: Progress
) -> None:
    ready: list[tuple[Outcome, Worker]] = []
    for outcome, worker in workers:
        with _problem_of(outcome):
            outcome.peak_mib = worker.call("peak_mib")
            worker.call("settle")
            ready.append((outcome, worker))
    timed = take_turns([worker for _, worker in ready], settings.rhythm, settings.seed, progress)
    for (outcome, worker), times in zip(ready, timed, strict=True):
        if times.failed is not None:
            outcome.problem = times.failed
            continue
        with _problem_of(outcome):
            outcome.step_peak_mib = worker.call("peak_mib")
            outcome.peak_mib = max(outcome.peak_mib or 0.0, outcome.step_peak_mib or 0.0)
            outcome.times = times


@contextlib.contextmanager
def _problem_of(outcome: Outcome) -> Any:
    try:
        yield
    except WorkerError as error:
        outcome.problem = str(error)


def _reference(
    program: Program, x: NDArray[np.float32], t: float
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The images of the batch that are compared, and their outputs."""
    count = min(len(x), CHECKED_IMAGES)
    images = np.linspace(0, len(x) - 1, count).round().astype(np.intp)
    engine = ReferenceEngine(program, batch=1)
    engine.set_schedule(np.array([t]))
    return images, np.concatenate([engine.run(x[i : i + 1], 0) for i in images.tolist()])


def ratios(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """For each batch: how many times our step is faster than the fastest peer's.

    ``vs_fastest_fp32_peer``: float32 against float32; ``vs_fastest_peer``: any precision against
    any. None where either side was not timed. ``vs_dense``: by dtype, how many times faster than
    this engine with every weight stored, where both were timed.
    """
    found = []
    for batch in dict.fromkeys(outcome.batch for outcome in outcomes):
        timed = [o for o in outcomes if o.batch == batch and o.times is not None]
        row: dict[str, Any] = {"batch": batch}
        for key, fp32 in (("fp32_peer", True), ("peer", False)):
            fitting = [o for o in timed if not fp32 or o.spec.dtype == "float32"]
            mine = [o for o in fitting if o.spec.name == OURS]
            peers = [o for o in fitting if not o.spec.own]
            best = min(mine, key=lambda o: o.step_s, default=None)
            rival = min(peers, key=lambda o: o.step_s, default=None)
            known = best is not None and rival is not None
            row[f"vs_fastest_{key}"] = rival.step_s / best.step_s if best and rival else None
            row[f"fastest_{key}"] = rival.spec.name if rival else None
            if not fp32:
                row["our_dtype"] = best.spec.dtype if best and known else None
        dense = {o.spec.dtype: o.step_s for o in timed if o.spec.name == DENSE}
        row["vs_dense"] = {
            o.spec.dtype: dense[o.spec.dtype] / o.step_s
            for o in timed
            if o.spec.name == OURS and o.spec.dtype in dense
        }
        found.append(row)
    return found
