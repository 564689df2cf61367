"""The trainable network of an architecture."""

from __future__ import annotations

from sparse_ddpm.model.denoiser import Denoiser
from sparse_ddpm.model.unet import UNet
from sparse_ddpm.model.unet2d import UNet2D
from sparse_ddpm.ticket import Architecture, UNet2DConfig, UNetConfig

__all__ = ["Denoiser", "build_model"]


def build_model(architecture: Architecture) -> Denoiser:
    """A network with random weights."""
    match architecture:
        case UNetConfig():
            return UNet(architecture)
        case UNet2DConfig():
            return UNet2D(architecture)
