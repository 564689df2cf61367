"""The configuration checks itself, and the parameters are those of the paper's U-Net."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from damage_base import TINY

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.ticket import (
    PRESETS,
    DiffusionConfig,
    Pattern,
    Provenance,
    UNetConfig,
    unet_parameters,
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dim": 7}, "architecture.dim: expected an even number"),
        ({"dim": 8}, "architecture.dim: expected a multiple of groups=3, got 8"),
        ({"dim": True}, "architecture.dim: expected an integer from 2"),
        ({"dim": 16_386}, "architecture.dim: expected an integer"),
        ({"dim_mults": ()}, "architecture.dim_mults: expected 1 to 8 integers, got ()"),
        ({"dim_mults": [1, 2]}, "architecture.dim_mults"),
        ({"dim_mults": (1,) * 9}, "architecture.dim_mults"),
        ({"dim_mults": (1, 0)}, "architecture.dim_mults"),
        ({"dim": 16_380, "groups": 1, "dim_mults": (2,)}, "architecture.dim x dim_mults"),
        ({"image_size": 9}, "architecture.image_size: expected a multiple of 2, got 9"),
        ({"channels": 0}, "architecture.channels"),
        ({"heads": 0}, "architecture.heads"),
        ({"dim_head": 0}, "architecture.dim_head"),
        ({"block_norm": "layer"}, "architecture.block_norm: expected one of group, rms"),
        ({"attention_norm": "group"}, "architecture.attention_norm"),
        ({"attention_values": ""}, "architecture.attention_values"),
        ({"full_attention": (2,)}, "architecture.full_attention: expected levels below 2"),
        ({"full_attention": (1, 0)}, "architecture.full_attention"),
        ({"full_attention": [1]}, "architecture.full_attention"),
        ({"weight_standardization": "all"}, "expected one of none, surviving, full, got 'all'"),
    ],
)
def test_wrong_architectures(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(TINY, **change)
    assert says in str(caught.value)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(DiffusionConfig)])
def test_wrong_diffusion(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"diffusion\.{field}"):
        DiffusionConfig(**{field: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", 3),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", True),
        ("round", 1.0),
        ("sparsity", 1.1),
        ("sparsity", 0),
        ("sparsity", math.nan),
        ("command", "x" * 10_001),
        ("metrics", {"loss": 1}),
        ("metrics", {"loss": math.inf}),
        ("metrics", []),
    ],
)
def test_wrong_provenance(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"provenance\.{field}") as caught:
        Provenance(**{field: value})  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["element", "vector:8", "vector:1024", "block:16x4", "block:1x8"])
def test_patterns_are_written_as_they_are_read(text: str) -> None:
    assert str(Pattern.parse(text)) == text


@pytest.mark.parametrize("text", ["", "Element", "vector", "vector:", "block:4", "block:4x", "v:8"])
def test_wrong_patterns(text: str) -> None:
    with pytest.raises(ConfigError, match="pattern: expected element"):
        Pattern.parse(text)


def test_equivalent_patterns_have_one_name() -> None:
    assert str(Pattern.parse("vector:1")) == "element"
    assert str(Pattern.parse("block:8x1")) == "vector:8"


def test_the_paper_model_has_35_7_million_parameters() -> None:
    total = sum(math.prod(p.shape) for p in unet_parameters(PRESETS["paper"]))
    assert total == 35_711_107


@pytest.mark.parametrize("config", [TINY, *PRESETS.values()])
def test_names_are_unique_and_roles_follow_the_rules(config: UNetConfig) -> None:
    parameters = unet_parameters(config)
    assert len({p.name for p in parameters}) == len(parameters)
    never = ("init_conv.", "final_conv.", "time.")
    for parameter in parameters:
        is_matrix = len(parameter.shape) > 1
        assert parameter.prunable == (is_matrix and not parameter.name.startswith(never))
        block_conv = ".conv1.weight" in parameter.name or ".conv2.weight" in parameter.name
        assert parameter.standardized == block_conv
        assert parameter.name.endswith((".weight", ".bias", ".gain"))
    plain = dataclasses.replace(config, weight_standardization="none")
    assert not any(p.standardized for p in unet_parameters(plain))
