"""Trains the classifier whose features images are compared by. Needs torch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from sparse_ddpm.errors import ConfigError, DataError, expected
from sparse_ddpm.metrics.classifier import distorted
from sparse_ddpm.metrics.features import (
    INPUT_SIZE,
    KERNELS,
    POOLED,
    STRIDES,
    FeatureNet,
    resize_matrix,
)

WIDTHS = {1: (16, 32, 48, 64), 3: (48, 96, 144, 192)}
"""Channels of the convolutions, by those of the images."""
DIMENSION = 64
_NOISE = 0.03
_SCALED = 10_000


class _Net(nn.Module):
    """The torch side of `FeatureNet`, with batch norms still to be folded."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, *WIDTHS[channels])
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], k, stride=s, padding=k // 2, bias=False)
            for i, (k, s) in enumerate(zip(KERNELS, STRIDES, strict=True))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.features = nn.Linear(widths[-1] * POOLED**2, DIMENSION)
        self.classes = nn.Linear(DIMENSION, classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        # Channels last within a pixel, as the numpy side has them.
        x = F.adaptive_avg_pool2d(x, POOLED).permute(0, 2, 3, 1).flatten(1)
        x = F.dropout(x, 0.2, self.training)
        logits: Tensor = self.classes(F.relu(self.features(x)))
        return logits


def train_features(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    seed: int = 0,
    epochs: int = 8,
    batch_size: int = 125,
    learning_rate: float = 4e-3,
    progress: bool = False,
) -> FeatureNet:
    """Train on uint8 ``[N, 32, 32, 1 or 3]`` and classes int64 ``[N]``.

    Grey images are turned, scaled and shifted a little, and half of them are seen as 16x16 ones,
    brought back to 32x32 as `FeatureNet` does it, so that the features serve both sizes. Colour
    images are flipped and shifted. Noise that hardly shows keeps the features from being about it.
    AdamW under a one-cycle learning rate (Smith, "Super-convergence", 2018), labels smoothed by
    0.05. At the end batch norms are folded into the convolutions, the features are scaled to a mean
    variance of 1 over up to 10,000 of the images, and all weights are rounded to float16.

    The same arguments give the same weights on the same number of threads; torch's global
    generator is left as it was. Raises `DataError`, `ConfigError`.
    """
    channels = images.shape[3] if images.ndim == 4 else 0
    if images.shape[1:] != (INPUT_SIZE, INPUT_SIZE, channels) or channels not in WIDTHS:
        wanted = f"[N, {INPUT_SIZE}, {INPUT_SIZE}, 1 or 3]"
        raise DataError(expected("images", wanted, list(images.shape)))
    if labels.shape != images.shape[:1] or not len(labels) or labels.min() < 0:
        raise DataError(expected("labels", f"[{len(images)}] classes from 0", list(labels.shape)))
    for what, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(expected(what, "at least 1", value))
    data, target = torch.from_numpy(images), torch.from_numpy(labels)
    batches = -(-len(data) // batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Net(channels, int(labels.max()) + 1).train()
        # A third faster on a CPU; torch's stubs do not know this overload.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, learning_rate, total_steps=epochs * batches + 1
        )
        bar = tqdm(
            total=epochs * batches, desc="features", disable=None if progress else True, leave=False
        )
        with bar:
            for _ in range(epochs):
                for chosen in torch.randperm(len(data)).tensor_split(batches):
                    x = _augmented(data[chosen].permute(0, 3, 1, 2).float() / 255)
                    loss = F.cross_entropy(model(x), target[chosen], label_smoothing=0.05)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
                bar.set_postfix(loss=f"{loss.item():.4f}")
    return _folded(model.eval(), images[:: -(-len(images) // _SCALED)])


def _augmented(x: Tensor) -> Tensor:
    """Move images a little, take half of the resolution of some grey ones, add a little noise."""
    if x.shape[1] == 1:
        x = distorted(x)
        matrix = resize_matrix(INPUT_SIZE // 2)
        assert matrix is not None
        up = torch.from_numpy(matrix)
        coarse = torch.rand(len(x), 1, 1, 1) < 0.5
        x = torch.where(coarse, up @ F.avg_pool2d(x, 2) @ up.T, x)
    else:
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
        across, down = torch.randint(-3, 4, (2,)).tolist()
        x = F.pad(x, (3, 3, 3, 3)).roll((across, down), (2, 3))[:, :, 3:-3, 3:-3]
    x = x + torch.rand(len(x), 1, 1, 1) * _NOISE * torch.randn_like(x)
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _folded(model: _Net, images: NDArray[np.uint8]) -> FeatureNet:
    weights: dict[str, NDArray[np.float32]] = {}
    for index, (conv, norm) in enumerate(zip(model.convs, model.norms, strict=True)):
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        assert norm.running_mean is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weights[f"conv{index}.weight"] = _half(conv.weight.permute(2, 3, 1, 0) * gain)
        weights[f"conv{index}.bias"] = _half(norm.bias - norm.running_mean * gain)
    head, last = model.features, model.classes
    weights["features.weight"] = _half(head.weight.T)
    weights["features.bias"] = _half(head.bias)
    weights["classes.weight"] = _half(last.weight.T)
    weights["classes.bias"] = _half(last.bias)
    features, _ = FeatureNet(weights)(images)
    scale = float(np.sqrt(features.var(axis=0, dtype=np.float64).mean()))
    if not scale > 0:
        raise DataError(expected("features", "a spread", scale))
    weights["features.weight"] = _half(head.weight.T / scale)
    weights["features.bias"] = _half(head.bias / scale)
    weights["classes.weight"] = _half(last.weight.T * scale)
    return FeatureNet(weights)


def _half(value: Tensor) -> NDArray[np.float32]:
    """Rounded to float16, which is how a judge's file keeps it."""
    result: NDArray[np.float32] = value.half().float().contiguous().numpy()
    return result
