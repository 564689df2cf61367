"""Measure the kernels that could run each convolution, on the GPU at hand.

A layer is timed alone, captured many times over in one CUDA graph, so that launches cost what they
do inside a step; its input and output stay in the L2 cache as they would there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from sparse_ddpm_kernels.triton.element_tiles import candidate_element_tiles
from sparse_ddpm_kernels.triton.panel_tiles import candidate_panel_tiles

from sparse_ddpm.engine.cuda.buffers import Launch
from sparse_ddpm.engine.cuda.engine import INTERPRETED, cuda_device
from sparse_ddpm.engine.cuda.launches import Launches
from sparse_ddpm.engine.cuda.plan import CudaPlan, make_cuda_plan
from sparse_ddpm.engine.cuda.tuned import Measured, Tuned, layer_key, layer_of
from sparse_ddpm.program import Program

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
    plan = make_cuda_plan(program, batch, dtype)
    unknown: dict[str, Program] = {}
    for step in plan.steps:
        if step.conv is not None:
            layer = layer_of(program, step.conv.operation)
            key = layer_key(layer, plan.images, dtype)
            if key not in table.layers:
                unknown.setdefault(key, layer)
    begin = time.monotonic()
    done = 0
    for key, layer in unknown.items():
        if time.monotonic() - begin > seconds:
            break
        progress(done, len(unknown), layer.output)
        table.layers[key] = measure_layer(layer, batch, dtype, kinds, tiles)
        done += 1
    progress(done, len(unknown), "")
    return done


def measure_layer(
    layer: Program, batch: int, dtype: str, kinds: int = 4, tiles: int = 4
) -> Measured:
    """Microseconds of the best kinds for one `layer_of`, each with its fastest tiles."""
    plan = make_cuda_plan(layer, batch, dtype)
    conv = next(step.conv for step in plan.steps if step.conv is not None)
    estimates = conv.choice.estimates
    tried = sorted(estimates, key=lambda kind: estimates[kind])[:kinds]
    times: dict[str, float] = {}
    best: dict[str, Mapping[str, Any]] = {}
    for kind in dict.fromkeys((*tried, "cudnn")):
        plan = make_cuda_plan(layer, batch, dtype, kernel=kind)
        for cut in _candidates(plan, tiles):
            spent = _time(plan, cut)
            if spent < times.get(kind, float("inf")):
                times[kind] = spent
                best[kind] = cut
    return Measured(times, {kind: cut for kind, cut in best.items() if cut})


def _candidates(plan: CudaPlan, limit: int) -> list[dict[str, Any]]:
    """Tiles of the one convolution of a plan; of cuDNN's, none to choose."""
    conv = next(step.conv for step in plan.steps if step.conv is not None)
    channels, height, width = plan.program.shapes[conv.operation.out]
    choice = conv.choice
    if choice.kind == "cudnn":
        return [{}]
    scale, phases = conv.scale, conv.scale**2
    if choice.kind == "elements":
        slices = candidate_element_tiles(
            channels * phases,
            height // scale,
            width // scale,
            plan.images,
            choice.entries * phases,
            cin=plan.program.shapes[conv.source][0],
            size=conv.operation.size,
            limit=limit,
        )
        return [asdict(item) for item in slices]
    panels = candidate_panel_tiles(
        channels * phases,
        height * width // phases,
        plan.images,
        choice.entries * phases,
        choice.group,
        moments=conv.moments is not None,
        norm=conv.norm is not None,
        limit=limit,
    )
    return [asdict(item) for item in panels]


def _time(plan: CudaPlan, tiles: Mapping[str, Any]) -> float:
    """Median microseconds of a layer, whose one convolution has ``tiles``."""
    conv = next(step.conv for step in plan.steps if step.conv is not None)
    bound = Launches(plan, cuda_device(), {conv.operation.out: tiles} if tiles else {})
    x = np.random.default_rng(0).standard_normal(tuple(bound.x.shape), dtype=np.float32)
    bound.x.copy_(torch.from_numpy(x))
    first, *others = bound.steps.values()
    for launch in first:
        launch()
    return time_launches([launch for launches in others for launch in launches])


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
