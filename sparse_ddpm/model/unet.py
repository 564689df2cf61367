"""The paper's U-Net (arXiv 2310.18823, after Ho 2020), trainable and masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparse_ddpm.model.denoiser import Denoiser
from sparse_ddpm.model.layers import (
    AttentionBlock,
    Conv,
    ResnetBlock,
    SpaceToDepth,
    TimeMLP,
    Upsample2x,
)
from sparse_ddpm.ticket.config import UNetConfig


class DownLevel(nn.Module):
    """Two residual blocks, attention, and the way down (or, last, a 3x3 convolution)."""

    def __init__(
        self, config: UNetConfig, here: int, after: int, *, last: bool, linear: bool
    ) -> None:
        super().__init__()
        self.block1 = ResnetBlock(config, here, here)
        self.block2 = ResnetBlock(config, here, here)
        self.attn = AttentionBlock(config, here, linear=linear)
        self.space_to_depth = nn.Identity() if last else SpaceToDepth()
        self.down = Conv(here, after, 3) if last else Conv(4 * here, after, 1)

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        x = self.block1(x, time)
        skips.append(x)
        x = self.attn(self.block2(x, time))
        skips.append(x)
        return self.down(self.space_to_depth(x))  # type: ignore[no-any-return]


class Middle(nn.Module):
    """Residual block, softmax attention, residual block."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.block1 = ResnetBlock(config, channels, channels)
        self.attn = AttentionBlock(config, channels, linear=False)
        self.block2 = ResnetBlock(config, channels, channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.block2(self.attn(self.block1(x, time)), time)  # type: ignore[no-any-return]


class UpLevel(nn.Module):
    """Two residual blocks on the value and a skip each, attention, and the way up."""

    def __init__(
        self, config: UNetConfig, here: int, skip: int, *, last: bool, linear: bool
    ) -> None:
        super().__init__()
        self.block1 = ResnetBlock(config, here + skip, here)
        self.block2 = ResnetBlock(config, here + skip, here)
        self.attn = AttentionBlock(config, here, linear=linear)
        self.upsample = nn.Identity() if last else Upsample2x()
        self.up = Conv(here, skip, 3)

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        x = self.block1(torch.cat([x, skips.pop()], dim=1), time)
        x = self.block2(torch.cat([x, skips.pop()], dim=1), time)
        return self.up(self.upsample(self.attn(x)))  # type: ignore[no-any-return]


class UNet(Denoiser):
    """The denoiser: ``forward(x [N, C, H, W], t [N]) -> [N, C, H, W]``.

    Parameters carry the names and shapes of `sparse_ddpm.ticket.parameters.unet_parameters`.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        levels = len(config.dim_mults)
        linear = [level not in config.full_attention for level in range(levels)]
        self.init_conv = Conv(config.channels, config.dim, 7)
        self.time = TimeMLP(config)
        self.down = nn.ModuleList(
            DownLevel(config, widths[i], widths[i + 1], last=i == levels - 1, linear=linear[i])
            for i in range(levels)
        )
        self.mid = Middle(config, widths[-1])
        self.up = nn.ModuleList(
            UpLevel(config, widths[i + 1], widths[i], last=i == 0, linear=linear[i])
            for i in reversed(range(levels))
        )
        self.final_block = ResnetBlock(config, 2 * config.dim, config.dim)
        self.final_conv = Conv(config.dim, config.channels, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.time(t)
        first = x = self.init_conv(x)
        skips: list[Tensor] = []
        for level in self.down:
            x = level(x, time, skips)
        x = self.mid(x, time)
        for level in self.up:
            x = level(x, time, skips)
        x = self.final_block(torch.cat([x, first], dim=1), time)
        return self.final_conv(x)  # type: ignore[no-any-return]
