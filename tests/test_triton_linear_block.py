"""The fused block of linear attention against its operations one by one, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from sparse_ddpm_kernels.triton.channel_norm import channel_norm_reference
from sparse_ddpm_kernels.triton.layout import Layout
from sparse_ddpm_kernels.triton.linear_attention import linear_attention_reference
from sparse_ddpm_kernels.triton.linear_block import (
    LinearBlockTiles,
    choose_linear_block_tiles,
    linear_block,
    linear_block_fits,
    linear_block_reference,
)
from sparse_ddpm_kernels.triton.linear_block_pack import (
    MOST_EXPONENT,
    exponent_bound,
    pack_linear_block,
)

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def arrays(
    channels: int, hidden: int, *, scale: float = 1.0, density: float = 1.0
) -> dict[str, Any]:
    """What `pack_linear_block` takes."""
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((3 * hidden, channels)) * (scale / np.sqrt(channels))
    qkv *= rng.random(qkv.shape) < density
    # Rows that pruning has emptied: of q, of k, of v.
    qkv[[1, hidden, 2 * hidden + 3]] = 0.0
    return {
        "norm_gain": (1.0 + 0.3 * rng.standard_normal(channels)).astype(np.float32),
        "qkv": qkv.astype(np.float32),
        "project": rng.standard_normal((channels, hidden)).astype(np.float32),
        "bias": rng.standard_normal(channels).astype(np.float32),
        "gain": rng.standard_normal(channels).astype(np.float32),
    }


def one_by_one(x: Any, given: dict[str, Any], heads: int, dim_head: int, residual: bool) -> Any:
    """Five operations, as a Program has them."""
    made = {name: torch.from_numpy(value).to(x.device) for name, value in given.items()}
    y = channel_norm_reference(x, made["norm_gain"], eps=1e-5)
    y = torch.einsum("oc,chwn->ohwn", made["qkv"].to(x.dtype), y)
    y = linear_attention_reference(y, heads=heads, dim_head=dim_head)
    y = torch.einsum("ci,ihwn->chwn", made["project"].to(x.dtype), y)
    y = y + made["bias"].to(x.dtype).view(-1, 1, 1, 1)
    return channel_norm_reference(y, made["gain"], eps=1e-4, residual=x if residual else None)


def run(
    device: Any,
    dtype: Any,
    channels: int,
    heads: int,
    dim_head: int,
    height: int,
    width: int,
    images: int,
    *,
    halos: tuple[int, int] = (0, 0),
    scale: float = 1.0,
    density: float = 1.0,
    residual: bool = True,
    tiles: LinearBlockTiles | None = None,
) -> None:
    pixels = height * width
    source, target = (Layout(channels, height, width, images, halo) for halo in halos)
    x = source.view(source.allocate(dtype, device))
    x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 2 + 1)
    storage = target.allocate(dtype, device)
    out = target.view(storage).fill_(float("nan"))
    given = arrays(channels, heads * dim_head, scale=scale, density=density)
    # mix is a mean of v over so many pixels: its norm must have something to work with
    given["project"] *= pixels
    weights = pack_linear_block(**given, dtype=dtype, device=device)
    tiles = tiles or choose_linear_block_tiles(pixels, images, heads)
    needed = tiles.workspace(pixels=pixels, heads=heads, dim_head=dim_head, images=images)
    workspace = torch.full((needed,), float("nan"), device=device)
    merged = torch.full((images * heads * dim_head**2,), float("nan"), device=device, dtype=dtype)
    options = {"heads": heads, "dim_head": dim_head, "eps": 1e-5, "out_eps": 1e-4}
    linear_block(x, weights, out, workspace, merged, residual=residual, tiles=tiles, **options)
    wanted = linear_block_reference(x.double(), weights, residual=residual, **options)
    if dtype == torch.float32:
        exact = one_by_one(x.double(), given, heads, dim_head, residual)
        assert (wanted - exact).abs().max() <= 1e-4
    assert ((out - wanted).abs() / wanted.abs().clamp(min=1.0)).max() <= TOLERANCES[dtype]
    out.zero_()
    assert not storage.any()


@pytest.mark.parametrize(
    "shape",
    [
        # channels, heads, dim_head, height, width, images
        (64, 4, 32, 4, 4, 8),
        (32, 2, 16, 5, 7, 24),
        (16, 1, 32, 8, 8, 16),
        (16, 3, 16, 1, 1, 8),
        (128, 1, 16, 3, 6, 8),
    ],
    ids=str,
)
def test_equals_the_operations(triton_device: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    run(triton_device, dtype, *shape, halos=(1, 2))


@pytest.mark.parametrize(
    "tiles",
    [
        LinearBlockTiles(8, 1, False),
        LinearBlockTiles(16, 1, True),
        LinearBlockTiles(8, 5, True),
        # 5 tiles: the last part has one only, the last turn none
        LinearBlockTiles(16, 3, False),
    ],
    ids=str,
)
def test_parts_and_factors(triton_device: Any, dtype: Any, tiles: LinearBlockTiles) -> None:
    run(triton_device, dtype, 32, 2, 16, 9, 8, 16, tiles=tiles, residual=False)


def test_sparse_weights_and_large_exponents(triton_device: Any, dtype: Any) -> None:
    run(triton_device, dtype, 32, 1, 16, 6, 6, 8, density=0.1)
    run(triton_device, dtype, 16, 1, 16, 6, 6, 8, scale=3.0)


def test_in_place(triton_device: Any) -> None:
    layout = Layout(16, 4, 4, 8, 1)
    storage = layout.allocate(torch.float32, triton_device)
    x = layout.view(storage)
    x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    weights = pack_linear_block(**arrays(16, 16), dtype=torch.float32, device=triton_device)
    options = {"heads": 1, "dim_head": 16, "eps": 1e-5, "out_eps": 1e-5}
    wanted = linear_block_reference(x.double(), weights, **options)
    workspace = torch.zeros(17 * 16 * 8, device=triton_device)
    merged = torch.zeros(8, 1, 16, 16, device=triton_device)
    linear_block(x, weights, x, workspace, merged, **options)
    assert (x - wanted).abs().max() <= 1e-4
    x.zero_()
    assert not storage.any()


def test_the_bound_holds() -> None:
    given = arrays(16, 16, scale=2.0)
    bound = exponent_bound(given["norm_gain"], given["qkv"])
    x = torch.randn(16, 1, 1, 4096, generator=torch.Generator().manual_seed(0)).double()
    # The pixels that reach it: along the centred rows themselves.
    rows = given["qkv"].astype(np.float64) * given["norm_gain"]
    rows -= rows.mean(axis=1, keepdims=True)
    x[:, 0, 0, : len(rows)] = torch.from_numpy(rows.T) * 1e6
    y = channel_norm_reference(x, torch.from_numpy(given["norm_gain"]), eps=1e-5)
    largest = torch.einsum("oc,chwn->ohwn", torch.from_numpy(given["qkv"]).double(), y)[:32]
    assert 0.999 * bound <= largest.abs().max() <= bound


def test_refuses_large_exponents() -> None:
    given = arrays(16, 16, scale=2 * MOST_EXPONENT)
    with pytest.raises(ValueError, match=r"expected \|q\| and \|k\| up to 40"):
        pack_linear_block(**given, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim_head": 8, "heads": 2}, "linear block: expected"),
        ({"heads": 2}, r"weights.qkv: expected contiguous \(16, 96\)"),
        ({"out": torch.zeros(16, 2, 2, 16)}, "out: expected"),
        ({"workspace": torch.zeros(100)}, "workspace: expected 2176 elements, got 100"),
        ({"merged": torch.zeros(100)}, "merged: expected 2048"),
        ({"tiles": LinearBlockTiles(16, 1, False)}, "tiles: expected to fit 4 x 8"),
        ({"tiles": LinearBlockTiles(8, 2, False)}, "tiles: expected to fit 4 x 8"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(16, 2, 2, 8),
        "weights": pack_linear_block(**arrays(16, 16), dtype=torch.float32, device="cpu"),
        "out": torch.zeros(16, 2, 2, 8),
        "workspace": torch.zeros(17 * 16 * 8),
        "merged": torch.zeros(8 * 16 * 16),
        "heads": 1,
        "dim_head": 16,
        "eps": 1e-5,
        "out_eps": 1e-5,
    }
    with pytest.raises(ValueError, match=message):
        linear_block(**(arguments | change))


@pytest.mark.parametrize("images", [8, 24, 128, 256])
@pytest.mark.parametrize("pixels", [1, 16, 35, 64, 784, 1024])
def test_chosen_tiles_fit(pixels: int, images: int) -> None:
    tiles = choose_linear_block_tiles(pixels, images, 4)
    count = -(-pixels // 16)
    assert images % tiles.images == 0
    # Every part has pixels.
    assert (tiles.parts - 1) * -(-count // tiles.parts) < count


def test_what_fits() -> None:
    assert linear_block_fits(64, 4, 32)
    assert not linear_block_fits(96, 4, 32)
    assert not linear_block_fits(64, 4, 64)
