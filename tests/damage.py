"""Damaged ticket files, each by a name: ``DAMAGES[name](path)`` writes one to ``path``.

``SAYS[name]`` is what the error about it has to mention, beside the name of the file.
"""

from __future__ import annotations

from tests import (  # noqa: F401  (each registers its kinds of damage)
    damage_archive,
    damage_content,
    damage_files,
    damage_pickle,
    damage_safetensors,
    damage_torch,
)
from tests.damage_base import DAMAGES, SAYS

__all__ = ["DAMAGES", "SAYS"]
