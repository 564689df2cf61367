"""A pickle of plain content, read without the pickle module: nothing in it is ever called.

An interpreter of the few opcodes (protocol 2) that torch.save emits for tables, lists, numbers,
strings and dense tensors. The result is a tree: containers are never shared, so a small file can
neither be endless nor unfold into something large. Anything else is refused by its name.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import TicketError, expected

MAX_PICKLE = 2**21
"""Bytes of structure (not of tensor data): 276 tensors of a paper-size ticket need about 2**15."""
MAX_DEPTH = 16
MAX_MARKS = 4 * MAX_DEPTH
MAX_AXES = 8
MAX_INT_BYTES = 16

STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
}
"""torch's storage classes and what they hold. The content decides which dtypes a ticket may use."""

REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
ORDERED_DICT = "collections.OrderedDict"

_OPCODE_NAMES = {
    b"b": "BUILD", b"i": "INST", b"o": "OBJ", b"\x81": "NEWOBJ", b"\x92": "NEWOBJ_EX",
    b"\x93": "STACK_GLOBAL", b"P": "PERSID", b"\x95": "FRAME", b"\x82": "EXT1", b"\x83": "EXT2",
    b"\x84": "EXT4", b"\x8b": "LONG4", b"C": "SHORT_BINBYTES", b"B": "BINBYTES",
    b"\x8c": "SHORT_BINUNICODE", b"\x94": "MEMOIZE", b"2": "DUP", b"0": "POP", b"1": "POP_MARK",
}  # fmt: skip


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements between neighbours along each axis of a C-contiguous array."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    elements: NDArray[Any]


_SHARED = object()
"""Stands in the memo for a value that must not be used twice."""


def read_plain_pickle(data: bytes, storages: Mapping[str, memoryview]) -> object:
    """The value that ``data`` pickles; tensors come as arrays that view ``storages``.

    ``storages``: little-endian bytes by storage key. Raises `TicketError`.
    """
    if len(data) > MAX_PICKLE:
        raise TicketError(expected("data.pkl", f"at most {MAX_PICKLE} bytes", len(data)))
    return _Reader(data, storages).read()


class _Reader:
    def __init__(self, data: bytes, storages: Mapping[str, memoryview]) -> None:
        self.data = data
        self.storages = storages
        self.position = 0
        self.opcode_at = 0
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, object] = {}

    def read(self) -> object:
        if self.take(2) != b"\x80\x02":
            self.refuse("protocol 2", "another start")
        while True:
            self.opcode_at = self.position
            opcode = self.take(1)
            if opcode == b".":
                break
            action = _ACTIONS.get(opcode)
            if action is None:
                self.refuse(
                    "plain containers, numbers, strings and dense tensors",
                    f"pickle opcode {_OPCODE_NAMES.get(opcode, repr(opcode))}",
                )
            action(self)
        if self.position != len(self.data) or len(self.stack) != 1 or self.marked:
            self.refuse("one value and then the end", "something more")
        self.check_tree(self.stack[0])
        return self.stack[0]

    def check_tree(self, root: object) -> None:
        """Bound the depth and let only plain values out; a walk without recursion."""
        pending: list[tuple[object, int]] = [(root, 0)]
        while pending:
            value, depth = pending.pop()
            if isinstance(value, (dict, list)):
                if depth == MAX_DEPTH:
                    self.refuse(f"at most {MAX_DEPTH} levels of containers", "more")
                children = value.values() if isinstance(value, dict) else value
                pending.extend((child, depth + 1) for child in children)
            elif value is not None and not isinstance(value, (str, int, float, np.ndarray)):
                self.refuse("plain values only", f"a {type(value).__name__.strip('_').lower()}")

    def refuse(self, wanted: object, got: object) -> NoReturn:
        raise TicketError(expected(f"data.pkl at byte {self.opcode_at}", wanted, got))

    # Bytes and stack

    def take(self, count: int) -> bytes:
        chunk = self.data[self.position : self.position + count]
        if len(chunk) != count:
            self.refuse(f"{count} more bytes", f"the end after {len(chunk)}")
        self.position += count
        return chunk

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 200)
        if end < 0:
            self.refuse("a name of at most 200 bytes", "none")
        text = self.data[self.position : end].decode("ascii", "replace")
        self.position = end + 1
        return text

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            self.refuse("a value on the stack", "none")
        return self.stack.pop()

    def pop_marked(self) -> list[Any]:
        if not self.marked:
            self.refuse("a mark on the stack", "none")
        items, self.stack = self.stack, self.marked.pop()
        return items

    # Opcodes

    def mark(self) -> None:
        if len(self.marked) == MAX_MARKS:
            self.refuse(f"at most {MAX_MARKS} open containers", "more")
        self.marked.append(self.stack)
        self.stack = []

    def string(self) -> None:
        raw = self.take(self.number("<I"))
        try:
            self.push(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.refuse("a string in UTF-8", "other bytes")

    def long(self) -> None:
        size = self.number("<B")
        if size > MAX_INT_BYTES:
            self.refuse(f"integers of at most {MAX_INT_BYTES} bytes", f"{size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def memo_put(self, layout: str) -> None:
        value = self.pop()
        self.push(value)
        reusable = isinstance(value, (str, _Global))
        self.memo[self.number(layout)] = value if reusable else _SHARED

    def memo_get(self, layout: str) -> None:
        index = self.number(layout)
        if index not in self.memo:
            self.refuse(f"a memo entry {index}", "none")
        if self.memo[index] is _SHARED:
            self.refuse("a tree in which nothing but strings is shared", "a shared or endless one")
        self.push(self.memo[index])

    def tuple_of(self, count: int | None) -> None:
        items = self.pop_marked() if count is None else [self.pop() for _ in range(count)][::-1]
        self.push(tuple(items))

    def append(self, items: list[Any]) -> None:
        target = self.pop()
        if type(target) is not list:
            self.refuse("a list to append to", type(target).__name__)
        target.extend(items)
        self.push(target)

    def set_items(self, items: list[Any]) -> None:
        target = self.pop()
        if type(target) is not dict or len(items) % 2:
            self.refuse("a table to set items of", type(target).__name__)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                self.refuse("keys that are strings", type(key).__name__)
            if key in target:
                self.refuse(f"one entry {key[:60]!r}", "two")
            target[key] = value
        self.push(target)

    def global_name(self) -> None:
        module, name = self.line(), self.line()
        known = module == "torch" and name in STORAGES
        if not known and f"{module}.{name}" not in (REBUILD_TENSOR, ORDERED_DICT):
            self.refuse("plain containers, numbers, strings and dense tensors", f"{module}.{name}")
        self.push(_Global(f"{module}.{name}"))

    def persistent(self) -> None:
        identity = self.pop()
        if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
            self.refuse("a reference to a storage", "another")
        _, kind, key, _, count = identity
        if not isinstance(kind, _Global) or not kind.name.startswith("torch."):
            self.refuse("a class of storage", "another value")
        if type(key) is not str or key not in self.storages:
            self.refuse("a storage of this file", f"{key!r:.60}")
        dtype = np.dtype(STORAGES[kind.name.removeprefix("torch.")])
        raw = self.storages[key]
        if type(count) is not int or count < 0 or count * dtype.itemsize != len(raw):
            self.refuse(
                f"{count!r:.40} elements of {dtype.itemsize} bytes in data/{key}",
                f"{len(raw)} bytes",
            )
        elements = np.frombuffer(raw, dtype=dtype) if count else np.empty(0, dtype=dtype)
        self.push(_Storage(key, elements))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            self.refuse("a tensor or an ordered table", "another call")
        if function.name == ORDERED_DICT and not arguments:
            self.push({})
        elif function.name == REBUILD_TENSOR:
            self.push(self.tensor(arguments))
        else:
            self.refuse("a tensor or an ordered table", f"a call of {function.name}")

    def tensor(self, arguments: tuple[Any, ...]) -> NDArray[Any]:
        if len(arguments) != 6 or not isinstance(arguments[0], _Storage):
            self.refuse("a tensor of storage, offset, shape and strides", "other arguments")
        storage, offset, shape, strides, requires_grad, hooks = arguments
        what = f"a tensor in data/{storage.key}"
        if requires_grad is not False or hooks != {}:
            self.refuse(f"{what} without gradient and hooks", "one with them")
        sizes = (shape, strides)
        if any(type(s) is not tuple or any(type(n) is not int for n in s) for s in sizes):
            self.refuse(f"{what} with a shape and strides of integers", "other values")
        if len(shape) > MAX_AXES or any(n < 0 for n in shape):
            self.refuse(f"{what} with at most {MAX_AXES} axes of 0 or more", f"{shape!s:.100}")
        count = math.prod(shape)
        dense = dense_strides(shape)
        matters = [axis for axis, n in enumerate(shape) if n > 1]
        if len(strides) != len(shape) or (
            count and any(strides[axis] != dense[axis] for axis in matters)
        ):
            self.refuse(f"{what} with dense strides {dense}", f"{strides!s:.100}")
        if type(offset) is not int or not 0 <= offset <= len(storage.elements) - count:
            self.refuse(
                f"{what} with {count} of its {len(storage.elements)} elements",
                f"an offset of {offset!r:.40}",
            )
        elements: NDArray[Any] = storage.elements[offset : offset + count].reshape(shape)
        return elements


_ACTIONS: dict[bytes, Callable[[_Reader], None]] = {
    b"(": _Reader.mark,
    b"}": lambda reader: reader.push({}),
    b"]": lambda reader: reader.push([]),
    b")": lambda reader: reader.push(()),
    b"N": lambda reader: reader.push(None),
    b"\x88": lambda reader: reader.push(True),
    b"\x89": lambda reader: reader.push(False),
    b"K": lambda reader: reader.push(reader.number("<B")),
    b"M": lambda reader: reader.push(reader.number("<H")),
    b"J": lambda reader: reader.push(reader.number("<i")),
    b"G": lambda reader: reader.push(reader.number(">d")),
    b"\x8a": _Reader.long,
    b"X": _Reader.string,
    b"q": lambda reader: reader.memo_put("<B"),
    b"r": lambda reader: reader.memo_put("<I"),
    b"h": lambda reader: reader.memo_get("<B"),
    b"j": lambda reader: reader.memo_get("<I"),
    b"t": lambda reader: reader.tuple_of(None),
    b"\x85": lambda reader: reader.tuple_of(1),
    b"\x86": lambda reader: reader.tuple_of(2),
    b"\x87": lambda reader: reader.tuple_of(3),
    b"a": lambda reader: reader.append([reader.pop()]),
    b"e": lambda reader: reader.append(reader.pop_marked()),
    b"s": lambda reader: reader.set_items([reader.pop(), reader.pop()][::-1]),
    b"u": lambda reader: reader.set_items(reader.pop_marked()),
    b"c": _Reader.global_name,
    b"Q": _Reader.persistent,
    b"R": _Reader.reduce,
}
