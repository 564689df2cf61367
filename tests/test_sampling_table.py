"""Tables against formulas written down from the papers, one row at a time."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.sampling import SAMPLERS, SPACINGS, Table, alphas_cumprod, make_table
from sparse_ddpm.ticket.config import OBJECTIVES, SCHEDULES, DiffusionConfig

UPDATE = ("r", "s", "w", "u", "v")


def ends_of_steps(diffusion, table):
    """(alpha_bar, alpha_bar_next) of every row as Python floats."""
    alpha_bar = alphas_cumprod(diffusion)
    here = [float(alpha_bar[t]) for t in table.timesteps]
    return list(zip(here, [*here[1:], 1.0], strict=True))


def network_output(objective, x0, eps, alpha_bar):
    a, b = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    return {"eps": eps, "x0": x0, "v": a * eps - b * x0}[objective]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_x0_is_recovered_from_every_objective(schedule, objective):
    diffusion = DiffusionConfig(schedule=schedule, objective=objective)
    table = make_table(diffusion, sampler="ddpm", steps=1000)
    x0, eps = 0.3, -1.2
    for (ab, _), p, q in zip(ends_of_steps(diffusion, table), table.p, table.q, strict=True):
        x = math.sqrt(ab) * x0 + math.sqrt(1 - ab) * eps
        # At alpha_bar = 1e-9 the eps objective cancels five digits of x.
        assert p * x + q * network_output(objective, x0, eps, ab) == pytest.approx(x0, rel=1e-10)


@pytest.mark.parametrize("steps", [1000, 50, 7, 1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddpm_is_the_product_of_the_two_gaussians(schedule, steps):
    """q(x_next | x, x0) from its definition, q(x | x_next) q(x_next | x0), by precisions."""
    diffusion = DiffusionConfig(schedule=schedule)
    table = make_table(diffusion, sampler="ddpm", steps=steps)
    for i, (ab, ab_next) in enumerate(ends_of_steps(diffusion, table)[:-1]):
        keep = ab / ab_next
        precision = keep / (1 - keep) + 1 / (1 - ab_next)
        assert table.s[i] == pytest.approx(math.sqrt(keep) / (1 - keep) / precision, rel=1e-9)
        assert table.r[i] == pytest.approx(math.sqrt(ab_next) / (1 - ab_next) / precision, rel=1e-9)
        assert table.u[i] ** 2 == pytest.approx(1 / precision, rel=1e-9)
    assert not table.w.any()
    assert not table.v.any()


def test_ddpm_over_all_timesteps_is_algorithm_2_of_ho_2020():
    diffusion = DiffusionConfig(schedule="linear", clip=False)
    table = make_table(diffusion, sampler="ddpm", steps=1000)
    beta = np.linspace(1e-4, 0.02, 1000)[::-1]
    alpha_bar = np.cumprod(1 - beta[::-1])[::-1]
    np.testing.assert_array_equal(table.timesteps, np.arange(1000)[::-1])
    # mu = (x - beta / sqrt(1 - alpha_bar) eps) / sqrt(1 - beta), eq. 11
    on_x, on_eps = table.r * table.p + table.s, table.r * table.q
    np.testing.assert_allclose(on_x, 1 / np.sqrt(1 - beta), rtol=1e-9)
    np.testing.assert_allclose(
        on_eps, -beta / np.sqrt(1 - alpha_bar) / np.sqrt(1 - beta), rtol=1e-9
    )


@pytest.mark.parametrize("clip_eps", ["rederive", "keep"])
@pytest.mark.parametrize("eta", [0, 0.3, 1.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_is_equation_12(schedule, objective, eta, clip_eps):
    diffusion = DiffusionConfig(schedule=schedule, objective=objective)
    table = make_table(diffusion, steps=50, eta=eta, clip_eps=clip_eps)
    rng = np.random.default_rng(1)
    for i, (ab, ab_next) in enumerate(ends_of_steps(diffusion, table)):
        x0, eps, z = rng.normal(size=3)
        x = math.sqrt(ab) * x0 + math.sqrt(1 - ab) * eps
        clipped = min(max(x0, -1.0), 1.0)
        if clip_eps == "rederive":
            eps_used = (x - math.sqrt(ab) * clipped) / math.sqrt(1 - ab)
        else:
            eps_used = eps
        sigma = eta * math.sqrt((1 - ab_next) / (1 - ab) * (1 - ab / ab_next))
        wanted = (
            math.sqrt(ab_next) * clipped
            + math.sqrt(max(1 - ab_next - sigma**2, 0.0)) * eps_used
            + sigma * z
        )
        n = network_output(objective, x0, eps, ab)
        got = table.r[i] * clipped + table.s[i] * x + table.w[i] * n + table.u[i] * z
        assert got == pytest.approx(wanted, rel=1e-8, abs=1e-12)
    if clip_eps == "rederive":
        assert not table.w.any()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1000, 50])
def test_ddim_with_eta_1_is_ddpm(schedule, steps):
    diffusion = DiffusionConfig(schedule=schedule)
    ddim = make_table(diffusion, steps=steps, eta=1)
    ddpm = make_table(diffusion, sampler="ddpm", steps=steps)
    for name in ("p", "q", *UPDATE):
        np.testing.assert_allclose(getattr(ddim, name), getattr(ddpm, name), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [999, 50, 3, 2, 1])
def test_dpmpp_is_algorithm_2_of_lu_2022(schedule, steps):
    diffusion = DiffusionConfig(schedule=schedule, clip=False)
    table = make_table(diffusion, sampler="dpm++", steps=steps)
    ends = ends_of_steps(diffusion, table)

    def lam(alpha_bar: float) -> float:
        return 0.5 * math.log(alpha_bar / (1 - alpha_bar))

    x, x0, x0_previous = 0.7, -0.4, 0.9
    for i, (ab, ab_next) in enumerate(ends[:-1]):
        h = lam(ab_next) - lam(ab)
        d = x0
        if i > 0:
            ratio = (lam(ab) - lam(ends[i - 1][0])) / h
            d = (1 + 1 / (2 * ratio)) * x0 - 1 / (2 * ratio) * x0_previous
        wanted = math.sqrt((1 - ab_next) / (1 - ab)) * x - math.sqrt(ab_next) * math.expm1(-h) * d
        got = table.r[i] * x0 + table.s[i] * x + table.v[i] * x0_previous
        assert got == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert not table.u.any()
    assert not table.w.any()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("sampler", "eta"),
    [("ddpm", None), ("ddim", None), ("ddim", 0.5), ("ddim", 1), ("dpm++", None)],
)
@pytest.mark.parametrize("steps", [999, 37, 2, 1])
def test_a_step_keeps_the_marginal(sampler, eta, schedule, spacing, steps):
    """Given the true x0, every sampler leads from q(x | x0) to q(x_next | x0)."""
    diffusion = DiffusionConfig(schedule=schedule)
    table = make_table(diffusion, sampler=sampler, eta=eta, steps=steps, spacing=spacing)
    here, there = (np.array(side) for side in zip(*ends_of_steps(diffusion, table), strict=True))
    np.testing.assert_allclose(
        table.r + table.v + table.s * np.sqrt(here), np.sqrt(there), rtol=1e-10
    )
    np.testing.assert_allclose(
        table.s**2 * (1 - here) + table.u**2, 1 - there, rtol=1e-8, atol=1e-15
    )


@pytest.mark.parametrize("timesteps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_length_arrives_at_x0_without_noise(sampler, schedule, timesteps):
    diffusion = DiffusionConfig(timesteps=timesteps, schedule=schedule)
    for steps in {1, 2, timesteps // 2, timesteps - 1, timesteps} & set(range(1, timesteps + 1)):
        table = make_table(diffusion, sampler=sampler, steps=steps)
        assert table.steps == steps
        assert [getattr(table, name)[-1] for name in UPDATE] == [1, 0, 0, 0, 0]
        assert table.v[0] == 0


def test_trailing_starts_and_leading_ends_where_it_should():
    def visited(spacing, steps, sampler="ddim"):
        diffusion = DiffusionConfig(timesteps=10)
        table = make_table(diffusion, sampler=sampler, steps=steps, spacing=spacing)
        return table.timesteps.tolist()

    assert visited("trailing", 5) == [9, 7, 5, 3, 1]
    assert visited("trailing", 3) == [9, 6, 2]
    assert visited("leading", 5) == [8, 6, 4, 2, 0]
    assert visited("leading", 3) == [6, 3, 0]
    assert visited("linspace", 4) == [9, 6, 3, 0]
    assert visited("linspace", 1) == [0]
    assert visited("trailing", 5, "dpm++") == [9, 7, 5, 3, 1]
    assert visited("leading", 4, "dpm++") == [8, 6, 4, 2]
    assert visited("linspace", 3, "dpm++") == [9, 6, 3]
    for spacing in SPACINGS:
        assert visited(spacing, 10) == list(range(10))[::-1]


@pytest.mark.parametrize("timesteps", [7, 100, 1000, 4000])
def test_trailing_is_strictly_falling_for_every_number_of_steps(timesteps):
    # 4000 / 3704 and its like make a rounded arange one element too long.
    for steps in range(1, timesteps + 1, 1 + timesteps // 400):
        table = make_table(DiffusionConfig(timesteps=timesteps), steps=steps)
        assert (table.timesteps[0], table.steps) == (timesteps - 1, steps)
    assert make_table(DiffusionConfig(timesteps=4000), steps=3704).steps == 3704


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "euler"}, "sampler: expected one of ddim, ddpm, dpm\\+\\+, got 'euler'."),
        ({"steps": 0}, "steps: expected an integer from 1 to 1000, got 0."),
        ({"steps": 1001}, "steps: expected an integer from 1 to 1000, got 1001."),
        ({"steps": 5.0}, "steps: expected an integer"),
        ({"steps": True}, "steps: expected an integer"),
        (
            {"steps": 1000, "sampler": "dpm++", "spacing": "linspace"},
            "steps: expected an integer from 1 to 999, got 1000.",
        ),
        ({"spacing": "karras"}, "spacing: expected one of trailing, leading, linspace"),
        ({"eta": -0.1}, "eta: expected a number from 0 to 1, got -0.1."),
        ({"eta": 1.5}, "eta: expected a number from 0 to 1"),
        ({"eta": math.nan}, "eta: expected a number from 0 to 1"),
        ({"eta": "1"}, "eta: expected a number from 0 to 1"),
        ({"eta": 0.0, "sampler": "dpm++"}, "eta: expected none with sampler dpm\\+\\+, got 0.0."),
        ({"eta": 1.0, "sampler": "ddpm"}, "eta: expected none with sampler ddpm, got 1.0."),
        ({"clip_eps": "drop"}, "clip_eps: expected one of rederive, keep, got 'drop'."),
        ({"clip_eps": "keep", "sampler": "ddpm"}, "clip_eps: expected rederive with sampler ddpm"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_table(DiffusionConfig(), **settings)


def test_dpmpp_on_one_timestep_names_the_spacing():
    with pytest.raises(ConfigError, match="another spacing than linspace"):
        make_table(DiffusionConfig(timesteps=1), sampler="dpm++", steps=1, spacing="linspace")


def _changed(column, row, value):
    table = make_table(DiffusionConfig(), steps=5)
    values = getattr(table, column).copy()
    values[row] = value
    return dataclasses.replace(table, **{column: values})


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("p", 2, math.nan, "table.p in row 2: expected a finite number, got nan."),
        ("q", 0, math.inf, "table.q in row 0: expected a finite number"),
        ("v", 0, 0.5, "table.v in row 0: expected 0"),
        ("r", -1, 0.999, "table, last row"),
        ("s", -1, 0.1, "table, last row"),
        ("u", -1, 0.1, "table, last row"),
        ("timesteps", 1, 999, "table.timesteps: expected falling"),
        ("timesteps", -1, -1, "table.timesteps: expected falling"),
    ],
)
def test_a_table_checks_itself(column, row, value, message):
    with pytest.raises(ConfigError, match=message):
        _changed(column, row, value)


def test_a_table_checks_shapes_and_copies():
    table = make_table(DiffusionConfig(), steps=5)
    with pytest.raises(ConfigError, match=r"table\.w: expected"):
        dataclasses.replace(table, w=np.zeros(4))
    with pytest.raises(ConfigError, match=r"table\.timesteps: expected shape"):
        dataclasses.replace(table, timesteps=np.zeros((5, 1), dtype=np.int64))
    with pytest.raises(ConfigError, match=r"table\.timesteps: expected shape"):
        Table(np.zeros(0, dtype=np.int64), *[np.zeros(0)] * 7, clip=True)
    with pytest.raises(ConfigError, match=r"table\.clip"):
        dataclasses.replace(table, clip=1)
    with pytest.raises(ValueError, match="read-only"):
        table.p[0] = 0
    column = np.array(table.p)
    copy = dataclasses.replace(table, p=column)
    column[0] = 99
    assert copy.p[0] != 99
