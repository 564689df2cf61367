"""What a ticket says about itself: architecture, diffusion, and where it came from.

These are plain frozen values shared by the trainer, the ticket file and the lowering. They check
themselves when made, so whoever holds one need not check again.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

from sparse_ddpm.errors import ConfigError, expected

SCHEDULES = ("linear", "cosine", "sigmoid", "scaled_linear")
BETA_SCHEDULES = ("linear", "scaled_linear")
"""Those that lead from one beta to another."""
OBJECTIVES = ("eps", "x0", "v")
WEIGHT_STANDARDIZATIONS = ("none", "surviving", "full")
BLOCK_NORMS = ("group", "rms")
ATTENTION_NORMS = ("layer", "rms")
ATTENTION_VALUES = ("mean", "sum")

# Bounds on what a file may claim, so that a damaged one cannot ask for terabytes.
MAX_CHANNELS = 16_384
MAX_IMAGE_SIZE = 4_096
MAX_TIMESTEPS = 1_000_000


def _check_int(what: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(expected(what, f"an integer from {low} to {high}", repr(value)))


def _check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(expected(what, f"one of {', '.join(choices)}", repr(value)))


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """The paper's U-Net: ``dim`` times ``dim_mults`` channels, one halving between levels.

    ``weight_standardization`` is of the 3x3 convolutions of the residual blocks: ``"surviving"``
    (over the weights that survive the mask, so that zeros stay zeros), ``"full"`` (over all of
    them, pruned zeros included, as the paper's code has it: pruned weights then act as minus their
    row's mean) or ``"none"``.

    The other fields are what later versions of lucidrains' U-Net changed. ``block_norm``: ``group``
    or, each pixel's channels over the root of their mean square, ``rms``; ``attention_norm``,
    around attention: ``layer`` or ``rms``; ``attention_values``: whether linear attention takes
    the ``mean`` of the values over all pixels or their ``sum``; ``full_attention``: the levels,
    rising, whose attention is softmax and not linear; ``memory``: keys and values beside those of
    the pixels, which attention has learned.
    """

    dim: int
    dim_mults: tuple[int, ...]
    channels: int
    image_size: int
    groups: int = 8
    heads: int = 4
    dim_head: int = 32
    weight_standardization: str = "surviving"
    block_norm: str = "group"
    attention_norm: str = "layer"
    attention_values: str = "mean"
    full_attention: tuple[int, ...] = ()
    memory: int = 0

    def __post_init__(self) -> None:
        _check_int("architecture.dim", self.dim, 2, MAX_CHANNELS)
        if not isinstance(self.dim_mults, tuple) or not 1 <= len(self.dim_mults) <= 8:
            raise ConfigError(
                expected("architecture.dim_mults", "1 to 8 integers", repr(self.dim_mults))
            )
        for mult in self.dim_mults:
            _check_int("architecture.dim_mults", mult, 1, 256)
            _check_int("architecture.dim x dim_mults", self.dim * mult, 1, MAX_CHANNELS)
        _check_int("architecture.channels", self.channels, 1, 64)
        _check_int("architecture.image_size", self.image_size, 1, MAX_IMAGE_SIZE)
        _check_int("architecture.groups", self.groups, 1, MAX_CHANNELS)
        _check_int("architecture.heads", self.heads, 1, 256)
        _check_int("architecture.dim_head", self.dim_head, 1, 1_024)
        for name, choices in (
            ("weight_standardization", WEIGHT_STANDARDIZATIONS),
            ("block_norm", BLOCK_NORMS),
            ("attention_norm", ATTENTION_NORMS),
            ("attention_values", ATTENTION_VALUES),
        ):
            _check_choice(f"architecture.{name}", getattr(self, name), choices)
        _check_int("architecture.memory", self.memory, 0, 1_024)
        levels = range(len(self.dim_mults))
        full = self.full_attention
        if not isinstance(full, tuple) or sorted(set(full) & set(levels)) != list(full):
            raise ConfigError(
                expected("architecture.full_attention", f"levels below {len(levels)}", repr(full))
            )
        if self.dim % 2:
            raise ConfigError(
                expected("architecture.dim", "an even number (sine and cosine halves)", self.dim)
            )
        if self.dim % self.groups:
            raise ConfigError(
                expected("architecture.dim", f"a multiple of groups={self.groups}", self.dim)
            )
        halvings = 2 ** (len(self.dim_mults) - 1)
        if self.image_size % halvings:
            raise ConfigError(
                expected("architecture.image_size", f"a multiple of {halvings}", self.image_size)
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at the entry of each level and after the last: ``levels + 1`` numbers."""
        return (self.dim, *(self.dim * mult for mult in self.dim_mults))

    @property
    def time_dim(self) -> int:
        return 4 * self.dim

    @property
    def hidden(self) -> int:
        """Channels of q, of k and of v in every attention."""
        return self.heads * self.dim_head


@dataclass(frozen=True, slots=True)
class DiffusionConfig:
    """The forward process, what the network predicts, and whether x0 is clipped to [-1, 1].

    ``beta_start``, ``beta_end``: the first and the last beta of the schedules ``linear`` (betas in
    equal steps) and ``scaled_linear`` (their roots in equal steps), for 1000 timesteps; with fewer
    both grow in proportion. The other schedules have none: there they keep their defaults.
    """

    timesteps: int = 1000
    schedule: str = "sigmoid"
    objective: str = "eps"
    clip: bool = True
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        _check_int("diffusion.timesteps", self.timesteps, 1, MAX_TIMESTEPS)
        _check_choice("diffusion.schedule", self.schedule, SCHEDULES)
        _check_choice("diffusion.objective", self.objective, OBJECTIVES)
        if type(self.clip) is not bool:
            raise ConfigError(expected("diffusion.clip", "true or false", repr(self.clip)))
        for name in ("beta_start", "beta_end"):
            value = getattr(self, name)
            if type(value) is not float or not 0.0 < value < 1e6:
                raise ConfigError(expected(f"diffusion.{name}", "a float above 0", repr(value)))
        if self.beta_start > self.beta_end:
            wanted = f"at most beta_end = {self.beta_end!r}"
            raise ConfigError(expected("diffusion.beta_start", wanted, repr(self.beta_start)))
        if self.schedule not in BETA_SCHEDULES and (self.beta_start, self.beta_end) != (1e-4, 0.02):
            what = f"diffusion.beta_start, beta_end of schedule {self.schedule}"
            raise ConfigError(
                expected(what, "1e-4 and 0.02 (it has none)", (self.beta_start, self.beta_end))
            )


@dataclass(frozen=True, slots=True)
class Pattern:
    """The unit that was pruned, written ``element``, ``vector:G`` or ``block:RxC``.

    ``rows`` output channels by ``columns`` input channels of one tap: (1, 1), (G, 1) or (R, C).
    """

    rows: int = 1
    columns: int = 1

    def __post_init__(self) -> None:
        _check_int("pattern rows", self.rows, 1, 1_024)
        _check_int("pattern columns", self.columns, 1, 1_024)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``element``, ``vector:G`` or ``block:RxC``; raise `ConfigError` on anything else."""
        if text == "element":
            return cls(1, 1)
        if match := re.fullmatch(r"vector:(\d{1,4})", text):
            return cls(int(match[1]), 1)
        if match := re.fullmatch(r"block:(\d{1,4})x(\d{1,4})", text):
            return cls(int(match[1]), int(match[2]))
        raise ConfigError(expected("pattern", "element, vector:G or block:RxC", repr(text)))

    def __str__(self) -> str:
        if self.rows == self.columns == 1:
            return "element"
        return f"vector:{self.rows}" if self.columns == 1 else f"block:{self.rows}x{self.columns}"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a ticket came from. Informative only: nothing at run time depends on it."""

    dataset: str = ""
    seed: int = 0
    round: int = 0
    rewinding: str = ""
    allocation: str = ""
    pattern: str = "element"
    sparsity: float = 0.0
    """Fraction of the prunable weights that is gone."""
    initial_sha256: str = ""
    """Hash of the initial weights, so that two tickets can be known as siblings."""
    command: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value: Any = getattr(self, item.name)
            if item.name == "metrics":
                good = isinstance(value, dict) and all(
                    type(k) is str and type(v) is float and math.isfinite(v)
                    for k, v in value.items()
                )
                wanted = "a table of finite floats"
            elif item.name in ("seed", "round"):
                good, wanted = type(value) is int and 0 <= value < 2**64, "a 64-bit integer >= 0"
            elif item.name == "sparsity":
                good = type(value) is float and 0.0 <= value <= 1.0
                wanted = "a float from 0 to 1"
            else:
                good, wanted = type(value) is str and len(value) <= 10_000, "a short string"
            if not good:
                raise ConfigError(expected(f"provenance.{item.name}", wanted, repr(value)[:80]))
        Pattern.parse(self.pattern)


PRESETS: dict[str, UNetConfig] = {
    "paper": UNetConfig(dim=64, dim_mults=(1, 2, 4, 8), channels=3, image_size=32),
    "small": UNetConfig(dim=32, dim_mults=(1, 2, 4), channels=1, image_size=32),
}
"""The two reference models: the paper's own (35.7 M parameters) and one for a CPU."""
