"""``ticket.safetensors``: the same content, arrays as tensors and the rest as JSON in the header.

The metadata has one entry, ``sparse-ddpm-ticket``: the content in which the tensors' tables lack
their arrays. The array ``values`` of the tensor ``x.weight`` is called ``x.weight/values``.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket.content import FORMAT, shown

MAX_HEADER = 2**22
"""Bytes; a paper-size ticket needs about 2**17."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"),
}
_LENGTH = 8


def looks_like_safetensors(start: bytes) -> bool:
    """Whether these first 9 or more bytes are a header's length and its opening brace."""
    return len(start) > _LENGTH and start[_LENGTH : _LENGTH + 1] == b"{"


def write_safetensors_file(content: dict[str, Any]) -> bytes:
    """The file that holds ``content``; the same content always gives the same bytes."""
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for name, table in content["tensors"].items():
        tensors[name] = {}
        for key, value in table.items():
            if isinstance(value, np.ndarray):
                arrays[f"{name}/{key}"] = value
            else:
                tensors[name][key] = value
    text = json.dumps({**content, "tensors": tensors}, separators=(",", ":"), allow_nan=False)
    data = bytes(save(arrays, metadata={FORMAT: text}))
    header = int.from_bytes(data[:_LENGTH], "little")
    if header > MAX_HEADER:
        raise TicketError(expected("safetensors header", f"at most {MAX_HEADER} bytes", header))
    return data


def read_safetensors_file(data: memoryview) -> object:
    """The plain content of a file by `write_safetensors_file`. Raises `TicketError`."""
    size = int.from_bytes(data[:_LENGTH], "little")
    if size > MAX_HEADER or _LENGTH + size > len(data):
        wanted = f"a header of at most {min(MAX_HEADER, max(0, len(data) - _LENGTH))} bytes"
        raise TicketError(expected("safetensors file", wanted, size))
    header = _json("safetensors header", bytes(data[_LENGTH : _LENGTH + size]))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise TicketError(expected("metadata", "a table", shown(metadata)))
    if list(metadata) != [FORMAT]:
        found = ", ".join(shown(key) for key in [*metadata][:3]) or "none"
        raise TicketError(expected("metadata", f"one entry {FORMAT!r}", found))
    if not isinstance(metadata[FORMAT], str):
        raise TicketError(expected("metadata", "JSON in a string", shown(metadata[FORMAT])))
    content = _json("metadata", metadata[FORMAT].encode("utf-8", "replace"))
    tensors = content.get("tensors")
    if not isinstance(tensors, dict):
        raise TicketError(expected("tensors", "a table", shown(tensors)))
    for path, array in _arrays(header, data[_LENGTH + size :]).items():
        name, _, key = path.rpartition("/")
        table = tensors.get(name)
        if not isinstance(table, dict) or key in table:
            raise TicketError(expected("tensors", "arrays that the metadata knows", shown(path)))
        table[key] = array
    return content


def _arrays(header: dict[str, Any], body: memoryview) -> dict[str, NDArray[Any]]:
    """Arrays that view ``body``, which they must fill without a gap or an overlap."""
    arrays: dict[str, NDArray[Any]] = {}
    spans = []
    for name, entry in header.items():
        what = f"safetensors entry {shown(name)}"
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise TicketError(expected(what, "dtype, shape and data_offsets", shown(entry)))
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise TicketError(expected(what, f"a dtype of {', '.join(_DTYPES)}", shown(dtype)))
        if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
            found = f"{shown(shape)} and {shown(offsets)}"
            raise TicketError(expected(what, "a shape and two offsets of integers >= 0", found))
        begin, end = offsets
        count = math.prod(shape)
        if not begin <= end <= len(body) or end - begin != count * _DTYPES[dtype].itemsize:
            wanted = f"{count * _DTYPES[dtype].itemsize} of {len(body)} bytes"
            raise TicketError(expected(what, wanted, f"bytes {begin} to {end}"))
        raw = body[begin:end]
        flat = np.frombuffer(raw, _DTYPES[dtype]) if count else np.empty(0, _DTYPES[dtype])
        arrays[name] = flat.reshape(shape)
        spans.append((begin, end, name))
    covered = 0
    for begin, end, name in sorted(spans):
        if begin != covered:
            what = f"safetensors entry {shown(name)}"
            raise TicketError(expected(what, f"data at offset {covered}", begin))
        covered = end
    if covered != len(body):
        raise TicketError(expected("safetensors file", f"{covered} bytes of data", len(body)))
    return arrays


def _are_sizes(values: object) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= 8
        and all(type(value) is int and 0 <= value < 2**40 for value in values)
    )


def _json(what: str, raw: bytes) -> dict[str, Any]:
    def constant(name: str) -> NoReturn:
        raise ValueError(f"the number {name}")

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a name that occurs twice")
        return made

    try:
        value = json.loads(raw, parse_constant=constant, object_pairs_hook=table)
    except (ValueError, RecursionError) as error:
        raise TicketError(expected(what, "plain JSON", f"an error: {error}"[:120])) from error
    if not isinstance(value, dict):
        raise TicketError(expected(what, "a JSON table", shown(value)))
    return value
