"""A small convolutional classifier of grey digits, by which samples are judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from sparse_ddpm.errors import ConfigError, DataError, expected
from sparse_ddpm.files import write_atomically

SIZES = (16, 32)
_FORMAT = "sparse-ddpm digit classifier 1"
_POOLED = 4
_STRANGERS = 8  # one image in so many, beside the batch, shows no digit


class DigitClassifier(nn.Module):
    """Four 3x3 convolutions, pooled to 4x4, and a linear layer: ``[N, 1, H, W]`` to ``[N, 10]``.

    Takes grey values from 0 to 1 and gives logits. ``image_size`` may be 16 to 32; above 20 the
    first convolution has stride 2, so that every size costs about as much.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        if type(image_size) is not int or not SIZES[0] <= image_size <= SIZES[1]:
            wanted = f"an integer from {SIZES[0]} to {SIZES[1]}"
            raise ConfigError(expected("classifier image size", wanted, repr(image_size)))
        self.image_size = image_size
        self.features = nn.Sequential(
            *_block(1, 32, stride=2 if image_size > 20 else 1),
            *_block(32, 32),
            nn.MaxPool2d(2),
            *_block(32, 64),
            *_block(64, 64),
            nn.AdaptiveAvgPool2d(_POOLED),
        )
        self.classify = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.25), nn.Linear(64 * _POOLED**2, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.features((x - 0.13) / 0.31))
        return logits


def _block(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def train_classifier(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    seed: int = 0,
    epochs: int = 4,
    batch_size: int = 250,
    learning_rate: float = 4e-3,
    exposure: float = 0.5,
    progress: bool = False,
) -> DigitClassifier:
    """Train on uint8 ``[N, H, H, 1]`` and digits int64 ``[N]``, with small random distortions.

    A plain classifier is sure that noise is an 8. So that confidence means something, this one
    also sees images that show no digit, and learns to give all digits the same probability there
    (Hendrycks et al., "Deep anomaly detection with outlier exposure", 2019). ``exposure``: the
    weight of that part of the loss; 0 trains a plain classifier, on digits alone.

    AdamW under a one-cycle learning rate (Smith, "Super-convergence", 2018). The same arguments
    give the same weights on the same number of threads; torch's global generator is left as it
    was. ``progress``: a bar on stderr where that is a terminal. Raises `DataError`, `ConfigError`.
    """
    data = _tensor(images)
    if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() > 9:
        raise DataError(expected("labels", f"[{len(images)}] digits 0 to 9", list(labels.shape)))
    for what, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(expected(what, "at least 1", value))
    digits = torch.from_numpy(labels.copy())
    batches = -(-len(data) // batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitClassifier(images.shape[1]).train()
        # A third faster on a CPU; torch's stubs do not know this overload.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, learning_rate, total_steps=epochs * batches + 1
        )
        bar = tqdm(
            total=epochs * batches,
            desc="classifier",
            disable=None if progress else True,
            leave=False,
        )
        with bar:
            for _ in range(epochs):
                # array_split: batch norm cannot learn from a last batch of one image.
                for chosen in torch.randperm(len(data)).tensor_split(batches):
                    real = distorted(data[chosen].float() / 255)
                    strange = real[:0]
                    if exposure:
                        strange = _strangers(real[: -(-len(real) // _STRANGERS)])
                    logits = model(torch.cat((real, strange)))
                    loss = F.cross_entropy(logits[: len(real)], digits[chosen])
                    if exposure:
                        unsure = F.log_softmax(logits[len(real) :], dim=1).mean()
                        loss = loss - exposure * unsure
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
                bar.set_postfix(loss=f"{loss.item():.4f}")
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval()


def distorted(x: Tensor) -> Tensor:
    """Turn by up to 10 degrees, scale by up to 10 %, shear a little, shift by up to 6 %."""
    n = len(x)

    def uniform(most: float) -> Tensor:
        return (torch.rand(n) * 2 - 1) * most

    angle, scale, shear = uniform(0.18), 1 + uniform(0.1), uniform(0.1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = (cos, shear - sin, uniform(0.12), sin, cos, uniform(0.12))
    grid = F.affine_grid(torch.stack(rows, dim=1).view(n, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _strangers(x: Tensor) -> Tensor:
    """As many images without a digit: shuffled pixels, or noise that is fine, coarse or between."""
    n, _, size, _ = x.shape
    order = torch.rand(n, size * size).argsort(dim=1)
    shuffled = x.flatten(1).gather(1, order).view_as(x)
    cells = int(torch.randint(2, size + 1, ()))
    noise = F.interpolate(torch.rand(n, 1, cells, cells), size=(size, size), mode="bilinear")
    low, high = torch.rand(2, n, 1, 1, 1)
    return torch.where(torch.rand(n, 1, 1, 1) < 0.3, shuffled, low + (high - low) * noise)


@torch.no_grad()
def probabilities(
    model: DigitClassifier, images: NDArray[np.uint8], batch_size: int = 1_000
) -> NDArray[np.float32]:
    """Softmax ``[N, 10]`` for uint8 ``[N, H, H, 1]``. Raises `DataError` for another shape."""
    data = _tensor(images)
    if data.shape[2] != model.image_size:
        size = f"{model.image_size} x {model.image_size}"
        raise DataError(expected("images", size, f"{data.shape[2]} x {data.shape[3]}"))
    model.eval()
    parts = [model(part.float() / 255).softmax(dim=1) for part in torch.split(data, batch_size)]
    result: NDArray[np.float32] = torch.cat(parts).numpy()
    return result


def _tensor(images: NDArray[np.uint8]) -> Tensor:
    """uint8 ``[N, H, H, 1]`` to a uint8 tensor ``[N, 1, H, H]``."""
    square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 1
    if images.dtype != np.uint8 or not square or not len(images):
        found = f"{images.dtype} {list(images.shape)}"
        raise DataError(expected("images", "uint8 [N, H, H, 1], N at least 1", found))
    return torch.from_numpy(images[:, None, :, :, 0].copy())


def save_classifier(model: DigitClassifier, path: Path) -> None:
    """Write the weights as safetensors, whole or not at all."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    metadata = {"format": _FORMAT, "image_size": str(model.image_size)}
    write_atomically(path, lambda file: file.write(save(state, metadata)), DataError)


def load_classifier(path: Path) -> DigitClassifier:
    """Read what `save_classifier` wrote; raise `DataError` for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(expected(str(path), "a digit classifier", error)) from error
    if metadata.get("format") != _FORMAT:
        raise DataError(expected(f"{path}: format", _FORMAT, repr(metadata.get("format"))))
    size = str(metadata.get("image_size"))
    if size not in {str(n) for n in range(SIZES[0], SIZES[1] + 1)}:
        raise DataError(expected(f"{path}: image_size", f"{SIZES[0]} to {SIZES[1]}", size))
    model = DigitClassifier(int(size))
    wanted = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    found = {name: (value.shape, value.dtype) for name, value in state.items()}
    if found != wanted:
        name = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))[0]
        raise DataError(expected(f"{path}: {name}", wanted.get(name, "nothing"), found.get(name)))
    for name, value in state.items():
        if not value.isfinite().all():
            raise DataError(expected(f"{path}: {name}", "finite values", "nan or infinity"))
    model.load_state_dict(state)
    return model.eval()
