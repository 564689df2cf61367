"""Panels as the tensor-core convolution reads them: K-steps of offsets and weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm_kernels.triton.layout import IMAGES, Layout

if TYPE_CHECKING:
    import torch

BLOCK_KS = (16, 32, 64)
"""Lengths of a K-step: 16 is the tensor cores' own."""

GROUPS = (16, 32, 64, 128)
"""Output channels of a panel."""


@dataclass(frozen=True, slots=True, eq=False)
class PanelWeights:
    """A layer's panels on a device. Panel p takes K-steps ``start[p] <= s < start[p + 1]``.

    ``start``: int32 ``[panels + 1]``; ``first_row``: int32 ``[panels]``, the panel's first output
    channel; ``offset``: int32 ``[(steps + 1) * block_k]``, eighths of elements from an output
    pixel's position in x; ``value``: ``[steps * block_k, group]`` in the activations' dtype. All
    contiguous and aligned to 16 bytes. The offsets hold for x in layout ``x`` only.

    ``channels``: of the output; ``entries``: columns of all panels without padding; ``stride``: an
    output pixel is ``stride`` pixels of x wide and high.
    """

    start: torch.Tensor
    first_row: torch.Tensor
    offset: torch.Tensor
    value: torch.Tensor
    x: Layout
    channels: int
    group: int
    block_k: int
    stride: int
    entries: int


@dataclass(frozen=True, slots=True, eq=False)
class PackedPanels:
    """`PanelWeights` in numpy, ``value`` in float32. Panels of the most K-steps come first."""

    start: NDArray[np.int32]
    first_row: NDArray[np.int32]
    offset: NDArray[np.int32]
    value: NDArray[np.float32]
    x: Layout
    channels: int
    group: int
    block_k: int
    stride: int
    entries: int

    @property
    def steps(self) -> int:
        return int(self.start[-1])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> PanelWeights:
        """Copies on ``device``, the weights rounded to ``dtype``."""
        import torch

        def copy(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(device, copy=True)

        return PanelWeights(
            start=copy(self.start),
            first_row=copy(self.first_row),
            offset=copy(self.offset),
            value=torch.from_numpy(self.value).to(device, dtype, copy=True),
            x=self.x,
            channels=self.channels,
            group=self.group,
            block_k=self.block_k,
            stride=self.stride,
            entries=self.entries,
        )


def column_offsets(
    columns: NDArray[np.int32], *, x: Layout, size: int, stride: int = 1
) -> NDArray[np.int64]:
    """Elements from an output pixel's position in ``x`` to what each column reads there.

    A column is ``channel * size * size + ky * size + kx``. With ``stride`` 2 the channels are those
    of space-to-depth, ``(c * 2 + i) * 2 + j``, which is thereby read without being made.
    ValueError if x has too few channels or too small a halo.
    """
    reach = stride * (size // 2)
    if reach > x.halo:
        raise ValueError(f"halo: expected at least {reach}, got {x.halo}.")
    channel, tap = np.divmod(columns.astype(np.int64), size * size)
    source, phase = np.divmod(channel, stride * stride)
    if len(columns) and (columns.min() < 0 or source.max() >= x.channels):
        limit = x.channels * stride * stride * size * size
        raise ValueError(
            f"columns: expected 0 to {limit - 1}, got {columns.min()} to {columns.max()}."
        )
    dy = (tap // size - size // 2) * stride + phase // stride
    dx = (tap % size - size // 2) * stride + phase % stride
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
) -> PackedPanels:
    """Pad each panel to whole K-steps of ``block_k`` entries, offset 0 and weight 0.

    Arrays as `sparse_ddpm.engine.panels.Panels`: ``ptr`` int64 ``[panels + 1]``, ``columns`` int32
    ``[entries]``, ``values`` float32 ``[entries, G]``, ``rows`` int32 ``[panels, G]``, consecutive
    rows, -1 past the last. ``x``: how the input lies; for a concatenation the layout that holds
    both. ``size``: odd side of the filter. ``stride``: as in `column_offsets`. One K-step of
    offsets more than needed is there, as the kernel loads a step's offsets one step ahead.
    """
    panels, group = rows.shape
    if group not in GROUPS:
        raise ValueError(f"output channels of a panel: expected one of {GROUPS}, got {group}.")
    if block_k not in BLOCK_KS:
        raise ValueError(f"block_k: expected one of {BLOCK_KS}, got {block_k}.")
    first = rows[:, 0]
    expected = first[:, None] + np.arange(group)
    if panels == 0 or first.min() < 0 or not np.all((rows == expected) | (rows == -1)):
        raise ValueError("rows of a panel: expected consecutive numbers, then -1.")
    if x.channels * x.plane >= 2**31:
        raise ValueError(f"elements of x: expected less than 2**31, got {x.channels * x.plane}.")
    lengths = np.diff(ptr)
    steps = -(-lengths // block_k)
    order = np.argsort(-steps, kind="stable")
    start = np.zeros(panels + 1, dtype=np.int32)
    np.cumsum(steps[order], out=start[1:])

    # Where each entry goes: its panel's first place, then on in order.
    place = np.empty(panels, dtype=np.int64)
    place[order] = start[:-1].astype(np.int64) * block_k
    target = np.repeat(place - ptr[:-1], lengths) + np.arange(len(columns))
    offset = np.zeros((int(start[-1]) + 1) * block_k, dtype=np.int32)
    offset[target] = column_offsets(columns, x=x, size=size, stride=stride) // IMAGES
    value = np.zeros((int(start[-1]) * block_k, group), dtype=np.float32)
    value[target] = values
    return PackedPanels(
        start=start,
        first_row=np.ascontiguousarray(first[order].astype(np.int32)),
        offset=offset,
        value=value,
        x=x,
        channels=int(rows.max()) + 1,
        group=group,
        block_k=block_k,
        stride=stride,
        entries=len(columns),
    )
