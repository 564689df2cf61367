"""examples/node: an exported sampler in a few lines of JavaScript."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from javascript import EXAMPLES, copy_example, program, run
from PIL import Image

pytest.importorskip("onnx", reason="needs the onnx extra")
pytest.importorskip("onnxruntime", reason="needs the onnx extra")

from sparse_ddpm import Sampler
from sparse_ddpm.cli import common
from sparse_ddpm.cli.main import main

SYNTHETIC = "small:0.95:element"


def test_a_picture_of_our_images(tmp_path: Path) -> None:
    node = program("node")
    folder = copy_example("node", tmp_path)
    # The noise comes from the other example.
    (tmp_path / "web").symlink_to(EXAMPLES / "web")
    model = folder / "sampler.onnx"
    settings = ["--what", "sampler", "--steps", "4", "--no-check", "-o", str(model)]
    assert main(["export", "--synthetic", SYNTHETIC, *settings]) == 0
    done = run([node, "draw.mjs", "sampler.onnx", "11", "3", "out.png"], folder)
    assert done.stdout.decode() == "out.png: 3 images from seed 11\n"
    found = np.asarray(Image.open(folder / "out.png"), dtype=int)
    ours = Sampler(common.synthetic(SYNTHETIC)).sample(3, steps=4, seed=11)
    assert np.abs(found - np.hstack(ours[..., 0].astype(int))).max() <= 1
