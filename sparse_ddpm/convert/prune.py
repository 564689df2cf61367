"""Pruning in one shot: a trained network, and at once a part of its weights."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lottery.allocation import ALLOCATIONS, NEED_LAYERS
from sparse_ddpm.lottery.pruning import prune
from sparse_ddpm.model.build import build_model
from sparse_ddpm.ticket import Pattern, Ticket

ONE_SHOT = tuple(name for name in ALLOCATIONS if name not in NEED_LAYERS)
"""Allocations that need nothing but the weights."""


def prune_ticket(
    ticket: Ticket, sparsity: float, *, pattern: str = "element", allocation: str = "uniform"
) -> Ticket:
    """``ticket`` without the part ``sparsity`` of its prunable weights, the least of them.

    Scores, patterns and allocations are those of training (`sparse_ddpm.lottery.pruning`); what
    was pruned before stays so. Its images are worse than before until it is trained on. Raises
    `ConfigError` for settings out of range, and for a sparsity that the ticket already has.
    """
    unit = Pattern.parse(pattern)
    if not 0.0 < sparsity < 1.0:
        raise ConfigError(expected("prune", "a number between 0 and 1", repr(sparsity)))
    if allocation not in ONE_SHOT:
        wanted = f"one of {', '.join(ONE_SHOT)}"
        raise ConfigError(expected("allocation", wanted, repr(allocation)))
    if sparsity <= ticket.sparsity:
        wanted = f"more than the {ticket.sparsity:.2%} that are gone"
        raise ConfigError(expected("prune", wanted, f"{sparsity:.2%}"))
    masks = prune(
        _effective(ticket),
        {p.name: ticket.mask(p.name) for p in ticket.parameters() if p.prunable},
        1 - Fraction(str(sparsity)),
        architecture=ticket.architecture,
        allocation=allocation,
        pattern=unit,
    )
    weights = {
        name: np.where(masks[name], weight, np.float32(0.0)) if name in masks else weight
        for name, weight in ticket.weights.items()
    }
    pruned = dataclasses.replace(ticket, weights=weights, masks=masks)
    provenance = dataclasses.replace(
        ticket.provenance, allocation=allocation, pattern=pattern, sparsity=pruned.sparsity
    )
    return dataclasses.replace(pruned, provenance=provenance)


def _effective(ticket: Ticket) -> dict[str, NDArray[np.float32]]:
    """Masked and standardised weights by name, which pruning goes by."""
    model = build_model(ticket.architecture)
    model.load_state_dict({n: torch.from_numpy(w.copy()) for n, w in ticket.weights.items()})
    model.set_masks({n: torch.from_numpy(m.copy()) for n, m in ticket.masks.items()})
    return {name: weight.numpy() for name, weight in model.effective_weights().items()}
