"""benchmarks/gpu_suite.py: a dry run of everything, and what keeps the results of a real one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "benchmarks" / "gpu_suite.py"
SECTIONS = ("correctness", "step", "ceilings", "compiled", "layers")


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUITE.parent))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """From another folder, with nothing of ours on the path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(SUITE), *arguments],
        cwd="/",
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def rows_of(folder: Path, section: str) -> dict[str, Any]:
    content = json.loads((folder / f"{section}.json").read_text())
    assert content["schema"] == 1
    assert content["section"] == section
    return {row["key"]: row for row in content["rows"]}


@pytest.mark.slow
def test_dry_run_of_everything(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    pytest.importorskip("matplotlib")
    done = run("--out", str(tmp_path), "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {section: rows_of(tmp_path, section) for section in SECTIONS}
    for section, rows in found.items():
        assert rows, section
        assert not [key for key, row in rows.items() if "failed" in row], done.stderr
        for key, row in rows.items():
            for name, engine in row.get("engines", {}).items():
                # torch's block-sparse kernels exist on a GPU alone, and say so.
                assert ("failed" in engine) == name.startswith("torch bsr"), (key, name, engine)
                for timing in (engine, engine.get("warm", {}), engine.get("cold", {})):
                    assert timing.get("measured") in (None, False)
    kernels = {key.split(":")[0] for key in found["correctness"]}
    assert kernels >= {"panel_conv", "element_conv", "group_norm", "channel_norm", "engine"}
    assert kernels >= {"attention", "linear_attention", "sampler_update", "data"}
    about = json.loads((tmp_path / "step.json").read_text())["about"]
    assert "dry run" in about["device"]["name"]
    assert {"torch", "triton", "python"} <= set(about["versions"])
    assert {"commit", "date", "command"} <= set(about)
    assert "no time below is a measurement" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.glob("interpreter-triton-*.json"))
    assert not list(tmp_path.glob(".*"))

    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    again = run("--out", str(tmp_path), "--dry-run", "--section", "ceilings", "compiled")
    assert again.returncode == 0
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert kept == before


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("--out", str(tmp_path))
    assert done.returncode == 1
    assert "gpu_suite: device: expected a GPU" in done.stderr


ABOUT = {"device": {"name": "one"}, "versions": {"torch": "2"}, "commit": "c"}


def make_results(folder: Path, section: str = "step", **about: Any) -> Any:
    from gpu.budget import Budget
    from gpu.results import Results

    return Results(folder, section, {**ABOUT, **about}, Budget.minutes(1.0))


def test_results_are_kept_while_their_sources_are_the_same(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"value": len(made)}

    assert make_results(tmp_path).measure("a", "s1", make)["value"] == 1
    assert make_results(tmp_path).measure("a", "s1", make)["value"] == 1
    assert make_results(tmp_path).measure("a", "s2", make)["value"] == 2
    assert make_results(tmp_path).measure("a", "s2", make, again=True)["value"] == 3
    assert make_results(tmp_path, versions={"torch": "3"}).measure("a", "s2", make)["value"] == 4


def test_a_failure_is_a_row_and_is_not_tried_again(tmp_path: Path) -> None:
    from gpu.results import forget

    def wrong() -> dict[str, Any]:
        raise ValueError("no")

    row = make_results(tmp_path).measure("a", "s", wrong)
    assert row["failed"] == "ValueError: no"
    make_results(tmp_path).measure("b", "s", lambda: {"value": 1})
    assert "failed" in make_results(tmp_path).measure("a", "s", lambda: {"value": 1})
    forget(tmp_path / "step.json", failed_only=True)
    assert set(make_results(tmp_path).rows) == {"b"}
    forget(tmp_path / "step.json", failed_only=False)
    assert not make_results(tmp_path).rows


def test_results_of_another_device_are_not_overwritten(tmp_path: Path) -> None:
    from sparse_ddpm.errors import ConfigError

    make_results(tmp_path).measure("a", "s", lambda: {"value": 1})
    with pytest.raises(ConfigError, match=r"expected results of 'two' .* got 'one'"):
        make_results(tmp_path, device={"name": "two"})


def test_a_budget_ends_between_measurements(tmp_path: Path) -> None:
    from gpu.budget import OutOfTime

    results = make_results(tmp_path)
    results.measure("a", "s", lambda: {"value": 1})
    with pytest.raises(OutOfTime, match="s left, 100 s needed"):
        results.measure("b", "s", lambda: {"value": 1}, seconds=100.0)
    assert set(make_results(tmp_path).rows) == {"a"}


CHILD = """
import json, os, sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {benchmarks!r}]
from gpu.budget import Budget
from gpu.results import Results
folder = Path({folder!r})
results = Results(folder, "step", {about!r}, Budget.minutes(1.0))
def bad():
    {bad}
for key in ("a", "b", "c"):
    results.measure(key, "s", bad if key == "b" else lambda: {{"value": 1}}, limit={limit})
sys.exit({status})
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Callable[..., int]:
    def supervise(bad: str, *, limit: float = 60.0, status: int = 0, seconds: float = 20.0) -> int:
        from gpu import supervise as module
        from gpu.budget import Budget

        code = CHILD.format(
            root=str(ROOT),
            benchmarks=str(SUITE.parent),
            folder=str(tmp_path),
            about=ABOUT,
            bad=bad,
            limit=limit,
            status=status,
        )
        budget = Budget(time.time() + seconds)
        command = [sys.executable, "-c", code]
        return module.supervise(command, tmp_path, budget, lambda text: None, poll=0.02)

    return supervise


@pytest.mark.parametrize(
    ("bad", "limit", "reason"),
    [
        ("os.kill(os.getpid(), 11)", 60.0, "the process ended with signal 11"),
        ("os._exit(7)", 60.0, "the process ended with status 7"),
        ("time.sleep(60)", 0.2, "took longer than its limit"),
    ],
)
def test_a_measurement_that_kills_its_process_costs_one_row(
    supervised: Callable[..., int], tmp_path: Path, bad: str, limit: float, reason: str
) -> None:
    assert supervised(bad, limit=limit) == 0
    rows = rows_of(tmp_path, "step")
    assert list(rows) == ["a", "b", "c"]
    assert rows["b"]["failed"] == reason
    assert rows["a"]["value"] == rows["c"]["value"] == 1
    assert not list(tmp_path.glob(".*"))


def test_a_child_that_never_gets_going_is_not_started_for_ever(
    supervised: Callable[..., int],
) -> None:
    assert supervised("return {}", status=1) == 1


def test_a_child_past_the_budget_is_ended(
    supervised: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu import supervise

    monkeypatch.setattr(supervise, "GRACE", 0.2)
    assert supervised("time.sleep(60)", seconds=1.0) == supervise.OUT_OF_TIME
    assert list(rows_of(tmp_path, "step")) == ["a"]


def test_floors_are_met_missed_or_not_measured() -> None:
    from gpu.report import floors

    def row(**times: float) -> dict[str, Any]:
        return {"engines": {name.replace("_", " "): {"us": us} for name, us in times.items()}}

    step = {
        "vector:32 0.95, batch 16": row(ours_bfloat16=10.0, eager=60.0),
        "vector:32 0.99, batch 16": row(ours_bfloat16=10.0, eager=60.0),
        "dense, batch 16": row(ours_bfloat16=30.0, eager=60.0),
        "dense, batch 16, tuned": row(ours_tuned_bfloat16=20.0, eager=60.0),
        "element 0.99, batch 16": row(ours_bfloat16=10.0, eager=60.0),
        "element 0.99, batch 1": {"engines": {"ours bfloat16": {"failed": "no"}}},
    }
    compiled = {
        key: {"engines": {"compile max-autotune": {"us": us}}}
        for key, us in (
            ("vector:32 0.95, batch 16", 20.0),
            ("vector:32 0.99, batch 16", 20.0),
            ("dense, batch 16", 20.0),
        )
    }
    lines = {line.split("|")[1].strip(): line for line in floors(step, compiled) if "|" in line}
    assert "2.00x over compile max-autotune, floor 2x: pass" in lines["vector:32 0.95"]
    assert "2.00x over compile max-autotune, floor 2.5x: MISS" in lines["vector:32 0.99"]
    assert "1.00x over compile max-autotune, floor 0.8x: pass" in lines["dense"]
    assert "6.00x over eager, floor 2x: torch.compile not measured" in lines["element 0.99"]
    assert "not measured (floor 1.5x)" in lines["element 0.99"]


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    from gpu.report import write_summary

    write_summary(tmp_path)
    assert "Nothing has been measured." in (tmp_path / "summary.md").read_text()
    assert not (tmp_path / "summary.png").exists()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are seen in /proc")
def test_an_interruption_writes_the_summary_and_leaves_no_process(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    suite = subprocess.Popen(
        [sys.executable, str(SUITE), "--out", str(tmp_path), "--dry-run"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60.0
    while not (tmp_path / "correctness.json").exists() and time.monotonic() < end:
        time.sleep(0.05)
    suite.send_signal(signal.SIGTERM)
    assert suite.wait(timeout=30.0) == 1
    assert "## Correctness" in (tmp_path / "summary.md").read_text()
    assert not list(tmp_path.glob(".*"))
    left = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            left += [path] if str(tmp_path).encode() in path.read_bytes() else []
    assert not left
