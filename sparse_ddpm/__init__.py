"""sparse-ddpm: pruned diffusion models that are fast for real.

>>> from sparse_ddpm import Sampler
>>> images = Sampler.load("ticket.pt").sample(16, steps=50, seed=0)

The public names are imported when they are first used, so ``import sparse_ddpm`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_ddpm.api import Sampler, Step
    from sparse_ddpm.api.unet2d import UNet2D
    from sparse_ddpm.engine import Engine, make_engine
    from sparse_ddpm.errors import CancelledError, SparseDDPMError
    from sparse_ddpm.program import Program
    from sparse_ddpm.ticket import Ticket, load_ticket, save_ticket, ticket_names

__version__ = "0.1.0"

_HOMES = {
    "CancelledError": "errors",
    "Engine": "engine",
    "Program": "program",
    "Sampler": "api",
    "SparseDDPMError": "errors",
    "Step": "api",
    "Ticket": "ticket",
    "UNet2D": "api.unet2d",
    "load_ticket": "ticket",
    "make_engine": "engine",
    "save_ticket": "ticket",
    "ticket_names": "ticket",
}

__all__ = [
    "CancelledError",
    "Engine",
    "Program",
    "Sampler",
    "SparseDDPMError",
    "Step",
    "Ticket",
    "UNet2D",
    "__version__",
    "load_ticket",
    "make_engine",
    "save_ticket",
    "ticket_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
