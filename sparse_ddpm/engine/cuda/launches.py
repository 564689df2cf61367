"""A plan bound to buffers: for each step the launches that carry it out.

Everything is allocated and packed here, once; a launch allocates nothing and does not wait, so
that all of them can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from sparse_ddpm_kernels.triton import (
    attention,
    channel_norm,
    data,
    linear_attention,
    linear_block,
    norm,
)
from sparse_ddpm_kernels.triton.layout import MOST_DIM
from sparse_ddpm_kernels.triton.linear_block_pack import pack_linear_block

from sparse_ddpm.engine.cuda.buffers import Buffers, Launch
from sparse_ddpm.engine.cuda.convolutions import bind_convolution
from sparse_ddpm.engine.cuda.counted import Counted, counted_kind, listening, step_flops
from sparse_ddpm.engine.cuda.plan import CudaPlan, CudaStep
from sparse_ddpm.engine.fuse import Five
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
from sparse_ddpm.program.operations import inputs_of


class Launches(Buffers):
    """``steps``: by the value that a step makes, what is launched for it, in order.

    ``biased``: whether time changes the bias of a convolution.
    """

    def __init__(
        self,
        plan: CudaPlan,
        device: torch.device,
        tiles: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        overlap: bool = False,
    ) -> None:
        super().__init__(plan, device, tiles, overlap)
        self.steps: dict[str, list[Launch]] = {}
        self.biased = any(isinstance(op, Conv) for op in self.films.operations)
        x = self.view(plan.program.input)
        self.steps[plan.program.input] = [lambda: data.load_images(self.x, x)]
        self.counted: dict[str, Counted] = {}
        for item in plan.steps:
            self.steps[item.out] = self._bind(item)
            kind = counted_kind(item)
            if kind is not None:
                self.counted[item.out] = self._count(kind, item)
        out = self.view(plan.program.output)
        self.store: Launch = lambda: data.store_images(out, self.output)

    def run(self) -> None:
        """All launches of a step, from `x` to `output`."""
        for launch in self.steps[self.plan.program.input]:
            launch()
        self.network()
        self.store()

    def network(self) -> None:
        """The operations alone, from the input's view to the output's."""
        if self.biased:
            torch.index_select(self.table, 0, self.step, out=self.row)
        counted = self.counted if listening() else {}
        for name, launches in self.steps.items():
            if name in counted:
                counted[name]()
            elif name != self.plan.program.input:
                for launch in launches:
                    launch()

    def _count(self, kind: str, step: CudaStep) -> Counted:
        first = step.operations[0]
        x, out = self.view(inputs_of(first)[0]), self.view(step.out)
        return Counted(kind, x, out, step_flops(self.plan, step), self.steps[step.out])

    def _bind(self, step: CudaStep) -> list[Launch]:
        operation, view = step.operation, self.view
        if step.conv is not None:
            return [bind_convolution(self, step.conv)]
        if step.block is not None:
            return [self._block(step.block)]
        match operation:
            case NormAct():
                return [self._norm(operation, step)]
            case ChannelNorm():
                x, out, gain = view(operation.x), view(operation.out), self.float32(operation.gain)
                residual = None if operation.residual is None else view(operation.residual)
                eps = operation.eps
                return [lambda: channel_norm.channel_norm(x, out, gain, eps=eps, residual=residual)]
            case Attention():
                return [self._attention(operation)]
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
        given = self.moments.get(operation.x) if step.moments else None
        partials = 0
        if given is not None:
            of_group = channels // operation.groups // given.channels_per_block
            partials = given.values.shape[1] * of_group
        tiles = norm.choose_norm_tiles(
            channels, height * width, images, operation.groups, partials=partials
        )
        rows = channels // operation.groups * height * width
        needed = tiles.workspace(group_rows=rows, groups=operation.groups, images=images)
        self.workspace.want(needed)
        rows_of = self.rows_of(operation)

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
                workspace=self.workspace.memory if needed else None,
                tiles=tiles,
            )

        return launch

    def _attention(self, operation: Attention) -> Launch:
        qkv, out = self.view(operation.qkv), self.view(operation.out)
        heads, dim = operation.heads, operation.dim_head
        if dim <= MOST_DIM:
            return lambda: attention.attention(qkv, out, heads=heads, dim_head=dim)

        def launch() -> None:
            """torch's, on copies ``[images, heads, pixels, dim]``."""
            parts = qkv.reshape(3, heads, dim, -1, qkv.shape[3]).permute(0, 4, 1, 3, 2)
            mixed = torch.nn.functional.scaled_dot_product_attention(*parts.contiguous())
            out.copy_(mixed.permute(1, 3, 2, 0).reshape(out.shape))

        return launch

    def _linear_attention(self, operation: LinearAttention) -> Launch:
        qkv, out = self.view(operation.qkv), self.view(operation.out)
        heads, dim_head = operation.heads, operation.dim_head
        _, height, width, images = qkv.shape
        tiles = linear_attention.choose_linear_attention_tiles(
            height * width, images, heads, dim_head
        )
        self.workspace.want(tiles.workspace(heads=heads, dim_head=dim_head, images=images))
        return lambda: linear_attention.linear_attention(
            qkv, out, self.workspace.memory, heads=heads, dim_head=dim_head, tiles=tiles
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
        self.workspace.want(
            tiles.workspace(pixels=height * width, heads=heads, dim_head=dim_head, images=images)
        )
        merged = torch.zeros(
            (images, heads, dim_head, dim_head), dtype=self.dtype, device=self.device
        )
        self.merged.append(merged)
        return lambda: linear_block.linear_block(
            x,
            weights,
            out,
            self.workspace.memory,
            merged,
            heads=heads,
            dim_head=dim_head,
            eps=norm_in.eps,
            out_eps=norm_out.eps,
            residual=norm_out.residual is not None,
            tiles=tiles,
        )
