"""Which files convert reads, with which masks, and why it refuses the others."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lucid_unet import LucidUNet, buffers, trainer_file
from test_convert_lucidrains import difference

from sparse_ddpm.cli.main import main
from sparse_ddpm.convert import Options, convert
from sparse_ddpm.errors import ConfigError, TicketError
from sparse_ddpm.ticket import load_ticket, save_ticket, synthetic_ticket
from sparse_ddpm.ticket.config import UNetConfig

FOURTH = (1, 4, 2)
ALONE = Options(
    image_size=6,
    heads=2,
    objective="eps",
    schedule="cosine",
    timesteps=100,
    source_version="1.4.2",
)
"""All that a state dict alone does not say."""


@pytest.fixture(scope="module")
def network() -> LucidUNet:
    return LucidUNet(FOURTH, seed=4)


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "some.pt")
    return folder / "some.pt"


def masks_for(state: dict[str, Any]) -> dict[str, Any]:
    random = torch.Generator().manual_seed(9)
    return {
        name: (torch.rand(t.shape, generator=random) >= 0.8).float()
        for name, t in state.items()
        if t.ndim == 4 and ".proj." in name
    }


def masked(network: LucidUNet, masks: dict[str, Any]) -> LucidUNet:
    other = LucidUNet(network.version)
    other.state = {n: t * masks[n] if n in masks else t for n, t in network.state.items()}
    return other


def as_prune_leaves_it(state: dict[str, Any], masks: dict[str, Any]) -> dict[str, Any]:
    out = {name: tensor for name, tensor in state.items() if name not in masks}
    for name, mask in masks.items():
        out |= {f"{name}_orig": state[name], f"{name}_mask": mask}
    return out


FORMS: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "prune": as_prune_leaves_it,
    "wrapped": lambda s, m: {f"module.{n}": t for n, t in as_prune_leaves_it(s, m).items()},
    "in a table": lambda s, m: {"state_dict": as_prune_leaves_it(s, m), "epoch": 3},
    "state_dict and mask": lambda s, m: {"state_dict": s, "mask": m},
    "masks, bool, by module": lambda s, m: {
        "model_state_dict": s,
        "masks": {n.removesuffix(".weight"): t.bool() for n, t in m.items()},
    },
    "masks of another ending": lambda s, m: {
        "state_dict": s,
        "mask": {f"{n}_mask": t.to(torch.uint8) for n, t in m.items()},
    },
    "zeros": lambda s, m: {n: t * m[n] if n in m else t for n, t in s.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_masks_in_every_form(network: LucidUNet, form: str, tmp_path: Path) -> None:
    masks = masks_for(network.state)
    ticket = convert(saved(tmp_path, FORMS[form](network.state, masks)), ALONE)
    assert difference(ticket, masked(network, masks)) < 1e-5
    assert len(ticket.masks) == len(masks)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert sum(int(mask.sum()) for mask in ticket.masks.values()) == kept
    assert ticket.architecture.weight_standardization == "full"


def test_a_trainers_file_with_prunes_names(network: LucidUNet, tmp_path: Path) -> None:
    masks = masks_for(network.state)
    both = {f"model.{n}": t for n, t in as_prune_leaves_it(network.state, masks).items()}
    table = {**buffers("cosine", "pred_noise", 100, FOURTH), **both}
    content = {"step": 1, "model": table, "ema": {}, "version": "1.4.2"}
    options = Options(image_size=6, heads=2, objective="eps", raw=True)
    ticket = convert(saved(tmp_path, content), options)
    assert difference(ticket, masked(network, masks)) < 1e-5
    assert len(ticket.masks) == len(masks)


def test_a_safetensors_file(network: LucidUNet, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(network.state, tmp_path / "some.safetensors")
    assert difference(convert(tmp_path / "some.safetensors", ALONE), network) < 1e-5


def test_half_precision_is_widened(network: LucidUNet, tmp_path: Path) -> None:
    halves = LucidUNet(FOURTH)
    halves.state = {name: tensor.half() for name, tensor in network.state.items()}
    assert difference(convert(saved(tmp_path, halves.state), ALONE), halves) < 1e-5


def test_a_mask_that_keeps_zeros_is_not_guessed_from_them(
    network: LucidUNet, tmp_path: Path
) -> None:
    state = {name: tensor.clone() for name, tensor in network.state.items()}
    name = "mid_block1.block1.proj.weight"
    state[name][0, 0] = 0.0
    mask = torch.ones_like(state[name])
    mask[1] = 0
    ticket = convert(saved(tmp_path, {"state_dict": state, "mask": {name: mask}}), ALONE)
    assert np.array_equal(ticket.masks["mid.block1.conv1.weight"], mask.bool().numpy())


def without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


def changed(network: LucidUNet, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {**network.state, name: torch.ones(shape)}


REFUSED: dict[str, tuple[Callable[[LucidUNet], Any], Options, str]] = {
    "no size": (
        lambda n: trainer_file(n),
        Options(objective="eps", heads=2),
        "image size: expected --image-size N (a U-Net's weights fit images of any size), got none.",
    ),
    "no objective": (
        lambda n: trainer_file(n),
        Options(image_size=6, heads=2),
        "objective: expected --objective eps or x0 or v (the checkpoint does not say it), got none",
    ),
    "no heads": (
        lambda n: trainer_file(n),
        Options(image_size=6, objective="eps"),
        "heads: expected --heads N (they have 8 channels together",
    ),
    "heads that do not fit": (
        lambda n: n.state,
        Options(image_size=6, heads=3, source_version="1.4.2"),
        "heads: expected a divisor of 8, got 3.",
    ),
    "no version": (
        lambda n: n.state,
        Options(image_size=6, heads=2),
        "version: expected --source-version (of denoising-diffusion-pytorch: 1.6 and 1.7 differ",
    ),
    "another version": (
        lambda n: trainer_file(n),
        Options(image_size=6, heads=2, source_version="1.7.7"),
        "--source-version: expected 1.4.2, as the file says, got 1.7.7.",
    ),
    "another schedule": (
        lambda n: trainer_file(n),
        Options(image_size=6, heads=2, objective="eps", schedule="cosine"),
        "--schedule: expected 'sigmoid', as the checkpoint says, got 'cosine'.",
    ),
    "a schedule of its own": (
        lambda n: {
            **trainer_file(n),
            "ema": {
                **trainer_file(n)["ema"],
                "ema_model.alphas_cumprod": torch.linspace(1, 0, 1000) ** 3,
            },
        },
        Options(image_size=6, heads=2, objective="eps"),
        "alphas_cumprod: expected one of the schedules",
    ),
    "no average": (
        lambda n: without(trainer_file(n), "ema"),
        Options(image_size=6),
        "ema: expected the average of the weights, or --raw, got none.",
    ),
    "raw without an average": (
        lambda n: n.state,
        Options(raw=True),
        "--raw: expected a trainer's file, with an average, got a file with one set of weights.",
    ),
    "a missing tensor": (
        lambda n: without(n.state, "mid_block2.mlp.1.bias"),
        ALONE,
        "mid.block2.film.bias: expected a tensor [32] (our name of it), got none.",
    ),
    "a tensor too many": (
        lambda n: {**n.state, "label_emb.weight": torch.ones(3, 3)},
        ALONE,
        "label_emb.weight: expected a tensor of a U-Net of denoising-diffusion-pytorch, got",
    ),
    "a block too many": (
        lambda n: {**n.state, "ups.7.0.block1.proj.bias": torch.ones(8)},
        ALONE,
        "ups.7.0.block1.proj.bias: expected no such tensor in this U-Net, got one.",
    ),
    "another shape": (
        lambda n: changed(n, "downs.1.0.block2.proj.weight", (8, 8, 5, 5)),
        ALONE,
        "downs.1.0.block2.proj.weight: expected shape [8, 8, 3, 3], got [8, 8, 5, 5].",
    ),
    "halving of version 0.31": (
        lambda n: changed(n, "downs.0.3.1.weight", (8, 8, 4, 4)),
        ALONE,
        "downs.0.3.1.weight: expected space to depth and a 1x1 convolution, as from version 0.32",
    ),
    "self-conditioning": (
        lambda n: changed(n, "init_conv.weight", (8, 2, 7, 7)),
        ALONE,
        "init_conv.weight: expected 1 channels, those of an image, got 2: self-conditioning.",
    ),
    "a learned variance": (
        lambda n: changed(n, "final_conv.weight", (2, 8, 1, 1)),
        ALONE,
        "final_conv.weight: expected 1 channels, those of an image, got 2: a learned variance.",
    ),
    "another first width": (
        lambda n: changed(n, "time_mlp.1.weight", (64, 16)),
        ALONE,
        "time_mlp.1.weight: expected shape [32, 8], as with init_dim equal to dim, got [64, 16].",
    ),
    "learned frequencies": (
        lambda n: {**n.state, "time_mlp.0.weights": torch.ones(8)},
        ALONE,
        "got learned or random frequencies of time.",
    ),
    "an epsilon of its own": (
        lambda n: n.state,
        Options(image_size=6, heads=2, source_version="1.7.1"),
        "version: expected another than 1.7.1",
    ),
    "a mask without its weight": (
        lambda n: {**n.state, "init_conv.weight_mask": torch.ones(8, 1, 7, 7)},
        ALONE,
        "init_conv.weight_mask: expected init_conv.weight_orig beside it, got none.",
    ),
    "a weight without its mask": (
        lambda n: {
            **without(n.state, "init_conv.weight"),
            "init_conv.weight_orig": n.state["init_conv.weight"],
        },
        ALONE,
        "init_conv.weight_orig: expected init_conv.weight_mask beside it, got none.",
    ),
    "a mask of numbers": (
        lambda n: {"state_dict": n.state, "mask": {"init_conv": torch.full((8, 1, 7, 7), 0.5)}},
        ALONE,
        "mask: init_conv: expected 0 and 1, got other numbers.",
    ),
    "a mask of another shape": (
        lambda n: {"state_dict": n.state, "mask": {"init_conv": torch.ones(3)}},
        ALONE,
        "mask: init_conv: expected shape [8, 1, 7, 7], got [3].",
    ),
    "a mask of nothing": (
        lambda n: {"state_dict": n.state, "mask": {"nobody": torch.ones(3)}},
        ALONE,
        "mask: nobody: expected the name of a weight, got no such.",
    ),
    "masks without names": (
        lambda n: {"state_dict": n.state, "mask": [torch.ones(3)]},
        ALONE,
        "mask: expected a table of masks by name, got a list",
    ),
    "integers": (
        lambda n: {**n.state, "final_conv.bias": torch.ones(1, dtype=torch.int64)},
        ALONE,
        "final_conv.bias: expected a dense tensor of floats, got torch.int64",
    ),
    "doubles": (
        lambda n: {**n.state, "final_conv.bias": torch.full((1,), 0.1, dtype=torch.float64)},
        ALONE,
        "final_conv.bias: expected values that float32 holds, got float64 with more digits.",
    ),
    "no number": (
        lambda n: {**n.state, "final_conv.bias": torch.full((1,), float("nan"))},
        ALONE,
        "final_conv.bias: expected finite values, got 1 NaN or infinite.",
    ),
    "weights of diffusers": (
        lambda _: {"conv_in.weight": torch.ones(1)},
        ALONE,
        "expected the folder with config.json beside it, got the weights of a diffusers model",
    ),
    "no table": (lambda _: torch.ones(3), ALONE, "expected a table of tensors, got a Tensor."),
    "no tensors": (lambda _: {"a": 1}, ALONE, "checkpoint: 'a': expected a tensor, got a int."),
    "size that does not halve": (
        lambda n: n.state,
        Options(image_size=7, heads=2, source_version="1.4.2"),
        "architecture.image_size: expected a multiple of 2, got 7.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused(network: LucidUNet, case: str, tmp_path: Path) -> None:
    make, options, says = REFUSED[case]
    with pytest.raises((TicketError, ConfigError)) as caught:
        convert(saved(tmp_path, make(network)), options)
    assert says in str(caught.value)


class Odd:
    """An object that only this test's module knows how to make again."""


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    with pytest.raises(TicketError, match=r"never unpickled here \(open it where it was made"):
        convert(saved(tmp_path, {"model": Odd(), "step": 1}), ALONE)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"a": Odd()}, protocol=2))
    with pytest.raises(TicketError, match="expected a file of tensors"):
        convert(tmp_path / "raw.pt", ALONE)


def test_what_is_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(TicketError, match="expected a checkpoint or a folder, got nothing there"):
        convert(tmp_path / "nobody.pt", ALONE)
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)) * 9)
    with pytest.raises(TicketError, match="expected a file of tensors"):
        convert(tmp_path / "noise.pt", ALONE)
    config = UNetConfig(dim=8, dim_mults=(1,), channels=1, image_size=4)
    save_ticket(synthetic_ticket(config, 0.5), tmp_path / "ticket.pt")
    with pytest.raises(TicketError, match="expected a checkpoint, got a ticket already"):
        convert(tmp_path / "ticket.pt", ALONE)


def test_the_command(
    network: LucidUNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, trainer_file(network))
    words = ["convert", str(path), "-o", str(tmp_path / "t.pt"), "--image-size", "6"]
    assert main(words) == 1
    assert "--heads" in capsys.readouterr().err
    words += ["--heads", "2", "--objective", "eps"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "sparsity 0.00%; eps objective, sigmoid schedule of 1000 steps" in shown.out
    assert shown.err == ""
    assert difference(load_ticket(tmp_path / "t.pt"), network) < 1e-5
    assert main([*words, "--prune", "0.9", "--pattern", "vector:4", "--allocation", "lamp",
                 "--store", "float16", "--no-clip", "--json"]) == 0  # fmt: skip
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert "until it is fine-tuned (sparse-ddpm train --from" in shown.err
    assert result["schema"] == 1
    assert result["fine_tuning_needed"]
    assert result["sparsity"] >= 0.9
    ticket = load_ticket(tmp_path / "t.pt")
    assert ticket.sparsity == result["sparsity"]
    assert not ticket.diffusion.clip
    assert ticket.provenance.allocation == "lamp"
    assert main([*words, "--pattern", "vector:4"]) == 1
    assert "--pattern: expected --prune beside it, got none." in capsys.readouterr().err
