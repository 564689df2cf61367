"""Does the plan choose the fastest way? Each layer's time in every way beside the plan's choice.

python benchmarks/cost_model.py [MODEL:SPARSITY:PATTERN ...] [--batch 1 16] [--dtype float32]
    [--threads 1] [--rounds 4] [--layers] [--json FILE]

A way is a G and, with one image, whether shifted copies of the input are read. Layers are timed
inside whole steps, one engine for each way, in turns: alone, with its input in the nearest cache, a
layer likes another G than in a step. To a layer that reads its input in place is added what whoever
makes that input takes longer for the halo, by estimate. The loss of a choice is its time over that
of the best way, less one; of a ticket, the same of all its convolutions together.
`python benchmarks/cost_fit.py FILE` makes costs of what --json wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from sparse_ddpm_kernels.ceiling import peak_flops

from sparse_ddpm.bench.machine import machine
from sparse_ddpm.cli.common import positive, synthetic
from sparse_ddpm.engine.arena import lanes_for
from sparse_ddpm.engine.costs import GROUPS, IMAGES_COSTS, VECTOR, Read, Way, conv_costs, copies_of
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.panels import choose_group, union_columns
from sparse_ddpm.engine.plan import copies_read, make_plan, weight_bytes
from sparse_ddpm.errors import SparseDDPMError
from sparse_ddpm.files import write_atomically
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Conv, Program

TICKETS = (
    "paper:0:element",
    *(f"paper:{sparsity}:element" for sparsity in (0.35, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)),
    *(f"paper:{sparsity}:vector:16" for sparsity in (0.5, 0.9, 0.95, 0.99)),
)

SAME = 0.02
"""A choice within this of the best counts as the best: as near as times repeat."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution. ``measured_us``: of a step, by `label` of the way, without the ``halo_us`` of
    those that read in place; ``estimated``: multiples of the choice's estimate, by G; ``entries``:
    of panels, by G; ``copies``: shifted ones of its input that it would read.
    """

    ticket: str
    batch: int
    name: str
    size: int
    shape: tuple[int, int, int]
    matrix: tuple[int, int]
    weight_bytes: int
    copies: int
    entries: dict[int, int]
    chosen: str
    best: str
    loss: float
    halo_us: float
    measured_us: dict[str, float]
    estimated: dict[int, float]

    def time(self, way: str) -> float:
        return self.measured_us[way] + (0.0 if way.endswith(COPIES) else self.halo_us)


COPIES = "c"


def label(way: Way) -> str:
    return f"{way.group}{COPIES if way.copied else ''}"


def ways(batch: int) -> list[Way]:
    copied = (False, True) if lanes_for(batch) == 1 else (False,)
    return [Way(group, each) for group in GROUPS for each in copied]


def times(program: Program, batch: int, options: argparse.Namespace) -> dict[Way, dict[str, float]]:
    """Seconds of what each operation makes, by way: the fastest second step of all turns."""
    x = np.random.default_rng(1).standard_normal((batch, *program.input_shape), dtype=np.float32)
    found: dict[Way, dict[str, float]] = {way: {} for way in ways(batch)}
    with ExitStack() as stack:
        engines = {}
        for group, copied in found:
            engine = CpuEngine(
                program,
                batch,
                options.threads,
                options.dtype,
                group=group,
                copied=copied,
                profile=True,
            )
            engines[Way(group, copied)] = stack.enter_context(engine)
            engine.set_schedule(np.array([500.0]))
        for _ in range(options.rounds):
            for way, engine in engines.items():
                engine.run(x, 0)  # this one finds the caches full of another's values
                engine.run(x, 0)
                for name, seconds in engine.timings():
                    found[way][name] = min(seconds, found[way].get(name, seconds))
    return found


def layers(ticket: str, batch: int, options: argparse.Namespace) -> Iterator[Layer]:
    program = lower(synthetic(ticket))
    plan = make_plan(program, batch, options.dtype)
    measured = times(program, batch, options)
    peak = peak_flops(threads=1) / (2 * VECTOR)
    for step in plan.steps:
        conv = step.operation
        if not isinstance(conv, Conv):
            continue
        shape, weight, total = program.shapes[conv.out], conv.weight, weight_bytes(program)
        image = shape[1], shape[2]
        costs = conv_costs(options.dtype, plan.lanes, conv.size, image, total)
        by_way = {label(way): 1e6 * measured[way][conv.out] for way in costs}
        copies = copies_read(conv, copies_of(conv.size, image))
        read = Read(weight.shape[1] // conv.size**2, copies)
        halo = costs[Way(1, False)].halo * read.channels * shape[1] * shape[2] / VECTOR / peak
        chosen = label(Way(step.group, step.copies > 0))
        layer = Layer(
            ticket=ticket,
            batch=batch,
            name=conv.out,
            size=conv.size,
            shape=shape,
            matrix=weight.shape,
            weight_bytes=total,
            copies=copies,
            entries={
                group: int(np.count_nonzero(union_columns(weight.stored(), group)))
                for group in GROUPS
            },
            chosen=chosen,
            best=chosen,
            loss=0.0,
            halo_us=1e6 * halo,
            measured_us=by_way,
            estimated=dict(choose_group(weight, None, costs, read).times),
        )
        best = min(by_way, key=layer.time)
        yield replace(layer, best=best, loss=layer.time(chosen) / layer.time(best) - 1.0)


def layer_line(layer: Layer) -> str:
    least = layer.time(layer.best)
    row = "  ".join(f"{way}: {layer.time(way) / least:.2f}" for way in layer.measured_us)
    return f"    {layer.name:<22} {least:>9.1f} us  G={layer.chosen:<3}  {layer.loss:>6.1%}  {row}"


def ticket_line(found: Sequence[Layer]) -> str:
    """One ticket and batch: how often the choice is the best, and what it costs."""
    chosen = sum(layer.time(layer.chosen) for layer in found)
    best = sum(layer.time(layer.best) for layer in found)
    losses = np.array([layer.loss for layer in found])
    uniform = "  ".join(
        f"{group}: {sum(one_group(layer, group) for layer in found) / best:.2f}" for group in GROUPS
    )
    return (
        f"{found[0].ticket:<22} {found[0].batch:>5} {np.mean(losses <= SAME):>8.0%} "
        f"{chosen / best - 1.0:>6.1%} {best / 1e3:>9.2f}  {uniform}"
    )


def one_group(layer: Layer, group: int) -> float:
    """The layer's better time of a G."""
    return min(layer.time(way) for way in layer.measured_us if way.rstrip(COPIES) == str(group))


def summary(found: Sequence[Layer]) -> str:
    losses = np.array([layer.loss for layer in found])
    worst = max(found, key=lambda layer: layer.loss)
    return (
        f"the best way in {np.mean(losses <= SAME):.0%} of {len(found)} layers "
        f"(within {SAME:.0%}); mean loss {losses.mean():.1%}, largest {worst.loss:.0%} "
        f"({worst.name} of {worst.ticket}, batch {worst.batch}: G={worst.chosen}, not {worst.best})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "tickets", nargs="*", default=list(TICKETS), metavar="MODEL:SPARSITY:PATTERN"
    )
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", default="float32", choices=tuple(IMAGES_COSTS))
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=4, help="turns of each way")
    parser.add_argument("--layers", action="store_true", help="a line for each layer, too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    found: list[Layer] = []
    print(
        f"{'ticket':<22} {'batch':>5} {'best':>8} {'loss':>6} {'best ms':>9}  all layers at one G"
    )
    try:
        for ticket in options.tickets:
            for batch in options.batch:
                these = list(layers(ticket, batch, options))
                found += these
                print(ticket_line(these), flush=True)
                if options.layers:
                    print("\n".join(map(layer_line, these)), flush=True)
        print(summary(found))
        if options.json:
            result = {"schema": 1, "dtype": options.dtype, "threads": options.threads}
            rows = [asdict(layer) for layer in found]
            text = json.dumps({**result, "machine": machine(), "layers": rows}, indent=1) + "\n"
            write_atomically(options.json, lambda file: file.write(text.encode()))
    except SparseDDPMError as error:
        print(f"cost_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
