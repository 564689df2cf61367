"""benchmarks/soak.py: what it reports and how it judges; no speed is asserted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "soak.py"
    spec = importlib.util.spec_from_file_location("benchmark_soak", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(rates: list[float], rss: list[float] | None = None) -> dict[str, Any]:
    """A process that samples two kinds of steps of 0.1 s and 0.4 s (alone), at ``rates`` of that.

    Odd intervals are of one kind, even ones of the other, as turns are.
    """
    intervals = []
    for index, rate in enumerate(rates):
        small = index % 2 == 0
        cost = 0.1 if small else 0.4
        steps = 10.0 * rate / cost
        spent = {"small": 10.0 * small, "large": 10.0 * (not small)}
        made = {"small": steps * small, "large": steps * (not small)}
        interval = {"wall_s": 10.0 * (index + 1), "cpu_s": 20.0 * rate, "steps": made}
        memory = 100.0 if rss is None else rss[index]
        intervals.append({**interval, "seconds": spent, "rss_mib": memory})
    return {"start_rss_mib": 100.0, "intervals": intervals}


def verdicts(found: dict[str, Any]) -> list[bool]:
    return [claim["holds"] for claim in found["claims"]]


def test_a_fair_share_holds(soak: ModuleType) -> None:
    found = soak.judge(report([1.0] * 2), [report([0.25] * 6) for _ in range(4)])
    assert found["total_rate"] == pytest.approx(1.0)
    assert found["least_share"] == pytest.approx(1.0)
    assert found["last_over_first_third"] == pytest.approx(1.0)
    assert found["rate_per_core"] == pytest.approx(1.0)
    assert found["cores_used"] == pytest.approx(2.0)
    assert found["growth_mib"] == [0.0] * 4
    assert found["step_ms"]["large"] == pytest.approx({"alone": 400.0, "together": 1600.0})
    assert verdicts(found) == [True] * 4


@pytest.mark.parametrize(
    ("failing", "together"),
    [
        (0, [report([0.2] * 6)] * 4),
        (1, [report([0.4] * 6)] * 2 + [report([0.2] * 6)] * 2),
        (2, [report([0.3, 0.3, 0.25, 0.25, 0.2, 0.2])] * 4),
        (3, [report([0.25] * 6)] * 3 + [report([0.25] * 6, [100, 101, 102, 103, 104, 105.0])]),
    ],
)
def test_each_claim_can_fail(soak: ModuleType, failing: int, together: list[Any]) -> None:
    found = soak.judge(report([1.0] * 2), together)
    assert verdicts(found) == [index != failing for index in range(4)]


def test_what_happens_outside_the_common_time_does_not_count(soak: ModuleType) -> None:
    longer = report([0.25] * 6)
    longer["intervals"].append({**report([9.0] * 7)["intervals"][-1]})
    found = soak.judge(report([1.0] * 2), [longer, *[report([0.25] * 6)] * 3])
    assert found["total_rate"] == pytest.approx(1.0)


def test_processes_report_what_they_did(
    soak: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "soak.json"
    arguments = ["--processes", "2", "--minutes", "0.02", "--threads", "1", "--report", "0.4"]
    status = soak.main([*arguments, "--synthetic", "small:0.99:element", "--json", str(file)])
    found = json.loads(file.read_text())
    holds = verdicts(found)
    assert status == (0 if all(holds) else 1)
    assert (found["schema"], found["processes"], found["threads"]) == (1, 2, 1)
    assert len(found["together"]) == 2
    jobs = {"mnist x1", "mnist x16", "small-0.99-element x1", "small-0.99-element x16"}
    for process in (found["alone"], *found["together"]):
        intervals = process["intervals"]
        assert process["start_rss_mib"] > 10.0
        assert intervals[-1]["wall_s"] >= 1.2
        times = [interval["wall_s"] for interval in intervals]
        assert times == sorted(times)
        for interval in intervals:
            assert set(interval["steps"]) == set(interval["seconds"]) == jobs
            assert all(steps % soak.STEPS == 0 for steps in interval["steps"].values())
            assert sum(interval["steps"].values()) > 0
            assert interval["rss_mib"] > 10.0
        assert all(sum(i["steps"][job] for i in intervals) > 0 for job in jobs)
        spent = sum(sum(interval["seconds"].values()) for interval in intervals)
        assert spent <= times[-1]
        assert sum(interval["cpu_s"] for interval in intervals) > 0.0
    assert set(found["step_ms"]) == jobs
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("2 processes of 1 threads")
    assert [line.split(":")[0] for line in out[-4:]] == ["holds" if h else "FAILS" for h in holds]


def test_a_worker_that_dies_is_one_error(
    soak: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "shipped_ticket_path", lambda: Path("missing.pt"))
    arguments = ["--processes", "1", "--minutes", "0.01", "--synthetic", "small:0.99:element"]
    assert soak.main(arguments) == 2
    assert "ended with status 2 before it sampled" in capsys.readouterr().err
