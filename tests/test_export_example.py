"""examples/onnx/sample.py: as its own process, which does not know of this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REASON = "needs the onnx extra"
pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxruntime", reason=REASON)

from sparse_ddpm.cli.main import main

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "onnx" / "sample.py"


def draw(model: Path, picture: Path, *extra: str) -> np.ndarray:  # type: ignore[type-arg]
    command = [sys.executable, "-P", str(EXAMPLE), str(model), str(picture), *extra]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, check=True, env=environment, cwd=picture.parent)
    return np.asarray(Image.open(picture))


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", "10"), ("ddpm", "60")])
def test_the_example_draws_digits(tmp_path: Path, sampler: str, steps: str) -> None:
    model = tmp_path / "digits.onnx"
    arguments = ["--what", "sampler", "--sampler", sampler, "--steps", steps, "--no-check"]
    assert main(["export", "-o", str(model), *arguments]) == 0
    picture = draw(model, tmp_path / "digits.png", "-n", "5")
    assert picture.shape == (2 * 32, 3 * 32)
    tiles = picture.reshape(2, 32, 3, 32).swapaxes(1, 2).reshape(6, 32, 32)
    # Digits: mostly black, with strokes that are nearly white; the sixth place is empty.
    assert all(np.median(tile) < 30 and tile.max() > 200 for tile in tiles[:5])
    assert not tiles[5].any()
    assert len({tile.tobytes() for tile in tiles[:5]}) == 5


def test_the_example_with_the_noise_in_the_file(tmp_path: Path) -> None:
    model = tmp_path / "digits.onnx"
    arguments = ["--what", "sampler", "--steps", "5", "--seed", "3", "--images", "4", "--no-check"]
    assert main(["export", "-o", str(model), *arguments]) == 0
    first = draw(model, tmp_path / "a.png")
    assert first.shape == (64, 64)
    assert np.array_equal(first, draw(model, tmp_path / "b.png", "--seed", "9"))
