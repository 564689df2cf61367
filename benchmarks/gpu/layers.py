"""One convolution at a time: our kernels beside cuDNN, torch.compile and torch's block-sparse one.

Outputs are compared first; then each kernel's tiles are tuned, and all are timed in turns: warm,
on one set of buffers again and again, and cold, on sets of buffers that together are twice the L2.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from gpu import layer_peers
from gpu.budget import Budget
from gpu.correctness import short
from gpu.devices import Call, Device
from gpu.layer_ours import KINDS, Buffers, make_kernel
from gpu.layer_peers import Prepared
from gpu.prebuild import Task, prebuild, workers
from gpu.problems import DENSE, Grid, Problem
from gpu.results import Results, Row
from gpu.values import TOLERANCES, error

BSR = "block:32x32"
SHORT, LONG = 6, 20
"""Samples while tuning and of what is reported."""


@dataclass(slots=True)
class Entrant:
    """One column of a row. ``calls``: a set of buffers each. ``output``: ``[batch, C, H, W]``."""

    calls: Sequence[Call]
    output: Callable[[], torch.Tensor]
    details: Row = field(default_factory=dict)


def run(
    results: Results,
    device: Device,
    source: str,
    budget: Budget,
    grid: Grid,
) -> None:
    """A row for each problem of ``grid``; then torch.compile, a row for each shape."""
    problems = grid.problems()
    missing = [p for p in problems if results.kept(p.name, source) is None]
    if device.measured and missing:
        prebuild(build_tasks(missing), budget, processes=workers(), limit=90.0)
    for problem in problems:
        results.measure(
            problem.name,
            source,
            lambda problem=problem: measure(problem, device),
            seconds=4.0,
            limit=90.0,
        )
    for problem in problems:
        if problem.pattern == DENSE:
            results.measure(
                f"{shape_key(problem)} compiled",
                source,
                lambda problem=problem: measure_compiled(problem, device),
                seconds=25.0 if device.measured else 1.0,
                limit=120.0,
            )


def shape_key(problem: Problem) -> str:
    return f"{problem.layer} batch {problem.batch}"


def build_tasks(problems: Sequence[Problem]) -> list[Task]:
    """One for each shape, kind and dtype: its problems share most of their kernels."""
    groups: dict[tuple[str, str, torch.dtype], list[Problem]] = {}
    for problem in problems:
        for _, kind, dtype in _kinds(problem, (torch.bfloat16, torch.float16)):
            groups.setdefault((shape_key(problem), kind, dtype), []).append(problem)
    return [
        ("gpu.layers", "build", (kind, dtype, tuple(members)))
        for (_, kind, dtype), members in groups.items()
    ]


def build(kind: str, dtype: torch.dtype, problems: Sequence[Problem]) -> None:
    """Run every candidate once and forget it: the kernels are then compiled."""
    seen = set()
    for problem in problems:
        x = torch.zeros((problem.batch, *problem.shape), device="cuda")
        kernel = make_kernel(kind, problem, problem.conv(), Buffers(problem, x, dtype))
        for tiles in kernel.candidates:
            if tiles not in seen:
                seen.add(tiles)
                # Tiles that do not fit this GPU are reported where they are timed.
                with contextlib.suppress(Exception):
                    kernel.call(tiles, 0)()
    torch.cuda.synchronize()


def measure(problem: Problem, device: Device) -> Row:
    """Our kernels, cuDNN and, where blocks are pruned, torch's block-sparse product."""
    device.release()
    conv = problem.conv()
    x, weight = _inputs(problem, device)
    entrants: dict[str, Entrant] = {}
    failed: dict[str, Row] = {}
    for name, kind, dtype in _kinds(problem, device.dtypes):
        try:
            buffers = Buffers(problem, x, dtype)
            kernel = make_kernel(kind, problem, conv, buffers)
            best, tuning = tune(kernel.candidates, lambda t, k=kernel: k.call(t, 0), device)
            sets = device.sets(buffers.bytes + kernel.weight_bytes)
            entrants[name] = Entrant(
                [kernel.call(best, index) for index in range(sets)],
                buffers.output,
                {
                    "kind": kind,
                    "dtype": short(dtype),
                    "tiles": dataclasses.asdict(best),
                    "tuning": tuning,
                    "entries": kernel.entries,
                    "executed_flops": 2 * kernel.entries * kernel.group * _positions(buffers),
                    "streamed_bytes": kernel.streamed_bytes,
                    "bytes": buffers.bytes + kernel.weight_bytes,
                },
            )
        except Exception as reason:
            failed[name] = {"failed": f"{type(reason).__name__}: {reason}"[:800]}
    size = (2 * x.numel() + weight.numel()) * device.dtypes[0].itemsize
    gathered = (conv.size**2 + 2) * x.numel() * device.dtypes[0].itemsize
    peers: dict[str, Callable[[], Prepared]] = {
        "cudnn": lambda: layer_peers.cudnn(x, weight, device, device.sets(size))
    }
    if problem.pattern == BSR:
        for name, im2col in (("torch bsr", False), ("torch bsr with im2col", True)):
            peers[name] = lambda im2col=im2col: layer_peers.block_sparse(
                x, weight, device, device.sets(gathered), 32, im2col=im2col
            )
    for name, make in peers.items():
        try:
            made = make()
            entrants[name] = Entrant(made.calls, made.output, dict(made.details))
        except Exception as reason:
            failed[name] = {"failed": f"{type(reason).__name__}: {reason}"[:800]}
    row = _row(problem, x, weight, entrants, failed, device)
    row["nnz"] = conv.weight.nnz
    return row


def measure_compiled(problem: Problem, device: Device) -> Row:
    """torch.compile of the dense problem's shape, beside cuDNN once more."""
    device.release()
    x, weight = _inputs(problem, device)
    size = (2 * x.numel() + weight.numel()) * device.dtypes[0].itemsize
    sets = device.sets(size)
    made = {
        "compile max-autotune": layer_peers.max_autotune(x, weight, device, sets),
        "cudnn": layer_peers.cudnn(x, weight, device, sets),
    }
    entrants = {name: Entrant(one.calls, one.output) for name, one in made.items()}
    return _row(problem, x, weight, entrants, {}, device)


def tune(
    candidates: Sequence[Any], call: Callable[[Any], Call], device: Device
) -> tuple[Any, list[Row]]:
    """The fastest tiles, warm, and the time of each; those that do not run are left out.

    Raises what the last of them raised if none runs.
    """
    recordings, right, tuning = [], [], []
    problem: Exception | None = None
    for tiles in candidates:
        try:
            recordings.append(device.prepare([call(tiles)]))
            right.append(tiles)
        except Exception as reason:
            device.synchronize()
            problem = reason
            tuning.append({"tiles": dataclasses.asdict(tiles), "failed": str(reason)[:300]})
    if not right:
        raise problem or ValueError("tiles: expected candidates, got none.")
    times = device.play(recordings, samples=SHORT, burst=1e-3)
    for tiles, time in zip(right, times, strict=True):
        tuning.append({"tiles": dataclasses.asdict(tiles), "us": round(1e6 * time.median, 3)})
    best = min(range(len(right)), key=lambda index: times[index].median)
    return right[best], tuning


def _row(
    problem: Problem,
    x: torch.Tensor,
    weight: torch.Tensor,
    entrants: dict[str, Entrant],
    failed: dict[str, Row],
    device: Device,
) -> Row:
    """Compare, then time what is right."""
    engines: dict[str, Row] = dict(failed)
    for name, entrant in list(entrants.items()):
        dtype = getattr(torch, entrant.details.get("dtype", short(device.dtypes[0])))
        entrant.calls[0]()
        wrong = error(entrant.output(), _exact(x, weight, dtype))
        engines[name] = {**entrant.details, "error": wrong}
        if not wrong <= TOLERANCES[dtype]:
            most = TOLERANCES[dtype]
            engines[name] |= {
                "error": None,
                "failed": f"error: expected at most {most:g}, got {wrong:.1e}.",
            }
            del entrants[name]
    for how in ("warm", "cold"):
        recordings = [
            device.prepare(list(entrant.calls) if how == "cold" else entrant.calls[:1])
            for entrant in entrants.values()
        ]
        times = device.play(recordings, samples=LONG, burst=2e-3)
        for name, timing in zip(entrants, times, strict=True):
            engines[name][how] = timing.as_json()
    said = [f"{name} {engines[name]['cold']['us']:.1f} us" for name in entrants]
    said += [f"{name} failed" for name, row in engines.items() if "failed" in row]
    return {
        **dataclasses.asdict(problem),
        "layer": problem.layer,
        "dense_flops": problem.dense_flops,
        "engines": engines,
        "brief": ", ".join(said),
    }


def _exact(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Of inputs rounded to ``dtype``, in full float32."""
    return F.conv2d(x.to(dtype).float(), weight.to(dtype).float(), padding=weight.shape[-1] // 2)


def _inputs(problem: Problem, device: Device) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 ``[batch, C, H, W]`` and ``[C, C, 3, 3]``."""
    torch.manual_seed(problem.channels + problem.batch)
    x = torch.randn(problem.batch, *problem.shape).to(device.torch_device)
    conv = problem.conv()
    weight = torch.from_numpy(conv.weight.to_dense().copy())
    shape = problem.channels, problem.channels, conv.size, conv.size
    return x, weight.reshape(shape).to(device.torch_device)


def _kinds(problem: Problem, dtypes: Sequence[torch.dtype]) -> list[tuple[str, str, torch.dtype]]:
    """Name, kind and dtype: all kinds in the first dtype, single weights in every one."""
    return [
        (f"ours {kind}" if dtype == dtypes[0] else f"ours {kind} {short(dtype)}", kind, dtype)
        for kind in KINDS[problem.pattern]
        for dtype in (dtypes if kind == "elements" else dtypes[:1])
    ]


def _positions(buffers: Buffers) -> int:
    """Pixels of all images, padding included."""
    return buffers.problem.side**2 * buffers.images
