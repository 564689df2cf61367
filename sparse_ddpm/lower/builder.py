"""What the lowerings of all architectures share: operations in order, matrices, time maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.formats import BSR, CSR, Dense, Matrix
from sparse_ddpm.program import Operation
from sparse_ddpm.program.operations import Vector
from sparse_ddpm.ticket import Pattern, Ticket


class Builder:
    """Collects a Program's operations and the maps from time to what time changes."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.pattern = Pattern.parse(ticket.provenance.pattern)
        self.operations: list[Operation] = []
        self._films: list[str] = []
        self._film_columns = 0

    def emit(self, operation: Operation) -> str:
        """Add ``operation``; returns what it makes."""
        self.operations.append(operation)
        return operation.out

    def parameter(self, name: str) -> Vector:
        return self.ticket.weights[name]

    def mask(self, name: str) -> NDArray[np.bool_] | None:
        """None where all weights of ``name`` survive."""
        return self.ticket.masks.get(name)

    def matrix(
        self,
        weight: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
        pattern: Pattern | None = None,
    ) -> Matrix:
        """A weight ``[Cout, Cin, kh, kw]`` as ``[rows, columns]``, sparse where there is a mask.

        ``pattern``: what the mask is made of, by default the ticket's.
        """
        pattern = self.pattern if pattern is None else pattern
        rows = weight.reshape(len(weight), -1)
        if mask is None:
            return Dense.from_dense(rows)
        keep = mask.reshape(rows.shape)
        if pattern.rows == pattern.columns == 1 or weight.ndim == 2:
            return CSR.from_dense(rows, keep)
        taps = weight.shape[2] * weight.shape[3]
        return BSR.from_dense(rows, (pattern.rows, pattern.columns), taps, keep)

    def film(self, name: str) -> int:
        """Add the linear map ``name`` to those of time; its first column of the time table."""
        self._films.append(name)
        first = self._film_columns
        self._film_columns += len(self.parameter(f"{name}.bias"))
        return first

    def film_maps(self) -> tuple[Matrix, Vector]:
        """The maps of `film`, one under the other: a weight and a bias.

        Kept sparse by the element: only a schedule runs them.
        """
        names = [f"{name}.weight" for name in self._films]
        film = np.concatenate([self.parameter(name) for name in names])
        bias = np.concatenate([self.parameter(f"{name}.bias") for name in self._films])
        masks = [self.mask(name) for name in names]
        if all(mask is None for mask in masks):
            return Dense.from_dense(film), bias
        keep = [
            np.ones(self.parameter(name).shape, bool) if mask is None else mask
            for name, mask in zip(names, masks, strict=True)
        ]
        return CSR.from_dense(film, np.concatenate(keep)), bias
