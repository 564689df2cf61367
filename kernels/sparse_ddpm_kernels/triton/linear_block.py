"""Linear attention with the norms and 1x1 convolutions around it, in three kernels or four.

``norm2(bias + P mix) + x``, ``mix`` the linear attention of ``q, k, v = W norm1(x)``: no normalised
pixel, q, k, v or mix is ever stored, so memory sees x a few times and the result once, a tenth of
what the operations one by one move. The weights are dense here.

* A channel norm takes a mean away and multiplies by a factor: ``W norm1(x) = (W - means of its
  rows) x / deviation``. So x goes into the products as it is, and the factor comes after.
* A normalised vector has length sqrt(C) at most, so a row of W bounds what it returns. Where that
  is small, powers cannot overflow, and softmax, which no shift changes, needs no maximum: the
  contexts of some pixels simply add up. float16 has no room for such powers, bfloat16 has.

One kernel makes the contexts of some pixels, one adds them up, one makes q, mix and the result; for
many pixels, one before makes the factors. Between products of pixels and channels a tile of 8
images is turned into 8 matrices, one an image, and back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparse_ddpm_kernels.triton.attention import precision
from sparse_ddpm_kernels.triton.channel_norm import channel_norm_reference
from sparse_ddpm_kernels.triton.layout import IMAGES
from sparse_ddpm_kernels.triton.linear_attention import linear_attention_reference
from sparse_ddpm_kernels.triton.linear_block_pack import (
    CHANNELS,
    DIMS,
    LinearBlockWeights,
    linear_block_fits,
)
from sparse_ddpm_kernels.triton.views import check_floats, check_view, place

PIXELS = 16
"""Of a tile: what a product on tensor cores adds up at least."""

MERGED = 4
"""Rows d of a context that a program adds up."""

FEW = 1 << 16
"""Numbers of a plane below which every program makes its own factors."""


@dataclass(frozen=True, slots=True)
class LinearBlockTiles:
    """``images``: of a tile of the contexts, 8 or 16. ``parts``: programs that share a context.

    ``factors``: a kernel makes the first norm's factors for all others.
    """

    images: int
    parts: int
    factors: bool

    def __post_init__(self) -> None:
        if self.images not in (IMAGES, 2 * IMAGES) or self.parts < 1:
            raise ValueError(f"linear block tiles: expected 8 or 16 images, got {self}.")

    def workspace(self, *, pixels: int, heads: int, dim_head: int, images: int) -> int:
        """Elements of the float32 workspace of `linear_block`."""
        context = heads * (dim_head + 1) * dim_head
        return (self.parts * context + pixels * self.factors) * images


def choose_linear_block_tiles(
    pixels: int, images: int, heads: int, *, multiprocessors: int = 132
) -> LinearBlockTiles:
    """As many programs as run at once, few parts to add up. ``images``: padded.

    16 images fill whole sectors of memory; 16 warps are then all that a multiprocessor holds.
    """
    nb = 2 * IMAGES if images % (2 * IMAGES) == 0 and images * pixels >= FEW else IMAGES
    programs = images // nb * heads
    tiles = -(-pixels // PIXELS)
    room = multiprocessors * (1 if nb > IMAGES else 2)
    parts = max(1, min(16, tiles, room // programs))
    parts = -(-tiles // -(-tiles // parts))
    return LinearBlockTiles(nb, parts, factors=images * pixels >= FEW)


def linear_block(
    x: torch.Tensor,
    weights: LinearBlockWeights,
    out: torch.Tensor,
    workspace: torch.Tensor,
    merged: torch.Tensor,
    *,
    heads: int,
    dim_head: int,
    eps: float,
    out_eps: float,
    residual: bool = True,
    tiles: LinearBlockTiles | None = None,
) -> None:
    """``out = norm2(bias + P mix) (+ x)``, ``mix`` as of `linear_attention` on W norm1(x).

    x, out: ``[C, H, W, N]`` views of `layout.Layout` (any halo), of one dtype, 16-byte aligned; C
    and ``dim_head`` as `linear_block_fits` says; out may be x. ``eps``, ``out_eps``: of the first
    norm and the second. ``workspace``: float32, contiguous, ``tiles.workspace(...)`` elements or
    more: contexts ``[parts, heads, dim_head + 1, dim_head, N]``, rows the values e, then the sum of
    powers, and the factors ``[H * W, N]``. ``merged``: workspace of x's dtype, contiguous,
    ``[N, heads, dim_head, dim_head]`` or larger.
    """
    channels, height, width, images = check_view("x", x)
    check_view("out", out, x)
    if not linear_block_fits(channels, heads, dim_head):
        raise ValueError(
            f"linear block: expected {CHANNELS} channels and a dim_head of {DIMS}, "
            f"got {channels} and {dim_head}."
        )
    hidden, pixels = heads * dim_head, height * width
    _check_weights(x, weights, channels, hidden)
    tiles = tiles or choose_linear_block_tiles(pixels, images, heads)
    count = triton.cdiv(pixels, PIXELS)
    turns = triton.cdiv(count, tiles.parts)
    if images % tiles.images or (tiles.parts - 1) * turns >= count:
        raise ValueError(f"tiles: expected to fit {pixels} x {images}, got {tiles}.")
    check_floats("workspace", workspace, tuple(workspace.shape))
    needed = tiles.workspace(pixels=pixels, heads=heads, dim_head=dim_head, images=images)
    if workspace.numel() < needed:
        raise ValueError(f"workspace: expected {needed} elements, got {workspace.numel()}.")
    if merged.numel() < images * hidden * dim_head or merged.dtype != x.dtype:
        raise ValueError(
            f"merged: expected {images * hidden * dim_head} elements of {x.dtype}, "
            f"got {merged.numel()} of {merged.dtype}."
        )
    factors = workspace[needed - pixels * images :] if tiles.factors else None
    sides = images // IMAGES, x.stride(0) // IMAGES, x.stride(1) // IMAGES
    if factors is not None:
        run = min(64, images & -images)
        _block_factors[triton.cdiv(pixels, 64 // run) * (images // run),](
            x,
            factors,
            *sides,
            eps,
            CHANNELS=channels,
            WIDTH=width,
            COUNT=pixels,
            PIXELS=64 // run,
            NB=run,
            num_warps=4,
            enable_fp_fusion=True,
        )
    sizes = {"HEADS": heads, "DIM": dim_head}
    shape = {"CHANNELS": channels, "WIDTH": width, "COUNT": pixels, "PIXELS": PIXELS}
    _block_context[images // tiles.images * tiles.parts, heads](
        x,
        weights.qkv,
        factors,
        workspace,
        *sides,
        eps,
        **sizes,
        **shape,
        TURNS=turns,
        NB=tiles.images,
        PRECISION=precision(x),
        num_warps=tiles.images,
        num_stages=2,
        enable_fp_fusion=True,
    )
    _block_merge[images // IMAGES, heads, dim_head // MERGED](
        workspace,
        merged,
        images // IMAGES,
        **sizes,
        ROWS=MERGED,
        PARTS=tiles.parts,
        NB=IMAGES,
        num_warps=4,
        enable_fp_fusion=True,
    )
    _block_apply[images // IMAGES * count,](
        x,
        weights.qkv,
        factors,
        merged,
        weights.project,
        weights.bias,
        weights.gain,
        out,
        *sides,
        out.stride(0) // IMAGES,
        out.stride(1) // IMAGES,
        eps,
        out_eps,
        1.0 / (math.sqrt(dim_head) * pixels),
        RESIDUAL=residual,
        **sizes,
        **shape,
        NB=IMAGES,
        PRECISION=precision(x),
        num_warps=8,
        num_stages=2,
        enable_fp_fusion=True,
    )


def linear_block_reference(
    x: torch.Tensor,
    weights: LinearBlockWeights,
    *,
    heads: int,
    dim_head: int,
    eps: float,
    out_eps: float,
    residual: bool = True,
) -> torch.Tensor:
    """What `linear_block` computes, in x's dtype, from the packed weights."""
    hidden = heads * dim_head
    normed = channel_norm_reference(x, torch.ones_like(weights.gain), eps=eps)
    qkv = torch.einsum("co,chwn->ohwn", weights.qkv.to(x.dtype), normed)
    qkv[: 2 * hidden] *= math.log(2.0)
    mix = linear_attention_reference(qkv, heads=heads, dim_head=dim_head)
    y = torch.einsum("ic,ihwn->chwn", weights.project.to(x.dtype), mix)
    y = y + weights.bias.to(x.dtype).view(-1, 1, 1, 1)
    added = x if residual else None
    return channel_norm_reference(y, weights.gain, eps=out_eps, residual=added)


def _check_weights(
    x: torch.Tensor, weights: LinearBlockWeights, channels: int, hidden: int
) -> None:
    for name, value, shape in (
        ("weights.qkv", weights.qkv, (channels, 3 * hidden)),
        ("weights.project", weights.project, (hidden, channels)),
    ):
        if tuple(value.shape) != shape or value.dtype != x.dtype or not value.is_contiguous():
            raise ValueError(
                f"{name}: expected contiguous {shape} of {x.dtype}, "
                f"got {tuple(value.shape)} of {value.dtype}."
            )
    check_floats("weights.bias", weights.bias, (channels,))
    check_floats("weights.gain", weights.gain, (channels,))


@triton.jit
def _place(
    tile,
    images8,
    plane8,
    row8,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
):
    """Where ``[CHANNELS, PIXELS * NB]`` of a tile of pixels lie, and their pixels and images."""
    m = tl.arange(0, PIXELS * NB)
    image = tl.program_id(0) % (images8 * 8 // NB) * NB + m % NB
    image = tl.max_contiguous(tl.multiple_of(image, 8), 8)
    pixel = tile * PIXELS + m // NB
    at = place(0, pixel, plane8, row8, images8, WIDTH) + image
    c = tl.arange(0, CHANNELS)
    return (c * plane8 * 8)[:, None] + at[None, :], pixel, image


@triton.jit
def _factor(value, eps, CHANNELS: tl.constexpr):
    """What a channel norm multiplies each column of ``[CHANNELS, M]`` by."""
    value = value.to(tl.float32)
    mean = tl.sum(value, axis=0) / CHANNELS
    apart = value - mean[None, :]
    return tl.rsqrt(tl.sum(apart * apart, axis=0) / CHANNELS + eps)


@triton.jit(do_not_specialize=("images8", "plane8", "row8"))
def _block_factors(
    x,
    factors,
    images8,
    plane8,
    row8,
    eps,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
):
    """``[H * W, N]``: what the first norm multiplies each pixel by."""
    tile = tl.program_id(0) // (images8 * 8 // NB)
    at, pixel, image = _place(tile, images8, plane8, row8, CHANNELS, WIDTH, PIXELS, NB)
    value = tl.load(x + at, mask=(pixel < COUNT)[None, :], other=0.0)
    factor = _factor(value, eps, CHANNELS)
    tl.store(factors + pixel * (images8 * 8) + image, factor, mask=pixel < COUNT)


@triton.jit(do_not_specialize=("images8", "plane8", "row8"))
def _block_context(
    x,
    qkv,
    factors,
    context,
    images8,
    plane8,
    row8,
    eps,
    CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    PIXELS: tl.constexpr,
    TURNS: tl.constexpr,
    NB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """TURNS tiles of pixels, one head, NB images."""
    hidden: tl.constexpr = HEADS * DIM
    every: tl.constexpr = COUNT % PIXELS == 0
    columns = images8 * 8 // NB
    part = tl.program_id(0) // columns
    c = tl.arange(0, CHANNELS)
    d = tl.arange(0, DIM)
    row = tl.program_id(1) * DIM + d
    # Powers of the exponents that `pack_linear_block` lets pass overflow float16.
    kind = tl.float32 if x.dtype.element_ty == tl.float32 else tl.bfloat16
    k_weight = tl.load(qkv + (c * (3 * hidden))[:, None] + (hidden + row)[None, :])
    v_weight = tl.load(qkv + (c * (3 * hidden))[:, None] + (2 * hidden + row)[None, :])
    total = tl.zeros([PIXELS * NB, DIM], dtype=tl.float32)
    mixed = tl.zeros([NB, DIM, DIM], dtype=tl.float32)
    for turn in range(TURNS):
        tile = part * TURNS + turn
        at, pixel, image = _place(tile, images8, plane8, row8, CHANNELS, WIDTH, PIXELS, NB)
        live = pixel < COUNT
        value = tl.load(x + at) if every else tl.load(x + at, mask=live[None, :], other=0.0)
        if factors is not None:
            factor = tl.load(factors + pixel * (images8 * 8) + image, mask=live, other=0.0)
        else:
            factor = _factor(value, eps, CHANNELS)
        value = tl.trans(value)
        v = tl.dot(value, v_weight, input_precision=PRECISION) * factor[:, None]
        v = tl.permute(tl.reshape(v.to(kind), [PIXELS, NB, DIM]), (1, 0, 2))
        k = tl.dot(value, k_weight, input_precision=PRECISION)
        k = tl.exp2(k * factor[:, None])
        if not every:
            k = tl.where(live[:, None], k, 0.0)
        total += k
        k = tl.permute(tl.reshape(k.to(kind), [PIXELS, NB, DIM]), (1, 2, 0))
        mixed = tl.dot(k, v, mixed, input_precision=PRECISION)

    images = images8 * 8
    n = tl.program_id(0) % columns * NB + tl.arange(0, NB)
    n = tl.max_contiguous(tl.multiple_of(n, 8), 8)
    rows = context + (part * HEADS + tl.program_id(1)) * ((DIM + 1) * DIM * images)
    at = (d[:, None] * DIM + d[None, :]) * images
    tl.store(rows + (at[:, :, None] + n[None, None, :]), tl.permute(mixed, (2, 1, 0)))
    total = tl.trans(tl.sum(tl.reshape(total, [PIXELS, NB, DIM]), axis=0))
    tl.store(rows + ((DIM * DIM + d)[:, None] * images + n[None, :]), total)


@triton.jit(do_not_specialize=("images8",))
def _block_merge(
    context,
    merged,
    images8,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    NB: tl.constexpr,
):
    """Parts ``[PARTS, HEADS, DIM + 1, DIM, N]`` to contexts ``[N, HEADS, d, e]``."""
    images = images8 * 8
    n = tl.program_id(0) * NB + tl.arange(0, NB)
    n = tl.max_contiguous(tl.multiple_of(n, 8), 8)
    head = tl.program_id(1)
    d = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, DIM)
    at = (e[:, None] * DIM + d[None, :]) * images
    at = at[:, :, None] + n[None, None, :]
    last = (DIM * DIM + d)[:, None] * images + n[None, :]
    here = context + head * ((DIM + 1) * DIM * images)
    total = tl.zeros([ROWS, NB], dtype=tl.float32)
    mixed = tl.zeros([DIM, ROWS, NB], dtype=tl.float32)
    for _ in range(PARTS):
        total += tl.load(here + last)
        mixed += tl.load(here + at)
        here += HEADS * (DIM + 1) * DIM * images
    mixed = tl.permute((mixed / total[None, :, :]).to(merged.dtype.element_ty), (2, 1, 0))
    at = (n * HEADS + head)[:, None, None] * (DIM * DIM) + (d * DIM)[None, :, None]
    tl.store(merged + (at + e[None, None, :]), mixed)


@triton.jit(do_not_specialize=("images8", "plane8", "row8", "out_plane8", "out_row8"))
def _block_apply(
    x,
    qkv,
    factors,
    merged,
    project,
    bias,
    gain,
    out,
    images8,
    plane8,
    row8,
    out_plane8,
    out_row8,
    eps,
    out_eps,
    shrink,
    RESIDUAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of pixels, all heads and channels, NB images."""
    hidden: tl.constexpr = HEADS * DIM
    every: tl.constexpr = COUNT % PIXELS == 0
    columns = images8 * 8 // NB
    tile = tl.program_id(0) // columns
    n = tl.program_id(0) % columns * NB + tl.arange(0, NB)
    c = tl.arange(0, CHANNELS)
    d = tl.arange(0, DIM)
    kind = x.dtype.element_ty
    contexts = (n * (hidden * DIM))[:, None, None] + (d * DIM)[None, :, None] + d[None, None, :]
    at, pixel, image = _place(tile, images8, plane8, row8, CHANNELS, WIDTH, PIXELS, NB)
    live = pixel < COUNT
    value = tl.load(x + at) if every else tl.load(x + at, mask=live[None, :], other=0.0)
    if factors is not None:
        factor = tl.load(factors + pixel * (images8 * 8) + image, mask=live, other=0.0)
    else:
        factor = _factor(value, eps, CHANNELS)
    value = tl.trans(value)
    y = tl.zeros([PIXELS * NB, CHANNELS], dtype=tl.float32)
    for head in range(HEADS):
        weight = tl.load(qkv + (c * (3 * hidden))[:, None] + (head * DIM + d)[None, :])
        q = tl.dot(value, weight, input_precision=PRECISION)
        q = tl.exp2(q * factor[:, None])
        root = tl.rsqrt(tl.sum(q, axis=1))
        q = (q * (root * root)[:, None]).to(kind)
        q = tl.permute(tl.reshape(q, [PIXELS, NB, DIM]), (1, 0, 2))
        mixed = tl.load(merged + head * (DIM * DIM) + contexts)
        mix = tl.dot(q, mixed, input_precision=PRECISION).to(kind)
        mix = tl.reshape(tl.permute(mix, (1, 0, 2)), [PIXELS * NB, DIM])
        weight = tl.load(project + ((head * DIM + d) * CHANNELS)[:, None] + c[None, :])
        y = tl.dot(mix, weight, y, input_precision=PRECISION)
    y = y * shrink + tl.load(bias + c)[None, :]
    y = y - (tl.sum(y, axis=1) * (1.0 / CHANNELS))[:, None]
    y = y * tl.rsqrt(tl.sum(y * y, axis=1) * (1.0 / CHANNELS) + out_eps)[:, None]
    y = y * tl.load(gain + c)[None, :]
    if RESIDUAL:
        y += value.to(tl.float32)
    y = tl.trans(y.to(kind))
    at, _, _ = _place(tile, images8, out_plane8, out_row8, CHANNELS, WIDTH, PIXELS, NB)
    if every:
        tl.store(out + at, y)
    else:
        tl.store(out + at, y, mask=live[None, :])
