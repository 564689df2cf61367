"""The trainable form of diffusers' U-Net: against diffusers' own, and against its lowering."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("diffusers", reason="diffusers is the peer here")

from diffusers_peer import CONFIGS, TINY, outputs, prune, save, unet

from sparse_ddpm.convert import convert
from sparse_ddpm.model.build import build_model
from sparse_ddpm.model.unet2d import UNet2D
from sparse_ddpm.ticket import UNet2DConfig, parameters_of


@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_diffusers_computes(tmp_path: Path, name: str) -> None:
    peer = unet(**CONFIGS[name])
    ticket = convert(save(peer, tmp_path))
    model = build_model(ticket.architecture)
    state = {name: torch.from_numpy(weight.copy()) for name, weight in ticket.weights.items()}
    model.load_state_dict(state, strict=True)
    config = {**TINY, **CONFIGS[name]}
    shape = (2, config["in_channels"], config["sample_size"], config["sample_size"])
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with torch.no_grad():
        got = model.double()(torch.from_numpy(x).double(), torch.tensor([7, 7])).numpy()
    wanted = outputs(peer, x, 7)
    assert np.abs(got - wanted).max() < 1e-6 * np.abs(wanted).max()


def test_its_state_dict_has_the_names_of_the_ticket(tmp_path: Path) -> None:
    ticket = convert(save(unet(), tmp_path))
    assert isinstance(ticket.architecture, UNet2DConfig)
    model = UNet2D(ticket.architecture)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert state == {p.name: p.shape for p in parameters_of(ticket.architecture)}
    assert {p.name for p in ticket.parameters() if p.prunable} < model.masked().keys()


def test_masked_weights_get_no_part_of_the_output(tmp_path: Path) -> None:
    peer = unet()
    prune(peer, 0.9)
    ticket = convert(save(peer, tmp_path))
    model = build_model(ticket.architecture)
    state = {name: torch.from_numpy(weight.copy()) for name, weight in ticket.weights.items()}
    masks = {name: torch.from_numpy(mask.copy()) for name, mask in ticket.masks.items()}
    for name, mask in masks.items():
        state[name] = torch.where(mask, state[name], torch.full_like(state[name], 9.0))
    model.load_state_dict(state)
    model.set_masks(masks)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1, 8, 8), np.float32))
    with torch.no_grad():
        got = model(x, torch.tensor([300, 300])).numpy()
    wanted = outputs(peer, x.numpy(), 300)
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
    model(x, torch.tensor([1, 2])).sum().backward()
    for name, module in model.masked().items():
        if name in masks:
            assert module.weight.grad is not None
            assert not module.weight.grad[~masks[name]].any()


def test_verify_lays_it_beside_the_program(tmp_path: Path) -> None:
    from sparse_ddpm.verify import verify

    peer = unet(**CONFIGS["scaled middle"])
    prune(peer, 0.5)
    ticket = convert(save(peer, tmp_path))
    found = verify(ticket, steps=2, oracle="torch", threads=1)
    assert found.passed
    assert found.operations["up_blocks.1.attentions.1.qkv"] < 1e-5
    assert all(".cat" in n or ".scaled" in n or "space_to" in n for n in found.unmatched)
