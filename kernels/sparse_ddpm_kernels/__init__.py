"""The kernels of sparse-ddpm: arrays and integers, nothing of the package above.

`Executor` runs a planned program on the CPU; csrc/engine.h is the contract of every field.
"""

from sparse_ddpm_kernels.binding import (
    BF16,
    HALF,
    ISAS,
    POISON,
    PROFILE,
    KernelError,
    Kind,
    Op,
    Tensor,
    available_flags,
    available_isas,
    default_isa,
    load,
)
from sparse_ddpm_kernels.executor import Executor

__all__ = [
    "BF16",
    "HALF",
    "ISAS",
    "POISON",
    "PROFILE",
    "Executor",
    "KernelError",
    "Kind",
    "Op",
    "Tensor",
    "available_flags",
    "available_isas",
    "default_isa",
    "load",
]
