from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.formats import BSR, CSR, Dense
from sparse_ddpm.lower import lower
from sparse_ddpm.lower.constants import fold_constants
from sparse_ddpm.lower.dead_channels import remove_dead, remove_dead_channels
from sparse_ddpm.lower.select import select_channels, selection
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
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket

RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


def random(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def conv(
    out: str,
    x: str,
    rows: int,
    cin: int,
    size: int = 1,
    *,
    empty: Any = (),
    unread: Any = (),
    **more: Any,
) -> Conv:
    """Dense weights but for empty rows and unread input channels."""
    weight = random(rows, cin, size * size)
    weight[list(empty)] = 0
    weight[:, list(unread)] = 0
    return Conv(out, x, CSR.from_dense(weight.reshape(rows, -1)), size, **more)


def norm(out: str, x: str, channels: int, groups: int, **more: Any) -> NormAct:
    return NormAct(out, x, groups, random(channels), random(channels), **more)


def program(*operations: Operation, shape: tuple[int, int, int] = (8, 4, 4)) -> Program:
    time = TimeEmbedding(
        4,
        random(8, 4),
        random(8),
        random(8, 8),
        random(8),
        Dense(random(64, 8)),
        random(64),
    )
    return Program(operations, "x", shape, operations[-1].out, time)


def output(p: Program) -> Array:
    engine = ReferenceEngine(p, 2)
    engine.set_schedule(np.array([700, 3]))
    x = np.random.default_rng(1).standard_normal((2, *p.input_shape), dtype=np.float32)
    return np.stack([engine.values(x, step)[p.output] for step in range(2)])


def same(p: Program, q: Program, tolerance: float = 1e-12) -> None:
    """Equal in float64; where a bias was folded, but for its rounding to float32."""
    wanted = output(p)
    np.testing.assert_allclose(output(q), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def channels(p: Program) -> dict[str, int]:
    return {name: shape[0] for name, shape in p.shapes.items()}


def nnz(p: Program) -> int:
    return sum(op.weight.nnz for op in p.operations if isinstance(op, Conv))


def test_a_chain_of_convolutions_loses_what_nobody_reads() -> None:
    p = program(
        conv("a", "x", 6, 8, 3, bias=random(6)),
        conv("b", "a", 5, 6, 3, unread=[0, 4]),
        conv("c", "b", 2, 5, unread=[1]),
    )
    q = remove_dead_channels(p)
    same(p, q)
    assert channels(q) == {"x": 8, "a": 4, "b": 4, "c": 2}


def test_a_row_without_weights_goes_and_its_bias_is_folded() -> None:
    p = program(
        conv("a", "x", 6, 8, bias=random(6), empty=[1, 5]),
        conv("b", "a", 3, 6, bias=random(3)),
    )
    q = remove_dead(p)
    same(p, q, 1e-6)
    assert channels(q)["a"] == 4
    assert nnz(fold_constants(p)) == nnz(p) - 6


@pytest.mark.parametrize("bias", [None, np.zeros(6, np.float32), random(6)])
def test_padding_makes_a_constant_vary_unless_it_is_zero(bias: Any) -> None:
    p = program(conv("a", "x", 6, 8, empty=[1, 5], bias=bias), conv("b", "a", 3, 6, 3))
    q = remove_dead(p)
    same(p, q)
    assert channels(q)["a"] == (6 if bias is not None and bias.any() else 4)


def test_a_group_norm_makes_a_constant_channel_vary() -> None:
    p = program(
        conv("a", "x", 8, 8, bias=random(8), empty=[1]),
        norm("n", "a", 8, 2),
        conv("b", "n", 3, 8),
    )
    assert remove_dead(p) is not None
    assert channels(remove_dead(p)) == channels(p)
    same(p, remove_dead(p))
    x = np.random.default_rng(0).standard_normal((2, 8, 4, 4), dtype=np.float32)
    engine = ReferenceEngine(p, 2)
    engine.set_schedule(np.array([0]))
    assert np.ptp(engine.values(x, 0)["n"][:, 1]) > 1e-3  # image by image


@pytest.mark.parametrize("film", [None, 8])
def test_a_group_of_constants_is_constant_unless_time_moves_it(film: int | None) -> None:
    p = program(
        conv("a", "x", 8, 8, bias=random(8), empty=range(4, 8)),
        norm("n", "a", 8, 2, film=film),
        conv("b", "n", 3, 8),
    )
    q = remove_dead(p)
    same(p, q, 1e-6)
    assert channels(q)["n"] == (4 if film is None else 8)


def test_a_gain_of_zero_hides_the_group() -> None:
    n = norm("n", "x", 8, 2)
    n.gamma[[2, 3]] = 0
    p = program(n, conv("b", "n", 3, 8))
    same(p, fold_constants(p), 1e-6)
    assert nnz(fold_constants(p)) == 3 * 6


def test_groups_go_as_a_whole_and_take_their_time_with_them() -> None:
    p = program(
        conv("a", "x", 12, 8, 3),
        norm("n", "a", 12, 3, film=3),
        conv("b", "n", 8, 12, unread=[0, 4, 5, 6, 7]),
        norm("m", "b", 8, 2, film=30, residual="x"),
    )
    q = remove_dead_channels(p)
    same(p, q)
    assert channels(q) == {"x": 8, "a": 8, "n": 8, "b": 8, "m": 8}
    assert q.time.columns == 2 * 8 + 2 * 8
    n = q.operations[1]
    assert isinstance(n, NormAct)
    assert n.groups == 2


def test_a_bias_that_time_moves() -> None:
    p = program(
        conv("a", "x", 6, 8, film=5, bias=random(6), empty=[3]),
        conv("b", "a", 4, 6, unread=[0, 1]),
    )
    q = remove_dead(p)
    same(p, q)
    assert channels(q)["a"] == 4
    assert q.time.columns == 4


@pytest.mark.parametrize("kind", [Attention, LinearAttention])
def test_heads_go_as_a_whole(kind: Any) -> None:
    p = program(
        conv("qkv", "x", 18, 8),
        kind("mix", "qkv", 3, 2),
        conv("b", "mix", 4, 6, unread=[0, 2, 3]),
    )
    q = remove_dead_channels(p)
    same(p, q)
    assert channels(q) == {"x": 8, "qkv": 12, "mix": 4, "b": 4}


@pytest.mark.parametrize("kind", [Attention, LinearAttention])
@pytest.mark.parametrize("bias", [None, random(18)])
def test_attention_over_equal_values_is_that_value(kind: Any, bias: Any) -> None:
    p = program(
        conv("qkv", "x", 18, 8, bias=bias, empty=[12, 13, 17]),
        kind("mix", "qkv", 3, 2),
        conv("b", "mix", 4, 6, bias=random(4)),
    )
    q = remove_dead(p)
    same(p, q, 1e-6)
    assert nnz(fold_constants(p)) == nnz(p) - 3 * 4
    assert channels(q)["mix"] == 4


def test_moves_and_sums() -> None:
    p = program(
        conv("a", "x", 6, 8),
        conv("r", "x", 6, 8),
        Add("s", "a", "r"),
        SpaceToDepth("d", "s"),
        conv("e", "d", 5, 24, unread=[*range(4), 9]),
        Upsample2x("u", "e"),
        Concat("c", "u", "s"),
        conv("out", "c", 2, 11, 3, unread=[1, 5, 7]),
    )
    q = remove_dead_channels(p)
    same(p, q)
    wanted = {"a": 5, "r": 5, "s": 5, "d": 20, "e": 4, "u": 4, "c": 9, "out": 2}
    assert channels(q) == {"x": 8, **wanted}


def test_a_block_without_weights_goes_but_for_its_shortcut() -> None:
    p = program(
        conv("a", "x", 8, 8, 3),
        conv("b", "a", 8, 8, 3, bias=random(8)),
        norm("n", "b", 8, 2, film=0),
        conv("c", "n", 8, 8, 3, bias=random(8), empty=range(8)),
        norm("m", "c", 8, 2, residual="a"),
        conv("out", "m", 3, 8),
    )
    q = remove_dead(p)
    same(p, q, 1e-6)
    assert set(channels(q)) == {"x", "a", "m", "out"}


def test_a_constant_side_of_a_sum() -> None:
    constant = conv("c", "x", 8, 8, 3, bias=random(8), empty=range(8))
    for a, b in (("a", "c"), ("c", "a")):
        p = program(conv("a", "x", 8, 8, 3), constant, Add("s", a, b), conv("out", "s", 3, 8))
        q = remove_dead(p)
        same(p, q, 1e-6)
        assert set(channels(q)) == {"x", "a", "s", "out"}


def test_one_side_of_a_concatenation() -> None:
    for unread, left in (([0, 1, 2, 3], "b"), ([4, 5], "a")):
        p = program(
            conv("a", "x", 4, 8),
            conv("b", "x", 2, 8),
            Concat("c", "a", "b"),
            conv("out", "c", 3, 6, unread=unread),
        )
        q = remove_dead_channels(p)
        same(p, q)
        assert set(channels(q)) == {"x", left, "out"}


def test_a_convolution_without_any_weight() -> None:
    p = program(conv("a", "x", 8, 8), conv("b", "a", 3, 8, 3, bias=random(3), empty=range(3)))
    same(p, remove_dead(p))
    assert channels(remove_dead(p)) == {"x": 8, "a": 1, "b": 3}
    p = program(
        conv("a", "x", 8, 8), conv("b", "a", 8, 8, 3, bias=random(8), empty=range(8), residual="x")
    )
    q = remove_dead(p)
    same(p, q)
    assert channels(q) == {"x": 8, "b": 8}


def test_channel_norm_keeps_all() -> None:
    p = program(
        conv("a", "x", 6, 8), ChannelNorm("n", "a", random(6)), conv("b", "n", 3, 6, unread=[1])
    )
    assert remove_dead_channels(p) is p


def test_blocks() -> None:
    keep = np.zeros((8, 8), bool)
    keep[:4, 2:4] = True
    weight = BSR.from_dense(random(8, 8) * keep, (4, 2), 1, keep)
    p = program(conv("a", "x", 8, 8), Conv("b", "a", weight, 1), conv("c", "b", 2, 8))
    q = remove_dead(p)
    same(p, q)
    assert channels(q) == {"x": 8, "a": 2, "b": 4, "c": 2}


@settings(max_examples=25, deadline=None)
@given(
    sparsity=st.sampled_from([0.9, 0.98, 0.999]),
    pattern=st.sampled_from(["element", "vector:8", "block:4x4"]),
    standardization=st.sampled_from(["none", "surviving"]),
    seed=st.integers(0, 99),
)
def test_whole_networks(sparsity: float, pattern: str, standardization: str, seed: int) -> None:
    config = UNetConfig(8, (1, 2), 2, 4, 4, 2, 4, weight_standardization=standardization)
    p = lower(synthetic_ticket(config, sparsity, pattern, seed))
    q = remove_dead(p)
    same(p, q, 1e-5)
    assert nnz(q) <= nnz(p)
    assert remove_dead(q).shapes == q.shapes
    same(q, select_channels(q))


def test_a_convolution_is_handed_what_it_reads() -> None:
    unread = [*range(3), *range(7, 30), 39]
    p = program(
        norm("n", "x", 40, 2),
        conv("a", "n", 64, 40, 3, unread=unread, bias=random(64)),
        conv("b", "n", 64, 40, 3, unread=unread, residual="a"),
        conv("c", "n", 1, 40, unread=unread, bias=random(1)),
        conv("d", "n", 64, 40, 3, empty=range(64), bias=random(64)),
        conv("e", "n", 64, 40, 3, unread=unread[:7]),
        Concat("f", "b", "d"),
        Concat("g", "f", "e"),
        shape=(40, 2, 2),
    )
    q = select_channels(p)
    same(p, q)
    assert [op.out for op in q.operations] == ["n", "a.read", *"abcdefg"]
    copy = q.operations[1]
    assert isinstance(copy, Conv)
    # 13 are read; three more fill the kernel's lanes.
    wanted = [0, 1, 2, *range(3, 7), *range(30, 39)]
    assert np.array_equal(selection(copy), wanted)  # type: ignore[arg-type]
    assert nnz(q) == nnz(p) + 16


def test_what_is_no_selection() -> None:
    eye = CSR.from_dense(np.eye(4, 8))
    assert np.array_equal(selection(Conv("y", "x", eye, 1)), range(4))  # type: ignore[arg-type]
    for op in (
        Conv("y", "x", eye, 1, bias=random(4)),
        Conv("y", "x", eye, 1, residual="x"),
        Conv("y", "x", eye, 1, film=0),
        Conv("y", "x", CSR.from_dense(2 * np.eye(4)), 1),
        Conv("y", "x", CSR.from_dense(np.ones((2, 2))), 1),
        Conv("y", "x", CSR.from_dense(np.array([[1, 1], [0, 0]])), 1),
        Conv("y", "x", CSR.from_dense(np.eye(9)), 3),
        Conv("y", "x", Dense.from_dense(np.eye(4)), 1),
    ):
        assert selection(op) is None
