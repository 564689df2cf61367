"""A pytest plugin: the native library in another process, perhaps of another architecture.

``SPARSE_DDPM_REMOTE`` is the command that serves it, as ``qemu-aarch64 driver library.so`` does.
Where a test names a library of its own (``SPARSE_DDPM_LIBRARY``), that one is loaded here.
Programs travel as the bytes of the ctypes structures and of the arrays that their pointers lead
to, so nothing here knows what an operation holds.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import sparse_ddpm_kernels
from numpy._core import _internal
from numpy.typing import NDArray
from sparse_ddpm_kernels import binding, executor

LINE = 64


class KnownArrays:
    """The arrays whose address was asked for: a bare pointer does not say where its array ends."""

    def __init__(self) -> None:
        self._recent: deque[NDArray[Any]] = deque(maxlen=8192)

    def watch(self) -> None:
        """See every ``array.ctypes.data`` from now on."""
        helper: Any = _internal._ctypes
        original = helper.data.fget

        def data(of: Any) -> int:
            self._recent.append(of._arr)
            return int(original(of))

        helper.data = property(data)

    def rest(self, address: int | None) -> NDArray[np.uint8]:
        """The bytes from ``address`` to the end of its array."""
        if not address:
            return np.empty(0, np.uint8)
        for array in reversed(self._recent):
            first = int(array.__array_interface__["data"][0])
            if first <= address < first + max(array.nbytes, 1):
                assert array.flags.c_contiguous
                return array.reshape(-1).view(np.uint8)[address - first :]
        raise LookupError(f"an address of no known array: {address:#x}")


def pointers(kind: Any, at: int = 0) -> Iterator[tuple[int, Any]]:
    """Where the pointers of a structure lie, and to what structure: None for those to arrays."""
    for name, field in kind._fields_:
        offset = at + getattr(kind, name).offset
        if field is ctypes.c_void_p:
            yield offset, None
        elif issubclass(field, ctypes.Structure):
            yield from pointers(field, offset)
        elif hasattr(field, "contents"):
            yield offset, field._type_


class RemoteLibrary:
    """The functions of ``engine.h``, by name, called over a pipe."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lock = threading.Lock()
        self._arenas: dict[int, Any] = {}
        self._arena_bytes: dict[int, int] = {}
        self._operations: dict[int, int] = {}
        self.known = KnownArrays()
        self._abi, self._op_size, self._isas, self._dot = (self._number() for _ in range(4))

    def _number(self) -> int:
        return int(struct.unpack("q", self._read(8))[0])

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        found = self._process.stdout.read(size)
        if len(found) != size:
            raise RuntimeError(f"the remote library ended: {self._process.wait()}")
        return found

    def _block(self) -> bytes:
        return self._read(self._number())

    def _ask(self, command: str, *words: int | bytes) -> None:
        """Write a command and its arguments: numbers, and bytes behind their count."""
        parts = [struct.pack("q", ord(command))]
        for word in words:
            if isinstance(word, int):
                parts.append(struct.pack("q", word))
            else:
                parts += [struct.pack("q", len(word)), word]
        assert self._process.stdin is not None
        self._process.stdin.write(b"".join(parts))
        self._process.stdin.flush()

    def sdk_abi(self) -> int:
        return self._abi

    def sdk_op_size(self) -> int:
        return self._op_size

    def sdk_isas(self) -> int:
        return self._isas

    def sdk_dot(self) -> int:
        return self._dot

    def sdk_create(self, reference: Any, error: Any, size: int) -> int:
        program = reference._obj
        kind = type(program)
        blob = bytearray(program)
        places: list[int] = []

        def append(data: bytes | memoryview) -> int:
            blob.extend(b"\0" * (-len(blob) % LINE))
            blob.extend(data)
            return len(blob) - len(data)

        item = dict(kind._fields_)["op"]._type_
        stride, count = ctypes.sizeof(item), program.ops
        first = append(ctypes.string_at(program.op, stride * count) if count else b"")
        places += [kind.op.offset, first]
        copied: dict[int, int] = {}  # structures, which several operations may share

        def follow(kind: Any, base: int) -> None:
            for at, target in pointers(kind, base):
                (address,) = struct.unpack_from("P", blob, at)
                if not address:
                    continue
                if target is None:
                    places.extend((at, append(self.known.rest(address).data)))
                    continue
                if address not in copied:
                    size = ctypes.sizeof(target)
                    copied[address] = append(ctypes.string_at(address, size))
                    follow(target, copied[address])
                places.extend((at, copied[address]))

        for index in range(count):
            follow(item, first + index * stride)
        with self._lock:
            self._ask("c", bytes(blob), struct.pack(f"{len(places)}q", *places))
            handle, message = self._number(), self._block()
        if handle == ~0:
            error.value = message[: size - 1]
            return 0
        number = 2 if program.flags & binding.HALF else 4
        self._arena_bytes[handle] = number * program.arena
        self._operations[handle] = count
        return handle

    def sdk_run(self, handle: int, x: int, out: int, row: int | None, images: int) -> None:
        wanted = self.known.rest(out)
        with self._lock:
            data = self.known.rest(x).tobytes(), self.known.rest(row).tobytes()
            self._ask("r", handle, *data, wanted.nbytes, images)
            wanted[:] = np.frombuffer(self._block(), np.uint8)

    def sdk_arena(self, handle: int) -> int:
        with self._lock:
            self._ask("a", handle, self._arena_bytes[handle])
            self._arenas[handle] = ctypes.create_string_buffer(self._block())
        return ctypes.addressof(self._arenas[handle])

    def sdk_engine_isa(self, handle: int) -> int:
        with self._lock:
            self._ask("i", handle)
            return self._number()

    def sdk_bytes(self, handle: int) -> int:
        with self._lock:
            self._ask("b", handle)
            return self._number()

    def sdk_seconds(self, handle: int, seconds: int) -> None:
        with self._lock:
            self._ask("s", handle, 8 * self._operations[handle])
            found = self._block()
        ctypes.memmove(seconds, found, len(found))

    def sdk_destroy(self, handle: int) -> None:
        with self._lock:
            self._ask("d", handle)
            self._number()


def pytest_configure() -> None:
    library = RemoteLibrary(shlex.split(os.environ["SPARSE_DDPM_REMOTE"]))
    assert library.sdk_abi() == binding.ABI
    assert library.sdk_op_size() == ctypes.sizeof(binding.Op)
    library.known.watch()
    local = binding.load

    def load() -> Any:
        return local() if os.environ.get("SPARSE_DDPM_LIBRARY") else library

    for module in (binding, executor, sparse_ddpm_kernels):
        module.load = load  # type: ignore[attr-defined]
