"""A plan bound to buffers: for each step the launches that carry it out.

Everything is allocated and packed here, once; a launch allocates nothing and does not wait, so
that all of them can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sparse_ddpm_kernels.triton import (
    attention,
    channel_norm,
    data,
    element_conv,
    linear_attention,
    linear_block,
    norm,
    panel_conv,
)
from sparse_ddpm_kernels.triton.element_pack import pack_slices
from sparse_ddpm_kernels.triton.element_tiles import ElementTiles, choose_element_tiles
from sparse_ddpm_kernels.triton.linear_block_pack import pack_linear_block
from sparse_ddpm_kernels.triton.panel_pack import pack_panels
from sparse_ddpm_kernels.triton.panel_tiles import PanelTiles, block_channels, choose_panel_tiles

from sparse_ddpm.engine.cuda.plan import ConvStep, CudaPlan, CudaStep
from sparse_ddpm.engine.film import Films
from sparse_ddpm.engine.fuse import Five
from sparse_ddpm.engine.panels import make_panels
from sparse_ddpm.program import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    SpaceToDepth,
    Upsample2x,
)

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


class Launches:
    """``steps``: by the value that a step makes, what is launched for it, in order.

    ``x``: float32 ``[batch, C, H, W]``, where the input is read; ``output``: where the output is
    written; ``step``: int32 ``[1]``, the row of the time table; ``table``: see `set_table`.
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
        self._tiles = tiles
        self._overlap = overlap
        program = plan.program
        self._storage = [layout.allocate(self.dtype, device) for layout in plan.memory.buffers]
        self.x = torch.zeros((plan.batch, *program.input_shape), device=device)
        self.output = torch.zeros((plan.batch, *program.shapes[program.output]), device=device)
        self.step = torch.zeros(1, dtype=torch.int32, device=device)
        self.films = Films.of(program)
        self.table = torch.zeros((1, max(self.films.width, 1)), device=device)
        self._workspace = Workspace(device)
        self._moments: dict[str, Moments] = {}
        self._merged: list[torch.Tensor] = []
        self.steps: dict[str, list[Launch]] = {}
        x = self.view(program.input)
        self.steps[program.input] = [lambda: data.load_images(self.x, x)]
        for item in plan.steps:
            self.steps[item.out] = self._bind(item)
        out = self.view(program.output)
        self.store: Launch = lambda: data.store_images(out, self.output)

    def view(self, name: str) -> torch.Tensor:
        """A value, ``[C, H, W, images]``."""
        place = self.plan.memory.places[name]
        whole = place.layout.view(self._storage[place.buffer])
        return whole[place.first : place.first + place.channels]

    def poison(self) -> None:
        """Fill all pixels, and what lives within a step, with NaN; halos stay zero."""
        for layout, storage in zip(self.plan.memory.buffers, self._storage, strict=True):
            layout.view(storage).fill_(float("nan"))
        self._workspace.memory.fill_(float("nan"))
        for held in (*(moments.values for moments in self._moments.values()), *self._merged):
            held.fill_(float("nan"))

    @property
    def bytes(self) -> int:
        """Of activations and what lives within a step, allocated."""
        held = [*self._storage, self.x, self.output, self._workspace.memory]
        held += [*(moments.values for moments in self._moments.values()), *self._merged]
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

    def run(self) -> None:
        """All launches of a step, from `x` to `output`."""
        for launch in self.steps[self.plan.program.input]:
            launch()
        self.network()
        self.store()

    def network(self) -> None:
        """The operations alone, from the input's view to the output's."""
        for name, launches in self.steps.items():
            if name != self.plan.program.input:
                for launch in launches:
                    launch()

    def _float(self, array: NDArray[Any]) -> torch.Tensor:
        # A copy: arrays of a Program are read-only, which torch does not know.
        return torch.from_numpy(np.array(array, dtype=np.float32)).to(self.device)

    def _bind(self, step: CudaStep) -> list[Launch]:
        operation, view = step.operation, self.view
        if step.conv is not None:
            return [self._conv(step.conv)]
        if step.block is not None:
            return [self._block(step.block)]
        match operation:
            case NormAct():
                return [self._norm(operation, step)]
            case ChannelNorm():
                x, out, gain = view(operation.x), view(operation.out), self._float(operation.gain)
                residual = None if operation.residual is None else view(operation.residual)
                eps = operation.eps
                return [lambda: channel_norm.channel_norm(x, out, gain, eps=eps, residual=residual)]
            case Attention():
                qkv, out = view(operation.qkv), view(operation.out)
                heads, dim = operation.heads, operation.dim_head
                return [lambda: attention.attention(qkv, out, heads=heads, dim_head=dim)]
            case LinearAttention():
                return [self._linear_attention(operation)]
            case SpaceToDepth():
                x, out = view(operation.x), view(operation.out)
                return [lambda: data.space_to_depth(x, out)]
            case Upsample2x():
                x, out = view(operation.x), view(operation.out)
                return [lambda: data.upsample2x(x, out)]
            case Add():
                a, b, out = view(operation.a), view(operation.b), view(operation.out)
                return [lambda: data.add(a, b, out)]
            case Concat():
                return self._concat(operation, step)
            case Conv():
                raise AssertionError("a convolution has its own step")

    def _concat(self, operation: Concat, step: CudaStep) -> list[Launch]:
        out = self.view(operation.out)
        launches: list[Launch] = []
        first = 0
        for name, needed in zip((operation.a, operation.b), step.copies, strict=True):
            part = self.view(name)
            if needed:
                launches.append(partial(data.copy, part, out[first : first + len(part)]))
            first += len(part)
        return launches

    def _norm(self, operation: NormAct, step: CudaStep) -> Launch:
        x, out = self.view(operation.x), self.view(operation.out)
        channels, height, width, images = x.shape
        residual = None if operation.residual is None else self.view(operation.residual)
        given = self._moments.get(operation.x) if step.moments else None
        partials = 0
        if given is not None:
            of_group = channels // operation.groups // given.channels_per_block
            partials = given.values.shape[1] * of_group
        tiles = norm.choose_norm_tiles(
            channels, height * width, images, operation.groups, partials=partials
        )
        rows = channels // operation.groups * height * width
        needed = tiles.workspace(group_rows=rows, groups=operation.groups, images=images)
        self._workspace.want(needed)
        rows_of = self._rows(operation)

        def launch() -> None:
            table, gamma, beta, row = rows_of()
            norm.group_norm(
                x,
                out,
                table,
                gamma=gamma,
                beta=beta,
                step=row,
                groups=operation.groups,
                eps=operation.eps,
                silu=operation.silu,
                residual=residual,
                moments=None if given is None else given.values,
                channels_per_block=None if given is None else given.channels_per_block,
                tile_pixels=None if given is None else given.tile_pixels,
                workspace=self._workspace.memory if needed else None,
                tiles=tiles,
            )

        return launch

    def _rows(self, operation: NormAct) -> Callable[[], Rows]:
        """Where a norm's factors and summands are, when it is launched."""
        channels = len(operation.gamma)
        if operation.film is None:
            constant = self._float(np.concatenate([operation.gamma, operation.beta])[None, :])
            return lambda: (constant, 0, channels, None)
        column = self.films.columns[operation.out]
        return lambda: (self.table, column, column + channels, self.step)

    def _linear_attention(self, operation: LinearAttention) -> Launch:
        qkv, out = self.view(operation.qkv), self.view(operation.out)
        heads, dim_head = operation.heads, operation.dim_head
        _, height, width, images = qkv.shape
        tiles = linear_attention.choose_linear_attention_tiles(
            height * width, images, heads, dim_head
        )
        self._workspace.want(tiles.workspace(heads=heads, dim_head=dim_head, images=images))
        return lambda: linear_attention.linear_attention(
            qkv, out, self._workspace.memory, heads=heads, dim_head=dim_head, tiles=tiles
        )

    def _block(self, five: Five) -> Launch:
        """Linear attention with its norms and convolutions."""
        norm_in, qkv, mix, project, norm_out = five
        x, out = self.view(norm_in.x), self.view(norm_out.out)
        _, height, width, images = x.shape
        heads, dim_head = mix.heads, mix.dim_head
        weights = pack_linear_block(
            norm_in.gain,
            qkv.weight.to_dense(),
            project.weight.to_dense(),
            project.bias,
            norm_out.gain,
            dtype=self.dtype,
            device=self.device,
        )
        tiles = linear_block.choose_linear_block_tiles(height * width, images, heads)
        self._workspace.want(
            tiles.workspace(pixels=height * width, heads=heads, dim_head=dim_head, images=images)
        )
        merged = torch.zeros(
            (images, heads, dim_head, dim_head), dtype=self.dtype, device=self.device
        )
        self._merged.append(merged)
        return lambda: linear_block.linear_block(
            x,
            weights,
            out,
            self._workspace.memory,
            merged,
            heads=heads,
            dim_head=dim_head,
            eps=norm_in.eps,
            out_eps=norm_out.eps,
            residual=norm_out.residual is not None,
            tiles=tiles,
        )

    def _conv(self, conv: ConvStep) -> Launch:
        operation, kind = conv.operation, conv.choice.kind
        bias = None if operation.bias is None else self._float(operation.bias)
        residual = None if conv.residual is None else self.view(conv.residual)
        if kind == "cudnn":
            return self._dense(conv, bias, residual)
        if kind == "elements":
            return self._elements(conv, bias, residual)
        return self._panels(conv, bias, residual)

    def _panels(
        self, conv: ConvStep, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> Launch:
        operation, group = conv.operation, conv.choice.group
        x, out = self.view(conv.source), self.view(conv.out)
        channels, height, width, images = out.shape
        pixels = height * width
        known = self._tiles.get(operation.out)
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
            x=self.plan.memory.places[conv.source].part,
            size=operation.size,
            block_k=tiles.block_k,
            stride=conv.stride,
            scale=conv.scale,
        ).to(self.device, self.dtype)
        self._workspace.want(tiles.partial_size(channels, pixels, images))
        split = tiles.splits > 1
        values: torch.Tensor | None = None
        if conv.moments is not None:
            block = block_channels(group, channels // conv.moments.groups)
            shape = tiles.moments_shape(channels, pixels, images, block)
            values = torch.zeros(shape, device=self.device)
            self._moments[operation.out] = Moments(values, block, tiles.pixels)
        after = conv.norm
        rows_of = None if after is None else self._rows(after)

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
                partial=self._workspace.memory if split else None,
                overlap=self._overlap,
            )

        return launch

    def _elements(
        self, conv: ConvStep, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> Launch:
        operation = conv.operation
        x, out = self.view(conv.source), self.view(conv.out)
        channels, height, width, images = out.shape
        scale = conv.scale
        known = self._tiles.get(operation.out)
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
            x=self.plan.memory.places[conv.source].part,
            size=operation.size,
            slice_rows=tiles.slice_rows,
            split=tiles.split,
            stride=conv.stride,
            scale=scale,
        ).to(self.device, self.dtype)
        return lambda: element_conv.element_conv(
            x, weights, out, bias=bias, residual=residual, tiles=tiles
        )

    def _dense(
        self, conv: ConvStep, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> Launch:
        """cuDNN's, which wants channels innermost: transposed before and after."""
        operation = conv.operation
        x, out = self.view(conv.source), self.view(conv.out)
        size, stride = operation.size, conv.stride
        weight = operation.weight.to_dense().reshape(len(out), -1, size, size)
        form = torch.channels_last
        filters = self._float(weight).to(self.dtype).contiguous(memory_format=form)
        offset = None if bias is None else bias.to(self.dtype)

        def launch() -> None:
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
