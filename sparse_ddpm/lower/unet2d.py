"""Lowering of diffusers' U-Net. Mirrors the forward pass of ``UNet2DModel``, module by module."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ProgramError, expected
from sparse_ddpm.formats import CSR
from sparse_ddpm.lower.builder import Builder
from sparse_ddpm.program import (
    Add,
    Attention,
    Concat,
    Conv,
    NormAct,
    Program,
    SpaceToDepth,
    TimeEmbedding,
    Upsample2x,
)
from sparse_ddpm.ticket import Pattern, Ticket, UNet2DConfig

Weight = NDArray[np.float32]
Mask = NDArray[np.bool_]

UNPRUNED = Pattern(16, 1)
"""How a dense weight is stored among the zeros that a stride puts between its columns."""


def strided(weight: Weight, mask: Mask | None, padding: int) -> tuple[Weight, Mask]:
    """A 3x3 convolution of stride 2 as one of stride 1 on what `SpaceToDepth` makes, and its mask.

    ``weight``: ``[Cout, Cin, 3, 3]``; ``padding``: 1 on all sides, or 0, which stands for one
    column and one row of zeros at the right and at the bottom. Tap r of output row h reads row
    ``2 h + r - padding = 2 (h + d) + i``: channel ``(c, i)``, tap d. Of the ``4 Cin * 9`` columns
    of what is returned as many hold weights as before.
    """
    cout, cin = weight.shape[:2]
    wide = np.zeros((cout, cin, 2, 2, 3, 3), np.float32)
    keep = np.zeros(wide.shape, bool)
    for r in range(3):
        for s in range(3):
            (down, i), (right, j) = divmod(r - padding, 2), divmod(s - padding, 2)
            wide[:, :, i, j, down + 1, right + 1] = weight[:, :, r, s]
            keep[:, :, i, j, down + 1, right + 1] = True if mask is None else mask[:, :, r, s]
    shape = (cout, 4 * cin, 3, 3)
    return wide.reshape(shape), keep.reshape(shape)


def lower_unet2d(ticket: Ticket) -> Program:
    """The Program of a ticket of diffusers' U-Net. Raises `ProgramError` for another's."""
    config = ticket.architecture
    if not isinstance(config, UNet2DConfig):
        raise ProgramError(expected("architecture", "UNet2DConfig", type(config).__name__))
    return _Lowering(ticket, config).program()


class _Lowering(Builder):
    def __init__(self, ticket: Ticket, config: UNet2DConfig) -> None:
        super().__init__(ticket)
        self.config = config

    def program(self) -> Program:
        config = self.config
        x = self.conv("conv_in", "x")
        skips = [x]
        for level in range(config.levels):
            name, kind = f"down_blocks.{level}", config.down_block_types[level]
            for layer in range(config.layers_per_block):
                x = self.layer(name, layer, kind, x)
                skips.append(x)
            if config.down(level) == "conv":
                x = self.halved(f"{name}.downsamplers.0", x)
            elif config.down(level) == "resnet":
                x = self.resnet(f"{name}.downsamplers.0", x, resample="down")
            if config.down(level) != "none":
                skips.append(x)
        if config.mid_block:
            scale = config.mid_block_scale_factor
            x = self.resnet("mid_block.resnets.0", x, scale=scale)
            if config.add_attention:
                groups = config.attn_norm_num_groups
                x = self.attention("mid_block.attentions.0", x, groups, scale=scale)
            x = self.resnet("mid_block.resnets.1", x, scale=scale)
        for stage in range(config.levels):
            name, kind = f"up_blocks.{stage}", config.up_block_types[stage]
            for layer in range(config.layers_per_block + 1):
                x = self.emit(Concat(f"{name}.cat{layer}", x, skips.pop()))
                x = self.layer(name, layer, kind, x)
            if config.up(stage) == "conv":
                x = self.emit(Upsample2x(f"{name}.upsamplers.0.upsample", x))
                x = self.conv(f"{name}.upsamplers.0.conv", x)
            elif config.up(stage) == "resnet":
                x = self.resnet(f"{name}.upsamplers.0", x, resample="up")
        x = self.norm("conv_norm_out", x)
        x = self.conv("conv_out", x)
        return Program(
            operations=tuple(self.operations),
            input="x",
            input_shape=(config.channels, config.image_size, config.image_size),
            output=x,
            time=self.time(),
        )

    def layer(self, name: str, layer: int, kind: str, x: str) -> str:
        x = self.resnet(f"{name}.resnets.{layer}", x)
        if kind.startswith("Attn"):
            x = self.attention(f"{name}.attentions.{layer}", x, self.config.norm_num_groups)
        return x

    def resnet(self, name: str, x: str, *, scale: float = 1.0, resample: str = "") -> str:
        film = self.film(f"{name}.time_emb_proj")
        shifts_alone = self.config.resnet_time_scale_shift == "default"
        h = self.norm(f"{name}.norm1", x)
        channels = len(self.parameter(f"{name}.norm1.weight"))
        if resample == "down":
            h = self.pooled(f"{name}.halved_norm1", h, channels)
            x = self.pooled(f"{name}.halved", x, channels)
        elif resample == "up":
            h = self.emit(Upsample2x(f"{name}.doubled_norm1", h))
            x = self.emit(Upsample2x(f"{name}.doubled", x))
        # Before conv2, so that it is conv2 that takes the sum, see `fuse_residuals`.
        if f"{name}.conv_shortcut.weight" in self.ticket.weights:
            x = self.conv(f"{name}.conv_shortcut", x, scale=scale)
        elif scale != 1.0:
            x = self.scaled(f"{name}.scaled", x, channels, scale)
        h = self.conv(f"{name}.conv1", h, film=film if shifts_alone else None)
        h = self.norm(f"{name}.norm2", h, film=None if shifts_alone else film)
        h = self.conv(f"{name}.conv2", h, scale=scale)
        return self.emit(Add(name, h, x))

    def attention(self, name: str, x: str, groups: int, *, scale: float = 1.0) -> str:
        """``groups``: 0 for an attention without a norm."""
        h = self.norm(f"{name}.group_norm", x, groups=groups, silu=False) if groups else x
        if scale != 1.0:
            channels = len(self.parameter(f"{name}.to_out.0.weight"))
            x = self.scaled(f"{name}.scaled", x, channels, scale)
        parts = [f"{name}.{part}" for part in ("to_q", "to_k", "to_v")]
        weights = [self.parameter(f"{part}.weight") for part in parts]
        masks = [self.mask(f"{part}.weight") for part in parts]
        mask = None
        if any(each is not None for each in masks):
            mask = np.concatenate(
                [
                    np.ones(weight.shape, bool) if each is None else each
                    for weight, each in zip(weights, masks, strict=True)
                ]
            )
        hidden, pattern = len(weights[0]), self.pattern
        if hidden % pattern.rows:
            pattern = Pattern()  # no block may reach from one part into the next
        matrix = self.matrix(np.concatenate(weights), mask, pattern)
        bias = np.concatenate([self.parameter(f"{part}.bias") for part in parts])
        h = self.emit(Conv(f"{name}.qkv", h, matrix, 1, bias))
        h = self.emit(Attention(f"{name}.mix", h, *self._heads(hidden)))
        h = self.conv(f"{name}.to_out.0", h, scale=scale)
        return self.emit(Add(name, h, x))

    def _heads(self, hidden: int) -> tuple[int, int]:
        dim = self.config.head_dim or hidden
        return hidden // dim, dim

    def norm(
        self,
        name: str,
        x: str,
        *,
        groups: int | None = None,
        film: int | None = None,
        silu: bool = True,
    ) -> str:
        gamma, beta = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        groups = self.config.norm_num_groups if groups is None else groups
        return self.emit(NormAct(name, x, groups, gamma, beta, film, silu, self.config.norm_eps))

    def conv(self, name: str, x: str, *, scale: float = 1.0, film: int | None = None) -> str:
        """Weight and bias divided by ``scale``."""
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        if scale != 1.0:
            weight, bias = weight / np.float32(scale), bias / np.float32(scale)
        matrix = self.matrix(weight, self.mask(f"{name}.weight"))
        return self.emit(Conv(name, x, matrix, weight.shape[2], bias, film=film))

    def halved(self, name: str, x: str) -> str:
        """A 3x3 convolution of stride 2."""
        weight, mask = self.parameter(f"{name}.conv.weight"), self.mask(f"{name}.conv.weight")
        wide, keep = strided(weight, mask, self.config.downsample_padding)
        pattern = UNPRUNED if mask is None else self.pattern
        # Blocks of several input channels are torn apart: their weights are stored one by one.
        matrix = self.matrix(wide, keep, pattern if pattern.columns == 1 else Pattern())
        x = self.emit(SpaceToDepth(f"{name}.space_to_depth", x))
        bias, fan_in = self.parameter(f"{name}.conv.bias"), weight[0].size
        return self.emit(Conv(f"{name}.conv", x, matrix, 3, bias, fan_in=fan_in))

    def pooled(self, name: str, x: str, channels: int) -> str:
        """The mean of each 2x2 square."""
        quarters = np.kron(np.eye(channels), np.full((1, 4), 0.25)).astype(np.float32)
        x = self.emit(SpaceToDepth(f"{name}.space_to_depth", x))
        return self.emit(Conv(name, x, CSR.from_dense(quarters), 1, fan_in=4))

    def scaled(self, name: str, x: str, channels: int, scale: float) -> str:
        """``x / scale``."""
        diagonal = np.eye(channels, dtype=np.float32) / np.float32(scale)
        return self.emit(Conv(name, x, CSR.from_dense(diagonal), 1, fan_in=1))

    def time(self) -> TimeEmbedding:
        film, film_bias = self.film_maps()
        return TimeEmbedding(
            dim=self.config.block_out_channels[0],
            weight1=self.parameter("time_embedding.linear_1.weight"),
            bias1=self.parameter("time_embedding.linear_1.bias"),
            weight2=self.parameter("time_embedding.linear_2.weight"),
            bias2=self.parameter("time_embedding.linear_2.bias"),
            film=film,
            film_bias=film_bias,
            shift=self.config.freq_shift,
            cos_first=self.config.flip_sin_to_cos,
            act="silu",
        )
