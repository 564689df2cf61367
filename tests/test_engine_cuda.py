"""The GPU engine on whole U-Nets: on a GPU, or in Triton's interpreter against float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparse_ddpm.engine import DeviceSampler
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.errors import EngineError
from sparse_ddpm.formats import CSR, Dense
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Attention, Conv, NormAct, Program, TimeEmbedding
from sparse_ddpm.sampling import make_table, sample_loop
from sparse_ddpm.ticket import UNetConfig, load_ticket, save_ticket, synthetic_ticket

TIMESTEPS = np.array([0, 30, 999])
BLOCK = UNetConfig(dim=16, dim_mults=(1,), channels=3, image_size=4, heads=1, dim_head=16)
TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=3, image_size=4, groups=4, heads=2, dim_head=8)


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_POISON", "1")


@pytest.fixture(scope="module")
def program(triton_device: Any) -> Program:
    return lower(synthetic_ticket(TINY, 0.8, "vector:4"))


def tolerance(dtype: str) -> float:
    return {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}[dtype]


def dtypes(triton_dtypes: Any) -> list[str]:
    return [str(dtype).removeprefix("torch.") for dtype in triton_dtypes]


def images(batch: int, size: int = 4, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, 3, size, size), dtype=np.float32)


def relative(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean((got - wanted) ** 2)) / np.sqrt(np.mean(wanted**2)))


@pytest.mark.parametrize("kernel", ["elements", "panels:64", "panels:128", None])
def test_every_kernel_makes_the_reference_s_output(
    program: Program, triton_dtypes: Any, kernel: str | None
) -> None:
    from sparse_ddpm.engine.cuda import CudaEngine

    x = images(3)
    reference = ReferenceEngine(program, 3)
    reference.set_schedule(TIMESTEPS)
    for dtype in dtypes(triton_dtypes):
        with CudaEngine(program, 3, dtype, kernel=kernel) as engine:
            engine.set_schedule(TIMESTEPS)
            assert relative(engine.run(x, 2), reference.run(x, 2)) < tolerance(dtype)


def test_every_value_agrees_with_the_reference(program: Program, triton_dtypes: Any) -> None:
    from sparse_ddpm.engine.cuda import CudaEngine

    x = images(1)
    reference = ReferenceEngine(program, 1)
    reference.set_schedule(TIMESTEPS)
    wanted = reference.trace(x, 1)
    for dtype in dtypes(triton_dtypes):
        with CudaEngine(program, 1, dtype, kernel="panels:16") as engine:
            engine.set_schedule(TIMESTEPS)
            got = engine.trace(x, 1)
            assert got.keys() == wanted.keys()
            errors = {name: relative(got[name], wanted[name]) for name in wanted}
            worst = max(errors.items(), key=lambda item: item[1])
            assert worst[1] < tolerance(dtype), worst


def test_linear_attention_runs_as_one(triton_dtypes: Any) -> None:
    from sparse_ddpm.engine.cuda import CudaEngine

    program = lower(synthetic_ticket(BLOCK, 0.5, "element"))
    x = images(2)
    reference = ReferenceEngine(program, 2)
    reference.set_schedule(TIMESTEPS)
    for dtype in dtypes(triton_dtypes):
        with CudaEngine(program, 2, dtype) as engine:
            assert [step for step in engine.plan.steps if step.block is not None]
            engine.set_schedule(TIMESTEPS)
            assert relative(engine.run(x, 1), reference.run(x, 1)) < tolerance(dtype)


@pytest.mark.parametrize("kernel", ["elements", "panels:16", "cudnn"])
def test_time_changes_biases(triton_dtypes: Any, kernel: str) -> None:
    from sparse_ddpm.engine.cuda import CudaEngine

    program = time_in_biases(3, 8)
    x = images(2)
    reference = ReferenceEngine(program, 2)
    reference.set_schedule(TIMESTEPS)
    for dtype in dtypes(triton_dtypes):
        with CudaEngine(program, 2, dtype, kernel=kernel) as engine:
            engine.set_schedule(TIMESTEPS[:1])
            engine.run(x, 0)
            engine.set_schedule(TIMESTEPS)
            for step in (2, 0, 1):
                wanted = reference.run(x, step)
                assert relative(engine.run(x, step), wanted) < tolerance(dtype)


def test_attention_of_heads_too_wide_for_the_kernel(triton_dtypes: Any) -> None:
    from sparse_ddpm.engine.cuda import CudaEngine

    rng = np.random.default_rng(4)
    weight = rng.standard_normal((3 * 2 * 160, 3), dtype=np.float32)
    qkv, mix = Conv("qkv", "x", Dense(weight), 1), Attention("mix", "qkv", 2, 160)
    program = Program((qkv, mix), "x", (3, 3, 2), "mix", time_in_biases(3, 2).time)
    x = rng.standard_normal((2, 3, 3, 2), dtype=np.float32)
    reference = ReferenceEngine(program, 2)
    reference.set_schedule(TIMESTEPS)
    for dtype in dtypes(triton_dtypes):
        with CudaEngine(program, 2, dtype, kernel="cudnn") as engine:
            assert engine.plan.steps[-1].kernel == "attention, torch"
            engine.set_schedule(TIMESTEPS)
            assert relative(engine.run(x, 0), reference.run(x, 0)) < tolerance(dtype)


def time_in_biases(channels: int, inner: int) -> Program:
    """Two convolutions whose bias time changes, a norm after the first."""
    rng = np.random.default_rng(3)

    def random(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    sparse = random(inner, channels * 9) * (rng.random((inner, channels * 9)) < 0.3)
    operations = (
        Conv("a", "x", CSR.from_dense(sparse), 3, random(inner), film=5),
        NormAct("b", "a", 2, random(inner), random(inner)),
        Conv("c", "b", Dense(random(channels, inner)), 1, residual="x", film=0),
    )
    columns = inner + 5
    time = TimeEmbedding(
        4, random(8, 4), random(8), random(8, 8), random(8), Dense(random(columns, 8)),
        random(columns),
    )  # fmt: skip
    return Program(operations, "x", (channels, 4, 4), "c", time)


def test_images_do_not_depend_on_the_batch(program: Program, triton_dtypes: Any) -> None:
    from sparse_ddpm.engine.cuda import CudaEngine

    x = images(9)
    outputs = []
    dtype = dtypes(triton_dtypes)[0]
    for part in (x, x[4:5]):
        with CudaEngine(program, len(part), dtype, kernel="cudnn") as engine:
            engine.set_schedule(TIMESTEPS)
            outputs.append(engine.run(part, 0))
    assert relative(outputs[0][4:5], outputs[1]) < tolerance(dtype)


def test_a_new_schedule_takes_effect(program: Program, triton_dtypes: Any) -> None:
    from sparse_ddpm.engine.cuda import CudaEngine

    dtype = dtypes(triton_dtypes)[0]
    x = images(1)
    with CudaEngine(program, 1, dtype, kernel="cudnn") as engine:
        with pytest.raises(EngineError, match="set_schedule"):
            engine.run(x, 0)
        engine.set_schedule(np.array([999]))
        first = engine.run(x, 0)
        engine.set_schedule(TIMESTEPS)
        assert not np.array_equal(engine.run(x, 0), first)
        assert np.array_equal(engine.run(x, 2), first)
        with pytest.raises(EngineError, match="step: expected 0 to 2, got 3"):
            engine.run(x, 3)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_images_are_those_of_the_sampling_loop(
    program: Program, triton_dtypes: Any, sampler: str
) -> None:
    from sparse_ddpm.engine.cuda import CudaEngine

    ticket = synthetic_ticket(TINY, 0.8, "vector:4")
    table = make_table(ticket.diffusion, sampler=sampler, steps=3)
    reference = ReferenceEngine(program, 2)
    reference.set_schedule(table.timesteps)
    indices = np.array([5, 2**40])
    shape = program.input_shape
    wanted = sample_loop(reference.run, table, seed=7, image_indices=indices, shape=shape)
    dtype = dtypes(triton_dtypes)[0]
    with CudaEngine(program, 2, dtype, kernel="cudnn") as engine:
        assert isinstance(engine, DeviceSampler)
        engine.set_schedule(table.timesteps)
        seen: list[int] = []
        got = engine.sample(
            table.coefficients,
            clip=table.clip,
            seed=7,
            image_indices=indices,
            progress=seen.append,
        )
    assert seen == [0, 1, 2]
    assert np.abs(got - wanted).max() < {"float32": 1e-4, "float16": 5e-2}[dtype]


@pytest.mark.usefixtures("triton_device")
def test_the_api_draws_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_ddpm.api import Sampler

    ticket = synthetic_ticket(TINY, 0.0, "element")
    with Sampler(ticket, device="cuda", dtype="float32") as sampler:
        assert sampler.batch_size == 256
        engine = sampler.engine(1)
        monkeypatch.setattr(engine, "run", None)
        one = sampler.sample(1, steps=1)
    with Sampler(ticket, device="numpy") as sampler:
        other = sampler.sample(1, steps=1)
    assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_output_that_is_not_finite_is_an_error(program: Program, triton_dtypes: Any) -> None:
    from sparse_ddpm.engine.cuda import CudaEngine

    table = np.zeros((3, 7))
    table[:, 2] = np.inf  # r: the state of step 1
    table[:, 0] = 1.0
    with CudaEngine(program, 1, dtypes(triton_dtypes)[0], kernel="cudnn") as engine:
        engine.set_schedule(TIMESTEPS)
        with pytest.raises(EngineError, match="network output in step 1: expected finite"):
            engine.sample(table, clip=False, seed=0, image_indices=np.array([0]))
        with pytest.raises(EngineError, match=r"coefficients: expected \(3, 7\)"):
            engine.sample(table[:2], clip=False, seed=0, image_indices=np.array([0]))


def test_the_commands_check_and_time_it(
    triton_dtypes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparse_ddpm.bench.engines import Job
    from sparse_ddpm.bench.ours import build
    from sparse_ddpm.cli.main import main

    path = tmp_path / "ticket.pt"
    save_ticket(synthetic_ticket(BLOCK, 0.0, "element"), path)
    dtype = dtypes(triton_dtypes)[0]
    where = ["--device", "cuda", "--dtype", dtype]
    assert main(["verify", str(path), *where, "--steps", "1", "--oracle", "numpy"]) == 0
    assert "passed" in capsys.readouterr().out
    x = images(2)
    runner = build(Job(str(path), 2, 1, "cuda", (999.0, 0.0)), dtype)
    runner.load(x)
    reference = ReferenceEngine(lower(load_ticket(path)), 2)
    reference.set_schedule(np.array([999.0, 0.0]))
    assert relative(runner.array(runner.step(1)), reference.run(x, 1)) < tolerance(dtype)
    assert runner.details["device_bytes"] > runner.details["arena_bytes"]


def test_what_is_tuned_is_used(
    program: Program, triton_dtypes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparse_ddpm.cli.main import main
    from sparse_ddpm.engine.cuda import CudaEngine
    from sparse_ddpm.engine.cuda.engine import gpu_name
    from sparse_ddpm.engine.cuda.tune import tune
    from sparse_ddpm.engine.cuda.tuned import Tuned

    dtype = dtypes(triton_dtypes)[0]
    triton = pytest.importorskip("triton")
    table = Tuned(gpu_name(), triton.__version__)
    told: list[tuple[int, int, str]] = []
    found = tune(program, 1, dtype, table, kinds=1, tiles=1, progress=lambda *now: told.append(now))
    assert found == len(table.layers) == told[-1][0] == told[-1][1]
    assert tune(program, 1, dtype, table) == 0
    for key, layer in table.layers.items():
        assert {"cudnn"} < layer.times.keys(), key
        table.layers[key] = replace(layer, times={k: float(k == "cudnn") for k in layer.times})
    x = images(1)
    reference = ReferenceEngine(program, 1)
    reference.set_schedule(TIMESTEPS)
    with CudaEngine(program, 1, dtype, tuned=table) as engine:
        kinds = {step.conv.choice.kind for step in engine.plan.steps if step.conv is not None}
        assert "cudnn" not in kinds
        engine.set_schedule(TIMESTEPS)
        assert relative(engine.run(x, 2), reference.run(x, 2)) < tolerance(dtype)
    monkeypatch.setenv("SPARSE_DDPM_TUNED", str(tmp_path))
    table.save()
    save_ticket(synthetic_ticket(TINY, 0.8, "vector:4"), tmp_path / "ticket.pt")
    assert main(["tune", str(tmp_path / "ticket.pt"), "--batch", "1", "--dtype", dtype]) == 0


def test_halos_stay_zero(program: Program, triton_dtypes: Any) -> None:
    from sparse_ddpm.engine.cuda import CudaEngine

    with CudaEngine(program, 2, dtypes(triton_dtypes)[0], kernel="panels:32") as engine:
        engine.set_schedule(TIMESTEPS)
        engine.run(images(2), 0)
        launches = engine._launches
        for layout, storage in zip(engine.plan.memory.buffers, launches.storage, strict=True):
            layout.view(storage).zero_()
            assert not storage.any(), layout


def test_what_the_interpreter_gets_wrong_is_refused(program: Program, triton_device: Any) -> None:
    if triton_device.type != "cpu":
        pytest.skip("a GPU is at hand")
    from sparse_ddpm.engine.cuda import CudaEngine

    with pytest.raises(EngineError, match="dtype in Triton's interpreter: expected float32"):
        CudaEngine(program, 1, "bfloat16")
