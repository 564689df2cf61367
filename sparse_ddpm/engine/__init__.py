"""Engines run a Program: plan once, then one call a step."""

from sparse_ddpm.engine.base import DeviceSampler, Engine
from sparse_ddpm.engine.choose import DEVICES, default_dtype, make_engine, require_cuda

__all__ = ["DEVICES", "DeviceSampler", "Engine", "default_dtype", "make_engine", "require_cuda"]
