"""The C++ engine on whole U-Nets: invariances, life cycle, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from engine_rig import isas
from numpy.typing import NDArray
from sparse_ddpm_kernels import ISAS

from sparse_ddpm.engine import make_engine
from sparse_ddpm.engine.cpu import CpuEngine, default_threads
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.errors import EngineError
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Concat, NormAct, Program
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket

TIMESTEPS = np.array([0, 30, 999])
TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=3, image_size=8, groups=4, heads=2, dim_head=8)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_POISON", "1")


@pytest.fixture(scope="module", params=["element", "vector:4", "block:4x2"])
def program(request: pytest.FixtureRequest) -> Program:
    return lower(synthetic_ticket(TINY, 0.8, request.param))


def images(batch: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((batch, 3, 8, 8), dtype=np.float32)


def run(
    program: Program, x: NDArray[np.float32], threads: int = 1, step: int = 1
) -> NDArray[np.float32]:
    with CpuEngine(program, len(x), threads) as engine:
        engine.set_schedule(TIMESTEPS)
        return engine.run(x, step)


def relative(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_every_value_agrees_with_the_reference(
    program: Program, isa: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_DDPM_ISA", isa)
    x = images(batch)
    reference = ReferenceEngine(program, batch)
    reference.set_schedule(TIMESTEPS)
    with CpuEngine(program, batch, 2) as engine:
        assert isa in engine.description
        engine.set_schedule(TIMESTEPS)
        for step in (0, 2):
            wanted = reference.trace(x, step)
            got = engine.trace(x, step)
            assert got.keys() == wanted.keys()
            errors = {name: relative(got[name], wanted[name]) for name in wanted}
            assert max(errors.values()) < 5e-6, max(errors.items(), key=lambda item: item[1])
            assert relative(engine.run(x, step), wanted[program.output]) < 5e-6


def test_memory_reuse_changes_nothing(program: Program) -> None:
    x = images(5)
    with (
        CpuEngine(program, 5, 2) as reusing,
        CpuEngine(program, 5, 2, keep_all=True) as keeping,
    ):
        assert reusing.plan.arena_bytes < keeping.plan.arena_bytes
        for engine in (reusing, keeping):
            engine.set_schedule(TIMESTEPS)
        # Linear attention is not fused where every value is kept: other roundings.
        assert relative(reusing.run(x, 2), keeping.run(x, 2)) < 2e-6


def test_repeated_runs_are_identical(program: Program) -> None:
    x, other = images(4), images(4, seed=1)
    with CpuEngine(program, 4, 2) as engine:
        engine.set_schedule(TIMESTEPS)
        first = engine.run(x, 1)
        assert not np.array_equal(engine.run(other, 0), first)
        for _ in range(20):
            assert np.array_equal(engine.run(x, 1), first)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_nothing(program: Program, threads: int) -> None:
    for batch in (1, 16):
        x = images(batch)
        assert np.array_equal(run(program, x, threads), run(program, x, 1))


def test_an_image_is_the_same_in_every_batch(program: Program) -> None:
    x = images(33)
    alone = np.concatenate([run(program, x[i : i + 1]) for i in range(0, 33, 8)])
    for batch in (7, 16, 17, 33):
        picked = range(0, batch, 8)
        assert relative(run(program, x[:batch])[picked], alone[: len(picked)]) < 2e-6


def test_instruction_sets_agree(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    for batch in (1, 16):
        outputs = []
        for isa in isas():
            monkeypatch.setenv("SPARSE_DDPM_ISA", isa)
            outputs.append(run(program, images(batch)))
        assert all(relative(output, outputs[0]) < 2e-6 for output in outputs)


def test_time_is_rows_of_the_schedule(program: Program) -> None:
    x = images(2)
    outputs = [run(program, x, step=step) for step in range(3)]
    assert not np.array_equal(outputs[0], outputs[2])
    with CpuEngine(program, 2, 1) as engine:
        engine.set_schedule(np.arange(200)[::-1])
        assert np.array_equal(engine.run(x, 169), outputs[1])


def test_program_without_film_needs_no_table() -> None:
    whole = lower(synthetic_ticket(TINY, 0.5))
    norm = next(op for op in whole.operations if isinstance(op, NormAct) and op.film is None)
    shape = whole.shapes[norm.x]
    program = Program(
        (NormAct("y", "x", norm.groups, norm.gamma, norm.beta),), "x", shape, "y", whole.time
    )
    x = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    reference = ReferenceEngine(program, 2)
    reference.set_schedule(TIMESTEPS)
    assert relative(run(program, x), reference.run(x, 1)) < 2e-6


def test_program_that_returns_its_input() -> None:
    time = lower(synthetic_ticket(TINY, 0.5)).time
    program = Program((), "x", (3, 8, 8), "x", time)
    assert np.array_equal(run(program, images(3)), images(3))


def test_input_may_be_any_view(program: Program) -> None:
    x = images(2)
    strided = np.asfortranarray(x)
    assert np.array_equal(run(program, strided), run(program, x))


def test_the_input_is_left_alone(program: Program) -> None:
    x = images(2)
    before = x.copy()
    x.setflags(write=False)
    run(program, x)
    assert np.array_equal(x, before)


def test_trace_takes_the_new_schedule(program: Program) -> None:
    x = images(1)
    with CpuEngine(program, 1, 1) as engine:
        engine.set_schedule(np.array([5]))
        first = engine.trace(x, 0)[program.output]
        engine.set_schedule(np.array([900]))
        second = engine.trace(x, 0)[program.output]
        # A trace keeps the values that a step fuses away: other roundings.
        assert relative(second, engine.run(x, 0)) < 2e-6
    assert relative(first, second) > 1e-3


def test_two_callers_take_turns(program: Program) -> None:
    inputs = [images(2, seed) for seed in range(4)]
    wanted = [run(program, x) for x in inputs]
    with CpuEngine(program, 2, 2) as engine:
        engine.set_schedule(TIMESTEPS)
        bad: list[int] = []

        def call(index: int) -> None:
            for _ in range(20):
                if not np.array_equal(engine.run(inputs[index], 1), wanted[index]):
                    bad.append(index)

        callers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert not bad


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_runs_alone() -> None:
    """In a process of its own: a hang must not take the test run with it."""
    code = """
import os, numpy as np
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.lower import lower
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket
config = UNetConfig(dim=8, dim_mults=(1, 2), channels=3, image_size=8, groups=4)
engine = CpuEngine(lower(synthetic_ticket(config, 0.8)), 4, 3)
engine.set_schedule(np.arange(3))
x = np.ones((4, 3, 8, 8), np.float32)
wanted = engine.run(x, 1)
child = os.fork()
if child == 0:
    same = np.array_equal(engine.run(x, 1), wanted)
    engine.close()
    os._exit(0 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(engine.run(x, 1), wanted)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_profile_times_every_operation(program: Program) -> None:
    with CpuEngine(program, 2, 2, profile=True) as engine:
        engine.set_schedule(TIMESTEPS)
        engine.run(images(2), 0)
        timings = engine.timings()
        made = [s.operation.out for s in engine.plan.steps if not isinstance(s.operation, Concat)]
    assert [name for name, _ in timings] == [program.input, *made, "output"]
    assert all(seconds >= 0 for _, seconds in timings)
    assert sum(seconds for _, seconds in timings) > 0


def test_a_closed_engine_says_so(program: Program) -> None:
    engine = CpuEngine(program, 1, 2)
    engine.set_schedule(TIMESTEPS)
    engine.trace(images(1), 0)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="open engine"):
        engine.run(images(1), 0)


def test_make_engine_makes_it(program: Program) -> None:
    engine = make_engine(program, "cpu", batch=2, threads=1)
    assert isinstance(engine, CpuEngine)
    assert engine.description.startswith("cpu ")
    engine.close()


def test_default_threads_follow_the_affinity(program: Program) -> None:
    with CpuEngine(program, 1) as engine:
        assert engine.threads == default_threads() >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch: expected an integer from 1"),
        ({"batch": 2.0}, "batch: expected an integer"),
        ({"threads": 0}, "threads: expected 1 to"),
        ({"threads": True}, "threads: expected"),
        ({"dtype": "float64"}, "dtype of the cpu engine: expected one of float32, "),
        ({"group": 3}, "group: expected one of 1, 2, 4, 8, 16, got 3"),
    ],
)
def test_unusable_arguments(program: Program, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        CpuEngine(program, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "step", "message"),
    [
        (np.zeros((2, 3, 8, 8), np.float64), 0, "float32 \\(2, 3, 8, 8\\), got float64"),
        (np.zeros((1, 3, 8, 8), np.float32), 0, "got float32 \\(1, 3, 8, 8\\)"),
        (np.zeros((2, 8, 8, 3), np.float32), 0, "engine input"),
        ([[1.0]], 0, "got list"),
        (np.zeros((2, 3, 8, 8), np.float32), 3, "step: expected 0 to 2, got 3"),
        (np.zeros((2, 3, 8, 8), np.float32), -1, "step: expected 0 to 2, got -1"),
    ],
)
def test_unusable_inputs(program: Program, x: object, step: int, message: str) -> None:
    with CpuEngine(program, 2, 1) as engine:
        engine.set_schedule(TIMESTEPS)
        with pytest.raises(EngineError, match=message):
            engine.run(x, step)  # type: ignore[arg-type]


def test_a_step_before_the_schedule(program: Program) -> None:
    with CpuEngine(program, 2, 1) as engine, pytest.raises(EngineError, match="set_schedule"):
        engine.run(images(2), 0)


def test_a_missing_library_names_the_remedy(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("SPARSE_DDPM_LIBRARY", f"{tmp_path}/none.so")
    with pytest.raises(EngineError, match=r"none.so.*install a C\+\+17 compiler.*device numpy"):
        CpuEngine(program)


@pytest.mark.parametrize("name", ["sse9", "AVX2", *(set(ISAS) - set(isas()))])
def test_an_unknown_instruction_set(
    program: Program, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_DDPM_ISA", name)
    message = f"SPARSE_DDPM_ISA: expected one of {', '.join(isas())}, got '{name}'"
    with pytest.raises(EngineError, match=message):
        CpuEngine(program)
