"""The layers of the U-Net. Every operation is a module of its own.

A module's path in the U-Net names exactly one value of the Program that the ticket is lowered to.
Shapes: x ``[N, C, H, W]``, t ``[N]``, FiLM ``[N, 2C]``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_ddpm.ticket.config import UNetConfig

NORM_EPS = 1e-5
STANDARDIZATION_EPS = 1e-5


class Masked(nn.Module):
    """A weight and its mask: the forward pass sees ``weight * mask`` and nothing else.

    ``mask`` is a buffer that is not part of the state dict (a ticket keeps masks by name); None
    means dense. Standardised ``"surviving"``, each row (output channel) is brought to mean 0 and
    biased variance 1 over its surviving weights only, so zeros stay zeros and a row without any
    stays zero; ``"full"`` does so over all weights, so zeros become minus the row's mean.
    """

    mask: Tensor | None

    def __init__(self, shape: tuple[int, ...], *, bias: bool, standardized: str = "none") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[0])) if bias else None
        self.standardized = standardized
        self.register_buffer("mask", None, persistent=False)
        bound = 1.0 / math.sqrt(math.prod(shape[1:]))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def effective_weight(self) -> Tensor:
        """What the forward pass multiplies with: masked, and standardised where that is on."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        if self.standardized == "none":
            return weight
        axes = (1, 2, 3)
        if self.mask is None or self.standardized == "full":
            variance, mean = torch.var_mean(weight, axes, correction=0, keepdim=True)
            return (weight - mean) * torch.rsqrt(variance + STANDARDIZATION_EPS)
        count = self.mask.sum(axes, keepdim=True).clamp(min=1.0)
        mean = weight.sum(axes, keepdim=True) / count
        centred = (weight - mean) * self.mask
        variance = centred.square().sum(axes, keepdim=True) / count
        return centred * torch.rsqrt(variance + STANDARDIZATION_EPS)

    def surviving_weight(self) -> Tensor:
        """What the survivors contribute, at the scale at which they act; 0 where pruned.

        The `effective_weight`, but for ``"full"`` without the mean that is taken from all alike.
        """
        if self.standardized != "full":
            return self.effective_weight()
        weight = self.weight if self.mask is None else self.weight * self.mask
        variance = torch.var(weight, (1, 2, 3), correction=0, keepdim=True)
        return weight * torch.rsqrt(variance + STANDARDIZATION_EPS)


class Conv(Masked):
    """A "same" convolution of odd size and stride 1."""

    def __init__(
        self, cin: int, cout: int, size: int, *, bias: bool = True, standardized: str = "none"
    ) -> None:
        super().__init__((cout, cin, size, size), bias=bias, standardized=standardized)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.effective_weight(), self.bias, padding=self.size // 2)


class Linear(Masked):
    """An affine map of the last axis."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__((outputs, inputs), bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight(), self.bias)


class NormAct(nn.Module):
    """Group norm, optional FiLM, SiLU unless told otherwise."""

    def __init__(
        self, channels: int, groups: int, eps: float = NORM_EPS, *, silu: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.groups, self.eps, self.silu = groups, eps, silu

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        x = F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        if film is not None:
            scale, shift = film[:, :, None, None].chunk(2, dim=1)
            x = x * (scale + 1) + shift
        return F.silu(x) if self.silu else x


class ChannelNorm(nn.Module):
    """Each pixel's channels to mean 0 and variance 1, times a gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + NORM_EPS) * self.gain[:, None, None]


def root_mean_square(x: Tensor) -> Tensor:
    """Each pixel's channels over the root of their mean square (Zhang & Sennrich 2019)."""
    return F.normalize(x, dim=1) * math.sqrt(x.shape[1])


class RootNormAct(nn.Module):
    """Each pixel's channels over the root of their mean square, a gain, optional FiLM, SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        x = root_mean_square(x) * self.gain[:, None, None]
        if film is not None:
            scale, shift = film[:, :, None, None].chunk(2, dim=1)
            x = x * (scale + 1) + shift
        return F.silu(x)


class RootNorm(nn.Module):
    """Each pixel's channels over the root of their mean square, times a gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return root_mean_square(x) * self.gain[:, None, None]


class ResnetBlock(nn.Module):
    """``norm2(conv2(norm1(conv1(x), film))) + shortcut(x)``, the activations inside the norms."""

    def __init__(self, config: UNetConfig, cin: int, cout: int) -> None:
        super().__init__()
        standardized = config.weight_standardization
        self.film = Linear(config.time_dim, 2 * cout)
        self.conv1 = Conv(cin, cout, 3, standardized=standardized)
        self.norm1 = _norm_act(config, cout)
        self.conv2 = Conv(cout, cout, 3, standardized=standardized)
        self.norm2 = _norm_act(config, cout)
        self.shortcut = Conv(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        film = self.film(F.silu(time))
        h = self.norm1(self.conv1(x), film)
        return self.norm2(self.conv2(h)) + self.shortcut(x)  # type: ignore[no-any-return]


def _norm_act(config: UNetConfig, channels: int) -> nn.Module:
    return RootNormAct(channels) if config.block_norm == "rms" else NormAct(channels, config.groups)


def _norm(config: UNetConfig, channels: int) -> nn.Module:
    return (RootNorm if config.attention_norm == "rms" else ChannelNorm)(channels)


def with_memory(k: Tensor, v: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values ``[N, heads, dim_head, pixels]`` after those of ``memory``, if there is one.

    ``memory``: ``[2, heads, dim_head, M]``, the same for all images.
    """
    if memory is None:
        return k, v
    more = memory.to(k.dtype).unsqueeze(1).expand(-1, len(k), -1, -1, -1)
    return torch.cat([more[0], k], dim=-1), torch.cat([more[1], v], dim=-1)


class LinearMix(nn.Module):
    """Linear attention (Shen 2018) on the output of one qkv convolution.

    The values' ``mean`` over all pixels, or their sum.
    """

    def __init__(self, heads: int, dim_head: int, *, mean: bool = True) -> None:
        super().__init__()
        self.heads, self.dim_head, self.mean = heads, dim_head, mean

    def forward(self, qkv: Tensor, memory: Tensor | None = None) -> Tensor:
        n, _, height, width = qkv.shape
        q, k, v = qkv.reshape(n, 3, self.heads, self.dim_head, height * width).unbind(1)
        k, v = with_memory(k, v, memory)
        q = q.softmax(dim=-2) * self.dim_head**-0.5
        k = k.softmax(dim=-1)
        context = k @ (v / (height * width) if self.mean else v).transpose(-1, -2)
        mixed: Tensor = context.transpose(-1, -2) @ q
        return mixed.reshape(n, -1, height, width)


class SoftmaxMix(nn.Module):
    """Softmax attention over pixels on the output of one qkv convolution."""

    def __init__(self, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head

    def forward(self, qkv: Tensor, memory: Tensor | None = None) -> Tensor:
        n, _, height, width = qkv.shape
        q, k, v = qkv.reshape(n, 3, self.heads, self.dim_head, -1).unbind(1)
        k, v = with_memory(k, v, memory)
        # [N, heads, pixels, dim_head]
        out = F.scaled_dot_product_attention(q.mT, k.mT, v.mT)
        return out.transpose(-1, -2).reshape(n, -1, height, width)


class AttentionBlock(nn.Module):
    """Channel norm, qkv, mixing over pixels, output convolution, residual."""

    def __init__(self, config: UNetConfig, channels: int, *, linear: bool) -> None:
        super().__init__()
        self.memory: nn.Parameter | None = None
        if config.memory > 0:
            shape = (2, config.heads, config.dim_head, config.memory)
            self.memory = nn.Parameter(torch.randn(shape))
        self.norm = _norm(config, channels)
        self.qkv = Conv(channels, 3 * config.hidden, 1, bias=False)
        if linear:
            mean = config.attention_values == "mean"
            self.mix: nn.Module = LinearMix(config.heads, config.dim_head, mean=mean)
        else:
            self.mix = SoftmaxMix(config.heads, config.dim_head)
        self.out = Conv(config.hidden, channels, 1)
        self.out_norm = _norm(config, channels) if linear else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.qkv(self.norm(x)), self.memory)
        return self.out_norm(self.out(mixed)) + x  # type: ignore[no-any-return]


class TimeMLP(nn.Module):
    """Sinusoids of t (Ho 2020), then two linear maps with GELU between."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.linear1 = Linear(config.dim, config.time_dim)
        self.linear2 = Linear(config.time_dim, config.time_dim)

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        t = t.to(self.linear1.weight)
        steps = torch.arange(half, device=t.device, dtype=t.dtype)
        frequencies = torch.exp(steps * (-math.log(10_000.0) / max(half - 1, 1)))
        angles = t[:, None] * frequencies
        embedded = torch.cat([angles.sin(), angles.cos()], dim=1)
        out: Tensor = self.linear2(F.gelu(self.linear1(embedded)))
        return out


class SpaceToDepth(nn.Module):
    """Every 2x2 square of pixels becomes four channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


class Upsample2x(nn.Module):
    """Nearest neighbour."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")
