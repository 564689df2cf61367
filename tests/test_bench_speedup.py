"""benchmarks/speedup.py: the table and the picture, from results that exist."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def speedup() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "speedup.py"
    spec = importlib.util.spec_from_file_location("benchmark_speedup", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(sparsity: float, pattern: str, gain: float) -> dict[str, Any]:
    ours = {"engine": "sparse-ddpm", "dtype": "float32", "batch": 1, "step_ms": 10.0 / gain}
    ratio = {"batch": 1, "vs_fastest_fp32_peer": gain, "fastest_fp32_peer": "openvino"}
    ratio |= {"vs_fastest_peer": None, "fastest_peer": None}
    about = {"model": "small", "threads": 2, "sparsity": sparsity, "pattern": pattern}
    return {**about, "results": [ours], "ratios": [ratio]}


def test_results_that_exist_are_kept(
    speedup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, made in (
        ("small-0-element", result(0.0, "element", 0.8)),
        ("small-0.9-element", result(0.9, "element", 4.0)),
        ("small-0.9-vector16", result(0.9, "vector:16", 8.0)),
        ("mnist", result(0.95, "element", 5.0)),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    picture = tmp_path / "speedup.png"
    where = ["--results", str(tmp_path), "-o", str(picture)]
    which = ["--model", "small", "--sparsity", "0", "0.9", "--tickets", "mnist", "--resume"]
    assert speedup.main([*which, *where]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 4
    assert "| small-0.9-vector16 | 1 | 1.25 (float32) | 8.00x openvino | - |" in lines


def test_only_what_exists_is_shown(
    speedup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--results", str(tmp_path), "-o", str(tmp_path / "speedup.png")]
    assert speedup.main(["--model", "small", "--kept", *where]) == 1
    assert "small-0.9-vector16" in capsys.readouterr().err
    made = json.dumps(result(0.9, "vector:16", 8.0))
    (tmp_path / "small-0.9-vector16.json").write_text(made)
    assert speedup.main(["--model", "small", "--kept", *where]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 1


def test_a_bench_that_fails_is_one_error(
    speedup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--results", str(tmp_path), "-o", str(tmp_path / "speedup.png")]
    arguments = ["--model", "small", "--sparsity", "0.9", "--pattern", "element", *where]
    assert speedup.main([*arguments, "--", "--peers", "tensorrt"]) == 1
    assert "bench of small-0.9-element ended with status 2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
