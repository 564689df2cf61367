"""From a network's output to images: noise schedules, sampler tables, noise and the loop."""

from sparse_ddpm.sampling.loop import sample_loop, sample_steps, to_uint8
from sparse_ddpm.sampling.noise import normal
from sparse_ddpm.sampling.schedule import alphas_cumprod, betas
from sparse_ddpm.sampling.spacing import SPACINGS
from sparse_ddpm.sampling.table import SAMPLERS, Table, make_table

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "Table",
    "alphas_cumprod",
    "betas",
    "make_table",
    "normal",
    "sample_loop",
    "sample_steps",
    "to_uint8",
]
