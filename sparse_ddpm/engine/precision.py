"""Which precisions the C++ engine has on this machine, and what to say of one that it lacks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

from sparse_ddpm_kernels import BF16, HALF, KernelError, available_flags, default_isa

from sparse_ddpm.engine.plan import DTYPES
from sparse_ddpm.errors import EngineError, expected

FLAGS: Mapping[str, int] = MappingProxyType(
    {"float32": 0, "float16": HALF, "bfloat16": HALF | BF16}
)
"""The executor's flags of each of `DTYPES`."""

NEEDS: Mapping[str, str] = MappingProxyType(
    {"float16": "instruction set avx2, avx512 or neon", "bfloat16": "avx512 with AVX512-BF16"}
)


def lacking(dtype: str) -> str | None:
    """Why ``dtype``, one of `DTYPES`, cannot run here: the error's message. None where it can.

    Raises `EngineError` without a native library, or for a wrong ``SPARSE_DDPM_ISA``.
    """
    try:
        available, isa = available_flags(), default_isa()
    except KernelError as error:
        raise EngineError(str(error)) from error
    if not FLAGS[dtype] & ~available:
        return None
    has = [name for name in DTYPES if not FLAGS[name] & ~available]
    forced = " (forced by SPARSE_DDPM_ISA)" if os.environ.get("SPARSE_DDPM_ISA") else ""
    without = " without it" if isa == "avx512" else ""
    got = f"{isa}{without}{forced}; use dtype {' or '.join(has)}"
    return expected(f"dtype {dtype}", NEEDS[dtype], got)


def available_dtypes() -> tuple[str, ...]:
    """Those of `DTYPES` that run on this machine; float32 always does. Raises as `lacking`."""
    return tuple(name for name in DTYPES if lacking(name) is None)


def check_dtype(dtype: str) -> int:
    """The executor's flags of ``dtype``; `EngineError` where this machine lacks it."""
    problem = lacking(dtype)
    if problem is not None:
        raise EngineError(problem)
    return FLAGS[dtype]
