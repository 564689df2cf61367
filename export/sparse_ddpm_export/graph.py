"""An ONNX graph under construction: nodes in order, initializers, names that never clash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from sparse_ddpm.errors import ProgramError, expected
from sparse_ddpm_export.form import Form

MAX_BYTES = 2**31 - 2**24
"""What initializers may hold together: protobuf ends at 2 GiB, and nodes and names need room."""

SHARED_SIZE = 64
"""Initializers of at most so many elements are stored once, however often they are used."""


class Graph:
    """Collects nodes and initializers. ``reserved``: names of the graph's inputs and outputs.

    A graph inside a node (a Loop's body) is made with ``outer``: its names differ from those of the
    graph around it, whose tensors its nodes may read.
    """

    def __init__(
        self, reserved: Sequence[str], form: Form | None = None, outer: Graph | None = None
    ) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.form: Form = outer.form if outer else form or Form()
        self._root: Graph = outer._root if outer else self
        self._used: Counter[str] = outer._used if outer else Counter()
        self._used.update(reserved)
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._bytes = 0

    def name(self, wish: str) -> str:
        """``wish``, or the first of ``wish_2``, ``wish_3``... that is free.

        Tensors inside an operation ("value/part") get a number instead: written out, their names
        would take a tenth of a very sparse file.
        """
        if "/" in wish:
            wish = "_"
        found = wish
        while self._used[found]:
            self._used[wish] += 1
            found = f"{wish}_{self._used[wish]}"
        self._used[found] = 1
        return found

    def count(self, nbytes: int, wish: str) -> None:
        """Take ``nbytes`` more into the file; `ProgramError` when it gets too large."""
        self._root._bytes += nbytes
        if self._root._bytes > MAX_BYTES:
            raise ProgramError(
                expected("ONNX model", f"at most {MAX_BYTES} bytes of weights", f"more, at {wish}")
            )

    def constant(self, array: NDArray[Any], wish: str) -> str:
        """The name of an initializer that holds ``array``."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if array.size <= SHARED_SIZE and key in self._shared:
            return self._shared[key]
        self.count(array.nbytes, wish)
        name = self.name(wish)
        self.initializers.append(numpy_helper.from_array(array, name))
        if array.size <= SHARED_SIZE:
            self._shared[key] = name
        return name

    def trained(self, array: NDArray[np.float32], wish: str) -> str:
        """The name of a float32 tensor that holds ``array``, in the file as the form has it."""
        stored = array if array.size <= SHARED_SIZE else self.form.stored(array)
        if stored.dtype == np.float32:
            return self.constant(stored, wish)
        half = self.constant(stored, f"{wish}/half")
        return self.node("Cast", half, out=wish, to=TensorProto.FLOAT)

    def scalar(self, value: float, wish: str) -> str:
        return self.constant(np.array(value, dtype=np.float32), wish)

    def integers(self, values: Sequence[int], wish: str) -> str:
        return self.constant(np.array(values, dtype=np.int64), wish)

    def nodes_out(
        self, operator: str, inputs: Sequence[str], outs: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs; return their names."""
        names = [self.name(out) for out in outs]
        # Runtimes print node names in profiles and errors; steps inside an operation do without.
        name = None if "/" in outs[0] else names[0]
        self.nodes.append(helper.make_node(operator, inputs, names, name=name, **attributes))
        return names

    def node(self, operator: str, *inputs: str, out: str, **attributes: Any) -> str:
        """Add a node with one output; return its name, which is ``out`` where that is free."""
        return self.nodes_out(operator, inputs, [out], **attributes)[0]

    def reshape(self, x: str, shape: Sequence[int], out: str) -> str:
        """``x`` as ``shape``, where 0 keeps an axis (the batch's) and -1 is what remains."""
        wish = "shape_" + "_".join(str(n) if n >= 0 else "rest" for n in shape)
        return self.node("Reshape", x, self.integers(shape, wish), out=out)

    def deliver(self, tensor: str, output: str) -> None:
        """Make ``tensor`` the graph's ``output``, one of the reserved names."""
        self.nodes.append(helper.make_node("Identity", [tensor], [output], output))

    def proto(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> GraphProto:
        """What was collected, as one graph."""
        return helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
