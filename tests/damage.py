"""Damaged ticket files, each by a name: ``DAMAGES[name](path)`` writes one to ``path``.

``SAYS[name]`` is what the error about it has to mention, beside the name of the file.
"""

from __future__ import annotations

import damage_archive  # noqa: F401  (registers its kinds of damage)
import damage_content  # noqa: F401  (registers its kinds of damage)
import damage_files  # noqa: F401  (registers its kinds of damage)
import damage_pickle  # noqa: F401  (registers its kinds of damage)
import damage_safetensors  # noqa: F401  (registers its kinds of damage)
import damage_torch  # noqa: F401  (registers its kinds of damage)
from damage_base import DAMAGES, SAYS

__all__ = ["DAMAGES", "SAYS"]
