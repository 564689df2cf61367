"""Settings, their file, and the randomness that is a function of them."""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from sparse_ddpm.cli import train as command
from sparse_ddpm.errors import ConfigError
from sparse_ddpm.lottery import settings as lottery_settings
from sparse_ddpm.lottery.randomness import batch_indices, generator
from sparse_ddpm.lottery.settings import Settings
from sparse_ddpm.ticket.config import OBJECTIVES, PRESETS, SCHEDULES, WEIGHT_STANDARDIZATIONS


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser()
    command.add_parser(whole.add_subparsers(dest="command"))
    return whole


def options() -> dict[str, argparse.Action]:
    (subparsers,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {a.dest: a for a in subparsers.choices["train"]._actions}


def test_every_setting_is_an_option_with_the_same_choices() -> None:
    known = options()
    fields = {item.name: item for item in dataclasses.fields(Settings)}
    # One setting has no reason to be changed by hand.
    assert set(fields) <= set(known)
    for name, choices in {
        "preset": tuple(PRESETS),
        "schedule": SCHEDULES,
        "objective": OBJECTIVES,
        "weight_standardization": WEIGHT_STANDARDIZATIONS,
        "allocation": lottery_settings.ALLOCATIONS,
        "optimizer": lottery_settings.OPTIMIZERS,
        "lr_schedule": lottery_settings.LR_SCHEDULES,
        "precision": lottery_settings.PRECISIONS,
        "device": lottery_settings.DEVICES,
        "store": lottery_settings.STORES,
    }.items():
        assert set(known[name].choices or ()) == set(choices), name


def test_options_that_are_not_given_are_not_there() -> None:
    args = vars(parser().parse_args(["train", "--out", "x"]))
    assert not set(args) & {item.name for item in dataclasses.fields(Settings)}


def test_json_round_trip() -> None:
    settings = Settings("mnist:x", image_size=16, sparsity=0.9, rewind="late:7", flip=True)
    assert Settings.from_json(settings.to_json()) == settings


def test_json_of_another_kind_is_refused() -> None:
    value = Settings("mnist:x").to_json()
    with pytest.raises(ConfigError, match=r"config\.json: expected known settings, got 'colour'"):
        Settings.from_json({**value, "colour": 1})
    del value["seed"]
    with pytest.raises(ConfigError, match=r"config\.json: expected the setting 'seed', got none"):
        Settings.from_json(value)


def test_the_first_setting_that_differs_is_named() -> None:
    stored = Settings("mnist:x", seed=3)
    Settings("mnist:x", seed=3).check_same(stored)
    with pytest.raises(ConfigError, match=r"--resume: lr: expected 0.0003 as the run began, got 1"):
        Settings("mnist:x", seed=4, lr=1.0).check_same(stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "huge"}, "preset: expected one of paper, small, got 'huge'"),
        ({"rounds": -1}, "rounds: expected an integer of at least 0, got -1"),
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch-size: expected an integer"),
        ({"prune_fraction": 0.0}, "prune-fraction: expected a number above 0 and below 1, got 0.0"),
        ({"prune_fraction": 1.0}, "prune-fraction: expected a number above 0 and below 1, got 1.0"),
        ({"sparsity": 1.0}, "sparsity: expected a number above 0 and below 1"),
        ({"sparsity": 0.5, "rounds": 0}, "rounds: expected at least 1 with --sparsity, got 0"),
        ({"lr": math.nan}, "lr: expected a number above 0 and finite, got nan"),
        ({"lr": math.inf}, "lr: expected a number"),
        ({"ema": 1.0}, "ema: expected a number of at least 0 and below 1, got 1.0"),
        (
            {"permute": True, "pattern": "element"},
            "pattern: expected a pattern of several output channels with --permute",
        ),
        ({"permute": True, "pattern": "block:1x8"}, "got 'block:1x8'"),
        ({"gradual": True}, "rounds: expected 1 with --gradual, got 11"),
        ({"ramp": 0.5}, "ramp: expected --gradual beside it, got 0.5"),
        (
            {"gradual": True, "rounds": 1, "ramp": 1.0},
            "ramp: expected a number of at least 0 and below 1, got 1.0",
        ),
        ({"distil": 1.5}, "distil: expected a number of at least 0 and at most 1, got 1.5"),
        ({"distil": 0.5, "rounds": 0}, "rounds: expected at least 1 with --distil, got 0"),
        ({"dim": 12}, "architecture.dim: expected a multiple of groups=8, got 12"),
        ({"pattern": "star"}, "pattern: expected element, vector:G or block:RxC, got 'star'"),
        ({"rewind": "late"}, "rewind: expected init, late:K or lr, got 'late'"),
        ({"rewind": "late:0"}, "rewind: expected init, late:K or lr, got 'late:0'"),
        ({"rewind": "late:3000"}, "rewind: expected late:K with K at most dense-steps=2000"),
        ({"image_size": 18}, "architecture.image_size: expected a multiple of 4, got 18"),
        ({"timesteps": 0}, "diffusion.timesteps"),
        ({"schedule": "square"}, "diffusion.schedule"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings("mnist:x", **change)
    assert message in str(caught.value)


def test_steps_of_each_round() -> None:
    settings = Settings("mnist:x", rounds=2, dense_steps=5, steps=6)
    assert [settings.steps_of(round_) for round_ in range(3)] == [5, 6, 6]
    longer = dataclasses.replace(settings, final_steps=9)
    assert [longer.steps_of(round_) for round_ in range(3)] == [5, 6, 9]
    assert dataclasses.replace(longer, rounds=0).steps_of(0) == 5
    with pytest.raises(ConfigError, match="final-steps: expected"):
        dataclasses.replace(settings, final_steps=0)


def test_command_names_no_place_and_only_what_differs() -> None:
    settings = Settings("mnist:/home/me/data", image_size=16, lr=1e-3, flip=True, threads=2)
    line = settings.command()
    assert line.startswith("sparse-ddpm train --data mnist:DIR --out DIR --image-size 16")
    assert "--lr 0.001" in line
    assert "--flip" in line
    assert "/home" not in line
    assert "--seed" not in line
    settings = dataclasses.replace(settings, allocation="similarity", rounds=1, gradual=True)
    line = settings.command()
    assert line.endswith("--similar-to TICKET TICKET")
    given = vars(parser().parse_args(line.split()[1:]))
    chosen = {i.name: given[i.name] for i in dataclasses.fields(Settings) if i.name in given}
    assert dataclasses.replace(Settings(**chosen), data=settings.data) == settings


@pytest.mark.parametrize(("batch", "count"), [(4, 10), (10, 10), (7, 3), (1, 1), (25, 10)])
def test_batches_walk_through_permutations(batch: int, count: int) -> None:
    steps = 3 * count
    seen = np.concatenate([batch_indices(5, 2, step, batch, count) for step in range(steps)])
    epochs = seen.reshape(-1, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    if count > 3:
        assert not np.array_equal(epochs[0], epochs[1])
    # Any step alone gives what it gives in order.
    assert np.array_equal(batch_indices(5, 2, 2, batch, count), seen[2 * batch : 3 * batch])


def test_generators_differ_in_every_coordinate() -> None:
    keys = [(0, "step", 0, 0), (1, "step", 0, 0), (0, "epoch", 0, 0), (0, "step", 1, 0)]
    keys += [(0, "step", 0, 1), (2**40, "step", 0, 0), (0, "step", 0, 2**33)]
    drawn = {float(generator(*key).random()) for key in keys}
    assert len(drawn) == len(keys)
    assert float(generator(*keys[0]).random()) in drawn
