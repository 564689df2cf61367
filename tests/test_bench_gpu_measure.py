"""The parts of benchmarks/gpu_suite.py that measure: timing, tuning, peers, problems."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_problems_come_in_the_order_of_interest() -> None:
    pytest.importorskip("torch")
    from gpu.problems import Grid

    problems = Grid().problems()
    assert len(problems) == len(set(problems)) == 4 * 4 * (4 * 5 + 1)
    first = problems[: 4 * 2 * (2 * 2 + 1)]
    assert {p.batch for p in first} == {16, 256}
    assert {p.pattern for p in first} == {"dense", "vector:32", "element"}


@pytest.mark.parametrize("pattern", ["element", "vector:16", "block:32x32", "dense"])
def test_problems_keep_what_they_should(pattern: str) -> None:
    from gpu.problems import Problem

    sparsity = 0.0 if pattern == "dense" else 0.9
    weight = Problem(64, 8, 2, sparsity, pattern).conv().weight
    assert weight.shape == (64, 64 * 9)
    assert weight.nnz == pytest.approx((1.0 - sparsity) * 64 * 576, rel=0.15)


def test_tiles_that_do_not_run_are_left_out() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from dataclasses import dataclass

    from gpu.devices import Interpreter
    from gpu.layers import tune

    @dataclass(frozen=True)
    class Tiles:
        seconds: float

    def call(tiles: Tiles) -> Callable[[], None]:
        if tiles.seconds < 0:
            raise ValueError("no such tiles")
        return lambda: time.sleep(tiles.seconds)

    best, tuning = tune([Tiles(0.02), Tiles(-1.0), Tiles(0.001)], call, Interpreter())
    assert best == Tiles(0.001)
    assert [row.get("failed") for row in tuning] == ["no such tiles", None, None]
    with pytest.raises(ValueError, match="no such tiles"):
        tune([Tiles(-1.0)], call, Interpreter())


def test_profile_of_nothing_measured_is_no_error() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    import torch
    from gpu.devices import Interpreter
    from gpu.profile import kernels

    device = Interpreter()
    x = torch.ones(8)
    rows = kernels(device.record([lambda: x.add_(1.0)]), device)
    assert isinstance(rows, list)
    assert any("add" in row["name"] for row in rows)


def test_block_sparse_product_is_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's kernel, which a CPU has not, replaced by what it promises."""
    pytest.importorskip("triton", reason="Triton is not installed")
    import torch
    import torch.nn.functional as F
    from gpu.devices import Interpreter
    from gpu.layer_peers import block_sparse
    from torch.sparse import _triton_ops

    def product(input: Any, bsr: Any, dense: Any, *, out: Any, meta: Any, **_: Any) -> Any:  # noqa: A002
        assert dense.shape[1] % meta["SPLIT_N"] == 0
        return out.copy_(bsr.to_dense() @ dense)

    monkeypatch.setattr(_triton_ops, "bsr_dense_addmm", product)
    x = torch.randn(2, 16, 4, 6)
    weight = torch.randn(32, 16, 3, 3)
    weight[:16, :, 1, 2] = 0.0
    made = block_sparse(x, weight, Interpreter(), 2, 16, im2col=True)
    assert made.details["blocks"] == 2 * 9 - 1
    torch.testing.assert_close(made.output(), F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-4)


def test_dense_kernel_is_the_convolution() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    import torch
    import torch.nn.functional as F
    from gpu.layer_ours import Buffers, make_kernel
    from gpu.problems import Problem

    problem = Problem(8, 5, 3, 0.0, "dense")
    x = torch.randn(3, 8, 5, 5)
    buffers = Buffers(problem, x, torch.float32)
    kernel = make_kernel("cudnn", problem, problem.conv(), buffers)
    kernel.call(kernel.candidates[0], 0)()
    weight = torch.from_numpy(problem.conv().weight.to_dense().reshape(8, 8, 3, 3).copy())
    wanted = F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(buffers.output(), wanted, rtol=1e-4, atol=1e-4)


def test_prebuild_runs_every_task_and_outlives_those_that_fail(tmp_path: Path) -> None:
    from gpu.budget import Budget
    from gpu.prebuild import prebuild

    tasks = [("os", "mkdir", (str(tmp_path / name),)) for name in ("a", "missing/b", "c")]
    tasks.insert(1, ("os", "kill", (0,)))
    prebuild(tasks, Budget.minutes(10.0), processes=1, limit=60.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
    begun = time.monotonic()
    prebuild([("time", "sleep", (60,))], Budget.minutes(10.0), processes=1, limit=0.5)
    assert time.monotonic() - begun < 20.0


def test_limits_are_compiled_to_what_they_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_aot import Kernel, compile_kernels

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(BENCHMARKS), str(ROOT)]))
    read, arithmetic = compile_kernels(
        Kernel(
            module="gpu.ceilings",
            name="_read",
            signature={"x": "*fp32", "out": "*fp32", "blocks": "i32", "turns": "i32"},
            constants={"BLOCK": 4096},
            divisible=("x", "out"),
            warps=8,
        ),
        Kernel(
            module="gpu.ceilings",
            name="_multiply_add",
            signature={"x": "*fp32", "out": "*fp32", "turns": "i32"},
            constants={"BLOCK": 1024},
            divisible=("x", "out"),
        ),
    )
    assert "LDG.E.128" in read.sass
    assert ".cg" in read.ptx
    assert arithmetic.sass.count("FFMA") >= 8
    assert read.spills == arithmetic.spills == 0


def test_kernels_of_a_step_are_compiled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from gpu.steps import build
    from gpu.tickets import program_of, settings

    from sparse_ddpm.engine.cuda import launches

    ticket = settings(True).tickets[0]
    ran: list[str] = []
    make = launches.Launches.__init__

    def counted(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        for name in self.steps:
            self.steps[name] = [lambda name=name: ran.append(name)]

    monkeypatch.setattr(launches.Launches, "__init__", counted)
    for part in range(2):
        build([(ticket, 3, "float32", False)], part, 2)
    assert len(ran) == len(set(ran))
    assert program_of(ticket).output in ran


class FakeGraph:
    """What was called between begin and end is called again by a replay."""

    recording: ClassVar[list[FakeGraph]] = []

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.captured = False

    def capture_begin(self) -> None:
        FakeGraph.recording.append(self)

    def capture_end(self) -> None:
        FakeGraph.recording.pop()
        self.captured = True

    def replay(self) -> None:
        for call in self.calls:
            call()


class FakeEvent:
    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1e3 * (other.at - self.at)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `Gpu` whose graphs and events are fakes, and a kernel of so many seconds."""
    torch = pytest.importorskip("torch")
    from gpu.devices import Gpu

    fakes = {
        "CUDAGraph": FakeGraph,
        "Event": FakeEvent,
        "Stream": object,
        "stream": lambda _: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "set_device": lambda _: None,
        "_sleep": lambda _: None,
        "get_device_properties": lambda _: type("Properties", (), {"L2_cache_size": 1000}),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return Gpu()


def kernel(seconds: float, log: list[object], name: object = None) -> Callable[[], object]:
    def run() -> None:
        FakeEvent.now += seconds
        log.append(name)

    def call() -> object:
        if FakeGraph.recording:
            FakeGraph.recording[-1].calls.append(run)
        else:
            run()
        return object()

    return call


def test_a_time_is_that_of_one_call(gpu: Any) -> None:
    log: list[object] = []
    timing = gpu.time([kernel(1e-5, log)])
    assert timing.median == pytest.approx(1e-5)
    assert timing.calls == 50
    assert timing.measured
    assert gpu.time([kernel(1e-2, log)]).calls == 4


def test_calls_rotate(gpu: Any) -> None:
    log: list[object] = []
    recording = gpu.prepare([kernel(1e-3, log, name) for name in "abc"])
    assert recording.calls == 6
    log.clear()
    recording.replay()
    assert log == list("abcabc")
    assert gpu.sets(400) == 5
    assert gpu.sets(10**6) == 2


def test_several_are_timed_in_turns(gpu: Any) -> None:
    log: list[object] = []
    recordings = [gpu.record([kernel(seconds, log, seconds)]) for seconds in (1e-3, 3e-3)]
    log.clear()
    fast, slow = gpu.play(recordings, samples=10, burst=6e-3)
    assert fast.median == pytest.approx(1e-3)
    assert slow.median == pytest.approx(3e-3)
    first = log.index(3e-3, 4)
    assert 1e-3 in log[first:]
    assert log.count(1e-3) == 2 + 10 * 6
    assert log.count(3e-3) == 2 + 10 * 2


def test_a_capture_that_fails_is_ended(gpu: Any) -> None:
    def broken() -> None:
        if FakeGraph.recording:
            raise ValueError("not in a capture")

    with pytest.raises(ValueError, match="not in a capture"):
        gpu.record([broken])
    assert not FakeGraph.recording
