from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ddpm.errors import ProgramError
from sparse_ddpm.formats import BSR, CSR, Dense


def sparse_matrix(
    seed: int, rows: int, columns: int, density: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A matrix with exact zeros outside a mask, and some stored zeros inside it."""
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, columns)) < density
    matrix = rng.standard_normal((rows, columns)).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.1] = 0.0
    return np.where(mask, matrix, np.float32(0)), mask


SHAPES = {
    "rows": st.integers(0, 9),
    "channels": st.integers(0, 7),
    "taps": st.sampled_from([1, 9]),
    "density": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    "seed": st.integers(0, 2**31),
}


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_csr_and_dense_are_exact_inverses(
    rows: int, channels: int, taps: int, density: float, seed: int
) -> None:
    matrix, mask = sparse_matrix(seed, rows, channels * taps, density)
    csr = CSR.from_dense(matrix, mask)
    np.testing.assert_array_equal(csr.to_dense(), matrix)
    np.testing.assert_array_equal(csr.stored(), mask)
    assert csr.nnz == mask.sum()
    assert csr.nbytes == 4 * (rows + 1 + 2 * csr.nnz)
    dense = Dense.from_dense(matrix)
    np.testing.assert_array_equal(dense.to_dense(), matrix)
    assert (dense.nnz, dense.nbytes) == (matrix.size, 4 * matrix.size)


@settings(max_examples=60, deadline=None)
@given(**SHAPES, height=st.integers(1, 4), width=st.integers(1, 3))
def test_bsr_is_an_exact_inverse(
    rows: int, channels: int, taps: int, density: float, seed: int, height: int, width: int
) -> None:
    matrix, mask = sparse_matrix(seed, rows, channels * taps, density)
    bsr = BSR.from_dense(matrix, (height, width), taps, mask)
    np.testing.assert_array_equal(bsr.to_dense(), matrix)
    # a stored block covers R output channels and C input channels of one tap
    wanted = np.zeros((rows, channels, taps), dtype=bool)
    cube = mask.reshape(rows, channels, taps)
    for r in range(0, rows, height):
        for c in range(0, channels, width):
            for tap in range(taps):
                block = (slice(r, r + height), slice(c, c + width), tap)
                wanted[block] = cube[block].any()
    np.testing.assert_array_equal(bsr.stored(), wanted.reshape(matrix.shape))
    assert bsr.nnz == wanted.sum()


def test_nonzeros_are_stored_without_a_mask() -> None:
    matrix = np.array([[0.0, 2.0], [0.0, 0.0]], dtype=np.float32)
    assert CSR.from_dense(matrix).nnz == 1
    assert BSR.from_dense(matrix, (2, 1)).nnz == 2


def test_arrays_are_frozen() -> None:
    csr = CSR.from_dense(np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match="read-only"):
        csr.values[0] = 5.0


def arrays(**change: Any) -> dict[str, Any]:
    good = {
        "shape": (2, 3),
        "indptr": np.array([0, 1, 3], np.int32),
        "indices": np.array([2, 0, 1], np.int32),
        "values": np.ones(3, np.float32),
    }
    return good | change


def test_good_arrays_are_accepted() -> None:
    np.testing.assert_array_equal(CSR(**arrays()).to_dense(), [[0, 0, 1], [1, 1, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": np.array([3, 0, 1], np.int32)}, "CSR.indices: expected 0 to 2"),
        ({"indices": np.array([-1, 0, 1], np.int32)}, "CSR.indices: expected 0 to 2"),
        ({"indices": np.array([2, 1, 1], np.int32)}, "rising columns"),
        ({"indices": np.array([2, 0, 1], np.int64)}, "CSR.indices: expected int32"),
        ({"indptr": np.array([0, 3], np.int32)}, "CSR.indptr: expected 3 entries"),
        ({"indptr": np.array([0, 1, 2], np.int32)}, "CSR.indptr: expected 3 entries from 0 to 3"),
        ({"indptr": np.array([0, 4, 3], np.int32)}, "never fall"),
        ({"indptr": np.array([], np.int32)}, "CSR.indptr: expected 3 entries"),
        ({"values": np.ones(2, np.float32)}, "CSR.values: expected 3, got 2"),
        ({"values": np.ones(3, np.float64)}, "CSR.values: expected float32"),
    ],
)
def test_bad_csr_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        CSR(**arrays(**change))


def test_bad_bsr_is_refused() -> None:
    bsr = BSR.from_dense(np.ones((4, 18), np.float32), (2, 1), 9)
    with pytest.raises(ProgramError, match=r"BSR\.taps"):
        BSR(bsr.shape, 4, bsr.indptr, bsr.indices, bsr.blocks)
    with pytest.raises(ProgramError, match=r"BSR\.blocks"):
        BSR(bsr.shape, 9, bsr.indptr, bsr.indices, bsr.blocks[:-1])
    with pytest.raises(ProgramError, match=r"BSR\.indices: expected 0 to 8"):
        BSR((4, 9), 9, bsr.indptr, bsr.indices, bsr.blocks)
