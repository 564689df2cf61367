"""The command line as a user meets it: output, exit status, and one clear line for an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import DAMAGES
from PIL import Image
from sparse_ddpm_kernels import available_isas

from sparse_ddpm.cli.main import COMMANDS, main
from sparse_ddpm.engine.precision import available_dtypes
from sparse_ddpm.ticket import (
    DiffusionConfig,
    Provenance,
    Ticket,
    UNetConfig,
    save_ticket,
    synthetic_ticket,
)

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=4, heads=2, dim_head=4)

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def ticket() -> Ticket:
    return synthetic_ticket(TINY, 0.8, seed=5, diffusion=DiffusionConfig(objective="v"))


@pytest.fixture
def path(ticket: Ticket, tmp_path: Path) -> Path:
    save_ticket(ticket, tmp_path / "ticket.pt")
    return tmp_path / "ticket.pt"


def run_json(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result: dict[str, Any] = json.loads(out)
    assert next(iter(result)) == "schema"
    assert result["schema"] == 1
    return result


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"sparse-ddpm {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["paint"], ["sample", "-n", "0"], ["sample", "--what"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_sample_writes_a_grid(path: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "grid.png"
    result = run_json(capsys, "sample", str(path), "-n", "5", "--steps", "3", "-o", str(out))
    assert result["images"] == 5
    assert result["shape"] == [5, 8, 8, 1]
    assert result["output"] == str(out)
    with Image.open(out) as picture:
        # 3 columns, 2 rows of 8 pixels with gaps of 2, shown 12 times as large
        assert picture.size == (12 * (3 * 10 + 2), 12 * (2 * 10 + 2))
        assert picture.mode == "L"
        assert np.asarray(picture).std() > 0
    assert not list(tmp_path.glob(".*"))


def test_sample_writes_arrays(path: Path, tmp_path: Path, capsys: Capture) -> None:
    arrays = []
    for name, batch in (("a.npy", "1"), ("b.npy", "3")):
        command = ["sample", str(path), "-n", "3", "--steps", "2", "-o", str(tmp_path / name)]
        assert main([*command, "--batch", batch]) == 0
        arrays.append(np.load(tmp_path / name))
    assert "3 images of 8x8, 2 ddim steps" in capsys.readouterr().out
    np.testing.assert_array_equal(*arrays)
    assert arrays[0].dtype == np.uint8


def test_both_files_give_the_same_image(ticket: Ticket, path: Path, tmp_path: Path) -> None:
    save_ticket(ticket, tmp_path / "t.safetensors")
    for source, out in ((path, "a.png"), (tmp_path / "t.safetensors", "b.png")):
        assert main(["sample", str(source), "--steps", "2", "-o", str(tmp_path / out)]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("oracle", ["torch", "numpy"])
def test_verify_passes(path: Path, oracle: str, capsys: Capture) -> None:
    if oracle == "torch":
        pytest.importorskip("torch")
    result = run_json(capsys, "verify", str(path), "--oracle", oracle)
    assert result["passed"] is True
    assert result["oracle"] == oracle
    assert result["worst_operation_error"] <= 1e-5
    assert result["image_error"] <= 1e-3
    assert len(result["operations"]) > 30
    assert main(["verify", str(path), "--oracle", oracle, "--steps", "5"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("passed")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits(path: Path, tmp_path: Path, dtype: str, capsys: Capture) -> None:
    if dtype not in available_dtypes():
        pytest.skip(f"this machine has no {dtype}")
    found = run_json(capsys, "verify", str(path), "--dtype", dtype, "--oracle", "numpy")
    assert found["passed"] is True
    assert 1e-5 < found["output_error"] <= found["output_tolerance"] == 1e-2
    assert 40 <= found["image_psnr"] < 100
    assert found["image_tolerance"] is None
    out = str(tmp_path / "a.npy")
    drawn = run_json(capsys, "sample", str(path), "--dtype", dtype, "--steps", "2", "-o", out)
    assert drawn["dtype"] == dtype
    assert drawn["engine"].endswith(dtype)
    planned, single = (
        run_json(capsys, "inspect", str(path), *more)["totals"] for more in (("--dtype", dtype), ())
    )
    for key in ("arena_bytes", "written_bytes"):
        assert 0.5 <= planned[key] / single[key] < 0.7, key
    assert planned["weight_bytes"] == single["weight_bytes"]


def test_precisions_that_are_lacking_name_the_remedy(
    path: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sample", str(path), "--steps", "1", "-o", str(tmp_path / "a.npy"), "--dtype"]
    assert main([*command, "bfloat16", "--device", "numpy"]) == 1
    said = "dtype of the numpy engine: expected float32, which it computes in float64"
    assert said in capsys.readouterr().err
    if "baseline" not in available_isas():
        pytest.skip("every machine of this kind has 16-bit floats")
    monkeypatch.setenv("SPARSE_DDPM_ISA", "baseline")
    for dtype, needs in (("float16", "instruction set avx2"), ("bfloat16", "avx512 with AVX512")):
        assert main([*command, dtype]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"sparse-ddpm: dtype {dtype}: expected {needs}")
        assert "got baseline (forced by SPARSE_DDPM_ISA); use dtype float32." in said
    assert main([*command, "float32"]) == 0


def test_verify_can_fail(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    from sparse_ddpm.engine.cpu import CpuEngine

    right = CpuEngine.trace

    def wrong(self: CpuEngine, x: Any, step: int) -> dict[str, Any]:
        found = right(self, x, step)
        found["mid.block1.conv1"] = found["mid.block1.conv1"] * np.float32(1.0001)
        return found

    monkeypatch.setattr(CpuEngine, "trace", wrong)
    assert main(["verify", str(path), "--steps", "2", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is False
    assert result["worst_operation"] == "mid.block1.conv1"


def test_synthetic_tickets_are_named(capsys: Capture, path: Path) -> None:
    for text in ("paper", "paper:2:element", "giant:0.9", "small:0.9:stripe"):
        assert main(["inspect", "--synthetic", text]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["inspect", str(path), "--synthetic", "small:0.9"]) == 1
    assert "--synthetic: expected no TICKET beside it" in capsys.readouterr().err


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_tickets_give_one_line(kind: str, tmp_path: Path, capsys: Capture) -> None:
    bad = tmp_path / "bad.pt"
    DAMAGES[kind](bad)
    before = sorted(tmp_path.iterdir())
    assert main(["sample", str(bad), "-o", str(tmp_path / "out.png"), "--steps", "2"]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1, found.err
    assert found.err.startswith("sparse-ddpm: ")
    assert "bad.pt" in found.err
    assert sorted(tmp_path.iterdir()) == before


def test_there_are_forty_kinds_of_damage() -> None:
    assert len(DAMAGES) >= 40


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.tiff", "expected a suffix among"),
        ("no/such/folder/out.png", "expected a file that can be written"),
    ],
)
def test_bad_outputs_are_named(path: Path, tmp_path: Path, name: str, message: str) -> None:
    found = subprocess.run(
        [
            *(sys.executable, "-m", "sparse_ddpm", "sample", str(path)),
            *("--steps", "2", "-o", str(tmp_path / name)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert message in found.stderr.splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ticket.pt"]


def test_a_failed_write_leaves_the_old_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.npy"
    out.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert main(["sample", str(path), "--steps", "1", "-o", str(out)]) == 1
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npy", "ticket.pt"]


def test_inspect_accounts_add_up(path: Path, ticket: Ticket, capsys: Capture) -> None:
    result = run_json(capsys, "inspect", str(path), "--batch", "3")
    rows = result["operations"]
    totals = result["totals"]
    for key in ("dense_flops", "surviving_flops", "executed_flops", "weight_bytes"):
        assert totals[key] == sum(row[key] for row in rows), key
    assert totals["file_bytes"] == path.stat().st_size
    conv = next(row for row in rows if row["name"] == "mid.block1.conv1")
    mask = ticket.masks["mid.block1.conv1.weight"]
    assert conv["dense_flops"] == 2 * mask.size * 16
    assert conv["surviving_flops"] == 2 * int(mask.sum()) * 16
    assert conv["executed_flops"] >= conv["surviving_flops"]
    assert conv["format"] == "CSR"
    assert conv["kernel"]
    assert conv["reason"]
    assert result["provenance"]["pattern"] == Provenance().pattern
    assert main(["inspect", str(path)]) == 0
    table = capsys.readouterr().out
    assert "mid.block1.conv1" in table
    assert "total" in table


def test_dense_flops_are_torchs(path: Path, ticket: Ticket, capsys: Capture) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from sparse_ddpm.model.unet import UNet

    model = UNet(TINY)
    x = torch.randn(1, 1, 8, 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.time(torch.tensor([3.0]))
    time = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, torch.tensor([3.0]))
    linears = sum(2 * p.numel() for n, p in model.named_parameters() if n.endswith("film.weight"))
    result = run_json(capsys, "inspect", str(path))
    assert result["totals"]["dense_flops"] == counter.get_total_flops() - time - linears


def test_a_reader_that_goes_away_is_no_traceback(path: Path) -> None:
    command = f"{sys.executable} -m sparse_ddpm inspect {path} | head -1"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in found.stderr
    assert found.stdout
