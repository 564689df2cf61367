"""The convolutions that the layer section times: shapes of the paper's U-Net, random masks."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.formats import BSR, CSR, Dense, Matrix
from sparse_ddpm.program import Conv
from sparse_ddpm.program.program import Shape
from sparse_ddpm.ticket import Pattern
from sparse_ddpm.ticket.synthetic import random_mask

SIZE = 3
DENSE = "dense"
USUAL = {"batch": (16, 256), "sparsity": (0.95, 0.99), "pattern": ("vector:32", "element", DENSE)}


@dataclass(frozen=True, slots=True)
class Problem:
    """A 3x3 convolution, ``channels`` to as many, of images of ``side`` x ``side``.

    ``pattern``: as in a ticket, or `DENSE`.
    """

    channels: int
    side: int
    batch: int
    sparsity: float
    pattern: str

    @property
    def layer(self) -> str:
        return f"{self.channels}@{self.side}x{self.side}"

    @property
    def name(self) -> str:
        kept = self.pattern if self.pattern == DENSE else f"{self.pattern} {self.sparsity:g}"
        return f"{self.layer} batch {self.batch} {kept}"

    @property
    def shape(self) -> Shape:
        return self.channels, self.side, self.side

    @property
    def dense_flops(self) -> int:
        """Of all images, with every zero multiplied."""
        return 2 * self.channels**2 * SIZE**2 * self.side**2 * self.batch

    @property
    def unusual(self) -> int:
        """How many of its parameters are not in `USUAL`: what is asked for most comes first."""
        return sum(getattr(self, name) not in usual for name, usual in USUAL.items())

    def conv(self) -> Conv:
        """The operation, its weights normal and of a surviving fan-in's scale."""
        return _conv(self)

    def _make(self) -> Conv:
        rng = np.random.default_rng([self.channels, round(1e4 * self.sparsity)])
        shape = self.channels, self.channels, SIZE, SIZE
        mask = self._mask(shape, rng)
        fan_in = max(float(mask.sum()) / self.channels, 1.0)
        weight = rng.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(fan_in))
        return Conv("out", "x", self._matrix(weight * mask, mask), SIZE)

    def _mask(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
        if self.pattern == DENSE:
            return np.ones(shape, dtype=bool)
        return random_mask(shape, self.sparsity, Pattern.parse(self.pattern), rng)

    def _matrix(self, weight: NDArray[np.float32], mask: NDArray[np.bool_]) -> Matrix:
        rows, keep = weight.reshape(len(weight), -1), mask.reshape(len(weight), -1)
        if self.pattern == DENSE:
            return Dense.from_dense(rows)
        unit = Pattern.parse(self.pattern)
        if unit.rows == unit.columns == 1:
            return CSR.from_dense(rows, keep)
        return BSR.from_dense(rows, (unit.rows, unit.columns), SIZE**2, keep)


@functools.lru_cache(maxsize=2)
def _conv(problem: Problem) -> Conv:
    return problem._make()


@dataclass(frozen=True, slots=True)
class Grid:
    """All combinations are problems."""

    layers: tuple[tuple[int, int], ...] = ((64, 32), (128, 16), (256, 8), (512, 4))
    batches: tuple[int, ...] = (1, 16, 64, 256)
    sparsities: tuple[float, ...] = (0.9, 0.95, 0.98, 0.99)
    patterns: tuple[str, ...] = ("element", "vector:16", "vector:32", "vector:64", "block:32x32")

    def problems(self) -> Sequence[Problem]:
        """The most usual first; before the pruned ones of a shape the dense one."""
        found = [
            Problem(channels, side, batch, sparsity, pattern)
            for (channels, side), batch, sparsity, pattern in itertools.product(
                self.layers, self.batches, self.sparsities, self.patterns
            )
        ]
        found += [
            Problem(channels, side, batch, 0.0, DENSE)
            for (channels, side), batch in itertools.product(self.layers, self.batches)
        ]
        return sorted(
            found, key=lambda p: (p.unusual, p.pattern != DENSE, -p.batch, p.channels, p.sparsity)
        )


DRY = Grid(
    layers=((32, 4),),
    batches=(3,),
    sparsities=(0.9,),
    patterns=("element", "vector:16", "block:32x32"),
)
