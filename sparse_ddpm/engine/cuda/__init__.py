"""The GPU engine. Planning needs no GPU; `CudaEngine`, which needs torch, is imported lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_ddpm.engine.cuda.engine import CudaEngine

__all__ = ["CudaEngine"]


def __getattr__(name: str) -> Any:
    if name == "CudaEngine":
        from sparse_ddpm.engine.cuda.engine import CudaEngine

        return CudaEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
