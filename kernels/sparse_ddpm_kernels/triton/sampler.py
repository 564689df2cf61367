"""A sampler's step on the device: the new state, its noise, and the step counter.

Noise is a pure function of (seed, image, step): Philox4x32-10 (Salmon et al. 2011) and Box-Muller
(1958), as `sparse_ddpm.sampling.noise` lays them out. Uniforms, logarithm, sine and cosine are in
float64, and rounded to float32 at the end as there: of the same words the two differ by at most one
unit in the last place of float32, and hardly ever. The update is float32 without fused
multiply-adds, in the order of `sparse_ddpm.sampling.loop`: of the same network output it has the
same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from sparse_ddpm_kernels.triton.norm import check_floats

COLUMNS = 7
"""p, q, r, s, w, u, v of a row of the table."""

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

    ``seed``: int64 ``[1]``, the bits of `seed_bits`; ``images``: int64 ``[N0]``, each image's
    index; ``following``: as for `sampler_update`. All on one device. Allocates nothing, does not
    wait. ValueError for arguments that do not fit together.
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
        IMAGES=tiles.images,
        BLOCKS=tiles.blocks,
        num_warps=tiles.warps,
        enable_fp_fusion=False,
    )


def advance(step: torch.Tensor) -> None:
    """``step += 1`` on the device: int32 ``[1]``. After everything that reads the step's row."""
    if step.dtype != torch.int32 or step.numel() != 1:
        raise ValueError(f"step: expected one int32, got {step.numel()} of {step.dtype}.")
    _advance[(1,)](step, num_warps=1)


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
def _philox(block, step, low, high, seed):
    """The four words, uint32, of each block's counter; all arguments but seed are uint64 tensors.

    Ten rounds (Salmon et al. 2011); a product of 32-bit words is one instruction.
    """
    mask = 0xFFFFFFFF
    k0 = seed & mask
    k1 = seed >> 32
    c0, c1, c2, c3 = block, step, low, high
    for _ in tl.static_range(10):
        first = c0 * 0xD2511F53
        second = c2 * 0xCD9E8D57
        c0 = (second >> 32) ^ c1 ^ k0
        c1 = second & mask
        c2 = (first >> 32) ^ c3 ^ k1
        c3 = first & mask
        k0 = (k0 + 0x9E3779B9) & mask
        k1 = (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


@triton.jit
def _box_muller(first, second):
    """Two normals of two words, in float64, as float32.

    The angle is a whole number of quarter turns and a rest of an eighth at most, of which Taylor's
    series have all digits.
    """
    radius = (first.to(tl.float64) + 0.5) * 2.3283064365386963e-10
    radius = tl.sqrt(-2.0 * tl.log(radius))
    quarters = ((second + (1 << 29)) >> 30).to(tl.int32)
    rest = (second.to(tl.int64) - (quarters.to(tl.int64) << 30)).to(tl.float64) + 0.5
    angle = rest * 1.4629180792671596e-09  # 2 pi / 2**32
    square = angle * angle
    sine = square * -7.647163731819816e-13 + 1.6059043836821613e-10
    sine = sine * square - 2.505210838544172e-08
    sine = sine * square + 2.7557319223985893e-06
    sine = sine * square - 1.984126984126984e-04
    sine = sine * square + 8.333333333333333e-03
    sine = sine * square - 1.6666666666666666e-01
    sine = sine * square * angle + angle
    cosine = square * 4.779477332387385e-14 - 1.1470745597729725e-11
    cosine = cosine * square + 2.08767569878681e-09
    cosine = cosine * square - 2.755731922398589e-07
    cosine = cosine * square + 2.48015873015873e-05
    cosine = cosine * square - 1.3888888888888889e-03
    cosine = cosine * square + 4.1666666666666664e-02
    cosine = cosine * square - 0.5
    cosine = cosine * square + 1.0
    # cos and sin of a quarter turn more are -sin and cos.
    odd = quarters % 2 == 1
    x = tl.where(odd, -sine, cosine)
    y = tl.where(odd, cosine, sine)
    back = quarters % 4 >= 2
    x = tl.where(back, -x, x)
    y = tl.where(back, -y, y)
    return (radius * x).to(tl.float32), (radius * y).to(tl.float32)


@triton.jit
def _normal(seed, images, step, block, IMAGES: tl.constexpr, BLOCKS: tl.constexpr):
    """float32 [IMAGES, 4 * BLOCKS]: the noise of images [IMAGES] and blocks [BLOCKS]."""
    zero = tl.zeros([IMAGES, BLOCKS], tl.uint64)
    image = images.to(tl.uint64, bitcast=True)[:, None]
    w0, w1, w2, w3 = _philox(
        zero + block.to(tl.uint64)[None, :],
        zero + step.to(tl.uint64),
        zero + (image & 0xFFFFFFFF),
        zero + (image >> 32),
        tl.load(seed).to(tl.uint64, bitcast=True),
    )
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    z = tl.join(tl.join(z0, z2), tl.join(z1, z3))
    return tl.reshape(z, [IMAGES, 4 * BLOCKS])


@triton.jit
def _offsets(image, element, pixels, width, image_stride, plane, row, column):
    """Of elements [., E] of images [I, .] in a tensor of these strides."""
    at = element // pixels * plane + element % pixels // width * row + element % width * column
    return image[:, None] * image_stride + at[None, :]


@triton.jit
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
    IMAGES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    element = tl.program_id(0) * (4 * BLOCKS) + tl.arange(0, 4 * BLOCKS)
    image = tl.program_id(1) * IMAGES + tl.arange(0, IMAGES)
    index = tl.load(images + image, mask=image < batch, other=0)
    mask = (image < batch)[:, None] & (element < elements)[None, :]
    z = _normal(seed, index, tl.zeros([1, 1], tl.int32), block, IMAGES, BLOCKS)
    tl.store(out + image[:, None] * elements + element[None, :], z, mask=mask)
    if following is not None:
        at = _offsets(
            image, element, pixels, width,
            following_image, following_plane, following_row, following_column,
        )  # fmt: skip
        tl.store(following + at, z.to(following.dtype.element_ty), mask=mask)


@triton.jit
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
        new += u * _normal(seed, index, row + 1, block, IMAGES, BLOCKS)
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
    for name, tensor, size in (("seed", seed, 1), ("images", images, batch)):
        if tensor.dtype != torch.int64 or tuple(tensor.shape) != (size,):
            got = f"{tuple(tensor.shape)} of {tensor.dtype}"
            raise ValueError(f"{name}: expected int64 [{size}], got {got}.")
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
