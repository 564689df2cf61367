"""The panel convolution against torch's in float64, its packing and its tiles."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from sparse_ddpm_kernels.triton.layout import Layout, padded_images
from sparse_ddpm_kernels.triton.norm import group_norm_reference, moments_reference
from sparse_ddpm_kernels.triton.panel_conv import EpilogueNorm, panel_conv, panel_conv_reference
from sparse_ddpm_kernels.triton.panel_pack import PackedPanels, pack_panels
from sparse_ddpm_kernels.triton.panel_tiles import (
    PanelTiles,
)

from sparse_ddpm.engine.panels import make_panels
from sparse_ddpm.formats import CSR

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32,) if INTERPRETED else (torch.float16, torch.bfloat16)
NAN = float("nan")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> Any:
    return request.param


def pruned(
    cout: int, columns: int, density: float, group: int, rng: np.random.Generator
) -> np.ndarray:
    """A matrix whose panels keep whole columns, as vector tickets do."""
    dense = rng.standard_normal((cout, columns)).astype(np.float32)
    kept = rng.random((-(-cout // group), columns)) < density
    return dense * np.repeat(kept, group, axis=0)[:cout]


def packed(
    dense: np.ndarray, group: int, x: Layout, size: int, block_k: int = 16, **steps: int
) -> PackedPanels:
    panels = make_panels(CSR.from_dense(dense), group)
    return pack_panels(
        panels.ptr,
        panels.columns,
        panels.values,
        panels.rows,
        x=x,
        size=size,
        block_k=block_k,
        **steps,
    )


def filled(layout: Layout, dtype: Any, device: Any, rng: np.random.Generator) -> Any:
    view = layout.view(layout.allocate(dtype, device))
    return view.copy_(torch.from_numpy(rng.standard_normal(view.shape)))


def convolved(x: Any, dense: np.ndarray, size: int, stride: int = 1, scale: int = 1) -> Any:
    """In float64 by torch, from the matrix and not from what was packed."""
    nchw = torch.nn.functional.pixel_unshuffle(x.double().cpu().permute(3, 0, 1, 2), stride)
    nchw = nchw.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    kernel = torch.from_numpy(dense).to(x.dtype).double()
    kernel = kernel.reshape(len(dense), nchw.shape[1], size, size)
    return torch.nn.functional.conv2d(nchw, kernel, padding=size // 2).permute(1, 2, 3, 0)


def close(got: Any, wanted: Any, dtype: Any) -> None:
    got, wanted = got.double().cpu(), wanted.double().cpu()
    assert torch.isfinite(got).all()
    scale = max(1.0, wanted.abs().max().item())
    assert (got - wanted).abs().max().item() <= TOLERANCES[dtype] * scale


def run(x: Any, weights: Any, tiles: PanelTiles, halo: int = 1, **options: Any) -> Any:
    """The output, poisoned before, after a look at its halo."""
    sides = (side // weights.stride * weights.scale for side in x.shape[1:3])
    shape = weights.channels, *sides, x.shape[3]
    layout = Layout(*shape, halo)
    storage = layout.allocate(x.dtype, x.device)
    out = layout.view(storage).fill_(NAN)
    needed = tiles.partial_size(shape[0], shape[1] * shape[2], shape[3])
    partial = torch.full((needed,), NAN, device=x.device) if needed else None
    panel_conv(x, weights, out, tiles=tiles, partial=partial, **options)
    result = out.clone()
    out.zero_()
    assert not storage.count_nonzero(), "the halo was written"
    return result


@dataclass(frozen=True)
class Layer:
    cin: int
    cout: int
    side: tuple[int, int]
    tiles: PanelTiles
    size: int = 3
    stride: int = 1
    scale: int = 1
    group: int = 16
    halo: int | None = None
    batch: int = 8
    density: float = 0.4


LAYERS = {
    "3x3": Layer(cin=4, cout=32, side=(4, 4), tiles=PanelTiles(8, 8, 16)),
    "1x1": Layer(cin=24, cout=16, side=(4, 4), size=1, tiles=PanelTiles(16, 8, 32)),
    "5x5": Layer(cin=3, cout=16, side=(6, 6), size=5, tiles=PanelTiles(16, 8, 64)),
    "7x7": Layer(cin=3, cout=16, side=(5, 7), size=7, tiles=PanelTiles(8, 8, 64)),
    "odd sides": Layer(cin=4, cout=16, side=(5, 7), tiles=PanelTiles(16, 8, 16)),
    "one pixel": Layer(cin=4, cout=16, side=(1, 1), tiles=PanelTiles(8, 8, 16)),
    "one row": Layer(cin=4, cout=16, side=(1, 9), tiles=PanelTiles(4, 16, 16), batch=16),
    "three outputs": Layer(cin=8, cout=3, side=(4, 4), tiles=PanelTiles(8, 8, 16)),
    "last panel part": Layer(cin=4, cout=40, side=(4, 4), tiles=PanelTiles(8, 8, 16)),
    "one image": Layer(cin=4, cout=16, side=(4, 4), tiles=PanelTiles(16, 8, 16), batch=1),
    "24 images": Layer(cin=4, cout=16, side=(3, 3), tiles=PanelTiles(8, 8, 16), batch=24),
    "runs of 16": Layer(cin=4, cout=16, side=(4, 4), tiles=PanelTiles(4, 16, 16), batch=48),
    "runs of 64": Layer(cin=4, cout=16, side=(3, 3), tiles=PanelTiles(1, 64, 16), batch=64),
    "large": Layer(cin=3, cout=16, side=(56, 56), tiles=PanelTiles(256, 8, 32, warps=8)),
    "G 32": Layer(cin=4, cout=64, side=(4, 4), group=32, tiles=PanelTiles(16, 8, 16)),
    "G 64": Layer(cin=4, cout=64, side=(4, 4), group=64, tiles=PanelTiles(16, 8, 32)),
    "G 128": Layer(cin=4, cout=100, side=(4, 4), group=128, tiles=PanelTiles(16, 8, 64)),
    "dense": Layer(cin=5, cout=16, side=(4, 4), density=1.0, tiles=PanelTiles(8, 8, 32)),
    "few": Layer(cin=16, cout=64, side=(4, 4), density=0.02, tiles=PanelTiles(8, 8, 16)),
    "no weights": Layer(cin=4, cout=32, side=(4, 4), density=0.0, tiles=PanelTiles(8, 8, 16)),
    "wide halo": Layer(cin=4, cout=16, side=(4, 4), halo=3, tiles=PanelTiles(8, 8, 16)),
    "stride 2": Layer(cin=3, cout=16, side=(8, 6), size=1, stride=2, tiles=PanelTiles(8, 8, 16)),
    "stride 2, 3x3": Layer(cin=2, cout=16, side=(4, 8), stride=2, tiles=PanelTiles(8, 8, 32)),
    "upsampled": Layer(cin=3, cout=20, side=(4, 4), scale=2, tiles=PanelTiles(8, 8, 16)),
    "upsampled odd": Layer(cin=3, cout=16, side=(3, 5), scale=2, tiles=PanelTiles(8, 8, 16)),
    "upsampled 5x5": Layer(
        cin=2, cout=16, side=(3, 3), scale=2, size=5, halo=1, tiles=PanelTiles(8, 8, 32)
    ),
    "upsampled split": Layer(
        cin=4, cout=16, side=(3, 3), scale=2, tiles=PanelTiles(8, 8, 16, splits=2)
    ),
    "split": Layer(cin=8, cout=32, side=(4, 4), tiles=PanelTiles(8, 8, 16, splits=3)),
    "split odd": Layer(cin=4, cout=20, side=(5, 3), tiles=PanelTiles(8, 8, 16, splits=2)),
    "split few": Layer(
        cin=4, cout=48, side=(3, 3), density=0.02, tiles=PanelTiles(8, 8, 16, splits=8)
    ),
    "split G 64": Layer(
        cin=8, cout=100, side=(3, 3), group=64, tiles=PanelTiles(16, 8, 16, splits=2)
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_convolution(name: str, triton_device: Any, dtype: Any) -> None:
    layer = LAYERS[name]
    cin, cout, (height, width), tiles = layer.cin, layer.cout, layer.side, layer.tiles
    size, stride, group = layer.size, layer.stride, layer.group
    halo = size // 2 * stride if layer.halo is None else layer.halo
    images = padded_images(layer.batch)
    rng = np.random.default_rng(0)
    layout = Layout(cin, height, width, images, halo)
    dense = pruned(cout, cin * stride * stride * size * size, layer.density, group, rng)
    weights = packed(
        dense, group, layout, size, tiles.block_k, stride=stride, scale=layer.scale
    ).to(triton_device, dtype)
    x = filled(layout, dtype, triton_device, rng)
    bias = torch.from_numpy(rng.standard_normal(cout).astype(np.float32)).to(triton_device)
    wanted = convolved(x, dense, size, stride, layer.scale)
    residual = filled(Layout(*wanted.shape, halo=2), dtype, triton_device, rng)
    close(run(x, weights, tiles), wanted, dtype)
    wanted += bias.double().cpu().view(-1, 1, 1, 1) + residual.double().cpu()
    close(run(x, weights, tiles, bias=bias, residual=residual), wanted, dtype)


def test_one_tap_and_an_empty_panel(triton_device: Any, dtype: Any) -> None:
    """All weights at the upper left tap; the second panel has none and gives its bias."""
    rng = np.random.default_rng(1)
    layout = Layout(3, 4, 4, 8, halo=1)
    dense = np.zeros((32, 27), dtype=np.float32)
    dense[:16, 0::9] = rng.standard_normal((16, 3))
    weights = packed(dense, 16, layout, 3).to(triton_device, dtype)
    x = filled(layout, dtype, triton_device, rng)
    bias = torch.arange(32.0, device=triton_device)
    got = run(x, weights, PanelTiles(8, 8, 16), bias=bias)
    assert torch.equal(got[16:], bias[16:].to(dtype).view(-1, 1, 1, 1).expand_as(got[16:]))
    close(got, convolved(x, dense, 3) + bias.double().cpu().view(-1, 1, 1, 1), dtype)


def test_slices_of_a_concatenation(triton_device: Any, dtype: Any) -> None:
    """The input is some channels of a larger value; the output's others stay as they are."""
    rng = np.random.default_rng(2)
    whole = filled(Layout(9, 4, 4, 8, halo=1), dtype, triton_device, rng)
    part = whole[3:7]
    dense = pruned(16, 36, 0.5, 16, rng)
    weights = packed(dense, 16, Layout(4, 4, 4, 8, halo=1), 3).to(triton_device, dtype)
    out = filled(Layout(48, 4, 4, 8, halo=1), dtype, triton_device, rng)
    before = out.clone()
    panel_conv(part, weights, out[16:32], tiles=PanelTiles(8, 8, 16))
    close(out[16:32], convolved(part, dense, 3), dtype)
    assert torch.equal(out[:16], before[:16])
    assert torch.equal(out[32:], before[32:])


def test_residual_in_place(triton_device: Any, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    layout = Layout(4, 4, 4, 8, halo=1)
    dense = pruned(16, 36, 0.5, 16, rng)
    weights = packed(dense, 16, layout, 3).to(triton_device, dtype)
    x = filled(layout, dtype, triton_device, rng)
    out = filled(Layout(16, 4, 4, 8), dtype, triton_device, rng)
    wanted = convolved(x, dense, 3) + out.double().cpu()
    panel_conv(x, weights, out, tiles=PanelTiles(8, 8, 16), residual=out)
    close(out, wanted, dtype)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    ("side", "group", "per_block", "tiles"),
    [
        ((4, 4), 16, 8, PanelTiles(8, 8, 16)),
        ((5, 3), 16, 16, PanelTiles(8, 8, 16)),
        ((3, 3), 32, 4, PanelTiles(4, 16, 32)),
        ((4, 4), 64, 64, PanelTiles(16, 8, 16)),
        ((1, 1), 16, 1, PanelTiles(8, 8, 16)),
    ],
)
def test_moments(
    side: tuple[int, int],
    group: int,
    per_block: int,
    tiles: PanelTiles,
    splits: int,
    triton_device: Any,
    dtype: Any,
) -> None:
    """Of the values as stored, with a mean far from 0."""
    rng = np.random.default_rng(4)
    layout = Layout(4, *side, 16, halo=1)
    cout = group + per_block
    dense = pruned(cout, 36, 0.6, group, rng)
    tiles = replace(tiles, splits=splits)
    weights = packed(dense, group, layout, 3, tiles.block_k).to(triton_device, dtype)
    x = filled(layout, dtype, triton_device, rng)
    bias = torch.full((cout,), 30.0, device=triton_device)
    shape = tiles.moments_shape(cout, layout.pixels, 16, per_block)
    moments = torch.full(shape, NAN, device=triton_device)
    out = run(x, weights, tiles, bias=bias, moments=moments)
    wanted = moments_reference(out.double().cpu(), per_block, tiles.pixels)
    mean, squares = moments.double().cpu()
    assert torch.isfinite(moments).all()
    torch.testing.assert_close(mean, wanted[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(squares, wanted[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    ("side", "group", "groups", "cout", "pixels"),
    [
        ((4, 4), 16, 4, 32, 16),
        ((4, 4), 32, 1, 32, 16),
        ((5, 3), 16, 3, 24, 16),
        ((8, 8), 16, 2, 32, 64),
    ],
)
@pytest.mark.parametrize("film", [False, True])
def test_norm_in_the_epilogue(
    side: tuple[int, int],
    group: int,
    groups: int,
    cout: int,
    pixels: int,
    film: bool,
    splits: int,
    triton_device: Any,
    dtype: Any,
) -> None:
    """With ``film`` the rows are picked by a step on the device; then a residual and no SiLU."""
    rng = np.random.default_rng(5)
    layout = Layout(4, *side, 8, halo=1)
    tiles = PanelTiles(pixels, 8, 16, splits=splits)
    dense = pruned(cout, 36, 0.6, group, rng)
    weights = packed(dense, group, layout, 3).to(triton_device, dtype)
    x = filled(layout, dtype, triton_device, rng)
    table = torch.from_numpy(rng.standard_normal((3, 2 * cout + 5)).astype(np.float32))
    table = table.to(triton_device)
    step = torch.tensor([2], dtype=torch.int32, device=triton_device) if film else None
    norm = EpilogueNorm(groups, table, gamma=cout + 1, beta=0, step=step, silu=not film)
    bias = torch.linspace(-1, 1, cout, device=triton_device)
    residual = filled(Layout(cout, *side, 8), dtype, triton_device, rng) if film else None
    row = table[2 if film else 0].double().cpu()
    wanted = group_norm_reference(
        convolved(x, dense, 3) + bias.double().cpu().view(-1, 1, 1, 1),
        row[cout + 1 :][:cout],
        row[:cout],
        groups=groups,
        eps=1e-5,
        silu=not film,
        residual=None if residual is None else residual.double().cpu(),
    )
    got = run(x, weights, tiles, bias=bias, norm=norm, residual=residual)
    close(got, wanted, dtype)


def test_reference_in_float64(triton_device: Any) -> None:
    """What tests of others lean on: the packed arrays mean the convolution."""
    rng = np.random.default_rng(6)
    layout = Layout(3, 5, 7, 8, halo=3)
    dense = pruned(40, 147, 0.3, 16, rng)
    weights = packed(dense, 16, layout, 7, 64).to(triton_device, torch.float64)
    x = filled(layout, torch.float64, triton_device, rng)
    residual = torch.ones(40, 5, 7, 8, dtype=torch.float64, device=triton_device)
    got = panel_conv_reference(x, weights, residual=residual)
    torch.testing.assert_close(got.cpu(), convolved(x, dense, 7) + 1.0, rtol=1e-12, atol=1e-12)


def test_packing_pads_and_sorts() -> None:
    rng = np.random.default_rng(7)
    dense = np.zeros((48, 18), dtype=np.float32)
    dense[16:32, ::2] = rng.standard_normal((16, 9))
    dense[32:48] = rng.standard_normal((16, 18))
    layout = Layout(2, 4, 4, 8, halo=1)
    got = packed(dense, 16, layout, 3)
    assert got.first_row.tolist() == [32, 16, 0]
    assert got.start.tolist() == [0, 2, 3, 3]
    assert (got.steps, got.entries, got.channels) == (3, 27, 48)
    assert got.offset.shape == (5 * 16,)
    assert got.offset[0] * 8 == layout.offset(0, -1, -1)
    assert got.offset[17] * 8 == layout.offset(1, 1, 1)
    assert not got.offset[18:32].any()
    assert not got.value[18:32].any()
    np.testing.assert_array_equal(got.value[:18], dense[32:48].T)
    np.testing.assert_array_equal(got.value[32:41], dense[16:32, ::2].T)


def test_packing_refuses() -> None:
    layout = Layout(2, 4, 4, 8, halo=1)
    dense = np.ones((16, 18), dtype=np.float32)
    with pytest.raises(ValueError, match="halo: expected at least 1, got 0"):
        packed(dense, 16, replace(layout, halo=0), 3)
    with pytest.raises(ValueError, match="columns: expected 0 to 8"):
        packed(dense, 16, replace(layout, channels=1), 3)
    with pytest.raises(ValueError, match="block_k"):
        packed(dense, 16, layout, 3, block_k=8)
    with pytest.raises(ValueError, match="output channels of a panel"):
        packed(dense, 8, layout, 3)


def test_refuses(triton_device: Any) -> None:
    rng = np.random.default_rng(8)
    device, float32 = triton_device, torch.float32
    layout, tiles = Layout(2, 4, 4, 8, halo=1), PanelTiles(8, 8, 16)
    weights = packed(pruned(32, 18, 0.5, 16, rng), 16, layout, 3).to(device, float32)
    x = filled(layout, float32, device, rng)
    out = filled(Layout(32, 4, 4, 8), float32, device, rng)

    def refused(
        what: str, x: Any = x, out: Any = out, tiles: PanelTiles = tiles, **more: Any
    ) -> None:
        before = out.clone()
        with pytest.raises(ValueError, match=what):
            panel_conv(x, weights, out, tiles=tiles, **more)
        assert torch.equal(before, out)

    other = Layout(2, 4, 4, 8, halo=2)
    refused("x: expected", x=filled(other, float32, device, rng))
    refused("out: expected pixels", out=filled(Layout(32, 4, 5, 8), float32, device, rng))
    refused("dtypes: expected one", out=out.to(torch.float16))
    refused("weights: expected 16 channels", out=out[:16])
    refused("block_k 32", tiles=PanelTiles(8, 8, 32))
    refused("images of a tile", tiles=PanelTiles(8, 16, 16))
    refused("bias: expected", bias=torch.zeros(31, device=device))
    refused("residual: expected", residual=x)
    refused("partial: expected 8192", tiles=PanelTiles(8, 8, 16, splits=2))
    refused("moments: expected", moments=torch.zeros(2, 1, 4, 8, device=device))
    refused("channels of a block", moments=torch.zeros(2, 2, 1, 8, device=device))
    norm = EpilogueNorm(4, torch.zeros(1, 64, device=device), 0, 32)
    refused("norm: expected tiles of at least 16", norm=norm)
    refused("channels of a group", norm=replace(norm, groups=1), tiles=PanelTiles(16, 8, 16))
    refused("table", norm=replace(norm, beta=33), tiles=PanelTiles(16, 8, 16))
