"""All settings of a run, checked, with the names they have on the command line."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lottery.allocation import ALLOCATIONS, NEED_LAYERS
from sparse_ddpm.ticket import Architecture, Ticket
from sparse_ddpm.ticket.config import PRESETS, DiffusionConfig, Pattern

OPTIMIZERS = ("adam", "adamw")
LR_SCHEDULES = ("constant", "one-cycle")
PRECISIONS = ("auto", "float32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
STORES = ("float32", "float16")
KERNELS = ("auto", "torch", "sparse")
RAMP = 0.75
"""Part of a gradual round in which weights go, unless chosen otherwise."""
LATER = {"kernels": "torch", "ramp": RAMP}
"""Settings that runs did not always have, and what those runs did."""
SAID = ("pattern",)
"""Settings that a command says even where they are the default, which may change."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is a function of; raises `ConfigError` for what cannot be.

    ``prune_fraction`` of the remaining prunable weights goes in each of ``rounds`` pruning rounds;
    ``sparsity`` instead fixes where the last one ends. ``rewind`` is ``init``, ``late:K`` or
    ``lr``. With ``gradual`` the one pruning round begins dense and its mask follows a cubic
    schedule over the first ``ramp``, a part, of its steps; with ``permute`` output channels are
    reordered, before anything is pruned, so that units hold more; ``distil`` is the weight, from 0
    to 1, of the dense average's prediction in what pruned networks learn. ``device``,
    ``precision``, ``threads`` and ``kernels`` are resolved before a run begins: its bits depend on
    them. ``kernels`` that stay ``auto`` are chosen by density.
    """

    data: str
    preset: str = "small"
    image_size: int | None = None
    dim: int | None = None
    weight_standardization: str = "surviving"
    schedule: str = "sigmoid"
    objective: str = "eps"
    timesteps: int = 1000
    rounds: int = 11
    prune_fraction: float = 0.2
    sparsity: float | None = None
    allocation: str = "uniform"
    pattern: str = "vector:8"
    permute: bool = False
    gradual: bool = False
    ramp: float = RAMP
    rewind: str = "init"
    dense_steps: int = 2000
    steps: int = 2000
    final_steps: int | None = None
    batch_size: int = 64
    lr: float = 3e-4
    lr_schedule: str = "constant"
    optimizer: str = "adam"
    weight_decay: float = 0.0
    clip_gradient: float = 1.0
    loss: str = "l1"
    distil: float = 0.0
    ema: float = 0.995
    flip: bool = False
    seed: int = 0
    data_seed: int | None = None
    store: str = "float32"
    precision: str = "auto"
    device: str = "auto"
    threads: int | None = None
    kernels: str = "auto"

    def __post_init__(self) -> None:
        _choice("preset", self.preset, tuple(PRESETS))
        for name, choices in (
            ("allocation", ALLOCATIONS),
            ("optimizer", OPTIMIZERS),
            ("lr-schedule", LR_SCHEDULES),
            ("loss", ("l1", "l2")),
            ("precision", PRECISIONS),
            ("device", DEVICES),
            ("store", STORES),
            ("kernels", KERNELS),
        ):
            _choice(name, getattr(self, name.replace("-", "_")), choices)
        for name, low in (("rounds", 0), ("dense-steps", 1), ("steps", 1), ("batch-size", 1)):
            _integer(name, getattr(self, name.replace("-", "_")), low)
        _integer("seed", self.seed, 0)
        if self.data_seed is not None:
            _integer("data-seed", self.data_seed, 0)
        if self.final_steps is not None:
            _integer("final-steps", self.final_steps, 1)
        if self.threads is not None:
            _integer("threads", self.threads, 1)
        _number("prune-fraction", self.prune_fraction, 0.0, 1.0, open_low=True)
        if self.sparsity is not None:
            _number("sparsity", self.sparsity, 0.0, 1.0, open_low=True)
            if self.rounds == 0:
                raise ConfigError(expected("rounds", "at least 1 with --sparsity", 0))
        _number("lr", self.lr, 0.0, math.inf, open_low=True)
        _number("weight-decay", self.weight_decay, 0.0, math.inf)
        _number("clip-gradient", self.clip_gradient, 0.0, math.inf, open_low=True)
        _number("ema", self.ema, 0.0, 1.0)
        _number("ramp", self.ramp, 0.0, 1.0)
        _number("distil", self.distil, 0.0, 1.0, closed_high=True)
        self._check_pruning()
        late = self.late_steps
        if late is not None and late > self.dense_steps:
            raise ConfigError(
                expected("rewind", f"late:K with K at most dense-steps={self.dense_steps}", late)
            )
        _ = self.architecture, self.diffusion

    def _check_pruning(self) -> None:
        pattern = Pattern.parse(self.pattern)
        if self.permute and pattern.rows == 1:
            wanted = "a pattern of several output channels with --permute"
            raise ConfigError(expected("pattern", wanted, repr(self.pattern)))
        if self.gradual and self.rounds != 1:
            raise ConfigError(expected("rounds", "1 with --gradual", self.rounds))
        if not self.gradual and self.ramp != RAMP:
            raise ConfigError(expected("ramp", "--gradual beside it", self.ramp))
        if self.distil > 0.0 and self.rounds == 0:
            raise ConfigError(expected("rounds", "at least 1 with --distil", 0))

    @property
    def order_seed(self) -> int:
        """Of what training sees: the order of images, their timesteps and noise."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def architecture(self) -> Architecture:
        """The preset with what was overridden."""
        preset = PRESETS[self.preset]
        return dataclasses.replace(
            preset,
            image_size=preset.image_size if self.image_size is None else self.image_size,
            dim=preset.dim if self.dim is None else self.dim,
            weight_standardization=self.weight_standardization,
        )

    @property
    def diffusion(self) -> DiffusionConfig:
        return DiffusionConfig(self.timesteps, self.schedule, self.objective)

    @property
    def late_steps(self) -> int | None:
        """K of ``late:K``; None for the other rewinds."""
        if self.rewind in ("init", "lr"):
            return None
        if match := re.fullmatch(r"late:([1-9]\d{0,8})", self.rewind):
            return int(match[1])
        raise ConfigError(expected("rewind", "init, late:K or lr", repr(self.rewind)))

    def steps_of(self, round_: int) -> int:
        """How many steps round ``round_`` trains."""
        if round_ == 0:
            return self.dense_steps
        last = self.steps if self.final_steps is None else self.final_steps
        return last if round_ == self.rounds else self.steps

    def command(self) -> str:
        """The command line of this run, with placeholders for the places on one machine."""
        kind = self.data.partition(":")[0]
        place = "DIR" if kind == "mnist" else "PATH"
        words = ["sparse-ddpm", "train", "--data", f"{kind}:{place}", "--out", "DIR"]
        for item in dataclasses.fields(Settings):
            value = getattr(self, item.name)
            usual = value == item.default and item.name not in SAID
            if usual or item.name in ("data", *self._unasked()):
                continue
            option = "--" + item.name.replace("_", "-")
            words += [option] if value is True else [option, str(value)]
        if self.allocation == "similarity":
            words += ["--similar-to", "TICKET", "TICKET"]
        return " ".join(words)

    def _unasked(self) -> tuple[str, ...]:
        """Settings that the command line does not take."""
        return ()

    def to_json(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(Settings)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Settings:
        """The settings that `to_json` wrote; raises `ConfigError` for unknown or missing names."""
        known = [item.name for item in dataclasses.fields(Settings)]
        for name in value:
            if name not in known:
                raise ConfigError(expected("config.json", "known settings", repr(name)))
        for name in known:
            if name not in value and name not in LATER:
                raise ConfigError(expected("config.json", f"the setting {name!r}", "none"))
        return cls(**{**LATER, **value})

    def check_same(self, stored: Settings) -> None:
        """Raise `ConfigError` naming the first setting that is not what a run began with."""
        for item in dataclasses.fields(Settings):
            here, there = getattr(self, item.name), getattr(stored, item.name)
            if here != there:
                what = f"--resume: {item.name.replace('_', '-')}"
                raise ConfigError(expected(what, f"{there!r} as the run began", repr(here)))


@dataclass(frozen=True, slots=True)
class FineTuning(Settings):
    """Settings of a run that begins with the ticket ``start``, whose network and diffusion it has.

    `GIVEN` settings are the ticket's, and what they say here is not used.
    """

    start: Ticket | None = field(default=None, compare=False, repr=False)

    @property
    def ticket(self) -> Ticket:
        assert self.start is not None
        return self.start

    @property
    def architecture(self) -> Architecture:
        """The ticket's."""
        return self.ticket.architecture

    @property
    def diffusion(self) -> DiffusionConfig:
        return self.ticket.diffusion

    def command(self) -> str:
        """As `Settings.command`, after the command that made the ticket."""
        words = Settings.command(self).split(" ")
        mine = " ".join([*words[:2], "--from", "TICKET", *words[2:]])
        before = self.ticket.provenance.command
        return f"{before}; {mine}" if before else mine

    def _unasked(self) -> tuple[str, ...]:
        return ("timesteps",)


GIVEN = (
    "preset",
    "image_size",
    "dim",
    "weight_standardization",
    "schedule",
    "objective",
    "permute",
)
"""Settings that a run from a ticket cannot choose; nor ``timesteps``, which it is told."""


def fine_tuning(ticket: Ticket, chosen: Mapping[str, Any]) -> FineTuning:
    """The settings of a run from ``ticket``; raises `ConfigError` for one that the ticket decides.

    Unless chosen otherwise there are no rounds: the mask stays as it is. Round 0 trains under it,
    as long as any other. Rounds rewind the learning rate, and prune in the ticket's own pattern.
    """
    for name in (*GIVEN, "timesteps"):
        if name in chosen:
            what = f"--{name.replace('_', '-')}"
            raise ConfigError(
                expected(what, "none with --from, whose ticket says it", chosen[name])
            )
    origin = ticket.provenance
    usual: dict[str, Any] = {"rewind": "lr", "pattern": origin.pattern}
    if "sparsity" not in chosen and "prune_fraction" not in chosen:
        usual["rounds"] = 0
    if origin.allocation in ALLOCATIONS and origin.allocation not in NEED_LAYERS:
        usual["allocation"] = origin.allocation
    values = {**usual, **chosen, "timesteps": ticket.diffusion.timesteps}
    if "steps" in chosen:
        values.setdefault("dense_steps", chosen["steps"])
    settings = FineTuning(**values, start=ticket)
    if settings.sparsity is not None and settings.sparsity <= ticket.sparsity:
        wanted = f"more than the {ticket.sparsity:.4f} of the ticket"
        raise ConfigError(expected("sparsity", wanted, settings.sparsity))
    return settings


def _choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(expected(what, f"one of {', '.join(choices)}", repr(value)))


def _integer(what: str, value: object, low: int) -> None:
    if type(value) is not int or not low <= value < 2**63:
        raise ConfigError(expected(what, f"an integer of at least {low}", repr(value)))


def _number(
    what: str,
    value: object,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    closed_high: bool = False,
) -> None:
    good = isinstance(value, float) and low <= value <= high
    if not good or (open_low and value == low) or (not closed_high and value == high):
        least = f"above {low:g}" if open_low else f"of at least {low:g}"
        below = f"at most {high:g}" if closed_high else f"below {high:g}"
        most = "finite" if math.isinf(high) else below
        raise ConfigError(expected(what, f"a number {least} and {most}", repr(value)))
