"""The backward pass of a list of steps: its operations, and where its gradients lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sparse_ddpm_kernels.training import Kind, Op, Tensor

from sparse_ddpm.model.layers import NORM_EPS
from sparse_ddpm.model.sparse.memory import Buffer, Geometry, Recycler, Value, tensor
from sparse_ddpm.model.sparse.steps import Step

BACK = {
    Kind.NORM_ACT: Kind.NORM_ACT_BACK,
    Kind.CHANNEL_NORM: Kind.CHANNEL_NORM_BACK,
    Kind.LINEAR: Kind.LINEAR_BACK,
    Kind.SOFTMAX: Kind.SOFTMAX_BACK,
    Kind.SPACE_TO_DEPTH: Kind.SPACE_TO_DEPTH_BACK,
    Kind.UPSAMPLE: Kind.UPSAMPLE_BACK,
}


def operation(step: Step) -> Op:
    """The step as the forward pass does it."""
    op = Op(kind=step.kind, accumulate=step.accumulate, eps=NORM_EPS)
    for name in ("groups", "heads", "dim_head", "film", "a", "b", "saved", "kept"):
        setattr(op, name, getattr(step, name))
    for name in ("x", "y", "out"):
        value = getattr(step, name)
        if value is not None:
            setattr(op, name, value.tensor())
    for i, weight in enumerate((*step.weights, *step.turned)):
        op.w[i] = weight
    return op


class Backward:
    """Operations in reverse. A gradient lives from its first part until its value was made.

    A value's gradient is written by the first operation that has a part of it, and added to by
    the others.
    """

    def __init__(self, steps: list[Step]) -> None:
        self.operations: list[Op] = []
        self._recyclers: dict[Geometry, Recycler] = {}
        self._places: dict[Buffer, int] = {}
        self._written: dict[Buffer, NDArray[np.bool_]] = {}
        self._tensors: list[tuple[Op, str, Geometry]] = []
        for step in reversed(steps):
            self._add(step)
        self.floats = 0
        """Of the workspace, before its scratch."""
        for geometry, recycler in self._recyclers.items():
            for op, name, of in self._tensors:
                if of == geometry:
                    getattr(op, name).offset += self.floats
            self.floats += recycler.channels * geometry.channel

    def _add(self, step: Step) -> None:
        if step.kind == Kind.LOAD:
            return
        if step.kind == Kind.STORE:
            assert step.x is not None
            self._emit(Op(kind=Kind.LOAD), out=step.x)
            return
        assert step.x is not None
        assert step.out is not None
        if step.kind == Kind.CONV:
            taken = Op(kind=Kind.CONV_WEIGHT, x=step.x.tensor())
            taken.w[0] = step.taken[0]
            self._emit(taken, y=step.out)
            if step.turned:
                passed = Op(kind=Kind.CONV)
                passed.w[0] = step.turned[0]
                self._emit(passed, x=step.out, out=step.x)
        elif step.kind == Kind.ADD:
            self._emit(Op(kind=Kind.ADD), x=step.out, out=step.x)
        else:
            op = operation(step)
            op.kind, op.y = BACK[step.kind], Tensor()
            self._emit(op, y=step.out, out=step.x)
            if step.y is not None:
                self._emit(Op(kind=Kind.ADD), x=step.out, out=step.y)
        if not step.accumulate:
            self._free(step.out)

    def _emit(
        self, op: Op, *, x: Value | None = None, y: Value | None = None, out: Value | None = None
    ) -> None:
        """Add ``op`` on the gradients of these values; ``out`` is written or added to."""
        for name, value in (("x", x), ("y", y)):
            if value is not None:
                assert self._written[value.buffer][_channels(value)].all()
                self._set(op, name, value)
        if out is not None:
            if out.buffer not in self._places:
                recycler = self._recyclers.setdefault(out.buffer.geometry, Recycler())
                self._places[out.buffer] = recycler.take(out.buffer.channels)
                self._written[out.buffer] = np.zeros(out.buffer.channels, bool)
            written = self._written[out.buffer][_channels(out)]
            assert written.all() or not written.any()
            op.accumulate = bool(written.all())
            written[:] = True
            self._set(op, "out", out)
        self.operations.append(op)

    def _set(self, op: Op, name: str, value: Value) -> None:
        geometry = value.buffer.geometry
        first = self._places[value.buffer] + value.first
        setattr(op, name, tensor(geometry, 0, first, value.channels, space=1))
        self._tensors.append((op, name, geometry))

    def _free(self, value: Value) -> None:
        recycler = self._recyclers[value.buffer.geometry]
        recycler.give(self._places[value.buffer] + value.first, value.channels)


def _channels(value: Value) -> slice:
    return slice(value.first, value.first + value.channels)
