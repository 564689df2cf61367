"""Engines run a Program: plan once, then one call a step."""

from sparse_ddpm.engine.base import Engine
from sparse_ddpm.engine.choose import DEVICES, make_engine

__all__ = ["DEVICES", "Engine", "make_engine"]
