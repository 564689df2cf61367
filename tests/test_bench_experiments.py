"""benchmarks/experiments.py and tickets_page.py: rows, commands, what is kept, what is said."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sparse_ddpm.cli.main import build_parser, main
from sparse_ddpm.lottery.settings import Settings
from sparse_ddpm.ticket import UNetConfig, save_ticket, synthetic_ticket

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=2, heads=1, dim_head=4)
MODULES = (
    *("experiment_rows", "experiments", "tickets_numbers", "tickets_pictures"),
    *("tickets_findings", "tickets_sections", "tickets_page"),
)

COMMON = """
seeds = [0]
budget = 30
[train]
rewind = "lr"
dense-steps = 10
rounds = 2
steps = 5
final-steps = 15
batch-size = 4

[evaluate]
sampler = "dpm++"
steps = 7
"""
ROWS = {
    "dense": 'title = "dense"\ntables = ["matching", "allocation", "pattern"]\nseeds = [0, 1]\n'
    "[train]\nrounds = 0\ndense-steps = 30\n",
    "element-90": 'title = "90 %"\ntables = ["matching", "allocation", "pattern"]\nseeds = [0, 1]\n'
    "[train]\nsparsity = 0.9\n",
    "element-99": 'title = "99 %"\ntables = ["matching", "pattern"]\n[train]\nsparsity = 0.99\n',
    "reinit-90": 'title = "90 %, reinit"\ntables = ["control"]\nof = "element-90"\n'
    'control = "reinit"\n',
    "similarity-90": 'title = "similarity"\ntables = ["allocation"]\n[train]\nsparsity = 0.9\n'
    'allocation = "similarity"\nsimilar-to = ["ticket:element-90/0", "ticket:element-90/1"]\n',
    "pair": 'title = "two seeds"\ntables = ["similarity"]\n'
    'pair = ["ticket:element-90/0", "ticket:element-90/1"]\n',
}


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "experiments"
    folder.mkdir()
    for name, text in {"common": COMMON, **ROWS}.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


class Fake:
    """Stands for the commands that take long: trains nothing, and judges by the sparsity."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.commands: list[list[str]] = []
        self.failing = ""
        self.capsys = capsys

    def __call__(self, _runner: Any, words: list[str]) -> dict[str, Any]:
        from sparse_ddpm.errors import SparseDDPMError

        self.commands.append(words)
        if words[0] == self.failing:
            raise SparseDDPMError(f"{words[0]} ended with status 1.")
        if words[0] in ("inspect", "compare"):
            self.capsys.readouterr()
            assert main(words) == 0
            found: dict[str, Any] = json.loads(self.capsys.readouterr().out)
            return found
        made: dict[str, Any] = getattr(self, words[0])(words)
        return {"schema": 1, **made}

    def train(self, words: list[str]) -> dict[str, Any]:
        options = dict(pairwise(words))
        sparsity, out = float(options.get("--sparsity", 0.0)), Path(options["--out"])
        control = options.get("--control")
        folder = out / f"control-{control}" if control else out
        dense = out / "round-00"
        dense.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        (dense / "metrics.json").touch()
        (dense / "orders.json").touch()
        ticket = synthetic_ticket(TINY, sparsity, seed=int(options["--seed"]))
        save_ticket(ticket, folder / "ticket.pt")
        controls = [{"control": control, "held_out_loss": 0.2}] if control else []
        rounds = [{"control": None, "round": 0, "held_out_loss": 0.1}]
        return {"out": str(out), "rounds": rounds, "controls": controls}

    def evaluate(self, words: list[str]) -> dict[str, Any]:
        names = {"element-90": 0.9, "element-99": 0.99, "control-re": 1.0}
        gone = names.get(Path(words[1]).parent.name[:10], 0.0)
        about = {"judge": {"sha256": "ab"}, "real_distance": 0.25, "reference": words[3]}
        options = dict(pairwise(words))
        about |= {"sampler": options["--sampler"], "steps": int(options["--steps"])}
        return {**about, "samples": int(words[5]), "distance": 2.0 + gone**9, "precision": 0.5}

    def bench(self, words: list[str]) -> dict[str, Any]:
        ours = {"engine": "sparse-ddpm", "dtype": "float32", "step_peak_mib": 7.0}
        results = [{**ours, "batch": batch, "step_ms": 1.5 * batch} for batch in (1, 16)]
        about = {"threads": 2, "device": "auto", "machine": {"cpu": "a processor"}}
        return {**about, "ticket": words[1], "results": results}


@pytest.fixture
def fake(
    modules: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Fake:
    fake = Fake(capsys)
    call = lambda runner, words: fake(runner, words)  # noqa: E731 - a method needs a function
    monkeypatch.setattr(modules["experiments"].Runner, "_command", call)
    return fake


@pytest.fixture
def where(rows: Path, tmp_path: Path) -> list[str]:
    places = {"experiments": rows, "results": tmp_path / "results", "runs": tmp_path / "runs"}
    words = ["--data", str(tmp_path / "data")]
    for option, place in places.items():
        words += [f"--{option}", str(place)]
    return words


def kept(where: list[str], name: str) -> dict[str, Any]:
    path = Path(where[where.index("--results") + 1]) / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


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
    assert result["schema"] == 1
    assert sorted(result["runs"]) == ["0", "1"]
    run = result["runs"]["0"]
    assert run["options"]["sparsity"] == 0.9
    assert run["train"]["rounds"][0]["held_out_loss"] == 0.1
    assert run["evaluate"]["samples"] == 64
    assert run["evaluate"]["reference"] == "mnist:DIR/mnist"
    assert run["bench"]["ticket"] == "runs/element-90-seed0/ticket.pt"
    assert run["inspect"]["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert "operations" not in run["inspect"]
    assert str(Path(where[1]).parent) not in json.dumps(result)
    fake.commands.clear()
    assert modules["experiments"].main(["element-90", *where]) == 0
    assert fake.commands == []
    again = ["element-90", "--again", "bench", "--seeds", "1", *where]
    assert modules["experiments"].main(again) == 0
    assert [words[0] for words in fake.commands] == ["bench"]


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


def page(modules: dict[str, ModuleType], where: list[str], tmp_path: Path, *more: str) -> str:
    path = tmp_path / "docs" / "tickets.md"
    path.parent.mkdir(exist_ok=True)
    assert modules["tickets_page"].main([*where[2:6], "-o", str(path), *more]) == 0
    return path.read_text(encoding="utf-8")


def test_the_page_says_what_has_not_been_run(
    modules: dict[str, ModuleType], where: list[str], tmp_path: Path
) -> None:
    text = page(modules, where, tmp_path)
    assert "**0 of 6 rows have been run in full, with all their seeds; 0 in part.** Nothing" in text
    assert "**Not run: 3 of the 3 rows of this table.**" in text
    assert "* Nothing yet: " in text
    assert all(f"`{name}`" in text for name in ROWS)
    assert "Whether any target is met is not known" in text
    assert ".png" not in text
    assert [path.name for path in (tmp_path / "docs").iterdir()] == ["tickets.md"]


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(1.2, "clearly worse"), (1.05, "no clear difference"), (0.95, "no clear"), (0.8, "BETTER")],
)
def test_what_a_control_says(modules: dict[str, ModuleType], ratio: float, words: str) -> None:
    assert words in modules["tickets_sections"].verdict(ratio)


def test_the_page_is_made_of_results(
    modules: dict[str, ModuleType], where: list[str], fake: Fake, tmp_path: Path
) -> None:
    assert modules["experiments"].main(["--all", "--samples", "64", *where]) == 0
    path = Path(where[where.index("--results") + 1]) / "element-99.json"
    result = json.loads(path.read_text())
    for row in result["runs"]["0"]["bench"]["results"]:
        row["step_ms"] /= 2.0
    path.write_text(json.dumps(result))
    text = page(modules, where, tmp_path)
    lines = text.splitlines()
    assert "**6 of 6 rows have been run in full, with all their seeds; 0 in part.**" in text
    assert "Every row has been run" in text
    dense = next(line for line in lines if line.startswith("| dense | 0, 1 |"))
    assert "| 2 (2 to 2) | 1 | 0.5 | - |" in dense
    assert "* 90 %: 1.19, target 1.05: MISSED." in lines
    assert "* 99 %: 1.46, target 1.15: MISSED." in lines
    assert "| 90 %, reinit | 0 | 3 | 2.39 | 1.26 |" in lines
    assert "* 90 %, reinit: clearly worse than the ticket." in lines
    assert "Timed on a processor, threads: 2, device: auto." in lines
    assert "too few samples" not in text
    assert "64 samples (dpm++, 7 steps)" in text
    assert "Real images of the other split have a distance of 0.25." in lines
    # 1.5 times dense: element-99 is good enough, and no sparser row is known.
    assert "| 1.5 | 16 | ≤ 24 | **≤ 12** |" in lines
    assert any(line.startswith("| 99 % | ") and line.endswith("| 2 | 2 |") for line in lines)
    for name in ("distance", "similarity", "allocation", "pattern"):
        picture = tmp_path / "docs" / f"tickets-{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"]({picture.name})" in text
    assert page(modules, where, tmp_path, "--check") == text
    (tmp_path / "docs" / "tickets.md").write_text(text.replace("MISSED", "met"))
    options = [*where[2:6], "-o", str(tmp_path / "docs" / "tickets.md"), "--check"]
    assert modules["tickets_page"].main(options) == 1


def test_points_on_curves(modules: dict[str, ModuleType]) -> None:
    numbers = modules["tickets_numbers"]

    def point(ms: float, distance: float) -> Any:
        row = {"engine": "sparse-ddpm", "dtype": "float32", "batch": 1, "step_ms": ms}
        evaluation = {"distance": distance}
        return numbers.Figures("x", "x", (0,), (), (evaluation,), ({"results": [row]},))

    curve = [point(4.0, 2.0), point(1.0, 6.0), point(16.0, 1.0)]
    assert numbers.at_cost(curve, "ms1", 2.0) == pytest.approx(4.0)
    assert numbers.at_cost(curve, "ms1", 16.0) == pytest.approx(1.0)
    assert numbers.at_cost(curve, "ms1", 0.5) is None
    assert numbers.equal_quality(curve, 1, 4.0) == (pytest.approx(2.0), False)
    assert numbers.equal_quality(curve, 1, 6.0) == (1.0, True)
    assert numbers.equal_quality(curve, 1, 0.5) == (None, False)
    assert numbers.at_cost([point(3.0, 5.0)], "ms1", 3.0) == 5.0
