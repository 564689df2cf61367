"""The roofline of our own CPU engine: each operation's time beside the least the machine allows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ddpm.accounting import Ceilings, OperationAccount, account
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.plan import DTYPES
from sparse_ddpm.program import Program

LEAST_RUNS = 20
SECONDS = 1.0
"""Steps are repeated so often and for so long."""
FLOAT = 4


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One operation of one step of ``batch`` images.

    ``flops``: useful ones, of surviving weights; ``bytes``: activations read and written once and
    the weights; ``level``: the memory that holds them all.
    """

    name: str
    kind: str
    kernel: str
    batch: int
    seconds: float
    flops: int
    executed_flops: int
    bytes: int
    level: str
    fma_share: float
    """Useful FLOP/s over the peak."""
    bandwidth_share: float
    """Bytes/s over those of ``level``."""
    load_share: float
    """Pixels that panel entries load, bytes/s over those of L1: each is used for G products."""

    @property
    def bound(self) -> str:
        """What would end first, were the kernel perfect: ``multiply-adds`` or the level's name."""
        return "multiply-adds" if self.fma_share >= self.bandwidth_share else self.level

    @property
    def roof_share(self) -> float:
        """The least possible time over the time taken."""
        return max(self.fma_share, self.bandwidth_share)

    def as_json(self) -> dict[str, Any]:
        return {
            "layer": self.name,
            "kind": self.kind,
            "kernel": self.kernel,
            "batch": self.batch,
            "time_us": round(1e6 * self.seconds, 2),
            "gflops_per_s": round(self.flops / self.seconds / 1e9, 2),
            "executed_gflops_per_s": round(self.executed_flops / self.seconds / 1e9, 2),
            "fma_share": round(self.fma_share, 4),
            "bytes": self.bytes,
            "gbytes_per_s": round(self.bytes / self.seconds / 1e9, 2),
            "bandwidth_share": round(self.bandwidth_share, 4),
            "level": self.level,
            "load_share": round(self.load_share, 4),
            "bound": self.bound,
            "roof_share": round(self.roof_share, 4),
        }


def time_layers(
    program: Program,
    ceilings: Ceilings,
    *,
    batch: int,
    timestep: float,
    dtype: str = "float32",
    seed: int = 0,
) -> list[LayerTime]:
    """The median time of every operation, in order; loading and storing images included."""
    rng = np.random.default_rng([seed, batch])
    x = rng.standard_normal((batch, *program.input_shape), dtype=np.float32)
    with CpuEngine(program, batch, ceilings.threads, dtype, profile=True) as engine:
        engine.set_schedule(np.array([timestep]))
        rows = {row.name: row for row in account(engine.plan)}
        entries = {step.operation.out: step.entries for step in engine.plan.steps}
        taken: defaultdict[str, list[float]] = defaultdict(list)
        for _ in range(3):
            engine.run(x, 0)
        end = time.perf_counter() + SECONDS
        runs = 0
        while runs < LEAST_RUNS or time.perf_counter() < end:
            engine.run(x, 0)
            runs += 1
            once: defaultdict[str, float] = defaultdict(float)
            for name, seconds in engine.timings():
                once[name] += seconds
            for name, seconds in once.items():
                taken[name].append(seconds)
        return [
            layer_time(
                name,
                rows.get(name),
                program,
                ceilings,
                batch,
                float(np.median(seconds)),
                entries.get(name, 0),
                DTYPES[dtype],
            )
            for name, seconds in taken.items()
        ]


def layer_time(
    name: str,
    row: OperationAccount | None,
    program: Program,
    ceilings: Ceilings,
    batch: int,
    seconds: float,
    entries: int = 0,
    activation: int = FLOAT,
) -> LayerTime:
    """A measured time beside the limits. ``row`` is the operation's account; None where images are
    loaded or stored: read once, written once. ``entries``: of a convolution's panels.
    ``activation``: bytes of a number in the engine's memory.
    """
    shape = program.shapes[name if name in program.shapes else program.output]
    loaded = activation * batch * entries * shape[1] * shape[2]
    if row is None:
        flops = executed = 0
        size = (FLOAT + activation) * batch * int(np.prod(shape))
        kind, kernel = "Images", "load" if name == program.input else "store"
    else:
        # A fused block leaves surviving FLOPs out that dead weights elsewhere make useless.
        flops = batch * min(row.surviving_flops, row.executed_flops)
        executed = batch * row.executed_flops
        size = batch * (row.read_bytes + row.written_bytes) + row.weight_bytes
        kind, kernel = row.kind, row.kernel
    seconds = max(seconds, 1e-9)
    level = ceilings.level(size)
    return LayerTime(
        name=name,
        kind=kind,
        kernel=kernel,
        batch=batch,
        seconds=seconds,
        flops=flops,
        executed_flops=executed,
        bytes=size,
        level=level.name,
        fma_share=flops / ceilings.flops_per_s / seconds,
        bandwidth_share=size / level.bytes_per_s / seconds,
        load_share=loaded / ceilings.levels[0].bytes_per_s / seconds,
    )


def totals(layers: Sequence[LayerTime]) -> dict[str, Any]:
    """Of one batch size: the step, its convolutions, and the time of each kind of operation."""
    step = sum(layer.seconds for layer in layers)
    convolutions = [layer for layer in layers if layer.kind == "Conv"]
    taken = sum(layer.seconds for layer in convolutions)
    kinds: defaultdict[str, float] = defaultdict(float)
    for layer in layers:
        kinds[layer.kind] += layer.seconds
    return {
        "batch": layers[0].batch,
        "step_ms": round(1e3 * step, 4),
        "convolutions_fma_share": round(
            sum(layer.fma_share * layer.seconds for layer in convolutions) / taken, 4
        ),
        "least_convolution_fma_share": min(round(n.fma_share, 4) for n in convolutions),
        "kinds_ms": {
            kind: round(1e3 * seconds, 4)
            for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1])
        },
    }


def table(layers: Sequence[LayerTime]) -> Iterator[str]:
    """Lines for a terminal, one batch size."""
    step = sum(layer.seconds for layer in layers)
    yield (
        f"{'layer':<22} {'kind':<15} {'kernel':<28} {'us':>9} {'step':>6} {'GFLOP/s':>8} "
        f"{'of FMA':>7} {'loads of L1':>11} {'KiB':>8} {'GB/s':>7} {'of level':>11} "
        f"{'of roof':>8}  bound by"
    )
    for layer in layers:
        level = f"{layer.bandwidth_share:.0%} {layer.level}"
        arithmetic = (
            f"{layer.flops / layer.seconds / 1e9:>8.1f} {layer.fma_share:>7.1%}"
            if layer.flops
            else f"{'':>8} {'':>7}"
        )
        loads = f"{layer.load_share:.0%}" if layer.load_share else ""
        yield (
            f"{layer.name:<22} {layer.kind:<15} {layer.kernel[:28]:<28} "
            f"{1e6 * layer.seconds:>9.1f} {layer.seconds / step:>6.1%} {arithmetic} "
            f"{loads:>11} {layer.bytes / 1024:>8.0f} "
            f"{layer.bytes / layer.seconds / 1e9:>7.1f} {level:>11} "
            f"{layer.roof_share:>8.1%}  {layer.bound}"
        )
    found = totals(layers)
    kinds = ", ".join(f"{kind} {ms:.3f}" for kind, ms in found["kinds_ms"].items())
    yield f"step {found['step_ms']:.3f} ms: {kinds}"
    yield (
        f"convolutions at {found['convolutions_fma_share']:.1%} of the multiply-add peak, "
        f"the slowest layer at {found['least_convolution_fma_share']:.1%}"
    )
