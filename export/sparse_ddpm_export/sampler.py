"""A whole sampler as one ONNX graph, and one step of it: noise in, images out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparse_ddpm.errors import ConfigError, ProgramError, expected
from sparse_ddpm.program import Conv, NormAct, Program
from sparse_ddpm.program.program import Shape
from sparse_ddpm.sampling import Table, normal
from sparse_ddpm_export.form import Form
from sparse_ddpm_export.graph import Graph
from sparse_ddpm_export.halves import prepare
from sparse_ddpm_export.model import describe, images, make_model
from sparse_ddpm_export.operations import Context, emit_program, film_of
from sparse_ddpm_export.time_embedding import time_rows

SAMPLER_TEXT = """A sampler of a pruned diffusion model. noise: float32 [N, C, H, W], standard
normal; images: float32 [N, C, H, W]. With step_noise, float32 [steps, N, C, H, W]: standard normal,
what each step adds (the last step's is multiplied by 0)."""

STEP_TEXT = """One step of a sampler of a pruned diffusion model. x: float32 [N, C, H, W], the
state, standard normal noise before step 0; step: int64, 0 to steps - 1; x_next: the state after the
step, the images after the last one; x0: what the images look like from here. With noise, float32
[N, C, H, W]: standard normal. With x0_previous: the last step's x0 (before step 0, anything)."""


@dataclass(frozen=True, slots=True)
class Baked:
    """Noise inside the file: that of images 0 to ``images - 1`` of ``seed``.

    These are the images that every engine of ours draws for the seed. Raises `ConfigError`.
    """

    seed: int
    images: int = 1

    def __post_init__(self) -> None:
        for what, value, least in (("seed", self.seed, 0), ("images", self.images, 1)):
            if type(value) is not int or value < least:
                raise ConfigError(expected(what, f"an integer of at least {least}", repr(value)))


def export_sampler(
    program: Program,
    table: Table,
    form: Form | None = None,
    metadata: Mapping[str, str] | None = None,
    baked: Baked | None = None,
) -> onnx.ModelProto:
    """All steps of ``table`` in one ``Loop``: ``images = sampler(noise)``.

    Input ``noise`` float32 ``[N, C, H, W]``, output ``images`` of the same shape, in [-1, 1] where
    the table clips; N is free. A table that adds noise makes a second input, ``step_noise`` float32
    ``[S, N, C, H, W]``, of which row i is the z of the table's row i. With ``baked`` both are in
    the file and the model has no inputs. Raises as `export_denoiser`.
    """
    _check_shapes(program)
    program, form = prepare(program, form)
    graph = Graph(("noise", "step_noise", "images", "last_x0"), form)
    body = Graph(("i", "going", "going_on", "x", "x_next", "x0_previous", "x0"), outer=graph)
    film = _Film(graph, program, table)
    adds_noise, remembers = bool(table.u.any()), bool(table.v.any())
    shape = program.input_shape

    z = body.node("Gather", "step_noise", "i", out="z", axis=0) if adds_noise else None
    x_next, x0 = _step(body, program, table, film, "x", "i", z, "x0_previous")
    body.deliver("going", "going_on")
    body.deliver(x_next, "x_next")
    going = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("going", "going_on")]
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        going[0],
        images("x", shape, "N"),
    ]
    outputs = [going[1], images("x_next", shape, "N")]
    carried = ["noise"]
    if remembers:
        # No step came before the first: the table's v is 0 there.
        body.deliver(x0, "x0")
        inputs.append(images("x0_previous", shape, "N"))
        outputs.append(images("x0", shape, "N"))
        carried.append("noise")
    steps = graph.constant(np.array(table.steps, np.int64), "steps")
    start = graph.constant(np.array(True), "true")
    if baked is not None:
        _bake(graph, table, shape, baked)
    names = ["images", "last_x0"][: len(carried)]
    graph.nodes.append(
        helper.make_node(
            "Loop",
            [steps, start, *carried],
            names,
            "sampler",
            body=body.proto("step", inputs, outputs),
        )
    )
    return make_model(
        graph,
        "sampler",
        [] if baked else _noise_inputs(table, shape),
        [images("images", shape, baked.images if baked else "N")],
        {
            **describe(program, graph, "sampler"),
            **_settings(table),
            **({"noise_seed": str(baked.seed)} if baked else {}),
            **(metadata or {}),
        },
        SAMPLER_TEXT,
    )


def export_step(
    program: Program,
    table: Table,
    form: Form | None = None,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """One step of ``table``: ``x_next, x0 = step(x, step)``, for callers that show progress.

    Inputs ``x`` float32 ``[N, C, H, W]`` and ``step`` int64 ``[]``, a row of the table; with a
    table that adds noise ``noise``, with one that looks back ``x0_previous``, both of x's shape.
    Outputs ``x_next`` and ``x0`` of x's shape; N is free. Raises as `export_denoiser`.
    """
    _check_shapes(program)
    program, form = prepare(program, form)
    graph = Graph(("x", "step", "noise", "x0_previous", "x_next", "x0"), form)
    adds_noise = bool(table.u.any())
    x_next, x0 = _step(
        graph,
        program,
        table,
        _Film(graph, program, table),
        "x",
        "step",
        "noise" if adds_noise else None,
        "x0_previous",
    )
    graph.deliver(x_next, "x_next")
    graph.deliver(x0, "x0")
    shape = program.input_shape
    inputs = [images("x", shape, "N"), helper.make_tensor_value_info("step", TensorProto.INT64, [])]
    if adds_noise:
        inputs.append(images("noise", shape, "N"))
    if table.v.any():
        inputs.append(images("x0_previous", shape, "N"))
    return make_model(
        graph,
        "step",
        inputs,
        [images("x_next", shape, "N"), images("x0", shape, "N")],
        {**describe(program, graph, "step"), **_settings(table), **(metadata or {})},
        STEP_TEXT,
    )


def _step(
    graph: Graph,
    program: Program,
    table: Table,
    film: _Film,
    x: str,
    index: str,
    noise: str | None,
    previous: str,
) -> tuple[str, str]:
    """One row of the table (`sparse_ddpm.sampling.table`): the names of x' and x0."""
    context = Context(graph, program.shapes, lambda operation: film(graph, operation, index))
    n = emit_program(context, program, x)

    def total(name: str, *terms: tuple[str, str | None]) -> str:
        """The sum of column times tensor, without the columns that are zero."""
        found = ""
        for column, tensor in terms:
            values = getattr(table, column)
            if not values.any():
                continue
            assert tensor is not None
            column_name = graph.constant(values.astype(np.float32), f"table.{column}")
            factor = graph.node("Gather", column_name, index, out=f"sampler/{column}", axis=0)
            term = graph.node("Mul", factor, tensor, out=f"sampler/{column}_{name}")
            found = graph.node("Add", found, term, out=f"sampler/{name}") if found else term
        return found

    x0 = total("x0", ("q", n), ("p", x))
    if table.clip:
        low, high = graph.scalar(-1.0, "low"), graph.scalar(1.0, "high")
        x0 = graph.node("Clip", x0, low, high, out="sampler/clipped")
    return total("x_next", ("r", x0), ("s", x), ("w", n), ("u", noise), ("v", previous)), x0


class _Film:
    """What time changes, for all steps ``[S, C, 1, 1]`` in the outer graph, gathered step by step.

    They depend on constants alone, so a runtime computes them once, when it loads the model. The
    outer graph holds whichever is smaller: the time table or the weights of the time embedding.
    """

    def __init__(self, graph: Graph, program: Program, table: Table) -> None:
        self._graph = graph
        time = program.time
        rows = time.table(table.timesteps).astype(np.float32)
        weights = (time.weight1, time.bias1, time.weight2, time.bias2, time.film_bias)
        dense = graph.form.weights == "dense"
        film = 4 * time.film.shape[0] * time.film.shape[1] if dense else 5 * time.film.nnz
        if rows.nbytes <= film + sum(weight.nbytes for weight in weights):
            self._rows = graph.constant(rows, "time.table")
        else:
            timesteps = graph.constant(table.timesteps.astype(np.float32), "timesteps")
            self._rows = time_rows(graph, time, timesteps)

    def __call__(self, graph: Graph, operation: Conv | NormAct, index: str) -> tuple[str, ...]:
        return tuple(
            graph.node("Gather", name, index, out=f"{name}_of_step", axis=0)
            for name in film_of(self._graph, self._rows, operation)
        )


def _noise_inputs(table: Table, shape: Shape) -> list[onnx.ValueInfoProto]:
    inputs = [images("noise", shape, "N")]
    if table.u.any():
        inputs.append(images("step_noise", shape, table.steps, "N"))
    return inputs


def _bake(graph: Graph, table: Table, shape: Shape, baked: Baked) -> None:
    """What would be inputs, as initializers of the same names."""
    indices = np.arange(baked.images)
    arrays = {"noise": normal(baked.seed, indices, 0, shape)}
    if table.u.any():
        rows = [normal(baked.seed, indices, step + 1, shape) for step in range(table.steps)]
        arrays["step_noise"] = np.stack(rows)
    for name, array in arrays.items():
        graph.count(array.nbytes, name)
        graph.initializers.append(numpy_helper.from_array(array, name))


def _settings(table: Table) -> dict[str, str]:
    return {"steps": str(table.steps), "clip": str(table.clip).lower()}


def _check_shapes(program: Program) -> None:
    got = program.shapes[program.output]
    if got != program.input_shape:
        wanted = f"the input's shape {program.input_shape}"
        raise ProgramError(expected(f"output {program.output} of a sampler's network", wanted, got))
