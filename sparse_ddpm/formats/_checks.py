"""Checks that the formats share, and freezing of the arrays that they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ProgramError, expected


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only, C-contiguous view (or copy, where it was not contiguous) of ``array``."""
    view = np.ascontiguousarray(array).view()
    view.setflags(write=False)
    return view


def check_values(what: str, values: NDArray[Any], ndim: int) -> None:
    if values.dtype != np.float32 or values.ndim != ndim:
        raise ProgramError(
            expected(what, f"float32 with {ndim} axes", f"{values.dtype} {values.shape}")
        )


def check_compressed(
    kind: str, indptr: NDArray[Any], indices: NDArray[Any], rows: int, columns: int
) -> None:
    """Check row pointers and column indices of a compressed matrix of ``rows x columns`` units."""
    for name, array in (("indptr", indptr), ("indices", indices)):
        if array.dtype != np.int32 or array.ndim != 1:
            raise ProgramError(
                expected(f"{kind}.{name}", "int32 with 1 axis", f"{array.dtype} {array.shape}")
            )
    if len(indptr) != rows + 1 or indptr[0] != 0 or indptr[-1] != len(indices):
        raise ProgramError(
            expected(
                f"{kind}.indptr",
                f"{rows + 1} entries from 0 to {len(indices)}",
                f"{len(indptr)} entries"
                + (f" from {indptr[0]} to {indptr[-1]}" if len(indptr) else ""),
            )
        )
    if (np.diff(indptr) < 0).any():
        raise ProgramError(expected(f"{kind}.indptr", "entries that never fall", "a fall"))
    if len(indices) == 0:
        return
    if indices.min() < 0 or indices.max() >= columns:
        raise ProgramError(
            expected(
                f"{kind}.indices", f"0 to {columns - 1}", f"{indices.min()} to {indices.max()}"
            )
        )
    rising = np.diff(indices) > 0
    starts = indptr[1:-1]
    starts = starts[(starts > 0) & (starts < len(indices))]
    rising[starts - 1] = True
    if not rising.all():
        raise ProgramError(
            expected(f"{kind}.indices", "rising columns within each row", "a repeat or a fall")
        )
