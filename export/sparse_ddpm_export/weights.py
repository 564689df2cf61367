"""A trained weight in the graph: packed, dense, or in the standard's sparse form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sparse_ddpm_export.graph import SHARED_SIZE, Graph
from sparse_ddpm_export.packing import NO_ENTRY, pack, pack_nibbles

NODE_BYTES = 400
"""Roughly what the nodes, names and shapes of one packed weight take in the file."""

NIBBLE_NODE_BYTES = 900
"""The same with nibbles."""

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
        return graph.trained(weight, name)
    packed, nibbles = pack(stored), pack_nibbles(stored)
    sizes = (
        stored.nbytes,
        NODE_BYTES + sum(part.nbytes for part in packed),
        NIBBLE_NODE_BYTES + sum(part.nbytes for part in nibbles),
    )
    match sizes.index(min(sizes)):
        case 0:
            return graph.trained(weight, name)
        case 1:
            return _Decoder(graph, name, weight.shape).bytes(*packed)
        case _:
            return _Decoder(graph, name, weight.shape).nibbles(*nibbles)


class _Decoder:
    """The nodes that `sparse_ddpm_export.packing` describes; both give the tensor's name."""

    def __init__(self, graph: Graph, name: str, shape: tuple[int, ...]) -> None:
        self._graph, self._name, self._shape = graph, name, shape
        self._size = int(np.prod(shape))

    def bytes(self, gaps: NDArray[Any], values: NDArray[Any]) -> str:
        places = self._running_sum(self._integers(gaps))
        flat = self._scatter(self._size, places, self._values(values))
        return self._graph.reshape(flat, self._shape, self._name)

    def nibbles(self, codes: NDArray[Any], values: NDArray[Any]) -> str:
        pairs = self._integers(codes)
        upper = self._step("Div", pairs, self._int32(16))
        lower = self._step("Sub", pairs, self._step("Mul", upper, self._int32(16)))
        numbers = self._step("Concat", upper, lower, axis=0)
        entry = self._step("Less", numbers, self._int32(NO_ENTRY))
        counted = self._step("Cast", entry, to=TensorProto.INT32)
        found = self._step("Gather", self._values(values), self._running_sum(counted, exclusive=1))
        updates = self._step("Where", entry, found, self._graph.scalar(0.0, "zero"))
        further = self._step("Add", numbers, self._int32(1))
        places = self._running_sum(self._step("Min", further, self._int32(NO_ENTRY)))
        flat = self._scatter(self._size + NO_ENTRY + 1, places, updates)
        ends = [self._graph.integers([n], f"size_{n}") for n in (1, self._size + 1)]
        return self._graph.reshape(self._step("Slice", flat, *ends), self._shape, self._name)

    def _step(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self._graph.node(operator, *inputs, out=f"{self._name}/{operator}", **attributes)

    def _integers(self, stored: NDArray[Any]) -> str:
        # int32: half the memory of int64 while the model loads.
        constant = self._graph.constant(stored, f"{self._name}/places")
        return self._step("Cast", constant, to=TensorProto.INT32)

    def _int32(self, value: int) -> str:
        return self._graph.constant(np.array(value, dtype=np.int32), f"int_{value}")

    def _running_sum(self, numbers: str, **attributes: Any) -> str:
        axis = self._graph.constant(np.array(0, dtype=np.int64), "axis_0")
        return self._step("CumSum", numbers, axis, **attributes)

    def _values(self, values: NDArray[Any]) -> str:
        constant = self._graph.constant(values, f"{self._name}/values")
        if values.dtype == np.float32:
            return constant
        return self._step("Cast", constant, to=TensorProto.FLOAT)

    def _scatter(self, size: int, places: str, updates: str) -> str:
        zero = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
        shape = self._graph.integers([size], f"size_{size}")
        zeros = self._step("ConstantOfShape", shape, value=zero)
        return self._step("ScatterElements", zeros, places, updates, axis=0)


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
