"""A planned program as a native handle."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm_kernels.binding import (
    ABI,
    HALF,
    ISAS,
    KernelError,
    NativeProgram,
    Op,
    chosen_isa,
    load,
)

_ERROR_BYTES = 512


class Executor:
    """Owns a native engine. The arrays behind ``ops`` are copied and may go once it is made.

    ``arena``: numbers; ``lanes``: images of one pass, 1 or a multiple of 16; ``flags``: of
    `POISON`, `PROFILE`, `HALF`, `BF16`. Nothing here checks an offset or a stride: that is the
    caller's duty.
    Raises `KernelError` when the library is missing or refuses.
    """

    def __init__(
        self,
        ops: Sequence[Op],
        *,
        arena: int,
        lanes: int,
        threads: int,
        flags: int = 0,
    ) -> None:
        self._library = load()
        self._lock = threading.Lock()
        self._count = len(ops)
        self._arena_floats = arena
        self._half = bool(flags & HALF)
        array = (Op * len(ops))(*ops)
        program = NativeProgram(ABI, chosen_isa(), threads, flags, lanes, arena, len(ops), array)
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        handle = self._library.sdk_create(ctypes.byref(program), error, _ERROR_BYTES)
        if not handle:
            raise KernelError(f"CPU engine: {error.value.decode(errors='replace')}.")
        self._handle: int | None = handle
        self._end = weakref.finalize(self, self._library.sdk_destroy, handle)

    @property
    def isa(self) -> str:
        return ISAS[self._library.sdk_engine_isa(self._open())]

    @property
    def nbytes(self) -> int:
        """Bytes of weights and scratch, held beside the arena."""
        return int(self._library.sdk_bytes(self._open()))

    def run(self, x: NDArray[np.float32], out: NDArray[np.float32], row: int | None) -> None:
        """One step. ``x``, ``out``: contiguous ``[images, C, H, W]``; ``row``: an address."""
        with self._lock:
            self._library.sdk_run(self._open(), x.ctypes.data, out.ctypes.data, row, len(x))

    def arena(self) -> NDArray[Any]:
        """The arena after the last pass, ``[arena]``, float32 or float16; valid until `close`."""
        address = self._library.sdk_arena(self._open())
        kind = ctypes.c_uint16 if self._half else ctypes.c_float
        pointer = ctypes.cast(address, ctypes.POINTER(kind))
        stored = np.ctypeslib.as_array(pointer, shape=(self._arena_floats,))
        return stored.view(np.float16) if self._half else stored

    def seconds(self) -> NDArray[np.float64]:
        """Seconds of the last step by operation, ``[ops]``; needs the flag `PROFILE`."""
        seconds = np.zeros(self._count, dtype=np.float64)
        self._library.sdk_seconds(self._open(), seconds.ctypes.data)
        return seconds

    def close(self) -> None:
        """End the threads and free the memory; more calls do nothing."""
        with self._lock:
            self._handle = None
            self._end()

    def _open(self) -> int:
        if self._handle is None:
            raise KernelError("CPU engine: expected an open engine, got a closed one.")
        return self._handle

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
