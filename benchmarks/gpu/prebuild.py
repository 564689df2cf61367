"""Kernels compiled by several processes before they are needed one by one.

Triton keeps what it compiled on disk, so whoever runs a case first pays for all. A task that fails
here fails again where it is measured, and is reported there.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from gpu.budget import Budget

Task = tuple[str, str, tuple[Any, ...]]
"""Module, function of it, arguments."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def workers() -> int:
    """One process fewer than the cores that this one may use, 16 at most."""
    return max(0, min(16, len(os.sched_getaffinity(0)) - 1))


def prebuild(tasks: Sequence[Task], budget: Budget, *, processes: int, limit: float) -> float:
    """Run ``tasks`` spread over ``processes``; none are left running. Seconds that it took.

    Ends after ``limit`` seconds, or a quarter of the budget, whatever is left to do.
    """
    start = time.monotonic()
    count = min(processes, len(tasks))
    if count < 1:
        return 0.0
    context = multiprocessing.get_context("spawn")
    shares = [list(tasks[index::count]) for index in range(count)]
    running: list[BaseProcess] = [
        context.Process(target=_work, args=(share,), daemon=True) for share in shares
    ]
    with _one_thread_each():
        for process in running:
            process.start()
    end = start + min(limit, budget.left / 4)
    for process in running:
        process.join(max(0.0, end - time.monotonic()))
    for process in running:
        if process.is_alive():
            process.kill()
            process.join()
    seconds = time.monotonic() - start
    print(f"prebuild: {len(tasks)} tasks in {count} processes, {seconds:.0f} s", flush=True)
    return seconds


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Libraries started meanwhile take one thread: as many processes as cores are enough."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(tasks: Sequence[Task]) -> None:
    # One line for each failure is enough: the measurement will show the whole of it.
    for module, function, arguments in tasks:
        try:
            getattr(importlib.import_module(module), function)(*arguments)
        except Exception as error:
            print(f"prebuild: {function}{arguments}: {type(error).__name__}: {error}"[:300])
