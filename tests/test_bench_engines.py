"""The engines that bench compares: their names, and that each computes the same function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparse_ddpm.accounting import account
from sparse_ddpm.bench.engines import PEERS, EngineSpec, Job, ours, select_peers
from sparse_ddpm.bench.measure import relative_rms
from sparse_ddpm.bench.source import folded_table, program_of
from sparse_ddpm.engine.plan import DTYPES
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.errors import ConfigError
from sparse_ddpm.program import NormAct
from sparse_ddpm.ticket import UNetConfig, save_ticket, synthetic_ticket

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=2, image_size=8, groups=4, heads=2, dim_head=4)
TIMES = (900.0, 500.0, 0.0)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    path = tmp_path_factory.mktemp("bench") / "ticket.safetensors"
    save_ticket(synthetic_ticket(TINY, 0.7, seed=2), path)
    return Job(str(path), 3, 1, "cpu", TIMES)


@pytest.fixture(scope="module")
def x(job: Job) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((job.batch, 2, 8, 8), dtype=np.float32)


def agrees(runner: Any, job: Job, x: NDArray[np.float32], tolerance: float) -> None:
    """At every timestep, and not merely because the timesteps do not matter."""
    engine = ReferenceEngine(program_of(job), batch=job.batch)
    engine.set_schedule(np.array(job.timesteps))
    runner.load(x)
    wanted = [engine.run(x, step) for step in range(len(job.timesteps))]
    assert relative_rms(wanted[0], wanted[1]) > 5 * tolerance
    for step, output in enumerate(wanted):
        got = runner.array(runner.step(step))
        assert got.shape == output.shape
        assert got.dtype == np.float32
        assert relative_rms(got, output) < tolerance


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-5), ("autocast", 4e-2), ("whole", 4e-2)]
)
def test_torch(job: Job, x: NDArray[np.float32], precision: str, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    from sparse_ddpm.bench import torch_peer

    threads = torch.get_num_threads()
    try:
        agrees(torch_peer.build(job, precision=precision), job, x, tolerance)
    finally:
        torch.set_num_threads(threads)


def test_onnxruntime(job: Job, x: NDArray[np.float32]) -> None:
    pytest.importorskip("onnxruntime")
    from sparse_ddpm.bench import onnx_peers

    agrees(onnx_peers.build_ort(job), job, x, 1e-5)


def test_openvino(job: Job, x: NDArray[np.float32]) -> None:
    pytest.importorskip("openvino")
    from sparse_ddpm.bench import onnx_peers

    runner = onnx_peers.build_openvino(job)
    assert "f32" in runner.description
    agrees(runner, job, x, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ours(job: Job, x: NDArray[np.float32], dtype: str) -> None:
    from sparse_ddpm.bench.ours import build

    reason = ours(dtype).missing()
    if reason is not None:
        pytest.skip(reason)
    runner = build(job, dtype)
    assert runner.details["arena_bytes"] > 0
    agrees(runner, job, x, ours(dtype).tolerance)


def test_ours_with_every_weight_stored(job: Job, x: NDArray[np.float32]) -> None:
    from sparse_ddpm.bench.ours import build

    spec = ours("float32", dense=True)
    assert (spec.own, spec.label) == (True, "sparse-ddpm-dense float32")
    runner = build(job, **spec.options)
    agrees(runner, job, x, spec.tolerance)
    weights = [row for row in account(runner.engine.plan) if row.density is not None]
    assert {row.density for row in weights} == {1.0}
    assert len(weights) > 5


def test_folded_table_has_a_factor_and_a_summand_for_each_modulated_channel(job: Job) -> None:
    program = program_of(job)
    norms = [op for op in program.operations if isinstance(op, NormAct) and op.film is not None]
    table = folded_table(program, job.timesteps)
    assert table.shape == (len(TIMES), sum(2 * len(op.gamma) for op in norms))
    op, column = norms[1], 2 * len(norms[0].gamma)
    film = program.time.table(np.array(TIMES))
    channels = len(op.gamma)
    assert op.film is not None
    scale = film[:, op.film : op.film + channels] + 1.0
    np.testing.assert_allclose(table[:, column : column + channels], scale * op.gamma, rtol=1e-6)
    shift = scale * op.beta + film[:, op.film + channels : op.film + 2 * channels]
    np.testing.assert_allclose(
        table[:, column + channels : column + 2 * channels], shift, rtol=1e-5, atol=1e-6
    )


def test_on_a_gpu_torch_alone_is_a_peer() -> None:
    by_name = {spec.name: spec for spec in select_peers(["all"], "cuda")}
    assert by_name["openvino"].missing() == "runs on the CPU, not on a GPU"
    assert by_name["torch"].missing() is None
    mine = ours("bfloat16", "cuda")
    assert mine.missing() is None
    assert mine.tolerance > ours("bfloat16").tolerance


def test_peers_by_name() -> None:
    assert select_peers(["all"]) == tuple(PEERS.values())
    assert select_peers(["none"]) == ()
    names = [spec.name for spec in select_peers(["torch,openvino", "torch", "onnxruntime"])]
    assert names == ["torch", "openvino", "onnxruntime"]


@pytest.mark.parametrize("words", [["tensorrt"], ["all", "torch"], ["none,torch"]])
def test_unknown_peer(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"peers: expected all, none, or names among torch, "):
        select_peers(words)


def test_unknown_dtype() -> None:
    with pytest.raises(ConfigError, match=r"dtype: expected one of float32, .*, got 'int8'\."):
        ours("int8")


def test_missing_package_is_named_with_the_remedy() -> None:
    spec = EngineSpec("x", "float32", "ours:build", ("numpy", "no_such_package"))
    assert spec.missing() == 'no_such_package not installed: pip install ".[peers]"'
    assert ours("float32").missing() is None


def test_the_errors_that_ours_may_have() -> None:
    limits = {dtype: ours(dtype).tolerance for dtype in ("float32", "float16", "bfloat16")}
    assert limits == {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2}


def test_relative_rms() -> None:
    wanted = np.array([3.0, 4.0])
    assert relative_rms(wanted, wanted) == 0.0
    assert relative_rms(1.1 * wanted, wanted) == pytest.approx(0.1)
    assert relative_rms(np.array([np.nan, 4.0]), wanted) == float("inf")


def test_job_needs_a_ticket(tmp_path: Path) -> None:
    from sparse_ddpm.errors import TicketError

    with pytest.raises(TicketError):
        program_of(Job(str(tmp_path / "none.pt"), 1, 1, "cpu", TIMES))
