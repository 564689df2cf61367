"""Does the plan choose the fastest G? Each layer's time at every G beside the plan's choice.

python benchmarks/cost_model.py [MODEL:SPARSITY:PATTERN ...] [--batch 1 16] [--dtype float32]
    [--threads 1] [--rounds 4] [--layers] [--json FILE]

Layers are timed inside whole steps, one engine for each G, in turns: alone, with its input in the
nearest cache, a layer likes another G than in a step. The loss of a choice is its time over that of
the best G, less one; of a ticket, the same of all its convolutions together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sparse_ddpm.bench.machine import machine
from sparse_ddpm.cli.common import positive, synthetic
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.panels import ENTRY_COSTS, GROUPS, choose_group, entry_costs
from sparse_ddpm.engine.plan import make_plan, weight_bytes
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
    """A convolution. ``measured_us``: a step, by G; ``estimated``: multiples of the chosen G's."""

    ticket: str
    batch: int
    name: str
    chosen: int
    best: int
    loss: float
    measured_us: dict[int, float]
    estimated: dict[int, float]


def times(program: Program, batch: int, options: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Seconds of what each operation makes, by G: the fastest of the second steps of all turns."""
    x = np.random.default_rng(1).standard_normal((batch, *program.input_shape), dtype=np.float32)
    found: dict[int, dict[str, float]] = {group: {} for group in GROUPS}
    with ExitStack() as stack:
        engines = {}
        for group in GROUPS:
            engine = CpuEngine(
                program, batch, options.threads, options.dtype, group=group, profile=True
            )
            engines[group] = stack.enter_context(engine)
            engine.set_schedule(np.array([500.0]))
        for _ in range(options.rounds):
            for group, engine in engines.items():
                engine.run(x, 0)  # this one finds the caches full of another's values
                engine.run(x, 0)
                for name, seconds in engine.timings():
                    found[group][name] = min(seconds, found[group].get(name, seconds))
    return found


def layers(ticket: str, batch: int, options: argparse.Namespace) -> Iterator[Layer]:
    program = lower(synthetic(ticket))
    plan = make_plan(program, batch, options.dtype)
    measured = times(program, batch, options)
    for step in plan.steps:
        if not isinstance(step.operation, Conv):
            continue
        name = step.operation.out
        by_group = {group: 1e6 * measured[group][name] for group in GROUPS}
        best = min(by_group, key=lambda group: by_group[group])
        _, height, width = program.shapes[name]
        pixels, size = height * width, weight_bytes(program)
        costs = entry_costs(options.dtype, plan.lanes, step.operation.size, pixels, size)
        yield Layer(
            ticket=ticket,
            batch=batch,
            name=name,
            chosen=step.group,
            best=best,
            loss=by_group[step.group] / by_group[best] - 1.0,
            measured_us=by_group,
            estimated=dict(choose_group(step.operation.weight, None, costs).times),
        )


def layer_line(layer: Layer) -> str:
    least = min(layer.measured_us.values())
    row = "  ".join(
        f"{group}: {time / least:.2f}"
        + (f" ({layer.estimated[group]:.2f})" if group in layer.estimated else "")
        for group, time in layer.measured_us.items()
    )
    return f"    {layer.name:<22} {least:>9.1f} us  G={layer.chosen:<2}  {layer.loss:>6.1%}  {row}"


def ticket_line(found: Sequence[Layer]) -> str:
    """One ticket and batch: how often the choice is the best, and what it costs."""
    chosen = sum(layer.measured_us[layer.chosen] for layer in found)
    best = sum(layer.measured_us[layer.best] for layer in found)
    losses = np.array([layer.loss for layer in found])
    uniform = "  ".join(
        f"{group}: {sum(layer.measured_us[group] for layer in found) / best:.2f}"
        for group in GROUPS
    )
    return (
        f"{found[0].ticket:<22} {found[0].batch:>5} {np.mean(losses <= SAME):>8.0%} "
        f"{chosen / best - 1.0:>6.1%} {best / 1e3:>9.2f}  {uniform}"
    )


def summary(found: Sequence[Layer]) -> str:
    losses = np.array([layer.loss for layer in found])
    worst = max(found, key=lambda layer: layer.loss)
    return (
        f"the best G in {np.mean(losses <= SAME):.0%} of {len(found)} layers (within {SAME:.0%}); "
        f"mean loss {losses.mean():.1%}, largest {worst.loss:.0%} ({worst.name} of {worst.ticket}, "
        f"batch {worst.batch}: G={worst.chosen}, not {worst.best})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "tickets", nargs="*", default=list(TICKETS), metavar="MODEL:SPARSITY:PATTERN"
    )
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", default="float32", choices=tuple(ENTRY_COSTS))
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=4, help="turns of each G")
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
