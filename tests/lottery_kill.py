"""A process that trains in children and kills them; run by test_lottery_resume.py.

Torch is imported once and the children are forked, so that a restart costs milliseconds. Sound
because the parent has one thread: torch is told so, and on the CPU it differentiates in it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lottery_tiny import CHOSEN, install_preset

from sparse_ddpm.lottery.session import train


def in_child(work: Callable[[], object]) -> int:
    """The pid of a child that does ``work`` and exits."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def killed(pid: int) -> bool:
    """Wait for a child: True if a signal ended it; any failure of its own is an error."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status > 0:
        raise SystemExit(f"child exited with {status}")
    return status == -signal.SIGKILL


def whole(out: Path, spec: str) -> None:
    chosen = {**CHOSEN, "data": spec, "rewind": "late:3", "rounds": 1}
    # With the state that only some runs have: an order of channels, masks within a round.
    chosen |= {"gradual": True, "pattern": "vector:4", "permute": True}
    train(out, chosen, resume=True, controls=["reinit"], steps_per_checkpoint=2, quiet=True)


def at_random_moments(root: Path, spec: str, moments: int) -> None:
    """``moments`` runs, each killed once at a random moment and then finished."""
    whole(root / "undisturbed", spec)  # also loads all that torch loads when it is first used
    start = time.perf_counter()
    assert not killed(in_child(lambda: whole(root / "timed", spec)))
    seconds = time.perf_counter() - start
    rng = random.Random(0)
    hits = 0
    for index in range(moments):
        out = root / f"moment-{index}"
        # One moment in each part of the run, so that all parts are hit.
        moment = seconds * (index + rng.random()) / (moments + 1)
        pid = in_child(lambda out=out: whole(out, spec))
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        hits += killed(pid)
        assert not killed(in_child(lambda out=out: whole(out, spec)))
    print(hits)


if __name__ == "__main__":
    install_preset()
    at_random_moments(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
