from __future__ import annotations

from typing import Any

import numpy as np
import pytest

REASON = "needs the onnx extra"
onnx = pytest.importorskip("onnx", reason=REASON)
ort = pytest.importorskip("onnxruntime", reason=REASON)

from sparse_ddpm_export import DTYPES, OPSETS, WEIGHTS, Check, Form, export_denoiser, export_sampler
from sparse_ddpm_export.halves import round_program

from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.errors import ConfigError, EngineError, MissingDependencyError, ProgramError
from sparse_ddpm.formats import Dense
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Conv, Program
from sparse_ddpm.sampling import Table, make_table
from sparse_ddpm.ticket import DiffusionConfig, UNetConfig, synthetic_ticket

SMALL = UNetConfig(8, (1, 2), 1, 4, groups=2, heads=2, dim_head=8)


def program(pattern: str = "element", sparsity: float = 0.9) -> Program:
    return lower(synthetic_ticket(SMALL, sparsity, pattern))


def rows() -> Table:
    return make_table(DiffusionConfig(), sampler="ddpm", steps=3)


def one_value(value: float) -> Program:
    """A network with one large weight."""
    p = program()
    last = p.operations[-1]
    assert isinstance(last, Conv)
    weight = last.weight.to_dense().copy()
    weight.flat[0] = value
    operations = (*p.operations[:-1], Conv(last.out, last.x, Dense(weight), last.size))
    return Program(operations, p.input, p.input_shape, p.output, p.time)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["element", "block:4x2"])
def test_every_form_passes_the_check(weights: str, dtype: str, pattern: str) -> None:
    form, p = Form(weights, dtype), program(pattern)
    with Check(p, form, "numpy") as check:
        assert check.denoiser(export_denoiser(p, form).SerializeToString(), 1000) < 1e-5
        content = export_sampler(p, rows(), form).SerializeToString()
        assert check.sampler(content, rows()) < 1e-4


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset(opset: int) -> None:
    form, p = Form(opset=opset), program()
    model = export_denoiser(p, form)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    with Check(p, form, "numpy") as check:
        assert check.denoiser(model.SerializeToString(), 1000) < 1e-5
        content = export_sampler(p, rows(), form).SerializeToString()
        assert check.sampler(content, rows()) < 1e-4


def test_the_forms_by_size() -> None:
    p = lower(synthetic_ticket(UNetConfig(32, (1, 2), 1, 8), 0.9))
    sizes = {
        (weights, dtype): len(export_denoiser(p, Form(weights, dtype)).SerializeToString())
        for weights in WEIGHTS
        for dtype in DTYPES
    }
    packed, sparse, dense = (sizes[weights, "float32"] for weights in ("packed", "sparse", "dense"))
    assert packed < 0.6 * sparse < 0.3 * dense
    assert sizes["dense", "float16"] < 0.52 * dense
    assert sizes["packed", "float16"] < 0.7 * packed


def test_halves_round_the_values_and_nothing_else() -> None:
    p = program()
    rounded = round_program(p)
    for before, after in zip(p.operations, rounded.operations, strict=True):
        assert type(before) is type(after)
        if isinstance(before, Conv) and isinstance(after, Conv):
            wanted = before.weight.to_dense().astype(np.float16)
            np.testing.assert_array_equal(after.weight.to_dense(), wanted)
            assert after.weight.nnz == before.weight.nnz
    np.testing.assert_array_equal(rounded.time.weight1, p.time.weight1.astype(np.float16))
    assert round_program(rounded).time.table(np.arange(3)).tolist() == (
        rounded.time.table(np.arange(3)).tolist()
    )


def test_halves_are_stored_as_such_where_that_loses_nothing() -> None:
    exact = round_program(program())
    files = [
        export_denoiser(exact, form).SerializeToString()
        for form in (Form(), Form(dtype="float16"), Form("dense"))
    ]
    assert abs(len(files[0]) - len(files[1])) < 10  # the metadata tell the dtype
    ours = ReferenceEngine(exact)
    ours.set_schedule(np.array([5]))
    x = np.random.default_rng(0).standard_normal((1, 1, 4, 4), dtype=np.float32)
    for content in files:
        found = ort.InferenceSession(content).run(None, {"x": x, "t": np.float32([5])})[0]
        np.testing.assert_allclose(found, ours.run(x, 0), rtol=0, atol=1e-5)


def test_a_value_too_large_for_float16() -> None:
    with pytest.raises(ProgramError, match=r"final_conv.weight: expected at most 65504 .* 70000"):
        export_denoiser(one_value(7e4), Form(dtype="float16"))


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"weights": "csr"}, "weights: expected one of packed, dense, sparse, got 'csr'"),
        ({"dtype": "bfloat16"}, "dtype: expected one of float32, float16, got 'bfloat16'"),
        ({"opset": 16}, "opset: expected an integer from 17 to 22, got 16"),
        ({"opset": "17"}, "opset: expected an integer from 17 to 22, got '17'"),
    ],
)
def test_bad_forms(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Form(**wish)


def test_the_check_finds_a_wrong_weight() -> None:
    p = program()
    content = export_denoiser(one_value(1.0)).SerializeToString()
    with Check(p, device="numpy") as check, pytest.raises(EngineError, match="exported denoiser"):
        check.denoiser(content, 1000)


def test_the_check_finds_a_wrong_table() -> None:
    p, table = program(), rows()
    content = export_sampler(p, make_table(DiffusionConfig(), steps=3)).SerializeToString()
    other = make_table(DiffusionConfig(), sampler="dpm++", steps=3)
    assert not other.u.any()
    with Check(p, device="numpy") as check, pytest.raises(EngineError, match="exported sampler"):
        check.sampler(content, other)
    content = export_sampler(p, table).SerializeToString()
    with Check(p, device="numpy") as check:
        check.sampler(content, table)


def test_the_check_finds_a_damaged_file() -> None:
    p = program()
    model = export_denoiser(p)
    model.graph.node[3].op_type = "Nonsense"
    with Check(p, device="numpy") as check, pytest.raises(EngineError, match="a model that loads"):
        check.denoiser(model.SerializeToString(), 1000)


def test_the_check_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    p = program()
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with (
        Check(p, device="numpy") as check,
        pytest.raises(MissingDependencyError, match="onnxruntime: expected to be installed"),
    ):
        check.denoiser(export_denoiser(p).SerializeToString(), 1000)
