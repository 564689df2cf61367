"""The sampler's step on the device against sampling/noise.py and sampling/loop.py, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed")
torch = pytest.importorskip("torch")

from sparse_ddpm_kernels.triton.layout import Layout, padded_images
from sparse_ddpm_kernels.triton.sampler import (
    FINE,
    SamplerTiles,
    advance,
    choose_sampler_tiles,
    initial_noise,
    sampler_update,
    sampler_update_reference,
    seed_bits,
)

from sparse_ddpm.sampling.loop import sample_loop
from sparse_ddpm.sampling.noise import normal
from sparse_ddpm.sampling.table import COLUMNS, Table, make_table
from sparse_ddpm.ticket.config import DiffusionConfig

INDICES = [0, 1, 5, 2**32 - 1, 2**32, 2**40 + 7, 2**62 + 3]


def on_device(seed: int, images: list[int], device: Any) -> tuple[Any, Any]:
    return (
        torch.tensor([seed_bits(seed)], device=device),
        torch.tensor(images, dtype=torch.int64, device=device),
    )


def far(a: Any, b: Any) -> int:
    """The largest distance in units in the last place of float32."""
    x, y = (np.asarray(t).view(np.int32).astype(np.int64) for t in (a, b))
    x, y = (np.where(t < 0, -(t & 0x7FFFFFFF), t) for t in (x, y))
    return int(np.abs(x - y).max())


@pytest.mark.parametrize("seed", [0, 3, 2**32 + 1, 2**63 + 12345, 2**64 - 1])
def test_noise_is_the_cpus(seed: int, triton_device: Any) -> None:
    shape = (3, 16, 16)
    wanted = normal(seed, INDICES, 0, shape)
    out = torch.full(wanted.shape, torch.nan, device=triton_device)
    initial_noise(out, *on_device(seed, INDICES, triton_device))
    assert far(out.cpu(), wanted) <= 1
    assert np.mean(out.cpu().numpy() != wanted) < 1e-4


def test_images_with_seeds_of_their_own(triton_device: Any) -> None:
    shape, seeds = (2, 3, 5), [9, 2**64 - 1, 0, 9, 2**63, 2**32, 7]
    wanted = normal(seeds, INDICES, 0, shape)
    out = torch.full(wanted.shape, torch.nan, device=triton_device)
    _, images = on_device(0, INDICES, triton_device)
    own = torch.tensor([seed_bits(seed) for seed in seeds], device=triton_device)
    initial_noise(out, own, images)
    assert far(out.cpu(), wanted) <= 1
    row = torch.tensor([[0.0, 0, 0, 0, 0, 1, 0]], device=triton_device)
    step = torch.zeros(1, dtype=torch.int32, device=triton_device)
    sampler_update(out, out.clone(), None, row, step, seed=own, images=images, clip=False)
    assert far(out.cpu(), normal(seeds, INDICES, 1, shape)) <= 1
    with pytest.raises(ValueError, match=r"seed: expected int64 \[1\] or \[7\]"):
        initial_noise(out, own[:2], images)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 7), (3, 2, 3), (2, 28, 28)])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_noise_of_any_shape(batch: int, shape: tuple[int, ...], triton_device: Any) -> None:
    """Also into the network's input, whose other pixels and halo stay as they are."""
    wanted = normal(7, INDICES[:batch], 0, shape)
    out = torch.full(wanted.shape, torch.nan, device=triton_device)
    layout = Layout(*shape, padded_images(batch), halo=1)
    storage = layout.allocate(torch.float16, triton_device)
    view = layout.view(storage).permute(3, 0, 1, 2)
    initial_noise(out, *on_device(7, INDICES[:batch], triton_device), following=view)
    assert far(out.cpu(), wanted) <= 1
    assert torch.equal(view[:batch], out.half())
    view[:batch] = 0
    assert not storage.any()


def table_of(**settings: Any) -> Table:
    return make_table(DiffusionConfig(), **settings)


def coefficients_of(table: Table, device: Any) -> Any:
    columns = np.stack([getattr(table, name) for name in COLUMNS], axis=1)
    return torch.from_numpy(columns.astype(np.float32)).to(device)


SAMPLERS = [
    {"sampler": "ddim", "steps": 4},
    {"sampler": "ddim", "steps": 4, "eta": 1.0},
    {"sampler": "ddim", "steps": 4, "clip_eps": "keep"},
    {"sampler": "ddpm", "steps": 5},
    {"sampler": "dpm++", "steps": 5},
]


@pytest.mark.parametrize("settings", SAMPLERS)
@pytest.mark.parametrize("images", [[4], [0, 9, 2**33]])
def test_whole_loops(settings: dict[str, Any], images: list[int], triton_device: Any) -> None:
    """Every row of a table by the device's own counter; what the network says is read in place."""
    table = table_of(**settings)
    shape, seed = (3, 5, 6), 11
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((table.steps, len(images), *shape), dtype=np.float32)
    states: list[Any] = []
    sample_loop(
        lambda x, step: outputs[step],
        table,
        seed=seed,
        image_indices=images,
        shape=shape,
        callback=lambda step, x: states.append(x.copy()),
    )

    device = triton_device
    coefficients = coefficients_of(table, device)
    where = on_device(seed, images, device)
    x = torch.full((len(images), *shape), torch.nan, device=device)
    previous = torch.full_like(x, torch.nan)
    step = torch.zeros(1, dtype=torch.int32, device=device)
    bad_step = torch.full((1,), FINE, dtype=torch.int32, device=device)
    layout = Layout(*shape, padded_images(len(images)), halo=1)
    said = layout.view(layout.allocate(torch.float32, device)).permute(3, 0, 1, 2)
    following = layout.view(layout.allocate(torch.float32, device)).permute(3, 0, 1, 2)
    said.fill_(torch.nan)
    initial_noise(x, *where, following=following)
    for i in range(table.steps):
        said[: len(images)] = torch.from_numpy(outputs[i]).to(device)
        sampler_update(
            x,
            said,
            previous,
            coefficients,
            step,
            seed=where[0],
            images=where[1],
            clip=table.clip,
            following=following,
            bad_step=bad_step,
        )
        advance(step)
        bound = 1e-6 * np.abs(states[i]).max()
        assert np.abs(x.cpu().numpy() - states[i]).max() <= bound
        assert torch.equal(following[: len(images)], x)
    assert step.item() == table.steps
    assert bad_step.item() == FINE


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("tiles", [None, SamplerTiles(1, 2, 1), SamplerTiles(4, 16, 1)])
def test_one_step(clip: bool, tiles: SamplerTiles | None, triton_device: Any) -> None:
    """All seven coefficients, against the reference in float64; previous becomes x0."""
    rng = np.random.default_rng(1)
    device = triton_device
    shape = (5, 2, 3, 5)
    images = list(range(5))
    x, n, previous = (
        torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device) for _ in range(3)
    )
    coefficients = torch.from_numpy(rng.standard_normal((3, 7), dtype=np.float32)).to(device)
    step = torch.tensor([1], dtype=torch.int32, device=device)
    seed, indices = on_device(5, images, device)
    noise = torch.from_numpy(normal(5, images, 2, shape[1:])).to(device)
    wanted, x0 = sampler_update_reference(
        x.double(), n.double(), previous.double(), coefficients[1].double(), noise, clip=clip
    )
    sampler_update(
        x, n, previous, coefficients, step, seed=seed, images=indices, clip=clip, tiles=tiles
    )
    assert float((x - wanted).abs().max()) < 2e-6
    assert float((previous - x0).abs().max()) < 1e-6
    assert step.item() == 1


def test_without_previous_and_without_noise(triton_device: Any) -> None:
    device = triton_device
    x, n = torch.ones((2, 1, 2, 2), device=device), torch.full((2, 1, 2, 2), 3.0, device=device)
    row = torch.tensor([[0.5, 0.25, 2.0, 0.125, 1.0, 0.0, 0.0]], device=device)
    step = torch.zeros(1, dtype=torch.int32, device=device)
    seed, images = on_device(0, [0, 1], device)
    sampler_update(x, n, None, row, step, seed=seed, images=images, clip=True)
    assert torch.equal(x, torch.full_like(x, 2.0 + 0.125 + 3.0))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_noted(wrong: float, triton_device: Any) -> None:
    device = triton_device
    x = torch.zeros((2, 3, 4, 5), device=device)
    coefficients = torch.ones((4, 7), device=device)
    step = torch.zeros(1, dtype=torch.int32, device=device)
    bad_step = torch.full((1,), FINE, dtype=torch.int32, device=device)
    seed, images = on_device(0, [0, 1], device)
    for i in range(4):
        n = torch.zeros_like(x)
        if i in (1, 3):
            n[1, 2, 3, 4] = wrong
        sampler_update(
            x, n, None, coefficients, step,
            seed=seed, images=images, clip=True, bad_step=bad_step,
        )  # fmt: skip
        advance(step)
        assert bad_step.item() == (FINE if i == 0 else 1)


def test_tiles() -> None:
    assert choose_sampler_tiles(1, 3072) == SamplerTiles(1, 128)
    assert choose_sampler_tiles(256, 3072) == SamplerTiles(8, 16)
    assert choose_sampler_tiles(3, 1) == SamplerTiles(4, 1)


def test_errors(triton_device: Any) -> None:
    device = triton_device
    x = torch.zeros((2, 3, 4, 5), device=device)
    seed, images = on_device(0, [0, 1], device)
    row = torch.zeros((1, 7), device=device)
    step = torch.zeros(1, dtype=torch.int32, device=device)

    def update(**changed: Any) -> None:
        given = {"n": x, "previous": None, "coefficients": row, "step": step}
        given |= {"seed": seed, "images": images, "clip": True}
        sampler_update(x, **{**given, **changed})

    with pytest.raises(ValueError, match=r"n: expected \[2 or more, 3, 4, 5\], got \(1, 3, 4, 5\)"):
        update(n=x[:1])
    with pytest.raises(ValueError, match="previous: expected contiguous float32"):
        update(previous=x.half())
    with pytest.raises(ValueError, match="coefficients: expected contiguous float32"):
        update(coefficients=row[:, :6])
    with pytest.raises(ValueError, match="step: expected one int32"):
        update(step=step.long())
    with pytest.raises(ValueError, match=r"images: expected int64 \[2\]"):
        update(images=images[:1])
    with pytest.raises(ValueError, match="seed: expected 0 to"):
        seed_bits(-1)
    with pytest.raises(ValueError, match="state: expected"):
        initial_noise(x.half(), seed, images)
