"""What this machine can do at most, measured: csrc/ceiling.cpp is the contract."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from sparse_ddpm_kernels.binding import ISAS, KernelError, available_isas, default_isa, load

TRIES, SECONDS = 100, 0.004
"""The best of so many tries, each shorter than the turn that another process takes on a core, so
that some go undisturbed: what else the machine does can only slow them."""
LARGE, LARGE_TRIES = 64 << 20, 6
"""Fewer tries above so many bytes, which take long to fill."""


def peak_flops(isa: str | None = None, threads: int = 1) -> float:
    """Float32 FLOP/s from registers, all ``threads`` together; a multiply-add counts as two.

    ``isa``: one of `available_isas`, default the one that an `Executor` would take. Raises
    `KernelError`.
    """
    function = _function("sdk_peak_flops", ctypes.c_int32, ctypes.c_int32, ctypes.c_double)
    index = _index(isa)
    return max(function(index, threads, SECONDS) for _ in range(TRIES))


def bandwidth(size: int, isa: str | None = None, threads: int = 1, *, copy: bool = False) -> float:
    """Bytes/s of reading ``size`` bytes a thread again and again, all ``threads`` together.

    ``copy``: half of them are written from the other half; both are counted. A ``size`` well
    inside a cache measures that cache. Raises `KernelError`, also for less than 1 KiB.
    """
    arguments = (
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_int64,
        ctypes.c_int32,
        ctypes.c_double,
    )
    function = _function("sdk_bandwidth", *arguments)
    index = _index(isa)
    tries = TRIES if size * threads < LARGE else LARGE_TRIES
    rate = max(function(index, threads, size, int(copy), SECONDS) for _ in range(tries))
    if rate <= 0.0:
        raise KernelError(f"bandwidth: expected 1024 bytes or more that fit memory, got {size}.")
    return rate


def _function(name: str, *arguments: type) -> Callable[..., float]:
    try:
        function = getattr(load(), name)
    except AttributeError:
        raise KernelError(
            f"CPU engine: expected a library with {name}, got an older one."
        ) from None
    function.restype, function.argtypes = ctypes.c_double, arguments
    found: Callable[..., float] = function
    return found


def _index(isa: str | None) -> int:
    available = available_isas()
    if isa is not None and isa not in available:
        raise KernelError(f"isa: expected one of {', '.join(available)}, got {isa!r}.")
    return ISAS.index(isa or default_isa())
