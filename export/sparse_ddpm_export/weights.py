"""A trained weight in the graph: packed, dense, or in the standard's sparse form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sparse_ddpm_export.graph import SHARED_SIZE, Graph
from sparse_ddpm_export.packing import pack

NODE_BYTES = 400
"""Roughly what the nodes, names and shapes of one packed weight take in the file."""

SPARSE_NODE_BYTES = 160
"""The same for one `Constant` with a sparse value."""


def weight_initializer(graph: Graph, weight: NDArray[np.float32], name: str) -> str:
    """The name of a float32 tensor that holds ``weight`` in the graph's form.

    Small weights, and those that the form would not make smaller, are dense.
    """
    form = graph.form
    if form.weights == "dense" or weight.size <= SHARED_SIZE:
        return graph.trained(weight, name)
    stored = form.stored(weight)
    if form.weights == "sparse":
        places = np.flatnonzero(stored)
        if len(places) * (8 + stored.itemsize) + SPARSE_NODE_BYTES < stored.nbytes:
            return _sparse_constant(graph, stored, places, name)
    else:
        gaps, values = pack(stored)
        if len(gaps) * (1 + stored.itemsize) + NODE_BYTES < stored.nbytes:
            return _decoded(graph, gaps, values, weight.shape, name)
    return graph.trained(weight, name)


def _decoded(
    graph: Graph, gaps: NDArray[Any], values: NDArray[Any], shape: tuple[int, ...], name: str
) -> str:
    """The nodes that `sparse_ddpm_export.packing` describes."""

    def step(operator: str, *inputs: str, out: str, **attributes: Any) -> str:
        return graph.node(operator, *inputs, out=f"{name}/{out}", **attributes)

    # int32 indices: half the memory of int64 while the model loads.
    steps = step("Cast", graph.constant(gaps, f"{name}/gaps"), out="steps", to=TensorProto.INT32)
    axis = graph.constant(np.array(0, dtype=np.int64), "axis_0")
    places = step("CumSum", steps, axis, out="places")
    zero = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    size = int(np.prod(shape))
    zeros = step("ConstantOfShape", graph.integers([size], f"size_{size}"), out="zeros", value=zero)
    entries = graph.constant(values, f"{name}/values")
    if values.dtype != np.float32:
        entries = step("Cast", entries, out="entries", to=TensorProto.FLOAT)
    flat = step("ScatterElements", zeros, places, entries, out="flat", axis=0)
    return graph.reshape(flat, shape, name)


def _sparse_constant(
    graph: Graph, weight: NDArray[Any], places: NDArray[np.int64], name: str
) -> str:
    """One `Constant` node with the places in C order, and the values, of what is not zero."""
    flat = weight.reshape(-1)
    graph.count(places.nbytes + places.size * weight.itemsize, name)
    value = helper.make_sparse_tensor(
        numpy_helper.from_array(flat[places], f"{name}/values"),
        numpy_helper.from_array(places, f"{name}/places"),
        weight.shape,
    )
    if weight.dtype == np.float32:
        return graph.node("Constant", out=name, sparse_value=value)
    half = graph.node("Constant", out=f"{name}/half", sparse_value=value)
    return graph.node("Cast", half, out=name, to=TensorProto.FLOAT)
