"""The ticket: its value, its configuration and its file. Nothing here imports torch."""

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

__all__ = [
    "PRESETS",
    "DiffusionConfig",
    "Parameter",
    "Pattern",
    "Provenance",
    "Ticket",
    "UNetConfig",
    "find_ticket",
    "load_ticket",
    "save_ticket",
    "shipped_ticket_path",
    "synthetic_ticket",
    "ticket_names",
    "unet_parameters",
]
