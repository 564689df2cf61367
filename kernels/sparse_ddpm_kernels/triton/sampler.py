"""A sampler's step on the device: the new state, its noise, and the step counter.

Noise is a pure function of (seed, image, step), noise.py. The update is float32 without fused
multiply-adds, in the order of `sparse_ddpm.sampling.loop`: of the same network output and noise it
has the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from sparse_ddpm_kernels.triton.noise import normal
from sparse_ddpm_kernels.triton.norm import check_floats

COLUMNS = 7
"""p, q, r, s, w, u, v of a row of the table."""

SIZES = ("batch", "pixels", "width")
"""Of which no value is compiled for by itself."""

FINE = 2**31 - 1
"""Of ``bad_step``: no output was infinite or NaN so far."""


@dataclass(frozen=True, slots=True)
class SamplerTiles:
    """A program updates ``blocks`` times four elements of ``images``. Powers of two."""

    images: int
    blocks: int
    warps: int = 4

    def __post_init__(self) -> None:
        if any(n < 1 or n & (n - 1) for n in (self.images, self.blocks, self.warps)):
            raise ValueError(f"tiles: expected powers of two, got {self}.")


def choose_sampler_tiles(batch: int, elements: int) -> SamplerTiles:
    """For ``batch`` images of ``elements``: a Philox block a thread, runs of images of the view."""
    images = min(_power(batch), 8)
    return SamplerTiles(images, max(min(128 // images, _power(-(-elements // 4))), 1))


def seed_bits(seed: int) -> int:
    """``seed``, 0 to 2**64 - 1, as the int64 that has its bits: what to write to the device."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected 0 to 2**64 - 1, got {seed}.")
    return seed - 2**64 if seed >= 2**63 else seed


def initial_noise(
    out: torch.Tensor,
    seed: torch.Tensor,
    images: torch.Tensor,
    *,
    following: torch.Tensor | None = None,
    tiles: SamplerTiles | None = None,
) -> None:
    """Fill ``out``, float32 ``[N0, C, H, W]`` contiguous, with the noise of step 0.

    ``seed``: int64 ``[1]``, of all images, or ``[N0]``, one each: the bits of `seed_bits`;
    ``images``: int64 ``[N0]``, each image's index; ``following``: as for `sampler_update`. All on
    one device. Allocates nothing, does not wait. ValueError for arguments that do not fit together.
    """
    batch, elements = _check(out, seed, images)
    tiles = tiles or choose_sampler_tiles(batch, elements)
    grid = (-(-elements // (4 * tiles.blocks)), -(-batch // tiles.images))
    _initial_noise[grid](
        out,
        *_view("following", following, out),
        seed,
        images,
        batch,
        elements,
        out.shape[2] * out.shape[3],
        out.shape[3],
        OWN_SEEDS=len(seed) > 1,
        IMAGES=tiles.images,
        BLOCKS=tiles.blocks,
        num_warps=tiles.warps,
        enable_fp_fusion=False,
    )


def sampler_update(
    x: torch.Tensor,
    n: torch.Tensor,
    previous: torch.Tensor | None,
    coefficients: torch.Tensor,
    step: torch.Tensor,
    *,
    seed: torch.Tensor,
    images: torch.Tensor,
    clip: bool,
    following: torch.Tensor | None = None,
    bad_step: torch.Tensor | None = None,
    tiles: SamplerTiles | None = None,
) -> None:
    """One step, with row ``step`` of the table, in place.

    ::

        x0 = clamp(p x + q n)    x = r x0 + s x + w n + u z + v previous    previous = x0

    ``x``: the state, float32 ``[N0, C, H, W]`` contiguous; ``previous``: the same, the x0 of the
    step before, never read where v is 0; None if no row of the table has a v. ``n``: the network's
    output ``[N, C, H, W]``, N >= N0, any float dtype and strides, as of a view of layout.py
    permuted (3, 0, 1, 2). ``coefficients``: float32 ``[S, 7]`` contiguous, columns p, q, r, s, w,
    u, v; ``step``: int32 ``[1]``, read but not changed, see `advance`. z is the noise of step + 1,
    made where u is not 0; ``seed`` and ``images`` as for `initial_noise`. ``clip``: whether x0 is
    clamped to [-1, 1].

    ``following``: like n, gets the new state too: the network's next input. ``bad_step``: int32
    ``[1]``, `FINE` at first, gets the least step in which n was infinite or NaN.
    Allocates nothing, does not wait. ValueError for arguments that do not fit together.
    """
    batch, elements = _check(x, seed, images)
    if previous is not None:
        check_floats("previous", previous, tuple(x.shape))
    check_floats("coefficients", coefficients, (len(coefficients), COLUMNS))
    for name, counter in (("step", step), ("bad_step", bad_step)):
        if counter is not None and (counter.dtype != torch.int32 or counter.numel() != 1):
            raise ValueError(
                f"{name}: expected one int32, got {counter.numel()} of {counter.dtype}."
            )
    tiles = tiles or choose_sampler_tiles(batch, elements)
    grid = (-(-elements // (4 * tiles.blocks)), -(-batch // tiles.images))
    _sampler_update[grid](
        x,
        *_view("n", n, x),
        previous,
        *_view("following", following, x),
        coefficients,
        step,
        bad_step,
        seed,
        images,
        batch,
        elements,
        x.shape[2] * x.shape[3],
        x.shape[3],
        CLIP=clip,
        OWN_SEEDS=len(seed) > 1,
        IMAGES=tiles.images,
        BLOCKS=tiles.blocks,
        num_warps=tiles.warps,
        enable_fp_fusion=False,
    )


def advance(step: torch.Tensor) -> None:
    """``step += 1`` on the device: int32 ``[1]``. After everything that reads the step's row."""
    if step.dtype != torch.int32 or step.numel() != 1:
        raise ValueError(f"step: expected one int32, got {step.numel()} of {step.dtype}.")
    _advance[(1,)](step, num_warps=1, enable_fp_fusion=False)


def sampler_update_reference(
    x: torch.Tensor,
    n: torch.Tensor,
    previous: torch.Tensor | None,
    row: torch.Tensor,
    noise: torch.Tensor | None,
    *,
    clip: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The new state and x0, of a row ``[7]`` and the noise, in the dtype that they have."""
    p, q, r, s, w, u, v = row
    x0 = q * n + p * x
    if clip:
        x0 = x0.clamp(-1.0, 1.0)
    new = r * x0 + s * x + w * n
    if noise is not None and u != 0:
        new = new + u * noise
    if previous is not None and v != 0:
        new = new + v * previous
    return new, x0


@triton.jit
def _offsets(image, element, pixels, width, image_stride, plane, row, column):
    """Of elements [., E] of images [I, .] in a tensor of these strides."""
    at = element // pixels * plane + element % pixels // width * row + element % width * column
    return image[:, None] * image_stride + at[None, :]


@triton.jit
def _seeds(seed, image, batch, OWN_SEEDS: tl.constexpr):
    """Of images [I]: one, or [I, 1]."""
    if OWN_SEEDS:
        key = tl.load(seed + image, mask=image < batch, other=0)[:, None]
    else:
        key = tl.load(seed)
    return key


@triton.jit(do_not_specialize=SIZES)
def _initial_noise(
    out,
    following,
    following_image,
    following_plane,
    following_row,
    following_column,
    seed,
    images,
    batch,
    elements,
    pixels,
    width,
    OWN_SEEDS: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    element = tl.program_id(0) * (4 * BLOCKS) + tl.arange(0, 4 * BLOCKS)
    image = tl.program_id(1) * IMAGES + tl.arange(0, IMAGES)
    index = tl.load(images + image, mask=image < batch, other=0)
    mask = (image < batch)[:, None] & (element < elements)[None, :]
    key = _seeds(seed, image, batch, OWN_SEEDS)
    z = normal(key, index, tl.zeros([1, 1], tl.int32), block, IMAGES, BLOCKS)
    tl.store(out + image[:, None] * elements + element[None, :], z, mask=mask)
    if following is not None:
        at = _offsets(
            image, element, pixels, width,
            following_image, following_plane, following_row, following_column,
        )  # fmt: skip
        tl.store(following + at, z.to(following.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _sampler_update(
    x,
    n,
    n_image,
    n_plane,
    n_row,
    n_column,
    previous,
    following,
    following_image,
    following_plane,
    following_row,
    following_column,
    coefficients,
    step,
    bad_step,
    seed,
    images,
    batch,
    elements,
    pixels,
    width,
    CLIP: tl.constexpr,
    OWN_SEEDS: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    element = tl.program_id(0) * (4 * BLOCKS) + tl.arange(0, 4 * BLOCKS)
    image = tl.program_id(1) * IMAGES + tl.arange(0, IMAGES)
    mask = (image < batch)[:, None] & (element < elements)[None, :]
    here = image[:, None] * elements + element[None, :]
    row = tl.load(step)
    at = coefficients + row * 7
    p, q, r, s = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    w, u, v = tl.load(at + 4), tl.load(at + 5), tl.load(at + 6)

    state = tl.load(x + here, mask=mask, other=0.0)
    there = _offsets(image, element, pixels, width, n_image, n_plane, n_row, n_column)
    output = tl.load(n + there, mask=mask, other=0.0).to(tl.float32)
    if bad_step is not None:
        wrong = tl.where(tl.abs(output) < float("inf"), 0, 1)
        wrong = tl.sum(tl.sum(wrong, axis=1), axis=0)
        if wrong > 0:
            tl.atomic_min(bad_step, row)
    x0 = q * output + p * state
    if CLIP:
        x0 = tl.minimum(x0, 1.0, propagate_nan=tl.PropagateNan.ALL)
        x0 = tl.maximum(x0, -1.0, propagate_nan=tl.PropagateNan.ALL)
    new = r * x0 + s * state + w * output
    if u != 0.0:
        index = tl.load(images + image, mask=image < batch, other=0)
        key = _seeds(seed, image, batch, OWN_SEEDS)
        new += u * normal(key, index, row + 1, block, IMAGES, BLOCKS)
    if previous is not None:
        if v != 0.0:
            new += v * tl.load(previous + here, mask=mask, other=0.0)
        tl.store(previous + here, x0, mask=mask)
    tl.store(x + here, new, mask=mask)
    if following is not None:
        there = _offsets(
            image, element, pixels, width,
            following_image, following_plane, following_row, following_column,
        )  # fmt: skip
        tl.store(following + there, new.to(following.dtype.element_ty), mask=mask)


@triton.jit
def _advance(step):
    tl.store(step, tl.load(step) + 1)


def _check(x: torch.Tensor, seed: torch.Tensor, images: torch.Tensor) -> tuple[int, int]:
    """Images and elements of each."""
    if x.ndim != 4:
        raise ValueError(f"state: expected [N, C, H, W], got {x.ndim} axes.")
    check_floats("state", x, tuple(x.shape))
    batch = x.shape[0]
    for name, tensor, sizes in (("seed", seed, {1, batch}), ("images", images, {batch})):
        if tensor.dtype != torch.int64 or tensor.ndim != 1 or len(tensor) not in sizes:
            got = f"{tuple(tensor.shape)} of {tensor.dtype}"
            wanted = " or ".join(f"[{size}]" for size in sorted(sizes))
            raise ValueError(f"{name}: expected int64 {wanted}, got {got}.")
    if x.numel() > np.iinfo(np.int32).max:
        raise ValueError(f"state: expected at most 2**31 - 1 elements, got {x.numel()}.")
    return batch, math.prod(x.shape[1:])


def _view(
    name: str, view: torch.Tensor | None, x: torch.Tensor
) -> tuple[torch.Tensor | None, int, int, int, int]:
    """``view`` and its four strides; ValueError if it does not hold the elements of x."""
    if view is None:
        return None, 0, 0, 0, 0
    if view.ndim != 4 or view.shape[1:] != x.shape[1:] or view.shape[0] < x.shape[0]:
        wanted = f"[{x.shape[0]} or more, {', '.join(map(str, x.shape[1:]))}]"
        raise ValueError(f"{name}: expected {wanted}, got {tuple(view.shape)}.")
    image, plane, row, column = view.stride()
    return view, image, plane, row, column


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()
