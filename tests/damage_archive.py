"""Zip archives that are compressed, contradictory or laid out in another way."""

from __future__ import annotations

import io
import zipfile

from damage_base import (
    damage_bytes,
    replaced,
    sound_file,
    sound_pickle,
)

from sparse_ddpm.ticket.stored_zip import read_stored_zip, write_stored_zip

damage_bytes("big-endian", "byteorder", lambda: replaced("archive/byteorder", b"big"))
damage_bytes("no byteorder", "byteorder", lambda: replaced("archive/byteorder", None))
damage_bytes("layout of the future", "version", lambda: replaced("archive/version", b"99\n"))
damage_bytes("layout is no number", "version", lambda: replaced("archive/version", b"three"))
damage_bytes("no pickle", "data.pkl", lambda: replaced("archive/data.pkl", None))
damage_bytes("no storages", "storage of this file", lambda: replaced("archive/data/0", None))
damage_bytes("storage cut short", "data/0", lambda: replaced("archive/data/0", bytes(40)))
damage_bytes("code in the archive", "code/evil.py", lambda: replaced("archive/code/evil.py", b"1"))
damage_bytes("two folders", "one folder", lambda: replaced("other/version", b"3\n"))


def _zipped(method: int, **sizes: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("archive/data.pkl", sound_pickle())
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
        for name, size in sizes.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", bytes(size))
    return buffer.getvalue()


def _flipped(at: int) -> bytes:
    data = bytearray(sound_file())
    data[at] ^= 0xFF
    return bytes(data)


def _payload_at() -> int:
    entries = read_stored_zip(memoryview(sound_file()))
    return sound_file().index(bytes(entries["archive/data/0"]))


def _renamed_entry(old: bytes, new: bytes, extra: bool = False) -> bytes:
    data = replaced("archive/data/9", bytes(8)) if extra else sound_file()
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


def _central(at: int, value: int, size: int = 4) -> bytes:
    """Overwrite a field of the first record of the directory."""
    data = bytearray(sound_file())
    start = data.index(b"PK\x01\x02") + at
    data[start : start + size] = value.to_bytes(size, "little")
    return bytes(data)


damage_bytes("compressed zip", "compress", lambda: _zipped(zipfile.ZIP_DEFLATED))
damage_bytes("compressed zip bomb", "compress", lambda: _zipped(zipfile.ZIP_DEFLATED, _0=2**24))
damage_bytes(
    "stored zip by another hand",
    "byteorder",
    lambda: _zipped(zipfile.ZIP_STORED).replace(b"little", b"LITTLE"),
)
damage_bytes("CRC error in the data", "CRC", lambda: _flipped(_payload_at() + 5))
damage_bytes("CRC error in the pickle", "CRC", lambda: _flipped(70))
damage_bytes(
    "duplicate zip names",
    "data/0",
    lambda: _renamed_entry(b"archive/data/9", b"archive/data/0", extra=True),
)
damage_bytes(
    "zip name climbs out",
    "zip entry",
    lambda: _renamed_entry(b"archive/version", b"../../a/version"),
)
damage_bytes(
    "zip name is absolute",
    "zip entry",
    lambda: _renamed_entry(b"archive/version", b"/rchive/version"),
)
damage_bytes(
    "zip name has a NUL",
    "zip entry",
    lambda: _renamed_entry(b"archive/version", b"archive/versio\0"),
)
damage_bytes(
    "zip local header renamed",
    "local header",
    lambda: sound_file().replace(b"archive/version", b"archive/Version", 1),
)
damage_bytes("zip entry encrypted", "encrypt", lambda: _central(8, 1, 2))
damage_bytes("zip entry past the end", "bytes", lambda: _oversized())
damage_bytes("zip entry starts past the end", "header", lambda: _central(42, 2**32 - 1))
damage_bytes("zip entries overlap", "overlap", lambda: _overlapping())
damage_bytes("zip directory too long", "directory", lambda: _end_record(12, 2**31))
damage_bytes("zip directory past the end", "directory", lambda: _end_record(16, 2**32 - 1))
damage_bytes("zip directory counts wrong", "directory", lambda: _end_record(8, 0x00630063))
damage_bytes("zip directory counts none", "directory", lambda: _end_record(8, 0))


def _oversized() -> bytes:
    data = bytearray(_central(20, 2**31))
    start = data.index(b"PK\x01\x02") + 24
    data[start : start + 4] = (2**31).to_bytes(4, "little")
    return bytes(data)


def _end_record(at: int, value: int) -> bytes:
    """Overwrite four bytes of the record that ends the archive."""
    data = bytearray(sound_file())
    start = len(data) - 22 + at
    data[start : start + 4] = value.to_bytes(4, "little")
    return bytes(data)


def _overlapping() -> bytes:
    """One entry whose data hold another, whole, entry: legal bytes, counted twice."""
    inner = write_stored_zip({"archive/data/1": bytes(16)})
    local = inner[: inner.index(b"PK\x01\x02")]
    outer = bytearray(write_stored_zip({"archive/data/0": local, "archive/data/1": bytes(16)}))
    where = outer.index(local)
    last = outer.rindex(b"PK\x01\x02")
    outer[last + 42 : last + 46] = where.to_bytes(4, "little")
    return bytes(outer)
