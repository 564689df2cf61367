"""benchmarks/experiments.py: rows, commands, and what is kept."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from experiment_rig import COMMON, ROWS, Fake, kept, page

from sparse_ddpm.cli.main import build_parser
from sparse_ddpm.lottery.settings import Settings


def test_every_row_of_the_project_is_a_run_that_train_accepts(
    modules: dict[str, ModuleType],
) -> None:
    experiments = modules["experiments"]
    rows = modules["experiment_rows"].load_rows()
    places = experiments.Places(Path("data"), Path("runs"), Path("nowhere"), dry=True)
    names = {item.name for item in dataclasses.fields(Settings)}
    commands: list[list[str]] = []
    runner = experiments.Runner(rows, places)
    runner._command = commands.append
    for row in rows.values():
        for seed in row.seeds:
            runner.run(row.name, seed, ("train", "compare"), ())
    trained = [words for words in commands if words[0] == "train"]
    assert len(trained) == sum(len(row.seeds) for row in rows.values() if not row.pair)
    parser = build_parser()
    for words in commands:
        chosen = vars(parser.parse_args(words))
        if words[0] == "train":
            Settings(**{name: value for name, value in chosen.items() if name in names})
    assert {row.train.get("sparsity") for row in rows.values()} >= {0.9, 0.95, 0.98, 0.99}


def test_budgets_are_equal_or_said_to_differ(modules: dict[str, ModuleType], rows: Path) -> None:
    load_rows = modules["experiment_rows"].load_rows
    assert {row.steps() for row in load_rows(rows).values() if row.train} == {30}
    (rows / "longer.toml").write_text(
        'title = "x"\ntables = ["matching"]\n[train]\nsteps = 6\nsparsity = 0.5\n'
    )
    with pytest.raises(ValueError, match="row longer: steps in all: expected the budget of 30"):
        load_rows(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('title = "x"\ntables = ["matching"]\nstep = 3\n[train]\n', "keys among .* got step"),
        ('title = "x"\ntables = ["other"]\n[train]\n', "tables: expected some of"),
        ('title = "x"\ntables = ["control"]\nof = "nothing"\ncontrol = "reinit"\n', "'nothing'"),
        ('title = "x"\ntables = ["control"]\nof = "dense"\n', "of and control, or a pair"),
        ('title = "x"\ntables = ["similarity"]\npair = ["a/0", "b/0"]\n', "ticket:ROW/SEED"),
        ('title = "x"\ntables = ["matching"]\n', "one of train, of, pair"),
        ('title = "x"\ntables = ["matching"]\nremedy = ["dense"]\n[train]\n', "remedy: expected"),
        ('title = "x"\ntables = ["matching"]\nremedy = ["no", "x"]\n[train]\n', "name, got 'no'"),
        ("title = \n", "a TOML file"),
    ],
)
def test_a_bad_row_is_one_error(
    modules: dict[str, ModuleType], rows: Path, text: str, message: str
) -> None:
    (rows / "bad.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        modules["experiment_rows"].load_rows(rows)


def test_a_row_is_run_once_and_its_result_names_no_place(
    modules: dict[str, ModuleType], where: list[str], fake: Fake
) -> None:
    assert modules["experiments"].main(["element-90", "--samples", "64", *where]) == 0
    assert [words[0] for words in fake.commands] == ["train", "inspect", "evaluate", "bench"] * 2
    result = kept(where, "element-90")
    assert result["schema"] == 2
    assert sorted(result["runs"]) == ["0", "1"]
    run = result["runs"]["0"]
    assert run["options"]["sparsity"] == 0.9
    assert run["train"]["rounds"][0]["held_out_loss"] == 0.1
    assert run["evaluate"]["samples"] == 64
    assert run["evaluate"]["reference"] == "mnist:DIR/mnist"
    assert run["bench"][0]["ticket"] == "runs/element-90-seed0/ticket.pt"
    assert run["inspect"]["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert "operations" not in run["inspect"]
    assert str(Path(where[1]).parent) not in json.dumps(result)
    fake.commands.clear()
    assert modules["experiments"].main(["element-90", *where]) == 0
    assert fake.commands == []
    again = ["element-90", "--again", "bench", "--seeds", "1", *where]
    assert modules["experiments"].main(again) == 0
    assert [words[0] for words in fake.commands] == ["bench"]
    runs = kept(where, "element-90")["runs"]
    assert [len(runs[seed]["bench"]) for seed in ("0", "1")] == [1, 2]


def test_what_is_trained_anew_loses_what_was_found_before(
    modules: dict[str, ModuleType], where: list[str], fake: Fake
) -> None:
    main = modules["experiments"].main
    assert main(["element-99", *where]) == 0
    whole = kept(where, "element-99")["runs"]["0"]
    again = ["element-99", "--stages", "train", "--again", "train", *where]
    assert main(again) == 0
    assert kept(where, "element-99")["runs"]["0"] == whole
    train = fake.train

    def other(words: list[str]) -> dict[str, Any]:
        found = train(words)
        found["rounds"][0]["held_out_loss"] = 0.3
        return found

    fake.train = other  # type: ignore[method-assign]
    assert main(again) == 0
    assert list(kept(where, "element-99")["runs"]["0"]) == ["options", "train"]


def test_a_result_of_another_schema_is_one_error(
    modules: dict[str, ModuleType],
    where: list[str],
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert modules["experiments"].main(["element-99", *where]) == 0
    path = Path(where[where.index("--results") + 1]) / "element-99.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 1'))
    assert modules["experiments"].main(["element-99", *where]) == 1
    assert "element-99.json: schema: expected 2, got 1" in capsys.readouterr().err


def test_a_failure_keeps_what_was_done_and_stops_no_other_row(
    modules: dict[str, ModuleType],
    where: list[str],
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake.failing = "evaluate"
    assert modules["experiments"].main(["element-99", "pair", *where]) == 1
    assert list(kept(where, "element-99")["runs"]["0"]) == ["options", "train", "inspect"]
    assert kept(where, "pair")["runs"]["0"]["compare"]["total"]["corrected"] is not None
    assert "experiments: failed: element-99" in capsys.readouterr().err
    fake.failing = ""
    fake.commands.clear()
    assert modules["experiments"].main(["element-99", *where]) == 0
    assert [words[0] for words in fake.commands] == ["evaluate", "bench"]


def test_tickets_that_a_row_needs_are_trained_first(
    modules: dict[str, ModuleType], where: list[str], fake: Fake
) -> None:
    assert modules["experiments"].main(["similarity-90", "reinit-90", *where]) == 0
    trained = [words for words in fake.commands if words[0] == "train"]
    outs = [Path(words[words.index("--out") + 1]).name for words in trained]
    assert outs == [
        *("element-90-seed0", "element-90-seed1", "similarity-90-seed0", "element-90-seed0")
    ]
    at = trained[2].index("--similar-to")
    tickets = [Path(word).relative_to(Path(where[-1])) for word in trained[2][at + 1 : at + 3]]
    assert [str(path) for path in tickets] == [
        *("element-90-seed0/ticket.pt", "element-90-seed1/ticket.pt")
    ]
    assert trained[3][-2:] == ["--control", "reinit"]
    judged = [words[1] for words in fake.commands if words[0] == "evaluate"]
    assert any(path.endswith("element-90-seed0/control-reinit/ticket.pt") for path in judged)
    run = kept(where, "reinit-90")["runs"]["0"]["train"]
    assert run == {"controls": [{"control": "reinit", "held_out_loss": 0.2}]}


def test_a_narrower_network_is_timed_beside_the_wide_one(
    modules: dict[str, ModuleType], where: list[str], rows: Path, fake: Fake
) -> None:
    options = 'tables = ["control"]\nof = "element-90"\ncontrol = "narrow:0.25"\n'
    (rows / "narrow.toml").write_text(f'title = "narrower"\n{options}')
    assert modules["experiments"].main(["narrow", *where]) == 0
    found = kept(where, "narrow")["runs"]["0"]["bench"][0]["results"]
    times = {(each["engine"], each["batch"]): each["step_ms"] for each in found}
    assert times == {
        **{("sparse-ddpm", batch): 0.375 * batch for batch in (1, 16)},
        **{("sparse-ddpm-dense", batch): 3.0 * batch for batch in (1, 16)},
    }


def test_rows_share_a_dense_round_and_nothing_else(
    modules: dict[str, ModuleType], where: list[str], fake: Fake
) -> None:
    runs = Path(where[-1])
    assert modules["experiments"].main(["element-90", "--seeds", "0", *where]) == 0
    (runs / "element-90-seed0" / "round-00" / "weights.pt").write_bytes(b"dense")
    copied: dict[str, list[str]] = {}
    train = fake.train

    def look(words: list[str]) -> dict[str, Any]:
        out = Path(words[words.index("--out") + 1])
        copied[out.name] = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
        return train(words)

    fake.train = look  # type: ignore[method-assign]
    assert modules["experiments"].main(["element-99", "dense", "--seeds", "0", *where]) == 0
    assert copied == {
        "element-99-seed0": ["round-00/metrics.json", "round-00/weights.pt"],
        "dense-seed0": [],
    }


def test_a_result_of_other_options_is_one_error(
    modules: dict[str, ModuleType],
    rows: Path,
    where: list[str],
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert modules["experiments"].main(["element-99", *where]) == 0
    (rows / "element-99.toml").write_text(ROWS["element-99"].replace("0.99", "0.98"))
    assert modules["experiments"].main(["element-99", *where]) == 1
    assert "seed 0: sparsity: expected 0.99 as its result has" in capsys.readouterr().err


def test_a_row_that_begins_with_a_ticket(
    modules: dict[str, ModuleType], where: list[str], rows: Path, fake: Fake, tmp_path: Path
) -> None:
    common = COMMON.replace("[train]", '[train]\npreset = "small"\nobjective = "v"')
    (rows / "common.toml").write_text(common)
    onward = 'title = "on"\ntables = ["shipping"]\nbudget = 0\n[train]\n'
    onward += 'from = "ticket:element-90/0"\nsparsity = 0.97\ndense-steps = 1\nfinal-steps = 50\n'
    (rows / "onward.toml").write_text(onward)
    assert modules["experiments"].main(["onward", *where, "--stages", "train"]) == 0
    first, second = fake.commands
    assert ("--preset", "small") in pairwise(first)
    ticket = Path(dict(pairwise(second))["--from"])
    assert ticket.parts[-2:] == ("element-90-seed0", "ticket.pt")
    assert ticket.exists()
    # what that ticket decides, `train --from` refuses to be told
    assert not {"--preset", "--objective"} & set(second)
    assert "* on: 86 steps in all." in page(modules, where, tmp_path)
    (rows / "onward.toml").write_text(onward.replace("element-90/0", "nowhere/0"))
    with pytest.raises(modules["experiment_rows"].ConfigError, match="'nowhere'"):
        modules["experiment_rows"].load_rows(rows)


def test_wrong_usage(
    modules: dict[str, ModuleType], where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert modules["experiments"].main(["nothing", *where]) == 1
    assert "a name that --list prints" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        modules["experiments"].main(where)
    assert stop.value.code == 2
    assert modules["experiments"].main(["--list", *where]) == 0
    assert "seed 0: 0/4, seed 1: 0/4" in capsys.readouterr().out
