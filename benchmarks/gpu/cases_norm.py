"""Cases of group norm and channel norm."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from sparse_ddpm_kernels.triton.channel_norm import channel_norm, channel_norm_reference
from sparse_ddpm_kernels.triton.layout import Layout
from sparse_ddpm_kernels.triton.norm import (
    choose_norm_tiles,
    group_norm,
    group_norm_reference,
    moments_reference,
)

from gpu.correctness import Case, Outcome
from gpu.values import Value, Values, error

GROUPS, EPS = 8, 1e-5

FULL = ((64, 32, 32, 8), (64, 32, 32, 64), (128, 16, 16, 16), (256, 8, 8, 16), (512, 4, 4, 256))
ODD = (24, 5, 7, 8)
DRY = ((16, 4, 4, 8),)


def cases(dry: bool) -> Mapping[str, Case]:
    """``group_norm: ...`` with and without given moments, ``channel_norm: ...``."""
    found: dict[str, Case] = {}
    for shape in DRY if dry else (*FULL, ODD):
        channels, height, width, images = shape
        name = f"{channels}@{height}x{width}, {images} images"
        found[f"group_norm: {name}"] = functools.partial(group, shape, False)
        found[f"group_norm: {name}, moments given"] = functools.partial(group, shape, True)
        found[f"channel_norm: {name}"] = functools.partial(channel, shape)
    return found


def group(
    shape: tuple[int, int, int, int], given: bool, device: torch.device, dtype: torch.dtype
) -> Outcome:
    """With SiLU and a residual; ``given``: moments of tiles come along, as a convolution's do."""
    channels, height, width, images = shape
    values = Values(device, dtype)
    x, residual = (values.normal(Layout(*shape, halo)) for halo in (0, 1))
    # Means far from 0 show whether squares are summed about them.
    x.view.add_(3.0)
    out = values.poisoned(Layout(*shape, 1))
    table = values.floats(2, 2 * channels)
    step = torch.ones(1, dtype=torch.int32, device=device)
    block, pixels, tile = channels // GROUPS, height * width, 16
    per_tile = min(block, 8)
    tiles_in = -(-pixels // tile) if given else 0
    tiles = choose_norm_tiles(
        channels, pixels, images, GROUPS, partials=tiles_in * (block // per_tile)
    )
    size = tiles.workspace(group_rows=block * pixels, groups=GROUPS, images=images)
    workspace = torch.full((size,), math.nan, device=device)
    moments = moments_reference(x.view.float(), per_tile, tile).contiguous() if given else None
    group_norm(
        x.view,
        out.view,
        table,
        gamma=0,
        beta=channels,
        groups=GROUPS,
        eps=EPS,
        silu=True,
        step=step,
        residual=residual.view,
        moments=moments,
        channels_per_block=per_tile if given else None,
        tile_pixels=tile if given else None,
        workspace=workspace if size else None,
        tiles=tiles,
    )
    wanted = group_norm_reference(
        x.view.double(),
        table[1, :channels],
        table[1, channels:],
        groups=GROUPS,
        eps=EPS,
        silu=True,
        residual=residual.view.double(),
    )
    return compare(out, wanted)


def channel(shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> Outcome:
    """With a residual."""
    values = Values(device, dtype)
    x, residual = (values.normal(Layout(*shape, halo)) for halo in (0, 1))
    out = values.poisoned(Layout(*shape, 1))
    gain = values.floats(shape[0])
    channel_norm(x.view, out.view, gain, eps=EPS, residual=residual.view)
    wanted = channel_norm_reference(x.view.double(), gain, eps=EPS, residual=residual.view.double())
    return compare(out, wanted)


def compare(out: Value, wanted: torch.Tensor) -> Outcome:
    """Of a whole value, and its halo."""
    problem = None if out.halo_is_zero() else "halo: expected zeros, got something else."
    return Outcome(error(out.view, wanted), None, problem)
