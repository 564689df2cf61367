"""Converted checkpoints beside denoising-diffusion-pytorch itself: outputs and images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lucidrains_peer as peer
from lucid_unet import LucidUNet

from sparse_ddpm import Sampler
from sparse_ddpm.convert import Options, convert
from sparse_ddpm.engine import make_engine
from sparse_ddpm.errors import TicketError
from sparse_ddpm.lower import lower
from sparse_ddpm.sampling.noise import normal
from sparse_ddpm.ticket import Ticket

SIZE = 8


def number(version: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in (version or "0.32.0").split("."))


def original(folder: Path, sparsity: float, **chosen: Any) -> Any:
    """A diffusion of that version, random in every tensor, pruned as the fork prunes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = peer.load(folder)
    torch.manual_seed(3)
    full = {"full_attn": (False, True)} if number(peer.version_of(folder)) >= (1, 8) else {}
    network = module.Unet(dim=8, dim_mults=(1, 2), channels=2, **full)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Not the last convolution: so small a network would fall silent.
            if parameter.ndim > 1 and name.endswith("weight") and name != "final_conv.weight":
                parameter *= torch.rand_like(parameter) >= sparsity
            else:
                parameter += 0.2 * torch.randn_like(parameter)
    return module.GaussianDiffusion(network, image_size=SIZE, **chosen).eval()


def converted(diffusion: Any, folder: Path, out: Path, **options: Any) -> Ticket:
    ema = {f"ema_model.{name}": tensor for name, tensor in diffusion.state_dict().items()}
    content = {"step": 1, "model": diffusion.state_dict(), "opt": {}, "ema": ema, "scaler": None}
    version = peer.version_of(folder)
    if version is not None:
        content["version"] = version
    torch.save(content, out / "model-1.pt")
    if "ema_model.loss_weight" not in ema:
        options.setdefault("objective", "eps")
    return convert(out / "model-1.pt", Options(image_size=SIZE, **options))


def refused(folder: Path) -> str | None:
    """Why a version is refused, if it is."""
    return "1.7.1" if number(peer.version_of(folder)) == (1, 7, 1) else None


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("folder", peer.versions())
def test_one_forward_pass(folder: Path, sparsity: float, tmp_path: Path) -> None:
    diffusion = original(folder, sparsity)
    if (reason := refused(folder)) is not None:
        with pytest.raises(TicketError, match=reason):
            converted(diffusion, folder, tmp_path)
        return
    ticket = converted(diffusion, folder, tmp_path)
    assert abs(ticket.sparsity - sparsity) < 0.01
    x = torch.randn(3, 2, SIZE, SIZE)
    with torch.no_grad():
        wanted = diffusion.model(x, torch.full((3,), 321)).numpy()
    assert wanted.std(axis=(0, 2, 3)).min() > 1e-3
    for device in ("numpy", "cpu"):
        engine = make_engine(lower(ticket), device, batch=3)
        engine.set_schedule(np.array([321]))
        got = engine.run(x.numpy(), 0)
        engine.close()
        assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("folder", peer.versions())
def test_our_second_writing_is_the_original(folder: Path) -> None:
    version = number(peer.version_of(folder))
    if version == (1, 7, 1):
        pytest.skip("1.7.1 has an epsilon of its own")
    diffusion = original(folder, 0.5)
    network = LucidUNet(version, channels=2, heads=4, dim_head=32, full=(False, version >= (1, 8)))
    state = diffusion.model.state_dict()
    assert {n: t.shape for n, t in network.state.items()} == {n: t.shape for n, t in state.items()}
    network.state = dict(state)
    x = torch.randn(2, 2, SIZE, SIZE)
    with torch.no_grad():
        wanted = diffusion.model(x, torch.full((2,), 77)).numpy()
    got = network(x, 77.0).numpy()
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("folder", peer.versions()[-1:])
def test_images_of_its_own_sampler(
    folder: Path, schedule: str, objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refused(folder) is not None:
        pytest.skip(f"version {peer.version_of(folder)} is refused")
    chosen = {"beta_schedule": schedule, "objective": objective, "sampling_timesteps": 50}
    diffusion = original(folder, 0.9, timesteps=1000, **chosen)
    ours = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}[objective]
    ticket = converted(diffusion, folder, tmp_path, objective=ours)
    assert ticket.diffusion.schedule == schedule
    with Sampler(ticket, device="cpu", threads=1) as sampler:
        got = sampler.sample_float(2, steps=50, seed=4)
    # The same noise to begin with; with eta = 0 what is drawn later has no part in it.
    first = torch.from_numpy(normal(4, np.arange(2), 0, (2, SIZE, SIZE)))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: first.clone())
    wanted = diffusion.sample(batch_size=2).numpy() * 2 - 1
    if not np.isfinite(wanted).all():
        pytest.skip("with a last beta of 1, before 1.6.3, the original divides by zero")
    assert np.abs(got - wanted).max() < 1e-3
