"""One operation on the CPU engine at a time, its fraction of the machine's limits printed.

    pytest benchmarks [--engine-threads N] [-k conv] [any option of pytest-benchmark]

The engine takes the times itself, so that loading and storing images stays out of them:
pytest-benchmark's timer is a clock that only these times move. Limits are measured first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparse_ddpm.accounting import account
from sparse_ddpm.bench.ceilings import Ceilings, measure_ceilings
from sparse_ddpm.bench.layers import LayerTime, layer_time
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.formats import Dense
from sparse_ddpm.program import Operation, Program, TimeEmbedding
from sparse_ddpm.program.program import Shape

ROUNDS = 30
TIME_DIM = 8

Measure = Callable[..., LayerTime]

_clock = 0.0
_found: list[tuple[str, LayerTime]] = []
_limits: list[Ceilings] = []


def operation_clock() -> float:
    """Seconds that measured operations have taken so far."""
    return _clock


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine-threads", type=int, default=1, help="of the CPU engine (default 1)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=operation_clock))


@pytest.fixture(scope="session")
def ceilings(request: pytest.FixtureRequest) -> Ceilings:
    found = measure_ceilings(request.config.getoption("--engine-threads"))
    _limits.append(found)
    return found


@pytest.fixture
def measure(benchmark: Any, ceilings: Ceilings, request: pytest.FixtureRequest) -> Measure:
    """``measure(shape, *operations, batch=1)``: time the last of ``operations``, whose first input
    is ``"x"`` of ``shape`` ``[C, H, W]``. Further arguments go to `CpuEngine`.
    """

    def run(shape: Shape, *operations: Operation, batch: int = 1, **engine: Any) -> LayerTime:
        columns = 2 * shape[0]
        program = Program(operations, "x", shape, operations[-1].out, time_embedding(columns))
        x = normal(0, batch, *shape)
        name = operations[-1].out
        with CpuEngine(program, batch, ceilings.threads, profile=True, **engine) as native:
            native.set_schedule(np.array([500.0]))

            def step() -> None:
                global _clock
                native.run(x, 0)
                _clock += sum(seconds for made, seconds in native.timings() if made == name)

            benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=3)
            row = next(row for row in account(native.plan) if row.name == name)
            entries = native.plan.steps[-1].entries
        if benchmark.disabled:
            pytest.skip("--benchmark-disable: ran once, took no time")
        seconds = benchmark.stats.stats.median
        found = layer_time(name, row, program, ceilings, batch, seconds, entries)
        benchmark.extra_info.update(found.as_json())
        _found.append((request.node.name, found))
        return found

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _found:
        return
    limits = _limits[0].as_json()
    levels = ", ".join(f"{name} {rate:.0f}" for name, rate in limits["gbytes_per_s"].items())
    write = terminalreporter.write_line
    terminalreporter.section("fractions of the machine's limits")
    write(
        f"{limits['isa']}, {limits['threads']} threads: {limits['gflops_per_s']:.0f} GFLOP/s of "
        f"multiply-adds; GB/s read from {levels}"
    )
    width = max(len(name) for name, _ in _found)
    write(
        f"{'benchmark':<{width}} {'us':>9} {'GFLOP/s':>8} {'of FMA':>7} {'GB/s':>7} "
        f"{'of level':>12} {'loads of L1':>11}  kernel"
    )
    for name, found in _found:
        arithmetic = (
            f"{found.flops / found.seconds / 1e9:>8.1f} {found.fma_share:>7.1%}"
            if found.flops
            else f"{'':>8} {'':>7}"
        )
        loads = f"{found.load_share:.0%}" if found.load_share else ""
        level = f"{found.bandwidth_share:.0%} {found.level}"
        write(
            f"{name:<{width}} {1e6 * found.seconds:>9.1f} {arithmetic} "
            f"{found.bytes / found.seconds / 1e9:>7.1f} {level:>12} {loads:>11}  {found.kernel}"
        )


@pytest.fixture
def vector() -> Callable[[int], np.ndarray]:
    """A random float32 vector of the given length."""
    return lambda length: normal(length, length)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def time_embedding(columns: int) -> TimeEmbedding:
    return TimeEmbedding(
        dim=4,
        weight1=normal(1, TIME_DIM, 4),
        bias1=normal(2, TIME_DIM),
        weight2=normal(3, TIME_DIM, TIME_DIM),
        bias2=normal(4, TIME_DIM),
        film=Dense(normal(5, columns, TIME_DIM)),
        film_bias=normal(6, columns),
    )
