"""The ``scheduler_config.json`` of a DDPM or DDIM scheduler as a diffusion of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_ddpm.convert.options import Options
from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.sampling.schedule import MAX_BETA
from sparse_ddpm.ticket import DiffusionConfig

Table = Mapping[str, Any]

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
OBJECTIVES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}

REFUSED = {"trained_betas": None, "rescale_betas_zero_snr": False, "thresholding": False}
"""Fields that would need another process or another clipping, and what they have to be."""


def diffusion_of(scheduler: Table | None, options: Options) -> DiffusionConfig:
    """What ``scheduler`` says of the forward process, the objective and the clipping.

    Without one the options have to say it. Raises `TicketError` or `ConfigError`. What a scheduler
    says of sampling alone (spacing of timesteps, variance) is no part of a ticket.
    """
    asked = {
        name: getattr(options, name)
        for name in ("timesteps", "schedule", "objective", "clip")
        if getattr(options, name) is not None
    }
    if scheduler is None:
        missing = [name for name in ("schedule", "objective", "timesteps") if name not in asked]
        if missing:
            wanted = f"a file of the scheduler, or --{' --'.join(missing)}"
            raise TicketError(expected("scheduler_config.json", wanted, "none"))
        return DiffusionConfig(**asked)
    found = _process(scheduler, options)
    for name, value in asked.items():
        if getattr(found, name) != value:
            wanted = f"{getattr(found, name)!r}, as scheduler_config.json says"
            raise TicketError(expected(f"--{name}", wanted, repr(value)))
    return found


def _process(scheduler: Table, options: Options) -> DiffusionConfig:
    kind = scheduler.get("_class_name")
    if kind not in SCHEDULERS:
        raise TicketError(expected("scheduler", " or ".join(SCHEDULERS), repr(kind)[:80]))
    for name, usual in REFUSED.items():
        value = scheduler.get(name, usual)
        if value is not usual:
            raise TicketError(expected(f"scheduler's {name}", usual, repr(value)[:80]))
    clip = scheduler.get("clip_sample", True)
    if clip is True and scheduler.get("clip_sample_range", 1.0) != 1.0:
        got = repr(scheduler["clip_sample_range"])[:80]
        raise TicketError(expected("scheduler's clip_sample_range", "1.0", got))
    timesteps = scheduler.get("num_train_timesteps", 1000)
    schedule = _one_of(scheduler, "beta_schedule", "linear", SCHEDULES)
    start, end = 1e-4, 0.02
    if schedule != "cosine":
        start = _beta(scheduler, "beta_start", start, timesteps)
        end = _beta(scheduler, "beta_end", end, timesteps)
    _tell(scheduler, options)
    return DiffusionConfig(
        timesteps=timesteps,
        schedule=schedule,
        objective=_one_of(scheduler, "prediction_type", "epsilon", OBJECTIVES),
        clip=clip,
        beta_start=start,
        beta_end=end,
    )


def _one_of(scheduler: Table, name: str, usual: str, known: Mapping[str, str]) -> str:
    value = scheduler.get(name, usual)
    if not isinstance(value, str) or value not in known:
        wanted = f"one of {', '.join(known)}"
        raise TicketError(expected(f"scheduler's {name}", wanted, repr(value)[:80]))
    return known[value]


def _beta(scheduler: Table, name: str, usual: float, timesteps: object) -> float:
    """Ours are those of a process of 1000 timesteps."""
    value = scheduler.get(name, usual)
    if not isinstance(value, (int, float)) or not 0.0 < value <= MAX_BETA:
        wanted = f"a number above 0, at most {MAX_BETA}"
        raise TicketError(expected(f"scheduler's {name}", wanted, repr(value)[:80]))
    if type(timesteps) is not int or timesteps == 1000:
        return float(value)
    return value * timesteps / 1000.0


def _tell(scheduler: Table, options: Options) -> None:
    """Of sampling settings that give other images than ours with the same noise."""
    variance = scheduler.get("variance_type", "fixed_small")
    if variance != "fixed_small":
        options.tell(
            f"variance_type {variance!r:.40} is not kept: ddpm adds the posterior's noise "
            "(fixed_small)."
        )
    if scheduler.get("set_alpha_to_one") is False:
        options.tell("set_alpha_to_one false is not kept: the last step ends at x0 itself.")
