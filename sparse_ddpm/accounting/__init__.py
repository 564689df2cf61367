"""Accounts: what a Program costs, as pure functions. They compute nothing of the images."""

from sparse_ddpm.accounting.flops import OperationFlops, operation_flops, program_flops
from sparse_ddpm.accounting.memory import OperationBytes, operation_bytes

__all__ = [
    "OperationBytes",
    "OperationFlops",
    "operation_bytes",
    "operation_flops",
    "program_flops",
]
