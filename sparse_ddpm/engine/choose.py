"""From a device's name to an engine."""

from __future__ import annotations

from sparse_ddpm.engine.base import Engine
from sparse_ddpm.errors import EngineError, expected
from sparse_ddpm.program import Program

DEVICES = ("auto", "cpu", "numpy")


def make_engine(
    program: Program,
    device: str = "auto",
    batch: int = 1,
    threads: int | None = None,
    dtype: str = "float32",
) -> Engine:
    """An engine for ``program``: ``cpu`` (C++) or ``numpy`` (the slow float64 reference).

    ``auto`` is ``cpu``; nothing falls back to a slower engine unasked. ``threads``: default all
    cores this process may use. ``dtype``: see `sparse_ddpm.engine.plan.DTYPES`; of the numpy engine
    float32, what it takes and returns. Raises `EngineError`.
    """
    if device not in DEVICES:
        raise EngineError(expected("device", f"one of {', '.join(DEVICES)}", repr(device)))
    if device == "numpy":
        from sparse_ddpm.engine.reference import ReferenceEngine

        if dtype != "float32":
            wanted = "float32, which it computes in float64"
            got = f"{dtype!r}; use device cpu"
            raise EngineError(expected("dtype of the numpy engine", wanted, got))
        return ReferenceEngine(program, batch=batch)
    from sparse_ddpm.engine.cpu import CpuEngine

    return CpuEngine(program, batch=batch, threads=threads, dtype=dtype)
