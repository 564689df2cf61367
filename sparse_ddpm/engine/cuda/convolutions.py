"""Convolutions bound to buffers: panels, single weights, or cuDNN."""

from __future__ import annotations

import torch
from sparse_ddpm_kernels.triton import element_conv, panel_conv
from sparse_ddpm_kernels.triton.element_pack import pack_slices
from sparse_ddpm_kernels.triton.element_tiles import ElementTiles, choose_element_tiles
from sparse_ddpm_kernels.triton.panel_pack import pack_panels
from sparse_ddpm_kernels.triton.panel_tiles import PanelTiles, block_channels, choose_panel_tiles

from sparse_ddpm.engine.cuda.buffers import Buffers, Launch, Moments
from sparse_ddpm.engine.cuda.plan import ConvStep
from sparse_ddpm.engine.panels import make_panels


def bind_convolution(own: Buffers, conv: ConvStep) -> Launch:
    """The launch of a convolution and of what runs in its kernel; its weights are packed here."""
    operation, kind = conv.operation, conv.choice.kind
    bias = own.bias_of(operation)
    residual = None if conv.residual is None else own.view(conv.residual)
    if kind == "cudnn":
        return _dense(own, conv, bias, residual)
    if kind == "elements":
        return _elements(own, conv, bias, residual)
    return _panels(own, conv, bias, residual)


def _panels(
    own: Buffers,
    conv: ConvStep,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> Launch:
    operation, group = conv.operation, conv.choice.group
    x, out = own.view(conv.source), own.view(conv.out)
    channels, height, width, images = out.shape
    pixels = height * width
    known = own.tiles.get(operation.out)
    phases = conv.scale * conv.scale
    tiles = (
        choose_panel_tiles(
            channels * phases,
            pixels // phases,
            images,
            conv.choice.entries * phases,
            group,
            moments=conv.moments is not None,
            norm=conv.norm is not None,
        )
        if known is None
        else PanelTiles(**known)
    )
    panels = make_panels(operation.weight, group)
    weights = pack_panels(
        panels.ptr,
        panels.columns,
        panels.values,
        panels.rows,
        x=own.plan.memory.places[conv.source].part,
        size=operation.size,
        block_k=tiles.block_k,
        stride=conv.stride,
        scale=conv.scale,
    ).to(own.device, own.dtype)
    own.workspace.want(tiles.partial_size(channels, pixels, images))
    split = tiles.splits > 1
    values: torch.Tensor | None = None
    if conv.moments is not None:
        block = block_channels(group, channels // conv.moments.groups)
        shape = tiles.moments_shape(channels, pixels, images, block)
        values = torch.zeros(shape, device=own.device)
        own.moments[operation.out] = Moments(values, block, tiles.pixels)
    after = conv.norm
    rows_of = None if after is None else own.rows_of(after)

    def launch() -> None:
        epilogue = None
        if after is not None and rows_of is not None:
            table, gamma, beta, row = rows_of()
            epilogue = panel_conv.EpilogueNorm(
                after.groups, table, gamma, beta, row, after.silu, after.eps
            )
        panel_conv.panel_conv(
            x,
            weights,
            out,
            tiles=tiles,
            bias=bias,
            residual=residual,
            moments=values,
            norm=epilogue,
            partial=own.workspace.memory if split else None,
            overlap=own.overlap,
        )

    return launch


def _elements(
    own: Buffers,
    conv: ConvStep,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> Launch:
    operation = conv.operation
    x, out = own.view(conv.source), own.view(conv.out)
    channels, height, width, images = out.shape
    scale = conv.scale
    known = own.tiles.get(operation.out)
    tiles = (
        choose_element_tiles(
            channels * scale**2,
            height // scale,
            width // scale,
            images,
            conv.choice.entries * scale**2,
            cin=len(x),
            size=operation.size,
        )
        if known is None
        else ElementTiles(**known)
    )
    panels = make_panels(operation.weight, 1)
    weights = pack_slices(
        panels.ptr,
        panels.columns,
        panels.values,
        panels.rows,
        x=own.plan.memory.places[conv.source].part,
        size=operation.size,
        slice_rows=tiles.slice_rows,
        split=tiles.split,
        stride=conv.stride,
        scale=scale,
    ).to(own.device, own.dtype)
    return lambda: element_conv.element_conv(
        x, weights, out, bias=bias, residual=residual, tiles=tiles
    )


def _dense(
    own: Buffers,
    conv: ConvStep,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> Launch:
    """cuDNN's, which wants channels innermost: transposed before and after."""
    operation = conv.operation
    x, out = own.view(conv.source), own.view(conv.out)
    size, stride = operation.size, conv.stride
    weight = operation.weight.to_dense().reshape(len(out), -1, size, size)
    form = torch.channels_last
    filters = own.float32(weight).to(own.dtype).contiguous(memory_format=form)
    offset = None if bias is None else bias.to(own.dtype)

    def launch() -> None:
        if offset is not None and bias is not None and operation.film is not None:
            offset.copy_(bias)
        images = x.permute(3, 0, 1, 2)
        if stride > 1:
            images = torch.nn.functional.pixel_unshuffle(images, stride)
        images = images.contiguous(memory_format=form)
        made = torch.nn.functional.conv2d(images, filters, offset, padding=size // 2)
        made = made.permute(1, 2, 3, 0)
        if residual is None:
            out.copy_(made)
        else:
            torch.add(made, residual, out=out)

    return launch
