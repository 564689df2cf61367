"""A U-Net as steps on values: what the forward pass does, in order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from sparse_ddpm_kernels.training import CHUNK, Kind, Weight
from torch import nn

from sparse_ddpm.model.layers import (
    AttentionBlock,
    ChannelNorm,
    Conv,
    Linear,
    LinearMix,
    NormAct,
    ResnetBlock,
    SoftmaxMix,
)
from sparse_ddpm.model.sparse.memory import Arena, Geometry, Value
from sparse_ddpm.model.sparse.weights import ConvWeights, Weights, survivors
from sparse_ddpm.model.unet import DownLevel, Middle, UNet, UpLevel

IMAGE_HALO = 3
"""For the 7x7 convolution; elsewhere 1."""


@dataclass(slots=True)
class Step:
    """One operation; ``weights`` as in ``sdt_op``, the turned ones last."""

    kind: Kind
    x: Value | None
    out: Value | None
    y: Value | None = None
    accumulate: bool = False
    weights: list[Weight] = field(default_factory=list)
    turned: list[Weight] = field(default_factory=list)
    taken: list[Weight] = field(default_factory=list)
    groups: int = 0
    heads: int = 0
    dim_head: int = 0
    film: int = -1
    a: int = -1
    b: int = -1
    saved: int = -1
    kept: int = 0
    """The address of ``sdt_op.kept``."""

    def add(self, made: ConvWeights) -> None:
        """A weight that the step multiplies with."""
        self.weights.append(made.forward)
        self.taken.append(made.taken)
        if made.turned is not None:
            self.turned.append(made.turned)


class Steps:
    """The forward pass of a U-Net for ``lanes`` images, and where its values lie."""

    def __init__(self, model: UNet, lanes: int) -> None:
        self.lanes = lanes
        self.arena, self.weights = Arena(), Weights()
        self.steps: list[Step] = []
        self.films: list[Linear] = []
        """The maps of the time embedding to FiLM, in the order of its rows."""
        self.film_rows = 0
        self._build(model)
        self.weights.finish()

    def _build(self, model: UNet) -> None:
        config, widths = model.config, model.config.widths
        levels = len(config.dim_mults)
        sizes = [Geometry(s, s, 1, self.lanes) for s in _sizes(config.image_size, levels)]
        size = config.image_size
        image = self._new(Geometry(size, size, IMAGE_HALO, self.lanes), config.channels)
        self.steps.append(Step(Kind.LOAD, None, image))
        # What is concatenated is made inside the concatenation.
        last = self.arena.buffer(sizes[0], 2 * config.dim)
        joins = [
            [self.arena.buffer(sizes[i], widths[i + 1] + widths[i]) for _ in range(2)]
            for i in range(levels)
        ]
        x = Value(last, config.dim, config.dim)
        self._conv(model.init_conv, image, x, turn=False)
        for i, level in enumerate(model.down):
            assert isinstance(level, DownLevel)
            here, after = widths[i], widths[i + 1]
            first, second = (Value(joins[i][j], after, here) for j in (1, 0))
            self._resnet(level.block1, x, first)
            middle = self._new(sizes[i], here)
            self._resnet(level.block2, first, middle)
            self._attention(level.attn, middle, second)
            if i < levels - 1:
                deep = self._new(sizes[i + 1], 4 * here)
                self.steps.append(Step(Kind.SPACE_TO_DEPTH, second, deep))
                x = self._new(sizes[i + 1], after)
                self._conv(level.down, deep, x)
            else:
                x = self._new(sizes[i], after)
                self._conv(level.down, second, x)
        x = self._middle(model.mid, x, Value(joins[-1][0], 0, widths[-1]))
        for i, level in zip(reversed(range(levels)), model.up, strict=True):
            assert isinstance(level, UpLevel)
            here, skip = widths[i + 1], widths[i]
            one, two = joins[i]
            self._resnet(level.block1, Value(one, 0, here + skip), Value(two, 0, here))
            x = self._new(sizes[i], here)
            self._resnet(level.block2, Value(two, 0, here + skip), x)
            mixed = self._new(sizes[i], here)
            self._attention(level.attn, x, mixed)
            if i > 0:
                wide = self._new(sizes[i - 1], here)
                self.steps.append(Step(Kind.UPSAMPLE, mixed, wide))
                self._conv(level.up, wide, Value(joins[i - 1][0], 0, skip))
            else:
                self._conv(level.up, mixed, Value(last, 0, skip))
        x = self._new(sizes[0], config.dim)
        self._resnet(model.final_block, Value(last, 0, 2 * config.dim), x)
        out = self._new(sizes[0], config.channels)
        self._conv(model.final_conv, x, out)
        self.steps.append(Step(Kind.STORE, out, None))

    def _new(self, geometry: Geometry, channels: int) -> Value:
        return Value(self.arena.buffer(geometry, channels), 0, channels)

    def _conv(
        self, module: Conv, x: Value, out: Value, *, accumulate: bool = False, turn: bool = True
    ) -> None:
        made = self.weights.conv(module, x.buffer.geometry, out.buffer.geometry, turn=turn)
        step = Step(Kind.CONV, x, out, accumulate=accumulate)
        step.add(made)
        self.steps.append(step)

    def _norm_act(
        self, module: nn.Module, x: Value, out: Value, y: Value | None = None, film: int = -1
    ) -> None:
        assert isinstance(module, NormAct)
        step = Step(Kind.NORM_ACT, x, out, y, groups=module.groups, film=film)
        step.a, step.b = self.weights.vector(module.weight), self.weights.vector(module.bias)
        step.saved = self.arena.take(2 * module.groups * self.lanes)
        self.steps.append(step)

    def _channel_norm(
        self, module: nn.Module, x: Value, out: Value, y: Value | None = None
    ) -> None:
        assert isinstance(module, ChannelNorm)
        step = Step(Kind.CHANNEL_NORM, x, out, y, a=self.weights.vector(module.gain))
        step.saved = self.arena.take(2 * x.buffer.geometry.pixels * self.lanes)
        self.steps.append(step)

    def _resnet(self, block: ResnetBlock, x: Value, out: Value) -> None:
        geometry = x.buffer.geometry
        film = self.film_rows
        self.films.append(block.film)
        self.film_rows += 2 * out.channels
        one, two, three = (self._new(geometry, out.channels) for _ in range(3))
        self._conv(block.conv1, x, one)
        self._norm_act(block.norm1, one, two, film=film)
        self._conv(block.conv2, two, three)
        if isinstance(block.shortcut, Conv):
            self._norm_act(block.norm2, three, out)
            self._conv(block.shortcut, x, out, accumulate=True)
        else:
            self._norm_act(block.norm2, three, out, x)

    def _attention(self, block: AttentionBlock, x: Value, out: Value) -> None:
        geometry, mix = x.buffer.geometry, block.mix
        assert isinstance(mix, LinearMix | SoftmaxMix)
        heads, dim = mix.heads, mix.dim_head
        hidden = heads * dim
        normed = self._new(geometry, x.channels)
        self._channel_norm(block.norm, x, normed)
        if isinstance(mix, SoftmaxMix):
            qkv, mixed = self._new(geometry, 3 * hidden), self._new(geometry, hidden)
            self._conv(block.qkv, normed, qkv)
            self.steps.append(Step(Kind.SOFTMAX, qkv, mixed, heads=heads, dim_head=dim))
            self.steps.append(Step(Kind.ADD, x, out))
            self._conv(block.out, mixed, out, accumulate=True)
            return
        apart = CHUNK * self.lanes
        projected = self._new(geometry, x.channels)
        step = Step(Kind.LINEAR, normed, projected, heads=heads, dim_head=dim)
        # A channel of v acts if it has weights and something reads its mix.
        alive = survivors(block.qkv)[2 * hidden :, :, 0, 0].any(1)
        mixed_rows = np.nonzero(alive & survivors(block.out)[:, :, 0, 0].any(0))[0]
        kept = np.searchsorted(mixed_rows, np.arange(heads + 1) * dim).astype(np.int32)
        step.kept = self.weights.keep(kept)
        both = np.concatenate([np.arange(hidden, 2 * hidden), 2 * hidden + mixed_rows])
        for module, rows, columns in (
            (block.qkv, np.arange(hidden), None),
            (block.qkv, both, None),
            (block.out, None, mixed_rows),
        ):
            step.add(self.weights.conv(module, apart, apart, rows=rows, columns=columns))
        step.saved = self.arena.take((len(mixed_rows) * dim + 2 * hidden) * self.lanes)
        self.steps.append(step)
        self._channel_norm(block.out_norm, projected, out, x)

    def _middle(self, middle: Middle, x: Value, out: Value) -> Value:
        one, two = (self._new(x.buffer.geometry, x.channels) for _ in range(2))
        self._resnet(middle.block1, x, one)
        self._attention(middle.attn, one, two)
        self._resnet(middle.block2, two, out)
        return out


def _sizes(size: int, levels: int) -> list[int]:
    return [size >> i for i in range(levels)]
