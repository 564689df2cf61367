"""The command benchmarks/digits.py on a made-up data set small enough for a test."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "digits.py"
    spec = importlib.util.spec_from_file_location("benchmark_digits", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _bars(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten classes: a bright bar across at five heights, or down at five places."""
    labels = np.arange(n) % 10
    images = np.zeros((n, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        bar = slice(4 + label % 5 * 4, 8 + label % 5 * 4)
        image[(bar, slice(None)) if label < 5 else (slice(None), bar)] = 255
    return images, labels.astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    for prefix, n in (("train", 100), ("t10k", 50)):
        images, labels = _bars(n)
        header = struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28)
        (path / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">4BI", 0, 0, 8, 1, n)
        (path / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return path


def test_real_images_meet_the_targets_and_noise_does_not(
    digits: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = tmp_path / "judge.safetensors"
    common = ["--data", str(folder), "--classifier", str(judge), "--epochs", "30"]
    real = np.pad(_bars(50)[0], ((0, 0), (2, 2), (2, 2)))[..., None]
    np.save(tmp_path / "real.npy", real)
    status = digits.main([*common, "--images", str(tmp_path / "real.npy"), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] >= 0.99
    assert result["sample_recognised"] == result["real_recognised"]
    assert result["shares"] == pytest.approx([0.1] * 10, abs=0.021)
    assert (status, result["targets_met"]) == (0, True)

    weights = judge.read_bytes()
    one_class = np.repeat(np.repeat(real[:1], 20, axis=0), 3, axis=3)
    np.save(tmp_path / "one.npy", one_class)
    status = digits.main([*common, "--images", str(tmp_path / "one.npy")])
    text = capsys.readouterr().out
    assert status == 1
    assert "100.0%" in text
    assert "NO" in text
    assert judge.read_bytes() == weights


def test_wrong_files_and_usage(
    digits: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.npy"
    for content in (b"", b"not numpy"):
        path.write_bytes(content)
        assert digits.main(["--data", str(folder), "--images", str(path)]) == 1
        output = capsys.readouterr()
        assert "x.npy" in output.err
        assert not output.out
    np.save(path, np.zeros((2, 32, 32)))
    assert digits.main(["--data", str(folder), "--images", str(path)]) == 1
    assert "uint8 [N, H, W, C]" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        digits.main(["ticket.pt", "--data", str(folder), "--images", str(path)])
