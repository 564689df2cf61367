from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REASON = "needs the onnx extra"
onnx = pytest.importorskip("onnx", reason=REASON)
ort = pytest.importorskip("onnxruntime", reason=REASON)

from sparse_ddpm.api import Sampler
from sparse_ddpm.cli.main import main

ARGUMENTS = ["export", "--synthetic", "small:0.95:element", "-o"]


def fails(tmp_path: Path, *extra: str, name: str = "m.onnx") -> int:
    """Runs the command; nothing may be left behind."""
    try:
        status = main([*ARGUMENTS, str(tmp_path / name), *extra])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert not list(tmp_path.iterdir())
    return status


def test_export_writes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    assert main([*ARGUMENTS, str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert found["bytes"] == path.stat().st_size < found["gzip_dense_bytes"] < found["dense_bytes"]
    assert found["sparsity"] == pytest.approx(0.95, abs=0.001)
    assert found["checked"] is True
    assert 0 <= found["error"] <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["timesteps"] == "1000"
    assert metadata["objective"] == "eps"
    assert metadata["image_range"] == "-1 1"
    assert metadata["pattern"] == "element"
    assert "command" not in metadata


def test_text_tells_the_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = ["--what", "denoiser", "--no-check"]
    assert main([*ARGUMENTS, str(tmp_path / "m.onnx"), *extra]) == 0
    text = capsys.readouterr().out
    assert "denoiser, opset 17" in text
    assert "gzip of dense" in text
    assert "not checked" in text


def test_the_shipped_ticket_as_a_sampler_draws_what_we_draw(tmp_path: Path) -> None:
    path = tmp_path / "digits.onnx"
    arguments = ["--what", "sampler", "--steps", "8", "--seed", "5", "--images", "2"]
    assert main(["export", "-o", str(path), *arguments]) == 0
    found = ort.InferenceSession(str(path)).run(None, {})[0]
    with Sampler.load() as sampler:
        wanted = sampler.sample_float(2, steps=8, seed=5)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_other_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for name, extra in {
        "half": ["--dtype", "float16", "--opset", "20"],
        "sparse": ["--weights", "sparse"],
        "step": ["--what", "step", "--sampler", "dpm++", "--steps", "3"],
    }.items():
        path = tmp_path / f"{name}.onnx"
        assert main([*ARGUMENTS, str(path), "--json", *extra]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["checked"]
        sizes[name] = found["bytes"]
    assert sizes["half"] < sizes["step"] < sizes["sparse"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--opset", "3"], "opset: expected an integer from 17 to 22, got 3."),
        (["--what", "sampler", "--steps", "2000"], "steps: expected an integer from 1 to 1000"),
        (["--what", "sampler", "--eta", "2"], "eta: expected a number from 0 to 1, got 2.0."),
        (["--what", "sampler", "--sampler", "ddpm", "--eta", "0.5"], "eta: expected none with"),
        (["--steps", "5"], "--steps: expected none with --what denoiser, got 5."),
        (["--what", "step", "--seed", "5"], "--seed: expected none with --what step, got 5."),
        (["--what", "sampler", "--images", "5"], "--images: expected --seed beside it"),
    ],
)
def test_bad_wishes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert fails(tmp_path, *extra) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "extra",
    [
        ["--what", "everything"],
        ["--what", "sampler", "--steps", "0"],
        ["--what", "sampler", "--sampler", "euler"],
        ["--weights", "csr"],
        ["--dtype", "float8"],
        ["--opset", "new"],
    ],
)
def test_wrong_usage(tmp_path: Path, extra: list[str]) -> None:
    assert fails(tmp_path, *extra) == 2


def test_an_output_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(tmp_path, "--no-check", name="nowhere/m.onnx") == 1
    assert "m.onnx: expected a file that can be written" in capsys.readouterr().err


def test_a_file_that_fails_the_check_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparse_ddpm_export import check

    monkeypatch.setattr(check, "STEP_TOLERANCE", 0.0)
    assert fails(tmp_path) == 1
    assert "exported denoiser: expected within 0.0 of our engine, got" in capsys.readouterr().err


def _without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in [n for n in sys.modules if n.split(".")[0] == "sparse_ddpm_export"]:
        monkeypatch.delitem(sys.modules, module)
    absent: Any = None
    monkeypatch.setitem(sys.modules, name, absent)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onnx", "onnx: expected to be installed for ONNX export"),
        ("onnxruntime", "onnxruntime: expected to be installed for the check after export"),
    ],
)
def test_missing_packages(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    message: str,
) -> None:
    _without(monkeypatch, name)
    assert fails(tmp_path) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "pip install 'sparse-ddpm[onnx]'" in error


def test_without_onnxruntime_an_unchecked_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without(monkeypatch, "onnxruntime")
    assert main([*ARGUMENTS, str(tmp_path / "m.onnx"), "--no-check"]) == 0
