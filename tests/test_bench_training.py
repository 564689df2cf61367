"""The benchmark of training steps runs and writes what it measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch", reason="the trainer needs torch")

from sparse_ddpm.model.sparse import missing
from sparse_ddpm.ticket.config import PRESETS
from tests.lottery_tiny import TINY

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "training.py"


@pytest.fixture
def benchmark_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_training", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_rows_of_all_kernels(
    benchmark_module: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(PRESETS, "small", TINY)
    target = tmp_path / "training.json"
    words = ["--batch", "3", "--threads", "1", "--turns", "2", "--densities", "1", "0.1"]
    assert (
        benchmark_module.main([*words, "--patterns", "element", "vector:4", "--json", str(target)])
        == 0
    )
    report = json.loads(target.read_text())
    names = [row["name"] for row in report["rows"]]
    assert names[:3] == ["torch-bf16", "torch-float32", "element 1"]
    assert names[3:] == ["element 0.1", "vector:4 1", "vector:4 0.1"]
    for row in report["rows"]:
        assert row["seconds"] > 0.0
        assert set(row["over"]) == {"torch-bf16", "torch-float32"}
    assert report["rows"][0]["over"]["torch-bf16"] == pytest.approx(1.0)
    assert capsys.readouterr().out.count("\n") == 2 + len(names)
