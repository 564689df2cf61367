"""Cases of what moves data, and of the sampler's update."""

from __future__ import annotations

from collections.abc import Mapping

from gpu.correctness import Case


def cases(dry: bool) -> Mapping[str, Case]:
    return {}
