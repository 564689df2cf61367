"""benchmarks/experiments.py --jobs: rows side by side, each on cores of its own."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from experiment_rig import Fake, kept

ROWS = ("dense", "element-90", "element-99", "reinit-90", "similarity-90", "pair")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
pytestmark = pytest.mark.skipif(CORES < 2, reason="one core, or a system that binds to none")


@pytest.fixture
def lanes(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["experiment_lanes"]


def test_cores_are_shared_out(lanes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {9, 2, 3, 5, 7})
    assert lanes.shares(2) == [[2, 3], [5, 7, 9]]
    assert lanes.shares(5) == [[2], [3], [5], [7], [9]]
    for count in (0, -1, 6):
        with pytest.raises(ValueError, match=f"--jobs: expected 1 to 5, .* got {count}"):
            lanes.shares(count)
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(ValueError, match="--jobs: expected 1 where a system"):
        lanes.shares(2)


def test_each_lane_has_its_cores(lanes: ModuleType) -> None:
    both, seen = threading.Barrier(2, timeout=60), []

    def task() -> None:
        both.wait()
        seen.append(os.sched_getaffinity(0))

    before = os.sched_getaffinity(0)
    lanes.run_in_lanes([task] * 4, 2)
    assert os.sched_getaffinity(0) == before
    assert len(seen) == 4
    assert {frozenset(cores) for cores in seen} == {frozenset(c) for c in lanes.shares(2)}


def test_what_has_not_begun_ends_with_an_error(lanes: ModuleType) -> None:
    done: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lanes.run_in_lanes([fail, *[lambda: done.append(1)] * 10_000], 1)
    assert len(done) < 10_000


def test_a_lock_is_waited_for_until_there_is_no_need(lanes: ModuleType) -> None:
    locks, needless, told = lanes.Locks(), threading.Event(), []

    def other() -> None:
        with locks.hold("key", unless=needless.is_set) as held:
            told.append(held)

    with locks.hold("key") as mine, locks.hold("key") as again:
        assert mine
        assert again
        waiting = threading.Thread(target=other)
        waiting.start()
        waiting.join(0.2)
        assert told == []
        needless.set()
        waiting.join(60)
    assert told == [False]
    other()
    assert told == [False, True]


def test_rows_side_by_side_give_what_they_give_in_turn(
    modules: dict[str, ModuleType], where: list[str], fake: Fake, tmp_path: Path
) -> None:
    main, cores = modules["experiments"].main, os.sched_getaffinity(0)
    dense: list[str] = []
    bench, train = fake.bench, fake.train
    timing = threading.Lock()

    def slow(words: list[str]) -> dict[str, Any]:
        out = Path(dict(pairwise(words))["--out"])
        if not (out / "round-00" / "metrics.json").exists():
            dense.append(out.name)
            time.sleep(0.2)
        return train(words)

    def alone(words: list[str]) -> dict[str, Any]:
        assert timing.acquire(blocking=False)
        try:
            assert os.sched_getaffinity(0) == cores
            return bench(words)
        finally:
            timing.release()

    fake.bench, fake.train = alone, slow  # type: ignore[method-assign]
    assert main([*ROWS, "--jobs", "2", *where]) == 0
    together = {name: kept(where, name) for name in ROWS}
    # `dense` of two seeds, and of each seed one dense round for all the others
    assert len(dense) == 4
    assert (tmp_path / "runs" / "element-99-seed0.log").exists()
    in_turn = list(where)
    for option in ("--results", "--runs"):
        in_turn[in_turn.index(option) + 1] = str(tmp_path / "again" / option.strip("-"))
    assert main([*ROWS, *in_turn]) == 0
    assert together == {name: kept(in_turn, name) for name in ROWS}


def test_dense_rounds_come_first(modules: dict[str, ModuleType], rows: Path) -> None:
    """Rows that would wait for another one's dense round are not next to it."""
    found = modules["experiment_rows"].load_rows(rows)
    names = ("pair", "reinit-90", "dense", "element-90", "element-99")
    pairs = [(name, seed) for seed in (0, 1) for name in names]
    got = modules["experiments"].apart(found, pairs)
    assert got[:4] == [("dense", 0), ("element-90", 0), ("dense", 1), ("element-90", 1)]
    assert got[4:] == [pair for pair in pairs if pair not in got[:4]]


def test_a_failure_in_a_lane(
    modules: dict[str, ModuleType],
    where: list[str],
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake.failing = "evaluate"
    names = ["element-99", "pair"]
    assert modules["experiments"].main([*names, "--jobs", "2", *where]) == 1
    assert [words for words in fake.commands if words[0] == "bench"] == []
    assert kept(where, "pair")["runs"]["0"]["compare"]["total"]["corrected"] is not None
    assert "experiments: failed: element-99\n" in capsys.readouterr().err
