"""Threads and forked processes on one sampler: right images, no deadlock, no leak?

python benchmarks/threads.py --threads 8 --processes 4 --seconds 60 [--ticket TICKET] [--json FILE]

One `Sampler` draws every image of a list alone first. Then threads of this process draw from the
list at random, in calls of 1 to 16 images, in one call, step by step, or cancelled on the way.
While they do, processes are forked from their midst, and draw with the sampler that they inherit,
with two threads each; every few seconds a process that only lives for one call is forked, too.
Each image is compared with the one drawn alone. Progress goes to stderr; stdout gets a line for
each claim. Exit status 0: all claims hold; 1: one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng  # here: a fork amid an import is a deadlock

from sparse_ddpm.api import Sampler, Step
from sparse_ddpm.bench.machine import machine, resident_mib
from sparse_ddpm.errors import CancelledError
from sparse_ddpm.files import write_atomically

IMAGES = 24
"""Seeds in the list, each drawn in every way of `WAYS`."""
WAYS: tuple[dict[str, Any], ...] = (
    {"steps": 4, "sampler": "ddim"},
    {"steps": 7, "sampler": "ddpm"},
    {"steps": 3, "sampler": "dpm++"},
)
THREADS_OF_A_CHILD = 2
SHORT_LIVED_S = 2.0
"""Between processes that live for one call."""
WARM = 0.25
"""Of the time, before memory is looked at."""
GRACE_S = 60.0
"""What is not over so long after its end has deadlocked."""
ERROR = 1e-4
"""Most difference of an image, in [-1, 1], from the one drawn alone: rounding."""
GROWTH_MIB = 4.0
"""What a process may grow by once warm. Less than ten seconds are not enough to be warm."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--ticket", help="a file or a name (default: mnist)")
    parser.add_argument("--engine-threads", type=int, help="of an engine (default: all cores)")
    parser.add_argument("--concurrency", type=int, help="calls that compute at once")
    parser.add_argument("--growth", type=float, default=GROWTH_MIB, help="allowed, in MiB")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args(arguments)


class Draws:
    """Draws at random, compares, counts."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        sampler.sample(17, steps=1, batch_size=17)  # plans all engines there will be
        seeds = range(IMAGES)
        self.wanted = [
            np.concatenate([sampler.sample_float(1, seed=seed, **way) for seed in seeds])
            for way in WAYS
        ]
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self.calls = self.images = self.cancelled = 0
        self.error = 0.0
        self.failures: list[str] = []
        self.start_mib = self.end_mib = 0.0

    def one(self, rng: Generator) -> None:
        """A call of some kind."""
        way = int(rng.integers(len(WAYS)))
        seeds = rng.integers(0, IMAGES, size=int(rng.integers(1, 17)))
        settings: dict[str, Any] = {"seeds": seeds, **WAYS[way]}
        images = None
        match int(rng.integers(6)):
            case 0:
                for step in self.sampler.stream(batch_size=16, **settings):
                    images = step.x
            case 1:
                last = int(rng.integers(WAYS[way]["steps"]))
                try:
                    self.sampler.sample(callback=_until(last), **settings)
                    self.failures.append("a call was not cancelled")
                except CancelledError:
                    pass
            case 2:
                images = self.sampler.sample_float(callback=_until(-1), **settings)
            case _:
                images = self.sampler.sample_float(**settings)
        error = 0.0 if images is None else np.abs(images - self.wanted[way][seeds]).max()
        with self._lock:
            self.calls += 1
            self.cancelled += images is None
            self.images += 0 if images is None else len(images)
            self.error = max(self.error, float(error))

    def work(self, seed: int, end: float) -> None:
        """Call after call until ``end``, of `time.monotonic`."""
        rng = default_rng(seed)
        try:
            while time.monotonic() < end:
                self.one(rng)
        except BaseException:
            self.failures.append(traceback.format_exc())

    def together(self, threads: int, seed: int, end: float) -> list[threading.Thread]:
        """Threads that `work`, started."""
        made = [
            threading.Thread(target=self.work, args=(seed + index, end), daemon=True)
            for index in range(threads)
        ]
        for thread in made:
            thread.start()
        return made

    def report(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "images": self.images,
            "cancelled": self.cancelled,
            "error": self.error,
            "failures": self.failures,
            "growth_mib": self.end_mib - self.start_mib,
        }

    def child(self, threads: int, seed: int, end: float) -> dict[str, Any]:
        """All that a forked process does."""
        self._lock = threading.Lock()  # ours may have been held
        self._clear()
        self.sampler.sample(17, steps=1, batch_size=17)  # plans all engines there will be
        begun = time.monotonic()
        made = self.together(threads, seed, end)
        self.measure(begun, end)
        self.failures += join(made, end)
        return self.report()

    def measure(self, begun: float, end: float) -> None:
        """Memory when warm, and at the end."""
        time.sleep(max(0.0, begun + WARM * (end - begun) - time.monotonic()))
        self.start_mib = resident_mib()
        time.sleep(max(0.0, end - time.monotonic()))
        self.end_mib = resident_mib()


def _until(last: int) -> Callable[[Step], bool]:
    return lambda step: step.index == last


def join(threads: list[threading.Thread], end: float) -> list[str]:
    """Wait for ``threads``; what to say of those that do not end."""
    for thread in threads:
        thread.join(max(0.0, end + GRACE_S - time.monotonic()))
    stuck = sum(thread.is_alive() for thread in threads)
    return [f"{stuck} threads did not end"] if stuck else []


def fork(body: Callable[[], dict[str, Any]]) -> tuple[int, int]:
    """A process that does ``body`` and writes what it returns: its id, and where to read."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork among threads: on purpose
        child = os.fork()
    if child:
        os.close(write)
        return child, read
    status = 1
    try:
        with open(write, "w") as file:
            json.dump(body(), file)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def collect(child: int, read: int, end: float) -> dict[str, Any]:
    """What a process wrote; a process that does not end is ended."""
    while time.monotonic() < end + GRACE_S:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        _, status = os.waitpid(child, 0)
    with open(read) as file:
        text = file.read()
    if status or not text:
        code = os.waitstatus_to_exitcode(status)
        return {"failures": [f"a process ended with status {code}"], "calls": 0, "images": 0}
    found: dict[str, Any] = json.loads(text)
    return found


def short_lived(draws: Draws, end: float) -> tuple[int, list[str]]:
    """Processes of one call each until ``end``: how many, and what went wrong."""
    count, failures = 0, []
    while time.monotonic() < end:
        child, read = fork(lambda seed=count: draws.child(1, seed, time.monotonic()))
        failures += collect(child, read, end)["failures"]
        count += 1
        time.sleep(max(0.0, min(SHORT_LIVED_S, end - time.monotonic())))
    return count, failures


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All of it; see the module."""
    sampler = Sampler.load(
        options.ticket, threads=options.engine_threads, concurrency=options.concurrency
    )
    with sampler:
        draws = Draws(sampler)
        begun = time.monotonic()
        end = begun + options.seconds
        threads = draws.together(options.threads, 1000, end)
        children = []
        for index in range(options.processes):
            seed = 2000 + 100 * index
            children.append(
                fork(lambda seed=seed: draws.child(THREADS_OF_A_CHILD, seed, end))  # type: ignore[misc]
            )
        shorts: list[tuple[int, list[str]]] = []
        forker = threading.Thread(target=lambda: shorts.append(short_lived(draws, end)))
        forker.start()
        draws.measure(begun, end)
        draws.failures += join(threads, end)
        forker.join()
        reports = [collect(child, read, end) for child, read in children]
    count, failures = shorts[0]
    return {
        "parent": draws.report(),
        "children": reports,
        "short_lived": {"processes": count, "failures": failures},
    }


def judge(found: dict[str, Any], allowed: float = GROWTH_MIB) -> list[dict[str, Any]]:
    """The claims, and whether they hold."""
    reports = [found["parent"], *found["children"]]
    failures = [text for report in reports for text in report["failures"]]
    failures += found["short_lived"]["failures"]
    images, error = (
        sum(report["images"] for report in reports),
        max(report.get("error", 0.0) for report in reports),
    )
    growth = max(report.get("growth_mib", 0.0) for report in reports)
    idle = sum(report["calls"] == 0 for report in reports)
    first = f": {failures[0].strip().splitlines()[-1]}" if failures else ""
    return [
        {"text": f"{images} images differ by {error:.1e} at most", "holds": error <= ERROR},
        {"text": f"{len(failures)} failures or deadlocks{first}", "holds": not failures},
        {"text": f"{idle} processes drew nothing", "holds": idle == 0},
        {
            "text": f"a process grows by {growth:.1f} MiB at most (wanted: {allowed:g})",
            "holds": growth <= allowed,
        },
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    print(
        f"threads: {options.threads} threads, {options.processes} processes, {options.seconds:g} s",
        file=sys.stderr,
    )
    found = measure(options)
    claims = judge(found, options.growth)
    if options.json:
        settings = {key: getattr(options, key) for key in ("threads", "processes", "seconds")}
        result = {"schema": 1, **settings, "machine": machine(), **found, "claims": claims}
        text = json.dumps(result, indent=1) + "\n"
        write_atomically(options.json, lambda file: file.write(text.encode()))
    for claim in claims:
        print(f"{'holds' if claim['holds'] else 'FAILS'}: {claim['text']}")
    return 0 if all(claim["holds"] for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
