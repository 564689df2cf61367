"""Block compressed sparse rows.

For convolutions a block is R output channels by C input channels *of one tap* (pattern
``block:RxC``; ``vector:G`` is C = 1). The columns of the matrix are permuted so that such a block
is contiguous: ``taps`` says how many taps each input channel has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ProgramError, expected
from sparse_ddpm.formats._checks import check_compressed, check_values, frozen


@dataclass(frozen=True, slots=True, eq=False)
class BSR:
    """Block row b holds ``blocks[indptr[b]:indptr[b + 1]]`` at block columns ``indices[...]``.

    ``shape``: rows and columns of the matrix; ``taps``: kh * kw, a divisor of the columns.
    Block column ``k = tap * ceil(cin / C) + j`` covers input channels ``j * C .. j * C + C - 1`` of
    that tap. ``indptr``: int32 ``[ceil(rows / R) + 1]``; ``indices``: int32 ``[nblocks]``;
    ``blocks``: float32 ``[nblocks, R, C]``. Rows and input channels past the edge hold 0.0.
    """

    shape: tuple[int, int]
    taps: int
    indptr: NDArray[np.int32]
    indices: NDArray[np.int32]
    blocks: NDArray[np.float32]

    def __post_init__(self) -> None:
        check_values("BSR.blocks", self.blocks, 3)
        columns = self.shape[1]
        if self.taps < 1 or columns % self.taps:
            raise ProgramError(expected("BSR.taps", f"a divisor of {columns}", self.taps))
        if 0 in self.block:
            raise ProgramError(expected("BSR.blocks", "blocks of at least 1x1", self.block))
        check_compressed(
            "BSR", self.indptr, self.indices, *self._grid(self.shape, self.taps, self.block)
        )
        if len(self.blocks) != len(self.indices):
            raise ProgramError(expected("BSR.blocks", len(self.indices), len(self.blocks)))
        for name in ("indptr", "indices", "blocks"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    @classmethod
    def from_dense(
        cls,
        matrix: NDArray[Any],
        block: tuple[int, int],
        taps: int = 1,
        mask: NDArray[np.bool_] | None = None,
    ) -> BSR:
        """Store every block that ``mask`` touches (default: every block that is not all zero)."""
        matrix = np.asarray(matrix, dtype=np.float32)
        shape = (matrix.shape[0], matrix.shape[1])
        tiles = cls._tiles(matrix, block, taps)
        keep = matrix != 0 if mask is None else np.asarray(mask, dtype=bool)
        touched = cls._tiles(keep, block, taps).any(axis=(2, 3))
        rows, columns = np.nonzero(touched)
        indptr = np.zeros(touched.shape[0] + 1, dtype=np.int32)
        np.cumsum(np.bincount(rows, minlength=touched.shape[0]), out=indptr[1:])
        return cls(shape, taps, indptr, columns.astype(np.int32), tiles[rows, columns])

    def to_dense(self) -> NDArray[np.float32]:
        return self._scatter(self.blocks, np.float32)

    def stored(self) -> NDArray[np.bool_]:
        """Which entries lie in a stored block, ``[rows, columns]``."""
        return self._scatter(np.ones(self.blocks.shape, dtype=bool), np.bool_)

    def _scatter(self, blocks: NDArray[Any], dtype: Any) -> NDArray[Any]:
        block_rows, block_columns = self._grid(self.shape, self.taps, self.block)
        height, width = self.block
        tiles = np.zeros((block_rows, block_columns, height, width), dtype=dtype)
        tiles[np.repeat(np.arange(block_rows), np.diff(self.indptr)), self.indices] = blocks
        rows, columns = self.shape
        cin = columns // self.taps
        across = block_columns // self.taps
        grid = tiles.reshape(block_rows, self.taps, across, height, width)
        # [row, height, group, width, tap] -> [row, channel, tap]
        full = grid.transpose(0, 3, 2, 4, 1)
        full = full.reshape(block_rows * height, across * width, self.taps)
        return np.ascontiguousarray(full[:rows, :cin].reshape(rows, columns))

    @staticmethod
    def _grid(shape: tuple[int, int], taps: int, block: tuple[int, int]) -> tuple[int, int]:
        return -(-shape[0] // block[0]), taps * -(-(shape[1] // taps) // block[1])

    @staticmethod
    def _tiles(matrix: NDArray[Any], block: tuple[int, int], taps: int) -> NDArray[Any]:
        """``[rows, cin * taps]`` to ``[block rows, block columns, R, C]``, padded with zeros."""
        rows, columns = matrix.shape
        height, width = block
        cin = columns // taps
        up, across = -(-rows // height), -(-cin // width)
        padded = np.zeros((up * height, across * width, taps), dtype=matrix.dtype)
        padded[:rows, :cin] = matrix.reshape(rows, cin, taps)
        tiles = padded.reshape(up, height, across, width, taps).transpose(0, 4, 2, 1, 3)
        return np.ascontiguousarray(tiles).reshape(up, taps * across, height, width)

    @property
    def block(self) -> tuple[int, int]:
        return int(self.blocks.shape[1]), int(self.blocks.shape[2])

    @property
    def nnz(self) -> int:
        """Number of stored entries, those past the matrix's edge not counted."""
        return int(self.stored().sum())

    @property
    def nbytes(self) -> int:
        return int(self.indptr.nbytes + self.indices.nbytes + self.blocks.nbytes)
