"""Triton kernels of the panel convolution, which `panel_conv.panel_conv` launches."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(
    tile,
    images8,
    row8,
    phase,
    STEP: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Elements from a channel's first pixel to each of a tile of PIXELS * NB positions.

    The tile's pixels are those of an image of COUNT pixels in rows of WIDTH. Each stands for STEP x
    STEP pixels, of which pixel (phase // STEP, phase % STEP) is meant.
    """
    tiles: tl.constexpr = (COUNT + PIXELS - 1) // PIXELS
    m = tl.arange(0, PIXELS * NB)
    pixel = (tile % tiles) * PIXELS + m // NB
    if COUNT % PIXELS != 0:
        pixel = tl.minimum(pixel, COUNT - 1)
    image = (tile // tiles) * NB + m % NB
    eighths = (pixel // WIDTH * row8 + pixel % WIDTH * images8) * STEP
    if STEP > 1:
        eighths += phase // STEP * row8 + phase % STEP * images8
    return tl.max_contiguous(tl.multiple_of(eighths * 8 + image, 8), 8)


@triton.jit
def _spread(
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
    phase,
    channels,
    images8,
    out_view,
    residual_view,
    moments,
    norm,
    G: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
):
    """Channels from ``first`` of a tile's sums ``[PIXELS * NB, G]``.

    Views: pointer, plane and row in eighths of elements. ``norm``: table, step, elements of a row,
    columns of gamma and beta, eps. GROUP_CHANNELS, BLOCK_CHANNELS 0: no norm, no moments.
    """
    out, out_plane8, out_row8 = out_view
    residual, residual_plane8, residual_row8 = residual_view
    tiles: tl.constexpr = (COUNT + PIXELS - 1) // PIXELS
    even: tl.constexpr = COUNT % PIXELS == 0
    g = first + tl.arange(0, G)
    m = tl.arange(0, PIXELS * NB)
    counted = (tile % tiles) * PIXELS + m // NB < COUNT
    number = tl.minimum(COUNT - (tile % tiles) * PIXELS, PIXELS).to(tl.float32)
    mask = (g < channels)[None, :]
    if not even:
        mask = mask & counted[:, None]

    if GROUP_CHANNELS > 0:
        table, step, table_row, gamma, beta, eps = norm
        _, squares, apart = _spread(total, counted, number, PIXELS, NB, G, GROUP_CHANNELS, even)
        scale = tl.rsqrt(squares / (number * GROUP_CHANNELS) + eps)
        total = tl.reshape(apart * scale[None, :, :, None], [PIXELS * NB, G])
        if step is not None:
            table += tl.load(step) * table_row
        total *= tl.load(table + gamma + g, mask=g < channels, other=0.0)[None, :]
        total += tl.load(table + beta + g, mask=g < channels, other=0.0)[None, :]
        if SILU:
            total = total / (1.0 + tl.exp(-total))
    if residual is not None:
        element = _place(tile, images8, residual_row8, phase, STEP, PIXELS, NB, WIDTH, COUNT)
        element = element[:, None] + (g * residual_plane8 * 8)[None, :]
        total += tl.load(residual + element, mask=mask, other=0.0).to(tl.float32)
    stored = total.to(out.dtype.element_ty)
    element = _place(tile, images8, out_row8, phase, STEP, PIXELS, NB, WIDTH, COUNT)
    tl.store(out + element[:, None] + (g * out_plane8 * 8)[None, :], stored, mask=mask)

    if BLOCK_CHANNELS > 0:
        mean, squares, _ = _spread(
            stored.to(tl.float32), counted, number, PIXELS, NB, G, BLOCK_CHANNELS, even
        )
        blocks = channels // BLOCK_CHANNELS
        block = first // BLOCK_CHANNELS + tl.arange(0, G // BLOCK_CHANNELS)
        image = (tile // tiles) * NB + tl.arange(0, NB)
        t = phase * tiles + tile % tiles
        at = (t * blocks + block)[None, :] * (images8 * 8) + image[:, None]
        inside = (block < blocks)[None, :]
        tl.store(moments + at, mean, mask=inside)
        tl.store(moments + STEP * STEP * tiles * blocks * images8 * 8 + at, squares, mask=inside)


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
"""Integers that tell nothing of alignment, which the factors of 8 do."""


@triton.jit(do_not_specialize=_SIZES)
def panel_conv_kernel(
    x,
    start,
    first_row,
    phases,
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
    X_STEP: tl.constexpr,
    OUT_STEP: tl.constexpr,
    SPLITS: tl.constexpr,
    HOLD: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    panel = tl.program_id(0) % panels
    tile = tl.program_id(0) // panels
    begin = tl.load(start + panel)
    end = tl.load(start + panel + 1)
    first = tl.load(first_row + panel)
    phase = 0
    if OUT_STEP > 1:
        phase = tl.load(phases + panel)
    if SPLITS > 1:
        split = tl.program_id(1)
        number = end - begin
        end = begin + number * (split + 1) // SPLITS
        begin = begin + number * split // SPLITS

    k = tl.arange(0, BLOCK_K)
    g = tl.arange(0, G)
    element = _place(tile, images8, x_row8, 0, X_STEP, PIXELS, NB, WIDTH, COUNT)
    total = tl.zeros([PIXELS * NB, G], dtype=tl.float32)
    if SPLITS == 1 and bias is not None:
        total += tl.load(bias + first + g, mask=first + g < channels, other=0.0)[None, :]
    # Offsets are in hand two steps ahead. A load in the loop whose address waits for another load
    # of the same turn would leave the pipeliner two buffers at most, and one turn is no longer than
    # a load from L2 takes. It refuses values that are handed on as they are, hence 2 x 4 and not 8.
    column = tl.load(offset + begin * BLOCK_K + k) * 2
    later = tl.load(offset + (begin + 1) * BLOCK_K + k)
    if HOLD:
        weights = tl.load(value + (begin * BLOCK_K + k)[:, None] * G + g[None, :])
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    for at in range(begin, end):
        pixels = tl.load(x + (element[:, None] + (column * 4)[None, :]))
        if not HOLD:
            weights = tl.load(value + (at * BLOCK_K + k)[:, None] * G + g[None, :])
        column = later * 2
        later = tl.load(offset + (at + 2) * BLOCK_K + k)
        total = tl.dot(pixels, weights, total, input_precision=PRECISION)
        if HOLD:
            weights = tl.load(value + ((at + 1) * BLOCK_K + k)[:, None] * G + g[None, :])

    if SPLITS > 1:
        # [splits, channels, pixels * images]
        tiles: tl.constexpr = (COUNT + PIXELS - 1) // PIXELS
        m = tl.arange(0, PIXELS * NB)
        inside = (first + g < channels)[None, :]
        if COUNT % PIXELS != 0:
            inside = inside & ((tile % tiles) * PIXELS + m // NB < COUNT)[:, None]
        row8 = images8 * (WIDTH * OUT_STEP)
        at = _place(tile, images8, row8, phase, OUT_STEP, PIXELS, NB, WIDTH, COUNT)
        plane = images8 * (COUNT * OUT_STEP * OUT_STEP * 8)
        plane = (tl.program_id(1) * channels + first + g) * plane
        tl.store(partial + (at[:, None] + plane[None, :]), total, mask=inside)
    else:
        _finish(
            total,
            tile,
            first,
            phase,
            channels,
            images8,
            (out, out_plane8, out_row8),
            (residual, residual_plane8, residual_row8),
            moments,
            (table, step, table_row, gamma, beta, eps),
            G,
            PIXELS,
            NB,
            WIDTH,
            COUNT,
            OUT_STEP,
            BLOCK_CHANNELS,
            GROUP_CHANNELS,
            SILU,
        )


@triton.jit(do_not_specialize=_SIZES)
def panel_sum_kernel(
    out,
    residual,
    bias,
    partial,
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
    OVERLAP: tl.constexpr,
):
    tile = tl.program_id(0)
    first = tl.program_id(1) * G
    g = first + tl.arange(0, G)
    plane = images8 * (COUNT * 8)
    at = _place(tile, images8, images8 * WIDTH, 0, 1, PIXELS, NB, WIDTH, COUNT)
    at = at[:, None] + (g * plane)[None, :]
    total = tl.zeros([PIXELS * NB, G], dtype=tl.float32)
    if bias is not None:
        total += tl.load(bias + g, mask=g < channels, other=0.0)[None, :]
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    for split in tl.static_range(SPLITS):
        total += tl.load(
            partial + at + split * channels * plane, mask=(g < channels)[None, :], other=0.0
        )
    _finish(
        total,
        tile,
        first,
        0,
        channels,
        images8,
        (out, out_plane8, out_row8),
        (residual, residual_plane8, residual_row8),
        moments,
        (table, step, table_row, gamma, beta, eps),
        G,
        PIXELS,
        NB,
        WIDTH,
        COUNT,
        1,
        BLOCK_CHANNELS,
        GROUP_CHANNELS,
        SILU,
    )
