"""diffusers folders become tickets: every layout, and every reason to refuse one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("diffusers", reason="diffusers is the peer here")

from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from diffusers_peer import CONFIGS, TINY, outputs, prune, save, unet

from sparse_ddpm.convert import Options, convert
from sparse_ddpm.convert.diffusers_scheduler import diffusion_of
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.errors import ConfigError, SparseDDPMError, TicketError
from sparse_ddpm.lower import lower
from sparse_ddpm.sampling import alphas_cumprod, make_table, sample_loop
from sparse_ddpm.sampling.noise import normal
from sparse_ddpm.ticket import DiffusionConfig, Ticket

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning:diffusers")

STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def model() -> UNet2DModel:
    made = unet()
    prune(made, 0.9)
    return made


@pytest.fixture
def folder(model: UNet2DModel, tmp_path: Path) -> Path:
    return save(model, tmp_path / "pipeline")


def edit(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file; None drops nothing, it is JSON's null."""
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, **fields}))


def same_weights(ticket: Ticket, model: UNet2DModel) -> None:
    state = model.state_dict()
    assert ticket.weights.keys() == state.keys()
    for name, weight in ticket.weights.items():
        assert np.array_equal(weight, state[name].numpy().reshape(weight.shape)), name


@pytest.mark.parametrize("sampler", [DDIMScheduler, DDPMScheduler])
def test_a_pipeline_s_folder(model: UNet2DModel, tmp_path: Path, sampler: Any) -> None:
    ticket = convert(save(model, tmp_path, sampler(num_train_timesteps=500)))
    same_weights(ticket, model)
    assert ticket.sparsity == pytest.approx(0.9, abs=0.01)
    assert ticket.provenance.sparsity == ticket.sparsity
    assert ticket.diffusion.timesteps == 500


def test_torch_files_and_folders_with_all_in_one(model: UNet2DModel, tmp_path: Path) -> None:
    """As in google/ddpm-cifar10-32: no folders inside, a pickle of the weights."""
    model.save_pretrained(tmp_path, safe_serialization=False)
    DDPMScheduler().save_pretrained(tmp_path)
    assert (tmp_path / f"{STEM}.bin").is_file()
    same_weights(convert(tmp_path), model)
    inner = save(model, tmp_path / "other") / "unet"
    same_weights(convert(inner), model)  # its scheduler is found beside it


def test_weights_in_pieces(model: UNet2DModel, tmp_path: Path) -> None:
    folder = save(model, tmp_path, max_shard_size="40KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    same_weights(convert(folder), model)
    index = folder / "unet" / f"{STEM}.safetensors.index.json"
    edit(index, weight_map={"conv_in.weight": "../elsewhere.safetensors"})
    with pytest.raises(TicketError, match="weight_map: expected files beside it"):
        convert(folder)
    edit(index, weight_map=3)
    with pytest.raises(TicketError, match="weight_map: expected a table of file names"):
        convert(folder)


def test_half_precision_is_widened(model: UNet2DModel, tmp_path: Path) -> None:
    half = UNet2DModel.from_config(model.config).half()
    half.load_state_dict(model.state_dict())
    told: list[str] = []
    ticket = convert(save(half, tmp_path, variant="fp16"), Options(tell=told.append))
    same_weights(ticket, half.float())
    assert [text.rpartition(" has ")[2] for text in told] == [
        "half precision, and there is no other file."
    ]


def test_a_training_run_s_average_is_taken_before_what_it_averages(
    model: UNet2DModel, tmp_path: Path
) -> None:
    other = unet(seed=5)
    folder = save(other, tmp_path)
    ema = EMAModel(model.parameters(), model_cls=UNet2DModel, model_config=model.config)
    ema.save_pretrained(folder / "unet_ema")
    same_weights(convert(folder), model)
    same_weights(convert(folder, Options(raw=True)), other)


def test_old_names_of_attention(model: UNet2DModel, folder: Path) -> None:
    from safetensors.torch import save_file

    old = {}
    for name, tensor in model.state_dict().items():
        for new, was in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            name = name.replace(f".{new}.", f".{was}.")
        old[name.replace(".to_out.0.", ".proj_attn.")] = tensor.contiguous()
    assert any("proj_attn" in name for name in old)
    save_file(old, folder / "unet" / f"{STEM}.safetensors")
    same_weights(convert(folder), model)


def test_masks_beside_weights(model: UNet2DModel, folder: Path) -> None:
    state = dict(model.state_dict())
    name = "down_blocks.1.attentions.0.to_q.weight"
    weight = state.pop(name)
    mask = torch.zeros_like(weight)
    mask[:4] = 1.0
    (folder / "unet" / f"{STEM}.safetensors").unlink()
    state |= {f"{name}_orig": torch.ones_like(weight), f"{name}_mask": mask}
    torch.save(state, folder / "unet" / f"{STEM}.bin")
    ticket = convert(folder)
    assert np.array_equal(ticket.masks[name][:, :, 0, 0], mask.numpy() == 1.0)
    assert np.array_equal(ticket.weights[name][:, :, 0, 0], mask.numpy())


def test_dropout_is_said_to_be_left_out(folder: Path) -> None:
    edit(folder / "unet" / "config.json", dropout=0.1)
    told: list[str] = []
    convert(folder, Options(tell=told.append))
    assert told == ["dropout 0.1 is for training alone and is left out."]


def test_an_old_configuration_s_missing_fields_have_their_defaults(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    table = json.loads(path.read_text())
    kept = {n: v for n, v in table.items() if n in TINY or n == "_class_name"}
    kept["down_block_types"] = ["UNetRes" + kind for kind in kept["down_block_types"]]
    before = convert(folder)
    path.write_text(json.dumps(kept))
    assert convert(folder).equals(before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name: expected 'UNet2DModel'"),
        ({"new_field": 3}, "config.json: expected fields of UNet2DModel, got 'new_field'"),
        ({"center_input_sample": True}, "center_input_sample: expected false, got true"),
        ({"time_embedding_type": "fourier"}, 'time_embedding_type: expected "positional", got'),
        ({"mid_block_type": "Other"}, 'mid_block_type: expected "UNetMidBlock2D" or null'),
        ({"act_fn": "mish"}, 'act_fn: expected "silu" or "swish", got "mish"'),
        ({"class_embed_type": "timestep"}, "class_embed_type: expected null"),
        ({"num_class_embeds": 10}, "num_class_embeds: expected null, got 10"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift: expected"),
        ({"downsample_type": None}, 'downsample_type: expected "conv" or "resnet", got null'),
        ({"downsample_padding": 2}, "downsample_padding: expected 0 or 1, got 2"),
        ({"out_channels": 2}, "out_channels: expected as many as in_channels"),
        ({"sample_size": [8, 16]}, r"sample_size: expected a square, got \[8, 16\]"),
        ({"sample_size": None}, "sample_size: expected a number .*--image-size"),
        ({"sample_size": "8"}, "sample_size: expected an integer"),
        ({"block_out_channels": 8}, "block_out_channels: expected a list"),
        ({"block_out_channels": []}, "block_out_channels: expected 1 to 10 items"),
        ({"block_out_channels": ["8"]}, "block_out_channels: expected an integer"),
        ({"down_block_types": ["SkipDownBlock2D"] * 3}, "down_block_types: expected one of"),
        ({"layers_per_block": None}, "layers_per_block: expected an integer"),
        ({"norm_num_groups": None}, "norm_num_groups: expected an integer"),
        ({"attention_head_dim": 64}, "head_dim: expected at most"),
        ({"attention_head_dim": 0}, "attention_head_dim: expected an integer of at least 1"),
        ({"attn_norm_num_groups": 0}, "attn_norm_num_groups: expected an integer of at least 1"),
        ({"norm_eps": "x"}, "norm_eps: expected a float"),
        ({"add_attention": None}, "add_attention: expected true or false"),
        ({"attn_norm_num_groups": 5}, "attn_norm_num_groups: expected a divisor"),
    ],
)
def test_models_that_are_refused(folder: Path, fields: dict[str, Any], message: str) -> None:
    edit(folder / "unet" / "config.json", **fields)
    with pytest.raises((TicketError, ConfigError), match=message):
        convert(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(image_size=16), "--image-size: expected 8, as config.json says, got 16"),
        (Options(groups=4), "--groups: expected none for a diffusers folder"),
        (Options(heads=4), "--heads: expected none for a diffusers folder"),
        (Options(source_version="1"), "--source-version: expected none"),
        (Options(schedule="cosine"), "--schedule: expected 'linear', as scheduler_config.json"),
        (Options(timesteps=10), "--timesteps: expected 1000, as scheduler_config.json says"),
        (Options(clip=False), "--clip: expected True, as scheduler_config.json says"),
    ],
)
def test_options_that_the_folder_contradicts(folder: Path, options: Options, message: str) -> None:
    with pytest.raises(TicketError, match=message):
        convert(folder, options)


def test_files_that_are_missing_or_damaged(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TicketError, match="expected a diffusers folder"):
        convert(tmp_path / "empty")
    shutil.rmtree(folder / "scheduler")
    wanted = "expected a file of the scheduler, or --schedule --objective --timesteps, got none"
    with pytest.raises(TicketError, match=wanted):
        convert(folder)
    given = Options(schedule="cosine", objective="v", timesteps=100, clip=False)
    assert convert(folder, given).diffusion == DiffusionConfig(100, "cosine", "v", False)
    weights = folder / "unet" / f"{STEM}.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TicketError, match="expected a file of tensors"):
        convert(folder, given)
    weights.unlink()
    with pytest.raises(TicketError, match=f"expected {STEM}.safetensors or {STEM}.bin"):
        convert(folder, given)
    for content, message in (("{", "a JSON file"), ("[]", "a table"), ("[" * 9**5, "a JSON file")):
        (folder / "unet" / "config.json").write_text(content)
        with pytest.raises(TicketError, match=f"expected {message}"):
            convert(folder, given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_in.bias": None}, "weights: expected a tensor conv_in.bias, got none"),
        ({"other": torch.zeros(1)}, "no other tensors than config.json asks for, got other"),
        ({"conv_in.bias": torch.zeros(3)}, r"conv_in.bias: expected shape \[16\], got \[3\]"),
        ({"conv_in.bias": torch.full((16,), torch.nan)}, "conv_in.bias: expected finite"),
        ({"conv_in.bias": torch.zeros(16, dtype=torch.int64)}, "a dense tensor of floats"),
    ],
)
def test_weights_that_do_not_fit(
    model: UNet2DModel, folder: Path, change: dict[str, Any], message: str
) -> None:
    (folder / "unet" / f"{STEM}.safetensors").unlink()
    state = {**model.state_dict(), **change}
    torch.save({n: t for n, t in state.items() if t is not None}, folder / "unet" / f"{STEM}.bin")
    with pytest.raises(TicketError, match=message):
        convert(folder)


SCHEDULES: list[dict[str, Any]] = [
    {},
    {"num_train_timesteps": 200, "beta_start": 0.001, "beta_end": 0.05},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "scaled_linear", "num_train_timesteps": 300},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 77, "beta_end": 0.5},
]


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("settings", SCHEDULES)
def test_schedules_are_diffusers_own(settings: dict[str, Any], scheduler: Any) -> None:
    made = scheduler(**settings)
    table = json.loads(made.to_json_string())
    ours = alphas_cumprod(diffusion_of(table, Options()))
    np.testing.assert_allclose(ours, made.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [True, False])
def test_objective_and_clipping(prediction: str, clip: bool) -> None:
    made = DDIMScheduler(prediction_type=prediction, clip_sample=clip, clip_sample_range=1.0)
    found = diffusion_of(json.loads(made.to_json_string()), Options())
    assert found.objective == {"epsilon": "eps", "sample": "x0"}.get(prediction, "v")
    assert found.clip is clip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "scheduler: expected DDPMScheduler or DDIMScheduler"),
        ({"trained_betas": [0.1]}, "scheduler's trained_betas: expected None"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: expected False, got True"),
        ({"thresholding": True}, "scheduler's thresholding: expected False, got True"),
        ({"clip_sample_range": 2.0}, "scheduler's clip_sample_range: expected 1.0, got 2.0"),
        ({"clip_sample": None}, "diffusion.clip: expected true or false"),
        ({"beta_schedule": "sigmoid"}, "scheduler's beta_schedule: expected one of linear,"),
        ({"beta_schedule": ["linear"]}, "scheduler's beta_schedule: expected one of linear,"),
        ({"prediction_type": "flow"}, "scheduler's prediction_type: expected one of epsilon,"),
        ({"beta_end": 1.0}, "scheduler's beta_end: expected a number above 0, at most 0.999"),
        ({"beta_start": "0"}, "scheduler's beta_start: expected a number above 0"),
        ({"beta_start": 0.5}, "diffusion.beta_start: expected at most beta_end"),
        ({"num_train_timesteps": 0}, "diffusion.timesteps: expected an integer from 1"),
        ({"num_train_timesteps": "9"}, "diffusion.timesteps: expected an integer from 1"),
    ],
)
def test_schedulers_that_are_refused(fields: dict[str, Any], message: str) -> None:
    table = {"_class_name": "DDPMScheduler", **fields}
    with pytest.raises(SparseDDPMError, match=message):
        diffusion_of(table, Options())


def test_sampling_settings_that_tickets_lack_are_told() -> None:
    told: list[str] = []
    made = DDPMScheduler(variance_type="fixed_large")
    diffusion_of(json.loads(made.to_json_string()), Options(tell=told.append))
    made = DDIMScheduler(set_alpha_to_one=False)
    diffusion_of(json.loads(made.to_json_string()), Options(tell=told.append))
    assert [text.split()[0] for text in told] == ["variance_type", "set_alpha_to_one"]
    assert PNDMScheduler.__name__ not in "".join(told)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("name", "settings", "spacing"),
    [
        ("attention in other places", {}, "leading"),
        ("scale and shift", {"beta_schedule": "squaredcos_cap_v2"}, "trailing"),
        ("one head, padding below", {"prediction_type": "v_prediction"}, "trailing"),
        ("scaled middle", {"beta_schedule": "scaled_linear", "clip_sample": False}, "leading"),
    ],
)
def test_images_after_50_steps(
    tmp_path: Path, name: str, settings: dict[str, Any], spacing: str, sparsity: float
) -> None:
    model = unet(**CONFIGS[name])
    prune(model, sparsity)
    with torch.no_grad():
        model.conv_out.weight.mul_(0.5)
    scheduler = DDIMScheduler(timestep_spacing=spacing, **settings)
    ticket = convert(save(model, tmp_path, scheduler))
    table = make_table(ticket.diffusion, steps=50, spacing=spacing, clip_eps="keep")
    program = lower(ticket)
    with CpuEngine(program, 2, 1) as engine:
        engine.set_schedule(table.timesteps)
        got = sample_loop(
            engine.run, table, seed=4, image_indices=np.arange(2), shape=program.input_shape
        )
    wanted = pipeline(model, scheduler, normal(4, np.arange(2), 0, program.input_shape))
    error = np.abs(got - wanted).max() / max(1.0, float(np.abs(wanted).max()))
    assert error < 1e-3


def pipeline(
    model: UNet2DModel, scheduler: DDIMScheduler, noise: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The loop of diffusers' DDIMPipeline, on the noise that is given.

    In float64: an untrained network makes a thousandth of float32's rounding.
    """
    scheduler.set_timesteps(50)
    x = torch.from_numpy(noise).double()
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model.double()(x, t).sample, t, x).prev_sample
    return np.asarray(x.numpy())


def test_a_converted_file_computes_the_same_again(tmp_path: Path) -> None:
    from sparse_ddpm.ticket import load_ticket, save_ticket

    model = unet(**CONFIGS["heads that do not divide"])
    prune(model, 0.9)
    path = tmp_path / "ticket.pt"
    save_ticket(convert(save(model, tmp_path)), path)
    program = lower(load_ticket(path))
    x = normal(0, np.arange(2), 0, program.input_shape)
    with CpuEngine(program, 2, 1) as engine:
        engine.set_schedule(np.array([100]))
        got = engine.run(x, 0)
    wanted = outputs(model, x, 100)
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
