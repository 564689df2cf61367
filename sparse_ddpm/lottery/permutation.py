"""Permuting channels so that rows that keep the same columns become neighbours, exactly.

A *space* is a set of channels and every place where a parameter counts them: rows and biases that
write them, norms and FiLM maps that scale them, columns that read them. Permuting all places of a
space alike leaves the function of the network as it is, up to the rounding of sums in another
order. The spaces of the U-Net:

* the channels between the two convolutions of a residual block (``X.hidden``);
* the stream of a level: whatever adds to it shares one order, as do the skips that it feeds;
* the output of each way up (no norm: any order);
* in attention, for each head, the channels of q with those of k, and those of v with the columns
  that read them.

Group norm allows two moves only: channels within one of its groups, and whole groups. Fixed are
the images' channels, and so the rows of ``final_conv``, and the time embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lottery.patterns import pattern_of, unit_scores, unit_sizes
from sparse_ddpm.lottery.pruning import best_units, prunable, survivors
from sparse_ddpm.ticket.config import Pattern, UNetConfig

Permutations = Mapping[str, NDArray[np.int64]]
"""By name of a space: ``order[j]`` is the old place of the channel that comes to j."""


@dataclass(frozen=True, slots=True)
class Place:
    """Channel c is at ``start + inner * c`` and the ``inner - 1`` after it, on ``axis``."""

    parameter: str
    axis: int = 0
    start: int = 0
    inner: int = 1


@dataclass(frozen=True, slots=True)
class Space:
    """``size`` channels, normalised in ``groups`` (1: any order is allowed), and their places."""

    name: str
    size: int
    groups: int
    places: tuple[Place, ...]


def channel_spaces(config: UNetConfig) -> tuple[Space, ...]:
    """All spaces that may be permuted, in the order of the forward pass."""
    widths, last = config.widths, len(config.dim_mults) - 1
    sizes: dict[str, tuple[int, int]] = {}
    places: dict[str, list[Place]] = {}
    for name, size, groups, place in _walk(config, widths, last):
        # A space is bound by a norm that any of its places has.
        sizes[name] = (size, max(groups, sizes.get(name, (size, 1))[1]))
        places.setdefault(name, []).append(place)
    return tuple(Space(name, *sizes[name], tuple(found)) for name, found in places.items())


Entry = tuple[str, int, int, Place]


def _walk(config: UNetConfig, widths: Sequence[int], last: int) -> Iterator[Entry]:
    yield from _written("down.0", widths[0], "init_conv")
    for level in range(last + 1):
        stream, width = f"down.{level}", widths[level]
        for block in ("block1", "block2"):
            yield from _block(config, f"{stream}.{block}", [(stream, width)], stream, width)
        yield from _attention(config, f"{stream}.attn", stream, width, out_norm=True)
        inner = 4 if level < last else 1
        yield stream, width, 1, Place(f"{stream}.down.weight", 1, 0, inner)
        after = "mid" if level == last else f"down.{level + 1}"
        yield from _written(after, widths[level + 1], f"{stream}.down")
    middle = widths[-1]
    yield from _block(config, "mid.block1", [("mid", middle)], "mid", middle)
    yield from _attention(config, "mid.attn", "mid", middle, out_norm=False)
    yield from _block(config, "mid.block2", [("mid", middle)], "mid", middle)
    below = "mid"
    for stage in range(last + 1):
        level = last - stage
        name, here = f"up.{stage}", widths[level + 1]
        skip = (f"down.{level}", widths[level])
        one, two = f"{name}.block1", f"{name}.block2"
        yield from _block(config, one, [(below, here), skip], one, here)
        yield from _block(config, two, [(one, here), skip], two, here)
        yield from _attention(config, f"{name}.attn", two, here, out_norm=True)
        yield two, here, 1, Place(f"{name}.up.weight", 1)
        below = f"{name}.up"
        yield from _written(below, widths[level], f"{name}.up")
    dim = config.dim
    yield from _block(config, "final_block", [(below, dim), ("down.0", dim)], "final_block", dim)
    yield "final_block", dim, 1, Place("final_conv.weight", 1)


def _written(space: str, size: int, conv: str, groups: int = 1) -> Iterator[Entry]:
    yield space, size, groups, Place(f"{conv}.weight")
    yield space, size, groups, Place(f"{conv}.bias")


def _block(
    config: UNetConfig, name: str, inputs: Sequence[tuple[str, int]], out: str, width: int
) -> Iterator[Entry]:
    hidden, groups = f"{name}.hidden", config.groups
    shortcut = sum(size for _, size in inputs) != width
    start = 0
    for space, size in inputs:
        yield space, size, 1, Place(f"{name}.conv1.weight", 1, start)
        if shortcut:
            yield space, size, 1, Place(f"{name}.shortcut.weight", 1, start)
        start += size
    for space, index in ((hidden, 1), (out, 2)):
        yield from _written(space, width, f"{name}.conv{index}", groups)
        yield from _written(space, width, f"{name}.norm{index}", groups)
    for kind in ("weight", "bias"):
        for half in (0, width):
            yield hidden, width, groups, Place(f"{name}.film.{kind}", 0, half)
    yield hidden, width, groups, Place(f"{name}.conv2.weight", 1)
    if shortcut:
        yield from _written(out, width, f"{name}.shortcut")


def _attention(
    config: UNetConfig, name: str, stream: str, width: int, *, out_norm: bool
) -> Iterator[Entry]:
    yield stream, width, 1, Place(f"{name}.norm.gain")
    yield stream, width, 1, Place(f"{name}.qkv.weight", 1)
    for head in range(config.heads):
        size = config.dim_head
        for part, letters in enumerate(("qk", "qk", "v")):
            row = part * config.hidden + head * size
            yield f"{name}.{letters}.{head}", size, 1, Place(f"{name}.qkv.weight", 0, row)
        yield f"{name}.v.{head}", size, 1, Place(f"{name}.out.weight", 1, head * size)
    yield from _written(stream, width, f"{name}.out")
    if out_norm:
        yield stream, width, 1, Place(f"{name}.out_norm.gain")


def allowed(space: Space, order: NDArray[np.int64]) -> bool:
    """Whether ``order`` is a permutation that the group norms of ``space`` do not notice."""
    if not np.array_equal(np.sort(order), np.arange(space.size)):
        return False
    groups = order.reshape(space.groups, -1) // (space.size // space.groups)
    return space.groups == 1 or bool((groups == groups[:, :1]).all())


def check_orders(
    what: str, content: Mapping[str, Any], spaces: Sequence[Space]
) -> dict[str, NDArray[np.int64]]:
    """Orders by name of a space from lists; raises `ConfigError` for what is not `allowed`."""
    known = {space.name: space for space in spaces}
    orders: dict[str, NDArray[np.int64]] = {}
    for name, value in content.items():
        try:
            order = np.array(value, np.int64)
            good = order.shape == (known[name].size,) and allowed(known[name], order)
        except (KeyError, OverflowError, TypeError, ValueError):
            good = False
        if not good:
            raise ConfigError(expected(what, "orders that the norms allow", repr(name)[:80]))
        orders[name] = order
    return orders


def permuted(
    arrays: Mapping[str, NDArray[Any]], spaces: Sequence[Space], orders: Permutations
) -> dict[str, NDArray[Any]]:
    """``arrays`` by parameter name with the channels of each space in its new order.

    Works on weights and masks alike; parameters that are not in ``arrays`` and spaces that are not
    in ``orders`` are left out.
    """
    out = dict(arrays)
    for space in spaces:
        if space.name not in orders:
            continue
        order = orders[space.name]
        for place in space.places:
            if place.parameter in out:
                array = out[place.parameter]
                index = np.arange(array.shape[place.axis])
                inside = order[:, None] * place.inner + np.arange(place.inner)
                stop = place.start + inside.size
                index[place.start : stop] = place.start + inside.reshape(-1)
                out[place.parameter] = np.take(array, index, axis=place.axis)
    return out


def find_permutations(
    effective: Mapping[str, NDArray[np.float32]],
    config: UNetConfig,
    pattern: Pattern,
    density: Fraction,
) -> dict[str, NDArray[np.int64]]:
    """An order for each space that lets ``pattern`` keep more at ``density``; identity if none.

    ``effective``: dense weights by name. Judged by the part of the squared weights that the best
    units of each layer hold, summed over the layers whose rows the space orders. Rows are grouped
    greedily: the first that is left, then whatever shares most columns with the group so far; by
    what each row would keep alone and by all of its weights, whichever turns out better.
    """
    weights = {p.name: effective[p.name] for p in prunable(config)}
    spaces = channel_spaces(config)
    patterns = {p.name: pattern_of(p, pattern) for p in prunable(config)}
    orders: dict[str, NDArray[np.int64]] = {}
    for space in spaces:
        writers = [
            place
            for place in space.places
            if place.axis == 0 and patterns.get(place.parameter, Pattern()).rows > 1
        ]
        names = {place.parameter for place in writers}
        best = sum(_held(weights[name], patterns[name], density) for name in names)
        for alone in (True, False):
            likeness = _likeness(weights, writers, space.size, density if alone else Fraction(1))
            order = _order(likeness, space.groups, pattern.rows)
            changed = permuted(
                {name: weights[name] for name in names}, [space], {space.name: order}
            )
            held = sum(_held(changed[name], patterns[name], density) for name in names)
            if held > best:
                best, orders[space.name] = held, order
        if space.name in orders:
            weights = permuted(weights, [space], orders)
    return orders


def _held(weight: NDArray[np.float32], pattern: Pattern, density: Fraction) -> float:
    """Part of the squares of ``weight`` that its best units at ``density`` hold."""
    scores = unit_scores(weight, pattern).reshape(-1)
    sizes = unit_sizes(weight.shape, pattern).reshape(-1)
    energy = np.square(scores, dtype=np.float64) * sizes
    total = float(energy.sum())
    kept = best_units(scores, sizes, survivors(weight.size, density))
    return float(energy[kept].sum()) / total if total else 0.0


def _likeness(
    weights: Mapping[str, NDArray[np.float32]],
    writers: Sequence[Place],
    size: int,
    density: Fraction,
) -> NDArray[np.float64]:
    """How alike each two channels are in the columns they weigh most, ``[size, size]``.

    The cosine of the squares of their weights, or of those that survive alone at ``density``,
    summed over the layers that write them.
    """
    total = np.zeros((size, size))
    for place in writers:
        weight = weights[place.parameter]
        squares = np.square(weight, dtype=np.float64).reshape(-1)
        if density < 1:
            one = np.broadcast_to(np.int32(1), squares.shape)
            squares = squares * best_units(squares, one, survivors(squares.size, density))
        rows = squares.reshape(len(weight), -1)[place.start : place.start + size]
        # By direction, not by size: strong rows among themselves would starve the weak ones.
        length = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
        rows = rows / np.where(length > 0.0, length, 1.0)
        total += rows @ rows.T
    return total


def _order(likeness: NDArray[np.float64], groups: int, unit: int) -> NDArray[np.int64]:
    """Channels ordered within their norm's groups, then whole groups, for units of ``unit``."""
    width = len(likeness) // groups
    inside = [
        first + _clustered(likeness[first : first + width, first : first + width], unit)
        for first in range(0, len(likeness), width)
    ]
    between = likeness.reshape(groups, width, groups, width).sum(axis=(1, 3))
    order = _clustered(between, max(1, unit // width))
    return np.concatenate([inside[group] for group in order])


def _clustered(likeness: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """An order in which runs of ``size`` are alike; symmetric ``likeness [n, n]``."""
    left = np.ones(len(likeness), bool)
    strength = np.diag(likeness)
    order: list[int] = []
    while left.any():
        first = int(np.argmax(np.where(left, strength, -1.0)))
        gain = likeness[first].copy()
        order.append(first)
        left[first] = False
        for _ in range(min(size - 1, int(left.sum()))):
            chosen = int(np.argmax(np.where(left, gain, -1.0)))
            gain += likeness[chosen]
            order.append(chosen)
            left[chosen] = False
    return np.array(order, np.int64)
