"""What a round is judged by: a held-out loss and a grid of samples of the masked average."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_ddpm.errors import DataError, expected
from sparse_ddpm.lottery import randomness
from sparse_ddpm.lottery.settings import Settings
from sparse_ddpm.lottery.training import to_unit_range
from sparse_ddpm.model.build import Denoiser
from sparse_ddpm.model.diffusion import Diffusion, loss
from sparse_ddpm.sampling.loop import sample_loop, to_uint8
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
def held_out_loss(
    settings: Settings, diffusion: Diffusion, model: Denoiser, images: Tensor
) -> float:
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
def draw(settings: Settings, model: Denoiser, count: int = GRID * GRID) -> NDArray[np.uint8]:
    """``count`` images, uint8 ``[N, H, W, C]``, in 25 DDIM steps."""
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
    return to_uint8(
        sample_loop(denoise, table, seed=settings.seed, image_indices=np.arange(count), shape=shape)
    )
