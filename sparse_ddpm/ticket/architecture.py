"""The families of architectures that a ticket may be of."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sparse_ddpm.ticket.config import PRESETS, UNetConfig
from sparse_ddpm.ticket.parameters import Parameter, unet_parameters
from sparse_ddpm.ticket.unet2d_config import UNET2D_PRESETS, UNet2DConfig
from sparse_ddpm.ticket.unet2d_parameters import unet2d_parameters

Architecture = UNetConfig | UNet2DConfig
"""Every family has ``image_size`` and ``channels``."""

FAMILIES: Mapping[str, type[Architecture]] = MappingProxyType(
    {"unet": UNetConfig, "unet2d": UNet2DConfig}
)
"""``unet``: the paper's U-Net; ``unet2d``: diffusers' ``UNet2DModel``."""

MODELS: Mapping[str, Architecture] = MappingProxyType({**PRESETS, **UNET2D_PRESETS})
"""Architectures of every family by name."""


def family_of(architecture: Architecture) -> str:
    """The name of its family in a ticket file."""
    return next(name for name, config in FAMILIES.items() if isinstance(architecture, config))


def parameters_of(architecture: Architecture) -> tuple[Parameter, ...]:
    """Names, shapes and roles of all tensors, in the order of the forward pass."""
    match architecture:
        case UNetConfig():
            return unet_parameters(architecture)
        case UNet2DConfig():
            return unet2d_parameters(architecture)
