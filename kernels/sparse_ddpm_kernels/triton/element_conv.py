"""Convolution of single weights on CUDA cores: each weight times a vector of eight images.

A program walks the rows of a slice together (element_pack.py) for one tile of pixels, then those
of its next slice, which find in L1 what the slice before has read. What bounds it is L1: a vector
of 16 bytes for 8 multiply-adds. Indices and weights are therefore packed into words and loaded a
step ahead, and float16 is summed in packed pairs, at most `TERMS` products, before it is flushed
into float32.
"""

from __future__ import annotations

import torch

from sparse_ddpm_kernels.triton.element_kernel import element_conv_kernel
from sparse_ddpm_kernels.triton.element_pack import ElementWeights
from sparse_ddpm_kernels.triton.element_tiles import ElementTiles
from sparse_ddpm_kernels.triton.layout import IMAGES
from sparse_ddpm_kernels.triton.norm import check_floats, check_view

LEAN = 80
"""Registers in which short words, float16 sums and tiles that cut an image evenly fit."""

ROOM = 96
"""Registers in which everything fits."""

TERMS = 8
"""Products that are summed in float16 at most: the kernel's four pairs."""


def element_conv(
    x: torch.Tensor,
    weights: ElementWeights,
    out: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    tiles: ElementTiles,
    packed_half: bool = True,
) -> None:
    """``out = weights * x (+ bias) (+ residual)``, cross-correlation with zero "same" padding.

    ``x`` ``[Cin, H * stride / scale, W * stride / scale, N]``, ``out`` and ``residual``
    ``[Cout, H, W, N]``: views as in layout.py, of the dtype of the weights; x with the strides of
    ``weights.x`` and a halo of zeros of at least its reach; residual may be out itself. ``bias``:
    float32 ``[Cout]``. Rows without weights get bias and residual. ``tiles``: of the positions that
    the output's phases share, where x is upsampled. ``packed_half``: sum up to `TERMS` products of
    float16 in float16, else all in float32; bfloat16 and float32 are always summed in float32.
    Allocates nothing, does not wait. ValueError for arguments that do not fit together.
    """
    channels, height, width, images = check_view("out", out)
    check_view("x", x)
    like = weights.x
    if channels != weights.channels:
        raise ValueError(f"out: expected {weights.channels} channels, got {channels}.")
    stride, scale = weights.stride, weights.scale
    if height % scale or width % scale:
        raise ValueError(f"out: expected sides in multiples of {scale}, got {height}, {width}.")
    height, width = height // scale, width // scale
    wanted = (like.channels, height * stride, width * stride, images)
    if tuple(x.shape) != wanted:
        raise ValueError(f"x: expected {wanted}, got {tuple(x.shape)}.")
    if x.stride() != like.strides:
        raise ValueError(f"x: expected the packed strides {like.strides}, got {x.stride()}.")
    if not x.dtype == out.dtype == weights.dtype:
        raise ValueError(f"x, out: expected {weights.dtype}, got {x.dtype} and {out.dtype}.")
    if residual is not None:
        check_view("residual", residual, like=out)
    if bias is not None:
        check_floats("bias", bias, (channels,))
    if (tiles.slice_rows, tiles.split) != (weights.slice_rows, weights.split):
        got = f"{weights.slice_rows} and {weights.split}"
        raise ValueError(f"weights: expected slices packed for {tiles}, got {got}.")
    if images % tiles.nb:
        raise ValueError(f"tiles: expected a divisor of {images} images, got {tiles.nb}.")

    down, across = tiles.pixel_tiles(height, width)
    slices = len(weights.rows) // weights.slice_rows
    other = out if residual is None else residual
    packed = packed_half and x.dtype == torch.float16
    even = height % tiles.lines == 0 and width % tiles.columns == 0
    least = LEAN if weights.short and packed and even else ROOM
    grid = (down * across * (images // tiles.nb), min(tiles.parts, slices))
    element_conv_kernel[grid](
        x.view(torch.int32) if x.dtype == torch.bfloat16 else x,
        weights.words,
        weights.start,
        weights.rows,
        bias,
        residual,
        out,
        height,
        width,
        images // IMAGES,
        weights.unit,
        like.row // IMAGES,
        like.offset(0, -weights.reach, -weights.reach) // IMAGES,
        out.stride(0) // IMAGES,
        out.stride(1) // IMAGES,
        other.stride(0) // IMAGES,
        other.stride(1) // IMAGES,
        across,
        slices,
        ROWS=tiles.slice_rows,
        SPLIT=tiles.split,
        LINES=tiles.lines,
        COLUMNS=tiles.columns,
        NB=tiles.nb,
        STRIDE=stride,
        SCALE=scale,
        SHORT=weights.short,
        PACKED=packed,
        EVEN=even,
        num_warps=tiles.warps,
        num_stages=1,
        maxnreg=max(tiles.registers, least),
        enable_fp_fusion=True,
    )


def element_conv_reference(
    x: torch.Tensor,
    weights: ElementWeights,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `element_conv` should make, ``[Cout, H, W, N]`` in float64, from the same arrays."""
    split, slice_rows = weights.split, weights.slice_rows
    words = weights.words.cpu()
    if weights.short:
        entries = words.view(torch.int32).reshape(-1, split, slice_rows, 2).transpose(2, 3)
        offset = (entries & 0xFFFF).long() * weights.x.images
        value = (entries >> 16).to(torch.int16).view(weights.dtype).double()
    else:
        entries = words.reshape(-1, split, 2, slice_rows)
        offset = (entries & 0xFFFFFFFF) * IMAGES
        value = (entries >> 32).to(torch.int32).view(torch.float32).double()
    _, high, wide, images = x.shape
    stride, scale = weights.stride, weights.scale
    shape = high // stride, wide // stride, images
    strides = weights.x.row * stride, images * stride, 1
    base = x.storage_offset() + weights.x.offset(0, -weights.reach, -weights.reach)
    result = torch.zeros(
        weights.channels, shape[0] * scale, shape[1] * scale, images,
        dtype=torch.float64, device=x.device,
    )  # fmt: skip
    start = weights.start.tolist()
    for slot, row in enumerate(weights.rows.tolist()):
        owner, inner = divmod(slot, slice_rows)
        part = slice(start[owner], start[owner + 1])
        pairs = zip(
            offset[part, ..., inner].flatten().tolist(),
            value[part, ..., inner].flatten().tolist(),
            strict=True,
        )
        channel, phase = divmod(row, scale * scale)
        target = result[channel, phase // scale :: scale, phase % scale :: scale]
        for at, weight in pairs:
            if weight != 0.0:
                target += weight * x.as_strided(shape, strides, base + at).double()
    if bias is not None:
        result += bias.double()[:, None, None, None]
    return result if residual is None else result + residual.double()
