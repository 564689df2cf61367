"""Timing engines against each other: in turns, each alone, in bursts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.bench.process import Worker, WorkerError


@dataclass(frozen=True, slots=True)
class Rhythm:
    """``rounds`` times every engine steps for ``burst_s``, after a rest of ``pause_s``.

    A thread pool keeps its cores busy for a while after its last work (OpenMP, onnxruntime): the
    rest lets it fall asleep, so that it does not take them from the next engine.
    """

    rounds: int = 10
    burst_s: float = 0.1
    pause_s: float = 0.25
    least_steps: int = 2


@dataclass(slots=True)
class Times:
    """Seconds of each counted step, and the processor time an engine used while others ran."""

    steps: list[float] = field(default_factory=list)
    idle_cpu_s: float = 0.0
    restless: bool = False
    """Whether that was ever more than fits the rest after its own burst."""
    failed: str | None = None

    def percentile(self, percent: float) -> float:
        """Of the seconds a step takes."""
        return float(np.percentile(self.steps, percent))


def take_turns(
    workers: Sequence[Worker],
    rhythm: Rhythm,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Times]:
    """Time ``workers``, every round in another random order. One that fails is left out from then
    on, and ``failed`` says why.
    """
    found = [Times() for _ in workers]
    rng = np.random.default_rng(seed)
    for turn in range(rhythm.rounds):
        progress(f"timing, round {turn + 1} of {rhythm.rounds}")
        for index in rng.permutation(len(workers)).tolist():
            times = found[index]
            if times.failed is not None:
                continue
            time.sleep(rhythm.pause_s)
            try:
                burst = workers[index].call("burst", rhythm.burst_s, rhythm.least_steps)
            except WorkerError as error:
                times.failed = str(error)
                continue
            times.steps += burst["times"]
            times.idle_cpu_s += burst["idle_cpu_s"]
            times.restless |= burst["idle_cpu_s"] > burst["threads"] * rhythm.pause_s
    return found


def relative_rms(got: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    """RMS of the difference over RMS of what is wanted; infinity where not finite."""
    difference = got.astype(np.float64) - wanted.astype(np.float64)
    scale = float(np.sqrt(np.mean(np.square(wanted.astype(np.float64)))))
    error = float(np.sqrt(np.mean(np.square(difference)))) / max(scale, 1e-300)
    return error if np.isfinite(error) else float("inf")
