"""diffusers' own U-Nets with random weights, saved as it saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from numpy.typing import NDArray

TINY: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 24, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention in other places": {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
        "layers_per_block": 2,
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "time_embedding_dim": 36},
    "scale and shift, norm in the middle": {
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
    },
    "one head, padding below": {
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "heads that do not divide": {"attention_head_dim": 5},
    "scaled middle": {"mid_block_scale_factor": 1.7},
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "resnets that resample": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "one level of three channels": {
        "in_channels": 3,
        "out_channels": 3,
        "sample_size": 5,
        "block_out_channels": (6,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "norm_num_groups": 3,
        "attention_head_dim": 2,
    },
    "an identity on a concatenation": {
        "block_out_channels": (8, 24, 8),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "UpBlock2D"),
    },
}
"""Of `unet`, by what is odd about them."""

MASKS = (0.0, 0.5, 0.9, 0.99)


def unet(seed: int = 0, **changes: Any) -> UNet2DModel:
    """A model of `TINY` with ``changes``; norms and biases are random too."""
    torch.manual_seed(seed)
    model = UNet2DModel(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def prune(model: UNet2DModel, sparsity: float, seed: int = 0) -> None:
    """Set that part of every matrix to zero, but of the first, the last and the time MLP."""
    rng = np.random.default_rng(seed)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and not name.startswith(("conv_in", "conv_out", "time_embedding")):
            keep = torch.from_numpy(rng.random(tuple(weight.shape)) >= sparsity)
            with torch.no_grad():
                # As from training: what is left makes up for what is gone.
                weight.mul_(keep / max(1.0 - sparsity, 0.01) ** 0.5)


def save(
    model: UNet2DModel,
    folder: Path,
    scheduler: DDPMScheduler | DDIMScheduler | None = None,
    **settings: Any,
) -> Path:
    """A pipeline's folder, without its ``model_index.json``, which nobody needs."""
    model.save_pretrained(folder / "unet", **settings)
    (scheduler or DDPMScheduler()).save_pretrained(folder / "scheduler")
    return folder


def outputs(model: UNet2DModel, x: NDArray[np.float32], t: float) -> NDArray[np.float64]:
    """The model's, in float64 (its sinusoids are float32 all the same)."""
    with torch.no_grad():
        made = model.double()(torch.from_numpy(x).double(), t).sample.numpy()
    model.float()
    return np.asarray(made)
