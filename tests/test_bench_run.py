"""Engines in processes of their own: what goes wrong there is reported, never dropped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_ddpm.bench import engines
from sparse_ddpm.bench.engines import EngineSpec, Job, ours
from sparse_ddpm.bench.measure import Rhythm, Times, take_turns
from sparse_ddpm.bench.process import Worker, WorkerError
from sparse_ddpm.bench.report import problem_row, table
from sparse_ddpm.bench.run import Outcome, Settings, benchmark, ratios, schedule
from sparse_ddpm.lower import lower
from sparse_ddpm.ticket import UNetConfig, save_ticket, synthetic_ticket

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=4, heads=2, dim_head=4)
QUICK = Rhythm(rounds=2, burst_s=0.001, pause_s=0.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "ticket.pt"
    save_ticket(synthetic_ticket(TINY, 0.8, seed=5), path)
    return path


def settings(path: Path, *specs: EngineSpec, batches: tuple[int, ...] = (1,)) -> Settings:
    ticket = synthetic_ticket(TINY, 0.8, seed=5)
    return Settings(str(path), lower(ticket), 1000, batches, 1, "cpu", specs, QUICK)


def test_a_failed_a_missing_and_a_good_engine(path: Path) -> None:
    missing = EngineSpec("absent", "float32", "ours:build", ("no_such_package",))
    failing = EngineSpec("failing", "float32", "ours:build", (), {"dtype": "int3"})
    said: list[str] = []
    found = benchmark(settings(path, missing, ours("float32"), failing), said.append)
    absent, good, bad = found
    assert absent.missing
    assert "no_such_package" in problem_row(absent)["reason"]
    assert not bad.missing
    assert "'int3'" in problem_row(bad)["reason"]
    assert good.problem is None
    assert good.times is not None
    # The first step of a burst warms up and is not counted.
    assert len(good.times.steps) >= QUICK.rounds * QUICK.least_steps
    assert good.error is not None
    assert good.error < 1e-5
    assert good.built["arena_bytes"] > 0
    assert (good.peak_mib or 0) >= (good.step_peak_mib or 0) > 1
    lines = list(table(found, ratios(found)))
    assert any(line.startswith("absent ") and "missing: no_such" in line for line in lines)
    assert any(line.startswith("failing ") and "failed: " in line for line in lines)
    assert any("building failing" in text for text in said)


def test_a_wrong_engine_is_not_timed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.OUR_TOLERANCES, "float32", 1e-12)  # type: ignore[arg-type]
    (found,) = benchmark(settings(path, ours("float32")))
    assert found.times is None
    assert found.problem is not None
    assert "wrong: relative RMS error" in found.problem


def test_whole_batches_are_compared(path: Path) -> None:
    found = benchmark(settings(path, ours("float32"), batches=(3, 18)))
    assert [outcome.batch for outcome in found] == [3, 18]
    assert all(outcome.problem is None for outcome in found)


def test_a_crash_is_one_clear_error(path: Path) -> None:
    with Worker(ours("float32"), 1) as worker:
        worker.build(Job(str(path), 1, 1, "cpu", schedule(1000)))
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"its process died \(SIGKILL\)"):
            worker.call("burst", 0.001, 1)


def test_one_crash_leaves_the_others(path: Path) -> None:
    job = Job(str(path), 1, 1, "cpu", schedule(1000))
    x = np.ones((1, 1, 8, 8), np.float32)
    with Worker(ours("float32"), 1) as dying, Worker(ours("float32"), 1) as living:
        for worker in (dying, living):
            worker.build(job)
            worker.call("output", x, 0)
        os.kill(dying._process.pid, signal.SIGKILL)
        first, second = take_turns([dying, living], QUICK)
    assert first.failed is not None
    assert second.failed is None
    assert second.steps
    assert min(second.steps) > 0


def test_an_error_in_a_worker_does_not_end_it(path: Path) -> None:
    with Worker(ours("float32"), 1) as worker:
        with pytest.raises(WorkerError, match="TicketError: "):
            worker.build(Job(str(path.parent / "none.pt"), 1, 1, "cpu", schedule(1000)))
        assert worker.build(Job(str(path), 1, 1, "cpu", schedule(1000)))["description"]


def outcome(name: str, dtype: str, step: float) -> Outcome:
    return Outcome(EngineSpec(name, dtype, ""), 4, times=Times([step / 2, step, 2 * step]))


def test_ratios() -> None:
    every = [
        outcome("sparse-ddpm", "float32", 2.0),
        outcome("sparse-ddpm", "bfloat16", 1.0),
        outcome("a", "float32", 8.0),
        outcome("b", "float32", 6.0),
        outcome("c", "bfloat16", 5.0),
        Outcome(EngineSpec("d", "float32", ""), 4, problem="broken"),
    ]
    (row,) = ratios(every)
    assert row == {
        "batch": 4,
        "vs_fastest_fp32_peer": 3.0,
        "fastest_fp32_peer": "b",
        "vs_fastest_peer": 5.0,
        "fastest_peer": "c",
        "our_dtype": "bfloat16",
        "vs_dense": {},
    }
    (row,) = ratios([*every, outcome("sparse-ddpm-dense", "float32", 7.0)])
    assert row["vs_dense"] == {"float32": 3.5}
    assert row["vs_fastest_fp32_peer"] == 3.0


def test_ratios_without_peers() -> None:
    (row,) = ratios([outcome("sparse-ddpm", "float32", 2.0)])
    wanted: dict[str, Any] = {"vs_fastest_fp32_peer": None, "vs_fastest_peer": None}
    assert wanted.items() <= row.items()


def test_schedule() -> None:
    times = schedule(1000)
    assert times[0] == 999.0
    assert times[-1] == 0.0
    assert list(times) == sorted(times, reverse=True)
    assert schedule(1)[-1] == 0.0
