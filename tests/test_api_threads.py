"""One sampler for many threads and for forked processes.

What could hang runs in a process of its own, with a time limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sparse_ddpm import Sampler
from sparse_ddpm.api.engines import Settings, Workers
from sparse_ddpm.errors import ConfigError, EngineError
from sparse_ddpm.lower import lower
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "threads.py"
TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=3, image_size=8, groups=4)
HEAD = """
import os, threading
import numpy as np
from sparse_ddpm import CancelledError, Sampler
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.lower import lower
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket
config = UNetConfig(dim=8, dim_mults=(1, 2), channels=3, image_size=8, groups=4)
ticket = synthetic_ticket(config, 0.8)

def forked(body):
    child = os.fork()
    if child == 0:
        try:
            status = 0 if body() else 1
        except BaseException as error:
            print(repr(error), flush=True)
            status = 2
        os._exit(status)
    return child

def wait(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


def run(code: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", HEAD + code], check=True, timeout=60)


@pytest.mark.parametrize(("device", "concurrency"), [("cpu", 1), ("cpu", 3), ("numpy", 2)])
def test_threads_draw_what_one_draws(device: str, concurrency: int) -> None:
    ticket = synthetic_ticket(TINY, 0.8)
    with Sampler(ticket, device=device, concurrency=concurrency) as sampler:
        wanted = [sampler.sample_float(3, seed=seed, steps=2 + seed % 3) for seed in range(6)]

        def draw(seed: int) -> float:
            drawn = [sampler.sample_float(3, seed=seed, steps=2 + seed % 3) for _ in range(3)]
            return max(float(np.abs(images - wanted[seed]).max()) for images in drawn)

        with ThreadPoolExecutor(6) as pool:
            errors = list(pool.map(draw, range(6), timeout=60))
        assert max(errors) <= 1e-5


def test_no_more_workers_than_said_and_first_come_first_served() -> None:
    workers = Workers(Settings(lower(synthetic_ticket(TINY, 0.8)), "cpu", 1, None), 2)
    served: list[int] = []
    inside: list[int] = []
    most = []

    def call(number: int) -> None:
        with workers.lend():
            served.append(number)
            inside.append(number)
            most.append(len(inside))
            inside.remove(number)

    threads = []
    with workers.lend(), workers.lend():
        for number in range(5):
            thread = threading.Thread(target=call, args=(number,))
            thread.start()
            threads.append(thread)
            while len(workers._desk.waiting) <= number:
                pass
    for thread in threads:
        thread.join(60)
    assert sorted(served) == [0, 1, 2, 3, 4]
    assert set(served[:2]) <= {0, 1, 2}
    assert max(most) <= 2
    assert len(workers._desk.idle) == 2


def test_an_interrupted_wait_leaves_no_one_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(Settings(lower(synthetic_ticket(TINY, 0.8)), "cpu", 1, None), 1)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("threading.Condition.wait_for", "sparse_ddpm.api.engines.Worker"):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            with pytest.raises(KeyboardInterrupt), workers.lend():
                pass
        assert not workers._desk.waiting
        assert not workers._desk.served
    with workers.lend() as worker:
        assert worker.planned(1).engine.batch == 1


@pytest.mark.parametrize("concurrency", [0, 1.5, True])
def test_concurrency_is_checked(concurrency: int) -> None:
    with pytest.raises(ConfigError, match="concurrency: expected an integer of at least 1"):
        Sampler(synthetic_ticket(TINY, 0.8), concurrency=concurrency)


def test_concurrency_follows_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import sparse_ddpm.engine.cpu as cpu

    monkeypatch.setattr(cpu, "default_threads", lambda: 16)
    ticket = synthetic_ticket(TINY, 0.8)
    for threads, most in ((None, 1), (1, 16), (3, 5), (64, 1)):
        assert Sampler(ticket, threads=threads).concurrency == most
    assert Sampler(ticket, device="cuda").concurrency == 1


def test_closing_lets_calls_finish() -> None:
    with Sampler(synthetic_ticket(TINY, 0.8), threads=1, concurrency=1) as sampler:
        wanted = sampler.sample_float(2, steps=20)
        got: list[np.ndarray] = []
        threads = [
            threading.Thread(target=lambda: got.append(sampler.sample_float(2, steps=20)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
            sampler.close()
        for thread in threads:
            thread.join(60)
        assert len(got) == 4
        for images in got:
            np.testing.assert_array_equal(images, wanted)
        with sampler.workers.lend() as worker:
            engine = worker.planned(1).engine
            engine.set_schedule(np.zeros(1))
            sampler.close()
            engine.run(np.zeros((1, 3, 8, 8), np.float32), 0)
        with pytest.raises(EngineError, match="open engine"):
            engine.run(np.zeros((1, 3, 8, 8), np.float32), 0)


@forks
def test_a_fork_while_others_hold_everything() -> None:
    """Every lock that we have is held by a thread that the child does not inherit."""
    run("""
sampler = Sampler(ticket, threads=2, concurrency=1)
wanted = sampler.sample_float(2, steps=3)
engine = CpuEngine(lower(ticket), 1, 2)
engine.set_schedule(np.arange(3))
x = np.ones((1, 3, 8, 8), np.float32)
output = engine.run(x, 1)
held, over = threading.Event(), threading.Event()
def hold():
    with sampler.workers.lend(), sampler.workers._desk.turn, engine._executor._lock:
        held.set()
        over.wait()
holder = threading.Thread(target=hold)
holder.start()
held.wait()
def child():
    same = np.array_equal(sampler.sample_float(2, steps=3), wanted)
    same = same and np.array_equal(engine.run(x, 1), output)
    sampler.close()
    engine.close()
    return same and np.array_equal(sampler.sample_float(2, steps=3), wanted)
wait(forked(child))
over.set()
holder.join()
assert np.array_equal(sampler.sample_float(2, steps=3), wanted)
""")


@forks
def test_a_fork_in_a_callback_goes_on_in_both() -> None:
    run("""
sampler = Sampler(ticket, threads=2)
wanted = sampler.sample_float(2, steps=4)
child = None
def split(step):
    global child
    if step.index == 1:
        child = os.fork()
images = sampler.sample_float(2, steps=4, callback=split)
same = np.abs(images - wanted).max() < 1e-5
if child == 0:
    os._exit(0 if same else 1)
wait(child)
assert same
""")


@forks
def test_a_fork_with_an_engine_in_hand() -> None:
    """What comes back in the child is not lent there; the parent's is as it was."""
    run("""
sampler = Sampler(ticket, threads=2, concurrency=1)
wanted = sampler.sample_float(1, steps=3)
with sampler.workers.lend() as worker:
    child = os.fork()
same = np.array_equal(sampler.sample_float(1, steps=3), wanted)
if child == 0:
    grandchild = forked(lambda: np.array_equal(sampler.sample_float(1, steps=3), wanted))
    wait(grandchild)
    os._exit(0 if same else 1)
wait(child)
assert same
""")


@forks
def test_a_closed_engine_stays_closed_in_a_fork() -> None:
    run("""
engine = CpuEngine(lower(ticket), 1, 2)
engine.set_schedule(np.arange(3))
def child():
    engine.close()
    try:
        engine.run(np.ones((1, 3, 8, 8), np.float32), 1)
    except Exception as error:
        return 'open engine' in str(error)
wait(forked(child))
assert engine.run(np.ones((1, 3, 8, 8), np.float32), 1).shape == (1, 3, 8, 8)
""")


@forks
def test_the_benchmark_of_threads_and_forks(tmp_path: Path) -> None:
    """A short run of it: eight threads, four processes, and some that live for one call."""
    report = tmp_path / "report.json"
    command = [sys.executable, str(BENCHMARK), "--seconds", "3", "--growth", "32"]
    command += ["--json", str(report)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    result = json.loads(report.read_text())
    assert result["schema"] == 1
    assert len(result["children"]) == 4
    assert result["short_lived"]["processes"] >= 1
    assert all(claim["holds"] for claim in result["claims"])
    assert min(one["images"] for one in [result["parent"], *result["children"]]) > 0


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        (1, [1]),
        (3, [1, 1, 1]),
        (15, [16]),
        (16, [16]),
        (32, [16, 16]),
        (33, [16, 16, 1]),
        (48, [16] * 3),
    ],
)
def test_images_make_no_more_passes_than_they_need(images: int, wanted: list[int]) -> None:
    """16 once took a second pass, of nothing."""
    program = lower(synthetic_ticket(UNetConfig(8, (1,), 1, 4, groups=4), 0.5))
    assert Settings(program, "cpu", 1, None).passes(images) == wanted
    assert sum(wanted) >= images
