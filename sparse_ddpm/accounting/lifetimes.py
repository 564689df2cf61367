"""What lives when in an arena."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_ddpm.engine.base import AnyPlan
from sparse_ddpm.engine.plan import DTYPES, Plan
from sparse_ddpm.program.operations import inputs_of

IMAGES_IN, IMAGES_OUT = "load images", "store images"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """``size`` bytes of an arena from byte ``start`` on hold ``name``, and what is made in its
    place, from moment ``first`` to moment ``last``; see `moments`.
    """

    name: str
    start: int
    size: int
    first: int
    last: int


def moments(plan: AnyPlan) -> tuple[str, ...]:
    """The moments of a step: images are loaded, every operation of the Program, images are stored.

    An operation that runs as part of another has its moment, too.
    """
    return (IMAGES_IN, *(operation.out for operation in plan.program.operations), IMAGES_OUT)


def lifetimes(plan: AnyPlan) -> tuple[Lifetime, ...]:
    """The buffers of ``plan``, by when they are first in use."""
    if isinstance(plan, Plan):
        number = DTYPES[plan.dtype]
        found = [
            Lifetime(name, number * buffer.start, number * buffer.size, buffer.first, buffer.last)
            for name, buffer in plan.arena.buffers.items()
        ]
    else:
        found = _on_gpu(plan)
    return tuple(sorted(found, key=lambda item: (item.first, item.start)))


def live_bytes(plan: AnyPlan) -> tuple[int, ...]:
    """Bytes in use at each of the `moments`."""
    found = lifetimes(plan)
    return tuple(
        sum(item.size for item in found if item.first <= moment <= item.last)
        for moment in range(len(moments(plan)))
    )


def _on_gpu(plan: AnyPlan) -> list[Lifetime]:
    """Buffers of a `CudaPlan`, one after another."""
    from sparse_ddpm.engine.cuda.plan import DTYPES as WIDTHS
    from sparse_ddpm.engine.cuda.plan import CudaPlan

    assert isinstance(plan, CudaPlan)
    number, places = WIDTHS[plan.dtype], plan.memory.places
    starts = [0]
    for layout in plan.memory.buffers:
        starts.append(starts[-1] + number * layout.size)
    at = {operation.out: index for index, operation in enumerate(plan.program.operations, start=1)}
    at[plan.program.input] = 0
    spans = {name: [at[name], at[name]] for name in places}
    for step in plan.steps:
        for operation in step.operations:
            for name in inputs_of(operation):
                if name in spans:
                    spans[name][1] = max(spans[name][1], at[step.operation.out])
    spans[plan.program.output][1] = len(at)
    found: list[Lifetime] = []
    for name in sorted(places, key=lambda name: spans[name]):
        place, (first, last) = places[name], spans[name]
        begin, size = starts[place.buffer], number * plan.memory.buffers[place.buffer].size
        same = [item for item in found if item.start == begin and item.last >= first]
        for item in same:  # made in its place, or beside it
            first, last = min(first, item.first), max(last, item.last)
            found.remove(item)
        found.append(Lifetime(name, begin, size, first, last))
    return found
