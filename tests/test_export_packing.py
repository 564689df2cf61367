from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

REASON = "needs the onnx extra"
pytest.importorskip("onnx", reason=REASON)
ort = pytest.importorskip("onnxruntime", reason=REASON)

from onnx import TensorProto, helper
from sparse_ddpm_export import Form, pack, pack_nibbles, unpack, unpack_nibbles
from sparse_ddpm_export.graph import Graph
from sparse_ddpm_export.weights import weight_initializer

Weight = np.ndarray[Any, np.dtype[np.float32]]


def weight_at(size: int, *places: int) -> Weight:
    weight = np.zeros(size, dtype=np.float32)
    weight[list(places)] = np.arange(1, len(places) + 1)
    return weight


def random_weight(*shape: int, density: float = 0.1, seed: int = 0) -> Weight:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)


def rows_without_weight() -> Weight:
    weight = random_weight(8, 16, 3, 3)
    weight[[0, 3, 4, 7]] = 0.0
    return weight


CASES = {
    "rows without weight": rows_without_weight(),
    "nothing": np.zeros((40, 3, 3), np.float32),
    "only the last": weight_at(2000, 1999),
    "only the first": weight_at(2000, 0),
    "gap 254": weight_at(300, 3, 257),
    "gap 255": weight_at(300, 3, 258),
    "gap 256": weight_at(300, 3, 259),
    "gaps 510, 511": weight_at(1100, 3, 513, 1024),
    "99.9 %": random_weight(30, 100, 3, 3, density=0.001),
    "negative zeros": -weight_at(400, 5),
    "not contiguous": random_weight(40, 30).T,
    "denormal": weight_at(300, 7) * np.float32(1e-42),
}


def same(a: Weight, b: Weight) -> bool:
    """The same bits, but that a zero has no sign."""
    return a.shape == b.shape and (a + 0.0).tobytes() == (b + 0.0).tobytes()


@pytest.mark.parametrize("case", CASES)
def test_unpack_undoes_pack(case: str) -> None:
    weight = CASES[case]
    gaps, values = pack(weight)
    assert gaps.dtype == np.uint8
    assert values.dtype == np.float32
    assert len(gaps) == len(values) >= 2
    assert same(unpack(gaps, values, weight.shape), weight)


@pytest.mark.parametrize("case", [*CASES, "one element", "distances 15 and 16", "empty"])
def test_unpack_undoes_pack_with_nibbles(case: str) -> None:
    more = {
        "one element": weight_at(1, 0),
        "distances 15 and 16": weight_at(200, 14, 29, 45, 90, 106, 199),
        "empty": np.zeros((0, 3), np.float32),
    }
    for dtype in (np.float32, np.float16):
        weight = {**CASES, **more}[case].astype(dtype)
        codes, values = pack_nibbles(weight)
        assert codes.dtype == np.uint8
        assert values.dtype == dtype
        assert len(values) == np.count_nonzero(weight) + 1
        found = unpack_nibbles(codes, values, weight.shape)
        assert found.dtype == dtype
        assert found.shape == weight.shape
        np.testing.assert_array_equal(found, weight)


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(2, 3000),
    density=st.sampled_from([0.0, 0.001, 0.01, 0.5, 1.0]),
    seed=st.integers(0, 999),
)
def test_packing_is_lossless_and_no_larger_than_it_must_be(
    size: int, density: float, seed: int
) -> None:
    weight = random_weight(size, density=density, seed=seed)
    gaps, values = pack(weight)
    assert same(unpack(gaps, values, weight.shape), weight)
    # Each survivor is one entry, the two ends may be two more, and 255 skipped are at most one.
    assert len(gaps) <= np.count_nonzero(weight) + 2 + size // 255
    codes, values = pack_nibbles(weight)
    assert same(unpack_nibbles(codes, values, weight.shape), weight)
    assert 2 * len(codes) <= np.count_nonzero(weight) + size // 15 + 1


def decoded_by_onnxruntime(weight: Weight, form: Form | None = None) -> tuple[Weight, Graph]:
    graph = Graph(("out",), form)
    name = weight_initializer(graph, weight, "w")
    graph.nodes.append(helper.make_node("Identity", [name], ["out"]))
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, weight.shape)
    model = helper.make_model(
        helper.make_graph(graph.nodes, "decode", [], [out], graph.initializers),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {})[0], graph


@pytest.mark.parametrize("case", CASES)
def test_the_graph_decodes_exactly(case: str) -> None:
    weight = CASES[case]
    found, graph = decoded_by_onnxruntime(weight)
    assert same(found, weight)
    assert any(node.op_type == "ScatterElements" for node in graph.nodes)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_graph_decodes_nibbles_exactly(density: float, dtype: str) -> None:
    weight = random_weight(61, 47, 3, 3, density=density)
    if dtype == "float16":
        weight = weight.astype(np.float16).astype(np.float32)
    found, graph = decoded_by_onnxruntime(weight, Form(dtype=dtype))
    assert same(found, weight)
    # Where weights are few, bytes say better where.
    assert ("Where" in [node.op_type for node in graph.nodes]) == (density > 0.05)


@pytest.mark.parametrize(
    ("weight", "packed"),
    [
        (random_weight(1, 1, 1, 1, density=1.0), True),
        (random_weight(7, 9), True),
        (random_weight(16, 16, 3, 3, density=1.0), True),
        (random_weight(16, 16, 3, 3), False),
        (np.zeros((0, 4), np.float32), True),
    ],
    ids=["one element", "63 elements", "full", "asked for dense", "empty"],
)
def test_dense_where_packing_does_not_pay(weight: Weight, packed: bool) -> None:
    graph = Graph((), Form("packed" if packed else "dense"))
    assert weight_initializer(graph, weight, "w") == "w"
    assert not graph.nodes
    assert [tuple(tensor.dims) for tensor in graph.initializers] == [weight.shape]
    assert graph.initializers[0].raw_data == weight.tobytes()


def test_zeros_of_either_sign_are_left_out() -> None:
    gaps, values = pack(-weight_at(400, 5))
    np.testing.assert_array_equal(gaps, [0, 5, 255, 139])
    np.testing.assert_array_equal(values, [0.0, -1.0, 0.0, 0.0])


def test_names_never_clash_and_small_constants_are_shared() -> None:
    graph = Graph(reserved=("x",))
    assert [graph.name("x"), graph.name("x_2"), graph.name("x")] == ["x_2", "x_2_2", "x_3"]
    assert graph.integers([0, 4], "a") == graph.integers([0, 4], "b") == "a"
    assert graph.scalar(0.0, "c") != graph.constant(np.zeros((), np.int32), "c")
    big = np.zeros(65, dtype=np.float32)
    assert graph.constant(big, "d") != graph.constant(big, "d")
