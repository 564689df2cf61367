"""The U-Net of diffusers (``UNet2DModel``), as far as a ticket can hold it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.ticket.config import MAX_CHANNELS, MAX_IMAGE_SIZE, _check_choice, _check_int

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
RESAMPLERS = ("conv", "resnet")
TIME_SCALE_SHIFTS = ("default", "scale_shift")

MAX_LEVELS = 10
MAX_LAYERS = 32


@dataclass(frozen=True, slots=True)
class UNet2DConfig:
    """What diffusers' ``UNet2DModel`` is made from; fields that it has too bear its names.

    ``time_dim``: of the time embedding; ``head_dim``: channels of an attention's head, 0 for one
    head of all channels (diffusers' ``attention_head_dim`` null); ``attn_norm_num_groups``: of the
    attention in the middle, 0 where it has no norm; ``mid_block``: whether there is a middle.
    """

    channels: int
    image_size: int
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: int
    time_dim: int
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    mid_block: bool = True
    mid_block_scale_factor: float = 1.0
    add_attention: bool = True
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    head_dim: int = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int = 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"

    def __post_init__(self) -> None:
        _check_int("architecture.channels", self.channels, 1, 64)
        _check_int("architecture.image_size", self.image_size, 1, MAX_IMAGE_SIZE)
        _check_tuple("block_out_channels", self.block_out_channels, self.block_out_channels)
        levels = len(self.block_out_channels)
        _check_int("architecture.norm_num_groups", self.norm_num_groups, 1, MAX_CHANNELS)
        for width in self.block_out_channels:
            _check_int("architecture.block_out_channels", width, 2, MAX_CHANNELS)
            _check_divides("norm_num_groups", self.norm_num_groups, width)
        for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            types = getattr(self, name)
            _check_tuple(name, types, self.block_out_channels)
            for kind in types:
                _check_choice(f"architecture.{name}", kind, known)
        _check_int("architecture.layers_per_block", self.layers_per_block, 1, MAX_LAYERS)
        _check_int("architecture.time_dim", self.time_dim, 1, MAX_CHANNELS)
        for name in ("flip_sin_to_cos", "mid_block", "add_attention"):
            if type(getattr(self, name)) is not bool:
                got = repr(getattr(self, name))
                raise ConfigError(expected(f"architecture.{name}", "true or false", got))
        for name, most in (("norm_eps", 1.0), ("mid_block_scale_factor", 1e6)):
            value = getattr(self, name)
            if type(value) is not float or not 0.0 < value <= most or not math.isfinite(value):
                wanted = f"a float above 0, at most {most:g}"
                raise ConfigError(expected(f"architecture.{name}", wanted, repr(value)))
        _check_int("architecture.downsample_padding", self.downsample_padding, 0, 1)
        _check_choice("architecture.downsample_type", self.downsample_type, RESAMPLERS)
        _check_choice("architecture.upsample_type", self.upsample_type, RESAMPLERS)
        _check_choice(
            "architecture.resnet_time_scale_shift", self.resnet_time_scale_shift, TIME_SCALE_SHIFTS
        )
        _check_int("architecture.head_dim", self.head_dim, 0, MAX_CHANNELS)
        for width in self._attention_widths():
            if width < self.head_dim:
                raise ConfigError(
                    expected("architecture.head_dim", f"at most {width} (a block's)", self.head_dim)
                )
        _check_int("architecture.attn_norm_num_groups", self.attn_norm_num_groups, 0, MAX_CHANNELS)
        if self.attn_norm_num_groups:
            _check_divides(
                "attn_norm_num_groups", self.attn_norm_num_groups, self.block_out_channels[-1]
            )
        if self.block_out_channels[0] % 2:
            raise ConfigError(
                expected(
                    "architecture.block_out_channels",
                    "an even first number (sine and cosine halves)",
                    self.block_out_channels[0],
                )
            )
        _check_int(
            "architecture.freq_shift", self.freq_shift, 0, self.block_out_channels[0] // 2 - 1
        )
        halvings = 2 ** (levels - 1)
        if self.image_size % halvings:
            raise ConfigError(
                expected("architecture.image_size", f"a multiple of {halvings}", self.image_size)
            )

    @property
    def levels(self) -> int:
        return len(self.block_out_channels)

    def heads(self, width: int) -> tuple[int, int]:
        """Heads of an attention on ``width`` channels, and the channels of each."""
        return (1, width) if self.head_dim == 0 else (width // self.head_dim, self.head_dim)

    def down(self, level: int) -> str:
        """How level ``level`` halves the image: ``conv``, ``resnet`` or, the last one, ``none``."""
        kind = self.down_block_types[level]
        return self._resampler(kind, self.downsample_type, last=level == self.levels - 1)

    def up(self, stage: int) -> str:
        """How up block ``stage`` doubles the image: ``conv``, ``resnet`` or, the last, ``none``."""
        kind = self.up_block_types[stage]
        return self._resampler(kind, self.upsample_type, last=stage == self.levels - 1)

    @staticmethod
    def _resampler(kind: str, of_attention: str, *, last: bool) -> str:
        if last:
            return "none"
        if kind.startswith("Attn"):
            return of_attention
        return "resnet" if kind.startswith("Resnet") else "conv"

    def _attention_widths(self) -> list[int]:
        down = zip(self.down_block_types, self.block_out_channels, strict=True)
        up = zip(self.up_block_types, reversed(self.block_out_channels), strict=True)
        widths = [width for kind, width in (*down, *up) if kind.startswith("Attn")]
        middle = self.mid_block and self.add_attention
        return widths + [self.block_out_channels[-1]] * middle


def _check_tuple(name: str, value: object, like: object) -> None:
    """Refuse what is no tuple, of the length of ``like`` (1 to MAX_LEVELS)."""
    if not isinstance(value, tuple) or not 1 <= len(value) <= MAX_LEVELS:
        raise ConfigError(expected(f"architecture.{name}", f"1 to {MAX_LEVELS} items", repr(value)))
    assert isinstance(like, tuple)
    if len(value) != len(like):
        wanted = f"{len(like)} items, as block_out_channels"
        raise ConfigError(expected(f"architecture.{name}", wanted, len(value)))


def _check_divides(name: str, groups: int, width: int) -> None:
    if width % groups:
        wanted = f"a divisor of block_out_channels ({width})"
        raise ConfigError(expected(f"architecture.{name}", wanted, groups))


UNET2D_PRESETS: dict[str, UNet2DConfig] = {
    "ddpm-cifar10": UNet2DConfig(
        channels=3,
        image_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        time_dim=512,
        freq_shift=1,
        flip_sin_to_cos=False,
        downsample_padding=0,
        head_dim=0,
        norm_eps=1e-6,
    ),
    "ddpm-cat": UNet2DConfig(
        channels=3,
        image_size=256,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=(*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
        layers_per_block=2,
        time_dim=512,
        freq_shift=1,
        flip_sin_to_cos=False,
        downsample_padding=0,
        head_dim=0,
        norm_eps=1e-6,
    ),
}
"""google/ddpm-cifar10-32 (35.7 M parameters) and google/ddpm-cat-256 (113.7 M)."""
