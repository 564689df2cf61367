"""What a machine can do at most, and what that allows an operation: Williams 2009's roofline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MEMORY = "memory"
ARITHMETIC = "multiply-adds"


@dataclass(frozen=True, slots=True)
class Level:
    """A cache or the memory. ``size``: bytes that all threads together keep there (0: no end)."""

    name: str
    size: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Of ``threads`` threads together. ``flops_per_s``: float32, a multiply-add as two.

    ``source``: where the figures come from, for people.
    """

    isa: str
    threads: int
    flops_per_s: float
    levels: tuple[Level, ...]
    source: str = "measured"

    def level(self, size: int) -> Level:
        """The first level below L1 that holds ``size`` bytes: what one operation leaves for the
        next lies there.
        """
        below = [level for level in self.levels if level.name != "L1"]
        return next(level for level in below if level.size == 0 or size <= level.size)

    def as_json(self) -> dict[str, Any]:
        return {
            "isa": self.isa,
            "threads": self.threads,
            "gflops_per_s": round(self.flops_per_s / 1e9, 2),
            "gbytes_per_s": {n.name: round(n.bytes_per_s / 1e9, 2) for n in self.levels},
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class Limit:
    """The least time that a machine needs for an operation, and what would end last."""

    seconds: float
    bound: str
    """`ARITHMETIC`, or the name of the level that holds what is read and written."""
    level: str


def limit(flops: int, size: int, ceilings: Ceilings) -> Limit:
    """Of ``flops`` FLOPs on ``size`` bytes, each read or written once."""
    level = ceilings.level(size)
    arithmetic, traffic = flops / ceilings.flops_per_s, size / level.bytes_per_s
    bound = ARITHMETIC if arithmetic >= traffic else level.name
    return Limit(max(arithmetic, traffic), bound, level.name)


REFERENCE_FLOPS = 117e9
"""Of one core of the machine that the times of `sparse_ddpm.accounting.predict` were fitted on."""


def reference_ceilings(threads: int) -> Ceilings:
    """A server processor's of 2022: per core 117 GFLOP/s, reads of 208 GB/s from 32 KiB of L1, 116
    from 1 MiB of L2, 94 from L3; 32 MiB of L3 and 22 GB/s from memory for all (AMD Zen 4).
    """
    levels = (
        Level("L1", threads * (32 << 10), threads * 208e9),
        Level("L2", threads << 20, threads * 116e9),
        Level("L3", 32 << 20, threads * 94e9),
        Level(MEMORY, 0, 22e9),
    )
    source = "reference figures of an AMD Zen 4 server, not of this machine"
    return Ceilings("avx512", threads, threads * REFERENCE_FLOPS, levels, source)


def reference_gpu_ceilings(dtype: str) -> Ceilings:
    """An H100 SXM's by its data sheet: dense tensor cores (float32 without), HBM3, 50 MB of L2
    (whose bandwidth is an estimate).
    """
    levels = (Level("L2", 50_000_000, 5.5e12), Level(MEMORY, 0, 3.35e12))
    flops = 67e12 if dtype == "float32" else 989e12
    return Ceilings("sm_90", 1, flops, levels, "data sheet of an H100 SXM, not of this machine")
