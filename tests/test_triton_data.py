"""Moving values about, in the interpreter or on a GPU: exact, and the halo stays zero."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
torch = pytest.importorskip("torch")

from sparse_ddpm_kernels.triton import data
from sparse_ddpm_kernels.triton.data import MoveTiles, choose_move_tiles, choose_turn_tiles
from sparse_ddpm_kernels.triton.layout import Layout, padded_images

SHAPES = [
    (3, 4, 4, 1),
    (1, 5, 7, 3),
    (4, 1, 1, 7),
    (2, 3, 2, 16),
    (5, 2, 9, 20),
    (2, 28, 28, 2),
    (17, 3, 3, 8),
]
"""Channels, height, width, images."""

DTYPES = [torch.float32, torch.float16]
"""The interpreter moves and casts float16 rightly too."""


def filled(layout: Layout, dtype: Any, device: Any, seed: int = 0) -> Any:
    view = layout.view(layout.allocate(dtype, device))
    generator = torch.Generator().manual_seed(seed)
    view.copy_(torch.randn(tuple(view.shape), generator=generator))
    return view


class Poisoned:
    """A value of NaN to write to, in the middle channels of a larger buffer."""

    def __init__(
        self, channels: int, height: int, width: int, images: int, dtype: Any, device: Any
    ) -> None:
        self.layout = Layout(channels + 2, height, width, images, halo=1)
        self.storage = self.layout.allocate(dtype, device)
        self.whole = self.layout.view(self.storage)
        self.whole.fill_(torch.nan)
        self.view = self.whole[1:-1]

    def check(self, wanted: Any) -> None:
        """The view has ``wanted``, the channels beside it are NaN still, the halo is zero."""
        assert torch.equal(self.view, wanted)
        assert self.whole[0].isnan().all()
        assert self.whole[-1].isnan().all()
        self.whole.zero_()
        assert not self.storage.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_images_in_and_out(
    shape: tuple[int, int, int, int], dtype: Any, triton_device: Any
) -> None:
    channels, height, width, batch = shape
    images = padded_images(batch)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((batch, channels, height, width), generator=generator).to(triton_device)
    out = Poisoned(channels, height, width, images, dtype, triton_device)
    data.load_images(x, out.view)
    wanted = data.load_images_reference(x.double(), images).to(dtype)

    back = torch.full_like(x, torch.nan)
    data.store_images(out.view, back)
    assert torch.equal(back, x.to(dtype).float())
    assert torch.equal(back, data.store_images_reference(wanted, batch).float())
    out.check(wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_copies_and_sums(shape: tuple[int, int, int, int], dtype: Any, triton_device: Any) -> None:
    channels, height, width, batch = shape
    images = padded_images(batch)
    a = filled(Layout(channels, height, width, images), dtype, triton_device, 1)
    b = filled(Layout(channels, height, width, images, 3), dtype, triton_device, 2)
    out = Poisoned(channels, height, width, images, dtype, triton_device)
    data.copy(b, out.view)
    out.check(b)
    out = Poisoned(channels, height, width, images, dtype, triton_device)
    data.add(a, b, out.view)
    wanted = data.add_reference(a.double(), b.double()).to(dtype)
    out.check(wanted)
    data.add(a, b, a)
    assert torch.equal(a, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_space_to_depth_and_upsampling(
    shape: tuple[int, int, int, int], dtype: Any, triton_device: Any
) -> None:
    channels, height, width, batch = shape
    images = padded_images(batch)
    x = filled(Layout(channels, 2 * height, 2 * width, images, 1), dtype, triton_device)
    out = Poisoned(4 * channels, height, width, images, dtype, triton_device)
    data.space_to_depth(x, out.view)
    out.check(data.space_to_depth_reference(x))

    x = filled(Layout(channels, height, width, images, 1), dtype, triton_device)
    out = Poisoned(channels, 2 * height, 2 * width, images, dtype, triton_device)
    data.upsample2x(x, out.view)
    out.check(data.upsample2x_reference(x))


@pytest.mark.parametrize("tiles", [MoveTiles(1, 2, 8, 1), MoveTiles(8, 8, 16, 2)])
def test_any_tiles(tiles: MoveTiles, triton_device: Any) -> None:
    x = filled(Layout(3, 3, 5, 16, 1), torch.float32, triton_device)
    out = Poisoned(3, 3, 5, 16, torch.float32, triton_device)
    data.copy(x, out.view, tiles=tiles)
    out.check(x)
    images = torch.full((13, 3, 3, 5), torch.nan, device=triton_device)
    data.store_images(x, images, tiles=tiles)
    assert torch.equal(images, data.store_images_reference(x, 13))


@pytest.mark.parametrize("images", [8, 24, 256])
@pytest.mark.parametrize(("channels", "pixels"), [(3, 1024), (512, 16), (1, 1), (128, 784)])
def test_tiles(channels: int, pixels: int, images: int) -> None:
    tiles = choose_move_tiles(channels, pixels, images)
    assert images % tiles.nb == 0
    assert tiles.channels * tiles.pixels * tiles.nb <= 2048
    turn = choose_turn_tiles(channels * pixels, images)
    assert turn.pixels * turn.nb <= 2048


def test_errors(triton_device: Any) -> None:
    x = filled(Layout(3, 4, 4, 8), torch.float32, triton_device)
    with pytest.raises(ValueError, match=r"out: expected \(12, 2, 2, 8\)"):
        data.space_to_depth(x, x)
    with pytest.raises(ValueError, match=r"out: expected \(3, 8, 8, 8\)"):
        data.upsample2x(x, x)
    with pytest.raises(ValueError, match="images: expected 1 to 8, got 9"):
        data.load_images(torch.zeros((9, 3, 4, 4), device=triton_device), x)
    with pytest.raises(ValueError, match="images: expected contiguous float32"):
        data.store_images(x, torch.zeros((8, 3, 4, 5), device=triton_device))
    with pytest.raises(ValueError, match="b: expected"):
        data.add(x, x[:2], x)
    with pytest.raises(ValueError, match="x: expected images innermost"):
        data.copy(x.transpose(1, 2), x)
    with pytest.raises(ValueError, match="tiles: expected a divisor of 8 images, got 16"):
        data.copy(x, x, tiles=MoveTiles(1, 1, 16, 1))
