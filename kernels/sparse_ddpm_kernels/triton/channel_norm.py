"""Channel norm on ``[C, H, W, N]``: layer norm over each pixel's channels, and a residual.

A program normalises some pixels of some images with all their channels in registers: one read,
one write. Channels that do not fit are read twice, the second time from a cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparse_ddpm_kernels.triton.layout import IMAGES
from sparse_ddpm_kernels.triton.norm import merge
from sparse_ddpm_kernels.triton.views import check_floats, check_view, place

REGISTERS = 16384
"""Numbers that a program holds: 64 a thread of 8 warps."""

RUN = 64
"""Neighbouring elements of a channel in a program where channels are few: 128 bytes."""


@dataclass(frozen=True, slots=True)
class ChannelNormTiles:
    """A program normalises ``pixels`` pixels of ``images`` images, ``channels`` channels at a time.

    All are powers of two.
    """

    channels: int
    pixels: int
    images: int
    warps: int = 4

    def __post_init__(self) -> None:
        powers = self.channels, self.pixels, self.images, self.warps
        if any(n < 1 or n & (n - 1) for n in powers) or self.images < IMAGES:
            raise ValueError(
                f"channel norm tiles: expected powers of two and at least {IMAGES} images, "
                f"got {self}."
            )


def choose_channel_norm_tiles(
    channels: int, pixels: int, images: int, *, multiprocessors: int = 132
) -> ChannelNormTiles:
    """``images``: padded."""
    power = 1 << max(channels - 1, 0).bit_length()
    most = math.gcd(images, 1 << 20)
    run = max(IMAGES, min(RUN, REGISTERS // power))
    while run > IMAGES and pixels * images < run * 2 * multiprocessors:
        run //= 2
    nb = min(run, most)
    chunk = min(power, REGISTERS // run)
    return ChannelNormTiles(chunk, run // nb, nb, max(1, min(8, chunk * run // 1024)))


def channel_norm(
    x: torch.Tensor,
    out: torch.Tensor,
    gain: torch.Tensor,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
    tiles: ChannelNormTiles | None = None,
) -> None:
    """``out = (x - mean) / sqrt(var + eps) * gain (+ residual)``, over the channels of a pixel.

    x, out, residual: ``[C, H, W, N]`` views of `layout.Layout` (any halo), 16-byte aligned; out
    may be x or residual. ``var`` is biased. ``gain``: float32 ``[C]``, contiguous.
    """
    channels, height, width, images = check_view("x", x)
    check_view("out", out, x)
    if residual is not None:
        check_view("residual", residual, x)
    check_floats("gain", gain, (channels,))
    tiles = tiles or choose_channel_norm_tiles(channels, height * width, images)
    if images % tiles.images:
        raise ValueError(f"tiles: expected to fit {images} images, got {tiles}.")
    apart = x if residual is None else residual
    grid = (images // tiles.images * -(-height * width // tiles.pixels),)
    _channel_norm[grid](
        x,
        out,
        residual,
        gain,
        images // 8,
        x.stride(0) // 8,
        x.stride(1) // 8,
        out.stride(0) // 8,
        out.stride(1) // 8,
        apart.stride(0) // 8,
        apart.stride(1) // 8,
        eps,
        channels,
        width,
        height * width,
        tiles.channels,
        tiles.pixels,
        tiles.images,
        num_warps=tiles.warps,
        enable_fp_fusion=True,
    )


def channel_norm_reference(
    x: torch.Tensor, gain: torch.Tensor, *, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """What `channel_norm` computes, in x's dtype."""
    apart = x - x.mean(0, keepdim=True)
    scale = (apart.square().mean(0, keepdim=True) + eps).rsqrt()
    y = apart * scale * gain.to(x.dtype).view(-1, 1, 1, 1)
    return y if residual is None else y + residual


@triton.jit(
    do_not_specialize=(
        "images8",
        "plane8",
        "row8",
        "out_plane8",
        "out_row8",
        "residual_plane8",
        "residual_row8",
    )
)
def _channel_norm(
    x,
    out,
    residual,
    gain,
    images8,
    plane8,
    row8,
    out_plane8,
    out_row8,
    residual_plane8,
    residual_row8,
    eps,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
):
    columns = images8 * 8 // NB
    m = tl.arange(0, PIXELS * NB)
    image = tl.program_id(0) % columns * NB + m % NB
    image = tl.max_contiguous(tl.multiple_of(image, 8), 8)
    pixel = tl.program_id(0) // columns * PIXELS + m // NB
    live = (pixel < COUNT)[None, :]
    c = tl.arange(0, CHUNK)
    at = (place(0, pixel, plane8, row8, images8, WIDTH) + image)[None, :]
    to = (place(0, pixel, out_plane8, out_row8, images8, WIDTH) + image)[None, :]
    more = (place(0, pixel, residual_plane8, residual_row8, images8, WIDTH) + image)[None, :]
    if CHANNELS <= CHUNK:
        inside = (c < CHANNELS)[:, None]
        value = tl.load(x + (c * plane8 * 8)[:, None] + at, mask=inside & live, other=0.0)
        value = value.to(tl.float32)
        apart = value - tl.sum(value, axis=0)[None, :] / CHANNELS
        if CHANNELS < CHUNK:
            apart = tl.where(inside, apart, 0.0)
        scale = tl.rsqrt(tl.sum(apart * apart, axis=0) / CHANNELS + eps)
        value = apart * scale[None, :] * tl.load(gain + c, mask=c < CHANNELS, other=0.0)[:, None]
        if residual is not None:
            beside = residual + (c * residual_plane8 * 8)[:, None] + more
            value += tl.load(beside, mask=inside & live, other=0.0).to(tl.float32)
        value = value.to(out.dtype.element_ty)
        tl.store(out + (c * out_plane8 * 8)[:, None] + to, value, mask=inside & live)
    else:
        mean = tl.zeros([CHUNK, PIXELS * NB], dtype=tl.float32)
        squares = tl.zeros([CHUNK, PIXELS * NB], dtype=tl.float32)
        for first in range(0, CHANNELS, CHUNK):
            inside = (first + c < CHANNELS)[:, None]
            value = tl.load(
                x + ((first + c) * plane8 * 8)[:, None] + at, mask=inside & live, other=0.0
            ).to(tl.float32)
            # Welford: every element of the tile counts the same number of turns.
            apart = tl.where(inside, value - mean, 0.0)
            mean += apart * (1.0 / (first // CHUNK + 1))
            squares += apart * tl.where(inside, value - mean, 0.0)
        turns = ((CHANNELS - c + CHUNK - 1) // CHUNK).to(tl.float32)
        centre, spread = merge(mean, squares, turns[:, None], CHANNELS)
        scale = tl.rsqrt(spread / CHANNELS + eps)
        for first in range(0, CHANNELS, CHUNK):
            inside = (first + c < CHANNELS)[:, None]
            value = tl.load(
                x + ((first + c) * plane8 * 8)[:, None] + at, mask=inside & live, other=0.0
            ).to(tl.float32)
            known = tl.load(gain + first + c, mask=first + c < CHANNELS, other=0.0)
            value = (value - centre[None, :]) * scale[None, :] * known[:, None]
            if residual is not None:
                beside = residual + ((first + c) * residual_plane8 * 8)[:, None] + more
                value += tl.load(beside, mask=inside & live, other=0.0).to(tl.float32)
            to_rows = out + ((first + c) * out_plane8 * 8)[:, None] + to
            tl.store(to_rows, value.to(out.dtype.element_ty), mask=inside & live)
