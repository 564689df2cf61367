"""Images as one picture, a grid."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.files import write_atomically

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
"""The pictures that we write, by suffix."""

SHOWN = 96
"""Images of fewer rows of pixels are enlarged towards this, by a whole factor."""


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


def save_grid(images: NDArray[np.uint8], path: Path) -> None:
    """Write ``images`` ``[n, H, W, 1 or 3]`` as a grid; the suffix of ``path`` says the format.

    Raises `ConfigError` for another number of channels or another suffix.
    """
    from PIL import Image

    if images.shape[3] not in (1, 3):
        wanted = "1 or 3 channels (other images can be written as .npy)"
        raise ConfigError(expected(f"picture {path}", wanted, images.shape[3]))
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        wanted = f"a suffix among {', '.join(FORMATS)}"
        raise ConfigError(expected(f"picture {path}", wanted, repr(path.suffix)))
    scale = max(1, SHOWN // images.shape[1])
    canvas = grid(images).repeat(scale, axis=0).repeat(scale, axis=1)
    picture = Image.fromarray(canvas[:, :, 0] if canvas.shape[2] == 1 else canvas)
    write_atomically(path, lambda file: picture.save(file, format=kind))
