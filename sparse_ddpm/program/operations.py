"""The operations of a Program: small frozen records over named values.

A value is one image's activation ``[C, H, W]``; an engine gives it a batch axis and a memory
layout of its own. ``out`` names the value an operation makes; each value is made once. The names
are the paths of the U-Net's modules, so a trace can be laid beside a run of the torch model.

x, a, b, qkv and residual below are names of values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.formats import Matrix

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """``out = bias + weight * x (+ residual)``: cross-correlation, stride 1, zero "same" padding.

    ``weight``: ``[Cout, Cin * size * size]``; ``size``: odd; ``bias``: ``[Cout]`` or None;
    ``residual``: a value of out's shape, or None. With ``film`` not None, row ``s`` of the time
    table adds to the bias: ``table[s, film : film + Cout]``. ``fan_in``, for accounts: how many
    columns of a row a dense weight would fill, where the others are zero by construction (a
    stride that became channels, a mean of pixels); None: all.
    """

    out: str
    x: str
    weight: Matrix
    size: int
    bias: Vector | None = None
    residual: str | None = None
    film: int | None = None
    fan_in: int | None = None

    @property
    def places(self) -> int:
        """How many weights the layer had before any was pruned."""
        rows, columns = self.weight.shape
        return rows * (columns if self.fan_in is None else min(self.fan_in, columns))


@dataclass(frozen=True, slots=True, eq=False)
class NormAct:
    """Group norm, FiLM, SiLU, residual: ``out = act(norm(x) * gamma + beta) (+ residual)``.

    Groups are runs of ``C / groups`` channels; mean and biased variance go over a group's channels
    and all pixels (Wu & He 2018, arXiv 1803.08494). With ``film`` not None, row ``s`` of the time
    table gives ``scale = table[s, film : film + C]``, ``shift = table[s, film + C : film + 2C]``,
    and the argument of ``act`` is ``(norm(x) * gamma + beta) * (scale + 1) + shift``.
    ``silu``: act is x * sigmoid(x), else the identity. ``gamma``, ``beta``: ``[C]``.
    """

    out: str
    x: str
    groups: int
    gamma: Vector
    beta: Vector
    film: int | None = None
    silu: bool = True
    eps: float = 1e-5
    residual: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ChannelNorm:
    """Each pixel's channels to mean 0 and biased variance 1, times ``gain`` ``[C]``, + residual."""

    out: str
    x: str
    gain: Vector
    eps: float = 1e-5
    residual: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Softmax attention over pixels (Vaswani 2017), on the output of one qkv convolution.

    ``qkv`` has ``3 * heads * dim_head`` channels: q, then k, then v, head by head. For each head
    ``out[d, i] = sum_j softmax_j(q[:, i] . k[:, j] / sqrt(dim_head)) v[d, j]``.
    ``memory``: ``[2, heads, dim_head, M]`` or None, keys and values of M pixels more, which ask for
    nothing themselves.
    """

    out: str
    qkv: str
    heads: int
    dim_head: int
    memory: Vector | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LinearAttention:
    """Linear attention (Shen 2018, arXiv 1812.01243) as in the paper's U-Net, per head:

    q' = softmax over d of q, times 1/sqrt(dim_head); k' = softmax over pixels of k;
    ``out[e, n] = sum_d q'[d, n] * sum_m k'[d, m] v[e, m] / (H * W)``. ``memory``: as in
    `Attention`; its pixels do not count in H * W.
    """

    out: str
    qkv: str
    heads: int
    dim_head: int
    memory: Vector | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SpaceToDepth:
    """``out[(c * 2 + i) * 2 + j, h, w] = x[c, 2h + i, 2w + j]``: half the size, 4 C channels."""

    out: str
    x: str


@dataclass(frozen=True, slots=True, eq=False)
class Upsample2x:
    """Nearest neighbour: ``out[c, h, w] = x[c, h // 2, w // 2]``."""

    out: str
    x: str


@dataclass(frozen=True, slots=True, eq=False)
class Concat:
    """The channels of ``a``, then those of ``b``."""

    out: str
    a: str
    b: str


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """``out = a + b``."""

    out: str
    a: str
    b: str


Operation = (
    Conv
    | NormAct
    | ChannelNorm
    | Attention
    | LinearAttention
    | SpaceToDepth
    | Upsample2x
    | Concat
    | Add
)


def inputs_of(operation: Operation) -> tuple[str, ...]:
    """The values that an operation reads, the residual last."""
    match operation:
        case Concat() | Add():
            return operation.a, operation.b
        case Attention() | LinearAttention():
            return (operation.qkv,)
        case Conv() | NormAct() | ChannelNorm():
            return (
                (operation.x,) if operation.residual is None else (operation.x, operation.residual)
            )
        case SpaceToDepth() | Upsample2x():
            return (operation.x,)
