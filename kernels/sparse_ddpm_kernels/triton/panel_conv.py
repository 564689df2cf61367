"""Convolution of panels of output channels on tensor cores.

A program makes some pixels of some images (M) of one panel's G channels (N). A K-step gathers
``block_k`` columns: whole runs of images at a constant offset from each output pixel. So one kernel
serves every filter size, concatenated, strided and upsampled input, and every density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sparse_ddpm_kernels.triton.layout import IMAGES
from sparse_ddpm_kernels.triton.norm import (
    check_floats,
    check_rows,
    check_view,
    group_norm_reference,
)
from sparse_ddpm_kernels.triton.panel_kernels import panel_conv_kernel, panel_sum_kernel
from sparse_ddpm_kernels.triton.panel_pack import PanelWeights
from sparse_ddpm_kernels.triton.panel_tiles import PanelTiles


@dataclass(frozen=True, slots=True)
class EpilogueNorm:
    """Group norm of the convolution's float32 sums, as `norm.group_norm` does it.

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
    overlap: bool = False,
) -> None:
    """``out = act(norm(weights * x + bias)) (+ residual)``, without ``norm`` no act either.

    x: view ``[C, H, W, N]`` in the layout of ``weights.x``, its halo zero. out: view ``[Cout, H',
    W', N]``, H' = H / stride * scale of the weights, in any `layout.Layout`, of x's dtype and apart
    from x; only pixels are written. ``residual``: as out, and may be out itself. ``bias``: float32
    ``[Cout]``, contiguous. A panel without entries gives the bias.

    ``moments``: float32 ``[2, T, B, N]`` (`PanelTiles.moments_shape`), contiguous, written: mean
    and sum of squared deviations of out as stored, per tile of ``tiles.pixels`` pixels (the last
    may have fewer), per block of Cout / B neighbouring channels, a power of two that divides the
    panel's channels, per image. Upsampled input has whole tiles only. ``norm`` needs all pixels and
    whole groups in a tile (`norm_fits`). ``partial``: float32, `PanelTiles.partial_size` elements,
    if K is split.

    Tensors are 16-byte aligned and the caller's; one kernel is launched on the current stream, two
    if K is split. ``overlap``: on Hopper and later the launch need not wait for the kernel before
    to end (programmatic dependent launch): only constants are read before that. ValueError if
    anything does not fit.
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
    pixels, scale = height * width, weights.scale
    count = pixels // (scale * scale)
    per_block = per_group = 0
    if moments is not None:
        per_block = channels // max(moments.shape[1:3][-1], 1)
        check_floats("moments", moments, tiles.moments_shape(channels, pixels, images, per_block))
        _check_whole("channels of a block of moments", per_block, channels, weights.group)
        if scale > 1 and count % tiles.pixels:
            raise ValueError(
                f"pixels of a tile: expected a divisor of {count}, got {tiles.pixels}."
            )
    if norm is not None:
        per_group = channels // max(norm.groups, 1)
        _check_whole("channels of a group", per_group, channels, weights.group)
        if tiles.pixels < pixels or scale > 1:
            raise ValueError(
                f"norm: expected tiles of at least {pixels} pixels of input that is not upsampled, "
                f"got {tiles.pixels} and scale {scale}."
            )
        check_rows(norm.table, norm.step, channels, norm.gamma, norm.beta)
    needed = tiles.partial_size(channels, pixels, images)
    if needed and (partial is None or partial.numel() < needed or needed >= 1 << 31):
        got = None if partial is None else partial.numel()
        raise ValueError(f"partial: expected {needed} elements, fewer than 2^31, got {got}.")

    apart = out if residual is None else residual
    last: dict[str, Any] = {
        "moments": moments,
        "BLOCK_CHANNELS": per_block,
        "GROUP_CHANNELS": per_group,
    }
    last |= {
        "residual": residual,
        "residual_plane8": apart.stride(0) // IMAGES,
        "residual_row8": apart.stride(1) // IMAGES,
        "table": None if norm is None else norm.table,
        "step": None if norm is None else norm.step,
        "table_row": 0 if norm is None else norm.table.stride(0),
        "gamma": 0 if norm is None else norm.gamma,
        "beta": 0 if norm is None else norm.beta,
        "eps": 0.0 if norm is None else norm.eps,
        "SILU": norm is not None and norm.silu,
    }
    both: dict[str, Any] = {
        "out": out,
        "bias": bias,
        "partial": partial if needed else None,
        "channels": channels,
        "images8": images // IMAGES,
        "out_plane8": out.stride(0) // IMAGES,
        "out_row8": out.stride(1) // IMAGES,
        "SPLITS": tiles.splits,
        "PIXELS": tiles.pixels,
        "NB": tiles.nb,
        "OVERLAP": overlap,
        "enable_fp_fusion": True,
        **({"launch_pdl": True} if overlap else {}),
    }
    columns = images // tiles.nb
    panels = len(weights.first_row)
    panel_conv_kernel[panels * tiles.pixel_tiles(count) * columns, tiles.splits](
        x=x,
        start=weights.start,
        first_row=weights.first_row,
        phases=weights.phase if scale > 1 else None,
        offset=weights.offset,
        value=weights.value,
        panels=panels,
        x_row8=x.stride(1) // IMAGES,
        G=weights.group,
        BLOCK_K=tiles.block_k,
        WIDTH=width // scale,
        COUNT=count,
        X_STEP=weights.stride,
        OUT_STEP=scale,
        HOLD=tiles.holds_weights(weights.group),
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **both,
        **(_NOTHING if needed else last),
    )
    if needed:
        group = min(weights.group, max(16, per_block, per_group))
        panel_sum_kernel[tiles.pixel_tiles(pixels) * columns, -(-channels // group)](
            G=group,
            WIDTH=width,
            COUNT=pixels,
            num_warps=tiles.sum_warps(group),
            **both,
            **last,
        )


_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("moments", "residual", "table", "step")),
    **dict.fromkeys(("residual_plane8", "residual_row8", "table_row", "gamma", "beta"), 0),
    **dict.fromkeys(("BLOCK_CHANNELS", "GROUP_CHANNELS"), 0),
    "eps": 0.0,
    "SILU": False,
}
"""An epilogue's arguments where another kernel makes it."""


def panel_conv_reference(
    x: torch.Tensor,
    weights: PanelWeights,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    norm: EpilogueNorm | None = None,
) -> torch.Tensor:
    """What `panel_conv` computes, ``[Cout, H', W', N]`` in x's dtype, from the packed arrays."""
    stride, scale, channels = weights.stride, weights.scale, weights.channels
    height, width, images = x.shape[1] // stride, x.shape[2] // stride, x.shape[3]
    y, column = torch.arange(height)[:, None], torch.arange(width)[None, :]
    pixel = (y * stride * x.stride(1) + column * stride * images).reshape(-1, 1)
    pixel = (pixel + torch.arange(images)).to(x.device)
    before = int(x.storage_offset())
    memory = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    out = x.new_zeros(channels + weights.group, height, scale, width, scale, images)
    begins: list[int] = (weights.start * weights.block_k).tolist()
    for panel, first in enumerate(weights.first_row.tolist()):
        entries = slice(begins[panel], begins[panel + 1])
        at = weights.offset[entries].long() * IMAGES + before
        value = weights.value[entries].to(x.dtype)
        i, j = divmod(int(weights.phase[panel]), scale)
        total = torch.einsum("kg,kpn->gpn", value, memory[at[:, None, None] + pixel])
        out[first : first + weights.group, :, i, :, j] = total.reshape(-1, height, width, images)
    out = out[:channels].reshape(channels, height * scale, width * scale, images)
    if bias is not None:
        out = out + bias.to(x.dtype).view(-1, 1, 1, 1)
    if norm is not None:
        row = norm.table[0 if norm.step is None else int(norm.step)]
        return group_norm_reference(
            out,
            row[norm.gamma : norm.gamma + channels],
            row[norm.beta : norm.beta + channels],
            groups=norm.groups,
            eps=norm.eps,
            silu=norm.silu,
            residual=residual,
        )
    return out if residual is None else out + residual


def _check_input(x: torch.Tensor, weights: PanelWeights, out: torch.Tensor) -> None:
    check_view("x", x)
    layout, stride, scale = weights.x, weights.stride, weights.scale
    shape = layout.channels, layout.height, layout.width, layout.images
    if tuple(x.shape) != shape or x.stride() != layout.strides:
        raise ValueError(
            f"x: expected {shape} with strides {layout.strides}, got {tuple(x.shape)} with "
            f"strides {x.stride()}."
        )
    sides = layout.height // stride * scale, layout.width // stride * scale
    if tuple(out.shape[1:]) != (*sides, layout.images):
        raise ValueError(
            f"out: expected pixels and images {(*sides, layout.images)}, "
            f"got {tuple(out.shape[1:])}."
        )
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
