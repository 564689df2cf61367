"""Attention to keys and values that stand beside those of the pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sparse_ddpm_kernels import available_isas

from sparse_ddpm.accounting.flops import operation_flops
from sparse_ddpm.engine import make_engine
from sparse_ddpm.engine.cuda.plan import make_cuda_plan
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.errors import EngineError, ProgramError
from sparse_ddpm.formats import Dense
from sparse_ddpm.lower.dead_channels import remove_dead
from sparse_ddpm.program import Attention, Conv, LinearAttention, Program, TimeEmbedding

TIME = TimeEmbedding(
    2,
    np.zeros((4, 2), "f4"),
    np.zeros(4, "f4"),
    np.zeros((4, 4), "f4"),
    np.zeros(4, "f4"),
    Dense(np.zeros((1, 4), "f4")),
    np.zeros(1, "f4"),
)
KINDS = (Attention, LinearAttention)


def memory(
    heads: int, dim_head: int, length: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    shape = (2, heads, dim_head, length)
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def program(
    kind: type[Attention | LinearAttention],
    heads: int,
    dim_head: int,
    length: int,
    size: tuple[int, int],
) -> Program:
    mix = kind("mix", "x", heads, dim_head, memory(heads, dim_head, length))
    return Program((mix,), "x", (3 * heads * dim_head, *size), "mix", TIME)


def images(made: Program, batch: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    rng = np.random.default_rng(batch)
    return (2 * rng.standard_normal((batch, *made.input_shape))).astype(np.float32)


def run(made: Program, x: np.ndarray, device: str, dtype: str | None = None) -> np.ndarray:  # type: ignore[type-arg]
    engine = make_engine(made, device, batch=len(x), dtype=dtype)
    engine.set_schedule(np.array([0]))
    out = engine.run(x, 0)
    engine.close()
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_by_its_formula(kind: type[Attention | LinearAttention]) -> None:
    made = program(kind, 2, 3, 4, (2, 5))
    x = images(made, 2)
    got = run(made, x, "numpy")
    more = memory(2, 3, 4).astype(np.float64)
    for n, head in np.ndindex(2, 2):
        q, k, v = x[n].astype(np.float64).reshape(3, 2, 3, 10)[:, head]
        k, v = (
            np.concatenate([own, kept[head]], 1) for own, kept in zip((k, v), more, strict=True)
        )
        if kind is Attention:
            scores = np.exp(q.T @ k / math.sqrt(3))
            wanted = v @ (scores / scores.sum(1, keepdims=True)).T
        else:
            keys = np.exp(k) / np.exp(k).sum(1, keepdims=True)
            queries = np.exp(q) / np.exp(q).sum(0) / math.sqrt(3)
            wanted = (v @ keys.T / 10) @ queries
        np.testing.assert_allclose(got[n].reshape(2, 3, 10)[head], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("kind", KINDS)
def test_the_cpu_engine(
    kind: type[Attention | LinearAttention], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_DDPM_ISA", isa)
    monkeypatch.setenv("SPARSE_DDPM_POISON", "1")
    for heads, dim_head, length, size in (
        (1, 1, 1, (1, 1)),
        (2, 4, 4, (2, 3)),
        (3, 5, 7, (4, 4)),
        (1, 8, 1, (8, 8)),
        (2, 3, 20, (1, 5)),
    ):
        made = program(kind, heads, dim_head, length, size)
        for batch in (1, 3, 16, 17):
            x = images(made, batch)
            wanted = run(made, x, "numpy")
            for dtype, close in (("float32", 3e-6), ("float16", 3e-3)):
                if dtype == "float16" and isa == "baseline":
                    continue
                got = run(made, x, "cpu", dtype)
                worst = np.abs(got - wanted).max() / np.abs(wanted).max()
                assert worst < close, (heads, dim_head, length, size, batch, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_engine_says_that_it_cannot(kind: type[Attention | LinearAttention]) -> None:
    with pytest.raises(EngineError, match="mix on the cuda engine: expected attention without"):
        make_cuda_plan(program(kind, 2, 4, 4, (4, 4)), 1, "float32")


def test_a_memory_of_another_shape_is_refused() -> None:
    mix = Attention("mix", "x", 2, 4, memory(2, 3, 4))
    with pytest.raises(ProgramError, match="mix: memory: expected"):
        Program((mix,), "x", (24, 2, 2), "mix", TIME)


@pytest.mark.parametrize("kind", KINDS)
def test_dead_heads_go_with_their_memory(kind: type[Attention | LinearAttention]) -> None:
    mix = kind("mix", "x", 3, 2, memory(3, 2, 4))
    weight = np.ones((2, 6), "f4")
    weight[:, 2:4] = 0.0  # nobody reads the second head
    qkv = Conv("qkv", "x", Dense(np.random.default_rng(1).standard_normal((18, 4), "f4")), 1)
    mix = kind("mix", "qkv", 3, 2, memory(3, 2, 4))
    made = Program((qkv, mix, Conv("out", "mix", Dense(weight), 1)), "x", (4, 3, 3), "out", TIME)
    cut = remove_dead(made)
    (less,) = (op for op in cut.operations if isinstance(op, kind))
    assert less.heads == 2
    assert less.memory is not None
    assert np.array_equal(less.memory, memory(3, 2, 4)[:, [0, 2]])
    x = images(made, 2)
    outputs = []
    for each in (made, cut):
        engine = ReferenceEngine(each, batch=2)
        engine.set_schedule(np.array([0]))
        outputs.append(engine.run(x, 0))
    np.testing.assert_allclose(*outputs, rtol=1e-6, atol=1e-6)


def test_flops_count_the_memory() -> None:
    shapes = {"x": (24, 4, 4)}
    mix = Attention("mix", "x", 2, 4, memory(2, 4, 5))
    assert operation_flops(mix, shapes).dense == 2 * 2 * 2 * 4 * 16 * 21
    linear = LinearAttention("mix", "x", 2, 4, memory(2, 4, 5))
    assert operation_flops(linear, shapes).dense == 2 * 2 * 16 * (21 + 16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_onnx(kind: type[Attention | LinearAttention], batch: int) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from sparse_ddpm_export import export_denoiser

    made = program(kind, 2, 4, 5, (2, 3))
    content = export_denoiser(made).SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    x = images(made, batch)
    (got,) = session.run(None, {"x": x, "t": np.zeros(batch, np.float32)})
    np.testing.assert_allclose(got, run(made, x, "numpy"), rtol=1e-5, atol=1e-5)
