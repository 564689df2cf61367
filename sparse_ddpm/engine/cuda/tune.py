"""Measure the kernels that could run each convolution, on the GPU at hand.

A layer is timed alone, captured many times over in one CUDA graph, so that launches cost what they
do inside a step; its input and output stay in the L2 cache as they would there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from sparse_ddpm_kernels.triton.element_tiles import candidate_element_tiles
from sparse_ddpm_kernels.triton.layout import padded_images
from sparse_ddpm_kernels.triton.panel_tiles import candidate_panel_tiles

from sparse_ddpm.engine.cuda.choose import choose_kernel
from sparse_ddpm.engine.cuda.engine import INTERPRETED, cuda_device
from sparse_ddpm.engine.cuda.launches import Launch, Launches
from sparse_ddpm.engine.cuda.plan import make_cuda_plan
from sparse_ddpm.engine.cuda.tuned import Measured, Tuned, layer_key
from sparse_ddpm.program import Conv, Program

CALLS, REPLAYS = 20, 9
"""Of a kernel in a graph, and of the graph."""

Progress = Callable[[int, int, str], None]


def tune(
    program: Program,
    batch: int,
    dtype: str,
    table: Tuned,
    *,
    kinds: int = 4,
    tiles: int = 4,
    seconds: float = float("inf"),
    progress: Progress = lambda done, total, name: None,
) -> int:
    """Time what ``table`` does not know yet of a Program's convolutions; how many layers that was.

    ``kinds``: of kernels tried for a layer, the best by estimate, and cuDNN; ``tiles``: of each.
    ``seconds``: after which no new layer is begun. ``progress(done, total, layer)``: for each.
    """
    images = padded_images(batch)
    unknown: dict[str, Conv] = {}
    for operation in program.operations:
        if isinstance(operation, Conv):
            key = layer_key(operation, program.shapes[operation.out], images, dtype)
            if key not in table.layers:
                unknown.setdefault(key, operation)
    begin = time.monotonic()
    done = 0
    for key, operation in unknown.items():
        if time.monotonic() - begin > seconds:
            break
        progress(done, len(unknown), operation.out)
        table.layers[key] = measure_layer(operation, program, batch, dtype, kinds, tiles)
        done += 1
    progress(done, len(unknown), "")
    return done


def measure_layer(
    operation: Conv, program: Program, batch: int, dtype: str, kinds: int = 4, tiles: int = 4
) -> Measured:
    """Microseconds of the best kinds for one convolution, each with its fastest tiles."""
    alone = replace(operation, residual=None)
    shape = program.shapes[operation.x]
    single = Program((alone,), alone.x, shape, alone.out, program.time)
    images = padded_images(batch)
    estimates = choose_kernel(alone, single.shapes[alone.out], images, dtype).estimates
    tried = sorted(estimates, key=lambda kind: estimates[kind])[:kinds]
    times: dict[str, float] = {}
    best: dict[str, Mapping[str, Any]] = {}
    for kind in dict.fromkeys((*tried, "cudnn")):
        for chosen in _candidates(single, alone, images, kind, dtype, batch, tiles):
            spent = _time(single, alone, batch, dtype, kind, chosen)
            if spent < times.get(kind, float("inf")):
                times[kind] = spent
                best[kind] = {} if chosen is None else chosen
    return Measured(times, {kind: item for kind, item in best.items() if item})


def _candidates(
    program: Program,
    operation: Conv,
    images: int,
    kind: str,
    dtype: str,
    batch: int,
    limit: int,
) -> list[dict[str, Any] | None]:
    if kind == "cudnn":
        return [None]
    channels, height, width = program.shapes[operation.out]
    choice = choose_kernel(operation, (channels, height, width), images, dtype, force=kind)
    if kind == "elements":
        cut = candidate_element_tiles(channels, height, width, images, choice.entries, limit=limit)
        return [asdict(item) for item in cut]
    panels = candidate_panel_tiles(
        channels, height * width, images, choice.entries, choice.group, limit=limit
    )
    return [asdict(item) for item in panels]


def _time(
    program: Program,
    operation: Conv,
    batch: int,
    dtype: str,
    kind: str,
    tiles: Mapping[str, Any] | None,
) -> float:
    """Median microseconds of one launch."""
    plan = make_cuda_plan(program, batch, dtype, kernel=kind)
    known = {} if tiles is None else {operation.out: tiles}
    bound = Launches(plan, cuda_device(), known)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(tuple(bound.x.shape), dtype=np.float32)
    bound.x.copy_(torch.from_numpy(x))
    for launch in bound.steps[program.input]:
        launch()
    return time_launches(bound.steps[operation.out])


def time_launches(launches: list[Launch]) -> float:
    """Median microseconds of all of ``launches`` together, from a CUDA graph of `CALLS` rounds.

    In the interpreter, where time means nothing, of one round.
    """

    def body(rounds: int) -> None:
        for _ in range(rounds):
            for launch in launches:
                launch()

    if INTERPRETED:
        begin = time.perf_counter()
        body(1)
        return (time.perf_counter() - begin) * 1e6
    body(2)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body(CALLS)
    spent = []
    for _ in range(REPLAYS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        spent.append(first.elapsed_time(last) * 1e3 / CALLS)
    return float(statistics.median(spent))
