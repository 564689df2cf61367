from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

REASON = "needs the onnx extra"
onnx = pytest.importorskip("onnx", reason=REASON)
ort = pytest.importorskip("onnxruntime", reason=REASON)

from sparse_ddpm_export import Baked, Form, export_sampler, export_step
from sparse_ddpm_export.check import step_noise

from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.errors import ConfigError, ProgramError
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Conv, Program
from sparse_ddpm.sampling import Table, make_table, normal, sample_loop
from sparse_ddpm.ticket import DiffusionConfig, UNetConfig, synthetic_ticket

TOLERANCE = 1e-4
SEED = 7
TABLES: dict[str, dict[str, Any]] = {
    "ddim": {"sampler": "ddim"},
    "ddim, eta": {"sampler": "ddim", "eta": 0.7},
    "ddim, eps kept": {"sampler": "ddim", "clip_eps": "keep"},
    "ddpm": {"sampler": "ddpm"},
    "dpm++": {"sampler": "dpm++"},
}


@pytest.fixture(scope="module")
def program() -> Program:
    return lower(synthetic_ticket(UNetConfig(8, (1, 2), 2, 4, groups=2, heads=2, dim_head=4), 0.8))


def table(name: str, steps: int, **diffusion: Any) -> Table:
    return make_table(DiffusionConfig(**diffusion), steps=steps, **TABLES[name])


def ours(program: Program, rows: Table, images: int) -> Any:
    engine = ReferenceEngine(program, images)
    engine.set_schedule(rows.timesteps)
    indices = np.arange(images)
    return sample_loop(
        engine.run, rows, seed=SEED, image_indices=indices, shape=program.input_shape
    )


def session(model: Any) -> Any:
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options)


def feeds(program: Program, rows: Table, images: int) -> dict[str, Any]:
    indices, shape = np.arange(images), program.input_shape
    found = {"noise": normal(SEED, indices, 0, shape)}
    return found | ({"step_noise": step_noise(rows, SEED, indices, shape)} if rows.u.any() else {})


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("steps", [1, 6])
def test_a_whole_sampler_against_the_loop(program: Program, name: str, steps: int) -> None:
    rows = table(name, steps)
    runtime = session(export_sampler(program, rows))
    inputs = ["noise", "step_noise"] if rows.u.any() else ["noise"]
    assert [value.name for value in runtime.get_inputs()] == inputs
    for images in (1, 3):
        found = runtime.run(["images"], feeds(program, rows, images))[0]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, ours(program, rows, images), rtol=0, atol=TOLERANCE)
        assert np.abs(found).max() <= 1


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("clip", [True, False])
def test_objectives_and_clipping(program: Program, objective: str, clip: bool) -> None:
    rows = table("ddim", 4, objective=objective, clip=clip, schedule="linear")
    found = session(export_sampler(program, rows)).run(None, feeds(program, rows, 2))[0]
    wanted = ours(program, rows, 2)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize("name", TABLES)
def test_one_step_at_a_time(program: Program, name: str) -> None:
    rows = table(name, 5)
    runtime = session(export_step(program, rows))
    inputs = {value.name: value.type for value in runtime.get_inputs()}
    wanted_inputs = {"x": "tensor(float)", "step": "tensor(int64)"}
    wanted_inputs |= {"noise": "tensor(float)"} if rows.u.any() else {}
    wanted_inputs |= {"x0_previous": "tensor(float)"} if rows.v.any() else {}
    assert inputs == wanted_inputs
    indices, shape = np.arange(2), program.input_shape
    x = x0 = normal(SEED, indices, 0, shape)
    for step in range(rows.steps):
        given = {
            "x": x,
            "step": np.array(step),
            "noise": normal(SEED, indices, step + 1, shape),
            "x0_previous": x0,
        }
        x, x0 = runtime.run(["x_next", "x0"], {name: given[name] for name in inputs})
    np.testing.assert_allclose(x, ours(program, rows, 2), rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(x, x0)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_noise_of_a_seed_inside_the_file(program: Program, name: str) -> None:
    rows = table(name, 3)
    runtime = session(export_sampler(program, rows, baked=Baked(SEED, 3)))
    assert not runtime.get_inputs()
    assert runtime.get_outputs()[0].shape == [3, *program.input_shape]
    assert runtime.get_modelmeta().custom_metadata_map["noise_seed"] == str(SEED)
    found = runtime.run(None, {})[0]
    np.testing.assert_allclose(found, ours(program, rows, 3), rtol=0, atol=TOLERANCE)


def body(model: Any) -> Any:
    return next(node for node in model.graph.node if node.op_type == "Loop").attribute[0].g


def test_weights_live_in_the_body_and_time_outside_it(program: Program) -> None:
    model = export_sampler(program, table("ddim", 4), Form("dense"))
    inside = {tensor.name for tensor in body(model).initializer}
    assert {f"{op.out}.weight" for op in program.operations if isinstance(op, Conv)} <= inside
    assert not any(node.op_type in ("Gemm", "Erf", "Sin") for node in body(model).node)


def test_names_of_the_body_are_not_those_around_it(program: Program) -> None:
    model = export_sampler(program, table("dpm++", 4))
    outside = {name for node in model.graph.node for name in node.output}
    outside |= {tensor.name for tensor in model.graph.initializer} | {"noise"}
    inside = [name for node in body(model).node for name in node.output]
    inside += [value.name for value in (*body(model).initializer, *body(model).input)]
    assert len(set(inside)) == len(inside)
    assert not outside & set(inside)


def test_the_smaller_of_time_table_and_time_embedding(program: Program) -> None:
    few, many = (export_sampler(program, table("ddim", steps)) for steps in (2, 200))
    assert "Gemm" not in {node.op_type for node in few.graph.node}
    assert "Gemm" in {node.op_type for node in many.graph.node}
    assert len(many.SerializeToString()) - len(few.SerializeToString()) < 20_000


def test_metadata_tells_the_steps(program: Program) -> None:
    model = export_sampler(program, table("ddim", 4), metadata={"dataset": "digits"})
    found = {entry.key: entry.value for entry in model.metadata_props}
    wanted = {"what": "sampler", "steps": "4", "dataset": "digits", "image_range": "-1 1"}
    wanted |= {"channels": "2", "height": "4", "width": "4", "weights": "packed"}
    assert wanted.items() <= found.items()


def test_a_network_whose_output_is_no_image_is_refused(program: Program) -> None:
    cut = dataclasses.replace(program, output=program.operations[0].out)
    for export in (export_sampler, export_step):
        with pytest.raises(ProgramError, match="of a sampler's network: expected the input's"):
            export(cut, table("ddim", 2))


@pytest.mark.parametrize(("seed", "images"), [(-1, 1), (0, 0), (1.5, 1)])
def test_bad_noise(seed: Any, images: int) -> None:
    with pytest.raises(ConfigError, match="expected an integer of at least"):
        Baked(seed, images)
