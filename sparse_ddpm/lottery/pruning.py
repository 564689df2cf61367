"""Magnitude pruning: how many weights survive a round, and which.

Masks are bool arrays by parameter name, True where a weight survives, one for every prunable
parameter. Functions return new masks and never change the old ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lottery.randomness import generator
from sparse_ddpm.ticket.config import Pattern, UNetConfig
from sparse_ddpm.ticket.parameters import unet_parameters

Masks = dict[str, NDArray[np.bool_]]

ELEMENT = Pattern()


def density_after(round_: int, *, fraction: float, sparsity: float | None, rounds: int) -> Fraction:
    """Part of the prunable weights that survives round ``round_``; 1 in round 0.

    Either ``(1 - fraction) ** round``, or, with ``sparsity``, the same geometric decay chosen so
    that the last of ``rounds`` ends at ``1 - sparsity``. Decimal numbers are taken as they are
    written (0.2 is 1/5), so counts do not depend on how a float rounds.
    """
    if sparsity is None:
        return (1 - Fraction(str(fraction))) ** round_
    if round_ == rounds:
        return 1 - Fraction(str(sparsity))
    return Fraction((1.0 - sparsity) ** (round_ / rounds))


def survivors(size: int, density: Fraction) -> int:
    """How many of ``size`` weights survive at ``density``: rounded down, but at least one.

    Rounding down makes the sparsity that was asked for a lower bound, in each layer and in all.
    """
    return max(1, math.floor(size * density))


def dense_masks(architecture: UNetConfig) -> Masks:
    """Masks that prune nothing."""
    return {p.name: np.ones(p.shape, bool) for p in unet_parameters(architecture) if p.prunable}


def density_of(masks: Mapping[str, NDArray[np.bool_]]) -> float:
    """Part of all prunable weights that survives."""
    return sum(int(m.sum()) for m in masks.values()) / sum(m.size for m in masks.values())


def unit_scores(effective: NDArray[np.float32], pattern: Pattern) -> NDArray[np.float32]:
    """The importance of each unit of ``pattern`` in one weight: for an element its magnitude.

    Raises `ConfigError` for a pattern that cannot be trained yet; a score for ``vector:G`` and
    ``block:RxC``, and the way from units back to weights, would be made here and nowhere else.
    """
    if str(pattern) != "element":
        raise ConfigError(expected("pattern", "element", str(pattern)))
    return np.abs(effective)


def prune(
    effective: Mapping[str, NDArray[np.float32]],
    masks: Masks,
    density: Fraction,
    *,
    architecture: UNetConfig,
    allocation: str = "uniform",
    pattern: Pattern = ELEMENT,
) -> Masks:
    """Keep the surviving weights of largest magnitude until ``density`` of all is left.

    ``effective``: masked, standardised weights by name. ``uniform`` keeps `survivors` of each
    layer; ``global`` keeps `survivors` of all weights together, wherever they are. Of equal
    magnitudes the earlier weight stays (layers in the order of the forward pass, weights in C
    order). What ``masks`` prunes stays pruned.

    For ``global`` a standardised weight is divided by the root of its fan-in, the scale at which
    a dense layer is initialised: standardisation makes its own scale meaningless (group norm
    takes it out again), and without a common scale one threshold would compare unlike things.
    """
    parameters = [p for p in unet_parameters(architecture) if p.prunable]
    scores: list[NDArray[np.float32]] = []
    for parameter in parameters:
        score = unit_scores(effective[parameter.name], pattern)
        if parameter.standardized:
            score = score / np.float32(math.sqrt(math.prod(parameter.shape[1:])))
        # A pruned unit ranks behind every survivor, also behind one that is exactly zero.
        scores.append(np.where(masks[parameter.name], score, np.float32(-1.0)).reshape(-1))
    if allocation == "uniform":
        kept = [_largest(score, survivors(score.size, density)) for score in scores]
    elif allocation == "global":
        ends = np.cumsum([score.size for score in scores])
        together = _largest(np.concatenate(scores), survivors(int(ends[-1]), density))
        kept = np.split(together, ends[:-1])
    else:
        raise ConfigError(expected("allocation", "uniform or global", repr(allocation)))
    return {
        p.name: keep.reshape(p.shape) & masks[p.name]
        for p, keep in zip(parameters, kept, strict=True)
    }


def _largest(scores: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """True for the ``count`` largest of ``scores [n]``; of equal ones the first."""
    kept = np.zeros(scores.size, bool)
    kept[np.argsort(-scores, kind="stable")[:count]] = True
    return kept


def random_masks(masks: Masks, seed: int) -> Masks:
    """Masks with as many survivors in each layer as ``masks``, at places drawn from ``seed``."""
    out: Masks = {}
    for index, (name, mask) in enumerate(masks.items()):
        rng = generator(seed, "random-mask", 0, index)
        kept = np.zeros(mask.size, bool)
        kept[rng.permutation(mask.size)[: int(mask.sum())]] = True
        out[name] = kept.reshape(mask.shape)
    return out
