"""Which diffusion a checkpoint was trained on, from the buffers that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparse_ddpm.convert.options import Options
from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.sampling.schedule import alphas_cumprod
from sparse_ddpm.ticket.config import MAX_TIMESTEPS, OBJECTIVES, SCHEDULES, DiffusionConfig

T = TypeVar("T", int, str)

CLOSE = 1e-3
"""Relative: float32 buffers made from float32 sigmoids come within 2e-4 of ours."""


def diffusion_of(buffers: Mapping[str, Tensor], options: Options) -> DiffusionConfig:
    """Schedule and timesteps from ``alphas_cumprod``, the objective from ``loss_weight``.

    What the buffers do not say the options must; where both do they must agree. Raises
    `TicketError` for a schedule that is none of ours and for what nobody says.
    """
    abar = _vector(buffers, "alphas_cumprod")
    schedule = None if abar is None else _schedule(abar)
    weight = _vector(buffers, "loss_weight")
    objective = None
    if abar is not None and weight is not None and weight.shape == abar.shape:
        objective = _objective(abar, weight)
    return DiffusionConfig(
        timesteps=_agreed("timesteps", None if abar is None else len(abar), options.timesteps, "T"),
        schedule=_agreed("schedule", schedule, options.schedule, " or ".join(SCHEDULES)),
        objective=_agreed("objective", objective, options.objective, " or ".join(OBJECTIVES)),
        clip=True if options.clip is None else options.clip,
    )


def _agreed(name: str, found: T | None, asked: T | None, choices: str) -> T:
    if found is None and asked is None:
        raise TicketError(
            expected(name, f"--{name} {choices} (the checkpoint does not say it)", "none")
        )
    if found is not None and asked is not None and found != asked:
        raise TicketError(expected(f"--{name}", f"{found!r}, as the checkpoint says", repr(asked)))
    value = found if asked is None else asked
    assert value is not None
    return value


def _vector(buffers: Mapping[str, Tensor], name: str) -> NDArray[np.float64] | None:
    tensor = buffers.get(name)
    if tensor is None:
        return None
    if tensor.ndim != 1 or not 1 <= len(tensor) <= MAX_TIMESTEPS:
        raise TicketError(expected(name, "one number for each timestep", list(tensor.shape)))
    return np.asarray(tensor.double().numpy())


def _schedule(abar: NDArray[np.float64]) -> str:
    errors = {}
    for schedule in SCHEDULES:
        wanted = alphas_cumprod(DiffusionConfig(timesteps=len(abar), schedule=schedule))
        # Where next to nothing of the image is left, buffers are rounding, and where the last beta
        # was cut off differs: at 0.999, or before version 1.6.3 at 1.
        errors[schedule] = float(np.max(np.abs(abar - wanted) / np.maximum(wanted, 1e-3)))
    best = min(errors, key=lambda name: errors[name])
    if not errors[best] <= CLOSE:
        raise TicketError(
            expected(
                "alphas_cumprod",
                f"one of the schedules {', '.join(SCHEDULES)} with their usual settings",
                f"another one ({errors[best]:.1%} from {best})",
            )
        )
    return best


def _objective(abar: NDArray[np.float64], weight: NDArray[np.float64]) -> str | None:
    """By its weight of the loss: 1, snr or snr / (snr + 1), the snr perhaps cut off above."""
    snr = abar / np.maximum(1.0 - abar, 1e-30)
    # One that may have been cut off (at 5, usually) says nothing, nor does one without any image.
    low = (snr < 1.0) & (snr > 1e-6)
    made = {"eps": np.ones_like(snr), "x0": snr, "v": snr / (snr + 1.0)}
    fits = [
        name
        for name, wanted in made.items()
        if low.any() and np.allclose(weight[low], wanted[low], rtol=1e-2, atol=1e-6)
    ]
    return fits[0] if len(fits) == 1 else None
