"""Rows side by side: lanes with cores of their own, and the locks they need."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

from sparse_ddpm.errors import ConfigError, expected

SECONDS_PER_LOOK = 1.0


class Locks:
    """A lock for each key; the thread that holds one may take it again."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, threading.RLock] = {}

    @contextmanager
    def hold(self, *key: Hashable, unless: Callable[[], bool] = bool) -> Iterator[bool]:
        """Wait for the lock, or until ``unless`` is true; give whether it is held."""
        lock = self._locks.setdefault(key, threading.RLock())
        held = lock.acquire(blocking=False)
        while not held and not unless():
            held = lock.acquire(timeout=SECONDS_PER_LOOK)
        try:
            yield held
        finally:
            if held:
                lock.release()


def shares(count: int) -> list[list[int]]:
    """The cores of this process in ``count`` parts. Raises `ConfigError`."""
    if not hasattr(os, "sched_setaffinity"):
        wanted = "1 where a system cannot bind processes to cores"
        raise ConfigError(expected("--jobs", wanted, count))
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(cores):
        raise ConfigError(expected("--jobs", f"1 to {len(cores)}, a core for each", count))
    ends = [len(cores) * index // count for index in range(count + 1)]
    return [cores[low:high] for low, high in pairwise(ends)]


def run_in_lanes(tasks: Sequence[Callable[[], None]], count: int) -> None:
    """Call ``tasks``, in their order, by ``count`` threads.

    Each thread, and the processes that it starts, is bound to its share of the cores. Training one
    small network on each of two cores is faster than two in turns on both: fewer waits.
    """
    free: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for cores in shares(count):
        free.put(cores)
    bind = lambda: os.sched_setaffinity(0, free.get())  # noqa: E731 - 0 is the calling thread
    with ThreadPoolExecutor(count, initializer=bind) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
