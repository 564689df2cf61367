"""One convolution as torch runs it: cuDNN, compiled, and as a block-sparse product of an im2col.

Inputs are drawn by the caller as float32 ``[N, C, H, W]``; weights are dense ``[Cout, Cin, 3, 3]``
with exact zeros. Every peer copies both in the form it likes best, once for each set of buffers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from gpu.devices import Call, Device
from gpu.peers import compiled

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Prepared:
    """``calls``: one a set of buffers. ``output``: of the first, ``[N, C, H, W]``."""

    calls: Sequence[Call]
    output: Callable[[], Tensor]
    details: Mapping[str, Any]


def cudnn(x: Tensor, weight: Tensor, device: Device, sets: int) -> Prepared:
    """``conv2d`` of channels-last tensors, without bias: torch would add it by another kernel."""
    return _convolution(x, weight, device, sets, F.conv2d)


def max_autotune(x: Tensor, weight: Tensor, device: Device, sets: int) -> Prepared:
    """The same, compiled."""
    forward = compiled(_Convolution(), "compile max-autotune", device)
    return _convolution(x, weight, device, sets, forward)


class _Convolution(torch.nn.Module):
    def forward(self, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, weight, padding=padding)


def _convolution(
    x: Tensor, weight: Tensor, device: Device, sets: int, forward: Callable[..., Tensor]
) -> Prepared:
    form = {"dtype": device.dtypes[0], "device": device.torch_device}
    form["memory_format"] = torch.channels_last
    pairs = [(x.to(**form, copy=True), weight.to(**form, copy=True)) for _ in range(sets)]
    pad = weight.shape[-1] // 2

    def call(pair: tuple[Tensor, Tensor]) -> Call:
        def run() -> Tensor:
            with torch.no_grad():
                return forward(*pair, padding=pad)

        return run

    calls = [call(pair) for pair in pairs]
    return Prepared(calls, calls[0], {})


METAS = (
    (64, 3, 4),
    (128, 3, 4),
    (128, 4, 8),
    (64, 4, 2),
    (32, 4, 2),
    (16, 4, 2),
)
"""Columns of a tile, stages, warps: torch's own table knows the A100 alone."""


def block_sparse(
    x: Tensor, weight: Tensor, device: Device, sets: int, block: int, *, im2col: bool
) -> Prepared:
    """``bsr_dense_addmm`` with the fastest of `METAS`, its im2col timed along or not.

    Columns are ordered tap by tap, so that a block lies within a tap; the im2col is one copy from
    a padded ``[C, H + 2, W + 2, N]``. Raises whatever torch raises.
    """
    from torch.sparse import _triton_ops

    dtype, place = device.dtypes[0], device.torch_device
    rows, channels, size, _ = weight.shape
    batch, _, height, width = x.shape
    warnings.filterwarnings("ignore", message="Sparse BSR tensor support is in beta")
    matrix = weight.permute(0, 2, 3, 1).reshape(rows, -1).to(place, dtype)
    operand = matrix.to_sparse_bsr((block, block))
    pixels = height * width * batch
    padded = F.pad(x.permute(1, 2, 3, 0), (0, 0, size // 2, size // 2, size // 2, size // 2))
    buffers = []
    for _ in range(sets):
        image = padded.to(place, dtype, copy=True).contiguous()
        columns = torch.empty(size * size * channels, pixels, dtype=dtype, device=place)
        buffers.append((image, columns, torch.empty(rows, pixels, dtype=dtype, device=place)))

    def gather(image: Tensor, columns: Tensor) -> None:
        plane, row, pixel, one = image.stride()
        shape = size, size, channels, height, width, batch
        windows = image.as_strided(shape, (row, pixel, plane, row, pixel, one))
        columns.view(shape).copy_(windows)

    def call(buffer: tuple[Tensor, Tensor, Tensor], meta: dict[str, int], *, whole: bool) -> Call:
        image, columns, out = buffer

        def run() -> Tensor:
            if whole:
                gather(image, columns)
            found: Tensor = _triton_ops.bsr_dense_addmm(
                out, operand, columns, beta=0, alpha=1, out=out, meta=meta
            )
            return found

        return run

    for image, columns, _ in buffers:
        gather(image, columns)
    times: dict[tuple[int, int, int], float] = {}
    for tile, stages, warps in METAS:
        if pixels % tile == 0:
            meta = _meta(pixels, tile, stages, warps)
            timed = device.time([call(buffers[0], meta, whole=False)], samples=5)
            times[tile, stages, warps] = timed.median
    best = min(times, key=lambda item: times[item])
    meta = _meta(pixels, *best)
    calls = [call(buffer, meta, whole=im2col) for buffer in buffers]

    def output() -> Tensor:
        calls[0]()
        return buffers[0][2].view(rows, height, width, batch).permute(3, 0, 1, 2)

    return Prepared(calls, output, {"meta": meta, "blocks": int(operand.values().shape[0])})


def _meta(pixels: int, tile: int, stages: int, warps: int) -> dict[str, int]:
    return {
        "SPLIT_N": pixels // tile,
        "GROUP_SIZE_ROW": 4,
        "num_stages": stages,
        "num_warps": warps,
    }
