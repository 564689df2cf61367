"""Softmax attention against its reference in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from sparse_ddpm_kernels.triton.attention import (
    AttentionTiles,
    attention,
    attention_reference,
    choose_attention_tiles,
)
from sparse_ddpm_kernels.triton.layout import Layout

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def run(
    device: Any,
    dtype: Any,
    heads: int,
    dim_head: int,
    height: int,
    width: int,
    images: int,
    *,
    halos: tuple[int, int] = (0, 0),
    scale: float = 2.0,
    shift: float = 0.0,
    tolerance: float | None = None,
    tiles: AttentionTiles | None = None,
) -> None:
    hidden = heads * dim_head
    source = Layout(3 * hidden, height, width, images, halos[0])
    target = Layout(hidden, height, width, images, halos[1])
    qkv = source.view(source.allocate(dtype, device))
    qkv.copy_(torch.randn(qkv.shape, generator=torch.Generator().manual_seed(0)) * scale + shift)
    storage = target.allocate(dtype, device)
    out = target.view(storage).fill_(float("nan"))
    attention(qkv, out, heads=heads, dim_head=dim_head, tiles=tiles)
    wanted = attention_reference(qkv.double(), heads=heads, dim_head=dim_head)
    assert ((out - wanted).abs() / wanted.abs().clamp(min=1.0)).max() <= (
        tolerance or TOLERANCES[dtype]
    )
    out.zero_()
    assert not storage.any()


@pytest.mark.parametrize(
    "shape",
    [
        # heads, dim_head, height, width, images
        (4, 32, 4, 4, 8),
        (2, 16, 8, 8, 16),
        (1, 8, 5, 7, 24),
        (2, 24, 3, 3, 8),
        (1, 64, 1, 1, 8),
        (1, 16, 16, 16, 8),
        (1, 80, 2, 3, 8),
    ],
    ids=str,
)
def test_equals_the_reference(triton_device: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    run(triton_device, dtype, *shape, halos=(1, 2))


@pytest.mark.parametrize("tiles", [AttentionTiles(16, 64), AttentionTiles(64, 16)], ids=str)
def test_tiles_that_do_not_divide(triton_device: Any, dtype: Any, tiles: AttentionTiles) -> None:
    run(triton_device, dtype, 1, 16, 5, 8, 8, tiles=tiles)


def test_large_scores(triton_device: Any) -> None:
    # exp of these would overflow; rising keys move the maximum in every tile.
    # An ulp of a score of 400 is 3e-5.
    shape = 1, 16, 8, 8, 8
    tiles = AttentionTiles(16, 16)
    run(triton_device, torch.float32, *shape, scale=12.0, tolerance=1e-3, tiles=tiles)
    run(triton_device, torch.float32, *shape, scale=0.0, shift=100.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim_head": 256}, "dim_head: expected 1 to 128"),
        ({"heads": 2}, "qkv: expected 96 channels, got 48"),
        ({"out": torch.zeros(15, 2, 2, 8)}, "out: expected"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "qkv": torch.zeros(48, 2, 2, 8),
        "out": torch.zeros(16, 2, 2, 8),
        "heads": 1,
        "dim_head": 16,
    }
    with pytest.raises(ValueError, match=message):
        attention(**(arguments | change))


@pytest.mark.parametrize("pixels", [1, 16, 35, 64, 256, 1024])
@pytest.mark.parametrize("dim_head", [16, 32, 64, 128])
def test_chosen_tiles_fit(pixels: int, dim_head: int) -> None:
    tiles = choose_attention_tiles(pixels, dim_head)
    # Scores, and the sums of the queries, in registers of 8 images.
    assert 8 * tiles.queries * tiles.keys <= 64 * 32 * tiles.warps
    assert 8 * tiles.queries * dim_head <= 64 * 32 * tiles.warps
