"""benchmarks/cost_model.py: every G of every case, and the choice the plan makes; no speeds."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sparse_ddpm.engine.panels import GROUPS


@pytest.fixture(scope="module")
def cost_model() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "cost_model.py"
    spec = importlib.util.spec_from_file_location("benchmark_cost_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_group_is_timed_beside_the_choice(
    cost_model: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cost_model, "LAYERS", ((16, 4, 3),))
    file = tmp_path / "cost.json"
    arguments = ["--rounds", "1", "--density", "1", "0.1", "--json", str(file)]
    assert cost_model.main(arguments) == 0
    cases = json.loads(file.read_text())["cases"]
    kinds = [(case["pattern"], case["density"], case["batch"]) for case in cases]
    dense = [("-", 1.0, 1), ("-", 1.0, 16)]
    assert kinds == [*dense, *((p, 0.1, b) for p in ("element", "vector:16") for b in (1, 16))]
    for case in cases:
        measured = {int(group): time for group, time in case["measured_us"].items()}
        estimated = {int(group): time for group, time in case["estimated"].items()}
        assert tuple(measured) == tuple(estimated) == GROUPS
        assert min(measured.values()) > 0.0
        assert case["best"] == min(measured, key=lambda group: measured[group])
        assert case["chosen"] == min(estimated, key=lambda group: estimated[group])
        assert estimated[case["chosen"]] == 1.0
        assert case["loss"] == pytest.approx(
            measured[case["chosen"]] / measured[case["best"]] - 1.0
        )
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 + len(cases) + 1
    assert f"of {len(cases)} cases" in out[-1]
