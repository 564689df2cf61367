from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sparse_ddpm.errors import ProgramError
from sparse_ddpm.formats import Dense
from sparse_ddpm.program import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    Conv,
    NormAct,
    Operation,
    Program,
    SpaceToDepth,
    TimeEmbedding,
    Upsample2x,
)
from sparse_ddpm.program.operations import inputs_of


def ones(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ones(shape, np.float32)


def time_embedding(columns: int = 8) -> TimeEmbedding:
    return TimeEmbedding(
        4, ones(16, 4), ones(16), ones(16, 16), ones(16), Dense(ones(columns, 16)), ones(columns)
    )


def program(*operations: Operation, output: str | None = None) -> Program:
    name = output or (operations[-1].out if operations else "x")
    return Program(operations, "x", (4, 6, 6), name, time_embedding())


def test_shapes_are_derived() -> None:
    found = program(
        Conv("a", "x", Dense(ones(6, 36)), 3, ones(6)),
        NormAct("b", "a", 3, ones(6), ones(6)),
        Concat("c", "b", "x"),
        SpaceToDepth("d", "c"),
        Upsample2x("e", "d"),
        Conv("f", "e", Dense(ones(12, 40)), 1),
        Attention("g", "f", 2, 2),
        ChannelNorm("h", "g", ones(4)),
        Add("i", "h", "x"),
    )
    assert dict(found.shapes) == {
        "x": (4, 6, 6), "a": (6, 6, 6), "b": (6, 6, 6), "c": (10, 6, 6), "d": (40, 3, 3),
        "e": (40, 6, 6), "f": (12, 6, 6), "g": (4, 6, 6), "h": (4, 6, 6), "i": (4, 6, 6),
    }  # fmt: skip


def test_the_empty_program_is_the_identity() -> None:
    assert dict(program().shapes) == {"x": (4, 6, 6)}


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        ((Add("a", "x", "later"), Add("later", "x", "x")), "input of a: expected a value made"),
        ((Add("a", "x", "x"), Add("a", "x", "x")), "value a: expected made once"),
        ((Conv("a", "x", Dense(ones(6, 36)), 1),), "a: weight columns: expected 4, got 36"),
        ((Conv("a", "x", Dense(ones(6, 64)), 4),), "a: size: expected an odd number"),
        ((Conv("a", "x", Dense(ones(6, 4)), 1, ones(5)),), "a: bias: expected"),
        ((Conv("a", "x", Dense(ones(6, 4)), 1, None, "x"),), "a: residual: expected"),
        ((Conv("a", "x", Dense(ones(6, 4)), 1, film=3),), "a: film: expected 0 to 2, got 3"),
        ((NormAct("a", "x", 3, ones(4), ones(4)),), "a: groups: expected divisor of 4"),
        ((NormAct("a", "x", 2, ones(3), ones(4)),), "a: gamma"),
        ((NormAct("a", "x", 2, ones(4), ones(3)),), "a: beta"),
        ((NormAct("a", "x", 2, ones(4), ones(4), film=1),), "a: film: expected 0 to 0, got 1"),
        ((ChannelNorm("a", "x", ones(5)),), "a: gain"),
        ((Attention("a", "x", 1, 1),), "a: channels of qkv: expected 3, got 4"),
        ((SpaceToDepth("a", "x"), SpaceToDepth("b", "a")), "b: image: expected even sides"),
        ((Upsample2x("a", "x"), Concat("b", "a", "x")), "b: image of b"),
        ((Upsample2x("a", "x"), Add("b", "a", "x")), "b: b: expected"),
    ],
)
def test_inconsistent_programs_are_refused(operations: tuple[Operation, ...], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        program(*operations)


def test_the_output_must_exist() -> None:
    with pytest.raises(ProgramError, match="program output"):
        program(Add("a", "x", "x"), output="b")


def test_inputs_name_the_residual_last() -> None:
    assert inputs_of(Conv("a", "x", Dense(ones(4, 4)), 1, None, "r")) == ("x", "r")
    assert inputs_of(Concat("a", "p", "q")) == ("p", "q")


def test_time_table_against_scalar_arithmetic() -> None:
    rng = np.random.default_rng(0)
    dim, time_dim, columns = 6, 24, 5

    def random(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return rng.standard_normal(shape).astype(np.float32)

    film = random(columns, time_dim)
    embedding = TimeEmbedding(
        dim, random(time_dim, dim), random(time_dim), random(time_dim, time_dim),
        random(time_dim), Dense(film), random(columns),
    )  # fmt: skip
    table = embedding.table(np.array([0, 7, 999]))
    assert table.shape == (3, columns)
    assert table.dtype == np.float64
    for row, t in enumerate((0.0, 7.0, 999.0)):
        angles = [t * 10_000.0 ** (-i / (dim // 2 - 1)) for i in range(dim // 2)]
        h = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        h = [
            sum(float(w) * v for w, v in zip(embedding.weight1[o], h, strict=True))
            + float(embedding.bias1[o])
            for o in range(time_dim)
        ]
        h = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in h]
        h = [
            sum(float(w) * v for w, v in zip(embedding.weight2[o], h, strict=True))
            + float(embedding.bias2[o])
            for o in range(time_dim)
        ]
        h = [v / (1 + math.exp(-v)) for v in h]
        wanted = [
            sum(float(w) * v for w, v in zip(film[o], h, strict=True))
            + float(embedding.film_bias[o])
            for o in range(columns)
        ]
        np.testing.assert_allclose(table[row], wanted, rtol=1e-10, atol=1e-10)


def test_time_embedding_checks_itself() -> None:
    with pytest.raises(ProgramError, match=r"TimeEmbedding\.weight2"):
        TimeEmbedding(4, ones(16, 4), ones(16), ones(16, 15), ones(16), Dense(ones(2, 16)), ones(2))
