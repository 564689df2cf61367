from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

REASON = "needs the onnx extra"
onnx = pytest.importorskip("onnx", reason=REASON)

from sparse_ddpm.cli.main import main

ARGUMENTS = ["export", "--synthetic", "small:0.95:element", "-o"]


def test_export_writes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    assert main([*ARGUMENTS, str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert found["bytes"] == path.stat().st_size < found["gzip_dense_bytes"] < found["dense_bytes"]
    assert found["sparsity"] == pytest.approx(0.95, abs=0.001)
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
    assert main([*ARGUMENTS, str(tmp_path / "m.onnx"), "--what", "denoiser"]) == 0
    text = capsys.readouterr().out
    assert "denoiser, opset 17" in text
    assert "gzip of dense" in text


def test_an_output_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGUMENTS, str(tmp_path / "nowhere" / "m.onnx")]) == 1
    assert "m.onnx: expected a file that can be written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extra", [["--what", "sampler"], ["--opset", "3"]])
def test_wrong_usage(tmp_path: Path, extra: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*ARGUMENTS, str(tmp_path / "m.onnx"), *extra])
    assert stop.value.code == 2


def test_onnx_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "sparse_ddpm_export"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main([*ARGUMENTS, str(tmp_path / "m.onnx")]) == 1
    error = capsys.readouterr().err
    assert (
        "onnx: expected to be installed for ONNX export: pip install 'sparse-ddpm[onnx]'" in error
    )
    assert not list(tmp_path.iterdir())
