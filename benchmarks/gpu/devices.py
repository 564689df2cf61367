"""Timing calls: on a GPU in CUDA graphs, in a dry run by the wall clock.

A `Recording` is a list of calls that are played again and again. `play` times several in turns,
so that a change of clock meets all of them.
"""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

Call = Callable[[], object]

CALLS = 50
"""Calls in a graph, where they are short."""
GRAPH_SECONDS = 2e-3
"""Long calls: as many as take so long, at least `FEWEST`."""
FEWEST = 4
SPIN = 400_000
"""Cycles, about 0.2 ms."""


class Recording(Protocol):
    """Calls to play: ``replay`` queues all of them once and does not wait."""

    calls: int

    def replay(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Timing:
    """``seconds`` of one call, one number a sample. ``measured``: False in a dry run."""

    seconds: tuple[float, ...]
    calls: int
    measured: bool

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def as_json(self) -> dict[str, Any]:
        """In microseconds."""
        p10, p50, p90 = (1e6 * float(v) for v in np.percentile(self.seconds, (10, 50, 90)))
        return {
            "us": round(p50, 3),
            "p10_us": round(p10, 3),
            "p90_us": round(p90, 3),
            "samples": len(self.seconds),
            "calls": self.calls,
            "measured": self.measured,
        }


class Device(ABC):
    """Where everything runs. ``dtypes``: 16-bit ones, that of the tables first."""

    torch_device: torch.device
    dtypes: tuple[torch.dtype, ...]
    measured: bool
    l2_bytes: int

    @abstractmethod
    def record(self, calls: Sequence[Call], rounds: int = 1) -> Recording:
        """Make a recording of ``rounds`` times ``calls``. The first run of each happens here."""

    @abstractmethod
    def sample(self, recording: Recording, replays: int) -> float:
        """Seconds of ``replays`` replays back to back."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for everything queued."""

    @abstractmethod
    def memory(self, *, reset: bool = False) -> tuple[int, int]:
        """Bytes that tensors take now, and at most since the last ``reset``."""

    def release(self) -> None:
        """Give memory that nothing holds back, that of graphs that are gone too."""
        self.synchronize()

    def play(
        self, recordings: Sequence[Recording], *, samples: int = 20, burst: float = 2e-3
    ) -> list[Timing]:
        """Time all in turns: ``samples`` times ``burst`` seconds of each, in changing order."""
        replays = []
        for recording in recordings:
            self.sample(recording, 1)
            replays.append(max(1, min(200, round(burst / max(self.sample(recording, 1), 1e-7)))))
        found: list[list[float]] = [[] for _ in recordings]
        rng = np.random.default_rng(0)
        for _ in range(samples):
            for index in rng.permutation(len(recordings)).tolist():
                seconds = self.sample(recordings[index], replays[index])
                found[index].append(seconds / replays[index] / recordings[index].calls)
        return [
            Timing(tuple(seconds), recording.calls, self.measured)
            for seconds, recording in zip(found, recordings, strict=True)
        ]

    def prepare(self, calls: Sequence[Call]) -> Recording:
        """A recording of ``calls`` in rotation: `CALLS` or more of short ones.

        What a call returns is kept until its next turn, so that each writes memory of its own.
        """
        once = self.record(calls)
        self.sample(once, 1)
        each = self.sample(once, 1) / len(calls)
        wanted = max(FEWEST, min(CALLS, round(GRAPH_SECONDS / max(each, 1e-7))))
        rounds = -(-wanted // len(calls))
        return once if rounds == 1 else self.record(calls, rounds)

    def time(self, calls: Sequence[Call], *, samples: int = 20) -> Timing:
        """Of one call."""
        return self.play([self.prepare(calls)], samples=samples)[0]

    def sets(self, size: int) -> int:
        """Copies of ``size`` bytes that together are twice the L2 cache: at least 2."""
        return max(2, min(512, -(-2 * self.l2_bytes // max(size, 1))))


@dataclass(slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    calls: int
    outputs: list[object]

    def replay(self) -> None:
        self.graph.replay()


class Gpu(Device):
    """The first CUDA device."""

    measured = True
    dtypes = (torch.bfloat16, torch.float16)

    def __init__(self) -> None:
        self.torch_device = torch.device("cuda", 0)
        torch.cuda.set_device(0)
        self._side = torch.cuda.Stream()
        self.l2_bytes = int(torch.cuda.get_device_properties(0).L2_cache_size)

    def record(self, calls: Sequence[Call], rounds: int = 1) -> Recording:
        outputs: list[object] = [None] * len(calls)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self._side):
            # Whatever is lazy must happen outside the capture.
            for call in calls:
                call()
            torch.cuda.synchronize()
            # Not torch.cuda.graph, which empties the allocator's cache each time.
            graph.capture_begin()
            try:
                for index in range(len(calls) * rounds):
                    # Free the old result first: the new one then takes its place.
                    outputs[index % len(calls)] = None
                    outputs[index % len(calls)] = calls[index % len(calls)]()
            finally:
                graph.capture_end()
        return _Graph(graph, len(calls) * rounds, outputs)

    def sample(self, recording: Recording, replays: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The GPU waits a moment, so that launching a graph takes no part of its time.
        torch.cuda._sleep(SPIN)
        begin.record()
        for _ in range(replays):
            recording.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def memory(self, *, reset: bool = False) -> tuple[int, int]:
        torch.cuda.synchronize()
        if reset:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()


@dataclass(slots=True)
class _Calls:
    made: Sequence[Call]
    calls: int = field(init=False)

    def __post_init__(self) -> None:
        self.calls = len(self.made)

    def replay(self) -> None:
        for call in self.made:
            call()


class Interpreter(Device):
    """The CPU, where Triton interprets. Times say that something ran, and nothing else."""

    measured = False
    dtypes = (torch.float32,)
    l2_bytes = 1

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")

    def record(self, calls: Sequence[Call], rounds: int = 1) -> Recording:
        return _Calls([*calls] * rounds)

    def sample(self, recording: Recording, replays: int) -> float:
        start = time.perf_counter()
        for _ in range(replays):
            recording.replay()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        return

    def memory(self, *, reset: bool = False) -> tuple[int, int]:
        return 0, 0

    def play(
        self, recordings: Sequence[Recording], *, samples: int = 20, burst: float = 2e-3
    ) -> list[Timing]:
        found = [self.sample(recording, 1) / recording.calls for recording in recordings]
        return [
            Timing((each,), recording.calls, self.measured)
            for each, recording in zip(found, recordings, strict=True)
        ]

    def prepare(self, calls: Sequence[Call]) -> Recording:
        return self.record(calls[:1])
