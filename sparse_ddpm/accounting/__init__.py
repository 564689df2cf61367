"""Accounts: what a Program and its Plan cost, as pure functions. They run nothing."""

from sparse_ddpm.accounting.account import OperationAccount, account
from sparse_ddpm.accounting.flops import OperationFlops, operation_flops, program_flops
from sparse_ddpm.accounting.memory import OperationBytes, block_bytes, operation_bytes, step_bytes

__all__ = [
    "OperationAccount",
    "OperationBytes",
    "OperationFlops",
    "account",
    "block_bytes",
    "operation_bytes",
    "operation_flops",
    "program_flops",
    "step_bytes",
]
