from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import sparse_ddpm.sampling.loop as loop_module
from sparse_ddpm.errors import ConfigError, EngineError
from sparse_ddpm.sampling import (
    alphas_cumprod,
    make_table,
    normal,
    sample_loop,
    to_uint8,
)
from sparse_ddpm.ticket.config import OBJECTIVES, SCHEDULES, DiffusionConfig

SAMPLERS = [("ddim", None), ("ddim", 1.0), ("ddpm", None), ("dpm++", None)]


def some_network(x, step):
    """Any smooth function of one image and the step, so that batches cannot matter."""
    return (0.9 * np.tanh(x) + 0.1 * np.cos(3 * x[:, :, ::-1] + step)).astype(np.float32)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("objective", ["eps", "v"])
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_loop_is_the_table_in_float64(sampler, eta, objective, clip):
    diffusion = DiffusionConfig(schedule="linear", objective=objective, clip=clip)
    table = make_table(diffusion, sampler=sampler, steps=20, eta=eta)
    if sampler == "ddim":
        table = dataclasses.replace(table, w=np.append(np.linspace(0.2, 0, 19), 0))
    shape = (3, 4, 5)
    got = sample_loop(some_network, table, seed=3, image_indices=[2, 9], shape=shape)
    x = normal(3, [2, 9], 0, shape).astype(np.float64)
    previous = np.full_like(x, np.nan)
    for i in range(table.steps):
        n = some_network(x, i).astype(np.float64)
        x0 = table.p[i] * x + table.q[i] * n
        x0 = np.clip(x0, -1, 1) if clip else x0
        z = normal(3, [2, 9], i + 1, shape).astype(np.float64)
        x = table.r[i] * x0 + table.s[i] * x + table.w[i] * n + table.u[i] * z
        if table.v[i]:
            x += table.v[i] * previous
        previous = x0
    assert got.dtype == np.float32
    assert got.shape == (2, *shape)
    np.testing.assert_allclose(got, x, rtol=0, atol=2e-4 * np.abs(x).max())
    if clip:
        assert np.abs(got).max() <= 1


@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_batches_of_1_7_and_16_make_the_same_images(sampler, eta):
    table = make_table(DiffusionConfig(), sampler=sampler, steps=10, eta=eta)

    def made(batch):
        parts = [
            sample_loop(
                some_network,
                table,
                seed=7,
                image_indices=range(start, min(start + batch, 16)),
                shape=(1, 9, 9),
            )
            for start in range(0, 16, batch)
        ]
        return np.concatenate(parts)

    whole = made(16)
    np.testing.assert_array_equal(made(7), whole)
    np.testing.assert_array_equal(made(1), whole)
    assert len(np.unique(whole[:, 0, 4, 4])) > 8


@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_noise_is_made_only_where_the_table_asks(monkeypatch, sampler, eta):
    asked = []

    def counted(seed, image_indices, step, shape):
        asked.append(step)
        return normal(seed, image_indices, step, shape)

    monkeypatch.setattr(loop_module, "normal", counted)
    table = make_table(DiffusionConfig(), sampler=sampler, steps=6, eta=eta)
    sample_loop(some_network, table, seed=0, image_indices=[0], shape=(1, 2, 2))
    stochastic = sampler == "ddpm" or eta == 1.0
    assert asked == ([0, 1, 2, 3, 4, 5] if stochastic else [0])


def test_callback_sees_every_state_and_the_last_is_the_image():
    table = make_table(DiffusionConfig(), steps=5)
    seen = []
    image = sample_loop(
        some_network,
        table,
        seed=0,
        image_indices=[1],
        shape=(1, 3, 3),
        callback=lambda step, x: seen.append((step, x.copy())),
    )
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(seen[-1][1], image)
    assert not np.array_equal(seen[0][1], image)


def test_a_network_may_reuse_its_output_buffer():
    table = make_table(DiffusionConfig(), sampler="dpm++", steps=8)
    buffer = np.empty((2, 1, 5, 3), dtype=np.float32)

    def reusing(x, step):
        buffer[:] = some_network(x, step)
        return buffer

    arguments = {"seed": 0, "image_indices": [0, 1], "shape": (1, 5, 3)}
    np.testing.assert_array_equal(
        sample_loop(reusing, table, **arguments), sample_loop(some_network, table, **arguments)
    )


def test_degenerate_requests():
    table = make_table(DiffusionConfig(timesteps=1), steps=1)

    def never(x, step):
        raise AssertionError

    none = sample_loop(never, table, seed=0, image_indices=[], shape=(3, 4, 4))
    assert none.shape == (0, 3, 4, 4)
    one = sample_loop(some_network, table, seed=0, image_indices=[5], shape=(1, 1, 1))
    x = normal(0, [5], 0, (1, 1, 1))
    wanted = np.clip(table.p[0] * x + table.q[0] * some_network(x, 0), -1, 1)
    np.testing.assert_allclose(one, wanted, rtol=1e-5)


def test_a_bad_network_output_is_named():
    table = make_table(DiffusionConfig(), steps=5)
    arguments = {"seed": 0, "image_indices": [0, 1], "shape": (1, 2, 2)}
    with pytest.raises(EngineError, match="network output in step 0: expected \\(2, 1, 2, 2\\)"):
        sample_loop(lambda x, step: x[:1], table, **arguments)
    with pytest.raises(EngineError, match="network output in step 3: expected finite values"):
        sample_loop(lambda x, step: x * np.nan if step == 3 else x, table, **arguments)
    with pytest.raises(ConfigError, match="seed"):
        sample_loop(some_network, table, **{**arguments, "seed": -1})


def gaussian_network(diffusion, table, mean, std):
    """The exact minimiser of the loss when every pixel of the data is N(mean, std^2)."""
    alpha_bar = alphas_cumprod(diffusion)[table.timesteps]

    def network(x, step):
        ab = alpha_bar[step]
        a, b = np.sqrt(ab), np.sqrt(1 - ab)
        x = x.astype(np.float64)
        eps = b * (x - a * mean) / (ab * std**2 + 1 - ab)
        x0 = mean + a * std**2 * (x - a * mean) / (ab * std**2 + 1 - ab)
        output = {"eps": eps, "x0": x0, "v": a * eps - b * x0}[diffusion.objective]
        return output.astype(np.float32)

    return network


def sampled_gaussian(diffusion, mean, std, **settings):
    """(images, the noise that they started from), 64 images of 256 pixels."""
    table = make_table(diffusion, **settings)
    arguments = {"seed": 12, "image_indices": range(64), "shape": (1, 16, 16)}
    network = gaussian_network(diffusion, table, mean, std)
    start = normal(12, range(64), 0, (1, 16, 16)).astype(np.float64)
    return sample_loop(network, table, **arguments).astype(np.float64), start


def assert_gaussian_comes_back(diffusion, **settings):
    mean, std = 0.4, 0.25
    images, _ = sampled_gaussian(diffusion, mean, std, **settings)
    # Four standard errors of 16,384 pixels, and the error of a finite number of steps.
    assert images.mean() == pytest.approx(mean, abs=4 * std / 128 + 1e-3)
    assert images.std() == pytest.approx(std, rel=4 / 181 + 0.025)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_gaussian_data_comes_back(sampler, schedule, objective):
    diffusion = DiffusionConfig(schedule=schedule, objective=objective, clip=False)
    assert_gaussian_comes_back(diffusion, sampler=sampler, steps=200)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gaussian_data_comes_back_through_noise(schedule):
    diffusion = DiffusionConfig(schedule=schedule, clip=False)
    assert_gaussian_comes_back(diffusion, sampler="ddpm", steps=500)


def test_the_deterministic_samplers_converge_to_the_exact_flow():
    """The probability flow of Gaussian data is known: it scales x about its mean."""
    mean, std = -0.2, 0.5
    diffusion = DiffusionConfig(schedule="linear", clip=False)
    ab = alphas_cumprod(diffusion)[-1]

    def error(sampler, steps):
        images, start = sampled_gaussian(diffusion, mean, std, sampler=sampler, steps=steps)
        exact = mean + std * (start - np.sqrt(ab) * mean) / np.sqrt(ab * std**2 + 1 - ab)
        return np.abs(images - exact).max()

    ddim = {steps: error("ddim", steps) for steps in (25, 50, 100, 1000)}
    # DDIM is of first order: twice the steps, half the error.
    assert ddim[25] / ddim[50] == pytest.approx(2, rel=0.1)
    assert ddim[50] / ddim[100] == pytest.approx(2, rel=0.1)
    assert ddim[1000] < 0.01
    for steps in (25, 50, 100):
        assert error("dpm++", steps) < ddim[steps] / 4
    assert error("dpm++", 1000) < 3e-4


def test_to_uint8_rounds_and_turns_channels_last():
    levels = np.arange(256, dtype=np.float64)
    x = (levels / 127.5 - 1).astype(np.float32).reshape(2, 2, 8, 8)
    images = to_uint8(x)
    assert images.shape == (2, 8, 8, 2)
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    np.testing.assert_array_equal(images.transpose(0, 3, 1, 2).ravel(), np.arange(256))
    np.testing.assert_array_equal(to_uint8(x + 0.49 / 127.5)[0, 0, 0], images[0, 0, 0])
    edges = np.array([-9.0, -1.0, -1e-3, 0.0, 1.0, 9.0], dtype=np.float32).reshape(1, 1, 1, 6)
    assert to_uint8(edges).ravel().tolist() == [0, 0, 127, 128, 255, 255]
    assert to_uint8(np.empty((0, 3, 4, 4), np.float32)).shape == (0, 4, 4, 3)
    with pytest.raises(ConfigError, match="images: expected shape"):
        to_uint8(x[0])
