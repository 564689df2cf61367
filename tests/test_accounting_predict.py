"""Predicted times and limits: properties; benchmarks/accounts.py lays them beside the clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparse_ddpm.accounting import (
    Ceilings,
    Level,
    account,
    limit,
    predict,
    reference_ceilings,
    reference_gpu_ceilings,
)
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.plan import Plan, make_plan
from sparse_ddpm.lower import lower
from sparse_ddpm.ticket import PRESETS, UNetConfig, synthetic_ticket

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=4, heads=2, dim_head=8)


def plan(sparsity: float, batch: int = 1, pattern: str = "element", name: str = "small") -> Plan:
    config = TINY if name == "tiny" else PRESETS[name]
    return make_plan(lower(synthetic_ticket(config, sparsity, pattern)), batch)


def step(found: Plan, threads: int = 1) -> float:
    return sum(predict(found, reference_ceilings(threads)).values())


def test_names_are_those_of_measured_times() -> None:
    found = plan(0.7, name="tiny")
    times = predict(found, reference_ceilings(1))
    with CpuEngine(found.program, 1, 1, profile=True) as engine:
        named = [name for name, _ in engine.timings()]
    assert [name for name, seconds in times.items() if seconds > 0.0] == named
    silent = {name for name, seconds in times.items() if seconds == 0.0}
    assert silent == {s.operation.out for s in found.steps if s.kernel == "none"}


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("pattern", ["element", "vector:16"])
def test_less_weights_take_less_time(pattern: str, batch: int) -> None:
    times = [step(plan(sparsity, batch, pattern)) for sparsity in (0.5, 0.9, 0.95, 0.99)]
    assert times == sorted(times, reverse=True)
    assert times[0] > 3 * times[-1]


def test_batches_threads_and_machines() -> None:
    one, sixteen = plan(0.9, 1), plan(0.9, 16)
    assert step(one) < step(sixteen) < 20 * step(one)
    # A batch of 4 is four passes.
    assert step(plan(0.9, 4)) == pytest.approx(4 * step(one))
    assert step(one, 2) < step(one) < 2 * step(one, 2)
    twice = replace(reference_ceilings(1), flops_per_s=2 * reference_ceilings(1).flops_per_s)
    half = sum(predict(one, twice).values())
    assert 0.5 <= half / step(one) < 0.6


def test_orders_of_magnitude() -> None:
    """Of one core with AVX-512, some 100 GFLOP/s: a step that is all arithmetic is not far off."""
    found = plan(0.0, 16)
    flops = 16 * sum(row.executed_flops for row in account(found))
    assert 0.4 < step(found) / (flops / 117e9) < 2.5


def test_limits() -> None:
    levels = (Level("L1", 10, 9e9), Level("L2", 100, 5e9), Level("memory", 0, 1e9))
    found = Ceilings("avx2", 1, 1e9, levels)
    assert limit(1000, 50, found).bound == "multiply-adds"
    assert limit(1000, 50, found).seconds == 1e-6
    assert limit(1, 50, found).bound == limit(1, 50, found).level == "L2"
    assert limit(1, 50, found).seconds == 1e-8
    assert limit(1, 1000, found).seconds == 1e-6
    assert limit(0, 0, found).seconds == 0.0


def test_nothing_is_predicted_below_its_limit_by_much() -> None:
    """Caches are read faster from L1 than limits allow for, so that a little is right."""
    found = plan(0.9, 16)
    ceilings = reference_ceilings(1)
    times = predict(found, ceilings)
    for row in account(found):
        least = limit(16 * row.executed_flops, row.moved_bytes(16), ceilings).seconds
        if row.kind != "Concat":
            assert times[row.name] > 0.6 * least, row.name


def test_gpu_estimates() -> None:
    pytest.importorskip("triton", reason="the plan needs Triton's layouts")
    from sparse_ddpm.engine.cuda.plan import make_cuda_plan

    found = make_cuda_plan(lower(synthetic_ticket(PRESETS["small"], 0.9)), 16)
    times = predict(found, reference_gpu_ceilings("float16"))
    assert list(times) == [s.out for s in found.steps]
    assert 1e-5 < sum(times.values()) < 1e-2
