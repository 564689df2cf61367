"""The kernel of the element convolution, which element_conv.py launches."""

from __future__ import annotations

import triton
import triton.language as tl

SIZES = (
    "height",
    "width",
    "images8",
    "x_row8",
    "first8",
    "out_plane8",
    "out_row8",
    "residual_plane8",
    "residual_row8",
    "across",
    "slices",
)
"""Of which no value is compiled for by itself: one kernel serves many layers."""


@triton.jit
def _pair(at, ROWS: tl.constexpr, SHORT: tl.constexpr):
    """The words of a pair of entries; short ones are the same."""
    first = tl.load(at)
    second = first
    if not SHORT:
        second = tl.load(at + ROWS)
    return first, second


@triton.jit
def _entry(
    word,
    unit,
    x_type: tl.constexpr,
    HALF: tl.constexpr,
    SHORT: tl.constexpr,
    EACH: tl.constexpr,
):
    """Offset and weight of one entry of each row, [SPLIT, ROWS, 1], of a word [SPLIT, ROWS]."""
    if SHORT:
        entry = (word >> (32 * HALF)).to(tl.int32)
        offset = entry & 0xFFFF
        if x_type == tl.int32:
            weight = (entry & -65536).to(tl.float32, bitcast=True)
        else:
            weight = (entry >> 16).to(tl.int16).to(x_type, bitcast=True)
    else:
        offset = word.to(tl.int32)
        weight = (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return (offset * unit * EACH)[:, :, None], weight[:, :, None]


@triton.jit
def _load(at):
    """Vectors at [SPLIT, ROWS, block]; pairs of bfloat16, read as int32, become float32.

    To take pairs apart here costs a third less than casts do.
    """
    value = tl.load(at)
    if value.dtype == tl.int32:
        low = (value << 16).to(tl.float32, bitcast=True)
        high = (value & -65536).to(tl.float32, bitcast=True)
        value = tl.join(low, high)
        value = tl.reshape(value, [value.shape[0], value.shape[1], 2 * value.shape[2]])
    return value


@triton.jit
def _add(total, value, weight):
    return tl.fma(value.to(total.dtype), weight.to(total.dtype), total)


@triton.jit
def _place(
    line,
    column,
    image8,
    height,
    width,
    row8,
    pixel8,
    LINES: tl.constexpr,
    COLUMNS: tl.constexpr,
    NB: tl.constexpr,
    EVEN: tl.constexpr,
    EACH: tl.constexpr = 8,
):
    """From pixel (0, 0) of a channel to those of a tile, and which of them lie in the image.

    In units of which a vector of 16 bytes holds EACH. Pixels past an edge are moved back to it.
    """
    run: tl.constexpr = NB * EACH // 8
    m = tl.arange(0, LINES * COLUMNS * run)
    line += m // (COLUMNS * run)
    column += m // run % COLUMNS
    inside = (line < height) & (column < width)
    if not EVEN:
        line = tl.minimum(line, height - 1)
        column = tl.minimum(column, width - 1)
    at = (line * row8 + column * pixel8 + image8) * EACH + m % run
    return tl.max_contiguous(tl.multiple_of(at, EACH), EACH), inside


@triton.jit
def _plane(row, plane8, row8, images8, SCALE: tl.constexpr):
    """Where rows lie: the pixel of their channel and phase that belongs to x's first."""
    at = row // (SCALE * SCALE) * plane8
    if SCALE > 1:
        at += row // SCALE % SCALE * row8 + row % SCALE * images8
    return at * 8


@triton.jit(do_not_specialize=SIZES)
def element_conv_kernel(
    x,
    words,
    start,
    rows,
    bias,
    residual,
    out,
    height,
    width,
    images8,
    unit,
    x_row8,
    first8,
    out_plane8,
    out_row8,
    residual_plane8,
    residual_row8,
    across,
    slices,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    LINES: tl.constexpr,
    COLUMNS: tl.constexpr,
    NB: tl.constexpr,
    STRIDE: tl.constexpr,
    SCALE: tl.constexpr,
    SHORT: tl.constexpr,
    PACKED: tl.constexpr,
    EVEN: tl.constexpr,
):
    block: tl.constexpr = LINES * COLUMNS * NB
    words_apart: tl.constexpr = ROWS if SHORT else 2 * ROWS
    group: tl.constexpr = SPLIT * words_apart
    x_type: tl.constexpr = x.dtype.element_ty
    each: tl.constexpr = 4 if x_type == tl.int32 else 8
    blocks = images8 // (NB // 8)
    tile = tl.program_id(0) // blocks
    line = tile // across * LINES
    column = tile % across * COLUMNS
    image8 = tl.program_id(0) % blocks * (NB // 8)
    at, inside = _place(
        line, column, image8 + first8, height, width, STRIDE * x_row8, STRIDE * images8,
        LINES, COLUMNS, NB, EVEN, each,
    )  # fmt: skip
    pixels = x + at[None, None, :]
    at, inside = _place(
        line, column, image8, height, width, SCALE * out_row8, SCALE * images8,
        LINES, COLUMNS, NB, EVEN,
    )  # fmt: skip
    target = out + at[None, :]
    if residual is not None:
        at, inside = _place(
            line, column, image8, height, width, SCALE * residual_row8, SCALE * images8,
            LINES, COLUMNS, NB, EVEN,
        )  # fmt: skip
        source = residual + at[None, None, :]

    slot = tl.arange(0, ROWS)
    leads = (tl.arange(0, SPLIT) == 0)[:, None, None]
    words += (tl.arange(0, SPLIT) * words_apart)[:, None] + slot[None, :]
    first = tl.program_id(1)
    step = tl.num_programs(1)
    begin = tl.load(start + first)
    end = tl.load(start + first + 1)
    word = words + begin * group
    a0, a1 = _pair(word, ROWS, SHORT)
    b0, b1 = _pair(word + group, ROWS, SHORT)
    c0, c1 = _pair(word + 2 * group, ROWS, SHORT)
    for s in range(first, slices, step):
        row = tl.load(rows + s * ROWS + slot)
        following = tl.minimum(s + step, slices - 1)
        next_begin = tl.load(start + following)
        next_end = tl.load(start + following + 1)
        mask = (row >= 0)[:, None]
        if not EVEN:
            mask = mask & inside[None, :]
        # The first of those who share a row starts from bias and residual.
        total = tl.zeros([SPLIT, ROWS, block], tl.float32)
        if residual is not None:
            plane = _plane(row, residual_plane8, residual_row8, images8, SCALE)[None, :, None]
            other = tl.load(source + plane, mask=mask[None, :, :] & leads, other=0.0)
            total += other.to(tl.float32)
        if bias is not None:
            leading = (row >= 0)[None, :, None] & leads
            channel = (row // (SCALE * SCALE))[None, :, None]
            total += tl.load(bias + channel, mask=leading, other=0.0)

        # First what does not fill a step of four groups, then whole steps.
        rest = (end - begin) % 4
        word = words + (begin + rest) * group
        d0, d1 = _pair(word, ROWS, SHORT)
        e0, e1 = _pair(word + group, ROWS, SHORT)
        f0, f1 = _pair(word + 2 * group, ROWS, SHORT)
        g0, g1 = _pair(word + 3 * group, ROWS, SHORT)
        c0 = tl.where(rest >= 2, c0, a0)
        c1 = tl.where(rest >= 2, c1, a1)
        a0o, a0w = _entry(a0, unit, x_type, 0, SHORT, each)
        a1o, a1w = _entry(a1, unit, x_type, 1, SHORT, each)
        b0o, b0w = _entry(b0, unit, x_type, 0, SHORT, each)
        b1o, b1w = _entry(b1, unit, x_type, 1, SHORT, each)
        c0o, c0w = _entry(c0, unit, x_type, 0, SHORT, each)
        c1o, c1w = _entry(c1, unit, x_type, 1, SHORT, each)
        part = tl.zeros([SPLIT, ROWS, block], tl.float16 if PACKED else tl.float32)
        if rest >= 2:
            a0v = _load(pixels + a0o)
            a1v = _load(pixels + a1o)
            b0v = _load(pixels + b0o)
            b1v = _load(pixels + b1o)
            part = _add(part, a0v, a0w)
            part = _add(part, a1v, a1w)
            part = _add(part, b0v, b0w)
            part = _add(part, b1v, b1w)
        if rest % 2 == 1:
            c0v = _load(pixels + c0o)
            c1v = _load(pixels + c1o)
            part = _add(part, c0v, c0w)
            part = _add(part, c1v, c1w)
        total += part.to(tl.float32)

        for _ in range((end - begin) // 4):
            word += 4 * group
            d0o, d0w = _entry(d0, unit, x_type, 0, SHORT, each)
            d1o, d1w = _entry(d1, unit, x_type, 1, SHORT, each)
            e0o, e0w = _entry(e0, unit, x_type, 0, SHORT, each)
            e1o, e1w = _entry(e1, unit, x_type, 1, SHORT, each)
            f0o, f0w = _entry(f0, unit, x_type, 0, SHORT, each)
            f1o, f1w = _entry(f1, unit, x_type, 1, SHORT, each)
            g0o, g0w = _entry(g0, unit, x_type, 0, SHORT, each)
            g1o, g1w = _entry(g1, unit, x_type, 1, SHORT, each)
            d0v = _load(pixels + d0o)
            d1v = _load(pixels + d1o)
            e0v = _load(pixels + e0o)
            e1v = _load(pixels + e1o)
            f0v = _load(pixels + f0o)
            f1v = _load(pixels + f1o)
            g0v = _load(pixels + g0o)
            g1v = _load(pixels + g1o)
            h0, h1 = _pair(word, ROWS, SHORT)
            i0, i1 = _pair(word + group, ROWS, SHORT)
            j0, j1 = _pair(word + 2 * group, ROWS, SHORT)
            k0, k1 = _pair(word + 3 * group, ROWS, SHORT)
            part = total
            if PACKED:
                part = tl.zeros([SPLIT, ROWS, block], tl.float16)
            part = _add(part, d0v, d0w)
            part = _add(part, d1v, d1w)
            part = _add(part, e0v, e0w)
            part = _add(part, e1v, e1w)
            part = _add(part, f0v, f0w)
            part = _add(part, f1v, f1w)
            part = _add(part, g0v, g0w)
            part = _add(part, g1v, g1w)
            if PACKED:
                total += part.to(tl.float32)
            else:
                total = part
            d0, d1, e0, e1, f0, f1, g0, g1 = h0, h1, i0, i1, j0, j1, k0, k1

        begin, end = next_begin, next_end
        word = words + begin * group
        a0, a1 = _pair(word, ROWS, SHORT)
        b0, b1 = _pair(word + group, ROWS, SHORT)
        c0, c1 = _pair(word + 2 * group, ROWS, SHORT)
        value = tl.sum(total, axis=0)
        plane = _plane(row, out_plane8, out_row8, images8, SCALE)[:, None]
        tl.store(target + plane, value.to(out.dtype.element_ty), mask=mask)
