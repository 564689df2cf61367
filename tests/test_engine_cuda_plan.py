"""The GPU's plan: what is fused, where values lie, which kernels are chosen. No GPU, no torch."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sparse_ddpm.accounting import account
from sparse_ddpm.engine.cuda.choose import KINDS, choose_kernel, group_of
from sparse_ddpm.engine.cuda.plan import CudaPlan, make_cuda_plan
from sparse_ddpm.engine.cuda.tuned import Measured, Tuned, layer_key, layer_of
from sparse_ddpm.errors import EngineError
from sparse_ddpm.formats import CSR
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Concat, Conv, NormAct, Program, SpaceToDepth, Upsample2x
from sparse_ddpm.program.operations import inputs_of
from sparse_ddpm.ticket import PRESETS, UNetConfig, synthetic_ticket

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=3, image_size=8, groups=4, heads=2, dim_head=8)


@pytest.fixture(scope="module")
def program() -> Program:
    return lower(synthetic_ticket(TINY, 0.8, "vector:4"))


@pytest.fixture(scope="module")
def small() -> Program:
    return lower(synthetic_ticket(PRESETS["small"], 0.95, "vector:16"))


def lifetimes(plan: CudaPlan) -> dict[str, tuple[int, int]]:
    """First and last step of each value that the plan stores."""
    inside = {op.out for step in plan.steps for op in step.operations[:-1]}
    times = {plan.program.input: (0, 0)}
    for number, step in enumerate(plan.steps, start=1):
        for name in (n for op in step.operations for n in inputs_of(op)):
            if name not in inside:
                times[name] = (times[name][0], number)
        times[step.out] = (number, number)
    output = plan.program.output
    times[output] = (times[output][0], len(plan.steps) + 1)
    return times


@pytest.mark.parametrize("kernel", [None, "elements", "panels:32", "cudnn"])
def test_every_operation_runs_once_and_live_values_share_no_memory(
    small: Program, kernel: str | None
) -> None:
    plan = make_cuda_plan(small, 3, kernel=kernel)
    assert plan.images == 8
    ran = [op.out for step in plan.steps for op in step.operations]
    assert sorted(ran) == sorted(op.out for op in small.operations)
    times = lifetimes(plan)
    assert times.keys() == plan.memory.places.keys()
    concats = {op.out: (op.a, op.b) for op in small.operations if isinstance(op, Concat)}
    names = list(times)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            first, second = plan.memory.places[a], plan.memory.places[b]
            if first.buffer != second.buffer:
                continue
            same = set(range(first.first, first.first + first.channels)) & set(
                range(second.first, second.first + second.channels)
            )
            early, late = sorted((times[a], times[b]))
            # What is made over its input begins in the step in which that ends.
            apart = early[1] <= late[0]
            part = a in concats.get(b, ()) or b in concats.get(a, ())
            assert not same or apart or part, (a, b)


def test_a_kept_plan_fuses_and_overwrites_nothing(program: Program) -> None:
    plan = make_cuda_plan(program, 2, keep_all=True)
    assert all(len(step.operations) == 1 for step in plan.steps)
    assert plan.memory.places.keys() == program.shapes.keys()
    spots = Counter((p.buffer, p.first, p.channels) for p in plan.memory.places.values())
    assert max(spots.values()) == 1


def test_norms_and_space_to_depth_are_done_on_the_way(small: Program) -> None:
    plan = make_cuda_plan(small, 16, kernel="panels:32")
    fused = [step for step in plan.steps if len(step.operations) > 1]
    strided = [s for s in fused if isinstance(s.operations[0], SpaceToDepth)]
    normed = [s for s in fused if isinstance(s.operations[-1], NormAct)]
    doubled = [s for s in fused if isinstance(s.operations[0], Upsample2x)]
    assert strided
    assert normed
    assert doubled
    assert not any(isinstance(step.operation, SpaceToDepth) for step in plan.steps)
    # A norm of a convolution with panels is either done there or given its moments.
    for step in plan.steps:
        if isinstance(step.operation, NormAct) and step.conv is None:
            assert step.moments
    rows = {row.name: row for row in account(plan)}
    assert rows[normed[0].out].kind == "Conv"
    assert rows[normed[0].out].weight_bytes > 0


def test_halos_are_those_of_the_readers(program: Program) -> None:
    plan = make_cuda_plan(program, 1)
    for step in plan.steps:
        if step.conv is not None:
            layout = plan.memory.places[step.conv.source].layout
            assert layout.halo >= step.conv.operation.size // 2


def conv(rows: int, columns: int, density: float) -> Conv:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((rows, columns), dtype=np.float32)
    dense[rng.random(dense.shape) > density] = 0.0
    return Conv("y", "x", CSR.from_dense(dense), 3)


def test_density_decides_and_the_reason_says_so() -> None:
    shape = (256, 8, 8)
    thin = choose_kernel(conv(256, 2304, 0.002), shape, 256, "float16")
    full = choose_kernel(conv(256, 2304, 1.0), shape, 256, "float16")
    assert thin.kind == "elements"
    assert group_of(full.kind) != 1
    assert "by estimate" in thin.reason
    assert thin.estimates.keys() == set(KINDS)
    forced = choose_kernel(conv(256, 2304, 0.002), shape, 256, "float16", force="cudnn")
    assert forced.kind == "cudnn"
    assert "asked for" in forced.reason
    with pytest.raises(EngineError, match="kernel: expected one of elements"):
        choose_kernel(conv(8, 72, 0.5), shape, 8, "float16", force="winograd")


def test_measured_times_replace_estimates() -> None:
    times = {"elements": 9.0, "panels:16": 5.0, "cudnn": 4.0}
    chosen = choose_kernel(conv(64, 576, 0.01), (64, 32, 32), 8, "float16", measured=times)
    assert (chosen.kind, chosen.measured) == ("cudnn", True)
    assert "measured" in chosen.reason
    late = dict.fromkeys(KINDS, 1e3) | {"panels:16": 0.0}
    chosen = choose_kernel(conv(64, 576, 0.01), (64, 32, 32), 8, "float16", extra_us=late)
    assert (chosen.kind, chosen.measured) == ("panels:16", False)


def test_a_tuned_table_is_written_and_read(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_DDPM_TUNED", str(tmp_path))
    convs = [op for op in program.operations if isinstance(op, Conv)]
    layers = [layer_of(program, op) for op in convs]
    keys = [layer_key(layer, 8, "float16") for layer in layers]
    assert any("with NormAct" in key for key in keys)
    assert any("with SpaceToDepth" in key for key in keys)
    assert layer_key(layers[0], 16, "float16") != keys[0] != layer_key(layers[0], 8, "bfloat16")
    key = keys[0]
    table = Tuned("NVIDIA H200", "3.6.0")
    table.layers[key] = Measured({"elements": 3.5}, {"elements": {"lines": 2}})
    path = table.save()
    assert path == tmp_path / "nvidia-h200-triton-3.6.0.json"
    assert Tuned.load("NVIDIA H200", "3.6.0").layers == table.layers
    assert Tuned.load("NVIDIA H200", "3.9.0").layers == {}
    path.write_text('{"schema": 1, "layers": {"x": 3}}')
    with pytest.raises(EngineError, match="tuned table"):
        Tuned.load("NVIDIA H200", "3.6.0")


def test_unknown_dtype(program: Program) -> None:
    with pytest.raises(EngineError, match="dtype of the cuda engine: expected one of float16"):
        make_cuda_plan(program, 1, "int8")


def test_planning_needs_neither_torch_nor_triton() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['triton'] = None\n"
        "from sparse_ddpm.cli.main import main\n"
        "assert main(['inspect', '--device', 'cuda', '--batch', '4']) == 0\n"
        "assert main(['sample', '--device', 'cuda']) == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "panels G=" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "device cuda: expected torch and triton" in done.stderr
