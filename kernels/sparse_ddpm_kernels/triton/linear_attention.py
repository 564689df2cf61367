"""Linear attention (Shen 2018, arXiv 1812.01243) on ``[C, H, W, N]``, in two kernels.

The first makes, per image and head, the context ``sum_m exp(k[d, m] - max) v[e, m]`` of some
pixels, with the running maximum and sum of k over them; the second merges these parts and mixes
each pixel's softmax of q. Images lie innermost, so a tile of 8 images is turned into 8 small
matrices, one batched product on tensor cores for all. Both are bound by memory: k and v are read
once, q is read once, out is written once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparse_ddpm_kernels.triton.attention import (
    check_qkv,
    load_heads,
    padded_dim,
    place_heads,
    precision,
)
from sparse_ddpm_kernels.triton.layout import IMAGES
from sparse_ddpm_kernels.triton.views import check_floats

VALUES = 32
"""Values e of a context in one program: 8 images x dim x 32 sums."""

MOST_PARTS = 8
"""Parts of the context that every program of the second kernel reads."""


@dataclass(frozen=True, slots=True)
class LinearAttentionTiles:
    """Both kernels take ``pixels`` pixels of 8 images at a time, a power of two.

    ``parts``: programs that share the context of a head and 8 images. ``turns``: tiles of pixels
    that a program of the second kernel makes.
    """

    pixels: int
    parts: int
    turns: int
    warps: int = 8
    stages: int = 3

    def __post_init__(self) -> None:
        if self.pixels < 16 or self.pixels & (self.pixels - 1):
            raise ValueError(
                f"linear attention tiles: expected 16 or more pixels, a power of two, got {self}."
            )

    def workspace(self, *, heads: int, dim_head: int, images: int) -> int:
        """Elements of the float32 ``context`` of `linear_attention`."""
        return self.parts * heads * dim_head * (dim_head + 2) * images


def choose_linear_attention_tiles(
    pixels: int, images: int, heads: int, dim_head: int, *, multiprocessors: int = 132
) -> LinearAttentionTiles:
    """Enough programs for the GPU, but few parts to merge. ``images``: padded.

    16 pixels: two programs of 8 warps fit a multiprocessor, and copies for both are under way.
    """
    tile = 16
    tiles = -(-pixels // tile)
    programs = images // IMAGES * heads * -(-padded_dim(dim_head) // VALUES)
    parts = min(MOST_PARTS, tiles, -(-2 * multiprocessors // programs))
    parts = -(-tiles // -(-tiles // parts))
    turns = max(1, min(8, tiles, tiles * programs // (2 * multiprocessors)))
    return LinearAttentionTiles(tile, parts, turns)


def linear_attention(
    qkv: torch.Tensor,
    out: torch.Tensor,
    context: torch.Tensor,
    *,
    heads: int,
    dim_head: int,
    tiles: LinearAttentionTiles | None = None,
) -> None:
    """``out[e, n] = sum_d q'[d, n] * sum_m k'[d, m] v[e, m] / (H * W)``, per head.

    q' is q's softmax over d, times ``1 / sqrt(dim_head)``; k' is k's softmax over pixels.
    qkv: ``[3 * heads * dim_head, H, W, N]``: q, then k, then v, head by head. out:
    ``[heads * dim_head, H, W, N]``. Both: views of `layout.Layout` (any halo) of one dtype, 16-byte
    aligned, that share no memory. ``context``: float32 workspace, contiguous, of
    ``tiles.workspace(...)`` elements or more: ``[parts, heads, dim_head + 2, dim_head, N]``, rows
    the values e, then the maximum of k times log2(e), then the sum of its powers. ``dim_head``:
    128 at most.
    """
    height, width, images = check_qkv(qkv, out, heads, dim_head)
    pixels = height * width
    tiles = tiles or choose_linear_attention_tiles(pixels, images, heads, dim_head)
    needed = tiles.workspace(heads=heads, dim_head=dim_head, images=images)
    check_floats("context", context, tuple(context.shape))
    if context.numel() < needed:
        raise ValueError(f"context: expected {needed} elements, got {context.numel()}.")
    padded = padded_dim(dim_head)
    values = min(VALUES, padded)
    sizes = heads, dim_head, padded, values, width, pixels, tiles.pixels
    per_part = triton.cdiv(triton.cdiv(pixels, tiles.pixels), tiles.parts)
    if (tiles.parts - 1) * per_part * tiles.pixels >= pixels:
        raise ValueError(f"tiles: expected pixels for every part of {pixels}, got {tiles}.")
    grid = images // IMAGES * tiles.parts, heads, padded // values
    _context[grid](
        qkv,
        context,
        images // 8,
        qkv.stride(0) // 8,
        qkv.stride(1) // 8,
        *sizes,
        per_part,
        IMAGES,
        precision(qkv),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        enable_fp_fusion=True,
    )
    chunks = -(-pixels // (tiles.pixels * tiles.turns))
    _apply[images // IMAGES * chunks, heads, padded // values](
        qkv,
        out,
        context,
        images // 8,
        qkv.stride(0) // 8,
        qkv.stride(1) // 8,
        out.stride(0) // 8,
        out.stride(1) // 8,
        1.0 / (math.sqrt(dim_head) * pixels),
        *sizes,
        tiles.parts,
        tiles.turns,
        IMAGES,
        precision(qkv),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        enable_fp_fusion=True,
    )


def linear_attention_reference(qkv: torch.Tensor, *, heads: int, dim_head: int) -> torch.Tensor:
    """What `linear_attention` computes, in qkv's dtype."""
    _, height, width, images = qkv.shape
    q, k, v = qkv.reshape(3, heads, dim_head, height * width, images)
    q = q.softmax(1) / math.sqrt(dim_head)
    context = torch.einsum("hdmn,hemn->hden", k.softmax(2), v / (height * width))
    out = torch.einsum("hden,hdmn->hemn", context, q)
    return out.reshape(heads * dim_head, height, width, images)


@triton.jit(do_not_specialize=("images8", "plane8", "row8"))
def _context(
    qkv,
    context,
    images8,
    plane8,
    row8,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    VALUES: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    PIXELS: tl.constexpr,
    TURNS: tl.constexpr,
    NB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """TURNS tiles of pixels, one head, VALUES values e, NB images."""
    columns = images8 * 8 // NB
    image = tl.program_id(0) % columns * NB + tl.arange(0, NB)
    image = tl.max_contiguous(tl.multiple_of(image, 8), 8)
    part = tl.program_id(0) // columns
    head = tl.program_id(1)
    d = tl.arange(0, PADDED)
    e = tl.program_id(2) * VALUES + tl.arange(0, VALUES)
    all_pixels: tl.constexpr = COUNT % PIXELS == 0
    whole: tl.constexpr = all_pixels and DIM == PADDED
    # Not -inf: a tile past the last pixel would make inf - inf of it.
    most = tl.full([PADDED, NB], -1e30, dtype=tl.float32)
    total = tl.zeros([PADDED, PIXELS, NB], dtype=tl.float32)
    mixed = tl.zeros([NB, PADDED, VALUES], dtype=tl.float32)
    for turn in range(TURNS):
        pixel = (part * TURNS + turn) * PIXELS + tl.arange(0, PIXELS)
        live = (pixel < COUNT)[None, :]
        channel = (HEADS + head) * DIM + d
        inside = (d < DIM)[:, None] & live
        k = load_heads(qkv, channel, pixel, image, plane8, row8, images8, inside, WIDTH, whole)
        channel = (2 * HEADS + head) * DIM + e
        inside = (e < DIM)[:, None] & live
        v = load_heads(qkv, channel, pixel, image, plane8, row8, images8, inside, WIDTH, whole)
        # Powers of 2 are one instruction, those of e are five.
        k = k.to(tl.float32) * 1.4426950408889634
        if not all_pixels:
            k = tl.where(live[:, :, None], k, -1e30)
        higher = tl.maximum(most, tl.max(k, axis=1))
        powers = tl.exp2(k - higher[:, None, :])
        if not all_pixels:
            powers = tl.where(live[:, :, None], powers, 0.0)
        shrink = tl.exp2(most - higher)
        total = total * shrink[:, None, :] + powers
        mixed = mixed * tl.trans(shrink)[:, :, None]
        powers = tl.permute(powers.to(qkv.dtype.element_ty), (2, 0, 1))
        mixed = tl.dot(powers, tl.permute(v, (2, 1, 0)), mixed, input_precision=PRECISION)
        most = higher

    images = images8 * 8
    rows = context + (part * HEADS + head) * (DIM + 2) * DIM * images
    at = (e[:, None] * DIM + d[None, :]) * images
    at = at[:, :, None] + image[None, None, :]
    inside = (e < DIM)[:, None] & (d < DIM)[None, :]
    tl.store(rows + at, tl.permute(mixed, (2, 1, 0)), mask=inside[:, :, None])
    if tl.program_id(2) == 0:
        last = (DIM * DIM + d)[:, None] * images + image[None, :]
        tl.store(rows + last, most, mask=(d < DIM)[:, None])
        sums = tl.sum(total, axis=1)
        tl.store(rows + DIM * images + last, sums, mask=(d < DIM)[:, None])


@triton.jit(do_not_specialize=("images8", "plane8", "row8", "out_plane8", "out_row8"))
def _apply(
    qkv,
    out,
    context,
    images8,
    plane8,
    row8,
    out_plane8,
    out_row8,
    scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    VALUES: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    PIXELS: tl.constexpr,
    PARTS: tl.constexpr,
    TURNS: tl.constexpr,
    NB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """TURNS tiles of pixels, one head, VALUES values e, NB images."""
    columns = images8 * 8 // NB
    image = tl.program_id(0) % columns * NB + tl.arange(0, NB)
    image = tl.max_contiguous(tl.multiple_of(image, 8), 8)
    chunk = tl.program_id(0) // columns
    head = tl.program_id(1)
    d = tl.arange(0, PADDED)
    e = tl.program_id(2) * VALUES + tl.arange(0, VALUES)
    whole: tl.constexpr = COUNT % (PIXELS * TURNS) == 0 and DIM == PADDED
    images = images8 * 8
    part = HEADS * (DIM + 2) * DIM * images
    rows = context + head * (DIM + 2) * DIM * images
    known = (d < DIM)[:, None]
    last = (DIM * DIM + d)[:, None] * images + image[None, :]
    at = (e[:, None] * DIM + d[None, :]) * images
    at = at[:, :, None] + image[None, None, :]
    inside = ((e < DIM)[:, None] & (d < DIM)[None, :])[:, :, None]
    most = tl.load(rows + last, mask=known, other=0.0)
    for one in tl.static_range(1, PARTS):
        most = tl.maximum(most, tl.load(rows + one * part + last, mask=known, other=0.0))
    total = tl.zeros([PADDED, NB], dtype=tl.float32)
    mixed = tl.zeros([VALUES, PADDED, NB], dtype=tl.float32)
    for one in tl.static_range(PARTS):
        weight = tl.exp2(tl.load(rows + one * part + last, mask=known, other=0.0) - most)
        here = rows + one * part + DIM * images
        total += weight * tl.load(here + last, mask=known, other=1.0)
        mixed += weight[None, :, :] * tl.load(rows + one * part + at, mask=inside, other=0.0)
    mixed = (mixed / total[None, :, :]).to(qkv.dtype.element_ty)
    mixed = tl.permute(mixed, (2, 1, 0))

    for turn in range(TURNS):
        pixel = (chunk * TURNS + turn) * PIXELS + tl.arange(0, PIXELS)
        live = (pixel < COUNT)[None, :]
        inside_q = (d < DIM)[:, None] & live
        channel = head * DIM + d
        q = load_heads(qkv, channel, pixel, image, plane8, row8, images8, inside_q, WIDTH, whole)
        q = q.to(tl.float32) * 1.4426950408889634
        if DIM < PADDED:
            q = tl.where((d < DIM)[:, None, None], q, float("-inf"))
        q = tl.exp2(q - tl.max(q, axis=0)[None, :, :])
        q = (q * (1.0 / tl.sum(q, axis=0))[None, :, :]).to(qkv.dtype.element_ty)
        value = tl.dot(tl.permute(q, (2, 1, 0)), mixed, input_precision=PRECISION) * scale
        value = tl.permute(value.to(out.dtype.element_ty), (2, 1, 0))
        to = place_heads(head * DIM + e, pixel, image, out_plane8, out_row8, images8, WIDTH)
        if whole:
            tl.store(out + to, value)
        else:
            tl.store(out + to, value, mask=((e < DIM)[:, None] & live)[:, :, None])
