"""What the machine can do at most, and which level of memory serves a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparse_ddpm_kernels import ceiling, default_isa

from sparse_ddpm.bench.machine import caches

MEMORY = "memory"
LEAST_MEMORY = 256 << 20
"""Bytes that no cache holds, all threads together."""
TYPICAL = {"L1": 32 << 10, "L2": 512 << 10, "L3": 16 << 20}
"""Where the system does not tell the sizes of its caches."""


@dataclass(frozen=True, slots=True)
class Level:
    """A cache or the memory. ``size``: bytes that all threads together keep there (0: no end)."""

    name: str
    size: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Of ``threads`` threads together. ``flops_per_s``: float32, a multiply-add as two."""

    isa: str
    threads: int
    flops_per_s: float
    levels: tuple[Level, ...]

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
        }


def measure_ceilings(threads: int, isa: str | None = None) -> Ceilings:
    """Measure all of them, about two seconds. ``isa``: default the one the engine takes.

    A cache is read over half its size, memory over four times the last cache. Raises `KernelError`.
    """
    sizes = {name: size for name, size in caches().items() if name in TYPICAL} or TYPICAL
    levels = []
    for name, size in sizes.items():
        # An L3 belongs to all cores, the others to one each.
        each = size // threads if name == "L3" else size
        rate = ceiling.bandwidth(each // 2, isa, threads)
        levels.append(Level(name, each * threads, rate))
    outside = max(LEAST_MEMORY, 4 * max(sizes.values()))
    levels.append(Level(MEMORY, 0, ceiling.bandwidth(outside // threads, isa, threads)))
    return Ceilings(
        isa=isa or default_isa(),
        threads=threads,
        flops_per_s=ceiling.peak_flops(isa, threads),
        levels=tuple(levels),
    )
