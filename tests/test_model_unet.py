"""The trainable U-Net against a second one, written as plain functions over a table of weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.model.unet import UNet
from sparse_ddpm.ticket import PRESETS, UNetConfig, unet_parameters

TINY = UNetConfig(
    dim=8, dim_mults=(1, 2, 3), channels=2, image_size=8, groups=4, heads=2, dim_head=3
)


def correlate(x: Any, weight: Any, bias: Any = None) -> Any:
    """ "Same" convolution as a sum over taps, in the order of its definition."""
    size = weight.shape[-1]
    pad = size // 2
    n, _, height, width = x.shape
    padded = torch.zeros((n, x.shape[1], height + 2 * pad, width + 2 * pad), dtype=x.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = x
    out = torch.zeros((n, len(weight), height, width), dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            window = padded[:, :, i : i + height, j : j + width]
            out += torch.einsum("oc,nchw->nohw", weight[:, :, i, j], window)
    return out if bias is None else out + bias[None, :, None, None]


class Plain:
    """The forward pass in float64: ``weights`` by name, ``masks`` by name."""

    def __init__(self, config: UNetConfig, weights: dict[str, Any], masks: dict[str, Any]) -> None:
        self.config, self.weights, self.masks = config, weights, masks

    def weight(self, name: str, *, standardized: bool = False) -> Any:
        weight = self.weights[f"{name}.weight"]
        mask = self.masks.get(f"{name}.weight", torch.ones_like(weight))
        if not standardized or self.config.weight_standardization == "none":
            return weight * mask
        if self.config.weight_standardization == "full":
            weight, mask = weight * mask, torch.ones_like(weight)
        rows = []
        for row, keep in zip(weight, mask.bool(), strict=True):
            kept = row[keep]
            new = torch.zeros_like(row)
            if len(kept):
                mean = kept.mean()
                new[keep] = (kept - mean) / torch.sqrt(((kept - mean) ** 2).mean() + 1e-5)
            rows.append(new)
        return torch.stack(rows)

    def conv(self, name: str, x: Any, *, standardized: bool = False) -> Any:
        weight = self.weight(name, standardized=standardized)
        return correlate(x, weight, self.weights.get(f"{name}.bias"))

    def linear(self, name: str, x: Any) -> Any:
        return x @ self.weight(name).T + self.weights[f"{name}.bias"]

    def group_norm(self, name: str, x: Any, film: Any = None) -> Any:
        out = torch.empty_like(x)
        size = x.shape[1] // self.config.groups
        for start in range(0, x.shape[1], size):
            part = x[:, start : start + size]
            mean = part.mean(dim=(1, 2, 3), keepdim=True)
            variance = ((part - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
            out[:, start : start + size] = (part - mean) / torch.sqrt(variance + 1e-5)
        out = out * self.weights[f"{name}.weight"][None, :, None, None]
        out = out + self.weights[f"{name}.bias"][None, :, None, None]
        if film is not None:
            channels = x.shape[1]
            out = out * (film[:, :channels, None, None] + 1) + film[:, channels:, None, None]
        return out / (1 + torch.exp(-out))

    def block(self, name: str, x: Any, time: Any) -> Any:
        film = self.linear(f"{name}.film", time / (1 + torch.exp(-time)))
        h = self.group_norm(f"{name}.norm1", self.conv(f"{name}.conv1", x, standardized=True), film)
        h = self.group_norm(f"{name}.norm2", self.conv(f"{name}.conv2", h, standardized=True))
        return h + (self.conv(f"{name}.shortcut", x) if h.shape != x.shape else x)

    def channel_norm(self, name: str, x: Any) -> Any:
        mean = x.mean(dim=1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=1, keepdim=True)
        return (
            (x - mean) / torch.sqrt(variance + 1e-5) * self.weights[f"{name}.gain"][:, None, None]
        )

    def attention(self, name: str, x: Any, *, linear: bool) -> Any:
        config = self.config
        qkv = self.conv(f"{name}.qkv", self.channel_norm(f"{name}.norm", x))
        q, k, v = qkv.flatten(2).split(config.hidden, dim=1)
        heads = []
        for h in range(config.heads):
            s = slice(h * config.dim_head, (h + 1) * config.dim_head)
            qh, kh, vh = q[:, s], k[:, s], v[:, s]
            if linear:
                qh = torch.softmax(qh, dim=1) / math.sqrt(config.dim_head)
                kh = torch.softmax(kh, dim=2)
                context = torch.einsum("ndm,nem->nde", kh, vh / qh.shape[2])
                heads.append(torch.einsum("nde,ndi->nei", context, qh))
            else:
                scores = torch.einsum("ndi,ndj->nij", qh, kh) / math.sqrt(config.dim_head)
                heads.append(torch.einsum("nij,ndj->ndi", torch.softmax(scores, dim=2), vh))
        out = self.conv(f"{name}.out", torch.cat(heads, dim=1).reshape(len(x), -1, *x.shape[2:]))
        return x + (self.channel_norm(f"{name}.out_norm", out) if linear else out)

    def __call__(self, x: Any, t: Any) -> Any:
        config = self.config
        half = config.dim // 2
        angles = [t * 10_000.0 ** (-i / (half - 1)) for i in range(half)]
        time = torch.stack([torch.sin(a) for a in angles] + [torch.cos(a) for a in angles], dim=1)
        time = self.linear("time.linear1", time)
        time = self.linear("time.linear2", time * (1 + torch.erf(time / math.sqrt(2))) / 2)
        first = x = self.conv("init_conv", x)
        skips = []
        levels = len(config.dim_mults)
        for level in range(levels):
            name = f"down.{level}"
            x = self.block(f"{name}.block1", x, time)
            skips.append(x)
            x = self.attention(f"{name}.attn", self.block(f"{name}.block2", x, time), linear=True)
            skips.append(x)
            if level < levels - 1:
                parts = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
                x = torch.stack(parts, dim=2).flatten(1, 2)
            x = self.conv(f"{name}.down", x)
        x = self.block("mid.block1", x, time)
        x = self.block("mid.block2", self.attention("mid.attn", x, linear=False), time)
        for stage in range(levels):
            name = f"up.{stage}"
            x = self.block(f"{name}.block1", torch.cat([x, skips.pop()], dim=1), time)
            x = self.block(f"{name}.block2", torch.cat([x, skips.pop()], dim=1), time)
            x = self.attention(f"{name}.attn", x, linear=True)
            if stage < levels - 1:
                x = torch.repeat_interleave(torch.repeat_interleave(x, 2, dim=2), 2, dim=3)
            x = self.conv(f"{name}.up", x)
        x = self.block("final_block", torch.cat([x, first], dim=1), time)
        return self.conv("final_conv", x)


def random_model(config: UNetConfig, density: float) -> tuple[UNet, dict[str, Any]]:
    torch.manual_seed(0)
    model = UNet(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    masks = {
        p.name: (torch.rand(p.shape) < density).double()
        for p in unet_parameters(config)
        if p.prunable
    }
    # degenerate rows: none, one and all surviving
    mask = masks["mid.block1.conv1.weight"]
    mask[0], mask[1], mask[2] = 0, 0, 1
    mask[1, 0, 1, 1] = 1
    return model, masks


@pytest.mark.parametrize("standardization", ["none", "surviving", "full"])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_forward_equals_a_second_implementation(standardization: str, density: float) -> None:
    config = dataclasses.replace(TINY, weight_standardization=standardization)
    model, masks = random_model(config, density)
    model.set_masks(masks)
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    t = torch.tensor([0.0, 17.0, 999.0], dtype=torch.float64)
    with torch.no_grad():
        got = model(x, t)
        weights = dict(model.named_parameters())
        wanted = Plain(config, weights, masks)(x, t)
    assert got.shape == x.shape
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_those_of_the_ticket(preset: str) -> None:
    config = PRESETS[preset]
    with torch.device("meta"):
        model = UNet(config)
    found = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert found == {p.name: p.shape for p in unet_parameters(config)}


def test_the_paper_preset_has_the_papers_parameters() -> None:
    sizes = [math.prod(p.shape) for p in unet_parameters(PRESETS["paper"])]
    assert round(sum(sizes) / 1e6, 1) == 35.7
    kept = [p.name for p in unet_parameters(PRESETS["paper"]) if not p.prunable]
    weights = [name for name in kept if name.endswith(".weight") and ".norm" not in name]
    assert sorted(weights) == sorted(
        f"{n}.weight" for n in ("init_conv", "final_conv", "time.linear1", "time.linear2")
    )
    assert not any(p.prunable for p in unet_parameters(PRESETS["paper"]) if "norm" in p.name)


def test_gradients_reach_survivors_only() -> None:
    model, masks = random_model(TINY, 0.3)
    model.set_masks(masks)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    model(x, torch.tensor([5.0, 6.0])).square().sum().backward()
    for name, mask in masks.items():
        gradient = dict(model.named_parameters())[name].grad
        assert gradient is not None
        assert not gradient[mask == 0].any(), name
        assert gradient[mask == 1].any(), name


def test_masks_are_no_part_of_the_state_and_can_be_taken_off() -> None:
    model, masks = random_model(TINY, 0.3)
    model.set_masks(masks)
    assert not any("mask" in name for name in model.state_dict())
    name = "mid.block1.conv1.weight"
    assert (model.effective_weights()[name][masks[name] == 0] == 0).all()
    model.set_masks({})
    assert (model.effective_weights()[name] != 0).all()


def test_standardised_over_all_weights_survivors_are_scored_at_the_scale_they_act_at() -> None:
    config = dataclasses.replace(TINY, weight_standardization="full")
    model, masks = random_model(config, 0.3)
    model.set_masks(masks)
    name = "mid.block1.conv2.weight"
    scores = model.effective_weights()[name]
    module = model.masked()[name]
    row = (module.weight * masks[name])[3].detach()
    scale = 1 / torch.sqrt(row.var(correction=0) + 1e-5)
    torch.testing.assert_close(scores[3], row * scale)
    assert (scores[masks[name] == 0] == 0).all()
    effective = module.effective_weight().detach()
    torch.testing.assert_close(effective[3], (row - row.mean()) * scale)
    assert (effective[3] != 0).all()


def test_bad_masks_are_refused() -> None:
    model, masks = random_model(TINY, 0.3)
    with pytest.raises(ConfigError, match=r"mask: expected the name of a weight, got 'nobody'"):
        model.set_masks({"nobody": torch.ones(1)})
    with pytest.raises(ConfigError, match=r"mask of up\.0\.up\.weight"):
        model.set_masks(masks | {"up.0.up.weight": torch.ones(1)})


def test_t_may_be_integers() -> None:
    model, _ = random_model(TINY, 1.0)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        whole = model(x, torch.tensor([3, 900]))
        real = model(x, torch.tensor([3.0, 900.0]))
    assert torch.equal(whole, real)
