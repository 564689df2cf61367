"""Everything that a plan keeps on the device: values, workspaces, tables. Allocated once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_ddpm.engine.cuda.plan import CudaPlan
from sparse_ddpm.engine.film import Films
from sparse_ddpm.program import Conv, NormAct

TORCH_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}

Launch = Callable[[], None]

Rows = tuple[torch.Tensor, int, int, torch.Tensor | None]
"""A table, the columns of a norm's factors and summands, and the step that picks the row."""


@dataclass(frozen=True, slots=True)
class Moments:
    """What a convolution's epilogue leaves for the norm after it."""

    values: torch.Tensor
    channels_per_block: int
    tile_pixels: int


class Workspace:
    """One float32 buffer for what lives within a step, grown while the plan is bound."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._wanted = 0
        self._memory: torch.Tensor | None = None

    def want(self, elements: int) -> None:
        """Make room for ``elements``."""
        assert self._memory is None, "all wishes come before the first use"
        self._wanted = max(self._wanted, elements)

    @property
    def memory(self) -> torch.Tensor:
        """Float32 ``[elements]`` of the largest wish."""
        if self._memory is None:
            self._memory = torch.zeros(
                max(self._wanted, 1), dtype=torch.float32, device=self._device
            )
        return self._memory


class Buffers:
    """Memory of a `CudaPlan`. ``tiles``: measured, by convolution; ``overlap``: see `CudaEngine`.

    ``x``: float32 ``[batch, C, H, W]``, where the input is read; ``output``: where the output is
    written; ``step``: int32 ``[1]``, the row of the time table; ``table``: see `set_table`;
    ``row``: a copy of that row, where biases that time changes are read.
    ``moments``: what convolutions leave, by their values; ``merged``: contexts of fused blocks.
    """

    def __init__(
        self,
        plan: CudaPlan,
        device: torch.device,
        tiles: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        overlap: bool = False,
    ) -> None:
        self.plan = plan
        self.device = device
        self.dtype = TORCH_DTYPES[plan.dtype]
        self.tiles = tiles
        self.overlap = overlap
        program = plan.program
        self.storage = [layout.allocate(self.dtype, device) for layout in plan.memory.buffers]
        self.x = torch.zeros((plan.batch, *program.input_shape), device=device)
        self.output = torch.zeros((plan.batch, *program.shapes[program.output]), device=device)
        self.step = torch.zeros(1, dtype=torch.int32, device=device)
        self.films = Films.of(program)
        self.table = torch.zeros((1, max(self.films.width, 1)), device=device)
        self.row = torch.zeros_like(self.table)
        self.workspace = Workspace(device)
        self.moments: dict[str, Moments] = {}
        self.merged: list[torch.Tensor] = []

    def view(self, name: str) -> torch.Tensor:
        """A value, ``[C, H, W, images]``."""
        place = self.plan.memory.places[name]
        whole = place.layout.view(self.storage[place.buffer])
        return whole[place.first : place.first + place.channels]

    def poison(self) -> None:
        """Fill all pixels, and what lives within a step, with NaN; halos stay zero."""
        for layout, storage in zip(self.plan.memory.buffers, self.storage, strict=True):
            layout.view(storage).fill_(float("nan"))
        self.workspace.memory.fill_(float("nan"))
        for held in (*(moments.values for moments in self.moments.values()), *self.merged):
            held.fill_(float("nan"))

    @property
    def bytes(self) -> int:
        """Of activations and what lives within a step, allocated."""
        held = [*self.storage, self.x, self.output, self.workspace.memory]
        held += [*(moments.values for moments in self.moments.values()), *self.merged]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def set_table(self, table: NDArray[np.float32]) -> bool:
        """The time table, `Films.table`; whether it took new memory, so that graphs are void."""
        if table.shape[1] == 0:
            return False
        fresh = torch.from_numpy(table)
        if len(table) > len(self.table):
            self.table = fresh.to(self.device)
            return True
        self.table[: len(table)].copy_(fresh)
        return False

    def float32(self, array: NDArray[Any]) -> torch.Tensor:
        # A copy: arrays of a Program are read-only, which torch does not know.
        return torch.from_numpy(np.array(array, dtype=np.float32)).to(self.device)

    def bias_of(self, operation: Conv) -> torch.Tensor | None:
        """A convolution's bias, float32 ``[C]``; with FiLM a part of ``row``."""
        if operation.film is None:
            return None if operation.bias is None else self.float32(operation.bias)
        column = self.films.columns[operation.out]
        return self.row[0, column : column + operation.weight.shape[0]]

    def rows_of(self, operation: NormAct) -> Callable[[], Rows]:
        """Where a norm's factors and summands are, when it is launched."""
        channels = len(operation.gamma)
        if operation.film is None:
            constant = self.float32(np.concatenate([operation.gamma, operation.beta])[None, :])
            return lambda: (constant, 0, channels, None)
        column = self.films.columns[operation.out]
        return lambda: (self.table, column, column + channels, self.step)
