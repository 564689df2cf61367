"""A ticket compiled: a short list of operations over sparse weights.

Engines, accounts and exporters are interpreters of a `Program`; nothing here computes.
"""

from sparse_ddpm.program.dense import densified
from sparse_ddpm.program.operations import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    Operation,
    SpaceToDepth,
    Upsample2x,
)
from sparse_ddpm.program.program import Program
from sparse_ddpm.program.time_table import TimeEmbedding

__all__ = [
    "Add",
    "Attention",
    "ChannelNorm",
    "Concat",
    "Conv",
    "LinearAttention",
    "NormAct",
    "Operation",
    "Program",
    "SpaceToDepth",
    "TimeEmbedding",
    "Upsample2x",
    "densified",
]
