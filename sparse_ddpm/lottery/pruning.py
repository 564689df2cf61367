"""Magnitude pruning: how many weights survive a round, and which.

Masks are bool arrays by parameter name, True where a weight survives, one for every prunable
parameter. Functions return new masks and never change the old ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.lottery.allocation import (
    DENSITIES,
    Layers,
    check_layers,
    lamp_scores,
    layer_densities,
)
from sparse_ddpm.lottery.patterns import (
    ELEMENT,
    pattern_of,
    unit_alive,
    unit_mask,
    unit_scores,
    unit_sizes,
)
from sparse_ddpm.lottery.randomness import generator
from sparse_ddpm.ticket import Architecture, Parameter, Pattern, parameters_of

Masks = dict[str, NDArray[np.bool_]]


def density_after(
    round_: int,
    *,
    fraction: float,
    sparsity: float | None,
    rounds: int,
    begin: Fraction = Fraction(1),
) -> Fraction:
    """Part of the prunable weights that survives round ``round_``; ``begin`` in round 0.

    Either ``begin (1 - fraction) ** round``, or, with ``sparsity``, the same geometric decay chosen
    so that the last of ``rounds`` ends at ``1 - sparsity``. Decimal numbers are taken as they are
    written (0.2 is 1/5), so counts do not depend on how a float rounds.
    """
    if sparsity is None:
        return begin * (1 - Fraction(str(fraction))) ** round_
    if round_ == rounds:
        return 1 - Fraction(str(sparsity))
    first = float(begin)
    return Fraction(first * ((1.0 - sparsity) / first) ** (round_ / rounds))


def survivors(size: int, density: Fraction) -> int:
    """How many of ``size`` weights survive at ``density``: rounded down, but at least one.

    Rounding down makes the sparsity that was asked for a lower bound, in each layer and in all.
    """
    return max(1, math.floor(size * density))


def prunable(architecture: Architecture) -> list[Parameter]:
    """The parameters that masks are made for, in the order of the forward pass."""
    return [p for p in parameters_of(architecture) if p.prunable]


def dense_masks(architecture: Architecture) -> Masks:
    """Masks that prune nothing."""
    return {p.name: np.ones(p.shape, bool) for p in prunable(architecture)}


def density_of(masks: Mapping[str, NDArray[np.bool_]]) -> float:
    """Part of all prunable weights that survives."""
    return sum(int(m.sum()) for m in masks.values()) / sum(m.size for m in masks.values())


def prune(
    effective: Mapping[str, NDArray[np.float32]],
    masks: Masks,
    density: Fraction,
    *,
    architecture: Architecture,
    allocation: str = "uniform",
    pattern: Pattern = ELEMENT,
    layers: Layers | None = None,
) -> Masks:
    """Keep the surviving units of highest score until ``density`` of all weights is left.

    ``effective``: masked, standardised weights by name; ``allocation``, ``layers`` and scores: see
    `sparse_ddpm.lottery.allocation` and `unit_scores`. Units are taken, best first, while they fit
    into the `survivors` of each layer or of all together; at least one is. Of equal scores the
    earlier unit stays (layers in the order of the forward pass, units in C order). What ``masks``
    prunes stays pruned. Raises `ConfigError`.

    For ``global`` a standardised weight is divided by the root of its fan-in, the scale at which
    a dense layer is initialised: standardisation makes its own scale meaningless (group norm
    takes it out again), and without a common scale one threshold would compare unlike things.
    """
    parameters = prunable(architecture)
    check_layers(allocation, layers, parameters)
    cuts = [_Cut(p, pattern, effective[p.name], masks[p.name]) for p in parameters]
    if allocation in DENSITIES:
        densities = layer_densities(allocation, parameters, density, layers)
        kept = [cut.best(share) for cut, share in zip(cuts, densities, strict=True)]
    else:
        kept = _best_of_all(cuts, allocation, density, layers or {})
    return {
        cut.parameter.name: cut.mask(keep) & masks[cut.parameter.name]
        for cut, keep in zip(cuts, kept, strict=True)
    }


class _Cut:
    """One parameter cut into units: flat arrays of their scores, sizes, and which are alive."""

    def __init__(
        self,
        parameter: Parameter,
        pattern: Pattern,
        effective: NDArray[np.float32],
        mask: NDArray[np.bool_],
    ) -> None:
        self.parameter, self.pattern = parameter, pattern_of(parameter, pattern)
        sizes = unit_sizes(parameter.shape, self.pattern)
        self.grid = sizes.shape
        self.sizes = sizes.reshape(-1)
        self.weights = math.prod(parameter.shape)
        self.alive = unit_alive(mask, self.pattern).reshape(-1)
        self.scores = unit_scores(effective, self.pattern).reshape(-1)

    def best(self, density: Fraction) -> NDArray[np.bool_]:
        return best_units(self.ranked(), self.sizes, survivors(self.weights, density))

    def first(self, count: int) -> NDArray[np.bool_]:
        """The ``count`` best units."""
        if count == 0:
            return np.zeros(self.scores.size, bool)
        return best_units(self.ranked(), np.broadcast_to(np.int32(1), self.sizes.shape), count)

    def ranked(self) -> NDArray[np.float32]:
        # A pruned unit ranks behind every survivor, also behind one that is exactly zero.
        return np.where(self.alive, self.scores, np.float32(-1.0))

    def falling(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scores of the units alive, best first, and their sizes."""
        scores, sizes = self.scores[self.alive], self.sizes[self.alive]
        if sizes.size and sizes.min() == sizes.max():
            return np.sort(scores)[::-1], sizes
        order = np.argsort(-scores, kind="stable")
        return scores[order], sizes[order]

    def compared(self, allocation: str, layers: Layers) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """As `falling`, but scores that can be compared with those of other layers."""
        scores, sizes = self.falling()
        if allocation == "global":
            if self.parameter.standardized:
                scores = scores / np.float32(math.sqrt(math.prod(self.parameter.shape[1:])))
            return scores, sizes
        lamp = lamp_scores(np.square(scores, dtype=np.float64), sizes)
        return (lamp / layers[self.parameter.name] if allocation == "latency" else lamp), sizes

    def mask(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return unit_mask(kept.reshape(self.grid), self.parameter.shape, self.pattern)


def _best_of_all(
    cuts: list[_Cut], allocation: str, density: Fraction, layers: Layers
) -> list[NDArray[np.bool_]]:
    """The best units by scores that are compared within a pool of layers.

    Large units average over their weights and so scatter less: FiLM maps, cut into elements, have
    a pool of their own beside convolutions in coarser units, with the same density. Layers that
    cost nothing are alone.
    """
    pools: dict[object, list[_Cut]] = {}
    for cut in cuts:
        free = allocation == "latency" and layers[cut.parameter.name] == 0.0
        pools.setdefault(cut.parameter.name if free else cut.pattern, []).append(cut)
    kept: dict[str, NDArray[np.bool_]] = {}
    for pool in pools.values():
        if len(pool) == 1:
            kept[pool[0].parameter.name] = pool[0].best(density)
            continue
        scores, sizes = zip(*(cut.compared(allocation, layers) for cut in pool), strict=True)
        budget = survivors(sum(cut.weights for cut in pool), density)
        best = best_units(np.concatenate(scores), np.concatenate(sizes), budget)
        # Scores fall within a layer, so what is kept of it are its first units.
        parts = np.split(best, np.cumsum([part.size for part in scores])[:-1])
        kept |= {
            cut.parameter.name: cut.first(int(part.sum()))
            for cut, part in zip(pool, parts, strict=True)
        }
    return [kept[cut.parameter.name] for cut in cuts]


def best_units(scores: NDArray[Any], sizes: NDArray[np.int32], budget: int) -> NDArray[np.bool_]:
    """True for the units of highest score that fit into ``budget`` weights, and for the first.

    All arrays ``[units]``. The first unit, in falling order of scores, that does not fit ends it;
    of equal scores the earlier comes first.
    """
    if sizes.min() == sizes.max():
        # One size, the usual case: the count is known, and a threshold is found without a sort.
        count = min(max(1, budget // int(sizes[0])), scores.size)
        threshold = np.partition(scores, scores.size - count)[scores.size - count]
        kept = scores > threshold
        equal = np.flatnonzero(scores == threshold)
        kept[equal[: count - int(kept.sum())]] = True
        return np.asarray(kept)
    order = np.argsort(-scores, kind="stable")
    count = max(1, int(np.searchsorted(np.cumsum(sizes[order]), budget, side="right")))
    kept = np.zeros(scores.size, bool)
    kept[order[:count]] = True
    return kept


def random_masks(masks: Masks, seed: int, pattern: Pattern = ELEMENT) -> Masks:
    """Masks with as many survivors in each layer as ``masks``, at places drawn from ``seed``.

    ``masks`` are whole units of ``pattern`` (of elements in what is not a convolution), and so are
    the new ones: of each size of unit as many survive.
    """
    out: Masks = {}
    for index, (name, mask) in enumerate(masks.items()):
        cut = pattern if mask.ndim == 4 else ELEMENT
        alive = unit_alive(mask, cut)
        sizes = unit_sizes(mask.shape, cut)
        rng = generator(seed, "random-mask", 0, index)
        kept = np.zeros(alive.size, bool)
        for size in np.unique(sizes)[::-1]:
            places = np.flatnonzero(sizes == size)
            count = int(alive.reshape(-1)[places].sum())
            kept[places[rng.permutation(places.size)[:count]]] = True
        out[name] = unit_mask(kept.reshape(alive.shape), mask.shape, cut)
    return out
