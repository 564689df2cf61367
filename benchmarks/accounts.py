"""Are the accounts right? Predicted beside measured steps, and dense beside every sparse layer.

python benchmarks/accounts.py [steps] [break-even] [memory] [--threads 2] [--resume | --kept]
    [--tickets MODEL:SPARSITY:PATTERN ...] [--batch 1 16] [--rounds 12]

steps: the step that `accounting.predict` foresees beside the one that the clock shows, of twelve
tickets and two batches; wanted: 30 % at most, under 15 % at the median. break-even: each layer as
the plan runs it, sparse or dense, beside the other, inside whole steps, in turns, one thread;
wanted: the plan's choice is the faster in 95 % of the layers and never loses 10 %. memory: what a
process grows by beside what is foreseen; wanted: within 10 %.

Each case is kept as JSON under benchmarks/results/cpu/accounts; with --resume those that exist are
not measured again, with --kept nothing is measured. The table goes to stdout. The exit status is 1
where something wanted is missed. Time nothing else beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ddpm.accounting import account, predict, process_bytes
from sparse_ddpm.bench.ceilings import Ceilings, measure_ceilings
from sparse_ddpm.bench.machine import cores, machine
from sparse_ddpm.cli.common import positive, synthetic
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.plan import make_plan
from sparse_ddpm.errors import SparseDDPMError
from sparse_ddpm.files import write_atomically
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Program, densified

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu" / "accounts"

STEPS = tuple(
    f"{model}:{sparsity}:{pattern}"
    for model in ("paper", "small")
    for pattern in ("element", "vector:16")
    for sparsity in ("0.9", "0.95", "0.99")
)
BREAK_EVEN = (
    *STEPS,
    *(f"{model}:{s}:element" for model in ("paper", "small") for s in (0.15, 0.5)),
)
"""Also some that are stored on both sides of the break-even."""
MEMORY = ("paper:0.9:element", "paper:0.99:vector:16", "small:0.95:element")

FAR, MEDIAN = 0.30, 0.15
RIGHT, LOSS = 0.95, 0.10
GROWTH = 0.10
NARROW = (1, 2)
"""Panels that are sparse if any are."""
SAME = 0.02
"""A choice within this of the faster one counts as the faster: as near as times repeat."""
BURST_S, LEAST = 0.3, 4
"""A turn: steps for so long, at least so many."""

Result = dict[str, Any]


def measure_steps(ticket: str, batch: int, options: argparse.Namespace) -> Result:
    """Medians over all turns. The first step of a turn finds cold caches and is not counted."""
    program = lower(synthetic(ticket))
    plan = make_plan(program, batch)
    x = images(program, batch)
    times: list[float] = []
    with CpuEngine(program, batch, options.threads) as engine:
        engine.set_schedule(np.array([500.0]))
        for _ in range(options.rounds):
            engine.run(x, 0)
            end, before = time.perf_counter() + BURST_S, len(times)
            while time.perf_counter() < end or len(times) - before < LEAST:
                start = time.perf_counter()
                engine.run(x, 0)
                times.append(time.perf_counter() - start)
            time.sleep(0.05)
    found = ceilings(options)
    predicted = sum(predict(plan, found).values())
    median = float(np.median(times))
    return {
        "predicted_ms": 1e3 * predicted,
        "measured_ms": 1e3 * median,
        "p10_ms": 1e3 * float(np.percentile(times, 10)),
        "p90_ms": 1e3 * float(np.percentile(times, 90)),
        "steps": len(times),
        "error": predicted / median - 1.0,
        "ceilings": found.as_json(),
    }


def measure_break_even(ticket: str, batch: int, options: argparse.Namespace) -> Result:
    """The fastest of each layer's times, of the plan's engine, of one with dense weights and of
    those with narrow panels. What the plan runs sparse is laid beside dense, and what it runs dense
    beside sparse.

    One thread: of several, one may find what it has waited for done, and the next operation too,
    and so take no time at all.
    """
    program = lower(synthetic(ticket))
    kinds = {
        "planned": (program, None),
        "dense": (densified(program), None),
        **{f"sparse {group}": (program, group) for group in NARROW},
    }
    times: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    x = images(program, batch)
    with ExitStack() as stack:
        engines = {}
        for kind, (one, group) in kinds.items():
            engine = CpuEngine(one, batch, 1, group=group, profile=True)
            stack.enter_context(engine)
            engine.set_schedule(np.array([500.0]))
            engines[kind] = engine
        plan = engines["planned"].plan
        for _ in range(2 * options.rounds):
            for kind, engine in engines.items():
                engine.run(x, 0)  # this one finds the caches full of another's values
                engine.run(x, 0)
                for name, seconds in engine.timings():
                    times[kind][name] = min(seconds, times[kind].get(name, seconds))
    layers = []
    for row in account(plan):
        if row.runs is None or row.density == 1.0:
            continue
        found = {kind: 1e6 * times[kind][row.name] for kind in kinds}
        planned, dense = found["planned"], found["dense"]
        sparse = min(found[f"sparse {group}"] for group in NARROW)
        layers.append(
            {
                "name": row.name,
                "kind": row.kind,
                "density": row.density,
                "break_even_density": row.break_even_density,
                "runs": row.runs,
                "planned_us": planned,
                "dense_us": dense,
                "sparse_us": sparse,
                "loss": max(0.0, planned / (dense if row.runs == "sparse" else sparse) - 1.0),
            }
        )
    return {"layers": layers}


GROWN = """
import ctypes, gc, sys
from pathlib import Path
import numpy as np
from sparse_ddpm.cli.common import synthetic
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.lower import lower

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what planning freed is no memory of sampling
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])

def run(program, batch, threads, steps):
    engine = CpuEngine(program, batch, threads)
    engine.set_schedule(np.arange(float(steps)))
    x = np.zeros((batch, *program.input_shape), np.float32)
    for step in range(steps):
        x = engine.run(x, step)
    return engine, x

ticket, batch, threads, steps = sys.argv[1], *map(int, sys.argv[2:])
program = lower(synthetic(ticket))
run(lower(synthetic("small:0.99:element")), 1, threads, 2)[0].close()
before = resident()
held = run(program, batch, threads, steps)
print(resident() - before)
"""
SAMPLED = 8
"""Steps of the schedule whose memory is measured."""


def measure_memory(ticket: str, batch: int, options: argparse.Namespace) -> Result:
    """In a process of its own, after another engine has come and gone."""
    words = [ticket, str(batch), str(options.threads), str(SAMPLED)]
    command = [sys.executable, "-c", GROWN, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    grown = int(done.stdout)
    plan = make_plan(lower(synthetic(ticket)), batch)
    predicted = process_bytes(plan, options.threads, SAMPLED)
    return {
        "predicted_bytes": predicted,
        "measured_bytes": grown,
        "arena_bytes": plan.arena_bytes,
        "error": predicted / grown - 1.0,
    }


def images(program: Program, batch: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.standard_normal((batch, *program.input_shape), dtype=np.float32)


_ceilings: list[Ceilings] = []


def ceilings(options: argparse.Namespace) -> Ceilings:
    """Of this machine, measured once."""
    if not _ceilings:
        _ceilings.append(measure_ceilings(options.threads))
    return _ceilings[0]


def step_line(case: str, found: Result) -> str:
    return (
        f"| {case} | {found['predicted_ms']:.3f} | {found['measured_ms']:.3f} | "
        f"{found['p10_ms']:.3f} to {found['p90_ms']:.3f} | {found['error']:+.1%} |"
    )


def break_even_line(case: str, found: Result) -> str:
    layers = found["layers"]
    losses = [layer["loss"] for layer in layers]
    worst = max(layers, key=lambda layer: layer["loss"])
    sparse = sum(layer["runs"] == "sparse" for layer in layers)
    times = [sum(layer[key] for layer in layers) / 1e3 for key in ("planned_us", "dense_us")]
    return (
        f"| {case} | {len(layers)} | {sparse} | {np.mean(np.array(losses) <= SAME):.0%} | "
        f"{worst['loss']:.1%} {worst['name'] if worst['loss'] else ''} | {times[0]:.2f} | "
        f"{times[1]:.2f} |"
    )


def memory_line(case: str, found: Result) -> str:
    predicted, grown, arena = (
        found[key] / 2**20 for key in ("predicted_bytes", "measured_bytes", "arena_bytes")
    )
    return f"| {case} | {arena:.2f} | {predicted:.2f} | {grown:.2f} | {found['error']:+.1%} |"


def judge_steps(found: Sequence[Result]) -> tuple[bool, str]:
    errors = np.abs([one["error"] for one in found])
    good = bool(errors.max() <= FAR and np.median(errors) < MEDIAN)
    words = f"median {np.median(errors):.1%} (wanted: under {MEDIAN:.0%})"
    return good, f"{words}, largest {errors.max():.1%} (wanted: at most {FAR:.0%})"


def judge_break_even(found: Sequence[Result]) -> tuple[bool, str]:
    losses = np.array([layer["loss"] for one in found for layer in one["layers"]])
    right = float(np.mean(losses <= SAME))
    good = bool(right >= RIGHT and losses.max() <= LOSS)
    words = f"the faster of both in {right:.1%} of {len(losses)} layers (wanted: {RIGHT:.0%})"
    return good, f"{words}, largest loss {losses.max():.1%} (wanted: at most {LOSS:.0%})"


def judge_memory(found: Sequence[Result]) -> tuple[bool, str]:
    errors = np.abs([one["error"] for one in found])
    return bool(errors.max() <= GROWTH), f"largest {errors.max():.1%} (wanted: {GROWTH:.0%})"


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    tickets: Sequence[str]
    measure: Callable[[str, int, argparse.Namespace], Result]
    header: str
    line: Callable[[str, Result], str]
    judge: Callable[[Sequence[Result]], tuple[bool, str]]


PARTS = {
    "steps": Part(
        STEPS,
        measure_steps,
        "| ticket, batch | predicted ms | measured ms | p10 to p90 | error |",
        step_line,
        judge_steps,
    ),
    "break-even": Part(
        BREAK_EVEN,
        measure_break_even,
        "| ticket, batch | layers | sparse | the faster | largest loss | planned ms | dense ms |",
        break_even_line,
        judge_break_even,
    ),
    "memory": Part(
        MEMORY,
        measure_memory,
        "| ticket, batch | arena MiB | predicted MiB | grown MiB | error |",
        memory_line,
        judge_memory,
    ),
}


def results(name: str, part: Part, options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """By case; measured now, or kept from before."""
    for ticket in options.tickets or part.tickets:
        for batch in options.batch:
            file = f"{name}-{ticket.replace(':', '-')}-{batch}-{options.threads}.json"
            path = options.results / file
            if path.exists() and (options.resume or options.kept):
                found = json.loads(path.read_text())
            elif options.kept:
                continue
            else:
                print(f"{name}: {ticket}, batch {batch}", file=sys.stderr, flush=True)
                about = {"schema": 1, "part": name, "ticket": ticket, "batch": batch}
                found = {**about, "threads": options.threads, "machine": machine()}
                found |= part.measure(ticket, batch, options)
                text = json.dumps(found, indent=1) + "\n"
                options.results.mkdir(parents=True, exist_ok=True)
                write_atomically(path, lambda file, text=text: file.write(text.encode()))
            yield f"{ticket}, {batch}", found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--tickets", nargs="+", metavar="MODEL:SPARSITY:PATTERN")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=positive, default=cores())
    parser.add_argument("--rounds", type=positive, default=12, help="turns of each engine")
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument("--resume", action="store_true", help="keep the results that exist")
    keep.add_argument("--kept", action="store_true", help="only show the results that exist")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if wrong := set(options.parts) - PARTS.keys():
        parser.error(f"PART: expected some of {', '.join(PARTS)}, got {', '.join(wrong)}")
    good = True
    try:
        for name in options.parts or PARTS:
            part = PARTS[name]
            print(f"{part.header}\n{'| --- ' * (part.header.count('|') - 1)}|", flush=True)
            found = []
            for case, result in results(name, part, options):
                print(part.line(case, result), flush=True)
                found.append(result)
            if found:
                fine, words = part.judge(found)
                print(f"\n{name}: {words}: {'as wanted' if fine else 'MISSED'}\n", flush=True)
                good &= fine
    except SparseDDPMError as error:
        print(f"accounts: {error}", file=sys.stderr)
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
