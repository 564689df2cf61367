"""Our pickle reader and writer against Python's own, on plain content."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ddpm.errors import TicketError
from sparse_ddpm.ticket.plain_pickle import MAX_DEPTH, MAX_PICKLE, read_plain_pickle
from sparse_ddpm.ticket.plain_pickle_writer import Place, write_plain_pickle

SCALARS = (
    st.booleans()
    | st.integers(-(2**126), 2**126)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=25,
)


def _no_tensors(array: Any) -> Place:
    raise AssertionError("there are no tensors here")


def _same(one: object, other: object) -> bool:
    """Equal, and of the same types throughout: True is not 1, and 1 is not 1.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


@settings(max_examples=80, deadline=None)
@given(PLAIN)
def test_plain_values_go_through(value: object) -> None:
    ours = write_plain_pickle(value, _no_tensors)
    assert _same(pickle.loads(ours), value)
    assert _same(read_plain_pickle(ours, {}), value)
    assert _same(read_plain_pickle(pickle.dumps(value, protocol=2), {}), value)


def test_more_than_256_strings_and_1000_items() -> None:
    value = {f"key {i}": [i, str(i), f"key {i}"] for i in range(2500)}
    for data in (write_plain_pickle(value, _no_tensors), pickle.dumps(value, protocol=2)):
        assert read_plain_pickle(data, {}) == value


@pytest.mark.parametrize(
    "number",
    [0, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**63, 2**64 - 1, -1, -(2**31), -(2**31) - 1],
)
def test_integers_at_the_edges(number: int) -> None:
    assert read_plain_pickle(write_plain_pickle(number, _no_tensors), {}) == number
    assert pickle.loads(write_plain_pickle(number, _no_tensors)) == number


def test_depth_is_bounded() -> None:
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert read_plain_pickle(pickle.dumps(value, protocol=2), {}) == value
    with pytest.raises(TicketError, match=f"at most {MAX_DEPTH} levels"):
        read_plain_pickle(pickle.dumps({"deeper": value}, protocol=2), {})


def test_what_is_written_is_never_too_long_to_be_read() -> None:
    with pytest.raises(TicketError, match=r"data\.pkl: expected at most"):
        write_plain_pickle("x" * MAX_PICKLE, _no_tensors)
    with pytest.raises(TypeError, match="no plain content: set"):
        write_plain_pickle({"a": {1}}, _no_tensors)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 1, 3), (1,) * 8])
def test_tensors_of_all_shapes(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    place = Place("FloatStorage", "7", array.size + 5, 2)
    storage = b"\0" * 8 + array.tobytes() + b"\0" * 12
    data = write_plain_pickle([array], lambda _: place)
    (again,) = read_plain_pickle(data, {"7": memoryview(storage)})  # type: ignore[misc]
    assert again.shape == shape
    np.testing.assert_array_equal(again, array)
