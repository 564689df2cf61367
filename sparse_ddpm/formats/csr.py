"""Compressed sparse rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ProgramError, expected
from sparse_ddpm.formats._checks import check_compressed, check_values, frozen


@dataclass(frozen=True, slots=True, eq=False)
class CSR:
    """Row r holds ``values[indptr[r]:indptr[r + 1]]`` at columns ``indices[...]``, rising.

    ``indptr``: int32 ``[rows + 1]``; ``indices``: int32 ``[nnz]``; ``values``: float32 ``[nnz]``.
    A stored value may be 0.0: storage follows the mask, not the value.
    """

    shape: tuple[int, int]
    indptr: NDArray[np.int32]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        check_values("CSR.values", self.values, 1)
        check_compressed("CSR", self.indptr, self.indices, *self.shape)
        if len(self.values) != len(self.indices):
            raise ProgramError(expected("CSR.values", len(self.indices), len(self.values)))
        for name in ("indptr", "indices", "values"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    @classmethod
    def from_dense(cls, matrix: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> CSR:
        """Store the entries where ``mask`` is true (default: the entries that are not zero)."""
        matrix = np.asarray(matrix, dtype=np.float32)
        keep = matrix != 0 if mask is None else np.asarray(mask, dtype=bool)
        rows, columns = np.nonzero(keep)
        indptr = np.zeros(matrix.shape[0] + 1, dtype=np.int32)
        np.cumsum(np.bincount(rows, minlength=matrix.shape[0]), out=indptr[1:])
        return cls(
            (matrix.shape[0], matrix.shape[1]),
            indptr,
            columns.astype(np.int32),
            matrix[rows, columns],
        )

    def to_dense(self) -> NDArray[np.float32]:
        matrix = np.zeros(self.shape, dtype=np.float32)
        matrix[self._rows(), self.indices] = self.values
        return matrix

    def stored(self) -> NDArray[np.bool_]:
        """Which entries are stored, ``[rows, columns]``."""
        kept = np.zeros(self.shape, dtype=bool)
        kept[self._rows(), self.indices] = True
        return kept

    def _rows(self) -> NDArray[np.intp]:
        return np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))

    @property
    def nnz(self) -> int:
        return int(self.values.size)

    @property
    def nbytes(self) -> int:
        return int(self.indptr.nbytes + self.indices.nbytes + self.values.nbytes)
