"""What is asked of a sampler, checked: which images, and by which table."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.sampling import Table

DEFAULT_IMAGES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Images ``indices`` ``[n]`` of ``seeds`` ``[n]``, uint64 both, ``batch`` at a time."""

    table: Table
    seeds: NDArray[np.uint64]
    indices: NDArray[np.uint64]
    batch: int

    @property
    def images(self) -> int:
        return len(self.seeds)

    @property
    def steps(self) -> int:
        """Of all batches together."""
        return -(-self.images // self.batch) * self.table.steps

    def batches(self) -> Iterator[slice]:
        for start in range(0, self.images, self.batch):
            yield slice(start, min(start + self.batch, self.images))


def make_request(
    table: Table,
    *,
    n: int | None,
    seed: int,
    seeds: Sequence[int] | NDArray[np.integer] | None,
    indices: Sequence[int] | NDArray[np.integer] | None,
    batch_size: int,
) -> Request:
    """As `Sampler.sample` describes them. Raises `ConfigError` that names the setting."""
    for what, value, low in (("n", n, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value is not None and (type(value) is not int or value < low):
            raise ConfigError(expected(what, f"an integer of at least {low}", repr(value)))
    if seeds is not None and seed != 0:
        raise ConfigError(expected("seed", "none beside seeds", seed))
    given = [values for values in (seeds, indices) if values is not None]
    images = DEFAULT_IMAGES if n is None else n
    if n is None and given:
        images = len(given[0])
    own = _integers("seeds", [seed] * images if seeds is None else seeds, images)
    first = np.arange(images) if seeds is None else np.zeros(images, np.uint64)
    which = _integers("indices", first if indices is None else indices, images)
    return Request(table, own, which, min(images, batch_size))


def _integers(
    what: str, values: Sequence[int] | NDArray[np.integer], length: int
) -> NDArray[np.uint64]:
    wanted = f"{max(length, 1)} integers from 0 to 2**64 - 1"
    try:
        array = np.array([operator.index(value) for value in values], np.uint64)
    except (TypeError, OverflowError) as error:
        raise ConfigError(expected(what, wanted, repr(values)[:80])) from error
    if not len(array) or len(array) != length:
        raise ConfigError(expected(what, wanted, len(array)))
    return array
