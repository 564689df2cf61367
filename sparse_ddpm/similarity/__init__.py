"""How alike two tickets are, layer by layer, beyond what chance explains. Numpy only."""

from sparse_ddpm.similarity.chance import Chance, hypergeometric, pooled, scattered
from sparse_ddpm.similarity.compare import (
    Comparison,
    Likeness,
    block_of,
    compare,
    rank_trend,
    stage_of,
)

__all__ = [
    "Chance",
    "Comparison",
    "Likeness",
    "block_of",
    "compare",
    "hypergeometric",
    "pooled",
    "rank_trend",
    "scattered",
    "stage_of",
]
