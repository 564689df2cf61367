"""The library without Python: built in a folder of its own, and called through ctypes."""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from native import ROOT, tool
from numpy.typing import NDArray

HEADER = ROOT / "kernels" / "sparse_ddpm_kernels" / "csrc" / "include"
STATUSES = (
    *("OK", "INVALID", "IO", "NOT_A_MODEL", "VERSION", "DAMAGED", "UNSUPPORTED", "LIMIT"),
    *("MEMORY", "CANCELLED", "NOT_FINITE", "INTERNAL"),
)
PRIVATE = 1
QUICK = ("-DSPARSE_DDPM_PORTABLE=ON", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1")


def build(folder: Path, targets: tuple[str, ...], *options: str) -> Path:
    """Configure and build some targets without a warning; the folder they lie in."""
    cmake = tool("cmake")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = ("-DSPARSE_DDPM_LIBRARY=ON", *options)
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), *generator, *options]
    for command in (configure, [cmake, "--build", str(folder), "--target", *targets]):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        assert "warning:" not in output, output
    return folder


@functools.cache
def quick_build() -> Path:
    """The library and the example with the kernels of every machine alone, once a session."""
    folder = Path(tempfile.mkdtemp(prefix="sparse-ddpm-library-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    compilers = [f"-DCMAKE_C_COMPILER={tool('gcc', 'cc')}", f"-DCMAKE_CXX_COMPILER={tool('g++')}"]
    return build(folder, ("sparse_ddpm", "sparse_ddpm_example"), *QUICK, *compilers)


def aligned(content: bytes, shift: int = 0) -> NDArray[np.uint8]:
    """In memory that begins ``shift`` bytes past a multiple of 64."""
    memory = np.zeros(len(content) + 128, np.uint8)
    start = -memory.ctypes.data % 64 + shift
    memory[start : start + len(content)] = np.frombuffer(content, np.uint8)
    return memory[start : start + len(content)]


class Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("zero", ctypes.c_int32),
        ("memory_limit", ctypes.c_uint64),
        ("work_limit", ctypes.c_uint64),
    )


class Info(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("channels", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("samplers", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("file_bytes", ctypes.c_uint64),
        ("memory_bytes", ctypes.c_uint64),
        ("work", ctypes.c_uint64),
    )


class Progress(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("step", ctypes.c_int32),
        ("steps", ctypes.c_int32),
        ("first", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("state", ctypes.POINTER(ctypes.c_float)),
    )


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Progress))


class StatusError(Exception):
    """Anything but SDDPM_OK: its name, and what sddpm_last_error says."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{STATUSES[status]}: {text}")
        self.status = STATUSES[status]


class Library:
    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        for name in ("sddpm_error_text", "sddpm_last_error", "sddpm_sampler", "sddpm_metadata"):
            getattr(self.c, name).restype = ctypes.c_char_p
        model = ctypes.c_void_p
        self.c.sddpm_sampler.argtypes = (model, ctypes.c_int32, ctypes.c_void_p)
        self.c.sddpm_metadata.argtypes = (model, ctypes.c_char_p)
        self.c.sddpm_open_memory.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(model,) * 2)
        self.c.sddpm_close.argtypes = (model,)
        for name in ("sddpm_sample", "sddpm_sample_uint8"):
            numbers = (ctypes.c_uint64,) * 3
            rest = (ctypes.c_void_p, CALLBACK, ctypes.c_void_p)
            getattr(self.c, name).argtypes = (model, ctypes.c_char_p, *numbers, *rest)

    def check(self, status: int) -> None:
        if status:
            assert self.c.sddpm_error_text(status)
            raise StatusError(status, self.c.sddpm_last_error().decode())

    def open(self, source: Path | NDArray[np.uint8], **options: int) -> Model:
        """From a file, or from the memory of an array."""
        options = {"size": ctypes.sizeof(Options), "threads": 1, **options}
        given, handle = ctypes.byref(Options(**options)), ctypes.c_void_p()
        if isinstance(source, Path):
            status = self.c.sddpm_open(str(source).encode(), given, ctypes.byref(handle))
        else:
            address, size = source.ctypes.data, source.size
            status = self.c.sddpm_open_memory(address, size, given, ctypes.byref(handle))
        assert bool(handle.value) == (status == 0)
        self.check(status)
        return Model(self, handle, source)


class Model:
    def __init__(self, library: Library, handle: ctypes.c_void_p, source: Any) -> None:
        self._library = library
        self.handle = handle
        self._source = source  # memory that is borrowed stays

    @property
    def info(self) -> Info:
        info = Info(size=ctypes.sizeof(Info))
        self._library.check(self._library.c.sddpm_get_info(self.handle, ctypes.byref(info)))
        return info

    def samplers(self) -> dict[str, int]:
        steps = ctypes.c_int32()
        found = {}
        for index in range(self.info.samplers):
            name = self._library.c.sddpm_sampler(self.handle, index, ctypes.byref(steps))
            found[name.decode()] = steps.value
        assert self._library.c.sddpm_sampler(self.handle, len(found), None) is None
        assert self._library.c.sddpm_sampler(self.handle, -1, None) is None
        return found

    def metadata(self, key: str) -> str | None:
        found = self._library.c.sddpm_metadata(self.handle, key.encode())
        return None if found is None else found.decode()

    def sample(
        self,
        count: int = 1,
        *,
        sampler: str | None = None,
        seed: int = 0,
        first: int = 0,
        levels: bool = False,
        callback: Callable[[Progress], int] | None = None,
    ) -> NDArray[Any]:
        info = self.info
        shape = (info.channels, info.height, info.width)
        if levels:
            out: NDArray[Any] = np.full((count, *shape[1:], shape[0]), 77, np.uint8)
        else:
            out = np.full((count, *shape), np.nan, np.float32)
        call = self._library.c.sddpm_sample_uint8 if levels else self._library.c.sddpm_sample
        name = None if sampler is None else sampler.encode()
        back = CALLBACK(lambda _, now: callback(now.contents)) if callback else CALLBACK()
        self._library.check(
            call(self.handle, name, seed, first, count, out.ctypes.data, back, None)
        )
        return out

    def close(self) -> None:
        self._library.c.sddpm_close(self.handle)
        self.handle = ctypes.c_void_p()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
