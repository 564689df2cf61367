"""What the pictures of an inspection show, as numbers; every one stands in the inspection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparse_ddpm.inspection.report import Inspection, timed, with_flops

SERIES = (
    ("dense_flops", "dense"),
    ("executed_flops", "executed"),
    ("surviving_flops", "surviving"),
)
"""Of the bars, with their words."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A layer's FLOPs for one image, by key of `SERIES`."""

    name: str
    flops: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Block:
    """A buffer of the arena: bytes ``start`` to ``start + size`` from moment ``first`` to the end
    of moment ``last``."""

    name: str
    start: int
    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the network, from moment ``first`` up to but not with ``end``."""

    name: str
    first: int
    end: int

    @property
    def middle(self) -> float:
        return (self.first + self.end) / 2


@dataclass(frozen=True, slots=True)
class Memory:
    """``live``: bytes by moment; ``stages``: in order, without a gap."""

    blocks: Sequence[Block]
    live: Sequence[int]
    arena: int
    stages: Sequence[Stage]


@dataclass(frozen=True, slots=True)
class Point:
    """A layer on the roofline: executed FLOPs a byte, and GFLOP/s."""

    name: str
    kind: str
    intensity: float
    gflops: float
    us: float


@dataclass(frozen=True, slots=True)
class Roofline:
    """``slopes``: GB/s by name of cache or memory; ``peak``: GFLOP/s."""

    points: Sequence[Point]
    slopes: Mapping[str, float]
    peak: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """A way to store the weights: bytes by part."""

    name: str
    parts: Mapping[str, int]

    @property
    def size(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Charts:
    """All of one inspection."""

    bars: Sequence[Bar]
    memory: Memory
    roofline: Roofline
    stored: Sequence[Stored]


def charts_of(found: Inspection) -> Charts:
    """Taken from the inspection, nothing computed anew."""
    return Charts(_bars(found), _memory(found), _roofline(found), _stored(found))


def _bars(found: Inspection) -> list[Bar]:
    keys = [key for key, _ in SERIES]
    return [Bar(item["name"], {key: item[key] for key in keys}) for item in with_flops(found)]


def _memory(found: Inspection) -> Memory:
    memory = found["memory"]
    blocks = [Block(**item) for item in memory["buffers"]]
    stages: list[Stage] = []
    for moment, name in enumerate(memory["moments"]):
        stage = stage_of(name)
        if stages and stages[-1].name == stage:
            stages[-1] = Stage(stage, stages[-1].first, moment + 1)
        else:
            stages.append(Stage(stage, moment, moment + 1))
    return Memory(blocks, memory["live_bytes"], found["totals"]["arena_bytes"], stages)


def stages_apart(stages: Sequence[Stage], least: float) -> list[Stage]:
    """Those whose middles are ``least`` moments apart, longer ones first to stay."""
    kept: list[Stage] = []
    for stage in sorted(stages, key=lambda stage: stage.first - stage.end):
        if all(abs(stage.middle - other.middle) >= least for other in kept):
            kept.append(stage)
    return kept


def stage_of(name: str) -> str:
    """The part of the network that a value belongs to: ``down.0``, ``mid``, ``final``."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return f"{first}.{number}" if number.isdigit() else first.partition("_")[0].partition(" ")[0]


def _roofline(found: Inspection) -> Roofline:
    limits = found["ceilings"]
    points = [
        Point(item["name"], item["kind"], item["intensity"], item["gflops_per_s"], timed(item))
        for item in with_flops(found)
        if item["intensity"] and item["gflops_per_s"]
    ]
    slopes = {name: rate for name, rate in limits["gbytes_per_s"].items() if name != "L1"}
    measured = found["totals"]["measured_us"] is not None
    return Roofline(points, slopes, limits["gflops_per_s"], measured)


def _stored(found: Inspection) -> list[Stored]:
    storage: Mapping[str, Any] = found["storage"]
    parts: dict[str, int] = {}
    for name, item in storage["encodings"].items():
        parts[f"{name}: values"] = item["values"]
        if item["places"]:
            parts[f"{name}: places"] = item["places"]
    parts["names and alignment"] = storage["container_bytes"]
    stored = [Stored("dense float32", {"dense float32": storage["dense_bytes"]})]
    if storage["gzip_of_dense_bytes"] is not None:
        stored.append(Stored("gzip of dense", {"gzip of dense": storage["gzip_of_dense_bytes"]}))
    stored.append(Stored("this file" if storage["written"] else "as a file", parts))
    return stored


def slowest(roofline: Roofline, count: int = 5, near: float = 0.06) -> list[tuple[str, Point]]:
    """The points that take longest, each with its names: those of points as good as in its place,
    ``near`` of a decade, are joined.
    """
    groups: list[list[Point]] = []
    for point in sorted(roofline.points, key=lambda point: -point.us):
        for group in groups:
            apart = [
                abs(math.log10(point.intensity / group[0].intensity)),
                abs(math.log10(point.gflops / group[0].gflops)),
            ]
            if max(apart) < near:
                group.append(point)
                break
        else:
            groups.append([point])
    named = []
    for group in groups[:count]:
        names = [point.name for point in group[:2]]
        more = len(group) - len(names)
        named.append((", ".join(names) + (f" and {more} more" if more else ""), group[0]))
    return named
