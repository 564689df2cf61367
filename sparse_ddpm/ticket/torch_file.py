"""``ticket.pt``: the zip layout of torch.save, written and read without torch.

``torch.load(path, weights_only=True)`` gives the same plain content. All tensors of one dtype share
one storage, which keeps the file small and its checks few; what torch saves with one storage for
each tensor is read just as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket.plain_pickle import STORAGES, read_plain_pickle
from sparse_ddpm.ticket.plain_pickle_writer import Place, write_plain_pickle
from sparse_ddpm.ticket.stored_zip import read_stored_zip, write_stored_zip

SIGNATURE = b"PK\x03\x04"
LAYOUT_VERSION = 3

_CLASSES = {np.dtype(dtype): name for name, dtype in STORAGES.items()}


def write_torch_file(content: dict[str, Any]) -> bytes:
    """The file that holds ``content``; the same content always gives the same bytes."""
    shared: dict[np.dtype[Any], list[NDArray[Any]]] = {}
    for array in _arrays(content):
        shared.setdefault(array.dtype, []).append(array)
    places: dict[int, Place] = {}
    entries: dict[str, bytes] = {}
    for key, (dtype, arrays) in enumerate(shared.items()):
        count, offset = sum(array.size for array in arrays), 0
        for array in arrays:
            places[id(array)] = Place(_CLASSES[dtype], str(key), count, offset)
            offset += array.size
        little = dtype.newbyteorder("<")
        entries[f"archive/data/{key}"] = b"".join(a.astype(little).tobytes() for a in arrays)
    pickled = write_plain_pickle(content, lambda array: places[id(array)])
    return write_stored_zip(
        {
            "archive/data.pkl": pickled,
            "archive/byteorder": b"little",
            **entries,
            "archive/version": b"%d\n" % LAYOUT_VERSION,
        }
    )


def read_torch_file(data: memoryview) -> object:
    """The plain content of a file by `write_torch_file` or torch.save. Raises `TicketError`."""
    entries: dict[str, memoryview] = {}
    tops = set()
    for name, entry in read_stored_zip(data).items():
        top, _, rest = name.partition("/")
        tops.add(top)
        if not rest.startswith("."):  # hidden entries: torch's notes to itself
            entries[rest] = entry
    if len(tops) != 1:
        raise TicketError(expected("zip archive", "one folder at the top", len(tops)))
    storages = {n.removeprefix("data/"): e for n, e in entries.items() if n.startswith("data/")}
    for name in ("data.pkl", "version", "byteorder"):
        if name not in entries:
            raise TicketError(expected("zip archive", f"an entry {name}", "none"))
    for name in entries:
        if name not in ("data.pkl", "version", "byteorder") and not name.startswith("data/"):
            raise TicketError(expected("zip archive", "data.pkl and data only", repr(name)[:80]))
    version = bytes(entries["version"][:16]).strip()
    if not version.isdigit() or not 2 <= int(version) <= LAYOUT_VERSION:
        wanted = f"a layout from 2 to {LAYOUT_VERSION}"
        raise TicketError(expected("zip entry version", wanted, repr(version)))
    byteorder = bytes(entries["byteorder"][:16])
    if byteorder != b"little":
        found = repr(byteorder)
        raise TicketError(expected("zip entry byteorder", "'little'", found))
    return read_plain_pickle(bytes(entries["data.pkl"]), storages)


def _arrays(value: object) -> list[NDArray[Any]]:
    """All arrays in a tree of tables, in their order."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        return [array for item in value.values() for array in _arrays(item)]
    return []
