"""How the survivors are shared out among the layers.

Three allocations fix a density for each layer, and the layer keeps its best units:

* ``uniform``: the same in each.
* ``erk`` (Erdős-Rényi kernel; Mocanu 2018, Evci 2020, section 3): in proportion to
  ``(Cin + Cout + kh + kw) / (Cin Cout kh kw)``, so small layers stay denser.
* ``similarity``: in proportion to `relative_densities`, made from two tickets found before.

Three give every unit a score that can be compared between layers, and the best of all are kept:

* ``global``: magnitude. It can empty whole layers, the more so the coarser the pattern.
* ``lamp`` (Lee 2021, eq. 4): the square of a weight over the sum of the squares of its layer that
  are not smaller: what the layer would lose, of what it has left, by losing it.
* ``latency``: the LAMP score over what the weight costs in time, for the least loss at a given
  time (a knapsack by value for weight). FiLM maps cost no time while images are drawn, and layers
  without a cost have the uniform density.

In all of them the number of weights is what was asked for; ``latency`` leaves a faster ticket of
the same size, and so can keep more weights in the same time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.ticket.parameters import Parameter

DENSITIES = ("uniform", "erk", "similarity")
SCORES = ("global", "lamp", "latency")
ALLOCATIONS = ("uniform", "global", "erk", "lamp", "similarity", "latency")
NEED_LAYERS = ("similarity", "latency")
"""These need a number for each layer, made before the run begins."""

Layers = Mapping[str, float]
"""By parameter name: for ``similarity`` relative densities, for ``latency`` the time that one
weight costs, in any unit."""


def check_layers(allocation: str, layers: Layers | None, parameters: Sequence[Parameter]) -> None:
    """Raise `ConfigError` unless ``layers`` is what ``allocation`` needs for ``parameters``."""
    if allocation not in ALLOCATIONS:
        raise ConfigError(
            expected("allocation", f"one of {', '.join(ALLOCATIONS)}", repr(allocation))
        )
    if allocation not in NEED_LAYERS:
        return
    for parameter in parameters:
        number = None if layers is None else layers.get(parameter.name)
        if not isinstance(number, int | float) or not 0.0 <= number < math.inf:
            what = f"allocation {allocation}: number of {parameter.name}"
            raise ConfigError(expected(what, "one that is finite and at least 0", number))


def layer_densities(
    allocation: str, parameters: Sequence[Parameter], density: Fraction, layers: Layers | None
) -> list[Fraction]:
    """The density of each of ``parameters`` under one of `DENSITIES`; together ``density``."""
    if allocation == "uniform":
        return [density] * len(parameters)
    if allocation == "erk":
        raw = [sum(p.shape) / math.prod(p.shape) for p in parameters]
    else:
        assert layers is not None
        raw = [layers[p.name] for p in parameters]
    return proportional(raw, [math.prod(p.shape) for p in parameters], density)


def proportional(raw: Sequence[float], sizes: Sequence[int], density: Fraction) -> list[Fraction]:
    """Densities in proportion to ``raw``, at most 1, that keep ``density`` of all weights.

    What a full layer cannot take goes to the others in proportion. Rising in ``density``, so that
    masks of later rounds lie within those of earlier ones. Raises `ConfigError` where layers of
    ``raw`` 0 are the only ones with room.
    """
    exact = [Fraction(value) for value in raw]
    budget = density * sum(sizes)
    full = [False] * len(exact)
    while True:
        left = budget - sum(n for n, f in zip(sizes, full, strict=True) if f)
        room = sum((r * n for r, n, f in zip(exact, sizes, full, strict=True) if not f), Fraction())
        if room == 0:
            if left > 0:
                raise ConfigError(expected("density", "room in layers above 0", float(density)))
            return [Fraction(int(f)) for f in full]
        scale = left / room
        over = [not f and r * scale > 1 for r, f in zip(exact, full, strict=True)]
        if not any(over):
            return [Fraction(1) if f else r * scale for r, f in zip(exact, full, strict=True)]
        full = [f or o for f, o in zip(full, over, strict=True)]


def lamp_scores(squares: NDArray[np.float64], sizes: NDArray[np.int32]) -> NDArray[np.float64]:
    """LAMP scores per weight of one layer's units, best first, all arrays ``[units]``.

    ``squares``: mean squares, falling. A unit's score is its mean square over the sum of the
    squares of all weights in units that are not below it: with units of one weight, the score of
    the paper. It falls with the square, so the order within a layer stays.
    """
    if not squares.size:
        return squares
    above = np.cumsum(squares * sizes)
    last = np.flatnonzero(np.append(squares[1:] != squares[:-1], True))
    above = np.repeat(above[last], np.diff(last, prepend=-1))
    out = np.zeros(squares.size)
    np.divide(squares, above, out=out, where=above > 0.0)
    return out
