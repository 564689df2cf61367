"""A training step on the CPU: torch's kernels beside the sparse ones, by density and pattern.

python benchmarks/training.py [--preset small] [--batch 64 40] [--threads 2] [--turns 7]
    [--densities 1 0.8 ...] [--patterns element vector:16] [--json FILE]

Every turn takes one step of each, in order, so that what else the machine does slows all alike;
what is compared is a step's time over that of torch's step of the same turn. A step is forward,
backward, clipping and Adam. Processor time is that of all threads: on a busy machine it says more
than the time that passed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from sparse_ddpm.bench.machine import machine, versions
from sparse_ddpm.cli.common import positive
from sparse_ddpm.errors import SparseDDPMError
from sparse_ddpm.files import write_atomically
from sparse_ddpm.model.sparse import SparseUNet
from sparse_ddpm.model.unet import UNet
from sparse_ddpm.ticket.config import PRESETS, Pattern
from sparse_ddpm.ticket.parameters import unet_parameters
from sparse_ddpm.ticket.synthetic import random_mask

DENSITIES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
PEERS = {"torch-bf16": True, "torch-float32": False}
"""Torch's kernels; whether with bf16 autocast."""

Step = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the turns: seconds, processor seconds, and how many times as fast as a peer."""

    name: str
    batch: int
    density: float
    seconds: float
    processor_seconds: float
    over: dict[str, float]
    processor_over: dict[str, float]


def make_step(
    options: argparse.Namespace, batch: int, density: float, pattern: str, kernels: str
) -> Step:
    """A step of a network of its own; the same weights, masks and images for all kernels."""
    config = PRESETS[options.preset]
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = UNet(config)
    masks = {
        p.name: torch.from_numpy(random_mask(p.shape, 1.0 - density, Pattern.parse(pattern), rng))
        for p in unet_parameters(config)
        if p.prunable
    }
    if density < 1.0:
        model.set_masks(masks)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    x = torch.randn(batch, config.channels, config.image_size, config.image_size)
    noise, t = torch.randn_like(x), torch.randint(1000, (batch,))
    function = SparseUNet(model, options.threads) if kernels == "sparse" else model

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=PEERS.get(kernels, False)):
            prediction = function(x, t)
        loss = torch.nn.functional.l1_loss(prediction.float(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def measure(steps: dict[str, Step], turns: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds and processor seconds of each step in each turn, after one that does not count."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            wall, processor = time.perf_counter(), time.process_time()
            step()
            now = time.perf_counter() - wall, time.process_time() - processor
            if turn > 0:
                found[name].append(now)
        print(f"turn {turn} of {turns}", file=sys.stderr)
    return found


def rows(options: argparse.Namespace, batch: int) -> list[Row]:
    """The peers on dense weights, then every density of every pattern."""
    chosen: dict[str, tuple[float, Step]] = {
        peer: (1.0, make_step(options, batch, 1.0, "element", peer)) for peer in PEERS
    }
    for pattern in options.patterns:
        for density in options.densities:
            step = make_step(options, batch, density, pattern, "sparse")
            chosen[f"{pattern} {density:g}"] = density, step
    times = measure({name: step for name, (_, step) in chosen.items()}, options.turns)
    made = []
    for name, (density, _) in chosen.items():
        of = times[name]
        ratios = [
            {
                peer: median(p[kind] / s[kind] for p, s in zip(times[peer], of, strict=True))
                for peer in PEERS
            }
            for kind in (0, 1)
        ]
        seconds, processor = (median(t[kind] for t in of) for kind in (0, 1))
        made.append(Row(name, batch, density, seconds, processor, ratios[0], ratios[1]))
    return made


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="small")
    parser.add_argument("--batch", type=positive, nargs="+", default=[64, 40])
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--turns", type=positive, default=7)
    parser.add_argument("--densities", type=float, nargs="+", default=list(DENSITIES))
    parser.add_argument("--patterns", nargs="+", default=["element", "vector:16"])
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table and, with ``--json``, write what it was made of."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"schema": 1, "machine": machine(), "versions": versions()}
    report |= {"preset": options.preset, "threads": options.threads, "turns": options.turns}
    report["rows"] = []
    print("| batch | kernels | ms a step | over torch bf16 | over torch float32 | processor ms |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for batch in options.batch:
        try:
            made = rows(options, batch)
        except SparseDDPMError as error:
            print(error, file=sys.stderr)
            return 1
        for row in made:
            over = " | ".join(f"{row.over[peer]:.2f}x" for peer in PEERS)
            times = f"{1e3 * row.seconds:.0f}", f"{1e3 * row.processor_seconds:.0f}"
            print(f"| {row.batch} | {row.name} | {times[0]} | {over} | {times[1]} |", flush=True)
        report["rows"] += [asdict(row) for row in made]
        if options.json is not None:
            text = json.dumps(report, indent=1) + "\n"
            write_atomically(options.json, lambda file, text=text: file.write(text.encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
