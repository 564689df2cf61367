"""What images are handed out as."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, MissingDependencyError, expected
from sparse_ddpm.sampling import to_uint8

OUTPUTS = ("np", "pil", "float", "torch")
"""``np``: uint8 ``[n, H, W, C]``; ``pil``: a list of ``PIL.Image.Image``; ``float``: float32 array
``[n, C, H, W]`` in [-1, 1]; ``torch``: a tensor of the same numbers, which shares their memory."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""PIL's, by the number of channels."""


def check_output(output: str, channels: int) -> None:
    """Raise, before anything is drawn, what `as_output` would raise after."""
    if output not in OUTPUTS:
        raise ConfigError(expected("output", f"one of {', '.join(OUTPUTS)}", repr(output)))
    if output == "pil" and channels not in MODES:
        wanted = f"images of {', '.join(map(str, MODES))} channels (np takes any)"
        raise ConfigError(expected("output 'pil'", wanted, channels))
    if output == "torch":
        _torch()


def as_output(images: NDArray[np.float32], output: str) -> Any:
    """``images``, float32 ``[n, C, H, W]`` in [-1, 1], as one of `OUTPUTS`.

    Raises `ConfigError` for another output or images that PIL has no mode for, and
    `MissingDependencyError` where torch is wanted and absent.
    """
    check_output(output, images.shape[1])
    match output:
        case "float":
            return images
        case "torch":
            return _torch().from_numpy(images)
        case "pil":
            from PIL import Image

            mode = MODES[images.shape[1]]
            levels = to_uint8(images)
            height, width = levels.shape[1:3]
            return [Image.frombytes(mode, (width, height), one.tobytes()) for one in levels]
        case _:
            return to_uint8(images)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        wanted = 'torch: pip install "sparse-ddpm[train]"'
        raise MissingDependencyError(expected("output 'torch'", wanted, "no torch")) from error
    return torch
