"""One step of each sampler against diffusers' schedulers, over all rows.

Every scheduler is given our betas. diffusers keeps alpha_bar in float32, where 1 - alpha_bar[0]
has three digits left; its arrays are therefore replaced by the float64 products of the same betas,
so that formulas are compared and not that rounding. `test_unchanged_diffusers` leaves it as it is.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is needed by diffusers")
diffusers = pytest.importorskip("diffusers", reason="diffusers' schedulers are the peers here")

from sparse_ddpm.sampling import SPACINGS, alphas_cumprod, betas, make_table
from sparse_ddpm.ticket.config import OBJECTIVES, SCHEDULES, DiffusionConfig

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning:diffusers")

PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SHAPE = (2, 1, 3, 5)


def scheduler_of(cls, diffusion, steps, *, spacing="trailing", exact=True, **settings):
    beta = betas(diffusion.schedule, diffusion.timesteps)
    scheduler = cls(
        num_train_timesteps=diffusion.timesteps,
        trained_betas=beta,
        prediction_type=PREDICTION[diffusion.objective],
        timestep_spacing=spacing,
        **settings,
    )
    if exact:
        scheduler.alphas_cumprod = torch.cumprod(torch.from_numpy(1 - beta), 0)
    scheduler.set_timesteps(steps)
    if exact and hasattr(scheduler, "sigmas"):
        alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps]
        zero = torch.zeros(1, dtype=torch.float64)
        scheduler.sigmas = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), zero])
    return scheduler


def rows_of_inputs(diffusion, table, seed):
    """x, n, z float64 ``[S, *SHAPE]``: image 0 a true pair (x, n) whose x0 is here and there
    beyond the clip, image 1 anything at all."""
    rng = np.random.default_rng(seed)
    x0, eps, other, z = rng.normal(size=(4, table.steps, *SHAPE))
    x0 *= 0.8
    alpha_bar = alphas_cumprod(diffusion)[table.timesteps]
    a, b = (np.sqrt(level)[:, None, None, None, None] for level in (alpha_bar, 1 - alpha_bar))
    x = a * x0 + b * eps
    n = {"eps": eps, "x0": x0, "v": a * eps - b * x0}[diffusion.objective]
    n[:, 1] = other[:, 1]
    # Values that float32 holds exactly, as DPM-Solver++ casts x.
    return tuple(array.astype(np.float32).astype(np.float64) for array in (x, n, z))


def steps_of_table(table, x, n, z):
    def column(name):
        return getattr(table, name)[:, None, None, None, None]

    x0 = column("p") * x + column("q") * n
    if table.clip:
        x0 = np.clip(x0, -1, 1)
    previous = np.concatenate([np.zeros_like(x0[:1]), x0[:-1]])
    return (
        column("r") * x0
        + column("s") * x
        + column("w") * n
        + column("u") * z
        + column("v") * previous
    )


def relative_error(ours, theirs):
    """Largest difference of an image, as a part of its largest value."""
    axes = tuple(range(2, ours.ndim))
    return (np.abs(ours - theirs).max(axes) / np.abs(theirs).max(axes)).max()


def torch_rows(scheduler, *arrays, dtype=torch.float64):
    rows = zip(*(torch.from_numpy(array).to(dtype) for array in arrays), strict=True)
    return zip(scheduler.timesteps, rows, strict=True)


def compare_ddim(diffusion, eta, clip_eps, *, steps, exact=True, dtype=torch.float64):
    table = make_table(diffusion, steps=steps, eta=eta, clip_eps=clip_eps)
    scheduler = scheduler_of(
        diffusers.DDIMScheduler, diffusion, steps, exact=exact, clip_sample=diffusion.clip
    )
    x, n, z = rows_of_inputs(diffusion, table, 1)
    rederive = clip_eps == "rederive"
    theirs = [
        scheduler.step(ni, t, xi, eta, rederive, variance_noise=zi if eta else None).prev_sample
        for t, (xi, ni, zi) in torch_rows(scheduler, x, n, z, dtype=dtype)
    ]
    return relative_error(steps_of_table(table, x, n, z), torch.stack(theirs).double().numpy())


def compare_ddpm(diffusion, *, steps, spacing="trailing", exact=True, dtype=torch.float64):
    table = make_table(diffusion, sampler="ddpm", steps=steps, spacing=spacing)
    scheduler = scheduler_of(
        diffusers.DDPMScheduler,
        diffusion,
        steps,
        spacing=spacing,
        exact=exact,
        clip_sample=diffusion.clip,
    )
    x, n, z = rows_of_inputs(diffusion, table, 2)
    theirs = []
    for i, (t, (xi, ni)) in enumerate(torch_rows(scheduler, x, n, dtype=dtype)):
        generator = torch.Generator().manual_seed(i)
        z[i] = torch.randn(SHAPE, generator=generator, dtype=dtype).double().numpy()
        generator.manual_seed(i)
        theirs.append(scheduler.step(ni, t, xi, generator=generator).prev_sample)
    return relative_error(steps_of_table(table, x, n, z), torch.stack(theirs).double().numpy())


def compare_dpmpp(diffusion, *, steps, spacing="trailing", exact=True, dtype=torch.float64):
    table = make_table(diffusion, sampler="dpm++", steps=steps, spacing=spacing)
    scheduler = scheduler_of(
        diffusers.DPMSolverMultistepScheduler,
        diffusion,
        steps,
        spacing=spacing,
        exact=exact,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
    )
    x, n, z = rows_of_inputs(diffusion, table, 3)
    theirs = [
        scheduler.step(ni, t, xi).prev_sample
        for t, (xi, ni) in torch_rows(scheduler, x, n, dtype=dtype)
    ]
    return relative_error(steps_of_table(table, x, n, z), torch.stack(theirs).double().numpy())


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("clip_eps", ["rederive", "keep"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim(schedule, objective, eta, clip_eps):
    diffusion = DiffusionConfig(schedule=schedule, objective=objective)
    assert compare_ddim(diffusion, eta, clip_eps, steps=1000) < 1e-9
    assert compare_ddim(diffusion, eta, clip_eps, steps=50) < 1e-9
    unclipped = dataclasses.replace(diffusion, clip=False)
    assert compare_ddim(unclipped, eta, clip_eps, steps=50) < 1e-9


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddpm(schedule, objective):
    # diffusers adds noise of 1e-10 in the last step of a shorter table, where ours adds none.
    diffusion = DiffusionConfig(schedule=schedule, objective=objective)
    assert compare_ddpm(diffusion, steps=1000) < 1e-9
    assert compare_ddpm(diffusion, steps=50) < 1e-9
    assert compare_ddpm(dataclasses.replace(diffusion, clip=False), steps=50) < 1e-9


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dpmpp(schedule, objective):
    # diffusers' DPM-Solver++ does not clip x0, and makes its sum in float32.
    diffusion = DiffusionConfig(schedule=schedule, objective=objective, clip=False)
    assert compare_dpmpp(diffusion, steps=1000) < 1e-6
    for steps in (50, 10, 2, 1):
        assert compare_dpmpp(diffusion, steps=steps) < 1e-6


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [999, 30, 7])
def test_spacings(spacing, steps):
    diffusion = DiffusionConfig(clip=False)
    assert compare_ddpm(diffusion, steps=steps, spacing=spacing) < 1e-9
    assert compare_dpmpp(diffusion, steps=steps, spacing=spacing) < 1e-6


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("cls", ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_timesteps(cls, spacing):
    multistep = cls.startswith("DPM")
    scheduler = getattr(diffusers, cls)(num_train_timesteps=1000, timestep_spacing=spacing)
    for steps in (
        1,
        2,
        3,
        16,
        48,
        50,
        61,
        99,
        250,
        333,
        501,
        998,
        999,
        *([] if multistep else [1000]),
    ):
        scheduler.set_timesteps(steps)
        table = make_table(
            DiffusionConfig(),
            sampler="dpm++" if multistep else "ddim",
            steps=steps,
            spacing=spacing,
        )
        # With trailing spacing diffusers at times appends a timestep -1 (61 of 1000).
        np.testing.assert_array_equal(table.timesteps, scheduler.timesteps.numpy()[:steps])


@pytest.mark.parametrize("schedule", ["linear", "sigmoid"])
def test_unchanged_diffusers(schedule):
    diffusion = DiffusionConfig(schedule=schedule)
    for eta, clip_eps in ((0.0, "keep"), (1.0, "keep"), (0.0, "rederive"), (1.0, "rederive")):
        assert compare_ddim(diffusion, eta, clip_eps, steps=50, exact=False) < 1e-5
    assert compare_ddpm(diffusion, steps=50, exact=False) < 1e-5
    unclipped = dataclasses.replace(diffusion, clip=False)
    assert compare_dpmpp(unclipped, steps=50, exact=False) < 1e-5
