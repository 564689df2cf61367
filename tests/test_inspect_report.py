"""``inspect``: its object adds up, its tables show it, two tickets stand side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparse_ddpm.accounting import (
    Ceilings,
    Level,
    account,
    predict,
    reference_ceilings,
    time_flops,
)
from sparse_ddpm.bench.ceilings import keep_ceilings, kept_ceilings
from sparse_ddpm.cli.main import main
from sparse_ddpm.engine.plan import make_plan
from sparse_ddpm.inspection import (
    SORTS,
    Inspection,
    Settings,
    compare_inspections,
    comparison_lines,
    inspect_ticket,
    table_lines,
)
from sparse_ddpm.inspection.words import flops_of, kibi, mega, size_of, time_of
from sparse_ddpm.lower import lower
from sparse_ddpm.ticket import Ticket, UNetConfig, load_ticket, save_ticket, synthetic_ticket

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=4, heads=2, dim_head=8)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ceilings that somebody measured here are none of the tests' business, nor theirs his."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def ticket() -> Ticket:
    return synthetic_ticket(TINY, 0.7)


@pytest.fixture
def path(ticket: Ticket, tmp_path: Path) -> Path:
    save_ticket(ticket, tmp_path / "a.pt")
    return tmp_path / "a.pt"


@pytest.fixture(scope="module")
def found(ticket: Ticket, tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    path = tmp_path_factory.mktemp("tickets") / "a.pt"
    save_ticket(ticket, path)
    return inspect_ticket(ticket, "a", path, Settings(batch=16, threads=2, steps=7, gzip=True))


def run(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main(["inspect", *arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["schema"] == 1
    return result


def test_totals_are_the_sums_of_the_operations(found: Inspection) -> None:
    total, rows = found["totals"], found["operations"]
    for key in ("dense_flops", "surviving_flops", "executed_flops", "planned_value_bytes"):
        assert total[key] == sum(row[key] for row in rows) > 0, key
    assert total["limit_us"] == pytest.approx(sum(row["limit_us"] for row in rows))
    # Images are loaded and stored, too.
    assert 0 < sum(row["predicted_us"] for row in rows) < total["predicted_us"]
    flops = found["flops"]
    assert flops["step"]["executed"] == total["executed_flops"]
    assert flops["image"] == {key: 7 * value for key, value in flops["step"].items()}
    assert flops["batch_step"] == {"images": 16, "executed": 16 * total["executed_flops"]}
    assert total["process_bytes"] > total["arena_bytes"] + total["engine_bytes"]


def test_the_time_table_costs_once_a_schedule(ticket: Ticket, found: Inspection) -> None:
    row = time_flops(lower(ticket))
    assert found["flops"]["schedule"]["dense"] == 7 * row.dense
    assert found["flops"]["schedule"]["surviving"] == 7 * row.surviving < 7 * row.dense


def test_figures_are_those_of_the_accounts(ticket: Ticket, found: Inspection) -> None:
    plan = make_plan(lower(ticket), 16)
    times = predict(plan, reference_ceilings(2))
    for row, item in zip(account(plan), found["operations"], strict=True):
        assert item["name"] == row.name
        assert item["executed_flops"] == row.executed_flops
        assert item["predicted_us"] == pytest.approx(1e6 * times[row.name], abs=1e-3)
        assert item["measured_us"] is None
        if row.kernel == "none":
            assert item["moved_bytes"] == item["limit_us"] == 0
            continue
        assert item["moved_bytes"] == row.moved_bytes(16)
        assert item["intensity"] == pytest.approx(row.intensity(16))
        assert item["limit_us"] > 0.0
        assert item["bound"] in ("multiply-adds", item["level"])
        if item["gflops_per_s"] is not None:
            rate = 16 * row.executed_flops / item["gflops_per_s"] / 1e3
            assert rate == pytest.approx(item["predicted_us"], rel=1e-3, abs=1e-3)
        if item["runs"] is not None:
            assert 0.0 <= item["density"] <= 1.0
            assert 0.0 < item["break_even_density"] <= 1.0


def test_storage_adds_up(found: Inspection) -> None:
    storage = found["storage"]
    parts = list(storage["encodings"].values())
    tensors = sum(part["values"] + part["places"] for part in parts)
    assert storage["file_bytes"] == tensors + storage["container_bytes"]
    assert storage["file_bytes"] == found["totals"]["file_bytes"]
    assert storage["dense_bytes"] == sum(part["dense"] for part in parts)
    assert storage["dense_bytes"] == 4 * found["parameters"]["all"]
    assert 0 < storage["gzip_of_dense_bytes"] < storage["dense_bytes"]
    assert len(storage["tensors"]) == sum(part["tensors"] for part in parts)


def test_a_ticket_without_a_file(ticket: Ticket, path: Path) -> None:
    made = inspect_ticket(ticket, "made", None, Settings(batch=1))
    assert made["totals"]["file_bytes"] is None
    assert made["storage"]["file_bytes"] == path.stat().st_size
    assert made["storage"]["gzip_of_dense_bytes"] is None
    assert "not written" in "\n".join(table_lines(made))


def test_batches_in_several_passes(ticket: Ticket) -> None:
    one, five = (inspect_ticket(ticket, "", None, Settings(batch=n)) for n in (1, 5))
    for a, b in zip(one["operations"], five["operations"], strict=True):
        assert b["executed_flops"] == a["executed_flops"]
        for key in ("moved_bytes", "limit_us", "predicted_us"):
            assert b[key] == pytest.approx(5 * a[key], abs=1e-3), key
        assert b["intensity"] == a["intensity"]
    thirteen = inspect_ticket(ticket, "", None, Settings(batch=13))
    assert thirteen["flops"]["batch_step"]["images"] == 16


@pytest.mark.parametrize("sort", SORTS)
def test_the_table_is_sorted(found: Inspection, sort: str) -> None:
    lines = list(table_lines(found, sort))
    names = [item["name"] for item in found["operations"]]
    shown = [line.split()[0] for line in lines if line.split() and line.split()[0] in names]
    assert sorted(shown) == sorted(names)
    keys = {item["name"]: SORTS[sort](item) for item in found["operations"]}
    values = [keys[name] for name in shown]
    assert values == sorted(values, reverse=True)
    if sort == "order":
        assert shown == names


def test_the_table_shows_the_figures(found: Inspection) -> None:
    text = list(table_lines(found, reasons=True))
    for item in found["operations"]:
        line = next(line for line in text if line.startswith(f"{item['name']:<22} "))
        for figure in (mega(item["executed_flops"]), kibi(item["moved_bytes"]), item["reason"]):
            assert figure in line
    whole = "\n".join(text)
    total = found["totals"]
    for figure in (
        mega(total["dense_flops"]),
        size_of(total["arena_bytes"]),
        size_of(total["process_bytes"]),
        size_of(found["storage"]["gzip_of_dense_bytes"]),
        time_of(total["predicted_us"]),
        flops_of(found["flops"]["schedule"]["executed"]),
    ):
        assert figure in whole
    assert "measured" not in whole.split("not of this machine")[1].splitlines()[2]


def test_the_command_knows_the_tables_sorts() -> None:
    from sparse_ddpm.cli.inspect import SORTS as NAMES

    assert tuple(SORTS) == NAMES


def test_units() -> None:
    assert [size_of(n) for n in (0, 1023, 1024, 1 << 20, 3 << 30)] == [
        "0 B", "1,023 B", "1.0 KiB", "1.0 MiB", "3.00 GiB",
    ]  # fmt: skip
    assert size_of(None) == time_of(None) == "-"
    assert [flops_of(n) for n in (999, 1e3, 1.5e12)] == ["999 FLOP", "1.00 KFLOP", "1.50 TFLOP"]
    assert [time_of(n) for n in (1, 999.94, 2500)] == ["1.0 us", "999.9 us", "2.500 ms"]


def test_two_tickets(path: Path, tmp_path: Path, capsys: Capture) -> None:
    save_ticket(synthetic_ticket(TINY, 0.9, "vector:8"), tmp_path / "b.safetensors")
    second = str(tmp_path / "b.safetensors")
    found = run(capsys, str(path), second, "--batch", "2")
    first, other = found["inspections"]
    assert first == {
        k: v for k, v in run(capsys, str(path), "--batch", "2").items() if k != "schema"
    }
    assert other["ticket"] == second
    comparison = found["comparison"]
    assert comparison == compare_inspections(first, other)
    pair = comparison["totals"]["surviving_flops"]
    assert pair["first"] == first["totals"]["surviving_flops"]
    assert pair["ratio"] == pair["second"] / pair["first"] < 1.0
    assert [item["name"] for item in comparison["operations"]] == [
        item["name"] for item in first["operations"]
    ]
    assert main(["inspect", str(path), second]) == 0
    text = capsys.readouterr().out
    assert f"A  {path}" in text
    assert f"B  {second}" in text
    assert "mid.block1.conv1" in text


def test_two_tickets_of_other_architectures(ticket: Ticket) -> None:
    wide = UNetConfig(dim=8, dim_mults=(1, 1, 1), channels=1, image_size=8, groups=4, heads=2)
    first = inspect_ticket(ticket, "first", None, Settings(batch=1))
    second = inspect_ticket(synthetic_ticket(wide, 0.5), "second", None, Settings(batch=1))
    compared = compare_inspections(first, second)["operations"]
    alone = {item["name"] for item in compared if item["first"] is None}
    assert any(name.startswith("down.2.") for name in alone)
    lines = list(comparison_lines(first, second))
    assert any("absent" in line for line in lines)
    differences = [
        abs(
            (item["second"] or {}).get("predicted_us", 0)
            - (item["first"] or {}).get("predicted_us", 0)
        )
        for item in compared
    ]
    largest = compared[differences.index(max(differences))]["name"]
    header = next(index for index, line in enumerate(lines) if line.startswith("operation"))
    assert lines[header + 2].split()[0] == largest


def test_measured_times(path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = (Level("L1", 1 << 15, 2e11), Level("memory", 0, 2e10))
    ceilings = Ceilings("avx512", 1, 1e11, levels)
    monkeypatch.setattr("sparse_ddpm.bench.ceilings.measure_ceilings", lambda threads: ceilings)
    monkeypatch.setattr("sparse_ddpm.bench.layers.SECONDS", 0.0)
    found = run(capsys, str(path), "--measure", "--threads", "1", "--batch", "1")
    assert found["ceilings"]["source"] == "measured"
    total = found["totals"]["measured_us"]
    for item in found["operations"]:
        assert (item["measured_us"] > 0.0) == (item["kernel"] != "none")
    assert 0.0 < sum(item["measured_us"] for item in found["operations"]) < total
    slow = max(found["operations"], key=lambda item: item["measured_us"])
    assert main(["inspect", str(path), "--measure", "--threads", "1", "--batch", "1"]) == 0
    text = capsys.readouterr().out
    assert "measured" in text
    assert slow["name"] in text


def test_usage(path: Path, capsys: Capture) -> None:
    for arguments in (["--device", "cuda", "--measure"], ["--device", "cuda", "--threads", "2"]):
        with pytest.raises(SystemExit) as stop:
            main(["inspect", str(path), *arguments])
        assert stop.value.code == 2
    assert "expected the cpu engine" in capsys.readouterr().err
    assert main(["inspect", str(path), str(path), "--synthetic", "small:0.9:element"]) == 1
    assert main(["inspect", str(path), "nothing.pt"]) == 1
    assert "nothing.pt" in capsys.readouterr().err


def test_ceilings_are_kept(cache: Path) -> None:
    isa = kept_ceilings(3).isa
    assert kept_ceilings(3) == reference_ceilings(3)
    levels = (Level("L1", 10, 9e9), Level("memory", 0, 1e9))
    keep_ceilings(Ceilings(isa, 3, 5e9, levels))
    kept = kept_ceilings(3)
    assert (kept.flops_per_s, kept.levels, kept.source) == (5e9, levels, "measured earlier")
    assert kept_ceilings(2) == reference_ceilings(2)
    keep_ceilings(Ceilings(isa, 2, 4e9, levels))
    assert kept_ceilings(3) == kept
    for damage in ("{", "[]", '{"a": 1}', (cache / "sparse-ddpm/ceilings.json").read_text()[:-20]):
        (cache / "sparse-ddpm/ceilings.json").write_text(damage)
        assert kept_ceilings(3) == reference_ceilings(3)


def test_a_cache_that_cannot_be_written_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_ceilings(reference_ceilings(1))
    assert kept_ceilings(1) == reference_ceilings(1)


@pytest.mark.parametrize("more", [(), ("--json",), ("--plot", "a.html")])
def test_the_shipped_ticket_without_torch(more: tuple[str, ...], tmp_path: Path) -> None:
    """Neither torch nor whatever else is large, and soon done: what waits is no work of ours."""
    code = (
        "import resource, sys\n"
        "from sparse_ddpm.cli.main import main\n"
        f"assert main(['inspect', *{more!r}]) == 0\n"
        "heavy = {'torch', 'triton', 'onnx', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "down.0.attn" in done.stdout
    assert float(done.stderr.split()[-1]) < 1.0


def test_loading_again_gives_the_same(path: Path, ticket: Ticket) -> None:
    settings = Settings(batch=3)
    assert inspect_ticket(load_ticket(path), "x", path, settings) == inspect_ticket(
        ticket, "x", path, settings
    )
