"""One convolution as our engine runs it: panels of G channels, single weights, or cuDNN."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from sparse_ddpm_kernels.triton.element_conv import element_conv
from sparse_ddpm_kernels.triton.element_pack import ElementWeights, pack_slices
from sparse_ddpm_kernels.triton.element_tiles import ElementTiles, candidate_element_tiles
from sparse_ddpm_kernels.triton.layout import Layout, padded_images
from sparse_ddpm_kernels.triton.panel_conv import panel_conv
from sparse_ddpm_kernels.triton.panel_pack import PanelWeights, pack_panels
from sparse_ddpm_kernels.triton.panel_tiles import PanelTiles, candidate_panel_tiles

from gpu.devices import Call
from gpu.problems import DENSE, Problem
from sparse_ddpm.engine.panels import Panels, make_panels
from sparse_ddpm.program import Conv

KINDS = {
    DENSE: ("panels:64", "panels:128", "cudnn"),
    "element": ("elements",),
    "vector:16": ("panels:16", "panels:32"),
    "vector:32": ("panels:32", "panels:64"),
    "vector:64": ("panels:64", "panels:32"),
    "block:32x32": ("panels:32", "panels:64"),
}
"""Kernels that a pattern is timed with; the plan's names of them."""
CANDIDATES = 4
"""Tiles that are timed for each, the best by estimate."""


class Buffers:
    """Inputs and outputs of one problem, in sets. ``x``: float32 ``[batch, C, H, W]``."""

    def __init__(self, problem: Problem, x: torch.Tensor, dtype: torch.dtype) -> None:
        self.problem, self.dtype, self.device = problem, dtype, x.device
        self.images = padded_images(problem.batch)
        sides = problem.side, problem.side
        self.x_layout = Layout(problem.channels, *sides, self.images, 1)
        self.out_layout = Layout(problem.channels, *sides, self.images, 1)
        self._x = x
        self._sets: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def bytes(self) -> int:
        """Of a set."""
        return (self.x_layout.size + self.out_layout.size) * self.dtype.itemsize

    def get(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Input and output ``[C, H, W, images]`` of a set; the padding images are random too."""
        while len(self._sets) <= index:
            x, out = (
                layout.view(layout.allocate(self.dtype, self.device))
                for layout in (self.x_layout, self.out_layout)
            )
            repeats = -(-self.images // self.problem.batch)
            x.copy_(self._x.repeat(repeats, 1, 1, 1)[: self.images].permute(1, 2, 3, 0))
            self._sets.append((x, out))
        return self._sets[index]

    def output(self) -> torch.Tensor:
        """Of set 0, float32 ``[batch, C, H, W]``."""
        return self.get(0)[1][..., : self.problem.batch].permute(3, 0, 1, 2).float()


class Kernel(ABC):
    """A kind of kernel for one problem.

    ``candidates``: tiles worth timing. ``entries``: columns of all panels of ``group`` rows.
    """

    candidates: Sequence[Any]
    entries: int

    def __init__(self, conv: Conv, buffers: Buffers, group: int) -> None:
        self.conv, self.buffers, self.group = conv, buffers, group

    @abstractmethod
    def call(self, tiles: Any, index: int) -> Call:
        """The convolution of a set of buffers, with weights of its own."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """That one call reads."""

    @property
    def streamed_bytes(self) -> int | None:
        """Activations that programs load, each as often as an entry asks for it."""
        positions = self.buffers.problem.side**2 * self.buffers.images
        return self.entries * positions * self.buffers.dtype.itemsize


class PanelKernel(Kernel):
    """Panels of ``group`` channels on tensor cores."""

    def __init__(self, problem: Problem, conv: Conv, buffers: Buffers, group: int) -> None:
        super().__init__(conv, buffers, group)
        self.panels: Panels = make_panels(conv.weight, group)
        self.entries = len(self.panels.columns)
        self.candidates = candidate_panel_tiles(
            problem.channels,
            problem.side**2,
            buffers.images,
            self.entries,
            group,
            limit=CANDIDATES,
        )
        self._packed: dict[int, list[PanelWeights]] = {}

    @property
    def weight_bytes(self) -> int:
        return self.entries * (self.group * self.buffers.dtype.itemsize + 4)

    def call(self, tiles: PanelTiles, index: int) -> Call:
        x, out = self.buffers.get(index)
        weights = self._weights(tiles.block_k, index)
        channels, height, width, images = out.shape
        size = tiles.partial_size(channels, height * width, images)
        partial = torch.empty(size, device=x.device) if size else None
        return lambda: panel_conv(x, weights, out, tiles=tiles, partial=partial)

    def _weights(self, block_k: int, index: int) -> PanelWeights:
        made = self._packed.setdefault(block_k, [])
        if not made:
            packed = pack_panels(
                self.panels.ptr,
                self.panels.columns,
                self.panels.values,
                self.panels.rows,
                x=self.buffers.x_layout,
                size=self.conv.size,
                block_k=block_k,
            )
            made.append(packed.to(self.buffers.device, self.buffers.dtype))
        while len(made) <= index:
            made.append(copied(made[0]))
        return made[index]


class ElementKernel(Kernel):
    """Single weights on CUDA cores; float16 is summed in packed pairs."""

    def __init__(self, problem: Problem, conv: Conv, buffers: Buffers) -> None:
        super().__init__(conv, buffers, 1)
        self.panels: Panels = make_panels(conv.weight, 1)
        self.entries = len(self.panels.columns)
        self.candidates = candidate_element_tiles(
            problem.channels,
            problem.side,
            problem.side,
            buffers.images,
            self.entries,
            limit=2 * CANDIDATES,
        )
        self._packed: dict[tuple[int, int], list[ElementWeights]] = {}

    @property
    def weight_bytes(self) -> int:
        return self.entries * (4 if self.buffers.dtype.itemsize == 2 else 8)

    def call(self, tiles: ElementTiles, index: int) -> Call:
        x, out = self.buffers.get(index)
        weights = self._weights(tiles, index)
        return lambda: element_conv(x, weights, out, tiles=tiles)

    def _weights(self, tiles: ElementTiles, index: int) -> ElementWeights:
        made = self._packed.setdefault((tiles.slice_rows, tiles.split), [])
        if not made:
            packed = pack_slices(
                self.panels.ptr,
                self.panels.columns,
                self.panels.values,
                self.panels.rows,
                x=self.buffers.x_layout,
                size=self.conv.size,
                slice_rows=tiles.slice_rows,
                split=tiles.split,
            )
            made.append(packed.to(self.buffers.device, self.buffers.dtype))
        while len(made) <= index:
            made.append(copied(made[0]))
        return made[index]


@dataclasses.dataclass(frozen=True, slots=True)
class NoTiles:
    """cuDNN chooses its own."""


class DenseKernel(Kernel):
    """cuDNN between two transposing copies, as where a plan finds that sparsity does not pay."""

    candidates = (NoTiles(),)

    def __init__(self, problem: Problem, conv: Conv, buffers: Buffers) -> None:
        super().__init__(conv, buffers, problem.channels)
        shape = problem.channels, problem.channels, conv.size, conv.size
        weight = torch.from_numpy(conv.weight.to_dense().reshape(shape).copy())
        form = {"memory_format": torch.channels_last}
        self._weight = weight.to(buffers.device, buffers.dtype).contiguous(**form)
        self.entries = conv.weight.shape[1]

    @property
    def weight_bytes(self) -> int:
        return self._weight.numel() * self.buffers.dtype.itemsize

    @property
    def streamed_bytes(self) -> None:
        return None

    def call(self, tiles: NoTiles, index: int) -> Call:
        x, out = self.buffers.get(index)
        weight, pad = self._weight.clone(), self.conv.size // 2

        def run() -> None:
            images = x.permute(3, 0, 1, 2).contiguous(memory_format=torch.channels_last)
            made = torch.nn.functional.conv2d(images, weight, padding=pad)
            out.copy_(made.permute(1, 2, 3, 0))

        return run


def copied(weights: Any) -> Any:
    """The same, every tensor of it in memory of its own."""
    tensors = {
        field.name: value.clone()
        for field in dataclasses.fields(weights)
        if isinstance(value := getattr(weights, field.name), torch.Tensor)
    }
    return dataclasses.replace(weights, **tensors)


def make_kernel(kind: str, problem: Problem, conv: Conv, buffers: Buffers) -> Kernel:
    """``kind``: a name of `KINDS`."""
    if kind == "elements":
        return ElementKernel(problem, conv, buffers)
    if kind == "cudnn":
        return DenseKernel(problem, conv, buffers)
    return PanelKernel(problem, conv, buffers, int(kind.removeprefix("panels:")))
