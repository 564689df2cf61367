"""The paper's U-Net (arXiv 2310.18823, after Ho 2020), trainable and masked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.model.layers import (
    AttentionBlock,
    Conv,
    Masked,
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


class UNet(nn.Module):
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

    def masked(self) -> dict[str, Masked]:
        """The module behind each weight that can carry a mask, by parameter name."""
        return {
            f"{path}.weight": module
            for path, module in self.named_modules()
            if isinstance(module, Masked)
        }

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Install masks by parameter name (1 survives, 0 is gone); parameters not named are dense.

        Raises `ConfigError` for a name without a weight and for a shape that is not the weight's.
        """
        modules = self.masked()
        for name, mask in masks.items():
            if name not in modules:
                raise ConfigError(expected("mask", "the name of a weight", repr(name)))
            weight = modules[name].weight
            if mask.shape != weight.shape:
                raise ConfigError(
                    expected(f"mask of {name}", tuple(weight.shape), tuple(mask.shape))
                )
        for name, module in modules.items():
            module.mask = masks[name].to(module.weight) if name in masks else None

    def effective_weights(self) -> dict[str, Tensor]:
        """Masked and standardised weights by parameter name, 0 where pruned, detached.

        With standardisation over all weights: what survives, see `Masked.surviving_weight`.
        """
        with torch.no_grad():
            return {name: m.surviving_weight().detach() for name, m in self.masked().items()}
