"""What a round is judged by: a held-out loss and a grid of samples of the masked average."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sparse_ddpm.errors import DataError, expected
from sparse_ddpm.lottery import randomness
from sparse_ddpm.lottery.files import write_atomically
from sparse_ddpm.lottery.settings import Settings
from sparse_ddpm.lottery.training import to_unit_range
from sparse_ddpm.model.diffusion import Diffusion, loss
from sparse_ddpm.model.unet import UNet
from sparse_ddpm.sampling.loop import sample_loop
from sparse_ddpm.sampling.table import make_table

HELD_OUT = 2000
"""Images at the end of the data that are never trained on, at most a tenth of them."""
GRID = 4
GRID_STEPS = 25


def split(images: Tensor) -> tuple[Tensor, Tensor]:
    """Training images and the last ones, held out; raises `DataError` for fewer than two images."""
    if len(images) < 2:
        raise DataError(expected("data", "at least 2 images", len(images)))
    held = min(HELD_OUT, max(1, len(images) // 10))
    return images[:-held], images[-held:]


@torch.no_grad()
def held_out_loss(settings: Settings, diffusion: Diffusion, model: UNet, images: Tensor) -> float:
    """Mean loss on ``images`` uint8 ``[N, C, H, W]``, the same noise and timesteps in every run.

    The timesteps are spread evenly over all, so that the mean has little variance; float32
    throughout.
    """
    model.eval()
    count = len(images)
    rng = randomness.generator(0, "heldout")
    spread = (np.arange(count, dtype=np.int64) * settings.timesteps) // count
    times = torch.from_numpy(rng.permutation(spread))
    total = 0.0
    for first in range(0, count, settings.batch_size):
        part = slice(first, min(first + settings.batch_size, count))
        x0 = to_unit_range(images[part])
        noise = torch.from_numpy(rng.standard_normal(tuple(x0.shape), np.float32)).to(x0.device)
        t = times[part].to(x0.device)
        prediction = model(diffusion.q_sample(x0, t, noise), t)
        total += float(loss(prediction, diffusion.target(x0, t, noise), settings.loss)) * len(x0)
    return total / count


@torch.no_grad()
def draw(settings: Settings, model: UNet, count: int = GRID * GRID) -> NDArray[np.float32]:
    """``count`` images ``[N, C, H, W]`` in [-1, 1] in 25 DDIM steps."""
    model.eval()
    architecture = settings.architecture
    device = torch.device(settings.device)
    table = make_table(
        settings.diffusion, sampler="ddim", steps=min(GRID_STEPS, settings.timesteps)
    )

    def denoise(x: NDArray[np.float32], step: int) -> NDArray[np.float32]:
        t = torch.full((len(x),), int(table.timesteps[step]), device=device)
        out: NDArray[np.float32] = model(torch.from_numpy(x).to(device), t).cpu().numpy()
        return out

    shape = (architecture.channels, architecture.image_size, architecture.image_size)
    return sample_loop(
        denoise, table, seed=settings.seed, image_indices=np.arange(count), shape=shape
    )


def save_grid(images: NDArray[np.float32], path: Path) -> None:
    """Write ``[N, C, H, W]`` in [-1, 1] as one nearly square picture, enlarged by whole pixels."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    pixels = np.rint((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    if channels not in (1, 3):
        pixels, channels = pixels[:, :1], 1
    padded = np.zeros((rows * columns, channels, height, width), np.uint8)
    padded[:count] = pixels
    canvas = padded.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    canvas = canvas.reshape(rows * height, columns * width, channels)
    scale = max(1, 64 // height)
    canvas = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
    picture = Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))
