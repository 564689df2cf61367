"""ctypes mirror of csrc/train.h: passes of a sparse U-Net that is trained on the CPU.

Environment: ``SPARSE_DDPM_TRAIN_LIBRARY`` names another library file to load (a sanitized build);
``SPARSE_DDPM_ISA`` forces an instruction set of `ISAS`.
"""

from __future__ import annotations

import ctypes
import enum
import functools
from collections.abc import Iterable
from pathlib import Path

from sparse_ddpm_kernels.binding import ISAS as ISAS
from sparse_ddpm_kernels.binding import KernelError as KernelError
from sparse_ddpm_kernels.binding import forced_isa, library_path, named_isas

ABI = 1
LIBRARY = "sparse_ddpm_train.so"
CHUNK = 16
"""Pixels that linear attention takes at a time, ``SDT_CHUNK``."""
GROUPS = (1, 4, 8)
"""Output channels that a panel may have."""


class Kind(enum.IntEnum):
    """What an `Op` does."""

    LOAD = 0
    STORE = 1
    CONV = 2
    NORM_ACT = 3
    CHANNEL_NORM = 4
    LINEAR = 5
    SOFTMAX = 6
    SPACE_TO_DEPTH = 7
    UPSAMPLE = 8
    ADD = 9
    CONV_WEIGHT = 10
    NORM_ACT_BACK = 11
    CHANNEL_NORM_BACK = 12
    LINEAR_BACK = 13
    SOFTMAX_BACK = 14
    SPACE_TO_DEPTH_BACK = 15
    UPSAMPLE_BACK = 16


class Tensor(ctypes.Structure):
    """``sdt_tensor``."""

    _fields_ = (
        ("offset", ctypes.c_int64),
        ("channel_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("channels", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("space", ctypes.c_int32),
    )


class Weight(ctypes.Structure):
    """``sdt_weight``; array fields hold addresses."""

    _fields_ = (
        ("group", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("panels", ctypes.c_int64),
        ("chunks", ctypes.c_int64),
        ("panel_ptr", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("value", ctypes.c_int64),
        ("bias", ctypes.c_int64),
    )


class Op(ctypes.Structure):
    """``sdt_op``."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("dim_head", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("eps", ctypes.c_double),
        ("film", ctypes.c_int64),
        ("a", ctypes.c_int64),
        ("b", ctypes.c_int64),
        ("saved", ctypes.c_int64),
        ("kept", ctypes.c_void_p),
        ("out", Tensor),
        ("x", Tensor),
        ("y", Tensor),
        ("w", Weight * 6),
    )


class Job(ctypes.Structure):
    """``sdt_job``."""

    _fields_ = (
        ("op", ctypes.c_void_p),
        ("ops", ctypes.c_int64),
        ("lanes", ctypes.c_int64),
        ("isa", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("workspace", ctypes.c_void_p),
        ("scratch", ctypes.c_int64),
        ("arena", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("film", ctypes.c_void_p),
        ("input", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("film_gradient", ctypes.c_void_p),
        ("gradients", ctypes.c_void_p),
        ("images", ctypes.c_int64),
    )


class Parameter(ctypes.Structure):
    """``sdt_parameter``."""

    _fields_ = (
        ("dense", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("index", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("value", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("row_size", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("moments", ctypes.c_void_p),
    )


def load() -> ctypes.CDLL:
    """The native library, its functions typed. Raises `KernelError` when there is none."""
    return _load(library_path(LIBRARY, "SPARSE_DDPM_TRAIN_LIBRARY"))


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    if not path.is_file():
        raise KernelError(
            f"sparse training: expected the compiled library {path}, got no such file; install a "
            "C++17 compiler (GCC or Clang), then install sparse-ddpm again, or train with torch's "
            "kernels (--kernels torch)."
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"{path}: expected a shared library, got {error}.") from None
    i32, i64, address = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    for name, result, arguments in (
        ("sdt_abi", i32, ()),
        ("sdt_op_size", i64, ()),
        ("sdt_job_size", i64, ()),
        ("sdt_isas", ctypes.c_uint32, ()),
        ("sdt_vector", i32, (i32,)),
        ("sdt_scratch", i64, (i32, address, i64)),
        ("sdt_run", i32, (address, i64, i32)),
        ("sdt_gather", None, (address, i64, address)),
        ("sdt_scatter", None, (address, i64, address, address)),
    ):
        function = getattr(library, name, None)
        if function is None:
            raise KernelError(f"{path}: expected a function {name}, got none.")
        function.restype, function.argtypes = result, arguments
    found = library.sdt_abi(), library.sdt_op_size(), library.sdt_job_size()
    wanted = ABI, ctypes.sizeof(Op), ctypes.sizeof(Job)
    if found != wanted:
        what = f"ABI {ABI} with structures of {wanted[1:]} bytes"
        raise KernelError(f"{path}: expected {what}, got {found[0]} with {found[1:]}.")
    return library


def isas() -> tuple[str, ...]:
    """The instruction sets that this machine can run, narrowest first."""
    return named_isas(load().sdt_isas())


def default_isa() -> str:
    """The widest, or the one that ``SPARSE_DDPM_ISA`` names. Raises `KernelError`."""
    return forced_isa(isas) or isas()[-1]


def vector(isa: str) -> int:
    """Floats of a vector."""
    return int(load().sdt_vector(ISAS.index(isa)))


def address(operations: ctypes.Array[Op]) -> int:
    """Where operations lie, for `Job`; who asks keeps them."""
    return ctypes.addressof(operations)


def scratch(isa: str, operations: Iterable[Op], lanes: int) -> int:
    """Floats of scratch that the neediest operation takes."""
    library, index = load(), ISAS.index(isa)
    return max(int(library.sdt_scratch(index, ctypes.byref(op), lanes)) for op in operations)


def run(jobs: ctypes.Array[Job], threads: int) -> None:
    """All ``jobs``; those that share a thread one after the other. Raises `KernelError`."""
    if load().sdt_run(jobs, len(jobs), threads) != 0:
        raise KernelError("sparse training: expected threads to start, got none.")


def gather(parameters: ctypes.Array[Parameter], values: int) -> None:
    """Values, at that address, of all parameters."""
    load().sdt_gather(parameters, len(parameters), values)


def scatter(parameters: ctypes.Array[Parameter], values: int, gradients: int) -> None:
    """Gradients of all parameters from those of their values."""
    load().sdt_scatter(parameters, len(parameters), values, gradients)
