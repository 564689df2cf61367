"""Lowering: a ticket becomes a Program. One file per architecture."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from sparse_ddpm.lower.passes import fuse_residuals
from sparse_ddpm.lower.unet import lower_unet
from sparse_ddpm.lower.unet2d import lower_unet2d
from sparse_ddpm.program import Program
from sparse_ddpm.ticket import Ticket, family_of

__all__ = ["fuse_residuals", "lower", "lower_unet", "lower_unet2d"]

LOWERINGS: Mapping[str, Callable[[Ticket], Program]] = MappingProxyType(
    {"unet": lower_unet, "unet2d": lower_unet2d}
)
"""By family of architectures."""


def lower(ticket: Ticket) -> Program:
    """Compile a ticket: fold weight standardisation, make weights sparse, fuse residual adds."""
    return fuse_residuals(LOWERINGS[family_of(ticket.architecture)](ticket))
