"""Writing images: one grid as a picture, or the raw array."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.cli.common import write_atomically
from sparse_ddpm.errors import ConfigError, expected

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}


def check_suffix(path: Path) -> None:
    """Raise `ConfigError` unless we can write what the suffix of ``path`` asks for."""
    if path.suffix.lower() not in (*FORMATS, ".npy"):
        wanted = ", ".join((*FORMATS, ".npy"))
        raise ConfigError(expected(f"output {path}", f"a suffix among {wanted}", repr(path.suffix)))


def grid(images: NDArray[np.uint8], gap: int = 2) -> NDArray[np.uint8]:
    """``[n, H, W, C]`` as one picture, nearly square, ``gap`` grey pixels around each image."""
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, channels)
    canvas = np.full(shape, 128, dtype=np.uint8)
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def save_images(images: NDArray[np.uint8], path: Path) -> None:
    """Write ``images`` ``[n, H, W, C]`` to ``path``, whole or not at all."""
    if path.suffix.lower() == ".npy":
        write_atomically(path, lambda file: np.save(file, images))
        return
    from PIL import Image

    if images.shape[3] not in (1, 3):
        wanted = "1 or 3 channels (other images can be written as .npy)"
        raise ConfigError(expected(f"output {path}", wanted, images.shape[3]))
    canvas = grid(images)
    # Small images are shown larger, by whole pixels.
    scale = max(1, 96 // images.shape[1])
    canvas = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
    picture = Image.fromarray(canvas[:, :, 0] if canvas.shape[2] == 1 else canvas)
    kind = FORMATS[path.suffix.lower()]
    write_atomically(path, lambda file: picture.save(file, format=kind))
