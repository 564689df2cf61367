"""Bytes of a ticket's file, tensor by tensor and encoding by encoding."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparse_ddpm.accounting.memory import FLOAT32
from sparse_ddpm.ticket import Ticket

GZIP_LEVEL = 6
"""As gzip does unless told otherwise."""
GZIP_WRAPPER = 18
"""Bytes of a gzip file around its data, without a name."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """``values`` and ``places`` (mask or gaps): bytes in the file; ``dense``: as float32."""

    name: str
    shape: tuple[int, ...]
    encoding: str
    dtype: str
    values: int
    places: int
    dense: int

    @property
    def size(self) -> int:
        return self.values + self.places


def stored_tensors(content: Mapping[str, Any]) -> tuple[StoredTensor, ...]:
    """The tensors of a file's content, see `sparse_ddpm.ticket.content`, in its order."""
    found = []
    for name, table in content["tensors"].items():
        arrays = {key: int(table[key].nbytes) for key in ("mask", "gaps") if key in table}
        shape = tuple(table["shape"])
        found.append(
            StoredTensor(
                name=name,
                shape=shape,
                encoding=table["encoding"],
                dtype=table["stored"],
                values=int(table["values"].nbytes),
                places=sum(arrays.values()),
                dense=FLOAT32 * math.prod(shape),
            )
        )
    return tuple(found)


def gzip_of_dense(ticket: Ticket) -> int:
    """Bytes of a gzip file of all weights in float32, the pruned ones as zeros, side by side.

    A second for some ten million weights.
    """
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    size = sum(len(packer.compress(weight.data)) for weight in ticket.weights.values())
    return size + len(packer.flush()) + GZIP_WRAPPER
