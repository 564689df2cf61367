"""benchmarks/cost_model.py: every G of every case, and the choice the plan makes; no speeds."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sparse_ddpm.engine.costs import GROUPS


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
    cost_model: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cost.json"
    tickets = ["small:0:element", "small:0.95:element"]
    arguments = ["--rounds", "1", "--batch", "1", "--layers", "--json", str(file)]
    assert cost_model.main([*tickets, *arguments]) == 0
    found = json.loads(file.read_text())["layers"]
    assert [ticket for ticket in tickets for _ in range(len(found) // 2)] == [
        layer["ticket"] for layer in found
    ]
    assert found[0]["name"] == "init_conv"
    for layer in found:
        measured = layer["measured_us"]
        copied = [1, 3][layer["size"] == 3]
        halo = 0.0 if layer["size"] == 1 else layer["halo_us"]
        assert (halo > 0.0) is (layer["size"] > 1)
        assert set(measured) == {
            f"{group}{way}" for group in GROUPS for way in ("", "c")[: 2 if copied > 1 else 1]
        }
        assert min(measured.values()) > 0.0
        assert (layer["copies"] > 0) or layer["size"] != 3
        assert layer["entries"]["1"] >= layer["entries"]["16"]
        all_in = {way: time + halo * ("c" not in way) for way, time in measured.items()}
        assert layer["best"] == min(all_in, key=lambda way: all_in[way])
        estimated = layer["estimated"]
        assert layer["chosen"].rstrip("c") == min(estimated, key=lambda group: estimated[group])
        assert estimated[layer["chosen"].rstrip("c")] == 1.0
        loss = all_in[layer["chosen"]] / all_in[layer["best"]] - 1.0
        assert layer["loss"] == pytest.approx(loss)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 + 2 + len(found) + 1
    assert f"of {len(found)} layers" in out[-1]


def test_a_wrong_ticket_is_one_error(
    cost_model: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cost_model.main(["large:0.9:element"]) == 1
    assert "expected MODEL:SPARSITY:PATTERN" in capsys.readouterr().err
