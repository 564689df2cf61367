"""What the GPU can do at most: bandwidth of memory and L2 cache, arithmetic, graph nodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from gpu.devices import Call, Device
from gpu.results import Results, Row

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """``copy``, ``read``, ``caches``: bytes; ``moved``: bytes that a read from a cache takes in
    all; ``matmul``: side of the matrices; ``turns``: multiply-adds of a lane; ``nodes``: of graphs.
    """

    copy: int = 1024 * MIB
    read: int = 4096 * MIB
    caches: tuple[int, ...] = (4 * MIB, 8 * MIB, 16 * MIB, 24 * MIB, 32 * MIB, 48 * MIB)
    moved: int = 4096 * MIB
    matmul: int = 8192
    turns: int = 20_000
    nodes: tuple[int, int] = (200, 1200)
    programs: int = 132 * 8


DRY = Sizes(
    copy=MIB // 16,
    read=MIB // 16,
    caches=(MIB // 32,),
    moved=MIB // 16,
    matmul=64,
    turns=3,
    nodes=(2, 4),
    programs=2,
)


@triton.jit
def _read(x, out, blocks, turns, BLOCK: tl.constexpr):  # noqa: N803
    """``turns`` blocks of x a program, past L1."""
    at = tl.program_id(0) % blocks
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for _ in range(turns):
        part = tl.load(x + at.to(tl.int64) * BLOCK + tl.arange(0, BLOCK), cache_modifier=".cg")
        total += part
        at = (at + tl.num_programs(0)) % blocks
    tl.store(out + tl.program_id(0), tl.sum(total))


@triton.jit
def _multiply_add(x, out, turns, BLOCK: tl.constexpr):  # noqa: N803
    """``turns`` dependent multiply-adds in every lane."""
    lane = tl.arange(0, BLOCK)
    value = tl.load(x + lane)
    factor = tl.load(x + lane + BLOCK)
    for _ in range(turns):
        value = value * factor + factor
    tl.store(out + tl.program_id(0) * BLOCK + lane, value)


@triton.jit
def _count(x):
    tl.store(x, tl.load(x) + 1.0)


BLOCK = 4096
LANES = 1024


def run(results: Results, device: Device, source: str, sizes: Sizes) -> None:
    """Rows ``copy``, ``read``, ``l2 ...``, ``matmul ...``, ``multiply-add``, ``node ...``."""
    made = {
        "copy": lambda: _copy(device, sizes),
        "read": lambda: _bandwidth(device, sizes, sizes.read, sizes.read),
        **{
            f"l2 {size / MIB:g} MiB": lambda size=size: _bandwidth(device, sizes, size, sizes.moved)
            for size in sizes.caches
        },
        **{
            f"matmul {str(dtype).removeprefix('torch.')}": lambda dtype=dtype: _matmul(
                device, sizes, dtype
            )
            for dtype in device.dtypes
        },
        "multiply-add float32": lambda: _arithmetic(device, sizes),
        "node torch": lambda: _node(device, sizes, triton_kernel=False),
        "node triton": lambda: _node(device, sizes, triton_kernel=True),
    }
    for key, make in made.items():
        results.measure(key, source, make, seconds=3.0, limit=60.0)


def _copy(device: Device, sizes: Sizes) -> Row:
    x = torch.randn(sizes.copy // 4, device=device.torch_device)
    y = torch.empty_like(x)
    time = device.time([lambda: y.copy_(x)])
    return _rate(2 * sizes.copy, time.median, "GB/s", 1e9) | time.as_json()


def _bandwidth(device: Device, sizes: Sizes, size: int, moved: int) -> Row:
    """Reading ``size`` bytes again and again, ``moved`` in all."""
    blocks = size // (4 * BLOCK)
    x = torch.randn(blocks * BLOCK, device=device.torch_device)
    programs = sizes.programs
    out = torch.empty(programs, device=device.torch_device)
    turns = max(1, moved // (4 * BLOCK * programs))
    launch = _read[(programs,)]
    time = device.time([lambda: launch(x, out, blocks, turns, BLOCK=BLOCK, num_warps=8)])
    return _rate(programs * turns * 4 * BLOCK, time.median, "GB/s", 1e9) | time.as_json()


def _matmul(device: Device, sizes: Sizes, dtype: torch.dtype) -> Row:
    side = sizes.matmul
    a, b = (torch.randn(side, side, device=device.torch_device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    time = device.time([lambda: torch.mm(a, b, out=out)])
    return _rate(2 * side**3, time.median, "TFLOP/s", 1e12) | time.as_json()


def _arithmetic(device: Device, sizes: Sizes) -> Row:
    x = 0.5 * torch.rand(2 * LANES, device=device.torch_device)
    programs = 4 * sizes.programs
    out = torch.empty(programs * LANES, device=device.torch_device)
    launch = _multiply_add[(programs,)]
    time = device.time([lambda: launch(x, out, sizes.turns, BLOCK=LANES, num_warps=4)])
    return _rate(2 * programs * LANES * sizes.turns, time.median, "TFLOP/s", 1e12) | time.as_json()


def _node(device: Device, sizes: Sizes, *, triton_kernel: bool) -> Row:
    """What one more dependent node costs in a graph of the smallest kernels, microseconds."""
    x = torch.zeros(1, device=device.torch_device)

    def with_triton() -> object:
        return _count[(1,)](x, num_warps=1)

    call: Call = with_triton if triton_kernel else lambda: x.add_(1.0)
    few, many = sizes.nodes
    times = device.play([device.record([call], count) for count in (few, many)])
    short, long = (count * time.median for count, time in zip(sizes.nodes, times, strict=True))
    each = (long - short) / (many - few)
    found = _rate(1e6 * each, 1.0, "us a node", 1.0)
    return found | {"graph_us": [1e6 * short, 1e6 * long], "measured": device.measured}


def _rate(amount: float, seconds: float, unit: str, scale: float) -> Row:
    value = amount / seconds / scale
    return {"value": value, "unit": unit, "brief": f"{value:.4g} {unit}"}
