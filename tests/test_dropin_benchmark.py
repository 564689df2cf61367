"""benchmarks/dropin.py, on a small network: same images, and a row for each setting."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="diffusers needs torch")
pytest.importorskip("diffusers", reason="diffusers' pipelines are the peers here")

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "dropin.py"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_dropin", PATH)
    assert spec is not None
    assert spec.loader is not None
    dropin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dropin)
    report = tmp_path / "report.json"
    command = "--model tiny --sparsity 0.9 --pattern vector:16 --batch 1 2 --turns 1 --threads 1"
    assert dropin.main([*command.split(), "--json", str(report)]) == 0
    result = json.loads(report.read_text())
    assert result["schema"] == 1
    assert [row["batch"] for row in result["results"]] == [1, 2]
    for row in result["results"]:
        assert row["sparsity"] == pytest.approx(0.9, abs=0.03)
        assert row["output_error"] < 1e-5
        assert row["step_ms"] > 0
        assert row["ratio"] == pytest.approx(row["diffusers_step_ms"] / row["step_ms"])
    assert "holds: images differ" in capsys.readouterr().out
