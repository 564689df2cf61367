"""Every architecture, with what the passes take out: files against the reference engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

REASON = "needs the onnx extra"
onnx = pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxruntime", reason=REASON)

from sparse_ddpm_export import Export, Form

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.program import Conv
from sparse_ddpm.ticket import (
    Architecture,
    DiffusionConfig,
    Ticket,
    UNet2DConfig,
    UNetConfig,
    synthetic_ticket,
)

UNET = UNetConfig(8, (1, 2), 2, 4, groups=2, heads=2, dim_head=4)
UNET2D = UNet2DConfig(
    channels=1,
    image_size=8,
    block_out_channels=(8, 12),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    time_dim=20,
    head_dim=4,
    norm_num_groups=4,
    attn_norm_num_groups=4,
    norm_eps=1e-6,
)
FAMILIES: dict[str, Architecture] = {
    "unet": UNET,
    "one level, odd size": UNetConfig(6, (3,), 1, 5, groups=3, heads=1, dim_head=3),
    "later lucidrains": dataclasses.replace(
        UNET, block_norm="rms", attention_norm="rms", attention_values="sum"
    ),
    "with a memory": dataclasses.replace(UNET, memory=3, full_attention=(1,)),
    "diffusers": UNET2D,
    "diffusers, scale and shift": dataclasses.replace(
        UNET2D, resnet_time_scale_shift="scale_shift", mid_block_scale_factor=1.5
    ),
    "diffusers, sines first": dataclasses.replace(UNET2D, flip_sin_to_cos=False, freq_shift=1),
}


def ticket(name: str, sparsity: float = 0.9, pattern: str = "element") -> Ticket:
    return synthetic_ticket(FAMILIES[name], sparsity, pattern)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("what", ["denoiser", "sampler"])
def test_files_against_the_reference(name: str, what: str) -> None:
    export = Export(ticket(name), what, **({} if what == "denoiser" else {"steps": 3}))
    assert export.check(export.content(), device="numpy") < 1e-5


@pytest.mark.parametrize("pattern", ["element", "vector:16", "block:4x4"])
def test_what_is_taken_out_changes_no_image(pattern: str) -> None:
    wide = UNetConfig(48, (1, 2), 1, 4, groups=2, heads=2, dim_head=8)
    pruned = synthetic_ticket(wide, 0.99, pattern)
    export = Export(pruned, "step", steps=2)
    gathers = [node for node in export.model().graph.node if node.op_type == "Gather"]
    copies = [op for op in export.program.operations if op.out.endswith(".read")]
    assert copies
    assert len(gathers) >= len(copies)
    small = export.content(Form("dense"))
    assert export.check(small, device="numpy") < 1e-5
    counts = {entry.key: entry.value for entry in export.model().metadata_props}
    stored = pruned.masks.values()
    assert int(counts["weights_stored"]) >= sum(int(mask.sum()) for mask in stored)
    assert len(small) < len(export.plain())
    assert Export(pruned, remove=False).program is not None


def test_a_block_that_died_is_gone_from_the_file() -> None:
    alive = synthetic_ticket(UNET, 0.5)
    name = "mid.block2.conv2.weight"
    weights = {**alive.weights, name: np.zeros_like(alive.weights[name])}
    masks = {**alive.masks, name: np.zeros_like(alive.masks[name])}
    dead = dataclasses.replace(
        alive,
        weights=weights,
        masks=masks,
        provenance=dataclasses.replace(alive.provenance, sparsity=0.0),
    )
    dead = dataclasses.replace(
        dead, provenance=dataclasses.replace(dead.provenance, sparsity=dead.sparsity)
    )
    export = Export(dead)
    assert export.check(export.content(), device="numpy") < 1e-5
    convolutions = [op.out for op in export.program.operations if isinstance(op, Conv)]
    assert "mid.block2.conv1" not in convolutions
    left = sum(node.op_type == "Conv" for node in export.model().graph.node)
    assert (
        left
        == sum(node.op_type == "Conv" for node in onnx.load_from_string(export.plain()).graph.node)
        - 2
    )


def test_a_denoiser_of_few_timesteps() -> None:
    few = synthetic_ticket(UNET, 0.5, diffusion=DiffusionConfig(timesteps=7))
    export = Export(few)
    assert export.check(export.content(), device="numpy") < 1e-5
    with pytest.raises(ConfigError, match="steps: expected an integer from 1 to 7, got 50"):
        Export(few, "sampler")


def test_bad_wishes() -> None:
    with pytest.raises(ConfigError, match="what: expected one of denoiser, sampler, step"):
        Export(ticket("unet"), "everything")
    with pytest.raises(ConfigError, match="seed: expected none with step"):
        Export(ticket("unet"), "step", seed=1)
