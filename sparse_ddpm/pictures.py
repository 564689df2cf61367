"""Pictures: images as a grid, and figures that matplotlib draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, MissingDependencyError, expected
from sparse_ddpm.files import write_atomically

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
"""The pictures that we write, by suffix."""

FIGURES = (".png", ".svg", ".pdf")
"""The figures that matplotlib writes, by suffix."""

MATPLOTLIB = 'pip install ".[peers]"'
"""Where matplotlib comes from."""

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


def check_figure(path: Path, formats: Sequence[str] = FIGURES) -> None:
    """Raise before the long work, not after: `ConfigError` for a suffix that is none of ``formats``
    or a folder that is not there, `MissingDependencyError` where matplotlib is needed and absent.
    """
    suffix = path.suffix.lower()
    if suffix not in formats:
        wanted = f"a suffix among {', '.join(formats)}"
        raise ConfigError(expected(f"picture {path}", wanted, repr(path.suffix)))
    if not path.absolute().parent.is_dir():
        raise ConfigError(expected(f"picture {path}", "an existing folder", path.parent))
    if suffix not in FIGURES:
        return
    try:
        import matplotlib  # noqa: F401 - asked for so that its absence has one clear error
    except ImportError as error:
        wanted = f"to be installed for pictures: {MATPLOTLIB}"
        raise MissingDependencyError(expected("matplotlib", wanted, error)) from None


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib; the suffix of ``path`` says the format."""
    kind = path.suffix.lower().removeprefix(".")
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=150))
