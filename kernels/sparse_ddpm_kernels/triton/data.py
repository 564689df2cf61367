"""Moving values about: images in and out, space to depth, upsampling, sums, copies.

Views are those of layout.py, ``[C, H, W, N]``; only pixels of ``out`` are written, so that its halo
stays zero. Nothing is allocated or waited for. ValueError for shapes that do not fit together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparse_ddpm_kernels.triton.layout import IMAGES
from sparse_ddpm_kernels.triton.norm import check_floats, check_view

COPY, UPSAMPLE, TO_DEPTH = 0, 1, 2

WARP = 32

TURN_SIZES = ("batch", "pixels", "width", "images8", "plane8", "row8")
"""Of which no value is compiled for by itself."""


@dataclass(frozen=True, slots=True)
class MoveTiles:
    """A program moves ``pixels`` pixels of ``nb`` images of ``channels``. Powers of two."""

    channels: int
    pixels: int
    nb: int
    warps: int

    def __post_init__(self) -> None:
        powers = self.channels, self.pixels, self.nb, self.warps
        if any(n < 1 or n & (n - 1) for n in powers) or self.nb < IMAGES:
            raise ValueError(
                f"tiles: expected powers of two and at least {IMAGES} images, got {self}."
            )


def choose_move_tiles(
    channels: int, pixels: int, images: int, *, multiprocessors: int = 132
) -> MoveTiles:
    """For an output of ``channels`` of ``pixels`` pixels of padded ``images``.

    Two vectors a thread where that leaves two programs a multiprocessor, else less.
    """
    nb = min(math.gcd(images, 1 << 20), 64)
    total = channels * pixels * images
    size = 2048
    while size > 256 and size * 2 * multiprocessors > total:
        size //= 2
    across = min(_power(pixels), max(size // nb, 1))
    deep = min(_power(channels), max(size // (nb * across), 1))
    vectors = deep * across * nb // (IMAGES * WARP)
    return MoveTiles(deep, across, nb, max(1, min(vectors, 4)))


def choose_turn_tiles(elements: int, images: int) -> MoveTiles:
    """For `load_images` and `store_images`: ``elements`` of an image, ``images`` padded."""
    return MoveTiles(1, min(64, _power(elements)), min(_power(images), 32), 4)


def load_images(x: torch.Tensor, out: torch.Tensor, *, tiles: MoveTiles | None = None) -> None:
    """Images into a view, rounded to its dtype, zeros for the padding.

    ``x``: float32 ``[N0, C, H, W]``, contiguous; ``out``: ``[C, H, W, N]``, N >= N0.
    """
    _turn(_load, x, out, tiles)


def store_images(x: torch.Tensor, out: torch.Tensor, *, tiles: MoveTiles | None = None) -> None:
    """A view into images: the inverse of `load_images`, without the padding.

    ``x``: ``[C, H, W, N]``; ``out``: float32 ``[N0, C, H, W]``, contiguous, N0 <= N.
    """
    _turn(_store, out, x, tiles)


def space_to_depth(x: torch.Tensor, out: torch.Tensor, *, tiles: MoveTiles | None = None) -> None:
    """``out[(c * 2 + i) * 2 + j, h, w] = x[c, 2h + i, 2w + j]``.

    ``x``: ``[C, 2H, 2W, N]``; ``out``: ``[4C, H, W, N]`` of the same dtype.
    """
    channels, height, width, images = x.shape
    _check_shape(out, (4 * channels, height // 2, width // 2, images), x)
    _move(x, None, out, TO_DEPTH, tiles)


def upsample2x(x: torch.Tensor, out: torch.Tensor, *, tiles: MoveTiles | None = None) -> None:
    """``out[c, h, w] = x[c, h // 2, w // 2]``.

    ``x``: ``[C, H, W, N]``; ``out``: ``[C, 2H, 2W, N]`` of the same dtype.
    """
    channels, height, width, images = x.shape
    _check_shape(out, (channels, 2 * height, 2 * width, images), x)
    _move(x, None, out, UPSAMPLE, tiles)


def add(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, tiles: MoveTiles | None = None
) -> None:
    """``out = a + b``, summed in float32: views of one shape and dtype; out may be a or b."""
    _check_shape(out, tuple(a.shape), a)
    check_view("b", b, like=a)
    _move(a, b, out, COPY, tiles)


def copy(x: torch.Tensor, out: torch.Tensor, *, tiles: MoveTiles | None = None) -> None:
    """``out = x``: views of one shape and dtype."""
    _check_shape(out, tuple(x.shape), x)
    _move(x, None, out, COPY, tiles)


def load_images_reference(x: torch.Tensor, images: int) -> torch.Tensor:
    """What `load_images` should write, before it is rounded."""
    padding = torch.zeros((images - len(x), *x.shape[1:]), dtype=x.dtype, device=x.device)
    return torch.cat([x, padding]).permute(1, 2, 3, 0)


def store_images_reference(x: torch.Tensor, batch: int) -> torch.Tensor:
    return x.permute(3, 0, 1, 2)[:batch]


def space_to_depth_reference(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pixel_unshuffle(x.permute(3, 0, 1, 2), 2).permute(1, 2, 3, 0)


def upsample2x_reference(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


def add_reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b


@triton.jit(
    do_not_specialize=(
        "channels",
        "pixels",
        "width",
        "images8",
        "x_plane8",
        "x_row8",
        "other_plane8",
        "other_row8",
        "out_plane8",
        "out_row8",
    )
)
def _move_pixels(
    x,
    other,
    out,
    channels,
    pixels,
    width,
    images8,
    x_plane8,
    x_row8,
    other_plane8,
    other_row8,
    out_plane8,
    out_row8,
    MODE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
):
    blocks = images8 // (NB // 8)
    m = tl.arange(0, PIXELS * NB)
    pixel = tl.program_id(0) // blocks * PIXELS + m // NB
    line = pixel // width
    column = pixel % width
    image8 = tl.program_id(0) % blocks * (NB // 8)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (channel < channels)[:, None] & (pixel < pixels)[None, :]

    if MODE == 1:
        at = line // 2 * x_row8 + column // 2 * images8
        plane = channel * x_plane8
    elif MODE == 2:
        at = line * 2 * x_row8 + column * 2 * images8
        plane = channel // 4 * x_plane8 + channel // 2 % 2 * x_row8 + channel % 2 * images8
    else:
        at = line * x_row8 + column * images8
        plane = channel * x_plane8
    at = tl.max_contiguous(tl.multiple_of((at + image8) * 8 + m % NB, 8), 8)
    value = tl.load(x + (plane * 8)[:, None] + at[None, :], mask=mask)
    if other is not None:
        at = (line * other_row8 + column * images8 + image8) * 8 + m % NB
        at = tl.max_contiguous(tl.multiple_of(at, 8), 8)
        second = tl.load(other + (channel * other_plane8 * 8)[:, None] + at[None, :], mask=mask)
        value = value.to(tl.float32) + second.to(tl.float32)
    at = (line * out_row8 + column * images8 + image8) * 8 + m % NB
    at = tl.max_contiguous(tl.multiple_of(at, 8), 8)
    value = value.to(out.dtype.element_ty)
    tl.store(out + (channel * out_plane8 * 8)[:, None] + at[None, :], value, mask=mask)


def _move(
    x: torch.Tensor,
    other: torch.Tensor | None,
    out: torch.Tensor,
    mode: int,
    tiles: MoveTiles | None,
) -> None:
    channels, height, width, images = out.shape
    tiles = tiles or choose_move_tiles(channels, height * width, images)
    if images % tiles.nb:
        raise ValueError(f"tiles: expected a divisor of {images} images, got {tiles.nb}.")
    second = x if other is None else other
    grid = (
        -(-height * width // tiles.pixels) * (images // tiles.nb),
        -(-channels // tiles.channels),
    )
    _move_pixels[grid](
        x,
        other,
        out,
        channels,
        height * width,
        width,
        images // IMAGES,
        x.stride(0) // IMAGES,
        x.stride(1) // IMAGES,
        second.stride(0) // IMAGES,
        second.stride(1) // IMAGES,
        out.stride(0) // IMAGES,
        out.stride(1) // IMAGES,
        MODE=mode,
        CHANNELS=tiles.channels,
        PIXELS=tiles.pixels,
        NB=tiles.nb,
        num_warps=tiles.warps,
        enable_fp_fusion=True,
    )


@triton.jit
def _corners(
    x,
    view,
    batch,
    elements,
    pixels,
    width,
    images8,
    plane8,
    row8,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
):
    """Where a tile [NB images, PIXELS elements of an image] lies in x and in view."""
    element = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    image = tl.program_id(1) * NB + tl.arange(0, NB)
    pixel = element % pixels
    at = element // pixels * plane8 + pixel // width * row8 + pixel % width * images8
    inside = (element < elements)[None, :]
    mask = inside & (image < batch)[:, None]
    view += (at * 8)[None, :] + image[:, None]
    return x + image[:, None] * elements + element[None, :], mask, view, inside, image


@triton.jit(do_not_specialize=TURN_SIZES)
def _load(
    x, view, batch, elements, pixels, width, images8, plane8, row8,
    PIXELS: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    source, mask, target, inside, image = _corners(
        x, view, batch, elements, pixels, width, images8, plane8, row8, PIXELS, NB
    )
    value = tl.load(source, mask=mask, other=0.0).to(view.dtype.element_ty)
    tl.store(target, value, mask=inside & (image < images8 * 8)[:, None])


@triton.jit(do_not_specialize=TURN_SIZES)
def _store(
    x, view, batch, elements, pixels, width, images8, plane8, row8,
    PIXELS: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    target, mask, source, inside, image = _corners(
        x, view, batch, elements, pixels, width, images8, plane8, row8, PIXELS, NB
    )
    value = tl.load(source, mask=inside & (image < images8 * 8)[:, None], other=0.0)
    tl.store(target, value.to(tl.float32), mask=mask)


def _turn(
    kernel: triton.JITFunction, x: torch.Tensor, view: torch.Tensor, tiles: MoveTiles | None
) -> None:
    channels, height, width, images = check_view("view", view)
    batch = x.shape[0]
    check_floats("images", x, (batch, channels, height, width))
    if not 1 <= batch <= images:
        raise ValueError(f"images: expected 1 to {images}, got {batch}.")
    elements = channels * height * width
    tiles = tiles or choose_turn_tiles(elements, images)
    kernel[-(-elements // tiles.pixels), -(-images // tiles.nb)](
        x,
        view,
        batch,
        elements,
        height * width,
        width,
        images // IMAGES,
        view.stride(0) // IMAGES,
        view.stride(1) // IMAGES,
        PIXELS=tiles.pixels,
        NB=tiles.nb,
        num_warps=tiles.warps,
        enable_fp_fusion=True,
    )


def _check_shape(out: torch.Tensor, shape: tuple[int, ...], x: torch.Tensor) -> None:
    check_view("x", x)
    check_view("out", out)
    if tuple(out.shape) != shape or out.dtype != x.dtype:
        wanted = f"{shape} of {x.dtype}"
        raise ValueError(f"out: expected {wanted}, got {tuple(out.shape)} of {out.dtype}.")


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()
