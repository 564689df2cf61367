"""Zip archives of uncompressed entries: the container that torch.save writes.

Only what that needs: one disk, no compression, no encryption, no comment, under 4 GiB (torch adds
64-bit records at the end even to small files; the 32-bit ones hold the same and are enough).
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from sparse_ddpm.errors import TicketError, expected

ALIGNMENT = 64
MAX_BYTES = 2**32 - 1

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_EXTRA = struct.Struct("<2sH")
_EXTRACT_VERSION = 20
_MIDNIGHT_1980 = (0, 0x21)  # DOS time and date: the same bytes whenever a file is written
_ENCRYPTED = 1


class _CentralRecord(NamedTuple):
    signature: bytes
    made_by: int
    extract_version: int
    flags: int
    method: int
    time: int
    date: int
    crc: int
    packed_size: int
    size: int
    name_length: int
    extra_length: int
    comment_length: int
    disk: int
    internal: int
    external: int
    start: int


def write_stored_zip(entries: Mapping[str, bytes]) -> bytes:
    """An archive of ``entries`` in their order, each one's data at a multiple of 64 bytes."""
    body = bytearray()
    directory = bytearray()
    for name, data in entries.items():
        start, encoded = len(body), name.encode("ascii")
        padding = -(start + _LOCAL.size + len(encoded) + _EXTRA.size) % ALIGNMENT
        extra = _EXTRA.pack(b"FB", padding) + b"Z" * padding
        if start + len(data) + len(directory) + 2**16 > MAX_BYTES:
            raise TicketError(expected("zip archive", "less than 4 GiB", f"more, at entry {name}"))
        sizes = (zlib.crc32(data), len(data), len(data), len(encoded))
        common = (_EXTRACT_VERSION, 0, 0, *_MIDNIGHT_1980, *sizes)
        body += _LOCAL.pack(b"PK\x03\x04", *common, len(extra)) + encoded + extra + data
        directory += _CENTRAL.pack(b"PK\x01\x02", 0, *common, 0, 0, 0, 0, 0, start) + encoded
    count = len(entries)
    end = _END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory + end)


def read_stored_zip(data: memoryview) -> dict[str, memoryview]:
    """The entries of an archive as views of ``data``, names, bounds and CRCs checked.

    Raises `TicketError` for anything compressed, encrypted, overlapping, named twice, named like
    a path outside the archive, or past the end of the file.
    """
    tail = bytes(data[max(0, len(data) - _END.size) :])
    if len(tail) < _END.size or tail[:4] != b"PK\x05\x06":
        found = "other bytes: was the file cut off?"
        raise TicketError(expected("zip archive", "its directory at the end", found))
    _, disk, first_disk, here, count, size, start, _ = _END.unpack(tail)
    if disk or first_disk or here != count or start + size > len(data) - _END.size:
        raise TicketError(expected("zip archive", "one whole directory", "one that does not fit"))
    directory = data[start : start + size]
    entries: dict[str, memoryview] = {}
    spans = []
    position = 0
    for index in range(count):
        if position + _CENTRAL.size > size:
            raise TicketError(expected("zip directory", f"{count} entries", index))
        record = _CentralRecord(*_CENTRAL.unpack_from(directory, position))
        position += _CENTRAL.size
        name = _checked_name(record, directory[position : position + record.name_length])
        position += record.name_length + record.extra_length + record.comment_length
        if name in entries:
            raise TicketError(expected(f"zip entry {name!r}", "one of that name", "two"))
        begin = _data_start(data[:start], record, name)
        entries[name] = data[begin : begin + record.size]
        spans.append((record.start, begin + record.size, name))
        if zlib.crc32(entries[name]) != record.crc:
            found = "another: the file is damaged"
            raise TicketError(expected(f"zip entry {name!r}", f"CRC {record.crc:08x}", found))
    if position != size:
        raise TicketError(expected("zip directory", f"{size} bytes", position))
    spans.sort()
    for (_, before, _), (begin, _, name) in itertools.pairwise(spans):
        if begin < before:
            raise TicketError(expected(f"zip entry {name!r}", "bytes of its own", "an overlap"))
    return entries


def _checked_name(record: _CentralRecord, raw: memoryview) -> str:
    if record.signature != b"PK\x01\x02" or len(raw) != record.name_length:
        raise TicketError(expected("zip directory", "an entry", "other bytes"))
    name = bytes(raw).decode("latin-1")
    if not re.fullmatch(r"[\w.+ -]{1,200}(/[\w.+ -]{1,200})+", name) or ".." in name.split("/"):
        raise TicketError(expected("zip entry", "a name such as archive/data/0", repr(name)[:80]))
    if record.method != 0 or record.packed_size != record.size:
        raise TicketError(expected(f"zip entry {name!r}", "no compression", "a compressed entry"))
    if record.flags & _ENCRYPTED:
        raise TicketError(expected(f"zip entry {name!r}", "no encryption", "an encrypted entry"))
    return name


def _data_start(data: memoryview, record: _CentralRecord, name: str) -> int:
    """Where the data of an entry begins, by its local header, which must lie within ``data``."""
    found = f"{len(data)} bytes before the directory"
    if record.start + _LOCAL.size > len(data):
        raise TicketError(expected(f"zip entry {name!r}", f"a header at {record.start}", found))
    local = _LOCAL.unpack_from(data, record.start)
    name_length, extra_length = int(local[-2]), int(local[-1])
    name_at = record.start + _LOCAL.size
    begin = name_at + name_length + extra_length
    raw = data[name_at : name_at + name_length]
    if local[0] != b"PK\x03\x04" or bytes(raw).decode("latin-1") != name:
        raise TicketError(expected(f"zip entry {name!r}", "its local header", "other bytes"))
    if begin + record.size > len(data):
        raise TicketError(expected(f"zip entry {name!r}", f"{record.size} bytes", found))
    return begin
