"""benchmarks/accounts.py: every case of every part, kept and judged; no speeds."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sparse_ddpm.accounting import reference_ceilings
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Conv
from sparse_ddpm.ticket import PRESETS, synthetic_ticket

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "accounts.py"
    spec = importlib.util.spec_from_file_location("benchmark_accounts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BURST_S", 0.0)
    monkeypatch.setattr(module, "measure_ceilings", reference_ceilings)
    return module


def run(accounts: ModuleType, folder: Path, *arguments: str) -> int:
    more = ["--rounds", "1", "--batch", "1", "--threads", "1", "--results", str(folder)]
    return int(accounts.main([*arguments, "--tickets", "small:0.95:element", *more]))


def test_steps_and_layers_are_measured_and_kept(
    accounts: ModuleType, tmp_path: Path, capsys: Capture
) -> None:
    run(accounts, tmp_path, "steps", "break-even")
    text = capsys.readouterr()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["break-even-small-0.95-element-1-1.json", "steps-small-0.95-element-1-1.json"]
    layers, step = (json.loads((tmp_path / name).read_text()) for name in names)
    assert step["error"] == pytest.approx(step["predicted_ms"] / step["measured_ms"] - 1.0)
    assert step["steps"] >= 4
    assert {layer["runs"] for layer in layers["layers"]} <= {"sparse", "dense"}
    for layer in layers["layers"]:
        assert layer["planned_us"] > 0.0
        rival = layer["dense_us" if layer["runs"] == "sparse" else "sparse_us"]
        assert layer["loss"] == pytest.approx(max(0.0, layer["planned_us"] / rival - 1.0))
    before = [(tmp_path / name).read_text() for name in names]
    run(accounts, tmp_path, "steps", "break-even", "--resume")
    assert capsys.readouterr().out == text.out
    run(accounts, tmp_path, "steps", "break-even", "--kept")
    assert [(tmp_path / name).read_text() for name in names] == before


def test_memory(accounts: ModuleType, tmp_path: Path, capsys: Capture) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("asks Linux for its memory")
    run(accounts, tmp_path, "memory")
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())
    assert found["measured_bytes"] > found["arena_bytes"]
    assert abs(found["error"]) < 0.25  # of a few MiB; the benchmark judges larger tickets
    assert "| small:0.95:element, 1 |" in capsys.readouterr().out


def test_nothing_kept_is_nothing_shown(
    accounts: ModuleType, tmp_path: Path, capsys: Capture
) -> None:
    assert run(accounts, tmp_path, "--kept") == 0
    assert "small" not in capsys.readouterr().out


def test_the_tickets_are_those_wanted(accounts: ModuleType) -> None:
    assert len(accounts.STEPS) == len(set(accounts.STEPS)) == 12
    assert {text.split(":")[0] for text in accounts.STEPS} == {"paper", "small"}


def test_judges(accounts: ModuleType) -> None:
    def steps(*errors: float) -> bool:
        return bool(accounts.judge_steps([{"error": error} for error in errors])[0])

    assert steps(0.1, -0.14, 0.3)
    assert not steps(0.1, 0.1, -0.31)
    assert not steps(0.16, -0.16, 0.0)

    def layers(*losses: float) -> bool:
        found: list[dict[str, Any]] = [{"layers": [{"loss": loss} for loss in losses]}]
        return bool(accounts.judge_break_even(found)[0])

    assert layers(*[0.0] * 18, 0.02, 0.1)
    assert not layers(*[0.0] * 19, 0.11)
    assert not layers(*[0.0] * 18, 0.03, 0.03)
    assert accounts.judge_memory([{"error": -0.1}])[0]
    assert not accounts.judge_memory([{"error": 0.0}, {"error": 0.11}])[0]


def test_a_densified_program_is_the_same_network(accounts: ModuleType) -> None:
    program = lower(synthetic_ticket(PRESETS["small"], 0.95))
    dense = accounts.densified(program)
    convs = [op for op in dense.operations if isinstance(op, Conv)]
    assert all(op.weight.nnz == op.weight.shape[0] * op.weight.shape[1] for op in convs)
    x = np.random.default_rng(0).standard_normal((1, 1, 32, 32)).astype(np.float32)
    outputs = []
    for one in (program, dense):
        engine = ReferenceEngine(one)
        engine.set_schedule(np.array([3.0]))
        outputs.append(engine.run(x, 0))
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-2 * np.abs(outputs[0]).max()


def test_usage(accounts: ModuleType, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        accounts.main(["speed"])
    assert stop.value.code == 2
    assert accounts.main(["steps", "--tickets", "large:0.9:element"]) == 1
    assert "expected MODEL:SPARSITY:PATTERN" in capsys.readouterr().err
