"""Cases of what moves data, and of the sampler's update with its noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import torch
from sparse_ddpm_kernels.triton import data
from sparse_ddpm_kernels.triton.layout import Layout, padded_images
from sparse_ddpm_kernels.triton.sampler import (
    FINE,
    advance,
    initial_noise,
    sampler_update,
    sampler_update_reference,
    seed_bits,
)

from gpu.cases_norm import compare
from gpu.correctness import Case, Outcome
from gpu.values import Values, error
from sparse_ddpm.sampling.noise import normal

Shape = tuple[int, int, int, int]
"""Channels, height, width, batch."""

FULL: tuple[Shape, ...] = ((3, 32, 32, 1), (64, 32, 32, 16), (512, 4, 4, 256), (24, 6, 10, 3))
DRY: tuple[Shape, ...] = ((3, 4, 4, 3),)
SEED = 2**63 + 5
EXACT = 1e-6
"""Of float32 arithmetic."""


def cases(dry: bool) -> Mapping[str, Case]:
    """``data: ...``, ``initial_noise: ...`` and ``sampler_update: ...``."""
    found: dict[str, Case] = {}
    for shape in DRY if dry else FULL:
        channels, height, width, batch = shape
        name = f"{channels}@{height}x{width}, batch {batch}"
        for move in (images, space_to_depth, upsample2x, add, copy):
            found[f"data: {move.__name__}, {name}"] = functools.partial(move, shape)
    for shape in DRY if dry else ((3, 32, 32, 256), (1, 28, 28, 3)):
        channels, height, width, batch = shape
        name = f"{channels}@{height}x{width}, batch {batch}"
        found[f"initial_noise: {name}"] = functools.partial(noise, shape)
        found[f"sampler_update: {name}"] = functools.partial(update, shape)
    return found


def images(shape: Shape, device: torch.device, dtype: torch.dtype) -> Outcome:
    """Loaded, padded with zeros, and stored again."""
    channels, height, width, batch = shape
    values = Values(device, dtype)
    x = values.floats(batch, channels, height, width)
    padded = padded_images(batch)
    view = values.poisoned(Layout(channels, height, width, padded, 1))
    data.load_images(x, view.view)
    loaded = compare(view, data.load_images_reference(x.double(), padded))
    back = torch.full_like(x, math.nan)
    data.store_images(view.view, back)
    if not torch.equal(back, x.to(dtype).float()):
        return Outcome(loaded.error, problem="stored images: expected those loaded, got others.")
    return loaded


def _moved(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    out: Callable[[int, int, int], tuple[int, int, int]],
    run: Callable[..., None],
    reference: Callable[..., torch.Tensor],
    inputs: int = 1,
) -> Outcome:
    channels, height, width, batch = shape
    values, padded = Values(device, dtype), padded_images(batch)
    x = [values.normal(Layout(channels, height, width, padded, h)).view for h in range(inputs)]
    made = values.poisoned(Layout(*out(channels, height, width), padded, 1))
    run(*x, made.view)
    return compare(made, reference(*(value.double() for value in x)))


def space_to_depth(shape: Shape, device: torch.device, dtype: torch.dtype) -> Outcome:
    return _moved(
        shape,
        device,
        dtype,
        lambda c, h, w: (4 * c, h // 2, w // 2),
        data.space_to_depth,
        data.space_to_depth_reference,
    )


def upsample2x(shape: Shape, device: torch.device, dtype: torch.dtype) -> Outcome:
    return _moved(
        shape,
        device,
        dtype,
        lambda c, h, w: (c, 2 * h, 2 * w),
        data.upsample2x,
        data.upsample2x_reference,
    )


def add(shape: Shape, device: torch.device, dtype: torch.dtype) -> Outcome:
    return _moved(shape, device, dtype, lambda *s: s, data.add, data.add_reference, inputs=2)


def copy(shape: Shape, device: torch.device, dtype: torch.dtype) -> Outcome:
    return _moved(shape, device, dtype, lambda *s: s, data.copy, lambda x: x)


def noise(shape: Shape, device: torch.device, dtype: torch.dtype) -> Outcome:
    """Of step 0, as the CPU makes it; in ``dtype`` where the network will read it."""
    channels, height, width, batch = shape
    index, seed = _indices(batch, device)
    out = torch.full((batch, channels, height, width), math.nan, device=device)
    following = Values(device, dtype).poisoned(
        Layout(channels, height, width, padded_images(batch), 1)
    )
    initial_noise(out, seed, index, following=following.view.permute(3, 0, 1, 2))
    wanted = torch.from_numpy(normal(SEED, index.cpu().numpy(), 0, tuple(out.shape[1:])))
    wanted = wanted.to(device)
    problem = None
    if not torch.equal(following.view[..., :batch].permute(3, 0, 1, 2), out.to(dtype)):
        problem = "following: expected the noise, got something else."
    return Outcome(error(out, wanted), EXACT, problem)


def update(shape: Shape, device: torch.device, dtype: torch.dtype) -> Outcome:
    """Two steps with noise and the estimate of the step before; the counter is on the device."""
    channels, height, width, batch = shape
    sides = channels, height, width
    values = Values(device, dtype)
    index, seed = _indices(batch, device)
    x = values.floats(batch, *sides)
    n = values.normal(Layout(*sides, padded_images(batch), 1)).view.permute(3, 0, 1, 2)
    following = values.poisoned(Layout(*sides, padded_images(batch), 1))
    previous = torch.zeros_like(x)
    rows = torch.tensor(
        [[1.1, -0.4, 0.6, 0.2, 0.1, 0.3, 0.0], [1.0, -0.3, 0.9, 0.1, 0.0, 0.2, -0.2]],
        device=device,
    )
    step = torch.zeros(1, dtype=torch.int32, device=device)
    bad = torch.full((1,), FINE, dtype=torch.int32, device=device)
    wanted, before = x.double(), previous.double()
    for row in range(2):
        sampler_update(
            x,
            n,
            previous,
            rows,
            step,
            seed=seed,
            images=index,
            clip=True,
            following=following.view.permute(3, 0, 1, 2),
            bad_step=bad,
        )
        advance(step)
        z = torch.from_numpy(normal(SEED, index.cpu().numpy(), row + 1, sides)).to(device)
        wanted, before = sampler_update_reference(
            wanted, n[:batch].double(), before, rows[row].double(), z.double(), clip=True
        )
    problem = None
    if int(step) != 2 or int(bad) != FINE:
        problem = f"counters: expected 2 and {FINE}, got {int(step)} and {int(bad)}."
    return Outcome(max(error(x, wanted), error(previous, before)), EXACT, problem)


def _indices(batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images beyond 32 bits, and a seed beyond 63."""
    index = torch.arange(batch, device=device) * (2**33 + 1)
    return index, torch.tensor([seed_bits(SEED)], device=device)
