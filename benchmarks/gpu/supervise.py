"""A child process measures; this one watches, ends what hangs, and starts another where one died.

A kernel that reads what it may not breaks the process's CUDA context for good, and one that waits
for ever cannot be called back. Either costs one row of one section.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gpu.budget import Budget
from gpu.results import RUNNING, bury, read

DONE, GAVE_UP, OUT_OF_TIME, LOST = 0, 1, 3, 4
"""What the child ends with. `GAVE_UP`: a section could not go on, the others did."""
GRACE = 15.0
"""Seconds past the budget that the last measurement may take to end by itself."""
CHILDREN = 12


def supervise(
    command: Sequence[str],
    folder: Path,
    budget: Budget,
    say: Callable[[str], None],
    poll: float = 0.1,
) -> int:
    """Run ``command`` until it ends with `DONE`, `GAVE_UP` or `OUT_OF_TIME`; returns that.

    One that ends otherwise has its measurement marked as failed and is started again, while the
    budget and `CHILDREN` last; then what it ended with is returned. It is ended for the limit of
    the measurement under way, and `GRACE` after the budget (which leaves no mark).
    """
    (folder / RUNNING).unlink(missing_ok=True)
    status = OUT_OF_TIME
    for _ in range(CHILDREN):
        if budget.left <= 0:
            return OUT_OF_TIME
        # A group of its own, so that its compilers end with it.
        child = subprocess.Popen(command, process_group=0)
        try:
            reason = _watch(child, folder, budget, poll)
        finally:
            _end(child)
        status = child.returncode
        if reason is None and status in (DONE, GAVE_UP, OUT_OF_TIME):
            return status
        if reason == "":
            (folder / RUNNING).unlink(missing_ok=True)
            return OUT_OF_TIME
        died = f"signal {-status}" if status < 0 else f"status {status}"
        buried = bury(folder, reason or f"the process ended with {died}")
        say(f"{reason or f'the process ended with {died}'}: {buried or 'between measurements'}")
        if buried is None and status != LOST:
            return status
    return status


def _watch(child: subprocess.Popen[bytes], folder: Path, budget: Budget, poll: float) -> str | None:
    """Wait for the end. None: it ended by itself; "": time is over; else why it has to end."""
    while child.poll() is None:
        if budget.left < -GRACE:
            return ""
        running = read(folder / RUNNING)
        if running is not None and time.time() > running["until"]:
            return "took longer than its limit"
        time.sleep(poll)
    return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
