"""Channel norm against its reference in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from sparse_ddpm_kernels.triton.channel_norm import (
    REGISTERS,
    ChannelNormTiles,
    channel_norm,
    channel_norm_reference,
    choose_channel_norm_tiles,
)
from sparse_ddpm_kernels.triton.layout import Layout

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


CASES = [
    # channels, height, width, images; halos of x, out and residual; tiles
    ((8, 4, 4, 8), (0, 0, 0), None),
    ((3, 28, 28, 8), (1, 0, 1), None),
    ((12, 5, 7, 24), (0, 2, 1), None),
    ((1, 3, 3, 8), (0, 0, 0), None),
    ((100, 4, 6, 16), (1, 1, 0), None),
    ((16, 5, 7, 16), (0, 0, 0), ChannelNormTiles(16, 16, 16)),
    ((40, 5, 7, 16), (1, 2, 3), ChannelNormTiles(16, 4, 8, 2)),
    ((16, 2, 2, 32), (0, 1, 0), ChannelNormTiles(4, 1, 16, 1)),
]


@pytest.mark.parametrize(("shape", "halos", "tiles"), CASES, ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_equals_the_reference(
    triton_device: Any,
    dtype: Any,
    shape: tuple[int, int, int, int],
    halos: tuple[int, int, int],
    tiles: ChannelNormTiles | None,
    residual: bool,
) -> None:
    generator = torch.Generator().manual_seed(0)
    layouts = [Layout(*shape, halo) for halo in halos]
    storages = [layout.allocate(dtype, triton_device) for layout in layouts]
    x, out, more = (a.view(b) for a, b in zip(layouts, storages, strict=True))
    x.copy_(torch.randn(shape, generator=generator) * 2 + 1)
    more.copy_(torch.randn(shape, generator=generator))
    out.fill_(float("nan"))
    gain = torch.randn(shape[0], generator=generator).to(triton_device)
    added = more if residual else None
    channel_norm(x, out, gain, eps=1e-5, residual=added, tiles=tiles)
    wanted = channel_norm_reference(
        x.double(), gain.double(), eps=1e-5, residual=more.double() if residual else None
    )
    assert ((out - wanted).abs() / wanted.abs().clamp(min=1.0)).max() <= TOLERANCES[dtype]
    out.zero_()
    assert not storages[1].any()


@pytest.mark.parametrize("tiles", [None, ChannelNormTiles(4, 2, 8)])
def test_in_place_far_from_zero_and_constant(
    triton_device: Any, tiles: ChannelNormTiles | None
) -> None:
    layout = Layout(12, 4, 4, 8)
    x = layout.view(layout.allocate(torch.float32, triton_device))
    x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) + 100)
    x[:, 2:] = -7.0
    gain = torch.ones(12, device=triton_device)
    wanted = channel_norm_reference(x.double(), gain.double(), eps=1e-5)
    channel_norm(x, x, gain, eps=1e-5, tiles=tiles)
    assert (x - wanted)[:, :2].abs().max() <= 5e-5
    # an ulp of 7, over sqrt(eps)
    assert x[:, 2:].abs().max() <= 2e-4


def test_channel_slices(triton_device: Any, dtype: Any) -> None:
    layout = Layout(24, 3, 5, 8, 1)
    storage = layout.allocate(dtype, triton_device)
    whole = layout.view(storage)
    whole.copy_(torch.randn(whole.shape, generator=torch.Generator().manual_seed(0)))
    before = storage.clone()
    gain = torch.linspace(-1, 1, 8, device=triton_device)
    channel_norm(whole[:8], whole[8:16], gain, eps=1e-3, residual=whole[16:])
    wanted = channel_norm_reference(
        whole[:8].double(), gain.double(), eps=1e-3, residual=whole[16:].double()
    )
    assert (whole[8:16] - wanted).abs().max() <= 5 * TOLERANCES[dtype]
    whole[8:16] = layout.view(before)[8:16]
    assert torch.equal(storage, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain": torch.zeros(7)}, "gain: expected contiguous float32"),
        ({"out": torch.zeros(8, 2, 2, 16)}, "out: expected"),
        ({"residual": torch.zeros(8, 2, 4, 8)}, "residual: expected"),
        ({"tiles": ChannelNormTiles(8, 1, 16)}, "tiles: expected to fit 8 images"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    x = torch.zeros(8, 2, 2, 8)
    arguments: dict[str, Any] = {"x": x, "out": x, "gain": torch.zeros(8), "eps": 1e-5}
    with pytest.raises(ValueError, match=message):
        channel_norm(**(arguments | change))


@pytest.mark.parametrize("images", [8, 24, 256])
@pytest.mark.parametrize("pixels", [16, 64, 1024])
@pytest.mark.parametrize("channels", [1, 3, 64, 512, 4096])
def test_chosen_tiles_fit(channels: int, pixels: int, images: int) -> None:
    tiles = choose_channel_norm_tiles(channels, pixels, images)
    size = tiles.channels * tiles.pixels * tiles.images
    assert images % tiles.images == 0
    assert size <= REGISTERS
    assert size <= 64 * 32 * tiles.warps
    assert tiles.channels >= channels or size == REGISTERS
