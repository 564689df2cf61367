"""The stages put together: ticket, program, engine, sampler, images."""

from sparse_ddpm.api.output import OUTPUTS
from sparse_ddpm.api.sampler import DEFAULT_BATCH, DEFAULT_BATCHES, Sampler
from sparse_ddpm.api.step import Step

__all__ = ["DEFAULT_BATCH", "DEFAULT_BATCHES", "OUTPUTS", "Sampler", "Step"]
