"""Linear attention against its reference in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from sparse_ddpm_kernels.triton.layout import Layout
from sparse_ddpm_kernels.triton.linear_attention import (
    LinearAttentionTiles,
    choose_linear_attention_tiles,
    linear_attention,
    linear_attention_reference,
)

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
    tolerance: float | None = None,
    tiles: LinearAttentionTiles | None = None,
) -> None:
    hidden, pixels = heads * dim_head, height * width
    source = Layout(3 * hidden, height, width, images, halos[0])
    target = Layout(hidden, height, width, images, halos[1])
    qkv = source.view(source.allocate(dtype, device))
    qkv.copy_(torch.randn(qkv.shape, generator=torch.Generator().manual_seed(0)) * scale)
    # Values that do not shrink as pixels get more: k' sums to 1, and 1 / pixels is undone.
    qkv[2 * hidden :] = (qkv[2 * hidden :] + 1.0) * pixels
    storage = target.allocate(dtype, device)
    out = target.view(storage).fill_(float("nan"))
    if tiles is None:
        tiles = choose_linear_attention_tiles(pixels, images, heads, dim_head)
    needed = tiles.workspace(heads=heads, dim_head=dim_head, images=images)
    context = torch.full((needed,), float("nan"), device=device)
    linear_attention(qkv, out, context, heads=heads, dim_head=dim_head, tiles=tiles)
    wanted = linear_attention_reference(qkv.double(), heads=heads, dim_head=dim_head)
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
        (1, 16, 28, 28, 8),
        (1, 40, 4, 5, 8),
    ],
    ids=str,
)
def test_equals_the_reference(triton_device: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    run(triton_device, dtype, *shape, halos=(1, 2))


@pytest.mark.parametrize(
    "tiles",
    [
        LinearAttentionTiles(16, 1, 1),
        LinearAttentionTiles(16, 5, 1),
        # 5 tiles: the last part has one only, the last turn none
        LinearAttentionTiles(16, 3, 2),
        LinearAttentionTiles(32, 2, 4),
    ],
    ids=str,
)
def test_parts_and_turns(triton_device: Any, dtype: Any, tiles: LinearAttentionTiles) -> None:
    run(triton_device, dtype, 2, 16, 9, 8, 8, tiles=tiles)


def test_large_keys(triton_device: Any) -> None:
    # exp of these would overflow, and their maximum moves from part to part.
    # An ulp of an exponent of 300 is 3e-5.
    shape = 1, 16, 8, 8, 8
    for tiles in (None, LinearAttentionTiles(16, 2, 2)):
        run(triton_device, torch.float32, *shape, scale=60.0, tolerance=1e-3, tiles=tiles)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim_head": 256}, "dim_head: expected 1 to 128"),
        ({"heads": 2}, "qkv: expected 96 channels, got 48"),
        ({"out": torch.zeros(15, 2, 2, 8)}, "out: expected"),
        ({"context": torch.zeros(100)}, "context: expected 2304 elements, got 100"),
        ({"context": torch.zeros(2304).half()}, "context: expected contiguous float32"),
        ({"tiles": LinearAttentionTiles(16, 2, 1)}, "context: expected 4608"),
        (
            {"tiles": LinearAttentionTiles(16, 2, 1), "context": torch.zeros(4608)},
            "tiles: expected pixels for every part",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "qkv": torch.zeros(48, 2, 2, 8),
        "out": torch.zeros(16, 2, 2, 8),
        "context": torch.zeros(2304),
        "heads": 1,
        "dim_head": 16,
    }
    with pytest.raises(ValueError, match=message):
        linear_attention(**(arguments | change))


@pytest.mark.parametrize("images", [8, 24, 256])
@pytest.mark.parametrize("pixels", [1, 16, 35, 64, 784, 1024])
@pytest.mark.parametrize("dim_head", [16, 32, 64, 128])
def test_chosen_tiles_fit(pixels: int, images: int, dim_head: int) -> None:
    tiles = choose_linear_attention_tiles(pixels, images, 4, dim_head)
    number = -(-pixels // tiles.pixels)
    # Every part has pixels.
    assert (tiles.parts - 1) * -(-number // tiles.parts) < number
    assert 1 <= tiles.turns <= number
