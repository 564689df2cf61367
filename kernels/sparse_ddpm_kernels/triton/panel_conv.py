"""Convolution of panels of output channels on tensor cores.

A program makes ``pixels`` pixels x ``images`` images (M) of one panel's G channels (N). A K-step
gathers ``block_k`` columns: whole runs of images at a constant offset from each output pixel. So
one kernel serves every filter size, concatenated and strided input, and every density.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparse_ddpm_kernels.triton.layout import IMAGES
from sparse_ddpm_kernels.triton.norm import (
    check_floats,
    check_rows,
    check_view,
    group_norm_reference,
)
from sparse_ddpm_kernels.triton.panel_pack import PanelWeights
from sparse_ddpm_kernels.triton.panel_tiles import PanelTiles


@triton.jit
def _place(
    tile,
    images8,
    row8,
    STEP: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Elements from a channel's first pixel to each of the tile, every STEP-th pixel of a row."""
    tiles: tl.constexpr = (COUNT + PIXELS - 1) // PIXELS
    m = tl.arange(0, PIXELS * NB)
    pixel = (tile % tiles) * PIXELS + m // NB
    if COUNT % PIXELS != 0:
        pixel = tl.minimum(pixel, COUNT - 1)
    image = (tile // tiles) * NB + m % NB
    element = (pixel // WIDTH * row8 + pixel % WIDTH * images8) * (STEP * 8) + image
    return tl.max_contiguous(tl.multiple_of(element, 8), 8)


@triton.jit
def _moments(
    value,
    counted,
    number,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
    G: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Mean, sum of squared deviations and deviations of a tile over pixels and CHANNELS channels.

    value [PIXELS * NB, G] float32 -> [NB, G // CHANNELS], the same, [PIXELS, NB, ., CHANNELS].
    """
    apart = tl.reshape(value, [PIXELS, NB, G // CHANNELS, CHANNELS])
    if not EVEN:
        mask = tl.reshape(counted, [PIXELS, NB])[:, :, None, None]
        apart = tl.where(mask, apart, 0.0)
    mean = tl.sum(tl.sum(apart, axis=3), axis=0) / (number * CHANNELS)
    apart = apart - mean[None, :, :, None]
    squares = apart * apart
    if not EVEN:
        squares = tl.where(mask, squares, 0.0)
    return mean, tl.sum(tl.sum(squares, axis=3), axis=0), apart


@triton.jit
def _finish(
    total,
    tile,
    first,
    out,
    residual,
    bias,
    moments,
    table,
    step,
    channels,
    images8,
    out_plane8,
    out_row8,
    residual_plane8,
    residual_row8,
    table_row,
    gamma,
    beta,
    eps,
    G: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
):
    """Bias, norm, SiLU, residual; store; moments of what was stored."""
    tiles: tl.constexpr = (COUNT + PIXELS - 1) // PIXELS
    even: tl.constexpr = COUNT % PIXELS == 0
    g = first + tl.arange(0, G)
    m = tl.arange(0, PIXELS * NB)
    counted = (tile % tiles) * PIXELS + m // NB < COUNT
    number = tl.minimum(COUNT - (tile % tiles) * PIXELS, PIXELS).to(tl.float32)
    mask = (g < channels)[None, :]
    if not even:
        mask = mask & counted[:, None]

    if bias is not None:
        total += tl.load(bias + g, mask=g < channels, other=0.0)[None, :]
    if GROUP_CHANNELS > 0:
        _, squares, apart = _moments(total, counted, number, PIXELS, NB, G, GROUP_CHANNELS, even)
        scale = tl.rsqrt(squares / (number * GROUP_CHANNELS) + eps)
        total = tl.reshape(apart * scale[None, :, :, None], [PIXELS * NB, G])
        if step is not None:
            table += tl.load(step) * table_row
        total *= tl.load(table + gamma + g, mask=g < channels, other=0.0)[None, :]
        total += tl.load(table + beta + g, mask=g < channels, other=0.0)[None, :]
        if SILU:
            total *= tl.sigmoid(total)
    if residual is not None:
        element = _place(tile, images8, residual_row8, 1, PIXELS, NB, WIDTH, COUNT)
        element = element[:, None] + (g * residual_plane8 * 8)[None, :]
        total += tl.load(residual + element, mask=mask, other=0.0).to(tl.float32)
    stored = total.to(out.dtype.element_ty)
    element = _place(tile, images8, out_row8, 1, PIXELS, NB, WIDTH, COUNT)
    tl.store(out + element[:, None] + (g * out_plane8 * 8)[None, :], stored, mask=mask)

    if BLOCK_CHANNELS > 0:
        mean, squares, _ = _moments(
            stored.to(tl.float32), counted, number, PIXELS, NB, G, BLOCK_CHANNELS, even
        )
        blocks = channels // BLOCK_CHANNELS
        block = first // BLOCK_CHANNELS + tl.arange(0, G // BLOCK_CHANNELS)
        image = (tile // tiles) * NB + tl.arange(0, NB)
        at = ((tile % tiles) * blocks + block)[None, :] * (images8 * 8) + image[:, None]
        inside = (block < blocks)[None, :]
        tl.store(moments + at, mean, mask=inside)
        tl.store(moments + tiles * blocks * images8 * 8 + at, squares, mask=inside)


_SIZES = (
    "channels",
    "panels",
    "images8",
    "x_row8",
    "out_plane8",
    "out_row8",
    "residual_plane8",
    "residual_row8",
    "table_row",
    "gamma",
    "beta",
)


@triton.jit(do_not_specialize=_SIZES)
def _panel_conv(
    x,
    start,
    first_row,
    offset,
    value,
    out,
    residual,
    bias,
    partial,
    moments,
    table,
    step,
    channels,
    panels,
    images8,
    x_row8,
    out_plane8,
    out_row8,
    residual_plane8,
    residual_row8,
    table_row,
    gamma,
    beta,
    eps,
    G: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    STRIDE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    panel = tl.program_id(0) % panels
    tile = tl.program_id(0) // panels
    begin = tl.load(start + panel)
    end = tl.load(start + panel + 1)
    if SPLITS > 1:
        split = tl.program_id(1)
        number = end - begin
        end = begin + number * (split + 1) // SPLITS
        begin = begin + number * split // SPLITS

    k = tl.arange(0, BLOCK_K)
    g = tl.arange(0, G)
    element = _place(tile, images8, x_row8, STRIDE, PIXELS, NB, WIDTH, COUNT)
    total = tl.zeros([PIXELS * NB, G], dtype=tl.float32)
    # Offsets are in hand one step ahead: a load in the loop whose address waits for another load
    # of the same turn would leave the pipeliner two buffers at most.
    column = tl.load(offset + begin * BLOCK_K + k)
    for at in range(begin, end):
        pixels = tl.load(x + (element[:, None] + (column * 8)[None, :]))
        weights = tl.load(value + (at * BLOCK_K + k)[:, None] * G + g[None, :])
        column = tl.load(offset + (at + 1) * BLOCK_K + k)
        total = tl.dot(pixels, weights, total, input_precision=PRECISION)

    first = tl.load(first_row + panel)
    if SPLITS > 1:
        # [splits, channels, COUNT * images]
        tiles: tl.constexpr = (COUNT + PIXELS - 1) // PIXELS
        m = tl.arange(0, PIXELS * NB)
        inside = (first + g < channels)[None, :]
        if COUNT % PIXELS != 0:
            inside = inside & ((tile % tiles) * PIXELS + m // NB < COUNT)[:, None]
        at = _place(tile, images8, images8 * WIDTH, 1, PIXELS, NB, WIDTH, COUNT)
        plane = (tl.program_id(1) * channels + first + g) * (COUNT * images8 * 8)
        tl.store(partial + (at[:, None] + plane[None, :]), total, mask=inside)
    else:
        _finish(
            total,
            tile,
            first,
            out,
            residual,
            bias,
            moments,
            table,
            step,
            channels,
            images8,
            out_plane8,
            out_row8,
            residual_plane8,
            residual_row8,
            table_row,
            gamma,
            beta,
            eps,
            G,
            PIXELS,
            NB,
            WIDTH,
            COUNT,
            BLOCK_CHANNELS,
            GROUP_CHANNELS,
            SILU,
        )


@triton.jit(do_not_specialize=_SIZES)
def _panel_sum(
    partial,
    out,
    residual,
    bias,
    moments,
    table,
    step,
    channels,
    images8,
    out_plane8,
    out_row8,
    residual_plane8,
    residual_row8,
    table_row,
    gamma,
    beta,
    eps,
    G: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
):
    tile = tl.program_id(0)
    first = tl.program_id(1) * G
    g = tl.arange(0, G)
    at = _place(tile, images8, images8 * WIDTH, 1, PIXELS, NB, WIDTH, COUNT)
    at = at[:, None] + ((first + g) * (COUNT * images8 * 8))[None, :]
    inside = (first + g < channels)[None, :]
    total = tl.zeros([PIXELS * NB, G], dtype=tl.float32)
    for _ in tl.static_range(SPLITS):
        total += tl.load(partial + at, mask=inside, other=0.0)
        partial += channels * (COUNT * images8 * 8)
    _finish(
        total,
        tile,
        first,
        out,
        residual,
        bias,
        moments,
        table,
        step,
        channels,
        images8,
        out_plane8,
        out_row8,
        residual_plane8,
        residual_row8,
        table_row,
        gamma,
        beta,
        eps,
        G,
        PIXELS,
        NB,
        WIDTH,
        COUNT,
        BLOCK_CHANNELS,
        GROUP_CHANNELS,
        SILU,
    )


@dataclass(frozen=True, slots=True)
class EpilogueNorm:
    """Group norm of the convolution's float32 sums, as `norm.group_norm` takes it.

    ``table``: float32 ``[S, columns]``, contiguous; factors from column ``gamma`` and summands from
    ``beta``, one for each output channel, of row ``step[0]`` (int32 ``[1]``; None: row 0).
    """

    groups: int
    table: torch.Tensor
    gamma: int
    beta: int
    step: torch.Tensor | None = None
    silu: bool = True
    eps: float = 1e-5


def panel_conv(
    x: torch.Tensor,
    weights: PanelWeights,
    out: torch.Tensor,
    *,
    tiles: PanelTiles,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    moments: torch.Tensor | None = None,
    norm: EpilogueNorm | None = None,
    partial: torch.Tensor | None = None,
) -> None:
    """``out = act(norm(weights * x + bias)) (+ residual)``, without ``norm`` no act either.

    x: view ``[C, H, W, N]`` in the layout of ``weights.x``, its halo zero. out: view ``[Cout, H,
    W, N]`` (H and W divided by ``weights.stride``) in any `layout.Layout`, of x's dtype and apart
    from x; only pixels are written. ``residual``: as out, and may be out itself. ``bias``: float32
    ``[Cout]``, contiguous. A panel without entries gives the bias.

    ``moments``: float32 ``[2, T, B, N]`` (`PanelTiles.moments_shape`), contiguous, written: mean
    and sum of squared deviations of out as stored, per tile of ``tiles.pixels`` pixels (the last
    may have fewer), per block of Cout / B neighbouring channels, a power of two that divides the
    panel's channels, per image. ``norm`` needs all pixels and whole groups in a tile
    (`norm_fits`). ``partial``: float32, `PanelTiles.partial_size` elements, if K is split.

    Tensors are 16-byte aligned and the caller's; one kernel is launched on the current stream, two
    if K is split. ValueError if anything does not fit.
    """
    channels, height, width, images = check_view("out", out)
    _check_input(x, weights, out)
    if weights.channels != channels or weights.block_k != tiles.block_k:
        raise ValueError(
            f"weights: expected {channels} channels and block_k {tiles.block_k}, "
            f"got {weights.channels} and {weights.block_k}."
        )
    if images % tiles.nb:
        raise ValueError(f"images of a tile: expected a divisor of {images}, got {tiles.nb}.")
    if residual is not None:
        check_view("residual", residual, out)
    if bias is not None:
        check_floats("bias", bias, (channels,))
    pixels = height * width
    per_block = 0
    if moments is not None:
        per_block = channels // max(moments.shape[1:3][-1], 1)
        check_floats("moments", moments, tiles.moments_shape(channels, pixels, images, per_block))
        _check_whole("channels of a block of moments", per_block, channels, weights.group)
    per_group = 0
    if norm is not None:
        per_group = channels // max(norm.groups, 1)
        _check_whole("channels of a group", per_group, channels, weights.group)
        if tiles.pixels < pixels:
            raise ValueError(f"pixels of a tile: expected at least {pixels}, got {tiles.pixels}.")
        check_rows(norm.table, norm.step, channels, norm.gamma, norm.beta)
    needed = tiles.partial_size(channels, pixels, images)
    if needed and (partial is None or partial.numel() < needed or needed >= 1 << 31):
        got = None if partial is None else partial.numel()
        raise ValueError(f"partial: expected {needed} elements, below 2^31, got {got}.")

    apart = out if residual is None else residual
    common = {
        "out": out,
        "residual": residual,
        "bias": bias,
        "partial": partial if needed else None,
        "moments": moments,
        "table": None if norm is None else norm.table,
        "step": None if norm is None else norm.step,
        "channels": channels,
        "images8": images // IMAGES,
        "out_plane8": out.stride(0) // IMAGES,
        "out_row8": out.stride(1) // IMAGES,
        "residual_plane8": apart.stride(0) // IMAGES,
        "residual_row8": apart.stride(1) // IMAGES,
        "table_row": 0 if norm is None else norm.table.stride(0),
        "gamma": 0 if norm is None else norm.gamma,
        "beta": 0 if norm is None else norm.beta,
        "eps": 0.0 if norm is None else norm.eps,
        "WIDTH": width,
        "COUNT": pixels,
        "SPLITS": tiles.splits,
        "BLOCK_CHANNELS": per_block,
        "GROUP_CHANNELS": per_group,
        "SILU": norm is not None and norm.silu,
        "PIXELS": tiles.pixels,
        "NB": tiles.nb,
    }
    places = tiles.pixel_tiles(pixels) * (images // tiles.nb)
    panels = len(weights.first_row)
    _panel_conv[panels * places, tiles.splits](
        x=x,
        start=weights.start,
        first_row=weights.first_row,
        offset=weights.offset,
        value=weights.value,
        panels=panels,
        x_row8=x.stride(1) // IMAGES,
        G=weights.group,
        BLOCK_K=tiles.block_k,
        STRIDE=weights.stride,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        enable_fp_fusion=True,
        **common,
    )
    if needed:
        group = min(weights.group, max(16, per_block, per_group))
        _panel_sum[places, -(-channels // group)](
            G=group, num_warps=tiles.sum_warps(group), enable_fp_fusion=True, **common
        )


def panel_conv_reference(
    x: torch.Tensor,
    weights: PanelWeights,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    norm: EpilogueNorm | None = None,
) -> torch.Tensor:
    """What `panel_conv` computes, ``[Cout, H, W, N]`` in x's dtype, from the packed arrays."""
    stride = weights.stride
    height, width, images = x.shape[1] // stride, x.shape[2] // stride, x.shape[3]
    y, column = torch.arange(height)[:, None], torch.arange(width)[None, :]
    pixel = (y * stride * x.stride(1) + column * stride * images).reshape(-1, 1)
    pixel = (pixel + torch.arange(images)).to(x.device)
    before = x.storage_offset()
    memory = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    out = x.new_zeros(len(weights.first_row) * weights.group, height * width, images)
    begins = (weights.start * weights.block_k).tolist()
    for panel, first in enumerate(weights.first_row.tolist()):
        entries = slice(begins[panel], begins[panel + 1])
        at = weights.offset[entries].long() * IMAGES + before
        value = weights.value[entries].to(x.dtype)
        out[first : first + weights.group] = torch.einsum(
            "kg,kpn->gpn", value, memory[at[:, None, None] + pixel]
        )
    out = out[: weights.channels].reshape(weights.channels, height, width, images)
    if bias is not None:
        out = out + bias.to(x.dtype).view(-1, 1, 1, 1)
    if norm is not None:
        row = norm.table[0 if norm.step is None else int(norm.step)]
        return group_norm_reference(
            out,
            row[norm.gamma : norm.gamma + weights.channels],
            row[norm.beta : norm.beta + weights.channels],
            groups=norm.groups,
            eps=norm.eps,
            silu=norm.silu,
            residual=residual,
        )
    return out if residual is None else out + residual


def _check_input(x: torch.Tensor, weights: PanelWeights, out: torch.Tensor) -> None:
    check_view("x", x)
    layout, stride = weights.x, weights.stride
    shape = layout.channels, layout.height, layout.width, layout.images
    if tuple(x.shape) != shape or x.stride() != layout.strides:
        raise ValueError(
            f"x: expected {shape} with strides {layout.strides}, got {tuple(x.shape)} with "
            f"strides {x.stride()}."
        )
    wanted = layout.height // stride, layout.width // stride, layout.images
    if tuple(out.shape[1:]) != wanted:
        raise ValueError(f"out: expected pixels and images {wanted}, got {tuple(out.shape[1:])}.")
    if not x.dtype == out.dtype == weights.value.dtype:
        raise ValueError(
            f"dtypes: expected one for x, weights and out, got {x.dtype}, {weights.value.dtype} "
            f"and {out.dtype}."
        )


def _check_whole(name: str, count: int, channels: int, group: int) -> None:
    if count < 1 or count & (count - 1) or channels % count or group % count:
        raise ValueError(
            f"{name}: expected a power of two that divides {channels} channels and a panel of "
            f"{group}, got {count}."
        )
