"""What the machine can do at most, measured, and kept for those who cannot wait for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sparse_ddpm_kernels import KernelError, ceiling, default_isa

from sparse_ddpm.accounting.limits import MEMORY, Ceilings, Level, reference_ceilings
from sparse_ddpm.bench.machine import caches, cpu_name
from sparse_ddpm.errors import SparseDDPMError
from sparse_ddpm.files import write_atomically

__all__ = ["Ceilings", "Level", "keep_ceilings", "kept_ceilings", "measure_ceilings"]

LEAST_MEMORY = 256 << 20
"""Bytes that no cache holds, all threads together."""
TYPICAL = {"L1": 32 << 10, "L2": 512 << 10, "L3": 16 << 20}
"""Where the system does not tell the sizes of its caches."""


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


def keep_ceilings(found: Ceilings) -> None:
    """Keep what was measured in the user's cache, by processor, instruction set and threads.

    A cache that cannot be written is no reason to fail: the figures are then measured again.
    """
    path = _kept()
    document = {**_read(path), _key(found.isa, found.threads): _plain(found)}
    text = json.dumps(document, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()))
    except (OSError, SparseDDPMError):
        return


def kept_ceilings(threads: int) -> Ceilings:
    """What `keep_ceilings` kept for this machine, else the reference's; ``source`` says which."""
    try:
        isa = default_isa()
    except KernelError:
        return reference_ceilings(threads)
    kept: Any = _read(_kept()).get(_key(isa, threads))
    try:
        levels = tuple(Level(*level) for level in kept["levels"])
        return Ceilings(isa, threads, float(kept["flops_per_s"]), levels, "measured earlier")
    except (KeyError, TypeError, ValueError):
        return reference_ceilings(threads)


def _plain(found: Ceilings) -> dict[str, object]:
    levels = [[level.name, level.size, level.bytes_per_s] for level in found.levels]
    return {"flops_per_s": found.flops_per_s, "levels": levels}


def _key(isa: str, threads: int) -> str:
    return f"{cpu_name()}, {isa}, {threads} threads"


def _kept() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = Path(cache) if cache else Path.home() / ".cache"
    return folder / "sparse-ddpm" / "ceilings.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
