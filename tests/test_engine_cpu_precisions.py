"""The C++ engine in 16 bits, on every instruction set that has them: accuracy, range, refusals.

Memory is filled with NaN before each run, so that a value read before it is written shows. Errors
are RMS over RMS, beside float64.
"""

from __future__ import annotations

import numpy as np
import pytest
from engine_rig import isas, normal
from numpy.typing import NDArray

from sparse_ddpm import Sampler
from sparse_ddpm.engine import make_engine
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.plan import DTYPES
from sparse_ddpm.engine.precision import available_dtypes, lacking
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.errors import EngineError
from sparse_ddpm.formats import CSR, Dense
from sparse_ddpm.lower import lower
from sparse_ddpm.program import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    Operation,
    Program,
    SpaceToDepth,
    TimeEmbedding,
    Upsample2x,
)
from sparse_ddpm.program.program import Shape
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket

TIMESTEPS = np.array([0, 500, 999])
LIMIT = 1e-2
"""Of a step's output."""
OPERATION_LIMITS = {"float16": 1e-3, "bfloat16": 5e-3}
"""Of one operation; measured: 6.7e-4 and 2.7e-3 at most."""
TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=3, image_size=8, groups=4, heads=2, dim_head=8)
# 12, 6 and 3 pixels a row; 5 and 20 channels a head and a level.
ODD = UNetConfig(
    dim=10, dim_mults=(1, 2, 2), channels=1, image_size=12, groups=5, heads=3, dim_head=5
)
TICKETS = [
    (TINY, 0.8, "element"),
    (TINY, 0.8, "vector:8"),
    (ODD, 0.0, "element"),
    (ODD, 0.7, "vector:16"),
]


CASES = [(isa, "float16") for isa in isas() if isa != "baseline"]
CASES += [(isa, "bfloat16") for isa in isas() if isa == "avx512"]


@pytest.fixture
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A precision; its instruction set is forced."""
    isa, dtype = request.param
    monkeypatch.setenv("SPARSE_DDPM_ISA", isa)
    monkeypatch.setenv("SPARSE_DDPM_POISON", "1")
    problem = lacking(dtype)
    if problem is not None:
        pytest.skip(problem)
    return str(dtype)


every_case = pytest.mark.parametrize("dtype", CASES, indirect=True, ids="-".join)


def program(shape: Shape, *operations: Operation) -> Program:
    time = TimeEmbedding(
        dim=4,
        weight1=normal(1, 8, 4),
        bias1=normal(2, 8),
        weight2=normal(3, 8, 8),
        bias2=normal(4, 8),
        film=Dense(normal(5, 0, 8)),
        film_bias=normal(6, 0),
    )
    return Program(operations, "x", shape, operations[-1].out, time)


def relative_rms(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    assert np.isfinite(got).all()
    difference = got.astype(np.float64) - wanted
    return float(np.sqrt(np.mean(np.square(difference)) / np.mean(np.square(wanted))))


def run(
    graph: Program,
    x: NDArray[np.float32],
    dtype: str,
    threads: int = 1,
    step: int = 1,
    group: int | None = None,
) -> NDArray[np.float32]:
    with CpuEngine(graph, len(x), threads, dtype, group=group) as engine:
        engine.set_schedule(TIMESTEPS)
        return engine.run(x, step)


@pytest.fixture(scope="module", params=TICKETS, ids=lambda t: f"{t[0].image_size}-{t[1]}-{t[2]}")
def network(request: pytest.FixtureRequest) -> tuple[Program, NDArray[np.float32], list[object]]:
    """A U-Net, an input of 17 images, and its outputs at two steps."""
    config, sparsity, pattern = request.param
    graph = lower(synthetic_ticket(config, sparsity, pattern, seed=3))
    x = normal(4, 17, *graph.input_shape)
    reference = ReferenceEngine(graph, len(x))
    reference.set_schedule(TIMESTEPS)
    return graph, x, [reference.run(x, step) for step in (0, 2)]


@every_case
def test_whole_networks(
    network: tuple[Program, NDArray[np.float32], list[NDArray[np.float32]]], dtype: str
) -> None:
    """Measured at most: float16 1.0e-3, bfloat16 8.9e-3."""
    graph, x, outputs = network
    for batch in (1, 3, 16, 17):
        with CpuEngine(graph, batch, 1 + batch % 2, dtype) as engine:
            assert engine.description.endswith(f", {dtype}")
            engine.set_schedule(TIMESTEPS)
            for step, wanted in zip((0, 2), outputs, strict=True):
                error = relative_rms(engine.run(x[:batch], step), wanted[:batch])
                # More than float32's, or the precision asked for is not the one that runs.
                assert 1e-5 < error < LIMIT, (batch, step, error)


@every_case
def test_threads_and_repetition_change_nothing(dtype: str) -> None:
    graph = lower(synthetic_ticket(TINY, 0.8, "vector:8", seed=3))
    for batch in (1, 16):
        x = normal(5, batch, 3, 8, 8)
        alone = run(graph, x, dtype)
        with CpuEngine(graph, batch, 3, dtype) as engine:
            engine.set_schedule(TIMESTEPS)
            for _ in range(3):
                assert np.array_equal(engine.run(x, 1), alone)


@every_case
def test_every_value_is_traced_as_float32(dtype: str) -> None:
    graph = lower(synthetic_ticket(TINY, 0.8, "vector:8", seed=3))
    x = normal(5, 3, 3, 8, 8)
    reference = ReferenceEngine(graph, len(x))
    reference.set_schedule(TIMESTEPS)
    wanted = reference.trace(x, 1)
    with CpuEngine(graph, 3, 2, dtype) as engine:
        engine.set_schedule(TIMESTEPS)
        for name, value in engine.trace(x, 1).items():
            assert value.dtype == np.float32
            # Attention's mean of many pixels cancels: measured 1.3e-2 there in bfloat16.
            assert relative_rms(value, wanted[name]) < 5e-2, name


@every_case
@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_convolutions(dtype: str, group: int) -> None:
    """Odd numbers of entries and channels; rows without a weight; a bias and a residual."""
    for shape, size, rows in (
        ((5, 7, 5), 3, 19),
        ((3, 1, 1), 3, 8),
        ((6, 8, 8), 1, 16),
        ((2, 6, 16), 5, 3),
    ):
        columns = shape[0] * size * size
        mask = np.random.default_rng(8).random((rows, columns)) < 0.4
        mask[0] = False
        weight = CSR.from_dense(normal(9, rows, columns) * mask, mask)
        graph = program(
            shape,
            Conv("r", "x", CSR.from_dense(normal(7, rows, shape[0])), size=1),
            Conv("y", "x", weight, size=size, bias=normal(10, rows), residual="r"),
        )
        x = normal(11, 17, *shape)
        reference = ReferenceEngine(graph, len(x))
        reference.set_schedule(TIMESTEPS)
        wanted = reference.run(x, 1)
        for batch in (1, 3, 16, 17):
            got = run(graph, x[:batch], dtype, 1 + batch % 2, group=group)
            error = relative_rms(got, wanted[:batch])
            assert error < OPERATION_LIMITS[dtype], (shape, batch, error)


@every_case
def test_everything_that_is_no_convolution(dtype: str) -> None:
    def operations(channels: int) -> list[tuple[Operation, ...]]:
        gain = normal(1, channels)
        return [
            (NormAct("y", "x", 3, gain, normal(2, channels)),),
            (NormAct("y", "x", 1, gain, normal(2, channels), silu=False, residual="x"),),
            (ChannelNorm("y", "x", gain),),
            (ChannelNorm("y", "x", gain, residual="x"),),
            (Attention("y", "x", heads=2, dim_head=channels // 6),),
            (LinearAttention("y", "x", heads=2, dim_head=channels // 6),),
            (SpaceToDepth("y", "x"),),
            (Upsample2x("y", "x"),),
            (Concat("c", "x", "x"), Add("y", "c", "c")),
        ]

    for shape in ((12, 6, 4), (6, 2, 2), (18, 8, 16)):
        x = normal(7, 17, *shape)
        for parts in operations(shape[0]):
            graph = program(shape, *parts)
            reference = ReferenceEngine(graph, len(x))
            reference.set_schedule(TIMESTEPS)
            wanted = reference.run(x, 1)
            for batch in (1, 3, 17):
                error = relative_rms(run(graph, x[:batch], dtype, 2), wanted[:batch])
                assert error < OPERATION_LIMITS["float16"], (parts, shape, batch, error)


def identity(channels: int, factor: float = 1.0) -> Program:
    """Each channel times a factor: 1x1, one weight a row."""
    weight = CSR.from_dense(np.float32(factor) * np.eye(channels, dtype=np.float32))
    return program((channels, 3, 3), Conv("y", "x", weight, size=1))


@every_case
@pytest.mark.parametrize("batch", [1, 3, 16, 17])
def test_input_is_rounded_to_the_nearest_half(dtype: str, batch: int) -> None:
    special = [np.nan, np.inf, -np.inf, 65504, 65519, 65520, -65520, 1e6, -3e38, 2049, 2051]
    special += [-0.0, 6.1e-5, 6e-8, 3.1e-8, 2.9e-8, -1e-45, 0.1, -1 / 3]
    rng = np.random.default_rng(1)
    x = rng.choice(np.array(special, np.float32), (batch, 5, 3, 3))
    with np.errstate(over="ignore"):
        wanted = x.astype(np.float16).astype(np.float32)
    assert np.isinf(wanted).sum() > np.isinf(x).sum()
    np.testing.assert_array_equal(run(identity(5), x, dtype, group=1), wanted)


@every_case
@pytest.mark.parametrize("group", [1, 16])
def test_what_exceeds_a_half_becomes_infinity(dtype: str, group: int) -> None:
    x = np.where(normal(2, 3, 5, 3, 3) < 0, np.float32(-100), np.float32(100))
    np.testing.assert_array_equal(run(identity(5, 512), x, dtype, group=group), 512 * x)
    got = run(identity(5, 1000), x, dtype, group=group)
    np.testing.assert_array_equal(got, np.copysign(np.float32(np.inf), x))


@every_case
def test_not_a_number_stays_in_its_image(dtype: str) -> None:
    graph = lower(synthetic_ticket(TINY, 0.8, "vector:8", seed=3))
    for batch in (1, 3, 16, 17):
        x = normal(5, batch, 3, 8, 8)
        right = run(graph, x, dtype)
        bad = batch // 2
        for value in (np.nan, np.inf, 1e5):
            x[bad, 1, 4, 4] = value
            got = run(graph, x, dtype)
            others = np.arange(batch) != bad
            assert not np.isfinite(got[bad]).any(), value
            assert np.array_equal(got[others], right[others]), value


@every_case
def test_memory_is_half(dtype: str) -> None:
    graph = lower(synthetic_ticket(TINY, 0.8, seed=3))
    for batch in (1, 16):
        with CpuEngine(graph, batch, 1, dtype) as half, CpuEngine(graph, batch, 1) as whole:
            assert half.plan.arena_bytes < 0.7 * whole.plan.arena_bytes


@pytest.mark.parametrize("isa", isas())
def test_what_the_machine_lacks_is_refused(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_ISA", isa)
    graph = lower(synthetic_ticket(TINY, 0.8, seed=3))
    here = available_dtypes()
    assert here[0] == "float32"
    assert ("float16" in here) == (isa != "baseline")
    assert isa == "avx512" or "bfloat16" not in here
    for dtype in DTYPES:
        if dtype in here:
            CpuEngine(graph, 1, 1, dtype).close()
            continue
        message = (
            rf"^dtype {dtype}: expected .*, got {isa}.*\(forced by SPARSE_DDPM_ISA\); "
            rf"use dtype {' or '.join(here)}\.$"
        )
        with pytest.raises(EngineError, match=message):
            CpuEngine(graph, 1, 1, dtype)


def test_the_numpy_engine_has_one_precision() -> None:
    graph = lower(synthetic_ticket(TINY, 0.8, seed=3))
    assert make_engine(graph, "numpy", dtype="float32").batch == 1
    for dtype in ("float16", "bfloat16", "int8"):
        with pytest.raises(EngineError, match=f"numpy engine: expected float32.*got '{dtype}'"):
            make_engine(graph, "numpy", dtype=dtype)


def test_a_sampler_passes_its_precision_on() -> None:
    ticket = synthetic_ticket(TINY, 0.8, seed=3)
    for dtype in available_dtypes():
        with Sampler(ticket, threads=1, dtype=dtype) as sampler:
            assert sampler.engine(2).description.endswith(dtype) == (dtype != "float32")
    with (
        pytest.raises(EngineError, match="dtype of the cpu engine: expected one of"),
        Sampler(ticket, dtype="float8") as sampler,
    ):
        sampler.engine(1)
