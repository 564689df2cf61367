"""Sparse weights in an ONNX file: where the weights are, and what they are.

Runtimes evaluate the decoding once, when they load the model; it takes standard operators alone.
There are two ways to say where, and the file has whichever is smaller (`sparse_ddpm_export.weights`
has their nodes).

**Bytes.** A weight of n elements in C order becomes two arrays of e entries: ``gaps`` uint8, the
distance from the entry before (the first entry is element 0), and ``values`` float32 or float16. A
distance above 255 goes through entries of value 0.0 in between. The first and the last element are
always entries, so no array has fewer than two (OpenVINO takes an initializer of one element for a
scalar)::

    flat = ScatterElements(zeros[n], CumSum(gaps), values)

In float32 that is 5 e bytes: 12.5 % of dense at 90 % sparsity.

**Nibbles.** Below about 95 % sparsity distances are short. ``codes`` are numbers of four bits, two
in a byte, that go through the elements from before the first: c below 15 is a distance of c + 1 to
an entry, 15 is a distance of 15 to none. ``values`` has the entries and one 0.0 at the end, for the
code that may fill the last byte::

    entry = codes < 15
    updates = Where(entry, Gather(values, exclusive CumSum(entry)), 0)
    flat = ScatterElements(zeros[n + 16], CumSum(Min(codes + 1, 15)), updates)[1 : n + 1]

At 90 % sparsity that is 4.6 bytes an entry in float32 and 2.6 in float16.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

MAX_GAP = 255
NO_ENTRY = 15

Codes = NDArray[np.uint8]
Gaps = NDArray[np.uint8]
Value = TypeVar("Value", np.float32, np.float16)


def pack(weight: NDArray[Value]) -> tuple[Gaps, NDArray[Value]]:
    """``gaps`` and ``values`` ``[e]`` of a weight of at least 2 elements.

    Lossless, save that -0.0 (what a negative weight leaves under a mask) comes back as 0.0.
    """
    flat = np.ascontiguousarray(weight).reshape(-1)
    kept = flat != 0
    kept[[0, -1]] = True
    places = np.flatnonzero(kept)
    steps = np.diff(places, prepend=0)
    between = np.maximum(steps - 1, 0) // MAX_GAP
    at = np.cumsum(between + 1) - 1
    gaps = np.full(int(at[-1]) + 1, MAX_GAP, dtype=np.uint8)
    gaps[at] = steps - MAX_GAP * between
    values = np.zeros(len(gaps), dtype=weight.dtype)
    values[at] = flat[places]
    return gaps, values


def unpack(gaps: Gaps, values: NDArray[Value], shape: tuple[int, ...]) -> NDArray[Value]:
    """The inverse of `pack`, step for step what the graph does."""
    weight = np.zeros(shape, dtype=values.dtype)
    weight.reshape(-1)[np.cumsum(gaps, dtype=np.int64)] = values
    return weight


def pack_nibbles(weight: NDArray[Value]) -> tuple[Codes, NDArray[Value]]:
    """``codes`` ``[m]`` and ``values`` ``[e + 1]`` of any weight. As lossless as `pack`.

    Byte j has code j in its upper half and code m + j in its lower half.
    """
    flat = np.ascontiguousarray(weight).reshape(-1)
    places = np.flatnonzero(flat)
    steps = np.diff(places, prepend=-1) - 1
    skips = steps // NO_ENTRY
    at = np.cumsum(skips + 1) - 1
    count = int(at[-1]) + 1 if len(at) else 0
    codes = np.full(count + count % 2, NO_ENTRY, dtype=np.uint8)
    codes[at] = steps - NO_ENTRY * skips
    upper, lower = codes.reshape(2, -1)
    both: Codes = np.bitwise_or(np.left_shift(upper, 4), lower, dtype=np.uint8)
    return both, np.append(flat[places], weight.dtype.type(0))


def unpack_nibbles(codes: Codes, values: NDArray[Value], shape: tuple[int, ...]) -> NDArray[Value]:
    """The inverse of `pack_nibbles`, step for step what the graph does."""
    numbers = np.concatenate([codes >> 4, codes & 15]).astype(np.int64)
    entry = numbers < NO_ENTRY
    updates = np.where(entry, values[np.cumsum(entry) - entry], values.dtype.type(0))
    size = int(np.prod(shape))
    flat = np.zeros(size + NO_ENTRY + 1, dtype=values.dtype)
    flat[np.cumsum(np.minimum(numbers + 1, NO_ENTRY))] = updates
    return flat[1 : size + 1].reshape(shape)
