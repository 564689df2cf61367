"""What time does to norms and biases, as one table: gamma, beta and bias folded into FiLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.program import Conv, NormAct, Program

ROWS = 256
"""Steps whose float64 table is held at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Films:
    """Operations that time modulates.

    From a norm's column lie C factors, then C summands; from a convolution's, C biases.
    """

    operations: Sequence[Conv | NormAct]
    columns: Mapping[str, int]
    """By what the operation makes."""
    width: int

    @classmethod
    def of(cls, program: Program) -> Films:
        operations = []
        columns: dict[str, int] = {}
        width = 0
        for op in program.operations:
            if isinstance(op, Conv | NormAct) and op.film is not None:
                operations.append(op)
                columns[op.out] = width
                width += 2 * len(op.gamma) if isinstance(op, NormAct) else op.weight.shape[0]
        return cls(tuple(operations), MappingProxyType(columns), width)

    def table(self, program: Program, timesteps: NDArray[Any]) -> NDArray[np.float32]:
        """Factors, summands and biases at ``timesteps`` ``[S]``: float32 ``[S, width]``."""
        table = np.empty((len(timesteps), self.width), dtype=np.float32)
        if not self.operations:
            return table
        for begin in range(0, len(timesteps), ROWS):
            rows = slice(begin, begin + ROWS)
            film = program.time.table(timesteps[rows])
            for op in self.operations:
                first, column = op.film, self.columns[op.out]
                assert first is not None
                if isinstance(op, Conv):
                    channels = op.weight.shape[0]
                    bias = 0.0 if op.bias is None else op.bias
                    table[rows, column : column + channels] = (
                        film[:, first : first + channels] + bias
                    )
                    continue
                channels = len(op.gamma)
                scale = film[:, first : first + channels] + 1.0
                shift = film[:, first + channels : first + 2 * channels]
                table[rows, column : column + channels] = scale * op.gamma
                table[rows, column + channels : column + 2 * channels] = scale * op.beta + shift
        return table
