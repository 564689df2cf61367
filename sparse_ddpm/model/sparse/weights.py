"""The values that kernels read, and the parameters that they come from."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sparse_ddpm_kernels import training as native
from torch import Tensor

from sparse_ddpm.model.layers import STANDARDIZATION_EPS, Conv, Masked
from sparse_ddpm.model.sparse.memory import Geometry
from sparse_ddpm.model.sparse.panels import GRADIENT_ENTRIES, PRODUCT_ENTRIES, Panels, make_panels

TILE, NEAR_LINES = 16, 330
"""Pixels of a tile of outputs, and how many of inputs a L1 cache holds beside them; as with 16
lanes, so that weights are laid out the same for any."""


class ConvWeights(NamedTuple):
    """A convolution's weight as its three passes take it."""

    forward: native.Weight
    turned: native.Weight | None
    """From gradients of outputs to those of inputs."""
    taken: native.Weight
    """For its own gradients."""


class Weights:
    """Values: a zero, those of all parameters, then copies in the orders that products read.

    ``values`` and ``gradients`` of a job have `count` and `own` numbers; gradients are of the
    parameters' only.
    """

    def __init__(self) -> None:
        self.parameters: list[Tensor] = []
        """In the order in which they were first used, each once."""
        self._natives: list[native.Parameter] = []
        self._owners: list[int] = []
        self._arrays: list[NDArray[np.generic]] = []
        self._copies: list[tuple[native.Weight, NDArray[np.int64]]] = []
        self.own = 1
        self.count = 0
        self._order = np.zeros(0, np.int64)

    def vector(self, parameter: Tensor) -> int:
        """Where the values of a gain, a shift or a bias begin."""
        return self._add(parameter, None, parameter.numel(), 1, None)

    def conv(
        self,
        module: Conv,
        here: Geometry | int,
        there: Geometry | int,
        *,
        rows: NDArray[np.int64] | None = None,
        columns: NDArray[np.int64] | None = None,
        turn: bool = True,
    ) -> ConvWeights:
        """The weight (or some rows or columns) for inputs that lie as ``here``, outputs ``there``.

        An integer is the distance of channels where there are single pixels only. With ``rows``
        the bias is left out; without ``turn`` nothing is turned.
        """
        weight, size = module.weight, module.size
        outputs = np.arange(len(weight)) if rows is None else rows
        inputs = np.arange(weight.shape[1]) if columns is None else columns
        chosen = np.ix_(outputs, inputs)
        taps = size * size
        index = np.arange(weight.numel(), dtype=np.int32).reshape(weight.shape)[chosen]
        mask = survivors(module)[chosen]
        flat = (len(outputs), len(inputs) * taps)
        matrix, near = (mask.reshape(flat), index.reshape(flat)), _near(size, here)
        own = make_panels(*matrix, near, GRADIENT_ENTRIES)
        value = self._add(weight, own.index, own.index.size, len(weight), module)
        bias = -1
        if rows is None and module.bias is not None:
            bias = self.vector(module.bias)
        taken = self._native(own, _offsets(own.column, size, here, 1), value, bias)
        place = np.zeros(weight.numel(), np.int64)
        inside = own.index.ravel() >= 0
        place[own.index.ravel()[inside]] = value + np.nonzero(inside)[0]
        forward, read = taken, make_panels(*matrix, near, PRODUCT_ENTRIES)
        if read.chunks != own.chunks:
            forward = self._copy(read, _offsets(read.column, size, here, 1), place, bias)
        if not turn:
            return ConvWeights(forward, None, taken)
        across = (1, 0, 2, 3)
        flat = (len(inputs), len(outputs) * taps)
        back = make_panels(
            mask.transpose(across).reshape(flat),
            index.transpose(across).reshape(flat),
            _near(size, there),
            PRODUCT_ENTRIES,
        )
        offsets = _offsets(back.column, size, there, -1)
        return ConvWeights(forward, self._copy(back, offsets, place, -1), taken)

    def _copy(
        self, panels: Panels, offsets: NDArray[np.int32], place: NDArray[np.int64], bias: int
    ) -> native.Weight:
        """A weight that reads copies, in its own order, of values that stand at ``place``."""
        made = self._native(panels, offsets, 0, bias)
        order = np.where(panels.index >= 0, place[np.maximum(panels.index, 0)], 0).ravel()
        self._copies.append((made, order))
        return made

    def keep(self, array: NDArray[np.generic]) -> int:
        """The address of an array that lives as long as this."""
        self._arrays.append(array)
        return array.ctypes.data

    def _native(
        self, panels: Panels, offsets: NDArray[np.int32], value: int, bias: int
    ) -> native.Weight:
        ptr, places = self.keep(panels.ptr), self.keep(offsets)
        return native.Weight(
            panels.group,
            panels.rows,
            (len(panels.ptr) - 1) // panels.chunks,
            panels.chunks,
            ptr,
            places,
            value,
            bias,
        )

    def _add(
        self,
        parameter: Tensor,
        index: NDArray[np.int32] | None,
        count: int,
        rows: int,
        module: Masked | None,
    ) -> int:
        owner = next((i for i, p in enumerate(self.parameters) if p is parameter), None)
        if owner is None:
            owner = len(self.parameters)
            self.parameters.append(parameter)
        start = self.own
        self.own += count
        made = native.Parameter(count=count, value=start, rows=rows, eps=-1.0)
        made.row_size = parameter.numel() // rows
        if index is not None:
            made.index = self.keep(np.ascontiguousarray(index))
        if module is not None and module.standardized == "surviving":
            made.eps, made.moments = STANDARDIZATION_EPS, self.keep(np.zeros((rows, 2)))
        self._natives.append(made)
        self._owners.append(owner)
        return start

    def finish(self) -> None:
        """Lay out the copies; call it before operations take the weights."""
        self.count = self.own
        for made, order in self._copies:
            made.value = self.count
            self.count += len(order)
        self._order = np.concatenate([np.zeros(0, np.int64), *(order for _, order in self._copies)])

    def gather(self, values: NDArray[np.float32]) -> None:
        """Fill ``values`` ``[count]`` from the parameters, as they are now."""
        native.gather(self._table(None), values.ctypes.data)
        values[0] = 0.0
        np.take(values[: self.own], self._order, out=values[self.own :], mode="clip")

    def scatter(
        self, values: NDArray[np.float32], gradients: NDArray[np.float32], to: list[Tensor]
    ) -> None:
        """Gradients ``[own]`` of the values to those of the parameters, zeros before."""
        native.scatter(self._table(to), values.ctypes.data, gradients.ctypes.data)

    def _table(self, gradients: list[Tensor] | None) -> ctypes.Array[native.Parameter]:
        for made, owner in zip(self._natives, self._owners, strict=True):
            made.dense = self.parameters[owner].data_ptr()
            made.gradient = None if gradients is None else gradients[owner].data_ptr()
        return (native.Parameter * len(self._natives))(*self._natives)


def survivors(module: Masked) -> NDArray[np.bool_]:
    """The mask of a module's weight."""
    if module.mask is None:
        return np.ones(module.weight.shape, bool)
    mask: NDArray[np.bool_] = module.mask.detach().cpu().numpy() != 0
    return mask


def _near(size: int, lies: Geometry | int) -> int | None:
    """Columns of a weight whose pixels, for one tile of outputs, fit two thirds of a L1 cache."""
    if isinstance(lies, int) or size == 1:
        return None
    width = min(lies.width, TILE)
    lines = (TILE // width + size - 1) * (width + size - 1)
    channels = max(1, NEAR_LINES // lines)
    return channels * size * size


def _offsets(
    column: NDArray[np.int32], size: int, lies: Geometry | int, sign: int
) -> NDArray[np.int32]:
    """Of the column ``(c * size + r) * size + s``; ``sign`` -1: taps point the other way."""
    if isinstance(lies, int):
        return (column * lies).astype(np.int32)
    channel, tap = np.divmod(column.astype(np.int64), size * size)
    r, s = np.divmod(tap, size)
    shift = (r - size // 2) * lies.row + (s - size // 2) * lies.lanes
    offsets: NDArray[np.int32] = (channel * lies.channel + sign * shift).astype(np.int32)
    return offsets
