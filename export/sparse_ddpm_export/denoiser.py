"""A Program as an ONNX denoiser: one call of the network, for any timesteps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import onnx
from onnx import TensorProto, helper

from sparse_ddpm.program import Program
from sparse_ddpm_export.form import Form
from sparse_ddpm_export.graph import Graph
from sparse_ddpm_export.halves import prepare
from sparse_ddpm_export.model import describe, images, make_model
from sparse_ddpm_export.operations import Context, emit_program, film_of
from sparse_ddpm_export.time_embedding import time_rows

TEXT = """One call of a pruned diffusion model's network. x: float32 [N, C, H, W]; t: float32 [N], a
timestep for each image; model_output: float32 [N, C, H, W]."""


def export_denoiser(
    program: Program, form: Form | None = None, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """The network as an ONNX model: ``model_output = network(x, t)``.

    Inputs ``x`` float32 ``[N, C, H, W]`` and ``t`` float32 ``[N]``, a timestep for each image (0 to
    T - 1, whole or not); output ``model_output`` float32 ``[N, C, H, W]``; N is free. The time
    embedding is part of the graph. Tensors bear the names of the Program's values. ``metadata``:
    more entries of the model's metadata, such as the ticket's provenance. Raises `ProgramError`
    when the weights exceed the 2 GiB that protobuf can hold, or a value what float16 can.
    """
    program, form = prepare(program, form)
    graph = Graph(("x", "t", "model_output"), form)
    film = partial(film_of, graph, time_rows(graph, program.time, "t"))
    last = emit_program(Context(graph, program.shapes, film), program, "x")
    graph.deliver(last, "model_output")
    return make_model(
        graph,
        "denoiser",
        [
            images("x", program.input_shape, "N"),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N"]),
        ],
        [images("model_output", program.shapes[program.output], "N")],
        {**describe(program, graph, "denoiser"), **(metadata or {})},
        TEXT,
    )
