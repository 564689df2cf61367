"""Gradual pruning in one run, on a cubic schedule (Zhu & Gupta 2017, eq. 1)."""

from __future__ import annotations

from fractions import Fraction

UPDATES = 50
"""How often the mask is made anew, at most."""


def mask_updates(steps: int, density: Fraction, ramp: float) -> dict[int, Fraction]:
    """Before which of ``steps`` steps the mask is made anew, and the density it then has.

    ``1 - density`` is reached by ``s (1 - (1 - p)^3)``, p from 0 to 1 over the first ``ramp``, a
    part, of the steps: quickly where many weights are redundant, slowly at the end. The last
    density is ``density`` exactly.
    """
    last = int(Fraction(str(ramp)) * steps)
    if last == 0:
        return {0: density}
    count = min(UPDATES, last)
    out: dict[int, Fraction] = {}
    for index in range(1, count + 1):
        progress = Fraction(index, count)
        out[int(progress * last)] = density + (1 - density) * (1 - progress) ** 3
    return out
