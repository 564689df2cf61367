"""ctypes mirror of csrc/engine.h, and finding the shared library.

Environment: ``SPARSE_DDPM_LIBRARY`` names another library file to load (a sanitized build);
``SPARSE_DDPM_ISA`` forces an instruction set of `ISAS`.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

ABI = 6
LIBRARY = "sparse_ddpm_cpu.so"
ISAS = ("baseline", "avx2", "avx512", "neon")
"""Instruction sets, by their number in the library. AArch64 has ``neon`` and nothing else.

Elsewhere ``baseline`` is what every machine of the platform has (SSE2 on x86-64), and those that
x86-64 may have besides follow, narrowest first.
"""
POISON = 1
"""Flag: fill arena and scratch with NaN before every run."""
PROFILE = 2
"""Flag: keep the time of every operation."""
HALF = 4
"""Flag: activations are stored as float16; arithmetic, weights, input and output stay float32."""
BF16 = 8
"""Flag, with `HALF`: products of panels of 8 and 16 are bfloat16, their sums float32."""


class KernelError(RuntimeError):
    """The native engine is missing, unsuitable, or refused a program."""


class Kind(enum.IntEnum):
    """What an `Op` does."""

    LOAD = 0
    STORE = 1
    CONV = 2
    NORM_ACT = 3
    CHANNEL_NORM = 4
    ATTENTION = 5
    LINEAR_ATTENTION = 6
    SPACE_TO_DEPTH = 7
    UPSAMPLE = 8
    COPY = 9
    ADD = 10
    LINEAR_CONTEXT = 11
    LINEAR_MERGE = 12
    LINEAR_APPLY = 13


class Tensor(ctypes.Structure):
    """``sdk_tensor``: a tensor's place in the arena, in floats."""

    _fields_ = (
        ("offset", ctypes.c_int64),
        ("channel_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("channel_lead", ctypes.c_int64),
        ("channels", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("halo", ctypes.c_int32),
    )


class NativeWeight(ctypes.Structure):
    """``sdk_weight``."""

    _fields_ = (
        ("group", ctypes.c_int32),
        ("panels", ctypes.c_int64),
        ("panel_ptr", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("slot", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class NativeBlock(ctypes.Structure):
    """``sdk_linear_block``; ``head``: int32 ``[heads, 8]``, the fields of ``sdk_linear_head``."""

    _fields_ = (
        ("heads", ctypes.c_int32),
        ("dim_head", ctypes.c_int32),
        ("pixels", ctypes.c_int32),
        ("stride", ctypes.c_int32),
        ("chunks", ctypes.c_int32),
        ("context", ctypes.c_int64),
        ("slot_numbers", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("q", NativeWeight),
        ("k", NativeWeight),
        ("v", NativeWeight),
        ("out", NativeWeight),
        ("head", ctypes.c_void_p),
    )


class Op(ctypes.Structure):
    """``sdk_op``: one operation. Array fields hold addresses; their owner must outlive creation."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("silu", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("dim_head", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("copies", ctypes.c_int32),
        ("upsample", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("film", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("out", Tensor),
        ("x", Tensor),
        ("y", Tensor),
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("panels", ctypes.c_int64),
        ("panel_ptr", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("slot", ctypes.c_void_p),
        ("block", ctypes.POINTER(NativeBlock)),
    )


class NativeProgram(ctypes.Structure):
    """``sdk_program``."""

    _fields_ = (
        ("abi", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("flags", ctypes.c_int32),
        ("lanes", ctypes.c_int64),
        ("arena", ctypes.c_int64),
        ("ops", ctypes.c_int64),
        ("op", ctypes.POINTER(Op)),
    )


def load() -> ctypes.CDLL:
    """The native library, its functions typed. Raises `KernelError` when there is none."""
    return _load(library_path(LIBRARY, "SPARSE_DDPM_LIBRARY"))


def library_path(name: str, variable: str) -> Path:
    """What the environment's ``variable`` names, or where the build put the library ``name``.

    That is beside this file or, in an editable install, apart.
    """
    if named := os.environ.get(variable):
        return Path(named)
    folders = [Path(folder) for folder in sys.modules[__package__].__path__]
    found = (folder / name for folder in folders if (folder / name).is_file())
    return next(found, Path(__file__).with_name(name))


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    if not path.is_file():
        raise KernelError(
            f"CPU engine: expected the compiled library {path}, got no such file; install a C++17 "
            "compiler (GCC or Clang), then install sparse-ddpm again, or choose the slow reference "
            "engine (device numpy)."
        )
    try:
        library = ctypes.CDLL(str(path))
        abi = int(library.sdk_abi())
    except (OSError, AttributeError) as error:
        raise KernelError(f"CPU engine: {path} cannot be loaded: {error}") from error
    library.sdk_op_size.restype = ctypes.c_int64
    if abi != ABI or library.sdk_op_size() != ctypes.sizeof(Op):
        raise KernelError(
            f"CPU engine: expected ABI version {ABI} of {path}, got {abi} or another layout; "
            "install sparse-ddpm again."
        )
    library.sdk_isas.restype = ctypes.c_uint32
    library.sdk_dot.restype = ctypes.c_int32
    library.sdk_create.restype = ctypes.c_void_p
    library.sdk_create.argtypes = (
        ctypes.POINTER(NativeProgram),
        ctypes.c_char_p,
        ctypes.c_int64,
    )
    library.sdk_run.restype = None
    library.sdk_run.argtypes = (*(ctypes.c_void_p,) * 4, ctypes.c_int64)
    library.sdk_arena.restype = ctypes.c_void_p
    library.sdk_engine_isa.restype = ctypes.c_int32
    library.sdk_bytes.restype = ctypes.c_int64
    library.sdk_seconds.restype = None
    library.sdk_seconds.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.sdk_destroy.restype = None
    for name in ("sdk_arena", "sdk_engine_isa", "sdk_bytes", "sdk_destroy"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
    return library


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this machine and this build have, narrowest first."""
    return named_isas(int(load().sdk_isas()))


def named_isas(bits: int) -> tuple[str, ...]:
    """Those whose bit is set."""
    return tuple(name for index, name in enumerate(ISAS) if bits >> index & 1)


def chosen_isa() -> int:
    """The instruction set that the environment forces, or -1: the widest available."""
    name = forced_isa(available_isas)
    return -1 if name is None else ISAS.index(name)


def forced_isa(available: Callable[[], tuple[str, ...]]) -> str | None:
    """The instruction set that the environment forces. Raises `KernelError` for others."""
    name = os.environ.get("SPARSE_DDPM_ISA")
    if not name:
        return None
    if name not in available():
        known = "is not one of this machine's" if name in ISAS else "is unknown"
        wanted = f"one of {', '.join(available())}"
        raise KernelError(f"SPARSE_DDPM_ISA: expected {wanted}, got {name!r}, which {known}.")
    return name


def default_isa() -> str:
    """The instruction set that an `Executor` would take."""
    forced = chosen_isa()
    return ISAS[forced] if forced >= 0 else available_isas()[-1]


def available_flags() -> int:
    """Those of `HALF` and `BF16` that `default_isa` has on this machine."""
    isa = default_isa()
    half = HALF if isa != "baseline" else 0
    return half | (BF16 if isa == "avx512" and load().sdk_dot() else 0)
