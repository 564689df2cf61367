"""Does the plan choose the fastest G? Each G timed beside the estimate that the choice goes by.

python benchmarks/cost_model.py [--batch 1 16] [--dtype float32] [--threads 1] [--rounds 12]
    [--density 1 0.5 0.1 0.05] [--pattern element vector:16] [--json FILE]

For 3x3 and 1x1 convolutions of the paper's U-Net: the time of every G, measured in turns, beside
the one that the plan takes. The loss of a choice is its time over that of the best G, less one.
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
from sparse_ddpm.cli.common import positive
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.panels import ENTRY_COSTS, GROUPS, choose_group
from sparse_ddpm.errors import SparseDDPMError
from sparse_ddpm.files import write_atomically
from sparse_ddpm.formats import BSR, CSR, Dense, Matrix
from sparse_ddpm.program import Conv, Program, TimeEmbedding
from sparse_ddpm.ticket.config import Pattern
from sparse_ddpm.ticket.synthetic import random_mask

LAYERS = ((64, 32, 3), (128, 16, 3), (256, 8, 3), (512, 4, 3), (256, 8, 1))
"""Channels, side of the image and of the kernel."""

BURST_S, LEAST_STEPS = 0.004, 2
"""Steps of one G are repeated so long before the next one's turn; the fastest step counts."""

SAME = 0.02
"""A choice within this of the best counts as the best: as near as times repeat."""


@dataclass(frozen=True, slots=True)
class Case:
    """One layer. ``measured_us``, ``estimated``: by G, the estimates as multiples of the chosen
    one's."""

    layer: str
    pattern: str
    density: float
    batch: int
    chosen: int
    best: int
    loss: float
    measured_us: dict[int, float]
    estimated: dict[int, float]


def weight(pattern: str, density: float, rows: int, cin: int, size: int) -> Matrix:
    rng = np.random.default_rng(0)
    unit = Pattern.parse(pattern)
    mask = random_mask((rows, cin, size, size), 1.0 - density, unit, rng).reshape(rows, -1)
    values = np.where(mask, rng.standard_normal(mask.shape), 0.0).astype(np.float32)
    if density == 1.0:
        return Dense(values)
    if unit.rows == unit.columns == 1:
        return CSR.from_dense(values, mask)
    return BSR.from_dense(values, (unit.rows, unit.columns), size * size, mask)


def program_of(matrix: Matrix, channels: int, side: int, size: int) -> Program:
    time = TimeEmbedding(
        dim=2,
        weight1=np.zeros((1, 2), np.float32),
        bias1=np.zeros(1, np.float32),
        weight2=np.zeros((1, 1), np.float32),
        bias2=np.zeros(1, np.float32),
        film=Dense(np.zeros((0, 1), np.float32)),
        film_bias=np.zeros(0, np.float32),
    )
    return Program((Conv("y", "x", matrix, size),), "x", (channels, side, side), "y", time)


def times(program: Program, batch: int, options: argparse.Namespace) -> dict[int, float]:
    """Seconds of the convolution by G: each in its turn, the fastest step of each."""
    x = np.random.default_rng(1).standard_normal((batch, *program.input_shape), dtype=np.float32)
    found = dict.fromkeys(GROUPS, float("inf"))
    with ExitStack() as stack:
        engines = {}
        for group in GROUPS:
            engine = CpuEngine(
                program, batch, options.threads, options.dtype, group=group, profile=True
            )
            engines[group] = stack.enter_context(engine)
            engine.set_schedule(np.array([1.0]))
            engine.run(x, 0)
        for _ in range(options.rounds):
            for group, engine in engines.items():
                engine.run(x, 0)  # this one finds the caches full of another's values
                spent, steps = 0.0, 0
                while spent < BURST_S or steps < LEAST_STEPS:
                    engine.run(x, 0)
                    taken = dict(engine.timings())["y"]
                    found[group] = min(found[group], taken)
                    spent, steps = spent + taken, steps + 1
    return found


def cases(options: argparse.Namespace) -> Iterator[Case]:
    for channels, side, size in LAYERS:
        for pattern in options.pattern:
            for density in options.density:
                if density == 1.0 and pattern != options.pattern[0]:
                    continue  # what is not pruned has no pattern
                matrix = weight(pattern, density, channels, channels, size)
                program = program_of(matrix, channels, side, size)
                for batch in options.batch:
                    measured = times(program, batch, options)
                    with CpuEngine(program, batch, 1, options.dtype) as planned:
                        step, lanes = planned.plan.steps[-1], planned.plan.lanes
                    costs = ENTRY_COSTS[options.dtype][lanes > 1]
                    best = min(measured, key=lambda g: measured[g])
                    yield Case(
                        layer=f"{size}x{size} of {channels} at {side}x{side}",
                        pattern="-" if density == 1.0 else pattern,
                        density=density,
                        batch=batch,
                        chosen=step.group,
                        best=best,
                        loss=measured[step.group] / measured[best] - 1.0,
                        measured_us={g: 1e6 * s for g, s in measured.items()},
                        estimated=dict(choose_group(matrix, None, costs).times),
                    )


def line(case: Case) -> str:
    least = min(case.measured_us.values())
    row = " ".join(
        f"{case.measured_us[g] / least:>5.2f} ({case.estimated[g]:.2f})"
        if g in case.estimated
        else f"{case.measured_us[g] / least:>5.2f}       "
        for g in GROUPS
    )
    return (
        f"{case.layer:<20} {case.pattern:<10} {case.density:>7.0%} {case.batch:>5} "
        f"{case.chosen:>6} {case.best:>4} {case.loss:>6.1%} {least:>9.1f}  {row}"
    )


def summary(found: Sequence[Case]) -> str:
    losses = np.array([case.loss for case in found])
    worst = max(found, key=lambda case: case.loss)
    return (
        f"the best G in {np.mean(losses <= SAME):.0%} of {len(found)} cases (within {SAME:.0%}); "
        f"mean loss {losses.mean():.1%}, largest {worst.loss:.1%} ({worst.layer}, {worst.pattern}, "
        f"{worst.density:.0%} stored, batch {worst.batch}: G={worst.chosen}, not {worst.best})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", default="float32", choices=tuple(ENTRY_COSTS))
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=12, help="turns of each G")
    densities = [1.0, 0.8, 0.65, 0.5, 0.2, 0.1, 0.05, 0.02]
    parser.add_argument("--density", type=float, nargs="+", default=densities)
    parser.add_argument("--pattern", nargs="+", default=["element", "vector:16"])
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    found: list[Case] = []
    print(
        f"{'layer':<20} {'pattern':<10} {'stored':>7} {'batch':>5} {'chosen':>6} {'best':>4} "
        f"{'loss':>6} {'best us':>9}  times by G over the best, (estimates over the chosen)"
    )
    try:
        for case in cases(options):
            found.append(case)
            print(line(case), flush=True)
        print(summary(found))
        if options.json:
            result = {"schema": 1, "dtype": options.dtype, "threads": options.threads}
            rows = [asdict(case) for case in found]
            text = json.dumps({**result, "machine": machine(), "cases": rows}, indent=1) + "\n"
            write_atomically(options.json, lambda file: file.write(text.encode()))
    except SparseDDPMError as error:
        print(f"cost_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
