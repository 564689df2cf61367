"""The sound ticket that gets damaged, and how a kind of damage is registered."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_ddpm.ticket import Ticket, UNetConfig, synthetic_ticket
from sparse_ddpm.ticket.content import to_content
from sparse_ddpm.ticket.safetensors_file import write_safetensors_file
from sparse_ddpm.ticket.stored_zip import read_stored_zip, write_stored_zip
from sparse_ddpm.ticket.torch_file import write_torch_file

TINY = UNetConfig(dim=6, dim_mults=(1, 2), channels=1, image_size=8, groups=3, heads=2, dim_head=4)
GAPS = "down.0.block1.conv1.weight"
BITS = "up.1.block1.conv2.weight"  # 324 weights: 4 padding bits
DENSE = "init_conv.weight"
BIAS = "init_conv.bias"

Content = dict[str, Any]

DAMAGES: dict[str, Callable[[Path], None]] = {}
SAYS: dict[str, str] = {}


@functools.cache
def sound_ticket() -> Ticket:
    """A tiny ticket: gaps in the down half, bitmasks in the up half, float32 values."""
    thin = synthetic_ticket(TINY, 0.95, seed=1)
    thick = synthetic_ticket(TINY, 0.5, seed=1)
    masks = {n: (thick if n.startswith("up.") else thin).masks[n] for n in thin.masks}
    weights = {n: (thick if n.startswith("up.") else thin).weights[n] for n in thin.weights}
    return dataclasses.replace(thin, weights=weights, masks=masks)


@functools.cache
def _content() -> Content:
    return to_content(sound_ticket())


def sound_content() -> Content:
    """A copy of its content that may be damaged."""
    return copy.deepcopy(_content())


@functools.cache
def sound_file() -> bytes:
    return write_torch_file(_content())


@functools.cache
def sound_safetensors() -> bytes:
    return write_safetensors_file(_content())


# A registered kind has a name and `says`, which the error about it has to mention.


def damage(name: str, says: str, write: Callable[[Path], object]) -> None:
    assert name not in DAMAGES, name

    def write_only(path: Path) -> None:
        write(path)

    DAMAGES[name] = write_only
    SAYS[name] = says


def damage_bytes(name: str, says: str, make: Callable[[], bytes]) -> None:
    damage(name, says, lambda path: path.write_bytes(make()))


def damage_edit(name: str, says: str, edit: Callable[[Content], object]) -> None:
    """The content is edited, then written by our own writer."""

    def make() -> bytes:
        content = sound_content()
        edit(content)
        return write_torch_file(content)

    damage_bytes(name, says, make)


def damage_tensor(name: str, tensor: str, says: str, edit: Callable[[Content], object]) -> None:
    damage_edit(name, f"{tensor}{says}", lambda content: edit(content["tensors"][tensor]))


def damage_field(name: str, says: str, section: str, key: str, value: object) -> None:
    damage_edit(name, says, lambda content: content[section].__setitem__(key, value))


def sound_pickle() -> bytes:
    return bytes(read_stored_zip(memoryview(sound_file()))["archive/data.pkl"])


def replaced(name: str, data: bytes | None) -> bytes:
    """The sound ``.pt`` with one entry replaced, added or (None) left out."""
    entries = {n: bytes(e) for n, e in read_stored_zip(memoryview(sound_file())).items()}
    if data is None:
        del entries[name]
    else:
        entries[name] = data
    return write_stored_zip(entries)


def with_pickle(pickled: bytes, **entries: bytes) -> bytes:
    """A sound archive around any pickle; the entry ``_0`` is the storage ``data/0``."""
    return write_stored_zip(
        {
            "archive/data.pkl": pickled,
            "archive/byteorder": b"little",
            "archive/version": b"3\n",
            **{f"archive/data/{key.removeprefix('_')}": data for key, data in entries.items()},
        }
    )


def damage_opcodes(name: str, says: str, body: bytes, **entries: bytes) -> None:
    """``{"format": <what body pushes>}``."""
    start = b"\x80\x02}X\x06\x00\x00\x00format"
    damage_bytes(name, says, lambda: with_pickle(start + body + b"s.", **entries))
