"""The element convolution against a dense float64 convolution, in the interpreter or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed")
torch = pytest.importorskip("torch")

from sparse_ddpm_kernels.triton.element_conv import element_conv, element_conv_reference
from sparse_ddpm_kernels.triton.element_pack import PackedSlices, pack_slices
from sparse_ddpm_kernels.triton.element_tiles import (
    ElementTiles,
    candidate_element_tiles,
    choose_element_tiles,
)
from sparse_ddpm_kernels.triton.layout import Layout, padded_images

from sparse_ddpm.engine.panels import make_panels
from sparse_ddpm.formats import CSR

ACCURACY = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Of the largest output: float16 rounds once to 11 bits, and up to eight times on the way."""


def pack(
    weight: Any, x: Layout, tiles: ElementTiles, stride: int = 1, scale: int = 1
) -> PackedSlices:
    panels = make_panels(CSR.from_dense(weight.reshape(len(weight), -1)), 1)
    return pack_slices(
        panels.ptr,
        panels.columns,
        panels.values,
        panels.rows,
        x=x,
        size=weight.shape[2],
        slice_rows=tiles.slice_rows,
        split=tiles.split,
        stride=stride,
        scale=scale,
    )


def sparse(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> Any:
    return rng.standard_normal(shape, dtype=np.float32) * (rng.random(shape) < density)


def filled(rng: np.random.Generator, layout: Layout, dtype: Any, device: Any) -> Any:
    """A view of random pixels and the storage around it, zero."""
    storage = layout.allocate(dtype, device)
    view = layout.view(storage)
    numbers = rng.standard_normal(tuple(view.shape), dtype=np.float32)
    view.copy_(torch.from_numpy(numbers).to(device, dtype))
    return view


def poisoned(layout: Layout, dtype: Any, device: Any) -> tuple[Any, Any]:
    """Storage whose pixels are NaN, and their view."""
    storage = layout.allocate(dtype, device)
    layout.view(storage).fill_(torch.nan)
    return storage, layout.view(storage)


def halo_is_zero(storage: Any, layout: Layout) -> bool:
    rest = storage.clone()
    layout.view(rest).zero_()
    return not rest.any()


def dense(x: Any, weight: Any, bias: Any, residual: Any, stride: int = 1, scale: int = 1) -> Any:
    """In float64, ``[Cout, H, W, N]``; x is first taken apart, or upsampled."""
    images = x.double().permute(3, 0, 1, 2)
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    if stride == 2:
        images = torch.nn.functional.pixel_unshuffle(images, 2)
    kernel = torch.from_numpy(weight).to(x.device, x.dtype).double()
    out = torch.nn.functional.conv2d(images, kernel, padding=weight.shape[2] // 2)
    out = out.permute(1, 2, 3, 0)
    if bias is not None:
        out = out + bias.double()[:, None, None, None]
    return out if residual is None else out + residual.double()


def check(
    weight: Any,
    size: tuple[int, int],
    batch: int,
    tiles: ElementTiles,
    device: Any,
    dtype: Any,
    *,
    halo: int | None = None,
    with_bias: bool = True,
    with_residual: bool = True,
    stride: int = 1,
    scale: int = 1,
    packed_half: bool = True,
    accuracy: float | None = None,
) -> None:
    rng = np.random.default_rng(0)
    cout, cin, side, _ = weight.shape
    images = padded_images(batch)
    reach = stride * -(-(side // 2) // scale)
    height, width = size
    like = Layout(
        cin // stride**2,
        height * stride // scale,
        width * stride // scale,
        images,
        reach if halo is None else halo,
    )
    place = Layout(cout, height, width, images, halo=1)
    x = filled(rng, like, dtype, device)
    bias = None
    if with_bias:
        bias = torch.from_numpy(rng.standard_normal(cout, dtype=np.float32)).to(device)
    residual = filled(rng, Layout(cout, height, width, images, 2), dtype, device)
    residual = residual if with_residual else None
    packed = pack(weight, like, tiles, stride, scale)
    weights = packed.to(device, dtype)
    storage, out = poisoned(place, dtype, device)
    element_conv(
        x, weights, out, bias=bias, residual=residual, tiles=tiles, packed_half=packed_half
    )
    wanted = dense(x, weight, bias, residual, stride, scale)
    again = element_conv_reference(x, weights, bias=bias, residual=residual)
    bound = float(wanted.abs().max())
    # Taps that meet are rounded once more.
    assert float((again - wanted).abs().max()) <= (1e-9 if scale == 1 else ACCURACY[dtype]) * bound
    error = float((out.double() - wanted).abs().max())
    assert error <= (accuracy or ACCURACY[dtype]) * bound
    assert halo_is_zero(storage, place)


SMALL = ElementTiles(2, 2, 8, 4, warps=1)


@pytest.mark.parametrize("side", [1, 3, 5, 7])
def test_filters(side: int, triton_device: Any, triton_dtypes: Any) -> None:
    rng = np.random.default_rng(1)
    weight = sparse(rng, (5, 3, side, side), 0.4)
    for dtype in triton_dtypes:
        check(weight, (5, 7), 3, SMALL, triton_device, dtype)


def unlike_rows(cout: int, cin: int) -> Any:
    """Rows of no weight, full rows, rows of 1 to 20 weights."""
    rng = np.random.default_rng(2)
    weight = np.zeros((cout, cin * 9), np.float32)
    for row in range(cout):
        count = (0, cin * 9, *range(1, 21))[row % 22]
        columns = rng.choice(cin * 9, min(count, cin * 9), replace=False)
        weight[row, columns] = rng.standard_normal(len(columns))
    return weight.reshape(cout, cin, 3, 3)


@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_rows_of_any_length(split: int, parts: int, triton_device: Any, triton_dtypes: Any) -> None:
    tiles = ElementTiles(4, 4, 8, 8, split=split, parts=parts, warps=4)
    for dtype in triton_dtypes:
        check(unlike_rows(25, 4), (4, 4), 1, tiles, triton_device, dtype)


@pytest.mark.parametrize("kind", ["no weight", "one tap", "one weight", "full"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_degenerate(
    kind: str, with_bias: bool, with_residual: bool, triton_device: Any, triton_dtypes: Any
) -> None:
    rng = np.random.default_rng(3)
    weight = sparse(rng, (3, 4, 3, 3), 1.0)
    if kind == "no weight":
        weight[:] = 0
    if kind == "one tap":
        weight[:, :, np.arange(3) != 2] = 0
        weight[:, :, :, np.arange(3) != 0] = 0
    if kind == "one weight":
        weight.reshape(-1)[1:] = 0
    for dtype in triton_dtypes:
        check(
            weight, (4, 4), 1, SMALL, triton_device, dtype,
            with_bias=with_bias, with_residual=with_residual,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("cout", "cin", "size", "batch"),
    [
        (3, 9, (4, 4), 1),
        (9, 3, (8, 8), 7),
        (1, 1, (1, 1), 3),
        (2, 16, (3, 9), 16),
        (6, 4, (6, 6), 24),
        (4, 2, (56, 56), 1),
    ],
)
def test_shapes(
    cout: int, cin: int, size: tuple[int, int], batch: int, triton_device: Any, triton_dtypes: Any
) -> None:
    rng = np.random.default_rng(4)
    weight = sparse(rng, (cout, cin, 3, 3), 0.2)
    entries = int(np.count_nonzero(weight))
    tiles = choose_element_tiles(cout, *size, padded_images(batch), entries, cin=cin)
    for dtype in triton_dtypes:
        check(weight, size, batch, tiles, triton_device, dtype)


def test_wide_halo(triton_device: Any, triton_dtypes: Any) -> None:
    weight = sparse(np.random.default_rng(5), (4, 3, 3, 3), 0.5)
    for dtype in triton_dtypes:
        check(weight, (4, 5), 8, SMALL, triton_device, dtype, halo=3)


@pytest.mark.parametrize("side", [1, 3])
def test_space_to_depth_is_read_in_place(side: int, triton_device: Any, triton_dtypes: Any) -> None:
    weight = sparse(np.random.default_rng(6), (5, 8, side, side), 0.4)
    for dtype in triton_dtypes:
        check(weight, (3, 4), 8, SMALL, triton_device, dtype, stride=2)


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_upsampled_input_is_read_in_place(
    side: int, density: float, triton_device: Any, triton_dtypes: Any
) -> None:
    weight = sparse(np.random.default_rng(6), (3, 4, side, side), density)
    for dtype in triton_dtypes:
        check(weight, (6, 10), 3, SMALL, triton_device, dtype, scale=2)


def test_taps_that_meet_become_one_weight() -> None:
    weight = np.ones((2, 3, 3, 3), np.float32)
    packed = pack(weight, Layout(3, 4, 4, 8, 1), SMALL, scale=2)
    assert packed.entries == 2 * 4 * 3 * 4
    assert packed.value.sum() == 4 * weight.sum()
    assert sorted(packed.rows.tolist()) == list(range(8))


def test_float16_sums(triton_device: Any) -> None:
    """Short words and packed sums, which the interpreter does in numpy's float16."""
    weight = unlike_rows(22, 6)
    tiles = ElementTiles(2, 4, 8, 8, split=2, warps=4)
    for packed_half, accuracy in ((True, 3e-3), (False, 6e-4)):
        check(
            weight, (4, 4), 1, tiles, triton_device, torch.float16,
            packed_half=packed_half, accuracy=accuracy,
        )  # fmt: skip


def test_bfloat16_words(triton_device: Any) -> None:
    """The kernel takes bfloat16 apart as integers, which the interpreter gets right too."""
    like, tiles = Layout(3, 4, 4, 8, 1), SMALL
    rng = np.random.default_rng(7)
    weight = sparse(rng, (4, 3, 3, 3), 0.5)
    x = filled(rng, like, torch.bfloat16, triton_device)
    weights = pack(weight, like, tiles).to(triton_device, torch.bfloat16)
    assert weights.short
    _, out = poisoned(Layout(4, 4, 4, 8), torch.bfloat16, triton_device)
    element_conv(x, weights, out, tiles=tiles)
    wanted = dense(x, weight, None, None)
    assert float((out.double() - wanted).abs().max()) <= 6e-3 * float(wanted.abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_far_offsets_take_32_bits(dtype: Any, triton_device: Any) -> None:
    like = Layout(64, 33, 33, 8, 1)
    weight = np.zeros((2, 64, 3, 3), np.float32)
    weight[0, 63, 2, 2] = weight[1, 0, 0, 0] = 1.5
    tiles = ElementTiles(8, 8, 8, 2, warps=4)
    packed = pack(weight, like, tiles)
    assert packed.offset.dtype == np.int32
    assert not packed.to("cpu", dtype).short
    check(weight, (33, 33), 1, tiles, triton_device, dtype, with_residual=False)


def test_parts_of_a_concatenation(triton_device: Any, triton_dtypes: Any) -> None:
    """x may be channels of a larger buffer, out others, residual out itself."""
    whole = Layout(7, 4, 4, 8, 1)
    part = Layout(3, 4, 4, 8, 1)
    rng = np.random.default_rng(8)
    weight = sparse(rng, (4, 3, 3, 3), 0.5)
    for dtype in triton_dtypes:
        buffer = filled(rng, whole, dtype, triton_device)
        before = buffer.clone()
        weights = pack(weight, part, SMALL).to(triton_device, dtype)
        element_conv(buffer[4:], weights, buffer[:4], residual=buffer[:4], tiles=SMALL)
        wanted = dense(before[4:], weight, None, before[:4])
        assert torch.equal(buffer[4:], before[4:])
        error = float((buffer[:4].double() - wanted).abs().max())
        assert error <= ACCURACY[dtype] * float(wanted.abs().max())


def test_packing_pads_little() -> None:
    rng = np.random.default_rng(9)
    weight = sparse(rng, (64, 64, 3, 3), 0.05)
    packed = pack(weight, Layout(64, 16, 16, 8, 1), ElementTiles(4, 8, 8))
    assert packed.offset.dtype == np.uint16
    assert packed.entries == np.count_nonzero(weight) == np.count_nonzero(packed.value)
    assert packed.entries <= packed.value.size <= 1.2 * packed.entries
    assert sorted(packed.rows.tolist()) == list(range(64))
    assert (np.diff(np.diff(packed.start)) <= 0).all()


def test_errors(triton_device: Any) -> None:
    like = Layout(3, 4, 4, 8, 1)
    weight = sparse(np.random.default_rng(10), (4, 3, 3, 3), 0.5)
    x = like.view(like.allocate(torch.float32, triton_device))
    place = Layout(4, 4, 4, 8)
    out = place.view(place.allocate(torch.float32, triton_device))
    weights = pack(weight, like, SMALL).to(triton_device, torch.float32)
    with pytest.raises(ValueError, match="out: expected 4 channels, got 3"):
        element_conv(x, weights, x, tiles=SMALL)
    with pytest.raises(ValueError, match="x: expected"):
        element_conv(out[:3], weights, out, tiles=SMALL)
    with pytest.raises(ValueError, match="weights: expected slices packed for"):
        element_conv(x, weights, out, tiles=ElementTiles(2, 2, 8, 8))
    with pytest.raises(ValueError, match="tiles: expected a divisor of 8 images, got 16"):
        element_conv(x, weights, out, tiles=ElementTiles(2, 2, 16, 4))
    with pytest.raises(ValueError, match="bias: expected"):
        element_conv(x, weights, out, tiles=SMALL, bias=torch.zeros(3, device=triton_device))
    with pytest.raises(ValueError, match="halo: expected at least 1, got 0"):
        pack(weight, Layout(3, 4, 4, 8), SMALL)
    with pytest.raises(ValueError, match="tiles: expected powers of two"):
        ElementTiles(3, 2, 8)


@pytest.mark.parametrize("images", [8, 16, 24, 64, 256])
@pytest.mark.parametrize(
    ("cout", "cin", "side", "entries"),
    [(64, 64, 32, 1844), (512, 512, 4, 118_000), (3, 64, 32, 50), (1, 1, 28, 9), (8, 8, 5, 0)],
)
def test_tiles(cout: int, cin: int, side: int, entries: int, images: int) -> None:
    shape = cout, side, side, images, entries
    some = candidate_element_tiles(*shape, cin=cin)
    assert choose_element_tiles(*shape, cin=cin) == some[0]
    assert len(set(some)) == len(some) >= 4
    assert candidate_element_tiles(*shape, cin=cin, limit=3) == some[:3]
    for tiles in some:
        assert images % tiles.nb == 0
        assert tiles.parts <= -(-cout // tiles.slice_rows)
        assert tiles.warps <= 16
        assert tiles.warps * 32 * tiles.registers <= 65536
        down, across = tiles.pixel_tiles(side, side)
        assert down * tiles.lines >= side
        assert across * tiles.columns >= side
