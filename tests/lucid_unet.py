"""The U-Net of denoising-diffusion-pytorch, and its trainer's files, written a second time.

As functions over a table of tensors with the names that a version gives them, in float64: what
imports are held to where the package itself is not installed. `test_convert_peer` compares it with
the package.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


class LucidUNet:
    """A version's network. Tensors are random, and made when the first forward pass wants them."""

    def __init__(
        self,
        version: tuple[int, ...],
        *,
        dim: int = 8,
        mults: tuple[int, ...] = (1, 2),
        channels: int = 1,
        groups: int = 8,
        heads: int = 2,
        dim_head: int = 4,
        full: tuple[bool, ...] | None = None,
        seed: int = 0,
    ) -> None:
        self.version, self.dim, self.mults, self.channels = version, dim, mults, channels
        self.groups, self.heads, self.dim_head = groups, heads, dim_head
        last = (*[False] * (len(mults) - 1), version >= (1, 8))
        self.full = last if full is None else full
        self.random = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}
        self(torch.zeros(1, channels, 2 ** (len(mults) - 1), 2 ** (len(mults) - 1)), 0.0)

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self.state:
            noise = torch.randn(shape, generator=self.random)
            if name.endswith((".g", "norm.weight")):
                made = 1.0 + 0.3 * noise
            elif len(shape) == 1:
                made = 0.2 * noise
            else:
                made = noise / math.sqrt(math.prod(shape[1:]))
            self.state[name] = made
        return self.state[name].double()

    def __call__(self, x: Tensor, t: float) -> Tensor:
        dim, widths = self.dim, [self.dim, *(self.dim * mult for mult in self.mults)]
        levels = len(self.mults)
        x = first = self.conv("init_conv", x.double(), dim, 7)
        time = self.time(t)
        skips = []
        for i in range(levels):
            x = self.block(f"downs.{i}.0", x, time, widths[i])
            skips.append(x)
            x = self.block(f"downs.{i}.1", x, time, widths[i])
            x = x + self.attention(f"downs.{i}.2", x, self.full[i])
            skips.append(x)
            if i < levels - 1:
                x = self.conv(f"downs.{i}.3.1", F.pixel_unshuffle(x, 2), widths[i + 1], 1)
            else:
                x = self.conv(f"downs.{i}.3", x, widths[i + 1], 3)
        x = self.block("mid_block1", x, time, widths[-1])
        x = x + self.attention("mid_attn", x, True)
        x = self.block("mid_block2", x, time, widths[-1])
        for j in range(levels):
            i = levels - 1 - j
            for k in range(2):
                x = torch.cat([x, skips.pop()], 1)
                x = self.block(f"ups.{j}.{k}", x, time, widths[i + 1])
            x = x + self.attention(f"ups.{j}.2", x, self.full[i])
            if i > 0:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(f"ups.{j}.3.1", x, widths[i], 3)
            else:
                x = self.conv(f"ups.{j}.3", x, widths[i], 3)
        x = self.block("final_res_block", torch.cat([x, first], 1), time, dim)
        return self.conv("final_conv", x, self.channels, 1)

    def conv(self, name: str, x: Tensor, out: int, size: int, *, bias: bool = True) -> Tensor:
        weight = self.get(f"{name}.weight", out, x.shape[1], size, size)
        if ".proj" in name and self.version < (1, 7, 2):
            rows = weight.flatten(1)
            rows = rows - rows.mean(1, keepdim=True)
            rows = rows / torch.sqrt(rows.square().mean(1, keepdim=True) + 1e-5)
            weight = rows.reshape(weight.shape)
        y = F.conv2d(x, weight, padding=size // 2)
        return y + self.get(f"{name}.bias", out)[:, None, None] if bias else y

    def linear(self, name: str, x: Tensor, out: int) -> Tensor:
        return self.get(f"{name}.weight", out, len(x)) @ x + self.get(f"{name}.bias", out)

    def time(self, t: float) -> Tensor:
        half = self.dim // 2
        angles = t * 10_000.0 ** (-torch.arange(half).double() / (half - 1))
        x = self.linear("time_mlp.1", torch.cat([angles.sin(), angles.cos()]), 4 * self.dim)
        return self.linear("time_mlp.3", F.gelu(x), 4 * self.dim)

    def block(self, name: str, x: Tensor, time: Tensor, out: int) -> Tensor:
        film = self.linear(f"{name}.mlp.1", F.silu(time), 2 * out)[:, None, None].chunk(2)
        h = self.conv(f"{name}.block1.proj", x, out, 3)
        h = self.block_norm(f"{name}.block1.norm", h)
        h = F.silu(h * (film[0] + 1) + film[1])
        h = self.conv(f"{name}.block2.proj", h, out, 3)
        h = F.silu(self.block_norm(f"{name}.block2.norm", h))
        return h + (x if x.shape[1] == out else self.conv(f"{name}.res_conv", x, out, 1))

    def block_norm(self, name: str, x: Tensor) -> Tensor:
        if self.version >= (2,):
            return self.root(x) * self.get(f"{name}.g", 1, x.shape[1], 1, 1)
        parts = x.reshape(len(x), self.groups, -1)
        parts = parts - parts.mean(2, keepdim=True)
        parts = parts / torch.sqrt(parts.square().mean(2, keepdim=True) + 1e-5)
        weight, bias = (self.get(f"{name}.{part}", x.shape[1]) for part in ("weight", "bias"))
        return parts.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]

    @staticmethod
    def root(x: Tensor) -> Tensor:
        return x / torch.sqrt(x.square().mean(1, keepdim=True))

    def attention_norm(self, name: str, x: Tensor) -> Tensor:
        gain = self.get(f"{name}.g", 1, x.shape[1], 1, 1)
        if self.version >= (1, 7):
            return self.root(x) * gain
        x = x - x.mean(1, keepdim=True)
        return x / torch.sqrt(x.square().mean(1, keepdim=True) + 1e-5) * gain

    def attention(self, name: str, x: Tensor, full: bool) -> Tensor:
        n, channels, height, width = x.shape
        wrapped = self.version < (1, 8)
        heads, depth, pixels = self.heads, self.dim_head, height * width
        x = self.attention_norm(f"{name}.fn.norm" if wrapped else f"{name}.norm", x)
        name = f"{name}.fn.fn" if wrapped else name
        qkv = self.conv(f"{name}.to_qkv", x, 3 * heads * depth, 1, bias=False)
        q, k, v = qkv.reshape(n, 3, heads, depth, pixels).unbind(1)
        if self.version >= (1, 9):
            shape = (4, depth) if full else (depth, 4)
            memory = self.get(f"{name}.mem_kv", 2, heads, *shape)
            memory = memory.mT if full else memory
            k, v = (
                torch.cat([m.expand(n, -1, -1, -1), own], -1)
                for m, own in zip(memory, (k, v), strict=True)
            )
        if full:
            scores = (q.mT @ k / math.sqrt(depth)).softmax(-1)
            y = (scores @ v.mT).mT.reshape(n, -1, height, width)
            return self.conv(f"{name}.to_out", y, channels, 1)
        v = v if self.version >= (1, 7, 4) else v / pixels
        y = (k.softmax(-1) @ v.mT).mT @ (q.softmax(-2) / math.sqrt(depth))
        y = self.conv(f"{name}.to_out.0", y.reshape(n, -1, height, width), channels, 1)
        return self.attention_norm(f"{name}.to_out.1", y)

    def prune(self, sparsity: float, seed: int = 1) -> None:
        """Zeros in every tensor of more than one axis but gains, as the fork's pruning leaves.

        Not in the last convolution: so small a network would fall silent.
        """
        random = torch.Generator().manual_seed(seed)
        for name, tensor in self.state.items():
            if name.endswith(".weight") and tensor.ndim > 1 and name != "final_conv.weight":
                tensor *= torch.rand(tensor.shape, generator=random) >= sparsity


def schedule(name: str, timesteps: int) -> Tensor:
    """alpha_bar as their functions make it, float64."""
    t = torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float64) / timesteps
    if name == "linear":
        scale = 1000 / timesteps
        betas = torch.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=torch.float64)
    else:
        if name == "cosine":
            bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        else:
            low, high = torch.tensor(-3.0).sigmoid(), torch.tensor(3.0).sigmoid()
            bar = (high - (t * 6 - 3).sigmoid()) / (high - low)
        betas = torch.clip(1 - bar[1:] / bar[:-1], 0, 0.999)
    return torch.cumprod(1 - betas, 0)


def buffers(name: str, objective: str, timesteps: int, version: tuple[int, ...]) -> dict[str, Any]:
    """Of a diffusion, by their names there."""
    bar = schedule(name, timesteps)
    snr = bar / (1 - bar)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    out = {"betas": 1 - bar / before, "alphas_cumprod": bar, "sqrt_alphas_cumprod": bar.sqrt()}
    if version < (1, 5):
        out["p2_loss_weight"] = torch.ones_like(bar)
    else:
        made = {"pred_noise": torch.ones_like(snr), "pred_x0": snr, "pred_v": snr / (snr + 1)}
        out["loss_weight"] = made[objective]
    return {key: value.float() for key, value in out.items()}


def trainer_file(
    network: LucidUNet,
    *,
    name: str = "sigmoid",
    objective: str = "pred_v",
    timesteps: int = 1000,
    raw: LucidUNet | None = None,
) -> dict[str, Any]:
    """What the trainer saves: ``network`` is the average, ``raw`` what was trained."""
    beside = buffers(name, objective, timesteps, network.version)
    tables = [
        {**beside, **{f"model.{key}": tensor for key, tensor in each.state.items()}}
        for each in (network, raw or network)
    ]
    return {
        "step": 7,
        "model": tables[1],
        "opt": {"state": {}, "param_groups": [{"lr": 8e-5, "betas": (0.9, 0.99)}]},
        "ema": {
            "initted": torch.tensor([True]),
            "step": torch.tensor([7]),
            **{f"online_model.{key}": tensor for key, tensor in tables[1].items()},
            **{f"ema_model.{key}": tensor for key, tensor in tables[0].items()},
        },
        "scaler": None,
        "version": ".".join(map(str, network.version)),
    }
