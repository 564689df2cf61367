"""diffusers' U-Net, lowered: against diffusers' own, value for value and by every engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("diffusers", reason="diffusers is the peer here")

from diffusers_peer import CONFIGS, MASKS, TINY, outputs, prune, save, unet

from sparse_ddpm.accounting import program_flops
from sparse_ddpm.convert import Options, convert
from sparse_ddpm.convert.diffusers_config import architecture_of
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.plan import make_plan
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.lower import lower, lower_unet
from sparse_ddpm.lower.unet2d import lower_unet2d, strided
from sparse_ddpm.program import Conv
from sparse_ddpm.sampling import make_table, sample_loop
from sparse_ddpm.sampling.noise import normal
from sparse_ddpm.ticket import MODELS, UNet2DConfig, UNetConfig, synthetic_ticket

TIMESTEPS = np.array([999, 500, 0])
TOLERANCE = 1e-5


def images(config: dict[str, Any], count: int = 3) -> NDArray[np.float32]:
    size, channels = config["sample_size"], config["in_channels"]
    rng = np.random.default_rng(1)
    return rng.standard_normal((count, channels, size, size), dtype=np.float32)


def relative(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("sparsity", MASKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_engine_makes_diffusers_outputs(tmp_path: Path, name: str, sparsity: float) -> None:
    model = unet(**CONFIGS[name])
    prune(model, sparsity)
    ticket = convert(save(model, tmp_path))
    assert ticket.sparsity == pytest.approx(sparsity, abs=0.02)
    program = lower(ticket)
    x = images({**TINY, **CONFIGS[name]})
    reference, cpu = ReferenceEngine(program, len(x)), CpuEngine(program, len(x), 1)
    for engine in (reference, cpu):
        engine.set_schedule(TIMESTEPS)
    for step, t in enumerate(TIMESTEPS):
        wanted = outputs(model, x, int(t))
        assert relative(reference.values(x, step)[program.output], wanted) < TOLERANCE
        assert relative(cpu.run(x, step), wanted) < TOLERANCE


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_stride_becomes_channels(padding: int, pruned: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 3, 3, 3), dtype=np.float32)
    mask = rng.random(weight.shape) < 0.4 if pruned else None
    if mask is not None:
        weight *= mask
    wide, keep = strided(weight, mask, padding)
    assert wide.shape == keep.shape == (5, 12, 3, 3)
    assert keep.sum() == (weight.size if mask is None else mask.sum())
    assert not wide[~keep].any()
    x = torch.from_numpy(rng.standard_normal((2, 3, 8, 6), dtype=np.float32)).double()
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1)) if padding == 0 else x
    wanted = torch.nn.functional.conv2d(
        padded, torch.from_numpy(weight).double(), stride=2, padding=padding
    )
    deep = torch.nn.functional.pixel_unshuffle(x, 2)
    got = torch.nn.functional.conv2d(deep, torch.from_numpy(wide).double(), padding=1)
    torch.testing.assert_close(got, wanted)


TICKET = UNet2DConfig(
    channels=3,
    image_size=8,
    block_out_channels=(16, 24),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    time_dim=32,
    norm_num_groups=8,
    attn_norm_num_groups=8,
)


@pytest.mark.parametrize("pattern", ["element", "vector:8", "vector:5", "block:8x2"])
def test_weights_stay_in_the_units_of_their_pattern(pattern: str) -> None:
    ticket = synthetic_ticket(TICKET, 0.8, pattern)
    program = lower(ticket)
    stored = sum(op.weight.nnz for op in program.operations if isinstance(op, Conv))
    convs = [p.name for p in ticket.parameters() if len(p.shape) == 4]
    survivors = sum(ticket.survivors(name) for name in convs)
    # Units that an edge cuts off, and those of several channels under a stride, cost a little.
    assert survivors <= stored <= 1.3 * survivors
    assert stored == survivors or pattern != "element"
    x = images({"sample_size": 8, "in_channels": 3}, 2)
    reference, cpu = ReferenceEngine(program, 2), CpuEngine(program, 2, 1)
    for engine in (reference, cpu):
        engine.set_schedule(TIMESTEPS)
    assert relative(cpu.run(x, 1), reference.run(x, 1)) < TOLERANCE


def test_another_architecture_is_refused() -> None:
    from sparse_ddpm.errors import ProgramError

    with pytest.raises(ProgramError, match="expected UNetConfig, got UNet2DConfig"):
        lower_unet(synthetic_ticket(TICKET, 0.0))
    small = UNetConfig(dim=8, dim_mults=(1,), channels=1, image_size=4)
    with pytest.raises(ProgramError, match="expected UNet2DConfig, got UNetConfig"):
        lower_unet2d(synthetic_ticket(small, 0.0))


def test_the_cat_model_is_planned() -> None:
    """google/ddpm-cat-256 but for the size of its images, at 99 %."""
    config = dataclasses.replace(MODELS["ddpm-cat"], image_size=32)
    program = lower(synthetic_ticket(config, 0.99, "vector:16"))
    plan = make_plan(program, 1)
    assert program.shapes[program.output] == (3, 32, 32)
    flops = program_flops(program)
    assert flops.surviving < 0.05 * flops.dense
    assert plan.flops < 1.2 * flops.surviving


def test_onnx_computes_it(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the onnx extra")
    ort = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    from sparse_ddpm_export import export_denoiser

    model = unet(**CONFIGS["one head, padding below"])
    prune(model, 0.5)
    program = lower(convert(save(model, tmp_path)))
    session = ort.InferenceSession(export_denoiser(program).SerializeToString())
    x = images(TINY)
    wanted = [outputs(model, x[i : i + 1], int(t))[0] for i, t in enumerate(TIMESTEPS)]
    (got,) = session.run(["model_output"], {"x": x, "t": TIMESTEPS.astype(np.float32)})
    assert relative(got, np.stack(wanted)) < TOLERANCE


def test_onnx_samples_with_it(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the onnx extra")
    ort = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    from sparse_ddpm_export import export_sampler

    ticket = convert(save(unet(), tmp_path))
    table = make_table(ticket.diffusion, steps=4)
    program = lower(ticket)
    shape = program.input_shape
    with CpuEngine(program, 2, 1) as engine:
        engine.set_schedule(table.timesteps)
        wanted = sample_loop(engine.run, table, seed=2, image_indices=np.arange(2), shape=shape)
    session = ort.InferenceSession(export_sampler(program, table).SerializeToString())
    (got,) = session.run(["images"], {"noise": normal(2, np.arange(2), 0, shape)})
    assert np.abs(got - wanted).max() < 1e-3


def test_a_gpu_computes_it(triton_dtypes: Any) -> None:
    from sparse_ddpm.engine.cuda import CudaEngine

    small = dataclasses.replace(TICKET, image_size=4, block_out_channels=(8, 16))
    program = lower(synthetic_ticket(small, 0.8, "vector:16"))
    x = images({"sample_size": 4, "in_channels": 3}, 1)
    reference = ReferenceEngine(program, 1)
    reference.set_schedule(TIMESTEPS)
    limits = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}
    for dtype in (str(each).removeprefix("torch.") for each in triton_dtypes):
        # The kernels of convolutions have tests of their own; interpreted they take minutes.
        kernel = "cudnn" if dtype == "float32" else None
        with CudaEngine(program, 1, dtype, kernel=kernel) as engine:
            engine.set_schedule(TIMESTEPS)
            for step in (1, 0):
                assert relative(engine.run(x, step), reference.run(x, step)) < limits[dtype]


def test_costs_count_the_pixels_of_every_convolution() -> None:
    from sparse_ddpm.lottery.costs import pixels_of

    config = dataclasses.replace(
        TICKET,
        block_out_channels=(16, 24, 32),
        down_block_types=("DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    )
    ticket = synthetic_ticket(config, 0.0)
    program = lower_unet2d(ticket)
    shapes = {op.out: program.shapes[op.out] for op in program.operations if isinstance(op, Conv)}
    for name, pixels in pixels_of(config).items():
        value = name.removesuffix(".weight")
        for part in (".to_q", ".to_k", ".to_v"):
            value = value.replace(part, ".qkv")
        wanted = 0 if "time_emb_proj" in name else shapes[value][1] * shapes[value][2]
        assert pixels == wanted, name


def test_dense_flops_are_those_of_diffusers() -> None:
    """Of a stride's convolution too, whose weight has four times as many columns here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = unet(**CONFIGS["attention in other places"])
    # The counter does not know the CPU's flash attention.
    plain = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        model(torch.zeros(1, 1, 8, 8), 0)
    linears = [m for n, m in model.named_modules() if n.endswith("time_emb_proj")]
    linears += [model.time_embedding.linear_1, model.time_embedding.linear_2]
    time = sum(2 * linear.weight.numel() for linear in linears)
    ticket = synthetic_ticket(architecture_of(json.loads(model.to_json_string()), Options()), 0.5)
    assert program_flops(lower(ticket)).dense == counter.get_total_flops() - time
