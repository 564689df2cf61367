"""diffusers' U-Net as a ticket's architecture: its configuration, its parameters, its file."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_ddpm.errors import ConfigError, TicketError
from sparse_ddpm.sampling import betas
from sparse_ddpm.ticket import (
    MODELS,
    DiffusionConfig,
    Ticket,
    UNet2DConfig,
    UNetConfig,
    family_of,
    load_ticket,
    parameters_of,
    save_ticket,
    synthetic_ticket,
)
from sparse_ddpm.ticket.content import from_content, to_content

TINY = UNet2DConfig(
    channels=1,
    image_size=8,
    block_out_channels=(8, 12),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    time_dim=20,
    head_dim=4,
    norm_num_groups=4,
    attn_norm_num_groups=0,
    norm_eps=1e-6,
    mid_block_scale_factor=1.5,
    resnet_time_scale_shift="scale_shift",
)


def changed(**fields: Any) -> UNet2DConfig:
    return dataclasses.replace(TINY, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 0}, "channels: expected an integer from 1"),
        ({"image_size": 9}, "image_size: expected a multiple of 2, got 9"),
        ({"block_out_channels": ()}, "block_out_channels: expected 1 to 10 items"),
        ({"block_out_channels": [8, 12]}, "block_out_channels: expected 1 to 10 items"),
        ({"block_out_channels": (8, 10)}, r"norm_num_groups: expected a divisor of .* \(10\)"),
        ({"norm_num_groups": 1, "block_out_channels": (7, 12)}, "an even first number"),
        ({"down_block_types": ("DownBlock2D",)}, "down_block_types: expected 2 items"),
        ({"up_block_types": ("UpBlock2D", "SkipUpBlock2D")}, "up_block_types: expected one of"),
        ({"layers_per_block": 0}, "layers_per_block: expected an integer from 1"),
        ({"time_dim": 0}, "time_dim: expected an integer from 1"),
        ({"freq_shift": 4}, "freq_shift: expected an integer from 0 to 3"),
        ({"add_attention": 1}, "add_attention: expected true or false"),
        ({"norm_eps": 1}, "norm_eps: expected a float above 0"),
        ({"norm_eps": 0.0}, "norm_eps: expected a float above 0"),
        ({"mid_block_scale_factor": math.inf}, "mid_block_scale_factor: expected a float above"),
        ({"downsample_padding": 2}, "downsample_padding: expected an integer from 0 to 1"),
        ({"downsample_type": "fir"}, "downsample_type: expected one of conv, resnet"),
        ({"upsample_type": None}, "upsample_type: expected one of conv, resnet"),
        ({"head_dim": 13}, "head_dim: expected at most 12"),
        ({"attn_norm_num_groups": 5}, "attn_norm_num_groups: expected a divisor"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift: expected one of"),
    ],
)
def test_wrong_architectures(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(**fields)


def test_heads_are_of_head_dim_or_one_of_all() -> None:
    assert TINY.heads(12) == (3, 4)
    assert TINY.heads(11) == (2, 4)
    assert changed(head_dim=0).heads(12) == (1, 12)


@pytest.mark.parametrize(
    ("name", "parameters"), [("ddpm-cifar10", 35_746_307), ("ddpm-cat", 113_673_219)]
)
def test_known_models_have_their_parameters(name: str, parameters: int) -> None:
    assert sum(math.prod(p.shape) for p in parameters_of(MODELS[name])) == parameters


def test_names_are_unique_and_roles_follow_the_rules() -> None:
    parameters = parameters_of(TINY)
    assert family_of(TINY) == "unet2d"
    assert len({p.name for p in parameters}) == len(parameters)
    never = ("conv_in.", "conv_out.", "time_embedding.")
    for parameter in parameters:
        is_matrix = len(parameter.shape) > 1
        assert parameter.prunable == (is_matrix and not parameter.name.startswith(never))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_gives_back_the_ticket(tmp_path: Path, suffix: str) -> None:
    diffusion = DiffusionConfig(schedule="scaled_linear", beta_start=8.5e-4, beta_end=0.012)
    ticket = synthetic_ticket(TINY, 0.7, "vector:4", diffusion=diffusion)
    path = tmp_path / f"ticket{suffix}"
    save_ticket(ticket, path)
    assert load_ticket(path).equals(ticket)


def content_of(ticket: Ticket, **fields: Any) -> dict[str, Any]:
    content = to_content(ticket)
    content["architecture"] = {**content["architecture"], **fields}
    return content


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "unet3d"}, "architecture.family: expected 'unet' or 'unet2d', got 'unet3d'"),
        ({"family": ["unet2d"]}, "architecture.family"),
        ({"block_out_channels": [8, 12.0]}, "block_out_channels: expected a list of integers"),
        ({"down_block_types": [1, 2]}, "down_block_types: expected a list of short texts"),
        ({"up_block_types": ["x" * 101]}, "up_block_types: expected a list of short texts"),
        ({"up_block_types": "UpBlock2D"}, "up_block_types: expected a list of short texts"),
        ({"time_dim": [1]}, "architecture.time_dim: expected a number or at most"),
        ({"dim": 8}, "architecture: expected"),
    ],
)
def test_wrong_content(fields: dict[str, Any], message: str) -> None:
    ticket = synthetic_ticket(TINY, 0.0)
    with pytest.raises((TicketError, ConfigError), match=message):
        from_content(content_of(ticket, **fields))


def test_betas_are_written_only_where_they_are_not_usual() -> None:
    unet = UNetConfig(dim=8, dim_mults=(1,), channels=1, image_size=4)
    table = to_content(synthetic_ticket(unet, 0.0))["diffusion"]
    assert table == {"timesteps": 1000, "schedule": "sigmoid", "objective": "eps", "clip": True}
    other = DiffusionConfig(schedule="linear", beta_end=0.01)
    ticket = synthetic_ticket(unet, 0.0, diffusion=other)
    content = to_content(ticket)
    assert content["diffusion"]["beta_end"] == 0.01
    assert "beta_start" not in content["diffusion"]
    assert from_content(content).diffusion == other


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "linear", "beta_start": 0}, "beta_start: expected a float above 0"),
        ({"schedule": "linear", "beta_end": math.nan}, "beta_end: expected a float above 0"),
        ({"schedule": "linear", "beta_start": 0.03}, "beta_start: expected at most beta_end"),
        ({"schedule": "cosine", "beta_end": 0.03}, "of schedule cosine: expected 1e-4 and 0.02"),
    ],
)
def test_wrong_betas(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiffusionConfig(**fields)


@pytest.mark.parametrize("timesteps", [1000, 100])
def test_scaled_linear_is_linear_in_its_roots(timesteps: int) -> None:
    beta = betas("scaled_linear", timesteps, 8.5e-4, 0.012)
    np.testing.assert_allclose(beta[[0, -1]], np.array([0.85, 12.0]) / timesteps)
    roots = np.diff(np.sqrt(beta))
    np.testing.assert_allclose(roots, roots[0])
