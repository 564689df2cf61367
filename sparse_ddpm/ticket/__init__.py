"""The ticket: its value, its configuration and its file. Nothing here imports torch."""

from sparse_ddpm.ticket.architecture import MODELS, Architecture, family_of, parameters_of
from sparse_ddpm.ticket.config import (
    PRESETS,
    DiffusionConfig,
    Pattern,
    Provenance,
    UNetConfig,
)
from sparse_ddpm.ticket.file import load_ticket, save_ticket
from sparse_ddpm.ticket.names import find_ticket, shipped_ticket_path, ticket_names
from sparse_ddpm.ticket.parameters import Parameter, unet_parameters
from sparse_ddpm.ticket.synthetic import synthetic_ticket
from sparse_ddpm.ticket.ticket import Ticket
from sparse_ddpm.ticket.unet2d_config import UNet2DConfig

__all__ = [
    "MODELS",
    "PRESETS",
    "Architecture",
    "DiffusionConfig",
    "Parameter",
    "Pattern",
    "Provenance",
    "Ticket",
    "UNet2DConfig",
    "UNetConfig",
    "family_of",
    "find_ticket",
    "load_ticket",
    "parameters_of",
    "save_ticket",
    "shipped_ticket_path",
    "synthetic_ticket",
    "ticket_names",
    "unet_parameters",
]
