"""Accounts: what a Program and its Plan cost, as pure functions. They run nothing."""

from sparse_ddpm.accounting.account import OperationAccount, account
from sparse_ddpm.accounting.executed import executed_flops, executed_images
from sparse_ddpm.accounting.flops import (
    OperationFlops,
    operation_flops,
    program_flops,
    time_flops,
)
from sparse_ddpm.accounting.lifetimes import Lifetime, lifetimes, live_bytes, moments
from sparse_ddpm.accounting.limits import (
    Ceilings,
    Level,
    Limit,
    limit,
    reference_ceilings,
    reference_gpu_ceilings,
)
from sparse_ddpm.accounting.memory import OperationBytes, block_bytes, operation_bytes, step_bytes
from sparse_ddpm.accounting.planned import (
    PlannedBytes,
    native_bytes,
    planned_bytes,
    process_bytes,
    table_bytes,
)
from sparse_ddpm.accounting.predict import predict
from sparse_ddpm.accounting.stored import StoredTensor, gzip_of_dense, stored_tensors

__all__ = [
    "Ceilings",
    "Level",
    "Lifetime",
    "Limit",
    "OperationAccount",
    "OperationBytes",
    "OperationFlops",
    "PlannedBytes",
    "StoredTensor",
    "account",
    "block_bytes",
    "executed_flops",
    "executed_images",
    "gzip_of_dense",
    "lifetimes",
    "limit",
    "live_bytes",
    "moments",
    "native_bytes",
    "operation_bytes",
    "operation_flops",
    "planned_bytes",
    "predict",
    "process_bytes",
    "program_flops",
    "reference_ceilings",
    "reference_gpu_ceilings",
    "step_bytes",
    "stored_tensors",
    "table_bytes",
    "time_flops",
]
