"""Cases of attention and linear attention."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from sparse_ddpm_kernels.triton.attention import attention, attention_reference
from sparse_ddpm_kernels.triton.layout import Layout
from sparse_ddpm_kernels.triton.linear_attention import (
    choose_linear_attention_tiles,
    linear_attention,
    linear_attention_reference,
)

from gpu.cases_norm import compare
from gpu.correctness import Case, Outcome
from gpu.values import Values

Shape = tuple[int, int, int, int, int]
"""Heads, channels of a head, height, width, images."""

FULL: tuple[Shape, ...] = (
    (4, 32, 4, 4, 8),
    (4, 32, 4, 4, 256),
    (4, 32, 8, 8, 16),
    (2, 24, 5, 7, 8),
)
LINEAR: tuple[Shape, ...] = ((4, 32, 32, 32, 8), (4, 32, 16, 16, 64), *FULL)
DRY: tuple[Shape, ...] = ((2, 16, 4, 4, 8),)


def cases(dry: bool) -> Mapping[str, Case]:
    """``attention: ...`` and ``linear_attention: ...``."""
    found: dict[str, Case] = {}
    for kernel, run, shapes in (
        ("attention", full, FULL),
        ("linear_attention", linear, LINEAR),
    ):
        for shape in DRY if dry else shapes:
            heads, dim, height, width, images = shape
            name = f"{kernel}: {heads} heads of {dim}, {height}x{width}, {images} images"
            found[name] = functools.partial(run, shape)
    return found


def full(shape: Shape, device: torch.device, dtype: torch.dtype) -> Outcome:
    heads, dim, *rest = shape
    values = Values(device, dtype)
    qkv = values.normal(Layout(3 * heads * dim, *rest, 0))
    out = values.poisoned(Layout(heads * dim, *rest, 1))
    attention(qkv.view, out.view, heads=heads, dim_head=dim)
    wanted = attention_reference(qkv.view.double(), heads=heads, dim_head=dim)
    return compare(out, wanted)


def linear(shape: Shape, device: torch.device, dtype: torch.dtype) -> Outcome:
    heads, dim, height, width, images = shape
    values = Values(device, dtype)
    qkv = values.normal(Layout(3 * heads * dim, height, width, images, 0))
    out = values.poisoned(Layout(heads * dim, height, width, images, 1))
    tiles = choose_linear_attention_tiles(height * width, images, heads, dim)
    size = tiles.workspace(heads=heads, dim_head=dim, images=images)
    context = torch.full((size,), math.nan, device=device)
    linear_attention(qkv.view, out.view, context, heads=heads, dim_head=dim, tiles=tiles)
    wanted = linear_attention_reference(qkv.view.double(), heads=heads, dim_head=dim)
    return compare(out, wanted)
