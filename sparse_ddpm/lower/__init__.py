"""Lowering: a ticket becomes a Program. One file per architecture."""

from sparse_ddpm.lower.passes import fuse_residuals
from sparse_ddpm.lower.unet import lower_unet
from sparse_ddpm.program import Program
from sparse_ddpm.ticket import Ticket

__all__ = ["fuse_residuals", "lower", "lower_unet"]


def lower(ticket: Ticket) -> Program:
    """Compile a ticket: fold weight standardisation, make weights sparse, fuse residual adds."""
    return fuse_residuals(lower_unet(ticket))
