"""The panel convolution's tiles: which are offered, which is chosen, and what is refused."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from sparse_ddpm_kernels.triton.panel_tiles import (
    SHARED,
    PanelTiles,
    block_channels,
    candidate_panel_tiles,
    choose_panel_tiles,
    norm_fits,
)


def test_tiles_refuse() -> None:
    for bad in ({"pixels": 3}, {"nb": 4}, {"pixels": 4}, {"splits": 0}, {"stages": 0}):
        with pytest.raises(ValueError, match="tiles: expected"):
            PanelTiles(**{"pixels": 16, "nb": 8, "block_k": 16, **bad})


SHAPES = [(64, 1024), (128, 256), (256, 64), (512, 16), (3, 784), (40, 35), (512, 1)]


@pytest.mark.parametrize(("cout", "pixels"), SHAPES)
@pytest.mark.parametrize("images", [8, 16, 24, 256])
@pytest.mark.parametrize("group", [16, 128])
def test_every_candidate_can_run(cout: int, pixels: int, images: int, group: int) -> None:
    panels = -(-cout // group)
    for density in (0.0, 0.01, 1.0):
        entries = int(panels * cout * 9 * density)
        found = candidate_panel_tiles(cout, pixels, images, entries, group)
        assert found[0] == choose_panel_tiles(cout, pixels, images, entries, group)
        assert len(set(found)) == len(found)
        for tiles in found:
            assert images % tiles.nb == 0
            assert tiles.shared_bytes(group) <= SHARED
            assert tiles.block * group <= 128 * 32 * tiles.warps
        if norm_fits(pixels, group, 8):
            chosen = choose_panel_tiles(cout, pixels, images, entries, group, norm=True)
            assert chosen.pixels >= pixels


def test_the_first_candidates_differ() -> None:
    found = candidate_panel_tiles(64, 1024, 256, 4 * 58, 16, limit=4)
    assert len({(tiles.block, tiles.block_k, tiles.splits) for tiles in found}) == 4


def test_choice_follows_the_work() -> None:
    """Few programs split K; few entries take short K-steps; much work takes large tiles."""
    small = choose_panel_tiles(512, 16, 8, 32 * 4608, 16)
    assert small.splits > 1
    assert choose_panel_tiles(64, 1024, 256, 4 * 6, 16).block_k == 16
    large = choose_panel_tiles(64, 1024, 256, 576, 64)
    assert large.splits == 1
    assert large.block >= 128


def test_blocks_of_moments_are_whole() -> None:
    assert block_channels(16, 8) == 8
    assert block_channels(16, 64) == 16
    assert block_channels(16, 24) == 8
    assert block_channels(64, 12) == 4


def test_norm_fits_small_images_only() -> None:
    assert norm_fits(16, 64, 64)
    assert norm_fits(64, 32, 32)
    assert norm_fits(256, 16, 16)
    assert not norm_fits(1024, 16, 8)
    assert not norm_fits(16, 16, 32)
    assert not norm_fits(16, 16, 12)
