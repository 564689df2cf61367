"""Training one round: from weights and masks to trained weights and their masked average."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_ddpm.errors import ConfigError, SparseDDPMError, expected
from sparse_ddpm.files import write_atomically
from sparse_ddpm.lottery import randomness
from sparse_ddpm.lottery.kernels import step_function
from sparse_ddpm.lottery.pruning import Masks
from sparse_ddpm.lottery.settings import Settings
from sparse_ddpm.model.build import Denoiser, build_model
from sparse_ddpm.model.diffusion import Diffusion, loss
from sparse_ddpm.model.ema import EMA

Weights = dict[str, Tensor]

WARM_UP = 0.3
"""Part of a one-cycle round in which the learning rate rises."""
STEPS_PER_LOOK = 10
"""How often the loss is read, shown, and checked to be finite."""
RISE, FALL = 25.0, 2.5e5
"""A one-cycle round starts at ``lr / RISE`` and ends at ``lr / FALL``."""


class Progress(Protocol):
    """Who is told how training goes."""

    def resumed(self, step: int) -> None:
        """``step`` steps of this round were done before."""

    def __call__(self, step: int, loss: float) -> None:
        """``step`` steps of this round are done; the last one's loss."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a round gives: raw weights, their masked average, the masks, and two figures."""

    weights: Weights
    average: Weights
    masks: Masks
    loss: float
    """Mean training loss over the last tenth of the steps."""
    seconds: float
    kernels: str
    """What the last step ran on: ``torch`` or ``sparse``."""


@dataclass(frozen=True, slots=True)
class Gradual:
    """Masks that grow sparser while a round trains."""

    densities: Mapping[int, Fraction]
    """Before which step the masks are made anew, and the density they then have."""
    prune: Callable[[Mapping[str, NDArray[np.float32]], Masks, Fraction], Masks]
    """Effective weights, masks and a density to new masks within the old."""


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """The rate of step ``step`` of ``steps``; both schedules start anew in every round.

    ``one-cycle``: half a cosine up from ``lr / 25`` over the first 30 % of the steps, half a
    cosine down to ``lr / 250,000`` (Smith & Topin 2018, without the cycle of momentum).
    """
    if settings.lr_schedule == "constant":
        return settings.lr
    summit = WARM_UP * steps
    if step < summit:
        start, end, part = settings.lr / RISE, settings.lr, step / summit
    else:
        start, end, part = settings.lr, settings.lr / FALL, (step - summit) / (steps - summit)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * part))


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 ``[N, C, H, W]`` to float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


@contextmanager
def autocast(settings: Settings) -> Iterator[None]:
    """bf16 autocast where the settings say so."""
    context: AbstractContextManager[object] = nullcontext()
    if settings.precision == "bf16":
        context = torch.autocast(settings.device, dtype=torch.bfloat16)
    with context:
        yield


def step_inputs(
    settings: Settings, images: Tensor, round_: int, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x0, t and noise of one step, on the device of ``images`` (uint8 ``[N, C, H, W]``)."""
    batch = settings.batch_size
    index = randomness.batch_indices(settings.order_seed, round_, step, batch, len(images))
    rng = randomness.generator(settings.order_seed, "step", round_, step)
    t = rng.integers(settings.timesteps, size=batch)
    noise = rng.standard_normal((batch, *images.shape[1:]), np.float32)
    flipped = rng.random(batch) < 0.5
    device = images.device
    x0 = to_unit_range(images[torch.from_numpy(index).to(device)])
    if settings.flip:
        chosen = torch.from_numpy(flipped).to(device)[:, None, None, None]
        x0 = torch.where(chosen, x0.flip(-1), x0)
    return x0, torch.from_numpy(t).to(device), torch.from_numpy(noise).to(device)


def torch_masks(masks: Mapping[str, NDArray[np.bool_]], device: torch.device) -> Weights:
    """Masks for `Denoiser.set_masks`; those that prune nothing are left out."""
    return {n: torch.from_numpy(m).to(device) for n, m in masks.items() if not m.all()}


def masked_model(settings: Settings, weights: Weights, masks: Masks) -> Denoiser:
    """A network that holds ``weights`` with +0.0 where ``masks`` prune, on the settings' device."""
    device = torch.device(settings.device)
    with torch.random.fork_rng(devices=[]):
        model = build_model(settings.architecture)
    model.load_state_dict(weights)
    model.to(device)
    _set_masks(model, masks)
    return model


def effective_arrays(model: Denoiser) -> dict[str, NDArray[np.float32]]:
    """`Denoiser.effective_weights` as arrays."""
    return {name: w.cpu().numpy() for name, w in model.effective_weights().items()}


@torch.no_grad()
def _set_masks(
    model: Denoiser,
    masks: Masks,
    optimizer: torch.optim.Optimizer | None = None,
    ema: EMA | None = None,
) -> None:
    """Install ``masks``; what they prune is +0.0 in weights, average and the optimizer's moments.

    A moment that is left would move its weight away from 0 again.
    """
    parameters = dict(model.named_parameters())
    held = torch_masks(masks, next(iter(parameters.values())).device)
    model.set_masks(held)
    average = {} if ema is None else ema.weights()
    for name, mask in held.items():
        tensors: list[Tensor] = [parameters[name]]
        if name in average:
            tensors.append(average[name])
        if optimizer is not None:
            state = optimizer.state.get(parameters[name], {})
            tensors += [v for v in state.values() if v.shape == mask.shape]
        for tensor in tensors:
            tensor.masked_fill_(~mask, 0.0)


def make_optimizer(settings: Settings, model: Denoiser) -> torch.optim.Optimizer:
    """A fresh Adam or AdamW; a weight with gradient and value 0 stays exactly 0 under both."""
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def snapshot(weights: Mapping[str, Tensor]) -> Weights:
    """Copies on the CPU."""
    return {name: w.detach().to("cpu", copy=True).contiguous() for name, w in weights.items()}


def train_round(
    settings: Settings,
    diffusion: Diffusion,
    images: Tensor,
    weights: Weights,
    masks: Masks,
    round_: int,
    steps: int,
    *,
    checkpoint: Path | None = None,
    steps_per_checkpoint: int = 500,
    at_step: Mapping[int, Callable[[Weights], None]] | None = None,
    gradual: Gradual | None = None,
    teacher: Denoiser | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train ``steps`` steps with a fresh optimizer and a fresh average.

    ``images`` uint8 ``[N, C, H, W]`` on the settings' device. With ``checkpoint`` the state is
    kept there every ``steps_per_checkpoint`` steps, and taken up from there if the file exists.
    ``at_step[k]`` is given the weights after k steps. With ``gradual`` the masks grow sparser on
    the way. With a ``teacher`` the loss against what it predicts has the weight ``distil`` of the
    settings, and the loss against the data the rest (Hinton 2015). Raises `SparseDDPMError` when
    the loss is no longer finite.
    """
    model = masked_model(settings, weights, masks)
    model.train()
    optimizer = make_optimizer(settings, model)
    ema = EMA(model, settings.ema)
    state = _State(0, 0.0, 0.0)
    if checkpoint is not None and checkpoint.exists():
        state, kept = _restore(checkpoint, model, optimizer, ema)
        if gradual is not None:
            masks = kept
            _set_masks(model, masks)
        if progress is not None:
            progress.resumed(state.step)
    kernels, function = step_function(settings, model, masks)
    tail = steps - max(1, steps // 10)
    tail_loss = torch.tensor(state.loss_sum, dtype=torch.float64, device=images.device)
    start = time.perf_counter()
    for step in range(state.step, steps):
        if gradual is not None and step in gradual.densities:
            masks = gradual.prune(effective_arrays(model), masks, gradual.densities[step])
            _set_masks(model, masks, optimizer, ema)
            kernels, function = step_function(settings, model, masks)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, steps)
        x0, t, noise = step_inputs(settings, images, round_, step)
        noisy = diffusion.q_sample(x0, t, noise)
        with autocast(settings) if kernels == "torch" else nullcontext():
            prediction = function(noisy, t)
        value = loss(prediction, diffusion.target(x0, t, noise), settings.loss)
        if teacher is not None:
            with torch.no_grad(), autocast(settings):
                wanted = teacher(noisy, t)
            taught = loss(prediction, wanted, settings.loss)
            value = (1.0 - settings.distil) * value + settings.distil * taught
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_gradient)
        optimizer.step()
        ema.update()
        if step >= tail:
            tail_loss += value.detach()
        state.step = step + 1
        if at_step is not None and state.step in at_step:
            at_step[state.step](snapshot(dict(model.named_parameters())))
        if state.step % STEPS_PER_LOOK == 0 or state.step == steps:
            # Once the loss is not finite it stays so; looking at every one would stall a GPU.
            number = float(value.detach())
            if not math.isfinite(number):
                where = f"loss in round {round_} after {state.step} steps"
                raise SparseDDPMError(expected(where, "a finite number", number))
            if progress is not None:
                progress(state.step, number)
        if checkpoint is not None and state.step < steps and state.step % steps_per_checkpoint == 0:
            now = time.perf_counter()
            state.seconds, start = state.seconds + now - start, now
            state.loss_sum = float(tail_loss)
            _keep(checkpoint, state, model, optimizer, ema, {} if gradual is None else masks)
    return Trained(
        snapshot(dict(model.named_parameters())),
        snapshot(ema.weights()),
        masks,
        float(tail_loss) / (steps - tail),
        state.seconds + time.perf_counter() - start,
        kernels,
    )


@dataclass(slots=True)
class _State:
    step: int
    loss_sum: float
    seconds: float


def _keep(
    path: Path,
    state: _State,
    model: Denoiser,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    masks: Masks,
) -> None:
    content = {
        "step": state.step,
        "loss_sum": state.loss_sum,
        "seconds": state.seconds,
        "weights": {name: p.detach() for name, p in model.named_parameters()},
        "optimizer": optimizer.state_dict(),
        "average": ema.weights(),
        "updates": ema.updates,
        "masks": {name: torch.from_numpy(mask) for name, mask in masks.items()},
    }
    save_torch(content, path)


def _restore(
    path: Path, model: Denoiser, optimizer: torch.optim.Optimizer, ema: EMA
) -> tuple[_State, Masks]:
    content = load_torch(path)
    try:
        model.load_state_dict(content["weights"])
        optimizer.load_state_dict(content["optimizer"])
        ema.load(content["average"], content["updates"])
        masks = {name: mask.numpy() for name, mask in content["masks"].items()}
        return _State(content["step"], content["loss_sum"], content["seconds"]), masks
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        raise ConfigError(expected(str(path), "a checkpoint of this run", str(error))) from error


def save_torch(content: Mapping[str, object], path: Path) -> None:
    """Write what `load_torch` reads, whole or not at all."""
    write_atomically(path, lambda file: torch.save(content, file))


def load_torch(path: Path) -> dict[str, Any]:
    """A dict that torch saved, tensors and plain values only; raises `ConfigError` otherwise."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise ConfigError(expected(str(path), "a file torch can read", repr(error))) from error
    if not isinstance(content, dict):
        raise ConfigError(expected(str(path), "a dict", type(content).__name__))
    return content
