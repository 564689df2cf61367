"""What time does to the norms, as one table: a norm's gamma and beta folded into FiLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.program import NormAct, Program

ROWS = 256
"""Steps whose float64 table is held at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Films:
    """Norms that time modulates. From a norm's column lie C factors, then C summands."""

    norms: Sequence[NormAct]
    columns: Mapping[str, int]
    """By what the norm makes."""
    width: int

    @classmethod
    def of(cls, program: Program) -> Films:
        norms = [op for op in program.operations if isinstance(op, NormAct) and op.film is not None]
        columns: dict[str, int] = {}
        width = 0
        for op in norms:
            columns[op.out] = width
            width += 2 * len(op.gamma)
        return cls(tuple(norms), MappingProxyType(columns), width)

    def table(self, program: Program, timesteps: NDArray[Any]) -> NDArray[np.float32]:
        """Factors and summands at ``timesteps`` ``[S]``: float32 ``[S, width]``."""
        table = np.empty((len(timesteps), self.width), dtype=np.float32)
        if not self.norms:
            return table
        for begin in range(0, len(timesteps), ROWS):
            rows = slice(begin, begin + ROWS)
            film = program.time.table(timesteps[rows])
            for op in self.norms:
                channels, column, first = len(op.gamma), self.columns[op.out], op.film
                assert first is not None
                scale = film[:, first : first + channels] + 1.0
                shift = film[:, first + channels : first + 2 * channels]
                table[rows, column : column + channels] = scale * op.gamma
                table[rows, column + channels : column + 2 * channels] = scale * op.beta + shift
        return table
