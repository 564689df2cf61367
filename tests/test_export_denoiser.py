from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

REASON = "needs the onnx extra"
onnx = pytest.importorskip("onnx", reason=REASON)
ort = pytest.importorskip("onnxruntime", reason=REASON)

from sparse_ddpm_export import OPSET, Form, export_denoiser

from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.errors import ProgramError
from sparse_ddpm.lower import lower, lower_unet
from sparse_ddpm.program import Conv, Program
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket

TOLERANCE = 1e-5
TIMESTEPS = np.array([0, 37, 999])

NETS = {
    "small": (UNetConfig(8, (1, 2, 4), 1, 8, groups=4, heads=2, dim_head=8), 0.9, "element"),
    "paper": (UNetConfig(8, (1, 2, 4, 8), 3, 8, groups=8, heads=4, dim_head=4), 0.95, "element"),
    "one level, dense": (UNetConfig(4, (3,), 2, 3, groups=1, heads=1, dim_head=3), 0.0, "element"),
    "vectors, no standardisation": (
        UNetConfig(6, (2, 1), 1, 6, 3, 2, 4, weight_standardization="none"),
        0.8,
        "vector:4",
    ),
    "blocks, hardly any weight": (UNetConfig(8, (1, 2), 1, 4, 2, 1, 8), 0.999, "block:4x2"),
}


def program(name: str = "small") -> Program:
    architecture, sparsity, pattern = NETS[name]
    return lower(synthetic_ticket(architecture, sparsity, pattern))


def session(model: Any, optimized: str = "") -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = optimized
    return ort.InferenceSession(model.SerializeToString(), options)


def images(p: Program, batch: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((batch, *p.input_shape), dtype=np.float32)


def relative(found: Any, wanted: Any) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", NETS)
def test_whole_networks_against_the_reference(name: str) -> None:
    p = program(name)
    model = export_denoiser(p)
    onnx.checker.check_model(model, full_check=True)
    runtime = session(model)
    engine = ReferenceEngine(p)
    engine.set_schedule(TIMESTEPS)
    x = images(p, 3)
    wanted = np.concatenate([engine.values(x[i : i + 1], i)[p.output] for i in range(3)])
    t = TIMESTEPS.astype(np.float32)
    assert relative(runtime.run(None, {"x": x, "t": t})[0], wanted) <= TOLERANCE
    for i in range(3):
        one = runtime.run(None, {"x": x[i : i + 1], "t": t[i : i + 1]})[0]
        assert relative(one, wanted[i : i + 1]) <= TOLERANCE


@pytest.mark.parametrize("lowering", [lower, lower_unet])
def test_every_value_has_its_name_and_its_numbers(lowering: Any) -> None:
    architecture, sparsity, pattern = NETS["small"]
    p = lowering(synthetic_ticket(architecture, sparsity, pattern))
    model = export_denoiser(p)
    names = [operation.out for operation in p.operations]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    engine = ReferenceEngine(p, 3)
    engine.set_schedule(TIMESTEPS)
    x = images(p, 3)
    wanted = engine.values(x, 1)
    t = np.full(3, TIMESTEPS[1], np.float32)
    for name, found in zip(names, session(model).run(names, {"x": x, "t": t}), strict=True):
        assert relative(found, wanted[name]) <= TOLERANCE, name


def test_signature_and_metadata() -> None:
    p = program("paper")
    model = export_denoiser(p, metadata={"dataset": "synthetic", "seed": "3"})
    runtime = session(model)
    inputs = [(i.name, i.type, i.shape) for i in runtime.get_inputs()]
    assert inputs == [("x", "tensor(float)", ["N", 3, 8, 8]), ("t", "tensor(float)", ["N"])]
    outputs = [(o.name, o.type, o.shape) for o in runtime.get_outputs()]
    assert outputs == [("model_output", "tensor(float)", ["N", 3, 8, 8])]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    stored = sum(op.weight.nnz for op in p.operations if isinstance(op, Conv)) + p.time.film.nnz
    found = runtime.get_modelmeta().custom_metadata_map
    assert found["dataset"] == "synthetic"
    assert found["seed"] == "3"
    assert found["what"] == "denoiser"
    assert found["weights"] == "packed"
    assert found["weights_stored"] == str(stored)
    assert 0.04 < stored / int(found["weights_total"]) < 0.2


def raw_bytes(model: Any) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


@pytest.mark.parametrize("sparsity", [0.0, 0.9, 0.99])
def test_size_is_at_most_five_bytes_a_surviving_weight(sparsity: float) -> None:
    p = lower(synthetic_ticket(UNetConfig(16, (1, 2, 4), 1, 8), sparsity))
    packed, dense = export_denoiser(p), export_denoiser(p, Form("dense"))
    matrices = [op.weight for op in p.operations if isinstance(op, Conv)] + [p.time.film]
    saved = [math.prod(matrix.shape) * 4 - 5 * matrix.nnz for matrix in matrices]
    # What packing saves, less 400 bytes of nodes: weights that save less than that stay dense.
    least = sum(save for save in saved if save > 400)
    # The two ends, gaps above 255 and the sizes: up to 5 bytes each and 16 of int64.
    skips = sum(5 * (2 + math.prod(matrix.shape) // 255) + 16 for matrix in matrices)
    # Four bits are the least that says where a weight is.
    most = sum(max(0, math.prod(m.shape) * 4 - 4.5 * m.nnz) for m in matrices)
    assert least - skips <= raw_bytes(dense) - raw_bytes(packed) <= most
    sizes = [len(model.SerializeToString()) for model in (packed, dense)]
    assert sizes[1] - sizes[0] >= 0.9 * least - 8


def test_packed_and_dense_are_the_same_network() -> None:
    p = program("paper")
    x, t = images(p, 2), np.array([5, 600], np.float32)
    packed, dense = (
        session(export_denoiser(p, Form(weights))).run(None, {"x": x, "t": t})[0]
        for weights in ("packed", "dense")
    )
    np.testing.assert_array_equal(packed, dense)


def test_onnxruntime_folds_the_decoding_away(tmp_path: Any) -> None:
    model = export_denoiser(program())
    assert any(node.op_type == "ScatterElements" for node in model.graph.node)
    session(model, str(tmp_path / "optimized.onnx"))
    left = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "Conv" in left
    assert not left & {"ScatterElements", "CumSum", "Cast", "ConstantOfShape"}


def test_more_than_protobuf_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    p = program()
    size = len(export_denoiser(p).SerializeToString())
    monkeypatch.setattr("sparse_ddpm_export.graph.MAX_BYTES", size // 2)
    with pytest.raises(ProgramError, match="ONNX model: expected at most"):
        export_denoiser(p)


def test_the_program_is_left_as_it_was() -> None:
    p = program()
    before = [dataclasses.astuple(op) for op in p.operations if not isinstance(op, Conv)]
    export_denoiser(p)
    after = [dataclasses.astuple(op) for op in p.operations if not isinstance(op, Conv)]
    for a, b in zip(before, after, strict=True):
        for u, v in zip(a, b, strict=True):
            np.testing.assert_array_equal(u, v)
