"""Plain content as a pickle of protocol 2, with tensors as torch.save refers to them.

The bytes depend on the content alone, and `sparse_ddpm.ticket.plain_pickle` reads them back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket.plain_pickle import MAX_PICKLE, dense_strides


class Place(NamedTuple):
    """Where the data of a tensor lie: storage class, its key and length, first element."""

    storage: str
    key: str
    length: int
    offset: int


def write_plain_pickle(content: object, locate: Callable[[NDArray[Any]], Place]) -> bytes:
    """Pickle tables, lists, bool, int, float, str and arrays whose data ``locate`` has placed."""
    writer = _Writer(locate)
    writer.value(content)
    data = b"\x80\x02" + bytes(writer.out) + b"."
    if len(data) > MAX_PICKLE:
        raise TicketError(expected("data.pkl", f"at most {MAX_PICKLE} bytes", len(data)))
    return data


class _Writer:
    def __init__(self, locate: Callable[[NDArray[Any]], Place]) -> None:
        self.locate = locate
        self.out = bytearray()
        self.memo: dict[str, int] = {}

    def value(self, value: object) -> None:
        match value:
            case bool():
                self.out += b"\x88" if value else b"\x89"
            case int():
                self.integer(value)
            case float():
                self.out += b"G" + struct.pack(">d", value)
            case str():
                self.string(value)
            case dict():
                self.out += b"}("
                for key, item in value.items():
                    self.value(key)
                    self.value(item)
                self.out += b"u"
            case list():
                self.out += b"]("
                for item in value:
                    self.value(item)
                self.out += b"e"
            case np.ndarray():
                self.tensor(value)
            case _:
                raise TypeError(f"no plain content: {type(value).__name__}")

    def integer(self, value: int) -> None:
        if 0 <= value < 2**8:
            self.out += b"K" + struct.pack("<B", value)
        elif 0 <= value < 2**16:
            self.out += b"M" + struct.pack("<H", value)
        elif -(2**31) <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            size = value.bit_length() // 8 + 1
            self.out += b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)

    def once(self, key: str, written: bytes) -> None:
        """Write a string or a global, or a reference to it where it was written before."""
        known = key in self.memo
        index = self.memo.setdefault(key, len(self.memo))
        small = index < 2**8
        number = struct.pack("<B" if small else "<I", index)
        if known:
            self.out += (b"h" if small else b"j") + number
        else:
            self.out += written + (b"q" if small else b"r") + number

    def string(self, value: str) -> None:
        raw = value.encode("utf-8")
        self.once(f"string {value}", b"X" + struct.pack("<I", len(raw)) + raw)

    def name(self, module: str, name: str) -> None:
        self.once(f"global {module}.{name}", f"c{module}\n{name}\n".encode("ascii"))

    def tuple_of(self, numbers: tuple[int, ...]) -> None:
        self.out += b"("
        for number in numbers:
            self.integer(number)
        self.out += b"t"

    def tensor(self, array: NDArray[Any]) -> None:
        place = self.locate(array)
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.out += b"(("
        self.string("storage")
        self.name("torch", place.storage)
        self.string(place.key)
        self.string("cpu")
        self.integer(place.length)
        self.out += b"tQ"
        self.integer(place.offset)
        self.tuple_of(array.shape)
        self.tuple_of(dense_strides(array.shape))
        self.out += b"\x89"
        self.name("collections", "OrderedDict")
        self.out += b")RtR"
