"""From a graph to a model: opset, IR version, metadata, and what is said of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, ValueInfoProto, helper

from sparse_ddpm.program import Conv, Program
from sparse_ddpm.program.program import Shape
from sparse_ddpm_export.graph import Graph


def images(name: str, shape: Shape, *leading: int | str) -> ValueInfoProto:
    """A float32 input or output ``[*leading, C, H, W]``; a leading axis that is a word is free."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [*leading, *shape])


def describe(program: Program, graph: Graph, what: str) -> dict[str, str]:
    """What the Program itself knows, for the model's metadata."""
    channels, height, width = program.input_shape
    return {
        "what": what,
        "weights": graph.form.weights,
        "dtype": graph.form.dtype,
        **count_weights(program),
        "channels": str(channels),
        "height": str(height),
        "width": str(width),
        "image_range": "-1 1",
    }


def count_weights(program: Program) -> dict[str, str]:
    """How many weights there were before any was pruned, and how many there are."""
    convolutions = [op for op in program.operations if isinstance(op, Conv)]
    film = program.time.film
    return {
        "weights_total": str(math.prod(film.shape) + sum(op.places for op in convolutions)),
        "weights_stored": str(film.nnz + sum(op.weight.nnz for op in convolutions)),
    }


def make_model(
    graph: Graph,
    name: str,
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    metadata: Mapping[str, str],
    text: str,
) -> onnx.ModelProto:
    """The model, which has passed ``onnx.checker`` without ``full_check``."""
    opset = [helper.make_opsetid("", graph.form.opset)]
    proto = graph.proto(name, inputs, outputs)
    proto.doc_string = text
    model = helper.make_model(
        proto,
        opset_imports=opset,
        # The oldest that holds the opset, for the sake of old runtimes.
        ir_version=helper.find_min_ir_version_for(opset),
        producer_name="sparse-ddpm",
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model
