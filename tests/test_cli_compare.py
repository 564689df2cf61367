"""``sparse-ddpm compare``: table, JSON, picture, errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sparse_ddpm.cli.main import main
from sparse_ddpm.ticket import PRESETS, UNetConfig, save_ticket, synthetic_ticket

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=2, heads=1, dim_head=4)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "one.safetensors", tmp_path / "two.pt"]
    for seed, path in enumerate(paths):
        save_ticket(synthetic_ticket(TINY, 0.9, seed=seed), path)
    return [str(path) for path in paths]


def test_json_has_every_level(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *pair, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert [about["ticket"] for about in found["tickets"]] == pair
    assert found["tickets"][0]["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert [row["name"] for row in found["stages"]] == [
        *("down.0", "down.1", "mid", "up.0", "up.1", "final_block")
    ]
    assert sum(row["common"] for row in found["layers"]) == found["total"]["common"]
    total = found["total"]
    expected = (total["jaccard"] - total["chance"]) / (1 - total["chance"])
    assert total["corrected"] == pytest.approx(expected)
    assert abs(total["score"]) < 4
    assert all(math.isfinite(row["corrected"]) for row in found["blocks"])


def test_the_table_marks_what_chance_does_not_explain(
    pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", pair[0], pair[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    last = next(line for line in lines if line.startswith("all "))
    assert last.split()[5:9:3] == ["1.0000", "1.0000"]
    assert last.endswith("*")
    assert main(["compare", *pair]) == 0
    last = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("all "))
    assert not last.endswith("*")


def test_a_picture(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "similarity.png"
    assert main(["compare", *pair, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["compare", *pair, "--plot", str(tmp_path / "similarity.txt")]) == 1
    assert "expected a suffix among .png" in capsys.readouterr().err


def test_other_architectures_are_one_error(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.pt"
    save_ticket(synthetic_ticket(PRESETS["small"], 0.9), path)
    assert main(["compare", pair[0], str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "architecture.dim: expected 8 as the first ticket's, got 32." in err


def test_two_tickets_are_needed(pair: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", pair[0]])
    assert stop.value.code == 2
