"""Each tensor's encoding is lossless, as small as its formula says, and the smallest there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparse_ddpm.errors import TicketError
from sparse_ddpm.ticket.encoding import decode, encode, encode_gaps


def _gap_bytes(places: list[int]) -> list[int]:
    """The definition, byte by byte."""
    out, at = [], 0
    for place in places:
        gap = place - at
        while gap >= 255:
            out.append(255)
            gap -= 255
        out.append(gap)
        at = place + 1
    return out


def _bits(array: NDArray[np.float32]) -> NDArray[np.uint32]:
    return array.view(np.uint32)


def _round_trip(weight: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> str:
    encoding, arrays = encode(weight, mask)
    again, kept = decode("w", weight.shape, encoding, arrays)
    wanted = weight if mask is None else np.where(mask, weight, np.float32(0))
    np.testing.assert_array_equal(_bits(again), _bits(wanted))
    assert again.dtype == np.float32
    assert again.shape == weight.shape
    if mask is None:
        assert kept is None
    else:
        assert kept is not None
        np.testing.assert_array_equal(kept, mask)
    size, count = weight.size, weight.size if mask is None else int(mask.sum())
    item = arrays["values"].dtype.itemsize
    survivors = weight.ravel() if mask is None else weight[mask]
    with np.errstate(over="ignore"):
        narrow = survivors.astype(np.float16).astype(np.float32)
    assert item == (2 if np.array_equal(_bits(narrow), _bits(survivors)) else 4)
    sizes = {
        "dense": size * item if mask is None else math.inf,
        "bitmask": -(-size // 8) + count * item,
        "gaps": math.inf if mask is None else count * item,
    }
    if mask is not None:
        sizes["gaps"] += len(_gap_bytes(np.flatnonzero(mask).tolist()))
    assert sum(array.nbytes for array in arrays.values()) == sizes[encoding]
    if mask is not None:
        assert sizes[encoding] == min(sizes.values())
    return encoding


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(1, 13), min_size=1, max_size=4).map(tuple),
    density=st.sampled_from([0.0, 0.01, 0.05, 0.12, 0.13, 0.5, 0.99, 1.0]) | st.floats(0, 1),
    half=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_of_any_shape_and_density(
    shape: tuple[int, ...], density: float, half: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape).astype(np.float16 if half else np.float32)
    weight = weight.astype(np.float32)
    weight[rng.random(shape) < 0.1] = rng.choice([0.0, -0.0])
    _round_trip(weight, rng.random(shape) < density)
    _round_trip(weight, None)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1100), max_size=8), st.integers(0, 600))
def test_long_gaps(gaps: list[int], tail: int) -> None:
    places = np.cumsum(np.array(gaps, np.int64) + 1) - 1
    assert encode_gaps(places).tolist() == _gap_bytes(places.tolist())
    size = int(places[-1]) + 1 + tail if gaps else tail + 1
    mask = np.zeros(size, bool)
    mask[places] = True
    _round_trip(np.linspace(-1, 1, size, dtype=np.float32) * mask, mask)


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 765, 766, 100_000])
def test_gaps_around_multiples_of_255(gap: int) -> None:
    mask = np.zeros(2 * gap + 2, bool)
    mask[[gap, 2 * gap + 1]] = True
    gaps = encode_gaps(np.flatnonzero(mask))
    assert gaps.tolist() == 2 * ([255] * (gap // 255) + [gap % 255])
    assert _round_trip(mask.astype(np.float32), mask) == ("gaps" if gap > 7 else "bitmask")


@pytest.mark.parametrize("size", [1, 7, 8, 9, 255, 256, 5000])
@pytest.mark.parametrize("survivors", ["none", "all", "first", "last"])
def test_extreme_masks(size: int, survivors: str) -> None:
    mask = np.full(size, survivors == "all")
    if survivors in ("first", "last"):
        mask[0 if survivors == "first" else -1] = True
    encoding = _round_trip(np.full(size, 0.1, np.float32), mask)
    if survivors == "none":
        assert encoding == "gaps"
    if survivors == "all" and size > 8:
        assert encoding == "bitmask"


def test_a_tensor_with_no_elements_is_dense() -> None:
    assert _round_trip(np.zeros((0, 3), np.float32), None) == "dense"


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.0, "float16"),
        (-0.0, "float16"),
        (65504.0, "float16"),
        (2.0**-24, "float16"),
        (1.0 + 2.0**-10, "float16"),
        (1.0 + 2.0**-11, "float32"),
        (65520.0, "float32"),
        (2.0**-25, "float32"),
        (0.1, "float32"),
        (3e38, "float32"),
    ],
)
def test_float16_exactly_when_nothing_is_lost(value: float, dtype: str) -> None:
    weight = np.array([1.0, value], np.float32)
    assert encode(weight)[1]["values"].dtype == dtype
    _round_trip(weight, None)
    _round_trip(weight, np.array([False, True]))


def test_a_surviving_zero_survives() -> None:
    mask = np.array([True, False, True, False])
    weight, kept = decode("w", (4,), *encode(np.zeros(4, np.float32), mask))
    assert kept is not None
    assert kept.tolist() == mask.tolist()
    assert not weight.any()


def test_what_is_decoded_is_read_only_and_stands_alone() -> None:
    values = np.ones(3, np.float32)
    weight, _ = decode("w", (3,), "dense", {"values": values})
    values[:] = 2
    assert weight.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        weight[0] = 3


@pytest.mark.parametrize(
    ("encoding", "arrays", "says"),
    [
        ("dense", {"values": np.ones(4, np.float32)}, "w values: expected shape"),
        ("bitmask", {"values": np.ones(1), "mask": np.array([0b1], np.uint8)}, "2 bytes, got 1"),
        ("bitmask", {"values": np.ones(1), "mask": np.array([0, 0b10], np.uint8)}, "padding bit"),
        ("gaps", {"values": np.ones(1), "gaps": np.array([9], np.uint8)}, "0 to 8, got 9"),
        ("gaps", {"values": np.ones(0), "gaps": np.array([255], np.uint8)}, "a byte of 255"),
    ],
)
def test_flaws_name_the_tensor(encoding: str, arrays: dict[str, NDArray], says: str) -> None:
    with pytest.raises(TicketError, match=r"^w ") as caught:
        decode("w", (3, 3), encoding, arrays)
    assert says in str(caught.value)
