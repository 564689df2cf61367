"""Group norm, FiLM, SiLU and residual on ``[C, H, W, N]`` (Wu & He 2018, arXiv 1803.08494).

A group's rows are its (channel, pixel) pairs, channel by channel; a row holds all images, which
lie side by side. Moments of some rows are their mean and the sum M2 of the squared deviations
from it, for each image; those of several parts are merged as in Chan, Golub & LeVeque 1983.
Three ways lead to a normalised group:

* moments of tiles come from whoever stored x (`panel_conv`): one elementwise pass, which merges
  them itself, or finds them merged by a small kernel where there are many;
* a group of few pixels fits the registers of one program: read once, written once;
* otherwise a first pass over x makes the moments.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_ddpm_kernels.triton.layout import IMAGES
from sparse_ddpm_kernels.triton.norm_tiles import NormTiles, choose_norm_tiles, power
from sparse_ddpm_kernels.triton.views import check_floats, check_rows, check_view, place

__all__ = [
    "NormTiles",
    "check_floats",
    "check_rows",
    "check_view",
    "choose_norm_tiles",
    "group_norm",
    "group_norm_reference",
    "merge",
    "moments_reference",
    "sigmoid",
]


def group_norm(
    x: torch.Tensor,
    out: torch.Tensor,
    table: torch.Tensor,
    *,
    gamma: int,
    beta: int,
    groups: int,
    eps: float,
    silu: bool,
    step: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    moments: torch.Tensor | None = None,
    channels_per_block: int | None = None,
    tile_pixels: int | None = None,
    workspace: torch.Tensor | None = None,
    tiles: NormTiles | None = None,
) -> None:
    """``out = act((x - mean) / sqrt(var + eps) * table[s, gamma] + table[s, beta]) (+ residual)``.

    x, out, residual: ``[C, H, W, N]`` views of `layout.Layout` (any halo), 16-byte aligned; out
    may be x or residual. Mean and biased variance go over a group's ``C / groups`` channels and all
    pixels. ``table``: float32 ``[S, columns]``, contiguous; C numbers from columns ``gamma`` and
    ``beta`` of row ``s = step[0]`` (int32 ``[1]``; row 0 if ``step`` is None), FiLM folded in.
    ``moments``: float32 ``[2, T, B, N]``, contiguous: mean and M2 of each ``tile_pixels``
    neighbouring pixels (the last tile may have fewer) and ``channels_per_block`` channels of x.
    ``workspace``: float32, ``tiles.workspace(...)`` elements; not needed if that is 0.
    """
    channels, height, width, images = check_view("x", x)
    check_view("out", out, x)
    if residual is not None:
        check_view("residual", residual, x)
    if groups < 1 or channels % groups:
        raise ValueError(f"groups: expected a divisor of {channels} channels, got {groups}.")
    check_rows(table, step, channels, gamma, beta)
    pixels, per_group = height * width, channels // groups
    rows = per_group * pixels
    count, tile, span, tiles_in, blocks = 1, rows, rows, 1, 1
    if moments is not None:
        if not channels_per_block or not tile_pixels or per_group % channels_per_block:
            raise ValueError(
                f"channels_per_block, tile_pixels: expected a divisor of {per_group} and a number "
                f"of pixels, got {channels_per_block}, {tile_pixels}."
            )
        count, tile, span = channels_per_block, tile_pixels, pixels
        tiles_in, blocks = -(-pixels // tile_pixels), per_group // channels_per_block
        wanted = 2, tiles_in, channels // channels_per_block, images
        check_floats("moments", moments, wanted)
    partials = tiles_in * blocks if moments is not None else 0
    if tiles is None:
        tiles = choose_norm_tiles(channels, pixels, images, groups, partials=partials)
    if images % tiles.images or (tiles.whole and tiles.rows < rows):
        raise ValueError(f"tiles: expected to fit {rows} rows of {images} images, got {tiles}.")
    if (moments is None) != bool(tiles.whole or tiles.part):
        raise ValueError(f"tiles: expected a source of moments, and one only, got {tiles}.")
    needed = tiles.workspace(group_rows=rows, groups=groups, images=images)
    if needed:
        if workspace is None or workspace.numel() < needed:
            got = None if workspace is None else workspace.numel()
            raise ValueError(f"workspace: expected {needed} elements, got {got}.")
        check_floats("workspace", workspace, tuple(workspace.shape))

    sides = images // 8, x.stride(0) // 8, x.stride(1) // 8
    columns = images // tiles.images
    if tiles.part:
        assert workspace is not None
        tile, moments, tiles_in = tiles.part, workspace, -(-rows // tiles.part)
        _first_pass[columns * tiles_in, groups](
            x,
            moments,
            *sides,
            width,
            pixels,
            per_group,
            tiles.part,
            tiles.rows,
            tiles.images,
            num_warps=tiles.warps,
            enable_fp_fusion=True,
        )
    if tiles.merge:
        assert workspace is not None
        merged = workspace[needed - 2 * groups * images :]
        _merge_pass[images // IMAGES, groups](
            moments,
            merged,
            images // 8,
            tiles_in,
            blocks,
            count,
            tile,
            span,
            min(power(tiles_in * blocks), 256),
            IMAGES,
            num_warps=4,
            enable_fp_fusion=True,
        )
        moments, count, tile, span, tiles_in, blocks = merged, 1, rows, rows, 1, 1
    apart = x if residual is None else residual
    _normalise[columns * -(-rows // tiles.rows), groups](
        x,
        out,
        residual,
        moments,
        table,
        step,
        *sides,
        out.stride(0) // 8,
        out.stride(1) // 8,
        apart.stride(0) // 8,
        apart.stride(1) // 8,
        table.stride(0),
        gamma,
        beta,
        eps,
        silu,
        width,
        pixels,
        per_group,
        tiles_in,
        blocks,
        count,
        tile,
        span,
        min(power(tiles_in * blocks), max(1, 2048 // tiles.images)),
        tiles.rows,
        tiles.images,
        num_warps=tiles.warps,
        enable_fp_fusion=True,
    )


def group_norm_reference(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `group_norm` computes, in x's dtype; ``gamma``, ``beta``: ``[C]``."""
    channels, _, _, images = x.shape
    rows = x.reshape(groups, -1, images)
    mean = rows.mean(1, keepdim=True)
    apart = rows - mean
    scale = (apart.square().mean(1, keepdim=True) + eps).rsqrt()
    y = (apart * scale).reshape(x.shape)
    y = y * gamma.to(x.dtype).view(channels, 1, 1, 1) + beta.to(x.dtype).view(channels, 1, 1, 1)
    if silu:
        y = y * torch.sigmoid(y)
    return y if residual is None else y + residual


def moments_reference(x: torch.Tensor, channels_per_block: int, tile_pixels: int) -> torch.Tensor:
    """The ``moments`` of `group_norm`: ``[2, T, B, N]`` in x's dtype."""
    channels, height, width, images = x.shape
    rows = x.reshape(channels // channels_per_block, channels_per_block, height * width, images)
    parts = []
    for tile in rows.split(tile_pixels, dim=2):
        flat = tile.reshape(len(rows), -1, images)
        mean = flat.mean(1)
        parts.append(torch.stack([mean, (flat - mean[:, None]).square().sum(1)]))
    return torch.stack(parts, dim=1)


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))``, without the ten instructions that a division and `tl.exp` take."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
    return root * root


@triton.jit
def merge(mean, squares, count, total):
    """Moments [R, N] of parts of ``count`` [R, 1] numbers, ``total`` together: [N], [N]."""
    centre = tl.sum(mean * count, axis=0) / total
    apart = mean - centre[None, :]
    return centre, tl.sum(squares + count * apart * apart, axis=0)


@triton.jit
def _load_moments(
    moments,
    group,
    image,
    images,
    TILES: tl.constexpr,
    BLOCKS: tl.constexpr,
    COUNT: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Mean and M2 of a group, ``[NB]``, from TILES x BLOCKS pairs, CHUNK at a time.

    A pair stands for COUNT times TILE of SPAN numbers, the last tile for what is left.
    """
    partials: tl.constexpr = TILES * BLOCKS
    groups = tl.num_programs(1)
    far = TILES * groups * BLOCKS * images
    if partials == 1:
        mean = tl.load(moments + group * images + image)
        squares = tl.load(moments + far + group * images + image)
    else:
        mean = tl.zeros_like(image).to(tl.float32)
        squares = tl.zeros_like(image).to(tl.float32)
        done = 0.0
        for first in range(0, partials, CHUNK):
            j = first + tl.arange(0, CHUNK)
            tile = j // BLOCKS
            at = (tile * groups + group) * BLOCKS + j % BLOCKS
            inside = j < partials
            at = at[:, None] * images + image[None, :]
            means = tl.load(moments + at, mask=inside[:, None], other=0.0)
            more = tl.load(moments + far + at, mask=inside[:, None], other=0.0)
            count = tl.where(inside, COUNT * tl.minimum(SPAN - tile * TILE, TILE), 0)
            count = count.to(tl.float32)
            number = tl.sum(count)
            centre, spread = merge(means, more, count[:, None], number)
            share = number / (done + number)
            apart = centre - mean
            mean += apart * share
            squares += spread + apart * apart * (done * share)
            done += number
    return mean, squares


@triton.jit
def _column(NB: tl.constexpr, images8):
    """Of this program: its block of rows, and its images."""
    columns = images8 * 8 // NB
    image = tl.program_id(0) % columns * NB + tl.arange(0, NB)
    return tl.program_id(0) // columns, tl.max_contiguous(tl.multiple_of(image, 8), 8)


@triton.jit
def _row(first, ROWS: tl.constexpr, PIXELS: tl.constexpr):
    """Channel and pixel of each of ROWS rows of a group; the channel is one where it can be."""
    if PIXELS % ROWS == 0:
        channel = first // PIXELS
        pixel = first % PIXELS + tl.arange(0, ROWS)
    else:
        channel = (first + tl.arange(0, ROWS)) // PIXELS
        pixel = (first + tl.arange(0, ROWS)) % PIXELS
    return channel, pixel


@triton.jit(do_not_specialize=("images8", "plane8", "row8"))
def _first_pass(
    x,
    moments,
    images8,
    plane8,
    row8,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    NB: tl.constexpr,
):
    """Moments ``[2, T, groups, N]`` of x, PART rows of a group in each of T."""
    rows: tl.constexpr = CHANNELS * PIXELS
    part, image = _column(NB, images8)
    group = tl.program_id(1)
    mean = tl.zeros([ROWS, NB], dtype=tl.float32)
    squares = tl.zeros([ROWS, NB], dtype=tl.float32)
    for turn in range(PART // ROWS):
        first = part * PART + turn * ROWS
        channel, pixel = _row(first, ROWS, PIXELS)
        at = place(group * CHANNELS + channel, pixel, plane8, row8, images8, WIDTH)
        at = at[:, None] + image[None, :]
        # Welford: every element of the tile counts the same number of turns.
        share = 1.0 / (turn + 1)
        if rows % PART == 0:
            value = tl.load(x + at).to(tl.float32)
            apart = value - mean
            mean += apart * share
            squares += apart * (value - mean)
        else:
            live = (first + tl.arange(0, ROWS) < rows)[:, None]
            value = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
            apart = tl.where(live, value - mean, 0.0)
            mean += apart * share
            squares += tl.where(live, apart * (value - mean), 0.0)
    left = tl.maximum(rows - part * PART - tl.arange(0, ROWS), 0)
    turns = tl.minimum((left + ROWS - 1) // ROWS, PART // ROWS).to(tl.float32)
    total = tl.minimum(rows - part * PART, PART).to(tl.float32)
    centre, spread = merge(mean, squares, turns[:, None], total)
    images = images8 * 8
    parts: tl.constexpr = (rows + PART - 1) // PART
    at = (part * tl.num_programs(1) + group) * images + image
    tl.store(moments + at, centre)
    tl.store(moments + parts * tl.num_programs(1) * images + at, spread)


@triton.jit(do_not_specialize=("images8",))
def _merge_pass(
    moments,
    merged,
    images8,
    TILES: tl.constexpr,
    BLOCKS: tl.constexpr,
    COUNT: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
    NB: tl.constexpr,
):
    """``[2, T, B, N]`` to ``[2, 1, groups, N]``."""
    _, image = _column(NB, images8)
    images = images8 * 8
    group = tl.program_id(1)
    mean, squares = _load_moments(
        moments, group, image, images, TILES, BLOCKS, COUNT, TILE, SPAN, CHUNK
    )
    at = group * images + image
    tl.store(merged + at, mean)
    tl.store(merged + tl.num_programs(1) * images + at, squares)


@triton.jit(
    do_not_specialize=(
        "images8",
        "plane8",
        "row8",
        "out_plane8",
        "out_row8",
        "residual_plane8",
        "residual_row8",
        "table_row",
        "gamma",
        "beta",
    )
)
def _normalise(
    x,
    out,
    residual,
    moments,
    table,
    step,
    images8,
    plane8,
    row8,
    out_plane8,
    out_row8,
    residual_plane8,
    residual_row8,
    table_row,
    gamma,
    beta,
    eps,
    SILU: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCKS: tl.constexpr,
    COUNT: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    NB: tl.constexpr,
):
    """ROWS rows of a group; without ``moments`` all of them."""
    rows: tl.constexpr = CHANNELS * PIXELS
    block, image = _column(NB, images8)
    group = tl.program_id(1)
    channel, pixel = _row(block * ROWS, ROWS, PIXELS)
    channel += group * CHANNELS
    at = place(channel, pixel, plane8, row8, images8, WIDTH)[:, None] + image[None, :]
    live = (block * ROWS + tl.arange(0, ROWS) < rows)[:, None]
    even: tl.constexpr = rows % ROWS == 0
    value = tl.load(x + at) if even else tl.load(x + at, mask=live, other=0.0)
    value = value.to(tl.float32)
    if residual is not None and moments is not None:
        # Before anything that waits; where a whole group is held, registers are dearer.
        at = place(channel, pixel, residual_plane8, residual_row8, images8, WIDTH)
        at = at[:, None] + image[None, :]
        more = tl.load(residual + at) if even else tl.load(residual + at, mask=live, other=0.0)
    if step is not None:
        table += tl.load(step) * table_row
    if moments is not None:
        mean, squares = _load_moments(
            moments, group, image, images8 * 8, TILES, BLOCKS, COUNT, TILE, SPAN, CHUNK
        )
    else:
        mean = tl.sum(value, axis=0) / rows
        apart = value - mean[None, :]
        if not even:
            apart = tl.where(live, apart, 0.0)
        squares = tl.sum(apart * apart, axis=0)
    scale = tl.rsqrt(squares / rows + eps)
    if PIXELS % ROWS == 0:
        scale *= tl.load(table + gamma + channel)
        shift = tl.load(table + beta + channel) - mean * scale
        value = value * scale[None, :] + shift[None, :]
    else:
        known = group * CHANNELS + CHANNELS
        factor = tl.load(table + gamma + channel, mask=channel < known, other=0.0)
        shift = tl.load(table + beta + channel, mask=channel < known, other=0.0)
        value = (value * scale[None, :] - (mean * scale)[None, :]) * factor[:, None]
        value += shift[:, None]
    if SILU:
        value *= sigmoid(value)
    if residual is not None:
        if moments is None:
            at = place(channel, pixel, residual_plane8, residual_row8, images8, WIDTH)
            at = at[:, None] + image[None, :]
            more = tl.load(residual + at) if even else tl.load(residual + at, mask=live, other=0.0)
        value += more.to(tl.float32)
    at = place(channel, pixel, out_plane8, out_row8, images8, WIDTH)[:, None] + image[None, :]
    value = value.to(out.dtype.element_ty)
    if even:
        tl.store(out + at, value)
    else:
        tl.store(out + at, value, mask=live)
