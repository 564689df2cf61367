"""A Program as an ONNX denoiser: one call of the network, for any timesteps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from sparse_ddpm.program import Conv, Program, TimeEmbedding
from sparse_ddpm_export.graph import Graph
from sparse_ddpm_export.operations import Context, emit
from sparse_ddpm_export.packing import weight_initializer

OPSET = 17
IR_VERSION = 8
"""The oldest that holds opset 17: onnxruntime 1.12 (2022) and later load it."""

EXACT_BITS = 12


def export_denoiser(
    program: Program, *, packed: bool = True, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """The network as an ONNX model: ``model_output = network(x, t)``.

    Inputs ``x`` float32 ``[N, C, H, W]`` and ``t`` float32 ``[N]``, a timestep for each image (0 to
    T - 1, whole or not); output ``model_output`` float32 ``[N, C, H, W]``; N is free. The time
    embedding is part of the graph. Tensors bear the names of the Program's values.

    ``packed``: weights as `sparse_ddpm_export.packing` stores them where that is smaller; False:
    all dense. ``metadata``: more entries of the model's metadata, such as the ticket's provenance.
    The model passes ``onnx.checker`` with ``full_check``. Raises `ProgramError` when the weights
    exceed the 2 GiB that protobuf can hold.
    """
    graph = Graph(reserved=("x", "t", "model_output"))
    film = _time(graph, program.time, packed)
    context = Context(graph, program.shapes, film, packed)
    tensors = {program.input: "x"}
    for operation in program.operations:
        tensors[operation.out] = emit(context, operation, tensors)
    graph.nodes.append(
        helper.make_node("Identity", [tensors[program.output]], ["model_output"], "model_output")
    )

    def image(name: str, value: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *program.shapes[value]])

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "denoiser",
            [
                image("x", program.input),
                helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N"]),
            ],
            [image("model_output", program.output)],
            graph.initializers,
            doc_string="One call of a pruned diffusion model's network. x: float32 [N, C, H, W]; "
            "t: float32 [N], a timestep for each image; model_output: float32 [N, C, H, W].",
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="sparse-ddpm",
    )
    helper.set_model_props(model, {**_description(program, packed), **(metadata or {})})
    onnx.checker.check_model(model, full_check=True)
    return model


def _description(program: Program, packed: bool) -> dict[str, str]:
    """What the Program itself knows, for the model's metadata."""
    weights = [op.weight for op in program.operations if isinstance(op, Conv)]
    weights.append(program.time.film)
    return {
        "what": "denoiser",
        "weights": "packed" if packed else "dense",
        "weights_total": str(sum(math.prod(weight.shape) for weight in weights)),
        "weights_stored": str(sum(weight.nnz for weight in weights)),
    }


def _time(graph: Graph, time: TimeEmbedding, packed: bool) -> str:
    """The time table's row of each image: the name of ``[N, columns]``."""

    def linear(x: str, weight: NDArray[np.float32], bias: NDArray[np.float32], name: str) -> str:
        matrix = weight_initializer(graph, weight, f"{name}.weight", packed=packed)
        return graph.node(
            "Gemm", x, matrix, graph.constant(bias, f"{name}.bias"), out=name, transB=1
        )

    hidden = linear(_sinusoids(graph, time.dim), time.weight1, time.bias1, "time.linear1")
    # GELU as 0.5 x (1 + erf(x / sqrt 2)): the operator itself came with opset 20.
    root = graph.node("Div", hidden, graph.scalar(math.sqrt(2.0), "root_2"), out="time/root")
    erf = graph.node("Erf", root, out="time/erf")
    erf = graph.node("Add", erf, graph.scalar(1.0, "one"), out="time/erf_1")
    hidden = graph.node("Mul", hidden, erf, out="time/doubled")
    hidden = graph.node("Mul", hidden, graph.scalar(0.5, "half"), out="time/gelu")
    hidden = linear(hidden, time.weight2, time.bias2, "time.linear2")
    gate = graph.node("Sigmoid", hidden, out="time/gate")
    hidden = graph.node("Mul", hidden, gate, out="time/silu")
    return linear(hidden, time.film.to_dense(), time.film_bias, "time.film")


def _sinusoids(graph: Graph, dim: int) -> str:
    """``sin(t f_i), cos(t f_i)``: the name of ``[N, dim]``.

    In float32 the product t f is off by up to 3e-5 at t = 1000. So f = coarse + fine, where t
    times coarse is exact for whole t below 4096, and the addition theorems put them together.
    """
    half = dim // 2
    frequencies = np.exp(np.arange(half) * (-math.log(10_000.0) / max(half - 1, 1)))
    mantissa, exponent = np.frexp(frequencies)
    coarse = np.ldexp(np.round(np.ldexp(mantissa, EXACT_BITS)), exponent - EXACT_BITS)
    t = graph.reshape("t", (-1, 1), "time/t")
    waves = []
    for name, part in (("coarse", coarse), ("fine", frequencies - coarse)):
        constant = graph.constant(part.astype(np.float32), f"time.{name}")
        angle = graph.node("Mul", t, constant, out=f"time/{name}")
        waves += [graph.node(kind, angle, out=f"time/{name}_{kind}") for kind in ("Sin", "Cos")]
    sin, cos, sin_fine, cos_fine = waves

    def product(a: str, b: str, name: str) -> str:
        return graph.node("Mul", a, b, out=f"time/{name}")

    sine = graph.node(
        "Add", product(sin, cos_fine, "sin_cos"), product(cos, sin_fine, "cos_sin"), out="time/sin"
    )
    cosine = graph.node(
        "Sub", product(cos, cos_fine, "cos_cos"), product(sin, sin_fine, "sin_sin"), out="time/cos"
    )
    return graph.node("Concat", sine, cosine, out="time/sinusoids", axis=1)
