"""How one tensor is stored: ``dense``, ``bitmask`` or ``gaps``, whichever is smallest.

For n weights of which k survive, with b = 2 (float16) or 4 (float32) bytes a value:

=========== ==================== =====================================================
encoding    bytes                arrays
=========== ==================== =====================================================
``dense``   n b                  ``values`` [shape]; for tensors without a mask
``bitmask`` ceil(n / 8) + k b    ``mask`` uint8 [ceil(n / 8)], ``values`` [k]
``gaps``    g + k b              ``gaps`` uint8 [g], ``values`` [k]; g = k + sum(gap // 255)
=========== ==================== =====================================================

Weights are taken in C order. Bit i of ``mask`` is ``mask[i // 8] >> (i % 8) & 1``; the bits past n
are 0. A gap is the number of pruned weights in front of a survivor: a byte below 255 skips so many
and lands on a survivor, a byte of 255 skips 255 and lands on nothing. What follows the last
survivor is not written. Values are float16 exactly when every one of the tensor's is a float16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import TicketError, expected

SKIP = 255
ARRAYS = {"dense": ("values",), "bitmask": ("values", "mask"), "gaps": ("values", "gaps")}
"""The arrays that each encoding consists of."""

Arrays = dict[str, NDArray[Any]]


def encode(
    weight: NDArray[np.float32], mask: NDArray[np.bool_] | None = None
) -> tuple[str, Arrays]:
    """The name and the arrays of the smallest encoding of ``weight``; `decode` undoes it exactly.

    ``mask`` has the shape of ``weight``; None means that every weight survives.
    """
    if mask is None:
        return "dense", {"values": narrowed(weight)}
    values = narrowed(weight[mask])
    places = np.flatnonzero(mask)
    gaps = encode_gaps(places)
    if len(gaps) < -(-mask.size // 8):
        return "gaps", {"values": values, "gaps": gaps}
    return "bitmask", {"values": values, "mask": np.packbits(mask, bitorder="little")}


def encode_gaps(places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Gap bytes of the rising flat indices ``places`` [k]."""
    between = np.diff(places, prepend=-1) - 1
    skips = between // SKIP
    gaps = np.full(len(places) + int(skips.sum()), SKIP, dtype=np.uint8)
    gaps[np.cumsum(skips + 1) - 1] = between % SKIP
    return gaps


def narrowed(values: NDArray[np.float32]) -> NDArray[Any]:
    """``values`` as float16 where that loses nothing, not even the sign of a zero."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16)
    same = narrow.astype(np.float32).view(np.uint32) == np.ascontiguousarray(values).view(np.uint32)
    return narrow if same.all() else values


def decode(
    name: str, shape: tuple[int, ...], encoding: str, arrays: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Weight (0.0 where pruned) and mask (None: dense) of the tensor ``name``.

    ``arrays``: those of ``ARRAYS[encoding]``, ``values`` float16 or float32, the others uint8.
    Lengths, indices and padding are all checked; raises `TicketError` that names the tensor.
    """
    values = arrays["values"]
    wanted = shape if encoding == "dense" else (values.size,)
    if values.shape != wanted:
        raise TicketError(expected(f"{name} values", f"shape {list(wanted)}", list(values.shape)))
    if encoding == "dense":
        weight = values.astype(np.float32)
        weight.setflags(write=False)
        return weight, None
    size = math.prod(shape)
    other = arrays["mask" if encoding == "bitmask" else "gaps"]
    if other.ndim != 1:
        raise TicketError(expected(f"{name} {encoding}", "one axis", f"shape {list(other.shape)}"))
    read = _read_bitmask if encoding == "bitmask" else _read_gaps
    places = read(name, other, size, values.size)
    weight = np.zeros(shape, dtype=np.float32)
    mask = np.zeros(shape, dtype=bool)
    weight.reshape(-1)[places] = values
    mask.reshape(-1)[places] = True
    weight.setflags(write=False)
    mask.setflags(write=False)
    return weight, mask


def _read_bitmask(name: str, packed: NDArray[np.uint8], size: int, count: int) -> NDArray[Any]:
    if packed.size != -(-size // 8):
        raise TicketError(expected(f"{name} mask", f"{-(-size // 8)} bytes", packed.size))
    bits = np.unpackbits(packed, bitorder="little")
    if bits[size:].any():
        raise TicketError(
            expected(f"{name} mask", f"zero bits after the first {size}", "a padding bit that is 1")
        )
    places = np.flatnonzero(bits)
    if len(places) != count:
        raise TicketError(
            expected(f"{name} mask", f"{count} bits set, one for each value", len(places))
        )
    return places


def _read_gaps(name: str, gaps: NDArray[np.uint8], size: int, count: int) -> NDArray[Any]:
    lands = gaps != SKIP
    found = int(np.count_nonzero(lands))
    if found != count:
        raise TicketError(
            expected(f"{name} gaps", f"{count} survivors, one for each value", f"{found}")
        )
    if len(gaps) and not lands[-1]:
        raise TicketError(expected(f"{name} gaps", "a survivor at the end", "a byte of 255"))
    after: NDArray[np.int64] = np.cumsum(gaps.astype(np.int64) + lands)
    if len(gaps) and after[-1] > size:
        raise TicketError(expected(f"{name} gaps", f"indices from 0 to {size - 1}", after[-1] - 1))
    places: NDArray[np.int64] = after[lands] - 1
    return places
