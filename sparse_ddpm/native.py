"""Model files for the library without Python: a planned program, its weights and samplers.

The layout is that of ``csrc/native_file.h``, and docs/native.md tells of it: a header, a table of
sections with a checksum each, sections at multiples of 64 bytes, all numbers little-endian.
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparse_ddpm_kernels import Kind

from sparse_ddpm.engine.arena import lanes_for
from sparse_ddpm.engine.film import Films
from sparse_ddpm.engine.native_ops import NativeOps
from sparse_ddpm.engine.plan import make_plan
from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.files import write_atomically
from sparse_ddpm.program import Program
from sparse_ddpm.sampling import Table

MAGIC = b"\x89SDDPM\r\n"
VERSION = 1
"""Of the layout: a library reads the versions that it names, and no others."""

MODEL, TEXT, SAMPLERS, PLAN, ARRAYS = range(1, 6)
"""The kinds of sections."""

_ALIGNMENT = 64
_HEADER = struct.Struct("<8sIIQII32x")
_SECTION = struct.Struct("<IIQQ8x")
_MODEL = struct.Struct("<4iq8x")
_SAMPLER = struct.Struct("<32s2i6q8x")
_PLAN = struct.Struct("<4q")
_BYTE_ORDER = 0x01020304
_NAME_BYTES = 31
_FLOAT32 = 0


def write_native(
    path: Path,
    program: Program,
    samplers: Mapping[str, Table],
    *,
    batches: Sequence[int] = (1, 16),
    text: Mapping[str, str] | None = None,
) -> int:
    """Write ``program`` and its ``samplers`` by name as a model file; its size in bytes.

    ``batches``: numbers of images at once that the file is planned for; others work too. ``text``:
    what `sddpm_metadata` will tell. Raises `ConfigError` for names and batches that cannot be, and
    `EngineError` for a program that cannot be planned.
    """
    content = native_model(program, samplers, batches=batches, text=text)
    write_atomically(path, lambda file: file.write(content))
    return len(content)


def native_model(
    program: Program,
    samplers: Mapping[str, Table],
    *,
    batches: Sequence[int] = (1, 16),
    text: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes that `write_native` writes; the same arguments give the same bytes."""
    if not samplers:
        raise ConfigError(expected("samplers", "at least one", "none"))
    if not batches or min(batches) < 1:
        raise ConfigError(expected("batches", "numbers of at least 1", list(batches)))
    films = Films.of(program)
    arrays = _Arrays()
    tables = b"".join(
        _sampler(name, table, films.table(program, table.timesteps), arrays)
        for name, table in samplers.items()
    )
    planned = {lanes_for(batch): batch for batch in batches}  # a pass has as many images
    plans = [_plan(program, planned[lanes], films, arrays) for lanes in sorted(planned)]
    model = _MODEL.pack(*program.input_shape, _FLOAT32, films.width)
    sections = [(MODEL, model), (TEXT, _text(text or {})), (SAMPLERS, tables)]
    sections += [(PLAN, plan) for plan in plans]
    return assemble([*sections, (ARRAYS, bytes(arrays.content))])


def assemble(sections: Sequence[tuple[int, bytes]]) -> bytes:
    """A file of ``(kind, bytes)``, with checksums."""
    body = bytearray()
    table = bytearray()
    start = _HEADER.size + _SECTION.size * len(sections)
    for kind, content in sections:
        body += bytes(-(start + len(body)) % _ALIGNMENT)
        table += _SECTION.pack(kind, zlib.crc32(content), start + len(body), len(content))
        body += content
    fields = (MAGIC, _BYTE_ORDER, VERSION, start + len(body), len(sections))
    checksum = zlib.crc32(_HEADER.pack(*fields, 0) + table)
    return _HEADER.pack(*fields, checksum) + bytes(table) + bytes(body)


class _Arrays:
    """The section of arrays: each at a multiple of 64 bytes, equal ones once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._places: dict[bytes, int] = {}

    def add(self, array: NDArray[Any] | None) -> tuple[int, int]:
        """Where it begins and how many elements it has; zeros for none and for an empty one."""
        if array is None or array.size == 0:
            return 0, 0
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        place = self._places.get(data)
        if place is None:
            self.content += bytes(-len(self.content) % _ALIGNMENT)
            place = self._places[data] = len(self.content)
            self.content += data
        return place, array.size

    def at(self, address: int | None, count: int, dtype: type[np.generic]) -> tuple[int, int]:
        """Of ``count`` elements in memory."""
        if not address or not count:
            return 0, 0
        size = count * np.dtype(dtype).itemsize
        return self.add(np.frombuffer(ctypes.string_at(address, size), dtype))


def _text(text: Mapping[str, str]) -> bytes:
    lines = []
    for key, value in text.items():
        if not key or "=" in key or any(c in key + value for c in "\0\n"):
            raise ConfigError(expected("text", "key=value of one line each", f"{key}={value!r}"))
        lines.append(f"{key}={value}\n")
    return "".join(lines).encode()


def _sampler(name: str, table: Table, film: NDArray[np.float32], arrays: _Arrays) -> bytes:
    printable = name.isascii() and name.isprintable() and " " not in name
    if not printable or not 1 <= len(name) <= _NAME_BYTES:
        wanted = f"1 to {_NAME_BYTES} printable ASCII characters without a space"
        raise ConfigError(expected("name of a sampler", wanted, repr(name)))
    return _SAMPLER.pack(
        name.encode(),
        table.steps,
        table.clip,
        *arrays.add(table.timesteps),
        *arrays.add(table.coefficients),
        *arrays.add(film),
    )


def _plan(program: Program, batch: int, films: Films, arrays: _Arrays) -> bytes:
    plan = make_plan(program, batch)
    native = NativeOps(plan, films)
    shared = {
        ctypes.addressof(op.block.contents): op.block.contents for op in native.ops if op.block
    }
    index = {address: i for i, address in enumerate(shared)}
    blocks = [_block(block, arrays) for block in shared.values()]
    operations = [
        _operation(op, index[ctypes.addressof(op.block.contents)] if op.block else -1, arrays)
        for op in native.ops
    ]
    header = _PLAN.pack(plan.lanes, plan.arena.size, len(blocks), len(operations))
    return header + b"".join(blocks) + b"".join(operations)


def _entries(panels: int, ptr: int | None) -> int:
    return ctypes.c_int64.from_address(ptr + 8 * panels).value if ptr else 0


def _tensor(t: Any) -> bytes:
    return struct.pack(
        "<4q4i",
        *(t.offset, t.channel_stride, t.row_stride, t.channel_lead),
        *(t.channels, t.height, t.width, t.halo),
    )


def _operation(op: Any, block: int, arrays: _Arrays) -> bytes:
    entries, slots = _entries(op.panels, op.panel_ptr), op.panels * op.group
    channels = op.out.channels
    attention = op.kind in (Kind.ATTENTION, Kind.LINEAR_ATTENTION)
    memory = 2 * op.heads * op.dim_head * op.groups
    found = (
        arrays.at(op.a, memory if attention else channels, np.float32),
        arrays.at(op.b, channels, np.float32),
        arrays.at(op.panel_ptr, op.panels + 1, np.int64),
        arrays.at(op.offset, entries, np.int32),
        arrays.at(op.value, entries * op.group, np.float32),
        arrays.at(op.slot, slots, np.int32),
    )
    numbers = (op.kind, op.silu, op.groups, op.heads, op.dim_head, op.group, op.size, op.copies)
    return (
        struct.pack("<10iqd", *numbers, op.upsample, block, op.film, op.eps)
        + b"".join(map(_tensor, (op.out, op.x, op.y)))
        + struct.pack("<13q", op.panels, *(n for place in found for n in place))
    )


def _weight(weight: Any, arrays: _Arrays) -> bytes:
    entries, slots = _entries(weight.panels, weight.panel_ptr), weight.panels * weight.group
    found = (
        arrays.at(weight.panel_ptr, weight.panels + 1, np.int64),
        arrays.at(weight.offset, entries, np.int32),
        arrays.at(weight.value, entries * weight.group, np.float32),
        arrays.at(weight.slot, slots, np.int32),
        arrays.at(weight.bias, slots, np.float32),
    )
    places = (n for place in found for n in place)
    return struct.pack("<i4x11q", weight.group, weight.panels, *places)


def _block(block: Any, arrays: _Arrays) -> bytes:
    numbers = (block.heads, block.dim_head, block.pixels, block.stride, block.chunks)
    return (
        struct.pack("<5i4x2qd", *numbers, block.context, block.slot_numbers, block.eps)
        + b"".join(_weight(w, arrays) for w in (block.q, block.k, block.v, block.out))
        + struct.pack("<2q", *arrays.at(block.head, 8 * block.heads, np.int32))
    )
