"""Cases of the convolutions: shapes of the paper's U-Net, and a few that are nobody's."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sparse_ddpm_kernels.triton.element_conv import element_conv
from sparse_ddpm_kernels.triton.element_pack import pack_slices
from sparse_ddpm_kernels.triton.element_tiles import choose_element_tiles
from sparse_ddpm_kernels.triton.layout import Layout, padded_images
from sparse_ddpm_kernels.triton.norm import group_norm_reference, moments_reference
from sparse_ddpm_kernels.triton.panel_conv import EpilogueNorm, panel_conv
from sparse_ddpm_kernels.triton.panel_pack import pack_panels
from sparse_ddpm_kernels.triton.panel_tiles import (
    PanelTiles,
    block_channels,
    candidate_panel_tiles,
)

from gpu.correctness import Case, Outcome
from gpu.values import Value, Values, error
from sparse_ddpm.engine.panels import make_panels
from sparse_ddpm.formats import CSR
from sparse_ddpm.ticket import Pattern
from sparse_ddpm.ticket.synthetic import random_mask

GROUPS = 8
"""Of the norms."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A convolution ``channels`` to ``out`` of ``height`` x ``width`` images (of the output).

    ``stride`` 2: of x after space-to-depth; ``scale`` 2: of x upsampled. ``apart``: x and out are
    channel slices of larger buffers, and halos are larger than needed. ``empty``: the last half of
    the rows has no weight. ``splits``: programs that share K, at least. ``overlap``: see there.
    """

    channels: int
    out: int
    height: int
    width: int
    batch: int
    group: int = 0
    size: int = 3
    stride: int = 1
    scale: int = 1
    sparsity: float = 0.95
    bias: bool = True
    residual: bool = False
    moments: bool = False
    norm: bool = False
    splits: int = 1
    apart: bool = False
    empty: bool = False
    overlap: bool = False

    @property
    def images(self) -> int:
        return padded_images(self.batch)

    def weight(self, values: Values) -> torch.Tensor:
        """Dense ``[out, channels, size, size]``, already rounded, with whole vectors pruned."""
        shape = self.out, self.channels, self.size, self.size
        unit = Pattern(max(self.group, 1), 1)
        mask = random_mask(shape, self.sparsity, unit, values.rng)
        if self.empty:
            mask[len(mask) // 2 :] = False
        scale = 1.0 / math.sqrt(max(1.0, mask.sum() / self.out))
        weight = torch.from_numpy(scale * values.array(*shape) * mask)
        return weight.to(values.dtype).float()


FULL: Mapping[str, Shape] = {
    **{
        f"{channels}@{side}x{side} G={group}": Shape(
            channels, channels, side, side, 16, group, residual=True
        )
        for channels, side in ((64, 32), (128, 16), (256, 8), (512, 4))
        for group in (16, 32, 64)
    },
    "density 1, 64@32x32": Shape(64, 64, 32, 32, 8, 64, sparsity=0.0),
    "density 1, 512@4x4 G=128": Shape(512, 512, 4, 4, 16, 128, sparsity=0.0),
    "7x7 of 3 channels": Shape(3, 64, 32, 32, 8, 32, size=7, sparsity=0.0),
    "1x1 to 3 channels": Shape(64, 3, 32, 32, 8, 16, size=1, sparsity=0.0),
    "strided 1x1": Shape(4 * 64, 128, 16, 16, 8, 32, size=1, stride=2),
    "upsampled, 256@16x16": Shape(256, 128, 16, 16, 16, 32, scale=2),
    "slices of concatenations": Shape(128, 64, 16, 16, 8, 32, apart=True, residual=True),
    "overlapping launches, 128@16x16": Shape(128, 128, 16, 16, 16, 32, overlap=True),
    "moments, 64@32x32": Shape(64, 64, 32, 32, 16, 32, moments=True),
    "moments, 128@16x16, K split": Shape(128, 128, 16, 16, 8, 16, moments=True, splits=2),
    "norm, 256@8x8": Shape(256, 256, 8, 8, 8, 32, norm=True, residual=True),
    "norm, 512@4x4, K split": Shape(512, 512, 4, 4, 8, 64, norm=True, splits=2),
    "5x7, batch 3, empty panels": Shape(48, 96, 5, 7, 3, 32, empty=True, residual=True),
}
ELEMENTS: Mapping[str, Shape] = {
    **{
        f"{channels}@{side}x{side}, {batch} images": Shape(
            channels, channels, side, side, batch, residual=True
        )
        for channels, side in ((64, 32), (128, 16), (256, 8), (512, 4))
        for batch in (8, 64)
    },
    "7x7 of 3 channels": Shape(3, 64, 32, 32, 8, size=7, sparsity=0.5),
    "1x1 to 3 channels": Shape(64, 3, 32, 32, 8, size=1, sparsity=0.9),
    "strided 1x1": Shape(4 * 64, 128, 16, 16, 8, size=1, stride=2),
    "slices of concatenations": Shape(128, 64, 16, 16, 8, apart=True, residual=True),
    "5x7, batch 3, empty rows": Shape(48, 96, 5, 7, 3, empty=True, residual=True),
}
DRY: Mapping[str, Shape] = {
    "3x3": Shape(16, 32, 4, 4, 3, 16, sparsity=0.8, residual=True, moments=True),
    "norm, K split": Shape(32, 32, 4, 4, 8, 16, sparsity=0.2, norm=True, splits=2),
    "strided": Shape(8, 16, 4, 4, 8, 16, size=1, stride=2, sparsity=0.5, apart=True),
    "upsampled": Shape(8, 16, 4, 4, 8, 16, scale=2, sparsity=0.5),
}
DRY_ELEMENTS: Mapping[str, Shape] = {
    "3x3": Shape(8, 16, 4, 4, 3, sparsity=0.9, residual=True, empty=True),
}


def cases(dry: bool) -> Mapping[str, Case]:
    """``panel_conv: ...`` and ``element_conv: ...``."""
    panel, element = (DRY, DRY_ELEMENTS) if dry else (FULL, ELEMENTS)
    return {
        **{f"panel_conv: {name}": functools.partial(panels, it) for name, it in panel.items()},
        **{
            f"element_conv: {name}": functools.partial(elements, it) for name, it in element.items()
        },
    }


class Problem:
    """What a `Shape` is made of, and the answer in float64."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.values = shape, Values(device, dtype)
        values, images = self.values, shape.images
        halo = shape.size // 2 + shape.apart
        weight = shape.weight(values)
        self.matrix = CSR.from_dense(weight.reshape(shape.out, -1).numpy())
        side = shape.stride
        channels = shape.channels // side**2
        height, width = (side * n // shape.scale for n in (shape.height, shape.width))
        whole = Layout(channels * (1 + shape.apart), height, width, images, halo)
        self.x = values.normal(whole)
        self.first = channels if shape.apart else 0
        self.input = self.x.view[self.first : self.first + channels]
        self.x_layout = dataclasses.replace(whole, channels=channels)
        self.out = values.poisoned(
            Layout(shape.out * (1 + shape.apart), shape.height, shape.width, images, shape.apart)
        )
        self.output = self.out.view[: shape.out]
        self.bias = values.floats(shape.out) if shape.bias else None
        self.residual: Value | None = None
        if shape.residual:
            self.residual = values.normal(Layout(shape.out, shape.height, shape.width, images, 1))
        x = self.input.permute(3, 0, 1, 2).double()
        if side > 1:
            x = F.pixel_unshuffle(x, side)
        if shape.scale > 1:
            x = F.interpolate(x, scale_factor=float(shape.scale), mode="nearest")
        kernel = weight.to(device).double()
        bias = None if self.bias is None else self.bias.double()
        self.conv = F.conv2d(x, kernel, bias, padding=shape.size // 2).permute(1, 2, 3, 0)

    def outcome(self, wanted: torch.Tensor, tolerance: float | None = None) -> Outcome:
        """Of what stands in ``output``: the error, and whether anything else was written."""
        if self.residual is not None:
            wanted = wanted + self.residual.view.double()
        problem = None
        if not self.out.halo_is_zero():
            problem = "halo: expected zeros, got something else."
        elif self.shape.apart and not bool(self.out.view[self.shape.out :].isnan().all()):
            problem = "channels beside the output: expected untouched ones, got written ones."
        return Outcome(error(self.output, wanted), tolerance, problem)


def panel_tiles(shape: Shape, entries: int) -> PanelTiles:
    """The first candidate with as many splits as asked for."""
    pixels = shape.height * shape.width
    found = candidate_panel_tiles(
        shape.out,
        pixels,
        shape.images,
        entries,
        shape.group,
        moments=shape.moments,
        norm=shape.norm,
    )
    return next(tiles for tiles in found if tiles.splits >= shape.splits)


def elements(shape: Shape, device: torch.device, dtype: torch.dtype) -> Outcome:
    """`element_conv`; float16 is summed in packed pairs, eight products at most."""
    problem = Problem(shape, device, dtype)
    found = make_panels(problem.matrix, 1)
    tiles = choose_element_tiles(
        shape.out, shape.height, shape.width, shape.images, len(found.columns)
    )
    packed = pack_slices(
        found.ptr,
        found.columns,
        found.values,
        found.rows,
        x=problem.x_layout,
        size=shape.size,
        slice_rows=tiles.slice_rows,
        split=tiles.split,
        stride=shape.stride,
    )
    element_conv(
        problem.input,
        packed.to(device, dtype),
        problem.output,
        tiles=tiles,
        bias=problem.bias,
        residual=None if problem.residual is None else problem.residual.view,
    )
    return problem.outcome(problem.conv)


def panels(shape: Shape, device: torch.device, dtype: torch.dtype) -> Outcome:
    """`panel_conv` with everything that ``shape`` asks of its epilogue."""
    problem = Problem(shape, device, dtype)
    found = make_panels(problem.matrix, shape.group)
    tiles = panel_tiles(shape, len(found.columns))
    packed = pack_panels(
        found.ptr,
        found.columns,
        found.values,
        found.rows,
        x=problem.x_layout,
        size=shape.size,
        block_k=tiles.block_k,
        stride=shape.stride,
        scale=shape.scale,
    )
    pixels = shape.height * shape.width
    floats = {"dtype": torch.float32, "device": device}
    partial = torch.full((tiles.partial_size(shape.out, pixels, shape.images),), math.nan, **floats)
    per_block = block_channels(shape.group, shape.out // GROUPS) if shape.moments else 1
    moments = torch.full(
        tiles.moments_shape(shape.out, pixels, shape.images, per_block), math.nan, **floats
    )
    table = problem.values.floats(2, 2 * shape.out)
    step = torch.ones(1, dtype=torch.int32, device=device)
    norm = EpilogueNorm(GROUPS, table, 0, shape.out, step)
    panel_conv(
        problem.input,
        packed.to(device, dtype),
        problem.output,
        tiles=tiles,
        bias=problem.bias,
        residual=None if problem.residual is None else problem.residual.view,
        moments=moments if shape.moments else None,
        norm=norm if shape.norm else None,
        partial=partial if len(partial) else None,
        overlap=shape.overlap,
    )
    wanted = problem.conv
    if shape.norm:
        wanted = group_norm_reference(
            wanted,
            table[1, : shape.out],
            table[1, shape.out :],
            groups=GROUPS,
            eps=norm.eps,
            silu=norm.silu,
        )
    outcome = problem.outcome(wanted)
    if shape.moments:
        exact = moments_reference(problem.output.double(), per_block, tiles.pixels)
        away = max(error(moments[i], exact[i]) for i in range(2))
        if not away <= 1e-4:
            return dataclasses.replace(outcome, problem=f"moments: expected 1e-4, got {away:.1e}.")
    return outcome
