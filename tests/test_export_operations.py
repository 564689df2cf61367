from __future__ import annotations

from typing import Any

import numpy as np
import pytest

REASON = "needs the onnx extra"
onnx = pytest.importorskip("onnx", reason=REASON)
ort = pytest.importorskip("onnxruntime", reason=REASON)

from sparse_ddpm_export import export_denoiser

from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.formats import BSR, CSR, Dense, Matrix
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

RNG = np.random.default_rng(0)
TOLERANCE = 1e-5


def random(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RNG.standard_normal(shape).astype(np.float32)


def sparse(rows: int, columns: int, density: float = 0.1) -> CSR:
    keep = RNG.random((rows, columns)) < density
    keep[rows // 2] = False
    return CSR.from_dense(random(rows, columns) * keep, keep)


def time_embedding(columns: int, dim: int = 6) -> TimeEmbedding:
    width = 4 * dim
    return TimeEmbedding(
        dim,
        random(width, dim),
        random(width),
        random(width, width),
        random(width),
        Dense(random(columns, width)),
        random(columns),
    )


def program(*operations: Operation, shape: tuple[int, int, int] = (8, 6, 4)) -> Program:
    return Program(operations, "x", shape, operations[-1].out, time_embedding(16))


def run_onnx(model: Any, x: Any, timesteps: Any) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(["model_output"], {"x": x, "t": np.asarray(timesteps, np.float32)})[0]


def run_reference(program: Program, x: Any, timesteps: Any) -> Any:
    """The float64 engine, image by image: each has a timestep of its own."""
    engine = ReferenceEngine(program)
    engine.set_schedule(np.asarray(timesteps))
    return np.concatenate(
        [engine.values(x[i : i + 1], i)[program.output] for i in range(len(timesteps))]
    )


def check(program: Program, timesteps: Any = (0.0, 999.0, 12.5)) -> None:
    model = export_denoiser(program)
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 3):
        x = random(batch, *program.input_shape)
        found = run_onnx(model, x, timesteps[:batch])
        wanted = run_reference(program, x, timesteps[:batch])
        assert found.dtype == np.float32
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


WEIGHTS: dict[str, tuple[Matrix, int]] = {
    "dense 1x1": (Dense(random(5, 8)), 1),
    "dense 7x7": (Dense(random(3, 8 * 49)), 7),
    "csr 3x3": (sparse(16, 8 * 9), 3),
    "csr 1x1": (sparse(48, 8), 1),
    "csr 5x5, one output": (CSR.from_dense(random(1, 8 * 25)), 5),
    "csr without weights": (CSR.from_dense(np.zeros((16, 8 * 9), np.float32)), 3),
    "vectors": (BSR.from_dense(sparse(13, 8 * 9, 0.02).to_dense(), (4, 1), 9), 3),
    "blocks": (BSR.from_dense(sparse(13, 8 * 9, 0.02).to_dense(), (4, 3), 9), 3),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("bias", [False, True])
def test_conv(name: str, bias: bool) -> None:
    weight, size = WEIGHTS[name]
    rows = weight.shape[0]
    if not bias and name == "csr without weights":
        bias_vector = np.full(rows, 1e-3, np.float32)
    else:
        bias_vector = random(rows) if bias else None
    check(program(Conv("y", "x", weight, size, bias_vector)))


@pytest.mark.parametrize("bias", [None, random(5)])
@pytest.mark.parametrize("residual", [None, "y"])
def test_conv_with_a_bias_that_time_moves(bias: Any, residual: str | None) -> None:
    first = Conv("y", "x", Dense(random(5, 72)), 3)
    check(program(first, Conv("z", "y", Dense(random(5, 5)), 1, bias, residual, film=9)))


def test_a_selection_is_a_gather() -> None:
    copy = Conv("y", "x", CSR.from_dense(np.eye(8)[[1, 4, 4, 7]]), 1)
    check(program(copy))
    operators = [node.op_type for node in export_denoiser(program(copy)).graph.node]
    assert "Gather" in operators
    assert "Conv" not in operators


@pytest.mark.parametrize("bias", [None, random(8)])
def test_a_sum_with_a_constant_is_no_convolution(bias: Any) -> None:
    none = Conv("y", "x", CSR.from_dense(np.zeros((8, 8), np.float32)), 1, bias, residual="x")
    check(program(none))
    assert "Conv" not in [node.op_type for node in export_denoiser(program(none)).graph.node]


@pytest.mark.parametrize("shape", [(8, 1, 1), (8, 1, 5), (1, 7, 7)])
def test_conv_on_odd_images(shape: tuple[int, int, int]) -> None:
    check(program(Conv("y", "x", sparse(17, shape[0] * 9, 0.4), 3, random(17)), shape=shape))


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("film", [None, 0])
@pytest.mark.parametrize("silu", [False, True])
def test_norm_act(groups: int, film: int | None, silu: bool) -> None:
    check(program(NormAct("y", "x", groups, random(8), random(8), film, silu)))


def test_norm_act_takes_its_own_columns_of_the_time_table() -> None:
    operation = NormAct("y", "x", 2, random(4), random(4), film=7)
    check(program(operation, shape=(4, 3, 3)))


def test_channel_norm() -> None:
    check(program(ChannelNorm("y", "x", random(8), eps=1e-3)))


def test_residuals() -> None:
    check(
        program(
            Conv("a", "x", sparse(8, 72), 3, random(8), residual="x"),
            NormAct("b", "a", 4, random(8), random(8), residual="x"),
            NormAct("c", "b", 4, random(8), random(8), film=0, silu=False, residual="a"),
            ChannelNorm("d", "c", random(8), residual="b"),
        )
    )


@pytest.mark.parametrize("kind", [Attention, LinearAttention])
@pytest.mark.parametrize(("heads", "dim_head"), [(1, 4), (2, 2), (4, 1)])
@pytest.mark.parametrize("image", [(4, 2), (1, 1)])
def test_attention(kind: Any, heads: int, dim_head: int, image: tuple[int, int]) -> None:
    check(program(kind("y", "x", heads, dim_head), shape=(12, *image)))


def test_data_movement() -> None:
    check(
        program(
            SpaceToDepth("a", "x"),
            Upsample2x("b", "a"),
            Concat("c", "b", "x"),
            Concat("d", "x", "b"),
            Add("e", "c", "d"),
        )
    )


def test_space_to_depth_moves_exactly() -> None:
    p = program(SpaceToDepth("y", "x"))
    x = random(2, *p.input_shape)
    np.testing.assert_array_equal(
        run_onnx(export_denoiser(p), x, [0, 0]), run_reference(p, x, [0, 0]).astype(np.float32)
    )


def test_odd_names_and_an_input_that_is_the_output() -> None:
    time = time_embedding(16)
    clash = (Add("t", "y", "y"), Add("model_output", "t", "y"), Add("x", "model_output", "t"))
    check(Program(clash, "y", (2, 3, 3), "x", time))
    check(Program(clash, "y", (2, 3, 3), "t", time))
    check(Program((), "y", (2, 3, 3), "y", time))


@pytest.mark.parametrize("dim", [2, 4, 64])
def test_time_embedding_at_any_timestep(dim: int) -> None:
    base = program(NormAct("y", "x", 2, random(8), random(8), film=0))
    time = time_embedding(16, dim)
    p = Program(base.operations, base.input, base.input_shape, base.output, time)
    check(p, timesteps=(999.0, 1.0, 0.25))
    check(p, timesteps=(3999.0, 500.0, 777.0))
