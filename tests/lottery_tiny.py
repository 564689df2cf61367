"""A network and data so small that a whole run takes a second; shared by the lottery's tests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ddpm.ticket.config import PRESETS, UNetConfig

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, heads=2, dim_head=4)
COUNT = 50

CHOSEN: dict[str, Any] = {
    "preset": "tiny",
    "image_size": 8,
    "timesteps": 3,
    "rounds": 2,
    "prune_fraction": 0.5,
    "pattern": "element",
    "dense_steps": 6,
    "steps": 4,
    "batch_size": 4,
    "lr": 3e-3,
    "threads": 1,
    "device": "cpu",
    "precision": "float32",
}


def install_preset() -> None:
    """Let settings name the tiny network."""
    PRESETS["tiny"] = TINY


def write_mnist(folder: Path, count: int = COUNT) -> str:
    """Random 28x28 images as the IDX files of MNIST; returns the data spec."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(count, 28, 28), dtype=np.uint8)
    labels = rng.integers(10, size=count, dtype=np.uint8)
    images = struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
    (folder / "train-images-idx3-ubyte").write_bytes(images)
    (folder / "train-labels-idx1-ubyte").write_bytes(
        struct.pack(">II", 2049, count) + labels.tobytes()
    )
    return f"mnist:{folder}"


def outputs(out: Path) -> dict[str, Any]:
    """All that a finished run must reproduce bit for bit: files, and metrics without seconds."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name == "metrics.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
        elif path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
        elif path.is_file():
            found[name] = path.read_bytes()
    return found
