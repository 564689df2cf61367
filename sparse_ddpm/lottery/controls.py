"""What a ticket has to be better than, trained after the last round on the same batches.

* ``reinit``: the last round's masks on fresh random weights.
* ``random-mask``: as many units in each layer at random places, on the weights rewound to (with
  ``lr``: on the dense ones).
* ``narrow:FRACTION``: a dense U-Net of FRACTION of the width, in whole multiples of the norms'
  groups, for as many steps as the ticket's own weights were trained. For one of equal measured
  time try fractions with ``sparse-ddpm bench``; FRACTION near the root of the density has as many
  weights.
"""

from __future__ import annotations

import dataclasses
import re

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lottery.settings import RAMP, FineTuning, Settings
from sparse_ddpm.ticket import UNetConfig

MASKED = ("reinit", "random-mask")


def check_control(control: str) -> None:
    """Raise `ConfigError` for a name that is no control."""
    if control not in MASKED and _fraction(control) is None:
        wanted = f"one of {', '.join(MASKED)}, narrow:FRACTION"
        raise ConfigError(expected("control", wanted, control))


def narrow_settings(settings: Settings, control: str) -> Settings:
    """The settings of ``narrow:FRACTION``: dense, and as wide as FRACTION says.

    Raises `ConfigError` where that is not narrower.
    """
    fraction = _fraction(control)
    assert fraction is not None
    config = settings.architecture
    if isinstance(settings, FineTuning) or not isinstance(config, UNetConfig):
        raise ConfigError(expected(f"control {control}", "a run without --from", "one with it"))
    dim = config.groups * max(1, round(fraction * config.dim / config.groups))
    if dim >= config.dim:
        what = f"control {control}: width in multiples of {config.groups}"
        raise ConfigError(expected(what, f"fewer than {config.dim} channels", dim))
    return dataclasses.replace(
        settings,
        dim=dim,
        allocation="uniform",
        pattern="element",
        permute=False,
        gradual=False,
        ramp=RAMP,
    )


def control_steps(settings: Settings, control: str) -> int:
    """How many steps a control is trained."""
    last = settings.steps_of(settings.rounds)
    if control in MASKED or settings.rewind == "init":
        return last
    if settings.late_steps is not None:
        return settings.late_steps + last
    return sum(settings.steps_of(round_) for round_ in range(settings.rounds + 1))


def control_folder(control: str) -> str:
    """Name of the folder of a control within that of its run."""
    return "control-" + control.replace(":", "-")


def _fraction(control: str) -> float | None:
    match = re.fullmatch(r"narrow:(0?\.\d{1,6})", control)
    value = float(match[1]) if match else 0.0
    return value if value > 0.0 else None
