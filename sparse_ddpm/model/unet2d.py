"""diffusers' U-Net (``UNet2DModel``), trainable and masked."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_ddpm.model.denoiser import Denoiser
from sparse_ddpm.model.layers import Conv, Linear, Masked, NormAct, SoftmaxMix, Upsample2x
from sparse_ddpm.ticket.unet2d_config import UNet2DConfig


class TimedConv(Conv):
    """A convolution to which time may add a number for each channel."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        x = super().forward(x)
        return x if shift is None else x + shift[:, :, None, None]


class StridedConv(Masked):
    """3x3, stride 2. ``padding``: 1 on all sides, or 0: one column and row right and below."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__((channels, channels, 3, 3), bias=True)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == 0:
            x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, self.effective_weight(), self.bias, stride=2, padding=self.padding)


class Resnet(nn.Module):
    """``(x + conv2(norm2(conv1(norm1(x))))) / scale``, activations inside the norms.

    ``resample``: what is done to x and to norm1's output, ``down`` (means of 2x2) or ``up``.
    """

    def __init__(
        self, config: UNet2DConfig, cin: int, cout: int, *, scale: float = 1.0, resample: str = ""
    ) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.shifts_alone = config.resnet_time_scale_shift == "default"
        self.scale, self.resample = scale, resample
        self.norm1 = NormAct(cin, groups, eps)
        self.conv1 = TimedConv(cin, cout, 3)
        self.time_emb_proj = Linear(config.time_dim, cout if self.shifts_alone else 2 * cout)
        self.norm2 = NormAct(cout, groups, eps)
        self.conv2 = Conv(cout, cout, 3)
        self.conv_shortcut = Conv(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        film = self.time_emb_proj(F.silu(time))
        h = self.norm1(x)
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = (F.interpolate(each, scale_factor=2, mode="nearest") for each in (h, x))
        h = self.conv1(h, film if self.shifts_alone else None)
        h = self.conv2(self.norm2(h, None if self.shifts_alone else film))
        out: Tensor = (h + self.conv_shortcut(x)) / self.scale
        return out


class Attention(nn.Module):
    """``(x + to_out(mix(q, k, v of norm(x)))) / scale``; ``groups``: 0 for no norm."""

    def __init__(
        self, config: UNet2DConfig, channels: int, groups: int, *, scale: float = 1.0
    ) -> None:
        super().__init__()
        heads, dim = config.heads(channels)
        self.scale = scale
        self.group_norm = (
            NormAct(channels, groups, config.norm_eps, silu=False) if groups else nn.Identity()
        )
        self.to_q, self.to_k, self.to_v = (Conv(channels, heads * dim, 1) for _ in range(3))
        self.qkv = nn.Identity()  # all three, under the name of a Program's value
        self.mix = SoftmaxMix(heads, dim)
        self.to_out = nn.ModuleList([Conv(heads * dim, channels, 1)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x)
        h = self.qkv(torch.cat([self.to_q(h), self.to_k(h), self.to_v(h)], dim=1))
        out: Tensor = (self.to_out[0](self.mix(h)) + x) / self.scale
        return out


class Layers(nn.Module):
    """Residual blocks, each with an attention after it or none."""

    def __init__(self, config: UNet2DConfig, kind: str, widths: list[tuple[int, int]]) -> None:
        super().__init__()
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList(Resnet(config, cin, cout) for cin, cout in widths)
        if kind.startswith("Attn"):
            self.attentions = nn.ModuleList(Attention(config, cout, groups) for _, cout in widths)

    def layer(self, index: int, x: Tensor, time: Tensor) -> Tensor:
        x = self.resnets[index](x, time)
        return self.attentions[index](x) if hasattr(self, "attentions") else x


class Downsampler(nn.Module):
    """A convolution of stride 2; time has no part in it."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = StridedConv(channels, padding)

    def forward(self, x: Tensor, _time: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class Upsampler(nn.Module):
    """Twice the size, then a convolution; time has no part in it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = Upsample2x()
        self.conv = Conv(channels, channels, 3)

    def forward(self, x: Tensor, _time: Tensor) -> Tensor:
        return self.conv(self.upsample(x))  # type: ignore[no-any-return]


class DownBlock(Layers):
    """Layers, whose outputs are skips, and the way down, whose output is one too."""

    def __init__(self, config: UNet2DConfig, level: int, cin: int) -> None:
        cout = config.block_out_channels[level]
        inputs = [cin, *[cout] * (config.layers_per_block - 1)]
        super().__init__(config, config.down_block_types[level], [(n, cout) for n in inputs])
        down = config.down(level)
        if down == "conv":
            self.downsamplers = nn.ModuleList([Downsampler(cout, config.downsample_padding)])
        elif down == "resnet":
            self.downsamplers = nn.ModuleList([Resnet(config, cout, cout, resample="down")])

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        for index in range(len(self.resnets)):
            x = self.layer(index, x, time)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x, time)
            skips.append(x)
        return x


class UpBlock(Layers):
    """Layers on the value and a skip each, and the way up. ``inputs``: channels of each layer."""

    def __init__(self, config: UNet2DConfig, stage: int, inputs: list[int]) -> None:
        cout = config.block_out_channels[-1 - stage]
        super().__init__(config, config.up_block_types[stage], [(n, cout) for n in inputs])
        up = config.up(stage)
        if up == "conv":
            self.upsamplers = nn.ModuleList([Upsampler(cout)])
        elif up == "resnet":
            self.upsamplers = nn.ModuleList([Resnet(config, cout, cout, resample="up")])

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        for index in range(len(self.resnets)):
            x = self.layer(index, torch.cat([x, skips.pop()], dim=1), time)
        return self.upsamplers[0](x, time) if hasattr(self, "upsamplers") else x


class MidBlock(nn.Module):
    """Residual block, attention or none, residual block; each scaled."""

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__()
        width, scale = config.block_out_channels[-1], config.mid_block_scale_factor
        self.resnets = nn.ModuleList(Resnet(config, width, width, scale=scale) for _ in range(2))
        if config.add_attention:
            groups = config.attn_norm_num_groups
            self.attentions = nn.ModuleList([Attention(config, width, groups, scale=scale)])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.resnets[0](x, time)
        if hasattr(self, "attentions"):
            x = self.attentions[0](x)
        return self.resnets[1](x, time)  # type: ignore[no-any-return]


class TimeEmbedding(nn.Module):
    """Sinusoids of t (Ho 2020), then two linear maps with SiLU between."""

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__()
        self.dim = config.block_out_channels[0]
        self.shift, self.cos_first = config.freq_shift, config.flip_sin_to_cos
        self.linear_1 = Linear(self.dim, config.time_dim)
        self.linear_2 = Linear(config.time_dim, config.time_dim)

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        t = t.to(self.linear_1.weight)
        steps = torch.arange(half, device=t.device, dtype=t.dtype)
        angles = t[:, None] * torch.exp(steps * (-math.log(10_000.0) / (half - self.shift)))
        waves = [angles.sin(), angles.cos()]
        embedded = torch.cat(waves[::-1] if self.cos_first else waves, dim=1)
        return self.linear_2(F.silu(self.linear_1(embedded)))  # type: ignore[no-any-return]


class UNet2D(Denoiser):
    """The denoiser: ``forward(x [N, C, H, W], t [N]) -> [N, C, H, W]``.

    Its state dict is that of diffusers' model, but for the shape of an attention's matrices.
    """

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__()
        self.config = config
        widths, layers = config.block_out_channels, config.layers_per_block
        self.conv_in = Conv(config.channels, widths[0], 3)
        self.time_embedding = TimeEmbedding(config)
        here, skips = widths[0], [widths[0]]
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            self.down_blocks.append(DownBlock(config, level, here))
            skips += [width] * (layers + (config.down(level) != "none"))
            here = width
        self.mid_block = MidBlock(config) if config.mid_block else None
        self.up_blocks = nn.ModuleList()
        for stage, width in enumerate(reversed(widths)):
            inputs = [value + skips.pop() for value in (here, *[width] * layers)]
            self.up_blocks.append(UpBlock(config, stage, inputs))
            here = width
        self.conv_norm_out = NormAct(here, config.norm_num_groups, config.norm_eps)
        self.conv_out = Conv(here, config.channels, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.time_embedding(t)
        x = self.conv_in(x)
        skips = [x]
        for down in self.down_blocks:
            x = down(x, time, skips)
        if self.mid_block is not None:
            x = self.mid_block(x, time)
        for up in self.up_blocks:
            x = up(x, time, skips)
        return self.conv_out(self.conv_norm_out(x))  # type: ignore[no-any-return]
