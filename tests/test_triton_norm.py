"""Group norm against its reference in float64, with and without moments of tiles."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from sparse_ddpm_kernels.triton.layout import Layout
from sparse_ddpm_kernels.triton.norm import (
    NormTiles,
    choose_norm_tiles,
    group_norm,
    group_norm_reference,
    moments_reference,
)

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Case:
    """Values in memory of their own, the result's full of NaN, and what it should be."""

    def __init__(
        self,
        device: Any,
        dtype: Any,
        channels: int,
        height: int,
        width: int,
        images: int,
        groups: int,
        *,
        halos: tuple[int, int, int] = (0, 0, 0),
        silu: bool = True,
        residual: bool = False,
        step: int | None = None,
        x: Any = None,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.layouts = [Layout(channels, height, width, images, halo) for halo in halos]
        self.storages = [layout.allocate(dtype, device) for layout in self.layouts]
        views = [a.view(b) for a, b in zip(self.layouts, self.storages, strict=True)]
        self.x, self.out, more = views
        if x is None:
            x = torch.randn(self.x.shape, generator=generator) * 2 + 1
        self.x.copy_(x)
        more.copy_(torch.randn(self.x.shape, generator=generator))
        self.out.fill_(float("nan"))
        self.table = torch.randn(3, 2 * channels + 5, generator=generator).to(device)
        self.groups, self.silu = groups, silu
        self.residual = more if residual else None
        self.step = None if step is None else torch.tensor([step], dtype=torch.int32, device=device)
        row = self.table[step or 0].double()
        self.wanted = group_norm_reference(
            self.x.double(),
            row[2 : 2 + channels],
            row[4 + channels : 4 + 2 * channels],
            groups=groups,
            eps=1e-5,
            silu=silu,
            residual=more.double() if residual else None,
        )
        self.tolerance = TOLERANCES[dtype]

    def run(self, tiles: NormTiles | None = None, **moments: Any) -> None:
        channels, height, width, images = self.x.shape
        rows = channels // self.groups * height * width
        if tiles is None:
            given = moments.get("moments")
            partials = 0 if given is None else given.shape[1] * given.shape[2] // self.groups
            tiles = choose_norm_tiles(
                channels, height * width, images, self.groups, partials=partials
            )
        needed = tiles.workspace(group_rows=rows, groups=self.groups, images=images)
        group_norm(
            self.x,
            self.out,
            self.table,
            gamma=2,
            beta=4 + channels,
            groups=self.groups,
            eps=1e-5,
            silu=self.silu,
            step=self.step,
            residual=self.residual,
            workspace=torch.full((needed,), float("nan"), device=self.x.device),
            tiles=tiles,
            **moments,
        )
        self.check()

    def check(self) -> None:
        scale = self.wanted.abs().clamp(min=1.0)
        error = ((self.out.double() - self.wanted).abs() / scale).max().item()
        assert error <= self.tolerance
        self.out.zero_()
        assert not self.storages[1].any()


SHAPES = [
    # channels, height, width, images, groups
    (8, 4, 4, 8, 4),
    (12, 5, 7, 24, 3),
    (6, 1, 1, 8, 2),
    (4, 3, 5, 16, 4),
    (64, 4, 4, 8, 8),
    (3, 28, 28, 8, 1),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_without_moments(triton_device: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    Case(triton_device, dtype, *shape, residual=True, step=2, halos=(1, 2, 0)).run()


@pytest.mark.parametrize(
    "tiles",
    [
        NormTiles(4, 8, 1, part=8),
        NormTiles(16, 16, 2, part=64, merge=True),
        NormTiles(64, 8, 2, part=64),
        NormTiles(256, 8, 4, whole=True),
        NormTiles(256, 16, 8, part=256, merge=True),
    ],
    ids=str,
)
def test_every_way_to_moments(triton_device: Any, dtype: Any, tiles: NormTiles) -> None:
    # 4 channels of 35 pixels a group: tiles that end inside a channel, and past the group.
    Case(triton_device, dtype, 8, 5, 7, 16, 2, halos=(0, 1, 2), silu=False).run(tiles)


@pytest.mark.parametrize("per_block", [1, 2, 4])
@pytest.mark.parametrize("tile_pixels", [3, 16, 64])
def test_with_moments(triton_device: Any, dtype: Any, per_block: int, tile_pixels: int) -> None:
    case = Case(triton_device, dtype, 8, 6, 8, 24, 2, halos=(1, 1, 1), step=1, residual=True)
    moments = moments_reference(case.x.double(), per_block, tile_pixels).float().contiguous()
    given = {"moments": moments, "channels_per_block": per_block, "tile_pixels": tile_pixels}
    case.run(**given)
    case.out.fill_(float("nan"))
    case.run(NormTiles(16, 8, 2, merge=True), **given)


def test_many_moments(triton_device: Any, dtype: Any) -> None:
    # More pairs than are merged at once.
    case = Case(triton_device, dtype, 4, 20, 28, 8, 1)
    moments = moments_reference(case.x.double(), 1, 4).float().contiguous()
    case.run(NormTiles(16, 8, 2), moments=moments, channels_per_block=1, tile_pixels=4)
    case.run(NormTiles(16, 8, 2, merge=True), moments=moments, channels_per_block=1, tile_pixels=4)


def test_far_from_zero_and_constant(triton_device: Any) -> None:
    # In float32, the sum of squares less the square of the sum would leave no digit of these.
    x = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0)) + 100
    x[2:] = -7.0
    for tiles in (NormTiles(128, 8, 4, whole=True), NormTiles(16, 8, 1, part=64)):
        case = Case(triton_device, torch.float32, 4, 8, 8, 8, 2, x=x)
        # an ulp of 100 is 8e-6; one of 7 / sqrt(eps), 2e-4
        case.tolerance = 3e-4
        case.run(tiles)


def test_in_place_and_channel_slices(triton_device: Any, dtype: Any) -> None:
    case = Case(triton_device, dtype, 24, 4, 6, 8, 4, silu=False)
    part = case.x[8:16]
    before = case.x.clone()
    wanted = group_norm_reference(
        part.double(),
        case.table[0, :8].double(),
        case.table[0, 8:16].double(),
        groups=2,
        eps=1e-3,
        silu=True,
        residual=part.double(),
    )
    arguments = {"gamma": 0, "beta": 8, "groups": 2, "eps": 1e-3, "silu": True, "residual": part}
    group_norm(part, part, case.table, **arguments)
    assert torch.allclose(part.double(), wanted, rtol=case.tolerance, atol=case.tolerance)
    part.copy_(before[8:16])
    assert torch.equal(case.x, before)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_large_negative_values_give_no_nan(triton_device: Any, dtype: Any) -> None:
    case = Case(triton_device, dtype, 2, 4, 4, 8, 1)
    case.table[:] = -200.0
    group_norm(case.x, case.out, case.table, gamma=0, beta=2, groups=1, eps=1e-5, silu=True)
    assert torch.isfinite(case.out).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "groups: expected a divisor"),
        ({"gamma": 15}, "table: expected 8 columns"),
        ({"step": torch.zeros(1)}, "step: expected one int32"),
        ({"out": torch.zeros(8, 2, 2, 16)}, "out: expected"),
        ({"x": torch.zeros(8, 2, 2, 6)}, "x: expected images innermost"),
        ({"tiles": NormTiles(16, 8)}, "tiles: expected a source of moments"),
        ({"tiles": NormTiles(16, 16, whole=True)}, "tiles: expected to fit"),
        ({"tiles": NormTiles(4, 8, part=8)}, "workspace: expected"),
        ({"moments": torch.zeros(2, 1, 8, 8)}, "channels_per_block, tile_pixels"),
        (
            {"moments": torch.zeros(2, 2, 8, 8), "channels_per_block": 1, "tile_pixels": 4},
            "moments: expected",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(8, 2, 2, 8),
        "out": torch.zeros(8, 2, 2, 8),
        "table": torch.zeros(1, 16),
        "gamma": 0,
        "beta": 8,
        "groups": 2,
        "eps": 1e-5,
        "silu": True,
    }
    with pytest.raises(ValueError, match=message):
        group_norm(**(arguments | change))


@pytest.mark.parametrize("images", [8, 24, 128, 256])
@pytest.mark.parametrize("partials", [0, 64])
@pytest.mark.parametrize(("channels", "pixels"), [(64, 1024), (128, 256), (256, 64), (512, 16)])
def test_chosen_tiles_fit(channels: int, pixels: int, images: int, partials: int) -> None:
    tiles = choose_norm_tiles(channels, pixels, images, 8, partials=partials)
    rows = channels // 8 * pixels
    assert images % tiles.images == 0
    assert 256 <= tiles.rows * tiles.images <= 64 * 32 * tiles.warps or tiles.rows == 1
    assert tiles.whole == (not partials and not tiles.part)
    assert not tiles.whole or tiles.rows >= rows
    assert not tiles.part or tiles.part % tiles.rows == 0
