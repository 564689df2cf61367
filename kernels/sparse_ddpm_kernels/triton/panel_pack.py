"""Panels as the tensor-core convolution reads them: K-steps of offsets and weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm_kernels.triton.layout import IMAGES, Layout

if TYPE_CHECKING:
    import torch

BLOCK_KS = (16, 32, 64)
"""Lengths of a K-step: 16 is the tensor cores' own."""

GROUPS = (16, 32, 64, 128)
"""Output channels of a panel."""

AHEAD = 2
"""K-steps of offsets that the kernel reads ahead, and one of weights."""


@dataclass(frozen=True, slots=True, eq=False)
class PanelWeights:
    """A layer's panels on a device. Panel p takes K-steps ``start[p] <= s < start[p + 1]``.

    ``start``: int32 ``[panels + 1]``; ``first_row``: int32 ``[panels]``, the panel's first output
    channel; ``phase``: int32 ``[panels]``, which of scale * scale pixels it makes; ``offset``:
    int32 ``[(steps + 2) * block_k]``, eighths of elements from an output pixel's position in x;
    ``value``: ``[(steps + 1) * block_k, group]`` in the activations' dtype. All contiguous and
    aligned to 16 bytes. The offsets hold for x in layout ``x`` only.

    ``channels``: of the output; ``entries``: columns of all panels without padding. An output pixel
    is as wide and high as ``stride`` pixels of x; a pixel of x is as ``scale`` output pixels.
    """

    start: torch.Tensor
    first_row: torch.Tensor
    phase: torch.Tensor
    offset: torch.Tensor
    value: torch.Tensor
    x: Layout
    channels: int
    group: int
    block_k: int
    stride: int
    scale: int
    entries: int


@dataclass(frozen=True, slots=True, eq=False)
class PackedPanels:
    """`PanelWeights` in numpy, ``value`` in float32. Panels of the most K-steps come first."""

    start: NDArray[np.int32]
    first_row: NDArray[np.int32]
    phase: NDArray[np.int32]
    offset: NDArray[np.int32]
    value: NDArray[np.float32]
    x: Layout
    channels: int
    group: int
    block_k: int
    stride: int
    scale: int
    entries: int

    @property
    def steps(self) -> int:
        return int(self.start[-1])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> PanelWeights:
        """Copies on ``device``, the weights rounded to ``dtype``."""
        import torch

        def copy(array: NDArray[np.int32]) -> torch.Tensor:
            return torch.from_numpy(array).to(device, copy=True)

        return PanelWeights(
            start=copy(self.start),
            first_row=copy(self.first_row),
            phase=copy(self.phase),
            offset=copy(self.offset),
            value=torch.from_numpy(self.value).to(device, dtype, copy=True),
            x=self.x,
            channels=self.channels,
            group=self.group,
            block_k=self.block_k,
            stride=self.stride,
            scale=self.scale,
            entries=self.entries,
        )


def column_offsets(
    columns: NDArray[np.int32],
    *,
    x: Layout,
    size: int,
    stride: int = 1,
    scale: int = 1,
    phase: int = 0,
) -> NDArray[np.int64]:
    """Elements from an output pixel's position in ``x`` to what each column reads there.

    A column is ``channel * size * size + ky * size + kx``. ``stride``, ``scale``: as in
    `pack_panels`; ``phase``: of scale * scale output pixels at one position the one meant, row by
    row. ValueError if x has too few channels or too small a halo.
    """
    half = size // 2
    reach = -(-half // scale) * stride
    if reach > x.halo:
        raise ValueError(f"halo: expected at least {reach}, got {x.halo}.")
    if stride > 1 and scale > 1:
        raise ValueError(f"stride, scale: expected one of them to be 1, got {stride}, {scale}.")
    channel, tap = np.divmod(columns.astype(np.int64), size * size)
    source, part = np.divmod(channel, stride * stride)
    if len(columns) and (columns.min() < 0 or source.max() >= x.channels):
        limit = x.channels * stride * stride * size * size
        raise ValueError(
            f"columns: expected 0 to {limit - 1}, got {columns.min()} to {columns.max()}."
        )
    dy = (phase // scale + tap // size - half) // scale * stride + part // stride
    dx = (phase % scale + tap % size - half) // scale * stride + part % stride
    return np.asarray(source * x.plane + dy * x.row + dx * x.images)


def pack_panels(
    ptr: NDArray[np.int64],
    columns: NDArray[np.int32],
    values: NDArray[np.float32],
    rows: NDArray[np.int32],
    *,
    x: Layout,
    size: int,
    block_k: int,
    stride: int = 1,
    scale: int = 1,
) -> PackedPanels:
    """Pad each panel to whole K-steps of ``block_k`` entries, offset 0 and weight 0.

    Arrays as `sparse_ddpm.engine.panels.Panels`: ``ptr`` int64 ``[panels + 1]``, ``columns`` int32
    ``[entries]``, ``values`` float32 ``[entries, G]``, ``rows`` int32 ``[panels, G]``, consecutive
    rows, -1 past the last. ``x``: how the input lies; for a concatenation the layout that holds
    both. ``size``: odd side of the filter.

    ``stride`` 2: the columns' channels are those of space-to-depth of x, ``(c * 2 + i) * 2 + j``.
    ``scale`` 2: the columns are of x upsampled to the nearest neighbour. Neither is ever made: the
    taps of one output pixel fall on few pixels of x, whose weights are added up, for each of four
    phases. ValueError if something does not fit.
    """
    panels, group = rows.shape
    if group not in GROUPS:
        raise ValueError(f"output channels of a panel: expected one of {GROUPS}, got {group}.")
    if block_k not in BLOCK_KS:
        raise ValueError(f"block_k: expected one of {BLOCK_KS}, got {block_k}.")
    first = rows[:, 0]
    wanted = first[:, None] + np.arange(group)
    if panels == 0 or first.min() < 0 or not np.all((rows == wanted) | (rows == -1)):
        raise ValueError("rows of a panel: expected consecutive numbers, then -1.")
    if x.channels * x.plane >= 2**31:
        raise ValueError(f"elements of x: expected fewer than 2^31, got {x.channels * x.plane}.")

    parts: list[tuple[int, int, NDArray[np.int64], NDArray[np.float32]]] = []
    for phase in range(scale * scale):
        offsets = column_offsets(columns, x=x, size=size, stride=stride, scale=scale, phase=phase)
        for panel in range(panels):
            own = slice(int(ptr[panel]), int(ptr[panel + 1]))
            offset, value = offsets[own], values[own]
            if scale > 1:
                offset, inverse = np.unique(offset, return_inverse=True)
                value = np.zeros((len(offset), group), dtype=np.float32)
                np.add.at(value, inverse.reshape(-1), values[own])
            parts.append((int(first[panel]), phase, offset, value))
    parts.sort(key=lambda part: -(len(part[2]) // -block_k), reverse=True)

    steps = [-(-len(offset) // block_k) for _, _, offset, _ in parts]
    start = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum(steps, out=start[1:])
    packed_offset = np.zeros((int(start[-1]) + AHEAD) * block_k, dtype=np.int32)
    packed_value = np.zeros(((int(start[-1]) + 1) * block_k, group), dtype=np.float32)
    for begin, (_, _, offset, value) in zip(start[:-1].tolist(), parts, strict=True):
        own = slice(begin * block_k, begin * block_k + len(offset))
        packed_offset[own] = offset // IMAGES
        packed_value[own] = value
    return PackedPanels(
        start=start,
        first_row=np.array([part[0] for part in parts], dtype=np.int32),
        phase=np.array([part[1] for part in parts], dtype=np.int32),
        offset=packed_offset,
        value=packed_value,
        x=x,
        channels=int(rows.max()) + 1,
        group=group,
        block_k=block_k,
        stride=stride,
        scale=scale,
        entries=sum(len(part[2]) for part in parts),
    )
