"""From a device's name to an engine."""

from __future__ import annotations

import importlib.util

from sparse_ddpm.engine.base import Engine
from sparse_ddpm.errors import EngineError, MissingDependencyError, expected
from sparse_ddpm.program import Program

DEVICES = ("auto", "cpu", "cuda", "numpy")


def default_dtype(device: str) -> str:
    """What a device computes in unless asked otherwise: float16 on a GPU, else float32."""
    return "float16" if device == "cuda" else "float32"


def make_engine(
    program: Program,
    device: str = "auto",
    batch: int = 1,
    threads: int | None = None,
    dtype: str | None = None,
) -> Engine:
    """An engine for ``program``: ``cpu`` (C++), ``cuda`` (Triton), ``numpy`` (slow reference).

    ``auto`` is ``cpu``; nothing falls back to another engine unasked. ``threads``, of the cpu
    engine: default all cores this process may use. ``dtype``: see
    `sparse_ddpm.engine.plan.DTYPES` and `sparse_ddpm.engine.cuda.plan.DTYPES`; of the numpy engine
    float32, what it takes and returns; default `default_dtype`. Raises `EngineError`, and
    `MissingDependencyError` where cuda lacks torch or Triton.
    """
    if device not in DEVICES:
        raise EngineError(expected("device", f"one of {', '.join(DEVICES)}", repr(device)))
    dtype = default_dtype(device) if dtype is None else dtype
    if device == "numpy":
        from sparse_ddpm.engine.reference import ReferenceEngine

        if dtype != "float32":
            wanted = "float32, which it computes in float64"
            got = f"{dtype!r}; use device cpu"
            raise EngineError(expected("dtype of the numpy engine", wanted, got))
        return ReferenceEngine(program, batch=batch)
    if device == "cuda":
        if threads is not None:
            raise EngineError(expected("threads of the cuda engine", "none", threads))
        require_cuda()
        from sparse_ddpm.engine.cuda.engine import CudaEngine

        return CudaEngine(program, batch=batch, dtype=dtype)
    from sparse_ddpm.engine.cpu import CpuEngine

    return CpuEngine(program, batch=batch, threads=threads, dtype=dtype)


def require_cuda() -> None:
    """Raise `MissingDependencyError` unless what the cuda engine imports is installed."""
    absent = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if absent:
        wanted = 'torch and triton: pip install "sparse-ddpm[gpu]"'
        raise MissingDependencyError(
            expected("device cuda", wanted, f"no {' and no '.join(absent)}")
        )
