"""A dense matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.formats._checks import check_values, frozen


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """``values``: float32 ``[rows, columns]``; every entry counts as stored."""

    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        check_values("Dense.values", self.values, 2)
        object.__setattr__(self, "values", frozen(self.values))

    @classmethod
    def from_dense(cls, matrix: NDArray[Any]) -> Dense:
        return cls(np.asarray(matrix, dtype=np.float32))

    def to_dense(self) -> NDArray[np.float32]:
        return self.values

    def stored(self) -> NDArray[np.bool_]:
        """Which entries are stored, ``[rows, columns]``."""
        return np.ones(self.values.shape, dtype=bool)

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape

    @property
    def nnz(self) -> int:
        """Number of stored entries (here: all of them)."""
        return int(self.values.size)

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes)
