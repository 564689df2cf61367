"""One engine in a process of its own: ``python -m sparse_ddpm.bench.worker``.

Requests and answers are pickled objects, one at a time, on the standard input and output that the
parent made; whatever libraries print goes to stderr. A request is ``(method, arguments)``, an
answer ``("ok", value)`` or ``("error", text)``. Between requests the process sleeps in a read.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sparse_ddpm.bench.engines import EngineSpec, Job, Runner

MIB = 1 << 20


class Server:
    """The methods that a parent may ask for."""

    runner: Runner
    steps: int
    threads: int

    def build(self, spec: EngineSpec, job: Job) -> dict[str, Any]:
        """Build the engine; say what it is and the seconds it took, imports included."""
        start = time.perf_counter()
        module, _, function = spec.builder.partition(":")
        make = getattr(importlib.import_module(f"sparse_ddpm.bench.{module}"), function)
        self.runner = make(job, **spec.options)
        self.steps, self.threads = len(job.timesteps), job.threads
        return {
            "description": self.runner.description,
            "build_s": time.perf_counter() - start,
            **self.runner.details,
        }

    def output(self, x: NDArray[np.float32], index: int) -> NDArray[np.float32]:
        """Take the input of all steps and return the output at one of them."""
        self.runner.load(x)
        return self.runner.array(self.runner.step(index))

    def settle(self) -> None:
        """Before the timing: every timestep ran once, no garbage, memory's peak counted anew."""
        for index in range(self.steps):
            self.runner.step(index)
        gc.collect()
        gc.freeze()
        gc.disable()
        reset_peak()

    def burst(self, seconds: float, least: int) -> dict[str, Any]:
        """Steps back to back for ``seconds``, at least ``least``; the first is not counted.

        ``idle_cpu_s`` is the processor time spent since the last burst: near zero, or this engine
        has been stealing from the others.
        """
        woken = time.process_time()
        idle = woken - getattr(self, "_slept", woken)
        times: list[float] = []
        self.runner.step(0)
        end = time.perf_counter() + seconds
        while True:
            index = (len(times) + 1) % self.steps
            start = time.perf_counter()
            self.runner.step(index)
            now = time.perf_counter()
            times.append(now - start)
            if now >= end and len(times) >= least:
                break
        self._slept = time.process_time()
        return {"times": times, "idle_cpu_s": idle, "threads": self.threads}

    def peak_mib(self) -> float | None:
        """Largest resident memory since the start or the last `settle`, MiB."""
        return peak_bytes() / MIB


def peak_bytes() -> int:
    """Largest resident memory of this process.

    Linux's ``ru_maxrss`` starts at the size of the process that started this one: not used there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> None:
    """Let `peak_bytes` start again from what is resident now, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def main() -> None:
    """Answer requests until the parent closes its end."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    server = Server()
    while True:
        try:
            method, arguments = pickle.load(requests)
        except EOFError:
            return
        answer: tuple[str, Any]
        try:
            answer = ("ok", getattr(server, method)(*arguments))
        except Exception as error:
            traceback.print_exc()
            answer = ("error", f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
