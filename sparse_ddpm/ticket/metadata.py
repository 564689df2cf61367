"""What files made from a ticket say about it."""

from __future__ import annotations

from sparse_ddpm.ticket.ticket import Ticket


def ticket_metadata(ticket: Ticket) -> dict[str, str]:
    """What a user of such a file needs to sample from it, and where it came from, as strings.

    The command that trained the ticket stays out: it may name private paths.
    """
    diffusion, provenance = ticket.diffusion, ticket.provenance
    return {
        "timesteps": str(diffusion.timesteps),
        "schedule": diffusion.schedule,
        "objective": diffusion.objective,
        "clip": str(diffusion.clip).lower(),
        "dataset": provenance.dataset,
        "seed": str(provenance.seed),
        "round": str(provenance.round),
        "rewinding": provenance.rewinding,
        "allocation": provenance.allocation,
        "pattern": provenance.pattern,
        "sparsity": f"{ticket.sparsity:.6f}",
        "initial_sha256": provenance.initial_sha256,
    }
